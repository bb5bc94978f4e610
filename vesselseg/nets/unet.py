"""``unet`` (Ronneberger 2015, padded) and U-Nets on a VGG16 or ResNet50 encoder."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn

from .blocks import CONV, POOL, Decoder, Names, Share, Width, any_size, he, resize, twice
from .encoders import VGG, ResNet


class UNet(nn.Module):
    """Two convolutions a level, max-pooling down, transposed convolutions up, concatenation.

    With deep supervision (Lee 2015) the output in training mode is a list: that of each coarser
    step of the way up, interpolated, follows.
    """

    def __init__(
        self,
        dims: int,
        in_channels: int,
        outputs: int,
        widths: list[int],
        *,
        norm: bool,
        dropout: float,
        deep_supervision: bool,
    ) -> None:
        super().__init__()
        self.stride = 2 ** (len(widths) - 1)
        pairs = zip([in_channels, *widths], widths, strict=False)
        self.down = nn.ModuleList(twice(dims, a, b, norm=norm) for a, b in pairs)
        self.pool = POOL[dims](2)
        self.dropout = nn.Dropout(dropout)
        self.up = Decoder(dims, widths, widths[:-1], norm=norm)
        self.head = CONV[dims](widths[0], outputs, 1)
        coarser = widths[1:-1] if deep_supervision else []
        self.deep = nn.ModuleList(CONV[dims](width, outputs, 1) for width in coarser)

    @any_size
    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Map ``(N, in_channels, ...)`` to ``(N, outputs, ...)``."""
        features: list[Tensor] = []
        for block in self.down:
            x = block(self.pool(x) if features else x)
            features.append(x)
        features[-1] = self.dropout(x)
        fine, *coarser = self.up(features)
        result: Tensor = self.head(fine)
        if not self.deep or not self.training:
            return result
        heads = zip(self.deep, coarser, strict=True)
        return [result, *(resize(head(y), result.shape[2:]) for head, y in heads)]


class EncoderUNet(nn.Module):
    """A U-Net whose way down is an encoder with torchvision's keys.

    The image itself is the finest skip of the ResNet, whose first features have 1/2 of it.
    """

    def __init__(self, in_channels: int, outputs: int, encoder: VGG | ResNet, width: int) -> None:
        super().__init__()
        self.encoder = encoder
        skips = encoder.widths if isinstance(encoder, VGG) else [in_channels, *encoder.widths]
        self.stride = 2 ** (len(skips) - 1)
        steps = [1, 2, 4, 8] if isinstance(encoder, VGG) else [0.5, 1, 2, 4, 8]
        widths = [max(1, int(width * step)) for step in steps]
        self.up = Decoder(2, skips, widths, norm=True)
        self.head = nn.Conv2d(widths[0], outputs, 1)

    @any_size
    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, in_channels, ny, nx)`` to ``(N, outputs, ny, nx)``."""
        found = self.encoder(x)
        features = found[0] if isinstance(self.encoder, VGG) else [x, *found]
        result: Tensor = self.head(self.up(features)[0])
        return result


def unet(
    dims: int,
    in_channels: int,
    outputs: int,
    *,
    width: Width = 64,
    levels: Annotated[int, Field(ge=2, le=7)] = 5,
    norm: Literal["none", "batch"] = "batch",
    dropout: Share = 0.0,
    deep_supervision: bool = False,
) -> nn.Module:
    """Make ``unet``: ``width`` doubles at each of the levels; dropout acts on the deepest."""
    widths = [width * 2**i for i in range(levels)]
    switches = {"norm": norm == "batch", "deep_supervision": deep_supervision}
    return he(UNet(dims, in_channels, outputs, widths, dropout=dropout, **switches))


def unet_vgg16(
    dims: int, in_channels: int, outputs: int, *, width: Width = 64, freeze: Names = ()
) -> nn.Module:
    """Make ``unet-vgg16``; ``freeze`` takes block1 ... block5."""
    encoder = VGG(2, in_channels, width, norm=False, frozen=freeze)
    return he(EncoderUNet(in_channels, outputs, encoder, width))


def unet_resnet50(
    dims: int, in_channels: int, outputs: int, *, width: Width = 64, freeze: Names = ()
) -> nn.Module:
    """Make ``unet-resnet50``; ``freeze`` takes stem, layer1 ... layer4."""
    encoder = ResNet(in_channels, width, frozen=freeze)
    return he(EncoderUNet(in_channels, outputs, encoder, width))
