"""The default energy ``map`` on a device: steps recorded once, the host only looks back.

What ``solvers.step`` does, launch by launch. Lists of band voxels keep their length, and every
number that a step hands on (blur, noise, medians), on the device. Conjugate gradients take a fixed
number of launches; those after convergence do nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vesselseg.cuda_kernels import conjugate
from vesselseg.cuda_kernels.appearance import FAR_SIGNAL, LEAST_NOISE, vector_lengths
from vesselseg.cuda_kernels.reduce import CHUNKS
from vesselseg.fields import Progress, StopReason

from . import appearance, displacement, step
from .band import CORE
from .lagged import Judged, Rests, Rows, run
from .on_device import (
    Array,
    Box,
    Device,
    Layers,
    box_of,
    launch_closest_points,
    layers_for,
    read_bits,
    to_host,
)
from .start_on_device import Bring, borrowed, kind_of, launch_start, survey, watch_over
from .step import Problem
from .watch import bound_mm, lost, vessel_lost
from .window_on_device import Window, through, window_for

ROOM = 1.5  # entries to make room for, in voxels of the first band
LEAST_ROOM = 1024
DIGITS = 8  # passes over a list that find the value of a rank


class OutOfRoom(Exception):
    """A band outgrew its list."""

    def __init__(self, needed: int) -> None:
        super().__init__(needed)
        self.needed = needed


# --- lists and numbers on the device ------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Numbers:
    """What the host reads of a step: one array, some of it as bits.

    Sum and number of the smaller squared steps, the largest of them, median contrast; facts of the
    scan's model; ``wall_sums``; largest |phi| as bits; voxels near the wall, entries of the band.
    """

    array: Array

    @property
    def steps(self) -> Array:
        """Sum of the squared steps below the largest that counts, their number."""
        return self.array[0:2]

    @property
    def largest(self) -> Array:
        """Largest squared step that counts."""
        return self.array[2:3]

    @property
    def contrast(self) -> Array:
        """Typical contrast at the wall."""
        return self.array[3:4]

    @property
    def facts(self) -> Array:
        """Noise, parts and peak of the scan's model, (3,)."""
        return self.array[4:7]

    @property
    def sums(self) -> Array:
        """``wall_sums``: the last two are the lumen and its voxels in the faces."""
        return self.array[8:12]

    @property
    def most(self) -> Array:
        """Largest |phi| above its voxel, as bits."""
        return self.array.view(np.uint64)[12:13]

    @property
    def near(self) -> Array:
        """Number of core voxels beside the wall."""
        return self.array.view(np.int32)[26:27]

    @property
    def size(self) -> Array:
        """Entries of the band's list, of its core, and those that there should be, (3,)."""
        return self.array.view(np.int32)[28:31]


@dataclass(frozen=True, eq=False)
class Ranks:
    """Room to find the values of two ranks in a list."""

    ranks: Array
    counts: Array
    digits: Array
    left: Array


@dataclass(frozen=True, eq=False)
class Fit:
    """The model of an image at the band's voxels; ``facts`` are noise, parts and peak."""

    outer: Array
    contrast: Array
    residual: Array
    weight: Array
    facts: Array


@dataclass(frozen=True, eq=False)
class Look:
    """An image on the device, its parts, the tables of their lengths, and its own facts.

    The noise of the vector is so many times ``louder`` than that of the image.
    """

    image: Array
    parts: int
    louder: float
    flow: bool
    tables: tuple[Array, Array, Array]
    facts: Array


@dataclass(frozen=True, eq=False)
class Map:
    """A refinement's arrays on a device; lists have room for ``room`` entries."""

    problem: Problem  # its arrays are the device's
    box: Box
    room: int
    looks: tuple[Look, ...]
    sigma: Array
    start: Array
    phi: Array
    before: Array
    field: Array
    layers: Layers
    numbers: Numbers
    window: Window
    doubt: Window  # the same blocks, as wide as residuals are judged
    means: Array  # outer intensity and contrast of its blocks
    ranks: Ranks
    work: conjugate.Work
    scales: tuple[Array, Array]
    fit: Fit
    trial: Fit
    ints: dict[str, Array]
    lists: dict[str, Array]
    scalars: dict[str, Array]
    spread: Array  # s.d. at every voxel
    steps: dict[str, Any] = field(default_factory=dict)  # recorded once

    @property
    def band(self) -> tuple[Array, Array]:
        """Number of entries of the list and of its core."""
        return self.numbers.size[0:1], self.numbers.size[1:2]


