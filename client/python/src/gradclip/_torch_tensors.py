"""What gradclip.torch does with torch's tensors."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from typing import Any, Optional, Union

import torch
from torch import Tensor

from gradclip import _cuda
from gradclip._torch_bytes import host_bytes
from gradclip.answer import ClipAnswer, NormAnswer
from gradclip.errors import NonfiniteGradientError
from gradclip.group import Group
from gradclip.tensor import Declared, beyond_float32
from gradclip.tensor import Tensor as Declaration

Tensors = Union[Tensor, Iterable[Tensor]]

DTYPES = {
    torch.float32: "float32",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.float64: "float64",
}
# Elements of a half-precision gradient that are widened at a time: they stay in the caches, and
# take little memory. On a GPU they take 64 MiB, for which starting its work costs next to nothing.
_CHUNK = 1 << 18
_CHUNK_ON_DEVICE = 1 << 24
# Elements of a half-precision gradient beside which one row of ones is read over and over.
_ROW = 1 << 15
EPSILON = 1e-6


def as_list(given: Tensors) -> list[Tensor]:
    return [given] if isinstance(given, Tensor) else list(given)


def check(max_norm: float, norm_type: float) -> tuple[float, float]:
    """Both as floats. Raises ValueError."""
    limit, p = float(max_norm), float(norm_type)
    if not limit >= 0:
        raise ValueError(f"max_norm is {limit}; it must be >= 0")
    if not p > 0:
        raise ValueError(f"norm_type is {p}; it must be > 0, or infinity")
    return limit, p


def declare(tensors: list[Tensor], *, written: bool) -> list[Union[Declaration, Declared]]:
    """The tensors' memory; a copy where it is not contiguous, or on a device but CUDA's."""
    declared: list[Union[Declaration, Declared]] = []
    seen: dict[tuple[torch.device, int], int] = {}
    for index, tensor in enumerate(tensors):
        if tensor.layout is not torch.strided:
            raise ValueError(f"gradient #{index} is {tensor.layout}; GradClip takes dense ones")
        if tensor.dtype not in DTYPES:
            raise ValueError(
                f"gradient #{index} is {tensor.dtype}; "
                f"it must be one of {', '.join(DTYPES.values())}"
            )
        if written and tensor.numel() > 0:
            if any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape)):
                raise ValueError(
                    f"gradient #{index} is expanded, so it can't be multiplied in place; clone it"
                )
            first = seen.setdefault((tensor.device, tensor.data_ptr()), index)
            if first != index:
                raise ValueError(
                    f"gradients #{first} and #{index} are the same memory; "
                    "list tied parameters once"
                )
        dtype, device = DTYPES[tensor.dtype], _cuda.device_of(tensor)
        if device is not None:
            declared.append(_cuda.declare(tensor, dtype, device))
        else:
            declared.append(Declaration(host_bytes(tensor), dtype, tuple(tensor.shape)))
    return declared


def multiply(grads: list[Tensor], coefficient: float, foreach: Optional[bool]) -> None:
    """As the server would: float32 and float64 in their dtype, halves in float32 and rounded once,
    and all in double where the coefficient is beyond float32's normal numbers."""
    if coefficient == 1:
        return
    wide = torch.float64 if beyond_float32(coefficient) else torch.float32
    plain = [one for one in grads if one.dtype in (wide, torch.float64)]
    rounded = [one for one in grads if one.dtype not in (wide, torch.float64)]
    with torch.no_grad():
        if foreach is False:
            for one in plain:
                one.mul_(coefficient)
        elif plain:
            torch._foreach_mul_(plain, coefficient)
        for one in rounded:
            if not one.is_contiguous():
                one.copy_(one.to(wide).mul_(coefficient))
            elif wide is torch.float32 and one.device.type == "cpu" and _fuses(one.dtype):
                _multiply_fused(one.view(-1), coefficient)
            else:
                chunk = _CHUNK if _cuda.device_of(one) is None else _CHUNK_ON_DEVICE
                for part in one.view(-1).split(chunk):
                    part.copy_(part.to(wide).mul_(coefficient))


@functools.cache
def _fuses(dtype: torch.dtype) -> bool:
    """Whether this torch has addcmul for halves on the CPU: 1.13 has not for float16."""
    one = torch.ones(1, dtype=dtype, device="cpu")
    try:
        torch.addcmul(one, one, one)
    except RuntimeError:
        return False
    return True


def _multiply_fused(halves: Tensor, coefficient: float) -> None:
    """Multiplies halves, (n,) on the CPU, in float32 and rounds once, in one pass over them.

    As -0 + coefficient * x * 1: addcmul takes its factor as a float32, where mul_ of torch 1.13
    rounds it to the halves' dtype first. Its fast path wants two of the three dense; the row of
    ones stays in the caches. -0 and not 0, which would make 0 of -0.
    """
    minus_zero = torch.tensor(-0.0, dtype=halves.dtype, device="cpu")
    ones = torch.ones(min(_ROW, halves.numel()), dtype=halves.dtype, device="cpu")
    whole = halves.numel() // _ROW * _ROW
    for part in (halves[:whole].view(-1, _ROW), halves[whole:]):
        if part.numel() > 0:
            torch.addcmul(minus_zero, part, ones[: part.shape[-1]], value=coefficient, out=part)


