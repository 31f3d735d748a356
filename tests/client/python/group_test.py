"""gradclip.Group: ranks of a job, as threads."""

import array
import concurrent.futures
import dataclasses
import functools
import math

import gradclip
import pytest


def together(*calls):
    """The results, or exceptions, of calls at once."""
    with concurrent.futures.ThreadPoolExecutor(len(calls)) as pool:
        futures = [pool.submit(call) for call in calls]
        return [future.exception() or future.result() for future in futures]


def test_all_ranks_get_one_norm(client):
    for step in range(3):
        group = gradclip.Group("one-norm", step, 0, 2)
        other = dataclasses.replace(group, rank=1)
        a, b = together(
            functools.partial(client.clip, [array.array("f", [3])], 1, group=group),
            functools.partial(client.clip, [array.array("f", [4])], 1, group=other),
        )
        assert a.norm.total_norm == b.norm.total_norm == 5
        assert a.coefficient == b.coefficient == 1 / (5 + 1e-6)


def test_a_rank_without_tensors_takes_part(client):
    group = gradclip.Group("empty-rank", 0, 0, 2)
    a, b = together(
        lambda: client.compute_norm([array.array("f", [3, 4])], group=group),
        lambda: client.compute_norm([], group=dataclasses.replace(group, rank=1)),
    )
    assert a.total_norm == b.total_norm == 5


def test_ranks_that_disagree_are_told_on_what(client):
    group = gradclip.Group("disagree", 0, 0, 2)
    errors = together(
        lambda: client.clip([array.array("f", [3])], 1, group=group),
        lambda: client.clip([array.array("f", [4])], 2, group=dataclasses.replace(group, rank=1)),
    )
    for error in errors:
        assert isinstance(error, gradclip.GradClipError) and error.code == "FAILED_PRECONDITION"
        assert not isinstance(error, gradclip.NonfiniteGradientError)
        assert "max_norm" in str(error)


def test_ranks_that_disagree_on_the_policy_have_no_nonfinite_gradient(client):
    group = gradclip.Group("policies", 0, 0, 2)
    errors = together(
        lambda: client.clip([array.array("f", [3])], 1, nonfinite="error", group=group),
        lambda: client.clip([array.array("f", [4])], 1, group=dataclasses.replace(group, rank=1)),
    )
    for error in errors:
        assert type(error) is gradclip.GradClipError and error.code == "FAILED_PRECONDITION"


def test_a_missing_rank_is_named_at_the_timeout_and_the_next_attempt_goes_on(client):
    group = gradclip.Group("missing", 7, 0, 2, timeout=0.2)
    with pytest.raises(gradclip.CallTimeout, match="rank"):
        client.clip([array.array("f", [3])], 1, group=group)
    again = dataclasses.replace(group, attempt=1, timeout=None)
    a, b = together(
        lambda: client.clip([array.array("f", [3])], 1, group=again),
        lambda: client.clip([array.array("f", [4])], 1, group=dataclasses.replace(again, rank=1)),
    )
    assert a.norm.total_norm == b.norm.total_norm == 5


def test_one_rank_s_nan_is_known_to_all(client):
    group = gradclip.Group("nan", 0, 0, 2, job_secret=b"secret")
    errors = together(
        lambda: client.clip([array.array("f", [3])], 1, nonfinite="error", group=group),
        lambda: client.clip(
            [array.array("f", [math.nan])],
            1,
            nonfinite="error",
            group=dataclasses.replace(group, rank=1),
        ),
    )
    assert [type(error) for error in errors] == [gradclip.NonfiniteGradientError] * 2
    with pytest.raises(gradclip.AccessError):
        client.compute_norm([], group=dataclasses.replace(group, step=1, job_secret=b"guessed"))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"job": ""}, "job has 0 bytes"),
        ({"rank": 2}, "rank is 2; it must be 0 to 1"),
        ({"world_size": 0}, "world_size is 0"),
        ({"step": -1}, "step is -1"),
        ({"timeout": 0}, "timeout is 0"),
    ],
)
def test_fields_outside_their_ranges_are_refused(fields, says):
    with pytest.raises(ValueError, match=says):
        gradclip.Group(**{"job": "j", "step": 0, "rank": 0, "world_size": 2, **fields})


def test_rank_and_world_size_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert gradclip.Group.from_environment("j", 5, attempt=1) == gradclip.Group(
        "j", 5, 3, 8, attempt=1
    )
    monkeypatch.delenv("RANK")
    with pytest.raises(ValueError, match="RANK"):
        gradclip.Group.from_environment("j", 5)
