"""Evolution of a level set: normal speed, vector velocity and curvature, together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vesselseg.cuda_kernels import advect as kernels
from vesselseg.cuda_kernels import launch
from vesselseg.cuda_kernels.tiles import copy_tiles
from vesselseg.errors import ConfigError, DataError

from . import on_device
from .field import asfield, lies_on_gpu, like_input
from .schemes import CFL, REACH, SCHEMES, Scheme, require_width, step_limit, steps_for
from .tiles import Tiles, collect_tiles
from .watch import bound_mm, watch_band

CHECK_EVERY = 10


@dataclass(frozen=True, eq=False)
class Motion:
    """What moves a wall, of the type of phi: V and b, flat (n or 1 or 0), and u (n, dims).

    One sample holds everywhere. Without a velocity it has shape (0, 0).
    """

    speed: NDArray
    velocity: NDArray
    bend: NDArray

    def limits(self, tiles: Tiles, spacing: tuple[float, ...]) -> tuple[float, float, float]:
        """Return max |V|, max Σ|u_a|/h_a and max b in a band."""
        found = tiles.largest_speeds(self.speed, self.velocity, self.bend, spacing)
        for name, largest in zip(("speed", "velocity", "curvature weight"), found, strict=True):
            if not math.isfinite(largest):
                raise DataError(f"non-finite {name}", need="finite values")
        return found

    def time_step(self, tiles: Tiles, spacing: tuple[float, ...]) -> float:
        """Return the largest stable step for the voxels of a band."""
        # A plane has no neighbours along its first axis.
        return step_limit(spacing[tiles.shape[0] == 1 :], *self.limits(tiles, spacing), CFL)


def stable_time_step(
    spacing_mm: Sequence[float],
    *,
    speed: ArrayLike | None = None,
    velocity: ArrayLike | None = None,
    curvature_weight: float = 0.0,
    cfl: float = CFL,
) -> float:
    """Return the largest stable step, inf if nothing moves.

    1/dt = [max|V| √(Σ 1/h²) + max Σ|u_a|/h_a + 2 b Σ 1/h²] / CFL (Osher & Fedkiw 2003, ch. 4-5).
    The maximum is over absolute values: a field that only shrinks the lumen counts as well.

    Parameters
    ----------
    spacing_mm : sequence
        Voxel size per array axis.
    speed : array, optional
        V, mm per unit time.
    velocity : (..., 3) or (..., 2) array, optional
        u with components (x, y, z).
    curvature_weight : float
        b, mm² per unit time, not negative.
    """
    normal = 0.0 if speed is None else float(np.max(np.abs(speed)))
    vector = 0.0
    if velocity is not None:
        u = np.abs(np.asarray(velocity))
        vector = float(np.max(np.sum(u / np.asarray(spacing_mm)[::-1], axis=-1)))
    return step_limit(spacing_mm, normal, vector, curvature_weight, cfl)


def advect(
    phi: Any,
    spacing_mm: float | Sequence[float],
    time: float,
    *,
    speed: ArrayLike | None = None,
    velocity: ArrayLike | None = None,
    curvature_weight: float = 0.0,
    scheme: str = "weno5",
    time_step: float | None = None,
    band_mm: float | None = None,
) -> NDArray:
    """Evolve phi_t + V|∇phi| + u·∇phi = b κ|∇phi| for a time; V > 0 grows the lumen.

    Parameters
    ----------
    phi : (nz, ny, nx) or (ny, nx) array
        Level set in mm, negative in the lumen.
    spacing_mm : float or sequence
        Voxel size per array axis, mm.
    time : float
        Duration; must not be negative.
    speed : float or array of phi's shape, optional
        Normal speed V, mm per unit time.
    velocity : (..., 3) or (..., 2) array, optional
        u with components (x, y, z) on a last axis, mm per unit time.
    curvature_weight : float
        b >= 0, mm² per unit time: curvature flow.
    scheme : {"weno5", "eno2"}
        WENO5 with TVD-RK3, or ENO2 with RK2.
    time_step : float, optional
        Default: the stable one. A larger one is refused.
    band_mm : float, optional
        Only voxels with abs(phi) below it move, at a cost that goes with the wall's area. At
        least three voxels more than the wall moves; phi must be a distance there.

    Returns
    -------
    array
        phi at the end, same shape; not redistanced. An array of a CUDA device, of CuPy or
        torch, gives one of the same kind, by the CUDA kernels.

    Raises
    ------
    ConfigError
        If a forced step violates the CFL condition; both numbers are named.
    NumericalError
        If the result is not finite or grows beyond the domain, or the wall comes to the rim of
        its band; step and voxel are named.
    """
    if scheme not in SCHEMES:
        raise ConfigError("unknown scheme", found=scheme, need=" | ".join(SCHEMES))
    if not (math.isfinite(time) and time >= 0.0):
        raise ConfigError("bad time", found=time, need="a finite duration >= 0")
    if not (math.isfinite(curvature_weight) and curvature_weight >= 0.0):
        raise ConfigError("bad curvature_weight", found=curvature_weight, need=">= 0")
    if lies_on_gpu(phi):
        drive, device = (speed, velocity, curvature_weight), launch.device_of(phi)
        with on_device.current(device, phi):
            there: NDArray = on_device.advect(
                device, phi, spacing_mm, time, drive, SCHEMES[scheme], time_step, band_mm
            )
        return there
    field, spacing = asfield(phi, spacing_mm)
    require_width(band_mm, spacing)
    bend = np.full(1 if curvature_weight > 0.0 else 0, curvature_weight, field.dtype)
    motion = Motion(_speed(speed, field, phi), _velocity(velocity, field, phi), bend)
    tiles = collect_tiles(field, math.inf if band_mm is None else float(band_mm))
    count = steps_for(time, time_step, motion.time_step(tiles, spacing))
    if count > 0:
        field = field.copy()  # it may be the caller's own array
        march(field, motion, tiles, SCHEMES[scheme], spacing, time / count, count)
    return like_input(field, phi)


def march(
    field: NDArray,
    motion: Motion,
    tiles: Tiles,
    scheme: Scheme,
    spacing: tuple[float, ...],
    dt: float,
    count: int,
    *,
    done: int = 0,
) -> None:
    """Take steps in place on the tiles of a 3-D field; ``done`` were taken before, for errors.

    The last stage overwrites the field, which it reads at the voxel itself only, so that a scheme
    of n stages needs n - 1 further fields, touched near the tiles alone.
    """
    number = field.dtype.type
    size = np.asarray(spacing, dtype=field.dtype)
    bound = bound_mm(field, spacing)
    reach = REACH * min(spacing)
    buffers = [np.empty_like(field) for _ in scheme.stages[1:]]
    for buffer in buffers:
        copy_tiles(field, tiles.numbers, buffer)
    for n in range(done + 1, done + count + 1):
        state = field
        for (ca, cb), out in zip(scheme.stages, [*buffers, field], strict=True):
            kernels.advect_tiles(
                state, motion.speed, motion.velocity, motion.bend, field, tiles.numbers,
                tiles.bits, out, number(dt), number(ca), number(cb), scheme.order, size,
            )  # fmt: skip
            state = out
        if n % CHECK_EVERY == 0 or n == done + count:
            watch_band(field, tiles, bound, reach, n)


def _speed(speed: ArrayLike | None, field: NDArray, phi: Any) -> NDArray:
    if speed is None:
        return np.empty(0, field.dtype)
    values = np.asarray(speed, dtype=field.dtype)
    if values.ndim > 0:
        _check_shape(values, np.shape(phi), "speed")
    return np.ascontiguousarray(values).reshape(-1)


def _velocity(velocity: ArrayLike | None, field: NDArray, phi: Any) -> NDArray:
    if velocity is None:
        return np.empty((0, 0), field.dtype)
    values = np.asarray(velocity, dtype=field.dtype)
    _check_shape(values, (*np.shape(phi), np.ndim(phi)), "velocity")
    return np.ascontiguousarray(values).reshape(-1, values.shape[-1])


def _check_shape(values: NDArray, shape: tuple[int, ...], name: str) -> None:
    if values.shape != shape:
        raise DataError(f"bad {name}", found=f"shape {values.shape}", need=f"shape {shape}")