LISTS = (
    "phi", "kappa", "bend", "raw", "inside", "slope", "own", "samples",
    "long_inside", "long_slope", "spread", "trust", "scaled", "strength",
    "precision", "gradient", "along", "core_precision", "core_gradient", "known", "rough", "detail",
    "moved", "sigma", "misfit", "stiffness", "pin", "total", "weight", "load", "pull", "rhs", "x",
)  # fmt: skip


def map_for(device: Device, problem: Problem, parts: int, room: int) -> Map:
    """Make room for the steps of problems of a kind and record them."""
    xp = device.xp
    shape, real = problem.start.shape, problem.start.dtype
    start = xp.empty(shape, real)
    box = box_of(device, start, problem.spacing)
    numbers = Numbers(box.zeros(16, dtype=np.float64))
    flow = problem.flow_parts, 1.0, True
    scan = flow if problem.shows_flow else (parts, math.sqrt(problem.settings.averages), False)
    kinds = [scan] + len(problem.channels) * [flow]
    looks = tuple(look_for(box, *kind) for kind in kinds)
    sigma = box.empty(dtype=np.float64)
    here = replace(problem, image=looks[0].image, start=start, sigma=sigma,
                   channels=tuple(look.image for look in looks[1:]))  # fmt: skip
    unit = step.ROUGH * problem.unit
    lengths = [xp.asarray(displacement.sheet_scale(x, problem.spacing)) for x in (unit, 1.0)]
    window = window_for(problem, box, appearance.BLOCK, channels=5)
    doubt = through(window, box, appearance.MISFIT_LENGTH * max(problem.spacing))
    ints = {name: box.empty(room, dtype=np.int32) for name in ("voxels", "owner", "head", "next")}
    ints |= {
        "index": box.empty(room, 3, dtype=np.int32),
        "table": box.empty(room, 6, dtype=np.uint32),
        "label": box.empty(dtype=np.int32),
        "counts": box.empty(2, CHUNKS, dtype=np.int32),
    }
    lists = {name: box.empty(room, dtype=np.float64) for name in LISTS}
    lists |= {
        "near": box.empty(room, 3, dtype=np.float32),
        "normal": box.empty(room, 3, dtype=np.float64),
        "one": xp.ones(room),
    }
    scalars = {
        name: box.zeros(1, dtype=np.float64)
        for name in ("zero", "median", "deviation", "size", "most")
    }
    scalars |= {
        "psf": xp.empty(1),
        "clock": xp.ones(3),
        "blurs": xp.asarray(appearance.PSF_RANGE),
        "costs": xp.zeros(len(appearance.PSF_RANGE)),
        "parts": xp.empty((CHUNKS, 4)),
        "estimates": xp.zeros(2),
    }
    to = Map(
        here, box, room, looks, sigma, start, box.empty(), box.empty(), box.empty(),
        layers_for(box), numbers, window, doubt, box.empty(2, window.count, dtype=np.float64),
        ranks_for(box), conjugate.work(xp, room, displacement.MAX_CG), (lengths[0], lengths[1]),
        fit_for(box, room), fit_for(box, room), ints, lists, scalars, box.empty(dtype=np.float64),
    )  # fmt: skip
    to.steps["begin"] = device.record(lambda: launch_begin(to))
    to.steps["step"] = device.record(lambda: launch_step(to, False))
    if problem.learns_blur:
        to.steps["learn"] = device.record(lambda: launch_step(to, True))
    to.steps["end"] = device.record(lambda: launch_posterior(to))
    return to


def look_for(box: Box, parts: int, louder: float, flow: bool) -> Look:
    """Make room for an image, with the tables of a vector of its parts."""
    xp = box.device.xp
    signal, mean, spread = vector_lengths(parts)
    tables = tuple(xp.asarray(t) for t in (mean, np.gradient(mean, signal), spread))
    image = box.empty(dtype=np.float32)
    return Look(image, parts, louder, flow, (tables[0], tables[1], tables[2]), xp.zeros(3))


