"""``read_volume``: one door for every image format."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, DataError
from ..fields import Field, Volume
from ..grid import Grid
from .choices import COLOURS, Array, Choices, Raw
from .guard import DEFAULT_LIMITS, Limits

PathLike = str | os.PathLike[str]

FORMATS = {
    ".nii": "nifti", ".nii.gz": "nifti", ".hdr": "nifti",
    ".npy": "arrays", ".npz": "arrays",
    ".h5": "hdf5", ".hdf5": "hdf5",
    ".mat": "matlab", ".tif": "tiff", ".tiff": "tiff",
    ".mha": "itk", ".mhd": "itk", ".nrrd": "itk", ".nhdr": "itk",
}  # fmt: skip
HUGE = 1e18  # squares of larger numbers overflow float32
EXACT_FLOAT32 = 1 << 24
MAX_ANISOTROPY = 20.0


def read_volume(
    path: PathLike,
    *,
    frame: int | Literal["mean"] | None = None,
    component: int | str | None = None,
    part: str | None = None,
    spacing_mm: float | Sequence[float] | None = None,
    nan_fill: float | None = None,
    key: str | None = None,
    roi: tuple[slice, ...] | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> Volume:
    """Read a scan on the grid it is stored on; it is never reoriented.

    Parameters
    ----------
    path : path-like
        ``.nii``, ``.nii.gz``, ``.hdr`` + ``.img``, ``.npy``, ``.npz``, ``.h5``, ``.mat``,
        ``.tif``, ``.mha``, ``.nrrd``, or a folder with one DICOM series.
    frame : int or "mean", optional
        Which frame of a time series; a series without a choice is refused.
    component : int or str, optional
        Which component of a vector or colour image; of an HDF5 velocity ``speed`` (the default),
        ``u``, ``v`` or ``w``.
    part : {"real", "imag", "magnitude", "phase"}, optional
        Which part of a complex image.
    spacing_mm : float or sequence, optional
        Voxel size in array-axis order (z, y, x); needed where the file holds none, otherwise it
        replaces the file's.
    nan_fill : float, optional
        Value for non-finite voxels, which are refused without it.
    key : str, optional
        Name of the array in an ``.npz`` or HDF5 file, or the UID of a DICOM series.
    roi : tuple of slice, optional
        The box of voxels to keep, a slice of step one for each array axis.
    limits : Limits
        What the file may claim.

    Returns
    -------
    Volume
        ``notes`` says what had to be assumed.

    Raises
    ------
    DataError
        The file cannot be used.
    ConfigError
        A choice that the file does not offer.
    EnvironmentFault
        No permission, or a package is missing.
    """
    chosen = Choices(frame, component, part, spacing_mm, nan_fill, key, roi, limits)
    return read_scans(path, 1, chosen)[0]


def read_scans(path: PathLike, count: int, choices: Choices) -> tuple[Volume, ...]:
    """Read the images that a network of ``count`` channels sees, see ``read_channels``."""
    fields, grid, raw = read_channels(path, count, choices)
    for values in fields:
        if float(values.max()) - float(values.min()) < 1 / HUGE:
            found = f"every voxel {values.flat[0]:g}"
            raise DataError("image has no contrast", path=path, found=found)
    name = base_name(path)
    return tuple(Volume(values, grid, name, raw.sha256, raw.notes) for values in fields)


def read_channels(
    path: PathLike, count: int, choices: Choices, *, unit_spacing: bool = False
) -> tuple[list[Field], Grid, Raw]:
    """Read the channels of an image: frames or leading axis of an array, colours of a TIFF."""
    if count == 1:
        field, grid, raw = read_field(path, choices, unit_spacing=unit_spacing)
        return [field], grid, raw
    colour = os.fspath(path).lower().endswith((".tif", ".tiff"))
    fields = []
    for number in range(count):
        pick: Any = {"component": COLOURS[number % len(COLOURS)]} if colour else {"frame": number}
        field, grid, raw = read_field(path, replace(choices, **pick), unit_spacing=unit_spacing)
        if number == 0 and field.ndim == 3 and len(field) == count:
            flat = Grid.from_spacing(field.shape[1:], grid.spacing_mm[1:])
            return list(field), flat, raw
        fields.append(field)
    return fields, grid, raw


@np.errstate(all="ignore")  # a file may hold any bits: what is not finite is refused by name
def read_field(
    path: PathLike, choices: Choices, *, unit_spacing: bool = False
) -> tuple[Field, Grid, Raw]:
    """Read one scalar field and its grid; the notes of ``raw`` are complete.

    With ``unit_spacing`` a file without a voxel size is read as one of 1 mm.
    """
    raw = _reader(path)(path, choices)
    if unit_spacing and raw.affine is None:
        raw = replace(raw, affine=np.eye(4))
    values, affine, notes = _without_flat_axis(raw.values, _affine(raw, choices, path), path)
    try:
        grid = Grid(values.shape, affine)
    except DataError as error:
        facts = {"found": error.found, "need": error.need, "remedy": error.remedy}
        raise DataError(error.fault, path=path, **facts) from error
    if choices.roi is not None:
        values, grid = _part(values, grid, choices.roi, path)
    field, more = _as_float32(values, choices, path)
    ratio = grid.h_max / grid.h_min
    if ratio > MAX_ANISOTROPY:
        more.append(f"voxels are {ratio:.3g} times longer than wide")
    return field, grid, replace(raw, notes=(*raw.notes, *notes, *more))


@np.errstate(all="ignore")
def read_frames(path: PathLike, choices: Choices) -> tuple[Field, Grid, Raw]:
    """Read every frame of a scalar field, (t, nz, ny, nx) or (t, ny, nx), and its grid."""
    raw = _reader(path)(path, replace(choices, frame="all"))
    if raw.affine is None:
        raw = replace(raw, affine=np.eye(4), placed=False)
    single = choices.spacing_mm is None
    affine = raw.affine if single else _affine(replace(raw, values=raw.values[0]), choices, path)
    assert affine is not None
    first, affine, notes = _without_flat_axis(raw.values[0], affine, path)
    grid = Grid(first.shape, affine)
    field, more = _as_float32(raw.values.reshape(-1, *first.shape), choices, path)
    return field, grid, replace(raw, values=field, notes=(*raw.notes, *notes, *more))


def base_name(path: PathLike) -> str:
    """Return the name without folder and without the suffix of a known format."""
    name = Path(os.path.abspath(path)).name  # noqa: PTH100
    known = [s for s in FORMATS if name.lower().endswith(s)]
    return name[: -len(max(known, key=len))] if known else name


def _reader(path: PathLike) -> Callable[[PathLike, Choices], Raw]:
    text = os.fspath(path)
    known = [suffix for suffix in FORMATS if text.lower().endswith(suffix)]
    if "\0" not in text and Path(text).is_dir():
        module = "dicom"
    elif known:
        module = FORMATS[known[0]]
    elif "\0" not in text and not os.path.lexists(text):
        raise DataError("no such file", path=path)
    else:
        need = ", ".join(s for s in FORMATS if s not in (".mhd", ".nhdr")) + ", DICOM folder"
        raise DataError("unknown image format", path=path, need=need)
    return cast(Callable[[PathLike, Choices], Raw], import_module(f".{module}", __package__).read)


def _affine(raw: Raw, choices: Choices, path: PathLike) -> NDArray[np.float64]:
    """Return the file's affine, with the voxel size that the user gave instead of its own."""
    if choices.spacing_mm is None:
        if raw.affine is None:
            raise DataError("no voxel size", path=path, remedy="give --spacing in mm (z,y,x)")
        return raw.affine
    spacing = np.atleast_1d(np.asarray(choices.spacing_mm, dtype=np.float64))
    if spacing.shape not in ((1,), (raw.values.ndim,)) or not (spacing > 0).all():
        need = f"1 or {raw.values.ndim} numbers > 0"
        raise ConfigError("bad spacing", path=path, found=choices.spacing_mm, need=need)
    affine = np.eye(4) if raw.affine is None else raw.affine.copy()
    size = np.ones(3)
    size[: raw.values.ndim] = np.broadcast_to(spacing, (raw.values.ndim,))[::-1]
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if not (np.isfinite(affine).all() and (lengths > 0).all()):
        return np.diag([*size, 1.0])
    affine[:3, :3] *= size / lengths
    return affine


