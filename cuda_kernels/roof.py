"""What bounds a kernel on a processor: how fast it copies memory and how fast it calculates."""

from __future__ import annotations

import numpy as np
from numba import njit, prange

from .jit import compiled
from .stencils import Array, Real

LANES = np.uint64(256)  # independent chains: enough to fill the pipelines of any core
CHAIN = 128  # operations of a chain and a round: one product and one sum in turns


@compiled(parallel=True)
def copy_flat(source: Array, out: Array) -> None:
    """Copy a flat field."""
    for i in prange(out.size):
        out[np.uint64(i)] = source[np.uint64(i)]


@njit(error_model="numpy", forceinline=True)
def _round(lanes: Array, factor: Real, summand: Real) -> None:
    for i in range(LANES):
        x = lanes[i]
        for _ in range(CHAIN // 2):
            x = x * factor + summand
        lanes[i] = x


@compiled(parallel=True)
def calculate(lanes: Array, factor: Real, summand: Real, rounds: int) -> None:
    """Take so many rounds of ``CHAIN`` operations on every lane of every row of ``lanes``."""
    for row in prange(lanes.shape[0]):
        for _ in range(rounds):
            _round(lanes[row], factor, summand)
