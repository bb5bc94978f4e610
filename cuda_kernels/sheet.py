"""Linear solves along a wall: a layer of voxels as a graph, ``K = -Laplacian`` on it.

``table`` (n, 6) uint32 lists the face neighbours of each voxel on the same wall, in the order
-z, +z, -y, +y, -x, +x, and the voxel itself where there is none, so that no flux leaves the layer;
``scale`` holds 1/h² per axis (z, y, x), perhaps times a squared length.
"""

from __future__ import annotations

import numpy as np
from numba import njit, prange

from .jit import compiled
from .stencils import Array
from .tricubic import U

BLOCK = 4096  # voxels whose sums are taken in turn


@njit(error_model="numpy", forceinline=True)
def _bend_at(table: Array, values: Array, n: int, scale: Array) -> float:
    here = values[n]
    z = (here - values[table[n, 0]]) + (here - values[table[n, 1]])
    y = (here - values[table[n, 2]]) + (here - values[table[n, 3]])
    x = (here - values[table[n, 4]]) + (here - values[table[n, 5]])
    return float(scale[0] * z + scale[1] * y + scale[2] * x)


@njit(error_model="numpy")
def _diagonal_at(table: Array, weight: Array, n: int, scale: Array, twice: bool) -> float:
    links = 0.0
    squares = 0.0
    for side in range(6):
        m = table[n, side]
        if m != n:
            links += scale[side // 2]
            squares += weight[m] * scale[side // 2] ** 2
    return weight[n] * links**2 + squares if twice else links


@compiled(parallel=True)
def solve_along_wall(
    table: Array,
    scale: Array,
    precision: Array,
    weight: Array,
    rhs: Array,
    x: Array,
    twice: bool,
    most: int,
    tolerance: float,
) -> int:
    """Solve (precision + K weight K) x = rhs, or (precision + K) x = rhs; x holds the start.

    Conjugate gradients (Hestenes & Stiefel 1952) with the diagonal as preconditioner, until the
    residual has fallen by the tolerance; returns the number of iterations. Sums are taken block by
    block, so that they do not depend on the number of threads.
    """
    n = x.shape[0]
    blocks = (n + BLOCK - 1) // BLOCK
    p, q, r = x.copy(), np.empty(n), np.empty(n)
    diagonal, middle = np.empty(n), np.empty(n)
    curves, squares, goals = np.zeros(blocks), np.zeros(blocks), np.zeros(blocks)
    bent = middle if twice else p
    step = rz = goal = 0.0
    for iteration in range(-1, most):
        if twice:
            for b in prange(blocks):
                for m in range(U(b * BLOCK), U(min((b + 1) * BLOCK, n))):
                    middle[m] = weight[m] * _bend_at(table, p, m, scale)
        for b in prange(blocks):
            curve = 0.0
            for m in range(U(b * BLOCK), U(min((b + 1) * BLOCK, n))):
                q[m] = precision[m] * p[m] + _bend_at(table, bent, m, scale)
                curve += p[m] * q[m]
            curves[b] = curve
        # The first pass applies the system to the start: residual and preconditioner.
        first = iteration < 0
        old = rz
        step = 0.0 if first else old / curves.sum()
        for b in prange(blocks):
            square = 0.0
            for m in range(U(b * BLOCK), U(min((b + 1) * BLOCK, n))):
                if first:
                    diagonal[m] = precision[m] + _diagonal_at(table, weight, m, scale, twice)
                    r[m] = rhs[m] - q[m]
                    goals[b] += (tolerance * rhs[m]) ** 2 / diagonal[m]
                    p[m] = 0.0
                else:
                    x[m] += step * p[m]
                    r[m] -= step * q[m]
                square += r[m] ** 2 / diagonal[m]
            squares[b] = square
        rz, goal = squares.sum(), goals.sum()
        if rz <= goal:
            return iteration + 1
        ratio = 0.0 if first else rz / old
        for b in prange(blocks):
            for m in range(U(b * BLOCK), U(min((b + 1) * BLOCK, n))):
                p[m] = r[m] / diagonal[m] + ratio * p[m]
    return most


@compiled()
def bend_along_wall(table: Array, scale: Array, values: Array, out: Array) -> None:
    """Write K values."""
    for n in range(np.uint64(values.shape[0])):
        out[n] = _bend_at(table, values, n, scale)
