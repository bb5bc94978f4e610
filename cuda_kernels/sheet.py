"""Linear solves along a wall: a layer of voxels as a graph, ``A = 1 - l² Laplacian`` on it.

``table`` (n, 6) lists the face neighbours of each voxel on the same wall (-1: none), in the order
-z, +z, -y, +y, -x, +x; ``scale`` holds l²/h² per axis (z, y, x). No flux leaves the layer.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from .jit import compiled
from .stencils import Array


@njit()
def _screened_at(table: Array, values: Array, n: int, scale: Array) -> float:
    here = values[n]
    total = here
    for side in range(6):
        m = table[n, side]
        if m >= 0:
            total += scale[side // 2] * (here - values[m])
    return float(total)


@njit()
def _diagonal_at(table: Array, n: int, scale: Array, squared: bool) -> float:
    links = 0.0
    squares = 0.0
    for side in range(6):
        if table[n, side] >= 0:
            links += scale[side // 2]
            squares += scale[side // 2] ** 2
    return (1.0 + links) ** 2 + squares if squared else 1.0 + links


@compiled()
def solve_along_wall(
    table: Array,
    scale: Array,
    precision: Array,
    root: Array,
    rhs: Array,
    x: Array,
    squared: bool,
    most: int,
    tolerance: float,
) -> int:
    """Solve (precision + root A² root) x = rhs, or with A instead of A²; x holds the start.

    Conjugate gradients (Hestenes & Stiefel 1952) with the diagonal as preconditioner, until the
    residual has fallen by the tolerance; returns the number of iterations. The sweeps are short
    and many: one thread is faster than waiting for a second one at each of them.
    """
    n = x.shape[0]
    p = x.copy()
    q = np.empty(n)
    r = np.empty(n)
    diagonal = np.empty(n)
    scaled = root * p
    middle = np.empty(n)
    rz = 0.0
    goal = 0.0
    for iteration in range(-1, most):
        if squared:
            for m in range(n):
                middle[m] = _screened_at(table, scaled, m, scale)
        curve = 0.0
        for m in range(n):
            inner = _screened_at(table, middle if squared else scaled, m, scale)
            q[m] = precision[m] * p[m] + root[m] * inner
            curve += p[m] * q[m]
        old = rz
        rz = 0.0
        if iteration < 0:
            # The first pass applies the system to the start: residual and preconditioner.
            for m in range(n):
                diagonal[m] = precision[m] + root[m] ** 2 * _diagonal_at(table, m, scale, squared)
                r[m] = rhs[m] - q[m]
                rz += r[m] ** 2 / diagonal[m]
                goal += (tolerance * rhs[m]) ** 2 / diagonal[m]
                p[m] = 0.0
            old = rz
        else:
            step = old / curve
            for m in range(n):
                x[m] += step * p[m]
                r[m] -= step * q[m]
                rz += r[m] ** 2 / diagonal[m]
        if rz <= goal:
            return iteration + 1
        for m in range(n):
            p[m] = r[m] / diagonal[m] + rz / old * p[m]
            scaled[m] = root[m] * p[m]
    return most
