"""Closest points on the zero set of the tricubic interpolant of phi.

Chopp, SIAM J. Sci. Comput. 23 (2001) 230; Saye, Commun. Appl. Math. Comput. Sci. 9 (2014) 107.
Points are index coordinates ``(z, y, x)`` in float64; lengths are mm.
"""

from __future__ import annotations

import numpy as np
from numba import njit, prange

from .jit import compiled
from .stencils import Array, lagrange_weights, stencil_base

OUTSIDE = np.int32(-1)
MAX_NEWTON = 20
ON_WALL = 1e-5  # |phi| / |grad phi| in units of the smallest spacing
ALIGNED = 2e-3  # tangential residual, same unit: the distance error is its square times kappa / 2


@njit(error_model="numpy")
def _cubic4(
    w0: float, w1: float, w2: float, w3: float, a: float, b: float, c: float, d: float
) -> float:
    return (w0 * a + w3 * d) + (w1 * b + w2 * c)


@njit(error_model="numpy")
def tricubic(
    phi: Array, z: float, y: float, x: float, hz: float, hy: float, hx: float
) -> tuple[float, float, float, float]:
    """Value and gradient (per mm) of the tricubic Lagrange interpolant at an index point."""
    nz, ny, nx = phi.shape
    i, t = stencil_base(x, nx)
    a0, a1, a2, a3, e0, e1, e2, e3 = lagrange_weights(t)
    j, t = stencil_base(y, ny)
    b0, b1, b2, b3, f0, f1, f2, f3 = lagrange_weights(t)
    b = (b0, b1, b2, b3)
    f = (f0, f1, f2, f3)
    flat = nz == 1
    k, t = stencil_base(z, nz)
    c0, c1, c2, c3, g0, g1, g2, g3 = lagrange_weights(t)
    c = (c0, c1, c2, c3)
    g = (g0, g1, g2, g3)
    value = 0.0
    dz = 0.0
    dy = 0.0
    dx = 0.0
    for p in range(1 if flat else 4):
        plane = 0.0
        plane_y = 0.0
        plane_x = 0.0
        for q in range(4):
            s0 = phi[k + p, j + q, i]
            s1 = phi[k + p, j + q, i + 1]
            s2 = phi[k + p, j + q, i + 2]
            s3 = phi[k + p, j + q, i + 3]
            row = _cubic4(a0, a1, a2, a3, s0, s1, s2, s3)
            plane += b[q] * row
            plane_y += f[q] * row
            plane_x += b[q] * _cubic4(e0, e1, e2, e3, s0, s1, s2, s3)
        if flat:
            return plane, 0.0, plane_y / hy, plane_x / hx
        value += c[p] * plane
        dz += g[p] * plane
        dy += c[p] * plane_y
        dx += c[p] * plane_x
    return value, dz / hz, dy / hy, dx / hx


