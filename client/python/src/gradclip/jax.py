"""optax.clip_by_global_norm by a GradClip server.

    from gradclip.jax import clip_by_global_norm
    optimizer = optax.chain(clip_by_global_norm(1.0), optax.adam(1e-3))

The gradients are sent to the server from the host (under jit by jax.experimental.io_callback), its
coefficient comes back, and they are multiplied on their device. It works under jax.jit and without,
in jax.lax's loops, and under jax.vmap, which asks for each gradient in turn. Norm and coefficient
are GradClip's: exact where JAX's norm rounds, overflows or underflows; so are the products, but for
subnormal numbers, which JAX takes for 0 on the CPU and some other devices.
"""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any, NamedTuple, Optional

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import io_callback

from gradclip._arrays import NAMES, declare, multiplied
from gradclip.client import Client
from gradclip.default import default_client
from gradclip.group import Group
from gradclip.tensor import beyond_float32

__all__ = ["ClipByGlobalNormState", "clip_by_global_norm"]

# What is done with the leaves: the number of a branch.
_KEEP, _MULTIPLY, _MULTIPLY_ON_HOST, _CLEAR = range(4)

# Under vmap, where JAX runs all branches, one after the other; JAX names this by version.
_IN_TURN: dict[str, Any] = (
    {"vmap_method": "sequential"}
    if "vmap_method" in inspect.signature(jax.pure_callback).parameters
    else {}
)


class ClipByGlobalNormState(NamedTuple):
    """The state with a group. step: how many updates came before."""

    step: Any


def clip_by_global_norm(
    max_norm: float,
    *,
    norm_type: float = 2.0,
    epsilon: float = 0.0,
    nonfinite: str = "propagate",
    client: Optional[Client] = None,
    group: Optional[Group] = None,
) -> optax.GradientTransformation:
    """A transformation that clips updates by the norm of all of them together.

    The updates are a tree of arrays of any shape, and of float16, bfloat16, float32 or float64;
    None counts as nothing.

    max_norm: >= 0; infinity measures and never clips. It, norm_type and epsilon may be JAX's
        scalars, as optax.inject_hyperparams makes them.
    norm_type: p of the p-norm: > 0, or infinity.
    epsilon: added to the norm before dividing; 0 is optax's rule.
    nonfinite: where the norm is NaN or infinite: "propagate", as optax does (the updates become 0
        and NaN), "error", "skip" or "zero", as of Client.clip.
    client: of gradclip.connect(); by default gradclip.default_client().
    group: the updates are one rank's part of a job's gradient. group.step is the first update's;
        the state counts on from there, and is a ClipByGlobalNormState in place of optax.EmptyState.

    update() raises ValueError for leaves of other dtypes, and what Client.clip does where the call
    fails. Under jit (vmap, scan, ...) JAX raises its own error instead, which is a RuntimeError
    (jax.errors.JaxRuntimeError, in older versions XlaRuntimeError), with the class and message of
    Client.clip's in its text: from the compiled function, or as soon as something waits for its
    results. No result is there then: the caller's updates and parameters are as they were, but for
    those that were donated to the function.

    Raises ValueError for a wrong argument.
    """
    numbers = {"max_norm": max_norm, "norm_type": norm_type, "epsilon": epsilon}
    given = {name: one for name, one in numbers.items() if isinstance(one, jax.Array)}
    fixed = {name: float(one) for name, one in numbers.items() if name not in given}
    if not fixed.get("max_norm", 0.0) >= 0:
        raise ValueError(f"max_norm is {max_norm}; it must be >= 0")
    if not fixed.get("norm_type", 2.0) > 0:
        raise ValueError(f"norm_type is {norm_type}; it must be > 0, or infinity")
    if not 0 <= fixed.get("epsilon", 0.0) < np.inf:
        raise ValueError(f"epsilon is {epsilon}; it must be >= 0 and finite")
    if nonfinite not in ("propagate", "error", "skip", "zero"):
        raise ValueError(
            f'nonfinite is "{nonfinite}"; it must be one of propagate, error, skip, zero'
        )

    def init(params: Any) -> Any:
        del params
        if group is None:
            return optax.EmptyState()
        return ClipByGlobalNormState(jnp.zeros([], jnp.uint32))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        paths, form = jax.tree_util.tree_flatten_with_path(updates)
        if not paths and group is None:
            return updates, state
        names = [_name(path) for path, _ in paths]
        leaves = [jnp.asarray(leaf) for _, leaf in paths]
        _check(names, leaves)
        wide = any(leaf.dtype == np.float64 for leaf in leaves)

        def ask(numbers: Any, step: Any, arrays: Any) -> dict[str, Any]:
            """The call, on the host."""
            asked: dict[str, Any] = {**fixed, **{name: float(one) for name, one in numbers.items()}}
            answer = (client or default_client()).clip(
                declare([(name, np.asarray(one)) for name, one in zip(names, arrays)]),
                asked.pop("max_norm"),
                nonfinite=nonfinite,
                group=None if group is None else replace(group, step=group.step + int(step)),
                **asked,
            )
            return _outcome(answer.coefficient, answer.skipped, int(step), wide)

        step = np.uint32(0) if group is None else state.step
        # The next step comes from the callback, so that a rank's steps are asked for in order, also
        # where JAX would do so otherwise. (ordered=True takes a single device.)
        if _is_traced(given, step, leaves):
            shapes = jax.tree_util.tree_map(
                lambda one: jax.ShapeDtypeStruct(one.shape, one.dtype),
                _outcome(1.0, False, 0, wide),
            )
            outcome = io_callback(ask, shapes, given, step, leaves)
        else:
            outcome = jax.tree_util.tree_map(jnp.asarray, ask(given, step, leaves))
        clipped = jax.lax.switch(
            outcome["branch"], (_keep, _multiply, _multiply_on_host, _clear), outcome, leaves
        )
        if group is not None:
            state = ClipByGlobalNormState(outcome["next_step"])
        return jax.tree_util.tree_unflatten(form, clipped), state

    return optax.GradientTransformation(init, update)


