"""gradclip.jax against a real server, beside optax."""

import concurrent.futures
import functools
import os
import socket
import subprocess
import sys

import gradclip
import pytest
from golden import CASES, number, tensors

jax = pytest.importorskip("jax")
optax = pytest.importorskip("optax")

import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from gradclip.jax import ClipByGlobalNormState, clip_by_global_norm  # noqa: E402

pytestmark = pytest.mark.usefixtures("default_server")

JIT = pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])


@pytest.fixture
def x64():
    """JAX has float64."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


def clipped(transformation, updates, jit=True):
    update = jax.jit(transformation.update) if jit else transformation.update
    return update(updates, transformation.init(updates))[0]


def close(a, b, **tolerance):
    """Both trees have one form, and leaves of the same dtype that are nearly equal."""
    assert jax.tree_util.tree_structure(a) == jax.tree_util.tree_structure(b)
    for x, y in zip(jax.tree_util.tree_leaves(a), jax.tree_util.tree_leaves(b)):
        assert x.dtype == y.dtype and x.shape == y.shape
        np.testing.assert_allclose(np.asarray(x, "f8"), np.asarray(y, "f8"), **tolerance)


def unused_address():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{listener.getsockname()[1]}"


@JIT
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_golden_cases_have_the_bits_of_the_server(case, jit, client, x64):
    arrays = [
        np.frombuffer(data, jnp.dtype(dtype)).reshape(shape) for dtype, shape, data in tensors(case)
    ]
    p, limit = number(case["norm_type"]), number(case["max_norm"])
    new = clipped(
        clip_by_global_norm(limit, norm_type=p, epsilon=1e-6),
        [jnp.asarray(one) for one in arrays],
        jit,
    )
    sent = [gradclip.Tensor(bytearray(one.tobytes()), one.dtype.name, one.shape) for one in arrays]
    client.clip(sent, limit, norm_type=p, reply="gradient")
    for ours, its, old in zip(new, sent, arrays):
        its = np.frombuffer(its.data, old.dtype).reshape(old.shape)
        ours = np.asarray(ours)
        assert ours.dtype == old.dtype and ours.shape == old.shape
        # Subnormal numbers are 0 to JAX on the CPU.
        least = float(jnp.finfo(old.dtype).tiny)
        same = (ours == its) | (np.isnan(ours) & np.isnan(its))
        assert np.all(same | ((np.abs(its) <= least) & (ours == 0)))


TREES = {
    "float32": {"w": jnp.float32([[3, 0], [-4, 12]]), "b": jnp.float32(5)},
    "mixed": {"w": jnp.arange(6, dtype=jnp.float16), "b": (jnp.ones(3, jnp.bfloat16), [])},
    "None": {"w": None, "b": [jnp.float32([3, 4]), None]},
    "one": jnp.float32([3, 4]),
    "empty": {},
    "no elements": [jnp.zeros((0, 2), jnp.float32)],
    "zeros": [jnp.zeros(3, jnp.float32)],
    "nan": {"w": jnp.float32([1, float("nan")]), "b": jnp.float32([2])},
    "infinity": {"w": jnp.float32([1, float("inf")]), "b": jnp.float32([2])},
}


@JIT
@pytest.mark.parametrize("max_norm", [0.5, 100])
@pytest.mark.parametrize("tree", TREES.values(), ids=TREES.keys())
def test_it_does_what_optax_does(tree, max_norm, jit):
    ours = clipped(clip_by_global_norm(max_norm), tree, jit)
    close(ours, clipped(optax.clip_by_global_norm(max_norm), tree, jit), rtol=0.01)


def test_float32_is_as_near_to_optax_as_rounding_allows():
    tree = {"w": jnp.float32(np.random.default_rng(1).normal(size=(300, 70)))}
    ours = clipped(clip_by_global_norm(1.0), tree)
    close(ours, clipped(optax.clip_by_global_norm(1.0), tree), rtol=1e-6)


def test_what_is_not_clipped_keeps_its_bits():
    given = jnp.asarray(np.array([1, 1 << 31, 0x3F800001], np.uint32).view(np.float32))
    new = np.asarray(clipped(clip_by_global_norm(9.0), given))
    assert new.view(np.uint32).tolist() == np.asarray(given).view(np.uint32).tolist()


@JIT
def test_norms_beyond_float32(jit):
    """optax's is infinite, and leaves 0. Also without JAX's float64."""
    given = [jnp.float32([3e38, -4e37]), jnp.bfloat16([2e38])]
    coefficient = 1e-3 / np.sqrt(sum(np.sum(np.asarray(one).astype("f8") ** 2) for one in given))
    assert coefficient < np.finfo(np.float32).tiny
    expected = [(np.asarray(one).astype("f8") * coefficient).astype(one.dtype) for one in given]
    for a, b in zip(clipped(clip_by_global_norm(1e-3), given, jit), expected):
        assert a.dtype == b.dtype and np.asarray(a).tolist() == b.tolist()


def test_the_readme_s_way_trains():
    w = {"w": jnp.float32([1, 2, 3])}
    results = []
    for clip in (clip_by_global_norm(0.1), optax.clip_by_global_norm(0.1)):
        optimizer = optax.chain(clip, optax.sgd(0.5, momentum=0.9))

        @jax.jit
        def step(params, state, optimizer=optimizer):
            grads = jax.grad(lambda p: jnp.sum(p["w"] ** 2))(params)
            updates, state = optimizer.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        params, state = w, optimizer.init(w)
        for _ in range(5):
            params, state = step(params, state)
        results.append(params)
    close(*results, rtol=1e-5)
    assert results[0]["w"][0] < 1


def test_in_loops_and_branches_and_under_vmap():
    transformation = clip_by_global_norm(1.0)
    rows = jnp.float32([[3, 4], [0, 0.5], [6, 8], [3e38, 3e38]])
    expected = np.float32([[0.6, 0.8], [0, 0.5], [0.6, 0.8], [0.5**0.5, 0.5**0.5]])

    def one(row):
        return transformation.update(row, optax.EmptyState())[0]

    def scanned(rows):
        return jax.lax.scan(lambda carry, row: (carry, one(row)), 0, rows)[1]

    for new in (jax.jit(scanned)(rows), jax.vmap(one)(rows), jax.jit(jax.vmap(one))(rows)):
        np.testing.assert_allclose(new, expected, rtol=1e-6)
    where = jax.jit(lambda which, row: jax.lax.cond(which, one, lambda row: row, row))
    np.testing.assert_allclose(where(True, rows[0]), expected[0], rtol=1e-6)
    assert where(False, rows[0]).tolist() == [3, 4]


def test_hyperparameters_that_optax_injects():
    given = jnp.float32([3, 4])
    schedule = optax.linear_schedule(1.0, 2.0, 1)
    transformation = optax.inject_hyperparams(clip_by_global_norm)(max_norm=schedule)
    update, state = jax.jit(transformation.update), transformation.init(given)
    for norm in (1, 2):
        new, state = update(given, state)
        assert np.linalg.norm(new) == pytest.approx(norm, rel=1e-6)


def test_constants_are_sent_when_the_function_runs_not_when_it_is_traced():
    group = gradclip.Group("jax-constants", 0, 0, 1)
    transformation = clip_by_global_norm(1, group=group)
    given, state = jnp.float32([3, 4]), transformation.init(None)
    lowered = jax.jit(lambda: transformation.update(given, state)[0]).lower()
    # Step 0 has not been asked for yet: another gradient is taken.
    clipped(clip_by_global_norm(1, group=group), jnp.float32([7, 7]), jit=False)
    with pytest.raises(RuntimeError, match="GradClipError"):
        jax.block_until_ready(lowered.compile()())


@JIT
def test_policies(jit):
    given = {"w": [jnp.float32([1, float("nan")])]}
    assert clipped(clip_by_global_norm(1, nonfinite="zero"), given, jit)["w"][0].tolist() == [0, 0]
    kept = clipped(clip_by_global_norm(1, nonfinite="skip"), given, jit)["w"][0]
    assert np.array_equal(kept, given["w"][0], equal_nan=True)


def test_errors_are_the_client_s():
    given = {"w": [jnp.float32([1, float("nan")])]}
    with pytest.raises(gradclip.NonfiniteGradientError, match=r"first of them w\.0\[1\]"):
        clipped(clip_by_global_norm(1, nonfinite="error"), given, jit=False)
    with (
        gradclip.connect(unused_address(), retries=0) as client,
        pytest.raises(gradclip.ServerUnavailable),
    ):
        clipped(clip_by_global_norm(1, client=client), given, jit=False)


def test_under_jit_jax_s_error_names_the_client_s():
    given = {"w": [jnp.float32([1, float("nan")])]}
    with pytest.raises(RuntimeError, match=r"NonfiniteGradientError(.|\n)*first of them w\.0\[1\]"):
        jax.block_until_ready(clipped(clip_by_global_norm(1, nonfinite="error"), given))
    with gradclip.connect(unused_address(), retries=0) as client:
        with pytest.raises(RuntimeError, match="ServerUnavailable(.|\n)*nobody answers"):
            jax.block_until_ready(clipped(clip_by_global_norm(1, client=client), given))
    # The next call is well.
    assert clipped(clip_by_global_norm(1), jnp.float32([0, 2])).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"max_norm": -1}, "max_norm is -1"),
        ({"max_norm": float("nan")}, "max_norm is nan"),
        ({"norm_type": 0}, "norm_type is 0"),
        ({"epsilon": -1}, "epsilon is -1"),
        ({"nonfinite": "no"}, 'nonfinite is "no"'),
    ],
)
def test_arguments_outside_their_ranges_are_refused(arguments, says):
    with pytest.raises(ValueError, match=says):
        clip_by_global_norm(**{"max_norm": 1, **arguments})


@JIT
def test_other_dtypes_are_refused(jit):
    with pytest.raises(ValueError, match="update w.0 is int32"):
        clipped(clip_by_global_norm(1), {"w": (jnp.arange(3),)}, jit)


@JIT
def test_ranks_of_a_job_get_one_norm_step_by_step(jit):
    def rank(number):
        group = gradclip.Group(f"jax-{jit}", 5, number, 2, timeout=30)
        transformation = clip_by_global_norm(1, group=group)
        # One rank has nothing in some steps.
        given = [jnp.float32([3])] if number == 0 else []
        update = jax.jit(transformation.update) if jit else transformation.update
        state = transformation.init(given)
        results = []
        for _ in range(3):
            new, state = update(given, state)
            results.append([one.tolist() for one in new])
        assert isinstance(state, ClipByGlobalNormState) and int(state.step) == 3
        return results

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        alone, empty = pool.map(rank, [0, 1])
    assert alone == [[[1.0]]] * 3 and empty == [[]] * 3


def test_the_group_s_steps_are_asked_for_in_order():
    """Also by a loop, whose updates do not depend on each other."""
    transformation = clip_by_global_norm(1, group=gradclip.Group("jax-loop", 0, 0, 1))
    given = jnp.float32([[3, 4]] * 5)

    def body(state, one):
        new, state = transformation.update(one, state)
        return state, new

    state, new = jax.jit(functools.partial(jax.lax.scan, body))(transformation.init(None), given)
    assert int(state.step) == 5 and new.shape == (5, 2)
    # Step 4 was the last: another gradient for it is refused, and step 5 is taken.
    again = gradclip.jax.clip_by_global_norm(1, group=gradclip.Group("jax-loop", 4, 0, 1))
    with pytest.raises(gradclip.GradClipError):
        clipped(again, jnp.float32([7, 7]), jit=False)
    transformation.update(given[0], state)


def test_gradients_that_are_spread_over_devices(address):
    """In a process of its own, as JAX makes its devices once."""
    program = """
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import gradclip
from gradclip.jax import clip_by_global_norm
devices = jax.devices()
assert len(devices) == 2
spread = NamedSharding(Mesh(np.array(devices), ("x",)), PartitionSpec("x"))
given = jax.device_put(np.arange(8, dtype=np.float32), spread)
for group in (None, gradclip.Group("jax-spread", 0, 0, 1)):
    transformation = clip_by_global_norm(1, group=group)
    new, state = jax.jit(transformation.update)(given, transformation.init(given))
    np.testing.assert_allclose(new, np.arange(8) / 140**0.5, rtol=1e-6)
"""
    environment = {
        **os.environ,
        "GRADCLIP_SERVER": address,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "JAX_PLATFORMS": "cpu",
    }
    subprocess.run([sys.executable, "-c", program], env=environment, check=True, timeout=120)
