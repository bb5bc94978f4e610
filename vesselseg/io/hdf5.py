"""HDF5 images: velocity components in the 4DFlowNet layout, or one dataset."""

from __future__ import annotations

import hashlib
import os

import h5py
import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, DataError
from .choices import Array, Choices, Raw, pick_frame, real_numbers
from .guard import read_bytes_checked
from .hdf5_guard import DAMAGED, guard_hdf5, read_array, viewer_link

PathLike = str | os.PathLike[str]

UNPLACED = "no orientation in the file: axes taken as right, anterior, superior"
VELOCITY = ("/u", "/v", "/w")
PRIOR = "/geometry/phi_mean"
MAGNITUDE = ("/mag_u", "/mag_v", "/mag_w")


def read(path: PathLike, choices: Choices) -> Raw:
    """Read a flow scan of the 4DFlowNet layout, or a dataset [k, j, i].

    ``u, v, w`` are (t, nx, ny, nz) with ``dx`` in mm; the image is the root mean square of
    ``mag_u, mag_v, mag_w`` where they are there, else the speed.
    """
    limit = choices.limits.expanded_bytes
    data = read_bytes_checked(path, limit=limit)
    digest = hashlib.sha256(data).hexdigest()
    with guard_hdf5(data, max_bytes=limit, allowed_soft_links=viewer_link, path=path) as found:
        _, datasets = found
        if choices.key is None and PRIOR in datasets:
            remedy = "give the scan it was made of; vesselseg info names it"
            raise DataError("a boundary prior is no scan", path=path, remedy=remedy)
        if choices.key is None and set(VELOCITY) <= set(datasets):
            return _velocity(datasets, digest, choices, path)
        return _single(datasets, digest, choices, path)


def _velocity(
    datasets: dict[str, h5py.Dataset], digest: str, choices: Choices, path: PathLike
) -> Raw:
    parts = [datasets[name] for name in VELOCITY]
    shape = parts[0].shape
    if len(shape) not in (3, 4) or any(p.shape != shape or p.dtype.kind != "f" for p in parts):
        found = ", ".join(f"{p.name} {p.shape} {p.dtype}" for p in parts)
        raise DataError("bad velocity", path=path, found=found, need="three equal float arrays")
    choices.limits.check(shape, 4, path)
    lit = set(MAGNITUDE) <= set(datasets)
    chosen = choices.component or ("magnitude" if lit else "speed")
    offered = (*(("magnitude",) if lit else ()), "speed", "u", "v")
    if chosen not in (*offered, "w"):
        need = ", ".join(offered) + " or w"
        raise ConfigError("no such component", path=path, found=chosen, need=need)
    if chosen == "magnitude":
        parts = [datasets[name] for name in MAGNITUDE]
        if any(p.shape != shape or p.dtype.kind not in "iuf" for p in parts):
            raise DataError("bad magnitude", path=path, need=f"three arrays of shape {shape}")
    wanted = [datasets[f"/{chosen}"]] if chosen in ("u", "v", "w") else parts

    def load(frame: int) -> NDArray[np.float64]:
        select = (frame,) if len(shape) == 4 else ()
        fields = [read_array(p, select, path=path).astype(np.float64) for p in wanted]
        field = fields[0] if len(fields) == 1 else np.sqrt(sum(f * f for f in fields))
        return field.T / (np.sqrt(3.0) if chosen == "magnitude" else 1.0)

    frames = shape[0] if len(shape) == 4 else 1
    values = pick_frame(load, shape, frames, choices, path)
    notes = (UNPLACED, f"{chosen} of the velocity taken as the image")
    size = _triple(datasets.get("/dx"), path)
    if size is None:
        return Raw(values, None, digest, False, notes)
    affine = np.diag([*size, 1.0])
    origin = _triple(datasets.get("/origin"), path)
    affine[:3, 3] = 0.0 if origin is None else origin
    return Raw(values, affine, digest, False, (*notes, "voxel size dx taken as mm"))


def _single(
    datasets: dict[str, h5py.Dataset], digest: str, choices: Choices, path: PathLike
) -> Raw:
    images = {n.lstrip("/"): d for n, d in datasets.items() if len(d.shape or ()) in (2, 3, 4)}
    names = ", ".join(sorted(images)[:8]) or "none"
    if choices.key is None and len(images) != 1:
        fault, remedy = f"{len(images)} image datasets", "choose with --key NAME"
        raise DataError(fault, path=path, found=names, need="one", remedy=remedy)
    key = next(iter(images)) if choices.key is None else choices.key.lstrip("/")
    if key not in images:
        raise ConfigError("no such dataset", path=path, found=key, need=names)
    dataset = images[key]
    shape = dataset.shape
    choices.limits.check(shape, max(dataset.dtype.itemsize, 1), path, min(len(shape), 3))

    def load(frame: int) -> Array:
        plain = read_array(dataset, (frame,) if len(shape) == 4 else (), path=path)
        return real_numbers(plain, choices, path)

    values = pick_frame(load, shape, shape[0] if len(shape) == 4 else 1, choices, path)
    spacing = _spacing(dataset, values.ndim, path)
    if spacing is None:
        return Raw(values, None, digest, False)
    affine = np.diag([*[*spacing[::-1], 1.0][:3], 1.0])
    return Raw(values, affine, digest, False, (UNPLACED,))


def _triple(dataset: h5py.Dataset | None, path: PathLike) -> NDArray[np.float64] | None:
    """Return the first row of a (n, 3) or (3) dataset."""
    if dataset is None:
        return None
    if dataset.dtype.kind not in "iuf" or dataset.shape[-1:] != (3,) or dataset.size > 3000:
        raise DataError(f"bad {dataset.name}", path=path, found=dataset.shape, need="(n, 3)")
    return np.array(read_array(dataset, path=path).reshape(-1, 3)[0], dtype=np.float64)


def _spacing(dataset: h5py.Dataset, ndim: int, path: PathLike) -> NDArray[np.float64] | None:
    """Return the attribute ``spacing_mm`` in array-axis order, if there is one."""
    try:
        if "spacing_mm" not in dataset.attrs:
            return None
        spacing = np.asarray(dataset.attrs["spacing_mm"], dtype=np.float64).ravel()
    except DAMAGED as error:
        raise DataError("bad spacing_mm", path=path, need=f"{ndim} numbers") from error
    if spacing.size not in (1, ndim) or not (spacing > 0).all():
        raise DataError("bad spacing_mm", path=path, found=spacing, need=f"{ndim} numbers > 0")
    return np.broadcast_to(spacing, (ndim,))
