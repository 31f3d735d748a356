"""Times the Python client's ways of clipping beside those that a trainer has without it.

One gradient, with the shapes of GPT-2 124M, in float32 and bfloat16, clipped and not clipped, by
gradclip.torch.SharedGradients ("shared"), by gradclip.torch.clip_grad_norm_, which copies the
gradient to memory that the server reads ("copied") or is told to send it ("streamed"), by
torch.nn.utils.clip_grad_norm_, and by optax.clip_by_global_norm where jax is installed. Each round
has all of them, in another order; a ratio is the median of the rounds' ratios.

PyTorch's threads are as many as its own function is fastest with.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
from typing import Any

import gradclip
import torch
from common import (
    CLIPS_NOTHING,
    DTYPES,
    GPT2,
    TINY,
    Clip,
    arguments,
    measure,
    parameters_of,
    print_head,
    print_row,
    seconds_of,
    server,
)
from gradclip.torch import SharedGradients, clip_grad_norm_

GOALS = {"clipped": 1.0, "not clipped": 1.8}


def has_optax() -> bool:
    return all(importlib.util.find_spec(one) for one in ("jax", "optax"))


def optax_clip(shapes: list[tuple[int, ...]], dtype: str) -> Clip:
    """optax, compiled, in place where JAX can: the updates are donated."""
    import jax
    import optax

    keys = jax.random.split(jax.random.PRNGKey(0), len(shapes))
    updates = [jax.random.uniform(key, shape, dtype) for key, shape in zip(keys, shapes)]

    def update(updates: Any, max_norm: Any) -> Any:
        return optax.clip_by_global_norm(max_norm).update(updates, optax.EmptyState())[0]

    compiled = jax.jit(update, donate_argnums=0)

    def clip(max_norm: float) -> None:
        nonlocal updates
        updates = jax.block_until_ready(compiled(updates, max_norm))

    return clip


def use_fastest_threads(clip: Clip) -> int:
    """How many threads PyTorch has from now on."""
    took = []
    for threads in range(1, len(os.sched_getaffinity(0)) + 1):
        torch.set_num_threads(threads)
        took += [(seconds_of(clip, CLIPS_NOTHING), threads) for _ in range(5)]
    fastest = min(took)[1]
    torch.set_num_threads(fastest)
    return fastest


def compare(what: str, shapes: list[tuple[int, ...]], dtype: str, rounds: int, server: str) -> None:
    """Prints the rows of one dtype."""
    lent, copied, streamed, own = (parameters_of(shapes, dtype) for _ in range(4))
    torchs = f"PyTorch {torch.__version__}"
    with (
        gradclip.connect(server, shared_bytes=1 << 30) as client,
        gradclip.connect(server, shared_bytes=0) as sending,
        SharedGradients(lent, client=client, require_shared=True) as shared,
    ):
        ways: dict[str, Clip] = {
            "shared": shared.clip_grad_norm_,
            "copied": lambda max_norm: clip_grad_norm_(copied, max_norm, client=client),
            "streamed": lambda max_norm: clip_grad_norm_(streamed, max_norm, client=sending),
            torchs: lambda max_norm: torch.nn.utils.clip_grad_norm_(own, max_norm),
        }
        print(f"PyTorch's threads: {use_fastest_threads(ways[torchs])}")
        limits = [torchs]
        if has_optax():
            ways["optax"] = optax_clip(shapes, dtype)
            limits.append("optax")
        gigabytes = sum(one.numel() * one.element_size() for one in own) / 1e9
        norm = float(shared.clip_grad_norm_(CLIPS_NOTHING))
        for how, goal in GOALS.items():
            seconds = measure(ways, rounds, norm if how == "clipped" else None)
            for ours, limit in itertools.product(("shared", "copied", "streamed"), limits):
                sought = goal if (ours, limit) == ("shared", torchs) else None
                told = f"{what}, {how}, {ours} / {limit}"
                print_row(told, seconds[ours], seconds[limit], gigabytes, sought)


def main() -> None:
    given = arguments(__doc__.splitlines()[0])
    name, shapes = ("3 small tensors", TINY) if given.quick else ("GPT-2 124M", GPT2)
    with server() as address, gradclip.connect(address) as client:
        backend = client.compute_norm([gradclip.Tensor(b"", "float32")]).backend
        print_head(backend, given.rounds, "gradclip.torch over a unix socket, calls included")
        for short, dtype in DTYPES.items():
            compare(f"{name} {short}", shapes, dtype, given.rounds, address)
    if not has_optax():
        print("optax: not measured, as jax and optax are not installed")


if __name__ == "__main__":
    main()
