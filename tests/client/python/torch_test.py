"""gradclip.torch against what torch.nn.utils documents, and against torch's own where that is
right.
"""

import base64
import concurrent.futures
import dataclasses
import math
import socket

import gradclip
import pytest
from golden import CASES, EXPECTED, NAMES, is_exact, number, read_safetensors, tensors

torch = pytest.importorskip("torch")

from gradclip.torch import clip_grad_norm_, clip_grads_with_norm_, get_total_norm, group_of_process  # noqa: E402

pytestmark = pytest.mark.usefixtures("default_server")

DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float64": torch.float64,
}


def tensor_of(dtype, shape, data):
    if not data:
        return torch.zeros(shape, dtype=DTYPES[dtype])
    return torch.frombuffer(bytearray(data), dtype=DTYPES[dtype]).reshape(shape)


def parameter(grad):
    made = torch.nn.Parameter(torch.zeros_like(grad))
    made.grad = grad
    return made


def parameters_of(case):
    return [parameter(tensor_of(*one)) for one in tensors(case)]


def random_parameters(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [
        parameter(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype))
        for shape in ((64, 33), (7,), (), (2, 3, 5))
    ]


def grads(parameters):
    return [one.grad.clone() for one in parameters]


def same_bits(a, b):
    """Whether all tensors are equal, NaN included."""
    return all(
        torch.equal(torch.nan_to_num(x, 7.0), torch.nan_to_num(y, 7.0))
        and torch.equal(x.isnan(), y.isnan())
        for x, y in zip(a, b)
    )


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_golden_cases(case, client):
    """Norms are the exact ones, and the elements to the bit those that the server would have
    sent.
    """
    parameters = parameters_of(case)
    before = grads(parameters)
    p, limit = number(case["norm_type"]), number(case["max_norm"])
    if "raises" in case["torch"]:
        with pytest.raises(RuntimeError):
            clip_grad_norm_(parameters, limit, p, error_if_nonfinite=True)
        assert same_bits(grads(parameters), before)
        return
    total_norm = clip_grad_norm_(parameters, limit, p, case["error_if_nonfinite"])
    assert total_norm.dim() == 0
    if case["exact_total_norm"] is not None:
        exact = number(case["exact_total_norm"])
        if total_norm.dtype is torch.float64:
            assert is_exact(total_norm.item(), exact, p)
        else:
            expected = torch.tensor(exact, dtype=total_norm.dtype).item()
            assert total_norm.item() == expected or (math.isnan(exact) and total_norm.isnan())

    reference = [(dtype, shape, bytearray(data)) for dtype, shape, data in tensors(case)]
    client.clip(
        [gradclip.Tensor(data, dtype, shape) for dtype, shape, data in reference],
        limit,
        norm_type=p,
        reply="gradient",
    )
    assert same_bits(grads(parameters), [tensor_of(*one) for one in reference])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("norm_type", [1, 2, 3.5, math.inf, "inf"])
@pytest.mark.parametrize("max_norm", [0, 0.5, 1e6])
def test_does_what_torch_does(dtype, norm_type, max_norm):
    ours, theirs = random_parameters(dtype), random_parameters(dtype)
    norm = clip_grad_norm_(ours, max_norm, norm_type)
    expected = torch.nn.utils.clip_grad_norm_(theirs, max_norm, float(norm_type))
    assert (
        norm.dtype == expected.dtype
        and norm.shape == expected.shape
        and norm.device == expected.device
    )
    torch.testing.assert_close(norm, expected)
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize("name", EXPECTED)
def test_real_gradients(name):
    given = read_safetensors(name)
    ours, theirs = ([parameter(tensor_of(*one)) for one in given.values()] for _ in range(2))
    norm = clip_grad_norm_(ours, 1.0)
    assert norm == torch.tensor(EXPECTED[name]["total_norm_f64"], dtype=torch.float32)
    torch.nn.utils.clip_grad_norm_(theirs, 1.0)
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a.grad, b.grad)


def test_one_tensor_a_generator_and_tensors_without_gradient():
    one = parameter(torch.tensor([3.0, 4.0]))
    assert clip_grad_norm_(one, 1.0) == 5
    torch.testing.assert_close(one.grad, torch.tensor([0.6, 0.8]))
    without = torch.nn.Parameter(torch.ones(2))
    assert clip_grad_norm_((p for p in [without, one]), 10.0) == pytest.approx(1)
    assert without.grad is None


def test_no_gradients_have_norm_0():
    for given in ([], [torch.nn.Parameter(torch.ones(2))]):
        norm = clip_grad_norm_(given, 1.0)
        assert norm.dtype is torch.float32 and norm.dim() == 0 and norm == 0
    assert get_total_norm([]) == 0


