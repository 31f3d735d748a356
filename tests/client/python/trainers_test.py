"""examples/python, run as its README says, against a server with a memory socket."""

import json
import math
import os
import pathlib
import re
import struct
import subprocess
import sys
import zlib

import gradclip
import pytest
from conftest import ROOT, ServerProcess

torch = pytest.importorskip("torch")
pytest.importorskip("matplotlib")

EXAMPLE = ROOT / "examples" / "python"
STEPS = 4
# At every one of these few steps the norm is over it.
MAX_NORM = 0.5
# What rounding may do to PyTorch's norm, which sums squares in float32: a sum of n squares in k
# lanes is off by n / k / 2^24 at most, its root by half of that. The largest tensor has 16,384
# elements, and there are at least 4 lanes.
TORCH_ROUNDING = 16_384 / 4 / 2**24 / 2


def run(script, *arguments):
    package = str(pathlib.Path(gradclip.__file__).parents[1])
    return subprocess.run(
        [sys.executable, EXAMPLE / script, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": package},
        capture_output=True,
        text=True,
        timeout=240,
    )


@pytest.fixture(scope="module")
def socket_server(tmp_path_factory):
    server = ServerProcess(f"--memory-socket={tmp_path_factory.mktemp('trainers')}/memory.sock")
    yield server
    server.kill()


@pytest.fixture(scope="module")
def compared(socket_server, tmp_path_factory):
    """What compare.py said, its records by mode, and its picture."""
    folder = tmp_path_factory.mktemp("compared")
    record, picture = folder / "record.json", folder / "norms.png"
    done = run(
        "compare.py",
        f"--server={socket_server.address}",
        f"--steps={STEPS}",
        f"--max-norm={MAX_NORM}",
        f"--record={record}",
        f"--plot={picture}",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    records = {one["mode"]: one for one in json.loads(record.read_text())}
    return done.stdout, records, picture.read_bytes()


def relative(a, b):
    return max(abs(x - y) / y for x, y in zip(a, b))


def test_every_step_is_there_and_clips(compared):
    _, records, _ = compared
    assert set(records) == {
        "torch",
        "torch-exact",
        "compat",
        "streamed",
        "shared",
        "data-parallel",
        "sharded",
    }
    for one in records.values():
        assert len(one["loss"]) == len(one["norm"]) == len(one["coefficient"]) == STEPS
        assert all(norm > MAX_NORM for norm in one["norm"])
        assert all(0 < coefficient < 1 for coefficient in one["coefficient"])
        assert one["loss"][-1] < one["loss"][0]


@pytest.mark.parametrize("mode", ["shared", "data-parallel", "sharded"])
def test_it_has_the_bits_of_one_process_that_streams(compared, mode):
    _, records, _ = compared
    for what in ("loss", "norm", "coefficient", "parameters"):
        assert records[mode][what] == records["streamed"][what], what


def test_compat_has_the_bits_of_torch_s_steps_with_exact_sums(compared):
    printed, records, _ = compared
    for what in ("loss", "norm", "coefficient", "parameters"):
        assert records["compat"][what] == records["torch-exact"][what], what
    # These are other numbers than those of an exact norm.
    assert records["compat"]["parameters"] != records["streamed"]["parameters"]
    # torch sums bfloat16 in float32.
    assert "in bfloat16, compat and torch have the same bits" in printed
    (units,) = re.findall(r"(\d+) units in the last place away", printed)
    assert int(units) <= math.ceil(TORCH_ROUNDING * 2**24)


def test_torch_differs_by_its_rounding(compared):
    _, records, _ = compared
    torchs, ours = records["torch"], records["streamed"]
    # Nothing has been clipped before the first loss.
    assert torchs["loss"][0] == ours["loss"][0]
    assert torchs["torch_norm"] == torchs["norm"]
    assert torchs["torch_norm"][0] == ours["torch_norm"][0]
    for one in (torchs, ours, records["shared"]):
        assert all(abs(norm - MAX_NORM) <= 1e-4 * MAX_NORM for norm in one["clipped_norm"])
    # On the same gradients, and in runs that have drifted apart for a few steps.
    assert relative(ours["torch_norm"], ours["norm"]) <= TORCH_ROUNDING
    for what in ("loss", "norm", "coefficient", "clipped_norm"):
        assert relative(torchs[what], ours[what]) <= 2 * TORCH_ROUNDING, what


def test_the_table_says_so(compared):
    printed, _, _ = compared
    rows = {line.split()[0]: line.split()[1:] for line in printed.splitlines()}
    for mode in ("streamed", "shared", "data-parallel", "sharded"):
        assert rows[mode][1:] == ["0", "0", "0", "same", "bits"]
    assert rows["compat"] == rows["torch-exact"]
    assert float(rows["torch"][2]) <= 2 * TORCH_ROUNDING
    assert f"clipped: {STEPS} of {STEPS} steps" in printed


def check_png(data):
    """That it can be read, and has a picture's size and more than one colour."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    at, pixels = 8, b""
    while at < len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        body = data[at + 8 : at + 8 + length]
        (checksum,) = struct.unpack_from(">I", data, at + 8 + length)
        assert zlib.crc32(kind + body) == checksum
        if kind == b"IHDR":
            width, height = struct.unpack_from(">II", body)
        if kind == b"IDAT":
            pixels += body
        at += 12 + length
    assert kind == b"IEND"
    assert 400 <= width <= 2000 and 300 <= height <= 2000
    assert len(set(zlib.decompress(pixels))) > 16


def test_the_picture_is_one(compared):
    _, _, picture = compared
    check_png(picture)
    check_png((EXAMPLE / "norms.png").read_bytes())


def test_a_comparison_that_fails_is_told(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLE))
    from record import Record, differences

    one = Record("a", [1.0, 2.0], [3.0, 4.0], [0.1, 0.2], parameters={"w": "x"})
    assert differences(one, one) == []
    other = Record("b", [1.0, 2.0], [3.0, 4.0000005], [0.1], parameters={"w": "y"})
    assert differences(one, other) == [
        "norm from step 1",
        "coefficient from step None",
        "parameters at the end",
    ]


def test_one_mode_alone(address):
    done = run("train.py", "--mode=streamed", f"--server={address}", "--steps=2")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 3


def test_a_server_without_a_memory_socket_does_not_pass_for_shared(address):
    done = run("train.py", "--mode=shared", f"--server={address}", "--steps=1")
    assert done.returncode != 0
    assert "has no --memory-socket" in done.stderr
