"""The wall cut flat at the openings and closed by caps. Lengths are in metres."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .openings import FIRST_LABEL, Ends, Opening
from .section import Floats, Lumen
from .surface import WALL, Surface, area_vectors, directed_edges

Integers = NDArray[Any]

SNAP = 0.25  # of the smallest spacing: nearer vertices slide along the wall into the plane
LONGEST_STEP = 0.25  # of the smallest spacing: of a new vertex towards phi = 0
CAP_TOLERANCE = 0.02  # of an opening's area, by which that of its cap may differ
APART = 0.6  # of an edge: inner points of a cap keep this distance from its rim


@dataclass(frozen=True, eq=False)
class Wall(Surface):
    """A closed surface with its flow extensions.

    Parameters
    ----------
    source : (nv, 3) float64
        Where fields on the grid are to be read for a vertex: itself, or for a flow extension the
        point of the rim that it continues.
    """

    source: NDArray[np.float64]


def cut_wall(lumen: Lumen, surface: Surface, ends: Ends) -> tuple[Surface, tuple[int, ...]]:
    """Clip a closed surface at every opening and cap it there.

    Parameters
    ----------
    lumen : Lumen
    surface : Surface
        Closed, of the whole lumen.
    ends : Ends

    Returns
    -------
    Surface
        The labels 2, 3, … are those of the openings.
    failed : tuple of int
        Openings that could not be cut to one closed rim; the surface is whole there.
    """
    inner = _inner_voxels(lumen, surface.points)
    wall, failed = surface, []
    for number, opening in enumerate(ends.openings):
        label = FIRST_LABEL + number
        beyond = _near(lumen, ends.owner == label)
        allowed = np.ones(len(wall.points), dtype=bool)
        allowed[: len(inner)] = beyond.ravel()[inner]
        allowed[len(inner) :] = False
        clipped = _clipped(lumen, wall, opening, allowed)
        closed = None if clipped is None else _capped(clipped, lumen, opening, label)
        if closed is None:
            failed.append(number)
        else:
            wall = closed
    return _compact(wall), tuple(failed)


def cap_areas(wall: Surface, affine: Floats, count: int) -> Floats:
    """Return the area of the cap of each opening, m² (2-D: m)."""
    areas = area_vectors(wall.points, wall.faces, affine)
    caps = (areas[wall.label == FIRST_LABEL + n].sum(axis=0) for n in range(count))
    return np.array([float(np.linalg.norm(total)) for total in caps])


def _inner_voxels(lumen: Lumen, points: Floats) -> Integers:
    """Return the flat index of the voxel a little inside the wall at each vertex."""
    inside = points - 0.5 * min(lumen.spacing) * _slopes(lumen, points)
    index = np.clip(np.rint(lumen.index(inside)).astype(int), 0, np.array(lumen.phi.shape) - 1)
    return np.asarray(np.ravel_multi_index(tuple(index.T), lumen.phi.shape))


def _near(lumen: Lumen, removed: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return what is cut off and two voxels around it."""
    from scipy import ndimage

    boxes = ndimage.find_objects(removed.astype(np.int8))
    result = np.zeros_like(removed)
    for found in boxes:
        box = tuple(slice(max(s.start - 3, 0), s.stop + 3) for s in found)
        touching = np.ones((3,) * removed.ndim, dtype=bool)
        result[box] = ndimage.binary_dilation(removed[box], touching, iterations=2)
    return result


def _clipped(
    lumen: Lumen, wall: Surface, opening: Opening, allowed: NDArray[np.bool_]
) -> Surface | None:
    """Remove what lies beyond the plane; None if nothing does."""
    points, h = wall.points.copy(), min(lumen.spacing)
    height = np.where(allowed, opening.height(points), -np.inf)
    close = np.flatnonzero(np.abs(height) < SNAP * h)
    points[close] = _slid(lumen, points[close], height[close], opening)
    height[close] = 0.0
    sign = np.sign(height)
    of_faces = sign[wall.faces]
    keep = of_faces.max(axis=1) <= 0
    keep &= ~(of_faces == 0).all(axis=1)
    mixed = (of_faces.max(axis=1) > 0) & (of_faces.min(axis=1) < 0)
    if not (of_faces > 0).any():
        return None
    made: dict[tuple[int, int], int] = {}
    new_points: list[Floats] = []

    def crossing(a: int, b: int) -> int:
        key = (min(a, b), max(a, b))
        if key not in made:
            t = height[a] / (height[a] - height[b])
            made[key] = len(points) + len(new_points)
            new_points.append(points[a] + t * (points[b] - points[a]))
        return made[key]

    faces, label = [wall.faces[keep]], [wall.label[keep]]
    for face, value in zip(wall.faces[mixed], wall.label[mixed], strict=True):
        kept = _polygon_below(face.tolist(), sign, crossing)
        parts = np.array(
            [[kept[0], *kept[n : n + face.size - 1]] for n in range(1, len(kept) - face.size + 2)]
        )
        faces.append(parts.astype(np.int32))
        label.append(np.full(len(parts), value))
    if not new_points:
        return Surface(points, np.concatenate(faces), np.concatenate(label))
    points = np.concatenate([points, _on_the_wall(lumen, np.array(new_points), opening)])
    return Surface(points, np.concatenate(faces), np.concatenate(label).astype(np.uint8))


