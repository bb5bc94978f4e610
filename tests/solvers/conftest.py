"""Exact walls, distorted level sets and the wall of a level set, shared by the solver tests."""

import os
from functools import lru_cache

import numpy as np
import pytest

from vesselseg import phantoms

# Short kernels on busy cores: threads that spin while they wait cost more than they bring.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def distorted(phi, grid):
    """Scale a distance by a factor that varies thirtyfold over the grid; the wall stays."""
    points = grid.world(np.moveaxis(np.indices(grid.shape_kji), 0, -1))[..., : grid.ndim]
    centre = points.reshape(-1, grid.ndim).mean(0) + np.array([1.3, -0.7, 2.1])[: grid.ndim]
    squares = ((points - centre) ** 2).sum(-1)
    return phi * (0.1 + 3.0 * squares / squares.max())


@lru_cache(maxsize=32)
def _exact(name, radius, spacing, margin, options):
    shape = phantoms.make(name, radius=radius, **dict(options))
    margin_mm = None if margin is None else margin * np.min(spacing)
    grid = shape.grid(spacing, margin_mm=margin_mm)
    phi = shape.phi(grid)
    phi.setflags(write=False)
    return phi, grid


@pytest.fixture(scope="session")
def exact():
    """Return a function: name, radius, spacing, margin in voxels -> exact distance and grid."""

    def call(name, radius=4.0, spacing=1.0, *, margin=None, **options):
        return _exact(name, radius, spacing, margin, tuple(sorted(options.items())))

    return call


@pytest.fixture(scope="session")
def distort():
    """Return ``distorted``."""
    return distorted


@pytest.fixture(scope="session")
def interior():
    """Return a function: mask of the voxels at least ``width`` away from the faces."""

    def call(phi, width=3):
        mask = np.zeros(phi.shape, bool)
        mask[tuple(slice(width, -width) for _ in phi.shape)] = True
        return mask

    return call


@pytest.fixture(scope="session")
def crossings():
    """Return a function: linear position of the wall, 0 to 1, on every grid edge it cuts."""

    def call(phi, where=None):
        parts = []
        sides = phi < 0 if where is None else where < 0
        for axis in range(phi.ndim):
            low = [slice(None)] * phi.ndim
            high = list(low)
            low[axis], high[axis] = slice(None, -1), slice(1, None)
            a, b = phi[tuple(low)], phi[tuple(high)]
            cut = sides[tuple(low)] != sides[tuple(high)]
            parts.append(a[cut] / (a[cut] - b[cut]))
        return np.concatenate(parts)

    return call
