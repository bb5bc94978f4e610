"""The sampling grid of a scan: the only place where the axis rule is explained.

Arrays are C-ordered and indexed ``[k, j, i]`` = ``(nz, ny, nx)``; a 2-D image is ``[j, i]``.
``spacing_mm`` follows the array axes. The affine maps the index vector in the opposite order,
``(i, j, k, 1)``, to world coordinates RAS+ in mm, as in NIfTI. Samples sit at voxel centres.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import DataError

Floats = NDArray[np.floating]

SPACING_LIMITS_MM = (1e-3, 100.0)
SAME_VOXELS = 1e-3
ORTHONORMAL_TOLERANCE = 1e-3  # B074: columns off orthonormal by less are stored as they are


@dataclass(frozen=True, eq=False)
class Grid:
    """A regular grid in the world.

    Parameters
    ----------
    shape_kji : tuple of int
        ``(nz, ny, nx)`` or ``(ny, nx)``.
    affine : (4, 4) array
        ``(i, j, k, 1)`` to RAS+ mm. For a 2-D grid the third column is the unit normal of the
        image plane times the slice thickness.
    """

    shape_kji: tuple[int, ...]
    affine: NDArray[np.float64]

    def __post_init__(self) -> None:
        shape = tuple(int(n) for n in self.shape_kji)
        affine = np.array(self.affine, dtype=np.float64)
        if len(shape) not in (2, 3) or min(shape, default=0) < 1:
            raise DataError("bad grid shape", found=shape, need="(nz, ny, nx) or (ny, nx)")
        check_affine(affine)
        affine.setflags(write=False)
        object.__setattr__(self, "shape_kji", shape)
        object.__setattr__(self, "affine", affine)

    @classmethod
    def from_spacing(
        cls, shape_kji: tuple[int, ...], spacing_mm: ArrayLike, origin_xyz: ArrayLike = (0, 0, 0)
    ) -> Grid:
        """Make an axis-aligned grid; ``spacing_mm`` is a number or one per array axis."""
        spacing = np.ones(3)
        spacing[: len(shape_kji)] = np.broadcast_to(spacing_mm, (len(shape_kji),))[::-1]
        affine = np.diag([*spacing, 1.0])
        affine[:3, 3] = origin_xyz
        return cls(shape_kji, affine)

    @property
    def ndim(self) -> int:
        """Two or three."""
        return len(self.shape_kji)

    @property
    def spacing_mm(self) -> tuple[float, ...]:
        """Voxel size per array axis, in mm."""
        columns = np.linalg.norm(self.affine[:3, :3], axis=0)
        return tuple(float(s) for s in columns[: self.ndim][::-1])

    @property
    def h_min(self) -> float:
        """Smallest voxel size in mm."""
        return min(self.spacing_mm)

    @property
    def h_max(self) -> float:
        """Largest voxel size in mm."""
        return max(self.spacing_mm)

    @property
    def voxel_mm(self) -> float:
        """Volume of a voxel in mm³ (area in mm² for a 2-D grid)."""
        return float(np.prod(self.spacing_mm))

    @property
    def diameter_mm(self) -> float:
        """Diagonal of the field of view in mm."""
        return float(np.linalg.norm(np.multiply(self.shape_kji, self.spacing_mm)))

    def world(self, index_kji: ArrayLike) -> NDArray[np.float64]:
        """Map index points ``(..., ndim)`` in array order to world points ``(..., 3)`` in mm."""
        index = np.asarray(index_kji, dtype=np.float64)
        ijk = np.zeros((*index.shape[:-1], 3))
        ijk[..., : self.ndim] = index[..., ::-1]
        return ijk @ self.affine[:3, :3].T + self.affine[:3, 3]

    def index(self, world_xyz: ArrayLike) -> NDArray[np.float64]:
        """Map world points ``(..., 3)`` in mm to index points ``(..., ndim)`` in array order."""
        offset = np.asarray(world_xyz, dtype=np.float64) - self.affine[:3, 3]
        ijk = offset @ np.linalg.inv(self.affine[:3, :3]).T
        return np.ascontiguousarray(ijk[..., : self.ndim][..., ::-1])

    def part(self, box: tuple[slice, ...]) -> Grid:
        """Return the grid of a box of voxels, given by slices of step one in array order."""
        ranges = [range(n)[one] for n, one in zip(self.shape_kji, box, strict=True)]
        affine = self.affine.copy()
        affine[:3, 3] = self.world([one.start for one in ranges])
        return Grid(tuple(len(one) for one in ranges), affine)

    def mismatch_mm(self, other: Grid) -> float:
        """Return the largest distance between equal corners of two grids, inf if shapes differ."""
        if self.shape_kji != other.shape_kji:
            return float("inf")
        corners = np.indices((2,) * self.ndim).reshape(self.ndim, -1).T
        corners = corners * (np.array(self.shape_kji) - 1)
        return float(np.linalg.norm(self.world(corners) - other.world(corners), axis=1).max())

    def fits(self, other: Grid) -> bool:
        """Return whether both are one grid, to a thousandth of the smallest voxel."""
        return self.mismatch_mm(other) <= SAME_VOXELS * other.h_min

    def as_dict(self) -> dict[str, Any]:
        """Return a JSON-ready description."""
        return {
            "shape_kji": list(self.shape_kji),
            "spacing_mm": list(self.spacing_mm),
            "ijk_to_ras_mm": self.affine.tolist(),
        }


def check_affine(affine: NDArray[np.float64]) -> None:
    """Refuse an affine that is not finite, singular, implausible or sheared."""
    if affine.shape != (4, 4) or not np.isfinite(affine).all():
        raise DataError("bad affine", found="non-finite or not 4 x 4", need="a finite 4 x 4 matrix")
    columns = affine[:3, :3]
    spacing = np.linalg.norm(columns, axis=0)
    low, high = SPACING_LIMITS_MM
    if spacing.min() <= 0.0 or abs(np.linalg.det(columns / np.where(spacing, spacing, 1))) < 1e-6:
        raise DataError("singular affine", remedy="repair the header or give --spacing")
    if spacing.min() < low or spacing.max() > high:
        found = " x ".join(f"{s:.3g}" for s in spacing) + " mm"
        raise DataError("implausible spacing; units?", found=found, need=f"{low} to {high} mm")
    cosines = columns / spacing
    if np.abs(cosines.T @ cosines - np.eye(3)).max() > ORTHONORMAL_TOLERANCE:
        raise DataError(
            "sheared affine",
            need=f"axes orthogonal within {ORTHONORMAL_TOLERANCE}",
            remedy="resample the scan to an orthogonal grid first, for example with nibabel",
        )