def _polygon_below(face: list[int], sign: Floats, crossing: Callable[[int, int], int]) -> list[int]:
    """Return the corners of the part of a face below the plane, in order."""
    corners = []
    closed = len(face) > 2
    for n, a in enumerate(face):
        if sign[a] <= 0:
            corners.append(a)
        if n + 1 < len(face) or closed:
            b = face[(n + 1) % len(face)]
            if sign[a] * sign[b] < 0:
                corners.append(crossing(a, b))
    return corners


def _slid(lumen: Lumen, points: Floats, height: Floats, opening: Opening) -> Floats:
    """Move points into the plane along the wall."""
    if not len(points):
        return points
    normals = _slopes(lumen, points)
    along = opening.normal - (normals @ opening.normal)[:, None] * normals
    pace = along @ opening.normal
    steep = pace < 0.3  # the wall lies nearly in the plane: go straight
    along[steep], pace[steep] = opening.normal, 1.0
    return np.asarray(points - (height / pace)[:, None] * along)


def _on_the_wall(lumen: Lumen, points: Floats, opening: Opening) -> Floats:
    """Move points of the plane within it onto phi = 0, by at most a quarter of a voxel."""
    normals = _slopes(lumen, points)
    inside = normals - (normals @ opening.normal)[:, None] * opening.normal
    pace = np.square(inside).sum(axis=1)
    value = lumen.at(points, order=3)
    limit = LONGEST_STEP * min(lumen.spacing)
    step = np.clip(value / np.maximum(pace, 0.3), -limit, limit)
    return np.asarray(points - step[:, None] * inside)


def _slopes(lumen: Lumen, points: Floats) -> Floats:
    """Return unit normals of the level set at world points."""
    step = 0.5 * min(lumen.spacing)
    columns = lumen.affine[:3, : lumen.ndim] / np.array(lumen.spacing)[::-1]
    slope = np.zeros_like(points)
    for column in columns.T:
        rise = lumen.at(points + step * column) - lumen.at(points - step * column)
        slope += rise[:, None] * column
    return np.asarray(slope / np.maximum(np.linalg.norm(slope, axis=1, keepdims=True), 1e-30))


def _capped(wall: Surface, lumen: Lumen, opening: Opening, label: int) -> Surface | None:
    """Close the one open rim by a flat cap."""
    loop = _open_rim(wall.faces)
    if loop is None or np.abs(opening.height(wall.points[loop])).max() > 1e-6 * lumen.h:
        return None
    inner, cap = _flat_mesh(wall.points[loop], opening, loop, len(wall.points))
    return Surface(
        np.concatenate([wall.points, inner]),
        np.concatenate([wall.faces, cap]).astype(np.int32),
        np.concatenate([wall.label, np.full(len(cap), label)]).astype(np.uint8),
    )


def extended(surface: Surface, normals: Floats, length: float, step: float) -> Wall:
    """Move every cap out and join it to its rim by a straight wall that keeps the cross-section.

    Parameters
    ----------
    surface : Surface
    normals : (n, 3)
        Out of each opening.
    length : float
        How far, m; nothing is done for 0.
    step : float
        Largest height of a layer of the new wall, m.
    """
    wall = Wall(surface.points, surface.faces, surface.label, surface.points)
    for number, normal in enumerate(normals if length > 0.0 else ()):
        cap = wall.label == FIRST_LABEL + number
        loop = _open_rim(wall.faces[~cap])
        assert loop is not None  # the rim of one cap
        layers, edge = int(np.ceil(length / step)), loop
        points, faces = wall.points.copy(), wall.faces.copy()
        points[np.setdiff1d(faces[cap], loop)] += length * normal
        rims, strips = [points], [faces]
        for layer in range(1, layers + 1):
            ring = len(points) + (layer - 1) * len(loop) + np.arange(len(loop))
            rims.append(points[loop] + layer / layers * length * normal)
            strips.append(_strip(edge, ring).astype(np.int32))
            edge = ring
        moved = np.arange(len(points))
        moved[loop] = edge
        faces[cap] = moved[faces[cap]]
        more = sum(map(len, strips)) - len(faces)
        wall = Wall(
            np.concatenate(rims),
            np.concatenate(strips),
            np.concatenate([wall.label, np.full(more, WALL, dtype=np.uint8)]),
            np.concatenate([wall.source, np.tile(wall.source[loop], (layers, 1))]),
        )
    return wall


