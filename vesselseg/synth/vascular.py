"""Random vessels in voxel units: branching axes, their level set, its random deformation.

A vessel is a chain of round cones (convex hulls of two balls). Points are (z, y, x) in voxels.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from .. import phantoms
from ..errors import NumericalError
from ..fields import Field
from ..solvers import advect, redistance
from . import vascular_kernels as kernels
from .forward import gaussian_process

MARGIN = 7.5  # voxels about each vessel where its distance is computed
BAND = 4.0  # voxels where the deformed level set is redistanced to high order
FAR = 12.0  # clamp of the distance in voxels
MAX_SHARE = 0.22  # of the local radius: largest shift of the wall by the deformation
TRAINING_SHAPES = (
    "bifurcation",
    "stenosis",
    "aneurysm",
    "tapered_tube",
    "curved_tube",
    "two_vessels",
)
HELD_OUT_SHAPES = ("torus", "helix", "arch")


def random_tree(
    size: Sequence[int], radii: tuple[float, float], planar: bool, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Draw the round cones of one to four trees, or of a bundle of thin vessels.

    Parameters
    ----------
    size : three ints
        Of the box, (z, y, x).
    radii : (low, high)
        Root radii, log-uniform, voxels.
    planar : bool
        Keep every axis in the plane z = 0.
    """
    low, high = np.log(radii[0]), np.log(radii[1])
    bundle = rng.random() < 0.35
    count = int(rng.integers(4, 9)) if bundle else int(rng.choice([1, 1, 2, 2, 3, 4]))
    box = np.array(size, dtype=np.float64)
    roots = np.zeros((count, 7))
    for root in roots:
        radius = np.exp(rng.uniform(low, min(high, low + 0.9) if bundle else high))
        start = rng.uniform(0.1, 0.9, 3) * box
        axis = rng.integers(1, 3) if planar else rng.integers(0, 3)
        start[axis] = -1.0 - radius if rng.random() < 0.5 else box[axis] + radius
        move = rng.uniform(0.2, 0.8, 3) * box - start
        if planar:
            start[0] = move[0] = 0.0
        root[:3], root[3:6], root[6] = start, move / np.linalg.norm(move), radius
    segments = np.zeros((1500, 8))
    found = kernels.grow(
        roots,
        rng.standard_normal(6000),
        rng.random(4000),
        box,
        rng.uniform(0.05, 0.75),
        rng.choice([0.0, 0.03, 0.06, 0.1]),
        max(0.8, 0.7 * radii[0]),
        planar,
        segments,
    )
    return segments[:found]


