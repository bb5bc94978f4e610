"""The only module that imports scikit-fmm: slow, trusted, first order at the wall."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SMALLEST = 1e-30  # of the largest magnitude


def redistance_fmm(phi: NDArray, spacing: tuple[float, ...], band: float) -> NDArray:
    """Fast marching distance of order 2 (Sethian 1996), clamped to the band.

    scikit-fmm ignores strides and swallows NaN, so it only ever sees what ``asfield`` made. It
    finds the wall by products of neighbours, so nothing may be so small that a product vanishes.
    """
    import skfmm

    plane = phi.shape[0] == 1
    field = np.ascontiguousarray(phi[0] if plane else phi, dtype=np.float64)
    size = np.maximum(np.abs(field) / np.abs(field).max(), SMALLEST)
    narrow = band if np.isfinite(band) else 0.0
    result = skfmm.distance(
        np.sign(field) * size, dx=spacing[1:] if plane else spacing, narrow=narrow
    )
    sign = np.where(field < 0, -1.0, 1.0)
    if np.ma.isMaskedArray(result):
        result = result.filled(np.inf)
    distance = np.minimum(np.abs(result), band) * sign
    out = np.where(field == 0.0, 0.0, distance).astype(phi.dtype)
    return out[None] if plane else out