def _is_traced(*values: Any) -> bool:
    """Whether JAX only notes down what is done, as under jit, or does it later."""
    probe = jnp.zeros([]) + jnp.zeros([])  # traced under jit whatever the values are
    leaves = jax.tree_util.tree_leaves((values, probe))
    return any(isinstance(one, jax.core.Tracer) for one in leaves)


def _name(path: Any) -> str:
    """Such as layer.0, as gradclip.numpy names arrays."""
    parts = []
    for key in path:
        for field in ("key", "name", "idx"):
            if hasattr(key, field):
                parts.append(str(getattr(key, field)))
                break
        else:
            parts.append(str(key))
    return ".".join(parts)


def _check(names: list[str], leaves: list[Any]) -> None:
    for name, leaf in zip(names, leaves):
        if leaf.dtype.name not in NAMES:
            raise ValueError(
                f"update {name or 'given'} is {leaf.dtype.name}; "
                f"it must be one of {', '.join(NAMES)}"
            )


def _outcome(coefficient: float, skipped: bool, step: int, wide: bool) -> dict[str, Any]:
    """What the device is told. wide: there are leaves of float64."""
    branch = _MULTIPLY
    if skipped and coefficient == 0:
        branch = _CLEAR
    elif coefficient == 1:
        branch = _KEEP
    elif beyond_float32(coefficient):
        branch = _MULTIPLY_ON_HOST
    double = np.float64(coefficient)
    with np.errstate(all="ignore"):
        outcome = {
            "branch": np.int32(branch),
            "coefficient": np.float32(double),
            # Also where JAX has no float64.
            "bits": np.frombuffer(double.tobytes(), np.uint32),
            "next_step": np.uint32((step + 1) % 2**32),
        }
    if wide:
        outcome["double"] = double
    return outcome


def _keep(outcome: Any, leaves: list[Any]) -> list[Any]:
    return leaves


def _multiply(outcome: Any, leaves: list[Any]) -> list[Any]:
    """float32 and float64 in their dtype, halves in float32 and rounded once."""
    return [
        leaf * outcome["double"]
        if leaf.dtype == np.float64
        else (leaf.astype(jnp.float32) * outcome["coefficient"]).astype(leaf.dtype)
        for leaf in leaves
    ]


def _multiply_on_host(outcome: Any, leaves: list[Any]) -> list[Any]:
    """In float64, which the device may not have, or JAX may not allow."""

    def multiply(bits: Any, arrays: Any) -> list[Any]:
        coefficient = float(np.asarray(bits).view(np.float64)[0])
        return [multiplied(np.asarray(one), coefficient, False) for one in arrays]

    shapes = [jax.ShapeDtypeStruct(one.shape, one.dtype) for one in leaves]
    products: list[Any] = jax.pure_callback(multiply, shapes, outcome["bits"], leaves, **_IN_TURN)
    return products


def _clear(outcome: Any, leaves: list[Any]) -> list[Any]:
    return [jnp.zeros_like(leaf) for leaf in leaves]