def random_tubes(
    size: Sequence[int], radii: tuple[float, float], planar: bool, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Draw one to three straight tubes across the box, half of them along an axis of it."""
    box = np.array(size, dtype=np.float64)
    tubes = np.zeros((int(rng.choice([1, 1, 1, 2, 3])), 8))
    for tube in tubes:
        along = rng.standard_normal(3)
        if rng.random() < 0.5:
            along = np.eye(3)[rng.integers(1, 3) if planar else rng.integers(0, 3)]
        middle = rng.uniform(0.25, 0.75, 3) * box
        if planar:
            along[0] = middle[0] = 0.0
        reach = 2.0 * box.max() * along / np.linalg.norm(along)
        tube[:3], tube[3:6] = middle - reach, middle + reach
        tube[6:] = np.exp(rng.uniform(*np.log(radii)))
    return tubes


@lru_cache(maxsize=32)
def _unit_segments(name: str) -> NDArray[np.float64]:
    """Round cones of a phantom of radius one: its parts' axes, cut where they jump."""
    shape = phantoms.make(name, radius=1.0)
    axis, width = shape.axis_xyz[:, ::-1], shape.axis_radius
    if name == "torus":
        axis, width = np.concatenate([axis, axis[:1]]), np.append(width, width[0])
    jump = np.linalg.norm(np.diff(axis, axis=0), axis=1)
    joined = jump < 5 * np.median(jump)
    alone = ~np.append(joined, False) & ~np.insert(joined, 0, False)
    links = np.concatenate([axis[:-1], axis[1:], width[:-1, None], width[1:, None]], axis=1)
    balls = np.concatenate([axis, axis, width[:, None], width[:, None]], axis=1)
    return np.concatenate([links[joined][:], balls[alone]])


def random_shape(
    names: Sequence[str],
    size: Sequence[int],
    radii: tuple[float, float],
    rng: np.random.Generator,
) -> tuple[NDArray[np.float64], str]:
    """Place one of the phantoms at random: round cones and the name."""
    name = str(rng.choice(list(names)))
    unit = _unit_segments(name)
    extent = np.ptp(unit[:, :3], axis=0).max() / 2 + 1
    top = max(radii[0] * 1.05, min(radii[1], 0.75 * max(size) / extent))
    radius = float(np.exp(rng.uniform(np.log(radii[0]), np.log(top))))
    turn, _ = np.linalg.qr(rng.standard_normal((3, 3)))
    centre = rng.uniform(0.35, 0.65, 3) * np.array(size)
    segments = unit * radius
    segments[:, :3] = segments[:, :3] @ turn.T + centre
    segments[:, 3:6] = segments[:, 3:6] @ turn.T + centre
    return segments, name


def level_set(segments: NDArray, shape: Sequence[int]) -> tuple[Field, Field]:
    """Return phi near the vessels (``MARGIN`` beyond) and the radius of the closest one."""
    size = tuple(shape) if len(shape) == 3 else (1, *shape)
    phi = np.full(size, MARGIN, dtype=np.float32)
    radius = np.full(size, segments[:, 6:].min(initial=1.0), dtype=np.float32)
    kernels.rasterise(segments, MARGIN, phi, radius)
    return phi.reshape(shape), radius.reshape(shape)


def speed_field(shape: Sequence[int], rng: np.random.Generator) -> Field:
    """Draw a random field of order one: Gaussian process, sinusoid, affine or their product."""
    kind = str(rng.choice(["process", "sinusoid", "affine", "product"], p=[0.4, 0.2, 0.1, 0.3]))
    length = float(np.exp(rng.uniform(np.log(3.0), np.log(14.0))))
    if kind == "process":
        return gaussian_process(shape, length, rng)
    axes = [np.linspace(-1, 1, n, dtype=np.float32) for n in shape]
    if kind == "affine":
        slopes = rng.normal(0, 1, len(shape)).astype(np.float32)
        field = sum(np.ix_(*[a * s for a, s in zip(axes, slopes, strict=True)]))
        return np.asarray(field + rng.normal(0, 0.5), dtype=np.float32)
    waves = np.exp(rng.uniform(np.log(0.5), np.log(6.0), len(shape)))
    phases = rng.uniform(0, 2 * np.pi, len(shape))
    parts = [
        np.sin(np.pi * w * a + p).astype(np.float32)
        for a, w, p in zip(axes, waves, phases, strict=True)
    ]
    waves_now = np.full((1,) * len(shape), 1.6, dtype=np.float32)
    for part in np.ix_(*parts):
        waves_now = waves_now * part
    return waves_now if kind == "sinusoid" else waves_now * gaussian_process(shape, length, rng)


def deform(phi: Field, radius: Field, rng: np.random.Generator) -> Field:
    """Advect phi in a random speed field: the wall moves by at most 0.22 of the local radius.

    Near the wall alone, which is fast; everywhere, where a fold of the level set about a wide
    vessel carries the wall to the rim of that band.
    """
    strength = np.float32(rng.uniform(0.02, MAX_SHARE / 2))
    speed = np.clip(speed_field(phi.shape, rng), -2, 2) * strength * np.minimum(radius, 8)
    spacing = (1.0,) * phi.ndim
    try:
        return advect(phi, spacing, 1.0, speed=speed, scheme="eno2", band_mm=MARGIN - 1.5)
    except NumericalError:
        return advect(phi, spacing, 1.0, speed=speed, scheme="eno2")


def signed_distance(phi: Field) -> Field:
    """Redistance phi: to high order within ``BAND`` voxels, first order to the ``FAR`` clamp."""
    near = np.asarray(redistance(phi, (1.0,) * phi.ndim, band_mm=BAND), dtype=np.float32)
    size = np.abs(near)
    fixed = size < BAND - 0.01
    far = np.where(fixed, size, np.float32(1e9))
    volume = (1,) * (3 - phi.ndim) + phi.shape
    far = np.ascontiguousarray(far.reshape(volume))
    kernels.sweep(far, np.ascontiguousarray(fixed.reshape(volume)))
    return np.copysign(np.minimum(far.reshape(phi.shape), np.float32(FAR)), near)


def centreline(segments: NDArray, phi: Field, moved: bool) -> NDArray[np.uint8]:
    """Mark the voxels of the lumen within 1.5 voxels of the axis.

    After a deformation the axis points climb -phi in the planes normal to the axis; points that
    are not in the lumen then mark nothing.
    """
    volume = phi.reshape((1,) * (3 - phi.ndim) + phi.shape)
    along = segments[:, 3:6] - segments[:, :3]
    length = np.linalg.norm(along, axis=1)
    cuts = np.maximum(1, np.ceil(length / 0.8)).astype(np.int64)
    which = np.repeat(np.arange(len(segments)), cuts)
    place = (np.arange(len(which)) - np.repeat(np.cumsum(cuts) - cuts, cuts)) / cuts[which]
    points = segments[which, :3] + place[:, None] * along[which]
    moves = along[which] / np.maximum(length[which], 1e-9)[:, None]
    if moved:
        kernels.climb(points, moves, volume, 10)
    out = np.zeros(volume.shape, dtype=np.uint8)
    kernels.stamp(points, volume, 1.5, out)
    return out.reshape(phi.shape)


def local_radius(phi: NDArray) -> NDArray:
    """Return the largest depth of the lumen within five voxels of each voxel."""
    from scipy.ndimage import maximum_filter

    return np.asarray(maximum_filter(np.maximum(-phi, 0), size=11))


def thinned(phi: Field) -> NDArray[np.uint8]:
    """Mark the voxels of the lumen within 1.5 voxels of its skeleton."""
    from scipy.ndimage import distance_transform_edt

    from ..metrics import skeleton

    lumen = phi < 0
    line = skeleton(lumen)
    if not line.any():
        return np.zeros(phi.shape, dtype=np.uint8)
    return np.asarray((distance_transform_edt(~line) <= 1.5) & lumen, dtype=np.uint8)
