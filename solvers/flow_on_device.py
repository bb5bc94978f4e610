"""The flows of ``solvers.flow`` on a device: a step is recorded once, the host only looks back.

One step lists the band, takes the speeds of the energy, chooses its time steps, evolves and
redistances, all without the host. What it needs to judge a step it reads while the next one runs:
a wall that rests is found one step later, and the step after it is given up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vesselseg.cuda_kernels.reduce import CHUNKS
from vesselseg.errors import ConfigError
from vesselseg.fields import Progress, StopReason

from . import on_device
from .flow import MOST_STEPS, NEAR, TRAVEL
from .lagged import Judged, Rests, Rows, run
from .on_device import (
    Array,
    Band,
    Box,
    Device,
    Drive,
    Layers,
    band_for,
    box_of,
    current,
    launch_collect,
    launch_limits,
    launch_march,
    launch_redistance,
    layers_for,
    read_bits,
    require_finite,
    require_in_band,
    to_host,
)
from .redistancing import redistance
from .schemes import CFL, SCHEMES
from .settings import RefineSettings
from .speed import BLOCK, EDGE, RIDGE, STRONGEST
from .start_on_device import Bring, borrowed, kind_of, launch_start, survey, watch_over
from .step import Problem
from .watch import vessel_lost
from .window_on_device import gaussian, window_for

FEWEST = 4  # voxels along an axis, for the tricubic interpolant


@dataclass(frozen=True, eq=False)
class Report:
    """What the host reads of a step: one array of numbers, some of them as bits.

    ``limits`` of the speeds, ``clock`` (dt, steps, time), ``sums`` of ``wall_sums``, ``most`` and
    ``least`` of ``inspect_tiles``, ``wall`` the number of voxels within the new band.
    """

    numbers: Array

    @property
    def limits(self) -> Array:
        """Largest speeds, (3,)."""
        return self.numbers[0:3]

    @property
    def clock(self) -> Array:
        """Time step, steps, time gone by, (3,)."""
        return self.numbers[3:6]

    @property
    def sums(self) -> Array:
        """Squared steps, their number, lumen, its voxels in the faces, (4,)."""
        return self.numbers[6:10]

    @property
    def seen(self) -> tuple[Array, Array]:
        """Largest |phi| in the band and smallest at its rim, each above its voxel, as bits."""
        bits = self.numbers.view(np.uint64)
        return bits[10:11], bits[11:12]

    @property
    def wall(self) -> tuple[Array, Array]:
        """Voxels within the new band, and room beside them."""
        words = self.numbers.view(np.int32)
        return words[24:25], words[25:26]


@dataclass(frozen=True, eq=False)
class Flow:
    """A flow's arrays on a device."""

    problem: Problem  # its arrays are the device's
    box: Box
    image: Array
    phi: Array
    before: Array
    field: Array
    moved: Array
    parts: Array
    report: Report
    band: Band
    layers: Layers
    drive: Drive
    extra: dict[str, Any] = field(default_factory=dict)
    steps: dict[str, Any] = field(default_factory=dict)  # recorded once


def flow_for(device: Device, problem: Problem) -> Flow:
    """Make room for the steps of problems of a kind and record them."""
    xp = device.xp
    start = xp.empty(problem.start.shape, problem.start.dtype)
    box = box_of(device, start, problem.spacing)
    image = box.empty(dtype=np.float32)
    here = replace(problem, image=image, start=start, sigma=start, speed=None, channels=())
    drive, extra = ROOMS[problem.settings.energy](problem, box)
    flow = Flow(
        here, box, image, box.empty(), box.empty(), box.empty(), box.empty(),
        box.empty(CHUNKS, 4, dtype=np.float64), Report(box.zeros(16, dtype=np.float64)),
        band_for(box), layers_for(box), drive, extra,
    )  # fmt: skip
    flow.steps["begin"] = device.record(lambda: launch_begin(flow))
    flow.steps["step"] = device.record(lambda: launch_step(flow))
    return flow


def launch_begin(flow: Flow) -> None:
    """Redistance the start; no time has gone by yet."""
    box, problem, report = flow.box, flow.problem, flow.report
    box.clear(report.numbers)
    launch_start(box, flow.layers, flow.before, problem.band_mm, problem.start, report.clock,
                 flow.parts, report.sums)  # fmt: skip
    box.device.launch("keep_count", flow.layers.count, *report.wall)
    box.copy(problem.start, flow.phi)
    box.copy(problem.start, flow.before)


def without_kernels(settings: RefineSettings, shape: Sequence[int] = ()) -> str:
    """Name what of a refinement cannot run on a device, nothing if all can."""
    if any(n < FEWEST for n in shape[-2:]) or 1 < math.prod(shape[:-2]) < FEWEST:
        return f"an image of fewer than {FEWEST} voxels along an axis"
    return "keep_topology" if settings.keep_topology else ""


