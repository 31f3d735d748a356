"""Memory that a server on this host reads itself, handed over its memory socket.

server/shm/PROTOCOL.md has the protocol.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import socket
import struct
import time
from collections.abc import Collection
from typing import Optional, Protocol

from gradclip._servers import Server
from gradclip.security import is_on_this_host
from gradclip.tensor import Declared

_ALIGNMENT = 64
_REQUEST = struct.Struct("<8sIHHQQ")
_VERSION, _READ_ONLY = 1, 1
MEMFD, CUDA = 1, 2
_ANSWER = struct.Struct("<II16s")
_PEER = struct.Struct("3i")  # of SO_PEERCRED: process, user, group
# Of a registration: about 1 s per GiB, after those of others.
_LONGEST = 60.0


class Refused(Exception):
    """Why a server does not read the memory."""


class Unreachable(Refused):
    """Nobody answers at the memory socket: the server may be gone."""


def lay_out(sizes: list[int]) -> tuple[list[int], int]:
    """Offsets of tensors of so many bytes each, aligned to 64; and the bytes in all, at least 1."""
    offsets, end = [], 0
    for size in sizes:
        offsets.append(end)
        end += -(-size // _ALIGNMENT) * _ALIGNMENT
    return offsets, max(end, 1)


def registration(kind: int, size: int) -> bytes:
    """The first 32 bytes of a registration, of the kind MEMFD or CUDA, and `size` bytes."""
    return _REQUEST.pack(b"GRADCLIP", _VERSION, kind, _READ_ONLY, size, 0)


class Memory(Protocol):
    """What a region registers. The memory stays while something refers to it."""

    @property
    def size(self) -> int:
        """In bytes."""

    def write(self, tensors: list[Declared], offsets: list[int]) -> None:
        """Copies tensors that have elements to these bytes. REQUIRES: it is not closed."""

    def registration(self) -> tuple[bytes, list[int]]:
        """The message, and the descriptors that go with it. Raises OSError once it is closed."""

    def leave(self, connection: socket.socket) -> None:
        """Ends the connection over which the memory was registered."""

    def close(self) -> None:
        """It is registered no more."""


class HostMemory:
    """A sealed memfd, zeros at first. Raises OSError where the system has not as much memory.

    mapped: its bytes.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._file = -1
        self._file = os.memfd_create("gradclip", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self._file, size)
            fcntl.fcntl(
                self._file,
                fcntl.F_ADD_SEALS,
                fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL,
            )
            self.mapped = mmap.mmap(self._file, size)
        except BaseException:
            self.close()
            raise
        try:
            self.mapped.madvise(mmap.MADV_HUGEPAGE)
        except (AttributeError, OSError):
            pass  # a system without them

    def write(self, tensors: list[Declared], offsets: list[int]) -> None:
        memory = memoryview(self.mapped)
        for one, offset in zip(tensors, offsets):
            memory[offset : offset + one.nbytes] = one.view

    def registration(self) -> tuple[bytes, list[int]]:
        return registration(MEMFD, self.size), [self._file]

    def leave(self, connection: socket.socket) -> None:
        connection.close()

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __del__(self) -> None:
        self.close()


class Region:
    """Memory and its registration with the server that was met last.

    Belongs to one thread at a time.

    server_uids: users, beside root and one's own, as whom a server may run that is given the
        memory.
    """

    def __init__(self, memory: Memory, server_uids: Collection[int]) -> None:
        self.memory = memory
        self._uids = {0, os.geteuid(), *server_uids}
        self._connection: Optional[socket.socket] = None
        self._token = b""
        self._instance = ""

    def token(self, server: Server, rest: Optional[float]) -> bytes:
        """The token by which the server knows the memory, which is registered where it has to be.

        Raises Refused or Unreachable.
        """
        if (
            self._connection is None
            or self._instance != server.instance
            or not is_open(self._connection)
        ):
            self.forget()
            self._register(server, _LONGEST if rest is None else min(rest, _LONGEST))
            self._instance = server.instance
        return self._token

    def forget(self) -> None:
        """Ends the registration: the token is void."""
        if self._connection is not None:
            self.memory.leave(self._connection)
            self._connection = None

    def close(self) -> None:
        """Ends the registration for good."""
        self.forget()
        self.memory.close()

    def __del__(self) -> None:
        self.close()

    def _register(self, server: Server, timeout: float) -> None:
        if not server.memory_socket:
            raise Refused("the server has no --memory-socket")
        if not is_on_this_host(server.address):
            raise Refused("the server's address is not one of this host")
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            deadline = time.monotonic() + timeout
            connection.settimeout(timeout)
            connection.connect(server.memory_socket)
            # Whoever listens there gets the memory.
            peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
            user = _PEER.unpack(peer)[1]
            if user not in self._uids:
                raise Refused(
                    f"user {user} listens at {server.memory_socket}; "
                    "name it in server_uids if that is the server's"
                )
            request, descriptors = self.memory.registration()
            sent = 0
            if descriptors:
                sent = socket.send_fds(connection, [request], descriptors)
            connection.sendall(request[sent:])
            status, length, token = _ANSWER.unpack(_receive(connection, _ANSWER.size, deadline))
            if status != 0:
                raise Refused(_receive(connection, length, deadline).decode(errors="replace"))
        except OSError as error:
            connection.close()
            raise Unreachable(
                f"its memory socket {server.memory_socket} can't be used: {error}"
            ) from None
        except BaseException:
            connection.close()
            raise
        connection.settimeout(None)
        self._connection, self._token = connection, token


def _receive(connection: socket.socket, size: int, deadline: float) -> bytes:
    received = b""
    while len(received) < size:
        connection.settimeout(max(deadline - time.monotonic(), 0.001))
        part = connection.recv(size - len(received))
        if not part:
            raise ConnectionError("it was closed before the answer")
        received += part
    return received


def is_open(connection: socket.socket) -> bool:
    """The server sends nothing after its answer, so what can be read is the connection's end."""
    try:
        connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False
