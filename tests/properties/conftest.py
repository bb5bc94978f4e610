"""Random vessels: unions and differences of balls, tubes and ellipsoids, resolved by the grid."""

from dataclasses import dataclass

import numpy as np
import pytest

SMALLEST = 3.0  # radius of the parts in largest voxels


@dataclass(frozen=True, eq=False)
class Case:
    """``phi`` is a distance near its wall, roughly so for ellipsoids; ``hard`` is the same with its
    slope varied between 0.5 and 1.5 over the grid."""

    phi: np.ndarray
    hard: np.ndarray
    spacing: tuple[float, ...]

    @property
    def unit(self):
        """Largest voxel size."""
        return max(self.spacing)


def _ball(points, random, size, radius):
    centre = random.uniform(0.3, 0.7, len(size)) * size
    return np.linalg.norm(points - centre, axis=-1) - radius


def _tube(points, random, size, radius):
    offset = points - random.uniform(0.3, 0.7, len(size)) * size
    axis = random.normal(size=len(size))
    axis /= np.linalg.norm(axis)
    return np.linalg.norm(offset - (offset @ axis)[..., None] * axis, axis=-1) - radius


def _ellipsoid(points, random, size, radius):
    offset = points - random.uniform(0.3, 0.7, len(size)) * size
    part = offset / (radius * random.uniform(1.0, 1.5, len(size)))
    length = np.linalg.norm(part, axis=-1)
    slope = np.linalg.norm(offset / (radius * 1.25) ** 2, axis=-1)
    return (length - 1.0) * length / np.maximum(slope, 1e-9)


PARTS = (_ball, _tube, _ellipsoid)


def make_case(seed, *, smooth=False):
    """One random vessel in two or three dimensions, anisotropic up to 1.8, spacing 0.2 to 5.

    Smooth: a ball within the box or a tube across it along an axis, the exact distance to it.
    """
    random = np.random.default_rng(seed)
    ndim = int(random.integers(2, 4))
    ratio = np.exp(random.uniform(-0.6, 0.0, ndim))
    spacing = np.exp(random.uniform(np.log(0.2), np.log(5.0))) * ratio / ratio.max()
    shape = random.integers(26, 34, ndim) if ndim == 2 else random.integers(18, 24, ndim)
    size = (shape - 1) * spacing
    unit = spacing.max()
    points = np.moveaxis(np.indices(shape), 0, -1) * spacing
    if smooth:
        across = np.ones(ndim)
        if ndim == 3 and random.random() < 0.5:
            across[random.integers(0, 3)] = 0.0
        centre = size / 2.0 + random.uniform(-0.5, 0.5, ndim) * spacing
        radius = random.uniform(SMALLEST, max(SMALLEST, size.min() / unit / 2.0 - 4.0))
        phi = np.linalg.norm((points - centre) * across, axis=-1) - radius * unit
    else:
        phi = np.full(shape, np.inf)
        for n in range(int(random.integers(1, 4))):
            part = PARTS[int(random.integers(0, 3))]
            radius = unit * random.uniform(SMALLEST, 1.5 * SMALLEST)
            field = part(points, random, size, radius)
            phi = np.maximum(phi, -field) if n == 1 else np.minimum(phi, field)
    waves = random.uniform(0.5, 1.0, ndim) / (2.0 * unit)
    modulation = 1.0 + 0.5 * np.sin(points @ waves + random.uniform(0.0, 6.0))
    return Case(phi, phi * modulation, tuple(float(h) for h in spacing))


@pytest.fixture(scope="session")
def vessel():
    """Return ``make_case``: seed, options -> Case."""
    return make_case
