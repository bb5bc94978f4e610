"""The networks by name."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pydantic
from torch import nn

from ..errors import ConfigError
from . import extras, fcn, query_mask, resunet, segnet, unet, unext, vesselnet


@dataclass(frozen=True)
class Entry:
    """How a network is made, ``make(dims, in_channels, outputs, **options)``, and in which dims."""

    make: Callable[..., nn.Module]
    dims: tuple[int, ...] = (2,)

    @property
    def options(self) -> dict[str, Any]:
        """Names and default values of the options."""
        parameters = list(inspect.signature(self.make).parameters.values())[3:]
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


NETWORKS = {
    "deconvnet": Entry(segnet.deconvnet),
    "deeplabv3-resnet50": Entry(fcn.deeplabv3_resnet50),
    "fcn-resnet101": Entry(fcn.fcn_resnet101),
    "fcn-resnet50": Entry(fcn.fcn_resnet50),
    "query-mask": Entry(query_mask.query_mask, (2, 3)),
    "resunet": Entry(resunet.resunet, (2, 3)),
    "segnet": Entry(segnet.segnet, (2, 3)),
    "unet": Entry(unet.unet, (2, 3)),
    "unet-resnet50": Entry(unet.unet_resnet50),
    "unet-vgg16": Entry(unet.unet_vgg16),
    "unext": Entry(unext.unext),
    "vesselnet": Entry(vesselnet.vesselnet, (2, 3)),
}


def find(name: str) -> Entry:
    """Return the entry of a name; ``mask2former`` and ``monai:Class`` need an extra."""
    if name.startswith("monai:"):
        return Entry(extras.monai_network(name), (2, 3))
    if name == "mask2former":
        return Entry(extras.mask2former)
    if name not in NETWORKS:
        near = difflib.get_close_matches(name, NETWORKS, 1, 0.4)
        hint = f"did you mean '{near[0]}'?" if near else None
        need = " | ".join((*NETWORKS, "mask2former", "monai:Class"))
        raise ConfigError(f"unknown network '{name}'", need=need, remedy=hint)
    return NETWORKS[name]


def make(name: str, dims: int, in_channels: int, outputs: int, options: Any) -> nn.Module:
    """Make a network with checked options."""
    entry = find(name)
    if dims not in entry.dims:
        need = " or ".join(f"{d}" for d in entry.dims)
        raise ConfigError(f"bad dims of network '{name}'", found=dims, need=need)
    checked = pydantic.validate_call(config=pydantic.ConfigDict(strict=True))(entry.make)
    try:
        net: nn.Module = checked(dims, in_channels, outputs, **options)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
    else:
        return net
    option = str(first["loc"][0]) if first["loc"] else "options"
    if first["type"] == "unexpected_keyword_argument":
        need = ", ".join(entry.options) or "none"
        raise ConfigError(f"network '{name}' has no option '{option}'", need=need)
    raise ConfigError(f"option '{option}' of network '{name}': {first['msg']}")
