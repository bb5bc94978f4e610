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

from . import (
    advect,
    appearance,
    closest_point,
    displacement,
    energy,
    reduce,
    reinit,
    roof,
    sheet,
    tiles,
)
from . import wall as wall_kernels
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
    phi = tube(shape, rng)
    return np.asarray(phi + 0.1 * rng.normal(size=shape), dtype=dtype)


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
    kind, *rest = template.split(",")
    dtype = np.float64 if kind == "double" else np.float32
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


def counted(n: int) -> Array:
    """Return the length of a list as kernels read it."""
    return np.array([n], np.int32)


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


def _advect_dense(phi: Array, width: float, rng: np.random.Generator, order: str) -> Example:
    tiled = _advect(phi, math.inf, rng, order)
    args = (*tiled.args[:5], unset(phi.shape, phi.dtype), *tiled.args[9:])
    return Example(args, lambda args: (args[5],), tiled.expected, phi.size, tiled.tolerance)


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


def _seeded(phi: Array) -> Closest:
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


def _grown(phi: Array, width: float, layers: int = 1000) -> Closest:
    found = _seeded(phi)
    for _ in range(layers):
        if not found.grow(width, math.inf):
            break
    return found


def _smooth(phi: Array, rng: np.random.Generator) -> Array:
    """Return a tube of the shape and type of a field with a little noise, four samples an axis."""
    shape = tuple(n if a == 0 and n == 1 else max(n, 4) for a, n in enumerate(phi.shape))
    return np.asarray(tube(shape, rng) + 0.01 * rng.normal(size=shape), phi.dtype)


# Offsets are stored in float32: a rounding that falls the other way moves the start of the next
# projection by an ulp of some voxels. In float32 throughout, Newton's last step leaves 1e-5 voxels.
NEAR = {"double": 4e-6, "float": 2e-4}


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
    voxels = _seeded(phi).voxels
    layer = np.zeros(phi.shape, np.int16)
    layer.reshape(-1)[voxels] = 1
    args = (
        phi, unset(phi.shape, np.int16), unset(phi.size, np.int32), np.zeros(1, np.int32),
        *phi.shape,
    )  # fmt: skip
    expected = layer, np.append(np.sort(voxels), len(voxels))
    return Example(args, lambda args: (args[1], _first_of(args, 2, 3)), expected, phi.size)


def _seed(phi: Array, width: float, rng: np.random.Generator, real: str) -> Example:
    phi = _smooth(phi, rng)
    found = _seeded(phi)
    _, offset, distance = found.dense()
    args = (
        phi, *_list(found.voxels, phi.size), unset(offset.shape, np.float32),
        unset(phi.size, np.float64), *phi.shape, *SPACING,
    )  # fmt: skip
    expected = offset, distance
    return Example(args, lambda args: args[3:5], expected, len(found.index), NEAR[real])


def _next(phi: Array, width: float, rng: np.random.Generator) -> Example:
    phi = _smooth(phi.astype(np.float32), rng)
    found = _grown(phi, width, 1)
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


def _grow(phi: Array, width: float, rng: np.random.Generator, real: str) -> Example:
    phi, width = _smooth(phi, rng), abs(width)
    found = _grown(phi, width, 2)
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

    return Example(args, read, expected, len(new), NEAR[real])


def _finish_layers(phi: Array, width: float, rng: np.random.Generator, real: str) -> Example:
    phi, width = _smooth(phi, rng), min(abs(width), 4.0)
    start, found = _seeded(phi), _grown(phi, width)
    args = (
        phi, *start.dense(), *_list(start.voxels, phi.size), *_list(start.voxels, phi.size),
        *_list(start.voxels[:0], phi.size), width, 2, *phi.shape, *SPACING,
    )  # fmt: skip
    listed = np.append(np.sort(found.voxels), len(found.index))
    expected = *found.dense(), listed

    def read(args: tuple[Any, ...]) -> tuple[Array, ...]:
        return *args[1:4], _first_of(args, 4, 5)

    return Example(args, read, expected, len(found.index), NEAR[real])


def _spoilt(phi: Array, width: float, rng: np.random.Generator) -> Closest:
    """Return a grown list with some closest points too far away."""
    found = _grown(_smooth(phi, rng), width)
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


def _improve(phi: Array, width: float, rng: np.random.Generator, real: str) -> Example:
    found = _spoilt(phi, min(abs(width), 4.0), rng)
    which = _improvable(found)
    expected = found.improved(which)
    layer, offset, _ = found.dense()
    args = (
        found.phi, layer, offset, found.voxels[which], np.array([len(which)], np.int32),
        unset(expected[0].shape, np.float32), unset(len(which), np.float64), *found.phi.shape,
        *SPACING,
    )  # fmt: skip
    return Example(args, lambda args: args[5:7], expected, len(which), NEAR[real])


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


