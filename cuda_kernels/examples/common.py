"""What the examples of all kernels are made of: random fields, bands and lists."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import tiles
from ..stencils import Array

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


def counted(n: int) -> Array:
    """Return the length of a list as kernels read it."""
    return np.array([n], np.int32)


def tube(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Return the distance to a slanted tube that leaves the box."""
    points = np.moveaxis(np.indices(shape), 0, -1) * SPACING
    centre = np.multiply(shape, SPACING) * rng.uniform(0.4, 0.6, 3)
    along = rng.normal(size=3)
    along[0] += 3.0
    along /= np.linalg.norm(along)
    away = points - centre
    away = away - (away @ along)[..., None] * along
    radius = 0.25 * min(shape[1] * SPACING[1], shape[2] * SPACING[2])
    return np.asarray(np.linalg.norm(away, axis=-1) - radius)


def wall(shape: tuple[int, ...], dtype: Any, rng: np.random.Generator) -> Array:
    """Return a rough distance to a slanted tube that leaves the box."""
    phi = tube(shape, rng)
    return np.asarray(phi + 0.1 * rng.normal(size=shape), dtype=dtype)


def smooth(phi: Array, rng: np.random.Generator) -> Array:
    """Return a tube of the shape and type of a field with a little noise, four samples an axis."""
    shape = tuple(n if a == 0 and n == 1 else max(n, 4) for a, n in enumerate(phi.shape))
    return np.asarray(tube(shape, rng) + 0.01 * rng.normal(size=shape), phi.dtype)


def band(phi: Array, width: float) -> tuple[Array, Array, Array, Array]:
    """Return the twin's tiles (int32), their number (1,), bits and rim."""
    numbers, bits, rim = tiles.list_band(phi, width)
    return numbers.astype(np.int32), np.array([len(numbers)], np.int32), bits, rim


def voxels_of(bits: Array) -> int:
    """Return how many voxels of a band are set."""
    return int(np.bitwise_count(bits).sum())


def random_motion(phi: Array, rng: np.random.Generator) -> tuple[Array, Array, Array]:
    """Return a speed, a velocity and a curvature weight for each voxel, flat."""
    speed = rng.normal(size=phi.size).astype(phi.dtype)
    velocity = rng.normal(size=(phi.size, 3)).astype(phi.dtype)
    return speed, velocity, rng.random(phi.size).astype(phi.dtype)