def _part(values: Array, grid: Grid, roi: tuple[slice, ...], path: PathLike) -> tuple[Array, Grid]:
    shape = grid.shape_kji
    inside = len(roi) == len(shape) and all(
        0 <= (one.start or 0) < (n if one.stop is None else one.stop) <= n
        for one, n in zip(roi, shape, strict=True)
    )
    if not inside or min(values[roi].shape) < 2:
        found = ",".join(f"{one.start or 0}:{'' if one.stop is None else one.stop}" for one in roi)
        need = f"a box of at least two voxels a side in {shape}"
        raise ConfigError("bad region", path=path, found=found, need=need)
    return values[roi], grid.part(roi)


def _without_flat_axis(
    values: Array, affine: NDArray[np.float64], path: PathLike
) -> tuple[Array, NDArray[np.float64], list[str]]:
    """Read a 3-D image with one axis of a single voxel as the 2-D image it is."""
    flat = [axis for axis, length in enumerate(values.shape) if length == 1]
    if values.ndim - len(flat) < 2:
        need = "two axes longer than one voxel"
        raise DataError("not an image", path=path, found=f"shape {values.T.shape}", need=need)
    if not flat:
        return values, affine, []
    column = 2 - flat[0]
    order = [n for n in range(3) if n != column] + [column, 3]
    note = f"axis {'ijk'[column]} of one voxel dropped: read as a 2-D image"
    return values.squeeze(flat[0]), affine[:, order], [note]


def _as_float32(values: Array, choices: Choices, path: PathLike) -> tuple[Field, list[str]]:
    notes = []
    bad = ~np.isfinite(values)
    if bad.any():
        count = int(bad.sum())
        if choices.nan_fill is None or not np.isfinite(choices.nan_fill):
            first = tuple(int(n) for n in np.argwhere(bad)[0][::-1])
            fault, remedy = f"{count} non-finite voxels", "repair them or give --nan-fill VALUE"
            raise DataError(fault, path=path, found=f"first at (i,j,k) = {first}", remedy=remedy)
        values = np.where(bad, choices.nan_fill, values)
        notes.append(f"{count} non-finite voxels set to {choices.nan_fill:g}")
    largest = max(abs(float(values.max())), abs(float(values.min())))
    if largest > HUGE:
        need = f"at most {HUGE:g}"
        raise DataError("intensities too large", path=path, found=f"{largest:.3g}", need=need)
    if values.dtype.kind in "iu" and largest > EXACT_FLOAT32:
        notes.append("integers beyond 2^24 rounded to single precision")
    return np.ascontiguousarray(values, dtype=np.float32), notes
