"""Signed distance from any level set: one function, three methods."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vesselseg.cuda_kernels import closest_point as kernels
from vesselseg.cuda_kernels import launch
from vesselseg.errors import ConfigError, DataError

from . import on_device
from .field import asfield, lies_on_gpu, like_input, require_interface, width_of
from .fmm import redistance_fmm
from .layers import find_interface
from .reinitialisation import redistance_pde

ROOM = 12  # list entries to make room for, in voxels beside the wall
MOST_PASSES = 64  # of corrections; each moves a better closest point on by one voxel


@dataclass(frozen=True, eq=False)
class ClosestPoints:
    """Voxels about the wall and their closest points on it.

    ``index_kji`` (n, 3) int32 voxels, ``offset`` (n, 3) float32 from the voxel to the point in
    voxels (z, y, x), ``distance_mm`` (n,) float64 unsigned. ``spacing_mm`` has three entries,
    also in 2-D. A wall that leaves the grid has points beyond its faces.
    """

    index_kji: NDArray[np.int32]
    offset: NDArray[np.float32]
    distance_mm: NDArray[np.float64]
    spacing_mm: tuple[float, ...]

    @property
    def points(self) -> NDArray[np.float64]:
        """The closest points (n, 3) in index coordinates (z, y, x)."""
        return np.add(self.index_kji, self.offset, dtype=np.float64)

    def extend(self, values: NDArray) -> NDArray[np.float64]:
        """Sample a 3-D field at the closest points: (n,), constant along normals."""
        out = np.empty(len(self.offset))
        kernels.sample_at(values, self.index_kji, self.offset, out)
        return out


def closest_points(phi: NDArray, spacing: tuple[float, ...], band: float) -> ClosestPoints:
    """Find the closest wall point of every voxel within the band of a checked 3-D field.

    The list grows outward in shells of one voxel, as in group marching (Kim 2001), each voxel
    from the closest points of its inner neighbours, so that one Newton step does. A point that
    does not converge (crease, medial axis) keeps its neighbour's: a valid upper bound. The list
    ends with a layer of voxels beyond the band.
    """
    limits, phi = phi.shape, _at_least_four(phi)
    label, index = find_interface(phi)
    count, shell = len(index), min(spacing)
    # Memory that is never written costs nothing: room for a usual band avoids later copies.
    offset, distance = np.empty((ROOM * count, 3), np.float32), np.empty(ROOM * count)
    kernels.seed_closest(phi, index, offset, distance, *spacing)
    waiting, level = np.arange(count, dtype=np.int32), 0.0
    while len(waiting):
        level, first = level + shell, count
        index, waiting, count = kernels.next_layer(label, index, distance, waiting, first, level)
        offset, distance = _room(offset, count), _room(distance, count)
        kernels.grow_closest(phi, label, index, offset, distance, first, count, band, *spacing)
        new = np.arange(first, count, dtype=np.int32)
        waiting = np.concatenate([waiting, new[distance[first:count] <= band]])
    index, offset, distance = index[:count], offset[:count], distance[:count]
    _correct(phi, label, index, offset, distance, band, spacing)
    if limits != phi.shape:
        real = (index < limits).all(axis=1)
        index, offset, distance = index[real], offset[real], distance[real]
    return ClosestPoints(index, offset, distance, spacing)


def _correct(
    phi: NDArray,
    label: NDArray,
    index: NDArray,
    offset: NDArray,
    distance: NDArray,
    band: float,
    spacing: tuple[float, ...],
) -> None:
    """Let nearer closest points replace others, neighbour by neighbour, where fronts met."""
    flag = np.ones(len(index), np.bool_)
    for _ in range(MOST_PASSES):
        kernels.find_improvable(label, index, offset, distance, flag, *spacing)
        which = np.flatnonzero(flag)
        if not len(which):
            return
        new_offset, new_distance = np.empty((len(which), 3), np.float32), np.empty(len(which))
        kernels.improve_closest(
            phi, label, index, offset, which, new_offset, new_distance, *spacing
        )
        offset[which], distance[which] = new_offset, new_distance
        reached = which[new_distance <= band]
        label[tuple(index[reached].T)] = reached + 1
        kernels.flag_neighbours(label, index, which, flag)


def _room(array: NDArray, count: int) -> NDArray:
    """Return the array with room for at least ``count`` rows."""
    if len(array) >= count:
        return array
    longer = np.empty((max(count, 2 * len(array)), *array.shape[1:]), array.dtype)
    longer[: len(array)] = array
    return longer


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
        Same shape, float64 for float64 input, else float32; mm. An array of a CUDA device, of
        CuPy or torch, gives one of the same kind, by the CUDA kernels of the closest points.

    Raises
    ------
    NoInterfaceError
        If phi has one sign everywhere.
    DataError
        If phi or the spacing is not finite.
    """
    if method not in METHODS:
        raise ConfigError("unknown method", found=method, need=" | ".join(METHODS))
    if lies_on_gpu(phi):
        if method != "closest-point":
            need = "closest-point"
            raise ConfigError("method without CUDA kernels", found=method, need=need)
        device = launch.device_of(phi)
        with on_device.current(device, phi):
            there: NDArray = on_device.redistance(device, phi, spacing_mm, band_mm)
        return there
    field, spacing = asfield(phi, spacing_mm)
    require_interface(field)
    return like_input(METHODS[method](field, spacing, width_of(field, spacing, band_mm)), phi)


