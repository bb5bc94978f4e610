"""MATLAB files: arrays of version 5 to 7 (by SciPy) and of 7.3, which is HDF5.

MATLAB's ``A(i, j, k)`` becomes ``[k, j, i]``, as for NIfTI.
"""

from __future__ import annotations

import hashlib
import io
import os
import struct
import warnings
import zlib

import numpy as np
from scipy.io import loadmat, whosmat
from scipy.io.matlab import MatReadError

from ..errors import ConfigError, DataError
from .choices import Array, Choices, Raw, pick_frame, real_numbers
from .guard import read_bytes_checked
from .hdf5_guard import guard_hdf5, read_array

PathLike = str | os.PathLike[str]

HDF5 = b"\x89HDF\r\n\x1a\n"
USER_BLOCK = 512
NUMBERS = {"single": 4, "double": 8, "logical": 1} | {
    f"{sign}int{8 * size}": size for sign in ("", "u") for size in (1, 2, 4, 8)
}
DAMAGED = (
    MatReadError, ValueError, TypeError, KeyError, IndexError, OSError, EOFError, AttributeError,
    OverflowError, MemoryError, NotImplementedError, UnicodeDecodeError, struct.error, zlib.error,
)  # fmt: skip


def read(path: PathLike, choices: Choices) -> Raw:
    """Read the only array with two axes longer than one, or the one named by ``key``."""
    data = read_bytes_checked(path, limit=choices.limits.expanded_bytes)
    digest = hashlib.sha256(data).hexdigest()
    if data[USER_BLOCK : USER_BLOCK + len(HDF5)] == HDF5:
        array = _version_7_3(data, choices, path)
    else:
        array = _version_5(data, choices, path)
    frames = array if array.ndim == 4 else array[None]
    values = pick_frame(
        lambda t: real_numbers(frames[t], choices, path), array.shape, len(frames), choices, path
    )
    return Raw(values, None, digest, placed=False)


def _version_5(data: bytes, choices: Choices, path: PathLike) -> Array:
    try:
        with warnings.catch_warnings(action="ignore"):
            found = whosmat(io.BytesIO(data))
            shapes = {n: shape for n, shape, kind in found if kind in NUMBERS}
            sizes = {n: NUMBERS[kind] for n, _, kind in found if kind in NUMBERS}
            key = _chosen(shapes, choices, path)
            shape = shapes[key]
            choices.limits.check(shape[::-1], 2 * sizes[key], path, min(len(shape), 3))
            array = np.asarray(loadmat(io.BytesIO(data), variable_names=[key])[key])
    except DAMAGED as error:
        raise DataError("not a readable MATLAB file", path=path) from error
    return array.T


def _version_7_3(data: bytes, choices: Choices, path: PathLike) -> Array:
    limit = choices.limits.expanded_bytes
    with guard_hdf5(data, max_bytes=limit, path=path, what="MATLAB file") as (_, datasets):
        arrays = {n.lstrip("/"): d for n, d in datasets.items() if not n.startswith("/#")}
        key = _chosen({n: d.shape or () for n, d in arrays.items()}, choices, path)
        dataset = arrays[key]
        shape = dataset.shape
        choices.limits.check(shape, max(dataset.dtype.itemsize, 1), path, min(len(shape), 3))
        values = read_array(dataset, path=path)
    if values.dtype.names == ("real", "imag"):
        return np.asarray(values["real"] + 1j * values["imag"])
    return values


def _chosen(shapes: dict[str, tuple[int, ...]], choices: Choices, path: PathLike) -> str:
    """Return the array's name; scalars, vectors and more than four axes are no images."""
    images = [n for n, s in shapes.items() if len(s) <= 4 and sum(length > 1 for length in s) >= 2]
    names = ", ".join(sorted(images)[:8]) or "none"
    if choices.key is None and len(images) != 1:
        fault, remedy = f"{len(images)} arrays", "choose with --key NAME"
        raise DataError(fault, path=path, found=names, need="one", remedy=remedy)
    key = images[0] if choices.key is None else choices.key
    if key not in images:
        raise ConfigError("no such array", path=path, found=key, need=names)
    return key