def launch_step(flow: Flow) -> None:
    """Take one step of ``solvers.flow.flow_step``."""
    box, problem, report = flow.box, flow.problem, flow.report
    device, settings, spacing = box.device, problem.settings, problem.spacing
    device.launch("open_report", report.limits, *report.seen)
    launch_collect(box, flow.band, flow.phi, problem.band_mm)
    SPEEDS[settings.energy](flow)
    launch_limits(box, flow.band, flow.drive, report.limits)
    real = spacing[box.shape[0] == 1 :]
    squares = float(np.sum(np.asarray(real, dtype=np.float64) ** -2.0))
    lasting = settings.time if settings.energy == "given" else math.inf
    device.launch("plan_steps", report.limits, report.clock, squares, min(spacing), CFL, TRAVEL,
                  float(MOST_STEPS), lasting)  # fmt: skip
    box.copy(flow.phi, flow.field)
    scheme = SCHEMES["eno2"]
    launch_march(box, flow.band, flow.drive, scheme, flow.field, [flow.moved], report.clock,
                 MOST_STEPS)  # fmt: skip
    band = flow.band
    box.launch("inspect_tiles", flow.field, *band.listed, band.rim, *report.seen, *box.shape)
    launch_redistance(box, flow.layers, flow.field, problem.band_mm, flow.moved)
    device.launch("keep_count", flow.layers.count, *report.wall)
    box.launch("wall_sums", flow.phi, flow.moved, flow.before, report.clock, NEAR * problem.unit,
               max(spacing), flow.parts, *box.shape)  # fmt: skip
    device.launch("total", flow.parts, report.sums, CHUNKS, 4)
    box.launch("accept", flow.moved, flow.phi, flow.before, report.clock, box.size)


def judged(problem: Problem, numbers: NDArray[np.float64], number: int) -> Judged:
    """Read a report; raise what the same step raises on the CPU."""
    report, shape = Report(numbers), problem.start.shape
    require_finite(report.limits)
    moves = bool(report.clock[1] > 0.0)
    if moves:
        most, least = (read_bits(bits, shape) for bits in report.seen)
        require_in_band(most, least, shape, problem.spacing, number)
    if int(report.wall[0][0]) == 0:
        raise vessel_lost(number)
    squares, count, lumen, in_faces = (float(s) for s in report.sums)
    # The first step is measured from the start, later ones over two steps.
    share = 1.0 if number == 1 else 0.5
    return Judged(share * math.sqrt(squares / count) if moves and count else 0.0, lumen, in_faces)


def refined(
    device: Device, problem: Problem, rests: Rests, progress: Progress, bring: Bring
) -> tuple[Any, StopReason, Rows]:
    """Refine by a flow: the distance, the reason of the stop and the history."""
    for values, what in ((problem.start, "level set"), (problem.image, "image")):
        survey(device, values, what)
    kind = kind_of(problem, getattr(problem.speed, "ndim", 0))
    with borrowed(device, kind, lambda: flow_for(device, problem)) as flow:
        return _refined(flow, problem, rests, progress, bring)


def _refined(
    flow: Flow, problem: Problem, rests: Rests, progress: Progress, bring: Bring
) -> tuple[Any, StopReason, Rows]:
    device = flow.box.device
    device.put(problem.start, flow.before)
    device.put(problem.image, flow.image)
    flow.steps["begin"]()
    FILLED[problem.settings.energy](flow, problem)
    begun = Report(to_host(device, flow.report.numbers))
    watch = watch_over(problem, int(begun.wall[0][0]), begun.sums)

    def take(number: int) -> Array:
        flow.steps["step"]()
        return flow.report.numbers

    def judge(numbers: NDArray[np.float64], number: int) -> Judged:
        return judged(problem, numbers, number)

    reason, history, given_up = run(device, problem, take, judge, watch, rests, progress)
    return bring(flow.before if given_up else flow.phi), reason, history


def disagreement(device: Device) -> float:
    """Redistance a small torus on a device and on the CPU; largest difference in voxels."""
    z, y, x = np.ogrid[-5.4:5.6, -9.3:9.7, -9.1:9.9]
    phi = np.hypot(np.hypot(y, x) - 5.0, z) ** 2 - 6.0
    field = phi.astype(np.float32)
    with current(device):
        there = on_device.redistance(device, device.xp.asarray(field), 1.0, 3.0)
        apart = to_host(device, there) - redistance(field, 1.0, band_mm=3.0)
    return float(np.abs(apart).max())


# --- the energies ------------------------------------------------------------------------------


def by_means(flow: Flow) -> None:
    """Speeds of ``chan_vese``: means of lumen and surroundings."""
    box, sums = flow.box, flow.extra["sums"]
    box.launch("mean_sums", flow.image, flow.phi, flow.extra["parts"], box.size)
    box.device.launch("total", flow.extra["parts"], sums, CHUNKS, 3)
    box.launch("region_speed", flow.image, sums, *flow.band.listed, flow.drive.speed, *box.shape)