def norm_tensor(total_norm: float, tensors: list[Tensor]) -> Tensor:
    dtype = torch.float32
    for one in tensors:
        dtype = torch.promote_types(dtype, one.dtype)
    if math.isfinite(total_norm) and total_norm > torch.finfo(dtype).max:
        dtype = torch.float64
    return torch.tensor(total_norm, dtype=dtype, device=tensors[0].device if tensors else None)


def check_compat(compat: Optional[str], group: Optional[Group]) -> bool:
    """Whether torch's own rounding is asked for. Raises ValueError."""
    if compat not in (None, "torch"):
        raise ValueError(f'compat is "{compat}"; it must be "torch" or None')
    if compat is not None and group is not None:
        raise ValueError('compat="torch" and a group are both given; torch has no norm of a group')
    return compat is not None


@functools.cache
def _sum_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """What torch adds up the squares of dtype in. Some versions: float16 in itself.

    Other powers of halves some versions add up in the halves' dtype, and end at a sum to which no
    term adds anything, long before it overflows.
    """
    if dtype is torch.float16:
        two = torch.full((2,), 256.0, dtype=dtype, device=device)
        if not torch.linalg.vector_norm(two).isfinite():
            return dtype
    return torch.promote_types(dtype, torch.float32)


def _sums_right(norm: float, norm_type: float, tensor: Tensor) -> bool:
    """Whether torch's sum of |x|^p neither overflows nor loses what underflows.

    The p-th powers that underflow lose less than the smallest normal number each.
    """
    if norm_type == math.inf or norm == 0 or not math.isfinite(norm):
        return True
    limits = torch.finfo(_sum_dtype(tensor.dtype, tensor.device))
    lowest = math.log2(limits.tiny / limits.eps) + math.log2(tensor.numel()) + 1
    return lowest <= norm_type * math.log2(norm) <= math.log2(limits.max) - 1


def norm_as_torch(answer: NormAnswer, norm_type: float, tensors: list[Tensor]) -> Tensor:
    """Each tensor's norm rounded to its dtype, and torch's norm of those in the widest of them.

    Those of which torch's sums overflow or underflow are torch's own.

    REQUIRES: an answer with a norm for each of the tensors, of which there is one at least.
    """
    norms = torch.tensor([one.norm for one in answer.tensors], dtype=torch.float64, device="cpu")
    dtypes = [one.dtype for one in tensors]
    widest = functools.reduce(torch.promote_types, dtypes)
    rounded = torch.empty(len(tensors), dtype=widest, device="cpu")
    for dtype in set(dtypes):
        of_dtype = torch.tensor([one is dtype for one in dtypes], device="cpu")
        rounded[of_dtype] = norms[of_dtype].to(dtype).to(rounded.dtype)
    for index, (one, tensor) in enumerate(zip(answer.tensors, tensors)):
        if not _sums_right(one.norm, norm_type, tensor):
            rounded[index] = torch.linalg.vector_norm(tensor.detach(), norm_type)
    total_norm: Tensor = torch.linalg.vector_norm(rounded, norm_type).to(tensors[0].device)
    return total_norm


def multiply_as_torch(grads: list[Tensor], max_norm: float, total_norm: Tensor) -> None:
    """By torch's coefficient, which has the dtype of total_norm, in torch's own arithmetic."""
    ratio: Any = max_norm / (total_norm + EPSILON)
    coefficient = torch.clamp(ratio, max=1.0)
    with torch.no_grad():
        for one in grads:
            one.mul_(coefficient.to(one.device))


def clip_by_answer(
    answer: ClipAnswer,
    grads: list[Tensor],
    max_norm: float,
    norm_type: float,
    error_if_nonfinite: bool,
    foreach: Optional[bool],
    as_torch: bool,
) -> Tensor:
    """Clips what the server has measured, and gives the norm before. The last is check_compat()'s.

    Raises NonfiniteGradientError where only torch's rounding of the norm overflows.
    """
    if not as_torch:
        multiply(grads, answer.coefficient, foreach)
        return norm_tensor(answer.norm.total_norm, grads)
    total_norm = norm_as_torch(answer.norm, norm_type, grads)
    if error_if_nonfinite and not total_norm.isfinite():
        raise nonfinite(answer.norm, norm_type)
    multiply_as_torch(grads, max_norm, total_norm)
    return total_norm


def nonfinite(answer: NormAnswer, norm_type: float) -> NonfiniteGradientError:
    """The error for a norm that is not finite."""
    if math.isfinite(answer.total_norm):
        where = 'all elements are finite, and torch\'s arithmetic overflows (compat="torch")'
    elif answer.first_nonfinite:
        where = f"the first element that is NaN or infinite is {answer.first_nonfinite}"
    elif answer.group_nonfinite_elements:
        where = (
            f"other ranks have {answer.group_nonfinite_elements} elements that are NaN or infinite"
        )
    else:
        where = "all elements are finite, and it is beyond the largest double"
    return NonfiniteGradientError(
        f"the total norm of order {norm_type:g} is {answer.total_norm}: {where}. "
        "error_if_nonfinite=False goes on",
        code="FAILED_PRECONDITION",
    )