def put(to: Map, problem: Problem) -> None:
    """Copy the arrays of a problem to where the steps look for them: the only move there."""
    here, put = to.problem, to.box.device.put
    put(problem.start, to.before)
    put(problem.sigma, here.sigma)
    for image, room in zip(
        (problem.image, *problem.channels), (here.image, *here.channels), strict=True
    ):
        put(image, room)
    put(np.array([step.first_psf(problem.settings)]), to.scalars["psf"])


def launch_begin(to: Map) -> None:
    """Redistance the start."""
    launch_start(
        to.box, to.layers, to.before, to.problem.band_mm, to.start, to.scalars["clock"],
        to.scalars["parts"], to.numbers.sums,
    )  # fmt: skip
    to.box.device.launch("keep_count", to.layers.count, to.numbers.size[2:3], to.layers.first)
    to.box.copy(to.start, to.phi)
    to.box.copy(to.start, to.before)


def fit_for(box: Box, room: int) -> Fit:
    """Make room for a model."""
    return Fit(*(box.empty(n, dtype=np.float64) for n in (room, room, room, room, 3)))


def ranks_for(box: Box) -> Ranks:
    """Make room for a search."""
    return Ranks(
        box.empty(2, dtype=np.int32),
        box.empty(DIGITS, 2, 256, dtype=np.uint32),
        box.empty(DIGITS, 2, dtype=np.uint64),
        box.empty(DIGITS, 2, dtype=np.int32),
    )


def launch_ranked(
    to: Map, values: Array, count: Array, out: Array, *, centre: Array = None
) -> None:
    """Write the median of a list, or of its distances from a centre."""
    to.box.device.launch("set_ranks", count, -1.0, to.ranks.ranks)
    launch_search(to, values, count, out, centre)


def launch_search(to: Map, values: Array, count: Array, out: Array, centre: Array = None) -> None:
    """Write the mean of the values of the two ranks that are set."""
    launch, room = to.box.device.launch, to.ranks
    to.box.clear(room.counts)
    for digit in range(DIGITS):
        launch("rank_digit", values, centre, count, room.ranks, room.counts, room.digits, room.left,
               digit)  # fmt: skip
    launch("rank_value", room.ranks, room.counts, room.digits, room.left, out)


# --- the band -----------------------------------------------------------------------------------


def launch_band(to: Map, phi: Array) -> None:
    """Redistance phi by closest points, into ``field``, and list its band: ``band.make_band``."""
    box, problem, layers, ints, at = to.box, to.problem, to.layers, to.ints, to.lists
    count, core = to.band
    launch_closest_points(box, layers, phi, problem.band_mm)
    far = problem.band_mm + 2.0 * max(problem.spacing)
    box.launch("fill_far", phi, far, to.field, box.size)
    box.launch("write_distance", phi, layers.voxels, layers.distance, layers.count, far, to.field)
    core_mm = CORE * max(problem.spacing)
    found = layers.layer, layers.distance
    box.device.launch("count_band", *found, core_mm, ints["counts"], box.size)
    box.launch("list_band", *found, layers.offset, to.field, ints["counts"],
               core_mm, to.room, to.numbers.size, ints["label"], ints["voxels"], ints["index"],
               at["near"], at["phi"], *box.shape)  # fmt: skip
    box.launch("wall_geometry", to.field, ints["index"], at["normal"], at["raw"], at["x"], count,
               *box.shape, *box.spacing)  # fmt: skip
    launch_at_wall(to, at["raw"], count, at["kappa"])
    launch_at_wall(to, at["x"], count, at["bend"])
    launch = box.device.launch
    launch("wall_neighbours", ints["label"], ints["index"], at["normal"], ints["table"], core,
           *box.shape)  # fmt: skip
    launch("wall_owner", ints["label"], ints["index"], at["near"], core, ints["owner"], count,
           *box.shape)  # fmt: skip