def by_local_means(flow: Flow) -> None:
    """Speeds of ``local``: means in a window about each voxel."""
    box, window = flow.box, flow.extra["window"]
    box.launch("block_means", flow.image, flow.phi, flow.problem.band_mm, window.sums[0],
               *window.size, *box.shape)  # fmt: skip
    box.device.launch("total", window.sums[0], window.whole, window.count, 4)
    box.launch("local_speed", flow.image, window.filtered(box.device), window.whole,
               flow.extra["ridge"], *flow.band.listed, flow.drive.speed, *window.blocks,
               *window.size, *box.shape[1:])  # fmt: skip


def as_it_is(flow: Flow) -> None:
    """Leave the speeds of ``gac`` and ``given``: they do not change."""


Made = tuple[Drive, dict[str, Any]]


def with_means(problem: Problem, box: Box) -> Made:
    """Make room for speeds and means of the whole image."""
    parts, sums = box.empty(CHUNKS, 3, dtype=np.float64), box.empty(3, dtype=np.float64)
    return region_drive(problem, box), {"parts": parts, "sums": sums}


def with_local_means(problem: Problem, box: Box) -> Made:
    """Make room for speeds and means in blocks, and the Gaussian window of ``local_means``."""
    window = window_for(problem, box, BLOCK, channels=4)
    return region_drive(problem, box), {"window": window, "ridge": RIDGE / window.volume}


def region_drive(problem: Problem, box: Box) -> Drive:
    """Speeds of the band and the curvature's weight of the region energies."""
    weight = problem.settings.smoothing * min(problem.spacing)
    bend = box.device.xp.full(1, weight, box.dtype) if weight else None
    return Drive(box.device.xp.zeros(box.size, box.dtype), None, bend)


def with_edges(problem: Problem, box: Box) -> Made:
    """Make room for the fields of ``gac``."""
    settings = problem.settings
    speed, bend = (
        box.empty(box.size) if n else None for n in (settings.balloon, settings.smoothing)
    )
    return Drive(speed, box.empty(box.size, problem.wall_dims + 1), bend), {}


def with_a_speed(problem: Problem, box: Box) -> Made:
    """Make room for the caller's speed."""
    if problem.speed is None:
        raise ConfigError("no speed", need="refine(..., speed=...) with the energy given")
    return Drive(box.empty(np.size(problem.speed)), None, None), {}


def nothing(flow: Flow, problem: Problem) -> None:
    """Fill nothing: every step takes its own means."""


def along_edges(flow: Flow, problem: Problem) -> None:
    """Write the fields of ``gac`` from the image: ``solvers.flow.prepared``."""
    box, image, settings, spacing = flow.box, flow.image, problem.settings, problem.spacing
    xp, drive, put = box.device.xp, flow.drive, box.device.put
    tiny = float(np.finfo(np.float32).tiny)
    scaled = image / np.float32(max(float(xp.abs(image).max()), tiny))
    slopes = xp.zeros_like(scaled)
    for axis in range(3):
        if box.shape[axis] > 1:
            slopes += (slope_along(box, scaled, axis, settings.edge_width) / spacing[axis]) ** 2
    near = xp.abs(flow.problem.start) < 2.0 * problem.unit
    scale = EDGE**2 * float(xp.percentile(slopes[near], STRONGEST))
    edge = (1.0 / (1.0 + slopes / max(scale, 1e-30))).astype(np.float32)
    axes = range(2, 2 - (problem.wall_dims + 1), -1)
    downhill = [-min(spacing) * xp.gradient(edge, spacing[a], axis=a) for a in axes]
    velocity = xp.stack(downhill, axis=-1).reshape(-1, len(downhill))
    put(velocity.astype(np.float32).astype(box.dtype), drive.velocity)
    flat = edge.reshape(-1).astype(box.dtype)
    if drive.bend is not None:
        put(settings.smoothing * min(spacing) * flat, drive.bend)
    if drive.speed is not None:
        put(settings.balloon * flat, drive.speed)


def slope_along(box: Box, image: Array, axis: int, width: float) -> Array:
    """Return the derivative along an axis of the image filtered by a Gaussian of so many voxels."""
    values, out = image, None
    for a in range(3):
        weights = box.device.xp.asarray(gaussian(width, derivative=a == axis))
        out = box.empty(dtype=np.float32)
        box.device.launch("filter_axis<float>", values, out, weights, weights.size // 2, a, 1, 1,
                          *box.shape)  # fmt: skip
        values = out
    return out


def as_given(flow: Flow, problem: Problem) -> None:
    """Take the caller's speed."""
    speed: Any = problem.speed
    speed = np.full(1, speed) if np.ndim(speed) == 0 else speed.astype(flow.box.dtype).reshape(-1)
    flow.box.device.put(speed, flow.drive.speed)


SPEEDS: dict[str, Callable[[Flow], None]] = {
    "gac": as_it_is,
    "chan_vese": by_means,
    "local": by_local_means,
    "given": as_it_is,
}
ROOMS: dict[str, Callable[[Problem, Box], Made]] = {
    "gac": with_edges,
    "chan_vese": with_means,
    "local": with_local_means,
    "given": with_a_speed,
}
FILLED: dict[str, Callable[[Flow, Problem], None]] = {
    "gac": along_edges,
    "chan_vese": nothing,
    "local": nothing,
    "given": as_given,
}
