"""``vesselnet``: the default network, a residual U-Net with additive skips.

Block: conv 3, GroupNorm, SiLU, conv 3, GroupNorm, plus a 1 x 1 shortcut, SiLU. The first block
of a level halves the resolution by its stride; the way up is a 1 x 1 convolution followed by
linear interpolation, and the skip is added.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import CONV, any_size, conv, resize

SIZES = {
    "tiny": (8, 16),
    "small": (12, 24, 48, 96),
    "base": (16, 32, 64, 128),
    "large": (24, 48, 96, 160),
    "wide": (32, 64, 128, 256),
}


def norm(channels: int) -> nn.Module:
    """Return GroupNorm with eight groups, or as many as divide the channels."""
    return nn.GroupNorm(math.gcd(8, channels), channels)


class Block(nn.Module):
    """Residual block of two 3 x 3 convolutions."""

    def __init__(self, dims: int, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = conv(dims, inputs, outputs, 3, stride)
        self.norm1 = norm(outputs)
        self.conv2 = conv(dims, outputs, outputs, 3)
        self.norm2 = norm(outputs)
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else conv(dims, inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, inputs, ...)`` to ``(N, outputs, ... / stride)``."""
        y = F.silu(self.norm1(self.conv1(x)))
        return F.silu(self.norm2(self.conv2(y)) + self.shortcut(x))


class VesselNet(nn.Module):
    """Residual U-Net; see the module docstring.

    Parameters
    ----------
    dims : int
        2 or 3.
    in_channels, outputs : int
        Channels of the image and of the head.
    channels : sequence of int
        Width of each level, finest first.
    """

    def __init__(self, dims: int, in_channels: int, outputs: int, channels: Sequence[int]) -> None:
        super().__init__()
        self.stride = 2 ** (len(channels) - 1)
        widths = [in_channels, *channels]
        steps = [1, *(2 for _ in channels[1:])]
        self.down = nn.ModuleList(
            Block(dims, a, b, s) for a, b, s in zip(widths, channels, steps, strict=False)
        )
        pairs = list(zip(channels[1:], channels, strict=False))[::-1]
        self.lift = nn.ModuleList(conv(dims, a, b, 1) for a, b in pairs)
        self.up = nn.ModuleList(Block(dims, b, b) for _, b in pairs)
        self.head = CONV[dims](channels[0], outputs, 1)

    @any_size
    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, in_channels, ...)`` to ``(N, outputs, ...)``."""
        skips: list[Tensor] = []
        for block in self.down:
            x = block(x)
            skips.append(x)
        skips.pop()
        for lift, block in zip(self.lift, self.up, strict=True):
            skip = skips.pop()
            x = block(resize(lift(x), skip.shape[2:]) + skip)
        result: Tensor = self.head(x)
        return result


def vesselnet(
    dims: int,
    in_channels: int,
    outputs: int,
    *,
    size: Literal["tiny", "small", "base", "large", "wide"] = "base",
) -> VesselNet:
    """Make a ``vesselnet`` of size tiny, small, base, large or wide (2-D)."""
    net = VesselNet(dims, in_channels, outputs, SIZES[size])
    memory = torch.channels_last_3d if dims == 3 else torch.channels_last
    for weight in net.parameters():
        if weight.ndim == dims + 2:  # channels last: bfloat16 convolutions are 1.5 times faster
            weight.data = weight.data.contiguous(memory_format=memory)
    return net