def launch_at_wall(to: Map, values: Array, known: Array, out: Array, beyond: Array = None) -> None:
    """Sample values of the first entries at the closest points of all: ``band.extended``."""
    count, _ = to.band
    beyond = to.scalars["zero"] if beyond is None else beyond
    to.box.device.launch("sample_listed", to.ints["label"], values, to.ints["index"],
                         to.lists["near"], beyond, out, count, known, *to.box.shape)  # fmt: skip


# --- the images ---------------------------------------------------------------------------------


def launch_profile(to: Map, look: Look, psf: Array) -> None:
    """Profile, slope and weight of an image: ``lumen_profile`` or ``flow_profile``."""
    at, box, (count, _) = to.lists, to.box, to.band
    known = at["phi"], at["normal"], at["bend"]
    if look.flow:
        deep = appearance.DEEP * max(box.spacing)
        box.device.launch("blurred_flow", *known, at["kappa"], psf, at["inside"], at["slope"],
                          at["own"], deep, count, *box.spacing)  # fmt: skip
    else:
        box.device.launch("blurred_occupancy", *known, psf, at["inside"], at["slope"], count,
                          *box.spacing)  # fmt: skip


def launch_fit(
    to: Map, look: Look, before: Fit, into: Fit, *, afresh: bool = False, again: bool = False
) -> None:
    """Fit with the trust, and for a vector the noise, of the fit before: ``fit_once``."""
    at, ints, launch, window = to.lists, to.ints, to.box.device.launch, to.window
    (count, core), (mean, gain, spread) = to.band, look.tables
    own = at["own" if look.flow else "one"]
    launch("lengthen", at["inside"], at["slope"], own, before.outer, before.contrast,
           before.weight, before.facts, look.louder, mean, gain, spread,
           FAR_SIGNAL / (mean.size - 1), mean.size, look.flow, afresh,
           at["long_inside"], at["long_slope"], at["spread"], at["trust"], count)  # fmt: skip
    launch("block_sums", ints["label"], at["trust"], at["long_inside"], at["samples"],
           window.sums[0], *to.box.shape, *window.size)  # fmt: skip
    launch("total", window.sums[0], window.whole, window.count, 5)
    wide = window.filtered(to.box.device)
    launch("solve_blocks", wide, window.whole, window.volume, appearance.RIDGE,
           *to.means, window.count)  # fmt: skip
    launch("fit_residual", at["samples"], at["inside"], at["long_inside"], at["spread"],
           ints["index"], *to.means, before.facts, again, into.outer, into.contrast,
           into.residual, at["scaled"], at["strength"], count, *window.blocks,
           *window.size)  # fmt: skip
    known = to.scalars
    launch_ranked(to, at["scaled"], core, known["median"])
    launch_ranked(to, at["scaled"], core, known["deviation"], centre=known["median"])
    launch_ranked(to, at["strength"], core, known["size"])
    launch("fit_noise", known["deviation"], known["size"], LEAST_NOISE, into.facts)
    launch("weigh", into.residual, into.contrast, at["spread"], own, into.facts, into.weight,
           count)  # fmt: skip


def launch_appearance(to: Map, look: Look, psf: Array) -> Fit:
    """Fit local intensities and robust noise to an image: ``fit_appearance``."""
    at, launch, (count, core) = to.lists, to.box.device.launch, to.band
    fit = replace(to.fit, facts=look.facts)
    launch("gather", look.image, to.ints["voxels"], at["samples"], count)
    launch_profile(to, look, psf)
    launch("begin_fit", fit.facts)
    launch("largest", at["inside"], fit.facts[2:3], count)
    launch_fit(to, look, fit, fit, afresh=True)
    launch("lowest_signal", fit.outer, fit.contrast, fit.facts, at["scaled"], core)
    launch_ranked(to, at["scaled"], core, to.scalars["median"])
    clear = appearance.CLEAR * look.louder
    launch("decide_parts", to.scalars["median"], clear, float(look.parts), fit.facts)
    launch_fit(to, look, fit, fit)
    if look.parts > 1:
        launch_fit(to, look, fit, fit, again=True)
    return fit


