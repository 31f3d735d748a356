"""gradclip.torch.SharedGradients against real servers, with and without a memory socket."""

import concurrent.futures
import dataclasses
import math
import warnings

import gradclip
import pytest
from golden import CASES, EXPECTED, number, read_safetensors

torch = pytest.importorskip("torch")

from gradclip.torch import SharedGradients, clip_grad_norm_  # noqa: E402
from torch_test import grads, parameter, parameters_of, random_parameters, same_bits, tensor_of  # noqa: E402


@pytest.fixture(scope="module")
def socket_server(tmp_path_factory):
    from conftest import ServerProcess

    server = ServerProcess(f"--memory-socket={tmp_path_factory.mktemp('shared')}/memory.sock")
    yield server
    server.kill()


@pytest.fixture(scope="module")
def sharing(socket_server):
    with gradclip.connect(socket_server.address, timeout=60) as client:
        yield client


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def model_of():
    torch.manual_seed(1)
    return torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))


def backward(model):
    model(torch.linspace(-1, 1, 32).reshape(4, 8)).square().sum().backward()


def are_in(shared, parameters):
    return all(a.grad.data_ptr() == b.data_ptr() for a, b in zip(parameters, shared._views))


# With compat, those that torch has operations for.
WAYS = [
    pytest.param(case, compat, id=f"{case['name']}-{compat}")
    for compat in (None, "torch")
    for case in CASES
    if not (compat and "unsupported" in case["torch"])
]


@pytest.mark.parametrize(("case", "compat"), WAYS)
def test_golden_cases_have_the_bits_of_the_streamed_ones(case, compat, sharing):
    shared, streamed = parameters_of(case), parameters_of(case)
    options = {"error_if_nonfinite": case["error_if_nonfinite"], "compat": compat}
    limit, p = number(case["max_norm"]), number(case["norm_type"])
    with SharedGradients(shared, client=sharing, require_shared=True) as gradients:
        if "raises" in case["torch"]:
            with pytest.raises(gradclip.NonfiniteGradientError):
                gradients.clip_grad_norm_(limit, p, **options)
            assert gradients.is_shared and same_bits(grads(shared), grads(streamed))
            return
        norm = gradients.clip_grad_norm_(limit, p, **options)
        assert gradients.is_shared
    assert same_bits([norm], [clip_grad_norm_(streamed, limit, p, client=sharing, compat=compat)])
    assert same_bits(grads(shared), grads(streamed))


@pytest.mark.parametrize("name", EXPECTED)
def test_real_gradients(name, sharing):
    parameters = [parameter(tensor_of(*one)) for one in read_safetensors(name).values()]
    with SharedGradients(parameters, client=sharing, require_shared=True) as gradients:
        assert gradients.clip_grad_norm_(1.0) == torch.tensor(
            EXPECTED[name]["total_norm_f64"], dtype=torch.float32
        )


@pytest.mark.parametrize("set_to_none", [True, False])
def test_backward_writes_to_the_memory_at_every_step(set_to_none, sharing):
    ours, theirs = model_of(), model_of()
    with SharedGradients(ours, client=sharing, require_shared=True) as gradients:
        for _ in range(3):
            for model in (ours, theirs):
                model.zero_grad(set_to_none=set_to_none)
                backward(model)
            assert are_in(gradients, ours.parameters())
            assert same_bits(grads(ours.parameters()), grads(theirs.parameters()))
            assert gradients.clip_grad_norm_(0.1) == clip_grad_norm_(
                theirs.parameters(), 0.1, client=sharing
            )
            assert same_bits(grads(ours.parameters()), grads(theirs.parameters()))


def test_gradients_accumulate(sharing):
    ours, theirs = model_of(), model_of()
    with SharedGradients(ours, client=sharing) as gradients:
        for model in (ours, theirs):
            backward(model)
            backward(model)
        assert are_in(gradients, ours.parameters())
        assert same_bits(grads(ours.parameters()), grads(theirs.parameters()))


def test_gradients_from_elsewhere_are_moved_into_the_memory(sharing):
    one, none = parameter(torch.tensor([1.0, 1.0])), torch.nn.Parameter(torch.ones(3))
    with SharedGradients([one, none, one], client=sharing) as gradients:
        one.grad = torch.tensor([3.0, 4.0])
        assert gradients.clip_grad_norm_(1.0) == 5
        assert are_in(gradients, [one]) and none.grad is None
        torch.testing.assert_close(one.grad, torch.tensor([0.6, 0.8]))
        one.grad.data = torch.tensor([6.0, 8.0])
        assert gradients.clip_grad_norm_(1.0) == 10
        torch.testing.assert_close(one.grad, torch.tensor([0.6, 0.8]))
        one.grad = None
        assert gradients.clip_grad_norm_(1.0) == 0 and one.grad is None


