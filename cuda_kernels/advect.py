"""One Runge-Kutta stage of the level-set equation on a list of tiles.

phi_t + V |∇phi| + u · ∇phi = b κ |∇phi|, κ = div(∇phi / |∇phi|), V > 0 grows the lumen
(Osher & Sethian 1988); one-sided derivatives by HJ-WENO5 (Jiang & Peng 2000) or ENO2
(Osher & Shu 1991), Godunov's choice for the normal term, central differences for κ.

Rows of 16 voxels are computed at once: their loops have no branches, fixed lengths and unsigned
indices, so that the compiler makes one vector of a row. Tiles inside the box read phi where it
is; those at the faces read a copy that goes on beyond them.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit, prange

from .jit import compiled
from .stencils import HALF, TWO, ZERO, Array, Index, Pair, Real, eno2_pair, upwind_sq, weno5_pair
from .tiles import BLOCK, HALO, ROWS, TILE, WIDTH, load_block, tile_origin

U1, U2, U3 = np.uint64(1), np.uint64(2), np.uint64(3)
FLATTEST = np.float32(1e-30)  # square of a slope below which phi has no normal


@njit(error_model="numpy", forceinline=True)
def eno2_at(phi: Array, p: Index, s: Index, h: Real) -> Pair:
    """One-sided derivatives at sample p of a flat field along the axis of stride s."""
    return eno2_pair(phi[p - U2 * s], phi[p - s], phi[p], phi[p + s], phi[p + U2 * s], h)


@njit(error_model="numpy", forceinline=True)
def weno5_at(phi: Array, p: Index, s: Index, h: Real) -> Pair:
    """Return what ``eno2_at`` returns, to fifth order."""
    m3, m2, m1 = phi[p - U3 * s], phi[p - U2 * s], phi[p - s]
    return weno5_pair(m3, m2, m1, phi[p], phi[p + s], phi[p + U2 * s], phi[p + U3 * s], h)


def transport_by(pair_at: Any) -> Any:
    """Return the transport of a row by one kind of one-sided derivatives."""

    @njit(error_model="numpy", forceinline=True)
    def transport(
        phi: Array, at: Index, sz: Index, sy: Index, hz: Real, hy: Real, hx: Real,
        motion: Array, rate: Array,
    ) -> None:  # fmt: skip
        """Write -V |∇phi| - u · ∇phi; ``motion`` holds the rows V, u_z, u_y, u_x."""
        for i in range(WIDTH):
            zl, zr = pair_at(phi, at + i, sz, hz)
            yl, yr = pair_at(phi, at + i, sy, hy)
            xl, xr = pair_at(phi, at + i, U1, hx)
            v = motion[0, i]
            out = v > ZERO
            g2 = upwind_sq(zl, zr, out) + upwind_sq(yl, yr, out) + upwind_sq(xl, xr, out)
            uz = motion[1, i]
            uy = motion[2, i]
            ux = motion[3, i]
            along = uz * (zl if uz > ZERO else zr)
            along += uy * (yl if uy > ZERO else yr)
            along += ux * (xl if ux > ZERO else xr)
            rate[i] = -v * math.sqrt(g2) - along

    return transport


transport_eno2 = transport_by(eno2_at)
transport_weno5 = transport_by(weno5_at)


@njit(error_model="numpy", forceinline=True)
def curvature(
    phi: Array, at: Index, sz: Index, sy: Index, hz: Real, hy: Real, hx: Real,
    motion: Array, rate: Array,
) -> None:  # fmt: skip
    """Add b κ |∇phi| to the rates of a row: 19 points, |κ| capped at 2/h, b in motion's row 4."""
    az = HALF / hz
    ay = HALF / hy
    ax = HALF / hx
    cap = TWO / min(hz, min(hy, hx))
    for i in range(WIDTH):
        p = at + i
        here = TWO * phi[p]
        # Sums are ordered so that mirrored fields give the same value to the last bit.
        z = (phi[p + sz] - phi[p - sz]) * az
        y = (phi[p + sy] - phi[p - sy]) * ay
        x = (phi[p + U1] - phi[p - U1]) * ax
        zz = (phi[p + sz] + phi[p - sz] - here) / (hz * hz)
        yy = (phi[p + sy] + phi[p - sy] - here) / (hy * hy)
        xx = (phi[p + U1] + phi[p - U1] - here) / (hx * hx)
        zy = phi[p + sz + sy] + phi[p - sz - sy] - (phi[p + sz - sy] + phi[p - sz + sy])
        zx = phi[p + sz + U1] + phi[p - sz - U1] - (phi[p + sz - U1] + phi[p - sz + U1])
        yx = phi[p + sy + U1] + phi[p - sy - U1] - (phi[p + sy - U1] + phi[p - sy + U1])
        mixed = z * y * zy * (az * ay) + z * x * zx * (az * ax) + y * x * yx * (ay * ax)
        g2 = z * z + y * y + x * x
        turned = zz * (y * y + x * x) + yy * (z * z + x * x) + xx * (z * z + y * y) - TWO * mixed
        value = turned / (g2 if g2 > FLATTEST else FLATTEST)
        limit = cap * math.sqrt(g2)
        value = value if value < limit else limit
        rate[i] += motion[4, i] * (value if value > -limit else -limit)


