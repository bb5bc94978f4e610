"""Priors of exact shapes on small grids, and files edited by hand."""

import io

import h5py
import numpy as np
import pytest

from vesselseg.fields import LevelSet, Probability, Refinement, StopReason, Volume
from vesselseg.grid import Grid
from vesselseg.prior.boundary import BoundaryPrior, PriorSettings
from vesselseg.prior.file import content_digest

LAYOUTS = [  # permutations and flips of an array's axes, each kind by default
    *[((0, 1, 2), (0,)), ((2, 0, 1), ()), ((1, 0, 2), (1, 2)), ((2, 0, 1), (0,))],
    *(pytest.param(*case, marks=pytest.mark.slow) for case in (((1, 0, 2), ()), ((0, 1, 2), (1, 2)),
      ((2, 0, 1), (1, 2)), ((1, 0, 2), (0,)))),
]  # fmt: skip


def rotation(degrees, axis):
    """Rotation matrix about an axis, after Rodrigues."""
    x, y, z = np.asarray(axis) / np.linalg.norm(axis)
    skew = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = np.radians(degrees)
    return np.eye(3) + np.sin(angle) * skew + (1 - np.cos(angle)) * skew @ skew


def oblique(spacing_ijk, left_handed=False):
    """Affine with every awkwardness: rotated, anisotropic, off the origin, perhaps mirrored."""
    affine = np.eye(4)
    affine[:3, :3] = rotation(37.0, (1, 2, 3)) @ np.diag(spacing_ijk)
    affine[:3, 0] *= -1.0 if left_handed else 1.0
    affine[:3, 3] = (-31.0, 12.0, 55.0)
    return affine


def points(grid):
    """World coordinates of all samples."""
    return grid.world(np.stack(np.indices(grid.shape_kji), axis=-1))


def middle(grid, shift=0.23):
    """A point near the centre of the grid and off every symmetry."""
    return grid.world((np.array(grid.shape_kji) - 1) / 2 + shift)


def sphere(grid, radius):
    return np.linalg.norm(points(grid) - middle(grid), axis=-1) - radius


def torus(grid, ring, radius):
    x, y, z = np.moveaxis(points(grid) - middle(grid), -1, 0)
    return np.hypot(np.hypot(x, y) - ring, z) - radius


def tube(grid, radius, direction, middle=middle):
    axis = np.asarray(direction) / np.linalg.norm(direction)
    offset = points(grid) - (middle(grid) if callable(middle) else middle)
    return np.linalg.norm(offset - (offset @ axis)[..., None] * axis, axis=-1) - radius


def relaid(phi, grid, axes, flips):
    """The same samples in permuted and flipped arrays, on the grid that says so."""
    turned = np.ascontiguousarray(np.flip(np.transpose(phi, axes), flips))
    columns = grid.affine[:3, :3][:, ::-1][:, list(axes)]  # per array axis
    affine = np.eye(4)
    affine[:3, 3] = grid.affine[:3, 3]
    for axis in flips:
        affine[:3, 3] += columns[:, axis] * (turned.shape[axis] - 1)
        columns[:, axis] *= -1
    affine[:3, :3] = columns[:, ::-1]
    return turned, Grid(turned.shape, affine)


def refinement(phi_mm, grid, *, band_voxels=5.0, std_voxels=0.2, **facts):
    band = band_voxels * grid.h_max
    level = LevelSet(np.clip(phi_mm, -band, band), grid, band)
    std = np.full(grid.shape_kji, std_voxels * grid.h_max, dtype=np.float32)
    given = {"history": ({"step_rms_mm": 0.3}, {"step_rms_mm": 0.01}), **facts}
    return Refinement(level, std, StopReason.CONVERGED, 2, **given)


def scan(phi_mm, grid):
    """A scan of the shape at SNR 10 and the probability of its lumen."""
    inside = 1.0 / (1.0 + np.exp(2.0 * phi_mm / grid.h_max))
    noise = np.random.default_rng(7).standard_normal(grid.shape_kji)
    probability = Probability(inside.astype(np.float32), grid, "network-of-the-test")
    return Volume(100.0 * inside + 10.0 * noise, grid, "scan"), probability


def prior(phi_mm, grid, *, settings=None, provenance=None, **options):
    volume, probability = scan(phi_mm, grid)
    return BoundaryPrior.from_refinement(
        refinement(phi_mm, grid, **options),
        volume,
        probability,
        settings=settings or PriorSettings(),
        provenance=provenance,
        volatile={"created": "never", "host": "nowhere"},
    )


def small():
    """The prior most tests need: a sphere of radius 5 on 20³ unit voxels."""
    grid = Grid.from_spacing((20, 20, 20), 1.0)
    return prior(sphere(grid, 5.0), grid)


def edited(data, change, *, sealed=False):
    """Return the file after ``change(h5py file)``; sealed puts content_sha256 right again."""
    buffer = io.BytesIO(data)
    with h5py.File(buffer, "r+", track_order=True) as file:
        change(file)
        if sealed:
            file.attrs.modify("content_sha256", np.bytes_(content_digest(file)))
    return buffer.getvalue()
