"""What gradclip.torch does with torch's tensors."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Optional, Union

import torch
from torch import Tensor

from gradclip.answer import NormAnswer
from gradclip.errors import NonfiniteGradientError
from gradclip.tensor import Tensor as Declared
from gradclip.tensor import beyond_float32

Tensors = Union[Tensor, Iterable[Tensor]]

DTYPES = {
    torch.float32: "float32",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.float64: "float64",
}
# Of a half-precision gradient that is widened at a time: it stays in the caches, and takes little
# memory.
_CHUNK = 1 << 18


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


def declare(tensors: list[Tensor], *, written: bool) -> list[Declared]:
    """The tensors' memory, or a copy where it is on another device or not contiguous."""
    declared = []
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
        host = tensor.cpu().contiguous()
        data = host.reshape(-1).view(torch.uint8).numpy()
        declared.append(Declared(memoryview(data), DTYPES[tensor.dtype], tuple(tensor.shape)))
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
                continue
            for part in one.view(-1).split(_CHUNK):
                part.copy_(part.to(wide).mul_(coefficient))


def norm_tensor(total_norm: float, tensors: list[Tensor]) -> Tensor:
    dtype = torch.float32
    for one in tensors:
        dtype = torch.promote_types(dtype, one.dtype)
    if math.isfinite(total_norm) and total_norm > torch.finfo(dtype).max:
        dtype = torch.float64
    return torch.tensor(total_norm, dtype=dtype, device=tensors[0].device if tensors else None)


def nonfinite(answer: NormAnswer, norm_type: float) -> NonfiniteGradientError:
    """The error for a norm that is not finite."""
    if answer.first_nonfinite:
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