def _finish(phi: Array, width: float, rng: np.random.Generator, real: str) -> Example:
    width = min(abs(width), 4.0)
    found = _spoilt(phi, width, rng)
    before, voxels, size = found.dense(), found.voxels, found.phi.size
    found.correct(width)
    args = (
        found.phi, *before, *_list(voxels[:0], size), unset((size, 3), np.float32),
        unset(size, np.float64), width, _bits(voxels, size), *_list(voxels, size), 64,
        *found.phi.shape, *SPACING,
    )  # fmt: skip
    return Example(args, lambda args: args[1:4], found.dense(), len(voxels), NEAR[real])


def _far(phi: Array, width: float, rng: np.random.Generator) -> Example:
    far = phi.dtype.type(abs(width))
    args = (phi, far, unset(phi.shape, phi.dtype), phi.size)
    return Example(args, lambda args: (args[2],), (np.where(phi < 0, -far, far),), phi.size)


def _distance(phi: Array, width: float, rng: np.random.Generator) -> Example:
    phi = _smooth(phi, rng)
    phi.reshape(-1)[0] = 0.0
    found, far = _grown(phi, abs(width), 3), np.array([abs(width)], phi.dtype)
    expected = np.empty_like(phi)
    closest_point.write_distance(phi, found.index, found.distance, far, expected)
    distance = found.dense()[2]
    args = (
        phi, *_list(found.voxels, phi.size)[:1], distance, np.array([len(found.index)], np.int32),
        far[0], np.where(phi < 0, -far, far),
    )  # fmt: skip
    return Example(args, lambda args: (args[5],), (expected,), len(found.index))


def _sample(phi: Array, width: float, rng: np.random.Generator) -> Example:
    phi = _smooth(phi, rng)
    found = _grown(phi, abs(width), 3)
    values = rng.normal(size=phi.shape).astype(phi.dtype)
    expected = np.empty(len(found.index))
    closest_point.sample_at(values, found.index, found.offset, expected)
    voxels, count = _list(found.voxels, phi.size)
    args = (
        values, voxels, count, found.dense()[1], unset(len(found.index), np.float64), *phi.shape
    )  # fmt: skip
    return Example(args, lambda args: (args[4],), (expected,), len(found.index), 1e-14)


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
    found = _grown(_smooth(phi, rng), min(abs(width), 4.0))
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
    found = _grown(_smooth(phi, rng), min(abs(width), 4.0))
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


def _blurred_flow(phi: Array, width: float, rng: np.random.Generator) -> Example:
    at = listed(phi, width, rng)
    n, kappa = len(at.index), rng.normal(size=len(at.index))
    given = at.values[0], at.normal, at.values[3], kappa
    expected = appearance.blurred_flow(*given, 0.6, 1.5, SPACING)
    out = (unset(n, float) for _ in range(3))
    args = (*given, np.array([0.6]), *out, 1.5, counted(n), *SPACING)
    return Example(args, lambda args: args[5:8], expected, n, 1e-13)


def _begin_fit(phi: Array, width: float, rng: np.random.Generator) -> Example:
    return Example((unset(3, float),), lambda args: args, (np.array([0.0, 1.0, 0.0]),), 1)


def _largest(phi: Array, width: float, rng: np.random.Generator) -> Example:
    values = rng.normal(size=phi.size)
    expected = values.max(initial=0.0, keepdims=True)
    args = (values, np.zeros(1), counted(phi.size))
    return Example(args, lambda args: (args[1],), (expected,), phi.size)


def _lengthen(phi: Array, width: float, rng: np.random.Generator) -> Example:
    """Lengthen a vector of two parts, or of one where no list is asked for."""
    n, parts, rests = phi.size, 2 if width > 0 else 1, width > 100.0
    inside, slope, own, weight = rng.random((4, n))
    outer, contrast = rng.uniform(-1.0, 4.0, n), rng.normal(size=n)
    contrast[::7] = 0.0
    noise = 0.02 if width > 100.0 else 0.3
    expected: tuple[Array, ...] = inside, slope, np.ones(n), own
    if parts > 1:
        longer = appearance.lengthen(inside, slope, outer, contrast, noise, parts, rests)
        expected = *longer, weight
    signal, mean, spread = appearance.vector_lengths(2)
    tables = mean, np.gradient(mean, signal), spread, float(signal[1]), len(signal)
    facts, out = np.array([noise / 2.0, parts, 0.0]), [unset(n, float) for _ in range(4)]
    given = inside, slope, own, outer, contrast, weight, facts, 2.0, *tables, rests, True
    # The inverse of a table is steep near its first sample.
    return Example((*given, *out, counted(n)), lambda args: args[15:19], expected, n, 1e-9)


