"""One look at a field before any work is done on it."""

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
