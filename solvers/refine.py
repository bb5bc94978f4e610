"""Refinement of a level set on an image: the loop, its watchdog and its stop rule."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vesselseg.cuda_kernels import launch
from vesselseg.errors import ConfigError, DataError
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
from .field import asfield, checked, finite_range, lies_on_gpu, require_interface
from .flow import SPEEDS, flow_step, with_the_starts_sigma
from .on_device import Device, adopted, current, given_back, require_shape, to_host
from .redistancing import redistance
from .settings import RefineSettings
from .step import LEARN_BLUR_AT, Problem, State, first_psf, map_step, posterior
from .topology import keep_topology, topology_report
from .watch import require_thick, volume_mm, watch_from

STEPS = {"map": map_step} | dict.fromkeys(SPEEDS, flow_step)
FINISHES = {"map": posterior} | dict.fromkeys(SPEEDS, with_the_starts_sigma)
DEFAULT_SIGMA = 0.5  # s.d. of a start that states none, in largest spacings
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
    clock = time.perf_counter()
    arrays = arrays_of(level_set, volume, speed, channels)
    spacing = volume.grid.spacing_mm
    found = refine_array(
        spacing_mm=spacing, settings=settings, device=device, progress=progress, **arrays
    )
    return Refinement(
        LevelSet(found.phi_mm, volume.grid, found.band_mm),
        found.sigma_mm,
        found.reason,
        len(found.history),
        history=found.history,
        seconds={"refine": time.perf_counter() - clock},
        estimates=found.estimates | topology_report(found.phi_mm),
        notes=level_set.notes,
    )


@dataclass(frozen=True, eq=False)
class RefinedArrays:
    """What ``refine`` finds, as arrays: distance and s.d. in mm, their band, how it was reached."""

    phi_mm: Any
    sigma_mm: Any
    band_mm: float
    reason: StopReason
    history: tuple[dict[str, float], ...]
    estimates: dict[str, float]


def refine_array(
    phi: Any,
    image: Any,
    spacing_mm: float | Sequence[float],
    settings: RefineSettings | None = None,
    *,
    sigma_mm: Any = None,
    band_mm: float = 0.0,
    speed: Any = None,
    channels: Sequence[Any] = (),
    device: Device = None,
    progress: Progress = silent,
) -> RefinedArrays:
    """Refine a wall as ``refine`` does, on bare arrays.

    Arrays of a CUDA device, CuPy's, torch's or any other's that speaks DLPack, are read where they
    lie, on torch's stream if they are torch's, and the result is of the kind of phi and lies with
    it: nothing passes through the host.

    Parameters
    ----------
    phi, image : (nz, ny, nx) or (ny, nx) array
        A start, negative in the lumen, of any slope; the scan.
    spacing_mm : float or sequence
        Voxel size per array axis, mm.
    sigma_mm : array of the same shape, optional
        S.d. of the start (default 0.5 of the largest spacing).
    band_mm : float
        Half-width of the trusted band, if more than the settings say.
    speed, channels, device
        As for ``refine``; the device of an array of a device is its own.

    Raises
    ------
    DataError
        If the shapes differ, an array is not finite, or arrays lie on several devices.
    NoInterfaceError, NumericalError
        As for ``refine``.
    """
    if device is None and lies_on_gpu(phi):
        device = launch.device_of(phi)
    given = phi, image, spacing_mm, settings or RefineSettings()
    more = {"sigma_mm": sigma_mm, "band_mm": band_mm, "speed": speed, "channels": channels}
    if device is None:
        problem = at_start(problem_of(*given, **more))
        state, reason, history = iterate(problem, progress)
        found, sigma, estimates = FINISHES[problem.settings.energy](problem, state)
    else:
        with current(device, phi):
            problem = problem_of(*given, **more, device=device)
            found, sigma, estimates, reason, history = iterate_on(device, problem, phi, progress)
    shape = tuple(phi.shape)
    fields = found.reshape(shape), sigma.reshape(shape)
    return RefinedArrays(*fields, problem.band_mm, reason, tuple(history), estimates)


def problem_of(
    phi: Any,
    image: Any,
    spacing_mm: float | Sequence[float],
    settings: RefineSettings,
    *,
    sigma_mm: Any = None,
    band_mm: float = 0.0,
    speed: Any = None,
    channels: Sequence[Any] = (),
    device: Device = None,
) -> Problem:
    """Bring arrays into one 3-D problem, each where it lies; the start as it is given."""
    take = np.asarray if device is None else functools.partial(adopted, device)
    phi = take(phi)
    spacing, _, dtype = checked(phi, spacing_mm)
    shape = (1, *phi.shape)[-3:]

    def field(values: Any, what: str, dtype: Any = np.float32) -> Any:
        array = take(values)
        require_shape(array, phi.shape, what)
        xp = device.xp if device and isinstance(array, device.xp.ndarray) else np
        return xp.ascontiguousarray(array, dtype=dtype).reshape(shape)

    h = max(spacing)
    sigma = np.full(1, DEFAULT_SIGMA * h) if sigma_mm is None else field(sigma_mm, "sigma_mm")
    if speed is not None and np.ndim(speed) > 0:
        speed = field(speed, "speed")
    return Problem(
        field(image, "image"),
        field(phi, "level set", dtype),
        sigma,
        spacing,
        max(settings.band * h, band_mm),
        phi.ndim - 1,
        settings,
        speed,
        tuple(field(channel, "channel") for channel in channels),
    )


def pose(
    level_set: LevelSet,
    volume: Volume,
    settings: RefineSettings,
    speed: ArrayLike | None = None,
    channels: Sequence[Volume] = (),
) -> Problem:
    """Check start and image against each other and bring them into one problem for the CPU."""
    arrays = arrays_of(level_set, volume, speed, channels)
    return at_start(problem_of(spacing_mm=volume.grid.spacing_mm, settings=settings, **arrays))


def arrays_of(
    level_set: LevelSet, volume: Volume, speed: ArrayLike | None, channels: Sequence[Volume]
) -> dict[str, Any]:
    """Check that start and images lie on one grid and return what a refinement takes of them."""
    require_same_grid("level set", level_set.grid, volume.grid)
    for channel in channels:
        require_same_grid("channel", channel.grid, volume.grid)
    return {
        "phi": level_set.phi_mm,
        "image": volume.values,
        "sigma_mm": level_set.sigma_mm,
        "band_mm": level_set.band_mm,
        "speed": given_speed(speed, volume.grid),
        "channels": [channel.values for channel in channels],
    }


def at_start(problem: Problem) -> Problem:
    """Check the arrays of a problem and redistance its start."""
    spacing = problem.spacing
    field, _ = asfield(problem.start, spacing)
    require_interface(field)
    for values in (problem.image, *problem.channels):
        finite_range(values, "image")
    start = redistance(field, spacing, band_mm=problem.band_mm)
    near = float(np.count_nonzero(np.abs(start) < max(spacing)))
    require_thick(volume_mm(start, spacing), near, spacing)
    one = problem.sigma.size == 1
    sigma = np.full(start.shape, problem.sigma.item()) if one else problem.sigma
    return replace(problem, start=start, sigma=sigma)


def require_same_grid(what: str, found: Grid, grid: Grid) -> None:
    """Refuse a field whose voxels are not those of the image."""
    if not found.mismatch_mm(grid) <= 1e-3 * grid.h_min:
        raise DataError(
            f"{what} and image lie on different grids",
            found=f"{found.shape_kji} and {grid.shape_kji}",
            remedy="resample it to the grid of the image; read_start does so for a start",
        )


def given_speed(speed: ArrayLike | None, grid: Grid) -> NDArray | float | None:
    """Return a speed as a number or as an array on the grid."""
    if speed is None:
        return None
    if np.ndim(speed) > 0:
        return frozen_field(speed, grid, "speed")
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
    device: Device, problem: Problem, like: Any, progress: Progress
) -> tuple[Any, Any, dict[str, float], StopReason, list[dict[str, float]]]:
    """Do on a device what ``iterate`` does: distance, s.d., estimates, reason and history.

    The fields are arrays like that of the start: NumPy's, or of the device.
    """
    settings = problem.settings
    if what := flow_on_device.without_kernels(settings, problem.start.shape):
        raise ConfigError(f"{what} has no CUDA kernels", remedy="take --device cpu or auto")

    there = isinstance(problem.start, device.xp.ndarray)
    xp, like = (device.xp, like) if there else (np, problem.start)

    def bring(array: Any) -> Any:
        leaves = not there and isinstance(array, device.xp.ndarray)
        return given_back(to_host(device, array) if leaves else xp.array(array), like)

    given = device, problem, RESTS[settings.energy], progress, bring
    if settings.energy == "map":
        return map_on_device.refined(*given)
    phi, reason, history = flow_on_device.refined(*given)
    if problem.sigma.size == 1:
        sigma = given_back(xp.full(problem.start.shape, problem.sigma.item()), like)
    else:
        sigma = bring(problem.sigma)
    return phi, sigma, {}, reason, history


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
