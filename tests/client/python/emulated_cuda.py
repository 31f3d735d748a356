"""A CUDA driver and torch's CUDA tensors, without a GPU.

Device memory is a memory file, which gradclip-server-emulated-cuda opens by the handle; torch has
it as tensors of the CPU. What that can't show: a real driver and its calling convention, memory
that the host can't touch, streams and what is queued on them, and torch.as_tensor on a device.
"""

import collections
import ctypes
import mmap
import os
import struct

import torch

BLOCK = 2 << 20
# As of tests/cuda/emulated/api_memory.cc.
HANDLE = struct.Struct("<16s2i3Qi12x")
UUID = b"emulated device\0"

INVALID_VALUE, OUT_OF_MEMORY, NOT_SUPPORTED = 1, 2, 801
NAMES = {
    INVALID_VALUE: b"CUDA_ERROR_INVALID_VALUE",
    OUT_OF_MEMORY: b"CUDA_ERROR_OUT_OF_MEMORY",
    NOT_SUPPORTED: b"CUDA_ERROR_NOT_SUPPORTED",
}
_CONTEXT = 0xC0


class EmulatedDriver:
    """In the place of ctypes.CDLL("libcuda.so.1"). All devices are the one that the server has.

    calls: how often each function was called. live: bytes of each allocation, by address.
    contexts: retained and not released. fails: what functions return, by name.
    """

    def __init__(self):
        self.calls = collections.Counter()
        self.fails = {}
        self.contexts = 0
        self.current = []
        self._memory = {}

    @property
    def live(self):
        return {address: len(mapped) for address, (_, mapped) in self._memory.items()}

    def tensor(self, allocation, device):
        """As torch.as_tensor(allocation, device=device): it keeps the allocation."""
        interface = allocation.__cuda_array_interface__
        address, writable = interface["data"][0], not interface["data"][1]
        assert device.startswith("cuda:") and writable and interface["typestr"] == "|u1"
        (size,) = interface["shape"]
        _, mapped = self._memory[address]
        buffer = type("Buffer", (ctypes.c_ubyte * size,), {}).from_buffer(mapped)
        buffer.allocation = allocation
        return torch.frombuffer(buffer, dtype=torch.uint8)

    def _do(self, name, body=lambda: None):
        self.calls[name] += 1
        if name in self.fails:
            return self.fails[name]
        return body() or 0

    def cuInit(self, flags):
        return self._do("cuInit", lambda: INVALID_VALUE if flags.value else 0)

    def cuGetErrorName(self, status, text):
        text._obj.value = NAMES.get(status.value)
        return 0 if status.value in NAMES else INVALID_VALUE

    def cuDeviceGet(self, device, ordinal):
        def get():
            device._obj.value = 7 + ordinal.value

        return self._do("cuDeviceGet", get)

    def cuDeviceGetUuid_v2(self, uuid, device):
        def get():
            assert device.value >= 7
            uuid[:] = UUID

        return self._do("cuDeviceGetUuid_v2", get)

    def cuDevicePrimaryCtxRetain(self, context, device):
        def retain():
            context._obj.value = _CONTEXT
            self.contexts += 1

        return self._do("cuDevicePrimaryCtxRetain", retain)

    def cuDevicePrimaryCtxRelease_v2(self, device):
        def release():
            self.contexts -= 1

        return self._do("cuDevicePrimaryCtxRelease_v2", release)

    def cuCtxPushCurrent_v2(self, context):
        return self._do("cuCtxPushCurrent_v2", lambda: self.current.append(context.value))

    def cuCtxPopCurrent_v2(self, context):
        def pop():
            context._obj.value = self.current.pop()

        return self._do("cuCtxPopCurrent_v2", pop)

    def cuMemAlloc_v2(self, address, size):
        def allocate():
            assert self.current == [_CONTEXT]
            file = os.memfd_create("emulated CUDA")
            os.ftruncate(file, size.value)
            mapped = mmap.mmap(file, size.value)
            address._obj.value = ctypes.addressof(ctypes.c_ubyte.from_buffer(mapped))
            self._memory[address._obj.value] = file, mapped

        return self._do("cuMemAlloc_v2", allocate)

    def cuIpcGetMemHandle(self, handle, address):
        def get():
            file, mapped = self._memory[address.value]
            inode = os.fstat(file).st_ino
            handle[:] = HANDLE.pack(b"emulated IPC", os.getpid(), file, inode, 0, len(mapped), 0)

        return self._do("cuIpcGetMemHandle", get)

    def cuMemFree_v2(self, address):
        def free():
            assert self.current == [_CONTEXT]
            file, _ = self._memory.pop(address.value)
            os.close(file)

        return self._do("cuMemFree_v2", free)