def launch_psf(to: Map) -> None:
    """Learn the blur from the scan: ``estimate_psf``; every blur is tried, for nobody waits."""
    look, trial, known, (count, core) = to.looks[0], to.trial, to.scalars, to.band
    launch = to.box.device.launch
    fit = launch_appearance(to, look, known["psf"])
    for n in range(len(appearance.PSF_RANGE)):
        launch_profile(to, look, known["blurs"][n : n + 1])
        launch("begin_fit", trial.facts)
        launch("largest", to.lists["inside"], trial.facts[2:3], count)
        launch_fit(to, look, fit, trial, afresh=True)
        launch("cost_sums", trial.residual, trial.facts, known["parts"], core)
        launch("total", known["parts"], known["costs"][n : n + 1], CHUNKS, 1)
    launch("choose_psf", known["blurs"], known["costs"], known["psf"], known["costs"].size)


def launch_misfit(to: Map, fit: Fit, first: bool) -> None:
    """Judge the residual of an image; keep the largest misfit of the images: ``misfit``."""
    at, ints, launch, window = to.lists, to.ints, to.box.device.launch, to.doubt
    (count, core), known = to.band, to.scalars
    launch("product", fit.weight, fit.residual, at["scaled"], count)
    launch("block_sums", ints["label"], at["one"], at["scaled"], at["scaled"], window.sums[0],
           *to.box.shape, *window.size)  # fmt: skip
    to.box.clear(known["most"])
    launch("square_sums", window.sums[0], known["most"], window.count)
    launch("total", window.sums[0], window.whole, window.count, 5)
    share = to.means[0]
    launch("window_excess", window.filtered(to.box.device), known["most"], share, window.count)
    launch("misfit_at", share, ints["index"], window.whole, first, at["misfit"],
           known["estimates"][1:2], core, *window.blocks, *window.size)  # fmt: skip


# --- the displacement ---------------------------------------------------------------------------


def launch_smooth(to: Map, values: Array, x: Array) -> None:
    """Solve (1 - l² Δ_Γ) x = values, from a start in x: ``smooth_along_wall``."""
    scale, one = to.scales[0], to.lists["one"]
    most = displacement.smoothing_steps(step.ROUGH * to.problem.unit, to.problem.spacing)
    conjugate.solve_along_wall(
        to.box.device, to.ints["table"], scale, one, one, values, x, to.band[1], False, most,
        displacement.CG_TOLERANCE, to.work,
    )  # fmt: skip


def launch_view(to: Map, judge: bool = False) -> None:
    """Fit the images to a wall and gather what they say of its displacement: ``step.see``.

    Judge the fits as well; the next image takes their room.
    """
    at, ints, launch, (count, core) = to.lists, to.ints, to.box.device.launch, to.band
    for n, look in enumerate(to.looks):
        fit = launch_appearance(to, look, to.scalars["psf"])
        launch("inform", at["long_slope"], fit.contrast, fit.weight, fit.residual, fit.facts,
               n == 0, at["precision"], at["gradient"], count)  # fmt: skip
        if n == 0:
            # Its distance from zero, so that the sign of the contrast does not matter.
            launch_ranked(to, fit.contrast, core, to.numbers.contrast, centre=to.scalars["zero"])
        if judge:
            launch_misfit(to, fit, n == 0)
    to.box.device.launch("copy<double>", to.looks[0].facts, to.numbers.facts, 3)
    to.box.clear(ints["head"])
    launch("chain_owners", ints["owner"], ints["head"], ints["next"], count)
    launch("chain_sums", ints["head"], ints["next"], at["precision"], at["gradient"],
           at["core_precision"], at["core_gradient"], core)  # fmt: skip
    launch("copy<double>", at["core_precision"], at["x"], to.room)
    launch_smooth(to, at["core_precision"], at["x"])
    launch("per_area", at["x"], to.problem.area_mm, at["known"], core)
    launch_prior(to)


