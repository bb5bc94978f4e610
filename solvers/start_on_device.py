"""How a refinement begins on a device: arrays taken as they lie, checked, redistanced there.

What a refinement makes room for, its graphs among it, is kept on its device for the next one of the
same kind, one kind at a time; ``Device.release`` gives it back.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from vesselseg.cuda_kernels.gate import count_within
from vesselseg.cuda_kernels.reduce import CHUNKS

from .field import finite_range, no_interface, non_finite
from .lagged import face_samples
from .on_device import Array, Box, Device, Layers, box_of, launch_redistance, to_host
from .step import Problem
from .watch import Watch, require_thick

Room = TypeVar("Room")
Bring = Callable[[Any], Any]  # takes a field of the device to where the caller wants it


@contextmanager
def borrowed(device: Device, kind: Hashable, make: Callable[[], Room]) -> Iterator[Room]:
    """Lend what is kept of a kind, or make it; it is kept again unless something went wrong.

    Of two refinements at once on one device each has its own.
    """
    room = device.kept.pop(kind, None)
    if room is None:
        device.release()  # before there are two
        room = make()
    yield room
    device.release()
    device.kept[kind] = room


@dataclass(frozen=True)
class Survey:
    """What is seen of an array: whether a value lies below zero, how many are near it."""

    negative: bool
    near: int


def survey(device: Device, values: Array, what: str, near: float = 0.0) -> Survey:
    """Look once at an array where it lies; refuse one that is not finite."""
    if not isinstance(values, device.xp.ndarray):
        low, _ = finite_range(values, what)
        return Survey(low < 0.0, int(count_within(values.reshape(-1), -near, near)))
    box = box_of(device, values, (1.0,) * 3)
    found = box.zeros(3, dtype=np.int32)
    box.launch("survey", values, near, found, values.size)
    lost, below, within = (int(n) for n in to_host(device, found))
    if lost:
        raise non_finite(lost, what)
    return Survey(below > 0, within)


def launch_start(
    box: Box, layers: Layers, given: Array, band_mm: float, start: Array, clock: Array,
    parts: Array, sums: Array,
) -> None:  # fmt: skip
    """Redistance a start, which is clamped in place, and sum what has to be known of it."""
    diameter = float(np.linalg.norm(np.multiply(box.shape, box.spacing)))
    box.launch("band_clamp", given, diameter, box.size)
    launch_redistance(box, layers, given, band_mm, start)
    h = max(box.spacing)
    box.launch("wall_sums", start, start, start, clock, h, h, parts, *box.shape)
    box.device.launch("total", parts, sums, CHUNKS, 4)


def watch_over(problem: Problem, found: int, sums: np.ndarray) -> Watch:
    """Judge a start by the voxels found about its wall and its sums; begin the watch over it."""
    if found == 0:
        raise no_interface()
    voxel = float(np.prod(problem.spacing))
    _, near, lumen, in_faces = (float(s) for s in sums)
    require_thick(lumen * voxel, near, problem.spacing)
    faces = in_faces / face_samples(problem.start.shape)
    return Watch(lumen * voxel, faces, problem.spacing, problem.settings)


def kind_of(problem: Problem, *more: Any) -> Hashable:
    """Return what two refinements must share to take the same launches."""
    facts = problem.start.shape, str(problem.start.dtype), problem.spacing, problem.band_mm
    return (*facts, problem.wall_dims, problem.settings, len(problem.channels), *more)
