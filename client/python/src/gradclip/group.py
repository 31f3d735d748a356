"""One norm for all ranks of a job whose gradient is spread over several processes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Optional

from gradclip import _contract

_LONGEST_JOB = 256


@dataclass(frozen=True)
class Group:
    """One rank's part in one step of a job.

    All ranks get one norm and one coefficient. Each sends its own tensors; those that another rank
    counts too are `replica` at all but one. max_norm, norm_type, pre_scale, epsilon and the
    non-finite policy must be the same at all ranks.

    job: 1 to 256 bytes of UTF-8.
    step: the job's step; each is answered once. dataclasses.replace(group, step=n) makes the next.
    rank: 0 to world_size - 1.
    generation: raised when the job restarts; older ones are refused.
    attempt: raised by all ranks to try a step again that ended with StepAborted or CallTimeout.
    timeout: seconds from the step's first arrival; None for the server's limit.
    job_secret: whoever opens the job fixes it.
    max_attempts: with more than 1, a call whose attempt ends with StepAborted, or is over as other
        ranks have gone on already, goes on with the next by itself, at most so many in all. All
        ranks should give the same.

    Raises ValueError for a value outside its range.
    """

    job: str
    step: int
    rank: int
    world_size: int
    generation: int = 0
    attempt: int = 0
    timeout: Optional[float] = None
    job_secret: bytes = b""
    max_attempts: int = 1

    def __post_init__(self) -> None:
        if not 1 <= len(self.job.encode()) <= _LONGEST_JOB:
            raise ValueError(
                f"job has {len(self.job.encode())} bytes of UTF-8; it must have 1 to {_LONGEST_JOB}"
            )
        for name, least, most in (
            ("world_size", 1, 2**32 - 1),
            ("rank", 0, self.world_size - 1),
            ("step", 0, 2**64 - 1),
            ("generation", 0, 2**64 - 1),
            ("attempt", 0, 2**32 - 1),
            ("max_attempts", 1, 2**31 - 1),
        ):
            value = getattr(self, name)
            if not least <= value <= most:
                raise ValueError(f"{name} is {value}; it must be {least} to {most}")
        if self.timeout is not None and not 1e-9 <= self.timeout <= 3e11:
            raise ValueError(f"timeout is {self.timeout} s; it must be > 0 and finite, or None")

    @classmethod
    def from_environment(cls, job: str, step: int, **more: Any) -> Group:
        """A group with rank and world size from RANK and WORLD_SIZE, as torchrun sets them.

        more: further fields. Raises ValueError where a variable is missing or no number.
        """
        return cls(job, step, _number("RANK"), _number("WORLD_SIZE"), **more)


def _number(variable: str) -> int:
    text = os.environ.get(variable, "")
    if not text.strip().isdigit():
        raise ValueError(
            f'the variable {variable} is "{text}", not a number; '
            "a launcher such as torchrun sets it"
        )
    return int(text)


def to_message(group: Group) -> Any:
    """The contract's Group."""
    message = _contract.Group(
        job=group.job,
        generation=group.generation,
        step=group.step,
        rank=group.rank,
        world_size=group.world_size,
        attempt=group.attempt,
        job_secret=group.job_secret,
    )
    if group.timeout is not None:
        message.timeout.FromNanoseconds(round(group.timeout * 1e9))
    return message
