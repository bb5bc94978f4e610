"""Closest points on the zero set of the tricubic interpolant of phi.

Chopp, SIAM J. Sci. Comput. 23 (2001) 230; Saye, Commun. Appl. Math. Comput. Sci. 9 (2014) 107.
A closest point is kept as its offset from the voxel, in voxels (z, y, x); lengths are mm. A label
is 0 for an unknown voxel, its place in the list, counted from 1, for a listed one, and minus that
beyond the band. All results are independent of the order of the list and of the number of threads.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit, prange

from .jit import compiled
from .stencils import Array
from .tricubic import ONE, U, tricubic

MAX_NEWTON = 12
NEAR = 0.15  # step, in smallest spacings, after which the next one would be below 1e-3
FLATTEST = 1e-60  # squared slope that counts as none
SLACK = 1e-3  # by which a closest point must be nearer to replace another, in smallest spacings


@njit(error_model="numpy")
def project(
    flat: Array,
    shape: tuple[int, int, int],
    k: int,
    j: int,
    i: int,
    start: tuple[float, float, float],
    outside: bool,
    hz: float,
    hy: float,
    hx: float,
) -> tuple[float, float, float, float]:
    """Closest point of the wall to voxel v, from an offset; returns offset and distance.

    Newton's method for x - v + m ∇phi = 0, phi(x) = 0 (Saye 2014, §3), solved in the tangent
    plane: there I + m H has the determinant 1 + m τ + m² K, with τ and K the trace and the
    determinant of H. Half the bend of phi along the step brings the last point back onto the
    wall, so that one step from a good start is enough. The distance is infinite on failure: no
    slope, beyond a focal point of the wall, or the voxel on the other side of the wall.
    """
    nz, ny, nx = shape
    h = min(hz, min(hy, hx))
    iz, iy, ix = 1.0 / hz, 1.0 / hy, 1.0 / hx
    pz, py, px = start[0] * hz, start[1] * hy, start[2] * hx
    az, ay, ax = pz, py, px
    for _ in range(MAX_NEWTON):
        value, gz, gy, gx, zz, yy, xx, zy, zx, yx = tricubic(
            flat, nz, ny, nx, k, j, i, pz * iz, py * iy, px * ix
        )
        gz *= iz
        gy *= iy
        gx *= ix
        g2 = gz * gz + gy * gy + gx * gx
        if not g2 > FLATTEST:
            break
        zz *= iz * iz
        yy *= iy * iy
        xx *= ix * ix
        zy *= iz * iy
        zx *= iz * ix
        yx *= iy * ix
        r = 1.0 / g2
        m = -(pz * gz + py * gy + px * gx) * r
        down = -value * r
        bz = zz * gz + zy * gy + zx * gx
        by = zy * gz + yy * gy + yx * gx
        bx = zx * gz + yx * gy + xx * gx
        trace = zz + yy + xx - (bz * gz + by * gy + bx * gx) * r
        gauss = gz * gz * (yy * xx - yx * yx)
        gauss += gy * gy * (zz * xx - zx * zx)
        gauss += gx * gx * (zz * yy - zy * zy)
        cross = gz * gy * (zx * yx - zy * xx)
        cross += gz * gx * (zy * yx - zx * yy)
        cross += gy * gx * (zy * zx - yx * zz)
        gauss = (gauss + 2.0 * cross) * r
        det = 1.0 + m * (trace + m * gauss)
        stable = det > 0.05 and 2.0 + m * trace > 0.0
        # Tangential residual, less what the step along the normal brings.
        wz = -pz - m * down * bz
        wy = -py - m * down * by
        wx = -px - m * down * bx
        along = (wz * gz + wy * gy + wx * gx) * r
        wz -= along * gz
        wy -= along * gy
        wx -= along * gx
        sz, sy, sx = wz, wy, wx
        if stable:
            tz = wz + m * (zz * wz + zy * wy + zx * wx)
            ty = wy + m * (zy * wz + yy * wy + yx * wx)
            tx = wx + m * (zx * wz + yx * wy + xx * wx)
            along = (tz * gz + ty * gy + tx * gx) * r
            q = 1.0 / det
            both = 2.0 + m * trace
            sz = (both * wz - tz + along * gz) * q
            sy = (both * wy - ty + along * gy) * q
            sx = (both * wx - tx + along * gx) * q
        aside = sz * sz + sy * sy + sx * sx
        depth = down * down * g2
        short = stable and aside < h * h and depth < h * h
        if not short:
            part = 0.5 * min(1.0, h / math.sqrt(aside)) if aside > 0.0 else 0.0
            limit = h * math.sqrt(r)
            down = min(max(down, -limit), limit)
            sz *= part
            sy *= part
            sx *= part
        sz += down * gz
        sy += down * gy
        sx += down * gx
        if short:
            bend = sz * sz * zz + sy * sy * yy + sx * sx * xx
            bend += 2.0 * (sz * sy * zy + sz * sx * zx + sy * sx * yx)
            back = -0.5 * bend * r
            sz += back * gz
            sy += back * gy
            sx += back * gx
        pz += sz
        py += sy
        px += sx
        if short and aside + depth < (NEAR * h) ** 2:
            distance = math.sqrt(pz * pz + py * py + px * px)
            wrong = (pz * gz + py * gy + px * gx > 0.0) == outside
            if wrong and distance > SLACK * h:
                break
            return pz * iz, py * iy, px * ix, distance
        if abs(az - pz) + abs(ay - py) + abs(ax - px) > 4.0 * max(hz, max(hy, hx)):
            break
    return 0.0, 0.0, 0.0, math.inf


@compiled(parallel=True)
def write_signs(phi: Array, sign: Array) -> None:
    """Write -1, 0 or 1."""
    nz, ny, nx = phi.shape
    for row in prange(nz * ny):
        a = phi[row // ny, row % ny]
        out = sign[row // ny, row % ny]
        for i in range(nx):
            x = a[U(i)]
            out[U(i)] = np.int8(x > 0.0) - np.int8(x < 0.0)


@njit(error_model="numpy", forceinline=True)
def _flag_row(sign: Array, k: int, j: int, flag: Array) -> int:
    """Flag the voxels of a row whose sign differs from a face neighbour's; return their number."""
    nz, ny, nx = sign.shape
    here = sign[k, j]
    a, b = sign[max(k - 1, 0), j], sign[min(k + 1, nz - 1), j]
    c, d = sign[k, max(j - 1, 0)], sign[k, min(j + 1, ny - 1)]
    for i in range(nx):
        s = here[U(i)]
        flag[U(i)] = (s != a[U(i)]) | (s != b[U(i)]) | (s != c[U(i)]) | (s != d[U(i)])
    for i in range(nx - 1):
        flag[U(i)] |= here[U(i)] != here[U(i) + ONE]
    for i in range(nx - 1):
        flag[U(i) + ONE] |= here[U(i)] != here[U(i) + ONE]
    count = 0
    for i in range(nx):
        count += flag[U(i)]
    return count