@njit(error_model="numpy")
def project(
    phi: Array,
    vz: float,
    vy: float,
    vx: float,
    pz: float,
    py: float,
    px: float,
    hz: float,
    hy: float,
    hx: float,
) -> tuple[float, float, float, float, bool]:
    """Closest point of the wall to voxel v, started at p.

    A Newton step onto the wall and a tangential step towards v at once; the tangential step is
    scaled by the last change of the residual (Barzilai & Borwein 1988), which makes it converge
    outside a strongly curved wall too. Returns point, distance (>= 0) and success.
    """
    nz, ny, nx = phi.shape
    h = min(hz, hy, hx)
    # The residual and the step are kept in mm; the start must stay within two voxels.
    oz, oy, ox = pz, py, px
    scale = 1.0
    tz = 0.0
    ty = 0.0
    tx = 0.0
    sz = 0.0
    sy = 0.0
    sx = 0.0
    reach = 2.0 * max(hz, hy, hx)
    for iteration in range(MAX_NEWTON):
        value, gz, gy, gx = tricubic(phi, pz, py, px, hz, hy, hx)
        g2 = gz * gz + gy * gy + gx * gx
        if not g2 > 1e-12:
            return oz, oy, ox, 0.0, False
        rz = (vz - pz) * hz
        ry = (vy - py) * hy
        rx = (vx - px) * hx
        along = (rz * gz + ry * gy + rx * gx) / g2
        uz = rz - along * gz
        uy = ry - along * gy
        ux = rx - along * gx
        residual = np.sqrt(uz * uz + uy * uy + ux * ux)
        off = abs(value) / np.sqrt(g2)
        if off < ON_WALL * h and residual < ALIGNED * h:
            return pz, py, px, abs(along) * np.sqrt(g2), True
        if iteration > 0:
            ss = sz * sz + sy * sy + sx * sx
            change = sz * (tz - uz) + sy * (ty - uy) + sx * (tx - ux)
            scale = min(ss / change, 4.0) if change > 0.25 * ss else 1.0
        tz, ty, tx = uz, uy, ux
        sz, sy, sx = scale * uz, scale * uy, scale * ux
        length = np.sqrt(sz * sz + sy * sy + sx * sx)
        if length > h:
            sz *= h / length
            sy *= h / length
            sx *= h / length
        step = -value / g2
        limit = h / np.sqrt(g2)
        step = min(max(step, -limit), limit)
        pz = min(max(pz + (step * gz + sz) / hz, 0.0), nz - 1.0)
        py = min(max(py + (step * gy + sy) / hy, 0.0), ny - 1.0)
        px = min(max(px + (step * gx + sx) / hx, 0.0), nx - 1.0)
        moved = abs(pz - oz) * hz + abs(py - oy) * hy + abs(px - ox) * hx
        if moved > 2.0 * reach:
            return oz, oy, ox, 0.0, False
    return pz, py, px, 0.0, False


@compiled()
def find_interface(phi: Array, label: Array) -> Array:
    """Label the voxels beside a sign change 0, 1, ... in memory order; return their indices."""
    nz, ny, nx = phi.shape
    count = 0
    for sweep in range(2):
        if sweep == 1:
            index = np.empty((count, 3), np.int32)
            count = 0
        for k in range(nz):
            for j in range(ny):
                for i in range(nx):
                    inside = phi[k, j, i] < 0.0
                    if (
                        (i > 0 and (phi[k, j, i - 1] < 0.0) != inside)
                        or (i < nx - 1 and (phi[k, j, i + 1] < 0.0) != inside)
                        or (j > 0 and (phi[k, j - 1, i] < 0.0) != inside)
                        or (j < ny - 1 and (phi[k, j + 1, i] < 0.0) != inside)
                        or (k > 0 and (phi[k - 1, j, i] < 0.0) != inside)
                        or (k < nz - 1 and (phi[k + 1, j, i] < 0.0) != inside)
                    ):
                        if sweep == 1:
                            index[count, 0] = k
                            index[count, 1] = j
                            index[count, 2] = i
                            label[k, j, i] = count
                        count += 1
    return index


@njit(error_model="numpy")
def _crossing(
    phi: Array, k: int, j: int, i: int, hz: float, hy: float, hx: float
) -> tuple[float, float, float, float]:
    """Nearest linear wall crossing on the six grid edges at a voxel, and the plane through them."""
    nz, ny, nx = phi.shape
    here = phi[k, j, i]
    inside = here < 0.0
    best = np.inf
    z = float(k)
    y = float(j)
    x = float(i)
    plane = 0.0
    for axis in range(3):
        nearest = np.inf
        for side in (-1, 1):
            a = k + side * (axis == 0)
            b = j + side * (axis == 1)
            c = i + side * (axis == 2)
            if a < 0 or b < 0 or c < 0 or a >= nz or b >= ny or c >= nx:
                continue
            there = phi[a, b, c]
            if (there < 0.0) == inside:
                continue
            part = abs(here) / max(abs(here) + abs(there), 1e-300)
            h = hz if axis == 0 else (hy if axis == 1 else hx)
            if part * h < nearest:
                nearest = part * h
            if part * h < best:
                best = part * h
                z = k + part * (a - k)
                y = j + part * (b - j)
                x = i + part * (c - i)
        if nearest < np.inf:
            plane += 1.0 / max(nearest, 1e-30) ** 2
    return z, y, x, 1.0 / np.sqrt(plane)


