"""The step of every energy that moves the wall by a speed field."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from vesselseg.errors import ConfigError, NoInterfaceError

from .evolution import Motion, march
from .redistancing import redistance
from .schemes import SCHEMES
from .speed import downhill, edge_map, global_means, local_means, region_speed
from .step import Problem, State
from .tiles import Tiles, collect_tiles
from .watch import vessel_lost

TRAVEL = 1.0  # voxels that the wall may pass between two redistancings
MOST_STEPS = 20  # between two redistancings
NEAR = 0.5  # largest spacings from the wall within which its movement is measured
Speed = Callable[[Problem, NDArray, Tiles, tuple[NDArray, ...]], Motion]


def flow_step(problem: Problem, state: State) -> State:
    """Evolve the wall in its band by the energy's speed, then redistance once.

    The band is at least three voxels wider than the way of the wall. A given speed acts for
    ``settings.time`` in all; then, and where nothing moves, the step is zero.
    """
    phi, spacing = state.phi, problem.spacing
    fields = state.fields or prepared(problem)
    tiles = collect_tiles(phi, problem.band_mm)
    motion = SPEEDS[problem.settings.energy](problem, phi, tiles, fields)
    normal, vector, _ = motion.limits(tiles, spacing)
    stable = motion.time_step(tiles, spacing)
    fastest = normal / min(spacing) + vector
    # Where the image is all but flat the curvature alone limits the step.
    time = min(TRAVEL / fastest if fastest > 0.0 else stable, MOST_STEPS * stable)
    if problem.settings.energy == "given":
        time = min(time, problem.settings.time - state.time)
    if not (math.isfinite(time) and time > 0.0):
        return replace(state, steps=state.steps + 1, rms_mm=0.0)
    count = math.ceil(time / stable - 1e-9)
    field = phi.copy()
    march(field, motion, tiles, SCHEMES["eno2"], spacing, time / count, count)
    try:
        moved = redistance(field, spacing, band_mm=problem.band_mm)
    except NoInterfaceError:
        raise vessel_lost(state.steps + 1) from None
    # Over two steps: a wall that swings to and fro rests, one that creeps does not.
    earlier, share = (phi, 1.0) if state.before is None else (state.before, 0.5)
    near = np.abs(phi) < NEAR * problem.unit
    return replace(
        state,
        phi=moved,
        before=phi,
        steps=state.steps + 1,
        rms_mm=share * float(np.sqrt(np.mean((moved[near] - earlier[near]) ** 2))),
        time=state.time + time,
        fields=fields,
    )


def prepared(problem: Problem) -> tuple[NDArray, ...]:
    """Return the fields that an energy takes from the image alone: V, u and b of ``gac``.

    V = ν g, u = -h ∇g, b = α h g (Caselles, Kimmel & Sapiro 1997, eq. 18).
    """
    settings = problem.settings
    if settings.energy != "gac":
        return ()
    near = collect_tiles(problem.start, 2.0 * problem.unit).index()
    edge = edge_map(problem.image, near, settings.edge_width, problem.spacing)
    velocity = downhill(edge, problem.spacing, problem.wall_dims + 1)
    flat = edge.reshape(-1).astype(problem.start.dtype)
    bend = settings.smoothing * min(problem.spacing) * flat if settings.smoothing else flat[:0]
    speed = settings.balloon * flat if settings.balloon else flat[:0]
    return speed, velocity.astype(problem.start.dtype, copy=False), bend


def gac(problem: Problem, phi: NDArray, tiles: Tiles, fields: tuple[NDArray, ...]) -> Motion:
    """Geodesic active contour: what ``prepared`` took from the image."""
    return Motion(*fields)


def chan_vese(problem: Problem, phi: NDArray, tiles: Tiles, fields: tuple[NDArray, ...]) -> Motion:
    """Global means of lumen and surroundings."""
    near = tiles.index()
    inner, outer = global_means(problem.image, phi)
    return by_region(problem, phi, near, inner, outer)


def local(problem: Problem, phi: NDArray, tiles: Tiles, fields: tuple[NDArray, ...]) -> Motion:
    """Means in a window of ``settings.means_length`` about each voxel."""
    near = tiles.index()
    length = problem.settings.means_length * problem.unit
    return by_region(
        problem, phi, near, *local_means(problem.image, phi, near, length, problem.spacing)
    )


def by_region(
    problem: Problem,
    phi: NDArray,
    near: NDArray[np.int64],
    inner: NDArray | float,
    outer: NDArray | float,
) -> Motion:
    """Speed of the means at the band's voxels, and the curvature of the wall."""
    speed = np.zeros(phi.size, phi.dtype)
    speed[near] = region_speed(problem.image.reshape(-1)[near], inner, outer)
    bend = problem.settings.smoothing * min(problem.spacing)
    none = np.empty((0, 0), phi.dtype)
    return Motion(speed, none, np.full(1 if bend else 0, bend, phi.dtype))


def given(problem: Problem, phi: NDArray, tiles: Tiles, fields: tuple[NDArray, ...]) -> Motion:
    """Return the caller's speed."""
    if problem.speed is None:
        raise ConfigError("no speed", need="refine(..., speed=...) with the energy given")
    speed = np.asarray(problem.speed, dtype=phi.dtype).reshape(-1)
    return Motion(speed, np.empty((0, 0), phi.dtype), np.empty(0, phi.dtype))


def with_the_starts_sigma(
    problem: Problem, state: State
) -> tuple[NDArray, NDArray, dict[str, float]]:
    """Return the final distance with the start's s.d.: a flow knows no uncertainty."""
    return state.phi, problem.sigma, {}


SPEEDS: dict[str, Speed] = {"gac": gac, "chan_vese": chan_vese, "local": local, "given": given}
