"""What the networks share: layers by number of dimensions, the usual blocks, any image size."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from ..errors import ConfigError


class Conv3d(nn.Conv3d):
    """A convolution whose gradient holds on maps of any size.

    In bfloat16 on a CPU, PyTorch 2.13 leaves parts of the weights' gradient unset where a map is
    less than three voxels thick: such maps are convolved in float32.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Convolve ``(N, inputs, nz, ny, nx)``."""
        if x.device.type != "cpu" or min(x.shape[2:]) > 2 or not torch.is_grad_enabled():
            return super().forward(x)
        with torch.autocast("cpu", enabled=False):
            return super().forward(x.float())


CONV: dict[int, Any] = {2: nn.Conv2d, 3: Conv3d}
LIFT: dict[int, Any] = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
BATCH: dict[int, Any] = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
POOL: dict[int, Any] = {2: nn.MaxPool2d, 3: nn.MaxPool3d}
MODES = {2: "bilinear", 3: "trilinear"}

Width = Annotated[int, Field(ge=1, le=4096)]  # an option that counts channels or pixels
Share = Annotated[float, Field(ge=0, lt=1)]
Names = Annotated[tuple[str, ...], Field(strict=False)]  # TOML has lists

Forward = Callable[[Any, Tensor], Any]


def any_size(forward: Forward) -> Forward:
    """Let a network take any size: pad the end of every axis, run, crop back.

    The padded size is a multiple of ``net.stride`` and at least twice that, so that the deepest
    features hold more than one voxel and batch normalisation has something to average. Where
    even so only the batch gives it more than one value, ``net.least_batch`` is 2.
    """

    @functools.wraps(forward)
    def fitted(net: Any, x: Tensor) -> Any:
        need = getattr(net, "least_batch", 1)
        if net.training and len(x) < need:
            fault = "batch too small for the batch normalisation of this network"
            raise ConfigError(fault, found=len(x), need=f"batch >= {need}")
        size = x.shape[2:]
        crop = (..., *(slice(0, n) for n in size))
        least = 2 * net.stride if net.stride > 1 else 0
        pads = [max(-(-n // net.stride) * net.stride, least) - n for n in reversed(size)]
        if any(pads):
            x = F.pad(x, [p for pad in pads for p in (0, pad)], mode="replicate")
        output = forward(net, x)
        return [y[crop] for y in output] if isinstance(output, list) else output[crop]

    return fitted


def conv(
    dims: int,
    inputs: int,
    outputs: int,
    kernel: int,
    stride: int = 1,
    *,
    dilation: int = 1,
    bias: bool = False,
) -> nn.Module:
    """Return a convolution that keeps the size at stride 1."""
    padding = dilation * (kernel // 2)
    layer: nn.Module = CONV[dims](
        inputs, outputs, kernel, stride, padding=padding, dilation=dilation, bias=bias
    )
    return layer


def conv_norm_act(
    dims: int, inputs: int, outputs: int, kernel: int = 3, *, dilation: int = 1, norm: bool = True
) -> nn.Sequential:
    """Return convolution, batch normalisation (or a bias instead) and ReLU."""
    layer = conv(dims, inputs, outputs, kernel, dilation=dilation, bias=not norm)
    middle = [BATCH[dims](outputs)] if norm else []
    return nn.Sequential(layer, *middle, nn.ReLU(inplace=True))


def twice(dims: int, inputs: int, outputs: int, *, norm: bool = True) -> nn.Sequential:
    """Return two 3 x 3 convolutions, each with its normalisation and ReLU."""
    first = conv_norm_act(dims, inputs, outputs, norm=norm)
    return nn.Sequential(*first, *conv_norm_act(dims, outputs, outputs, norm=norm))


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Interpolate linearly to a spatial size."""
    return F.interpolate(x, size=tuple(size), mode=MODES[x.ndim - 2], align_corners=False)


def he(net: nn.Module) -> nn.Module:
    """Draw the weights of all convolutions after He (2015); biases are zero."""
    kinds: Any = (*CONV.values(), *LIFT.values())
    for module in net.modules():
        if isinstance(module, kinds):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return net


def freeze(modules: Iterable[nn.Module]) -> None:
    """Hold modules as they are: no gradient, and statistics that no batch moves."""
    for module in modules:
        module.requires_grad_(False)
        module.register_forward_pre_hook(_keep_in_eval)


def _keep_in_eval(module: nn.Module, _: Any) -> None:
    module.eval()


class Decoder(nn.Module):
    """Way up: transposed convolution, concatenation with the skip, two convolutions.

    Parameters
    ----------
    dims : int
    skips : sequence of int
        Channels of the features, finest first; the last ones are the deepest.
    widths : sequence of int
        Channels after each step up, finest first; one less than ``skips``.
    """

    def __init__(
        self, dims: int, skips: Sequence[int], widths: Sequence[int], *, norm: bool
    ) -> None:
        super().__init__()
        below = [*widths[1:], skips[-1]]
        self.lift = nn.ModuleList(
            LIFT[dims](b, w, 2, 2) for b, w in zip(below, widths, strict=True)
        )
        self.join = nn.ModuleList(
            twice(dims, s + w, w, norm=norm) for s, w in zip(skips[:-1], widths, strict=True)
        )

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Map features, finest first and halving, to the map of each step up, finest first."""
        *skips, x = features
        found: list[Tensor] = []
        for lift, join, skip in list(zip(self.lift, self.join, skips, strict=True))[::-1]:
            x = join(torch.cat([skip, lift(x)], 1))
            found.insert(0, x)
        return found
