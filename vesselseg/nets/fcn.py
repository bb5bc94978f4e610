"""``fcn-resnet50``, ``fcn-resnet101`` and ``deeplabv3-resnet50``: dilated ResNets with a head.

FCN: Long 2015. DeepLabv3: Chen 2017, atrous spatial pyramid pooling with rates 12, 24, 36.
The names of all tensors are torchvision's, so that its weights fit.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from .blocks import Names, Width, any_size, conv_norm_act, he, resize
from .encoders import ResNet

RATES = (12, 24, 36)
Rates = Annotated[tuple[Width, Width, Width], Field(strict=False)]


class Dilated(nn.Module):
    """Dilated ResNet, a head at 1/8 of the resolution, linear interpolation.

    With an auxiliary head on ``layer3`` the output in training mode is the list of both.
    """

    stride = 1  # convolutions and interpolation take any size as it is

    def __init__(self, backbone: ResNet, classifier: nn.Module, aux: nn.Module | None) -> None:
        super().__init__()
        self.backbone = backbone
        self.classifier = classifier
        self.aux_classifier = aux
        pools = any(isinstance(m, nn.AdaptiveAvgPool2d) for m in classifier.modules())
        self.least_batch = 2 if pools else 1

    @any_size
    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Map ``(N, in_channels, ny, nx)`` to ``(N, outputs, ny, nx)``."""
        features = self.backbone(x)
        output = resize(self.classifier(features[-1]), x.shape[2:])
        if self.aux_classifier is None or not self.training:
            return output
        return [output, resize(self.aux_classifier(features[-2]), x.shape[2:])]


class Pyramid(nn.Module):
    """Atrous spatial pyramid pooling: 1 x 1, three dilated 3 x 3, and the mean of the image."""

    def __init__(self, inputs: int, width: int, rates: Sequence[int]) -> None:
        super().__init__()
        self.rates = tuple(rates)
        branches = [conv_norm_act(2, inputs, width, 1)]
        branches += [conv_norm_act(2, inputs, width, dilation=rate) for rate in rates]
        branches += [nn.Sequential(nn.AdaptiveAvgPool2d(1), *conv_norm_act(2, inputs, width, 1))]
        self.convs = nn.ModuleList(branches)
        joined = conv_norm_act(2, len(branches) * width, width, 1)
        self.project = nn.Sequential(*joined, nn.Dropout(0.5))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, inputs, h, w)`` to ``(N, width, h, w)``."""
        idle = [rate for rate in self.rates if rate >= min(x.shape[2:])]
        if idle:
            size = "x".join(str(n) for n in x.shape[2:])
            warnings.warn(f"rates {idle} act as 1 x 1 on features of {size}", stacklevel=2)
        pooled = self.convs[-1](x).expand(-1, -1, *x.shape[2:])
        return torch.as_tensor(
            self.project(torch.cat([*(c(x) for c in self.convs[:-1]), pooled], 1))
        )


def fcn_head(inputs: int, outputs: int) -> nn.Sequential:
    """Return 3 x 3 convolution to a quarter of the channels, dropout 0.1 and 1 x 1 to outputs."""
    last = nn.Conv2d(inputs // 4, outputs, 1)
    return nn.Sequential(*conv_norm_act(2, inputs, inputs // 4), nn.Dropout(0.1), last)


def fcn(
    dims: int,
    in_channels: int,
    outputs: int,
    *,
    depth: int,
    width: Width = 64,
    aux: bool = False,
    freeze: Names = (),
) -> nn.Module:
    """Make an FCN on a dilated ResNet; ``freeze`` takes stem, layer1 ... layer4."""
    body = ResNet(in_channels, width, depth=depth, dilated=True, frozen=freeze)
    extra = fcn_head(body.widths[-2], outputs) if aux else None
    return he(Dilated(body, fcn_head(body.widths[-1], outputs), extra))


def fcn_resnet50(
    dims: int,
    in_channels: int,
    outputs: int,
    *,
    width: Width = 64,
    aux: bool = False,
    freeze: Names = (),
) -> nn.Module:
    """Make ``fcn-resnet50``."""
    return fcn(dims, in_channels, outputs, depth=50, width=width, aux=aux, freeze=freeze)


def fcn_resnet101(
    dims: int,
    in_channels: int,
    outputs: int,
    *,
    width: Width = 64,
    aux: bool = False,
    freeze: Names = (),
) -> nn.Module:
    """Make ``fcn-resnet101``."""
    return fcn(dims, in_channels, outputs, depth=101, width=width, aux=aux, freeze=freeze)


def deeplabv3_resnet50(
    dims: int,
    in_channels: int,
    outputs: int,
    *,
    width: Width = 64,
    rates: Rates = RATES,
    aux: bool = False,
    freeze: Names = (),
) -> nn.Module:
    """Make ``deeplabv3-resnet50``; rates beyond the features (1/8 of the image) do nothing."""
    body = ResNet(in_channels, width, dilated=True, frozen=freeze)
    head = nn.Sequential(
        Pyramid(body.widths[-1], 4 * width, rates),
        *conv_norm_act(2, 4 * width, 4 * width),
        nn.Conv2d(4 * width, outputs, 1),
    )
    return he(Dilated(body, head, fcn_head(body.widths[-2], outputs) if aux else None))
