"""``resunet``: deep residual U-Net with pre-activation (Zhang 2018)."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from .blocks import BATCH, CONV, Width, any_size, conv, he, resize


class Unit(nn.Module):
    """Batch norm, ReLU and convolution, twice, added to a 1 x 1 shortcut with batch norm."""

    def __init__(
        self, dims: int, inputs: int, outputs: int, stride: int = 1, *, activate: bool = True
    ) -> None:
        super().__init__()
        before = [BATCH[dims](inputs), nn.ReLU()] if activate else []
        self.residual = nn.Sequential(
            *before,
            conv(dims, inputs, outputs, 3, stride, bias=True),
            BATCH[dims](outputs),
            nn.ReLU(inplace=True),
            conv(dims, outputs, outputs, 3, bias=True),
        )
        shortcut = conv(dims, inputs, outputs, 1, stride)
        self.shortcut = nn.Sequential(shortcut, BATCH[dims](outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, inputs, ...)`` to ``(N, outputs, ... / stride)``."""
        result: Tensor = self.residual(x) + self.shortcut(x)
        return result


class ResUNet(nn.Module):
    """Three encoding units, a bridge and three decoding units; strides instead of pooling."""

    def __init__(self, dims: int, in_channels: int, outputs: int, widths: list[int]) -> None:
        super().__init__()
        self.stride = 2 ** (len(widths) - 1)
        down = [Unit(dims, in_channels, widths[0], activate=False)]
        down += [Unit(dims, a, b, 2) for a, b in pairwise(widths)]
        self.down = nn.ModuleList(down)
        self.up = nn.ModuleList(Unit(dims, a + b, b) for b, a in pairwise(widths))
        self.head = CONV[dims](widths[0], outputs, 1)

    @any_size
    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, in_channels, ...)`` to ``(N, outputs, ...)``."""
        features = [x]
        for unit in self.down:
            features.append(unit(features[-1]))
        x = features.pop()
        for unit in reversed(self.up):
            skip = features.pop()
            x = unit(torch.cat([resize(x, skip.shape[2:]), skip], 1))
        result: Tensor = self.head(x)
        return result


def resunet(dims: int, in_channels: int, outputs: int, *, width: Width = 64) -> nn.Module:
    """Make ``resunet``; ``width`` doubles three times."""
    return he(ResUNet(dims, in_channels, outputs, [width * 2**i for i in range(4)]))