@compiled(parallel=True)
def seed_closest(
    phi: Array, index: Array, cp: Array, distance: Array, hz: float, hy: float, hx: float
) -> int:
    """Closest points of the voxels beside the wall; the number that fell back to an edge."""
    failed = 0
    for n in prange(index.shape[0]):
        k = index[n, 0]
        j = index[n, 1]
        i = index[n, 2]
        z, y, x, plane = _crossing(phi, k, j, i, hz, hy, hx)
        pz, py, px, d, ok = project(phi, k, j, i, z, y, x, hz, hy, hx)
        nearest = np.sqrt(((k - z) * hz) ** 2 + ((j - y) * hy) ** 2 + ((i - x) * hx) ** 2)
        if ok and d <= nearest + 0.25 * min(hz, hy, hx):
            cp[n, 0] = pz
            cp[n, 1] = py
            cp[n, 2] = px
            distance[n] = d
        else:
            cp[n, 0] = z
            cp[n, 1] = y
            cp[n, 2] = x
            distance[n] = plane
            failed += 1
    return failed


@compiled()
def next_layer(
    label: Array, index: Array, distance: Array, first: int, last: int, band: float
) -> Array:
    """Label and list the unknown 26-neighbours of those entries first..last within the band."""
    nz, ny, nx = label.shape
    capacity = max(1024, 4 * (last - first))
    found = np.empty((capacity, 3), np.int32)
    count = 0
    for n in range(first, last):
        if distance[n] > band:
            continue
        for k in range(max(index[n, 0] - 1, 0), min(index[n, 0] + 2, nz)):
            for j in range(max(index[n, 1] - 1, 0), min(index[n, 1] + 2, ny)):
                for i in range(max(index[n, 2] - 1, 0), min(index[n, 2] + 2, nx)):
                    if label[k, j, i] == OUTSIDE:
                        if count == capacity:
                            capacity *= 2
                            grown = np.empty((capacity, 3), np.int32)
                            grown[:count] = found
                            found = grown
                        label[k, j, i] = last + count
                        found[count, 0] = k
                        found[count, 1] = j
                        found[count, 2] = i
                        count += 1
    return found[:count].copy()


@njit(error_model="numpy")
def _nearest_candidate(
    label: Array, cp: Array, k: int, j: int, i: int, limit: int, hz: float, hy: float, hx: float
) -> tuple[int, float]:
    """Known closest point of the 26 neighbours that lies nearest to a voxel."""
    nz, ny, nx = label.shape
    best = np.inf
    entry = -1
    for c in range(max(k - 1, 0), min(k + 2, nz)):
        for b in range(max(j - 1, 0), min(j + 2, ny)):
            for a in range(max(i - 1, 0), min(i + 2, nx)):
                m = label[c, b, a]
                if m < 0 or m >= limit:
                    continue
                d2 = (
                    ((k - cp[m, 0]) * hz) ** 2
                    + ((j - cp[m, 1]) * hy) ** 2
                    + ((i - cp[m, 2]) * hx) ** 2
                )
                if d2 < best:
                    best = d2
                    entry = m
    return entry, np.sqrt(best)


