"""MATLAB files: arrays of version 5 to 7 (by SciPy) and of 7.3, which is HDF5.

MATLAB's ``A(i, j, k)`` becomes ``[k, j, i]``, as for NIfTI. Fields of structs are named
``STRUCT.field``; several arrays with commas between them are the frames of one image, so that
``--key S.a,S.b --part magnitude --frame mean`` is the mean modulus of two complex ones.
"""

from __future__ import annotations

import hashlib
import io
import os
import struct
import warnings
import zlib
from collections.abc import Iterator

import numpy as np
from scipy.io import loadmat, whosmat
from scipy.io.matlab import MatReadError

from ..errors import ConfigError, DataError
from .choices import Array, Choices, Raw, pick_frame, real_numbers
from .guard import read_bytes_checked, size_text
from .hdf5_guard import guard_hdf5, read_array

PathLike = str | os.PathLike[str]

HDF5 = b"\x89HDF\r\n\x1a\n"
USER_BLOCK = 512
HEADER = 128
PACKED = 15  # type of an element of a version 5 file that zlib has compressed
WIDEST = 8  # bytes of a number that a file may store as one
NUMBERS = {"single": 4, "double": 8, "logical": 1} | {
    f"{sign}int{8 * size}": size for sign in ("", "u") for size in (1, 2, 4, 8)
}
DAMAGED = (
    MatReadError, ValueError, TypeError, KeyError, IndexError, OSError, EOFError, AttributeError,
    OverflowError, MemoryError, NotImplementedError, UnicodeDecodeError, struct.error, zlib.error,
)  # fmt: skip


def read(path: PathLike, choices: Choices) -> Raw:
    """Read the only array with two axes longer than one, or those named by ``key``."""
    data = read_bytes_checked(path, limit=choices.limits.expanded_bytes)
    digest = hashlib.sha256(data).hexdigest()
    if data[USER_BLOCK : USER_BLOCK + len(HDF5)] == HDF5:
        found = _version_7_3(data, choices, path)
    else:
        found = _version_5(data, choices, path)
    if len({array.shape for array in found}) > 1:
        shapes = ", ".join(str(array.shape) for array in found)
        raise DataError("arrays of several shapes", path=path, found=shapes, need="one shape")
    frames = found[0] if found[0].ndim == 4 and len(found) == 1 else found
    values = pick_frame(
        lambda t: real_numbers(frames[t], choices, path),
        (len(frames), *found[0].shape[-3:]), len(frames), choices, path,
    )  # fmt: skip
    return Raw(values, None, digest, placed=False)


def _version_5(data: bytes, choices: Choices, path: PathLike) -> list[Array]:
    limits = choices.limits
    try:
        with warnings.catch_warnings(action="ignore"):
            found = whosmat(io.BytesIO(data))
            shapes = {n: shape for n, shape, kind in found if kind in NUMBERS}
            sizes = {n: NUMBERS[kind] for n, _, kind in found if kind in NUMBERS}
            held: dict[str, Array] = {}
            structs = [n for n, _, kind in found if kind == "struct"]
            if structs and ("." in (choices.key or "") or not _images(shapes)):
                _require_small(data, limits.expanded_bytes // WIDEST, path)
                read = loadmat(io.BytesIO(data), variable_names=structs)
                held = {k: v for name in structs for k, v in _fields(name, read[name])}
                shapes |= {name: array.shape for name, array in held.items()}
                sizes |= {name: array.itemsize for name, array in held.items()}
            keys = _chosen(shapes, choices, path)
            for key in keys:
                shape = shapes[key]
                limits.check(shape[::-1], 2 * sizes[key], path, min(len(shape), 3))
            plain = [key for key in keys if key not in held]
            held |= loadmat(io.BytesIO(data), variable_names=plain) if plain else {}
    except DAMAGED as error:
        raise DataError("not a readable MATLAB file", path=path) from error
    return [np.asarray(held[key]).T for key in keys]


def _fields(name: str, record: Array) -> Iterator[tuple[str, Array]]:
    """Yield the arrays of numbers in a struct, and in those inside it, by their names."""
    if record.dtype.names is None or record.size != 1:
        return
    for field in record.dtype.names:
        value = np.asarray(record[field].item())
        if value.dtype.kind in "biufc":
            yield f"{name}.{field}", value
        yield from _fields(f"{name}.{field}", value)


def _require_small(data: bytes, most: int, path: PathLike) -> None:
    """Refuse a version 5 file whose structs may unpack to too much: their shapes are inside."""
    order = "<" if data[HEADER - 2 : HEADER] == b"IM" else ">"
    at, total = HEADER, 0
    while at + 8 <= len(data) and total <= most:
        kind, size = struct.unpack_from(f"{order}II", data, at)
        body = data[at + 8 : at + 8 + size]
        if kind == PACKED:
            size = len(zlib.decompressobj().decompress(body, most - total + 1))
        total += size
        at += 8 + len(body)
    if total > most:
        need, remedy = f"at most {size_text(most)}", "save its arrays by themselves, or as 7.3"
        raise DataError("structs too large", path=path, need=need, remedy=remedy)


def _version_7_3(data: bytes, choices: Choices, path: PathLike) -> list[Array]:
    limit = choices.limits.expanded_bytes
    with guard_hdf5(data, max_bytes=limit, path=path, what="MATLAB file") as (_, datasets):
        arrays = {
            n.lstrip("/").replace("/", "."): d
            for n, d in datasets.items()
            if not n.startswith("/#")
        }
        keys = _chosen({n: d.shape or () for n, d in arrays.items()}, choices, path)
        found = []
        for dataset in (arrays[key] for key in keys):
            shape = dataset.shape
            choices.limits.check(shape, max(dataset.dtype.itemsize, 1), path, min(len(shape), 3))
            values = read_array(dataset, path=path)
            if values.dtype.names == ("real", "imag"):
                values = np.asarray(values["real"] + 1j * values["imag"])
            found.append(values)
    return found


def _images(shapes: dict[str, tuple[int, ...]]) -> list[str]:
    """Return the names of arrays; scalars, vectors and more than four axes are no images."""
    return [n for n, s in shapes.items() if len(s) <= 4 and sum(length > 1 for length in s) >= 2]


def _chosen(shapes: dict[str, tuple[int, ...]], choices: Choices, path: PathLike) -> list[str]:
    """Return the names of the chosen arrays, or of the only one."""
    images = _images(shapes)
    names = ", ".join(sorted(images)[:8]) or "none"
    if choices.key is None and len(images) != 1:
        fault, remedy = f"{len(images)} arrays", "choose with --key NAME"
        raise DataError(fault, path=path, found=names, need="one", remedy=remedy)
    keys = images[:1] if choices.key is None else choices.key.split(",")
    for key in keys:
        if key not in images:
            raise ConfigError("no such array", path=path, found=key, need=names)
    return keys
