"""Examples of the kernels of ``reinit.cu``."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import reinit
from ..stencils import Array
from .closest_point import seeded
from .common import EPSILON, SPACING, Example, band, smooth, unset, voxels_of


def _stage(phi: Array, rng: np.random.Generator) -> tuple[Array, Array, tuple[Any, ...]]:
    """Return a field with a zero in it, its base, and ca, cb, cfl and far."""
    number = phi.dtype.type
    phi = smooth(phi, rng)
    phi.reshape(-1)[phi.size // 2] = 0.0
    base = np.asarray(phi * (1.0 + 0.1 * rng.random(phi.shape)), phi.dtype)
    return phi, base, (number(0.25), number(0.75), number(0.8), number(4.5))


def _open_voxels(phi: Array) -> Array:
    """Return the voxels (n, 3) that are not beside the wall."""
    beside = np.zeros(phi.shape, np.bool_)
    beside[tuple(seeded(phi).index.T)] = True
    return np.argwhere(~beside).astype(np.int32)


def _reinit(phi: Array, base: Array, index: Array, stage: tuple[Any, ...], order: str) -> Array:
    """Return what the twin makes of listed voxels away from the wall, unset elsewhere."""
    out = unset(phi.shape, phi.dtype)
    ca, cb, cfl, far = (float(x) for x in stage)
    reinit.reinit_stage(
        phi, index, np.empty((0, 6)), base, out, ca, cb, cfl, int(order), far, *SPACING
    )
    return out


def _reinit_tiles(phi: Array, width: float, rng: np.random.Generator, order: str) -> Example:
    phi, base, stage = _stage(phi, rng)
    numbers, count, bits, _ = band(phi, width)
    index = _open_voxels(phi)
    index = index[np.abs(phi[tuple(index.T)]) < width]
    expected = _reinit(phi, base, index, stage, order)
    # The zero in the field lies beside the wall, but in the band, which writes zeros itself.
    expected[(phi == 0) & (np.abs(phi) < width)] = 0.0
    args = (
        phi, base, numbers, count, bits, unset(phi.shape, phi.dtype), *stage, *phi.shape, *SPACING
    )  # fmt: skip
    tolerance = 8 * EPSILON[phi.dtype] * max(1.0, float(np.abs(phi).max()))
    return Example(args, lambda args: (args[5],), (expected,), voxels_of(bits), tolerance)


def _reinit_dense(phi: Array, width: float, rng: np.random.Generator, order: str) -> Example:
    phi, base, stage = _stage(phi, rng)
    expected = _reinit(phi, base, _open_voxels(phi), stage, order)
    expected[phi == 0] = 0.0
    args = (phi, base, unset(phi.shape, phi.dtype), *stage, *phi.shape, *SPACING)
    tolerance = 8 * EPSILON[phi.dtype] * max(1.0, float(np.abs(phi).max()))
    return Example(args, lambda args: (args[2],), (expected,), phi.size, tolerance)


def _arms(phi: Array, width: float, rng: np.random.Generator) -> Example:
    found = seeded(phi)
    n = len(found.index)
    expected = np.empty((n, 6)), np.empty(n)
    reinit.wall_arms(phi, found.index, *expected, np.array(SPACING))
    args = (
        phi, found.voxels, np.array([n], np.int32), unset((n, 6), float), unset(n, float),
        *phi.shape, *SPACING,
    )  # fmt: skip
    return Example(args, lambda args: args[3:5], expected, n, 1e-12)


def _reinit_walls(phi: Array, width: float, rng: np.random.Generator) -> Example:
    phi, base, stage = _stage(phi, rng)
    found = seeded(phi)
    n = len(found.index)
    arms, out = np.empty((n, 6)), unset(phi.shape, phi.dtype)
    reinit.wall_arms(phi, found.index, arms, np.empty(n), np.array(SPACING))
    ca, cb, cfl, far = (float(x) for x in stage)
    reinit.reinit_stage(phi, found.index, arms, base, out, ca, cb, cfl, 5, far, *SPACING)
    args = (
        phi, found.voxels, np.array([n], np.int32), arms, base, unset(phi.shape, phi.dtype),
        ca, cb, cfl, far, *phi.shape, *SPACING,
    )  # fmt: skip
    return Example(args, lambda args: (args[5],), (out,), n, 2 * EPSILON[phi.dtype])


EXAMPLES = {
    "reinit_tiles": _reinit_tiles,
    "reinit_dense": _reinit_dense,
    "wall_arms": _arms,
    "reinit_walls": _reinit_walls,
}
