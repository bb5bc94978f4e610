"""Losses: a weighted list of named terms, each finite for any logits and any target.

Every term maps the heads of a network and a target to a scalar. Distances are in voxels.
Overlap terms see one channel a class, the background first: a single logit x counts as (0, x).
A term of a batch is the mean of the terms of its images, so that accumulated gradients and those
of several processes are the gradients of one large batch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from ..config import Settings
from ..errors import ConfigError
from . import Heads, extras, lumen_logit

SOFTNESS = 0.5  # voxels: width of the soft target, about that of the partial volume
SATURATION = 4.0  # voxels: beyond it only the sign of the distance is learned
BAND = 3.0  # voxels: width of the weight around the wall
NEAR = 2.0  # voxels: where the wall error is measured
AT_WALL = 0.5  # voxels from the wall that a network finds
SMOOTH = 1.0  # keeps Dice finite, with a slope, on an empty target
LEAST_MISS = 1e-4  # of 1 - Tversky, below which the focal form has an infinite slope


class LossSettings(Settings):
    """Constants of the terms.

    Parameters
    ----------
    background_weight : float
        Of the background in ``weighted_ce``; the other classes weigh one minus it.
    miss_weight : float
        Of missed against false voxels, in ``tversky`` and ``focal_tversky``.
    tversky_gamma, focal_gamma : float
        Exponents of ``focal_tversky`` and ``focal``.
    thinning : int
        Erosions of ``soft_cl_dice``: at least the largest radius in voxels.
    deep_weight : float
        Of an auxiliary head's terms against those of the output.
    """

    background_weight: float = Field(0.1, gt=0, lt=1)
    miss_weight: float = Field(0.7, ge=0, le=1)
    tversky_gamma: float = Field(0.75, gt=0)
    focal_gamma: float = Field(2.0, ge=0)
    thinning: int = Field(3, ge=1, le=64)
    deep_weight: float = Field(0.5, ge=0)


class Target(NamedTuple):
    """What a network should return.

    ``phi`` ``(N, ...)`` is the signed distance in voxels, ``centreline`` ``(N, ...)`` one in a
    tube around the axis, ``labels`` ``(N, ...)`` the number of each voxel's class, by default
    one where ``phi`` < 0.
    """

    phi: Tensor
    centreline: Tensor
    labels: Tensor | None = None


Term = Callable[[Heads, Target, LossSettings], Tensor]


def log_shares(logit: Tensor) -> Tensor:
    """Return log p ``(N, K, ...)`` of K >= 2 classes, the background first."""
    if logit.shape[1] == 1:
        logit = torch.cat([torch.zeros_like(logit), logit], 1)
    return logit.log_softmax(1)


def truth(target: Target, classes: int) -> Tensor:
    """Return the target's shares ``(N, K, ...)``: soft at the wall of a lumen, hard for labels."""
    if classes <= 2:
        inside = torch.sigmoid(-target.phi / SOFTNESS)
        return torch.stack([1.0 - inside, inside], 1)
    labels = (target.phi < 0) if target.labels is None else target.labels
    return F.one_hot(labels.long(), classes).movedim(-1, 1).to(target.phi.dtype)


def lumen(heads: Heads, target: Target) -> tuple[Tensor, Tensor]:
    """Return p and target ``(N, K - 1, voxels)`` of all classes but the background."""
    p = log_shares(heads.logit).exp()
    return p[:, 1:].flatten(2), truth(target, p.shape[1])[:, 1:].flatten(2)


def soft_bce(heads: Heads, target: Target, settings: LossSettings) -> Tensor:
    """Cross-entropy against the soft target ``sigmoid(-phi / 0.5)``, or against labels."""
    log_p = log_shares(heads.logit)
    return -(truth(target, log_p.shape[1]) * log_p).sum(1).mean()


def weighted_ce(heads: Heads, target: Target, settings: LossSettings) -> Tensor:
    """Cross-entropy in which the background weighs little: a mean under weights."""
    log_p = log_shares(heads.logit)
    t = truth(target, log_p.shape[1])
    weight = t.new_full((t.shape[1],), 1.0 - settings.background_weight)
    weight[0] = settings.background_weight
    share = t * weight.view(-1, *(1 for _ in t.shape[2:]))
    return weighted_mean(-log_p, share)


