"""Times the Python client's ways of clipping beside those that a trainer has without it.

One gradient, with the shapes of GPT-2 124M, in float32 and bfloat16, clipped and not clipped, by
gradclip.torch.SharedGradients ("shared"), by gradclip.torch.clip_grad_norm_, which copies the
gradient to memory that the server reads ("copied") or is told to send it ("streamed"), by
torch.nn.utils.clip_grad_norm_, and by optax.clip_by_global_norm where jax is installed. Each round
has all of them, in changing order; a ratio is the median of the rounds' ratios.

PyTorch's threads are as many as its own function is fastest with.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.util
import itertools
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any, Callable, Optional

import gradclip
import torch
from gradclip.torch import SharedGradients, clip_grad_norm_

BUILT = pathlib.Path(__file__).resolve().parents[3] / "build/release/bin"
PROGRAM = pathlib.Path(os.environ.get("GRADCLIP_BIN_DIR", BUILT)) / "gradclip-server"

LAYER = [(768,), (768,), (768, 2304), (2304,), (768, 768), (768,), (768,), (768,)]
LAYER += [(768, 3072), (3072,), (3072, 768), (768,)]
GPT2 = [(50257, 768), (1024, 768), *LAYER * 12, (768,), (768,)]
TINY = [(64, 48), (48,), (7,)]

DTYPES = {"F32": "float32", "BF16": "bfloat16"}
CLIPS_NOTHING = 1e30
# A limit is so much of the one before, which the clipping before has left as the norm.
CLIPS = 0.99
GOALS = {"clipped": 1.0, "not clipped": 1.8}

Clip = Callable[[float], object]


@contextlib.contextmanager
def server() -> Iterator[str]:
    """A server of one's own: its address."""
    with tempfile.TemporaryDirectory() as folder:
        flags = [f"--listen=unix:{folder}/server.sock", f"--memory-socket={folder}/memory.sock"]
        process = subprocess.Popen(
            [PROGRAM, *flags, "--log-level=error"], stdout=subprocess.PIPE, text=True
        )
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line.startswith("listening on "):
                raise RuntimeError(f"{PROGRAM} did not start: {line!r}")
            yield line.split()[-1]
        finally:
            process.terminate()
            process.wait()


def parameters_of(shapes: list[tuple[int, ...]], dtype: str) -> list[torch.nn.Parameter]:
    """Parameters with a gradient each, of uniform random numbers."""
    torch.manual_seed(0)
    made = []
    for shape in shapes:
        one = torch.nn.Parameter(torch.empty(shape, dtype=getattr(torch, dtype)))
        one.grad = torch.rand(shape).to(one.dtype)
        made.append(one)
    return made


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


def seconds_of(clip: Clip, max_norm: float) -> float:
    begin = time.perf_counter()
    clip(max_norm)
    return time.perf_counter() - begin


def use_fastest_threads(clip: Clip) -> int:
    """How many threads PyTorch has from now on."""
    took = []
    for threads in range(1, len(os.sched_getaffinity(0)) + 1):
        torch.set_num_threads(threads)
        took += [(seconds_of(clip, CLIPS_NOTHING), threads) for _ in range(5)]
    fastest = min(took)[1]
    torch.set_num_threads(fastest)
    return fastest


def measure(ways: dict[str, Clip], rounds: int, norm: Optional[float]) -> dict[str, list[float]]:
    """Seconds of each way, round by round, after one that does not count.

    norm: of each way's gradient, which is then clipped; None to clip nothing.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    names = list(ways)
    for index in range(rounds + 1):
        limit = CLIPS_NOTHING
        if norm is not None:
            norm = limit = norm * CLIPS
        for name in names[index % len(names) :] + names[: index % len(names)]:
            took = seconds_of(ways[name], limit)
            if index > 0:
                seconds[name].append(took)
    return seconds


def print_row(
    what: str, ours: list[float], limit: list[float], gigabytes: float, goal: Optional[float]
) -> None:
    ratio = statistics.median(b / a for a, b in zip(ours, limit))
    rates = [f"{gigabytes / statistics.median(one):.2f} GB/s" for one in (ours, limit)]
    wanted = "" if goal is None else f">= {goal:.2f}"
    met = "" if goal is None else "yes" if ratio >= goal else "NO"
    print(f"{what:66} {rates[0]:>12} {rates[1]:>12} {ratio:7.3f} {wanted:>8}  {met}", flush=True)


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
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15, help="%(default)s")
    parser.add_argument("--quick", action="store_true", help="tiny shapes, to see that it runs")
    given = parser.parse_args()
    if given.rounds < 1:
        sys.exit("--rounds must be 1 or more")
    name, shapes = ("3 small tensors", TINY) if given.quick else ("GPT-2 124M", GPT2)
    with server() as address, gradclip.connect(address) as client:
        backend = client.compute_norm([gradclip.Tensor(b"", "float32")]).backend
        date = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
        cores = len(os.sched_getaffinity(0))
        print(f"{cores} cores, {date}, backend {backend}; medians of {given.rounds} rounds\n")
        print("python: gradclip.torch over a unix socket, calls included; GB/s of gradient")
        print(f"{'what':66} {'ours':>12} {'limit':>12} {'ratio':>7} {'goal':>8}  met?", flush=True)
        for short, dtype in DTYPES.items():
            compare(f"{name} {short}", shapes, dtype, given.rounds, address)
    if not has_optax():
        print("optax: not measured, as jax and optax are not installed")


if __name__ == "__main__":
    main()
