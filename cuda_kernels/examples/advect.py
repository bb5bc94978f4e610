"""Examples of the kernels of ``advect.cu``."""

from __future__ import annotations

import math

import numpy as np

from .. import advect
from ..stencils import Array
from .common import EPSILON, SPACING, Example, band, random_motion, unset, voxels_of


def _advect(phi: Array, width: float, rng: np.random.Generator, order: str) -> Example:
    number = phi.dtype.type
    numbers, count, bits, _ = band(phi, width)
    motion = random_motion(phi, rng)
    size = np.array(SPACING, phi.dtype)
    base, out = phi + rng.normal(size=phi.shape).astype(phi.dtype), phi.copy()
    stage = number(0.05), number(0.25), number(0.75)
    expected = phi.copy()
    advect.advect_tiles(phi, *motion, base, numbers, bits, expected, *stage, int(order), size)
    sizes = motion[0].size, 3, motion[2].size
    clock = np.array([stage[0], 1.0], np.float64)
    args = (
        phi, *motion, base, numbers, count, bits, out, clock, 0, *stage[1:], *sizes, *phi.shape,
        *SPACING,
    )  # fmt: skip
    scale = max(float(np.abs(expected).max(initial=1.0)), 1.0)
    tolerance = 8 * EPSILON[phi.dtype] * scale
    return Example(args, lambda args: (args[8],), (expected,), voxels_of(bits), tolerance)


def _advect_dense(phi: Array, width: float, rng: np.random.Generator, order: str) -> Example:
    tiled = _advect(phi, math.inf, rng, order)
    args = (*tiled.args[:5], unset(phi.shape, phi.dtype), *tiled.args[9:])
    return Example(args, lambda args: (args[5],), tiled.expected, phi.size, tiled.tolerance)


EXAMPLES = {
    "advect_tiles": _advect,
    "advect_dense": _advect_dense,
}
