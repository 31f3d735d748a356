"""torch.nn.utils.clip_grad_norm_ and its kin, by a GradClip server.

    from gradclip.torch import clip_grad_norm_
    total_norm = clip_grad_norm_(model.parameters(), max_norm=1.0)

Gradients are sent, the coefficient comes back, and torch multiplies them in place. Norm and coefficient are
GradClip's: exact where torch rounds, overflows or underflows. Otherwise they do what torch's functions are
documented to do, but for this:

- norm_type is > 0 or infinity, max_norm >= 0; ValueError otherwise, where torch takes zero and negative ones.
- The total norm has the gradients' dtype, and at least float32; float64 where it is beyond float32.
- float16 and bfloat16 are multiplied by the coefficient in float32 and rounded once.
- Gradients that are sparse or neither float16, bfloat16, float32 nor float64, and two that are the same
  memory (torch would multiply them twice), raise ValueError.

Tensors on other devices are copied to the host to be sent, and multiplied where they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Optional, Union

import torch
from torch import Tensor

from gradclip.client import Client
from gradclip.default import default_client
from gradclip.errors import NonfiniteGradientError
from gradclip.group import Group
from gradclip.tensor import Tensor as Declared

__all__ = ["clip_grad_norm_", "clip_grads_with_norm_", "get_total_norm", "group_of_process"]

Tensors = Union[Tensor, Iterable[Tensor]]

_DTYPES = {
    torch.float32: "float32",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.float64: "float64",
}
_EPSILON = 1e-6
# Of a half-precision gradient that is widened at a time: it stays in the caches, and takes little memory.
_CHUNK = 1 << 18


def clip_grad_norm_(
    parameters: Tensors,
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: Optional[bool] = None,
    *,
    client: Optional[Client] = None,
    group: Optional[Group] = None,
) -> Tensor:
    """Clips the gradients of parameters in place by the norm of all of them together.

    parameters: a tensor or an iterable of tensors; those whose .grad is None count as nothing.
    max_norm: the largest norm to leave; infinity measures only.
    norm_type: p of the p-norm: > 0, or infinity (or "inf") for the largest magnitude.
    error_if_nonfinite: raise NonfiniteGradientError, a RuntimeError, where the norm is NaN or infinite, before
        anything is changed. Else the gradients become 0 and NaN, as in torch.
    foreach: False multiplies tensor by tensor.
    client: of gradclip.connect(); by default gradclip.default_client().
    group: the gradients are one rank's part of a job's; all ranks get one norm.

    Returns the norm before clipping, 0-d, on the first gradient's device.
    Raises GradClipError (gradclip.ServerUnavailable, ...), ValueError, TypeError; gradients are then as they were.
    """
    grads = [one.grad.detach() for one in _tensors(parameters) if one.grad is not None]
    limit, p = _check(max_norm, norm_type)
    if not grads and group is None:
        return torch.tensor(0.0)
    answer = (client or default_client()).clip(
        _declare(grads, written=True),
        max_norm=limit,
        norm_type=p,
        nonfinite="error" if error_if_nonfinite else "propagate",
        group=group,
    )
    _multiply(grads, answer.coefficient, foreach)
    return _norm_tensor(answer.norm.total_norm, grads)


def get_total_norm(
    tensors: Tensors,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: Optional[bool] = None,
    *,
    client: Optional[Client] = None,
    group: Optional[Group] = None,
) -> Tensor:
    """The norm of tensors together (of the tensors themselves, not of their .grad); they are only read.

    The arguments, result and errors are those of clip_grad_norm_; foreach does nothing.
    """
    given = [one.detach() for one in _tensors(tensors)]
    _, p = _check(0.0, norm_type)
    if not given and group is None:
        return torch.tensor(0.0)
    answer = (client or default_client()).compute_norm(_declare(given, written=False), norm_type=p, group=group)
    if error_if_nonfinite and not math.isfinite(answer.total_norm):
        raise _nonfinite(answer.total_norm, answer.first_nonfinite, p)
    return _norm_tensor(answer.total_norm, given)


def clip_grads_with_norm_(
    parameters: Tensors,
    max_norm: float,
    total_norm: Union[Tensor, float],
    foreach: Optional[bool] = None,
) -> None:
    """Clips the gradients of parameters in place by a norm that is known, as of get_total_norm().

    Multiplies by min(1, max_norm / (total_norm + 1e-6)). Asks no server.
    """
    grads = [one.grad.detach() for one in _tensors(parameters) if one.grad is not None]
    limit, _ = _check(max_norm, 2.0)
    _declare(grads, written=True)
    if math.isinf(limit):
        return
    ratio = limit / (float(total_norm) + _EPSILON)
    _multiply(grads, ratio if math.isnan(ratio) else min(ratio, 1.0), foreach)


def group_of_process(job: str, step: int, **more: Any) -> Group:
    """A Group with this process's rank and world size: of torch.distributed where that is initialised, else of
    the variables RANK and WORLD_SIZE.

    more: further fields of Group. Raises ValueError where neither is there.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return Group(job, step, torch.distributed.get_rank(), torch.distributed.get_world_size(), **more)
    return Group.from_environment(job, step, **more)