@compiled(parallel=True)
def count_interface(sign: Array, count: Array) -> None:
    """Write the number of voxels beside a change of sign in every row (k, j)."""
    nz, ny, nx = sign.shape
    for k in prange(nz):
        flag = np.empty(nx, np.uint8)
        for j in range(ny):
            count[k, j] = _flag_row(sign, k, j, flag)


@compiled(parallel=True)
def list_interface(sign: Array, last: Array, label: Array, index: Array) -> None:
    """Label and list the voxels beside a change of sign; ``last`` (nz * ny,) sums the counts."""
    nz, ny, nx = sign.shape
    for k in prange(nz):
        flag = np.empty(nx, np.uint8)
        for j in range(ny):
            row = k * ny + j
            n = last[row - 1] if row > 0 else 0
            if last[row] == n:
                continue
            _flag_row(sign, k, j, flag)
            for i in range(nx):
                if flag[U(i)]:
                    index[n, 0] = k
                    index[n, 1] = j
                    index[n, 2] = i
                    n += 1
                    label[k, j, i] = n


@njit(error_model="numpy")
def _plane_foot(
    phi: Array, k: int, j: int, i: int, hz: float, hy: float, hx: float
) -> tuple[float, float, float, float, float]:
    """Foot of the plane through the linear crossings on the edges at a voxel.

    Offset, distance, and that of the nearest crossing. Equal crossings on both sides cancel.
    """
    nz, ny, nx = phi.shape
    here = phi[k, j, i]
    z = y = x = 0.0
    total = 0.0
    closest = math.inf
    for axis in range(3):
        h = hz if axis == 0 else (hy if axis == 1 else hx)
        nearest = math.inf
        side = 0.0
        for up in (-1, 1):
            c = k + up * (axis == 0)
            b = j + up * (axis == 1)
            a = i + up * (axis == 2)
            if c < 0 or b < 0 or a < 0 or c >= nz or b >= ny or a >= nx:
                continue
            there = phi[c, b, a]
            if (there < 0.0) == (here < 0.0) and (there > 0.0) == (here > 0.0):
                continue
            length = abs(here) / (abs(here) + abs(there)) * h
            if length < nearest:
                nearest = length
                side = float(up)
            elif length == nearest:
                side = 0.0
        if nearest < math.inf:
            inverse = 1.0 / max(nearest, 1e-30)
            total += inverse * inverse
            closest = min(closest, nearest)
            if axis == 0:
                z = side * inverse / hz
            elif axis == 1:
                y = side * inverse / hy
            else:
                x = side * inverse / hx
    return z / total, y / total, x / total, 1.0 / math.sqrt(total), closest


