"""Examples of the kernels of ``wall.cu``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import reduce
from .. import wall as wall_kernels
from ..stencils import Array
from .closest_point import grown
from .common import EPSILON, SPACING, Example, counted, smooth, unset


@dataclass(frozen=True, eq=False)
class Listed:
    """A band as a list: voxels (n, 3), the nearest first, their labels, what is known of them."""

    phi: Array
    index: Array
    offset: Array
    label: Array
    core: int
    normal: Array
    values: Array  # (4, n): around 0, 1, 0.5 and 0

    @property
    def core_table(self) -> Array:
        """Neighbours along the wall (core, 6) by the twin."""
        table = np.empty((self.core, 6), np.uint32)
        wall_kernels.wall_neighbours(self.label, self.index[: self.core], self.normal, table)
        return table


def listed(phi: Array, width: float, rng: np.random.Generator) -> Listed:
    """Return the band of a tube as a list, with random values."""
    found = grown(smooth(phi, rng), min(abs(width), 4.0))
    order = np.argsort(found.distance, kind="stable")
    index = found.index[order]
    n = len(index)
    label = np.zeros(found.phi.shape, np.int32)
    label[tuple(index.T)] = np.arange(1, n + 1)
    normal, kappa, bend = np.empty((n, 3)), np.empty(n), np.empty(n)
    wall_kernels.wall_geometry(found.phi, index, normal, kappa, bend, *SPACING)
    values = rng.normal(size=(4, n)) * [[1.0], [0.1], [0.2], [1.0]] + [[0.0], [1.0], [0.5], [0.0]]
    core = int(np.count_nonzero(found.distance < 1.2))
    return Listed(found.phi, index, found.offset[order], label, core, normal, values)


def _geometry(phi: Array, width: float, rng: np.random.Generator) -> Example:
    at = listed(phi, width, rng)
    n = len(at.index)
    expected = np.empty((n, 3)), np.empty(n), np.empty(n)
    wall_kernels.wall_geometry(at.phi, at.index, *expected, *SPACING)
    args = (at.phi, at.index, *(unset(e.shape, float) for e in expected), counted(n), *at.phi.shape)
    # Differences of phi are taken in its own type, in another order.
    tolerance = 64 * EPSILON[phi.dtype] / min(SPACING) ** 2
    return Example((*args, *SPACING), lambda args: args[2:5], expected, n, tolerance)


def _occupancy(phi: Array, width: float, rng: np.random.Generator) -> Example:
    at = listed(phi, width, rng)
    n = len(at.index)
    expected = np.empty(n), np.empty(n)
    known = at.values[0], at.normal, at.values[3]
    wall_kernels.blurred_occupancy(*known, 0.6, *expected, *SPACING)
    args = (*known, np.array([0.6]), unset(n, float), unset(n, float), counted(n), *SPACING)
    return Example(args, lambda args: args[4:6], expected, n, 1e-14)


def _neighbours(phi: Array, width: float, rng: np.random.Generator) -> Example:
    at = listed(phi, width, rng)
    args = (
        at.label, at.index[: at.core], at.normal, unset((at.core, 6), np.uint32),
        counted(at.core), *at.phi.shape,
    )  # fmt: skip
    return Example(args, lambda args: (args[3],), (at.core_table,), at.core)


def _owner(phi: Array, width: float, rng: np.random.Generator) -> Example:
    at = listed(phi, width, rng)
    n = len(at.index)
    expected = np.empty(n, np.int32)
    wall_kernels.wall_owner(at.label, at.index, at.offset, at.core, expected)
    args = (
        at.label, at.index, at.offset, counted(at.core), unset(n, np.int32), counted(n),
        *at.phi.shape,
    )  # fmt: skip
    return Example(args, lambda args: (args[4],), (expected,), n)


def _sample_listed(phi: Array, width: float, rng: np.random.Generator) -> Example:
    at = listed(phi, width, rng)
    n, values, expected = len(at.index), at.values[0][: at.core], np.empty(len(at.index))
    wall_kernels.sample_listed(at.label, values, at.index, at.offset, 0.3, expected)
    args = (
        at.label, values, at.index, at.offset, np.array([0.3]), unset(n, float), counted(n),
        counted(at.core), *at.phi.shape,
    )  # fmt: skip
    return Example(args, lambda args: (args[5],), (expected,), n, 1e-14)


def _scatter(phi: Array, width: float, rng: np.random.Generator, *types: str) -> Example:
    at = listed(phi, width, rng)
    expected = unset(at.phi.shape, float)
    out = expected.copy()
    wall_kernels.scatter(at.index, at.values[0], expected)
    args = (at.index, at.values[0], out, counted(len(at.index)), *at.phi.shape[1:])
    return Example(args, lambda args: (args[2],), (expected,), len(at.index))


def _block_sums(phi: Array, width: float, rng: np.random.Generator) -> Example:
    at = listed(phi, width, rng)
    order = np.argsort(np.ravel_multi_index(tuple(at.index.T), at.phi.shape))
    size = np.minimum((2, 4, 3), at.phi.shape)
    blocks = tuple(-(-np.array(at.phi.shape) // size))
    expected = np.zeros((5, *blocks))
    image, weight, inside, _ = at.values
    wall_kernels.block_sums(
        at.index[order], size, weight[order], inside[order], image[order], expected
    )
    expected = np.ascontiguousarray(np.moveaxis(expected, 0, -1)).reshape(-1, 5)
    args = (at.label, weight, inside, image, unset(expected.shape, float), *at.phi.shape, *size)
    return Example(args, lambda args: (args[4],), (expected,), at.phi.size)


def _dense_band(phi: Array, width: float, rng: np.random.Generator) -> tuple[Any, ...]:
    """Return layers, distances and offsets at the voxels, their field, and a core's half-width."""
    found = grown(smooth(phi, rng), min(abs(width), 4.0))
    layer, offset, distance = (a.copy() for a in found.dense())
    far = rng.random(layer.size) < 0.2
    layer.reshape(-1)[far] *= -1  # listed beyond the band
    return found.phi, layer, offset, distance, 1.2


