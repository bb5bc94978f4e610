"""How far a wall is from the truth: sub-voxel surface distances, overlap, coverage.

Walls are compared as surfaces, never as masks. A wall is sampled where its level set changes
sign along the edges of the grid (linear interpolation); each sample carries the area it stands
for, as edges cross a tilted wall more often than a straight one. Distances come back in mm and,
over the smallest spacing, in voxels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage, spatial

from .errors import NoInterfaceError
from .grid import Grid

Array = NDArray[np.float64]

OFF_AXIS_VOXELS = 3  # of a skeleton
NEAR_VOXELS = 2.0  # a wall further away than this is false or missed


@dataclass(frozen=True, eq=False)
class Wall:
    """Samples of the zero set of a level set.

    Parameters
    ----------
    index : (n, ndim) float64
        Positions in index units, array order.
    normal : (n, ndim) float64
        Unit gradient of the level set in mm, array order, pointing out of the lumen.
    area_mm2 : (n,) float64
        Area (2-D: length in mm) that each sample stands for.
    spacing_mm : (ndim,) float64
    """

    index: Array
    normal: Array
    area_mm2: Array
    spacing_mm: Array

    @property
    def points_mm(self) -> Array:
        """Positions in mm from the first voxel centre, array order."""
        return self.index * self.spacing_mm


def wall(phi: ArrayLike, spacing: Grid | ArrayLike) -> Wall:
    """Sample the zero set of ``phi`` (negative in the lumen) on the edges of the grid.

    Raises
    ------
    NoInterfaceError
        If the level set does not change sign.
    """
    values = np.asarray(phi, dtype=np.float64)
    step = np.asarray(spacing.spacing_mm if isinstance(spacing, Grid) else spacing, dtype=float)
    step = np.broadcast_to(step, (values.ndim,)).astype(float)
    points = []
    for axis in range(values.ndim):
        left = np.moveaxis(values, axis, 0)[:-1]
        right = np.moveaxis(values, axis, 0)[1:]
        found = np.argwhere((left < 0) != (right < 0)).astype(float)
        start, end = (a[tuple(found.T.astype(int))] for a in (left, right))
        found[:, 0] += start / (start - end)
        order = np.argsort([axis, *(a for a in range(values.ndim) if a != axis)])
        points.append(found[:, order])
    index = np.concatenate(points)
    if not len(index):
        raise NoInterfaceError("no wall in the level set", need="values of both signs")
    normal = unit(gradient_at(values, index, step))
    density = np.abs(normal) @ step / step.prod()  # crossings per area
    return Wall(index, normal, 1.0 / np.maximum(density, 1e-12), step)


def wall_errors(
    phi_pred: ArrayLike, phi_true: ArrayLike, spacing: Grid | ArrayLike
) -> dict[str, float]:
    """Compare two walls.

    Parameters
    ----------
    phi_pred : (nz, ny, nx) or (ny, nx)
        Level set of the wall to judge; only its zero set matters.
    phi_true : same shape
        Signed distance in mm to the true wall, exact near it.
    spacing : Grid or spacing in mm per array axis

    Returns
    -------
    dict
        ``mean_mm, rms_mm, p95_mm, max_mm`` over both directions; ``bias_mm`` (positive: the
        lumen is too small) and ``normal_rms_deg`` over the predicted wall within 2 voxels of
        the truth; ``near_mean_mm``, ``near_p95_mm`` likewise; ``false_share``, ``missed_share``
        of the predicted and true wall further than 2 voxels from the other;
        ``within_1_voxel_share`` of the true wall; each ``_mm`` also as ``_voxel``.

    Raises
    ------
    NoInterfaceError
        If either level set does not change sign.
    """
    truth = np.asarray(phi_true, dtype=np.float64)
    pred, true = wall(phi_pred, spacing), wall(truth, spacing)
    h = float(pred.spacing_mm.min())
    signed = sample(truth, pred.index)
    back = distances(true, pred)
    near, found = np.abs(signed) <= NEAR_VOXELS * h, back <= NEAR_VOXELS * h
    both = np.concatenate([np.abs(signed), back])
    area = np.concatenate([pred.area_mm2, true.area_mm2])
    lengths = {
        "mean": mean(both, area), "rms": mean(both**2, area) ** 0.5,
        "p95": quantile(both, area, 0.95), "max": float(both.max()),
        "bias": -mean(signed[near], pred.area_mm2[near]),
        "near_mean": mean(np.abs(signed[near]), pred.area_mm2[near]),
        "near_rms": mean(signed[near] ** 2, pred.area_mm2[near]) ** 0.5,
        "near_p95": quantile(np.abs(signed[near]), pred.area_mm2[near], 0.95),
    }  # fmt: skip
    exact = unit(gradient_at(truth, pred.index[near], pred.spacing_mm))
    cosine = np.clip((exact * pred.normal[near]).sum(1), -1.0, 1.0)
    angle = np.degrees(np.arccos(cosine))
    return {
        **{f"{k}_mm": v for k, v in lengths.items()},
        **{f"{k}_voxel": v / h for k, v in lengths.items()},
        "normal_rms_deg": mean(angle**2, pred.area_mm2[near]) ** 0.5,
        "false_share": 1.0 - mean(near, pred.area_mm2),
        "missed_share": 1.0 - mean(found, true.area_mm2),
        "within_1_voxel_share": mean(back <= h, true.area_mm2),
    }


def false_surface(phi_pred: ArrayLike, phi_true: ArrayLike, spacing: Grid | ArrayLike) -> float:
    """Return the share of the predicted wall further than 2 voxels from the true one."""
    pred = wall(phi_pred, spacing)
    far = np.abs(sample(np.asarray(phi_true, dtype=float), pred.index))
    return mean(far > NEAR_VOXELS * pred.spacing_mm.min(), pred.area_mm2)


def coverage(
    phi_pred: ArrayLike, phi_true: ArrayLike, sigma_mm: ArrayLike, spacing: Grid | ArrayLike
) -> dict[str, float]:
    """Return how often the truth lies within 1 and 2 standard deviations of the wall.

    Only the predicted wall within 2 voxels of the truth counts; ``z_rms`` is the rms of error
    over standard deviation, ``near_share`` the share that counts.
    """
    pred = wall(phi_pred, spacing)
    error = np.abs(sample(np.asarray(phi_true, dtype=float), pred.index))
    sigma = sample(np.asarray(sigma_mm, dtype=float), pred.index)
    near = error <= NEAR_VOXELS * pred.spacing_mm.min()
    z, area = error[near] / np.maximum(sigma[near], 1e-12), pred.area_mm2[near]
    return {
        "within_1": mean(z <= 1.0, area),
        "within_2": mean(z <= 2.0, area),
        "z_rms": mean(z**2, area) ** 0.5,
        "sigma_mean_mm": mean(sigma[near], area),
        "near_share": mean(near, pred.area_mm2),
    }


def dice(a: ArrayLike, b: ArrayLike) -> float:
    """Return 2 |a & b| / (|a| + |b|) of two masks; 1 if both are empty."""
    x, y = np.asarray(a, dtype=bool), np.asarray(b, dtype=bool)
    total = np.count_nonzero(x) + np.count_nonzero(y)
    return 2.0 * np.count_nonzero(x & y) / total if total else 1.0


def iou(a: ArrayLike, b: ArrayLike) -> float:
    """Return |a & b| / |a | b| of two masks; 1 if both are empty."""
    overlap = dice(a, b)
    return overlap / (2.0 - overlap)


def cl_dice(pred: ArrayLike, true: ArrayLike) -> float:
    """Return the centreline Dice of two masks (Shit 2021), from their skeletons."""
    p, t = np.asarray(pred, dtype=bool), np.asarray(true, dtype=bool)
    if not p.any() or not t.any():
        return float(not p.any() and not t.any())
    precision, recall = t[skeleton(p)].mean(), p[skeleton(t)].mean()
    return float(2.0 * precision * recall / max(precision + recall, 1e-12))


def skeleton(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the skeleton, or the mask where thinning leaves nothing (straight even bars)."""
    from skimage.morphology import skeletonize

    thin: Callable[[NDArray[np.bool_]], NDArray[np.bool_]] = skeletonize
    axis = thin(mask)
    return axis if axis.any() else mask


