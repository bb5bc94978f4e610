"""The wall as a closed oriented surface: triangles of phi = 0, or edges in two dimensions.

Where the lumen leaves the field of view, the surface is closed by planes on the faces of the box
(half a voxel outside the outermost samples, where phi goes on straight). Marching cubes after
Lewiner, Lopes, Vieira and Tavares, J. Graphics Tools 8 (2003) 1, as in scikit-image; each vertex
is then moved along its grid edge onto the root of the cubic through four samples, which is exact
to fourth order in h. Module ``relax`` makes good triangles of these.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Integers = NDArray[np.integer]

NUDGE = 1e-3  # of h: a vertex on a sample would make degenerate faces
CLOSURE, WALL = 0, 1
PAD = 2


@dataclass(frozen=True, eq=False)
class Surface:
    """A closed surface on a grid.

    Parameters
    ----------
    points : (nv, 3) float64
        Vertices in the world.
    faces : (nf, 3) or (ne, 2) int32
        Corners, counter-clockwise seen from outside; in 2-D the lumen lies on the left, seen
        against the plane's normal.
    label : (nf,) uint8
        1 = wall, 0 = closure at the box.
    """

    points: NDArray[np.float64]
    faces: NDArray[np.int32]
    label: NDArray[np.uint8]


def extract(phi: Floats, affine: Floats) -> Surface:
    """Return the closed surface of phi = 0, oriented outward in the world.

    Parameters
    ----------
    phi : (nz, ny, nx) or (ny, nx)
        Negative in the lumen, in the unit of the world; both signs must occur.
    affine : (4, 4)
        (i, j, k, 1) to the world. Left-handed ones are fine: the orientation is made there.
    """
    if phi.ndim == 3:
        affine, (phi,) = in_world_order(affine, phi)
    least = NUDGE * float(np.linalg.norm(affine[:3, : phi.ndim], axis=0).min())
    values = np.where(np.abs(phi) < least, np.where(phi < 0, -least, least), phi)
    padded = _to_the_box(values, least)
    padded = np.pad(padded, 1, constant_values=float(np.abs(phi).max()))  # outside: closed there
    raw, faces = _triangles(padded) if phi.ndim == 3 else _edges(padded)
    low, high = np.floor(raw).astype(np.int64), np.ceil(raw).astype(np.int64)
    on_edge = (high - low).sum(axis=1) == 1  # marching cubes puts a few inside a cell
    weight = np.where(on_edge, _cubic_root(padded, low, high), 0.5)
    position = np.where(on_edge[:, None], low + weight[:, None] * (high - low), raw) - PAD
    size = np.array(phi.shape)
    outside = (position <= -1.0) | (position >= size)
    closure = np.logical_or.reduce([outside[faces, a].all(axis=1) for a in range(phi.ndim)])
    points = to_world(_fold_padding(position, size), affine)
    if enclosed_volume(points, faces, affine) < 0.0:
        faces = faces[:, ::-1]
    return Surface(
        points,
        np.ascontiguousarray(faces, dtype=np.int32),
        np.where(closure, CLOSURE, WALL).astype(np.uint8),
    )


def in_world_order(affine: Floats, *fields: Floats) -> tuple[Floats, list[Floats]]:
    """Return 3-D fields [k, j, i] with their axes along world z, y, x as nearly as may be.

    So the triangles of a wall do not depend on the order in which its samples are stored.
    """
    cosine = np.abs(affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0))
    order: list[int] = []  # of the index axes i, j, k for the world axes x, y, z
    for row in cosine:
        order.append(max(set(range(3)) - set(order), key=lambda a: round(float(row[a]), 6)))
    turned = np.array(affine)
    turned[:3, :3] = affine[:3, order]
    axes = [2 - order[2 - a] for a in range(3)]
    out = [np.transpose(field, (*axes, *range(3, field.ndim))) for field in fields]
    for column in range(3):
        if turned[column, column] < 0.0:
            turned[:3, 3] += turned[:3, column] * (out[0].shape[2 - column] - 1)
            turned[:3, column] *= -1.0
            out = [np.flip(field, 2 - column) for field in out]
    return turned, out


def to_world(index: Floats, affine: Floats) -> NDArray[np.float64]:
    """Map index points (n, d) in array order to world points (n, 3)."""
    points = index[:, ::-1] @ affine[:3, : index.shape[1]].T + affine[:3, 3]
    return np.asarray(points, dtype=np.float64)


def enclosed_volume(points: Floats, faces: Integers, affine: Floats) -> float:
    """Return the signed volume in the unit of the points (2-D: the area)."""
    corner = (points - points.mean(axis=0))[faces]
    if faces.shape[1] == 2:
        normal = affine[:3, 2] / np.linalg.norm(affine[:3, 2])
        return float(0.5 * (np.cross(corner[:, 0], corner[:, 1]) @ normal).sum())
    return float(np.einsum("ij,ij->", corner[:, 0], np.cross(corner[:, 1], corner[:, 2])) / 6.0)


def area_vectors(points: Floats, faces: Integers, affine: Floats) -> Floats:
    """Return area times outward normal of each face (2-D: length times normal)."""
    corner = points[faces]
    if faces.shape[1] == 2:
        normal = affine[:3, 2] / np.linalg.norm(affine[:3, 2])
        return np.asarray(np.cross(corner[:, 1] - corner[:, 0], normal))
    return 0.5 * np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])


def directed_edges(faces: Integers) -> tuple[Integers, Integers]:
    """Return the start and the end of every directed edge of the triangles."""
    return faces.ravel(), np.roll(faces, -1, axis=1).ravel()


def is_closed(faces: Integers) -> bool:
    """Whether every directed edge is met by its reverse (2-D: a path in by a path out)."""
    if faces.shape[1] == 2:
        return bool(np.array_equal(np.sort(faces[:, 0]), np.sort(faces[:, 1])))
    start, end = (part.astype(np.int64) for part in directed_edges(faces))
    count = int(faces.max(initial=0)) + 1
    forward, backward = np.sort(start * count + end), np.sort(end * count + start)
    return bool(np.array_equal(forward, backward))


def euler_characteristic(faces: Integers) -> int:
    """Return V - E + F of the vertices in use (2-D: V - E)."""
    vertices = np.unique(faces).size
    if faces.shape[1] == 2:
        return int(vertices - len(faces))
    edges = np.unique(np.sort(np.stack(directed_edges(faces), axis=1), axis=1), axis=0)
    return int(vertices - len(edges) + len(faces))


def _triangles(padded: Floats) -> tuple[Floats, Integers]:
    from skimage.measure import marching_cubes

    vertices, faces, _, _ = marching_cubes(padded.astype(np.float32), 0.0)
    return vertices.astype(np.float64), faces


def _edges(padded: Floats) -> tuple[Floats, Integers]:
    from skimage.measure import find_contours

    vertices, edges, first = [], [], 0
    for loop in find_contours(padded.astype(np.float64), 0.0):
        ring = np.arange(first, first + len(loop) - 1)
        vertices.append(loop[:-1])
        edges.append(np.stack([ring, np.roll(ring, -1)], axis=1))
        first += len(ring)
    return np.concatenate(vertices), np.concatenate(edges)


def _to_the_box(values: Floats, least: float) -> Floats:
    """Add samples on the faces of the box, half a voxel out, by straight lines.

    The sign may change only beside a change of sign among the samples: nothing new begins there.
    """
    from scipy.ndimage import maximum_filter, minimum_filter

    last = np.pad(values, 1, mode="edge")
    beyond = np.pad(values, 1, mode="reflect", reflect_type="odd")
    inside = last < 0
    free = maximum_filter(inside, 3) != minimum_filter(inside, 3)
    half = 0.5 * (last + beyond)
    signed = np.where(inside, np.minimum(half, -least), np.maximum(half, least))
    size = np.maximum(np.abs(half), least)
    return np.where(free, np.where(half < 0, -size, size), signed)


def _cubic_root(padded: Floats, low: Integers, high: Integers) -> Floats:
    """Weight of the upper sample where the cubic through four samples in line is zero.

    Linear where one of the four belongs to the padding.
    """
    step = high - low
    inner = np.array(padded.shape) - PAD
    first, last = low - step, high + step
    whole = ((first >= PAD) & (last < inner)).all(axis=1)
    low_value, high_value = padded[tuple(low.T)], padded[tuple(high.T)]
    before = padded[tuple(np.maximum(first, 0).T)]
    after = padded[tuple(np.minimum(last, np.array(padded.shape) - 1).T)]
    before = np.where(whole, before, 2 * low_value - high_value)
    after = np.where(whole, after, 2 * high_value - low_value)
    left, right = np.zeros(len(low)), np.ones(len(low))
    for _ in range(40):  # bisection: the cubic changes sign in [0, 1] but need not be monotone
        t = 0.5 * (left + right)
        value = (
            -before * t * (t - 1) * (t - 2) / 6
            + low_value * (t + 1) * (t - 1) * (t - 2) / 2
            - high_value * (t + 1) * t * (t - 2) / 2
            + after * (t + 1) * t * (t - 1) / 6
        )
        same = (value < 0) == (low_value < 0)
        left, right = np.where(same, t, left), np.where(same, right, t)
    return 0.5 * (left + right)


def _fold_padding(position: Floats, size: Integers) -> Floats:
    """Put the repeated samples on the face of the box and everything beyond into its plane."""
    last = size - 1.0
    index = np.where(position < 0, np.maximum(position / 2, -0.5), position)
    return np.where(position > last, np.minimum(last + (position - last) / 2, last + 0.5), index)
