"""What calls answer with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TensorNorm:
    """Of one tensor, pre_scale included."""

    norm: float
    nonfinite_elements: int
    zero_elements: int


@dataclass(frozen=True)
class NormAnswer:
    """A gradient's norm, before clipping, pre_scale included.

    nonfinite_elements: NaN and infinity in this caller's tensors.
    first_nonfinite: "name[flat index]" of the first, empty where there is none.
    tensors: with per_tensor, one for each tensor, in order; else empty.
    backend: what computed it, such as "cpu/avx2".
    group_nonfinite_elements: the same over all ranks.
    attempt: of the group's step, that was answered.
    """

    total_norm: float
    nonfinite_elements: int
    first_nonfinite: str
    tensors: tuple[TensorNorm, ...]
    backend: str
    group_nonfinite_elements: int
    attempt: int = 0


@dataclass(frozen=True)
class ClipAnswer:
    """What clipping does.

    coefficient: what every element is multiplied by: pre_scale * min(1, max_norm / (total_norm +
        epsilon)).
    clipped: total_norm + epsilon is over max_norm.
    skipped: the norm is not finite and the policy "skip" (coefficient 1) or "zero" (coefficient 0:
        elements are assigned 0, as multiplying would leave NaN).
    gradient_follows: the server sent the clipped bytes, and they were written to the tensors.
    """

    norm: NormAnswer
    coefficient: float
    clipped: bool
    skipped: bool
    gradient_follows: bool


@dataclass(frozen=True)
class Backend:
    """One of a server's backends. detail: what it runs on, or why it can't be used."""

    name: str
    usable: bool
    detail: str


@dataclass(frozen=True)
class ServerInfo:
    """What a server is and allows. instance: random per start of the server."""

    version: str
    backends: tuple[Backend, ...]
    max_message_bytes: int
    max_call_bytes: int
    memory_budget_bytes: int
    memory_socket: str
    max_tensors: int
    instance: str


def norm_answer(message: Any, attempt: int) -> NormAnswer:
    """From the contract's NormResult."""
    tensors = tuple(
        TensorNorm(one.norm, one.nonfinite_elements, one.zero_elements) for one in message.tensors
    )
    return NormAnswer(
        message.total_norm,
        message.nonfinite_elements,
        message.first_nonfinite,
        tensors,
        message.backend,
        message.group_nonfinite_elements,
        attempt,
    )


def clip_answer(message: Any, attempt: int) -> ClipAnswer:
    """From the contract's ClipResult."""
    return ClipAnswer(
        norm_answer(message.norm, attempt),
        message.coefficient,
        message.clipped,
        message.skipped,
        message.gradient_follows,
    )


def server_info(message: Any) -> ServerInfo:
    """From the contract's GetServerInfoResponse."""
    backends = tuple(Backend(one.name, one.usable, one.detail) for one in message.backends)
    return ServerInfo(
        message.version,
        backends,
        message.max_message_bytes,
        message.max_call_bytes,
        message.memory_budget_bytes,
        message.memory_socket,
        message.max_tensors,
        message.instance,
    )
