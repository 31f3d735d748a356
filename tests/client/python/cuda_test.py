"""Gradients of CUDA devices, against a server whose GPU is emulated. emulated_cuda.py says what
that can't show.

Here tensors with an even number of elements count as those of device 0, those with an odd multiple
of 5 as device 1's, and all others as the host's.
"""

import ctypes
import gc
import math
import socket
import struct
import threading
import types
import warnings
import weakref

import gradclip
import numpy
import pytest

torch = pytest.importorskip("torch")

from bench_test import assert_compared  # noqa: E402
from conftest import PROGRAMS, ROOT  # noqa: E402
from emulated_cuda import (  # noqa: E402
    BLOCK,
    HANDLE,
    INVALID_VALUE,
    NOT_SUPPORTED,
    OUT_OF_MEMORY,
    UUID,
    EmulatedDriver,
)
from gradclip import _cuda, _wire  # noqa: E402
from gradclip.torch import SharedGradients, clip_grad_norm_, get_total_norm  # noqa: E402
from torch_test import grads, parameter, same_bits  # noqa: E402

SERVER = "gradclip-server-emulated-cuda"


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.fixture
def driver(monkeypatch):
    library = EmulatedDriver()
    as_tensor = torch.as_tensor

    def on_device(data, *args, device=None, **more):
        if device is None:
            return as_tensor(data, *args, **more)
        return library.tensor(data, device)

    monkeypatch.setattr(torch, "as_tensor", on_device)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: {"libcuda.so.1": library}[name])
    _cuda._driver.cache_clear()
    yield library
    _cuda._driver.cache_clear()