def _solve_blocks(phi: Array, width: float, rng: np.random.Generator) -> Example:
    n = phi.size // 4
    image, p, weight = rng.normal(size=(8, n)), rng.random((8, n)), rng.random((8, n))
    weight[:, ::3] = 0.0
    moments = np.stack([(weight * v).sum(axis=0) for v in (1.0, p, p * p, image, image * p)])
    whole = moments.sum(axis=1)
    expected = tuple(appearance.solve_blocks(3.0 * moments, whole, 2.0))
    given = np.ascontiguousarray(moments.T), whole
    args = (*given, 3.0, 2.0, unset(n, float), unset(n, float), n)
    tolerance = 1e-11 * max(1.0, *(float(np.abs(e).max()) for e in expected))
    return Example(args, lambda args: args[4:6], expected, n, tolerance)


def _fit_residual(phi: Array, width: float, rng: np.random.Generator) -> Example:
    at = listed(phi, width, rng)
    n, size = len(at.index), np.minimum((2, 4, 3), phi.shape)
    blocks = tuple(int(b) for b in -(-np.array(phi.shape) // size))
    means = rng.normal(size=(2, *blocks))
    samples, inside, longer, spread = rng.random((4, n)) + 0.5
    kept = rng.normal(size=(3, n))
    again, parts = width > 100.0, 1.0 if width > 0 else 2.0
    found = kept.copy()
    if not (again and parts <= 1.0):
        where, origin = (at.index + 0.5) / size - 0.5, np.zeros_like(at.index)
        for values, out in zip(means, found, strict=False):
            closest_point.sample_at(values, origin, where, out)
        found[2] = samples - found[0] - found[1] * longer
    expected = *found, found[2] / spread, np.abs(found[1] * inside)
    args = (
        samples, inside, longer, spread, at.index, *means, np.array([0.1, parts, 1.0]), again,
        *kept, unset(n, float), unset(n, float), counted(n), *blocks, *(int(b) for b in size),
    )  # fmt: skip
    return Example(args, lambda args: args[9:14], expected, n, 1e-13)


def _fit_noise(phi: Array, width: float, rng: np.random.Generator) -> Example:
    deviation, strength = rng.random(2) * (1.0, 5e3 * (width > 0))
    share = appearance.LEAST_NOISE
    facts = np.array([np.nan, 2.0, 0.5])
    expected = np.array([appearance.fit_noise(deviation, strength), 2.0, 0.5])
    args = (np.array([deviation]), np.array([strength]), share, facts)
    return Example(args, lambda args: (args[3],), (expected,), 1, 1e-15)


def _weigh(phi: Array, width: float, rng: np.random.Generator) -> Example:
    residual, contrast = rng.normal(size=(2, phi.size))
    spread, own = rng.random((2, phi.size)) + 0.1
    expected = appearance.weigh(residual, contrast, spread, own, 0.2, 1.3)
    facts, out = np.array([0.2, 2.0, 1.3]), unset(phi.size, float)
    args = (residual, contrast, spread, own, facts, out, counted(phi.size))
    return Example(args, lambda args: (args[5],), (expected,), phi.size, 1e-12)


def _lowest_signal(phi: Array, width: float, rng: np.random.Generator) -> Example:
    outer, contrast = rng.normal(size=(2, phi.size))
    expected = np.minimum(outer, outer + contrast * 0.7)
    args = (outer, contrast, np.array([1.0, 1.0, 0.7]), unset(phi.size, float), counted(phi.size))
    return Example(args, lambda args: (args[3],), (expected,), phi.size, 1e-15)


def _decide_parts(phi: Array, width: float, rng: np.random.Generator) -> Example:
    lowest, facts = np.array([1.0]), np.array([0.2 if width > 0 else 0.3, 1.0, 1.0])
    expected = facts.copy()
    expected[1] = np.where(lowest[0] > 4.0 * facts[0], 1.0, 3.0)
    return Example((lowest, 4.0, 3.0, facts), lambda args: (args[3],), (expected,), 1)


def _cost_sums(phi: Array, width: float, rng: np.random.Generator) -> Example:
    residual = rng.normal(size=phi.size)
    expected = reduce.chunked(np.minimum(np.abs(residual), 4.0 * 0.3) ** 2)
    facts = np.array([0.3, 1.0, 1.0])
    args = (residual, facts, unset(reduce.CHUNKS, float), counted(phi.size))
    return Example(args, lambda args: (args[2],), (expected,), phi.size, 1e-12)


def _choose_psf(phi: Array, width: float, rng: np.random.Generator) -> Example:
    blurs = np.cumsum(rng.uniform(0.1, 0.2, 7))
    costs, psf = (blurs - rng.choice(blurs)) ** 2 + 0.02 * rng.random(7), rng.choice(blurs)
    expected = np.array([appearance.choose_psf(blurs, lambda n: float(costs[n]), psf)])
    args = (blurs, costs, np.array([psf]), 7)
    return Example(args, lambda args: (args[2],), (expected,), 1, 1e-9)


def _inform(phi: Array, width: float, rng: np.random.Generator) -> Example:
    slope, contrast, weight, residual, precision, gradient = rng.normal(size=(6, phi.size))
    first = width < 0
    expected = appearance.inform(slope, contrast, weight, residual, 0.3)
    before = (unset(phi.size, float),) * 2 if first else (precision, gradient)
    if not first:
        expected = expected[0] + precision, expected[1] + gradient
    facts = np.array([0.3, 1.0, 1.0])
    given = slope, contrast, weight, residual, facts, first
    args = (*given, *(b.copy() for b in before), counted(phi.size))
    tolerance = 1e-13 * max(1.0, *(float(np.abs(e).max()) for e in expected))
    return Example(args, lambda args: args[6:8], expected, phi.size, tolerance)


def _difference(phi: Array, width: float, rng: np.random.Generator) -> Example:
    a, b = rng.normal(size=(2, phi.size))
    args = (a, b, unset(phi.size, float), unset(phi.size, float), counted(phi.size))
    return Example(args, lambda args: args[2:4], (a - b, a - b), phi.size)


def _square(phi: Array, width: float, rng: np.random.Generator) -> Example:
    a = rng.normal(size=phi.size)
    args = (a, unset(phi.size, float), unset(phi.size, float), counted(phi.size))
    return Example(args, lambda args: args[1:3], (a * a, a * a), phi.size)


def _per_area(phi: Array, width: float, rng: np.random.Generator) -> Example:
    spread = rng.normal(size=phi.size)
    args = (spread, 0.3, unset(phi.size, float), counted(phi.size))
    expected = np.maximum(spread / 0.3, 0.0)
    return Example(args, lambda args: (args[2],), (expected,), phi.size)


def _wall_prior(phi: Array, width: float, rng: np.random.Generator) -> Example:
    n, dims, area = phi.size, 2 if width > 0 else 1, 0.3
    detail, rough, precision, sigma = rng.random((4, n))
    stiffness = displacement.plate_stiffness(detail, 0.4, 20.0, 5.0)
    floored = np.maximum(sigma, 0.2)
    pin = displacement.pin_strength(floored, stiffness, dims)
    weight = area * stiffness
    expected = floored, stiffness, pin, precision + area * pin, weight, weight * rough
    out = (unset(n, float) for _ in range(5))
    given = detail, np.array([0.4]), rough, precision, 20.0, 5.0, 0.2, area, dims
    tolerance = 1e-13 * max(float(e.max()) for e in expected)
    args = (*given, sigma, *out, counted(n))
    return Example(args, lambda args: args[9:15], expected, n, tolerance)


def _displacement_rhs(phi: Array, width: float, rng: np.random.Generator) -> Example:
    n = phi.size
    gradient, pin, moved, pull = rng.normal(size=(4, n))
    expected = gradient - 0.3 * pin * moved - pull, np.zeros(n)
    given = gradient, pin, moved, pull, 0.3
    args = (*given, unset(n, float), unset(n, float), counted(n))
    return Example(args, lambda args: args[5:7], expected, n, 1e-14)


def _take_step(phi: Array, width: float, rng: np.random.Generator) -> Example:
    n = phi.size
    step, moved, distance = rng.normal(size=(3, n))
    sigma, near = rng.random(n), np.abs(distance) < 0.5
    taken = displacement.bounded_step(step, moved, sigma, 3.0, 0.7)
    squares = np.where(near, taken**2, np.inf)
    expected = taken, squares, np.array([near.sum()], np.int32)
    given = step, moved, sigma, distance, 3.0, 0.7, 0.5
    args = (*given, unset(n, float), np.zeros(1, np.int32), counted(n))
    read = (0, 7, 8)
    return Example(args, lambda args: tuple(args[r] for r in read), expected, n, 1e-15)


def _sums_below(phi: Array, width: float, rng: np.random.Generator) -> Example:
    values = rng.random(phi.size)
    below = values < 0.6
    expected = np.stack([reduce.chunked(values * below), reduce.chunked(below)], axis=1)
    out = unset((reduce.CHUNKS, 2), float)
    args = (values, np.array([0.6]), out, counted(phi.size))
    return Example(args, lambda args: (args[2],), (expected,), phi.size, 1e-12)


def _move_wall(phi: Array, width: float, rng: np.random.Generator) -> Example:
    at = listed(phi, width, rng)
    n, (distance, step) = len(at.index), at.values[:2]
    voxels = np.ravel_multi_index(tuple(at.index.T), at.phi.shape).astype(np.int32)
    lost = width < 0
    distance = distance.copy()
    if lost:
        distance[n // 2] = np.nan
    out, moved = unset(at.phi.shape, phi.dtype), distance - step
    expected = out.copy()
    wall_kernels.scatter(at.index, moved, expected)
    size = np.where(np.isfinite(moved), np.abs(moved), np.inf).astype(np.float32)
    bits = size.view(np.uint32).astype(np.uint64) << np.uint64(32) | voxels.astype(np.uint64)
    most = np.zeros(1, np.uint64)
    args = (voxels, distance, step, out, most, counted(n))
    seen = bits.max(keepdims=True).view(np.uint32)
    return Example(args, lambda a: (a[3], a[4].view(np.uint32)), (expected, seen), n)


def _wall_sigma(phi: Array, width: float, rng: np.random.Generator) -> Example:
    n, dims = phi.size, 2 if width > 0 else 1
    known, pin, stiffness = rng.random((3, n)) + 0.01
    expected = np.hypot(displacement.posterior_sigma(known + pin, stiffness, dims), 0.1)
    args = (known, pin, stiffness, 0.1, dims, unset(n, float), counted(n))
    tolerance = 1e-13 * float(expected.max())
    return Example(args, lambda args: (args[5],), (expected,), n, tolerance)


def _fill(phi: Array, width: float, rng: np.random.Generator) -> Example:
    args = (np.array([0.3]), unset(phi.size, float), phi.size)
    return Example(args, lambda args: (args[1],), (np.full(phi.size, 0.3),), phi.size)


def _bend(phi: Array, width: float, rng: np.random.Generator) -> Example:
    at = listed(phi, width, rng)
    scale, values = np.array(SPACING) ** -2.0, at.values[0][: at.core]
    expected = np.empty(at.core)
    sheet.bend_along_wall(at.core_table, scale, values, expected)
    args = (at.core_table, scale, values, unset(at.core, float), counted(at.core))
    return Example(args, lambda args: (args[3],), (expected,), at.core, 1e-12)


def _first_part(value: float) -> Array:
    """Return sums by blocks that hold for a grid of any size."""
    parts = np.zeros(4096)
    parts[0] = value
    return parts


def _sheet(phi: Array, width: float, rng: np.random.Generator) -> tuple[Any, ...]:
    """Return table, scale, four vectors of which the second is positive, and K as a function."""
    at = listed(phi, width, rng)
    table, scale, n = at.core_table, np.array(SPACING) ** -2.0, at.core

    def bent(values: Array) -> Array:
        out = np.empty(n)
        sheet.bend_along_wall(table, scale, values, out)
        return out

    return table, scale, np.ascontiguousarray(at.values[:, :n]), bent


OPEN = np.array([5.0, 3.0, 0.0]), np.array([1.0])  # residuals over a goal


def _sheet_reset(phi: Array, width: float, rng: np.random.Generator) -> Example:
    x = rng.normal(size=phi.size)
    args = (x, unset(phi.size, float), unset(3, float), unset(1, float), counted(phi.size))
    expected = x, np.zeros(1), np.array([-1.0])
    return Example(args, lambda args: (args[1], args[2][:1], args[3]), expected, phi.size)


def _sheet_start(phi: Array, width: float, rng: np.random.Generator) -> Example:
    table, scale, (rhs, precision, weight, q), _ = _sheet(phi, width, rng)
    n, weight = len(rhs), np.abs(weight)
    real = table != np.arange(n)[:, None]
    links = (real * scale.repeat(2)).sum(axis=1)
    squares = (real * weight[table] * scale.repeat(2) ** 2).sum(axis=1)
    diagonal, r = precision + weight * links**2 + squares, rhs - q
    args = (
        table, scale, precision, weight, rhs, q, unset(n, float), unset(n, float),
        unset(4096, float), unset(4096, float), 0.01, True, counted(n),
    )  # fmt: skip
    sums = np.array([(r**2 / diagonal).sum(), ((0.01 * rhs) ** 2 / diagonal).sum()])

    def read(args: tuple[Any, ...]) -> tuple[Array, ...]:
        return args[6], args[7], np.array([np.nansum(args[8]), np.nansum(args[9])])

    return Example(args, read, (r, diagonal, sums), n, 1e-13 * max(1.0, *sums, *diagonal))


def _sheet_bend(phi: Array, width: float, rng: np.random.Generator) -> Example:
    table, scale, (p, _, weight, _), bent = _sheet(phi, width, rng)
    args = (table, scale, weight, p, unset(len(p), float), *OPEN, 1, counted(len(p)))
    return Example(args, lambda args: (args[4],), (weight * bent(p),), len(p), 1e-12)


def _sheet_system(phi: Array, width: float, rng: np.random.Generator) -> Example:
    table, scale, (p, precision, _, middle), bent = _sheet(phi, width, rng)
    n, q = len(p), precision * p + bent(middle)
    args = (
        table, scale, precision, p, middle, unset(n, float), unset(4096, float), *OPEN, 1,
        counted(n),
    )  # fmt: skip
    sums = np.array([p @ q])

    def read(args: tuple[Any, ...]) -> tuple[Array, ...]:
        return args[5], np.nansum(args[6], keepdims=True)

    return Example(args, read, (q, sums), n, 1e-12 * max(1, n))


def _sheet_step(phi: Array, width: float, rng: np.random.Generator) -> Example:
    _, _, (p, diagonal, q, x), _ = _sheet(phi, width, rng)
    n, r, diagonal = len(p), rng.normal(size=len(p)), np.abs(diagonal) + 1.0
    moved, rest = x + 1.5 * p, r - 1.5 * q  # rz over the curve is 3 / 2
    args = (
        p, q, diagonal, _first_part(2.0), x, r, unset(4096, float), *OPEN, 1, counted(n)
    )  # fmt: skip
    sums = np.array([(rest**2 / diagonal).sum()])

    def read(args: tuple[Any, ...]) -> tuple[Array, ...]:
        return args[4], args[5], np.nansum(args[6], keepdims=True)

    return Example(args, read, (moved, rest, sums), n, 1e-13 * max(1, n))


def _sheet_turn(phi: Array, width: float, rng: np.random.Generator) -> Example:
    _, _, (p, diagonal, r, _), _ = _sheet(phi, width, rng)
    diagonal = np.abs(diagonal) + 1.0
    parts = _first_part(6.0), _first_part(7.0)
    args = (r, diagonal, *parts, p, OPEN[0].copy(), OPEN[1].copy(), 1, counted(len(p)))
    expected = r / diagonal + 2.0 * p, np.array([5.0, 3.0, 6.0]), OPEN[1]
    return Example(args, lambda args: args[4:7], expected, len(p), 1e-13)


def _stage(phi: Array, rng: np.random.Generator) -> tuple[Array, Array, tuple[Any, ...]]:
    """Return a field with a zero in it, its base, and ca, cb, cfl and far."""
    number = phi.dtype.type
    phi = _smooth(phi, rng)
    phi.reshape(-1)[phi.size // 2] = 0.0
    base = np.asarray(phi * (1.0 + 0.1 * rng.random(phi.shape)), phi.dtype)
    return phi, base, (number(0.25), number(0.75), number(0.8), number(4.5))


def _open_voxels(phi: Array) -> Array:
    """Return the voxels (n, 3) that are not beside the wall."""
    beside = np.zeros(phi.shape, np.bool_)
    beside[tuple(_seeded(phi).index.T)] = True
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
    return Example(args, lambda args: (args[5],), (expected,), _voxels(bits), tolerance)


def _reinit_dense(phi: Array, width: float, rng: np.random.Generator, order: str) -> Example:
    phi, base, stage = _stage(phi, rng)
    expected = _reinit(phi, base, _open_voxels(phi), stage, order)
    expected[phi == 0] = 0.0
    args = (phi, base, unset(phi.shape, phi.dtype), *stage, *phi.shape, *SPACING)
    tolerance = 8 * EPSILON[phi.dtype] * max(1.0, float(np.abs(phi).max()))
    return Example(args, lambda args: (args[2],), (expected,), phi.size, tolerance)


def _arms(phi: Array, width: float, rng: np.random.Generator) -> Example:
    found = _seeded(phi)
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
    found = _seeded(phi)
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


def _field_of_bits(shape: tuple[int, ...], numbers: Array, bits: Array) -> Array:
    """Return the band's voxels as flat numbers, in any order."""
    entry, row, i = np.nonzero((bits[..., None] >> np.arange(tiles.TILE[2])) & 1)
    found = np.array([tiles.tile_origin(int(n), *shape[1:]) for n in numbers], np.int64).reshape(
        -1, 3
    )
    k = found[entry, 0] + row // tiles.TILE[1]
    j = found[entry, 1] + row % tiles.TILE[1]
    return np.asarray((k * shape[1] + j) * shape[2] + found[entry, 2] + i)


def _calculate(phi: Array, width: float, rng: np.random.Generator) -> Example:
    lanes = rng.random((2, int(roof.LANES))).astype(np.float32)
    factor, summand = np.float32(0.999), np.float32(1e-3)
    expected = lanes.copy()
    roof.calculate(expected, factor, summand, 3)
    args = (lanes, factor, summand, 3, lanes.size)
    # Each of 192 steps rounds once or twice, and keeps what the ones before it rounded.
    tolerance = 2 * 192 * EPSILON[lanes.dtype]
    return Example(args, lambda args: (args[0],), (expected,), lanes.size, tolerance)


def _clear(phi: Array, width: float, rng: np.random.Generator) -> Example:
    words = unset(phi.size, np.uint32)
    args = (words, phi.size)
    return Example(args, lambda args: args[:1], (np.zeros_like(words),), phi.size)


def _copied(phi: Array, width: float, rng: np.random.Generator) -> Example:
    args = (phi, unset(phi.shape, phi.dtype), phi.size)
    return Example(args, lambda args: (args[1],), (phi,), phi.size)


def _keep(phi: Array, width: float, rng: np.random.Generator) -> Example:
    count, other = rng.integers(0, 9, (1,)).astype(np.int32), unset(1, np.int32)
    args = (count, other, other.copy())
    return Example(args, lambda args: args, (count, count, np.zeros(1, np.int32)), 1)


def _sums(phi: Array, width: float, rng: np.random.Generator) -> Example:
    moved, earlier = (phi + rng.normal(size=phi.shape).astype(phi.dtype) for _ in range(2))
    clock = np.array([0.1, float(width > 0), 0.0])
    given = (phi, moved, earlier, clock, abs(width), 1.2)
    expected = reduce.wall_sums(*given)
    args = (*given, unset((reduce.CHUNKS, 4), np.float64), *phi.shape)
    tolerance = 1e-13 * float(np.abs(expected).max())  # sums in another order
    return Example(args, lambda args: (args[6],), (expected,), phi.size, tolerance)


def _means(phi: Array, width: float, rng: np.random.Generator) -> Example:
    image = rng.normal(size=phi.shape).astype(np.float32)
    expected = reduce.mean_sums(image, phi)
    args = (image, phi, unset((reduce.CHUNKS, 3), np.float64), phi.size)
    tolerance = 1e-13 * float(np.abs(expected).max())
    return Example(args, lambda args: (args[2],), (expected,), phi.size, tolerance)


def _set_ranks(phi: Array, width: float, rng: np.random.Generator) -> Example:
    share = -1.0 if width > 0 else 0.95
    last = max(int(0.95 * phi.size), 1) - 1
    ranks = ((phi.size - 1) // 2, phi.size // 2) if share < 0 else (last, last)
    args = (counted(phi.size), share, unset(2, np.int32))
    return Example(args, lambda args: (args[2],), (np.array(ranks, np.int32),), 1)


def _ranked(phi: Array, width: float, rng: np.random.Generator) -> tuple[Array, Array, Array]:
    """Return values with ties, a centre, and the bits of their distances from it in order."""
    values, centre = np.round(rng.normal(size=phi.size), 1 + (width > 0)), np.array([0.3])
    return values, centre, np.sort(np.abs(values - centre).view(np.uint64) | np.uint64(1) << 63)


def _rank_digit(phi: Array, width: float, rng: np.random.Generator) -> Example:
    """Count the second digit after the first; the pass writes what it began with."""
    values, centre, bits = _ranked(phi, width, rng)
    ranks = np.array([len(bits) // 3, len(bits) // 2], np.int32)
    counts, expected = np.zeros((2, 8, 2, 256), np.uint32)
    first = bits >> np.uint64(56)
    counts[0] = expected[0] = np.bincount(first.astype(int), minlength=256)
    digits, left = unset((8, 2), np.uint64), unset((8, 2), np.int32)
    digits[0], left[0] = 0, ranks
    after = digits.copy(), left.copy()
    for which, rank in enumerate(ranks):
        after[0][1, which] = known = first[rank]
        after[1][1, which] = rank - int(np.count_nonzero(first < known))
        second = bits[first == known] >> np.uint64(48) & np.uint64(255)
        expected[1, which] = np.bincount(second.astype(int), minlength=256)
    args = (values, centre, counted(len(values)), ranks, counts, digits, left, 1)
    return Example(args, lambda args: args[4:7], (expected, *after), phi.size)


def _rank_value(phi: Array, width: float, rng: np.random.Generator) -> Example:
    """Average two values of which seven digits are known and the last was counted."""
    values, centre, bits = _ranked(phi, width, rng)
    ranks = np.array([len(bits) // 3, len(bits) // 2], np.int32)
    counts = np.zeros((8, 2, 256), np.uint32)
    digits, left = unset((8, 2), np.uint64), unset((8, 2), np.int32)
    for which, rank in enumerate(ranks):
        digits[7, which] = known = bits[rank] >> np.uint64(8)
        left[7, which] = rank - int(np.count_nonzero(bits >> np.uint64(8) < known))
        last = bits[bits >> np.uint64(8) == known] & np.uint64(255)
        counts[7, which] = np.bincount(last.astype(int), minlength=256)
    expected = np.sort(np.abs(values - centre))[ranks].mean(keepdims=True)
    args = (ranks, counts, digits, left, unset(1, float))
    return Example(args, lambda args: (args[4],), (expected,), 1)


def _total(phi: Array, width: float, rng: np.random.Generator) -> Example:
    parts = rng.random((phi.size // 4, 4))
    expected = reduce.total(parts)
    args = (parts, unset(4, np.float64), *parts.shape)
    tolerance = 1e-13 * float(expected.max())
    return Example(args, lambda args: (args[1],), (expected,), len(parts), tolerance)


def _report(phi: Array, width: float, rng: np.random.Generator) -> Example:
    args = (unset(3, np.float64), unset(1, np.uint64), unset(1, np.uint64))
    expected = tuple(a.copy() for a in args)
    reduce.open_report(*expected)
    return Example(args, lambda args: args, expected, 1)


def _plan(phi: Array, width: float, rng: np.random.Generator) -> Example:
    limits = rng.random(3) * rng.integers(0, 2, 3)
    clock = np.append(unset(2, np.float64), rng.random())
    numbers = (4.0, 0.5, 0.5, 1.0, 20.0, math.inf if width > 0 else 1.0)
    expected = clock.copy()
    reduce.plan_steps(limits, expected, *numbers)
    tolerance = 8 * EPSILON[clock.dtype] * float(expected.max())
    return Example((limits, clock, *numbers), lambda args: (args[1],), (expected,), 1, tolerance)


def _accept(phi: Array, width: float, rng: np.random.Generator) -> Example:
    moved, before = phi + phi.dtype.type(1), unset(phi.shape, phi.dtype)
    clock = np.array([0.1, float(width > 0), 0.0])
    expected = phi.copy(), before.copy()
    reduce.accept(moved, *expected, clock)
    args = (moved, phi.copy(), before, clock, phi.size)
    return Example(args, lambda args: args[1:3], expected, phi.size)


def _region(phi: Array, width: float, rng: np.random.Generator) -> Example:
    numbers, count, bits, _ = band(phi, width)
    image = rng.normal(size=phi.shape).astype(np.float32)
    sums = np.array([0.4 * phi.size, 0.6 * phi.size, 0.9 * phi.size])
    speed = unset(phi.size, phi.dtype)
    expected = speed.copy()
    energy.region_speed(image, sums, _field_of_bits(phi.shape, numbers, bits), expected)
    args = (image, sums, numbers, count, bits, speed, *phi.shape)
    return Example(args, lambda args: (args[5],), (expected,), _voxels(bits), EPSILON[phi.dtype])


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
    return Example(args, lambda args: (args[7],), (expected,), _voxels(bits), tolerance)


EXAMPLES: dict[str, Callable[..., Example]] = {
    "collect_tiles": _collect,
    "copy_tiles": _copy,
    "largest_speeds": _speeds,
    "inspect_tiles": _inspect,
    "band_clamp": _clamp,
    "advect_tiles": _advect,
    "advect_dense": _advect_dense,
    "reinit_tiles": _reinit_tiles,
    "reinit_dense": _reinit_dense,
    "wall_arms": _arms,
    "reinit_walls": _reinit_walls,
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
    "blurred_flow": _blurred_flow,
    "begin_fit": _begin_fit,
    "largest": _largest,
    "lengthen": _lengthen,
    "solve_blocks": _solve_blocks,
    "fit_residual": _fit_residual,
    "fit_noise": _fit_noise,
    "weigh": _weigh,
    "lowest_signal": _lowest_signal,
    "decide_parts": _decide_parts,
    "cost_sums": _cost_sums,
    "choose_psf": _choose_psf,
    "inform": _inform,
    "difference": _difference,
    "square": _square,
    "per_area": _per_area,
    "wall_prior": _wall_prior,
    "displacement_rhs": _displacement_rhs,
    "take_step": _take_step,
    "sums_below": _sums_below,
    "move_wall": _move_wall,
    "wall_sigma": _wall_sigma,
    "fill": _fill,
    "bend_along_wall": _bend,
    "sheet_reset": _sheet_reset,
    "sheet_start": _sheet_start,
    "sheet_bend": _sheet_bend,
    "sheet_system": _sheet_system,
    "sheet_step": _sheet_step,
    "sheet_turn": _sheet_turn,
    "calculate": _calculate,
    "clear": _clear,
    "copy": _copied,
    "keep_count": _keep,
    "wall_sums": _sums,
    "mean_sums": _means,
    "set_ranks": _set_ranks,
    "rank_digit": _rank_digit,
    "rank_value": _rank_value,
    "total": _total,
    "open_report": _report,
    "plan_steps": _plan,
    "accept": _accept,
    "region_speed": _region,
    "block_means": _blocks,
    "filter_axis": _filter,
    "local_speed": _local,
}
