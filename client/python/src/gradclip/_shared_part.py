"""What SharedGradients has for each device."""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import Optional

import torch
from torch import Tensor

from gradclip import _cuda
from gradclip._region import HostMemory, Refused, Region, Unreachable, lay_out
from gradclip._servers import Server
from gradclip._torch_bytes import host_bytes, view_of
from gradclip._torch_tensors import DTYPES
from gradclip.tensor import Declared, declare
from gradclip.tensor import Tensor as Declaration

_ASK_AGAIN_AFTER = 10.0


class SharedPart:
    """Memory for the gradients of the parameters of one device, or of the host, and its
    registration. Where a device has none that can be shared, it is torch's.

    device: a CUDA device, None for the host. server_uids: as of Region.
    Raises OSError where the host has not as much memory.
    """

    def __init__(
        self, device: Optional[int], parameters: list[Tensor], server_uids: Collection[int]
    ) -> None:
        self._device = device
        self._parameters = parameters
        self._region: Optional[Region] = None
        self._refused_until = 0.0
        self._refusal = ""
        sizes = [one.numel() * one.element_size() for one in parameters]
        self.offsets, size = lay_out(sizes)
        if device is None:
            memory = HostMemory(size)
            self._region = Region(memory, server_uids)
            self._bytes: Tensor = torch.frombuffer(memory.mapped, dtype=torch.uint8)
            return
        try:
            on_device = _cuda.CudaMemory(device, size)
        except OSError as error:
            self._refusal = f"CUDA device {device} has no memory to share: {error}"
            self._bytes = torch.empty(size, dtype=torch.uint8, device=parameters[0].device)
            return
        self._region = Region(on_device, server_uids)
        self._bytes = on_device.tensor

    def view(self, index: int) -> Tensor:
        """The memory of a parameter's gradient, as a tensor."""
        one = self._parameters[index]
        if one.numel() == 0:
            return torch.zeros_like(one)
        return view_of(self._bytes, self.offsets[index], one)

    def declare(self, index: int) -> Declared:
        view = self.view(index)
        dtype = DTYPES[view.dtype]
        if self._device is not None:
            return _cuda.declare(view, dtype, self._device)
        return declare([Declaration(host_bytes(view), dtype, tuple(view.shape))])[0]

    def token(self, server: Server, rest: Optional[float], *, first: bool, anew: bool) -> bytes:
        """The token by which the server knows the memory, once what is queued to write it is done.

        A refusal stands for a while, unless it is to be asked anew; but where a server may be gone
        at the first try, its successor is asked. Raises Refused or Unreachable.
        """
        now = time.monotonic()
        if self._region is None or (now < self._refused_until and not anew):
            raise Refused(self._refusal)
        try:
            token = self._region.token(server, rest)
        except Refused as refused:
            self._refusal = str(refused)
            if not (first and isinstance(refused, Unreachable)):
                self._refused_until = now + _ASK_AGAIN_AFTER
            raise
        if self._device is not None:
            _cuda.synchronise(self._device)
        return token

    def forget(self) -> None:
        """Ends the registration; the next call makes another."""
        if self._region is not None:
            self._region.forget()

    def close(self) -> None:
        """Ends the sharing. The gradients stay where they are."""
        if self._region is not None:
            self._region.close()
