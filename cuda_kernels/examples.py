"""Random inputs of the CUDA kernels with what their Numba twins make of them.

The same examples serve the tests on a CPU, the tests on a device and the profile, which gives no
time to a kernel with a wrong result. Outputs are filled with NaN, or with the largest number.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import advect, tiles
from .stencils import Array

SPACING = (1.2, 0.5, 0.7)
EPSILON = {np.dtype(np.float32): 2.0**-23, np.dtype(np.float64): 2.0**-52}


@dataclass(frozen=True, eq=False)
class Example:
    """Arguments of a launch, what is read of them afterwards, and the twin's result.

    ``tolerance`` is the largest difference for rounding in another order, zero for none;
    ``visited`` the number of voxels, entries or tiles' voxels that the launch works on.
    """

    args: tuple[Any, ...]
    read: Callable[[tuple[Any, ...]], tuple[Array, ...]]
    expected: tuple[Array, ...]
    visited: int
    tolerance: float = 0.0

    def error(self, args: tuple[Any, ...]) -> float:
        """Return the largest difference from the twin, infinite for a NaN or another shape."""
        worst = 0.0
        for found, wanted in zip(self.read(args), self.expected, strict=True):
            if found.shape != wanted.shape:
                return math.inf
            if found.size:
                same = (found == wanted) | (np.isnan(found) & np.isnan(wanted))
                a, b = (np.where(same, 0.0, x.astype(np.float64)) for x in (found, wanted))
                apart = np.nan_to_num(np.abs(a - b), nan=np.inf)
                worst = max(worst, float(apart.max()))
        return worst


def unset(shape: Any, dtype: Any) -> Array:
    """Return an array that no kernel may leave as it is."""
    kind = np.dtype(dtype)
    return np.full(shape, np.nan if kind.kind == "f" else np.iinfo(kind).max, kind)


def wall(shape: tuple[int, ...], dtype: Any, rng: np.random.Generator) -> Array:
    """Return a rough distance to a slanted tube that leaves the box."""
    points = np.moveaxis(np.indices(shape), 0, -1) * SPACING
    centre = np.multiply(shape, SPACING) * rng.uniform(0.4, 0.6, 3)
    along = rng.normal(size=3)
    along[0] += 3.0
    along /= np.linalg.norm(along)
    away = points - centre
    away = away - (away @ along)[..., None] * along
    phi = np.linalg.norm(away, axis=-1) - 0.25 * min(shape[1] * SPACING[1], shape[2] * SPACING[2])
    return np.asarray(phi + 0.1 * rng.normal(size=shape), dtype=dtype)


def band(phi: Array, width: float) -> tuple[Array, Array, Array, Array]:
    """Return the twin's tiles (int32), their number (1,), bits and rim."""
    touched = np.empty(tiles.tile_count(phi.shape), np.bool_)
    tiles.touched_tiles(phi, width, touched)
    numbers = np.flatnonzero(touched)
    bits = np.empty((len(numbers), tiles.ROWS), np.uint16)
    rim = np.empty_like(bits)
    tiles.band_rows(phi, width, numbers, bits, rim)
    return numbers.astype(np.int32), np.array([len(numbers)], np.int32), bits, rim


def example(instance: str, shape: tuple[int, int, int], seed: int, width: float = 2.5) -> Example:
    """Return an example of an instance on a field of a shape, in a band of a width, mm."""
    name, _, template = instance.rstrip(">").partition("<")
    first, *rest = template.split(",")
    dtype = np.float64 if first == "double" else np.float32
    rng = np.random.default_rng(seed)
    return EXAMPLES[name](wall(shape, dtype, rng), width, rng, *rest)


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


def _motion(phi: Array, rng: np.random.Generator) -> tuple[Array, Array, Array]:
    speed = rng.normal(size=phi.size).astype(phi.dtype)
    velocity = rng.normal(size=(phi.size, 3)).astype(phi.dtype)
    return speed, velocity, rng.random(phi.size).astype(phi.dtype)


def _speeds(phi: Array, width: float, rng: np.random.Generator) -> Example:
    numbers, count, bits, _ = band(phi, width)
    motion = _motion(phi, rng)
    found = np.zeros((len(numbers), 3))
    tiles.largest_speeds(*motion, phi.shape, numbers, bits, np.array(SPACING), found)
    expected = found.max(axis=0, initial=0.0)
    sizes = motion[0].size, 3, motion[2].size
    args = (*motion, numbers, count, bits, np.zeros(3), *sizes, *phi.shape, *SPACING)
    tolerance = 8 * EPSILON[np.dtype(np.float64)] * float(expected.max(initial=1.0))
    return Example(args, lambda args: (args[6],), (expected,), _voxels(bits), tolerance)


def _voxels(bits: Array) -> int:
    return int(np.bitwise_count(bits).sum())


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

    return Example(args, read, (np.array(expected), np.array(expected)), _voxels(bits))


def _clamp(phi: Array, width: float, rng: np.random.Generator) -> Example:
    width = abs(width)
    expected = np.clip(phi, -phi.dtype.type(width), phi.dtype.type(width))
    args = (phi.copy(), width, phi.size)
    return Example(args, lambda args: (args[0],), (expected,), phi.size)


def _advect(phi: Array, width: float, rng: np.random.Generator, order: str) -> Example:
    number = phi.dtype.type
    numbers, count, bits, _ = band(phi, width)
    motion = _motion(phi, rng)
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
    return Example(args, lambda args: (args[8],), (expected,), _voxels(bits), tolerance)


EXAMPLES: dict[str, Callable[..., Example]] = {
    "collect_tiles": _collect,
    "copy_tiles": _copy,
    "largest_speeds": _speeds,
    "inspect_tiles": _inspect,
    "band_clamp": _clamp,
    "advect_tiles": _advect,
}
