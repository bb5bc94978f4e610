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
    ``core`` entries form the layer along which displacements are solved for.
    """

    points: ClosestPoints
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

    def spread(self, core_values: NDArray, beyond: float = 0.0) -> NDArray[np.float64]:
        """Make a field that is constant along normals from values at the core voxels."""
        near = np.full(self.distance_field.shape, beyond)
        kernels.scatter(self.index[: self.core], core_values, near)
        out = np.full(near.shape, beyond)
        kernels.scatter(self.index, self.points.extend(near), out)
        return out

    def graph(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Connect the core: neighbours along the wall, and the core voxel of each wall point.

        The first table (core, 6) holds the face neighbours on the same wall, -1 where none; the
        second (n,) the core entry whose voxel contains the closest point of each band voxel.
        """
        label = np.full(self.distance_field.shape, -1, dtype=np.int32)
        core = self.index[: self.core]
        kernels.scatter(core, np.arange(self.core, dtype=np.int32), label)
        table = np.empty((self.core, 6), dtype=np.int32)
        kernels.wall_neighbours(label, core, self.normal, table)
        nearest = np.clip(np.rint(self.points.points), 0, np.subtract(label.shape, 1))
        owner = kernels.gather(nearest.astype(np.int32), label)
        return table, owner


def make_band(phi: NDArray, spacing: tuple[float, ...], band_mm: float) -> Band:
    """Redistance a 3-D field by closest points and collect its band."""
    found = closest_points(phi, spacing, band_mm)
    # The search lists one layer more than the band: differences at its edge see true distances.
    field = signed_distance(phi, found, band_mm + 2.0 * max(spacing))
    core_mm = CORE * max(spacing)
    order = np.flatnonzero(found.distance_mm <= band_mm)
    # Memory order within core and rest: neighbours in space are neighbours in the list.
    flat = np.ravel_multi_index(tuple(found.index_kji[order].T), phi.shape)
    order = order[np.lexsort((flat, found.distance_mm[order] > core_mm))]
    found = ClosestPoints(
        found.index_kji[order], found.offset[order], found.distance_mm[order], spacing
    )
    n = len(order)
    normal, kappa, bend = np.empty((n, 3)), np.empty(n), np.empty(n)
    kernels.wall_geometry(field, found.index_kji, normal, kappa, bend, *spacing)
    core = int(np.count_nonzero(found.distance_mm <= core_mm))
    phi_mm = kernels.gather(found.index_kji, field).astype(np.float64)
    kappa, bend = (_at_wall(found, values, phi.shape) for values in (kappa, bend))
    return Band(found, field, phi_mm, normal, kappa, bend, core)


def _at_wall(found: ClosestPoints, values: NDArray, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Sample listed values at the closest wall points."""
    field = np.zeros(shape)
    kernels.scatter(found.index_kji, values, field)
    return found.extend(field)
