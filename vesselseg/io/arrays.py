"""NumPy files: ``.npy`` and ``.npz``, never with pickle."""

from __future__ import annotations

import hashlib
import io
import os
import tokenize
import warnings
import zipfile
import zlib

import numpy as np

from ..errors import ConfigError, DataError
from .choices import Choices, Raw, pick_frame, real_numbers
from .guard import read_bytes_checked

PathLike = str | os.PathLike[str]

HEADER_BYTES = 4096
DAMAGED = (
    ValueError, KeyError, TypeError, SyntaxError, tokenize.TokenError, RecursionError, MemoryError,
)  # fmt: skip
READERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def read(path: PathLike, choices: Choices) -> Raw:
    """Read ``[k, j, i]`` or ``[j, i]``, or frames of them along a leading axis of a 4-D array."""
    data = read_bytes_checked(path, limit=choices.limits.expanded_bytes)
    digest = hashlib.sha256(data).hexdigest()
    if str(path).lower().endswith(".npz"):
        data = _member(data, choices, path)
    shape, fortran, dtype, offset = _header(data, path)
    size = choices.limits.check(shape, dtype.itemsize, path, min(len(shape), 3))
    if len(data) != offset + size:
        fault = f"truncated or padded: needs {offset + size} bytes, has {len(data)}"
        raise DataError(fault, path=path)
    flat = np.frombuffer(data, dtype, offset=offset)
    array = flat.reshape(shape[::-1]).T if fortran else flat.reshape(shape)
    frames = array if len(shape) == 4 else array[None]
    values = pick_frame(
        lambda t: real_numbers(frames[t], choices, path), shape, len(frames), choices, path
    )
    return Raw(values, None, digest, placed=False)


def _header(data: bytes, path: PathLike) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    stream = io.BytesIO(data)
    try:
        with warnings.catch_warnings(action="ignore"):
            version = np.lib.format.read_magic(stream)
            shape, fortran, dtype = READERS[version](stream, max_header_size=HEADER_BYTES)
    except DAMAGED as error:
        raise DataError("not a NumPy array", path=path, remedy="write it by numpy.save") from error
    if dtype.hasobject or dtype.fields or not dtype.itemsize:
        remedy = "save numbers, without pickle"
        raise DataError("holds objects, not numbers", path=path, found=dtype, remedy=remedy)
    if not 2 <= len(shape) <= 4 or min(shape) < 1:
        raise DataError("bad shape", path=path, found=shape, need="(t,) nz, ny, nx or ny, nx")
    return shape, fortran, dtype, stream.tell()


def _member(data: bytes, choices: Choices, path: PathLike) -> bytes:
    """Return the bytes of the chosen array of an archive; nothing is extracted to disk."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = {i.filename.removesuffix(".npy"): i for i in archive.infolist()}
            info = members[_key(members, choices, path)]
            if info.flag_bits & 1 or info.compress_type not in (0, zipfile.ZIP_DEFLATED):
                raise DataError("encrypted or unknown compression", path=path, found=info.filename)
            with archive.open(info) as file:
                head = file.read(HEADER_BYTES + 16)
                shape, _, dtype, offset = _header(head, path)
                size = choices.limits.check(shape, dtype.itemsize, path, min(len(shape), 3))
                return head + file.read(max(offset + size + 1 - len(head), 1))
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, RuntimeError) as error:
        raise DataError("damaged archive", path=path, remedy="write it again") from error


def _key(members: dict[str, zipfile.ZipInfo], choices: Choices, path: PathLike) -> str:
    names = ", ".join(sorted(members)[:8])
    for name in members:
        if name.startswith("/") or ".." in name.replace("\\", "/").split("/"):
            raise DataError("bad member name", path=path, found=name)
    if choices.key is None and len(members) != 1:
        fault = f"{len(members)} arrays"
        raise DataError(fault, path=path, found=names, remedy="choose with --key NAME")
    key = next(iter(members)) if choices.key is None else choices.key
    if key not in members:
        raise ConfigError("no such array", path=path, found=key, need=names)
    return key
