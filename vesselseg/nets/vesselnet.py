"""``vesselnet``: the default network, a residual U-Net with additive skips.

Block: conv 3, GroupNorm, SiLU, conv 3, GroupNorm, plus a 1 x 1 shortcut, SiLU. The first block
of a level halves the resolution by its stride; the way up is a 1 x 1 convolution followed by
linear interpolation, and the skip is added.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError

SIZES = {
    "tiny": (8, 16),
    "small": (12, 24, 48, 96),
    "base": (16, 32, 64, 128),
    "large": (24, 48, 96, 160),
    "wide": (32, 64, 128, 256),
}
MODES = {2: "bilinear", 3: "trilinear"}


def conv(dims: int, inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Module:
    """Return a convolution without bias that keeps the size at stride 1."""
    kind = {2: nn.Conv2d, 3: nn.Conv3d}[dims]
    return kind(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)


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
    in_channels, classes : int
        Channels of the image; number of lumen classes. The head has ``classes + 2`` channels.
    channels : sequence of int
        Width of each level, finest first.
    """

    def __init__(self, dims: int, in_channels: int, classes: int, channels: Sequence[int]) -> None:
        super().__init__()
        self.dims = dims
        self.stride = 2 ** (len(channels) - 1)
        widths = [in_channels, *channels]
        steps = [1, *(2 for _ in channels[1:])]
        self.down = nn.ModuleList(
            Block(dims, a, b, s) for a, b, s in zip(widths, channels, steps, strict=False)
        )
        pairs = list(zip(channels[1:], channels, strict=False))[::-1]
        self.lift = nn.ModuleList(conv(dims, a, b, 1) for a, b in pairs)
        self.up = nn.ModuleList(Block(dims, b, b) for _, b in pairs)
        self.head = (nn.Conv3d if dims == 3 else nn.Conv2d)(channels[0], classes + 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, in_channels, ...)`` to ``(N, classes + 2, ...)``; any size from 16 up."""
        size = x.shape[2:]
        x = pad_to_multiple(x, self.stride)
        skips: list[Tensor] = []
        for block in self.down:
            x = block(x)
            skips.append(x)
        skips.pop()
        for lift, block in zip(self.lift, self.up, strict=True):
            skip = skips.pop()
            x = F.interpolate(lift(x), size=skip.shape[2:], mode=MODES[self.dims]) + skip
            x = block(x)
        crop = tuple(slice(0, n) for n in size)
        result: Tensor = self.head(x)[(..., *crop)]
        return result


def pad_to_multiple(x: Tensor, stride: int) -> Tensor:
    """Pad the end of every spatial axis by reflection to a multiple of ``stride``."""
    pads = [(-n) % stride for n in reversed(x.shape[2:])]
    if not any(pads):
        return x
    return F.pad(x, [p for pad in pads for p in (0, pad)], mode="reflect")


def vesselnet(dims: int, in_channels: int, classes: int, *, size: str = "base") -> VesselNet:
    """Make a ``vesselnet`` of size tiny, small, base, large or wide (2-D)."""
    if size not in SIZES:
        raise ConfigError("unknown size of vesselnet", found=size, need=" | ".join(SIZES))
    net = VesselNet(dims, in_channels, classes, SIZES[size])
    memory = torch.channels_last_3d if dims == 3 else torch.channels_last
    for weight in net.parameters():
        if weight.ndim == dims + 2:  # channels last: bfloat16 convolutions are 1.5 times faster
            weight.data = weight.data.contiguous(memory_format=memory)
    return net
