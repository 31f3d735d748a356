"""Trains in all modes from the same seeds, and says what is the same and how far the rest differs.

python3 examples/python/compare.py --steps 200 --plot norms.png

Ends with status 1 where something differs that must not. Starts build/release/bin/gradclip-server
unless --server names one, which needs a --memory-socket.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict

from plot import draw
from record import Record, differences, largest
from train import MODES, add_settings, settings_of, train

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


def main() -> int:
    parser = argparse.ArgumentParser(description="Compares all modes of train.py.")
    parser.add_argument("--server", help="address; by default a server is started")
    add_settings(parser)
    given = parser.parse_args()
    with contextlib.ExitStack() as stack:
        address = given.server or stack.enter_context(server())
        settings = settings_of(given, address)
        records = {mode: train(mode, settings) for mode in MODES}
    table(records)
    streamed = records["streamed"]
    clipped = sum(one < 1 for one in streamed.coefficient)
    print(f"clipped: {clipped} of {given.steps} steps, at max_norm {given.max_norm:g}")
    rounding = largest(streamed.torch_norm, streamed.norm, relative=True)
    print(f"PyTorch's norm of the same gradients differs by {rounding:.1e} of it, at most")
    if given.record:
        given.record.write_text(json.dumps([asdict(one) for one in records.values()]))
    if given.plot:
        draw([records["torch"], streamed], given.max_norm, given.plot)

    status = 0
    for mode in ("shared", "data-parallel", "sharded"):
        found = differences(records[mode], streamed)
        if found:
            print(f"{mode} must have the bits of streamed, but differs in {', '.join(found)}")
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
