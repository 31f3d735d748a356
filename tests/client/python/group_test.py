"""gradclip.Group: ranks of a job, as threads."""

import array
import concurrent.futures
import dataclasses
import functools
import math
import time

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


def aborted(address, group):
    """Has the first attempt of the group's step aborted: a rank gives up by its own clock, and asks
    until it hears that the server has noticed."""
    once = dataclasses.replace(group, max_attempts=1)
    with gradclip.connect(address, timeout=0.5) as impatient:
        with pytest.raises(gradclip.StepAborted):
            for _ in range(60):
                with pytest.raises(gradclip.CallTimeout):
                    impatient.compute_norm([array.array("f", [3])], group=once)


def test_an_aborted_attempt_goes_on_with_the_next(client, address):
    group = gradclip.Group("goes-on", 1, 0, 2, max_attempts=3)
    other = dataclasses.replace(group, rank=1)
    aborted(address, group)
    tensors = array.array("f", [3]), array.array("f", [4])
    a, b = together(
        lambda: client.compute_norm([tensors[0]], group=group),
        lambda: client.compute_norm([tensors[1]], group=other),
    )
    assert a.total_norm == b.total_norm == 5
    assert a.attempt == b.attempt == 1
    # The next step begins with the attempt that its group says.
    group, other = (dataclasses.replace(one, step=2) for one in (group, other))
    a, b = together(
        lambda: client.clip([tensors[0]], 1, reply="gradient", group=group),
        lambda: client.clip([tensors[1]], 1, group=other),
    )
    assert a.norm.attempt == b.norm.attempt == 0
    assert tensors[0][0] == pytest.approx(0.6) and tensors[1][0] == 4


def test_a_rank_that_is_late_goes_on_where_the_others_are(client, address):
    group = gradclip.Group("late", 1, 0, 2, max_attempts=3)
    aborted(address, group)

    def late():
        time.sleep(0.3)  # the other one waits in the second attempt
        other = dataclasses.replace(group, rank=1)
        return client.clip([array.array("f", [4])], 1, group=other)

    a, b = together(lambda: client.clip([array.array("f", [3])], 1, group=group), late)
    assert a.norm.total_norm == b.norm.total_norm == 5
    assert a.norm.attempt == b.norm.attempt == 1


def test_attempts_end_with_the_last_that_is_allowed(client, address):
    group = gradclip.Group("one-attempt", 1, 0, 2)
    aborted(address, group)
    with pytest.raises(gradclip.StepAborted, match="attempt 0"):
        client.compute_norm([array.array("f", [3])], group=group)
    group = dataclasses.replace(group, job="two-attempts", max_attempts=2)
    aborted(address, group)
    aborted(address, dataclasses.replace(group, attempt=1, max_attempts=1))
    with pytest.raises(gradclip.StepAborted, match="attempt 1"):
        client.compute_norm([array.array("f", [3])], group=group)


def test_other_errors_of_a_group_end_the_call(client):
    group = gradclip.Group("no-more", 1, 0, 2, timeout=0.2, max_attempts=5)
    with pytest.raises(gradclip.CallTimeout, match="attempt 0"):
        client.compute_norm([array.array("f", [3])], group=group)


def test_attempts_and_the_call_s_timeout(address):
    """The timeout is of all attempts together."""
    group = gradclip.Group("ends", 1, 0, 2, max_attempts=1000)
    aborted(address, group)
    begin = time.monotonic()
    with gradclip.connect(address, timeout=1) as client, pytest.raises(gradclip.CallTimeout):
        client.compute_norm([array.array("f", [3])], group=group)
    assert time.monotonic() - begin < 10


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"job": ""}, "job has 0 bytes"),
        ({"rank": 2}, "rank is 2; it must be 0 to 1"),
        ({"world_size": 0}, "world_size is 0"),
        ({"step": -1}, "step is -1"),
        ({"timeout": 0}, "timeout is 0"),
        ({"max_attempts": 0}, "max_attempts is 0; it must be 1 to"),
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
