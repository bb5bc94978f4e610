"""What a user may pick of a file that holds more than one scan, and what a reader hands over."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, DataError
from .guard import DEFAULT_LIMITS, Limits

PathLike = str | os.PathLike[str]
Array = NDArray[Any]

COLOURS = ("R", "G", "B", "A")
PARTS: dict[str, Callable[[Array], Array]] = {
    "real": np.real,
    "imag": np.imag,
    "magnitude": np.abs,
    "phase": np.angle,
}


@dataclass(frozen=True)
class Choices:
    """The options of ``read_volume``."""

    frame: int | Literal["mean", "all"] | None = None
    component: int | str | None = None
    part: str | None = None
    spacing_mm: float | Sequence[float] | None = None
    nan_fill: float | None = None
    key: str | None = None
    roi: tuple[slice, ...] | None = None
    limits: Limits = DEFAULT_LIMITS


@dataclass(frozen=True, eq=False)
class Raw:
    """One scan as a format's reader found it.

    Parameters
    ----------
    values : (nz, ny, nx) or (ny, nx) array of real numbers
    affine : (4, 4) array or None
        ``(i, j, k, 1)`` to RAS+ mm; None if the format holds no voxel size.
    sha256 : str
        Digest of the file.
    placed : bool
        Whether the file says where the scan lies in the world.
    venc_ms : float, optional
        Encoding velocity that the file states.
    direction : str
        Where a positive velocity points, as a signed axis of the image, if the file says so.
    """

    values: Array
    affine: NDArray[np.float64] | None
    sha256: str
    placed: bool = True
    notes: tuple[str, ...] = ()
    venc_ms: float | None = None
    direction: str = ""


def pick_frame(
    load: Callable[[int], Array],
    shape: tuple[int, ...],
    frames: int,
    choices: Choices,
    path: PathLike,
) -> Array:
    """Load the chosen frame, the mean of all, all along a first axis, or the only one."""
    frame = choices.frame
    if frame == "all":
        return np.stack([load(t) for t in range(frames)])
    if frame == "mean":
        total = load(0).astype(np.float64)
        for t in range(1, frames):
            total += load(t)
        return total / frames
    if frame is None and frames > 1:
        need, remedy = "one frame", f"choose with --frame 0 to {frames - 1} or --frame mean"
        raise DataError(
            f"{frames} frames", path=path, found=f"shape {shape}", need=need, remedy=remedy
        )
    index = 0 if frame is None else int(frame)
    if not 0 <= index < frames:
        raise ConfigError("no such frame", path=path, found=frame, need=f"0 to {frames - 1}")
    return load(index)


def pick_component(
    names: Sequence[str], shape: tuple[int, ...], choices: Choices, path: PathLike
) -> int:
    """Return the index of the chosen component, given by name or index."""
    if choices.component is None:
        found, remedy = f"shape {shape}", f"choose with --component {'|'.join(names[:8])}"
        fault = f"{len(names)} components"
        raise DataError(fault, path=path, found=found, need="one component", remedy=remedy)
    if str(choices.component) not in names:
        need = ", ".join(names[:8])
        raise ConfigError("no such component", path=path, found=choices.component, need=need)
    return list(names).index(str(choices.component))


def real_numbers(values: Array, choices: Choices, path: PathLike) -> Array:
    """Take the chosen part of complex numbers; refuse what float64 cannot hold."""
    if values.dtype.kind == "c" and values.dtype.itemsize <= 16:
        if choices.part not in PARTS:
            remedy = f"choose with --part {'|'.join(PARTS)}"
            raise DataError("complex image", path=path, need="one part", remedy=remedy)
        return PARTS[choices.part](values)
    if values.dtype.kind == "b":
        return values.astype(np.uint8)
    if values.dtype.kind not in "iuf" or (values.dtype.kind == "f" and values.dtype.itemsize > 8):
        remedy = "save it as float32"
        raise DataError("unusable number type", path=path, found=values.dtype, remedy=remedy)
    wide = values.dtype.kind in "iu" and values.dtype.itemsize == 8
    if wide and max(int(values.max()), -int(values.min())) > 1 << 53:
        raise DataError("integers beyond 2^53", path=path, remedy="rescale the image")
    return values