@pytest.mark.parametrize("foreach", [None, True, False])
def test_foreach_changes_no_bit(foreach):
    parameters, others = random_parameters(), random_parameters()
    clip_grad_norm_(parameters, 0.5, foreach=foreach)
    clip_grad_norm_(others, 0.5)
    assert same_bits(grads(parameters), grads(others))


def test_mixed_dtypes_have_the_norm_of_the_widest():
    parameters = [
        parameter(torch.tensor([3.0], dtype=torch.bfloat16)),
        parameter(torch.tensor([4.0], dtype=torch.float64)),
    ]
    norm = clip_grad_norm_(parameters, 1.0)
    assert norm.dtype is torch.float64 and norm == 5
    assert parameters[0].grad.dtype is torch.bfloat16
    assert (
        clip_grad_norm_([parameter(torch.ones(4, dtype=torch.float16))], 9.0).dtype is torch.float32
    )


def test_gradients_that_are_not_contiguous():
    for dtype in (torch.float32, torch.bfloat16):
        grad = torch.arange(12, dtype=dtype).reshape(3, 4).t()
        ours, theirs = (
            parameter(grad.clone(memory_format=torch.preserve_format)),
            parameter(grad.contiguous()),
        )
        assert not ours.grad.is_contiguous()
        assert clip_grad_norm_(ours, 1.0) == clip_grad_norm_(theirs, 1.0)
        assert torch.equal(ours.grad, theirs.grad) and not ours.grad.is_contiguous()


def test_the_gradient_is_changed_in_place():
    one = parameter(torch.tensor([3.0, 4.0]))
    address = one.grad.data_ptr()
    clip_grad_norm_(one, 1.0)
    assert one.grad.data_ptr() == address


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nonfinite_gradients(bad):
    ours, theirs = (parameter(torch.tensor([1.0, bad, 3.0])) for _ in range(2))
    with pytest.raises(RuntimeError, match="NONFINITE_ERROR.*#0\\[1\\]") as caught:
        clip_grad_norm_(ours, 1.0, error_if_nonfinite=True)
    assert isinstance(caught.value, gradclip.NonfiniteGradientError)
    with pytest.raises(gradclip.NonfiniteGradientError, match="#0\\[1\\]"):
        get_total_norm(ours.grad, error_if_nonfinite=True)
    assert same_bits([ours.grad], [theirs.grad])
    norm, expected = clip_grad_norm_(ours, 1.0), torch.nn.utils.clip_grad_norm_(theirs, 1.0)
    assert same_bits([norm, ours.grad], [expected, theirs.grad])


def test_norms_where_torch_overflows():
    huge = parameter(torch.tensor([3e20, 4e20]))
    assert clip_grad_norm_(huge, 1.0) == torch.tensor(5e20)
    torch.testing.assert_close(huge.grad, torch.tensor([0.6, 0.8]))
    beyond = get_total_norm(torch.full((4,), 3e38))
    assert beyond.dtype is torch.float64 and beyond.isfinite()


@pytest.mark.parametrize(
    ("max_norm", "norm_type", "says"),
    [
        (-1, 2, "max_norm is -1"),
        (math.nan, 2, "max_norm is nan"),
        (1, 0, "norm_type is 0"),
        (1, -2, "norm_type is -2"),
    ],
)
def test_limits_and_norms_that_are_refused(max_norm, norm_type, says):
    one = parameter(torch.tensor([3.0, 4.0]))
    with pytest.raises(ValueError, match=says):
        clip_grad_norm_(one, max_norm, norm_type)
    assert one.grad.tolist() == [3, 4]


def test_gradients_that_are_refused_leave_all_as_they_were():
    good = parameter(torch.tensor([3.0, 4.0]))
    tied = parameter(good.grad)
    expanded = torch.nn.Parameter(torch.zeros(3))
    expanded.grad = torch.ones(1).expand(3)
    sparse = parameter(torch.eye(2).to_sparse())
    for bad, says in ((tied, "same memory"), (expanded, "expanded"), (sparse, "sparse")):
        with pytest.raises(ValueError, match=says):
            clip_grad_norm_([good, bad], 1.0)
    with pytest.raises(ValueError, match="complex64"):
        get_total_norm([torch.zeros(2, dtype=torch.complex64)])
    assert good.grad.tolist() == [3, 4]


