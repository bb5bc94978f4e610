"""Examples of the kernels of ``closest_point.cu``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import closest_point
from ..stencils import Array
from .common import SPACING, Example, smooth, unset


@dataclass
class Closest:
    """The twin's list of closest points, as far as it has grown, and its dense form."""

    phi: Array
    label: Array
    index: Array
    offset: Array
    distance: Array
    layers: list[int]  # number of listed voxels after each layer
    waiting: Array

    @property
    def voxels(self) -> Array:
        """The listed voxels as numbers in C order."""
        numbers = np.ravel_multi_index(tuple(self.index.T), self.phi.shape)
        return np.asarray(numbers, dtype=np.int32)

    def dense(self) -> tuple[Array, Array, Array]:
        """Return layer, offset (n, 3) and distance at every voxel; unset where none is listed."""
        n = self.phi.size
        layer = np.zeros(n, np.int16)
        offset, distance = unset((n, 3), np.float32), unset(n, np.float64)
        number = np.searchsorted(self.layers, np.arange(len(self.index)), side="right") + 1
        beyond = self.label.reshape(-1)[self.voxels] < 0
        layer[self.voxels] = np.where(beyond, -number, number)
        offset[self.voxels], distance[self.voxels] = self.offset, self.distance
        return layer.reshape(self.phi.shape), offset, distance

    def grow(self, width: float, level: float) -> bool:
        """Take one more layer; tell whether voxels were found."""
        first = len(self.index)
        index, waiting, count = closest_point.next_layer(
            self.label, self.index, self.distance, self.waiting, first, level
        )
        self.index = index[:count].copy()
        self.offset = np.concatenate([self.offset, np.empty((count - first, 3), np.float32)])
        self.distance = np.concatenate([self.distance, np.empty(count - first)])
        closest_point.grow_closest(
            self.phi, self.label, self.index, self.offset, self.distance, first, count, width,
            *SPACING,
        )  # fmt: skip
        new = np.arange(first, count, dtype=np.int32)
        self.waiting = np.concatenate([waiting, new[self.distance[new] <= width]])
        self.layers.append(count)
        return bool(len(self.waiting))

    def correct(self, width: float) -> None:
        """Let nearer closest points of neighbours replace others until none does."""
        flag = np.ones(len(self.index), np.bool_)
        while self.corrected(flag, width):
            pass

    def corrected(self, flag: Array, width: float) -> bool:
        """Correct once where flagged and flag what may follow; tell whether anything did."""
        closest_point.find_improvable(
            self.label, self.index, self.offset, self.distance, flag, *SPACING
        )
        which = np.flatnonzero(flag)
        if not len(which):
            return False
        offset, distance = self.improved(which)
        self.offset[which], self.distance[which] = offset, distance
        reached = which[distance <= width]
        self.label[tuple(self.index[reached].T)] = reached + 1
        closest_point.flag_neighbours(self.label, self.index, which, flag)
        return True

    def improved(self, which: Array) -> tuple[Array, Array]:
        """Return new offsets and distances of some entries."""
        offset, distance = np.empty((len(which), 3), np.float32), np.empty(len(which))
        closest_point.improve_closest(
            self.phi, self.label, self.index, self.offset, which, offset, distance, *SPACING
        )
        return offset, distance


def seeded(phi: Array) -> Closest:
    """Return the closest points of the voxels beside the wall."""
    sign, count = np.empty(phi.shape, np.int8), np.empty(phi.shape[:2], np.int64)
    closest_point.write_signs(phi, sign)
    closest_point.count_interface(sign, count)
    last = np.cumsum(count)
    n = int(last[-1])
    label, index = np.zeros(phi.shape, np.int32), np.empty((n, 3), np.int32)
    closest_point.list_interface(sign, last, label, index)
    offset, distance = np.empty((n, 3), np.float32), np.empty(n)
    closest_point.seed_closest(phi, index, offset, distance, *SPACING)
    return Closest(phi, label, index, offset, distance, [n], np.arange(n, dtype=np.int32))


def grown(phi: Array, width: float, layers: int = 1000) -> Closest:
    """Return the closest points within a width, in so many layers at most, uncorrected."""
    found = seeded(phi)
    for _ in range(layers):
        if not found.grow(width, math.inf):
            break
    return found


# Offsets are stored in float32: a rounding that falls the other way moves the start of the next
# projection by an ulp of some voxels.
NEAR = 4e-6


def _list(numbers: Array, room: int) -> tuple[Array, Array]:
    """Return numbers in a longer list, and how many there are."""
    out = unset(room, np.int32)
    out[: len(numbers)] = numbers
    return out, np.array([len(numbers)], np.int32)


def _first_of(args: tuple[Any, ...], entries: int, count: int) -> Array:
    """Return a list that may be in any order, sorted, with its length behind."""
    n = int(args[count][0])
    return np.append(np.sort(args[entries][:n]), n)


