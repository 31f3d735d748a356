"""gradclip.connect and Client against a real server."""

import array
import concurrent.futures
import math
import signal
import socket
import threading
import time

import gradclip
import grpc
import pytest
from golden import CASES, EXPECTED, is_exact, number, read_safetensors, tensors
from gradclip._servers import failure_of

GOLDEN = [case for case in CASES if case["exact_total_norm"] is not None]


def declared(case):
    return [gradclip.Tensor(data, dtype, shape) for dtype, shape, data in tensors(case)]


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["name"])
def test_norms_of_golden_cases_are_exact(client, case):
    p = number(case["norm_type"])
    answer = client.compute_norm(declared(case), norm_type=p)
    assert is_exact(answer.total_norm, number(case["exact_total_norm"]), p)


@pytest.mark.parametrize("name", EXPECTED)
def test_norms_of_real_gradients_are_exact(client, name):
    gradient = [
        gradclip.Tensor(data, dtype, shape, key)
        for key, (dtype, shape, data) in read_safetensors(name).items()
    ]
    answer = client.clip(gradient, EXPECTED[name]["max_norm"])
    assert is_exact(answer.norm.total_norm, EXPECTED[name]["total_norm_f64"], 2)
    assert math.isclose(answer.coefficient, EXPECTED[name]["coefficient_f64"], rel_tol=1e-12)


@pytest.mark.parametrize("message_bytes", [1, 3, 7, 8, 1 << 20])
def test_cutting_into_messages_changes_no_bit(address, client, message_bytes):
    gradient = [array.array("f", [i / 7 for i in range(length)]) for length in (0, 1, 5, 100)]
    with gradclip.connect(address, message_bytes=message_bytes) as cutting:
        assert cutting.compute_norm(gradient).total_norm == client.compute_norm(gradient).total_norm


def test_many_small_tensors_and_large_ones_share_messages(client):
    gradient = (
        [array.array("d", [1.0])] * 3000
        + [array.array("f", bytes(3 << 20))]
        + [array.array("d", [1.0])] * 1000
    )
    assert client.compute_norm(gradient, norm_type=1).total_norm == 4000


def test_coefficient_leaves_the_tensors(client):
    gradient = array.array("f", [3, 4])
    answer = client.clip([gradient], 1.0)
    assert answer.norm.total_norm == 5.0
    assert answer.coefficient == 1 / (5 + 1e-6)
    assert answer.clipped and not answer.skipped and not answer.gradient_follows
    assert gradient.tolist() == [3, 4]


@pytest.mark.parametrize("reply", ["gradient", "gradient_if_changed"])
def test_the_server_clips_in_its_reply(client, reply):
    gradient = [array.array("f", [3, 4] * 400_000), array.array("d"), array.array("d", [0.5])]
    answer = client.clip(gradient, 1.0, reply=reply)
    coefficient = array.array("f", [answer.coefficient])[0]
    assert gradient[0][:2].tolist() == array.array("f", [3 * coefficient, 4 * coefficient]).tolist()
    assert gradient[0][:2] * 400_000 == gradient[0]
    assert gradient[2][0] == 0.5 * answer.coefficient


def test_nothing_comes_back_where_nothing_changes(client):
    assert not client.clip(
        [array.array("f", [3, 4])], 9, reply="gradient_if_changed"
    ).gradient_follows


def test_options_reach_the_server(client):
    gradient = [
        gradclip.Tensor(array.array("f", [3, 0, math.nan]), name="a"),
        gradclip.Tensor(array.array("f", [1]), replica=True),
    ]
    answer = client.compute_norm(gradient, per_tensor=True)
    assert (answer.nonfinite_elements, answer.first_nonfinite, answer.tensors[0].zero_elements) == (
        1,
        "a[2]",
        1,
    )
    assert client.clip(gradient, 1, nonfinite="skip").coefficient == 1
    assert client.clip(gradient, 1, nonfinite="zero").skipped
    answer = client.clip([array.array("f", [3, 4])], 1, pre_scale=0.5, epsilon=0)
    assert (answer.norm.total_norm, answer.coefficient) == (2.5, 0.5 / 2.5)
    assert client.compute_norm([array.array("f", [3, 4])], norm_type=math.inf).total_norm == 4


