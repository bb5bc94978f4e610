"""Fewer cases that say as much: the hardest first, then those unlike the ones already taken."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .folder import Item

BINS = np.linspace(0.0, 1.0, 17)
LEAST_HARD = 0.25  # weight of the easiest case's difference against the hardest one's


def choose(items: Sequence[Item], share: float) -> list[int]:
    """Return the indices, in order, of a share of the cases, rounded up.

    Greedy covering (Gonzalez 1985): each step takes the case whose distance to the nearest one
    taken, in intensities, amount and spread of lumen, times its hardness, is largest.
    """
    count = math.ceil(share * len(items) - 1e-9)
    looks = np.stack([description(item) for item in items])
    weight = np.maximum(LEAST_HARD, [hardness(item) for item in items])
    taken = [int(np.argmax(weight))]
    away = np.full(len(items), np.inf)
    while len(taken) < count:
        away = np.minimum(away, np.linalg.norm(looks - looks[taken[-1]], axis=1))
        score = away * weight
        score[taken] = -1.0
        taken.append(int(np.argmax(score)))
    return sorted(taken)


def description(item: Item) -> NDArray[np.float64]:
    """Return shares of intensities, logarithm of the amount of lumen, its place and spread."""
    shares = histogram(item.image[0]) / item.image[0].size
    lumen = item.labels > 0
    amount = math.log10(max(lumen.mean(), 1e-5)) / 5.0
    points = item.inside / np.array(lumen.shape)
    if not len(points):
        return np.array([*shares, amount, *np.zeros(2 * lumen.ndim)])
    return np.array([*shares, amount, *points.mean(0), *points.std(0)])


def hardness(item: Item) -> float:
    """Return how much intensities inside and outside overlap (Bhattacharyya), 0 to 1."""
    lumen = item.labels > 0
    if lumen.all() or not lumen.any():
        return 1.0
    inside, outside = (histogram(item.image[0][m]) for m in (lumen, ~lumen))
    return float(np.sqrt(inside / inside.sum() * outside / outside.sum()).sum())


def histogram(values: NDArray) -> NDArray[np.float64]:
    """Count intensities, those beyond the percentiles in the last bins."""
    return np.histogram(np.clip(values, 0.0, 1.0), BINS)[0].astype(np.float64)
