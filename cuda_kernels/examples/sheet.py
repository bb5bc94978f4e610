"""Examples of the kernels of ``sheet.cu``."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import sheet
from ..stencils import Array
from .common import SPACING, Example, counted, unset
from .wall import listed


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


EXAMPLES = {
    "bend_along_wall": _bend,
    "sheet_reset": _sheet_reset,
    "sheet_start": _sheet_start,
    "sheet_bend": _sheet_bend,
    "sheet_system": _sheet_system,
    "sheet_step": _sheet_step,
    "sheet_turn": _sheet_turn,
}
