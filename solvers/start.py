"""From a probability to a level set, without ever binarising."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vesselseg.errors import NoInterfaceError
from vesselseg.fields import LevelSet, Probability
from vesselseg.grid import Grid

from .redistancing import redistance

BAND = 4.5  # half-width of the trusted band in largest spacings
CLIP = 1e-6  # probabilities are clipped here before the logit
SIGMA_LIMITS = (0.05, 2.0)  # of the wall position, in largest spacings
LOGIT_SIGMA = 1.03  # wall s.d. = this / |grad logit|, calibrated on synthetic maps
MASK_SIGMA = 0.3  # a mask places the wall to about a uniform error within one voxel: h / sqrt(12)


def level_set_from_probability(
    probability: Probability, *, band_mm: float | None = None
) -> LevelSet:
    """Signed distance to the p = 0.5 surface of the logit-interpolated probability.

    A network's own distance is used where it has one; a mask keeps the floor of its voxels
    (mean wall error about 0.18 voxel), which its standard deviation states.
    """
    grid = probability.grid
    inside = probability.values > 0.5
    if inside.all() or not inside.any():
        what = "background" if inside.all() else "lumen"
        raise NoInterfaceError(f"the start holds no {what}", need="a wall at p = 0.5")
    raw = probability.phi_mm if probability.phi_mm is not None else -logit(probability.values)
    band = BAND * grid.h_max if band_mm is None else band_mm
    phi = redistance(raw, grid.spacing_mm, band_mm=band)
    sigma: NDArray[np.floating]
    if probability.sigma_mm is not None:
        sigma = probability.sigma_mm
    elif probability.soft:
        sigma = LOGIT_SIGMA / np.maximum(_slope(raw, grid), 1e-9)
    else:
        sigma = np.full(grid.shape_kji, MASK_SIGMA * grid.h_max)
    low, high = (limit * grid.h_max for limit in SIGMA_LIMITS)
    return LevelSet(phi, grid, band, np.clip(sigma, low, high), probability.notes)


def logit(p: NDArray) -> NDArray[np.float32]:
    """Return log(p / (1 - p)) with p clipped to [1e-6, 1 - 1e-6]."""
    q = np.clip(np.asarray(p, dtype=np.float64), CLIP, 1.0 - CLIP)
    return np.asarray(np.log(q) - np.log1p(-q), dtype=np.float32)


def _slope(raw: NDArray, grid: Grid) -> NDArray[np.float64]:
    """|grad| of the logit per mm; plateaus of clipped values keep a zero slope."""
    gradient = np.gradient(raw.astype(np.float64), *grid.spacing_mm)
    return np.asarray(np.sqrt(sum(g * g for g in gradient)))
