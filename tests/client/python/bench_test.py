"""tests/bench/python, with shapes too small to judge by."""

import os
import pathlib
import re
import subprocess
import sys

import gradclip
import pytest
from conftest import PROGRAMS, ROOT

torch = pytest.importorskip("torch")


def run(program):
    package = str(pathlib.Path(gradclip.__file__).parents[1])
    return subprocess.run(
        [sys.executable, ROOT / "tests/bench/python" / program, "--quick", "--rounds=2"],
        env={**os.environ, "PYTHONPATH": package, "GRADCLIP_BIN_DIR": str(PROGRAMS)},
        capture_output=True,
        text=True,
        timeout=120,
    )


def assert_compared(printed):
    """What gpu.py prints has all its rows."""
    for dtype in ("F32", "BF16"):
        for how in ("clipped", "not clipped"):
            row = rf"^3 small tensors {dtype}, {how}, in place / PyTorch .* (\S+) *$"
            (ratio,) = re.finditer(row, printed, re.MULTILINE)
            assert float(ratio[1]) > 0


def test_it_has_a_row_for_each_pair():
    done = run("drop_in.py")
    assert done.returncode == 0, done.stderr
    for dtype in ("F32", "BF16"):
        for how, goal in (("clipped", "1.00"), ("not clipped", "1.80")):
            for ours, judged in (
                ("shared", rf"  >= {goal}  (yes|NO)"),
                ("copied", ""),
                ("streamed", ""),
            ):
                row = rf"^3 small tensors {dtype}, {how}, {ours} / PyTorch .* (\S+){judged} *$"
                (ratio,) = re.finditer(row, done.stdout, re.MULTILINE)
                assert float(ratio[1]) > 0


def test_without_a_gpu_it_says_so():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = run("gpu.py")
    assert done.returncode == 1
    assert "no GPU" in done.stderr and torch.__version__ in done.stderr


def test_it_compares_on_the_gpu():
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    done = run("gpu.py")
    assert done.returncode == 0, done.stderr
    assert_compared(done.stdout)
