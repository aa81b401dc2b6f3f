"""Small whole numbers side by side in bytes: 1 to 8 bits each, rows on their own, the first in the lowest bits.

Bytes are kept as int8, which libraries leave alone that would turn activations into any other type of a weight.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def width(count: int, bits: int) -> int:
    """Bytes of a row of `count` numbers."""
    return -(-count // 2) if bits == 4 else count if bits == 8 else -(-count // 8) * bits


def pack(codes: Tensor, bits: int) -> Tensor:
    """codes [O,n] uint8 below 2**bits -> int8 [O,width]."""
    if not 1 <= bits <= 8:
        raise ValueError(f"bits must be in 1..8, got {bits}")
    if bits == 8:
        return codes.contiguous().view(torch.int8)
    if bits == 4:
        even = F.pad(codes, (0, codes.shape[1] % 2))
        return (even[:, ::2] | even[:, 1::2] << 4).contiguous().view(torch.int8)
    eights = F.pad(codes, (0, -codes.shape[1] % 8)).unflatten(1, (-1, 8)).long()
    words = (eights << bits * torch.arange(8, device=codes.device)).sum(-1, keepdim=True)
    parts = words >> 8 * torch.arange(bits, device=codes.device) & 255
    return parts.flatten(1).to(torch.uint8).view(torch.int8)


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """int8 [O,width] -> codes [O,count] uint8."""
    stored = packed.contiguous().view(torch.uint8)
    if bits == 8:
        return stored
    if bits == 4:
        return torch.stack([stored & 15, stored >> 4], -1).flatten(1)[:, :count]
    parts = stored.unflatten(1, (-1, bits)).long()
    words = (parts << 8 * torch.arange(bits, device=packed.device)).sum(-1, keepdim=True)
    codes = words >> bits * torch.arange(8, device=packed.device) & (1 << bits) - 1
    return codes.flatten(1).to(torch.uint8)[:, :count]
