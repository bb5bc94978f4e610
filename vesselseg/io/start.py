"""``read_start``: a probability map, mask or level set from anywhere as the start of refinement."""

from __future__ import annotations

import os
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, special

from ..errors import ConfigError, DataError, NoInterfaceError
from ..fields import Field, LevelSet, Probability, Volume
from ..grid import Grid
from .choices import Choices
from .guard import DEFAULT_LIMITS, Limits
from .volume import base_name, read_field

PathLike = str | os.PathLike[str]
Kind = Literal["probability", "logit", "mask", "phi"]

KINDS: tuple[Kind, ...] = ("probability", "logit", "mask", "phi")
CLIP = 1e-6
BAND_VOXELS = 4.0
UNIT_GRADIENT = (0.8, 1.2)
MANY_PIECES = 100
FLOOR = "binary start: its wall is off by 0.18 voxel on average and 0.53 at most"
REMEDY = "give --start-kind probability|logit|mask|phi"


def read_start(
    path: PathLike, volume: Volume, *, kind: Kind | None = None, label: int | None = None
) -> Probability | LevelSet:
    """Read a start and put it on the grid of the scan.

    Parameters
    ----------
    path : path-like
        Any format of ``read_volume``; one without a voxel size must have the scan's shape.
    volume : Volume
        The scan.
    kind : {"probability", "logit", "mask", "phi"}, optional
        Told from the values if not given: {0, 1} is a mask, [0, 1] a probability, both signs with
        a gradient of about one a level set in mm, negative inside. Logits must be named.
    label : int, optional
        The value of a label map that marks the lumen.

    Returns
    -------
    Probability or LevelSet
        A level set is returned as given; the solver redistances it.

    Raises
    ------
    DataError, NoInterfaceError
        Kind not clear, no wall, labels without a choice, or no overlap with the scan.
    """
    if kind is not None and kind not in KINDS:
        raise ConfigError("unknown kind of start", path=path, found=kind, need="|".join(KINDS))
    values, grid, notes = _on_own_grid(path, volume)
    kind = kind or ("mask" if label is not None else _tell(values, grid, path))
    values = _checked(values, kind, label, path)
    if not grid.fits(volume.grid):
        values, note = _resampled(values, kind, grid, volume.grid, path)
        notes = (*notes, note)
    inside = values < 0.0 if kind == "phi" else values > (0.0 if kind == "logit" else 0.5)
    if inside.all() or not inside.any():
        where = "background" if inside.all() else "lumen"
        raise NoInterfaceError(f"start has no {where} on the scan's grid", path=path)
    notes = (*notes, *_shape_notes(inside))
    if kind == "phi":
        band = min(BAND_VOXELS * volume.grid.h_max, float(np.abs(values).max()))
        return LevelSet(values, volume.grid, band, notes=notes)
    if kind == "mask":
        notes = (*notes, FLOOR)
    if kind == "logit":
        values = special.expit(values)
    model = f"start:{base_name(path)}"
    return Probability(values, volume.grid, model, soft=kind != "mask", notes=notes)


def _on_own_grid(path: PathLike, volume: Volume) -> tuple[Field, Grid, tuple[str, ...]]:
    """Read the values and the grid they lie on: the scan's, where the file names no place."""
    limits = Limits(max(DEFAULT_LIMITS.voxels, volume.values.size))
    values, grid, raw = read_field(path, Choices(limits=limits), unit_spacing=True)
    if grid.ndim != volume.grid.ndim or (not raw.placed and values.shape != volume.values.shape):
        need = f"{volume.values.shape} as the scan"
        raise DataError("start does not fit the scan", path=path, found=values.shape, need=need)
    if raw.placed:
        return values, grid, raw.notes
    return values, volume.grid, ("start names no place in the world: taken on the scan's grid",)


def _tell(values: Field, grid: Grid, path: PathLike) -> Kind:
    low, high = float(values.min()), float(values.max())
    if np.isin(values, (0.0, 1.0)).all():
        return "mask"
    if low >= 0.0 and np.array_equal(values, np.round(values)):
        found = _labels(values)
        raise DataError("label map", path=path, found=found, remedy="choose with --label N")
    if low >= 0.0 and high <= 1.0:
        return "probability"
    if low < 0.0 < high and np.mean(values < 0.0) < 0.5 and _is_distance(values, grid):
        return "phi"
    need = "a mask, a probability or a distance in mm, negative inside"
    found = f"values {low:.3g} to {high:.3g}"
    raise DataError("kind of start not clear", path=path, found=found, need=need, remedy=REMEDY)


