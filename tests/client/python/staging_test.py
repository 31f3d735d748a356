"""Gradients that a client by itself copies to memory that the server reads, in place of sending."""

import array
import concurrent.futures
import math

import gradclip
import pytest

ELEMENTS = 1 << 18  # 1 MiB of float32


@pytest.fixture
def sent(monkeypatch):
    """Bytes of each call that was sent."""
    from gradclip import _wire

    data_requests = _wire.data_requests
    calls = []

    def count(views, message_bytes):
        calls.append(sum(map(len, views)))
        return data_requests(views, message_bytes)

    monkeypatch.setattr(_wire, "data_requests", count)
    return calls


@pytest.fixture
def server(start_server, tmp_path):
    return start_server(f"--memory-socket={tmp_path}/memory.sock")


def gradient_of(value=1.0, elements=ELEMENTS):
    """Two tensors of float32, and one without elements."""
    return [array.array("f", [value]) * elements, array.array("f"), array.array("f", [value] * 3)]


def region_of(client):
    return client._staging._stores[None].region


def norm_of(value=1.0, elements=ELEMENTS):
    return math.sqrt(elements + 3) * value


def test_large_gradients_are_not_sent(server, sent):
    with gradclip.connect(server.address) as client:
        for value in (1.0, 2.0, -4.0):
            gradient = gradient_of(value)
            assert client.compute_norm(gradient).total_norm == norm_of(abs(value))
            answer = client.clip(gradient, 1.0, per_tensor=True)
            assert answer.norm.total_norm == norm_of(abs(value))
            assert [one.norm for one in answer.norm.tensors][1:] == [
                0,
                pytest.approx(math.sqrt(3) * abs(value), rel=1e-15),
            ]
            assert gradient == gradient_of(value)
        assert sent == []
        assert client.compute_norm(gradient_of(elements=16)).total_norm == norm_of(elements=16)
        assert len(sent) == 1


def test_cases_that_are_sent(server, client, sent):
    with gradclip.connect(server.address, shared_bytes=0) as sending:
        assert sending.compute_norm(gradient_of()).total_norm == norm_of()
    with gradclip.connect(server.address, shared_bytes=4 * ELEMENTS) as sending:
        assert sending.compute_norm(gradient_of()).total_norm == norm_of()
    assert client.compute_norm(gradient_of()).total_norm == norm_of()  # no memory socket
    assert len(sent) == 3


def test_what_comes_back_is_sent(server, sent):
    gradient = gradient_of()
    with gradclip.connect(server.address) as client:
        answer = client.clip(gradient, 1.0, reply="gradient")
    assert len(sent) == 1
    assert gradient[0][-1] == array.array("f", [answer.coefficient])[0]


def test_the_memory_is_kept_and_grows(server):
    with gradclip.connect(server.address) as client:
        regions = []
        for elements in (ELEMENTS, ELEMENTS, 3 * ELEMENTS, ELEMENTS):
            norm = client.compute_norm(gradient_of(elements=elements)).total_norm
            assert norm == norm_of(elements=elements)
            regions.append(region_of(client))
        assert regions[0] is regions[1] is not regions[2] is regions[3]
    assert region_of(client) is None


def test_calls_at_once_do_not_share_the_memory(server):
    def norms(value):
        gradient = gradient_of(value)
        return {client.compute_norm(gradient).total_norm for _ in range(20)}

    with gradclip.connect(server.address) as client:
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            values = [1.0, 2.0, 4.0, 8.0]
            assert list(pool.map(norms, values)) == [{norm_of(value)} for value in values]


def test_after_an_error_there_is_other_memory(server, sent):
    bad = gradient_of()
    bad[0][7] = math.inf
    with gradclip.connect(server.address) as client:
        client.compute_norm(gradient_of())
        before = region_of(client)
        with pytest.raises(gradclip.NonfiniteGradientError, match=r"#0\[7\]"):
            client.clip(bad, 1.0, nonfinite="error")
        assert client.compute_norm(gradient_of()).total_norm == norm_of()
        assert region_of(client) is not before and sent == []


def test_a_server_that_restarts(server, start_server, tmp_path):
    with gradclip.connect(server.address) as client:
        assert client.compute_norm(gradient_of()).total_norm == norm_of()
        server.kill()
        (tmp_path / "memory.sock").unlink(missing_ok=True)
        start_server(f"--memory-socket={tmp_path}/memory.sock", listen=server.address)
        for _ in range(2):
            assert client.compute_norm(gradient_of()).total_norm == norm_of()


def test_who_may_not_share_memory_sends(start_server, tmp_path, sent):
    allow = tmp_path / "allow"
    allow.write_text("* shared-memory=no\n")
    allow.chmod(0o600)
    server = start_server(f"--memory-socket={tmp_path}/memory.sock", f"--allow={allow}")
    with gradclip.connect(server.address) as client:
        for _ in range(2):
            assert client.compute_norm(gradient_of()).total_norm == norm_of()
    assert len(sent) == 2


def test_a_server_with_no_room_for_the_memory_is_sent_to(start_server, tmp_path, sent):
    socket = f"--memory-socket={tmp_path}/memory.sock"
    server = start_server(socket, "--max-shared-bytes=4096")
    with gradclip.connect(server.address) as client:
        assert client.compute_norm(gradient_of()).total_norm == norm_of()
    assert len(sent) == 1