def extend(
    values: Any, phi: Any, spacing_mm: float | Sequence[float], *, band_mm: float
) -> NDArray:
    """Make values known at the wall constant along its normals, ∇v · ∇φ = 0, in a band.

    Every voxel takes the value, linear between voxels, at its closest point of the wall (Chopp
    2001), which fixes what Aslam's equation (J. Comput. Phys. 193 (2004) 349) tends to.

    Parameters
    ----------
    values : (nz, ny, nx) or (ny, nx) array
        Any field, such as a speed; only voxels beside the wall are read.
    phi : array of the same shape
        Level set.
    spacing_mm : float or sequence
        Voxel size per array axis, mm.
    band_mm : float
        Half-width of the band, mm; values beyond it stay as they are.

    Returns
    -------
    array
        Like phi. An array of a CUDA device, of CuPy or torch, gives one of the same kind.

    Raises
    ------
    NoInterfaceError
        If phi has one sign everywhere.
    DataError
        If the shapes differ, or phi or the spacing is not finite.
    """
    if lies_on_gpu(phi):
        device = launch.device_of(phi)
        with on_device.current(device, phi):
            there: NDArray = on_device.extend(device, values, phi, spacing_mm, float(band_mm))
        return there
    field, spacing = asfield(phi, spacing_mm)
    require_interface(field)
    given = np.array(values, dtype=field.dtype)
    if given.shape != np.shape(phi):
        raise DataError("bad values", found=f"shape {given.shape}", need=f"shape {np.shape(phi)}")
    out = given.reshape(field.shape)
    found = closest_points(field, spacing, float(band_mm))
    inside = found.distance_mm <= band_mm
    at = tuple(found.index_kji[inside].T)
    out[at] = found.extend(out)[inside]
    return like_input(out, phi)


def _by_closest_point(phi: NDArray, spacing: tuple[float, ...], band: float) -> NDArray:
    found = closest_points(phi, spacing, band)
    return signed_distance(phi, found, band)


def signed_distance(phi: NDArray, found: ClosestPoints, far: float) -> NDArray:
    """Field of the listed distances with the signs of phi, ± ``far`` elsewhere and beyond."""
    out = np.empty_like(phi)
    limit = np.array([far], dtype=phi.dtype)
    kernels.write_distance(phi, found.index_kji, found.distance_mm, limit, out)
    return out


def _at_least_four(phi: NDArray) -> NDArray:
    """Repeat the last sample until every axis (but the plane axis of 2-D) has four samples."""
    short = [(0, max(4 - n, 0)) for n in phi.shape]
    if phi.shape[0] == 1:
        short[0] = (0, 0)
    return np.pad(phi, short, mode="edge") if any(b for _, b in short) else phi


METHODS = {"closest-point": _by_closest_point, "pde": redistance_pde, "fmm": redistance_fmm}