def test_a_lost_server_leaves_the_gradients(start_server):
    server = start_server()
    one = parameter(torch.tensor([3.0, 4.0]))
    with gradclip.connect(server.address, retries=1) as client:
        assert clip_grad_norm_(one, 9.0, client=client) == 5
        server.kill()
        with pytest.raises(gradclip.ServerUnavailable):
            clip_grad_norm_(one, 1.0, client=client)
    assert one.grad.tolist() == [3, 4]


@pytest.mark.parametrize("max_norm", [0.0, 0.5, 1e6, math.inf])
@pytest.mark.parametrize("bad", [None, math.nan, math.inf])
def test_a_known_norm_clips_to_the_same_bits(max_norm, bad):
    ours, theirs = random_parameters(torch.float64), random_parameters(torch.float64)
    if bad is not None:
        ours[1].grad[0] = theirs[1].grad[0] = bad
    norm = get_total_norm([one.grad for one in ours])
    assert clip_grads_with_norm_(ours, max_norm, norm) is None
    clip_grad_norm_(theirs, max_norm)
    assert same_bits(grads(ours), grads(theirs))


@pytest.mark.skipif(not hasattr(torch.nn.utils, "get_total_norm"), reason="this torch has none")
@pytest.mark.parametrize("norm_type", [1, 2, math.inf])
def test_the_two_halves_do_what_torch_s_do(norm_type):
    ours, theirs = random_parameters(), random_parameters()
    norm = get_total_norm([one.grad for one in ours], norm_type)
    expected = torch.nn.utils.get_total_norm([one.grad for one in theirs], norm_type)
    torch.testing.assert_close(norm, expected)
    clip_grads_with_norm_(ours, 0.5, norm)
    torch.nn.utils.clip_grads_with_norm_(theirs, 0.5, expected)
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("coefficient", [1 / 3, 1 - 2**-9, 0.5000001, 1e-3, 1e-20, 0.0])
def test_halves_are_multiplied_in_float32_and_rounded_once(dtype, coefficient):
    """Every half, in gradients whose ends are inside and outside of any vector and row."""
    halves = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(dtype)
    expected = (halves.float() * coefficient).to(dtype)
    for first, last in ((0, 65536), (0, 1), (5, 12), (1, 32768), (0, 32769), (31743, 65535)):
        one = parameter(halves[first:last].clone())
        # max_norm / (total_norm + 1e-6) is the coefficient.
        clip_grads_with_norm_(one, coefficient, 1 - 1e-6)
        assert same_bits([one.grad], [expected[first:last]])
        zeros = expected[first:last] == 0
        assert torch.equal(
            torch.signbit(one.grad)[zeros], torch.signbit(expected[first:last])[zeros]
        )


@pytest.mark.skipif(not hasattr(torch, "set_default_device"), reason="this torch has one device")
def test_the_default_device_is_not_asked():
    for dtype in DTYPES.values():
        one = parameter(torch.tensor([3.0, 4.0]).to(dtype))
        with torch.device("meta"):
            clip_grads_with_norm_(one, 2.5, 5.0)
            norms = [get_total_norm(one.grad, compat=compat) for compat in (None, "torch")]
        assert one.grad.tolist() == pytest.approx([1.5, 2.0], rel=1e-2)
        assert [norm.item() for norm in norms] == pytest.approx([2.5, 2.5], rel=1e-2)


def test_ranks_clip_by_the_norm_of_both():
    group = gradclip.Group("torch", 0, 0, 2)
    ranks = [parameter(torch.tensor([3.0])), parameter(torch.tensor([4.0]))]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        norms = list(
            pool.map(
                lambda rank: clip_grad_norm_(
                    ranks[rank], 1.0, group=dataclasses.replace(group, rank=rank)
                ),
                (0, 1),
            )
        )
    assert norms == [5, 5]
    torch.testing.assert_close(torch.cat([one.grad for one in ranks]), torch.tensor([0.6, 0.8]))


def test_another_rank_s_nan_is_an_error_of_its_own():
    group = gradclip.Group("torch-nan", 0, 0, 2)
    ranks = [torch.tensor([3.0]), torch.tensor([math.nan])]

    def norm(rank):
        own = dataclasses.replace(group, rank=rank)
        return get_total_norm(ranks[rank], error_if_nonfinite=True, group=own)

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(norm, rank) for rank in (0, 1)]
        for call, says in zip(calls, ("other ranks have 1 element", r"is #0\[0\]")):
            with pytest.raises(gradclip.NonfiniteGradientError, match=says):
                call.result()


def test_a_rank_without_gradients_takes_part():
    group = gradclip.Group("torch-none", 0, 0, 2)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        one = pool.submit(clip_grad_norm_, parameter(torch.tensor([3.0, 4.0])), 1.0, group=group)
        none = pool.submit(clip_grad_norm_, [], 1.0, group=dataclasses.replace(group, rank=1))
        assert one.result() == none.result() == 5


