"""Networks in plain torch: a registry of names, and what every network returns."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import ConfigError
from .vesselnet import VesselNet, vesselnet

PERCENTILES = (0.5, 99.5)
CLIP = (-1.0, 4.0)  # a bright vessel of 0.3 % of the volume lies beyond the upper percentile

_REGISTRY: dict[str, Callable[..., nn.Module]] = {"vesselnet": vesselnet}


class Heads(NamedTuple):
    """The three channels of a network with ``heads=3``, each ``(N, ...)``.

    ``logit`` scores the lumen, ``sdf`` is the signed distance to the wall in voxels (negative in
    the lumen, saturating at ±4), ``log_sigma`` the logarithm of the wall's standard deviation
    in voxels.
    """

    logit: Tensor
    sdf: Tensor
    log_sigma: Tensor


def names() -> tuple[str, ...]:
    """Return the names that ``create`` knows."""
    return tuple(sorted(_REGISTRY))


def create(
    name: str, dims: int = 3, in_channels: int = 1, classes: int = 1, **options: Any
) -> nn.Module:
    """Make a network with random weights.

    Parameters
    ----------
    name : str
        One of ``names()``.
    dims : int
        2 or 3.
    in_channels, classes : int
        Channels of the image and number of lumen classes.
    **options
        Those of the network, as ``size="base"`` for ``vesselnet``.

    Returns
    -------
    nn.Module
        ``(N, in_channels, ...) -> (N, classes + 2, ...)``: logits, signed distance, log sigma.
        Any size of at least 16 voxels works.

    Raises
    ------
    ConfigError
        On an unknown name or dimension.
    """
    if name not in _REGISTRY:
        near = difflib.get_close_matches(name, names(), 1, 0.4)
        hint = f"did you mean '{near[0]}'?" if near else None
        raise ConfigError(f"unknown network '{name}'", need=" | ".join(names()), remedy=hint)
    if dims not in (2, 3):
        raise ConfigError("bad dims of a network", found=dims, need="2 or 3")
    return _REGISTRY[name](dims, in_channels, classes, **options)


def heads(output: Tensor) -> Heads:
    """Split the output of a one-class network into its heads, in float32."""
    logit, sdf, log_sigma = output.float().unbind(1)
    return Heads(logit, sdf, log_sigma.clamp(-5.0, 3.0))


def bf16_pays(device: str) -> bool:
    """Return whether the device computes in bfloat16; elsewhere it is emulated and slow."""
    if torch.device(device).type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def normalise(image: NDArray[np.floating], dark: bool = False) -> NDArray[np.float32]:
    """Map the 0.5 and 99.5 percentiles of a whole volume to 0 and 1.

    Parameters
    ----------
    image : (nz, ny, nx) or (ny, nx)
        Intensities of one channel in any unit.
    dark : bool
        Whether blood is darker than its surroundings; the result is then ``1 - x``.
    """
    low, high = np.percentile(image, PERCENTILES)
    scale = 1.0 / (high - low) if high > low else 0.0
    x = np.asarray((image - low) * scale, dtype=np.float32)
    return np.asarray(np.clip(1.0 - x if dark else x, *CLIP), dtype=np.float32)


__all__ = ["Heads", "VesselNet", "bf16_pays", "create", "heads", "names", "normalise"]
