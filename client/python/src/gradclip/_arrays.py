"""What gradclip.numpy and gradclip.jax do with NumPy's arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

from gradclip.tensor import Tensor, beyond_float32

Leaves = list[tuple[str, Any]]  # each array with its name

NAMES = ("float32", "float16", "bfloat16", "float64")  # bfloat16 is ml_dtypes'


def declare(leaves: Leaves) -> list[Tensor]:
    declared = []
    for path, array in leaves:
        little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
        data = little.reshape(-1).view(np.uint8).data
        declared.append(Tensor(data, array.dtype.name, array.shape, path))
    return declared


def multiplied(array: Any, coefficient: float, clear: bool) -> Any:
    """A new array. As the server multiplies: in float32 or float64, rounded once to the array's
    dtype, and in float64 where the coefficient is beyond float32's normal numbers."""
    if clear:
        return np.zeros_like(array)
    if coefficient == 1:
        return array.copy()
    wide = np.float64 if beyond_float32(coefficient) or array.dtype.itemsize == 8 else np.float32
    with np.errstate(all="ignore"):
        return np.asarray(np.multiply(array, wide(coefficient), dtype=wide)).astype(
            array.dtype, copy=False
        )