def _interface(phi: Array, width: float, rng: np.random.Generator) -> Example:
    voxels = seeded(phi).voxels
    layer = np.zeros(phi.shape, np.int16)
    layer.reshape(-1)[voxels] = 1
    args = (
        phi, unset(phi.shape, np.int16), unset(phi.size, np.int32), np.zeros(1, np.int32),
        *phi.shape,
    )  # fmt: skip
    expected = layer, np.append(np.sort(voxels), len(voxels))
    return Example(args, lambda args: (args[1], _first_of(args, 2, 3)), expected, phi.size)


def _seed(phi: Array, width: float, rng: np.random.Generator, *types: str) -> Example:
    phi = smooth(phi, rng)
    found = seeded(phi)
    _, offset, distance = found.dense()
    args = (
        phi, *_list(found.voxels, phi.size), unset(offset.shape, np.float32),
        unset(phi.size, np.float64), *phi.shape, *SPACING,
    )  # fmt: skip
    expected = offset, distance
    return Example(args, lambda args: args[3:5], expected, len(found.index), NEAR)


def _next(phi: Array, width: float, rng: np.random.Generator) -> Example:
    phi = smooth(phi.astype(np.float32), rng)
    found = grown(phi, width, 1)
    layer, _, distance = found.dense()
    voxels = found.voxels
    level = float(np.median(found.distance)) if len(voxels) else 0.0
    waiting = voxels[found.waiting]
    args = (
        layer.copy(), distance, *_list(waiting, phi.size), *_list(voxels[:0], phi.size),
        *_list(voxels, phi.size), level, 3, *phi.shape,
    )  # fmt: skip
    index, still, count = closest_point.next_layer(
        found.label, found.index, found.distance, found.waiting.copy(), len(voxels), level
    )
    new = np.ravel_multi_index(tuple(index[len(voxels) : count].T), phi.shape)
    layer.reshape(-1)[new] = 3
    expected = (
        layer,
        np.append(np.sort(voxels[still]), len(still)),
        np.append(np.sort(np.append(voxels, new)), count),
    )

    def read(args: tuple[Any, ...]) -> tuple[Array, ...]:
        return args[0], _first_of(args, 4, 5), _first_of(args, 6, 7)

    return Example(args, read, expected, len(waiting))


def _grow(phi: Array, width: float, rng: np.random.Generator, *types: str) -> Example:
    phi, width = smooth(phi, rng), abs(width)
    found = grown(phi, width, 2)
    layer, offset, distance = found.dense()
    first = found.layers[-2]
    new = found.voxels[first:]
    before = layer.copy(), offset.copy(), distance.copy()
    before[0].reshape(-1)[new] = 3
    before[1][new], before[2][new] = np.nan, np.nan
    args = (
        phi, *before, found.voxels, np.array([first], np.int32),
        np.array([len(found.index)], np.int32), unset(phi.size, np.int32), np.zeros(1, np.int32),
        width, 3, *phi.shape, *SPACING,
    )  # fmt: skip
    within = np.sort(new[found.distance[first:] <= width])
    expected = layer, offset, distance, np.append(within, len(within))

    def read(args: tuple[Any, ...]) -> tuple[Array, ...]:
        return *args[1:4], _first_of(args, 7, 8)

    return Example(args, read, expected, len(new), NEAR)


def _finish_layers(phi: Array, width: float, rng: np.random.Generator, *types: str) -> Example:
    phi, width = smooth(phi, rng), min(abs(width), 4.0)
    start, found = seeded(phi), grown(phi, width)
    args = (
        phi, *start.dense(), *_list(start.voxels, phi.size), *_list(start.voxels, phi.size),
        *_list(start.voxels[:0], phi.size), width, 2, *phi.shape, *SPACING,
    )  # fmt: skip
    listed = np.append(np.sort(found.voxels), len(found.index))
    expected = *found.dense(), listed

    def read(args: tuple[Any, ...]) -> tuple[Array, ...]:
        return *args[1:4], _first_of(args, 4, 5)

    return Example(args, read, expected, len(found.index), NEAR)


def _spoilt(phi: Array, width: float, rng: np.random.Generator) -> Closest:
    """Return a grown list with some closest points too far away."""
    found = grown(smooth(phi, rng), width)
    some = np.flatnonzero(rng.random(len(found.index)) < 0.05)
    found.offset[some] *= np.float32(1.5)
    found.distance[some] *= 1.5
    return found


def _find(phi: Array, width: float, rng: np.random.Generator) -> Example:
    found = _spoilt(phi.astype(np.float32), min(abs(width), 4.0), rng)
    candidates = found.voxels[rng.random(len(found.index)) < 0.7]
    flag = np.isin(found.voxels, candidates)
    size = found.phi.size
    bits, kept = _bits(found.voxels, size), _bits(found.voxels[~flag], size)
    closest_point.find_improvable(
        found.label, found.index, found.offset, found.distance, flag, *SPACING
    )
    args = (
        *found.dense(), *_list(candidates, size), bits, *_list(candidates[:0], size),
        *found.phi.shape, *SPACING,
    )  # fmt: skip
    improvable = np.sort(found.voxels[flag])
    expected = np.append(improvable, len(improvable)), kept

    def read(args: tuple[Any, ...]) -> tuple[Array, ...]:
        return _first_of(args, 6, 7), args[5]

    return Example(args, read, expected, len(candidates))


