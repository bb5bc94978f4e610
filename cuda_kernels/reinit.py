"""The reinitialisation equation on a list of band voxels, with the wall pinned.

u_t = 1 - |∇u| with u = ±phi >= 0 (Sussman, Smereka & Osher 1994). Next to the wall a one-sided
difference ends at the crossing of the grid edge, not at the voxel beyond it (Russo & Smereka
2000; du Chéné, Min & Gibou 2008), so the zero set stays where it is. Every pass is of Jacobi
type: results depend neither on the order of the list nor on the number of threads.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit, prange

from .jit import compiled
from .stencils import Array, Pair, eno2_pair, minmod, upwind_sq, weno5_pair

SAME_BEND = 4.0  # ratio of two neighbouring second differences up to which phi counts as smooth
ROOT_STEPS = 60
SHORTEST = 1e-12  # distance of a crossing in voxels below which a voxel counts as on the wall


@njit(error_model="numpy")
def edge_crossing(behind: float, here: float, there: float, beyond: float) -> float:
    """Return where phi vanishes between two samples of opposite sign, 0 to 1 from the first.

    Cubic through the four samples where its two second differences agree, else the quadratic of
    the smaller one, so that a crease does not shift the wall.
    """
    left = behind - 2.0 * here + there
    right = here - 2.0 * there + beyond
    small = min(abs(left), abs(right))
    c2 = 0.5 * minmod(left, right)
    c3 = 0.0
    if c2 != 0.0 and max(abs(left), abs(right)) < SAME_BEND * small:
        c2 = 0.5 * left
        c3 = (right - left) / 6.0
    c1 = there - here - c2 - c3
    low, high = 0.0, 1.0
    t = here / (here - there)
    # Newton's method inside a shrinking bracket: the signs at its ends differ.
    for _ in range(ROOT_STEPS):
        value = here + t * (c1 + t * (c2 + t * c3))
        if value != 0.0 and (value < 0.0) == (here < 0.0):
            low = t
        else:
            high = t
        slope = c1 + t * (2.0 * c2 + 3.0 * t * c3)
        moved = t - value / slope if slope != 0.0 else -1.0
        if not low < moved < high:
            moved = 0.5 * (low + high)
        if abs(moved - t) <= 1e-15 * t:
            break
        t = moved
    return t


@njit(error_model="numpy")
def sample(phi: Array, k: int, j: int, i: int, axis: int, step: int) -> float:
    """Return the sample some steps along an axis, index clamped at the faces."""
    nz, ny, nx = phi.shape
    if axis == 0:
        return float(phi[min(max(k + step, 0), nz - 1), j, i])
    if axis == 1:
        return float(phi[k, min(max(j + step, 0), ny - 1), i])
    return float(phi[k, j, min(max(i + step, 0), nx - 1)])


@compiled(parallel=True)
def wall_arms(phi: Array, index: Array, arms: Array, distance: Array, spacing: Array) -> None:
    """Write the distances (n, 6), mm, from listed voxels to the wall along the grid edges.

    Sides in the order -z, +z, -y, +y, -x, +x; no crossing: the spacing. ``distance`` (n,)
    becomes that of the plane through the crossings.
    """
    shape = phi.shape
    for n in prange(index.shape[0]):
        k = index[n, 0]
        j = index[n, 1]
        i = index[n, 2]
        here = phi[k, j, i]
        plane = 0.0
        for axis in range(3):
            h = spacing[axis]
            at = index[n, axis]
            nearest = math.inf
            for up in range(2):
                step = 2 * up - 1
                arms[n, 2 * axis + up] = h
                there = sample(phi, k, j, i, axis, step)
                if (there < 0.0) == (here < 0.0) and (there > 0.0) == (here > 0.0):
                    continue
                behind = sample(phi, k, j, i, axis, -step)
                beyond = sample(phi, k, j, i, axis, 2 * step)
                # A missing sample continues the field by the second difference of the others.
                first = at - step < 0 or at - step >= shape[axis]
                last = at + 2 * step < 0 or at + 2 * step >= shape[axis]
                if first and last:
                    behind = 2.0 * here - there
                    beyond = 2.0 * there - here
                elif first:
                    behind = 3.0 * here - 3.0 * there + beyond
                elif last:
                    beyond = behind - 3.0 * here + 3.0 * there
                s = max(edge_crossing(behind, here, there, beyond), SHORTEST) * h
                arms[n, 2 * axis + up] = s
                nearest = min(nearest, s)
            if nearest < math.inf:
                plane += 1.0 / (nearest * nearest)
        distance[n] = 1.0 / math.sqrt(plane)


@compiled()
def next_ring(
    label: Array, index: Array, distance: Array, first: int, last: int, reach: float
) -> Array:
    """Label and list the unknown 26-neighbours of those entries first..last within the reach."""
    nz, ny, nx = label.shape
    found = np.empty((26 * (last - first), 3), np.int32)
    count = 0
    for n in range(first, last):
        if distance[n] > reach:
            continue
        for k in range(max(index[n, 0] - 1, 0), min(index[n, 0] + 2, nz)):
            for j in range(max(index[n, 1] - 1, 0), min(index[n, 1] + 2, ny)):
                for i in range(max(index[n, 2] - 1, 0), min(index[n, 2] + 2, nx)):
                    if label[k, j, i] == 0:
                        found[count, 0] = k
                        found[count, 1] = j
                        found[count, 2] = i
                        count += 1
                        label[k, j, i] = last + count
    return found[:count].copy()


@compiled(parallel=True)
def chain_distance(
    label: Array,
    index: Array,
    distance: Array,
    first: int,
    last: int,
    hz: float,
    hy: float,
    hx: float,
) -> None:
    """Give entries first..last the shortest path over a 26-neighbour listed before first."""
    nz, ny, nx = label.shape
    for n in prange(first, last):
        k = index[n, 0]
        j = index[n, 1]
        i = index[n, 2]
        best = math.inf
        for c in range(max(k - 1, 0), min(k + 2, nz)):
            for b in range(max(j - 1, 0), min(j + 2, ny)):
                for a in range(max(i - 1, 0), min(i + 2, nx)):
                    m = label[c, b, a]
                    if m > 0 and m <= first:
                        dz = (c - k) * hz
                        dy = (b - j) * hy
                        dx = (a - i) * hx
                        best = min(best, distance[m - 1] + math.sqrt(dz * dz + dy * dy + dx * dx))
        distance[n] = best


@njit(error_model="numpy")
def _pair(
    phi: Array, sign: float, k: int, j: int, i: int, axis: int, order: int, far: float, h: float
) -> Pair:
    m2 = sign * sample(phi, k, j, i, axis, -2)
    m1 = sign * sample(phi, k, j, i, axis, -1)
    c0 = sign * sample(phi, k, j, i, axis, 0)
    p1 = sign * sample(phi, k, j, i, axis, 1)
    p2 = sign * sample(phi, k, j, i, axis, 2)
    at = k if axis == 0 else (j if axis == 1 else i)
    inner = at >= 3 and at < phi.shape[axis] - 3
    if order == 5 and inner:
        m3 = sign * sample(phi, k, j, i, axis, -3)
        p3 = sign * sample(phi, k, j, i, axis, 3)
        # ENO2 looks past the band and past the faces only where that is harmless.
        low = max(abs(m3), max(abs(m2), abs(m1)))
        if max(low, max(abs(p1), max(abs(p2), abs(p3)))) < far:
            return weno5_pair(m3, m2, m1, c0, p1, p2, p3, h)
    return eno2_pair(m2, m1, c0, p1, p2, h)


@njit(error_model="numpy")
def _wall_pair(
    phi: Array, sign: float, k: int, j: int, i: int, axis: int, below: float, above: float, h: float
) -> Pair:
    """Differences of a voxel beside the wall: they end at the crossings where there are any."""
    m2 = sign * sample(phi, k, j, i, axis, -2)
    m1 = sign * sample(phi, k, j, i, axis, -1)
    c0 = sign * sample(phi, k, j, i, axis, 0)
    p1 = sign * sample(phi, k, j, i, axis, 1)
    p2 = sign * sample(phi, k, j, i, axis, 2)
    g2 = 1.0 / (h * h)
    middle = (m1 + p1 - 2.0 * c0) * g2
    left = (c0 - m1) / h if m1 >= 0.0 else c0 / below
    right = (p1 - c0) / h if p1 >= 0.0 else -c0 / above
    left += 0.5 * below * minmod((m2 - 2.0 * m1 + c0) * g2, middle)
    right -= 0.5 * above * minmod((p2 - 2.0 * p1 + c0) * g2, middle)
    return left, right


@compiled(parallel=True)
def reinit_stage(
    phi: Array,
    index: Array,
    arms: Array,
    base: Array,
    out: Array,
    ca: float,
    cb: float,
    cfl: float,
    order: int,
    far: float,
    hz: float,
    hy: float,
    hx: float,
) -> None:
    """Write out = ca base + cb (phi + dt rate(phi)) at listed voxels.

    The first voxels of the list, as many as ``arms`` has rows, lie beside the wall. Each voxel
    takes its own stable step: only the steady state counts. The sign never changes.
    """
    walls = arms.shape[0]
    for n in prange(index.shape[0]):
        k = index[n, 0]
        j = index[n, 1]
        i = index[n, 2]
        here = phi[k, j, i]
        if here == 0.0:
            out[k, j, i] = here
            continue
        sign = -1.0 if here < 0.0 else 1.0
        g2 = 0.0
        rate = 0.0
        shortest = math.inf
        for axis in range(3):  # one copy of the stencils: three take three times as long to compile
            h = hz if axis == 0 else (hy if axis == 1 else hx)
            arm = h
            if n < walls:
                below = arms[n, 2 * axis]
                above = arms[n, 2 * axis + 1]
                arm = min(below, above)
                left, right = _wall_pair(phi, sign, k, j, i, axis, below, above, h)
            else:
                left, right = _pair(phi, sign, k, j, i, axis, order, far, h)
            g2 += upwind_sq(left, right, True)
            rate += 1.0 / (arm * arm)
            shortest = min(shortest, arm)
        dt = cfl / math.sqrt(rate)
        u = sign * here
        new = ca * sign * base[k, j, i] + cb * (u + dt * (1.0 - math.sqrt(g2)))
        new = min(max(new, 1e-3 * shortest), far)
        out[k, j, i] = sign * new


@compiled()
def largest_change(old: Array, new: Array, index: Array) -> float:
    """Return the largest difference of two fields at listed voxels."""
    change = 0.0
    for n in range(index.shape[0]):
        k = index[n, 0]
        j = index[n, 1]
        i = index[n, 2]
        change = max(change, abs(new[k, j, i] - old[k, j, i]))
    return change
