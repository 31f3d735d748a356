"""When a call is tried again."""

from __future__ import annotations

import random
import time
from typing import Callable, Optional, TypeVar

from gradclip._servers import Failure, Server, Servers
from gradclip.errors import from_status

_FIRST_WAIT = 0.1
_LONGEST_WAIT = 5.0

Answer = TypeVar("Answer")


def backoff(failed: int) -> float:
    """Seconds to wait after the `failed`th try: doubled with each, and spread.

    So clients that failed together do not come back together.
    """
    return min(_FIRST_WAIT * 2.0 ** (failed - 1), _LONGEST_WAIT) * random.uniform(0.5, 1)


def run(
    servers: Servers,
    attempt: Callable[[Server, Optional[float]], Answer],
    *,
    timeout: Optional[float],
    retries: int,
    in_group: bool,
) -> Answer:
    """attempt(server, seconds left), again after UNAVAILABLE, at most `retries` times.

    REQUIRES: an attempt that raises Failure changed nothing in the caller's memory.
    Raises GradClipError.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
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