def test_the_group_of_torch_distributed(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert group_of_process("j", 3) == gradclip.Group("j", 3, 1, 2)
    if not torch.distributed.is_available():
        pytest.skip("this torch has no torch.distributed")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=0, world_size=1
    )
    try:
        assert group_of_process("j", 3, attempt=1) == gradclip.Group("j", 3, 0, 1, attempt=1)
    finally:
        torch.distributed.destroy_process_group()


def recorded(case):
    """What PyTorch 1.13 answered to a golden case: total norm and clipped gradients."""
    expected = case["torch"]
    dtype = getattr(torch, expected["result_dtype"])
    norm = torch.tensor(number(expected["total_norm"]), dtype=torch.float64).to(dtype)
    clipped = [
        tensor_of(NAMES[one["dtype"]], tuple(one["shape"]), base64.b64decode(data))
        for one, data in zip(case["tensors"], expected["clipped"])
    ]
    return norm, clipped


def asked(case):
    """What this PyTorch answers. Raises RuntimeError where the norm is not finite and may not be
    so, and for float16 where this torch can't do that on the CPU.
    """
    parameters = parameters_of(case)
    p, limit = number(case["norm_type"]), number(case["max_norm"])
    norm = torch.nn.utils.clip_grad_norm_(parameters, limit, p, case["error_if_nonfinite"])
    return norm, grads(parameters)


# The recorded ones count for the release that gave them.
ANSWERS = [(case, asked) for case in CASES]
if torch.__version__.startswith("1.13."):
    ANSWERS += [(case, recorded) for case in CASES if "clipped" in case["torch"]]


@pytest.mark.parametrize(
    ("case", "torchs"),
    ANSWERS,
    ids=lambda one: one["name"] if isinstance(one, dict) else one.__name__,
)
def test_compat_gives_torch_s_bits_where_torch_s_sums_are_right(case, torchs):
    """Also where torch overflows and underflows; bfloat16's 2-norms are summed in float32."""
    p, limit = number(case["norm_type"]), number(case["max_norm"])
    strict = case["error_if_nonfinite"]
    parameters = parameters_of(case)
    try:
        expected, clipped = torchs(case)
    except RuntimeError:
        with pytest.raises(RuntimeError):
            clip_grad_norm_(parameters, limit, p, strict, compat="torch")
        return
    norm = clip_grad_norm_(parameters, limit, p, strict, compat="torch")
    assert norm.dtype is expected.dtype and norm.dim() == 0
    if not expected.isfinite() or p == math.inf or (p == 2 and norm.dtype is torch.bfloat16):
        assert same_bits([norm], [expected])
    if same_bits([norm], [expected]):
        assert same_bits(grads(parameters), clipped)
    else:
        assert abs(norm - expected).item() <= 4 * torch.finfo(norm.dtype).eps * expected.item()

    # Of the same norm, all bits are torch's.
    parameters = parameters_of(case)
    clip_grads_with_norm_(parameters, limit, expected, compat="torch")
    assert same_bits(grads(parameters), clipped)