def dice(heads: Heads, target: Target, settings: LossSettings) -> Tensor:
    """Soft Dice with squared denominator (Milletari 2016), mean over batch and classes."""
    p, t = lumen(heads, target)
    overlap = 2.0 * (p * t).sum(2) + SMOOTH
    return (1.0 - overlap / (p.square().sum(2) + t.square().sum(2) + SMOOTH)).mean()


def bce_dice(heads: Heads, target: Target, settings: LossSettings) -> Tensor:
    """Half the cross-entropy plus Dice."""
    return 0.5 * soft_bce(heads, target, settings) + dice(heads, target, settings)


def generalised_dice(heads: Heads, target: Target, settings: LossSettings) -> Tensor:
    """Dice over all classes, each weighted by its squared inverse volume (Sudre 2017)."""
    p = log_shares(heads.logit).exp().flatten(2)
    t = truth(target, p.shape[1]).flatten(2)
    weight = 1.0 / t.sum(2).square().clamp(min=1.0)
    shared, total = (weight * (p * t).sum(2)).sum(1), (weight * (p + t).sum(2)).sum(1)
    return (1.0 - 2.0 * shared / total).mean()


def focal(heads: Heads, target: Target, settings: LossSettings) -> Tensor:
    """Cross-entropy times (1 - p)^gamma, which hushes the easy voxels (Lin 2017)."""
    log_p = log_shares(heads.logit)
    hard = (1.0 - log_p.exp()).clamp(min=1e-6) ** settings.focal_gamma  # slope finite at p = 1
    return -(truth(target, log_p.shape[1]) * hard * log_p).sum(1).mean()


def tversky_index(heads: Heads, target: Target, settings: LossSettings) -> Tensor:
    """Return TP / (TP + a FN + (1 - a) FP) of each image and class (Salehi 2017)."""
    p, t = lumen(heads, target)
    both = (p * t).sum(2)
    missed, false = t.sum(2) - both, p.sum(2) - both
    cost = settings.miss_weight * missed + (1.0 - settings.miss_weight) * false
    return (both + SMOOTH) / (both + cost + SMOOTH)


def tversky(heads: Heads, target: Target, settings: LossSettings) -> Tensor:
    """One minus the Tversky index."""
    return (1.0 - tversky_index(heads, target, settings)).mean()


def focal_tversky(heads: Heads, target: Target, settings: LossSettings) -> Tensor:
    """``(1 - Tversky)^gamma`` (Abraham 2019) of the classes that are there.

    For gamma < 1 the slope is infinite where the index is 1, which float32 reaches at logits of
    10; times a zero slope of the index that is NaN. Hence 1 - index >= 1e-4. A class that is
    absent teaches nothing (index of constants) and is left out.
    """
    present = truth(target, max(2, heads.logit.shape[1]))[:, 1:].flatten(2).amax(2) > 0.5
    miss = (1.0 - tversky_index(heads, target, settings)).clamp(min=LEAST_MISS)
    return of_present(miss**settings.tversky_gamma, present)


def lovasz(heads: Heads, target: Target, settings: LossSettings) -> Tensor:
    """Lovász-softmax (Berman 2018): the convex extension of 1 - Jaccard, hard target."""
    p, t = lumen(heads, target)
    t = (t > 0.5).to(p.dtype)
    error, order = (t - p).abs().sort(2, descending=True)
    hit = t.gather(2, order)
    total = hit.sum(2, keepdim=True)
    union = total + (1.0 - hit).cumsum(2)
    jaccard = 1.0 - (total - hit.cumsum(2)) / union.clamp(min=1.0)
    step = torch.cat([jaccard[..., :1], jaccard[..., 1:] - jaccard[..., :-1]], 2)
    return of_present((error * step).sum(2), total[..., 0] > 0)


def of_present(values: Tensor, present: Tensor) -> Tensor:
    """Return the mean ``(N, classes)`` over the classes that are there, then over images."""
    return ((values * present).sum(1) / present.sum(1).clamp(min=1)).mean()


def boundary(heads: Heads, target: Target, settings: LossSettings) -> Tensor:
    """Mean of p times the distance of the case, in units of 4 voxels (Kervadec 2019)."""
    return (torch.sigmoid(lumen_logit(heads.logit)) * target.phi).mean() / SATURATION


