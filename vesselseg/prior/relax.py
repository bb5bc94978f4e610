"""Triangles that a mesher likes, on the same wall: vertices slide along it, nothing shrinks.

Marching cubes leaves slivers, and a triangle with its corners on a curved wall cuts inside it.
Here vertices first slide towards the middle of the triangles about them, within the wall, a plane
or the rim between the two (tangential smoothing as in Botsch & Kobbelt, Symp. Geometry Processing
2004, section 3), each step followed by Newton's method back onto phi = 0. Then they move out by
the mean sagitta of these triangles, so that the surface lies on phi = 0 in the mean.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Integers = NDArray[np.integer]
Flags = NDArray[np.bool_]

WALL = 1
STEPS = 10
LONGEST = 0.3  # of the smallest voxel side: no step goes farther
EVENING = 0.75  # of areas: less makes better triangles, and small balls lose more volume
UNDONE = 3  # times that a step is taken back where triangles would turn over
OFF_WALL = 0.5  # of it: a vertex this far from phi = 0 is not of the wall that phi knows
LEANING = 0.3  # the sine of the angle below which a wall and a plane have no rim to slide along
DEEPEST = 0.045  # of the smallest voxel side: largest sagitta; at a crease it means nothing
TINY = 1e-30
SAME = 1e-6  # two planes whose normals differ by less are one
ON_BOX = 1e-6  # voxels: where the box closes a lumen, the vertices lie exactly on its face


class Frame:
    """The distance, its unit normals in the world, and where the samples lie.

    Parameters
    ----------
    phi : (nz, ny, nx) or (ny, nx)
    normal : (..., 3)
    affine : (4, 4)
        (i, j, k, 1) to the world.
    """

    def __init__(self, phi: Floats, normal: Floats, affine: Floats) -> None:
        from scipy.ndimage import spline_filter

        self.spline: Floats = spline_filter(phi.astype(np.float64), order=3, mode="nearest")
        self.normal = normal
        self.affine = affine
        self.h = float(np.linalg.norm(affine[:3, : phi.ndim], axis=0).min())

    def index(self, points: Floats) -> Floats:
        """Map world points (n, 3) to index points in array order."""
        ijk = (points - self.affine[:3, 3]) @ np.linalg.inv(self.affine[:3, :3]).T
        return np.asarray(ijk[:, : self.spline.ndim][:, ::-1])

    def distance(self, points: Floats) -> Floats:
        """Return phi at world points, by cubic splines; beyond the samples it goes on straight."""
        index = self.index(points)
        beyond = index - _clamped(index, self.spline)
        world = beyond[:, ::-1] @ self.affine[:3, : index.shape[1]].T
        straight: Floats = (world * self.direction(points)).sum(axis=1)
        return _at(self.spline, index, 3) + straight

    def direction(self, points: Floats) -> Floats:
        """Return unit normals at world points, zero where phi has none."""
        index = self.index(points)
        return _unit(np.stack([_at(part, index) for part in np.moveaxis(self.normal, -1, 0)], 1))

    def sample(self, field: Floats, points: Floats) -> Floats:
        """Interpolate another field on the same samples at world points, linearly."""
        return _at(field, self.index(points))


@dataclass(frozen=True, eq=False)
class Freedom:
    """What each vertex may do.

    Parameters
    ----------
    on_wall : (nv,) bool
        Belongs on phi = 0.
    held : (nv,) bool
        Stays where it is.
    planes : two (nv, 3)
        Orthonormal normals of the planes a vertex must stay in; zero where there are fewer.
    rim : (n, 2)
        Edges between the wall and a plane, both ways.
    outward : (nf, 3)
        Normals of the planes of the faces; zero on the wall.
    """

    on_wall: Flags
    held: Flags
    planes: tuple[Floats, Floats]
    rim: Integers
    outward: Floats

    def allowed(self, vectors: Floats) -> Floats:
        """Return the part of vectors that keeps each vertex in its planes."""
        return _within(_within(vectors, self.planes[0]), self.planes[1])

    def slope(self, normal: Floats) -> tuple[Floats, Floats]:
        """Return the direction in which phi grows fastest where a vertex may go, and how fast."""
        steepest = self.allowed(normal)
        speed = np.linalg.norm(steepest, axis=1, keepdims=True)
        return steepest / np.maximum(speed, LEANING), np.maximum(speed, LEANING)


def relaxed(points: Floats, faces: Integers, label: Integers, frame: Frame) -> NDArray[np.float64]:
    """Return better places for the vertices of a closed surface; its faces stay what they are.

    Parameters
    ----------
    points : (nv, 3)
        Vertices in the world.
    faces : (nf, 3) or (ne, 2)
        Corners, oriented outward.
    label : (nf,)
        1 = wall; faces of any other label lie in planes, which keep their vertices.
    frame : Frame
    """
    free = _freedom(points, faces, label, frame)
    found = np.array(points, dtype=np.float64)
    outward = np.where(
        (label == WALL)[:, None], frame.direction(found)[faces].sum(axis=1), free.outward
    )

    def move(step: Floats) -> None:
        length = np.linalg.norm(step, axis=1, keepdims=True)
        share = np.minimum(1.0, LONGEST * frame.h / np.maximum(length, TINY))
        before = found.copy()
        found[~free.held] += (share * step)[~free.held]
        right = _looks(before, faces, outward) >= 0.0
        for _ in range(UNDONE):
            turned = right & (_looks(found, faces, outward) < 0.0)
            found[faces[turned]] = before[faces[turned]]

    def normals() -> Floats:
        return np.where(free.on_wall[:, None], frame.direction(found), 0.0)

    for _ in range(STEPS):
        way, _ = free.slope(normals())
        move(_within(free.allowed(_middle(found, faces, free.rim) - found), way))
        way, speed = free.slope(normals())
        away = np.where(free.on_wall, frame.distance(found), 0.0)
        move(-away[:, None] * way / speed)
    normal, most = normals(), DEEPEST * frame.h
    out = np.clip(_sagitta(found, faces[label == WALL], normal), -most, most)
    move(out[:, None] * free.slope(normal)[0])
    return found


def _freedom(points: Floats, faces: Integers, label: Integers, frame: Frame) -> Freedom:
    """Sort the vertices by the patches, wall and planes, whose faces meet there."""
    patch, count = _patches(faces, label, frame.index(points)), len(points)
    planes = np.zeros((int(patch.max()) + 1, 3))
    if faces.shape[1] == 3:
        np.add.at(planes, patch, _area_vectors(points[faces]))
    planes[0] = 0.0
    pairs = np.unique(np.stack([faces.ravel(), np.repeat(patch, faces.shape[1])], axis=1), axis=0)
    meeting = np.bincount(pairs[:, 0], minlength=count)
    on_wall = np.zeros(count, dtype=bool)
    on_wall[pairs[pairs[:, 1] == 0, 0]] = True
    cut = pairs[pairs[:, 1] > 0]
    first, second = np.zeros((count, 3)), np.zeros((count, 3))
    first[cut[:, 0]] = _unit(planes)[cut[:, 1]]  # the last one of a vertex
    second[cut[::-1, 0]] = _unit(planes)[cut[::-1, 1]]  # the first one, nothing more if the same
    other = _within(second, first)
    other = np.where(np.linalg.norm(other, axis=1, keepdims=True) > SAME, _unit(other), 0.0)
    slides = on_wall & (meeting == 2) & (np.bincount(faces.ravel(), minlength=count) > 2)
    rim = _borders(faces, patch) if faces.shape[1] == 3 else np.zeros((0, 2), dtype=np.int64)
    rim = rim[slides[rim[:, 0]]]
    slides &= np.bincount(rim[:, 0], minlength=count) == 2
    off = on_wall & (np.abs(frame.distance(points)) > OFF_WALL * frame.h)
    corner_of_box = on_wall & (meeting == 3)  # one way is left: onto phi = 0
    held = off | ~((meeting == 1) | slides | corner_of_box)
    return Freedom(on_wall, held, (first, other), rim, _unit(planes)[patch])


def _patches(faces: Integers, label: Integers, index: Floats) -> Integers:
    """Return 0 for the wall, the label of a cut, and a number for each face of the box."""
    patch = np.where(label == WALL, 0, label).astype(np.int64)
    corner = index[faces]
    for axis in range(index.shape[1]):
        for side in range(2):
            end = corner[..., axis].max() if side else -0.5
            on_face = (np.abs(corner[..., axis] - end) < ON_BOX).all(axis=1) & (label == 0)
            patch[on_face] = 256 + 2 * axis + side
    return patch


def _borders(faces: Integers, patch: Integers) -> Integers:
    """Return the edges, both ways, between faces of different patches."""
    start, end = faces.ravel().astype(np.int64), np.roll(faces, -1, axis=1).ravel()
    key = np.minimum(start, end) * (int(faces.max()) + 1) + np.maximum(start, end)
    order = np.argsort(key, kind="stable").reshape(-1, 2)  # closed: every edge comes twice
    owner = np.repeat(patch, 3)[order]
    edge = order[owner[:, 0] != owner[:, 1]].ravel()
    return np.stack([start[edge], end[edge]], axis=1)


def _middle(points: Floats, faces: Integers, rim: Integers) -> Floats:
    """Return the mean of the faces about each vertex; on a rim, of its two neighbours.

    By a power of their area less than one: by area itself those of oblong voxels stay oblong.
    """
    count, corner = len(points), points[faces]
    middle = _mean_at(faces, corner.mean(axis=1), _size(corner) ** EVENING, count)
    beside = np.unique(rim[:, 0])
    middle[beside] = _mean_at(rim[:, :1], points[rim[:, 1]], np.ones(len(rim)), count)[beside]
    return middle


def _looks(points: Floats, faces: Integers, outward: Floats) -> Floats:
    """Return how much of each triangle looks outward; of an edge nothing is said."""
    if faces.shape[1] == 2:
        return np.zeros(len(faces))
    return np.asarray((_area_vectors(points[faces]) * outward).sum(axis=1))


def _area_vectors(corner: Floats) -> Floats:
    return np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])


def _mean_at(faces: Integers, values: Floats, weight: Floats, count: int) -> Floats:
    """Average values (n, ...) of faces over those about each vertex; zero where there is none."""
    corners, every = faces.ravel(), np.repeat(weight, faces.shape[1])
    total = np.bincount(corners, every, count)
    parts = [
        np.bincount(corners, every * np.repeat(part, faces.shape[1]), count)
        for part in np.atleast_2d(values.T)
    ]
    mean = np.stack(parts, axis=1) / np.maximum(total, TINY)[:, None]
    return mean if values.ndim == 2 else mean[:, 0]


def _sagitta(points: Floats, faces: Integers, normal: Floats) -> Floats:
    """Return how far, in the mean, the faces about each vertex of the wall lie within it.

    An edge e whose end normals differ by Δn bulges by e·Δn/8 at its middle. The mean over a
    triangle is that of the middles of its edges, over an edge two thirds of its middle.
    """
    depth = np.zeros(len(faces))
    for a in range(faces.shape[1]):
        first, second = faces[:, a], faces[:, (a + 1) % faces.shape[1]]
        bulge = ((points[second] - points[first]) * (normal[second] - normal[first])).sum(1) / 8.0
        depth += bulge / 3.0
    return _mean_at(faces, depth, _size(points[faces]), len(points))


def _size(corner: Floats) -> Floats:
    """Return the area of triangles (times two), or the length of edges, by their corners."""
    extent = _area_vectors(corner) if corner.shape[1] == 3 else corner[:, 1] - corner[:, 0]
    return np.asarray(np.linalg.norm(extent, axis=1))


def _within(vectors: Floats, normal: Floats) -> Floats:
    """Remove the part along unit normals (or nothing, where they vanish)."""
    return np.asarray(vectors - (vectors * normal).sum(axis=1, keepdims=True) * normal)


def _unit(vectors: Floats) -> Floats:
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(length, TINY))


def _at(field: Floats, index: Floats, order: int = 1) -> Floats:
    """Interpolate at index points; the field is neither copied nor filtered."""
    from scipy.ndimage import map_coordinates

    inside = _clamped(index, field).T
    options = {"order": order, "mode": "nearest", "prefilter": False, "output": np.float64}
    return np.asarray(map_coordinates(field, inside, **options))


def _clamped(index: Floats, field: Floats) -> Floats:
    return np.clip(index, 0.0, np.array(field.shape) - 1.0)
