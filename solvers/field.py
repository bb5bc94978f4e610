"""The one gate of every array function: layout, dtype, finiteness, interface."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vesselseg.cuda_kernels import gate as kernels
from vesselseg.errors import ConfigError, DataError, NoInterfaceError

SPACING_RANGE_MM = (1e-4, 1e4)


def asfield(phi: Any, spacing_mm: float | Sequence[float]) -> tuple[NDArray, tuple[float, ...]]:
    """Return a finite C-ordered 3-D float field clipped to the domain diameter, and its spacing.

    A 2-D field becomes one plane; float64 stays, everything else becomes float32. It may be the
    input itself: nobody may write into it.
    """
    array = np.asarray(phi)
    spacing, diameter, dtype = checked(array, spacing_mm)
    field = np.require(array, dtype, ["C", "A", "W"])
    if kernels.count_within(field.reshape(-1), -diameter, diameter) < field.size:
        if not np.isfinite(array).all():
            raise non_finite(int(np.sum(~np.isfinite(array))))
        field = np.clip(array, -diameter, diameter).astype(field.dtype, order="C")
    return field[None] if array.ndim == 2 else field, spacing


def checked(
    array: Any, spacing_mm: float | Sequence[float]
) -> tuple[tuple[float, ...], float, type[np.floating]]:
    """Return the spacing of a field along three axes, its diameter in mm and the type it gets."""
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
    plane = (float(spacing.min()),) if array.ndim == 2 else ()
    return (*plane, *map(float, spacing)), diameter, np.float64 if wide else np.float32


def non_finite(count: int, what: str = "level set") -> DataError:
    """Return the error of a field with voxels that are not finite."""
    return DataError(f"non-finite {what}", found=count, need=0)


def finite_range(values: NDArray, what: str) -> tuple[float, float]:
    """Return the least and the largest value; refuse an array that is not finite."""
    low, high = float(values.min()), float(values.max())
    if not np.isfinite(high - low):
        raise non_finite(int(np.sum(~np.isfinite(values))), what)
    return low, high


def no_interface(found: str = "") -> NoInterfaceError:
    """Return the error of a level set of one sign."""
    return NoInterfaceError("no wall in the level set", found=found or None, need="both signs")


def lies_on_gpu(array: Any) -> bool:
    """Tell an array in the memory of a CUDA device from all others."""
    return hasattr(array, "__cuda_array_interface__")


def require_interface(phi: NDArray) -> None:
    """Refuse a level set that is nowhere or everywhere negative."""
    low, high = float(phi.min()), float(phi.max())
    if not low < 0.0 <= high:
        where = "inside" if low < 0.0 else "outside"
        raise no_interface(f"every voxel {where}")


def width_of(field: Any, spacing: tuple[float, ...], band_mm: float | None) -> float:
    """Return the half-width of a band in mm; without one, and at most, the domain's diameter."""
    diameter = float(np.linalg.norm(np.multiply(field.shape, spacing)))
    if band_mm is None:
        return diameter
    if not band_mm > 0.0 or not np.isfinite(band_mm):
        raise ConfigError("bad band_mm", found=band_mm, need="a positive length")
    return min(diameter, float(band_mm))


def like_input(field: Any, phi: Any) -> NDArray:
    """Give a 3-D result the dimension of the input."""
    result: NDArray = field[0] if np.ndim(phi) == 2 else field
    return result
