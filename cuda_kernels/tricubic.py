"""Tricubic Lagrange interpolation with gradient and Hessian, in voxels.

A point is given by its offset from a voxel, so that nothing depends on where the voxel lies; a
mirrored field gives the mirrored result to the last bit, hence the order of the sums. A field is
passed flattened, with its shape; a plane has nz = 1.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
from numba import njit

from .stencils import Array

Four: TypeAlias = tuple[float, float, float, float]
# Value; gradient z, y, x; Hessian zz, yy, xx, zy, zx, yx.
Jet: TypeAlias = tuple[float, float, float, float, float, float, float, float, float, float]

U = np.uint64
ONE, TWO, THREE = U(1), U(2), U(3)
SNAP = 1e-9  # voxels: a point so near a grid plane lies on it, whatever rounding made of it
TURN = 0.5  # squared relative change of the slope up to which the expansion is believed


@njit(error_model="numpy")
def cubic_weights(s: float) -> tuple[Four, Four, Four]:
    """Weights of samples at -3/2, -1/2, 1/2, 3/2 for value, slope and bend of their cubic at s."""
    q = s * s - 0.25
    r = s * s - 2.25
    t = 2.0 * s
    a, b = 1.5 - s, 1.5 + s
    c, d = 0.5 - s, 0.5 + s
    sixth = 1.0 / 6.0
    value = (q * a * sixth, r * c * -0.5, r * d * -0.5, q * b * sixth)
    slope = ((t * a - q) * sixth, (t * c - r) * -0.5, (t * d + r) * -0.5, (t * b + q) * sixth)
    bend = (c, 3.0 * s - 0.5, -0.5 - 3.0 * s, d)
    return value, slope, bend


@njit(error_model="numpy")
def cell(o: float, at: int, n: int, lower: bool) -> tuple[int, float]:
    """First of the four samples about an offset from voxel ``at``, and the place s between them.

    An offset on a grid plane belongs to two cells; ``lower`` chooses.
    """
    below = math.floor(o)
    if lower and below == o:
        below -= 1
    first = min(max(at + below - 1, 0), max(n - 4, 0))
    return first, o - (first - at + 1.5)


@njit(error_model="numpy")
def _dot(w: Four, a: float, b: float, c: float, d: float) -> float:
    return (w[0] * a + w[3] * d) + (w[1] * b + w[2] * c)


@njit(error_model="numpy")
def _row(flat: Array, o: U, x: tuple[Four, Four, Four]) -> tuple[float, float, float]:
    a, b, c, d = flat[o], flat[o + ONE], flat[o + TWO], flat[o + THREE]
    return _dot(x[0], a, b, c, d), _dot(x[1], a, b, c, d), _dot(x[2], a, b, c, d)


@njit(error_model="numpy")
def _plane(
    flat: Array, o: int, nx: int, y: tuple[Four, Four, Four], x: tuple[Four, Four, Four]
) -> tuple[float, float, float, float, float, float]:
    """Value, y, x, yy, xx, yx of one plane of samples."""
    p, n = U(o), U(nx)
    a = _row(flat, p, x)
    b = _row(flat, p + n, x)
    c = _row(flat, p + n + n, x)
    d = _row(flat, p + n + n + n, x)
    return (
        _dot(y[0], a[0], b[0], c[0], d[0]),
        _dot(y[1], a[0], b[0], c[0], d[0]),
        _dot(y[0], a[1], b[1], c[1], d[1]),
        _dot(y[2], a[0], b[0], c[0], d[0]),
        _dot(y[0], a[2], b[2], c[2], d[2]),
        _dot(y[1], a[1], b[1], c[1], d[1]),
    )


@njit(error_model="numpy")
def _in_cell(
    flat: Array, nz: int, ny: int, nx: int, k: int, j: int, i: int, sz: float, sy: float, sx: float
) -> Jet:
    x, y = cubic_weights(sx), cubic_weights(sy)
    o = (k * ny + j) * nx + i
    a = _plane(flat, o, nx, y, x)
    if nz == 1:
        return a[0], 0.0, a[1], a[2], 0.0, a[3], a[4], 0.0, 0.0, a[5]
    z = cubic_weights(sz)
    b = _plane(flat, o + ny * nx, nx, y, x)
    c = _plane(flat, o + 2 * ny * nx, nx, y, x)
    d = _plane(flat, o + 3 * ny * nx, nx, y, x)
    return (
        _dot(z[0], a[0], b[0], c[0], d[0]),
        _dot(z[1], a[0], b[0], c[0], d[0]),
        _dot(z[0], a[1], b[1], c[1], d[1]),
        _dot(z[0], a[2], b[2], c[2], d[2]),
        _dot(z[2], a[0], b[0], c[0], d[0]),
        _dot(z[0], a[3], b[3], c[3], d[3]),
        _dot(z[0], a[4], b[4], c[4], d[4]),
        _dot(z[1], a[1], b[1], c[1], d[1]),
        _dot(z[1], a[2], b[2], c[2], d[2]),
        _dot(z[0], a[5], b[5], c[5], d[5]),
    )


@njit(error_model="numpy")
def _mean(a: Jet, b: Jet) -> Jet:
    return (
        0.5 * (a[0] + b[0]),
        0.5 * (a[1] + b[1]),
        0.5 * (a[2] + b[2]),
        0.5 * (a[3] + b[3]),
        0.5 * (a[4] + b[4]),
        0.5 * (a[5] + b[5]),
        0.5 * (a[6] + b[6]),
        0.5 * (a[7] + b[7]),
        0.5 * (a[8] + b[8]),
        0.5 * (a[9] + b[9]),
    )


@njit(error_model="numpy")
def _about_plane(
    flat: Array, nz: int, ny: int, nx: int, k: int, j: int, i: int, oz: float, oy: float, ox: float
) -> Jet:
    """Mean of the cells that share a point on a grid plane: their slopes differ there."""
    az, sz = cell(oz, k, nz, False)
    bz, tz = cell(oz, k, nz, True)
    ay, sy = cell(oy, j, ny, False)
    by, ty = cell(oy, j, ny, True)
    ax, sx = cell(ox, i, nx, False)
    bx, tx = cell(ox, i, nx, True)
    return _mean(
        _mean(
            _mean(
                _in_cell(flat, nz, ny, nx, az, ay, ax, sz, sy, sx),
                _in_cell(flat, nz, ny, nx, az, ay, bx, sz, sy, tx),
            ),
            _mean(
                _in_cell(flat, nz, ny, nx, az, by, ax, sz, ty, sx),
                _in_cell(flat, nz, ny, nx, az, by, bx, sz, ty, tx),
            ),
        ),
        _mean(
            _mean(
                _in_cell(flat, nz, ny, nx, bz, ay, ax, tz, sy, sx),
                _in_cell(flat, nz, ny, nx, bz, ay, bx, tz, sy, tx),
            ),
            _mean(
                _in_cell(flat, nz, ny, nx, bz, by, ax, tz, ty, sx),
                _in_cell(flat, nz, ny, nx, bz, by, bx, tz, ty, tx),
            ),
        ),
    )


@njit(error_model="numpy")
def _in_box(o: float, at: int, n: int) -> float:
    return min(max(o, -float(at)), float(n - 1 - at))


@njit(error_model="numpy")
def _snapped(o: float) -> float:
    """Offset of a grid plane for those near it, so that no rounding error chooses the cell."""
    plane = float(math.floor(o + 0.5))
    return plane if abs(o - plane) < SNAP else o


@njit(error_model="numpy")
def tricubic(
    flat: Array, nz: int, ny: int, nx: int, k: int, j: int, i: int, oz: float, oy: float, ox: float
) -> Jet:
    """Interpolate at an offset from voxel (k, j, i).

    Beyond the faces the field continues by its Taylor expansion about the nearest point of the
    box: the closest point of a slanted vessel that leaves the grid lies there. Where that
    expansion turns the slope too far to be believed, no slope is returned.
    """
    bz, by, bx = _in_box(oz, k, nz), _in_box(oy, j, ny), _in_box(ox, i, nx)
    z, y, x = _snapped(bz), _snapped(by), _snapped(bx)
    az, sz = cell(z, k, nz, False)
    ay, sy = cell(y, j, ny, False)
    ax, sx = cell(x, i, nx, False)
    if abs(sz) == 0.5 or abs(sy) == 0.5 or abs(sx) == 0.5:
        jet = _about_plane(flat, nz, ny, nx, k, j, i, z, y, x)
    else:
        jet = _in_cell(flat, nz, ny, nx, az, ay, ax, sz, sy, sx)
    if bz == oz and by == oy and bx == ox:
        return jet
    value, gz, gy, gx, zz, yy, xx, zy, zx, yx = jet
    z, y, x = oz - bz, oy - by, ox - bx
    rz = zz * z + zy * y + zx * x
    ry = zy * z + yy * y + yx * x
    rx = zx * z + yx * y + xx * x
    if not rz * rz + ry * ry + rx * rx < TURN * (gz * gz + gy * gy + gx * gx):
        return value, 0.0, 0.0, 0.0, zz, yy, xx, zy, zx, yx
    value += (gz + 0.5 * rz) * z + (gy + 0.5 * ry) * y + (gx + 0.5 * rx) * x
    return value, gz + rz, gy + ry, gx + rx, zz, yy, xx, zy, zx, yx
