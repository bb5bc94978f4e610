"""Networks and losses of MONAI and transformers, imported when they are asked for."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from ..errors import ConfigError, EnvironmentFault
from .blocks import Width, any_size, resize


class Foreign(nn.Module):
    """A network from elsewhere, for any size; of a list of outputs the first is the finest."""

    stride = 32

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    @any_size
    def forward(self, x: Tensor) -> Any:
        """Map ``(N, in_channels, ...)`` to ``(N, outputs, ...)``."""
        output = self.net(x)
        return output[0] if isinstance(output, list | tuple) else output


class Mask2Former(nn.Module):
    """Mask2Former (Cheng 2022): each output is the masks weighted by how much of it they are."""

    stride = 32

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    @any_size
    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, in_channels, ny, nx)`` to ``(N, outputs, ny, nx)``."""
        found = self.net(pixel_values=x)
        shares = found.class_queries_logits.softmax(2)[..., :-1]  # the last one is no object
        masks = torch.einsum("nqc,nqhw->nchw", shares, found.masks_queries_logits)
        return resize(masks, x.shape[2:])


def mask2former(
    dims: int,
    in_channels: int,
    outputs: int,
    *,
    width: Width = 48,
    hidden: Annotated[int, Field(ge=32, le=4096, multiple_of=32)] = 128,
    queries: Width = 20,
    layers: Width = 3,
) -> nn.Module:
    """Make ``mask2former``, of random weights, on a Swin transformer of ``width`` channels."""
    try:
        kit: Any = importlib.import_module("transformers")
        model = kit.Mask2FormerForUniversalSegmentation
    except (ImportError, RuntimeError) as error:  # a torchvision of another torch ends in either
        cause = str(error.__cause__ or error).strip().partition("\n")[0]
        remedy = "pip install 'vesselseg[compare]'"
        raise EnvironmentFault(
            f"'mask2former' needs transformers: {cause}", remedy=remedy
        ) from None
    stages = [f"stage{n}" for n in range(1, 5)]
    swin = kit.SwinConfig(
        num_channels=in_channels, embed_dim=width, depths=[2] * 4, num_heads=[1, 2, 4, 8],
        window_size=4, image_size=64, out_features=stages,
    )  # fmt: skip
    config = kit.Mask2FormerConfig(
        backbone_config=swin, feature_size=hidden, mask_feature_size=hidden, hidden_dim=hidden,
        encoder_feedforward_dim=4 * hidden, dim_feedforward=4 * hidden, encoder_layers=layers,
        decoder_layers=layers, num_queries=queries, num_labels=outputs,
    )  # fmt: skip
    return Mask2Former(model(config))


def monai_network(name: str) -> Callable[..., nn.Module]:
    """Return the maker of ``monai:Class``; its options are those of the class."""
    kind = monai_class(name, "monai.networks.nets")

    def make(dims: int, in_channels: int, outputs: int, **options: Any) -> nn.Module:
        sizes = {"spatial_dims": dims, "in_channels": in_channels, "out_channels": outputs}
        try:
            return Foreign(kind(**sizes, **options))
        except (TypeError, ValueError) as error:
            raise ConfigError(f"network '{name}' cannot be made: {error}") from None

    return make


def monai_class(name: str, module: str) -> Any:
    """Return the class that ``monai:Class`` names in a module of MONAI."""
    wanted = name.removeprefix("monai:")
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        remedy = "pip install 'vesselseg[monai]'"
        raise EnvironmentFault(f"'{name}' needs MONAI: {error}", remedy=remedy) from None
    if not hasattr(found, wanted):
        near = difflib.get_close_matches(wanted, dir(found), 1, 0.4)
        hint = f"did you mean 'monai:{near[0]}'?" if near else None
        raise ConfigError(f"MONAI has no '{wanted}'", need=f"a class of {module}", remedy=hint)
    return getattr(found, wanted)