def _open_rim(faces: Integers) -> Integers | None:
    """Return the corners of the one open rim, in the order in which a cap runs around it."""
    if faces.shape[1] == 2:
        ends = np.setdiff1d(faces[:, 1], faces[:, 0]), np.setdiff1d(faces[:, 0], faces[:, 1])
        return np.array([ends[0][0], ends[1][0]]) if len(ends[0]) == len(ends[1]) == 1 else None
    start, end = (part.astype(np.int64) for part in directed_edges(faces))
    count = int(faces.max()) + 1
    lonely = ~np.isin(start * count + end, end * count + start)
    following = dict(zip(end[lonely].tolist(), start[lonely].tolist(), strict=True))
    if len(following) != np.count_nonzero(lonely) or len(following) < 3:
        return None
    first = next(iter(following))
    loop = [first]
    while following[loop[-1]] != first:
        loop.append(following[loop[-1]])
        if len(loop) > len(following):
            return None
    return np.array(loop) if len(loop) == len(following) else None


def _strip(below: Integers, above: Integers) -> Integers:
    """Join two rings (in 2-D pairs of ends) by faces that continue the wall."""
    if len(below) == 2:
        return np.array([[below[0], above[0]], [above[1], below[1]]])
    b, a = np.roll(below, -1), np.roll(above, -1)
    first = np.stack([below, b, a], axis=1)
    return np.concatenate([first, np.stack([below, a, above], axis=1)])


def _flat_mesh(
    rim: Floats, opening: Opening, edge: Integers, first: int
) -> tuple[Floats, Integers]:
    """Return inner points and faces of a cap whose rim has the given corners."""
    if len(rim) == 2:
        return np.zeros((0, 3)), edge[None].astype(np.int32)
    axes = opening.section.axes
    flat = (rim - opening.centre) @ axes.T
    if np.linalg.det(np.vstack([axes, opening.normal])) < 0:
        axes, flat = axes[::-1], flat[:, ::-1]
    inner = _lattice(flat)
    triangles = _delaunay(flat, inner)
    if triangles is None:  # a rim that Delaunay's triangles do not follow: a fan
        inner = flat.mean(axis=0)[None]
        ring = np.arange(len(flat))
        triangles = np.stack([ring, np.roll(ring, -1), np.full(len(flat), len(flat))], axis=1)
    names = np.concatenate([edge, first + np.arange(len(inner))])
    return opening.centre + inner @ axes, names[triangles]


def _lattice(flat: Floats) -> Floats:
    """Return points of a triangular lattice inside a polygon, away from its rim."""
    from matplotlib.path import Path
    from scipy.spatial import cKDTree

    following = np.roll(flat, -1, axis=0)
    side = float(np.median(np.linalg.norm(following - flat, axis=1)))
    low, high = flat.min(axis=0), flat.max(axis=0)
    rows = np.arange(low[1], high[1], side * np.sqrt(0.75))
    grid = [
        np.stack([np.arange(low[0] + side / 2 * (n % 2), high[0], side), 0 * _ + y], axis=1)
        for n, y in enumerate(rows)
        for _ in [np.arange(low[0] + side / 2 * (n % 2), high[0], side)]
    ]
    points = np.concatenate([*grid, np.zeros((0, 2))])
    points = points[Path(flat).contains_points(points)]
    middles = np.concatenate([flat, (flat + following) / 2])
    return np.asarray(points[cKDTree(middles).query(points)[0] > APART * side])


def _delaunay(flat: Floats, inner: Floats) -> Integers | None:
    """Triangulate a polygon with inner points; None if an edge of its rim is missing."""
    from matplotlib.path import Path
    from scipy.spatial import Delaunay, QhullError

    points = np.concatenate([flat, inner])
    try:
        triangles = Delaunay(points).simplices
    except QhullError:
        return None
    triangles = triangles[Path(flat).contains_points(points[triangles].mean(axis=1))]
    a, b, c = (points[triangles[:, n]] for n in range(3))
    twice = (b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0]
    triangles = np.where(twice[:, None] < 0, triangles[:, ::-1], triangles)
    start, end = (part.astype(np.int64) for part in directed_edges(triangles))
    lonely = ~np.isin(start * len(points) + end, end * len(points) + start)
    ring = np.arange(len(flat))
    expected = set(zip(ring.tolist(), np.roll(ring, -1).tolist(), strict=True))
    found = set(zip(start[lonely].tolist(), end[lonely].tolist(), strict=True))
    return triangles if found == expected else None


def _compact(wall: Surface) -> Surface:
    """Drop vertices that no face uses."""
    used, where = np.unique(wall.faces, return_inverse=True)
    faces = where.reshape(wall.faces.shape).astype(np.int32)
    return Surface(wall.points[used], np.ascontiguousarray(faces), wall.label)
