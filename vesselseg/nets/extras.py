"""Networks and losses of MONAI, imported when they are asked for."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ..errors import ConfigError, EnvironmentFault
from .blocks import any_size


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