def launch_prior(to: Map) -> None:
    """Prior of the wall and the system that it makes with the data: ``step.wall_prior``."""
    at, ints, problem, box = to.lists, to.ints, to.problem, to.box
    launch, (_, core), unit = box.device.launch, to.band, problem.unit
    launch("copy<double>", at["kappa"], at["x"], to.room)
    launch_smooth(to, at["kappa"], at["x"])
    launch("difference", at["kappa"], at["x"], at["rough"], at["along"], core)
    launch_smooth(to, at["rough"], at["along"])
    launch("square", at["along"], at["rhs"], at["detail"], core)
    launch_smooth(to, at["rhs"], at["detail"])
    launch_ranked(to, at["known"], core, to.scalars["median"])
    here = ints["voxels"], core, to.layers.offset
    launch("sample_at<double>", to.sigma, *here, at["sigma"], *box.shape)
    box.launch("sample_at", to.start, *here, at["moved"], *box.shape)
    launch("wall_prior", at["detail"], to.scalars["median"], at["rough"], at["core_precision"],
           (step.AVERAGED * unit) ** 4, step.DETAIL * unit**problem.wall_dims,
           problem.least_start_mm, problem.area_mm, problem.wall_dims, at["sigma"],
           at["stiffness"], at["pin"], at["total"], at["weight"], at["load"], core)  # fmt: skip


def launch_displacement(to: Map) -> None:
    """Solve for the displacement and keep it within its bounds: ``solve_displacement``."""
    at, table, launch, (_, core) = to.lists, to.ints["table"], to.box.device.launch, to.band
    unit, scale = to.problem.unit, to.scales[1]
    launch("bend_along_wall", table, scale, at["load"], at["pull"], core)
    launch("displacement_rhs", at["core_gradient"], at["pin"], at["moved"], at["pull"],
           to.problem.area_mm, at["rhs"], at["x"], core)  # fmt: skip
    conjugate.solve_along_wall(
        to.box.device, table, scale, at["total"], at["weight"], at["rhs"], at["x"], core, True,
        displacement.MAX_CG, displacement.CG_TOLERANCE, to.work,
    )  # fmt: skip
    to.box.clear(to.numbers.near)
    launch("take_step", at["x"], at["moved"], at["sigma"], at["phi"], step.REACH,
           step.MAX_STEP * unit, 0.5 * unit, at["scaled"], to.numbers.near, core)  # fmt: skip


def launch_step(to: Map, learn: bool) -> None:
    """Take one step: ``step.map_step``."""
    box, at, numbers, (count, core) = to.box, to.lists, to.numbers, to.band
    launch = box.device.launch
    launch_band(to, to.phi)
    if learn:
        launch_psf(to)
    launch_view(to)
    launch_displacement(to)
    # Voxels away from the wall are infinite, so that the smallest of all are those near it.
    launch("set_ranks", numbers.near, 1.0 - step.TRIM, to.ranks.ranks)
    launch_search(to, at["scaled"], core, numbers.largest)
    parts = to.scalars["parts"].reshape(-1)
    launch("sums_below", at["scaled"], numbers.largest, parts, core)
    launch("total", parts, numbers.steps, CHUNKS, 2)
    launch_at_wall(to, at["x"], core, at["raw"])
    box.clear(numbers.most)
    box.launch("move_wall", to.ints["voxels"], at["phi"], at["raw"], to.field, numbers.most, count)
    box.launch("wall_sums", to.field, to.field, to.field, to.scalars["clock"], 0.0,
               max(box.spacing), parts, *box.shape)  # fmt: skip
    launch("total", parts, numbers.sums, CHUNKS, 4)
    box.launch("accept", to.field, to.phi, to.before, to.scalars["clock"], box.size)


def launch_posterior(to: Map) -> None:
    """Write the final distance into ``field``, its s.d. and the estimates: ``step.posterior``."""
    sigma = to.spread
    at, box, problem, (count, core) = to.lists, to.box, to.problem, to.band
    launch, median = box.device.launch, to.scalars["median"]
    launch_band(to, to.phi)
    launch_view(to, judge=True)
    launch("wall_sigma", at["known"], at["pin"], at["stiffness"], at["sigma"], at["misfit"],
           problem.least_sigma_mm, problem.wall_dims, at["x"], core)  # fmt: skip
    launch_ranked(to, at["stiffness"], core, to.scalars["estimates"][0:1])
    launch_ranked(to, at["x"], core, median)
    launch_at_wall(to, at["x"], core, at["raw"], median)
    launch("fill", median, sigma, box.size)
    launch("scatter<double,double>", to.ints["index"], at["raw"], sigma, count, *box.shape[1:])
    box.launch("band_clamp", to.field, problem.band_mm, box.size)


# --- the refinement -----------------------------------------------------------------------------


