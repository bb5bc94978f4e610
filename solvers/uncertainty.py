"""Laplace approximation on the wall: posterior variance and evidence of a displacement.

The displacement has the prior spectrum S(q) = 1 / (τ (1 + l² q²)²) along the wall (a Matérn
field, Whittle 1954; Lindgren, Rue & Lindström 2011) with τ = 1 / (4 π l² σ²) on a surface and
1 / (4 l σ²) on a curve, so that its variance is σ². The image gives the Fisher information i per
wall area. On a locally flat wall with slowly varying i

    variance = ∫ dq / (2π)^d  1 / (i + 1/S(q)),   log det = ∫ dq / (2π)^d log(1 + i S(q)).
"""

from __future__ import annotations

import functools
import math

import numpy as np
from numpy.typing import NDArray

ROOT_FOUR_PI = 2.0 * math.sqrt(math.pi)


def fisher_information(
    contrast: NDArray, blur_mm: NDArray, noise: float, voxel_mm: float
) -> NDArray:
    """Information on the normal displacement per wall area, mm⁻² per mm² (or mm).

    i = D² / (2 √π s σ² V): the squared slope of a wall blurred by s summed over voxels of
    volume V. Its inverse over an area A is the Cramér-Rao bound.
    """
    return contrast**2 / (ROOT_FOUR_PI * blur_mm * noise**2 * voxel_mm)


def prior_weight(sigma: NDArray | float, length: float, wall_dims: int) -> NDArray | float:
    """Return τ for a prior s.d. sigma and correlation length, both mm."""
    measure = 4.0 * math.pi * length**2 if wall_dims == 2 else 4.0 * length
    return 1.0 / (measure * np.square(sigma))


@functools.cache
def _tables(wall_dims: int) -> tuple[NDArray, NDArray, NDArray]:
    """Variance ratio and log det, times the prior's measure, over log(i / τ)."""
    ratio = np.logspace(-6, 10, 129)
    q = np.concatenate([[0.0], np.logspace(-4, 4, 4001)])  # in units of 1 / l
    u2 = (1.0 + q**2) ** 2
    shell = q / (2.0 * math.pi) if wall_dims == 2 else np.full_like(q, 1.0 / math.pi)
    measure = 4.0 * math.pi if wall_dims == 2 else 4.0
    variance = np.trapezoid(shell / (ratio[:, None] + u2), q, axis=1) * measure
    logdet = np.trapezoid(shell * np.log1p(ratio[:, None] / u2), q, axis=1)
    return np.log(ratio), np.log(variance), np.log(logdet)


def posterior_sigma(
    information: NDArray, sigma: NDArray, length: float, wall_dims: int
) -> NDArray[np.float64]:
    """Posterior s.d. of the wall position, mm; it tends to the prior's where i vanishes."""
    tau = prior_weight(sigma, length, wall_dims)
    grid, variance, _ = _tables(wall_dims)
    ratio = np.log(np.maximum(information / tau, 1e-6))
    return np.asarray(sigma * np.exp(0.5 * np.interp(ratio, grid, variance)))


def evidence_penalty(
    information: NDArray, sigma: NDArray, length: float, wall_dims: int
) -> NDArray[np.float64]:
    """Occam term log det(I + C i) per wall area, mm⁻² (or mm⁻¹)."""
    tau = prior_weight(sigma, length, wall_dims)
    grid, _, logdet = _tables(wall_dims)
    ratio = np.log(np.maximum(information / tau, 1e-6))
    return np.asarray(np.exp(np.interp(ratio, grid, logdet)) / length**wall_dims)
