"""Compiled loops of the random vessels. Points are (z, y, x) in voxels.

A segment is a row: both end points, both radii.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray


@njit(cache=True)
def _dot(a: NDArray, b: NDArray) -> float:
    return float(a[0] * b[0] + a[1] * b[1] + a[2] * b[2])


@njit(cache=True)
def _normalise(a: NDArray) -> None:
    size = math.sqrt(_dot(a, a))
    for d in range(3):
        a[d] /= size


@njit(cache=True)
def _turn(
    curl: NDArray,
    move: NDArray,
    home: NDArray,
    base: float,
    step: float,
    kicks: NDArray,
    rate: float,
) -> None:
    """Advance the curvature vector (Ornstein-Uhlenbeck) and the heading by one step."""
    keep = math.exp(-step / (5.0 * base + 4.0))
    kick = math.sqrt(1.0 - keep * keep) * rate / (base + 3.0)
    # A weak pull to the first heading: long vessels cross the box, they do not coil up.
    pull = (1.0 - keep) * 0.12 / (0.3 * base + 1.0)
    for d in range(3):
        curl[d] = keep * curl[d] + kick * kicks[d]
        curl[d] += pull * (home[d] - move[d])
    along = _dot(curl, move)
    for d in range(3):
        curl[d] -= along * move[d]
    bend = _dot(curl, curl)
    limit = 0.55 / base
    scale = min(1.0, limit / math.sqrt(bend)) if bend > 0.0 else 1.0
    for d in range(3):
        move[d] += step * scale * curl[d]
    _normalise(move)


@njit(cache=True)
def _fork(
    move: NDArray, side: NDArray, angle: float, share: float, point: NDArray, child: NDArray
) -> None:
    """Point the child off to one side (point, direction in its row) and the parent to the other."""
    along = _dot(side, move)
    size = 1e-12
    for d in range(3):
        side[d] -= along * move[d]
        size += side[d] * side[d]
    side /= math.sqrt(size)
    for d in range(3):
        child[d] = point[d]
        child[3 + d] = math.cos(angle) * move[d] + math.sin(angle) * side[d]
    for d in range(3):
        move[d] -= 0.6 * share * side[d]
    _normalise(move)


@njit(cache=True)
def _outside(point: NDArray, size: NDArray, margin: float) -> bool:
    gone = False
    for d in range(3):
        gone = gone or point[d] < -margin or point[d] > size[d] + margin
    return gone


@njit(cache=True)
def grow(
    roots: NDArray,
    normals: NDArray,
    uniforms: NDArray,
    size: NDArray,
    tortuosity: float,
    branching: float,
    thinnest: float,
    planar: bool,
    segments: NDArray,
) -> int:
    """Walk each root (point, direction, radius) through the box; return the number of segments.

    The curvature of the axis is an Ornstein-Uhlenbeck process; branches share the cube of the
    radius (Murray 1926); the radius ripples and has one dip or bulge per branch.
    """
    stack = np.zeros((64, 8))
    height = len(roots)
    stack[:height, :7] = roots
    count, draw = 0, 0
    many, most = len(normals), len(uniforms)
    normals = np.concatenate((normals, normals[:8]))  # so that a window may cross the end
    uniforms = np.concatenate((uniforms, uniforms[:8]))
    flat = np.array([0.0 if planar else 1.0, 1.0, 1.0])
    while height > 0 and count < len(segments):
        height -= 1
        point, move = stack[height, :3].copy(), stack[height, 3:6].copy()
        home = move.copy()
        base, level = stack[height, 6], stack[height, 7]
        target, curl = base, np.zeros(3)
        u = uniforms[draw % most :] if draw % most <= most - 8 else uniforms
        draw += 8
        ripple, wave, phase = 0.12 * u[0], (3.0 + 9.0 * u[1]) * base, 6.28 * u[2]
        bump = 0.0 if u[3] < 0.5 else (-0.6 + 1.4 * (u[3] - 0.5) * 2.0)
        where, width = 5.0 + 40.0 * u[4], (0.7 + 1.5 * u[5]) * base
        travelled, since = 0.0, 0.0
        last = base * (1.0 + ripple * math.sin(phase))
        while count < len(segments):
            step = max(0.8, 0.35 * base)
            _turn(curl, move, home, base, step, normals[draw % many :][:3] * flat, tortuosity)
            draw += 3
            segments[count, :3] = point
            point += step * move
            segments[count, 3:6] = point
            travelled += step
            since += step
            base += 0.25 * (target - base)
            offset = (travelled - where) / width
            now = base * (1.0 + ripple * math.sin(phase + 6.28 * travelled / wave))
            now *= 1.0 + bump * math.exp(-0.5 * offset * offset)
            now = max(now, 0.7)
            # A round cone needs abs(difference of radii) < length.
            now = min(max(now, last - 0.7 * step), last + 0.7 * step)
            segments[count, 6], segments[count, 7] = last, now
            last = now
            count += 1
            if _outside(point, size, base + 3.0):
                break
            chance = uniforms[draw % most]
            draw += 1
            if since > 2.5 * base and chance < branching * step / base and height < 60:
                share, angle = 0.08 + 0.42 * uniforms[draw % most], 0.5 + uniforms[draw % most + 1]
                side = normals[draw % many :][:3] * flat
                draw += 5
                child = base * share ** (1.0 / 3.0)
                if child > thinnest and level < 4.0:
                    _fork(move, side, angle, share, point, stack[height])
                    stack[height, 6], stack[height, 7] = child, level + 1.0
                    height += 1
                    target = base * (1.0 - share) ** (1.0 / 3.0)
                    since = 0.0
    return count


@njit(cache=True)
def rasterise(segments: NDArray, margin: float, phi: NDArray, radius: NDArray) -> None:
    """Lower phi to the distance to each round cone near it; keep the radius of the closest.

    Distance of a round cone: I. Quilez, "distance functions", sdRoundCone.
    """
    nz, ny, nx = phi.shape
    for s in range(len(segments)):
        az, ay, ax = segments[s, 0], segments[s, 1], segments[s, 2]
        bz, by, bx = segments[s, 3] - az, segments[s, 4] - ay, segments[s, 5] - ax
        ra, rb = segments[s, 6], segments[s, 7]
        reach = max(ra, rb) + margin
        z0, z1 = max(0, math.ceil(min(az, az + bz) - reach)), min(nz - 1, max(az, az + bz) + reach)
        y0, y1 = max(0, math.ceil(min(ay, ay + by) - reach)), min(ny - 1, max(ay, ay + by) + reach)
        x0, x1 = max(0, math.ceil(min(ax, ax + bx) - reach)), min(nx - 1, max(ax, ax + bx) + reach)
        l2 = bz * bz + by * by + bx * bx
        rr = ra - rb
        a2 = l2 - rr * rr
        ball = a2 <= 1e-9
        il2 = 1.0 / max(l2, 1e-12)
        for k in range(z0, math.floor(z1) + 1):
            pz = k - az
            for j in range(y0, math.floor(y1) + 1):
                py = j - ay
                for i in range(x0, math.floor(x1) + 1):
                    px = i - ax
                    pp = pz * pz + py * py + px * px
                    if ball:
                        d = math.sqrt(pp) - max(ra, rb)
                    else:
                        y = pz * bz + py * by + px * bx
                        z = y - l2
                        across = max(pp * l2 - y * y, 0.0)
                        x2 = across * l2
                        y2, z2 = y * y * l2, z * z * l2
                        k2 = rr * abs(rr) * x2
                        if (z2 if z > 0.0 else -z2) * a2 > k2:
                            d = math.sqrt(x2 + z2) * il2 - rb
                        elif (y2 if y > 0.0 else -y2) * a2 < k2:
                            d = math.sqrt(x2 + y2) * il2 - ra
                        else:
                            d = (math.sqrt(x2 * a2 * il2) + y * rr) * il2 - ra
                    if d < phi[k, j, i]:
                        phi[k, j, i] = d
                        share = 0.0 if ball else min(max((y * il2), 0.0), 1.0)
                        radius[k, j, i] = ra + share * (rb - ra)


@njit(cache=True)
def sweep(distance: NDArray, fixed: NDArray) -> None:
    """Solve the eikonal equation outside the fixed voxels, first order (Zhao 2005)."""
    nz, ny, nx = distance.shape
    big = np.float32(1e9)
    for turn in range(8):
        for kk in range(nz):
            k = kk if turn & 1 else nz - 1 - kk
            for jj in range(ny):
                j = jj if turn & 2 else ny - 1 - jj
                for ii in range(nx):
                    i = ii if turn & 4 else nx - 1 - ii
                    if fixed[k, j, i]:
                        continue
                    a = min(
                        distance[k - 1, j, i] if k > 0 else big,
                        distance[k + 1, j, i] if k < nz - 1 else big,
                    )
                    b = min(
                        distance[k, j - 1, i] if j > 0 else big,
                        distance[k, j + 1, i] if j < ny - 1 else big,
                    )
                    c = min(
                        distance[k, j, i - 1] if i > 0 else big,
                        distance[k, j, i + 1] if i < nx - 1 else big,
                    )
                    if a > b:
                        a, b = b, a
                    if b > c:
                        b, c = c, b
                    if a > b:
                        a, b = b, a
                    u = a + np.float32(1.0)
                    if u > b:
                        u = (a + b + math.sqrt(max(2.0 - (a - b) * (a - b), 0.0))) / 2.0
                        if u > c:
                            total = a + b + c
                            rest = total * total - 3.0 * (a * a + b * b + c * c - 1.0)
                            u = (total + math.sqrt(max(rest, 0.0))) / 3.0
                    if u < distance[k, j, i]:
                        distance[k, j, i] = u


@njit(cache=True)
def climb(points: NDArray, moves: NDArray, phi: NDArray, steps: int) -> None:
    """Move axis points across the axis towards the lowest phi; keep those still in the lumen."""
    nz, ny, nx = phi.shape
    size = (nz, ny, nx)
    slope = np.zeros(3)
    index = np.zeros(3, np.int64)
    for p in range(len(points)):
        inside = True
        for n in range(steps):
            for d in range(3):
                index[d] = round(points[p, d])
                inside = inside and 0 <= index[d] < size[d]
            if not inside:
                break
            k, j, i = index
            slope[:] = 0.0
            if 0 < k < nz - 1:
                slope[0] = (phi[k + 1, j, i] - phi[k - 1, j, i]) / 2
            if 0 < j < ny - 1:
                slope[1] = (phi[k, j + 1, i] - phi[k, j - 1, i]) / 2
            if 0 < i < nx - 1:
                slope[2] = (phi[k, j, i + 1] - phi[k, j, i - 1]) / 2
            along = slope[0] * moves[p, 0] + slope[1] * moves[p, 1] + slope[2] * moves[p, 2]
            for d in range(3):
                points[p, d] -= (0.5 - 0.4 * n / steps) * (slope[d] - along * moves[p, d])


@njit(cache=True)
def stamp(points: NDArray, phi: NDArray, reach: float, out: NDArray) -> None:
    """Mark the lumen voxels within reach of the points."""
    nz, ny, nx = phi.shape
    for p in range(len(points)):
        z, y, x = points[p]
        for k in range(max(0, math.ceil(z - reach)), min(nz - 1, math.floor(z + reach)) + 1):
            for j in range(max(0, math.ceil(y - reach)), min(ny - 1, math.floor(y + reach)) + 1):
                for i in range(
                    max(0, math.ceil(x - reach)), min(nx - 1, math.floor(x + reach)) + 1
                ):
                    near = (k - z) ** 2 + (j - y) ** 2 + (i - x) ** 2 <= reach * reach
                    if near and phi[k, j, i] < 0:
                        out[k, j, i] = 1
