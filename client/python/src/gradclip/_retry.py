"""When a call is tried again, and when a group's step is."""

from __future__ import annotations

import dataclasses
import random
import time
from typing import Callable, Optional, TypeVar

from gradclip._servers import Failure, Server, Servers
from gradclip.errors import GradClipError, StepAborted, from_status
from gradclip.group import Group

_FIRST_WAIT = 0.1
_LONGEST_WAIT = 5.0
# All ranks of a step that was aborted are told so within moments.
_FIRST_WAIT_OF_STEP = 0.01
_LONGEST_WAIT_OF_STEP = 1.0

Answer = TypeVar("Answer")


def backoff(failed: int, first: float = _FIRST_WAIT, longest: float = _LONGEST_WAIT) -> float:
    """Seconds to wait after the `failed`th try: doubled with each, and spread.

    So clients that failed together do not come back together.
    """
    return min(first * 2.0 ** min(failed - 1, 30), longest) * random.uniform(0.5, 1)


def end_of(timeout: Optional[float]) -> Optional[float]:
    """The moment, of time.monotonic(), when a call that begins now is to end."""
    return None if timeout is None else time.monotonic() + timeout


def run_step(
    group: Optional[Group],
    tries: Callable[[Optional[Group]], Answer],
    *,
    deadline: Optional[float],
) -> Answer:
    """tries(group), and with the group's next attempt where that was aborted or is over.

    REQUIRES: tries that raise GradClipError changed nothing in the caller's memory.
    """
    attempts = 0
    while True:
        attempts += 1
        try:
            return tries(group)
        except GradClipError as error:
            if group is None or attempts >= group.max_attempts or not _may_go_on(error):
                raise
            wait = backoff(attempts, _FIRST_WAIT_OF_STEP, _LONGEST_WAIT_OF_STEP)
            if deadline is not None and time.monotonic() + wait >= deadline:
                raise
            time.sleep(wait)
            group = dataclasses.replace(group, attempt=group.attempt + 1)


def _may_go_on(error: GradClipError) -> bool:
    """The step was aborted, or this rank comes so late that others have gone on already, which a
    server says in these words."""
    return isinstance(error, StepAborted) or (
        error.code == "FAILED_PRECONDITION" and ": that attempt is over, " in str(error)
    )


def run(
    servers: Servers,
    attempt: Callable[[Server, Optional[float]], Answer],
    *,
    deadline: Optional[float],
    retries: int,
    in_group: bool,
) -> Answer:
    """attempt(server, seconds left), again after UNAVAILABLE, at most `retries` times.

    REQUIRES: an attempt that raises Failure changed nothing in the caller's memory.
    Raises GradClipError.
    """
    instance = ""
    failed = 0
    while True:
        server = None
        try:
            server = servers.take(deadline)
            # A restarted server has forgotten the group's step, which may have been committed.
            if in_group and instance not in ("", server.instance):
                raise Failure(
                    "ABORTED",
                    "the server was restarted amid the step and has forgotten it: whether the step "
                    "was committed is not known. All ranks may go on with the next attempt",
                    server.address,
                )
            instance = server.instance
            rest = None if deadline is None else max(deadline - time.monotonic(), 0.001)
            return attempt(server, rest)
        except Failure as failure:
            failed += 1
            timed_out = failure.code == "DEADLINE_EXCEEDED"
            again = failure.code == "UNAVAILABLE" and failed <= retries
            if server is not None and (timed_out or failure.code == "UNAVAILABLE"):
                servers.lose(server, pass_over=timed_out or failed > 1 or not again)
            if in_group and (timed_out or failure.code == "ABORTED"):
                servers.start_over()
            wait = backoff(failed)
            if not again or (deadline is not None and time.monotonic() + wait >= deadline):
                raise from_status(failure.code, failure.details, failure.server) from None
            time.sleep(wait)
