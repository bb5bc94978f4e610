"""Evolution of a level set: normal speed, vector velocity and curvature, together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vesselseg.cuda_kernels import advect as kernels
from vesselseg.errors import ConfigError, DataError, NumericalError

from .field import asfield, like_input
from .schemes import SCHEMES, Scheme

CFL = 0.5
CHECK_EVERY = 10


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
    h = np.asarray(spacing_mm, dtype=np.float64)
    rate = 2.0 * curvature_weight * float(np.sum(h**-2.0))
    if speed is not None:
        rate += float(np.max(np.abs(speed))) * math.sqrt(float(np.sum(h**-2.0)))
    if velocity is not None:
        u = np.abs(np.asarray(velocity))
        rate += float(np.max(np.sum(u / h[::-1], axis=-1)))
    return cfl / rate if rate > 0.0 else math.inf


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
        Only voxels with abs(phi) below it move; phi must be a distance then.

    Returns
    -------
    array
        phi at the end, same shape; not redistanced.

    Raises
    ------
    ConfigError
        If a forced step violates the CFL condition; both numbers are named.
    NumericalError
        If the result is not finite or grows beyond the domain.
    """
    field, spacing = asfield(phi, spacing_mm)
    if scheme not in SCHEMES:
        raise ConfigError("unknown scheme", found=scheme, need=" | ".join(SCHEMES))
    if not (math.isfinite(time) and time >= 0.0):
        raise ConfigError("bad time", found=time, need="a finite duration >= 0")
    if not (math.isfinite(curvature_weight) and curvature_weight >= 0.0):
        raise ConfigError("bad curvature_weight", found=curvature_weight, need=">= 0")
    v, u = _speed(speed, field, phi), _velocity(velocity, field, phi)
    limit = stable_time_step(
        spacing[-np.ndim(phi) :],
        speed=v if v.size else None,
        velocity=u if u.size else None,
        curvature_weight=curvature_weight,
    )
    step = min(limit, time) if time_step is None else float(time_step)
    if not 0.0 < step <= limit * (1.0 + 1e-9) and time > 0.0:
        fault = "time step over the CFL limit" if step > limit else "bad time step"
        raise ConfigError(fault, found=step, need=f"> 0 and <= {limit:.6g}")
    count = math.ceil(time / step - 1e-9) if time > 0.0 and math.isfinite(limit) else 0
    active = np.ones(field.shape, np.bool_) if band_mm is None else np.abs(field) < band_mm
    bound = 1.1 * float(np.linalg.norm(np.multiply(field.shape, spacing)))
    buffers = (np.empty_like(field), np.empty_like(field))
    for n in range(count):
        field = _step(
            field, (v, u, curvature_weight), active, time / count, SCHEMES[scheme], spacing, buffers
        )
        if n % CHECK_EVERY == CHECK_EVERY - 1 or n == count - 1:
            watch(field, bound, n + 1)
    return like_input(field, phi)


def watch(field: NDArray, bound: float, step: int) -> None:
    """Stop when phi is not finite or beyond the bound; name step and voxel."""
    worst = int(np.argmax(np.where(np.isfinite(field), np.abs(field), np.inf)))
    if not np.abs(field.flat[worst]) <= bound:
        voxel = tuple(int(n) for n in np.unravel_index(worst, field.shape)[::-1])
        raise NumericalError(
            f"level set lost at step {step}, voxel (i,j,k) = {voxel}",
            found=f"phi = {field.flat[worst]:.3g} mm",
            need=f"abs(phi) <= {bound:.3g}",
            remedy="reduce the time step or the speed",
        )


def _step(
    field: NDArray,
    motion: tuple[NDArray, NDArray, float],
    active: NDArray,
    dt: float,
    scheme: Scheme,
    spacing: tuple[float, ...],
    buffers: tuple[NDArray, NDArray],
) -> NDArray:
    state = field
    for number, (ca, cb) in enumerate(scheme.stages):
        last = number == len(scheme.stages) - 1
        out = np.empty_like(field) if last else buffers[number % 2]
        kernels.advect_stage(state, *motion, field, active, out, dt, ca, cb, scheme.order, *spacing)
        state = out
    return state


def _speed(speed: ArrayLike | None, field: NDArray, phi: Any) -> NDArray:
    if speed is None:
        return np.empty((0, 0, 0), field.dtype)
    values = np.asarray(speed, dtype=field.dtype)
    if values.ndim == 0:
        values = np.full(np.shape(phi), values)
    return _checked(values, np.shape(phi), "speed").reshape(field.shape)


def _velocity(velocity: ArrayLike | None, field: NDArray, phi: Any) -> NDArray:
    if velocity is None:
        return np.empty((0, 0, 0, 0), field.dtype)
    values = np.asarray(velocity, dtype=field.dtype)
    values = _checked(values, (*np.shape(phi), np.ndim(phi)), "velocity")
    full = np.zeros((*field.shape, 3), field.dtype)
    full[..., : values.shape[-1]] = values.reshape(*field.shape, values.shape[-1])
    return full


def _checked(values: NDArray, shape: tuple[int, ...], name: str) -> NDArray:
    if values.shape != shape:
        raise DataError(f"bad {name}", found=f"shape {values.shape}", need=f"shape {shape}")
    if not np.isfinite(values).all():
        raise DataError(f"non-finite {name}", need="finite values")
    return np.ascontiguousarray(values)
