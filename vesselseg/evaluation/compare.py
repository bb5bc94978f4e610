"""A prediction against the truth: overlap of the classes, distance of the walls, topology."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import metrics
from ..errors import DataError
from ..fields import Field
from ..grid import Grid
from ..io.choices import Choices
from ..io.volume import read_field
from ..solvers.redistancing import redistance
from ..solvers.start import logit
from ..solvers.topology import topology_report

PathLike = str | os.PathLike[str]

CALIBRATED_VOXELS = 3.0  # from the true wall; far away every probability is right
MAX_LABELS = 1024  # more whole numbers than these are intensities


@dataclass(frozen=True, eq=False)
class Result:
    """What a file says of every voxel.

    Parameters
    ----------
    labels : (nz, ny, nx) or (ny, nx) int64
        Class of each voxel, zero outside the lumen.
    level : same shape float32
        Negative in the lumen; its zero set is the wall.
    p : same shape, optional
        Probability of the lumen.
    sigma_mm : same shape, optional
        Standard deviation of the wall's position.
    """

    labels: NDArray[np.int64]
    level: NDArray[np.floating]
    p: NDArray[np.floating] | None = None
    sigma_mm: NDArray[np.floating] | None = None


def evaluate(prediction: PathLike, truth: PathLike) -> dict[str, Any]:
    """Compare a predicted image with a true one on the same grid.

    Parameters
    ----------
    prediction, truth : path-like
        Any format of ``read_volume``; without a voxel size it is taken as 1 mm. Whole numbers
        from 0 are labels, 0 being the background; numbers from 0 to 1 a probability, with its
        wall at 0.5; numbers of both signs a level set, negative in the lumen. Only the latter
        two place a wall between voxels.

    Returns
    -------
    dict
        ``dice, iou`` of the lumen (all labels but 0) and under ``classes`` of every label, with
        their means over labels; ``cl_dice``; ``topology`` (components, cavities, tunnels) of
        both; ``wall``, see ``metrics.wall_errors`` (``mean_mm``: average symmetric surface
        distance, ``p95_mm``: its 95 % quantile, HD95) and ``radius``, see
        ``metrics.radius_error``, None if either has no wall; of a probability ``calibration``:
        ``ece`` near the wall and the curve.

    Raises
    ------
    DataError
        If the grids differ or the numbers are none of the three kinds.
    """
    values, grid, _ = read_field(truth, Choices(), unit_spacing=True)
    guess, other, _ = read_field(prediction, Choices(), unit_spacing=True)
    if not other.fits(grid):
        need = f"that of the truth, {grid.shape_kji} voxels of {grid.spacing_mm} mm"
        found = f"{other.shape_kji} voxels of {other.spacing_mm} mm"
        raise DataError("prediction lies on another grid", path=prediction, found=found, need=need)
    return compare(understood(guess, prediction), understood(values, truth), grid)


def compare(pred: Result, true: Result, grid: Grid) -> dict[str, Any]:
    """Compare two results on one grid, see ``evaluate``.

    With a standard deviation ``coverage`` tells how often it holds the truth and how well it
    ranks the errors.
    """
    numbers = sorted({*np.unique(pred.labels).tolist(), *np.unique(true.labels).tolist()} - {0})
    classes = {str(n): overlap(pred.labels == n, true.labels == n) for n in numbers}
    lumens = pred.level < 0, true.level < 0
    found: dict[str, Any] = {
        **overlap(*lumens),
        "cl_dice": metrics.cl_dice(*lumens),
        "classes": classes,
        "mean_dice": float(np.mean([c["dice"] for c in classes.values()])) if classes else 1.0,
        "mean_iou": float(np.mean([c["iou"] for c in classes.values()])) if classes else 1.0,
        "topology": {
            name: topology_report(result.level)
            for name, result in (("prediction", pred), ("truth", true))
        },
        "wall": None,
        "radius": None,
    }
    if not all(0 < np.count_nonzero(lumen) < lumen.size for lumen in lumens):
        return found
    exact = distance(true.level, grid)
    found["wall"] = finite(metrics.wall_errors(pred.level, exact, grid))
    found["radius"] = finite(metrics.radius_error(distance(pred.level, grid), exact))
    if pred.p is not None:
        near = np.abs(exact) <= CALIBRATED_VOXELS * grid.h_min
        p, inside = pred.p[near], exact[near] < 0
        curve = metrics.reliability(p, inside)
        found["calibration"] = {"ece": metrics.calibration_error(p, inside), "curve": curve}
    if pred.sigma_mm is not None:
        spread = metrics.coverage(pred.level, exact, pred.sigma_mm, grid)
        ranked = metrics.sparsification(pred.level, exact, pred.sigma_mm, grid)
        found["coverage"] = finite(spread) | {"ause": ranked["ause"]}
        found["sparsification"] = ranked
    return found


def understood(x: Field, path: PathLike) -> Result:
    """Tell labels, probability and level set apart by their numbers."""
    low, high = float(x.min()), float(x.max())
    if low >= 0.0 and high < MAX_LABELS and np.array_equal(x, np.round(x)):
        labels = x.astype(np.int64)
        return Result(labels, np.where(labels > 0, -0.5, 0.5))
    if low >= 0.0 and high <= 1.0:
        return Result((x > 0.5).astype(np.int64), -logit(x), x)
    if low < 0.0 < high:
        return Result((x < 0).astype(np.int64), x)
    need = "labels from 0, a probability, or a level set that is negative in the lumen"
    raise DataError("kind not clear", path=path, found=f"{low:.3g} to {high:.3g}", need=need)


def overlap(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> dict[str, float]:
    """Return Dice and IoU of two masks."""
    return {"dice": metrics.dice(a, b), "iou": metrics.iou(a, b)}


def distance(level: NDArray[np.floating], grid: Grid) -> NDArray[np.floating]:
    """Return the signed distance in mm to a wall, near and far."""
    reach = float(np.linalg.norm(np.multiply(grid.shape_kji, grid.spacing_mm)))
    return redistance(level, grid.spacing_mm, band_mm=reach)


def finite(found: dict[str, float]) -> dict[str, float | None]:
    """Return the measures, None where no wall is near."""
    return {name: value if math.isfinite(value) else None for name, value in found.items()}