def soft_cl_dice(heads: Heads, target: Target, settings: LossSettings) -> Tensor:
    """One minus soft clDice (Shit 2021): skeletons of p and target, each inside the other."""
    p = torch.sigmoid(lumen_logit(heads.logit))[:, None]
    t = torch.sigmoid(-target.phi / SOFTNESS)[:, None]
    thin_p, thin_t = (soft_skeleton(x, settings.thinning) for x in (p, t))
    precise = ((thin_p * t).flatten(1).sum(1) + SMOOTH) / (thin_p.flatten(1).sum(1) + SMOOTH)
    found = ((thin_t * p).flatten(1).sum(1) + SMOOTH) / (thin_t.flatten(1).sum(1) + SMOOTH)
    return (1.0 - 2.0 * precise * found / (precise + found)).mean()


def soft_skeleton(x: Tensor, thinning: int) -> Tensor:
    """Return what opening removes from each of the erosions of ``(N, 1, ...)``."""
    skeleton = torch.relu(x - dilate(erode(x)))
    for _ in range(thinning):
        x = erode(x)
        rest = torch.relu(x - dilate(erode(x)))
        skeleton = skeleton + torch.relu(rest - skeleton * rest)
    return skeleton


def erode(x: Tensor) -> Tensor:
    """Return the least value of each voxel and its neighbours across faces."""
    axes = range(x.ndim - 2)
    crosses = ([3 if a == axis else 1 for a in axes] for axis in axes)
    return -functools.reduce(torch.maximum, (_max_pool(-x, cross) for cross in crosses))


def dilate(x: Tensor) -> Tensor:
    """Return the largest value of each voxel and all its neighbours."""
    return _max_pool(x, [3] * (x.ndim - 2))


