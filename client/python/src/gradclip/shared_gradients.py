"""SharedGradients of gradclip.torch: gradients in memory that a server on this host reads."""

from __future__ import annotations

import itertools
import warnings
import weakref
from collections.abc import Collection, Iterable
from types import TracebackType
from typing import Any, Optional, Union

import torch
from torch import Tensor
from torch.nn import Module

from gradclip import _cuda
from gradclip._region import Refused, Unreachable
from gradclip._servers import Failure, Server
from gradclip._shared_part import SharedPart
from gradclip._staging import Places
from gradclip._torch_tensors import DTYPES, check, check_compat, clip_by_answer
from gradclip._wire import Place
from gradclip.client import Client
from gradclip.default import default_client
from gradclip.group import Group


class SharedGradients:
    """A model's gradients, laid out once in memory that a server on this host reads.

        shared = SharedGradients(model, client=gradclip.connect("unix:/run/gradclip/server.sock"))
        loss.backward()
        total_norm = shared.clip_grad_norm_(max_norm=1.0)

    No step sends a gradient byte. backward() writes to the memory, also after
    zero_grad(set_to_none=True) and where it accumulates: a hook of each parameter that has no
    gradient gives it its zeroed memory. A gradient that was put elsewhere, as by `.grad = ...`, is
    moved into the memory by the next clipping.

    The server has to have a --memory-socket, and this process a user that may use it. Where it has
    not, or does not answer there, gradients are streamed, which is said once by warnings.warn;
    is_shared tells.

    Parameters may be on CUDA devices, on several and beside the host's. The memory is then on each
    device, from the CUDA driver and not of torch's allocator; the server has to use the GPU, with
    --allow-cuda-ipc, and gradients of devices whose memory it does not take are copied to the host
    and streamed. clip_grad_norm_ waits for the current stream of each device before it calls, and
    gradients must not be written until it returns. Memory of a device is freed with the last
    gradient in it, once the server has let go; if it has not within 5 s, it stays allocated.

    model: a torch.nn.Module, or an iterable of parameters. Those that require gradients are taken,
        which must be dense, of float16, bfloat16, float32 or float64, and on the host or on CUDA
        devices, where they must stay.
    client: of gradclip.connect(), to a unix socket or loopback; by default
        gradclip.default_client().
    require_shared: raise GradClipError, with the reason, instead of streaming.
    server_uids: users, beside root and one's own, as whom the server may run. Whoever listens at
        the path that the server names is given the memory, to read.

    Belongs to one thread at a time. Raises ValueError for a parameter that can't be taken, OSError
    where the system has not as much memory.
    """

    def __init__(
        self,
        model: Union[Module, Iterable[Tensor]],
        *,
        client: Optional[Client] = None,
        require_shared: bool = False,
        server_uids: Collection[int] = (),
    ) -> None:
        self._parameters = _parameters_of(model)
        for index, one in enumerate(self._parameters):
            if (
                one.device.type not in ("cpu", "cuda")
                or one.dtype not in DTYPES
                or one.layout is not torch.strided
            ):
                raise ValueError(
                    f"parameter #{index} is {one.dtype} on {one.device}, {one.layout}; "
                    f"it must be dense, on the host or a CUDA device, and one of "
                    f"{', '.join(DTYPES.values())}"
                )
        self._client = client
        self._require_shared = require_shared
        devices = [_cuda.device_of(one) for one in self._parameters]
        parts = {
            device: SharedPart(
                device,
                [one for one, there in zip(self._parameters, devices) if there == device],
                server_uids,
            )
            for device in dict.fromkeys(devices)
        }
        self._parts = list(parts.values())
        # Of each parameter: its part, and which of the part's it is.
        numbers = {device: itertools.count() for device in parts}
        self._where = [(parts[device], next(numbers[device])) for device in devices]
        self._views = [part.view(number) for part, number in self._where]
        self._addresses = [view.data_ptr() for view in self._views]
        self._declared = [part.declare(number) for part, number in self._where]
        self._hooks = [
            _give_memory(one, self._views, index) for index, one in enumerate(self._parameters)
        ]
        self._refusal = ""  # of the last call, where it was not shared
        self._said = ""
        self._shared = False
        self._gather()

    @property
    def is_shared(self) -> bool:
        """Whether all gradients of the last call went through shared memory."""
        return self._shared

    def clip_grad_norm_(
        self,
        max_norm: float,
        norm_type: float = 2.0,
        error_if_nonfinite: bool = False,
        foreach: Optional[bool] = None,
        *,
        group: Optional[Group] = None,
        compat: Optional[str] = None,
    ) -> Tensor:
        """As gradclip.torch.clip_grad_norm_, of the parameters."""
        limit, p = check(max_norm, norm_type)
        as_torch = check_compat(compat, group)
        present = self._gather()
        if not present and group is None:
            return torch.tensor(0.0)
        client = self._client or default_client()
        answer = client._clip(
            [self._declared[index] for index in present],
            limit,
            norm_type=p,
            nonfinite="error" if error_if_nonfinite else "propagate",
            per_tensor=as_torch,
            group=group,
            places=self._places(present),
        )
        self._say_refusal()
        views = [self._views[index] for index in present]
        return clip_by_answer(answer, views, limit, p, error_if_nonfinite, foreach, as_torch)

    def close(self) -> None:
        """Ends the sharing. The gradients stay where they are."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        for part in self._parts:
            part.close()

    def __enter__(self) -> SharedGradients:
        return self

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        self.close()

    def _gather(self) -> list[int]:
        """Moves gradients that are elsewhere into the memory. Which parameters have one."""
        present = []
        for index, parameter in enumerate(self._parameters):
            grad = parameter.grad
            if grad is None:
                continue
            if grad.data_ptr() != self._addresses[index]:
                # Also where it is the view itself, and was given other memory (.grad.data = ...).
                part, number = self._where[index]
                view = part.view(number)
                view.copy_(grad.detach())
                self._views[index] = view
            parameter.grad = self._views[index]
            present.append(index)
        return present

    def _places(self, present: list[int]) -> Places:
        tries = 0

        def places(server: Server, rest: Optional[float]) -> list[Optional[Place]]:
            nonlocal tries
            tries += 1
            tokens: dict[SharedPart, bytes] = {}
            refusals = []
            for part in dict.fromkeys(self._where[index][0] for index in present):
                if tries > 1:  # whatever failed, a new registration is good for
                    part.forget()
                try:
                    tokens[part] = part.token(
                        server, rest, first=tries == 1, anew=self._require_shared
                    )
                except Refused as refused:
                    if self._require_shared:
                        gone = tries == 1 and isinstance(refused, Unreachable)
                        code = "UNAVAILABLE" if gone else "FAILED_PRECONDITION"
                        raise Failure(
                            code, f"gradients can't be shared: {refused}", server.address
                        ) from None
                    refusals.append(str(refused))
            self._shared = not refusals
            self._refusal = "; ".join(dict.fromkeys(refusals))
            return [
                Place(tokens[part], part.offsets[number]) if part in tokens else None
                for part, number in (self._where[index] for index in present)
            ]

        return places

    def _say_refusal(self) -> None:
        """Warns of a call that was streamed, once for each reason."""
        said, self._said = self._said, self._refusal
        if self._said not in ("", said):
            warnings.warn(
                f"gradients are streamed to the server, not shared: {self._said}", stacklevel=3
            )


def _parameters_of(model: Any) -> list[Tensor]:
    """Those that require gradients, each once."""
    given = model.parameters() if isinstance(model, Module) else model
    return list(dict.fromkeys(one for one in given if one.requires_grad))


def _give_memory(parameter: Any, views: list[Tensor], index: int) -> Any:
    """A hook that is called with each gradient before it is accumulated into parameter.grad."""
    parameter_of = weakref.ref(parameter)

    def hook(_: Any) -> None:
        owner = parameter_of()
        if owner is not None and owner.grad is None:
            owner.grad = views[index].zero_()

    return parameter.register_hook(hook)