@njit(error_model="numpy", forceinline=True)
def load_row(values: Array, first: Index, step: Index, count: Index, row: Array) -> None:
    """Copy every step-th value; a whole row in one loop of fixed length."""
    if count == WIDTH and step == U1:
        for i in range(WIDTH):
            row[i] = values[first + i]
    else:
        for i in range(count):
            row[i] = values[first + i * step]


@njit(error_model="numpy", forceinline=True)
def advance(
    phi: Array, at: Index, rate: Array, base: Array, home: Index, mask: Index, count: Index,
    dt: Real, ca: Real, cb: Real, new: Array, out: Array,
) -> None:  # fmt: skip
    """Write one stage of a row; voxels beside the band keep their value."""
    load_row(base, home, U1, count, new)
    for i in range(WIDTH):
        old = phi[at + i]
        moved = ca * new[i] + cb * (old + dt * rate[i])
        new[i] = moved if (mask >> i) & U1 else old
    if count == WIDTH:
        for i in range(WIDTH):
            out[home + i] = new[i]
    else:
        for i in range(count):
            out[home + i] = new[i]


@compiled(parallel=True)
def advect_tiles(
    phi: Array,
    speed: Array,
    velocity: Array,
    bend: Array,
    base: Array,
    tiles: Array,
    bits: Array,
    out: Array,
    dt: Real,
    ca: Real,
    cb: Real,
    order: int,
    spacing: Array,
) -> None:
    """Write out = ca base + cb (phi + dt rate(phi)) at the voxels of the band, phi beside them.

    ``speed``, ``bend`` (n or 1 or 0) and ``velocity`` (n or 0, dims: x first) are flat; one sample
    holds everywhere. ``spacing`` and the numbers have the type of phi. ``out`` may be ``base``,
    which is read at the voxel itself only; the tiles' neighbours must hold the values of phi in
    both.
    """
    nz, ny, nx = phi.shape
    flat = phi.reshape(phi.size)
    flat_base = base.reshape(phi.size)
    flat_out = out.reshape(phi.size)
    flat_velocity = velocity.reshape(velocity.size)
    dims = velocity.shape[1]
    hz, hy, hx = spacing[0], spacing[1], spacing[2]
    for t in prange(tiles.size):
        k0, j0, i0 = tile_origin(tiles[t], ny, nx)
        count = np.uint64(min(TILE[2], nx - i0))
        motion = np.zeros((7, TILE[2]), phi.dtype)
        rate = motion[5]
        new = motion[6]
        if speed.size == 1:
            motion[0, :] = speed[0]
        if bend.size == 1:
            motion[4, :] = bend[0]
        field = flat
        sz, sy = np.uint64(ny * nx), np.uint64(nx)
        start = np.uint64((k0 * ny + j0) * nx + i0)
        free = min(k0, min(j0, i0)) >= HALO and k0 + TILE[0] + HALO <= nz
        if not (free and j0 + TILE[1] + HALO <= ny and i0 + TILE[2] + HALO <= nx):
            block = np.empty(BLOCK, phi.dtype)
            load_block(phi, k0, j0, i0, block)
            field = block.reshape(block.size)
            sz, sy = np.uint64(BLOCK[1] * BLOCK[2]), np.uint64(BLOCK[2])
            start = np.uint64((HALO * BLOCK[1] + HALO) * BLOCK[2] + HALO)
        for row in range(ROWS):
            mask = np.uint64(bits[t, row])
            if mask == 0:
                continue
            k = row // TILE[1]
            j = row % TILE[1]
            at = start + np.uint64(k) * sz + np.uint64(j) * sy
            home = np.uint64(((k0 + k) * ny + j0 + j) * nx + i0)
            if speed.size > 1:
                load_row(speed, home, U1, count, motion[0])
            if bend.size > 1:
                load_row(bend, home, U1, count, motion[4])
            for a in range(dims):
                first = home * np.uint64(dims) + np.uint64(a)
                load_row(flat_velocity, first, np.uint64(dims), count, motion[3 - a])
            if speed.size + dims == 0:
                rate[:] = ZERO
            elif order == 2:
                transport_eno2(field, at, sz, sy, hz, hy, hx, motion, rate)
            else:
                transport_weno5(field, at, sz, sy, hz, hy, hx, motion, rate)
            if bend.size > 0:
                curvature(field, at, sz, sy, hz, hy, hx, motion, rate)
            advance(field, at, rate, flat_base, home, mask, count, dt, ca, cb, new, flat_out)
