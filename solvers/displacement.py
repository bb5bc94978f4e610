"""The most probable displacement of the wall: one linear solve along the wall.

Minimises Σ ω (r - J δ)² / (2 σ²) + ½ ∫ T (κ_r - Δ_Γ δ)² + ½ ∫ τ (δ + δ₀)² over the core of the
band: data of a linearised image model, a thin plate of stiffness T that resists the rough part
κ_r of the wall's own mean curvature, and a weak pin to the start, δ₀ away.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vesselseg.cuda_kernels.sheet import bend_along_wall, solve_along_wall

MAX_CG = 150
CG_TOLERANCE = 1e-2
# A layer of voxels with a ragged rim conducts less along a wall than a smooth sheet: dense
# covariances on spheres give lengths 1.2 times too short without this factor.
SHEET = 1.2

Values = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class WallPrior:
    """What is believed of the wall before the image is seen, at the core voxels (core,).

    ``stiffness`` T and ``pin`` τ per wall area, ``rough`` curvature κ_r in 1/mm, ``moved`` the
    distance δ₀ from the start in mm.
    """

    stiffness: Values
    pin: Values
    rough: Values
    moved: Values


@dataclass(frozen=True, eq=False)
class Data:
    """Data gathered at the core voxels: precision Σ ω J²/σ² and gradient Σ ω J r/σ²."""

    precision: Values
    gradient: Values


def solve_displacement(
    data: Data,
    prior: WallPrior,
    table: NDArray[np.uint32],
    spacing: tuple[float, ...],
    area_mm: float,
) -> Values:
    """Return the most probable displacement from the present wall at the core voxels, mm."""
    scale = sheet_scale(1.0, spacing)
    pin, stiffness = area_mm * prior.pin, area_mm * prior.stiffness
    pull, step = np.empty_like(pin), np.zeros_like(pin)
    bend_along_wall(table, scale, stiffness * prior.rough, pull)
    gradient = data.gradient - pin * prior.moved - pull
    precision = data.precision + pin
    solve_along_wall(table, scale, precision, stiffness, gradient, step, True, MAX_CG, CG_TOLERANCE)
    return step


def smooth_along_wall(
    values: Values, table: NDArray[np.uint32], length_mm: float, spacing: tuple[float, ...]
) -> Values:
    """Return (1 - l² Δ_Γ)⁻¹ values at the core voxels."""
    x, one = values.copy(), np.ones_like(values)
    scale = sheet_scale(length_mm, spacing)
    solve_along_wall(table, scale, one, one, values, x, False, MAX_CG, CG_TOLERANCE)
    return x


def smoothing_steps(length_mm: float, spacing: tuple[float, ...]) -> int:
    """Return how many conjugate gradients ``smooth_along_wall`` takes at most.

    The error falls by (√κ - 1)/(√κ + 1) a step, κ below 1 + 4 Σ l²/h²; a quarter is added.
    """
    condition = 1.0 + 4.0 * float(sheet_scale(length_mm, spacing).sum())
    steps = 1.25 * 0.5 * np.sqrt(condition) * np.log(2.0 / CG_TOLERANCE)
    return min(int(np.ceil(steps)), MAX_CG)


def sheet_scale(length_mm: float, spacing: tuple[float, ...]) -> Values:
    """Return l²/h² per axis of the Laplacian on the layer of core voxels."""
    return np.asarray((SHEET * length_mm / np.asarray(spacing)) ** 2)
