"""Redistancing and evolution through the CUDA kernels, launched without waiting for the device.

A ``Device`` (``cuda_kernels.launch``) holds the arrays and launches kernels on them; a ``Box`` adds
what stays the same for one field. The functions here only launch: they can be recorded once as a
graph and replayed. They take the decisions of the Numba path, which is the reference.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np

from vesselseg.cuda_kernels import launch
from vesselseg.cuda_kernels.tiles import ROWS, tile_count
from vesselseg.errors import DataError

from .field import checked, like_input, no_interface, non_finite, width_of
from .schemes import CFL, REACH, Scheme, require_width, step_limit, steps_for
from .tiles import Extreme
from .watch import SLACK, at_rim, lost

Device = Any  # cuda_kernels.launch.Device, or what launches the same kernels in the tests
Array = Any  # of the device: CuPy's, or NumPy's in the tests
WIDE_CORRECTIONS = 3  # rounds on the whole device; the few voxels after them keep one block busy
CORRECTIONS = 64


@dataclass(frozen=True, eq=False)
class Box:
    """A field's device, shape, spacing and type."""

    device: Device
    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    dtype: Any

    @property
    def size(self) -> int:
        """Number of voxels."""
        return math.prod(self.shape)

    @property
    def real(self) -> str:
        """The C type of the field."""
        return {"float32": "float", "float64": "double"}[np.dtype(self.dtype).name]

    def empty(self, *shape: int, dtype: Any = None) -> Array:
        """Return an array of the device, by default of the field's shape and type."""
        return self.device.xp.empty(shape or self.shape, dtype or self.dtype)

    def zeros(self, *shape: int, dtype: Any) -> Array:
        """Return an array of zeros."""
        return self.device.xp.zeros(shape, dtype)

    def launch(self, name: str, *args: Any, template: str = "") -> None:
        """Launch the instance of a kernel for the type of the field."""
        self.device.launch(f"{name}<{self.real}{template}>", *args)

    def clear(self, out: Array) -> None:
        """Set every entry to zero, on the device; the array holds whole words."""
        words = out.view(np.uint32)
        self.device.launch("clear", words, words.size)

    def copy(self, source: Array, out: Array) -> None:
        """Copy a field, on the device."""
        self.launch("copy", source, out, self.size)


def box_of(device: Device, phi: Array, spacing: Sequence[float]) -> Box:
    """Return the box of a 3-D field of the device."""
    return Box(device, tuple(phi.shape), tuple(map(float, spacing)), phi.dtype)


# --- redistancing ------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Layers:
    """Room for the closest points of every voxel, and for the lists that find them."""

    layer: Array  # i16: 0 unknown, p found in pass p, -p the same beyond the band
    offset: Array
    distance: Array
    voxels: Array
    count: Array
    waiting: tuple[tuple[Array, Array], tuple[Array, Array]]
    flag: Array  # a bit a voxel
    candidates: tuple[Array, Array]
    which: tuple[Array, Array]
    new: tuple[Array, Array]
    first: Array