def _is_distance(values: Field, grid: Grid) -> bool:
    """Whether the median gradient near the wall is about one."""
    slopes = np.array(np.gradient(values, *grid.spacing_mm))
    distance = np.abs(values)
    near = distance < min(3.0 * grid.h_max, 0.9 * float(distance.max()))  # clamped values are flat
    norms = np.linalg.norm(slopes[:, near], axis=0)
    return norms.size > 0 and UNIT_GRADIENT[0] <= float(np.median(norms)) <= UNIT_GRADIENT[1]


def _checked(values: Field, kind: Kind, label: int | None, path: PathLike) -> Field:
    """Refuse values that the kind does not allow; turn a label into a mask."""
    low, high = float(values.min()), float(values.max())
    if kind == "mask":
        if label is not None:
            values = (values == label).astype(np.float32)
        elif not np.isin(values, (0.0, 1.0)).all():
            fault, remedy = "not a mask of 0 and 1", "choose with --label N"
            raise DataError(fault, path=path, found=_labels(values), remedy=remedy)
        if not values.any():
            raise NoInterfaceError("mask has no foreground voxel", path=path)
        if values.all():
            raise NoInterfaceError("mask has no background voxel", path=path)
    elif label is not None:
        fault = "--label and --start-kind contradict"
        raise ConfigError(fault, path=path, found=kind, need="mask")
    if kind == "probability" and not (low >= 0.0 and high <= 1.0):
        found = f"values {low:.3g} to {high:.3g}"
        raise DataError("not a probability", path=path, found=found, need="0 to 1", remedy=REMEDY)
    return values


def _labels(values: Field) -> str:
    distinct = np.unique(values)
    text = ",".join(f"{v:g}" for v in distinct[:8])
    return f"labels {text}" + (f" and {distinct.size - 8} more" if distinct.size > 8 else "")


def _resampled(
    values: Field, kind: Kind, grid: Grid, target: Grid, path: PathLike
) -> tuple[Field, str]:
    """Interpolate on the target grid: linearly in phi and in the logit of p."""
    source = values.astype(np.float64)
    if kind in ("probability", "mask"):
        source = special.logit(np.clip(source, CLIP, 1.0 - CLIP))
    outside = source.max() if kind == "phi" else source.min()
    zero, unit = np.zeros(target.ndim), np.eye(target.ndim)
    offset = grid.index(target.world(zero))
    matrix = (grid.index(target.world(unit)) - offset).T
    result = ndimage.affine_transform(
        source, matrix, offset, target.shape_kji, order=1, mode="nearest"
    )
    within = np.ones(target.shape_kji, dtype=bool)
    for row, start, length in zip(matrix, offset, grid.shape_kji, strict=True):
        steps = [f * np.arange(n) for f, n in zip(row, target.shape_kji, strict=True)]
        at = start + sum(np.ix_(*steps))
        within &= (at >= -0.5) & (at <= length - 0.5)  # half a voxel beyond the last samples
    result[~within] = outside
    covered = int(within.sum())
    if not covered:
        raise DataError("start and scan do not overlap", path=path, remedy="check their affines")
    if kind == "mask":
        result = result > 0.0
    elif kind == "probability":
        result = special.expit(result)
    shift = grid.mismatch_mm(target)
    apart = f"by {shift:.3g} mm" if np.isfinite(shift) else f"{grid.shape_kji}, {target.shape_kji}"
    share = f", covers {covered / result.size:.0%} of it" if covered < result.size else ""
    note = f"start resampled to the scan's grid: grids differ {apart}{share}"
    return result.astype(np.float32), note


def _shape_notes(inside: NDArray[np.bool_]) -> list[str]:
    """Return what is odd about the shape of a start."""
    notes = []
    faces = [inside.take(end, axis) for axis in range(inside.ndim) for end in (0, -1)]
    if all(face.any() for face in faces):
        notes.append("start touches every face of the scan")
    pieces = ndimage.label(inside, np.ones((3,) * inside.ndim))[1]
    if pieces > MANY_PIECES:
        notes.append(f"start has {pieces} separate pieces")
    return notes
