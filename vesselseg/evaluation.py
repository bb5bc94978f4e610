"""A prediction against the truth: overlap of the classes, distance of the walls, topology."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import metrics
from .errors import DataError
from .fields import Field
from .grid import Grid
from .io.choices import Choices
from .io.volume import read_field
from .solvers.redistancing import redistance
from .solvers.start import logit
from .solvers.topology import topology_report

PathLike = str | os.PathLike[str]

SAME_GRID_VOXELS = 1e-3
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
    """

    labels: NDArray[np.int64]
    level: NDArray[np.floating]


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
        distance, ``p95_mm``: its 95 % quantile, HD95), None if either has no wall.

    Raises
    ------
    DataError
        If the grids differ or the numbers are none of the three kinds.
    """
    values, grid, _ = read_field(truth, Choices(), unit_spacing=True)
    guess, other, _ = read_field(prediction, Choices(), unit_spacing=True)
    if other.mismatch_mm(grid) > SAME_GRID_VOXELS * grid.h_min:
        need = f"that of the truth, {grid.shape_kji} voxels of {grid.spacing_mm} mm"
        found = f"{other.shape_kji} voxels of {other.spacing_mm} mm"
        raise DataError("prediction lies on another grid", path=prediction, found=found, need=need)
    pred, true = understood(guess, prediction), understood(values, truth)
    numbers = sorted({*np.unique(pred.labels).tolist(), *np.unique(true.labels).tolist()} - {0})
    classes = {str(n): overlap(pred.labels == n, true.labels == n) for n in numbers}
    lumens = pred.labels > 0, true.labels > 0
    walls = all(0 < np.count_nonzero(lumen) < lumen.size for lumen in lumens)
    return {
        **overlap(*lumens),
        "cl_dice": metrics.cl_dice(*lumens),
        "classes": classes,
        "mean_dice": float(np.mean([c["dice"] for c in classes.values()])) if classes else 1.0,
        "mean_iou": float(np.mean([c["iou"] for c in classes.values()])) if classes else 1.0,
        "topology": {
            name: topology_report(result.level)
            for name, result in (("prediction", pred), ("truth", true))
        },
        "wall": wall_errors(pred, true, grid) if walls else None,
    }


def understood(x: Field, path: PathLike) -> Result:
    """Tell labels, probability and level set apart by their numbers."""
    low, high = float(x.min()), float(x.max())
    if low >= 0.0 and high < MAX_LABELS and np.array_equal(x, np.round(x)):
        labels = x.astype(np.int64)
        return Result(labels, np.where(labels > 0, -0.5, 0.5))
    if low >= 0.0 and high <= 1.0:
        return Result((x > 0.5).astype(np.int64), -logit(x))
    if low < 0.0 < high:
        return Result((x < 0).astype(np.int64), x)
    need = "labels from 0, a probability, or a level set that is negative in the lumen"
    raise DataError("kind not clear", path=path, found=f"{low:.3g} to {high:.3g}", need=need)


def overlap(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> dict[str, float]:
    """Return Dice and IoU of two masks."""
    return {"dice": metrics.dice(a, b), "iou": metrics.iou(a, b)}


def wall_errors(pred: Result, true: Result, grid: Grid) -> dict[str, float | None]:
    """Compare the walls, near and far; None where no wall is near."""
    reach = float(np.linalg.norm(np.multiply(grid.shape_kji, grid.spacing_mm)))
    distance = redistance(true.level, grid.spacing_mm, band_mm=reach)
    found = metrics.wall_errors(pred.level, distance, grid)
    return {name: value if math.isfinite(value) else None for name, value in found.items()}