def layers_for(box: Box) -> Layers:
    """Make the room; about sixty bytes a voxel."""
    n = box.size

    def listed() -> tuple[Array, Array]:
        return box.empty(n, dtype=np.int32), box.zeros(1, dtype=np.int32)

    return Layers(
        layer=box.empty(n, dtype=np.int16),
        offset=box.empty(n, 3, dtype=np.float32),
        distance=box.empty(n, dtype=np.float64),
        voxels=box.empty(n, dtype=np.int32),
        count=box.zeros(1, dtype=np.int32),
        waiting=(listed(), listed()),
        flag=box.empty(-(-n // 32), dtype=np.uint32),
        candidates=listed(),
        which=listed(),
        new=(box.empty(n, 3, dtype=np.float32), box.empty(n, dtype=np.float64)),
        first=box.zeros(1, dtype=np.int32),
    )


def launch_redistance(box: Box, room: Layers, phi: Array, band: float, out: Array) -> None:
    """Signed distance to the zero set of phi, clamped to the band: ``solvers.redistancing``.

    ``room.count`` is zero afterwards where phi has no wall.
    """
    launch_closest_points(box, room, phi, band)
    box.launch("fill_far", phi, band, out, box.size)
    box.launch("write_distance", phi, room.voxels, room.distance, room.count, band, out)


def launch_closest_points(box: Box, room: Layers, phi: Array, band: float) -> None:
    """Find the closest wall points in layers of one voxel, then correct where fronts met.

    The layers that a wall of any shape has are launched on the whole device; what is left after
    them, a few voxels at tips and creases, is finished by one block.
    """
    found = (room.layer, room.offset, room.distance)
    shell = min(box.spacing)
    box.clear(room.flag)
    box.clear(room.count)
    box.launch("list_interface", phi, room.layer, room.voxels, room.count, *box.shape)
    box.launch("seed_closest", phi, room.voxels, room.count, room.offset, room.distance,
               *box.shape, *box.spacing, template=",double")  # fmt: skip
    waiting, still = room.waiting
    box.device.launch("keep_count", room.count, waiting[1], still[1])
    source = room.voxels
    last = math.ceil(band / shell) + 1
    for p in range(2, last + 1):
        box.device.launch("keep_count", room.count, room.first, still[1])
        box.device.launch("next_layer", room.layer, room.distance, source, waiting[1], *still,
                          room.voxels, room.count, (p - 1) * shell, p, *box.shape)  # fmt: skip
        box.launch("grow_closest", phi, *found, room.voxels, room.first, room.count, *still, band,
                   p, *box.shape, *box.spacing, template=",double")  # fmt: skip
        waiting, still = still, waiting
        source = waiting[0]
    box.launch("finish_layers", phi, *found, room.voxels, room.count, *waiting, *still, band,
               last + 1, *box.shape, *box.spacing, template=",double")  # fmt: skip
    launch_corrections(box, room, phi, band)


def launch_corrections(box: Box, room: Layers, phi: Array, band: float) -> None:
    """Let nearer closest points replace others, neighbour by neighbour."""
    found = (room.layer, room.offset, room.distance)
    candidates = (room.voxels, room.count)
    for _ in range(WIDE_CORRECTIONS):
        box.clear(room.which[1])
        box.device.launch("find_improvable<double>", *found, *candidates, room.flag, *room.which,
                          *box.shape, *box.spacing)  # fmt: skip
        box.clear(room.candidates[1])
        box.launch("improve_closest", phi, room.layer, room.offset, *room.which, *room.new,
                   *box.shape, *box.spacing, template=",double")  # fmt: skip
        box.device.launch("put_improved", *found, *room.which, *room.new, band, room.flag,
                          *room.candidates, *box.shape)  # fmt: skip
        candidates = room.candidates
    box.launch("finish_corrections", phi, *found, *room.which, *room.new, band, room.flag,
               *room.candidates, CORRECTIONS - WIDE_CORRECTIONS, *box.shape, *box.spacing,
               template=",double")  # fmt: skip


# --- evolution ---------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Band:
    """The tiles of a band, and what was seen of phi in it.

    ``seen`` holds the largest |phi| of the band and the smallest of its rim, each as the bits of
    a float above the number of its voxel.
    """

    tiles: Array
    count: Array
    bits: Array
    rim: Array

    @property
    def listed(self) -> tuple[Array, Array, Array]:
        """Tiles, their number, the voxels that move."""
        return self.tiles, self.count, self.bits


def band_for(box: Box) -> Band:
    """Make room for the tiles of the whole box."""
    room = tile_count(box.shape)
    return Band(
        box.empty(room, dtype=np.int32),
        box.zeros(1, dtype=np.int32),
        box.empty(room, ROWS, dtype=np.uint16),
        box.empty(room, ROWS, dtype=np.uint16),
    )


def launch_collect(box: Box, band: Band, phi: Array, width: float) -> None:
    """List the tiles with |phi| < width."""
    box.clear(band.count)
    box.launch("collect_tiles", phi, width, band.tiles, band.count, band.bits, band.rim, *box.shape)


@dataclass(frozen=True, eq=False)
class Drive:
    """What moves a wall, on the device: as ``solvers.evolution.Motion``."""

    speed: Array | None
    velocity: Array | None
    bend: Array | None

    @property
    def fields(self) -> tuple[Array | None, Array | None, Array | None]:
        """The three arrays."""
        return self.speed, self.velocity, self.bend

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Samples of the speed, components of the velocity, samples of the curvature's weight."""
        dims = 0 if self.velocity is None else self.velocity.shape[-1]
        n, m = (0 if a is None else a.size for a in (self.speed, self.bend))
        return n, dims, m


def launch_limits(box: Box, band: Band, drive: Drive, limits: Array) -> None:
    """Raise the three limits of the band's speeds; they begin at zero."""
    box.launch("largest_speeds", *drive.fields, *band.listed, limits, *drive.sizes, *box.shape,
               *box.spacing)  # fmt: skip


def launch_march(
    box: Box,
    band: Band,
    drive: Drive,
    scheme: Scheme,
    field: Array,
    buffers: Sequence[Array],
    clock: Array,
    steps: int,
) -> None:
    """Take up to so many steps in place, as many as the clock says; ``solvers.evolution.march``."""
    for buffer in buffers:
        box.launch("copy_tiles", field, band.tiles, band.count, buffer, *box.shape)
    for n in range(steps):
        state = field
        for (ca, cb), out in zip(scheme.stages, [*buffers, field], strict=True):
            box.launch("advect_tiles", state, *drive.fields, field, *band.listed, out, clock, n,
                       ca, cb, *drive.sizes, *box.shape, *box.spacing,
                       template=f",{scheme.order}")  # fmt: skip
            state = out


def launch_evolution(
    box: Box,
    band: Band,
    room: Layers,
    drive: Drive,
    scheme: Scheme,
    phi: Array,
    buffers: Sequence[Array],
    clock: Array,
    steps: int,
    width: float,
) -> None:
    """Evolve for some steps in a band and redistance, in place; the first buffer is used for both.

    Recorded once it is a whole evolution: replayed as often as there are redistancings.
    """
    launch_collect(box, band, phi, width)
    launch_march(box, band, drive, scheme, phi, buffers, clock, steps)
    launch_redistance(box, room, phi, width, buffers[0])
    box.copy(buffers[0], phi)


@contextmanager
def current(device: Device, like: Array = None) -> Iterator[None]:
    """Work on a device, on torch's stream where an array is torch's."""
    cuda = getattr(device.xp, "cuda", None)
    if cuda is None:
        yield
        return
    stream = None if like is None else launch.stream_of(like)
    with cuda.Device(device.index), cuda.Stream.from_external(stream) if stream else nullcontext():
        yield


def adopted(device: Device, array: Array) -> Array:
    """Return an array where it lies, without a copy: the device's own (DLPack), or NumPy's.

    Raises
    ------
    DataError
        If it lies on another device.
    """
    if isinstance(array, (device.xp.ndarray, np.ndarray)):
        return array
    array = array.detach() if hasattr(array, "detach") else array
    if not hasattr(array, "__dlpack_device__"):
        return np.asarray(array)
    kind, index = (int(n) for n in array.__dlpack_device__())
    if kind not in device.memory:
        return np.asarray(array)
    if index != device.index:
        found = f"one on cuda:{index}"
        raise DataError("arrays on several devices", found=found, need=f"all on {device.index}")
    return device.xp.from_dlpack(array)


def given_back(array: Array, like: Array) -> Array:
    """Return an array as one of the caller's library, without a copy (DLPack)."""
    if isinstance(array, type(like)):
        return array
    return sys.modules[type(like).__module__.partition(".")[0]].from_dlpack(array)


# --- whole calls on arrays of a device ---------------------------------------------------------


def asfield(
    device: Device, phi: Array, spacing_mm: float | Sequence[float]
) -> tuple[Array, tuple[float, ...]]:
    """Return what ``field.asfield`` returns, of an array of the device."""
    xp = device.xp
    array = xp.asarray(adopted(device, phi))
    spacing, diameter, dtype = checked(array, spacing_mm)
    finite = int(xp.isfinite(array).sum())
    if finite < array.size:
        raise non_finite(array.size - finite)
    field = xp.clip(xp.ascontiguousarray(array, dtype=dtype), -diameter, diameter)
    return field[None] if array.ndim == 2 else field, spacing


def redistance(
    device: Device, phi: Array, spacing_mm: float | Sequence[float], band_mm: float | None
) -> Array:
    """Redistance an array of the device: ``solvers.redistance``."""
    field, spacing = asfield(device, phi, spacing_mm)
    padded = at_least_four(device.xp, field)
    box = box_of(device, padded, spacing)
    room, out = layers_for(box), box.empty()
    launch_redistance(box, room, padded, width_of(field, spacing, band_mm), out)
    if int(to_host(device, room.count)[0]) == 0:
        raise no_interface()
    nz, ny, nx = field.shape
    found = device.xp.ascontiguousarray(out[:nz, :ny, :nx])
    return given_back(like_input(found, phi), phi)


def extend(
    device: Device, values: Array, phi: Array, spacing_mm: float | Sequence[float], band_mm: float
) -> Array:
    """Make values of the device constant along the wall's normals: ``solvers.extend``."""
    field, spacing = asfield(device, phi, spacing_mm)
    xp, padded = device.xp, at_least_four(device.xp, field)
    given = xp.asarray(adopted(device, values), dtype=field.dtype)
    require_shape(given, phi.shape, "values")
    out = xp.array(at_least_four(xp, given.reshape(field.shape)), order="C")
    box = box_of(device, padded, spacing)
    room = layers_for(box)
    launch_closest_points(box, room, padded, band_mm)
    count = int(to_host(device, room.count)[0])
    if count == 0:
        raise no_interface()
    samples = box.empty(count, dtype=np.float64)
    box.launch("sample_at", out, room.voxels, room.count, room.offset, samples, *box.shape)
    voxels = room.voxels[:count]
    inside = room.distance[voxels] <= band_mm
    out.reshape(-1)[voxels[inside]] = samples[inside]
    nz, ny, nx = field.shape
    return given_back(like_input(xp.ascontiguousarray(out[:nz, :ny, :nx]), phi), phi)


def at_least_four(xp: Any, phi: Array) -> Array:
    """Repeat the last sample until every axis (but the plane axis of 2-D) has four samples."""
    short = [(0, max(4 - n, 0)) for n in phi.shape]
    if phi.shape[0] == 1:
        short[0] = (0, 0)
    return xp.pad(phi, short, mode="edge") if any(b for _, b in short) else phi


def advect(
    device: Device,
    phi: Array,
    spacing_mm: float | Sequence[float],
    time: float,
    motion: tuple[Any, Any, float],
    scheme: Scheme,
    time_step: float | None,
    band_mm: float | None,
) -> Array:
    """Evolve an array of the device by speed, velocity and curvature: ``solvers.advect``.

    Waits for the device twice: for the largest speeds, and for what was seen in the band.
    """
    field, spacing = asfield(device, phi, spacing_mm)
    require_width(band_mm, spacing)
    box, xp = box_of(device, field, spacing), device.xp
    drive = drive_of(box, phi, *motion)
    band, limits = band_for(box), box.zeros(3, dtype=np.float64)
    launch_collect(box, band, field, math.inf if band_mm is None else float(band_mm))
    launch_limits(box, band, drive, limits)
    normal, vector, bent = (float(value) for value in to_host(device, limits))
    require_finite((normal, vector, bent))
    real = spacing[box.shape[0] == 1 :]
    count = steps_for(time, time_step, step_limit(real, normal, vector, bent, CFL))
    if count == 0:
        return given_back(like_input(field.copy(), phi), phi)
    field, clock = field.copy(), xp.asarray([time / count, float(count), 0.0])
    buffers = [box.empty() for _ in scheme.stages[1:]]
    launch_march(box, band, drive, scheme, field, buffers, clock, count)
    most, least = xp.zeros(1, np.uint64), ~xp.zeros(1, np.uint64)
    box.launch("inspect_tiles", field, *band.listed, band.rim, most, least, *box.shape)
    high, low = (read_bits(to_host(device, bits), box.shape) for bits in (most, least))
    require_in_band(high, low, box.shape, spacing, count)
    return given_back(like_input(field, phi), phi)


def drive_of(box: Box, phi: Array, speed: Any, velocity: Any, curvature_weight: float) -> Drive:
    """Return what moves a wall as flat arrays of the device and of the field's type."""
    xp = box.device.xp
    if speed is not None:
        speed = xp.asarray(adopted(box.device, speed), dtype=box.dtype)
        if speed.ndim > 0:
            require_shape(speed, phi.shape, "speed")
        speed = xp.ascontiguousarray(speed).reshape(-1)
    if velocity is not None:
        velocity = xp.asarray(adopted(box.device, velocity), dtype=box.dtype)
        require_shape(velocity, (*phi.shape, phi.ndim), "velocity")
        velocity = xp.ascontiguousarray(velocity).reshape(-1, phi.ndim)
    bend = xp.full(1, curvature_weight, box.dtype) if curvature_weight > 0.0 else None
    return Drive(speed, velocity, bend)


def require_shape(values: Array, shape: tuple[int, ...], name: str) -> None:
    """Refuse a field that does not fit the level set."""
    if tuple(values.shape) != tuple(shape):
        raise DataError(f"bad {name}", found=f"shape {values.shape}", need=f"shape {shape}")


def require_finite(limits: Sequence[float]) -> None:
    """Refuse a motion with a value in the band that is not finite."""
    for name, largest in zip(("speed", "velocity", "curvature weight"), limits, strict=True):
        if not math.isfinite(largest):
            raise DataError(f"non-finite {name}", need="finite values")


def require_in_band(
    most: Extreme, least: Extreme, shape: tuple[int, ...], spacing: tuple[float, ...], step: int
) -> None:
    """Stop where phi is lost in the band, or the wall at its rim: ``watch.watch_band``."""
    bound = SLACK * float(np.linalg.norm(np.multiply(shape, spacing)))
    if not most[0] <= bound:
        raise lost(*most, bound, step)
    if least[0] < (reach := REACH * min(spacing)):
        raise at_rim(*least, reach, step)


def read_bits(bits: Any, shape: tuple[int, ...]) -> Extreme:
    """Return the float and the voxel (i, j, k) that ``inspect_tiles`` packed."""
    word = int(bits[0])
    at = min(word & 0xFFFFFFFF, math.prod(shape) - 1)
    k, j, i = (int(n) for n in np.unravel_index(at, shape))
    return float(np.uint32(word >> 32).view(np.float32)), (i, j, k)


def to_host(device: Device, array: Array) -> np.ndarray:
    """Return a copy in the memory of the host; waits for the device."""
    return np.asarray(device.later(array).value())
