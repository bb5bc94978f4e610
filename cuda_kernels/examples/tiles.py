"""Examples of the kernels of ``tiles.cu``."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import tiles
from ..stencils import Array
from .common import EPSILON, SPACING, Example, band, random_motion, unset, voxels_of


def _collect(phi: Array, width: float, rng: np.random.Generator) -> Example:
    room = tiles.tile_count(phi.shape)
    numbers, count, bits, rim = band(phi, width)
    args = (
        phi, width, unset(room, np.int32), np.zeros(1, np.int32),
        unset((room, tiles.ROWS), np.uint16), unset((room, tiles.ROWS), np.uint16), *phi.shape,
    )  # fmt: skip

    def read(args: tuple[Any, ...]) -> tuple[Array, ...]:
        n = int(args[3][0])
        order = np.argsort(args[2][:n])
        return args[3], args[2][:n][order], args[4][:n][order], args[5][:n][order]

    return Example(args, read, (count, numbers, bits, rim), phi.size)


def _copy(phi: Array, width: float, rng: np.random.Generator) -> Example:
    numbers, count, _, _ = band(phi, width)
    out, expected = unset(phi.shape, phi.dtype), unset(phi.shape, phi.dtype)
    tiles.copy_tiles(phi, numbers, expected)
    args = (phi, numbers, count, out, *phi.shape)
    return Example(args, lambda args: (args[3],), (expected,), len(numbers) * tiles.ROWS * 16)


def _speeds(phi: Array, width: float, rng: np.random.Generator) -> Example:
    numbers, count, bits, _ = band(phi, width)
    motion = random_motion(phi, rng)
    found = np.zeros((len(numbers), 3))
    tiles.largest_speeds(*motion, phi.shape, numbers, bits, np.array(SPACING), found)
    expected = found.max(axis=0, initial=0.0)
    sizes = motion[0].size, 3, motion[2].size
    args = (*motion, numbers, count, bits, np.zeros(3), *sizes, *phi.shape, *SPACING)
    tolerance = 8 * EPSILON[np.dtype(np.float64)] * float(expected.max(initial=1.0))
    return Example(args, lambda args: (args[6],), (expected,), voxels_of(bits), tolerance)


def _inspect(phi: Array, width: float, rng: np.random.Generator) -> Example:
    numbers, count, bits, rim = band(phi, width)
    found = np.empty((len(numbers), 4))
    tiles.inspect_tiles(phi, numbers, bits, rim, found)
    expected = (
        found[:, 0].max(initial=0.0).astype(np.float32),
        found[:, 2].min(initial=np.inf).astype(np.float32),
    )
    args = (
        phi, numbers, count, bits, rim, np.zeros(1, np.uint64), ~np.zeros(1, np.uint64), *phi.shape
    )  # fmt: skip

    def read(args: tuple[Any, ...]) -> tuple[Array, ...]:
        """Return the extremes, and the field at the voxels that are said to hold them."""
        packed = np.concatenate([args[5], args[6]])
        value = (packed >> np.uint64(32)).astype(np.uint32).view(np.float32)
        value = np.where(packed == ~np.uint64(0), np.float32(np.inf), value)
        place = np.where(np.isfinite(value), packed & np.uint64(0xFFFFFFFF), 0).astype(np.int64)
        there = np.abs(phi.reshape(-1)[place]).astype(np.float32)
        return value, np.where(np.isfinite(value) & (len(numbers) > 0), there, value)

    return Example(args, read, (np.array(expected), np.array(expected)), voxels_of(bits))


def _clamp(phi: Array, width: float, rng: np.random.Generator) -> Example:
    width = abs(width)
    expected = np.clip(phi, -phi.dtype.type(width), phi.dtype.type(width))
    args = (phi.copy(), width, phi.size)
    return Example(args, lambda args: (args[0],), (expected,), phi.size)


EXAMPLES = {
    "collect_tiles": _collect,
    "copy_tiles": _copy,
    "largest_speeds": _speeds,
    "inspect_tiles": _inspect,
    "band_clamp": _clamp,
}