@compiled(parallel=True)
def grow_closest(
    phi: Array,
    label: Array,
    index: Array,
    cp: Array,
    distance: Array,
    first: int,
    last: int,
    hz: float,
    hy: float,
    hx: float,
) -> None:
    """Closest points of list entries first..last from those of the entries before first."""
    for n in prange(first, last):
        k = index[n, 0]
        j = index[n, 1]
        i = index[n, 2]
        entry, near = _nearest_candidate(label, cp, k, j, i, first, hz, hy, hx)
        pz, py, px, d, ok = project(
            phi, k, j, i, cp[entry, 0], cp[entry, 1], cp[entry, 2], hz, hy, hx
        )
        if ok and d <= near + 1e-3 * min(hz, hy, hx):
            cp[n, 0] = pz
            cp[n, 1] = py
            cp[n, 2] = px
            distance[n] = d
        else:
            cp[n, 0] = cp[entry, 0]
            cp[n, 1] = cp[entry, 1]
            cp[n, 2] = cp[entry, 2]
            distance[n] = near


@compiled(parallel=True)
def correct_closest(
    phi: Array,
    label: Array,
    index: Array,
    cp: Array,
    distance: Array,
    new_cp: Array,
    new_distance: Array,
    hz: float,
    hy: float,
    hx: float,
) -> int:
    """One Jacobi pass: take a neighbour's closest point where it is nearer; number of changes."""
    changed = 0
    total = index.shape[0]
    slack = 1e-3 * min(hz, hy, hx)
    for n in prange(total):
        k = index[n, 0]
        j = index[n, 1]
        i = index[n, 2]
        new_distance[n] = distance[n]
        for axis in range(3):
            new_cp[n, axis] = cp[n, axis]
        entry, near = _nearest_candidate(label, cp, k, j, i, total, hz, hy, hx)
        if near < distance[n] - slack:
            changed += 1
            pz, py, px, d, ok = project(
                phi, k, j, i, cp[entry, 0], cp[entry, 1], cp[entry, 2], hz, hy, hx
            )
            if not (ok and d <= near + slack):
                pz = cp[entry, 0]
                py = cp[entry, 1]
                px = cp[entry, 2]
                d = near
            new_cp[n, 0] = pz
            new_cp[n, 1] = py
            new_cp[n, 2] = px
            new_distance[n] = d
    return changed


@compiled()
def scatter_distance(phi: Array, index: Array, distance: Array, band: float, out: Array) -> None:
    """Write signed distances, clamped to the band, into out; the sign is that of phi."""
    nz, ny, nx = phi.shape
    for k in range(nz):
        for j in range(ny):
            for i in range(nx):
                out[k, j, i] = -band if phi[k, j, i] < 0.0 else band
    for n in range(index.shape[0]):
        k = index[n, 0]
        j = index[n, 1]
        i = index[n, 2]
        here = phi[k, j, i]
        d = min(distance[n], band)
        if here < 0.0:
            # The smallest positive distance keeps the sign of a voxel that lies on the wall.
            out[k, j, i] = -max(d, 1e-30)
        else:
            out[k, j, i] = max(d, 1e-30) if here > 0.0 else 0.0


@compiled(parallel=True)
def sample_at(values: Array, cp: Array, out: Array) -> None:
    """Trilinear samples of a field at closest points: constant extension along normals."""
    nz, ny, nx = values.shape
    for n in prange(cp.shape[0]):
        k = min(max(int(cp[n, 0]), 0), max(nz - 2, 0))
        j = min(max(int(cp[n, 1]), 0), max(ny - 2, 0))
        i = min(max(int(cp[n, 2]), 0), max(nx - 2, 0))
        c = cp[n, 0] - k
        b = cp[n, 1] - j
        a = cp[n, 2] - i
        top = min(k + 1, nz - 1)
        far = min(j + 1, ny - 1)
        right = min(i + 1, nx - 1)
        low = (1.0 - b) * ((1.0 - a) * values[k, j, i] + a * values[k, j, right]) + b * (
            (1.0 - a) * values[k, far, i] + a * values[k, far, right]
        )
        high = (1.0 - b) * ((1.0 - a) * values[top, j, i] + a * values[top, j, right]) + b * (
            (1.0 - a) * values[top, far, i] + a * values[top, far, right]
        )
        out[n] = (1.0 - c) * low + c * high
