"""Point formulas of the level-set kernels: one-sided differences, Godunov, cubic interpolation."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numba import njit
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]
Pair: TypeAlias = tuple[float, float]

WENO_EPSILON = 1.2e-5  # times h² per axis: smaller values give 0/0 on linear float32 data


@njit(error_model="numpy")
def lower_upper(n: int, i: int, w: int) -> tuple[int, int]:
    """Return the clamped neighbours i - w and i + w on an axis of n samples."""
    return max(i - w, 0), min(i + w, n - 1)


@njit(error_model="numpy")
def weno5(a: float, b: float, c: float, d: float, e: float, epsilon: float) -> float:
    """Fifth-order HJ-WENO derivative from five one-sided differences (Jiang & Peng 2000, §3)."""
    s0 = 13.0 / 12.0 * (a - 2.0 * b + c) ** 2 + 0.25 * (a - 4.0 * b + 3.0 * c) ** 2
    s1 = 13.0 / 12.0 * (b - 2.0 * c + d) ** 2 + 0.25 * (b - d) ** 2
    s2 = 13.0 / 12.0 * (c - 2.0 * d + e) ** 2 + 0.25 * (3.0 * c - 4.0 * d + e) ** 2
    w0 = 0.1 / (epsilon + s0) ** 2
    w1 = 0.6 / (epsilon + s1) ** 2
    w2 = 0.3 / (epsilon + s2) ** 2
    p0 = a / 3.0 - 7.0 * b / 6.0 + 11.0 * c / 6.0
    p1 = -b / 6.0 + 5.0 * c / 6.0 + d / 3.0
    p2 = c / 3.0 + 5.0 * d / 6.0 - e / 6.0
    return (w0 * p0 + w1 * p1 + w2 * p2) / (w0 + w1 + w2)


@njit(error_model="numpy")
def weno5_pair(
    m3: float, m2: float, m1: float, c0: float, p1: float, p2: float, p3: float, h: float
) -> Pair:
    """Left and right WENO5 derivatives of seven samples with spacing h."""
    g = 1.0 / h
    d0 = (m2 - m3) * g
    d1 = (m1 - m2) * g
    d2 = (c0 - m1) * g
    d3 = (p1 - c0) * g
    d4 = (p2 - p1) * g
    d5 = (p3 - p2) * g
    # The differences are slopes, so the smoothness measure is of order (slope)², not h².
    left = weno5(d0, d1, d2, d3, d4, WENO_EPSILON)
    right = weno5(d5, d4, d3, d2, d1, WENO_EPSILON)
    return left, right


@njit(error_model="numpy")
def minmod(a: float, b: float) -> float:
    """Return the argument of smaller magnitude if both have one sign, else zero."""
    if (a > 0.0) == (b > 0.0):
        return a if abs(a) < abs(b) else b
    return 0.0 * a


@njit(error_model="numpy")
def eno2_pair(m2: float, m1: float, c0: float, p1: float, p2: float, h: float) -> Pair:
    """Left and right second-order ENO derivatives of five samples with spacing h."""
    g = 1.0 / h
    # Mirrored samples give the mirrored result to the last bit: the order of the sums matters.
    middle = (m1 + p1 - 2.0 * c0) * g
    left = (c0 - m1) * g + 0.5 * minmod(m2 - 2.0 * m1 + c0, middle * h) * g
    right = (p1 - c0) * g - 0.5 * minmod(p2 - 2.0 * p1 + c0, middle * h) * g
    return left, right


@njit(error_model="numpy")
def upwind_sq(left: float, right: float, outward: bool) -> float:
    """Godunov's squared derivative of |grad phi| for a front moving outward or inward."""
    if outward:
        a = max(left, 0.0)
        b = min(right, 0.0)
    else:
        a = min(left, 0.0)
        b = max(right, 0.0)
    return max(a * a, b * b)


@njit(error_model="numpy")
def lagrange_weights(t: float) -> tuple[float, ...]:
    """Weights of the cubic through samples -1, 0, 1, 2 at t, and of its derivative."""
    u = 1.0 - t
    w0 = -t * u * (1.0 + u) / 6.0
    w1 = (1.0 + t) * u * (1.0 + u) / 2.0
    w2 = (1.0 + u) * t * (1.0 + t) / 2.0
    w3 = -t * u * (1.0 + t) / 6.0
    d0 = (-3.0 * t * t + 6.0 * t - 2.0) / 6.0
    d1 = (3.0 * t * t - 4.0 * t - 1.0) / 2.0
    d2 = (-3.0 * t * t + 2.0 * t + 2.0) / 2.0
    d3 = (3.0 * t * t - 1.0) / 6.0
    return w0, w1, w2, w3, d0, d1, d2, d3


@njit(error_model="numpy")
def stencil_base(x: float, n: int) -> tuple[int, float]:
    """First sample and local coordinate of the four-sample stencil, shifted inside the axis."""
    i = int(np.floor(x)) - 1
    i = max(min(i, n - 4), 0)
    return i, x - i - 1.0
