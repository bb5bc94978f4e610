"""Examples of the kernels of ``reduce.cu`` and ``roof.cu``."""

from __future__ import annotations

import math

import numpy as np

from .. import reduce, roof
from ..stencils import Array
from .common import EPSILON, Example, counted, unset


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


def _survey(phi: Array, width: float, rng: np.random.Generator) -> Example:
    values = np.round(phi, 1)
    lost = rng.random(phi.shape) < 0.1
    values[lost] = rng.choice([np.nan, np.inf, -np.inf], int(lost.sum()))
    most = float(values.dtype.type(0.5))  # which rounded values meet exactly
    below, near = values < 0.0, np.abs(values) <= most
    counts = (np.count_nonzero(mask) for mask in (~np.isfinite(values), below, near))
    args = (values, most, np.zeros(3, np.int32), phi.size)
    return Example(args, lambda args: (args[2],), (np.array([*counts], np.int32),), phi.size)


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


EXAMPLES = {
    "calculate": _calculate,
    "clear": _clear,
    "copy": _copied,
    "keep_count": _keep,
    "survey": _survey,
    "wall_sums": _sums,
    "mean_sums": _means,
    "set_ranks": _set_ranks,
    "rank_digit": _rank_digit,
    "rank_value": _rank_value,
    "total": _total,
    "open_report": _report,
    "plan_steps": _plan,
    "accept": _accept,
}
