"""Simple points: voxels that may change sides without changing the topology of the lumen.

Bertrand & Malandain, Pattern Recognition Letters 15 (1994) 169: a voxel is simple
if its 26-neighbours in the lumen form one 26-connected piece and its 18-neighbours in the
background, as far as they are joined to its six faces, one 6-connected piece. Beyond the faces of
the box lies background. A plane (nz = 1) obeys the rules of two dimensions, 8 and 4.
"""

from __future__ import annotations

import itertools
from typing import TypeAlias

import numpy as np
from numba import njit

from .jit import compiled
from .stencils import Array

Bits: TypeAlias = np.uint32

CELLS = list(itertools.product((-1, 0, 1), repeat=3))


def _neighbours(reach: int, allowed: int) -> Array:
    """Bits of the neighbours of each cell of a 3×3×3 block, centre excluded.

    Two cells are neighbours if they differ by at most one along every axis and along at most
    ``reach`` axes; cells that differ from the centre along more than ``allowed`` axes are out.
    """
    table = np.zeros(27, np.uint32)
    for (m, a), (n, b) in itertools.permutations(enumerate(CELLS), 2):
        apart = [abs(p - q) for p, q in zip(a, b, strict=True)]
        inner = max(np.abs(a).sum(), np.abs(b).sum()) <= allowed and any(a) and any(b)
        if inner and max(apart) == 1 and sum(apart) <= reach:
            table[m] |= np.uint32(1 << n)
    return table


def _bits(most: int) -> Bits:
    """Cells that differ from the centre along one to ``most`` axes."""
    return np.uint32(sum(1 << n for n, c in enumerate(CELLS) if 0 < np.abs(c).sum() <= most))


TOUCHING = _neighbours(3, 3)
FACING = _neighbours(1, 2)
ALL, EIGHTEEN, FACES = _bits(3), _bits(2), _bits(1)
NONE, ONE = np.uint32(0), np.uint32(1)


@njit(error_model="numpy")
def _piece(cells: Bits, start: Bits, table: Array) -> Bits:
    """Return the bits of the connected piece of ``cells`` that holds the bit ``start``."""
    piece = start
    fresh = start
    while fresh != NONE:
        grown = NONE
        for n in range(27):
            if (fresh >> np.uint32(n)) & ONE:
                grown |= table[n]
        fresh = grown & cells & ~piece
        piece |= fresh
    return piece


@njit(error_model="numpy")
def _lowest(bits: Bits) -> Bits:
    return bits & (~bits + ONE)


@njit(error_model="numpy")
def simple(lumen: Bits) -> bool:
    """Tell whether the centre of a block with these lumen bits is a simple point."""
    near = lumen & ALL
    if near == NONE or near != _piece(near, _lowest(near), TOUCHING):
        return False
    outside = ~lumen & EIGHTEEN
    faces = outside & FACES
    return bool(faces != NONE and faces & ~_piece(outside, _lowest(faces), FACING) == NONE)


@njit(error_model="numpy")
def block_bits(inside: Array, k: int, j: int, i: int) -> Bits:
    """Lumen bits of the 3×3×3 block about a voxel; beyond the faces lies background."""
    nz, ny, nx = inside.shape
    bits = NONE
    n = NONE
    for c in range(k - 1, k + 2):
        for b in range(j - 1, j + 2):
            for a in range(i - 1, i + 2):
                if c >= 0 and c < nz and b >= 0 and b < ny and a >= 0 and a < nx:
                    bits |= np.uint32(inside[c, b, a]) << n
                n += ONE
    return bits


@compiled()
def flip_simple(inside: Array, index: Array, waiting: Array) -> int:
    """Flip, in the order of the list, every waiting voxel that is simple; return how many."""
    flips = 0
    for n in range(index.shape[0]):
        k = index[n, 0]
        j = index[n, 1]
        i = index[n, 2]
        if waiting[n] and simple(block_bits(inside, k, j, i)):
            inside[k, j, i] = not inside[k, j, i]
            waiting[n] = False
            flips += 1
    return flips


@compiled()
def are_simple(blocks: Array, out: Array) -> None:
    """Write whether the centres of blocks, given as bits in array order, are simple points."""
    for n in range(blocks.shape[0]):
        out[n] = simple(blocks[n])
