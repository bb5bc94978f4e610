"""What the prior file holds beside phi itself, computed from phi. Everything here is in metres."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import wall_geometry as geometry
from ..errors import DataError, NoInterfaceError
from ..meridian import Meridian
from . import covariance
from .covariance import Elliptic
from .cut import Wall
from .inflow import LENGTH, Measured, Profile, fit_profile
from .openings import FIRST_LABEL, Ends, Opening
from .relax import Frame
from .schema import OPENING
from .section import Lumen
from .surface import (
    WALL,
    area_vectors,
    enclosed_volume,
    euler_characteristic,
    is_closed,
    to_world,
)

Floats = NDArray[np.floating]
Arrays = dict[str, NDArray[Any]]

MAX_COMPONENTS = 255
INLET, OUTLET = 1, 2
EDGE_VOXELS = 4.0  # an opening nearer to the edge of the box lies at the edge


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


def lumen(
    phi: NDArray[np.float32], affine: Floats, band_m: float, revolved: bool = False
) -> tuple[Arrays, dict[str, Any]]:
    """Return the datasets of /geometry that follow from phi, and the attributes.

    ``revolved``: phi lies on the half plane of an axis.
    """
    mask = phi < 0
    rows = geometry.rows(len(phi)) if revolved else None
    if not mask.any() or mask.all():
        raise NoInterfaceError("no wall", found="no lumen" if not mask.any() else "lumen only")
    shape = geometry.topology(mask, rows)
    if shape.n_components > MAX_COMPONENTS:
        found, need = shape.n_components, f"at most {MAX_COMPONENTS}"
        remedy = "keep fewer components or remove islands"
        raise DataError("too many lumen components", found=found, need=need, remedy=remedy)
    spacing = spacing_of(affine, phi.ndim)
    gradients = geometry.gradient(phi, spacing, revolved)
    band = np.abs(phi) <= band_m
    fraction = geometry.inner_fraction(phi, gradients, spacing, rows)
    depth = geometry.depth(phi, spacing)
    curvature, gauss = geometry.curvatures(phi, gradients, spacing, band, rows)
    deepest = np.array(np.unravel_index(np.argmax(depth), phi.shape), dtype=float)
    arrays: Arrays = {
        "/geometry/phi_mean": phi,
        "/geometry/mask": mask.astype(np.uint8),
        "/geometry/component": shape.component.astype(np.uint8),
        "/geometry/volume_fraction": fraction,
        "/geometry/normal": geometry.unit_normals(gradients, band, columns_of(affine)),
        "/geometry/curvature": curvature,
        "/geometry/band_index": np.flatnonzero(band),
    }
    attributes = {
        "n_components": shape.n_components,
        "euler": shape.euler,
        "genus": shape.genus,
        "volume_m3": float((fraction * geometry.voxels(phi.shape, spacing, rows)).sum()),
        "interior_point_m": to_world(deepest[None], affine)[0],
        "max_radius_m": float(depth.max()),
    }
    if phi.ndim == 3 or revolved:  # a line in the plane has none
        arrays["/geometry/curvature_gauss"] = gauss
    return arrays, attributes


def wall(
    arrays: Mapping[str, NDArray[Any]], frame: Frame, closed: Wall
) -> tuple[Arrays, dict[str, Any]]:
    """Return the datasets and the attributes of /surface.

    Where no wall touches a vertex, its normal is that of its plane and its curvature 0.
    """
    points, faces, source = closed.points, closed.faces, closed.source
    areas = area_vectors(points, faces, frame.affine)
    on_wall = np.zeros(len(points), dtype=bool)
    on_wall[faces[closed.label == WALL]] = True
    normal = frame.direction(source)
    of_faces = np.zeros_like(points)
    for corner in faces.T:
        np.add.at(of_faces, corner, areas)
    ridge = np.linalg.norm(normal, axis=1) < 0.5
    normal = np.where((ridge | ~on_wall)[:, None], of_faces, normal)
    length = np.linalg.norm(normal, axis=1, keepdims=True)
    curvature = frame.sample(arrays["/geometry/curvature"], source)
    cell = "face" if faces.shape[1] == 3 else "edge"
    std = frame.sample(arrays["/geometry/phi_std"], source)
    datasets: Arrays = {
        "vertices": points,
        f"{cell}s": faces,
        f"{cell}_label": closed.label,
        "vertex_normal": (normal / np.where(length > 0, length, 1.0)).astype(np.float32),
        "vertex_std": std.astype(np.float32),
        "vertex_curvature": np.where(on_wall, curvature, 0.0).astype(np.float32),
    }
    attributes = {
        "watertight": int(is_closed(faces)),
        "euler": euler_characteristic(faces),
        "volume_m3": enclosed_volume(points, faces, frame.affine),
        "area_m2": float(np.linalg.norm(areas, axis=1).sum()),
    }
    return {f"/surface/{name}": array for name, array in datasets.items()}, attributes


def openings_table(
    arrays: Mapping[str, NDArray[Any]],
    affine: Floats,
    openings: Sequence[Opening],
    operator: Elliptic,
    extension_m: float,
) -> NDArray[Any]:
    """Return the table of openings; the fields of the flow are zero.

    The s.d. of an area is that of the integral of the wall's displacement around the rim.
    """
    lumen = Lumen(arrays["/geometry/phi_mean"], affine)
    table = np.zeros(len(openings), dtype=OPENING)
    for number, (row, opening) in enumerate(zip(table, openings, strict=True)):
        edge = edge_distance(
            lumen.index(opening.rim), lumen.spacing, lumen.phi.shape, operator.revolved
        )
        row["label"], row["name"] = FIRST_LABEL + number, f"opening_{number + 1}".encode()
        row["at_fov_edge"] = edge < EDGE_VOXELS * lumen.h
        row["centre_m"], row["normal_out"] = opening.centre, opening.normal
        row["area_m2"], row["radius_m"] = opening.area, opening.radius
        row["area_std_m2"] = area_std(arrays, lumen, opening, operator)
        row["perimeter_m"], row["roundness"] = opening.perimeter, opening.roundness
        row["planarity_rms_m"] = float(np.sqrt(np.mean(opening.height(opening.rim) ** 2)))
        row["extension_m"] = extension_m
    return table


def area_std(
    arrays: Mapping[str, NDArray[Any]],
    lumen: Lumen,
    opening: Opening,
    operator: Elliptic,
) -> float:
    """Return the s.d. of the area of an opening, m² (2-D: of its width, m)."""
    rim = opening.rim
    lengths = rim_lengths(rim)
    if operator.revolved:
        lengths = 2.0 * np.pi * np.abs(Meridian.of(lumen.affine).radius(rim))
    return covariance.functional_std(
        lumen.index(rim),
        lengths,
        arrays["/geometry/phi_std"],
        arrays["/geometry/covariance/normaliser"],
        operator,
    )


def edge_distance(
    index: Floats, spacing: tuple[float, ...], shape: tuple[int, ...], revolved: bool
) -> float:
    """Return how near points (n, ndim) come to the edge of the grid, m; an axis is none."""
    above = (np.array(shape) - 1 - index) * spacing
    below = (index * spacing)[:, int(revolved) :]
    return float(min(above.min(), below.min()))


def rim_lengths(rim: Floats) -> Floats:
    """Return the length of rim that belongs to each of its points; one in 2-D."""
    if len(rim) <= 2:
        return np.ones(len(rim))
    ahead = np.linalg.norm(np.roll(rim, -1, axis=0) - rim, axis=1)
    return np.asarray((ahead + np.roll(ahead, 1)) / 2)


def flow_through(
    arrays: Arrays,
    lumen: Lumen,
    ends: Ends,
    measured: Measured,
    times: Floats,
    meridian: Meridian | None = None,
) -> tuple[dict[str, dict[str, Any]], dict[str, float]]:
    """Add the flow of every opening to the arrays and to the table; name inlets and outlets.

    Parameters
    ----------
    arrays : dict
    lumen, ends, measured
        Of a revolved lumen those of the mirrored plane.
    times : (nt,)
    meridian : Meridian, optional
        The half plane of a revolved lumen.

    Returns
    -------
    groups : dict
        Attributes of the group of each opening.
    balance : dict
        Sum of the flows out of the domain and its s.d., m³/s.
    """
    table = arrays["/boundary/openings"].copy()
    profiles: dict[int, tuple[Floats, Profile]] = {}
    for number, opening in enumerate(ends.openings):
        row = table[number]
        points, on_rim = cap_points(arrays, row)
        shift = float(row["area_std_m2"] / max(row["perimeter_m"], 1e-30))
        profile = fit_profile(lumen, opening, measured, shift, points, meridian)
        if profile is None:
            continue
        for array in (profile.u_mean, profile.u_std):
            array[:, on_rim] = 0.0
        sure = abs(profile.q_mean) > 2.0 * profile.q_std
        row["kind"] = 0 if not sure else (INLET if profile.q_mean < 0 else OUTLET)
        row["has_flow"], row["u_max_ms"] = 1, profile.u_max
        row["q_mean_m3s"], row["q_std_m3s"] = profile.q_mean, profile.q_std
        width = 2.0 * row["radius_m"]
        row["reynolds"] = abs(profile.q_mean) / row["area_m2"] * width / measured.nu
        profiles[number] = (points, profile)
    groups: dict[str, dict[str, Any]] = {}
    for number, name in enumerate(names(table["kind"].tolist())):
        table["name"][number] = name.encode()
        if number not in profiles:
            continue
        cap, profile = profiles[number]
        group = f"/boundary/{name}"
        arrays |= {
            f"{group}/points": cap,
            f"{group}/u_mean": profile.u_mean,
            f"{group}/u_std": profile.u_std,
            f"{group}/t": times,
        }
        inner = profile.u_std[profile.u_std > 0]
        groups[group] = {
            "sigma_g": float(np.sqrt(np.mean(np.square(inner, dtype=float))))
            if inner.size
            else 0.0,
            "ell_g_m": LENGTH * float(table["radius_m"][number]),
            "m_g": 2,
            "rim": "dirichlet0",
        }
        if table["kind"][number] == OUTLET:
            planar = lumen.phi.ndim == 2 and meridian is None
            scale = traction_scale(arrays, table[table["has_flow"] != 0], measured.nu, planar)
            groups[group] |= {"g_o_mean": 0.0, "sigma_go": scale}
    arrays["/boundary/openings"] = table
    known = table["has_flow"] != 0
    balance = {
        "mass_balance": float(table["q_mean_m3s"][known].sum()),
        "mass_balance_sigma": float(np.sqrt(np.square(table["q_std_m3s"][known]).sum())),
    }
    return groups, balance


def traction_scale(
    arrays: Mapping[str, NDArray[Any]], known: NDArray[Any], nu: float, planar: bool
) -> float:
    """Return how much kinematic pressure may differ between the openings, m²/s².

    The square of the largest speed, and what the largest flow loses to friction (Poiseuille's law,
    in the plane that of a slit) all along the centreline.
    """
    points, edges = arrays["/centerline/points"], arrays["/centerline/edges"]
    radius = arrays["/centerline/radius"].astype(np.float64)[edges].mean(axis=1)
    length = np.linalg.norm(points[edges[:, 1]] - points[edges[:, 0]], axis=1)
    flow = float(np.abs(known["q_mean_m3s"]).max())
    drag = 1.5 / radius**3 if planar else 8.0 / (np.pi * radius**4)
    return float(np.square(known["u_max_ms"]).max() + nu * flow * float(length @ drag))


def names(kinds: list[int]) -> list[str]:
    """Name openings by kind; a number follows where a kind is there more than once."""
    words = {0: "opening", INLET: "inlet", OUTLET: "outlet"}
    total, found, seen = {k: kinds.count(k) for k in words}, list[str](), dict.fromkeys(words, 0)
    for kind in kinds:
        seen[kind] += 1
        alone = total[kind] == 1 and kind != 0
        found.append(words[kind] if alone else f"{words[kind]}_{seen[kind]}")
    return found


def cap_points(
    arrays: Mapping[str, NDArray[Any]], row: Any
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return the vertices of a cap in the plane of its opening, and which lie on the rim."""
    cell = "face" if "/surface/faces" in arrays else "edge"
    faces, label = arrays[f"/surface/{cell}s"], arrays[f"/surface/{cell}_label"]
    used = np.unique(faces[label == row["label"]])
    rim = np.isin(used, faces[label == WALL])
    points: Floats = arrays["/surface/vertices"][used] - row["extension_m"] * row["normal_out"]
    if cell == "edge":  # a segment has no inner vertices: nine points along it
        share = np.linspace(0.0, 1.0, 9)[:, None]
        points = points[0] + share * (points[-1] - points[0])
        rim = np.array([rim[0], *[False] * 7, rim[-1]])
    return np.asarray(points, dtype=np.float64), rim


def quality_figures(arrays: Mapping[str, NDArray[Any]], revolved: bool = False) -> dict[str, float]:
    """Compute the stored figures of merit from the stored fields.

    ``eikonal_*``: mean, maximum and rms of |‖∇φ‖ - 1| within three voxels of the wall;
    ``normal_rms_deg``: how much normals turn along themselves; ``wall_snr``: contrast across the
    wall over the noise.
    """
    phi = arrays["/geometry/phi_mean"]
    spacing = spacing_of(arrays["/grid/ijk_to_world"], phi.ndim)
    gradients, h = geometry.gradient(phi, spacing, revolved), max(spacing)
    mean, worst, rms = geometry.slope_error(gradients, np.abs(phi) < 3 * h)
    normal, image = arrays["/geometry/normal"], arrays.get("/images/magnitude")
    return {
        "eikonal_mean": mean,
        "eikonal_max": worst,
        "eikonal_rms": rms,
        "normal_rms_deg": geometry.normal_roughness_deg(phi, gradients, normal, spacing),
        "wall_snr": 0.0 if image is None else geometry.wall_contrast(image, phi, h),
    }