class Test_CudaMemory:
    def test_is_whole_blocks_and_freed_with_its_last_view(self, driver):
        memory = _cuda.CudaMemory(0, BLOCK + 1)
        assert memory.size == 2 * BLOCK and list(driver.live.values()) == [2 * BLOCK]
        assert memory.tensor.shape == (2 * BLOCK,) and memory.tensor.dtype is torch.uint8
        view = memory.tensor[64:128].view(torch.float32)
        view[:] = 3
        memory.close()
        with pytest.raises(OSError, match="given back"):
            memory.registration()
        assert view.tolist() == [3] * 16 and driver.live
        del view
        assert not driver.live and driver.contexts == 0 and driver.current == []

    def test_registers_by_its_handle(self, driver):
        memory = _cuda.CudaMemory(0, 1)
        message, descriptors = memory.registration()
        assert len(message) == 112 and descriptors == []
        magic, version, kind, flags, size, begin, uuid = struct.unpack_from("<8sIHHQQ16s", message)
        assert (magic, version, kind, flags) == (b"GRADCLIP", 1, 2, 1)
        assert (size, begin, uuid) == (BLOCK, 0, UUID)
        assert HANDLE.unpack(message[48:])[5] == BLOCK

    def test_takes_the_older_function_where_the_driver_is_older(self, driver):
        library = types.SimpleNamespace(
            **{name: getattr(driver, name) for name in dir(driver) if name.startswith("cu")}
        )
        library.cuDeviceGetUuid = library.__dict__.pop("cuDeviceGetUuid_v2")
        _cuda._Allocation(_cuda.Driver(library), 0, BLOCK)
        del library.cuDeviceGetUuid
        with pytest.raises(OSError, match="the driver has no cuDeviceGetUuid"):
            _cuda._Allocation(_cuda.Driver(library), 0, BLOCK)

    @pytest.mark.parametrize(
        ("name", "status", "said"),
        [
            ("cuInit", 100, "an error without a name"),
            ("cuDeviceGet", INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE"),
            ("cuDeviceGetUuid_v2", INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE"),
            ("cuDevicePrimaryCtxRetain", OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY"),
            ("cuCtxPushCurrent_v2", INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE"),
            ("cuMemAlloc_v2", OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY"),
            ("cuIpcGetMemHandle", NOT_SUPPORTED, "CUDA_ERROR_NOT_SUPPORTED"),
        ],
    )
    def test_errors_name_the_call_and_leave_nothing(self, name, status, said, driver):
        driver.fails[name] = status
        with pytest.raises(OSError, match=rf"{name}: {said} \({status}\)"):
            _cuda.CudaMemory(0, 1)
        assert not driver.live and driver.contexts == 0 and driver.current == []

    def test_is_not_there_without_a_driver(self, monkeypatch):
        def no_library(name):
            raise OSError(f"{name}: cannot open shared object file")

        monkeypatch.setattr(ctypes, "CDLL", no_library)
        _cuda._driver.cache_clear()
        with pytest.raises(OSError, match="libcuda"):
            _cuda.CudaMemory(0, 1)

    def test_is_freed_when_servers_have_let_go(self, driver):
        memory = _cuda.CudaMemory(0, 1)
        ours, server = socket.socketpair()
        memory.leave(ours)
        seen = []

        def let_go():
            with server:
                assert server.recv(1) == b""  # half-closed
                seen.append(len(driver.live))

        later = threading.Timer(0.2, let_go)
        later.start()
        memory.close()
        later.join()
        assert seen == [1] and not driver.live

    def test_stays_where_a_server_does_not_let_go(self, driver, monkeypatch):
        monkeypatch.setattr(_cuda, "_PATIENCE", 0.05)
        memory = _cuda.CudaMemory(0, 1)
        ours, server = socket.socketpair()
        memory.leave(ours)
        memory.close()
        assert len(driver.live) == 1 and driver.contexts == 1
        server.close()

    def test_a_forked_process_leaves_it_to_the_first(self, driver, monkeypatch):
        memory = _cuda.CudaMemory(0, 1)
        ours, server = socket.socketpair()
        with ours, server:
            with monkeypatch.context() as forked:
                forked.setattr("os.getpid", lambda: 0)
                memory.leave(ours.dup())
                memory.close()
            assert len(driver.live) == 1
            ours.send(b"x")
            assert server.recv(1) == b"x"


@pytest.fixture
def device(driver, monkeypatch):
    """Devices 0 and 1 of torch. `waits` has the devices that were waited for."""
    if not (PROGRAMS / SERVER).exists():
        pytest.skip(f"there is no {SERVER}")
    waits = []

    def device_of(tensor):
        count = tensor.numel()
        return 0 if count % 2 == 0 else 1 if count % 5 == 0 else None

    monkeypatch.setattr(_cuda, "device_of", device_of)
    monkeypatch.setattr(_cuda, "synchronise", waits.append)
    return types.SimpleNamespace(driver=driver, waits=waits)


@pytest.fixture
def server_of(start_server, tmp_path):
    def start(*flags, **more):
        socket_flag = f"--memory-socket={tmp_path}/memory.sock"
        return start_server(socket_flag, "--backend=auto", *flags, program=SERVER, **more)

    return start


@pytest.fixture
def sharing(device, server_of):
    with gradclip.connect(server_of("--allow-cuda-ipc").address, timeout=60) as client:
        yield client


@pytest.fixture
def backends(monkeypatch):
    """What computed each answer."""
    from gradclip import answer, client

    norm_answer = answer.norm_answer
    seen = []

    def note(message, attempt):
        seen.append(message.backend)
        return norm_answer(message, attempt)

    monkeypatch.setattr(answer, "norm_answer", note)
    monkeypatch.setattr(client, "norm_answer", note)
    return seen


@pytest.fixture
def sent(monkeypatch):
    """Bytes of each run of tensors that was sent."""
    data_requests = _wire.data_requests
    seen = []

    def note(views, message_bytes):
        seen.append(sum(map(len, views)))
        return data_requests(views, message_bytes)

    monkeypatch.setattr(_wire, "data_requests", note)
    return seen


def parameters_of(counts, dtypes=(torch.float32, torch.bfloat16, torch.float16, torch.float64)):
    """Of so many elements each, of these dtypes in turn."""
    generator = torch.Generator().manual_seed(2)
    return [
        parameter(
            torch.randn(count, generator=generator, dtype=torch.float64).to(
                dtypes[index % len(dtypes)]
            )
        )
        for index, count in enumerate(counts)
    ]


ON_DEVICE = [1000, 2, 0, 66, 4096]
MIXED = [1000, 3, 5, 66, 0, 4096, 1]
LARGE = [1 << 19, 2, 1 << 19, 0, 6]
LARGE_MIXED = [1 << 19, (1 << 19) + 1, 5 * ((1 << 17) + 1), 1 << 19, 3, (1 << 20) + 1, 2]


def is_norm(norm, expected, norm_type):
    """To the bit for the orders that devices promise it for."""
    if norm_type == 3.5:
        return norm.item() == pytest.approx(expected.item(), rel=1e-6)
    return same_bits([norm], [expected])


def measured_by(norm_type):
    """What the server says, of memory of its GPU."""
    return "cpu/" if norm_type == 3.5 else "cuda/0"


@pytest.mark.parametrize("norm_type", [1, 2, 3.5, math.inf])
@pytest.mark.parametrize("counts", [ON_DEVICE, MIXED], ids=["device", "mixed"])
def test_shared_gradients(counts, norm_type, device, sharing, client, backends, sent):
    ours, theirs = parameters_of(counts), parameters_of(counts)
    with SharedGradients(ours, client=sharing, require_shared=True) as gradients:
        for _ in range(2):
            norm = gradients.clip_grad_norm_(0.5, norm_type)
            assert gradients.is_shared and sent == []
            assert is_norm(norm, clip_grad_norm_(theirs, 0.5, norm_type, client=client), norm_type)
            sent.clear()
            if norm_type != 3.5:
                assert same_bits(grads(ours), grads(theirs))
    assert device.waits == ([0, 0] if counts is ON_DEVICE else [0, 1, 0, 1])
    if counts is ON_DEVICE:
        assert all(one.startswith(measured_by(norm_type)) for one in backends[::2])


def test_backward_writes_to_the_devices_memory(device, sharing, client, sent):
    def model_of():
        torch.manual_seed(1)
        return torch.nn.Sequential(torch.nn.Linear(8, 15), torch.nn.Tanh(), torch.nn.Linear(15, 1))

    ours, theirs = model_of(), model_of()
    with SharedGradients(ours, client=sharing, require_shared=True) as gradients:
        for _ in range(3):
            for model in (ours, theirs):
                model.zero_grad(set_to_none=True)
                model(torch.linspace(-1, 1, 32).reshape(4, 8)).square().sum().backward()
            assert [one.grad.data_ptr() for one in ours.parameters()] == gradients._addresses
            norm = gradients.clip_grad_norm_(0.1)
            assert sent == []
            assert norm == clip_grad_norm_(theirs.parameters(), 0.1, client=client)
            assert same_bits(grads(ours.parameters()), grads(theirs.parameters()))
            sent.clear()


def test_the_memory_is_freed_with_the_last_gradient(device, sharing):
    ours = parameters_of(ON_DEVICE)
    gradients = SharedGradients(ours, client=sharing, require_shared=True)
    gradients.clip_grad_norm_(0.5)
    gradients.close()
    before = grads(ours)
    del gradients
    assert len(device.driver.live) == 1 and same_bits(grads(ours), before)
    for one in ours:
        one.grad = None
    assert not device.driver.live


def test_a_server_that_restarts_is_given_the_memory_again(device, server_of, tmp_path):
    server = server_of("--allow-cuda-ipc")
    ours = parameters_of(ON_DEVICE)
    with (
        gradclip.connect(server.address) as client,
        SharedGradients(ours, client=client, require_shared=True) as gradients,
    ):
        first = gradients.clip_grad_norm_(math.inf)
        server.kill()
        (tmp_path / "memory.sock").unlink(missing_ok=True)
        server_of("--allow-cuda-ipc", listen=server.address)
        assert gradients.clip_grad_norm_(math.inf) == first


def test_without_allow_cuda_ipc_gradients_are_streamed_which_is_said_once(
    device, server_of, client, sent
):
    ours, theirs = parameters_of(MIXED), parameters_of(MIXED)
    with (
        gradclip.connect(server_of().address) as refusing,
        SharedGradients(ours, client=refusing) as gradients,
    ):
        with pytest.warns(UserWarning, match="--allow-cuda-ipc"):
            norm = gradients.clip_grad_norm_(0.5)
        # The host's are shared, the others sent, in the order of the parameters.
        assert sent == [4 * 1000, 2 * 5 + 8 * 66 + 2 * 4096] and not gradients.is_shared
        assert norm == clip_grad_norm_(theirs, 0.5, client=client)
        assert same_bits(grads(ours), grads(theirs))
        gradients.clip_grad_norm_(0.5)
        gradients._require_shared = True
        with pytest.raises(gradclip.GradClipError, match="--allow-cuda-ipc"):
            gradients.clip_grad_norm_(0.5)


def test_a_device_without_memory_to_share_leaves_gradients_in_torchs(device, sharing, client, sent):
    device.driver.fails["cuIpcGetMemHandle"] = NOT_SUPPORTED
    ours, theirs = parameters_of(ON_DEVICE), parameters_of(ON_DEVICE)
    with SharedGradients(ours, client=sharing) as gradients:
        with pytest.warns(UserWarning, match="CUDA_ERROR_NOT_SUPPORTED"):
            norm = gradients.clip_grad_norm_(0.5)
        assert sent == [sum(one.numel() * one.element_size() for one in ours)]
        assert norm == clip_grad_norm_(theirs, 0.5, client=client)
    assert same_bits(grads(ours), grads(theirs)) and not device.driver.live


@pytest.mark.parametrize("norm_type", [1, 2, 3.5, math.inf])
@pytest.mark.parametrize("counts", [LARGE, LARGE_MIXED], ids=["device", "mixed"])
def test_tensors_are_copied_on_the_device(
    counts, norm_type, device, sharing, client, backends, sent
):
    ours, theirs = parameters_of(counts), parameters_of(counts)
    for _ in range(2):
        norm = get_total_norm([one.grad for one in ours], norm_type, client=sharing)
        again = clip_grad_norm_(ours, 0.5, norm_type, client=sharing)
        assert sent == [] and same_bits([norm], [again])
        assert is_norm(norm, clip_grad_norm_(theirs, 0.5, norm_type, client=client), norm_type)
        sent.clear()
        if norm_type != 3.5:
            assert same_bits(grads(ours), grads(theirs))
    devices = [0] if counts is LARGE else [0, 1]
    assert device.waits == devices * 4
    assert device.driver.calls["cuMemAlloc_v2"] == len(devices)
    if counts is LARGE:
        by = measured_by(norm_type)
        assert all(backends[index].startswith(by) for index in (0, 1, 3, 4))


def test_the_memory_of_the_copies_grows_and_is_freed(device, sharing, sent):
    for count in (1 << 18, 1 << 20, 1 << 18):
        assert get_total_norm(torch.ones(count), client=sharing).item() == math.sqrt(count)
    assert list(device.driver.live.values()) == [2 * BLOCK]
    assert device.driver.calls["cuMemAlloc_v2"] == 2 and sent == []
    sharing.close()
    assert not device.driver.live


def test_small_tensors_and_those_beyond_the_limit_are_sent(device, server_of, sent):
    with gradclip.connect(server_of("--allow-cuda-ipc").address, shared_bytes=2 << 20) as client:
        for count in (4, 1 << 20):
            assert get_total_norm(torch.ones(count), client=client).item() == math.sqrt(count)
    assert sent == [16, 4 << 20] and not device.driver.live


def test_a_call_keeps_no_tensor(device, sharing):
    """Device memory is not to wait for the collector of cycles."""
    gc.disable()
    try:
        for count in (2, 1 << 18):
            memory = numpy.ones(count, numpy.float32)
            kept = weakref.ref(memory)
            one = parameter(torch.from_numpy(memory))
            clip_grad_norm_([one], 1.0, client=sharing)
            del memory, one
            assert kept() is None
    finally:
        gc.enable()


def test_tensors_that_are_not_contiguous(device, sharing, sent):
    grad = torch.arange(1 << 20, dtype=torch.float32).reshape(1024, 1024).t()[:, ::2] / (1 << 20)
    one = parameter(grad)
    one.grad = grad  # as it is
    expected = torch.linalg.vector_norm(grad, dtype=torch.float64)
    assert clip_grad_norm_([one], 1.0, client=sharing).item() == pytest.approx(expected.item())
    assert torch.linalg.vector_norm(one.grad).item() == pytest.approx(1, rel=1e-5)
    assert sent == []


def test_where_the_server_refuses_copies_are_the_hosts(device, server_of, client, sent):
    ours, theirs = parameters_of(LARGE_MIXED), parameters_of(LARGE_MIXED)
    with gradclip.connect(server_of().address) as refusing:
        for _ in range(2):
            norm = clip_grad_norm_(ours, 0.5, client=refusing)
            assert sent == []
            assert norm == clip_grad_norm_(theirs, 0.5, client=client)
            assert same_bits(grads(ours), grads(theirs))
            sent.clear()
    assert device.driver.calls["cuMemAlloc_v2"] == 2  # of each once: it is not asked for a while
    assert not device.driver.live


def test_a_nonfinite_gradient_is_named_and_stays(device, sharing):
    one = parameter(torch.ones(1 << 18))
    one.grad[7] = math.inf
    with pytest.raises(gradclip.NonfiniteGradientError, match=r"#0\[7\]"):
        clip_grad_norm_([one], 1.0, error_if_nonfinite=True, client=sharing)
    assert one.grad[6] == 1 and not device.driver.live  # the memory of a failed call is not kept


def test_the_benchmark_has_a_row_for_each_pair(device, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "tests/bench/python"))
    import common
    import gpu

    def on_device(shapes, dtype, device):
        assert device == "cuda"
        return common.parameters_of(shapes, dtype)

    monkeypatch.setattr(gpu, "parameters_of", on_device)
    monkeypatch.setattr(common, "PROGRAM", PROGRAMS / SERVER)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Emulated GPU")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr("sys.argv", ["gpu.py", "--quick", "--rounds=2"])
    gpu.main()
    assert_compared(capsys.readouterr().out)
    assert 0 in device.waits
    device.driver.fails["cuIpcGetMemHandle"] = NOT_SUPPORTED
    with pytest.raises(SystemExit, match="not shared: .*CUDA_ERROR_NOT_SUPPORTED"):
        gpu.main()
