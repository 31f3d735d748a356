"""Requests as bytes. They are put together by hand, so that a gradient's bytes are copied once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, groupby
from typing import NamedTuple, Optional

from gradclip import _contract
from gradclip.tensor import Declared

# Field numbers 1 (start), 2 (data) and 3 (shared) of both requests, with wire type 2: length and
# bytes.
_START = b"\x0a"
_DATA = b"\x12"
_SHARED = b"\x1a"


class Place(NamedTuple):
    """Where a tensor begins in a registered region, in bytes."""

    token: bytes
    offset: int


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def start_request(start: bytes, tensors: bytes) -> bytes:
    """A request with a start message, in two parts: a message's fields may come in any order."""
    return b"".join((_START, _varint(len(start) + len(tensors)), tensors, start))


def requests(
    tensors: Iterable[Declared], places: Iterable[Optional[Place]], message_bytes: int
) -> Iterator[bytes]:
    """The requests after the first: the tensors one after another, by their places, or as data
    where that is None. What devices have of data is copied before this returns.
    """
    parts: list[Iterable[bytes]] = []
    filled = ((one, place) for one, place in zip(tensors, places) if one.nbytes)
    for token, run in groupby(filled, lambda pair: pair[1] and pair[1].token):
        pairs = list(run)
        if token is None:
            parts.append(data_requests([one.view for one, _ in pairs], message_bytes))
        else:
            offsets = [place.offset for _, place in pairs if place]
            parts.append([_shared_request(token, offsets, [one.nbytes for one, _ in pairs])])
    return chain.from_iterable(parts)


def _shared_request(token: bytes, offsets: Sequence[int], lengths: Sequence[int]) -> bytes:
    """A request with the ranges of a region that are the gradient, in bytes."""
    ranges: bytes = _contract.SharedRanges(
        region=token, offset=offsets, length=lengths
    ).SerializeToString()
    return b"".join((_SHARED, _varint(len(ranges)), ranges))


def data_requests(views: Iterable[memoryview], message_bytes: int) -> Iterator[bytes]:
    """The requests of `data`: the bytes one after another, cut into message_bytes and a rest."""
    parts: list[memoryview] = []
    size = 0
    for view in views:
        begin = 0
        while begin < len(view):
            part = view[begin : begin + message_bytes - size]
            parts.append(part)
            size += len(part)
            begin += len(part)
            if size == message_bytes:
                yield b"".join((_DATA, _varint(size), *parts))
                parts, size = [], 0
    if parts:
        yield b"".join((_DATA, _varint(size), *parts))


class Declarations:
    """Serialised declarations. The last are kept, as a trainer's are the same at each step.

    Thread-safe.
    """

    def __init__(self) -> None:
        self._last: Optional[tuple[list[tuple[object, ...]], bytes]] = None

    def serialise(self, tensors: Sequence[Declared]) -> bytes:
        key: list[tuple[object, ...]] = [
            (one.name, one.dtype, one.shape, one.replica) for one in tensors
        ]
        last = self._last
        if last is not None and last[0] == key:
            return last[1]
        # The field `tensors` has one number in both start messages.
        start = _contract.ComputeNormStart()
        for one in tensors:
            start.tensors.add(name=one.name, dtype=one.dtype, shape=one.shape, replica=one.replica)
        serialised: bytes = start.SerializeToString()
        self._last = (key, serialised)
        return serialised
