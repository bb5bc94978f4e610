"""Examples of the kernels of ``appearance.cu``."""

from __future__ import annotations

import numpy as np

from .. import appearance, closest_point, reduce
from ..stencils import Array
from .common import SPACING, Example, counted, unset
from .wall import listed


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


def _product(phi: Array, width: float, rng: np.random.Generator) -> Example:
    a, b = rng.normal(size=(2, phi.size))
    args = (a, b, unset(phi.size, float), counted(phi.size))
    return Example(args, lambda args: (args[2],), (a * b,), phi.size)


def _square_sums(phi: Array, width: float, rng: np.random.Generator) -> Example:
    moments = rng.normal(size=(phi.size // 4, 5))
    expected = moments.copy()
    expected[:, 1] = np.square(moments[:, 1])
    most = moments[:, 2].max(initial=0.0, keepdims=True)
    args = (moments, np.zeros(1), len(moments))
    return Example(args, lambda args: args[:2], (expected, most), len(moments))


def _window_excess(phi: Array, width: float, rng: np.random.Generator) -> Example:
    """Judge windows of which some hold nothing, or none anything where no list is asked for."""
    wide = rng.random((phi.size // 4, 5)) * (width > 0)
    wide[::3, 1:3] = 0.0
    most = float(wide[:, 2].max(initial=0.0))
    expected = appearance.window_excess(wide[:, 1], wide[:, 2], most)
    args = (wide, np.array([most]), unset(len(wide), float), len(wide))
    tolerance = 1e-15 * max(1.0, float(expected.max(initial=0.0)))
    return Example(args, lambda args: (args[2],), (expected,), len(wide), tolerance)


def _misfit_at(phi: Array, width: float, rng: np.random.Generator) -> Example:
    """Judge a second image, or the only one, of noise alone, where no list is asked for."""
    at = listed(phi, width, rng)
    n, first, size = len(at.index), width < 0, np.minimum((2, 4, 3), phi.shape)
    blocks = tuple(int(b) for b in -(-np.array(phi.shape) // size))
    share, before = 3.0 * rng.random(blocks), 1.0 + rng.random(n)
    powers = (0.0, 0.0) if first else (6.0, 2.5)
    whole, here = appearance.excess(*powers), np.empty(n)
    where = (at.index + 0.5) / size - 0.5
    closest_point.sample_at(share, np.zeros_like(at.index), where, here)
    found = appearance.believed(here, whole)
    expected = found if first else np.maximum(before, found), np.array([whole])
    known = (unset(n, float), unset(1, float)) if first else (before, np.array([1.5]))
    given = share, at.index, np.array([np.nan, *powers, np.nan, np.nan]), first
    args = (*given, *known, counted(n), *blocks, *(int(b) for b in size))
    return Example(args, lambda args: args[4:6], expected, n, 1e-13)


EXAMPLES = {
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
    "product": _product,
    "square_sums": _square_sums,
    "window_excess": _window_excess,
    "misfit_at": _misfit_at,
}