def _bits(voxels: Array, size: int) -> Array:
    """Return a field of bits, one a voxel, in words of 32."""
    flag = np.zeros(-(-size // 32) * 32, np.bool_)
    flag[voxels] = True
    return np.packbits(flag, bitorder="little").view(np.uint32)


def _improvable(found: Closest) -> Array:
    flag = np.ones(len(found.index), np.bool_)
    closest_point.find_improvable(
        found.label, found.index, found.offset, found.distance, flag, *SPACING
    )
    return np.flatnonzero(flag)


def _improve(phi: Array, width: float, rng: np.random.Generator, *types: str) -> Example:
    found = _spoilt(phi, min(abs(width), 4.0), rng)
    which = _improvable(found)
    expected = found.improved(which)
    layer, offset, _ = found.dense()
    args = (
        found.phi, layer, offset, found.voxels[which], np.array([len(which)], np.int32),
        unset(expected[0].shape, np.float32), unset(len(which), np.float64), *found.phi.shape,
        *SPACING,
    )  # fmt: skip
    return Example(args, lambda args: args[5:7], expected, len(which), NEAR)


def _put(phi: Array, width: float, rng: np.random.Generator) -> Example:
    width = min(abs(width), 4.0)
    found = _spoilt(phi.astype(np.float32), width, rng)
    which = _improvable(found)
    new = found.improved(which)
    before, voxels, size = found.dense(), found.voxels, found.phi.size
    flag = np.ones(len(voxels), np.bool_)
    found.corrected(flag, width)
    around = np.sort(voxels[flag]) if len(which) else voxels[:0]
    args = (
        *before, voxels[which], np.array([len(which)], np.int32), *new, width,
        _bits(voxels[:0], size), *_list(voxels[:0], size), *found.phi.shape,
    )  # fmt: skip
    expected = *found.dense(), np.append(around, len(around)), _bits(around, size)

    def read(args: tuple[Any, ...]) -> tuple[Array, ...]:
        return *args[:3], _first_of(args, 9, 10), args[8]

    return Example(args, read, expected, len(which))


def _finish(phi: Array, width: float, rng: np.random.Generator, *types: str) -> Example:
    width = min(abs(width), 4.0)
    found = _spoilt(phi, width, rng)
    before, voxels, size = found.dense(), found.voxels, found.phi.size
    found.correct(width)
    args = (
        found.phi, *before, *_list(voxels[:0], size), unset((size, 3), np.float32),
        unset(size, np.float64), width, _bits(voxels, size), *_list(voxels, size), 64,
        *found.phi.shape, *SPACING,
    )  # fmt: skip
    return Example(args, lambda args: args[1:4], found.dense(), len(voxels), NEAR)


def _far(phi: Array, width: float, rng: np.random.Generator) -> Example:
    far = phi.dtype.type(abs(width))
    args = (phi, far, unset(phi.shape, phi.dtype), phi.size)
    return Example(args, lambda args: (args[2],), (np.where(phi < 0, -far, far),), phi.size)


def _distance(phi: Array, width: float, rng: np.random.Generator) -> Example:
    phi = smooth(phi, rng)
    phi.reshape(-1)[0] = 0.0
    found, far = grown(phi, abs(width), 3), np.array([abs(width)], phi.dtype)
    expected = np.empty_like(phi)
    closest_point.write_distance(phi, found.index, found.distance, far, expected)
    distance = found.dense()[2]
    args = (
        phi, *_list(found.voxels, phi.size)[:1], distance, np.array([len(found.index)], np.int32),
        far[0], np.where(phi < 0, -far, far),
    )  # fmt: skip
    return Example(args, lambda args: (args[5],), (expected,), len(found.index))


def _sample(phi: Array, width: float, rng: np.random.Generator) -> Example:
    phi = smooth(phi, rng)
    found = grown(phi, abs(width), 3)
    values = rng.normal(size=phi.shape).astype(phi.dtype)
    expected = np.empty(len(found.index))
    closest_point.sample_at(values, found.index, found.offset, expected)
    voxels, count = _list(found.voxels, phi.size)
    args = (
        values, voxels, count, found.dense()[1], unset(len(found.index), np.float64), *phi.shape
    )  # fmt: skip
    return Example(args, lambda args: (args[4],), (expected,), len(found.index), 1e-14)


EXAMPLES = {
    "list_interface": _interface,
    "seed_closest": _seed,
    "next_layer": _next,
    "grow_closest": _grow,
    "finish_layers": _finish_layers,
    "find_improvable": _find,
    "improve_closest": _improve,
    "put_improved": _put,
    "finish_corrections": _finish,
    "fill_far": _far,
    "write_distance": _distance,
    "sample_at": _sample,
}