@compiled(parallel=True)
def seed_closest(
    phi: Array, index: Array, offset: Array, distance: Array, hz: float, hy: float, hx: float
) -> None:
    """Closest points of the voxels beside the wall.

    Started where the linear field at the voxel vanishes, else at the foot of the plane through
    the edge crossings, which is also the answer where neither leads to a point of the wall.
    """
    nz, ny, nx = phi.shape
    flat = phi.reshape(-1)
    h = min(hz, min(hy, hx))
    for n in prange(index.shape[0]):
        k = index[n, 0]
        j = index[n, 1]
        i = index[n, 2]
        here = phi[k, j, i]
        z, y, x, d, closest = 0.0, 0.0, 0.0, 0.0, 0.0
        if here != 0.0:
            fz, fy, fx, plane, closest = _plane_foot(phi, k, j, i, hz, hy, hx)
            near = closest + 0.25 * h
            ka, kb = max(k - 1, 0), min(k + 1, nz - 1)
            ja, jb = max(j - 1, 0), min(j + 1, ny - 1)
            ia, ib = max(i - 1, 0), min(i + 1, nx - 1)
            gz = (phi[kb, j, i] - phi[ka, j, i]) / (max(kb - ka, 1) * hz)
            gy = (phi[k, jb, i] - phi[k, ja, i]) / (max(jb - ja, 1) * hy)
            gx = (phi[k, j, ib] - phi[k, j, ia]) / (max(ib - ia, 1) * hx)
            g2 = gz * gz + gy * gy + gx * gx
            d = math.inf
            if g2 > FLATTEST and abs(here) < 1.5 * h * math.sqrt(g2):
                step = -here / g2
                start = (step * gz / hz, step * gy / hy, step * gx / hx)
                z, y, x, d = project(flat, phi.shape, k, j, i, start, here > 0.0, hz, hy, hx)
            if not d <= near:
                z, y, x, d = project(flat, phi.shape, k, j, i, (fz, fy, fx), here > 0.0, hz, hy, hx)
            if not d <= near:
                z, y, x, d = fz, fy, fx, plane
        offset[n, 0] = z
        offset[n, 1] = y
        offset[n, 2] = x
        distance[n] = d


@compiled()
def next_layer(
    label: Array, index: Array, distance: Array, waiting: Array, count: int, level: float
) -> tuple[Array, Array, int]:
    """List the unknown face neighbours of the waiting entries within a distance.

    Returns the list, lengthened if need be, the entries that go on waiting, and the new count.
    """
    nz, ny, nx = label.shape
    flat = label.reshape(-1)
    room = count + 6 * waiting.shape[0]
    if index.shape[0] < room:
        longer = np.empty((max(room, 2 * index.shape[0]), 3), np.int32)
        longer[:count] = index[:count]
        index = longer
    kept = 0
    for w in range(waiting.shape[0]):
        n = waiting[w]
        if distance[n] > level:
            waiting[kept] = n
            kept += 1
            continue
        k = index[n, 0]
        j = index[n, 1]
        i = index[n, 2]
        o = U((k * ny + j) * nx + i)
        for side in range(6):
            # Six constant steps once the compiler has unrolled the loop.
            if side == 0:
                free, p, c, b, a = k > 0, o - U(ny * nx), k - 1, j, i
            elif side == 1:
                free, p, c, b, a = k < nz - 1, o + U(ny * nx), k + 1, j, i
            elif side == 2:
                free, p, c, b, a = j > 0, o - U(nx), k, j - 1, i
            elif side == 3:
                free, p, c, b, a = j < ny - 1, o + U(nx), k, j + 1, i
            elif side == 4:
                free, p, c, b, a = i > 0, o - ONE, k, j, i - 1
            else:
                free, p, c, b, a = i < nx - 1, o + ONE, k, j, i + 1
            if free and flat[p] == 0:
                index[count, 0] = c
                index[count, 1] = b
                index[count, 2] = a
                count += 1
                flat[p] = count
    return index, waiting[:kept], count


