"""``read_flow``: measured velocity from NIfTI, HDF5, NumPy or DICOM, on the grid of the scan.

Unit, sign and axis of a component are never guessed: a file either states them or the user does.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, DataError
from ..fields import Volume
from ..flow import PER_MS, Flow, in_world
from .choices import Choices
from .guard import DEFAULT_LIMITS, Limits, read_bytes_checked
from .hdf5 import VELOCITY
from .hdf5_guard import guard_hdf5, read_array, viewer_link
from .volume import base_name, read_frames

PathLike = str | os.PathLike[str]
Floats = NDArray[np.floating]

UNITS = (*PER_MS, "phase", "steps")
OVER_VENC = 1.05  # of venc: what was measured never exceeds it, but for a background's offset
MOST_VENCS = 5.0  # unwrapped twice
STEPS = 2048.0  # of 12-bit phase: 0 to 4095 stand for -venc to venc
OWN = "/velocity/u"
RESAMPLE = "resample it onto the grid of the scan"


def read_flow(
    paths: Sequence[PathLike],
    volume: Volume,
    *,
    venc_ms: Sequence[float] | None = None,
    unit: str | None = None,
    axes: str | None = None,
    averaged: float = 1.0,
    limits: Limits = DEFAULT_LIMITS,
) -> Flow:
    """Read velocity.

    Parameters
    ----------
    paths : one or three paths
        One HDF5 file with ``u, v, w`` (t, nx, ny, nz) in m/s and ``venc_u`` … (the layout of
        4DFlowNet), or with ``/velocity/u`` as in a prior; or three images or DICOM folders, one a
        component, each 3-D or with frames.
    volume : Volume
        The scan; the velocity must lie on its grid.
    venc_ms : three floats, optional
        Encoding velocities, m/s; needed where the file states none.
    unit : {"m/s", "cm/s", "mm/s", "phase", "steps"}, optional
        ``phase``: radians, π = venc; ``steps``: 0 to 4095 for -venc to venc.
    axes : str, optional
        Where positive components point, see ``flow.in_world``.
    averaged : int
        Of how many magnitude images the scan is the mean.

    Raises
    ------
    DataError
        Another shape or unit, no venc, not finite.
    ConfigError
        Unit or axes missing or unknown, or another number of files.
    """
    if unit is not None and unit not in UNITS:
        raise ConfigError(
            "unknown unit", path="--velocity-unit", found=unit, need=" or ".join(UNITS)
        )
    if len(paths) == 1 and os.fspath(paths[0]).lower().endswith((".h5", ".hdf5")):
        notes: tuple[str, ...] = ()
        known: str | None
        parts, venc, digest, known = _from_hdf5(paths[0], volume, limits)
        unit, axes = unit or "m/s", axes or known
    elif len(paths) == 3:
        parts, venc, digest, notes, known = _from_three(paths, volume, limits)
        axes = axes or known
    else:
        need = "one HDF5 file with u, v, w, or three images, one a component"
        raise ConfigError("bad velocity", path="--velocity", found=f"{len(paths)} files", need=need)
    venc_ms = venc if venc_ms is None else venc_ms
    name = paths[0]
    if venc_ms is None:
        remedy = "give --venc, for example --venc 150cm/s"
        raise DataError("no venc", path=name, need="the encoding velocity", remedy=remedy)
    if unit is None:
        remedy = "give --velocity-unit " + "|".join(UNITS)
        raise ConfigError("unit of velocity not stated", path=name, remedy=remedy)
    if axes is None:
        remedy = "give --velocity-axes: where positive components point, such as RAS or +i-j+k"
        raise ConfigError("direction of velocity not stated", path=name, remedy=remedy)
    speeds = _in_ms(parts, unit, np.asarray(venc_ms, dtype=np.float64), name)
    notes += _beyond_venc(speeds, venc_ms, paths)
    try:
        return Flow(
            in_world(speeds, volume.grid, axes),
            volume.grid,
            tuple(float(v) for v in venc_ms),  # type: ignore[arg-type]
            base_name(name),
            digest,
            averaged,
            notes=notes,
        )
    except DataError as error:
        error.path = error.path or os.fspath(name)
        raise


def has_velocity(path: PathLike) -> bool:
    """Whether a file is HDF5 with ``u, v, w``, so that it is scan and velocity in one."""
    if not os.fspath(path).lower().endswith((".h5", ".hdf5")) or not Path(path).is_file():
        return False
    data = read_bytes_checked(path, limit=DEFAULT_LIMITS.expanded_bytes)
    with guard_hdf5(data, path=path, allowed_soft_links=viewer_link) as (_, datasets):
        return set(VELOCITY) <= set(datasets)


def _from_hdf5(
    path: PathLike, volume: Volume, limits: Limits
) -> tuple[Floats, tuple[float, ...] | None, str, str]:
    data = read_bytes_checked(path, limit=limits.expanded_bytes)
    digest = hashlib.sha256(data).hexdigest()
    with guard_hdf5(
        data, max_bytes=limits.expanded_bytes, path=path, allowed_soft_links=viewer_link
    ) as (file, datasets):
        if OWN in datasets:
            parts = read_array(datasets[OWN], path=path).astype(np.float32)
            venc = file["/velocity"].attrs.get("venc_ms")
            _require_shape(parts.shape[1:-1], volume, path)
            return parts, None if venc is None else tuple(np.ravel(venc)), digest, "RAS"
        if not set(VELOCITY) <= set(datasets):
            names = ", ".join(sorted(datasets)[:6]) or "nothing"
            raise DataError("no velocity in the file", path=path, found=names, need="u, v, w")
        found = [_component(datasets[name], path) for name in VELOCITY]
        venc = _vencs(datasets, path)
    if len({f.shape for f in found}) != 1:
        shapes = ", ".join(str(f.shape) for f in found)
        raise DataError("components of different shapes", path=path, found=shapes)
    parts = np.stack(found, axis=-1)
    _require_shape(parts.shape[1:-1], volume, path)
    return parts, venc, digest, "ijk"


def _component(dataset: h5py.Dataset, path: PathLike) -> Floats:
    """Return (t, nx, ny, nz) or (nx, ny, nz) as (t, nz, ny, nx), flat axes dropped."""
    values = read_array(dataset, path=path)
    if values.ndim not in (3, 4) or values.dtype.kind != "f":
        found = f"{dataset.name} {values.shape} {values.dtype}"
        raise DataError("bad velocity", path=path, found=found, need="(t,) nx, ny, nz floats")
    frames = values if values.ndim == 4 else values[None]
    turned = frames.transpose(0, 3, 2, 1)
    flat = tuple(a for a in range(1, 4) if turned.shape[a] == 1)
    return np.asarray(turned.squeeze(flat) if len(flat) == 1 else turned)


def _vencs(datasets: dict[str, h5py.Dataset], path: PathLike) -> tuple[float, ...] | None:
    names = ("/venc_u", "/venc_v", "/venc_w")
    if not set(names) <= set(datasets):
        return None
    largest = []
    for name in names:
        values = read_array(datasets[name], path=path)
        if values.dtype.kind not in "iuf" or not values.size:
            raise DataError(f"bad {name}", path=path, need="numbers of m/s")
        largest.append(float(np.max(values)))
    return tuple(largest)


def _from_three(
    paths: Sequence[PathLike], volume: Volume, limits: Limits
) -> tuple[Floats, tuple[float, ...] | None, str, tuple[str, ...], str | None]:
    found, notes, digests = [], list[str](), list[str]()
    vencs, known = list[float](), list[str]()
    for path in paths:
        values, grid, raw = read_frames(path, Choices(limits=limits))
        _require_shape(values.shape[1:], volume, path)
        if raw.placed and not grid.fits(volume.grid):
            fault = "velocity lies on another grid than the scan"
            shift = f"corners {grid.mismatch_mm(volume.grid):.3g} mm apart"
            raise DataError(fault, path=path, found=shift, remedy=RESAMPLE)
        found.append(values)
        notes += [note for note in raw.notes if note not in volume.notes]
        digests.append(raw.sha256)
        if raw.venc_ms is not None:
            vencs.append(raw.venc_ms)
        if raw.direction:
            known.append(raw.direction)
    if len({f.shape for f in found}) != 1:
        shapes = ", ".join(str(f.shape) for f in found)
        raise DataError("components of different shapes", path=paths[0], found=shapes)
    digest = hashlib.sha256("".join(digests).encode()).hexdigest()
    venc = tuple(vencs) if len(vencs) == 3 else None
    axes = "".join(known) if len(known) == 3 else None
    return np.stack(found, axis=-1), venc, digest, tuple(dict.fromkeys(notes)), axes


def _require_shape(shape: tuple[int, ...], volume: Volume, path: PathLike) -> None:
    if tuple(shape) != volume.values.shape:
        need = f"{volume.values.shape} as the scan"
        fault = "velocity of another shape"
        raise DataError(fault, path=path, found=tuple(shape), need=need, remedy=RESAMPLE)


def _in_ms(parts: Floats, unit: str, venc_ms: Floats, path: PathLike) -> Floats:
    """Scale by the unit; refuse phases and steps out of their range."""
    if unit in PER_MS:
        return parts * np.float32(PER_MS[unit])
    low, high = float(parts.min()), float(parts.max())
    least, most = (-np.pi, np.pi) if unit == "phase" else (0.0, 2 * STEPS - 1)
    slack = 1e-3 if unit == "phase" else 0.5
    if low < least - slack or high > most + slack:
        found, need = f"{low:.4g} to {high:.4g}", f"{least:.4g} to {most:.4g} for {unit}"
        remedy = "name the unit: --velocity-unit"
        raise DataError(
            "velocity of another unit", path=path, found=found, need=need, remedy=remedy
        )
    return parts / np.pi * venc_ms if unit == "phase" else (parts - STEPS) / STEPS * venc_ms


def _beyond_venc(
    speeds: Floats, venc_ms: Sequence[float], paths: Sequence[PathLike]
) -> tuple[str, ...]:
    """Doubt what a scan of that venc cannot measure; refuse what no unwrapping explains."""
    fastest = np.array([float(np.abs(speeds[..., c]).max()) for c in range(3)])
    worst = int(np.argmax(fastest / np.asarray(venc_ms)))
    found = f"{fastest[worst]:.3g} m/s at a venc of {venc_ms[worst]:g} m/s"
    if fastest[worst] > MOST_VENCS * venc_ms[worst]:
        remedy = "name the unit, such as --velocity-unit cm/s, and check --venc"
        path = paths[worst] if len(paths) == 3 else paths[0]
        raise DataError("velocity of another unit", path=path, found=found, remedy=remedy)
    if fastest[worst] > OVER_VENC * venc_ms[worst]:
        return (f"velocity beyond its venc, {found}: unwrapped already, or venc or unit is wrong",)
    return ()
