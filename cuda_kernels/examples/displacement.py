"""Examples of the kernels of ``displacement.cu``."""

from __future__ import annotations

import numpy as np

from .. import displacement, reduce
from .. import wall as wall_kernels
from ..stencils import Array
from .common import Example, counted, unset
from .wall import listed


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
    distance = np.round(distance, 1)  # some lie exactly as far as counts
    sigma, near = rng.random(n), np.abs(distance) <= 0.5
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
    known, pin, stiffness, before = rng.random((4, n)) + 0.01
    misfit = 1.0 + np.maximum(rng.normal(size=n), 0.0)
    sigma = displacement.posterior_sigma(known + pin, stiffness, dims)
    expected = np.hypot(displacement.doubted_sigma(sigma, before, misfit), 0.1)
    args = (known, pin, stiffness, before, misfit, 0.1, dims, unset(n, float), counted(n))
    tolerance = 1e-13 * float(expected.max())
    return Example(args, lambda args: (args[7],), (expected,), n, tolerance)


def _fill(phi: Array, width: float, rng: np.random.Generator) -> Example:
    args = (np.array([0.3]), unset(phi.size, float), phi.size)
    return Example(args, lambda args: (args[1],), (np.full(phi.size, 0.3),), phi.size)


EXAMPLES = {
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
}
