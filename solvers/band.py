"""The narrow band around the wall as a list of voxels with their geometry."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vesselseg.cuda_kernels import wall as kernels

from .redistancing import ClosestPoints, closest_points, signed_distance

CORE = 1.5  # half-width, in largest spacings, of the layer that carries the displacement


@dataclass(frozen=True, eq=False)
class Band:
    """Voxels within a distance of the wall, sorted so that the core comes first.

    ``phi_mm``, ``kappa`` and ``bend`` (of the nearest wall point; 1/mm and mm, see
    ``cuda_kernels.wall``) are (n,), ``normal`` (n, 3) in array order; the first
    ``core`` entries form the layer along which displacements are solved for. ``label`` is a field
    of the places in this list, counted from 1, 0 beyond the band.
    """

    points: ClosestPoints
    label: NDArray[np.int32]
    distance_field: NDArray
    phi_mm: NDArray[np.float64]
    normal: NDArray[np.float64]
    kappa: NDArray[np.float64]
    bend: NDArray[np.float64]
    core: int

    @property
    def index(self) -> NDArray[np.int32]:
        """Voxels (n, 3) in array order."""
        return self.points.index_kji

    @property
    def spacing(self) -> tuple[float, ...]:
        """Voxel size of the 3-D array, mm."""
        return self.points.spacing_mm

    def gather(self, field: NDArray) -> NDArray[np.float64]:
        """Values of a field at the band's voxels (n,)."""
        return _gathered(self.index, field)

    def extended(self, core_values: NDArray, beyond: float = 0.0) -> NDArray[np.float64]:
        """Values at the core voxels made constant along normals: (n,) at the band's voxels."""
        return _at_wall(self.points, self.label, core_values, beyond)

    def spread(self, core_values: NDArray, beyond: float = 0.0) -> NDArray[np.float64]:
        """Make a field that is constant along normals from values at the core voxels."""
        out = np.full(self.distance_field.shape, beyond, self.distance_field.dtype)
        kernels.scatter(self.index, self.extended(core_values, beyond), out)
        return out

    def moved(self, step: NDArray) -> NDArray:
        """Distance field less a step at the core voxels, constant along normals.

        It is the band's own field, written over: a wall that has moved needs a new band, and a
        copy of a large volume takes as long as a linear solve.
        """
        kernels.scatter(self.index, self.phi_mm - self.extended(step), self.distance_field)
        return self.distance_field

    def graph(self) -> tuple[NDArray[np.uint32], NDArray[np.int32]]:
        """Connect the core: neighbours along the wall, and the core voxel of each wall point.

        The first table (core, 6) holds the face neighbours on the same wall, itself where none; the
        second (n,) the core entry whose voxel contains the closest point of each band voxel.
        """
        table = np.empty((self.core, 6), dtype=np.uint32)
        kernels.wall_neighbours(self.label, self.index[: self.core], self.normal, table)
        owner = np.empty(len(self.index), dtype=np.int32)
        kernels.wall_owner(self.label, self.index, self.points.offset, self.core, owner)
        return table, owner


def make_band(phi: NDArray, spacing: tuple[float, ...], band_mm: float) -> Band:
    """Redistance a 3-D field by closest points and collect its band."""
    found = closest_points(phi, spacing, band_mm)
    # The search lists one layer more than the band: differences at its edge see true distances.
    field = signed_distance(phi, found, band_mm + 2.0 * max(spacing))
    core_mm = CORE * max(spacing)
    order = np.flatnonzero(found.distance_mm <= band_mm)
    # Memory order within core and rest: neighbours in space are neighbours in the list.
    k, j, i = found.index_kji[order].T.astype(np.int64)
    flat = (k * phi.shape[1] + j) * phi.shape[2] + i
    order = order[np.argsort(flat + phi.size * (found.distance_mm[order] > core_mm))]
    found = ClosestPoints(
        found.index_kji[order], found.offset[order], found.distance_mm[order], spacing
    )
    n = len(order)
    label = np.zeros(phi.shape, dtype=np.int32)
    kernels.scatter(found.index_kji, np.arange(1, n + 1, dtype=np.int32), label)
    normal, kappa, bend = np.empty((n, 3)), np.empty(n), np.empty(n)
    kernels.wall_geometry(field, found.index_kji, normal, kappa, bend, *spacing)
    core = int(np.count_nonzero(found.distance_mm <= core_mm))
    phi_mm = _gathered(found.index_kji, field)
    kappa, bend = (_at_wall(found, label, values, 0.0) for values in (kappa, bend))
    return Band(found, label, field, phi_mm, normal, kappa, bend, core)


def _gathered(index: NDArray[np.int32], field: NDArray) -> NDArray[np.float64]:
    out = np.empty(len(index))
    kernels.gather(index, field, out)
    return out


def _at_wall(
    found: ClosestPoints, label: NDArray[np.int32], values: NDArray, beyond: float
) -> NDArray[np.float64]:
    """Sample values of the first listed voxels at the closest wall points."""
    out = np.empty(len(found.offset))
    kernels.sample_listed(
        label, np.asarray(values, dtype=np.float64), found.index_kji, found.offset, beyond, out
    )
    return out
