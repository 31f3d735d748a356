"""CUDA memory of one's own, which a server on this host reads by its IPC handle.

server/shm/PROTOCOL.md has the protocol. The memory is the driver's and not torch's, whose allocator
gives parts of one allocation to others, frees it while a server has it open, and has no handle at
all where its segments are expandable.

Only what gradclip.torch uses imports this.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import socket
import time
import weakref
from collections.abc import Iterator
from typing import Any, Optional

import torch
from torch import Tensor

from gradclip._region import CUDA, is_open, registration
from gradclip._torch_bytes import host_bytes, view_of
from gradclip.tensor import Declared, number_of

# CUDA shares memory in blocks of so many bytes; what is a multiple of it shares nothing else.
_BLOCK = 2 << 20
_HANDLE_BYTES = 64
_UUID_BYTES = 16
# Seconds that a server is given to let go of memory.
_PATIENCE = 5.0


class CudaError(OSError):
    """What the driver said, with CUDA's name for it."""


def device_of(tensor: Tensor) -> Optional[int]:
    """The CUDA device that has the tensor, as torch numbers it; None for any other."""
    return tensor.device.index if tensor.is_cuda else None


def synchronise(device: int) -> None:
    """Waits for all that was queued on this thread's stream of the device."""
    stream: Any = torch.cuda.current_stream(device)
    stream.synchronize()


def declare(tensor: Tensor, dtype: str, device: int) -> Declared:
    """A tensor on a device, as calls take it."""
    return Declared(
        "",
        number_of(dtype),
        tuple(tensor.shape),
        False,
        tensor.numel() * tensor.element_size(),
        lambda: host_bytes(tensor),
        device,
        tensor,
    )


class Driver:
    """A CUDA driver. library: its functions, as of ctypes.CDLL."""

    def __init__(self, library: Any) -> None:
        self._library = library
        self.call("cuInit", ctypes.c_uint(0))

    def has(self, name: str) -> bool:
        return hasattr(self._library, name)

    def call(self, name: str, *arguments: Any) -> None:
        """Raises CudaError."""
        if not self.has(name):
            raise CudaError(f"the driver has no {name}")
        status = getattr(self._library, name)(*arguments)
        if status == 0:
            return
        text = ctypes.c_char_p()
        self._library.cuGetErrorName(ctypes.c_int(status), ctypes.byref(text))
        raise CudaError(f"{name}: {(text.value or b'an error without a name').decode()} ({status})")

    @contextlib.contextmanager
    def current(self, context: ctypes.c_void_p) -> Iterator[None]:
        """The context is this thread's."""
        self.call("cuCtxPushCurrent_v2", context)
        try:
            yield
        finally:
            self.call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))


@functools.cache
def _driver() -> Driver:
    return Driver(ctypes.CDLL("libcuda.so.1"))


class _Allocation:
    """Memory of a device, freed with this object once the servers that had it have let go.

    handle: its cudaIpcMemHandle_t. uuid: the device's.
    held: half-closed connections over which it was registered; a server ends its side of one when
        no call uses the memory any more.
    """

    def __init__(self, driver: Driver, device: int, size: int) -> None:
        number = ctypes.c_int()
        driver.call("cuDeviceGet", ctypes.byref(number), ctypes.c_int(device))
        uuid = ctypes.create_string_buffer(_UUID_BYTES)
        # The second is newer, and tells parts of a GPU (MIG) apart.
        version = "_v2" if driver.has("cuDeviceGetUuid_v2") else ""
        driver.call(f"cuDeviceGetUuid{version}", uuid, number)
        handle = ctypes.create_string_buffer(_HANDLE_BYTES)
        address = ctypes.c_uint64()
        # The primary context, which is torch's.
        context = ctypes.c_void_p()
        driver.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), number)
        try:
            with driver.current(context):
                driver.call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(size))
                try:
                    driver.call("cuIpcGetMemHandle", handle, address)
                except CudaError:
                    driver.call("cuMemFree_v2", address)
                    raise
        except CudaError:
            driver.call("cuDevicePrimaryCtxRelease_v2", number)
            raise
        self.uuid, self.handle = uuid.raw, handle.raw
        self.held: list[socket.socket] = []
        self.__cuda_array_interface__ = {
            "version": 2,
            "shape": (size,),
            "typestr": "|u1",
            "data": (address.value, False),
        }
        free = weakref.finalize(
            self, _free, driver, number, context, address, self.held, os.getpid()
        )
        # The process's end frees it; until then torch's tensors may be in use.
        free.atexit = False


def _free(
    driver: Driver,
    number: ctypes.c_int,
    context: ctypes.c_void_p,
    address: ctypes.c_uint64,
    held: list[socket.socket],
    process: int,
) -> None:
    """What a server does not let go of stays allocated: what it would read is undefined."""
    if os.getpid() != process or not _have_let_go(held):
        return
    with contextlib.suppress(CudaError):  # after a failure of the device all calls end with it
        with driver.current(context):
            driver.call("cuMemFree_v2", address)
        driver.call("cuDevicePrimaryCtxRelease_v2", number)


def _have_let_go(held: list[socket.socket]) -> bool:
    """Waits until the servers have ended these connections. False where one has not in time."""
    deadline = time.monotonic() + _PATIENCE
    return all([_has_ended(connection, deadline) for connection in held])


def _has_ended(connection: socket.socket, deadline: float) -> bool:
    with connection:
        try:
            while True:
                connection.settimeout(max(deadline - time.monotonic(), 0.001))
                if not connection.recv(64):
                    return True
        except socket.timeout:
            return False
        except OSError:  # the server's process has
            return True


class CudaMemory:
    """Memory of a CUDA device, which a Region registers. It holds anything at first.

    Takes at least `size` bytes. Views of `tensor` keep the memory, which is freed with the last of
    them, once it is closed and the servers that had it have let go: within 5 s, or it stays
    allocated.

    tensor: its bytes, of uint8, on the device.

    Raises OSError where the driver has no such memory, or none that can be shared.
    """

    def __init__(self, device: int, size: int) -> None:
        self.size = -(-size // _BLOCK) * _BLOCK
        self._device = device
        self._process = os.getpid()
        self._allocation: Optional[_Allocation] = _Allocation(_driver(), device, self.size)
        try:
            self._tensor: Optional[Tensor] = torch.as_tensor(
                self._allocation, device=f"cuda:{device}"
            )
        except RuntimeError as error:  # torch's, of CUDA
            raise CudaError(f"torch can't use the memory: {error}") from None

    @property
    def tensor(self) -> Tensor:
        if self._tensor is None:
            raise CudaError("the memory was given back")
        return self._tensor

    def write(self, tensors: list[Declared], offsets: list[int]) -> None:
        for one, offset in zip(tensors, offsets):
            view_of(self.tensor, offset, one.tensor).copy_(one.tensor)
        synchronise(self._device)

    def registration(self) -> tuple[bytes, list[int]]:
        if self._allocation is None:
            raise CudaError("the memory was given back")
        uuid, handle = self._allocation.uuid, self._allocation.handle
        return registration(CUDA, self.size) + uuid + handle, []

    def leave(self, connection: socket.socket) -> None:
        if self._allocation is None or os.getpid() != self._process:
            connection.close()  # of a process that was forked, which must not end it for the other
            return
        with contextlib.suppress(OSError):  # the server has ended it
            connection.shutdown(socket.SHUT_WR)
        held = self._allocation.held
        held.append(connection)
        for one in [one for one in held if not is_open(one)]:
            held.remove(one)
            one.close()

    def close(self) -> None:
        self._allocation, self._tensor = None, None
