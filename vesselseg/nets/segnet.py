"""``segnet`` and ``deconvnet``: VGG16 with batch normalisation and its mirror image.

Both unpool: a maximum returns to the place it came from. SegNet (Badrinarayanan 2017) mirrors by
convolutions; DeconvNet (Noh 2015) by transposed ones, around two fully connected layers that
are convolutions here.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import BATCH, CONV, LIFT, Width, any_size, conv_norm_act, he
from .encoders import VGG, VGG16

UNPOOL: dict[int, Callable[..., Tensor]] = {2: F.max_unpool2d, 3: F.max_unpool3d}


class Mirror(nn.Module):
    """VGG16 backwards, by unpooling and convolutions or transposed convolutions."""

    def __init__(self, dims: int, widths: list[int], *, transposed: bool) -> None:
        super().__init__()
        self.unpool = UNPOOL[dims]
        make = deconv_norm_act if transposed else conv_norm_act
        stages = []
        ends = [widths[0], *widths[:-1]]
        for end, width, (_, count) in zip(ends, widths, VGG16, strict=True):
            outputs = [width] * (count - 1) + [end]
            stages.append(nn.Sequential(*(make(dims, width, n) for n in outputs)))
        self.stages = nn.ModuleList(stages)

    def forward(self, x: Tensor, places: list[Tensor], sizes: list[list[int]]) -> Tensor:
        """Undo the poolings, the last first."""
        for stage, place, size in list(zip(self.stages, places, sizes, strict=True))[::-1]:
            x = stage(self.unpool(x, place, 2, 2, 0, size))
        return x


class SegNet(nn.Module):
    """VGG16 and its mirror image, of convolutions; the head is a 3 x 3 convolution."""

    stride = 32

    def __init__(self, dims: int, in_channels: int, outputs: int, width: int) -> None:
        super().__init__()
        self.encoder = VGG(dims, in_channels, width, norm=True)
        self.decoder = Mirror(dims, self.encoder.widths, transposed=False)
        self.head = CONV[dims](width, outputs, 3, padding=1)

    @any_size
    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, in_channels, ...)`` to ``(N, outputs, ...)``."""
        features, places, x = self.encoder(x)
        sizes = [list(f.shape[2:]) for f in features]
        result: Tensor = self.head(self.decoder(x, places, sizes))
        return result


class DeconvNet(nn.Module):
    """VGG16, two wide layers over the whole 1/32 map, and the mirror image of transposed ones."""

    stride = 32
    least_batch = 2  # the wide layers may see one position only

    def __init__(
        self, in_channels: int, outputs: int, width: int, fc_width: int, fc_kernel: int
    ) -> None:
        super().__init__()
        self.fc_kernel = fc_kernel
        self.encoder = VGG(2, in_channels, width, norm=True)
        deep = self.encoder.widths[-1]
        self.fc6 = nn.Sequential(
            nn.Conv2d(deep, fc_width, fc_kernel, bias=False),
            nn.BatchNorm2d(fc_width),
            nn.ReLU(inplace=True),
        )
        self.fc7 = conv_norm_act(2, fc_width, fc_width, 1)
        self.lift = nn.Sequential(
            nn.ConvTranspose2d(fc_width, deep, fc_kernel, bias=False),
            nn.BatchNorm2d(deep),
            nn.ReLU(inplace=True),
        )
        self.decoder = Mirror(2, self.encoder.widths, transposed=True)
        self.head = nn.Conv2d(width, outputs, 1)

    @any_size
    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, in_channels, ny, nx)`` to ``(N, outputs, ny, nx)``."""
        features, places, x = self.encoder(x)
        sizes = [list(f.shape[2:]) for f in features]
        short = [max(0, self.fc_kernel - n) for n in reversed(x.shape[2:])]
        wide = F.pad(x, [p for s in short for p in (0, s)])  # smaller images: zeros around
        wide = self.lift(self.fc7(self.fc6(wide)))
        x = wide[..., : x.shape[2], : x.shape[3]]
        result: Tensor = self.head(self.decoder(x, places, sizes))
        return result


def deconv_norm_act(dims: int, inputs: int, outputs: int) -> nn.Sequential:
    """Return a 3 x 3 transposed convolution, batch normalisation and ReLU."""
    layer = LIFT[dims](inputs, outputs, 3, padding=1, bias=False)
    return nn.Sequential(layer, BATCH[dims](outputs), nn.ReLU(inplace=True))


def segnet(dims: int, in_channels: int, outputs: int, *, width: Width = 64) -> nn.Module:
    """Make ``segnet``."""
    return he(SegNet(dims, in_channels, outputs, width))


def deconvnet(
    dims: int,
    in_channels: int,
    outputs: int,
    *,
    width: Width = 64,
    fc_width: Width = 512,
    fc_kernel: Width = 7,
) -> nn.Module:
    """Make ``deconvnet``; the original has ``fc_width=4096`` and images of 224 x 224."""
    return he(DeconvNet(in_channels, outputs, width, fc_width, fc_kernel))
