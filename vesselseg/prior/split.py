"""Triangles small enough for their wall: where chords cut deep into a lumen, edges are halved.

On a lumen a few voxels wide the triangles of the samples lie so far inside the wall that moving
their corners out cannot make up for it. An edge whose middle lies too deep gets a vertex there, on
phi = 0. A triangle with two such edges is quartered, one with a single one halved: red and green
refinement after Bank, Sherman and Weiser, Scientific Computing (IMACS, 1983) 3.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .relax import Flags, Frame, Integers
from .surface import WALL, Surface

TOO_DEEP = 0.1  # of the smallest voxel side; half of it in two dimensions, where all are as deep
LEVELS = 2  # at a crease of phi every chord stays deep
FARTHEST = 0.3  # of it: no new vertex goes farther


def split(surface: Surface, frame: Frame) -> Surface:
    """Return the surface with edges halved where they lie too deep within the wall."""
    for _ in range(LEVELS):
        points, faces = surface.points, surface.faces
        edges, of_face = _edges(faces)
        middle = points[edges].mean(axis=1)
        depth = frame.distance(middle)
        deep = np.abs(depth) > TOO_DEEP * frame.h / (4 - faces.shape[1])
        deep &= np.isin(np.arange(len(edges)), of_face[surface.label == WALL])
        deep = _closed(deep, of_face)
        if not deep.any():
            break
        step = np.clip(depth[deep], -FARTHEST * frame.h, FARTHEST * frame.h)
        fresh = middle[deep] - step[:, None] * frame.direction(middle[deep])
        number = np.full(len(edges), -1)
        number[deep] = len(points) + np.arange(len(fresh))
        parts, owner = _parts(faces, number[of_face])
        surface = Surface(np.concatenate([points, fresh]), parts, surface.label[owner])
    return surface


def _edges(faces: Integers) -> tuple[Integers, Integers]:
    """Return every edge once, (ne, 2), and those of each face, from one corner to the next."""
    if faces.shape[1] == 2:
        return faces, np.arange(len(faces))[:, None]
    ends = np.sort(np.stack([faces, np.roll(faces, -1, axis=1)], axis=-1).reshape(-1, 2), axis=1)
    edges, where = np.unique(ends, axis=0, return_inverse=True)
    return edges, where.reshape(faces.shape)


def _closed(deep: Flags, of_face: Integers) -> Flags:
    """Halve the third edge too where a triangle has two."""
    found = deep.copy()
    while True:
        count = found[of_face].sum(axis=1)
        if not (count == 2).any():
            return found
        found[of_face[count == 2]] = True


def _parts(faces: Integers, middle: Integers) -> tuple[NDArray[np.int32], Integers]:
    """Return the parts of every face and which face they are of.

    ``middle``: the new vertex on each edge of a face, -1 where there is none.
    """
    parts, owner = list[Integers](), list[Integers]()

    def add(which: Flags, *kinds: tuple[Integers, ...]) -> None:
        parts.extend(np.stack(kind, axis=1)[which] for kind in kinds)
        owner.extend([np.flatnonzero(which)] * len(kinds))

    cut = middle >= 0
    count = cut.sum(axis=1)
    add(count == 0, tuple(faces.T))
    if faces.shape[1] == 2:
        add(count == 1, (faces[:, 0], middle[:, 0]), (middle[:, 0], faces[:, 1]))
    else:
        for a in range(3):
            one, two, three = (np.roll(faces, -a, axis=1)[:, n] for n in range(3))
            here = middle[:, a]
            add((count == 1) & cut[:, a], (one, here, three), (here, two, three))
        add(count == 3, *((faces[:, a], middle[:, a], middle[:, a - 1]) for a in range(3)),
            tuple(middle.T))  # fmt: skip
    return np.concatenate(parts).astype(np.int32), np.concatenate(owner)
