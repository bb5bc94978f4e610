"""What a lumen that is revolved about an axis has, from its half plane and its mirrored plane.

Lengths are in metres. The boundary of the half plane is the wall and the caps; edges on the axis,
with the label of the box's closure, make closed polygons of it. A measure of the revolved body is
that of the half plane with the weight 2πr (Pappus).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..meridian import Meridian, mirrored, mirrored_vectors, whole_affine
from .centreline import Centreline
from .openings import Ends, Opening, crosses, remeasured, reordered
from .schema import find
from .section import Floats
from .surface import CLOSURE, WALL, area_vectors, is_closed

Arrays = dict[str, NDArray[Any]]

ON_AXIS = 1e-9  # of the surface's extent
CLOSEST = 0.25  # samples: points of the axis keep this distance from an opening


def unfolded(arrays: Mapping[str, NDArray[Any]], affine: Floats) -> tuple[Arrays, Floats]:
    """Return every field on the mirrored, whole plane, and the affine of that plane."""
    meridian, found = Meridian.of(affine), Arrays()
    for path, array in arrays.items():
        entry = find(path)
        axes = entry.axes if entry else ()
        if "grid" in axes:
            vectors = axes[-1] == "3"
            fold = (
                mirrored_vectors(array, meridian)
                if vectors
                else mirrored(array, axes.index("grid"))
            )
            found[path] = fold.astype(array.dtype)
    return found, whole_affine(affine, len(arrays["/geometry/phi_mean"]))


# --- openings ---------------------------------------------------------------------------------


def symmetric(ends: Ends, lumen: Any, meridian: Meridian) -> Ends:
    """Return the openings of a mirrored lumen that the half plane has.

    Those on the axis are put exactly across it; of a pair beside it the one where r > 0 stays.
    """
    kept = [n for n, o in enumerate(ends.openings) if crosses(o, meridian) or _beside(o, meridian)]
    found = reordered(ends, kept)
    straight = []
    for opening in found.openings:
        if crosses(opening, meridian):
            normal = np.copysign(1.0, opening.normal @ meridian.along) * meridian.along
            again = remeasured(lumen, opening, meridian.on_axis(opening.centre), normal)
            straight.append(again or opening)
        else:
            straight.append(opening)
    return replace(found, openings=tuple(straight))


def ring(opening: Opening, meridian: Meridian) -> Opening:
    """Return the disc or ring that an opening of the mirrored lumen sweeps."""
    reach = np.abs(meridian.radius(opening.rim))
    perimeter = 2.0 * np.pi * float(reach.sum())
    if not crosses(opening, meridian):
        area = np.pi * float(reach.sum()) * opening.area  # 2π r̄ times the width
        radius = float(np.sqrt(area / np.pi))
        return replace(opening, area=area, perimeter=perimeter, radius=radius)
    outer = int(np.argmax(meridian.radius(opening.rim)))
    radius = float(reach[outer])
    return replace(
        opening,
        centre=meridian.on_axis(opening.centre),
        rim=opening.rim[outer][None],
        area=np.pi * radius**2,
        perimeter=2.0 * np.pi * radius,
        radius=radius,
    )


def _beside(opening: Opening, meridian: Meridian) -> bool:
    return bool(meridian.radius(opening.centre) > 0.0)


# --- surface ----------------------------------------------------------------------------------


def ring_vectors(points: Floats, edges: NDArray[Any], affine: Floats) -> Floats:
    """Return what edges sweep times their outward normals (ne, 3), m²."""
    reach = np.abs(Meridian.of(affine).radius(points))[edges]
    vectors = area_vectors(points, edges, affine)
    return np.asarray(np.pi * reach.sum(axis=1, keepdims=True) * vectors)


def ring_volume(points: Floats, edges: NDArray[Any], affine: Floats) -> float:
    """Return the volume that a closed polygon of the half plane sweeps, m³: ∮ π r² n_r dl."""
    meridian = Meridian.of(affine)
    a, b = meridian.radius(points)[edges].T
    across = area_vectors(points, edges, affine) @ meridian.outward
    return float(np.sum(np.pi / 3.0 * (a * a + a * b + b * b) * across))


def on_axis(points: Floats, edges: NDArray[Any], meridian: Meridian) -> NDArray[np.bool_]:
    """Tell which edges lie on the axis: they bound nothing."""
    scale = float(np.ptp(points, axis=0).max())
    return np.asarray((np.abs(meridian.radius(points))[edges] < ON_AXIS * scale).all(axis=1))


def folded_surface(
    wall: Mapping[str, NDArray[Any]], affine: Floats
) -> tuple[Arrays, dict[str, Any]]:
    """Return the half of a mirrored wall where r > 0, closed along the axis.

    Parameters
    ----------
    wall : mapping
        The datasets of ``/surface`` on the whole plane.
    affine : (4, 4)
        Of the half plane.

    Returns
    -------
    datasets : dict
        Of the same names.
    attributes : dict
        Of ``/surface``: measures of the surface that is swept.
    """
    meridian = Meridian.of(affine)
    points, edges = wall["/surface/vertices"], wall["/surface/edges"]
    label = wall["/surface/edge_label"]
    reach = meridian.radius(points)
    above = (reach > 0.0)[edges]
    crossing = above.any(axis=1) & ~above.all(axis=1)
    a, b = edges[crossing].T
    share = (reach[a] / (reach[a] - reach[b]))[:, None]
    fresh = meridian.on_axis(points[a] + share * (points[b] - points[a]))
    number = len(points) + np.arange(len(fresh))
    halves = np.where(above[crossing], edges[crossing], number[:, None])
    leaving = above[crossing][:, 0]
    order = np.argsort((fresh - meridian.origin) @ meridian.along).reshape(-1, 2)
    along = np.where(leaving[order[:, :1]], order, order[:, ::-1])
    faces = np.concatenate([edges[above.all(axis=1)], halves, number[along]])
    labels = [label[above.all(axis=1)], label[crossing], np.full(len(along), CLOSURE)]
    way = np.sign(area_vectors(points, edges[crossing], affine) @ meridian.along)
    made = {
        "vertices": fresh,
        "vertex_normal": way[:, None] * meridian.along,
        "vertex_std": _between(wall["/surface/vertex_std"], a, b, share[:, 0]),
        "vertex_curvature": _between(wall["/surface/vertex_curvature"], a, b, share[:, 0])
        * (label[crossing] == WALL),
    }
    used, where = np.unique(faces, return_inverse=True)
    datasets: Arrays = {
        f"/surface/{name}": _joined(wall[f"/surface/{name}"], more)[used]
        for name, more in made.items()
    }
    faces = where.reshape(faces.shape).astype(np.int32)
    datasets["/surface/edges"] = faces
    datasets["/surface/edge_label"] = np.concatenate(labels).astype(np.uint8)
    corners = datasets["/surface/vertices"]
    attributes = {
        "watertight": int(is_closed(faces)),
        "euler": 2 * len(along),  # what touches the axis sweeps spheres, all else tori
        "volume_m3": ring_volume(corners, faces, affine),
        "area_m2": float(np.linalg.norm(ring_vectors(corners, faces, affine), axis=1).sum()),
    }
    return datasets, attributes


def _joined(old: NDArray[Any], more: Floats) -> NDArray[Any]:
    return np.concatenate([old, more.astype(old.dtype)])


def _between(values: Floats, a: NDArray[Any], b: NDArray[Any], share: Floats) -> Floats:
    return np.asarray(values[a] + share * (values[b] - values[a]))


# --- centreline -------------------------------------------------------------------------------


def axis_line(
    phi: Floats, domain: NDArray[Any], openings: tuple[Opening, ...], affine: Floats
) -> Centreline:
    """Return the axis where the flow domain holds it, up to the openings across it.

    The radius is that of the wall around it.
    """
    meridian = Meridian.of(affine)
    step = float(np.linalg.norm(affine[:3, 0]))
    inside = np.append(domain[0] != 0, False)
    starts, ends = (np.flatnonzero(d) for d in (inside & ~np.roll(inside, 1),
                                                inside & ~np.roll(inside, -1)))  # fmt: skip
    height, radius, edges, branch = list[float](), list[float](), [], []
    for number, (start, end) in enumerate(zip(starts, ends, strict=True)):
        own = {step * i: _reach(phi[:, i], affine) for i in range(start, end + 1)}
        for opening in openings:
            at = float((opening.centre - meridian.origin) @ meridian.along)
            if (start - 1.0) * step <= at <= (end + 1.0) * step:
                own = {z: r for z, r in own.items() if abs(z - at) > CLOSEST * step}
                own[at] = opening.radius
        links = len(height) + np.arange(len(own) - 1)
        height += sorted(own)
        radius += [own[z] for z in sorted(own)]
        edges.append(np.stack([links, links + 1], axis=1))
        branch.append(np.full(len(links), number))
    points = meridian.origin + np.array(height)[:, None] * meridian.along
    return Centreline(
        points.reshape(-1, 3),
        np.array(radius),
        np.concatenate([np.zeros((0, 2), dtype=np.int64), *edges]),
        np.concatenate([np.zeros(0, dtype=np.int64), *branch]),
    )


def _reach(column: Floats, affine: Floats) -> float:
    """Distance from the axis at which phi first changes its sign along a row of samples, m."""
    step = float(np.linalg.norm(affine[:3, 1]))
    outside = np.flatnonzero(column >= 0)
    if not len(outside):
        return step * len(column)
    j = int(outside[0])
    below, above = float(column[j - 1]), float(column[j])
    return step * (j - 0.5 + below / (below - above))
