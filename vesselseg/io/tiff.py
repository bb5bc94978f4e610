"""TIFF images: one grey or colour picture, or a stack of grey ones."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import struct
import zlib

import numpy as np
import tifffile

from ..errors import DataError
from .choices import COLOURS, Choices, Raw, pick_component, real_numbers
from .guard import read_bytes_checked

PathLike = str | os.PathLike[str]

DAMAGED = (
    tifffile.TiffFileError, ValueError, TypeError, KeyError, IndexError, OSError, EOFError,
    AttributeError, OverflowError, MemoryError, NotImplementedError, ArithmeticError,
    RuntimeError, ImportError, struct.error, zlib.error, AssertionError,
)  # fmt: skip

logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # its complaints are ours to make


def read(path: PathLike, choices: Choices) -> Raw:
    """Read ``[j, i]`` or ``[k, j, i]``; colours are components, a file without size has none."""
    data = read_bytes_checked(path, limit=choices.limits.expanded_bytes)
    digest = hashlib.sha256(data).hexdigest()
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            series = file.series
            shape = series[0].shape if series else ()
            axes = series[0].axes if series else ""
            itemsize = 0 if not series or series[0].dtype is None else series[0].dtype.itemsize
            if len(series) == 1 and 2 <= len(shape) <= 4 and itemsize:
                choices.limits.check(shape, itemsize, path, min(len(shape), 3))
                array = np.asarray(series[0].asarray(maxworkers=1))
    except DAMAGED as error:
        fault = str(error).partition("\n")[0] or type(error).__name__
        raise DataError(f"not a readable TIFF: {fault}", path=path) from error
    colour = "S" in axes
    if len(series) != 1 or len(shape) - colour not in (2, 3) or not itemsize or min(shape) < 1:
        found = f"{len(series)} images, axes {axes or 'none'}"
        raise DataError("bad TIFF", path=path, found=found, need="one picture or one stack")
    if colour:
        array = np.moveaxis(array, axes.index("S"), 0)
        number = pick_component(COLOURS[: len(array)], array.shape[1:], choices, path)
        array = array[number]
    return Raw(real_numbers(array, choices, path), None, digest, placed=False)
