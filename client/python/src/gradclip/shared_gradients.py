"""SharedGradients of gradclip.torch: gradients in memory that a server on this host reads."""

from __future__ import annotations

import time
import warnings
import weakref
from collections.abc import Collection, Iterable, Iterator
from types import TracebackType
from typing import Any, Callable, Optional, Union

import torch
from torch import Tensor
from torch.nn import Module

from gradclip._region import Refused, Region, Unreachable, lay_out
from gradclip._servers import Failure, Server
from gradclip._torch_tensors import DTYPES, check, check_compat, clip_by_answer
from gradclip._wire import data_requests, shared_request
from gradclip.client import Client
from gradclip.default import default_client
from gradclip.group import Group
from gradclip.tensor import Tensor as Declaration
from gradclip.tensor import declare

_ASK_AGAIN_AFTER = 10.0


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

    model: a torch.nn.Module, or an iterable of parameters. Those that require gradients are taken,
        which must be dense, of float16, bfloat16, float32 or float64, and in the host's memory.
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
                one.device.type != "cpu"
                or one.dtype not in DTYPES
                or one.layout is not torch.strided
            ):
                raise ValueError(
                    f"parameter #{index} is {one.dtype} on {one.device}, {one.layout}; "
                    f"it must be dense, on the host, and one of {', '.join(DTYPES.values())}"
                )
        self._client = client
        self._require_shared = require_shared
        self._sizes = [one.numel() * one.element_size() for one in self._parameters]
        self._offsets, length = lay_out(self._sizes)
        self._region = Region(length, server_uids)
        self._views = [self._view(index) for index in range(len(self._parameters))]
        self._addresses = [view.data_ptr() for view in self._views]
        self._declared = declare(
            Declaration(
                memoryview(self._region.memory)[offset : offset + size],
                DTYPES[one.dtype],
                tuple(one.shape),
            )
            for one, offset, size in zip(self._parameters, self._offsets, self._sizes)
        )
        self._hooks = [
            _give_memory(one, self._views, index) for index, one in enumerate(self._parameters)
        ]
        self._refused_until = 0.0
        self._refusal = ""  # of the last call that was not shared
        self._said = ""
        self._shared = False
        self._gather()

    @property
    def is_shared(self) -> bool:
        """Whether the last call went through shared memory."""
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
            payload=self._payload(present, client),
        )
        self._say_refusal()
        views = [self._views[index] for index in present]
        return clip_by_answer(answer, views, limit, p, error_if_nonfinite, foreach, as_torch)

    def close(self) -> None:
        """Ends the sharing. The gradients stay where they are."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self._region.close()

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
                view = self._view(index)
                view.copy_(grad.detach())
                self._views[index] = view
            parameter.grad = self._views[index]
            present.append(index)
        return present

    def _view(self, index: int) -> Tensor:
        """The memory of a parameter's gradient, as a tensor."""
        one = self._parameters[index]
        if one.numel() == 0:
            return torch.zeros_like(one)
        memory, offset = self._region.memory, self._offsets[index]
        flat = torch.frombuffer(memory, dtype=one.dtype, count=one.numel(), offset=offset)
        view: Tensor = flat.view(one.shape)
        return view

    def _payload(
        self, present: list[int], client: Client
    ) -> Callable[[Server, Optional[float]], Iterator[bytes]]:
        filled = [index for index in present if self._sizes[index]]
        tries = 0

        def requests(server: Server, rest: Optional[float]) -> Iterator[bytes]:
            nonlocal tries
            tries += 1
            if tries > 1:  # whatever failed, a new registration is good for
                self._region.forget()
            self._shared = False
            try:
                token = self._token(server, rest, first=tries == 1)
            except Refused as refused:
                if self._require_shared:
                    gone = tries == 1 and isinstance(refused, Unreachable)
                    code = "UNAVAILABLE" if gone else "FAILED_PRECONDITION"
                    raise Failure(
                        code, f"gradients can't be shared: {refused}", server.address
                    ) from None
                self._refusal = str(refused)
                return data_requests(
                    [self._declared[index] for index in present], client._message_bytes
                )
            self._shared = True
            if not filled:
                return iter(())
            offsets = [self._offsets[index] for index in filled]
            return iter([shared_request(token, offsets, [self._sizes[index] for index in filled])])

        return requests

    def _token(self, server: Server, rest: Optional[float], first: bool) -> bytes:
        """A refusal stands for a while; but where a server may be gone, its successor is asked."""
        now = time.monotonic()
        if now < self._refused_until and not self._require_shared:
            raise Refused(self._refusal)
        try:
            return self._region.token(server, rest)
        except Refused as refused:
            if not (first and isinstance(refused, Unreachable)):
                self._refused_until = now + _ASK_AGAIN_AFTER
            raise

    def _say_refusal(self) -> None:
        """Warns of a call that was streamed, once for each reason."""
        said, self._said = self._said, "" if self._shared else self._refusal
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
