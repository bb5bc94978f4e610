"""One look at a whole field, without a copy of it."""

from __future__ import annotations

import numpy as np
from numba import prange

from .jit import compiled
from .stencils import Array


@compiled(parallel=True)
def count_within(flat: Array, low: float, high: float) -> int:
    """Count the values of a flattened field from low to high; NaN is not among them."""
    total = 0
    for i in prange(flat.shape[0]):
        x = flat[np.uint64(i)]
        total += (x >= low) & (x <= high)
    return total


@compiled(parallel=True)
def lumen_sums(phi: Array, width: float, out: Array) -> None:
    """Write the lumen's share of the voxels of each plane, linear in phi over the width."""
    nz, ny, nx = phi.shape
    for k in prange(nz):
        total = 0.0
        for j in range(ny):
            row = phi[k, j]
            for i in range(nx):
                total += min(max(0.5 - float(row[np.uint64(i)]) / width, 0.0), 1.0)
        out[k] = total
