"""The narrow band as a list of tiles of a dense field: which voxels move, and their neighbours.

A tile is a block of 8 x 8 x 16 voxels, aligned at the origin. A voxel moves because |phi| is
below the band's width when the list is made, never because its tile is listed, so that results
depend neither on the shape of the tiles nor on their order. ``bits`` holds 16 bits a row.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit, prange

from .jit import compiled
from .stencils import Array, Index, Real

TILE = (8, 8, 16)
ROWS = TILE[0] * TILE[1]
WIDTH = np.uint64(TILE[2])
HALO = 3
BLOCK = tuple(n + 2 * HALO for n in TILE)  # voxels of a tile with the neighbours WENO5 reads


@njit(error_model="numpy")
def tile_origin(tile: int, ny: int, nx: int) -> tuple[int, int, int]:
    """First voxel (k, j, i) of a tile, from its number in C order."""
    across = (nx + TILE[2] - 1) // TILE[2]
    down = (ny + TILE[1] - 1) // TILE[1]
    row = tile // across
    return row // down * TILE[0], row % down * TILE[1], tile % across * TILE[2]


@njit(error_model="numpy", forceinline=True)
def row_bits(flat: Array, at: Index, count: Index, width: float) -> Index:
    """Return which of the samples from ``at`` on lie within the width, as bits."""
    found = np.uint64(0)
    if count == WIDTH:
        for i in range(WIDTH):
            found |= np.uint64(abs(flat[at + i]) < width) << i
    else:
        for i in range(count):
            found |= np.uint64(abs(flat[at + i]) < width) << i
    return found


@compiled(parallel=True)
def touched_tiles(phi: Array, width: float, touched: Array) -> None:
    """Tell which tiles hold a voxel with |phi| < width."""
    nz, ny, nx = phi.shape
    flat = phi.reshape(phi.size)
    for tile in prange(touched.size):
        k0, j0, i0 = tile_origin(tile, ny, nx)
        count = np.uint64(min(TILE[2], nx - i0))
        found = np.uint64(0)
        for k in range(k0, min(k0 + TILE[0], nz)):
            for j in range(j0, min(j0 + TILE[1], ny)):
                found |= row_bits(flat, np.uint64((k * ny + j) * nx + i0), count, width)
            if found:
                break
        touched[tile] = found > 0


@compiled(parallel=True)
def band_rows(phi: Array, width: float, tiles: Array, bits: Array, rim: Array) -> None:
    """Write the voxels of the band, and those with a face neighbour beyond it, as bits of rows."""
    nz, ny, nx = phi.shape
    flat = phi.reshape(phi.size)
    sz, sy = np.uint64(ny * nx), np.uint64(nx)
    one = np.uint64(1)
    for t in prange(tiles.size):
        k0, j0, i0 = tile_origin(tiles[t], ny, nx)
        count = np.uint64(min(TILE[2], nx - i0))
        for row in range(ROWS):
            k = k0 + row // TILE[1]
            j = j0 + row % TILE[1]
            bits[t, row] = 0
            rim[t, row] = 0
            if k >= nz or j >= ny:
                continue
            at = np.uint64((k * ny + j) * nx + i0)
            inside = row_bits(flat, at, count, width)
            if inside == 0:
                continue
            before = i0 == 0 or abs(flat[at - one]) < width
            after = i0 + TILE[2] >= nx or abs(flat[at + count]) < width
            near = (inside << one) | np.uint64(before)
            near &= (inside >> one) | (np.uint64(after) << (count - one))
            if k > 0:
                near &= row_bits(flat, at - sz, count, width)
            if k + 1 < nz:
                near &= row_bits(flat, at + sz, count, width)
            if j > 0:
                near &= row_bits(flat, at - sy, count, width)
            if j + 1 < ny:
                near &= row_bits(flat, at + sy, count, width)
            bits[t, row] = inside
            rim[t, row] = inside & ~near


@compiled(parallel=True)
def copy_tiles(source: Array, tiles: Array, out: Array) -> None:
    """Copy the tiles and the neighbours that their stencils read."""
    nz, ny, nx = source.shape
    for t in prange(tiles.size):
        k0, j0, i0 = tile_origin(tiles[t], ny, nx)
        first = max(i0 - HALO, 0)
        last = min(i0 + TILE[2] + HALO, nx)
        for k in range(max(k0 - HALO, 0), min(k0 + TILE[0] + HALO, nz)):
            for j in range(max(j0 - HALO, 0), min(j0 + TILE[1] + HALO, ny)):
                for i in range(first, last):
                    out[k, j, i] = source[k, j, i]


@njit(error_model="numpy", forceinline=True)
def go_on(flat: Array, at: Index, anchor: Index, inner: Index, far: Real, count: Index) -> None:
    """Continue samples along the straight line through those at ``inner`` and ``anchor``."""
    for i in range(count):
        flat[at + i] = flat[anchor + i] + far * (flat[anchor + i] - flat[inner + i])


@njit(error_model="numpy", forceinline=True)
def extend(flat: Array, at: Index, step: Index, low: int, high: int, size: int, run: Index) -> None:
    """Continue entries low to high - 1 of ``size``, each ``run`` samples, by HALO on either side.

    Entry m starts at ``at + m step``. A single entry is repeated.
    """
    if high <= low:
        return
    one = 1 if high > low + 1 else 0
    for m in range(max(low - HALO, 0), low):
        anchor = at + np.uint64(low) * step
        inner = at + np.uint64(low + one) * step
        go_on(flat, at + np.uint64(m) * step, anchor, inner, flat.dtype.type(low - m), run)
    for m in range(high, min(high + HALO, size)):
        anchor = at + np.uint64(high - 1) * step
        inner = at + np.uint64(high - 1 - one) * step
        go_on(flat, at + np.uint64(m) * step, anchor, inner, flat.dtype.type(m - high + 1), run)


@njit(error_model="numpy")
def load_block(phi: Array, k0: int, j0: int, i0: int, block: Array) -> None:
    """Copy a tile and its neighbours; beyond the faces phi goes on along straight lines.

    A clamped index would bend every wall that leaves the box. Along an axis of one sample phi
    is constant.
    """
    nz, ny, nx = phi.shape
    dz, dy, dx = BLOCK
    flat = phi.reshape(phi.size)
    out = block.reshape(block.size)
    sz, sy, one = np.uint64(dy * dx), np.uint64(dx), np.uint64(1)
    k0 -= HALO
    j0 -= HALO
    i0 -= HALO
    k1, k2 = max(-k0, 0), min(nz - k0, dz)
    j1, j2 = max(-j0, 0), min(ny - j0, dy)
    i1, i2 = max(-i0, 0), min(nx - i0, dx)
    for k in range(k1, k2):
        plane = np.uint64(k) * sz
        for j in range(j1, j2):
            row = plane + np.uint64(j) * sy
            home = np.uint64(((k0 + k) * ny + j0 + j) * nx + i0 + i1)
            for i in range(np.uint64(i2 - i1)):
                out[row + np.uint64(i1) + i] = flat[home + i]
            extend(out, row, one, i1, i2, dx, one)
        extend(out, plane, sy, j1, j2, dy, sy)
    extend(out, np.uint64(0), sz, k1, k2, dz, sz)


@njit(error_model="numpy")
def magnitude(values: Array, at: int) -> float:
    """Return |value|, infinite for NaN; one sample holds everywhere, none is zero."""
    if values.size == 0:
        return 0.0
    value = abs(values[at if values.size > 1 else 0])
    return value if value < math.inf else math.inf


@compiled(parallel=True)
def largest_speeds(
    speed: Array, velocity: Array, bend: Array, shape: tuple[int, ...], tiles: Array, bits: Array,
    spacing: Array, out: Array,
) -> None:  # fmt: skip
    """Write max |V|, max Σ|u_a|/h_a and max |b| of each tile's band; infinite if not finite.

    ``speed`` and ``bend`` (n or 1 or 0) are flat, ``velocity`` (n, dims) or (0, 0), x first.
    """
    _, ny, nx = shape
    dims = velocity.shape[1]
    for t in prange(tiles.size):
        k0, j0, i0 = tile_origin(tiles[t], ny, nx)
        out[t, :] = 0.0
        for row in range(ROWS):
            mask = bits[t, row]
            if mask == 0:
                continue
            home = ((k0 + row // TILE[1]) * ny + j0 + row % TILE[1]) * nx + i0
            for i in range(min(TILE[2], nx - i0)):
                if (mask >> i) & 1 == 0:
                    continue
                vector = 0.0
                for a in range(dims):
                    vector += abs(velocity[home + i, a]) / spacing[2 - a]
                out[t, 0] = max(out[t, 0], magnitude(speed, home + i))
                out[t, 1] = max(out[t, 1], vector if vector < math.inf else math.inf)
                out[t, 2] = max(out[t, 2], magnitude(bend, home + i))


@compiled(parallel=True)
def inspect_tiles(phi: Array, tiles: Array, bits: Array, rim: Array, out: Array) -> None:
    """Write max |phi| of each tile's band, infinite for NaN, and min |phi| of its rim.

    Behind each stands the voxel that holds it, counted in C order within the tile.
    """
    _, ny, nx = phi.shape
    for t in prange(tiles.size):
        k0, j0, i0 = tile_origin(tiles[t], ny, nx)
        most = -1.0
        least = math.inf
        at_most = 0
        at_least = 0
        for row in range(ROWS):
            mask = bits[t, row]
            if mask == 0:
                continue
            k = k0 + row // TILE[1]
            j = j0 + row % TILE[1]
            for i in range(min(TILE[2], nx - i0)):
                value = abs(phi[k, j, i0 + i])
                value = value if value < math.inf else math.inf
                if (mask >> i) & 1 and value > most:
                    most = value
                    at_most = row * TILE[2] + i
                if (rim[t, row] >> i) & 1 and value < least:
                    least = value
                    at_least = row * TILE[2] + i
        out[t, 0] = most
        out[t, 1] = at_most
        out[t, 2] = least
        out[t, 3] = at_least


def list_band(phi: Array, width: float) -> tuple[Array, Array, Array]:
    """List the tiles that hold a voxel with |phi| < width, the bits of those voxels and the rim."""
    touched = np.empty(tile_count(phi.shape), np.bool_)
    touched_tiles(phi, width, touched)
    numbers = np.flatnonzero(touched)
    bits = np.empty((len(numbers), ROWS), np.uint16)
    rim = np.empty_like(bits)
    band_rows(phi, width, numbers, bits, rim)
    return numbers, bits, rim


def tile_count(shape: tuple[int, ...]) -> int:
    """Return how many tiles cover a field."""
    return int(np.prod([-(-n // size) for n, size in zip(shape, TILE, strict=True)]))
