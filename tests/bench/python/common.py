"""What the comparisons with PyTorch have in common: a server, gradients, and rounds of all ways."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import os
import pathlib
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Callable, Optional

import torch

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

Clip = Callable[[float], object]


@contextlib.contextmanager
def server(*more: str) -> Iterator[str]:
    """A server of one's own, with a memory socket and these flags: its address."""
    with tempfile.TemporaryDirectory() as folder:
        flags = [f"--listen=unix:{folder}/server.sock", f"--memory-socket={folder}/memory.sock"]
        command = [PROGRAM, *flags, *more, "--log-level=error"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                line = process.stdout.readline()
                if not line.startswith("listening on "):
                    raise RuntimeError(f"{PROGRAM} did not start: {line!r}")
                yield line.split()[-1]
            finally:
                process.terminate()


def parameters_of(
    shapes: list[tuple[int, ...]], dtype: str, device: str = "cpu"
) -> list[torch.nn.Parameter]:
    """Parameters with a gradient each, of uniform random numbers."""
    torch.manual_seed(0)
    made = []
    for shape in shapes:
        one = torch.nn.Parameter(torch.empty(shape, dtype=getattr(torch, dtype), device=device))
        one.grad = torch.rand(shape).to(one)
        made.append(one)
    return made


def seconds_of(clip: Clip, max_norm: float) -> float:
    begin = time.perf_counter()
    clip(max_norm)
    return time.perf_counter() - begin


def measure(ways: dict[str, Clip], rounds: int, norm: Optional[float]) -> dict[str, list[float]]:
    """Seconds of each way, round by round, after one that does not count.

    Each round has another order, so that none always comes after the same one, whose threads and
    caches it would find.

    norm: of each way's gradient, which is then clipped; None to clip nothing.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    names, order = list(ways), random.Random(0)
    for index in range(rounds + 1):
        limit = CLIPS_NOTHING
        if norm is not None:
            norm = limit = norm * CLIPS
        order.shuffle(names)
        for name in names:
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


def print_head(backend: str, rounds: int, about: str) -> None:
    date = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    cores = len(os.sched_getaffinity(0))
    print(f"{cores} cores, {date}, backend {backend}; medians of {rounds} rounds\n")
    print(f"python: {about}; GB/s of gradient")
    print(f"{'what':66} {'ours':>12} {'limit':>12} {'ratio':>7} {'goal':>8}  met?", flush=True)


def arguments(description: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--rounds", type=int, default=15, help="%(default)s")
    parser.add_argument("--quick", action="store_true", help="tiny shapes, to see that it runs")
    given = parser.parse_args()
    if given.rounds < 1:
        sys.exit("--rounds must be 1 or more")
    return given
