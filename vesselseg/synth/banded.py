"""Separable linear operators with a few weights per output sample, applied axis by axis.

An operator is ``(start, weights)``: output m of an axis is Σₜ weights[m, t]·x[start[m] + t],
indices beyond the ends take the end sample. Results do not depend on the number of threads.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numba import njit
from numpy.typing import NDArray

from ..fields import Field

Operator = tuple[NDArray[np.int64], Field]


@njit(cache=True)
def _apply(x: NDArray, start: NDArray, weights: NDArray, out: NDArray) -> None:
    outer, count, inner = x.shape
    for a in range(outer):
        for m in range(weights.shape[0]):
            for t in range(weights.shape[1]):
                k = min(max(start[m] + t, 0), count - 1)
                w = weights[m, t]
                for b in range(inner):
                    out[a, m, b] += w * x[a, k, b]


@njit(cache=True)
def _apply_last(x: NDArray, start: NDArray, weights: NDArray, out: NDArray) -> None:
    rows, count = x.shape
    taps = weights.shape[1]
    for a in range(rows):
        for m in range(weights.shape[0]):
            s = start[m]
            total = np.float32(0.0)
            if s >= 0 and s + taps <= count:
                for t in range(taps):
                    total += weights[m, t] * x[a, s + t]
            else:
                for t in range(taps):
                    total += weights[m, t] * x[a, min(max(s + t, 0), count - 1)]
            out[a, m] = total


def apply_axis(x: Field, axis: int, operator: Operator) -> Field:
    """Apply an operator along one axis of an array of any dimension."""
    start, weights = operator
    shape = x.shape
    outer, inner = int(np.prod(shape[:axis])), int(np.prod(shape[axis + 1 :]))
    source = np.ascontiguousarray(x, dtype=np.float32)
    size = (*shape[:axis], len(start), *shape[axis + 1 :])
    if inner == 1:
        out = np.empty((outer, len(start)), np.float32)
        _apply_last(source.reshape(outer, shape[axis]), start, weights, out)
    else:
        out = np.zeros((outer, len(start), inner), np.float32)
        _apply(source.reshape(outer, shape[axis], inner), start, weights, out)
    return out.reshape(size)


def apply_all(x: Field, operators: Sequence[Operator | None], *, last_first: bool) -> Field:
    """Apply one operator per axis (None: leave the axis alone)."""
    axes = range(x.ndim)[::-1] if last_first else range(x.ndim)
    for axis in axes:
        operator = operators[axis]
        if operator is not None:
            x = apply_axis(x, axis, operator)
    return x


def gaussian(positions: NDArray, sd: float, *, normalise: str = "sum") -> Operator:
    """Return Gaussian weights about positions (in samples).

    Parameters
    ----------
    positions : (m,) array
        Where the outputs lie among the input samples.
    sd : float
        Standard deviation in samples.
    normalise : {"sum", "power"}
        Unit sum: a filter. Unit sum of squares: white noise of variance one keeps its variance.
    """
    taps = max(1, int(np.ceil(2 * 3.7 * sd)) + 1)
    start = np.floor(positions - (taps - 1) / 2 + 0.5).astype(np.int64)
    offset = start[:, None] + np.arange(taps) - positions[:, None]
    weights = np.exp(-0.5 * (offset / max(sd, 1e-3)) ** 2)
    total = weights.sum(1) if normalise == "sum" else np.sqrt((weights**2).sum(1))
    return start, (weights / total[:, None]).astype(np.float32)


def cubic(positions: NDArray) -> Operator:
    """Return the four-point Lagrange interpolation at positions (in samples)."""
    base = np.floor(positions).astype(np.int64)
    u = positions - base
    weights = np.stack(
        [
            -u * (u - 1) * (u - 2) / 6,
            (u + 1) * (u - 1) * (u - 2) / 2,
            -(u + 1) * u * (u - 2) / 2,
            (u + 1) * u * (u - 1) / 6,
        ],
        axis=1,
    )
    return base - 1, weights.astype(np.float32)


def linear(positions: NDArray) -> Operator:
    """Return the two-point interpolation at positions (in samples)."""
    base = np.floor(positions).astype(np.int64)
    u = positions - base
    return base, np.stack([1 - u, u], axis=1).astype(np.float32)


def box(centres: NDArray, width: float, sd: float = 0.0) -> Operator:
    """Return the average over ``width`` samples about each centre, blurred by a Gaussian."""
    half = width / 2 + 4 * sd
    taps = int(np.ceil(2 * half)) + 2
    start = np.floor(centres - half).astype(np.int64)
    offset = start[:, None] + np.arange(taps) - centres[:, None]
    if sd > 0:
        fine = (np.arange(16) + 0.5) / 16 - 0.5
        gap = offset[..., None] - fine * width
        weights = np.exp(-0.5 * (gap / sd) ** 2).sum(-1)
    else:
        weights = np.clip(width / 2 + 0.5 - np.abs(offset), 0.0, min(1.0, width))
    return start, (weights / weights.sum(1, keepdims=True)).astype(np.float32)
