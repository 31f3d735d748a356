"""Fixtures: servers of their own for the tests.

GRADCLIP_BIN_DIR names the folder of gradclip-server; by default build/release/bin.
"""

import os
import pathlib
import subprocess
import time

import gradclip
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[3]
DATA = ROOT / "tests" / "data"
PROGRAMS = pathlib.Path(os.environ.get("GRADCLIP_BIN_DIR", ROOT / "build" / "release" / "bin"))

# The server is killed when the thread that started it ends, however that ends. It is not done in a
# function of Popen's, as that forks this process with gRPC's threads in it.
DIE_WITH_PARENT = ["setpriv", "--pdeathsig", "KILL"]
QUIET = ["--log-level=error"]


class ServerProcess:
    """A gradclip-server. `address` is where it listens."""

    def __init__(self, *flags, listen="127.0.0.1:0", program="gradclip-server"):
        # A port that a server had before may be taken for a moment, by a client's connection.
        for _ in range(50):
            self.process = subprocess.Popen(
                [*DIE_WITH_PARENT, PROGRAMS / program, f"--listen={listen}", *QUIET, *flags],
                stdout=subprocess.PIPE,
                text=True,
            )
            line = self.process.stdout.readline()
            if line.startswith("listening on ") or listen.endswith(":0"):
                break
            self.kill()
            time.sleep(0.1)
        assert line.startswith("listening on "), f"the server said {line!r}"
        self.address = line.split()[-1]

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


@pytest.fixture
def start_server():
    """start_server(*flags, listen=..., program=...): a server for one test."""
    servers = []

    def start(*flags, **more):
        servers.append(ServerProcess(*flags, **more))
        return servers[-1]

    yield start
    for server in servers:
        server.kill()


@pytest.fixture(scope="session")
def address():
    """Of a server that all tests share."""
    server = ServerProcess()
    yield server.address
    server.kill()


@pytest.fixture(scope="session")
def client(address):
    with gradclip.connect(address, timeout=60) as client:
        yield client


@pytest.fixture
def default_server(address, monkeypatch):
    """default_client() is one of the shared server's."""
    monkeypatch.setenv("GRADCLIP_SERVER", address)
    monkeypatch.setattr("gradclip.default._client", None)


def pytest_terminal_summary(terminalreporter):
    """Ends as ctest does, which .ci/run counts."""
    counts = {
        name: len(terminalreporter.stats.get(name, [])) for name in ("passed", "failed", "error")
    }
    total = sum(counts.values())
    failed = total - counts["passed"]
    percent = 100 * counts["passed"] // max(total, 1)
    terminalreporter.write_line(f"{percent}% tests passed, {failed} tests failed out of {total}")