def components(mask: ArrayLike) -> int:
    """Return the number of pieces connected through faces."""
    return int(ndimage.label(np.asarray(mask, dtype=bool))[1])


def calibration_error(p: ArrayLike, inside: ArrayLike, bins: int = 10) -> float:
    """Return the expected calibration error of probabilities, over equal bins."""
    x, y = np.ravel(p).astype(float), np.ravel(inside).astype(float)
    which = np.minimum((x * bins).astype(int), bins - 1)
    gap = np.bincount(which, x - y, bins)
    return float(np.abs(gap).sum() / max(x.size, 1))


def reliability(p: ArrayLike, inside: ArrayLike, bins: int = 10) -> list[dict[str, float]]:
    """Return mean probability, observed share and count of each bin that holds any."""
    x, y = np.ravel(p).astype(float), np.ravel(inside).astype(float)
    which = np.minimum((x * bins).astype(int), bins - 1)
    count, mass, hits = (np.bincount(which, w, bins) for w in (np.ones_like(x), x, y))
    return [
        {"p": float(mass[b] / count[b]), "share": float(hits[b] / count[b]), "n": float(count[b])}
        for b in np.flatnonzero(count)
    ]


def sparsification(
    phi_pred: ArrayLike, phi_true: ArrayLike, sigma_mm: ArrayLike, spacing: Grid | ArrayLike
) -> dict[str, Any]:
    """Return how the mean error falls as the most uncertain part of the wall is left out.

    Returns
    -------
    dict
        ``left_out`` shares; ``by_sigma``, ``by_error`` the mean error of the rest over that of
        all, left out by standard deviation and, at best, by the error itself; ``ause`` the area
        between both (Ilg 2018), zero for a perfect ranking.
    """
    pred = wall(phi_pred, spacing)
    error = np.abs(sample(np.asarray(phi_true, dtype=float), pred.index))
    sigma = sample(np.asarray(sigma_mm, dtype=float), pred.index)
    left_out = np.linspace(0.0, 0.95, 20)
    total = max(mean(error, pred.area_mm2), 1e-12)
    curves = []
    for rank in (sigma, error):
        order = np.argsort(rank, kind="stable")
        area, sums = (np.cumsum(w[order]) for w in (pred.area_mm2, pred.area_mm2 * error))
        last = np.searchsorted(area, (1.0 - left_out) * area[-1] * (1.0 - 1e-12))
        curves.append(sums[last] / area[last] / total)
    between = float(np.trapezoid(curves[0] - curves[1], left_out))
    by = {"by_sigma": curves[0].tolist(), "by_error": curves[1].tolist()}
    return {"left_out": left_out.tolist(), **by, "ause": between}