def _tensors(given: Tensors) -> list[Tensor]:
    return [given] if isinstance(given, Tensor) else list(given)


def _check(max_norm: float, norm_type: float) -> tuple[float, float]:
    """Both as floats. Raises ValueError."""
    limit, p = float(max_norm), float(norm_type)
    if not limit >= 0:
        raise ValueError(f"max_norm is {limit}; it must be >= 0")
    if not p > 0:
        raise ValueError(f"norm_type is {p}; it must be > 0, or infinity")
    return limit, p


def _declare(tensors: list[Tensor], *, written: bool) -> list[Declared]:
    """The tensors' memory, or a copy where it is on another device or not contiguous."""
    declared = []
    seen: dict[tuple[torch.device, int], int] = {}
    for index, tensor in enumerate(tensors):
        if tensor.layout is not torch.strided:
            raise ValueError(f"gradient #{index} is {tensor.layout}; GradClip takes dense ones")
        if tensor.dtype not in _DTYPES:
            raise ValueError(f"gradient #{index} is {tensor.dtype}; it must be one of {', '.join(_DTYPES.values())}")
        if written and tensor.numel() > 0:
            if any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape)):
                raise ValueError(f"gradient #{index} is expanded, so it can't be multiplied in place; clone it")
            first = seen.setdefault((tensor.device, tensor.data_ptr()), index)
            if first != index:
                raise ValueError(f"gradients #{first} and #{index} are the same memory; list tied parameters once")
        host = tensor.cpu().contiguous()
        data = host.reshape(-1).view(torch.uint8).numpy()
        declared.append(Declared(memoryview(data), _DTYPES[tensor.dtype], tuple(tensor.shape)))
    return declared


def _multiply(grads: list[Tensor], coefficient: float, foreach: Optional[bool]) -> None:
    """As the server would: float32 and float64 in their dtype, halves in float32 and rounded once, and all in
    double where the coefficient is beyond float32's normal numbers."""
    if coefficient == 1:
        return
    magnitude = abs(coefficient)
    normal = not 0 < magnitude < 2.0**-126 and not torch.finfo(torch.float32).max < magnitude < math.inf
    wide = torch.float32 if normal else torch.float64
    plain = [one for one in grads if one.dtype is torch.float64 or (normal and one.dtype is torch.float32)]
    with torch.no_grad():
        if foreach is False:
            for one in plain:
                one.mul_(coefficient)
        elif plain:
            torch._foreach_mul_(plain, coefficient)
        for one in grads:
            if one.dtype is torch.float64 or (normal and one.dtype is torch.float32):
                continue
            if not one.is_contiguous():
                one.copy_(one.to(wide).mul_(coefficient))
                continue
            for part in one.view(-1).split(_CHUNK):
                part.copy_(part.to(wide).mul_(coefficient))


def _norm_tensor(total_norm: float, tensors: list[Tensor]) -> Tensor:
    dtype = torch.float32
    for one in tensors:
        dtype = torch.promote_types(dtype, one.dtype)
    if math.isfinite(total_norm) and total_norm > torch.finfo(dtype).max:
        dtype = torch.float64
    return torch.tensor(total_norm, dtype=dtype, device=tensors[0].device if tensors else None)


def _nonfinite(total_norm: float, first: str, norm_type: float) -> NonfiniteGradientError:
    where = f"the first element that is not finite is {first}" if first else "all elements are finite"
    return NonfiniteGradientError(
        f"the total norm of order {norm_type:g} is {total_norm}: {where}. error_if_nonfinite=False goes on",
        code="FAILED_PRECONDITION")
