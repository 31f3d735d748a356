"""Clipping of NumPy's arrays by their norm.

from gradclip.numpy import clip_by_global_norm
clipped, total_norm = clip_by_global_norm({"w": w, "b": b}, max_norm=1.0)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Optional

import numpy as np

from gradclip._arrays import NAMES, Leaves, declare, multiplied
from gradclip.client import Client
from gradclip.default import default_client
from gradclip.group import Group

__all__ = ["clip_by_global_norm", "global_norm"]


def clip_by_global_norm(
    tree: Any,
    max_norm: float,
    *,
    norm_type: float = 2.0,
    epsilon: float = 1e-6,
    nonfinite: str = "propagate",
    in_place: bool = False,
    client: Optional[Client] = None,
    group: Optional[Group] = None,
) -> tuple[Any, float]:
    """Clips arrays by the norm of all of them together.

    tree: an array, or dicts, lists and tuples of arrays, in any depth; None counts as nothing. The
        arrays are of any shape, and of float16, float32, float64, or ml_dtypes' bfloat16.
    max_norm: >= 0; infinity measures and never clips.
    norm_type: p of the p-norm: > 0, or infinity.
    epsilon: added to the norm before dividing, as PyTorch does; 0 for the rule of JAX and
        TensorFlow.
    nonfinite: where the norm is NaN or infinite: "propagate", "error", "skip" or "zero", as of
        Client.clip.
    in_place: write to the arrays, which must be writable. By default, as users of optax expect,
        they are left alone and new ones returned.
    client: of gradclip.connect(); by default gradclip.default_client().
    group: the arrays are one rank's part of a job's gradient.

    Returns a tree of the same form (with in_place the given one), and the norm before clipping.
    Raises GradClipError, ValueError, TypeError; the arrays are then as they were.
    """
    leaves = list(_leaves(tree, ""))
    if in_place:
        _check_writable(leaves)
    answer = (client or default_client()).clip(
        declare(leaves),
        max_norm,
        norm_type=norm_type,
        epsilon=epsilon,
        nonfinite=nonfinite,
        group=group,
    )
    clear = answer.skipped and answer.coefficient == 0
    if in_place:
        for _, array in leaves:
            if clear or answer.coefficient != 1:
                array[...] = multiplied(array, answer.coefficient, clear)
        return tree, answer.norm.total_norm
    clipped = (multiplied(array, answer.coefficient, clear) for _, array in leaves)
    return _rebuilt(tree, clipped), answer.norm.total_norm


def global_norm(
    tree: Any,
    *,
    norm_type: float = 2.0,
    client: Optional[Client] = None,
    group: Optional[Group] = None,
) -> float:
    """The norm of all arrays of a tree together. Arguments and errors as of clip_by_global_norm."""
    arrays = declare(list(_leaves(tree, "")))
    return (
        (client or default_client())
        .compute_norm(arrays, norm_type=norm_type, group=group)
        .total_norm
    )


def _check_writable(leaves: Leaves) -> None:
    seen: dict[int, str] = {}
    for path, array in leaves:
        if not array.flags.writeable:
            raise ValueError(f"array {path or 'given'} is read only; in_place writes to it")
        first = seen.setdefault(array.__array_interface__["data"][0], path) if array.size else path
        if first != path:
            raise ValueError(
                f"arrays {first} and {path} are the same memory; in_place takes it once"
            )


def _children(tree: Any) -> Optional[list[tuple[Any, Any]]]:
    if isinstance(tree, Mapping):
        return list(tree.items())
    if isinstance(tree, (list, tuple)):
        return list(enumerate(tree))
    return None


def _leaves(tree: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Each array with its path, such as layer.0, which is its name in errors."""
    children = _children(tree)
    if children is not None:
        for key, child in children:
            yield from _leaves(child, f"{path}.{key}" if path else str(key))
    elif isinstance(tree, (np.ndarray, np.generic)):
        array = np.asarray(tree)
        if array is not tree:  # a scalar, which can't be written to
            array.flags.writeable = False
        if array.dtype.name not in NAMES:
            raise ValueError(
                f"array {path or 'given'} is {array.dtype.name}; "
                f"it must be one of {', '.join(NAMES)}"
            )
        yield path, array
    elif tree is not None:
        raise TypeError(
            f"{path or 'tree'} is {type(tree).__name__}; "
            "it must be an array, dict, list, tuple or None"
        )


def _rebuilt(tree: Any, arrays: Iterator[Any]) -> Any:
    """A tree of the same form, with the arrays in the order of _leaves."""
    children = _children(tree)
    if children is None:
        return None if tree is None else next(arrays)
    built = [(key, _rebuilt(child, arrays)) for key, child in children]
    if isinstance(tree, Mapping):
        return dict(built)
    values = [child for _, child in built]
    if hasattr(tree, "_fields"):  # a named tuple
        return type(tree)(*values)
    return tuple(values) if isinstance(tree, tuple) else values