def radius_error(phi_pred: ArrayLike, phi_true: ArrayLike) -> dict[str, float]:
    """Compare the radii of two lumens on the true centreline.

    Parameters
    ----------
    phi_pred, phi_true : (nz, ny, nx) or (ny, nx)
        Signed distances in mm.

    Returns
    -------
    dict
        ``mean_mm`` absolute and ``bias_mm`` signed difference (positive: predicted too wide) of
        the radii at the skeleton of the true lumen, each also over the mean true radius,
        ``mean_share, bias_share``. The radius is the largest depth within three voxels, as a
        skeleton of voxels is not quite in the middle; without a lumen there it is zero.
    """
    pred, true = np.asarray(phi_pred, dtype=float), np.asarray(phi_true, dtype=float)
    axis = skeleton(true < 0) & (true < 0)
    exact, found = (
        np.maximum(ndimage.maximum_filter(-phi, 2 * OFF_AXIS_VOXELS + 1)[axis], 0.0)
        for phi in (true, pred)
    )
    gap = found - exact
    lengths = {"mean": float(np.abs(gap).mean()), "bias": float(gap.mean())}
    shares = {f"{name}_share": value / float(exact.mean()) for name, value in lengths.items()}
    return {f"{name}_mm": value for name, value in lengths.items()} | shares


def sample(values: Array, index: Array) -> Array:
    """Interpolate linearly at index points ``(n, ndim)``."""
    return np.asarray(ndimage.map_coordinates(values, index.T, order=1, mode="nearest"))


def gradient_at(values: Array, index: Array, spacing_mm: Array) -> Array:
    """Return the central-difference gradient per mm at index points, array order."""
    parts = [sample(np.gradient(values, h, axis=i), index) for i, h in enumerate(spacing_mm)]
    return np.stack(parts, -1)


def unit(vectors: Array) -> Array:
    """Scale vectors to length one; a null vector stays null."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / np.maximum(length, 1e-12))


def distances(points: Wall, surface: Wall) -> Array:
    """Return the distance of wall samples to the tangent planes of another wall, in mm.

    Two samples of a surface lie up to a voxel apart; the plane of the nearest one is closer to
    the surface between them than the sample is. Far away the sample itself is used.
    """
    reach, nearest = spatial.cKDTree(surface.points_mm).query(points.points_mm)
    offset = points.points_mm - surface.points_mm[nearest]
    plane = np.abs((offset * surface.normal[nearest]).sum(1))
    return np.asarray(np.where(reach < NEAR_VOXELS * surface.spacing_mm.max(), plane, reach))


def mean(values: NDArray[Any], weight: Array) -> float:
    """Return the weighted mean; nan of nothing."""
    return float(np.average(values, weights=weight)) if len(values) else float("nan")


def quantile(values: Array, weight: Array, q: float) -> float:
    """Return the weighted quantile; nan of nothing."""
    if not len(values):
        return float("nan")
    order = np.argsort(values)
    total = np.cumsum(weight[order])
    return float(values[order][np.searchsorted(total, q * total[-1])])