def _in_order(layer: Array, distance: Array, core_mm: float) -> tuple[Array, Array]:
    """Return the band's voxels as numbers, the core first, and how many lie in it."""
    voxels = np.flatnonzero(layer.reshape(-1) > 0)
    deep = distance.reshape(-1)[voxels] <= core_mm
    return np.concatenate([voxels[deep], voxels[~deep]]).astype(np.int32), deep


def _chunk_counts(voxels: Array, size: int) -> Array:
    each = -(-size // reduce.CHUNKS)
    return np.bincount(voxels // each, minlength=reduce.CHUNKS).astype(np.int32)


def _band_counts(layer: Array, voxels: Array, core: int) -> Array:
    parts = (voxels[:core], voxels[core:])
    return np.stack([_chunk_counts(part, layer.size) for part in parts])


def _count_band(phi: Array, width: float, rng: np.random.Generator) -> Example:
    _, layer, _, distance, core_mm = _dense_band(phi, width, rng)
    voxels, deep = _in_order(layer, distance, core_mm)
    expected = _band_counts(layer, voxels, int(deep.sum()))
    args = (layer, distance, core_mm, unset((2, reduce.CHUNKS), np.int32), layer.size)
    return Example(args, lambda args: (args[3],), (expected,), layer.size)


def _list_band(phi: Array, width: float, rng: np.random.Generator) -> Example:
    field, layer, offset, distance, core_mm = _dense_band(phi, width, rng)
    voxels, deep = _in_order(layer, distance, core_mm)
    core, n = int(deep.sum()), len(voxels)
    counts, room = _band_counts(layer, voxels, core), n if width < 100.0 else max(n // 2, 1)
    size = np.array([min(n, room), min(core, room), n], np.int32)
    listed = voxels[:room]
    label = np.zeros(field.shape, np.int32)
    label.reshape(-1)[listed] = np.arange(1, len(listed) + 1)
    index = np.stack(np.unravel_index(listed, field.shape), axis=-1).astype(np.int32)
    known = offset.reshape(-1, 3)[listed], field.reshape(-1)[listed].astype(np.float64)
    expected = size, label, listed, index, *known
    args = (
        layer, distance, offset, field, counts, core_mm, room,
        *(unset(e.shape, e.dtype) for e in expected), *field.shape,
    )  # fmt: skip
    return Example(args, lambda args: args[7:13], expected, field.size)


def _gather(phi: Array, width: float, rng: np.random.Generator) -> Example:
    at = listed(phi, width, rng)
    image, n = rng.normal(size=at.phi.shape).astype(np.float32), len(at.index)
    voxels = np.ravel_multi_index(tuple(at.index.T), at.phi.shape).astype(np.int32)
    expected = np.empty(n)
    wall_kernels.gather(at.index, image, expected)
    args = (image, voxels, unset(n, float), counted(n))
    return Example(args, lambda args: (args[2],), (expected,), n)


def _owned(phi: Array, rng: np.random.Generator) -> tuple[int, Array]:
    """Return a number of owners and the owner of each entry, -1 for none."""
    n = phi.size // 5 + 1
    return n, rng.integers(-1, n, phi.size).astype(np.int32)


def _chained(owner: Array, n: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Return chains of the entries of each owner, in any order."""
    head, following = np.zeros(n, np.int32), unset(len(owner), np.int32)
    for e in rng.permutation(len(owner)):
        if owner[e] >= 0:
            following[e], head[owner[e]] = head[owner[e]], e + 1
    return head, following


def _chain_owners(phi: Array, width: float, rng: np.random.Generator) -> Example:
    n, owner = _owned(phi, rng)
    args = (owner, np.zeros(n, np.int32), unset(phi.size, np.int32), counted(phi.size))

    def read(args: tuple[Any, ...]) -> tuple[Array, ...]:
        found = np.full(phi.size, -1, np.int32)
        for m, e in enumerate(args[1]):
            while e != 0:
                found[e - 1], e = m, args[2][e - 1]
        return (found,)

    return Example(args, read, (owner,), phi.size)


def _chain_sums(phi: Array, width: float, rng: np.random.Generator) -> Example:
    n, owner = _owned(phi, rng)
    a, b = rng.normal(size=(2, phi.size))
    held = owner >= 0
    expected = tuple(np.bincount(owner[held], v[held], n) for v in (a, b))
    chains = _chained(owner, n, rng)
    args = (*chains, a, b, unset(n, float), unset(n, float), counted(n))
    return Example(args, lambda args: args[4:6], expected, phi.size)


EXAMPLES = {
    "wall_geometry": _geometry,
    "blurred_occupancy": _occupancy,
    "wall_neighbours": _neighbours,
    "wall_owner": _owner,
    "sample_listed": _sample_listed,
    "scatter": _scatter,
    "block_sums": _block_sums,
    "count_band": _count_band,
    "list_band": _list_band,
    "gather": _gather,
    "chain_owners": _chain_owners,
    "chain_sums": _chain_sums,
}
