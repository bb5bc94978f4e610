"""The one gate of every array function: layout, dtype, finiteness, interface."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vesselseg.cuda_kernels import gate as kernels
from vesselseg.errors import DataError, NoInterfaceError

SPACING_RANGE_MM = (1e-4, 1e4)


def asfield(phi: Any, spacing_mm: float | Sequence[float]) -> tuple[NDArray, tuple[float, ...]]:
    """Return a finite C-ordered 3-D float field clipped to the domain diameter, and its spacing.

    A 2-D field becomes one plane; float64 stays, everything else becomes float32. It may be the
    input itself: nobody may write into it.
    """
    array = np.asarray(phi)
    if array.ndim not in (2, 3) or min(array.shape) < 1:
        raise DataError("bad level set", found=f"shape {array.shape}", need="2-D or 3-D")
    if array.dtype.kind not in "fiub":
        raise DataError("bad level set", found=f"dtype {array.dtype}", need="real numbers")
    given = np.asarray(spacing_mm, dtype=np.float64)
    if given.shape not in ((), (1,), (array.ndim,)):
        raise DataError("bad spacing_mm", found=f"shape {given.shape}", need="one per array axis")
    spacing = np.broadcast_to(given, (array.ndim,))
    low, high = SPACING_RANGE_MM
    if not np.isfinite(spacing).all() or spacing.min() < low or spacing.max() > high:
        raise DataError("bad spacing_mm", found=spacing.tolist(), need=f"{low} to {high} mm")
    diameter = float(np.linalg.norm(np.multiply(array.shape, spacing)))
    wide = array.dtype.kind == "f" and array.dtype.itemsize >= 8
    field = np.require(array, np.float64 if wide else np.float32, ["C", "A", "W"])
    if kernels.count_within(field.reshape(-1), -diameter, diameter) < field.size:
        if not np.isfinite(array).all():
            bad = int(np.sum(~np.isfinite(array)))
            raise DataError("non-finite level set", found=bad, need=0)
        field = np.clip(array, -diameter, diameter).astype(field.dtype, order="C")
    if array.ndim == 2:
        return field[None], (float(spacing.min()), *map(float, spacing))
    return field, tuple(map(float, spacing))


def require_interface(phi: NDArray) -> None:
    """Refuse a level set that is nowhere or everywhere negative."""
    low, high = float(phi.min()), float(phi.max())
    if not low < 0.0 <= high:
        where = "inside" if low < 0.0 else "outside"
        raise NoInterfaceError(
            "no wall in the level set", found=f"every voxel {where}", need="both signs"
        )


def like_input(field: NDArray, phi: Any) -> NDArray:
    """Give a 3-D result the dimension of the input."""
    return field[0] if np.ndim(phi) == 2 else field