def _max_pool(x: Tensor, kernel: list[int]) -> Tensor:
    pool: Callable[..., Tensor] = F.max_pool2d if len(kernel) == 2 else F.max_pool3d
    return pool(x, kernel, 1, [k // 2 for k in kernel])


def skeleton_recall(heads: Heads, target: Target, settings: LossSettings) -> Tensor:
    """Share of the centreline tube that is missed (Kirchhoff 2024); zero without a tube."""
    tube = target.centreline.flatten(1).float()
    found = (torch.sigmoid(lumen_logit(heads.logit)).flatten(1) * tube).sum(1)
    total = tube.sum(1)
    return ((total - found) / total.clamp(min=1.0)).mean()


def sdf_nll(heads: Heads, target: Target, settings: LossSettings) -> Tensor:
    """Beta-NLL, beta 0.5 (Seitzer 2022), of the distance near the wall."""
    sdf, log_sigma = distance(heads)
    sigma = log_sigma.exp()
    residual = sdf - saturated(target.phi)
    nll = 0.5 * (residual / sigma).square() + log_sigma
    return weighted_mean(sigma.detach() * nll, band_weight(target.phi))


def sdf_l1(heads: Heads, target: Target, settings: LossSettings) -> Tensor:
    """Absolute error of the distance near the wall, in voxels."""
    return weighted_mean(
        (distance(heads)[0] - saturated(target.phi)).abs(), band_weight(target.phi)
    )


TERMS: dict[str, Term] = {
    "soft_bce": soft_bce,
    "weighted_ce": weighted_ce,
    "dice": dice,
    "bce_dice": bce_dice,
    "generalised_dice": generalised_dice,
    "focal": focal,
    "tversky": tversky,
    "focal_tversky": focal_tversky,
    "lovasz": lovasz,
    "boundary": boundary,
    "soft_cl_dice": soft_cl_dice,
    "skeleton_recall": skeleton_recall,
    "sdf_nll": sdf_nll,
    "sdf_l1": sdf_l1,
}

DEFAULT = {"soft_bce": 1.0, "dice": 1.0, "sdf_nll": 0.5, "sdf_l1": 0.2, "skeleton_recall": 0.1}
NEED_DISTANCE = {"sdf_nll", "sdf_l1"}
OF_SHARES = {"monai:AsymmetricUnifiedFocalLoss"}  # two classes; its own sigmoid is words only
OF_LABELS = {"monai:NACLLoss"}


def find(name: str) -> Term:
    """Return a term by its name; ``monai:Class`` is a loss of MONAI."""
    if name.startswith("monai:"):
        return monai_term(name)
    if name not in TERMS:
        raise ConfigError(f"unknown loss '{name}'", need=" | ".join((*TERMS, "monai:Class")))
    return TERMS[name]


def monai_term(name: str) -> Term:
    """Make a term of MONAI's loss class, which sees a softmax over all classes and the truth."""
    kind: Any = extras.monai_class(name, "monai.losses")
    if name in OF_LABELS:

        def of_labels(heads: Heads, target: Target, settings: LossSettings) -> Tensor:
            log_p = log_shares(heads.logit)
            count, dims = log_p.shape[1], log_p.ndim - 2
            return torch.as_tensor(kind(count, dims)(log_p, truth(target, count).argmax(1)))

        return of_labels
    try:
        loss = kind() if name in OF_SHARES else kind(softmax=True)
    except TypeError:
        raise ConfigError(f"loss '{name}' takes no softmax", need="one that does") from None

    def term(heads: Heads, target: Target, settings: LossSettings) -> Tensor:
        log_p = log_shares(heads.logit)
        x = log_p.exp() if name in OF_SHARES else log_p
        return torch.as_tensor(loss(x, truth(target, log_p.shape[1])))

    return term


def parts(
    heads: Heads,
    target: Target,
    weights: Mapping[str, float],
    settings: LossSettings = LossSettings(),  # noqa: B008 - frozen
) -> dict[str, Tensor]:
    """Return each weighted term by name; the loss is their sum.

    Auxiliary heads add ``deep/<name>``: the terms that need logits only, times ``deep_weight``.
    """
    terms = {name: find(name) for name in weights}
    logits = {name: term for name, term in terms.items() if name not in NEED_DISTANCE}
    result = {name: weights[name] * term(heads, target, settings) for name, term in terms.items()}
    for logit in heads.deep:
        for name, term in logits.items():
            share = settings.deep_weight * weights[name] * term(Heads(logit), target, settings)
            result[f"deep/{name}"] = result.get(f"deep/{name}", 0.0) + share
    return result


def distance(heads: Heads) -> tuple[Tensor, Tensor]:
    """Return signed distance and log sigma of a network that has them."""
    if heads.sdf is None or heads.log_sigma is None:
        need = "losses without " + ", ".join(sorted(NEED_DISTANCE))
        raise ConfigError("the network has no distance", need=need, remedy="or distance = true")
    return heads.sdf, heads.log_sigma


def saturated(phi: Tensor) -> Tensor:
    """Return ``4 tanh(phi / 4)``: the distance near the wall, its sign far away."""
    return SATURATION * torch.tanh(phi / SATURATION)


def band_weight(phi: Tensor) -> Tensor:
    """Return ``exp(-(phi / 3)²) + 0.1``."""
    return torch.exp(-(phi / BAND).square()) + 0.1


def weighted_mean(values: Tensor, weight: Tensor) -> Tensor:
    """Return the mean of each image under positive weights, averaged over images."""
    return ((weight * values).flatten(1).sum(1) / weight.flatten(1).sum(1)).mean()


def scores(heads: Heads, target: Target) -> dict[str, float]:
    """Return the Dice of the lumen and of each of several classes, and the wall error.

    The latter, of a network with a distance, is its mean error near the wall in voxels.
    """
    inside = lumen_logit(heads.logit) > 0 if heads.sdf is None else heads.sdf < 0
    found = {"val_dice": hard_dice(inside, target.phi < 0)}
    if (count := heads.logit.shape[1]) > 1 and target.labels is not None:
        best = heads.logit.argmax(1)
        each = {f"val_dice_{n}": hard_dice(best == n, target.labels == n) for n in range(1, count)}
        found |= each
    if heads.sdf is None:
        return found
    near = target.phi.abs() < NEAR
    error = (heads.sdf - target.phi).abs() * near
    return found | {"val_wall": (error.sum() / near.sum().clamp(min=1)).item()}


def misses(heads: Heads, target: Target) -> Tensor:
    """Return errors of the wall, absolute and in s.d., ``(2, voxels at a found wall near it)``."""
    if heads.sdf is None or heads.log_sigma is None:
        return torch.empty(2, 0)
    at = (heads.sdf.abs() < AT_WALL) & (target.phi.abs() < NEAR)
    error = (heads.sdf - target.phi)[at].abs()
    return torch.stack([error, error * torch.exp(-heads.log_sigma[at])]).cpu()


def hard_dice(found: Tensor, actual: Tensor) -> float:
    """Return the Dice of two masks, one where both are empty."""
    both = (found & actual).sum()
    return float((2.0 * both + SMOOTH) / (found.sum() + actual.sum() + SMOOTH))