def test_nonfinite_error_is_a_runtime_error_that_names_the_element(client):
    with pytest.raises(gradclip.NonfiniteGradientError, match=r"#0\[1\]") as caught:
        client.clip([array.array("f", [1, math.inf])], 1, nonfinite="error")
    assert isinstance(caught.value, RuntimeError) and isinstance(
        caught.value, gradclip.GradClipError
    )


@pytest.mark.parametrize(
    ("gradient", "error", "says"),
    [
        ([b"1234"], ValueError, "dtype is missing"),
        ([gradclip.Tensor(b"1234", "int8")], ValueError, '"int8"; it must be one of float32'),
        ([gradclip.Tensor(b"123", "float32")], ValueError, "0 bytes, and the buffer has 3"),
        ([gradclip.Tensor(b"1234", "float32", (2,), "w")], ValueError, '"w": shape \\[2\\]'),
        ([gradclip.Tensor(array.array("d", [1]), "float32")], ValueError, 'format "d"'),
        ([memoryview(array.array("f", [1, 2, 3]))[::2]], ValueError, "not contiguous"),
        ([3.0], TypeError, "float has no buffer"),
        (b"1234", TypeError, "put it into a list"),
    ],
)
def test_tensors_that_are_none_are_refused(client, gradient, error, says):
    with pytest.raises(error, match=says):
        client.compute_norm(gradient)


def test_arguments_that_are_wrong_are_refused(client):
    gradient = [array.array("f", [1])]
    with pytest.raises(gradclip.InvalidArgumentError, match="max_norm"):
        client.clip(gradient, -1)
    with pytest.raises(ValueError, match="norm_type"):
        client.compute_norm(gradient, norm_type=0)
    with pytest.raises(ValueError, match='nonfinite is "no"'):
        client.clip(gradient, 1, nonfinite="no")
    with pytest.raises(ValueError, match='reply is "no"'):
        client.clip(gradient, 1, reply="no")
    with pytest.raises(ValueError, match="read only"):
        client.clip([gradclip.Tensor(b"1234", "float32")], 1, reply="gradient")


@pytest.mark.parametrize(
    ("address", "more", "says"),
    [
        ("localhost", {}, "no port"),
        ("a:1,,b:2", {}, "empty part"),
        ("a:1", {"timeout": 0}, "timeout is 0"),
        ("a:1", {"retries": -1}, "retries is -1"),
        ("a:1", {"message_bytes": 0}, "message_bytes is 0"),
        ("example.com:1", {"token": "secret"}, "unencrypted"),
        ("a:1", {"token": "x", "token_file": "y", "tls": True}, "give one"),
    ],
)
def test_connect_refuses_wrong_arguments(address, more, says):
    with pytest.raises(ValueError, match=says):
        gradclip.connect(address, **more)


def test_a_server_that_is_not_there(tmp_path):
    for address in (f"127.0.0.1:{free_port()}", f"unix:{tmp_path}/none.sock"):
        with gradclip.connect(address, retries=1) as client:
            with pytest.raises(gradclip.ServerUnavailable, match="nobody answers") as caught:
                client.compute_norm([array.array("f", [1])])
        assert address in str(caught.value) and caught.value.code == "UNAVAILABLE"
        assert isinstance(caught.value, ConnectionError)


def test_a_host_that_is_silent_ends_at_the_timeout():
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        begin = time.monotonic()
        with gradclip.connect(f"127.0.0.1:{silent.getsockname()[1]}", timeout=0.3) as client:
            with pytest.raises(gradclip.CallTimeout):
                client.compute_norm([array.array("f", [1])])
        assert time.monotonic() - begin < 2


def test_a_unix_socket(start_server, tmp_path):
    server = start_server(listen=f"unix:{tmp_path}/s.sock")
    with gradclip.connect(server.address) as client:
        assert client.compute_norm([array.array("f", [3, 4])]).total_norm == 5


def test_where_nobody_answers_the_next_address_does(start_server):
    first, second = start_server(), start_server()
    both = f"127.0.0.1:{free_port()}, {first.address},{second.address}"
    with gradclip.connect(both) as client:
        one = client.server_info().instance
        assert client.compute_norm([array.array("f", [3, 4])]).total_norm == 5
        first.kill()
        assert client.compute_norm([array.array("f", [3, 4])]).total_norm == 5
        assert client.server_info().instance != one


