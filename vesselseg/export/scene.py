"""What the writers are given: the prior's surface and openings in one unit of length."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..prior.boundary import BoundaryPrior

METRES = {"m": 1.0, "cm": 1e-2, "mm": 1e-3}
KINDS = ("unknown", "inlet", "outlet")
WALL = 1


@dataclass(frozen=True, eq=False)
class Scene:
    """A prior, the name of the files to make of it, and their unit of length.

    Parameters
    ----------
    prior : BoundaryPrior
    name : str
        Stem of the files.
    unit : "m", "cm" or "mm"
    """

    prior: BoundaryPrior
    name: str
    unit: str

    @property
    def scale(self) -> float:
        """Lengths in the unit, of one metre."""
        return 1.0 / METRES[self.unit]

    @cached_property
    def points(self) -> NDArray[np.float64]:
        """Vertices (nv, 3), RAS+, in the unit."""
        return np.asarray(self.prior.vertices_m * self.scale)

    @property
    def faces(self) -> NDArray[np.int32]:
        """Triangles (nf, 3), or edges (ne, 2) in 2-D."""
        return self.prior.faces

    @cached_property
    def label(self) -> NDArray[np.uint8]:
        """Label of each face: 0 closure at the box or the axis, 1 wall, 2 and more openings."""
        cell = "face" if self.faces.shape[1] == 3 else "edge"
        return self.prior.arrays[f"/surface/{cell}_label"]

    @cached_property
    def parts(self) -> dict[int, str]:
        """Name of every label that the surface has, the wall first."""
        names = {WALL: "wall"}
        names |= {int(row["label"]): row["name"].decode() for row in self.prior.openings}
        present = set(np.unique(self.label).tolist())
        if 0 in present:
            names[0] = "axis" if self.prior.axisymmetric else "closure"
        return {label: name for label, name in names.items() if label in present}

    @cached_property
    def openings(self) -> list[dict[str, Any]]:
        """Openings as plain values, lengths in the unit; normals point out of the lumen."""
        rows = []
        for row in self.prior.openings:
            found = {
                "label": int(row["label"]),
                "name": row["name"].decode(),
                "kind": KINDS[int(row["kind"])],
                "centre": (row["centre_m"] * self.scale).tolist(),
                "normal_out": row["normal_out"].tolist(),
                "radius": float(row["radius_m"]) * self.scale,
                "area": float(row["area_m2"]) * self.scale**2,
            }
            if row["has_flow"]:
                found["flow_m3s"] = float(row["q_mean_m3s"])
                found["flow_std_m3s"] = float(row["q_std_m3s"])
            rows.append(found)
        return rows

    @cached_property
    def affine(self) -> NDArray[np.float64]:
        """(i, j, k, 1) to RAS+ in the unit."""
        affine = np.array(self.prior.arrays["/grid/ijk_to_world"])
        affine[:3] *= self.scale
        return affine

    @property
    def spacing(self) -> tuple[float, ...]:
        """Voxel size along i, j, k (2-D: i, j) in the unit."""
        return tuple(s * 1e-3 * self.scale for s in self.prior.grid.spacing_mm[::-1])

    @property
    def interior(self) -> NDArray[np.float64]:
        """A point in the lumen, as deep as any, in the unit."""
        found = np.asarray(self.prior.attributes["/geometry"]["interior_point_m"])
        return np.asarray(found * self.scale)

    def field(self, path: str) -> NDArray[Any]:
        """Return a dataset of the prior."""
        return self.prior.arrays[path]

    def velocity(self) -> NDArray[np.float32]:
        """Return the measured velocity (nt, nz, ny, nx, 3), m/s.

        Raises
        ------
        DataError
            The prior holds none.
        """
        if "/velocity/u" not in self.prior.arrays:
            remedy = "make the prior with --velocity, or choose a target without velocity"
            raise DataError("no velocity in this prior", need="/velocity/u", remedy=remedy)
        return self.prior.arrays["/velocity/u"]
