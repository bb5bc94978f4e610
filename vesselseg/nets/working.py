"""The isotropic grid on which a network sees a scan, and the way there and back."""

from __future__ import annotations

from dataclasses import dataclass

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ..grid import Grid

Floats = NDArray[np.float32]

SAME = 1e-3  # relative difference of spacings that needs no resampling


@dataclass(frozen=True, eq=False)
class WorkingGrid:
    """How the scan's array relates to the isotropic one: turn, then scale each axis.

    Parameters
    ----------
    order : tuple of int
        Axes of the scan in working order.
    flips : tuple of int
        Working axes that run against the scan's.
    step : (ndim,) float64
        Working voxel in voxels of the turned scan.
    shape : tuple of int
    voxel_mm : float
    """

    order: tuple[int, ...]
    flips: tuple[int, ...]
    step: NDArray[np.float64]
    shape: tuple[int, ...]
    voxel_mm: float

    def to_working(self, values: Floats) -> Floats:
        """Resample an array of the scan, linearly and only where the voxels differ."""
        turned = np.flip(values.transpose(self.order), self.flips)
        return resample(turned, self.step, self.shape)

    def to_scan(self, values: Floats, shape: tuple[int, ...]) -> Floats:
        """Resample an array of the working grid back to the scan."""
        turned = resample(values, 1.0 / self.step, tuple(shape[a] for a in self.order))
        return np.flip(turned, self.flips).transpose(np.argsort(self.order))


def working_grid(
    grid: Grid, voxel_mm: float | None, max_voxels: int
) -> tuple[WorkingGrid, tuple[str, ...]]:
    """Choose the isotropic grid: closest RAS axes, finest spacing, coarser only for memory."""
    n, spacing = grid.ndim, np.array(grid.spacing_mm)
    order, flips = tuple(range(n)), tuple[int, ...]()
    if n == 3:
        axes = nib.orientations.io_orientation(grid.affine)  # rows i, j, k: (world axis, sign)
        array = {int(world): 2 - i for i, (world, _) in enumerate(axes)}
        order = tuple(array[world] for world in (2, 1, 0))
        signs = {2 - i: sign for i, (_, sign) in enumerate(axes)}
        flips = tuple(a for a, old in enumerate(order) if signs[old] < 0)
    spacing = spacing[list(order)]
    extent = (np.array(grid.shape_kji)[list(order)] - 1) * spacing
    h, notes = voxel_mm or grid.h_min, tuple[str, ...]()
    while np.prod(extent / h + 1) > max_voxels:
        h *= 1.02
        notes = (f"network ran on {h:.3g} mm voxels to save memory",)
    step = np.where(np.abs(h / spacing - 1) < SAME, 1.0, h / spacing)
    shape = tuple(int(m) for m in np.ceil(extent / (step * spacing) - SAME) + 1)
    return WorkingGrid(order, flips, step, shape, h), notes


def resample(values: Floats, step: NDArray[np.float64], shape: tuple[int, ...]) -> Floats:
    """Sample at ``step * index``, linearly; the border value holds beyond the end."""
    if np.all(step == 1.0) and values.shape == shape:
        return np.ascontiguousarray(values)
    return np.asarray(
        ndimage.affine_transform(values, step, output_shape=shape, order=1, mode="nearest"),
        dtype=np.float32,
    )
