"""The wall of a prior as shaded triangles."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

MAX_FACES = 60_000
LIGHT = np.array([-0.45, 0.62, 0.65])  # right, up, towards the viewer


def camera() -> Array:
    """Rotate the world so that the viewer stands in front, a little to the side and above."""
    turn, tilt = np.deg2rad(24.0), np.deg2rad(14.0)
    front = np.array([[-1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 1.0, 0.0]])  # right, up, towards us
    c, s = np.cos(turn), np.sin(turn)
    around = np.array([[c, 0.0, s], [0.0, 1.0, 0.0], [-s, 0.0, c]])
    c, s = np.cos(tilt), np.sin(tilt)
    over = np.array([[1.0, 0.0, 0.0], [0.0, c, -s], [0.0, s, c]])
    return np.asarray(over @ around @ front)


def shade(colours: Array, normals: Array) -> Array:
    """Light colours (n, 3) by unit normals (n, 3) in camera axes: diffuse and a little gloss."""
    light = LIGHT / np.linalg.norm(LIGHT)
    half = light + np.array([0.0, 0.0, 1.0])
    half /= np.linalg.norm(half)
    diffuse = 0.38 + 0.62 * np.clip(normals @ light, 0.0, 1.0)
    gloss = 0.28 * np.clip(normals @ half, 0.0, 1.0) ** 24
    return np.asarray(np.clip(colours * diffuse[:, None] + gloss[:, None], 0.0, 1.0))


def vertex_normals(vertices: Array, faces: Array) -> Array:
    """Return unit normals at the vertices, the area-weighted mean of their faces."""
    a, b, c = (vertices[faces[:, n]] for n in range(3))
    area = np.cross(b - a, c - a)
    normals = np.zeros_like(vertices)
    for n in range(3):
        np.add.at(normals, faces[:, n], area)
    length = np.linalg.norm(normals, axis=1, keepdims=True)
    return np.asarray(normals / np.maximum(length, 1e-30))


def decimate(vertices: Array, faces: Array, values: Array) -> tuple[Array, Array, Array]:
    """Merge vertices on a coarser lattice until few enough faces are left."""
    size = float(np.ptp(vertices, axis=0).max()) / 512
    merged, kept, means = vertices, faces, values
    while len(kept) > MAX_FACES:
        cells, where = np.unique(np.floor(vertices / size), axis=0, return_inverse=True)
        where = where.reshape(-1)
        count = np.bincount(where, minlength=len(cells))
        merged = np.stack([np.bincount(where, v) / count for v in vertices.T], axis=1)
        means = np.bincount(where, values) / count
        kept = where[faces]
        whole = (kept[:, 0] != kept[:, 1]) & (kept[:, 1] != kept[:, 2]) & (kept[:, 2] != kept[:, 0])
        kept = np.unique(kept[whole], axis=0)
        size *= 1.25
    return merged, kept, means


def sigma_map() -> Any:
    """Viridis without its darkest part, which would drown in the page."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    return ListedColormap(colormaps["viridis"](np.linspace(0.18, 1.0, 256)))
