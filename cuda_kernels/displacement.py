"""The most probable displacement of the wall but for its linear solves, in NumPy.

Laplace approximation on the wall: where the image gives the Fisher information i per wall area and
the prior has the precision τ + T q⁴ at wavenumber q along the wall (a thin plate of stiffness T,
pinned to the start with strength τ), the posterior variance on a locally flat wall with slowly
varying i is

    ∫ dq / (2π)^d  1 / (i + τ + T q⁴)  =  1 / (8 √((i + τ) T))              on a surface (d = 2),
                                          1 / (2 √2 (i + τ)^(3/4) T^(1/4))  on a curve (d = 1).

The formulas are the reference of the kernels of ``displacement.cu``.
"""

from __future__ import annotations

import math

import numpy as np

from .stencils import Array

ROOT_EIGHT = math.sqrt(8.0)


def pin_strength(sigma: Array, stiffness: Array, wall_dims: int) -> Array:
    """Return τ such that the s.d. is that of the start, sigma, where i vanishes."""
    if wall_dims == 2:
        return np.asarray(1.0 / (64.0 * stiffness * sigma**4))
    return np.asarray((ROOT_EIGHT * sigma**2 * stiffness**0.25) ** (-4.0 / 3.0))


def posterior_sigma(precision: Array, stiffness: Array, wall_dims: int) -> Array:
    """S.d. of the wall position, mm, for a precision i + τ per wall area and a stiffness T."""
    if wall_dims == 2:
        return np.asarray((64.0 * precision * stiffness) ** -0.25)
    return np.asarray((ROOT_EIGHT * precision**0.75 * stiffness**0.25) ** -0.5)


def doubted_sigma(sigma: Array, before: Array, misfit: Array | float) -> Array:
    """S.d. of a wall in an image that shows more than model and white noise.

    ``misfit`` is the residual's power over that of white noise, by which the variance grows. As
    much of the variance that the start had ``before`` comes back as this power has a share that is
    no noise: an image that the model does not explain has not told where the wall is.
    """
    return np.asarray(np.sqrt(misfit * sigma**2 + (1.0 - 1.0 / misfit) * before**2))


def plate_stiffness(detail: Array, typical: float, reach4: float, softness: float) -> Array:
    """Return the stiffness T: i a⁴ of a typical information i, less where there is true detail."""
    stiffest = reach4 * max(typical, 1e-12)
    return np.asarray(1.0 / (1.0 / stiffest + softness * detail))


def bounded_step(step: Array, moved: Array, sigma: Array, reach: float, limit: float) -> Array:
    """Keep a step within reach s.d. of the start, from which the wall has moved, and a limit."""
    most = reach * sigma
    return np.asarray(np.clip(np.clip(moved + step, -most, most) - moved, -limit, limit))
