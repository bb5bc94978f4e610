"""Signed distance from any level set: one function, three methods."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vesselseg.cuda_kernels import closest_point as kernels
from vesselseg.errors import ConfigError

from .field import asfield, like_input, require_interface
from .fmm import redistance_fmm
from .reinitialisation import redistance_pde

MAX_CORRECTIONS = 4


@dataclass(frozen=True, eq=False)
class ClosestPoints:
    """The voxels of a band and their closest points on the wall.

    ``index_kji`` (n, 3) int32 voxels, ``points`` (n, 3) float64 index coordinates (z, y, x),
    ``distance_mm`` (n,) float64 unsigned. ``spacing_mm`` has three entries, also in 2-D.
    """

    index_kji: NDArray[np.int32]
    points: NDArray[np.float64]
    distance_mm: NDArray[np.float64]
    spacing_mm: tuple[float, ...]

    def extend(self, values: NDArray) -> NDArray:
        """Sample a 3-D field at the closest points: (n,), constant along normals."""
        out = np.empty(len(self.points), dtype=np.float64)
        kernels.sample_at(values, self.points, out)
        return out


def closest_points(phi: NDArray, spacing: tuple[float, ...], band: float) -> ClosestPoints:
    """Find the closest wall point of every voxel within the band of a checked 3-D field.

    Voxels beside the wall start at their nearest edge crossing; each further layer starts from
    the nearest closest point of its neighbours, so two or three Newton steps do. A point that
    does not converge (crease, medial axis) keeps its neighbour's: a valid upper bound.
    """
    limits, phi = phi.shape, _at_least_four(phi)
    label = np.full(phi.shape, kernels.OUTSIDE, dtype=np.int32)
    index = kernels.find_interface(phi, label)
    points = np.empty((len(index), 3))
    distance = np.empty(len(index))
    kernels.seed_closest(phi, index, points, distance, *spacing)
    first, last = 0, len(index)
    while last > first:
        found = kernels.next_layer(label, index, distance, first, last, band)
        index = np.concatenate([index, found])
        points = np.concatenate([points, np.empty((len(found), 3))])
        distance = np.concatenate([distance, np.empty(len(found))])
        first, last = last, len(index)
        kernels.grow_closest(phi, label, index, points, distance, first, last, *spacing)
    for _ in range(MAX_CORRECTIONS):
        new_points, new_distance = np.empty_like(points), np.empty_like(distance)
        changed = kernels.correct_closest(
            phi, label, index, points, distance, new_points, new_distance, *spacing
        )
        points, distance = new_points, new_distance
        if not changed:
            break
    if limits != phi.shape:
        real = (index < limits).all(axis=1)
        index, distance = index[real], distance[real]
        points = np.minimum(points[real], np.subtract(limits, 1.0))
    return ClosestPoints(index, points, distance, spacing)


def redistance(
    phi: Any,
    spacing_mm: float | Sequence[float],
    *,
    band_mm: float | None = None,
    method: str = "closest-point",
) -> NDArray:
    """Signed distance to the zero set of phi, |∇φ| = 1, keeping the zero set and every sign.

    Parameters
    ----------
    phi : (nz, ny, nx) or (ny, nx) array
        Any function that is negative in the lumen.
    spacing_mm : float or sequence
        Voxel size per array axis, mm.
    band_mm : float, optional
        Clamp to ± this distance; work is done there only. Default: the whole domain.
    method : {"closest-point", "pde", "fmm"}
        Closest points on the tricubic interpolant (Chopp 2001; Saye 2014); the reinitialisation
        equation with a subcell fix (Russo & Smereka 2000; du Chéné, Min & Gibou 2008), third
        order but slower; scikit-fmm.

    Returns
    -------
    array
        Same shape, float64 for float64 input, else float32; mm.

    Raises
    ------
    NoInterfaceError
        If phi has one sign everywhere.
    DataError
        If phi or the spacing is not finite.
    """
    field, spacing = asfield(phi, spacing_mm)
    require_interface(field)
    band = float(np.linalg.norm(np.multiply(field.shape, spacing)))
    if band_mm is not None:
        if not band_mm > 0.0 or not np.isfinite(band_mm):
            raise ConfigError("bad band_mm", found=band_mm, need="a positive length")
        band = min(band, float(band_mm))
    if method not in METHODS:
        raise ConfigError("unknown method", found=method, need=" | ".join(METHODS))
    return like_input(METHODS[method](field, spacing, band), phi)


def _by_closest_point(phi: NDArray, spacing: tuple[float, ...], band: float) -> NDArray:
    found = closest_points(phi, spacing, band)
    out = np.empty_like(phi)
    kernels.scatter_distance(phi, found.index_kji, found.distance_mm, band, out)
    return out


def _at_least_four(phi: NDArray) -> NDArray:
    """Repeat the last sample until every axis (but the plane axis of 2-D) has four samples."""
    short = [(0, max(4 - n, 0)) for n in phi.shape]
    if phi.shape[0] == 1:
        short[0] = (0, 0)
    return np.pad(phi, short, mode="edge") if any(b for _, b in short) else phi


METHODS = {"closest-point": _by_closest_point, "pde": redistance_pde, "fmm": redistance_fmm}