def test_the_gradients_stay_after_close(sharing):
    model = model_of()
    with SharedGradients(model, client=sharing) as gradients:
        backward(model)
        before = grads(model.parameters())
    del gradients
    assert same_bits(grads(model.parameters()), before)
    model.zero_grad(set_to_none=True)
    backward(model)
    assert same_bits(grads(model.parameters()), before)


def test_nonfinite_gradients_stay(sharing):
    one = parameter(torch.tensor([1.0, math.nan]))
    with SharedGradients([one], client=sharing) as gradients:
        with pytest.raises(gradclip.NonfiniteGradientError, match=r"#0\[1\]"):
            gradients.clip_grad_norm_(1.0, error_if_nonfinite=True)
    assert one.grad[0] == 1


def test_a_server_that_restarts_is_given_the_memory_again(start_server, tmp_path):
    flag = f"--memory-socket={tmp_path}/memory.sock"
    server = start_server(flag)
    one = parameter(torch.tensor([3.0, 4.0]))
    with (
        gradclip.connect(server.address) as client,
        SharedGradients([one], client=client, require_shared=True) as gradients,
    ):
        assert gradients.clip_grad_norm_(9.0) == 5
        server.kill()
        (tmp_path / "memory.sock").unlink(missing_ok=True)
        start_server(flag, listen=server.address)
        assert gradients.clip_grad_norm_(9.0) == 5


def test_without_a_memory_socket_gradients_are_streamed_which_is_said_once(client):
    one = parameter(torch.tensor([3.0, 4.0]))
    with SharedGradients([one], client=client) as gradients:
        with pytest.warns(UserWarning, match="no --memory-socket"):
            assert gradients.clip_grad_norm_(1.0) == 5
        assert gradients.clip_grad_norm_(9.0) == pytest.approx(1)
        assert not gradients.is_shared
    with SharedGradients([one], client=client, require_shared=True) as gradients:
        with pytest.raises(gradclip.GradClipError, match="no --memory-socket"):
            gradients.clip_grad_norm_(1.0)


def test_a_lost_server_leaves_the_gradients(start_server, tmp_path):
    server = start_server(f"--memory-socket={tmp_path}/memory.sock")
    one = parameter(torch.tensor([3.0, 4.0]))
    with (
        gradclip.connect(server.address, retries=1) as client,
        SharedGradients([one], client=client) as gradients,
    ):
        assert gradients.clip_grad_norm_(9.0) == 5
        server.kill()
        with pytest.raises(gradclip.ServerUnavailable):
            gradients.clip_grad_norm_(1.0)
    assert one.grad.tolist() == [3, 4]


def test_ranks_share_their_parts(sharing):
    group = gradclip.Group("shared", 0, 0, 2)
    ranks = [
        SharedGradients([parameter(torch.tensor([value]))], client=sharing) for value in (3.0, 4.0)
    ]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        norms = list(
            pool.map(
                lambda rank: ranks[rank].clip_grad_norm_(
                    1.0, group=dataclasses.replace(group, rank=rank)
                ),
                (0, 1),
            )
        )
    assert norms == [5, 5]


def test_parameters_that_can_not_be_shared_are_refused(sharing):
    with pytest.raises(ValueError, match="#0 is torch.complex64"):
        SharedGradients([torch.nn.Parameter(torch.zeros(2, dtype=torch.complex64))], client=sharing)


def test_mixed_dtypes_and_empty_tensors(sharing):
    parameters = (
        random_parameters(torch.bfloat16)
        + random_parameters(torch.float64)
        + [parameter(torch.zeros(0))]
    )
    others = (
        random_parameters(torch.bfloat16)
        + random_parameters(torch.float64)
        + [parameter(torch.zeros(0))]
    )
    with SharedGradients(parameters, client=sharing, require_shared=True) as gradients:
        assert gradients.clip_grad_norm_(0.5) == clip_grad_norm_(others, 0.5, client=sharing)
    assert same_bits(grads(parameters), grads(others))


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no distributed")
@pytest.mark.parametrize("as_view", [False, True])
@pytest.mark.parametrize("shared_first", [False, True])
def test_beside_distributed_data_parallel(as_view, shared_first, sharing, tmp_path):
    """DistributedDataParallel may have the gradients in memory of its own, and wants them there."""
    torch.distributed.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    ours, theirs = model_of(), model_of()

    def parallel_of(model):
        return torch.nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=as_view)

    try:
        parallel = None if shared_first else parallel_of(ours)
        with SharedGradients(ours, client=sharing, require_shared=True) as gradients:
            parallel = parallel or parallel_of(ours)
            for set_to_none in (True, False, True, True):
                for model, forward in ((ours, parallel), (theirs, theirs)):
                    model.zero_grad(set_to_none=set_to_none)
                    backward(forward)
                assert gradients.clip_grad_norm_(0.1) == clip_grad_norm_(
                    theirs.parameters(), 0.1, client=sharing
                )
                assert gradients.is_shared and are_in(gradients, ours.parameters())
                assert same_bits(grads(ours.parameters()), grads(theirs.parameters()))
    finally:
        torch.distributed.destroy_process_group()
