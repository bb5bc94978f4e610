"""What the prior file holds beside phi itself, computed from phi. Everything here is in metres."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import wall_geometry as geometry
from ..errors import DataError, NoInterfaceError
from .schema import OPENING
from .surface import (
    WALL,
    area_vectors,
    enclosed_volume,
    euler_characteristic,
    extract,
    is_closed,
    to_world,
)

Floats = NDArray[np.floating]
Arrays = dict[str, NDArray[Any]]

MAX_COMPONENTS = 255


def spacing_of(affine: Floats, ndim: int) -> tuple[float, ...]:
    """Return the voxel size per array axis."""
    return tuple(float(s) for s in np.linalg.norm(affine[:3, :ndim], axis=0)[::-1])


def columns_of(affine: Floats) -> Floats:
    """Return the unit vectors of i, j, k in the world as columns."""
    return np.asarray(affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0))


def grid_attributes(affine: Floats, shape: tuple[int, ...]) -> dict[str, Any]:
    """Return the attributes of /grid; a 2-D grid has one sample along k."""
    return {
        "shape_ijk": [*shape[::-1], 1][:3],
        "spacing_ijk_m": np.linalg.norm(affine[:3, :3], axis=0),
        "origin_xyz_m": affine[:3, 3],
        "direction": columns_of(affine).ravel(),
        "sample_location": "cell_center",
    }


def lumen(phi: NDArray[np.float32], affine: Floats, band_m: float) -> tuple[Arrays, dict[str, Any]]:
    """Return the datasets of /geometry and /boundary that follow from phi, and the attributes."""
    mask = phi < 0
    if not mask.any() or mask.all():
        raise NoInterfaceError("no wall", found="no lumen" if not mask.any() else "lumen only")
    shape = geometry.topology(mask)
    if shape.n_components > MAX_COMPONENTS:
        found, need = shape.n_components, f"at most {MAX_COMPONENTS}"
        remedy = "keep fewer components or remove islands"
        raise DataError("too many lumen components", found=found, need=need, remedy=remedy)
    spacing = spacing_of(affine, phi.ndim)
    gradients = geometry.gradient(phi, spacing)
    band = np.abs(phi) <= band_m
    fraction = geometry.inner_fraction(phi, gradients, spacing)
    depth = geometry.depth(phi, spacing)
    deepest = np.array(np.unravel_index(np.argmax(depth), phi.shape), dtype=float)
    arrays: Arrays = {
        "/geometry/phi_mean": phi,
        "/geometry/mask": mask.astype(np.uint8),
        "/geometry/component": shape.component.astype(np.uint8),
        "/geometry/volume_fraction": fraction,
        "/geometry/normal": geometry.unit_normals(gradients, band, columns_of(affine)),
        "/geometry/curvature": geometry.mean_curvature(phi, gradients, spacing, band),
        "/geometry/band_index": np.flatnonzero(band),
        "/boundary/domain": mask.astype(np.uint8),
        "/boundary/label": band.astype(np.uint8),
        "/boundary/openings": np.empty(0, dtype=OPENING),
    }
    attributes = {
        "n_components": shape.n_components,
        "euler": shape.euler,
        "genus": shape.genus,
        "volume_m3": float(fraction.sum(dtype=np.float64) * np.prod(spacing)),
        "interior_point_m": to_world(deepest[None], affine)[0],
        "max_radius_m": float(depth.max()),
    }
    return arrays, attributes


def wall(arrays: Mapping[str, NDArray[Any]], affine: Floats) -> tuple[Arrays, dict[str, Any]]:
    """Return the datasets and the attributes of /surface.

    Where no wall touches a vertex, its normal is that of the closing plane and its curvature 0.
    """
    phi = arrays["/geometry/phi_mean"]
    surface = extract(phi.astype(np.float64), affine)
    points, faces = surface.points, surface.faces
    areas = area_vectors(points, faces, affine)
    on_wall = np.zeros(len(points), dtype=bool)
    on_wall[faces[surface.label == WALL]] = True
    normal = surface.sample(arrays["/geometry/normal"].reshape(-1, 3).astype(np.float64))
    of_faces = np.zeros_like(points)
    for corner in faces.T:
        np.add.at(of_faces, corner, areas)
    ridge = np.linalg.norm(normal, axis=1) < 0.5
    normal = np.where((ridge | ~on_wall)[:, None], of_faces, normal)
    length = np.linalg.norm(normal, axis=1, keepdims=True)
    curvature = surface.sample(arrays["/geometry/curvature"].ravel())
    cell = "face" if phi.ndim == 3 else "edge"
    datasets: Arrays = {
        "vertices": points,
        f"{cell}s": faces,
        f"{cell}_label": surface.label,
        "vertex_normal": (normal / np.where(length > 0, length, 1.0)).astype(np.float32),
        "vertex_std": surface.sample(arrays["/geometry/phi_std"].ravel()).astype(np.float32),
        "vertex_curvature": np.where(on_wall, curvature, 0.0).astype(np.float32),
    }
    attributes = {
        "watertight": int(is_closed(faces)),
        "euler": euler_characteristic(faces),
        "volume_m3": enclosed_volume(points, faces, affine),
        "area_m2": float(np.linalg.norm(areas, axis=1).sum()),
    }
    return {f"/surface/{name}": array for name, array in datasets.items()}, attributes


def quality_figures(arrays: Mapping[str, NDArray[Any]]) -> dict[str, float]:
    """Compute the stored figures of merit from the stored fields.

    ``eikonal_*``: mean, maximum and rms of |‖∇φ‖ - 1| within three voxels of the wall;
    ``normal_rms_deg``: how much normals turn along themselves; ``wall_snr``: contrast across the
    wall over the noise.
    """
    phi = arrays["/geometry/phi_mean"]
    spacing = spacing_of(arrays["/grid/ijk_to_world"], phi.ndim)
    gradients, h = geometry.gradient(phi, spacing), max(spacing)
    mean, worst, rms = geometry.slope_error(gradients, np.abs(phi) < 3 * h)
    normal, image = arrays["/geometry/normal"], arrays.get("/images/magnitude")
    return {
        "eikonal_mean": mean,
        "eikonal_max": worst,
        "eikonal_rms": rms,
        "normal_rms_deg": geometry.normal_roughness_deg(phi, gradients, normal, spacing),
        "wall_snr": 0.0 if image is None else geometry.wall_contrast(image, phi, h),
    }
