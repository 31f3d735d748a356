"""Tensors in the caller's memory, as calls take them."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Callable, Optional, Union

from gradclip import _contract

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

# By name: the contract's number, bytes per element, and the format of Python's buffers, where there
# is one.
_DTYPES = {
    "float32": (_contract.DTYPE_FLOAT32, 4, "f"),
    "float16": (_contract.DTYPE_FLOAT16, 2, "e"),
    "bfloat16": (_contract.DTYPE_BFLOAT16, 2, ""),
    "float64": (_contract.DTYPE_FLOAT64, 8, "d"),
}
_FORMATS = {code: name for name, (_, _, code) in _DTYPES.items() if code}


@dataclass(frozen=True)
class Tensor:
    """One tensor of a gradient.

    data: anything with the buffer protocol: row-major elements without padding, in this machine's
        (little-endian) byte order. Not copied; it must not change while a call runs.
    dtype: "float32", "float16", "bfloat16" or "float64". May be left out where the buffer says it,
        as those of array.array and NumPy do.
    shape: elements in each dimension; () for a scalar. By default the buffer's own.
    name: UTF-8; may be empty: errors then say "#3" for the fourth tensor.
    replica: left out of the norm, the counts and the policies, as another rank (or an earlier
        tensor) counts it.
    """

    data: ReadableBuffer
    dtype: str = ""
    shape: Optional[Sequence[int]] = None
    name: str = ""
    replica: bool = False


@dataclass(frozen=True)
class Declared:
    """A tensor that was checked: what start declares, and its bytes.

    read: gives the bytes in the host's memory: where they are, or a copy of what a device has.
    device: the CUDA device that has them, as torch numbers it; None for the host.
    tensor: torch's, on the device.
    """

    name: str
    dtype: int
    shape: tuple[int, ...]
    replica: bool
    nbytes: int
    read: Callable[[], memoryview]
    device: Optional[int] = None
    tensor: Any = None

    @property
    def view(self) -> memoryview:
        """Single bytes, in the host's memory."""
        return self.read()


def number_of(dtype: str) -> int:
    """The contract's number of a dtype that there is."""
    return _DTYPES[dtype][0]


def declare(tensors: Iterable[Union[Tensor, Declared, ReadableBuffer]]) -> list[Declared]:
    """Checks tensors. Raises ValueError, or TypeError for what is no buffer, naming the tensor."""
    if sys.byteorder != "little":
        raise RuntimeError("gradclip sends memory as it is, which takes a little-endian machine")
    if isinstance(tensors, (Tensor, bytes, bytearray, memoryview)):
        raise TypeError("tensors is one tensor or buffer; calls take several: put it into a list")
    return [
        one if isinstance(one, Declared) else _declare_one(one, index)
        for index, one in enumerate(tensors)
    ]


def _declare_one(given: Union[Tensor, ReadableBuffer], index: int) -> Declared:
    tensor = given if isinstance(given, Tensor) else Tensor(given)
    who = f'tensor "{tensor.name}"' if tensor.name else f"tensor #{index}"
    try:
        view = memoryview(tensor.data)
    except TypeError:
        raise TypeError(
            f"{who}: {type(tensor.data).__name__} has no buffer; "
            "give bytes, an array or a memoryview"
        ) from None
    if not view.c_contiguous:
        raise ValueError(f"{who} is not contiguous in row-major order; copy it first")

    code = view.format.lstrip("@=<")
    own = _FORMATS.get(code)
    dtype = tensor.dtype or own or ""
    if dtype not in _DTYPES:
        what = (
            f'dtype is "{dtype}"'
            if dtype
            else f'dtype is missing, and the buffer\'s format "{view.format}" is none of ours'
        )
        raise ValueError(f"{who}: {what}; it must be one of {', '.join(_DTYPES)}")
    if (own and own != dtype) or code.startswith((">", "!")):
        raise ValueError(f'{who}: dtype is {dtype}, and the buffer\'s format "{view.format}"')
    number, size, _ = _DTYPES[dtype]

    if tensor.shape is not None:
        shape = tuple(int(length) for length in tensor.shape)
    elif own:
        shape = view.shape or ()
    else:
        shape = (view.nbytes // size,)
    if any(length < 0 for length in shape) or math.prod(shape) * size != view.nbytes:
        raise ValueError(
            f"{who}: shape {list(shape)} of {dtype} is {math.prod(shape) * size} bytes, "
            f"and the buffer has {view.nbytes}"
        )
    single = view.cast("B") if view.nbytes else memoryview(b"")
    return Declared(tensor.name, number, shape, tensor.replica, view.nbytes, lambda: single)


def beyond_float32(coefficient: float) -> bool:
    """Whether it is not among float32's normal numbers: elements are then multiplied in float64."""
    magnitude = abs(coefficient)
    largest = (2 - 2.0**-23) * 2.0**127
    return 0 < magnitude < 2.0**-126 or largest < magnitude < math.inf
