"""The viscous Eikonal equation on a list of band voxels, with the wall pinned.

|∇d| - ε Δd = 1, d = 0 on the wall: Godunov's upwind |∇d| (Rouy & Tourin, SIAM J. Numer. Anal. 29
(1992) 867) and the Laplacian of Shortley & Weller (J. Appl. Phys. 9 (1938) 334), whose arms end
at the wall. Both are monotone, so sweeps of nonlinear Gauss-Seidel converge from any start.
"""

from __future__ import annotations

import math

from numba import njit

from .jit import compiled
from .stencils import Array

WALL, MISSING = -1, -2
NEWTON_STEPS = 30
ROUNDING = 1e-15
STEEPEST = 2.0  # slopes of a discrete distance lie between its inverse and this, creases included


@compiled()
def link_band(
    phi: Array, label: Array, index: Array, beside: Array, arms: Array, links: Array, out: Array,
    hz: float, hy: float, hx: float,
) -> None:  # fmt: skip
    """Write the list entries (n, 6) beside each entry and the distances (n, 6) to them, mm.

    Sides in the order -z, +z, -y, +y, -x, +x. Where the wall is nearer the entry is ``WALL``,
    outside the list it is ``MISSING``. ``beside`` (n,) holds the row of ``arms`` of the entries
    beside the wall, else -1.
    """
    nz, ny, nx = phi.shape
    for n in range(index.shape[0]):
        k = index[n, 0]
        j = index[n, 1]
        i = index[n, 2]
        for side in range(6):
            axis = side // 2
            step = 2 * (side % 2) - 1
            c = k + step * (axis == 0)
            b = j + step * (axis == 1)
            a = i + step * (axis == 2)
            out[n, side] = hz if axis == 0 else (hy if axis == 1 else hx)
            links[n, side] = MISSING
            if c < 0 or c >= nz or b < 0 or b >= ny or a < 0 or a >= nx:
                continue
            if (phi[c, b, a] < 0.0) != (phi[k, j, i] < 0.0):
                links[n, side] = WALL
                out[n, side] = arms[beside[n], side]
            elif label[c, b, a] >= 0:
                links[n, side] = label[c, b, a]


@njit(error_model="numpy")
def _upwind(
    x: float, d: Array, links: Array, arms: Array, n: int, axis: int
) -> tuple[float, float]:
    """Godunov's slope along an axis at entry n, with d = x there, and the arm it is taken over."""
    slope = 0.0
    arm = math.inf
    for side in range(2 * axis, 2 * axis + 2):
        link = links[n, side]
        if link != MISSING:
            rise = x if link == WALL else x - d[link]
            if rise > slope * arms[n, side]:
                slope = rise / arms[n, side]
                arm = arms[n, side]
    return slope, arm


@njit(error_model="numpy")
def _residual(
    x: float, d: Array, links: Array, arms: Array, gain: Array, viscosity: Array, n: int
) -> tuple[float, float]:
    """Value and slope in x of |∇d| - Σ ε d_aa at entry n, with d = x there."""
    g2 = 0.0
    slope = 0.0
    viscous = 0.0
    viscous_slope = 0.0
    for axis in range(3):
        rise, arm = _upwind(x, d, links, arms, n, axis)
        g2 += rise * rise
        slope += rise / arm
        flux = 0.0
        flux_slope = 0.0
        for side in range(2 * axis, 2 * axis + 2):
            link = links[n, side]
            if link == MISSING:
                flux -= gain[n, side]
            else:
                flux += (x if link == WALL else x - d[link]) / arms[n, side]
                flux_slope += 1.0 / arms[n, side]
        weight = viscosity[n, axis] / (0.5 * (arms[n, 2 * axis] + arms[n, 2 * axis + 1]))
        viscous += weight * flux
        viscous_slope += weight * flux_slope
    norm = math.sqrt(g2)
    if norm > 0.0:
        slope /= norm
    return norm + viscous, slope + viscous_slope


@compiled()
def prepare(
    d: Array, links: Array, arms: Array, epsilon: float,
    gain: Array, viscosity: Array, source: Array,
) -> None:  # fmt: skip
    """Write slopes (n, 6) towards missing voxels, viscosities (n, 3) and right hand side (n,).

    ``d`` is the distance. An upwind slope over an arm s adds a viscosity of s |n_a| / 2 along its
    axis, which is taken off ε as far as there is any: then the scheme is of second order. The
    share that is left is balanced by its effect on the distance, so that ε = 0 gives the
    distance itself. A missing voxel continues the distance.
    """
    gain[:] = 0.0
    for n in range(d.shape[0]):
        norm = 0.0
        for axis in range(3):
            slope, _ = _upwind(d[n], d, links, arms, n, axis)
            norm += slope * slope
        norm = math.sqrt(norm)
        balanced = 1.0
        for axis in range(3):
            slope, arm = _upwind(d[n], d, links, arms, n, axis)
            viscosity[n, axis] = 0.5 * arm * slope / norm if slope > 0.0 else 0.0
            if viscosity[n, axis] > epsilon:
                balanced = min(balanced, epsilon / viscosity[n, axis])
        for axis in range(3):
            viscosity[n, axis] = max(epsilon - balanced * viscosity[n, axis], 0.0)
        steepness = min(max(norm, 1.0 / STEEPEST), STEEPEST)
        source[n] = balanced + (1.0 - balanced) * steepness
        for side in range(6):
            opposite = links[n, side ^ 1]
            if links[n, side] == MISSING and opposite != MISSING:
                other = 0.0 if opposite == WALL else d[opposite]
                slope = (d[n] - other) / arms[n, side ^ 1]
                gain[n, side] = min(max(slope, 0.0), STEEPEST)


@compiled()
def sweep(
    d: Array, links: Array, arms: Array, gain: Array, viscosity: Array, source: Array
) -> None:
    """Solve every entry for its neighbours, in the order of the list and back again."""
    count = d.shape[0]
    for m in range(2 * count):
        n = m if m < count else 2 * count - 1 - m
        # To the right of the lowest upwind value the equation is convex with a positive slope:
        # from the second step on Newton's method descends to the root.
        start = math.inf
        for side in range(6):
            link = links[n, side]
            if link != MISSING:
                other = 0.0 if link == WALL else d[link]
                start = min(start, other + source[n] * arms[n, side])
        if start == math.inf:
            continue
        x = max(start, d[n])
        for _ in range(NEWTON_STEPS):
            value, slope = _residual(x, d, links, arms, gain, viscosity, n)
            step = (value - source[n]) / slope
            x -= step
            if abs(step) <= ROUNDING * abs(x):
                break
        d[n] = x
