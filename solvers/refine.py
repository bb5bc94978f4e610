"""Refinement of a level set on an image: the loop, its watchdog and its stop rule."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vesselseg.errors import ConfigError, DataError, NoInterfaceError
from vesselseg.fields import (
    LevelSet,
    Progress,
    Refinement,
    StopReason,
    Volume,
    frozen_field,
    silent,
)
from vesselseg.grid import Grid

from . import flow_on_device, map_on_device
from .field import asfield, require_interface
from .flow import SPEEDS, flow_step, with_the_starts_sigma
from .on_device import Device, current
from .redistancing import redistance
from .settings import RefineSettings
from .step import LEARN_BLUR_AT, Problem, State, first_psf, map_step, posterior
from .topology import keep_topology, topology_report
from .watch import volume_mm, watch_from

STEPS = {"map": map_step} | dict.fromkeys(SPEEDS, flow_step)
FINISHES = {"map": posterior} | dict.fromkeys(SPEEDS, with_the_starts_sigma)
DEFAULT_SIGMA = 0.5  # s.d. of a start that states none, in largest spacings
THINNEST = 0.9  # mean radius in largest voxels: below, no sample need lie in the lumen
COARSEST_REST = 0.1  # voxels: longer steps are never taken for rest


def refine(
    level_set: LevelSet,
    volume: Volume,
    settings: RefineSettings | None = None,
    *,
    speed: ArrayLike | None = None,
    channels: Sequence[Volume] = (),
    device: Device = None,
    progress: Progress = silent,
) -> Refinement:
    """Move a wall to its most probable place given the image, with its standard deviation.

    Parameters
    ----------
    level_set : LevelSet
        The start; its ``sigma_mm`` is the prior's s.d. (default 0.5 of the largest spacing).
    volume : Volume
        The scan, on the same grid, 2-D or 3-D.
    settings : RefineSettings, optional
        Energy ``map`` (posterior mode of a blurred two-intensity model with local means), or a
        flow: ``gac`` (Caselles, Kimmel & Sapiro 1997), ``chan_vese`` (Chan & Vese 2001, global
        means), ``local`` (Lankton & Tannenbaum 2008, local means), ``given`` (the caller's speed).
    speed : float or array on the grid, optional
        Outward speed of the wall, of the energy that is given one.
    channels : sequence of Volume
        Images of the speed of the blood on the grid of the scan, which ``map`` uses with it.
    device : cuda_kernels.launch.Device, optional
        A GPU for the steps; ``keep_topology`` has no CUDA path.

    Returns
    -------
    Refinement
        The refined level set (mm), the posterior s.d. of the wall, the reason of the stop.

    Raises
    ------
    DataError
        If the grids differ or the speed is not finite.
    NoInterfaceError
        If the start has no wall.
    NumericalError
        If the lumen is lost or explodes.
    """
    settings = settings or RefineSettings()
    clock = time.perf_counter()
    problem = pose(level_set, volume, settings, speed, channels)
    if device is None:
        state, reason, history = iterate(problem, progress)
        phi, sigma, estimates = FINISHES[settings.energy](problem, state)
    else:
        phi, sigma, estimates, reason, history = iterate_on(device, problem, progress)
    phi, sigma = (field.reshape(volume.grid.shape_kji) for field in (phi, sigma))
    return Refinement(
        LevelSet(phi, volume.grid, problem.band_mm),
        sigma,
        reason,
        len(history),
        history=tuple(history),
        seconds={"refine": time.perf_counter() - clock},
        estimates=estimates | topology_report(phi),
        notes=level_set.notes,
    )


def pose(
    level_set: LevelSet,
    volume: Volume,
    settings: RefineSettings,
    speed: ArrayLike | None = None,
    channels: Sequence[Volume] = (),
) -> Problem:
    """Check start and image against each other and bring them into one 3-D problem."""
    grid = volume.grid
    require_same_grid("level set", level_set.grid, grid)
    for channel in channels:
        require_same_grid("channel", channel.grid, grid)
    band = max(settings.band * grid.h_max, level_set.band_mm)
    field, spacing = asfield(level_set.phi_mm, grid.spacing_mm)
    require_interface(field)
    start = redistance(field, spacing, band_mm=band)
    if (radius := mean_radius(start, spacing)) < THINNEST * grid.h_max:
        raise NoInterfaceError(
            "vessel thinner than a voxel",
            found=f"mean radius {radius:.3g} mm",
            need=f"at least {THINNEST * grid.h_max:.3g} mm",
            remedy="give a finer scan or another start",
        )
    sigma: NDArray = np.full(field.shape, DEFAULT_SIGMA * grid.h_max)
    if level_set.sigma_mm is not None:
        sigma = level_set.sigma_mm.reshape(field.shape)
    images = [v.values.reshape(field.shape) for v in (volume, *channels)]
    return Problem(
        images[0],
        start,
        sigma,
        spacing,
        band,
        grid.ndim - 1,
        settings,
        given_speed(speed, grid, field.shape),
        tuple(images[1:]),
    )


def require_same_grid(what: str, found: Grid, grid: Grid) -> None:
    """Refuse a field whose voxels are not those of the image."""
    if not found.mismatch_mm(grid) <= 1e-3 * grid.h_min:
        raise DataError(
            f"{what} and image lie on different grids",
            found=f"{found.shape_kji} and {grid.shape_kji}",
            remedy="resample it to the grid of the image; read_start does so for a start",
        )


def given_speed(
    speed: ArrayLike | None, grid: Grid, shape: tuple[int, ...]
) -> NDArray | float | None:
    """Return a speed as a number or as a 3-D array."""
    if speed is None:
        return None
    if np.ndim(speed) > 0:
        return frozen_field(speed, grid, "speed").reshape(shape)
    if not np.isfinite(number := float(np.asarray(speed))):
        raise DataError("speed is not finite", found=number, need="a finite number")
    return number


def iterate(
    problem: Problem, progress: Progress
) -> tuple[State, StopReason, list[dict[str, float]]]:
    """Step until the wall rests or the limit is reached."""
    settings = problem.settings
    state = State(problem.start, psf=first_psf(settings))
    history: list[dict[str, float]] = []
    watch = watch_from(problem.start, problem.spacing, settings)
    for n in range(settings.iterations):
        before, state = state.phi, STEPS[settings.energy](problem, state)
        state = replace(state, phi=guarded(before, state.phi, problem.spacing, settings))
        volume = watch.check(state.phi, n + 1)
        history.append({"step_rms_mm": state.rms_mm, "volume_mm3": volume, **dict(state.facts)})
        progress("refine", (n + 1) / settings.iterations, f"step {state.rms_mm:.4f} mm rms")
        steps = [row["step_rms_mm"] / problem.unit for row in history]
        if (reason := RESTS[settings.energy](steps, settings.tolerance)) is not None:
            return state, reason, history
    return state, StopReason.STEP_LIMIT, history


def iterate_on(
    device: Device, problem: Problem, progress: Progress
) -> tuple[NDArray, NDArray, dict[str, float], StopReason, list[dict[str, float]]]:
    """Do on a device what ``iterate`` does: distance, s.d., estimates, reason and history."""
    settings = problem.settings
    if what := flow_on_device.without_kernels(settings, problem.start.shape):
        raise ConfigError(f"{what} has no CUDA kernels", remedy="take --device cpu or auto")
    watch = watch_from(problem.start, problem.spacing, settings)
    given = device, problem, watch, RESTS[settings.energy], progress
    with current(device):
        if settings.energy == "map":
            return map_on_device.refined(*given)
        phi, reason, history = flow_on_device.refined(*given)
    phi, sigma, estimates = with_the_starts_sigma(problem, State(phi, len(history)))
    return phi, sigma, estimates, reason, history


def guarded(
    old: NDArray, new: NDArray, spacing: tuple[float, ...], settings: RefineSettings
) -> NDArray:
    """Return the new wall, with the topology of the old one where that is asked for."""
    return keep_topology(old, new, spacing) if settings.keep_topology else new


def at_rest(steps: list[float], tolerance: float) -> StopReason | None:
    """Judge the steps of ``map``, in voxels: short, or no longer shrinking and below a tenth.

    Steps before blur and prior were learnt for the last time do not count.
    """
    after = steps[max(LEARN_BLUR_AT) :]
    if len(after) < 2:
        return None
    if after[-1] < tolerance:
        return StopReason.CONVERGED
    if len(after) >= 4 and COARSEST_REST > min(after[-2:]) > 0.9 * min(after[:-2]):
        return StopReason.RESOLUTION
    return None


def settled(steps: list[float], tolerance: float) -> StopReason | None:
    """Judge the steps of a flow: two in turn are short."""
    rests = len(steps) >= 2 and max(steps[-2:]) < tolerance
    return StopReason.CONVERGED if rests else None


def stands(steps: list[float], tolerance: float) -> StopReason | None:
    """Judge the steps of a given speed, however short: at rest when its time is over."""
    return StopReason.CONVERGED if steps[-1] == 0.0 else None


RESTS = {"map": at_rest} | dict.fromkeys(SPEEDS, settled) | {"given": stands}


def mean_radius(phi: NDArray, spacing: tuple[float, ...]) -> float:
    """Return twice volume over area, the radius of a tube, mm; the area is that of a shell."""
    h = max(spacing)
    shell = np.count_nonzero(np.abs(phi) < h) * np.prod(spacing) / (2.0 * h)
    return 2.0 * volume_mm(phi, spacing) / max(float(shell), 1e-30)
