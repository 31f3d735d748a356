"""gradclip.numpy against a real server."""

import collections
import math
import socket

import gradclip
import pytest
from golden import CASES, is_exact, number, tensors

np = pytest.importorskip("numpy")

from gradclip.numpy import clip_by_global_norm, global_norm  # noqa: E402

pytestmark = pytest.mark.usefixtures("default_server")

# NumPy itself has no bfloat16.
GOLDEN = [case for case in CASES if all(one["dtype"] != "BF16" for one in case["tensors"])]


def arrays_of(case):
    return [np.frombuffer(data, dtype).reshape(shape) for dtype, shape, data in tensors(case)]


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["name"])
def test_golden_cases(case, client):
    arrays = arrays_of(case)
    p, limit = number(case["norm_type"]), number(case["max_norm"])
    clipped, norm = clip_by_global_norm(arrays, limit, norm_type=p)
    if case["exact_total_norm"] is not None:
        assert is_exact(norm, number(case["exact_total_norm"]), p)
    for new, old in zip(clipped, arrays_of(case)):
        assert new.dtype == old.dtype and new.shape == old.shape
    assert all(
        np.array_equal(a, b, equal_nan=True) for a, b in zip(arrays, arrays_of(case))
    )  # as they were

    client.clip(arrays, limit, norm_type=p, reply="gradient")
    assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(clipped, arrays))


def test_trees_keep_their_form():
    Layer = collections.namedtuple("Layer", "w b")
    tree = {"a": Layer(np.float32([[3]]), None), "b": [np.float64(4), (np.zeros(0, np.float16),)]}
    clipped, norm = clip_by_global_norm(tree, 1, epsilon=0)
    assert norm == 5 == global_norm(tree)
    assert clipped["a"] == Layer(np.float32([[3]]) * np.float32(0.2), None)
    assert clipped["b"][0] == 0.8 and clipped["b"][1][0].shape == (0,)
    assert isinstance(clipped["b"], list) and isinstance(clipped["b"][1], tuple)


def test_new_arrays_come_back_also_where_nothing_is_clipped():
    given = np.float32([3, 4])
    clipped, norm = clip_by_global_norm(given, 9)
    assert norm == 5 and np.array_equal(clipped, given) and not np.shares_memory(clipped, given)


def test_in_place():
    tree = {"w": np.float32([3, 0]), "b": np.asfortranarray(np.float16([[4]]))}
    w = tree["w"]
    assert clip_by_global_norm(tree, 1, epsilon=0, in_place=True) == (tree, 5)
    assert w.tolist() == [float(np.float32(3) * np.float32(0.2)), 0]


def test_arrays_of_any_order_and_byte_order():
    wide = np.arange(12, dtype=">f4").reshape(3, 4).T
    clipped, norm = clip_by_global_norm(wide, 1)
    assert math.isclose(norm, np.linalg.norm(np.arange(12.0)), rel_tol=1e-12)
    assert (
        math.isclose(np.linalg.norm(clipped.astype("f8")), 1, rel_tol=1e-6)
        and clipped.dtype == wide.dtype
    )


def test_policies():
    given = np.float32([1, math.nan])
    with pytest.raises(gradclip.NonfiniteGradientError, match=r"first of them w\.0\[1\]"):
        clip_by_global_norm({"w": [given]}, 1, nonfinite="error")
    assert clip_by_global_norm(given, 1, nonfinite="zero")[0].tolist() == [0, 0]
    assert np.array_equal(clip_by_global_norm(given, 1, nonfinite="skip")[0], given, equal_nan=True)
    clip_by_global_norm(given, 1, nonfinite="zero", in_place=True)
    assert given.tolist() == [0, 0]


def test_what_is_refused():
    with pytest.raises(ValueError, match="w is int64"):
        clip_by_global_norm({"w": np.arange(3)}, 1)
    with pytest.raises(TypeError, match="0 is float"):
        clip_by_global_norm([3.0], 1)
    same = np.float32([3, 4])
    for tree, says in (([same, same], "same memory"), (np.float32(3), "read only")):
        with pytest.raises(ValueError, match=says):
            clip_by_global_norm(tree, 1, in_place=True)


def test_a_server_that_is_not_there_leaves_the_arrays():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    given = np.float32([3, 4])
    with (
        gradclip.connect(f"127.0.0.1:{port}", retries=0) as client,
        pytest.raises(gradclip.ServerUnavailable),
    ):
        clip_by_global_norm(given, 1, in_place=True, client=client)
    assert given.tolist() == [3, 4]


def test_bfloat16_of_ml_dtypes():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    given = np.array([3, 4], ml_dtypes.bfloat16)
    clipped, norm = clip_by_global_norm(given, 1)
    assert norm == 5 and clipped.dtype == ml_dtypes.bfloat16 and float(clipped[0]) == 0.6015625
