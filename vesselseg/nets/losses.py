"""Losses: a weighted list of named terms, each finite for any logits and any target.

Every term maps the heads of a network and a target to a scalar. Distances are in voxels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ConfigError
from . import Heads

SOFTNESS = 0.5  # voxels: width of the soft target, about that of the partial volume
SATURATION = 4.0  # voxels: beyond it only the sign of the distance is learned
BAND = 3.0  # voxels: width of the weight around the wall
NEAR = 2.0  # voxels: where the wall error is measured
SMOOTH = 1.0  # keeps Dice finite, with a slope, on an empty target


class Target(NamedTuple):
    """What a network should return.

    ``phi`` ``(N, ...)`` is the signed distance in voxels, ``centreline`` ``(N, ...)`` one in a
    tube around the axis.
    """

    phi: Tensor
    centreline: Tensor


Term = Callable[[Heads, Target], Tensor]


def soft_bce(heads: Heads, target: Target) -> Tensor:
    """Binary cross-entropy against ``sigmoid(-phi / 0.5)``."""
    return F.binary_cross_entropy_with_logits(heads.logit, torch.sigmoid(-target.phi / SOFTNESS))


def dice(heads: Heads, target: Target) -> Tensor:
    """Soft Dice with squared denominator (Milletari 2016), mean over the batch."""
    p = torch.sigmoid(heads.logit).flatten(1)
    t = torch.sigmoid(-target.phi / SOFTNESS).flatten(1)
    overlap = 2.0 * (p * t).sum(1) + SMOOTH
    return (1.0 - overlap / (p.square().sum(1) + t.square().sum(1) + SMOOTH)).mean()


def sdf_nll(heads: Heads, target: Target) -> Tensor:
    """Beta-NLL, beta 0.5 (Seitzer 2022), of the distance near the wall."""
    sigma = heads.log_sigma.exp()
    residual = heads.sdf - saturated(target.phi)
    nll = 0.5 * (residual / sigma).square() + heads.log_sigma
    return weighted_mean(sigma.detach() * nll, band_weight(target.phi))


def sdf_l1(heads: Heads, target: Target) -> Tensor:
    """Absolute error of the distance near the wall, in voxels."""
    return weighted_mean((heads.sdf - saturated(target.phi)).abs(), band_weight(target.phi))


def skeleton_recall(heads: Heads, target: Target) -> Tensor:
    """Share of the centreline tube that is missed (Kirchhoff 2024); zero without a tube."""
    tube = target.centreline.flatten(1).float()
    found = (torch.sigmoid(heads.logit).flatten(1) * tube).sum(1)
    total = tube.sum(1)
    return ((total - found) / total.clamp(min=1.0)).mean()


TERMS: dict[str, Term] = {
    "soft_bce": soft_bce,
    "dice": dice,
    "sdf_nll": sdf_nll,
    "sdf_l1": sdf_l1,
    "skeleton_recall": skeleton_recall,
}

DEFAULT = {"soft_bce": 1.0, "dice": 1.0, "sdf_nll": 0.5, "sdf_l1": 0.2, "skeleton_recall": 0.1}


def parts(heads: Heads, target: Target, weights: Mapping[str, float]) -> dict[str, Tensor]:
    """Return each weighted term by name; the loss is their sum."""
    unknown = sorted(set(weights) - set(TERMS))
    if unknown:
        raise ConfigError(f"unknown loss '{unknown[0]}'", need=" | ".join(TERMS))
    return {name: weight * TERMS[name](heads, target) for name, weight in weights.items()}


def saturated(phi: Tensor) -> Tensor:
    """Return ``4 tanh(phi / 4)``: the distance near the wall, its sign far away."""
    return SATURATION * torch.tanh(phi / SATURATION)


def band_weight(phi: Tensor) -> Tensor:
    """Return ``exp(-(phi / 3)²) + 0.1``."""
    return torch.exp(-(phi / BAND).square()) + 0.1


def weighted_mean(values: Tensor, weight: Tensor) -> Tensor:
    """Return the mean of the values under positive weights."""
    return (weight * values).sum() / weight.sum()


def scores(heads: Heads, target: Target) -> tuple[float, float]:
    """Return the Dice of the distance's sign and its mean error near the wall, in voxels."""
    inside, truth = heads.sdf < 0, target.phi < 0
    overlap = (2.0 * (inside & truth).sum() + SMOOTH) / (inside.sum() + truth.sum() + SMOOTH)
    near = target.phi.abs() < NEAR
    error = (heads.sdf - target.phi).abs() * near
    return overlap.item(), (error.sum() / near.sum().clamp(min=1)).item()