def gradients_of_any_size(dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(1, 2000, (40,), generator=generator).tolist()
    scales = torch.rand(40, generator=generator).exp2().tolist()
    return [
        parameter((torch.randn(size, generator=generator) * scale).to(dtype))
        for size, scale in zip(sizes, scales)
    ]


@pytest.mark.parametrize("max_norm", [1.0, 1e6])
@pytest.mark.parametrize("norm_type", [2.0, math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_compat_beside_this_torch(dtype, norm_type, max_norm):
    off = []
    for seed in range(20):
        ours, theirs = gradients_of_any_size(dtype, seed), gradients_of_any_size(dtype, seed)
        norm = clip_grad_norm_(ours, max_norm, norm_type, compat="torch")
        expected = torch.nn.utils.clip_grad_norm_(theirs, max_norm, norm_type)
        assert norm.dtype is expected.dtype
        spacing = torch.finfo(dtype).eps * 2.0 ** math.floor(math.log2(expected))
        off.append(abs(norm.item() - expected.item()) / spacing)
        if off[-1] != 0:
            ours = gradients_of_any_size(dtype, seed)
            clip_grads_with_norm_(ours, max_norm, expected, compat="torch")
        assert same_bits(grads(ours), grads(theirs))
    # bfloat16 is summed in float32, and then rounded.
    assert max(off) <= (0 if norm_type == math.inf or dtype is torch.bfloat16 else 4)
    # Torch's sums of float64 are never right here, in newer versions.
    assert 0 in off or (dtype is torch.float64 and not torch.__version__.startswith("1.13."))


# But for 2-norms, some versions of torch sum halves in their own dtype.
@pytest.mark.parametrize(
    ("dtype", "norm_type"),
    [(dtype, 2.0) for dtype in DTYPES.values()]
    + [(dtype, p) for dtype in (torch.float32, torch.float64) for p in (1.0, 3.0)],
)
def test_compat_overflows_and_underflows_where_this_torch_does(dtype, norm_type):
    limits = torch.finfo(dtype)
    lowest, highest = (math.floor(math.log2(one)) for one in (limits.tiny, limits.max))
    for exponent in range(lowest, highest, 1 + (highest - lowest) // 256):
        for size in (1, 2, 10):
            tensor = torch.full((size,), 2.0**exponent, dtype=dtype)
            expected = torch.linalg.vector_norm(tensor, norm_type)
            expected = torch.linalg.vector_norm(expected.view(1), norm_type).item()
            norm = get_total_norm(tensor, norm_type, compat="torch").item()
            told = f"{size} of 2^{exponent}: {norm}, and torch's {expected}"
            # At the ends of the range torch's third powers and roots are up to 60 epsilons off.
            assert norm == expected or (
                0 < expected < math.inf
                and math.isclose(norm, expected, rel_tol=(64 if norm_type == 3 else 4) * limits.eps)
            ), told


def test_compat_has_one_norm_in_all_its_ways():
    ours, theirs = (gradients_of_any_size(torch.bfloat16, 0) for _ in range(2))
    norm = get_total_norm([one.grad for one in ours], compat="torch")
    assert clip_grads_with_norm_(ours, 0.5, norm, compat="torch") is None
    assert same_bits([clip_grad_norm_(theirs, 0.5, compat="torch")], [norm])
    assert same_bits(grads(ours), grads(theirs))
    assert get_total_norm([], compat="torch") == 0


def test_compat_rounds_each_tensor_in_its_own_dtype():
    tensors = [torch.full((3,), 1.001, dtype=torch.bfloat16), torch.full((3,), 1.001)]
    norm = get_total_norm(tensors, compat="torch")
    halves = torch.linalg.vector_norm(tensors[0].double()).bfloat16()
    rest = torch.linalg.vector_norm(tensors[1].double()).float()
    assert same_bits([norm], [torch.linalg.vector_norm(torch.stack([halves.float(), rest]))])
    assert halves.double() ** 2 != 3  # so it has been rounded


def test_compat_raises_where_only_torch_s_norm_overflows():
    huge = parameter(torch.tensor([3e20, 4e20]))
    assert clip_grad_norm_(huge, 1e30, error_if_nonfinite=True) == torch.tensor(5e20)
    with pytest.raises(gradclip.NonfiniteGradientError, match="torch's arithmetic overflows"):
        clip_grad_norm_(huge, 1.0, error_if_nonfinite=True, compat="torch")
    with pytest.raises(gradclip.NonfiniteGradientError, match="torch's arithmetic overflows"):
        get_total_norm(huge.grad, error_if_nonfinite=True, compat="torch")
    assert same_bits([huge.grad], [torch.tensor([3e20, 4e20])])
    assert clip_grad_norm_(huge, 1.0, compat="torch").isinf() and huge.grad.tolist() == [0, 0]


def test_compat_that_is_refused():
    one = parameter(torch.tensor([3.0, 4.0]))
    group = gradclip.Group("compat", 0, 0, 1)
    for more, says in (
        ({"compat": "jax"}, 'compat is "jax"'),
        ({"compat": "torch", "group": group}, "no norm of a group"),
    ):
        with pytest.raises(ValueError, match=says):
            clip_grad_norm_(one, 1.0, **more)
        with pytest.raises(ValueError, match=says):
            get_total_norm(one.grad, **more)
    with pytest.raises(ValueError, match='compat is "jax"'):
        clip_grads_with_norm_(one, 1.0, 5.0, compat="jax")
    assert one.grad.tolist() == [3, 4]


def test_training_is_torchs_within_rounding():
    def losses(clip):
        torch.manual_seed(1)
        model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        data, target = torch.randn(32, 8), torch.randn(32, 1)
        for _ in range(20):
            optimizer.zero_grad()
            loss = torch.nn.functional.mse_loss(model(data), target)
            loss.backward()
            clip(model.parameters(), 0.1)
            optimizer.step()
            yield loss.item()

    assert list(losses(clip_grad_norm_)) == pytest.approx(
        list(losses(torch.nn.utils.clip_grad_norm_)), rel=1e-4
    )
