"""``vesselnet``: the default network, a residual U-Net with additive skips.

Block: conv 3, GroupNorm, SiLU, conv 3, GroupNorm, plus a 1 x 1 shortcut, SiLU. The first block
of a level halves the resolution by its stride; the way up is a 1 x 1 convolution followed by
linear interpolation, and the skip is added. A folded network (Shi 2016) sees the voxels of each
2 x 2 x 2 block as channels and unfolds them at the end: no information is lost, yet a CPU runs
it four times faster than one that works at the full resolution.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

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
    "swift": (32, 64, 96, 128),
}
FOLDED = ("swift",)


class Norm(nn.GroupNorm):
    """GroupNorm of eight groups, or as many as divide the channels.

    Its gradient in bfloat16 on a CPU is five times faster than PyTorch's.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(math.gcd(8, channels), channels)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``(N, channels, ...)``."""
        if x.dtype != torch.bfloat16 or x.device.type != "cpu" or not torch.is_grad_enabled():
            return super().forward(x)
        apply: Any = _Normalise.apply
        y: Tensor = apply(x, self.weight, self.bias, self.num_groups, self.eps)
        return y


class _Normalise(torch.autograd.Function):
    """Group normalisation whose gradient is two sums over the voxels and one linear map.

    With z = (x - mean) / s.d. and g = weight * dy the gradient is (g - <g> - z <g z>) / s.d., the
    means being those of a group (Wu and He 2018).
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float
    ) -> Tensor:
        """Normalise and keep the statistics."""
        shape = (*x.shape[:2], x[0, 0].numel())
        scale, shift = weight.to(x.dtype), bias.to(x.dtype)
        normalise: Any = torch.native_group_norm
        y: Tensor
        y, mean, rstd = normalise(x, scale, shift, *shape, groups, eps)
        ctx.save_for_backward(x, mean, rstd, weight)
        return y

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        """Return the gradients of image, weight and bias."""
        x, mean, rstd, weight = ctx.saved_tensors
        groups = mean.shape[1]
        each = x.shape[1] // groups
        inside, dy = (t.movedim(1, -1).flatten(1, -2) for t in (x, slopes[0]))
        m, r = (t.float().repeat_interleave(each, 1) for t in (mean, rstd))
        d_bias = dy.sum(1, dtype=torch.float32)
        d_weight = ((dy * inside).sum(1, dtype=torch.float32) - m * d_bias) * r

        def over_group(t: Tensor) -> Tensor:
            total = (weight * t).reshape(-1, groups, each).sum(2) / (each * inside.shape[1])
            spread: Tensor = total.repeat_interleave(each, 1)
            return spread

        tilt = -over_group(d_weight) * r.square()
        level = -over_group(d_bias) * r - tilt * m
        a, b, c = (t[:, None].to(x.dtype) for t in (weight * r, tilt, level))
        d_x = torch.addcmul(torch.addcmul(c, inside, b), dy, a)
        d_x = d_x.reshape(len(x), *x.shape[2:], -1).movedim(-1, 1)
        return d_x, d_weight.sum(0), d_bias.sum(0), None, None


class Block(nn.Module):
    """Residual block of two 3 x 3 convolutions."""

    def __init__(self, dims: int, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = conv(dims, inputs, outputs, 3, stride)
        self.norm1 = Norm(outputs)
        self.conv2 = conv(dims, outputs, outputs, 3)
        self.norm2 = Norm(outputs)
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
    fold : int
        Side of the blocks of voxels that become channels.
    """

    def __init__(
        self, dims: int, in_channels: int, outputs: int, channels: Sequence[int], fold: int = 1
    ) -> None:
        super().__init__()
        self.fold = fold
        self.stride = fold * 2 ** (len(channels) - 1)
        widths = [in_channels * fold**dims, *channels]
        steps = [1, *(2 for _ in channels[1:])]
        self.down = nn.ModuleList(
            Block(dims, a, b, s) for a, b, s in zip(widths, channels, steps, strict=False)
        )
        pairs = list(zip(channels[1:], channels, strict=False))[::-1]
        self.lift = nn.ModuleList(conv(dims, a, b, 1) for a, b in pairs)
        self.up = nn.ModuleList(Block(dims, b, b) for _, b in pairs)
        self.head = CONV[dims](channels[0], outputs * fold**dims, 1)

    @any_size
    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, in_channels, ...)`` to ``(N, outputs, ...)``."""
        x = folded(x, self.fold)
        skips: list[Tensor] = []
        for block in self.down:
            x = block(x)
            skips.append(x)
        skips.pop()
        for lift, block in zip(self.lift, self.up, strict=True):
            skip = skips.pop()
            x = block(resize(lift(x), skip.shape[2:]) + skip)
        return unfolded(self.head(x), self.fold)


def folded(x: Tensor, fold: int) -> Tensor:
    """Turn blocks of ``fold`` voxels a side into channels: ``(N, C, ...)`` to fewer voxels."""
    if fold == 1:
        return x
    count, channels, *size = x.shape
    blocks = x.reshape(count, channels, *(m for n in size for m in (n // fold, fold)))
    coarse, fine = range(2, blocks.ndim, 2), range(3, blocks.ndim, 2)
    y = blocks.permute(0, 1, *fine, *coarse)
    y = y.reshape(count, -1, *(n // fold for n in size))
    return y.contiguous(memory_format=memory_format(len(size)))


def unfolded(x: Tensor, fold: int) -> Tensor:
    """Invert ``folded``."""
    if fold == 1:
        return x
    count, channels, *size = x.shape
    dims = len(size)
    blocks = x.reshape(count, channels // fold**dims, *(fold for _ in size), *size)
    order = [a for d in range(dims) for a in (2 + dims + d, 2 + d)]
    return blocks.permute(0, 1, *order).reshape(count, -1, *(fold * n for n in size))


def memory_format(dims: int) -> torch.memory_format:
    """Return channels last: bfloat16 convolutions are 1.5 times faster."""
    return torch.channels_last_3d if dims == 3 else torch.channels_last


def vesselnet(
    dims: int,
    in_channels: int,
    outputs: int,
    *,
    size: Literal["tiny", "small", "base", "large", "wide", "swift"] = "base",
) -> VesselNet:
    """Make a ``vesselnet`` of size tiny, small, base, large, wide (2-D) or swift (folded)."""
    net = VesselNet(dims, in_channels, outputs, SIZES[size], 2 if size in FOLDED else 1)
    for weight in net.parameters():
        if weight.ndim == dims + 2:
            weight.data = weight.data.contiguous(memory_format=memory_format(dims))
    return net