def judged(problem: Problem, array: NDArray[np.float64], number: int, room: int) -> Judged:
    """Read the numbers of a step; raise what the same step raises on the CPU."""
    numbers = Numbers(array)
    needed = int(numbers.size[2])
    if needed > room:
        raise OutOfRoom(needed)
    if (near := int(numbers.near[0])) == 0:
        raise vessel_lost(number)
    bound = bound_mm(problem.start, problem.spacing)
    most = read_bits(numbers.most, problem.start.shape)
    if not most[0] <= bound:
        raise lost(*most, bound, number)
    counted = max(int(near * (1.0 - step.TRIM)), 1)
    below, smaller = (float(x) for x in numbers.steps)
    squares = below + (counted - smaller) * float(numbers.largest[0])
    facts = {"noise": float(numbers.facts[0]), "contrast": float(numbers.contrast[0])}
    lumen, in_faces = (float(x) for x in numbers.sums[2:])
    return Judged(math.sqrt(max(squares, 0.0) / counted), lumen, in_faces, facts)


def opened(device: Device, problem: Problem) -> Map:
    """Make room for a problem of its own and begin it: steps can be taken at once."""
    parts, near = seen(device, problem)
    to = map_for(device, problem, parts, room_for(near))
    put(to, problem)
    to.steps["begin"]()
    return to


def seen(device: Device, problem: Problem) -> tuple[int, int]:
    """Return the parts of the image's noise and the voxels near the start's wall."""
    near = survey(device, problem.start, "level set", problem.band_mm).near
    for channel in problem.channels:
        survey(device, channel, "channel")
    return (1 if survey(device, problem.image, "image").negative else 2), near


def room_for(near: int) -> int:
    """Return how many entries to make room for: more than the first band has."""
    return int(ROOM * near) + LEAST_ROOM


Refined = tuple[Any, Any, dict[str, float], StopReason, Rows]


def refined(
    device: Device, problem: Problem, rests: Rests, progress: Progress, bring: Bring
) -> Refined:
    """Refine by the energy ``map``: distance, s.d., estimates, reason and history.

    A list that the band outgrows is made anew with more room, and all begins again.
    """
    parts, near = seen(device, problem)
    kind = kind_of(problem, parts)
    if kind in device.kept and device.kept[kind].room < near:
        device.release()
    room = room_for(near)
    while True:
        try:
            make = partial(map_for, device, problem, parts, room)
            with borrowed(device, kind, make) as to:
                return _refined(to, problem, rests, progress, bring)
        except OutOfRoom as full:
            room = int(ROOM * full.needed)


def _refined(to: Map, problem: Problem, rests: Rests, progress: Progress, bring: Bring) -> Refined:
    device, numbers = to.box.device, to.numbers
    put(to, problem)
    to.steps["begin"]()
    begun = Numbers(to_host(device, numbers.array))
    watch = watch_over(problem, int(begun.size[2]), begun.sums)
    learns = problem.learns_blur

    def take(number: int) -> Array:
        to.steps["learn" if learns and number in step.LEARN_BLUR_AT else "step"]()
        return numbers.array

    def judge(array: NDArray[np.float64], number: int) -> Judged:
        return judged(problem, array, number, to.room)

    reason, history, given_up = run(device, problem, take, judge, watch, rests, progress)
    if given_up:
        to.box.copy(to.before, to.phi)
    to.steps["end"]()
    found = bring(to.field), bring(to.spread)
    array = to_host(device, numbers.array)
    if (needed := int(Numbers(array).size[2])) > to.room:
        raise OutOfRoom(needed)
    return *found, estimated(to, array), reason, history


def estimated(to: Map, array: NDArray[np.float64]) -> dict[str, float]:
    """Read what was estimated on the way, from the numbers of the last view."""
    contrast, noise = float(array[3]), float(array[4])
    stiffness, misfit = (float(x) for x in to_host(to.box.device, to.scalars["estimates"]))
    return {
        "noise": noise,
        "contrast": contrast,
        "wall_snr": contrast / noise,
        "psf_voxels": float(to_host(to.box.device, to.scalars["psf"])[0]),
        "misfit": misfit,
        "stiffness": stiffness,
    }
