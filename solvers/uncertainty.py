"""Laplace approximation on the wall: posterior variance of its position in closed form.

Where the image gives the Fisher information i per wall area and the prior has the precision
τ + T q⁴ at wavenumber q along the wall (a thin plate of stiffness T, pinned to the start with
strength τ), the posterior variance on a locally flat wall with slowly varying i is

    ∫ dq / (2π)^d  1 / (i + τ + T q⁴)  =  1 / (8 √((i + τ) T))              on a surface (d = 2),
                                          1 / (2 √2 (i + τ)^(3/4) T^(1/4))  on a curve (d = 1).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

ROOT_EIGHT = math.sqrt(8.0)


def pin_strength(sigma: NDArray, stiffness: NDArray, wall_dims: int) -> NDArray:
    """Return τ such that the s.d. is that of the start, sigma, where i vanishes."""
    if wall_dims == 2:
        return np.asarray(1.0 / (64.0 * stiffness * sigma**4))
    return np.asarray((ROOT_EIGHT * sigma**2 * stiffness**0.25) ** (-4.0 / 3.0))


def posterior_sigma(precision: NDArray, stiffness: NDArray, wall_dims: int) -> NDArray:
    """S.d. of the wall position, mm, for a precision i + τ per wall area and a stiffness T."""
    if wall_dims == 2:
        return np.asarray((64.0 * precision * stiffness) ** -0.25)
    return np.asarray((ROOT_EIGHT * precision**0.75 * stiffness**0.25) ** -0.5)
