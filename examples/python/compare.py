"""Trains in all modes from the same seeds, and says what is the same and how far the rest differs.

python3 examples/python/compare.py --steps 200 --plot norms.png

Ends with status 1 where something differs that must not. Starts build/release/bin/gradclip-server
unless --server names one, which needs a --memory-socket.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import math
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator

from plot import draw
from record import Record, differences, largest
from train import MODES, add_settings, settings_of, train

# By mode, whose bits it must have.
EQUAL = {
    "shared": "streamed",
    "data-parallel": "streamed",
    "sharded": "streamed",
    "compat": "torch-exact",
}
PROGRAM = pathlib.Path(__file__).resolve().parents[2] / "build/release/bin/gradclip-server"


@contextlib.contextmanager
def server() -> Iterator[str]:
    """A server of one's own: its address."""
    with tempfile.TemporaryDirectory() as folder:
        flags = ["--listen=127.0.0.1:0", f"--memory-socket={folder}/memory.sock"]
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


def table(records: dict[str, Record]) -> None:
    """A line for each mode: beside the last loss, the largest differences from `streamed`."""
    print("                              largest difference from streamed, over all steps")
    print("mode           last loss      loss      norm      coefficient  parameters")
    streamed = records["streamed"]
    for mode, one in records.items():
        apart = [
            largest(getattr(one, what), getattr(streamed, what))
            for what in ("loss", "norm", "coefficient")
        ]
        told = [f"{x:.1e}" if x else "0" for x in apart]
        same = "same bits" if one.parameters == streamed.parameters else "other bits"
        print(f"{mode:14} {one.loss[-1]:.7f}      {told[0]:9} {told[1]:9} {told[2]:12} {same}")


def units_apart(a: float, b: float) -> int:
    """How many float32 numbers two are apart, of about the same size."""
    return round(abs(a - b) / 2.0 ** (math.frexp(min(a, b))[1] - 24))


def main() -> int:
    parser = argparse.ArgumentParser(description="Compares all modes of train.py.")
    parser.add_argument("--server", help="address; by default a server is started")
    add_settings(parser)
    given = parser.parse_args()
    with contextlib.ExitStack() as stack:
        address = given.server or stack.enter_context(server())
        settings = settings_of(given, address)
        records = {mode: train(mode, settings) for mode in MODES}
        halves = dataclasses.replace(settings, dtype="bfloat16")
        in_halves = {mode: train(mode, halves) for mode in ("torch", "compat")}
    table(records)
    streamed = records["streamed"]
    clipped = sum(one < 1 for one in streamed.coefficient)
    print(f"clipped: {clipped} of {given.steps} steps, at max_norm {given.max_norm:g}")
    rounding = largest(streamed.torch_norm, streamed.norm, relative=True)
    print(f"PyTorch's norm of the same gradients differs by {rounding:.1e} of it, at most")
    compat = records["compat"]
    pairs = list(zip(compat.torch_norm, compat.norm))
    same, off = sum(a == b for a, b in pairs), max(units_apart(a, b) for a, b in pairs)
    print(f"compat: PyTorch's norm of the same gradients has the same bits at {same} steps,")
    print(f"        and is {off} units in the last place away at most")
    found = differences(in_halves["compat"], in_halves["torch"])
    told = f"differ in {', '.join(found)}" if found else "have the same bits"
    print(f"in bfloat16, compat and torch {told}")
    if given.record:
        given.record.write_text(json.dumps([dataclasses.asdict(one) for one in records.values()]))
    if given.plot:
        draw([records["torch"], streamed], given.max_norm, given.plot)

    status = 0
    for mode, other in EQUAL.items():
        found = differences(records[mode], records[other])
        if found:
            print(f"{mode} must have the bits of {other}, but differs in {', '.join(found)}")
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