@njit(error_model="numpy")
def _listed(flat: Array, shape: tuple[int, int, int], k: int, j: int, i: int, side: int) -> int:
    """Label of a face neighbour, sides in the order -z, +z, -y, +y, -x, +x; 0 beyond the faces."""
    nz, ny, nx = shape
    o = U((k * ny + j) * nx + i)
    if side == 0:
        return flat[o - U(ny * nx)] if k > 0 else 0
    if side == 1:
        return flat[o + U(ny * nx)] if k < nz - 1 else 0
    if side == 2:
        return flat[o - U(nx)] if j > 0 else 0
    if side == 3:
        return flat[o + U(nx)] if j < ny - 1 else 0
    if side == 4:
        return flat[o - ONE] if i > 0 else 0
    return flat[o + ONE] if i < nx - 1 else 0


@njit(error_model="numpy")
def _way(side: int) -> tuple[float, float, float]:
    """Step to the face neighbour on a side."""
    up = float(2 * (side % 2) - 1)
    return up * (side < 2), up * (side // 2 == 1), up * (side > 3)


@njit(error_model="numpy")
def _nearest_candidate(
    label: Array, offset: Array, k: int, j: int, i: int, limit: int, hz: float, hy: float, hx: float
) -> tuple[int, float, tuple[float, float, float]]:
    """Side, distance and offset of the nearest closest point known to the face neighbours.

    Equal distances are decided by the offsets' magnitudes, which mirrors leave alone.
    """
    flat = label.reshape(-1)
    best = math.inf
    z = y = x = math.inf
    chosen = -1
    for side in range(6):
        m = _listed(flat, label.shape, k, j, i, side)
        if m <= 0 or m > limit:
            continue
        n = U(m - 1)
        dz, dy, dx = _way(side)
        oz, oy, ox = offset[n, 0] + dz, offset[n, 1] + dy, offset[n, 2] + dx
        d2 = (oz * hz) ** 2 + (oy * hy) ** 2 + (ox * hx) ** 2
        less = d2 < best
        if d2 == best:
            less = abs(oz) < abs(z)
            if abs(oz) == abs(z):
                less = abs(oy) < abs(y)
        if less:
            best = d2
            z, y, x = oz, oy, ox
            chosen = side
    return chosen, math.sqrt(best), (z, y, x)


@njit(error_model="numpy")
def _settle(
    flat: Array,
    shape: tuple[int, int, int],
    k: int,
    j: int,
    i: int,
    start: tuple[float, float, float],
    candidate: tuple[float, float, float],
    near: float,
    outside: bool,
    hz: float,
    hy: float,
    hx: float,
) -> tuple[float, float, float, float]:
    """Closest point from a start, else from the candidate, else the candidate: an upper bound."""
    most = near + SLACK * min(hz, min(hy, hx))
    z, y, x, d = project(flat, shape, k, j, i, start, outside, hz, hy, hx)
    if not d <= most:
        z, y, x, d = project(flat, shape, k, j, i, candidate, outside, hz, hy, hx)
    if not d <= most:
        return candidate[0], candidate[1], candidate[2], near
    return z, y, x, d


@compiled(parallel=True)
def grow_closest(
    phi: Array,
    label: Array,
    index: Array,
    offset: Array,
    distance: Array,
    first: int,
    last: int,
    band: float,
    hz: float,
    hy: float,
    hx: float,
) -> None:
    """Closest points of list entries first..last from those of the entries before first.

    Started at the linear continuation of the closest points of the two voxels further in.
    Beyond the band the continuation itself will do; such entries are no candidates for others.
    """
    shape = phi.shape
    flat, labels = phi.reshape(-1), label.reshape(-1)
    h = min(hz, min(hy, hx))
    for n in prange(first, last):
        k = index[n, 0]
        j = index[n, 1]
        i = index[n, 2]
        side, near, candidate = _nearest_candidate(label, offset, k, j, i, first, hz, hy, hx)
        z, y, x = candidate
        d = math.inf
        start = candidate
        dz, dy, dx = _way(side)
        c, b, a = k + int(dz), j + int(dy), i + int(dx)
        m = _listed(labels, shape, c, b, a, side)
        if m > 0 and m <= first:
            p, q = U(_listed(labels, shape, k, j, i, side) - 1), U(m - 1)
            z = 2.0 * offset[p, 0] - offset[q, 0]
            y = 2.0 * offset[p, 1] - offset[q, 1]
            x = 2.0 * offset[p, 2] - offset[q, 2]
            ez, ey, ex = (z - candidate[0]) * hz, (y - candidate[1]) * hy, (x - candidate[2]) * hx
            if ez * ez + ey * ey + ex * ex < h * h:
                start = (z, y, x)
                d = math.sqrt((z * hz) ** 2 + (y * hy) ** 2 + (x * hx) ** 2)
        if not (d > band + 0.1 * h and d <= near):
            z, y, x, d = _settle(
                flat, shape, k, j, i, start, candidate, near, phi[k, j, i] > 0.0, hz, hy, hx
            )
        offset[n, 0] = z
        offset[n, 1] = y
        offset[n, 2] = x
        distance[n] = d
        if d > band:
            label[k, j, i] = -(n + 1)


@compiled(parallel=True)
def find_improvable(
    label: Array, index: Array, offset: Array, distance: Array, flag: Array,
    hz: float, hy: float, hx: float,
) -> None:  # fmt: skip
    """Tell which flagged entries lie nearer to the closest point of a neighbour than to their own.

    Written over the flags; neighbours share a face.
    """
    flat = label.reshape(-1)
    slack = SLACK * min(hz, min(hy, hx))
    for n in prange(index.shape[0]):
        if not flag[n]:
            continue
        k = index[n, 0]
        j = index[n, 1]
        i = index[n, 2]
        limit = max(distance[n] - slack, 0.0)
        limit *= limit
        found = False
        for side in range(6):
            m = _listed(flat, label.shape, k, j, i, side)
            if m <= 0:
                continue
            p = U(m - 1)
            dz, dy, dx = _way(side)
            z, y, x = offset[p, 0] + dz, offset[p, 1] + dy, offset[p, 2] + dx
            found |= (z * hz) ** 2 + (y * hy) ** 2 + (x * hx) ** 2 < limit
        flag[n] = found


@compiled()
def flag_neighbours(label: Array, index: Array, which: Array, flag: Array) -> None:
    """Flag the face neighbours of some entries, and nothing else."""
    flat = label.reshape(-1)
    flag[:] = False
    for w in range(which.shape[0]):
        n = which[w]
        for side in range(6):
            m = abs(_listed(flat, label.shape, index[n, 0], index[n, 1], index[n, 2], side))
            if m > 0:
                flag[m - 1] = True


@compiled(parallel=True)
def improve_closest(
    phi: Array,
    label: Array,
    index: Array,
    offset: Array,
    which: Array,
    new_offset: Array,
    new_distance: Array,
    hz: float,
    hy: float,
    hx: float,
) -> None:
    """Closest points of some entries from the nearest of their neighbours'."""
    flat = phi.reshape(-1)
    for w in prange(which.shape[0]):
        n = which[w]
        k = index[n, 0]
        j = index[n, 1]
        i = index[n, 2]
        _, near, candidate = _nearest_candidate(label, offset, k, j, i, index.shape[0], hz, hy, hx)
        z, y, x, d = _settle(
            flat, phi.shape, k, j, i, candidate, candidate, near, phi[k, j, i] > 0.0, hz, hy, hx
        )
        new_offset[w, 0] = z
        new_offset[w, 1] = y
        new_offset[w, 2] = x
        new_distance[w] = d


@compiled(parallel=True)
def write_distance(phi: Array, index: Array, distance: Array, band: Array, out: Array) -> None:
    """Write signed distances, clamped to ``band[0]``, into out; the sign is that of phi."""
    nz, ny, nx = phi.shape
    far = band[0]
    for row in prange(nz * ny):
        a = phi[row // ny, row % ny]
        b = out[row // ny, row % ny]
        for i in range(nx):
            b[U(i)] = -far if a[U(i)] < 0.0 else far
    for n in prange(index.shape[0]):
        k = index[n, 0]
        j = index[n, 1]
        i = index[n, 2]
        here = phi[k, j, i]
        d = min(distance[n], far)
        # The smallest positive distance keeps the sign of a voxel that lies on the wall.
        out[k, j, i] = math.copysign(max(d, 1e-30), here) if here != 0.0 else 0.0


@compiled(parallel=True)
def sample_at(values: Array, index: Array, offset: Array, out: Array) -> None:
    """Trilinear samples of a field at closest points: constant extension along normals."""
    nz, ny, nx = values.shape
    for n in prange(index.shape[0]):
        z = min(max(index[n, 0] + float(offset[n, 0]), 0.0), nz - 1.0)
        y = min(max(index[n, 1] + float(offset[n, 1]), 0.0), ny - 1.0)
        x = min(max(index[n, 2] + float(offset[n, 2]), 0.0), nx - 1.0)
        k = min(int(z), max(nz - 2, 0))
        j = min(int(y), max(ny - 2, 0))
        i = min(int(x), max(nx - 2, 0))
        c = z - k
        b = y - j
        a = x - i
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
