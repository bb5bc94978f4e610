"""Encoders whose ``state_dict`` has the keys and shapes of torchvision's VGG16 and ResNets."""

from __future__ import annotations

from collections.abc import Iterable

import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError
from .blocks import BATCH, POOL, conv, freeze

VGG16 = ((1, 2), (2, 2), (4, 3), (8, 3), (8, 3))  # width over the first, convolutions
DEPTHS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


class VGG(nn.Module):
    """VGG16 (Simonyan 2015), its convolutions only, with or without batch normalisation.

    ``features`` is torchvision's; its poolings also return where the maxima were.
    """

    def __init__(
        self, dims: int, in_channels: int, width: int, *, norm: bool, frozen: Iterable[str] = ()
    ) -> None:
        super().__init__()
        self.widths = [width * factor for factor, _ in VGG16]
        layers: list[nn.Module] = []
        stages: dict[str, list[nn.Module]] = {}
        inputs = in_channels
        for number, (outputs, (_, count)) in enumerate(zip(self.widths, VGG16, strict=True), 1):
            stage: list[nn.Module] = []
            for _ in range(count):
                stage.append(conv(dims, inputs, outputs, 3, bias=True))
                stage += [BATCH[dims](outputs)] if norm else []
                stage.append(nn.ReLU(inplace=True))
                inputs = outputs
            stages[f"block{number}"] = stage
            layers += [*stage, POOL[dims](2, return_indices=True)]
        self.features = nn.Sequential(*layers)
        hold(stages, frozen)

    def forward(self, x: Tensor) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """Return the features before each pooling, the places of the maxima, the last pooled."""
        features, places = [], []
        for layer in self.features:
            if isinstance(layer, nn.MaxPool2d | nn.MaxPool3d):
                features.append(x)
                x, place = layer(x)
                places.append(place)
            else:
                x = layer(x)
        return features, places, x


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 with the stride (ResNet v1.5), 1 x 1 to four times the width; shortcut."""

    def __init__(
        self, inputs: int, width: int, stride: int, dilation: int, *, project: bool
    ) -> None:
        super().__init__()
        self.conv1 = conv(2, inputs, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv(2, width, width, 3, stride, dilation=dilation)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = conv(2, width, 4 * width, 1)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.downsample = None
        if project:
            shortcut = conv(2, inputs, 4 * width, 1, stride)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(4 * width))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, inputs, ...)`` to ``(N, 4 width, ... / stride)``."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """ResNet-50 or -101 (He 2016) without its classifier.

    Parameters
    ----------
    depth : int
        50 or 101.
    dilated : bool
        Dilate ``layer3`` and ``layer4`` instead of striding, which leaves 1/8 of the resolution;
        the first block of each keeps the dilation before it.
    """

    def __init__(
        self,
        in_channels: int,
        width: int,
        *,
        depth: int = 50,
        dilated: bool = False,
        frozen: Iterable[str] = (),
    ) -> None:
        super().__init__()
        self.widths = [width, *(4 * width * 2**i for i in range(4))]
        self.conv1 = nn.Conv2d(in_channels, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        dilation = 1
        for i, count in enumerate(DEPTHS[depth]):
            before, stride = dilation, 1 if i == 0 else 2
            if dilated and i >= 2:
                dilation, stride = dilation * 2, 1
            inside = self.widths[i + 1] // 4
            blocks = [Bottleneck(self.widths[i], inside, stride, before, project=True)]
            for _ in range(count - 1):
                blocks.append(Bottleneck(4 * inside, inside, 1, dilation, project=False))
            setattr(self, f"layer{i + 1}", nn.Sequential(*blocks))
        stages = {f"layer{i}": [getattr(self, f"layer{i}")] for i in (1, 2, 3, 4)}
        hold({"stem": [self.conv1, self.bn1], **stages}, frozen)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the features after the stem (1/2) and after each of the four layers."""
        x = F.relu(self.bn1(self.conv1(x)))
        features = [x]
        x = F.max_pool2d(x, 3, 2, 1)
        for name in ("layer1", "layer2", "layer3", "layer4"):
            x = getattr(self, name)(x)
            features.append(x)
        return features


def hold(stages: dict[str, list[nn.Module]], names: Iterable[str]) -> None:
    """Freeze the named stages of an encoder."""
    for name in names:
        if name not in stages:
            raise ConfigError("unknown stage to freeze", found=name, need=" | ".join(stages))
        freeze(stages[name])
