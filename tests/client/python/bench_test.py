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


def test_it_has_a_row_for_each_pair():
    package = str(pathlib.Path(gradclip.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, ROOT / "tests/bench/python/drop_in.py", "--quick", "--rounds=2"],
        env={**os.environ, "PYTHONPATH": package, "GRADCLIP_BIN_DIR": str(PROGRAMS)},
        capture_output=True,
        text=True,
        timeout=120,
    )
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
