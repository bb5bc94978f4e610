"""Networks in plain torch: a registry of names, and what every network returns."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import ConfigError
from . import registry
from .vesselnet import VesselNet

PERCENTILES = (0.5, 99.5)
CLIP = (-1.0, 4.0)  # a bright vessel of 0.3 % of the volume lies beyond the upper percentile


class Heads(NamedTuple):
    """What a network says of every voxel.

    ``logit`` ``(N, classes, ...)``: of the lumen if there is one class, else of each class, the
    first being the background. ``sdf`` ``(N, ...)`` is the signed distance to the wall in voxels
    (negative in the lumen, saturating at ±4), ``log_sigma`` ``(N, ...)`` the logarithm of the
    wall's standard deviation in voxels; None of networks without them. ``deep`` are logits of
    auxiliary heads, which exist while training only.
    """

    logit: Tensor
    sdf: Tensor | None = None
    log_sigma: Tensor | None = None
    deep: tuple[Tensor, ...] = ()


def names() -> tuple[str, ...]:
    """Return the names that ``create`` knows; ``mask2former`` and ``monai:Class`` need extras."""
    return tuple(registry.NETWORKS)


def create(
    name: str,
    dims: int = 3,
    in_channels: int = 1,
    classes: int = 1,
    *,
    distance: bool = True,
    **options: Any,
) -> nn.Module:
    """Make a network with random weights.

    Parameters
    ----------
    name : str
        One of ``names()``, ``mask2former`` or ``monai:Class``.
    dims : int
        2 or 3.
    in_channels, classes : int
        Channels of the image. One class is the lumen; of several the first is the background.
    distance : bool
        Whether the network also returns the signed distance and its log sigma.
    **options
        Those of the network, as ``size="base"`` for ``vesselnet``.

    Returns
    -------
    nn.Module
        ``(N, in_channels, ...) -> (N, classes, ...)``, two channels more with ``distance``; see
        ``heads``. Any size of at least 16 voxels works.

    Raises
    ------
    ConfigError
        On an unknown name, dimension or option.
    EnvironmentFault
        If the network needs a package that is not installed.
    """
    if min(in_channels, classes) < 1:
        found = f"{in_channels} channels, {classes} classes"
        raise ConfigError("bad network", found=found, need="at least one of each")
    return registry.make(name, dims, in_channels, classes + 2 * distance, options)


def heads(output: Tensor | list[Tensor], classes: int = 1) -> Heads:
    """Split the output of a network into its heads, in float32."""
    first, *rest = output if isinstance(output, list) else [output]
    logit, more = first[:, :classes].float(), first[:, classes:].float()
    deep = tuple(y[:, :classes].float() for y in rest)
    if more.shape[1] == 0:
        return Heads(logit, deep=deep)
    return Heads(logit, more[:, 0], more[:, 1].clamp(-5.0, 3.0), deep)


def lumen_logit(logit: Tensor, lumen_classes: tuple[int, ...] | None = None) -> Tensor:
    """Return the logit ``(N, ...)`` of the summed probability of the lumen's classes.

    Parameters
    ----------
    logit : (N, classes, ...)
    lumen_classes : tuple of int, optional
        Default: all but the first, which is the background.
    """
    classes = logit.shape[1]
    if classes == 1:
        return logit[:, 0]
    inside, outside = sides(classes, lumen_classes)
    return logit[:, inside].logsumexp(1) - logit[:, outside].logsumexp(1)


def sides(classes: int, lumen_classes: tuple[int, ...] | None) -> tuple[list[int], list[int]]:
    """Return the classes of the lumen and the others, of at least two; see ``lumen_logit``."""
    inside = sorted(set(range(1, classes) if lumen_classes is None else lumen_classes))
    outside = [c for c in range(classes) if c not in inside]
    if not inside or not outside or not set(inside) <= set(range(classes)):
        need = f"some, not all, of 0 to {classes - 1}"
        raise ConfigError("bad lumen_classes", found=lumen_classes, need=need)
    return inside, outside


def bf16_pays(device: str) -> bool:
    """Return whether the device computes in bfloat16; elsewhere it is emulated and slow."""
    if torch.device(device).type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def normalise(
    image: NDArray[np.floating], dark: bool = False, span: tuple[float, float] | None = None
) -> NDArray[np.float32]:
    """Map the 0.5 and 99.5 percentiles of a whole volume to 0 and 1.

    Parameters
    ----------
    image : (nz, ny, nx) or (ny, nx)
        Intensities of one channel in any unit.
    dark : bool
        Whether blood is darker than its surroundings; the result is then ``1 - x``.
    span : (low, high), optional
        The percentiles, where the image is a part of a volume.
    """
    low, high = np.percentile(image, PERCENTILES) if span is None else span
    scale = 1.0 / (high - low) if high > low else 0.0
    x = np.asarray((image - low) * scale, dtype=np.float32)
    return np.asarray(np.clip(1.0 - x if dark else x, *CLIP), dtype=np.float32)


__all__ = [
    "Heads",
    "VesselNet",
    "bf16_pays",
    "create",
    "heads",
    "lumen_logit",
    "names",
    "normalise",
    "sides",
]
