"""Point formulas of the level-set kernels: one-sided differences, Godunov, cubic interpolation."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numba import njit
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]
Real: TypeAlias = Any  # float32 or float64, the type of the field
Index: TypeAlias = Any  # unsigned: a signed one may count from the end, which stops vectors
Pair: TypeAlias = tuple[Real, Real]

# Numbers that float32 holds exactly: they promote neither float32 nor float64 operands.
ZERO, HALF, ONE, TWO, THREE, FOUR, SIX, SEVEN, TWELVE, THIRTEEN = (
    np.float32(x) for x in (0, 0.5, 1, 2, 3, 4, 6, 7, 12, 13)
)
# Times h² per axis, twelvefold: smaller values give 0/0 on linear float32 data.
WENO_EPSILON = np.float32(12 * 1.2e-5)


@njit(error_model="numpy", forceinline=True)
def lower_upper(n: int, i: int, w: int) -> tuple[int, int]:
    """Return the clamped neighbours i - w and i + w on an axis of n samples."""
    return max(i - w, 0), min(i + w, n - 1)


@njit(error_model="numpy", forceinline=True)
def weno5_bend(a: Real, b: Real, c: Real, d: Real, epsilon: Real) -> Real:
    """Twelve times Φ of four second differences: WENO5's distance from the central difference.

    Jiang & Peng 2000, eq. 2.19; the smoothness is scaled, so that its powers stay in range.
    """
    e0 = epsilon + THIRTEEN * (a - b) * (a - b) + THREE * (a - THREE * b) * (a - THREE * b)
    e1 = epsilon + THIRTEEN * (b - c) * (b - c) + THREE * (b + c) * (b + c)
    e2 = epsilon + THIRTEEN * (c - d) * (c - d) + THREE * (THREE * c - d) * (THREE * c - d)
    scale = ONE / (e0 + e1 + e2)
    e0 *= scale
    e1 *= scale
    e2 *= scale
    w0 = e1 * e2 * (e1 * e2)
    w1 = SIX * (e0 * e2 * (e0 * e2))
    w2 = THREE * (e0 * e1 * (e0 * e1))
    total = w0 + w1 + w2
    sides = FOUR * w0 * (a - TWO * b + c) + (TWO * w2 - total) * (b - TWO * c + d)
    return sides / total


@njit(error_model="numpy", forceinline=True)
def weno5_pair(
    m3: Real, m2: Real, m1: Real, c0: Real, p1: Real, p2: Real, p3: Real, h: Real
) -> Pair:
    """Left and right WENO5 derivatives of seven samples with spacing h."""
    d0 = m2 - m3
    d1 = m1 - m2
    d2 = c0 - m1
    d3 = p1 - c0
    d4 = p2 - p1
    d5 = p3 - p2
    epsilon = WENO_EPSILON * (h * h)
    # Mirrored samples give the mirrored result to the last bit: the order of the sums matters.
    central = SEVEN * (d2 + d3) - (d1 + d4)
    below = weno5_bend(d1 - d0, d2 - d1, d3 - d2, d4 - d3, epsilon)
    above = weno5_bend(d5 - d4, d4 - d3, d3 - d2, d2 - d1, epsilon)
    g = ONE / (TWELVE * h)
    return (central - below) * g, (central + above) * g


@njit(error_model="numpy", forceinline=True)
def minmod(a: Real, b: Real) -> Real:
    """Return the argument of smaller magnitude if both have one sign, else zero."""
    small = a if abs(a) < abs(b) else b
    return small if (a > ZERO) == (b > ZERO) else ZERO * a


@njit(error_model="numpy", forceinline=True)
def eno2_pair(m2: Real, m1: Real, c0: Real, p1: Real, p2: Real, h: Real) -> Pair:
    """Left and right second-order ENO derivatives of five samples with spacing h."""
    g = ONE / h
    middle = m1 + p1 - TWO * c0
    left = c0 - m1 + HALF * minmod(m2 - TWO * m1 + c0, middle)
    right = p1 - c0 - HALF * minmod(p2 - TWO * p1 + c0, middle)
    return left * g, right * g


@njit(error_model="numpy", forceinline=True)
def upwind_sq(left: Real, right: Real, outward: bool) -> Real:
    """Godunov's squared derivative of |grad phi| for a front moving outward or inward."""
    a = left if outward else -left
    b = right if outward else -right
    a = a if a > ZERO else ZERO * a
    b = b if b < ZERO else ZERO * b
    return a * a if a * a > b * b else b * b
