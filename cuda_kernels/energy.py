"""What the kernels of ``energy.cu`` compute, in NumPy: the reference of their tests.

The Numba path takes its speeds in ``solvers.speed``, which ``tests/solvers`` compares with a flow
on a device.
"""

from __future__ import annotations

import numpy as np

from .stencils import Array

TINIEST = np.finfo(np.float64).tiny


def speed_between(image: Array, inner: Array | float, outer: Array | float) -> Array:
    """Return [(I - μ_out)² - (I - μ_in)²] / D² within ±1 (Chan & Vese 2001, eq. 9)."""
    image = image.astype(np.float64)
    contrast = np.maximum(np.square(np.subtract(inner, outer)), TINIEST)
    speed = (np.square(image - outer) - np.square(image - inner)) / contrast
    return np.asarray(np.clip(speed, -1.0, 1.0))


def region_speed(image: Array, sums: Array, near: Array, speed: Array) -> None:
    """Write the speeds at flat voxels by the means of the whole image, from ``mean_sums``."""
    inner, outer = sums[1] / sums[0], (sums[2] - sums[1]) / (image.size - sums[0])
    speed[near] = speed_between(image.reshape(-1)[near], inner, outer)


def block_means(image: Array, phi: Array, width: float, size: tuple[int, int, int]) -> Array:
    """Return sums (blocks, 4) of the band: lumen voxels, their image, surroundings, their image."""
    blocks = tuple(-(-n // b) for n, b in zip(phi.shape, size, strict=True))
    near = np.abs(phi.astype(np.float64)) < width
    where = np.indices(phi.shape) // np.reshape(size, (3, 1, 1, 1))
    block = np.ravel_multi_index(tuple(where), blocks)[near]
    values, lumen = image[near].astype(np.float64), phi[near] < 0
    columns = (lumen, values * lumen, ~lumen, values * ~lumen)
    count = int(np.prod(blocks))
    return np.stack([np.bincount(block, c, minlength=count) for c in columns], axis=1)


def filter_axis(values: Array, weights: Array, axis: int, nearest: bool) -> Array:
    """Filter fields (nz, ny, nx, channels) along an axis; beyond the faces zero or the nearest."""
    radius = weights.size // 2
    line = np.moveaxis(values, axis, 0).astype(np.float64)
    room = [(radius, radius)] + [(0, 0)] * (line.ndim - 1)
    padded = np.pad(line, room, mode="edge" if nearest else "constant")
    out = sum(w * padded[n : n + len(line)] for n, w in enumerate(weights))
    return np.moveaxis(np.asarray(out), 0, axis).astype(values.dtype)


def local_speed(
    image: Array, wide: Array, whole: Array, ridge: float, near: Array, speed: Array,
    blocks: tuple[int, int, int], size: tuple[int, int, int],
) -> None:  # fmt: skip
    """Write the speeds at flat voxels by means linear between the centres of the blocks."""
    voxel = np.stack(np.unravel_index(near, image.shape), axis=-1)
    place = np.clip((voxel + 0.5) / size - 0.5, 0.0, np.subtract(blocks, 1))
    low = place.astype(np.int64)
    found = []
    for side in (0, 2):
        mean = whole[side + 1] / max(whole[side], 1.0)
        means = (wide[:, side + 1] + ridge * mean) / (wide[:, side] + ridge)
        value = np.zeros(len(near))
        for corner in np.ndindex(2, 2, 2):
            at = np.minimum(low + corner, np.subtract(blocks, 1))
            weight = np.where(low + corner < blocks, 1.0 - np.abs(place - low - corner), 0.0)
            value += weight.prod(axis=1) * means.reshape(blocks)[tuple(at.T)]
        found.append(value)
    speed[near] = speed_between(image.reshape(-1)[near], *found)
