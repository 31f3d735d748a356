"""Torch's tensors as bytes, and bytes as torch's tensors."""

from __future__ import annotations

import torch
from torch import Tensor


def host_bytes(tensor: Tensor) -> memoryview:
    """The tensor's bytes: its own memory, or a copy where it is on a device or not contiguous."""
    data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return memoryview(data.numpy())


def view_of(memory: Tensor, offset: int, like: Tensor) -> Tensor:
    """A tensor of the dtype and shape of `like` in memory of uint8. REQUIRES: `like` has elements,
    and offset is a multiple of 64 bytes.
    """
    size = like.numel() * like.element_size()
    view: Tensor = memory[offset : offset + size].view(like.dtype).view(like.shape)
    return view