def test_a_server_that_comes_back_is_found(start_server):
    first = start_server()
    with gradclip.connect(first.address, retries=8) as client:
        client.server_info()
        first.kill()
        with concurrent.futures.ThreadPoolExecutor() as pool:
            call = pool.submit(client.compute_norm, [array.array("f", [3, 4])])
            time.sleep(0.3)
            start_server(
                listen=first.address
            )  # here, as a server dies with the thread that started it
            assert call.result().total_norm == 5


def test_servers_that_restart_one_after_another_end_no_call(start_server):
    servers = [start_server(), start_server()]
    gradient = [array.array("f", [1.0] * 100_000)]
    stopped = threading.Event()

    def train(client):
        norms = set()
        while not stopped.is_set():
            norms.add(client.clip(gradient, 1.0).norm.total_norm)
        return norms

    with gradclip.connect(",".join(server.address for server in servers)) as client:
        with concurrent.futures.ThreadPoolExecutor(3) as pool:
            calls = [pool.submit(train, client) for _ in range(3)]
            try:
                for number, how in enumerate(
                    (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL, signal.SIGKILL)
                ):
                    old = servers[number % 2]
                    old.process.send_signal(how)
                    old.process.wait()
                    servers[number % 2] = start_server(listen=old.address)
                    time.sleep(0.3)
            finally:
                stopped.set()  # else the pool would wait for the calls for ever
            for call in calls:
                assert call.result() == {math.sqrt(100_000)}


def test_a_server_killed_amid_a_call_leaves_the_tensors(start_server):
    server = start_server()
    gradient = array.array("f", [3, 4])
    with gradclip.connect(server.address, retries=0) as client:
        client.server_info()
        threading.Timer(0.2, server.process.kill).start()
        # The other rank never comes, so the call waits.
        with pytest.raises(gradclip.ServerUnavailable):
            client.clip([gradient], 1, reply="gradient", group=gradclip.Group("job", 0, 0, 2))
    assert gradient.tolist() == [3, 4]


class RefusedCall(grpc.RpcError):
    def __init__(self, code, details):
        self.code = lambda: code
        self.details = lambda: details


@pytest.mark.parametrize(
    ("code", "details", "becomes"),
    [
        # A server that stops says so of a call that it has not seen; it is tried again.
        (grpc.StatusCode.CANCELLED, "CANCELLED", "UNAVAILABLE"),
        (grpc.StatusCode.CANCELLED, "Channel closed!", "CANCELLED"),
        (grpc.StatusCode.UNKNOWN, "Stream removed", "UNAVAILABLE"),
        (grpc.StatusCode.UNKNOWN, "something else", "UNKNOWN"),
    ],
)
def test_what_a_stopping_server_says_is_unavailable(code, details, becomes):
    assert failure_of(RefusedCall(code, details), "a:1").code == becomes


def test_a_call_that_a_stopping_server_cancelled_is_tried_again(client, monkeypatch):
    (server,) = client._servers._servers
    calls = []

    class Call:
        def future(self, requests, **more):
            calls.append(sum(map(len, requests)))
            if len(calls) < 3:
                raise RefusedCall(grpc.StatusCode.CANCELLED, "CANCELLED")
            raise RefusedCall(grpc.StatusCode.NOT_FOUND, "enough")

    monkeypatch.setattr(server, "compute_norm", Call())
    with pytest.raises(gradclip.GradClipError, match="enough"):
        client.compute_norm([array.array("f", [1])])
    assert len(calls) == 3 and len(set(calls)) == 1  # each sent all of it


def test_server_info(client):
    info = client.server_info()
    assert info.version and info.instance and info.backends[0].usable and info.max_tensors > 0


def test_threads_share_a_client(client):
    norms = []

    def call(value):
        for _ in range(20):
            norms.append(
                client.compute_norm([array.array("f", [value] * 10_000)], norm_type=1).total_norm
                == value * 10_000
            )

    threads = [threading.Thread(target=call, args=(value,)) for value in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert norms == [True] * 160
