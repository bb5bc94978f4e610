"""``unext``: convolutions, then shifted multilayer perceptrons on tokens (Valanarasu 2022)."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from .blocks import any_size, he, resize

SHIFTS = (-2, -1, 0, 1, 2)
Widths = Annotated[
    tuple[Annotated[int, Field(ge=5)], ...], Field(strict=False, min_length=5, max_length=5)
]


def shifted(x: Tensor, axis: int) -> Tensor:
    """Move five groups of the channels by -2 ... 2 along an axis; zeros come in.

    ``x`` is ``(N, C, ny, nx)``; voxel ``i`` of a group with shift ``s`` comes from ``i - s``.
    """
    groups = x.chunk(len(SHIFTS), 1)
    n = x.shape[axis]
    pads = [0, 0, 0, 0]
    pads[2 * (x.ndim - 1 - axis)] = pads[2 * (x.ndim - 1 - axis) + 1] = max(SHIFTS)
    moved = (
        F.pad(group, pads).narrow(axis, max(SHIFTS) - shift, n)
        for group, shift in zip(groups, SHIFTS, strict=False)
    )
    return torch.cat(list(moved), 1)


class ChannelNorm(nn.LayerNorm):
    """Layer normalisation over the channels of ``(N, C, ny, nx)``."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each pixel."""
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class ShiftedMLP(nn.Module):
    """Shift over the width, mix, 3 x 3 depthwise and GELU, shift over the height, mix; residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(channels)
        self.mix1 = nn.Conv2d(channels, channels, 1)
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.mix2 = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape ``(N, channels, ny, nx)``."""
        y = self.mix1(shifted(self.norm(x), 3))
        y = F.gelu(self.depthwise(y))
        return x + torch.as_tensor(self.mix2(shifted(y, 2)))


class Tokens(nn.Module):
    """Overlapping patches of 3 x 3 with stride 2, a shifted MLP and normalisation."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.patch = nn.Conv2d(inputs, outputs, 3, 2, 1)
        self.start = ChannelNorm(outputs)
        self.mlp = ShiftedMLP(outputs)
        self.end = ChannelNorm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, inputs, ny, nx)`` to ``(N, outputs, ny / 2, nx / 2)``."""
        return torch.as_tensor(self.end(self.mlp(self.start(self.patch(x)))))


class UNeXt(nn.Module):
    """Three convolutional and two token stages; skips are added."""

    stride = 32

    def __init__(self, in_channels: int, outputs: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        steps = list(pairwise([in_channels, *widths]))
        self.convs = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.MaxPool2d(2))
            for a, b in steps[:3]
        )
        self.tokens = nn.ModuleList(Tokens(a, b) for a, b in steps[3:])
        self.up = nn.ModuleList(
            nn.Sequential(nn.Conv2d(b, a, 3, padding=1), nn.BatchNorm2d(a))
            for a, b in reversed(steps[1:])
        )
        self.mlps = nn.ModuleList(ShiftedMLP(w) for w in (widths[3], widths[2]))
        self.norms = nn.ModuleList(ChannelNorm(w) for w in (widths[3], widths[2]))
        self.last = nn.Conv2d(widths[0], widths[0], 3, padding=1)
        self.head = nn.Conv2d(widths[0], outputs, 1)

    @any_size
    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, in_channels, ny, nx)`` to ``(N, outputs, ny, nx)``."""
        size, skips = x.shape[2:], []
        for block in self.convs:
            x = F.relu(block(x))
            skips.append(x)
        for block in self.tokens:
            x = block(x)
            skips.append(x)
        skips.pop()
        for level, block in enumerate(self.up):
            skip = skips.pop()
            x = F.relu(resize(block(x), skip.shape[2:])) + skip
            if level < len(self.mlps):
                x = self.norms[level](self.mlps[level](x))
        result: Tensor = self.head(F.relu(resize(self.last(x), size)))
        return result


def unext(
    dims: int, in_channels: int, outputs: int, *, widths: Widths = (32, 64, 128, 160, 256)
) -> nn.Module:
    """Make ``unext``; five channels or more at each of its five levels."""
    return he(UNeXt(in_channels, outputs, widths))
