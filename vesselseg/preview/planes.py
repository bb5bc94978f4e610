"""Slices of a scan for the picture of a prior, turned the way a radiologist looks at them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..grid import Grid

Array = NDArray[Any]


@dataclass(frozen=True)
class Plane:
    """A slice along the array axes, turned so that its world axes point right and up.

    Parameters
    ----------
    normal, up, right : int
        Array axes; ``normal`` is -1 for a 2-D grid.
    flip_up, flip_right : bool
        Whether the index falls upwards, rightwards.
    letters : tuple of str
        What lies left, right, below and above.
    """

    normal: int
    up: int
    right: int
    flip_up: bool
    flip_right: bool
    letters: tuple[str, str, str, str]

    def cut(self, values: Array, at: Array | None) -> Array:
        """Return the slice, rows upwards."""
        if self.normal < 0 or at is None:
            return self.turn(values)
        return self.turn(np.take(values, int(at[self.normal]), axis=self.normal))

    def turn(self, image: Array) -> Array:
        """Orient a 2-D array whose axes are the two in-plane array axes in rising order."""
        if self.up > self.right:
            image = image.T
        image = image[::-1] if self.flip_up else image
        return image[:, ::-1] if self.flip_right else image

    def place(self, grid: Grid, at: Array) -> tuple[float, float]:
        """Return where a voxel lies in the slice: rightwards and upwards, mm."""
        found = []
        for axis, flip in ((self.right, self.flip_right), (self.up, self.flip_up)):
            steps = grid.shape_kji[axis] - 1 - at[axis] if flip else at[axis]
            found.append(float(steps * grid.spacing_mm[axis]))
        return found[0], found[1]

    def spacing(self, grid: Grid) -> tuple[float, float]:
        """Return the voxel size upwards and rightwards."""
        return grid.spacing_mm[self.up], grid.spacing_mm[self.right]


def planes(grid: Grid, oriented: bool) -> tuple[Plane, ...]:
    """Axial, coronal and sagittal (closest array planes), patient's right on the left."""
    axes = _closest_axes(grid)
    pairs = ((0, 1), (0, 2), (1, 2))
    shown = pairs if grid.ndim == 3 else [pair for pair in pairs if set(pair) == set(axes)]
    return tuple(_plane(grid, oriented, axes, right=r, up=u) for r, u in shown)


def _closest_axes(grid: Grid) -> dict[int, tuple[int, int]]:
    """Map each world axis to the (array axis, sign) that runs closest to it, one to one."""
    cosines = grid.affine[:3, : grid.ndim] / np.linalg.norm(grid.affine[:3, : grid.ndim], axis=0)
    axes: dict[int, tuple[int, int]] = {}
    strength = np.abs(cosines)
    for _ in range(grid.ndim):
        world, column = np.unravel_index(int(strength.argmax()), strength.shape)
        sign = 1 if cosines[world, column] > 0 else -1
        axes[int(world)] = (grid.ndim - 1 - int(column), sign)
        strength[world] = strength[:, column] = -1.0
    return axes


def _plane(
    grid: Grid, oriented: bool, axes: dict[int, tuple[int, int]], *, right: int, up: int
) -> Plane:
    (right_axis, right_sign), (up_axis, up_sign) = axes[right], axes[up]
    towards_left = right == 0  # the radiologist faces the patient
    flip_right = (right_sign > 0) == towards_left
    normal = next((a for a in range(grid.ndim) if a not in (right_axis, up_axis)), -1)
    sides = ("RL" if towards_left else "PA") if right < 2 else "IS"
    ends = "PA" if up == 1 else "IS"
    letters = (*sides, *ends) if oriented else ("", "", "", "")
    return Plane(normal, up_axis, right_axis, up_sign < 0, flip_right, letters)


def deepest(phi: Array, grid: Grid) -> tuple[Array, float]:
    """Return the voxel deepest in the lumen and its depth in mm."""
    from scipy.ndimage import distance_transform_edt

    depth = distance_transform_edt(phi < 0, sampling=grid.spacing_mm)
    return np.array(np.unravel_index(int(depth.argmax()), depth.shape)), float(depth.max())
