"""Examples of the kernels of ``energy.cu``."""

from __future__ import annotations

import math

import numpy as np

from .. import energy, tiles
from ..stencils import Array
from .common import EPSILON, Example, band, unset, voxels_of


def _field_of_bits(shape: tuple[int, ...], numbers: Array, bits: Array) -> Array:
    """Return the band's voxels as flat numbers, in any order."""
    entry, row, i = np.nonzero((bits[..., None] >> np.arange(tiles.TILE[2])) & 1)
    found = np.array([tiles.tile_origin(int(n), *shape[1:]) for n in numbers], np.int64).reshape(
        -1, 3
    )
    k = found[entry, 0] + row // tiles.TILE[1]
    j = found[entry, 1] + row % tiles.TILE[1]
    return np.asarray((k * shape[1] + j) * shape[2] + found[entry, 2] + i)


def _region(phi: Array, width: float, rng: np.random.Generator) -> Example:
    numbers, count, bits, _ = band(phi, width)
    image = rng.normal(size=phi.shape).astype(np.float32)
    sums = np.array([0.4 * phi.size, 0.6 * phi.size, 0.9 * phi.size])
    speed = unset(phi.size, phi.dtype)
    expected = speed.copy()
    energy.region_speed(image, sums, _field_of_bits(phi.shape, numbers, bits), expected)
    args = (image, sums, numbers, count, bits, speed, *phi.shape)
    return Example(args, lambda args: (args[5],), (expected,), voxels_of(bits), EPSILON[phi.dtype])


def _blocks(phi: Array, width: float, rng: np.random.Generator) -> Example:
    image = rng.normal(size=phi.shape).astype(np.float32)
    size = (min(2, phi.shape[0]), 4, 3)
    expected = energy.block_means(image, phi, width, size)
    args = (image, phi, width, unset(expected.shape, np.float64), *size, *phi.shape)
    return Example(args, lambda args: (args[3],), (expected,), phi.size, 1e-13)


def _filter(phi: Array, width: float, rng: np.random.Generator) -> Example:
    axis, nearest, channels = int(rng.integers(3)), int(rng.integers(2)), int(rng.choice([1, 4]))
    values = rng.normal(size=(*phi.shape, channels)).astype(phi.dtype)
    weights = rng.random(2 * int(rng.integers(1, 5)) + 1)
    expected = energy.filter_axis(values, weights, axis, bool(nearest))
    out = unset(values.shape, phi.dtype)
    args = (values, out, weights, weights.size // 2, axis, nearest, channels, *phi.shape)
    tolerance = 8 * EPSILON[phi.dtype] * float(np.abs(expected).max())
    return Example(args, lambda args: (args[1],), (expected,), values.size, tolerance)


def _local(phi: Array, width: float, rng: np.random.Generator) -> Example:
    numbers, count, bits, _ = band(phi, width)
    image = rng.normal(size=phi.shape).astype(np.float32)
    size = (min(2, phi.shape[0]), 4, 3)
    blocks = tuple(-(-n // b) for n, b in zip(phi.shape, size, strict=True))
    wide = rng.random((math.prod(blocks), 4))
    speed, whole = unset(phi.size, phi.dtype), rng.random(4) + 1.0
    expected, near = speed.copy(), _field_of_bits(phi.shape, numbers, bits)
    energy.local_speed(image, wide, whole, 0.5, near, expected, blocks, size)
    listed = (numbers, count, bits, speed)
    args = (image, wide, whole, 0.5, *listed, *blocks, *size, *phi.shape[1:])
    # The contrast of random means may be small, and the speed is divided by its square.
    tolerance = max(2 * EPSILON[phi.dtype], 1e-9)
    return Example(args, lambda args: (args[7],), (expected,), voxels_of(bits), tolerance)


EXAMPLES = {
    "region_speed": _region,
    "block_means": _blocks,
    "filter_axis": _filter,
    "local_speed": _local,
}
