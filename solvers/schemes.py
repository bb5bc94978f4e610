"""Time integrators as data, the stencils that go with them, and how long their steps may be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vesselseg.errors import ConfigError

CFL = 0.5
SLACK = 1e-6  # of the step limit: speeds are rounded to the type of phi
NARROWEST = 3.0  # half-width of a band in largest spacings: the stencils of the wall's neighbours
REACH = 1.0  # smallest spacings between the wall and the rim of its band


@dataclass(frozen=True)
class Scheme:
    """A spatial order and its SSP Runge-Kutta stages (Shu & Osher 1988).

    Each stage is ``out = ca base + cb (phi + dt rate(phi))`` with ``base`` the state at the
    beginning of the step.
    """

    order: int
    stages: tuple[tuple[float, float], ...]


SCHEMES = {
    "weno5": Scheme(5, ((0.0, 1.0), (3 / 4, 1 / 4), (1 / 3, 2 / 3))),
    "eno2": Scheme(2, ((0.0, 1.0), (1 / 2, 1 / 2))),
}

# WENO5 with RK2 settles to rounding where RK3 with half the step wanders about 1e-3 of a voxel.
STEADY = Scheme(5, ((0.0, 1.0), (1 / 2, 1 / 2)))


def step_limit(
    spacing_mm: Sequence[float], normal: float, vector: float, curvature_weight: float, cfl: float
) -> float:
    """Return the largest stable step for max |V|, max Σ|u_a|/h_a and b; inf if nothing moves."""
    squares = float(np.sum(np.asarray(spacing_mm, dtype=np.float64) ** -2.0))
    rate = normal * math.sqrt(squares) + vector + 2.0 * curvature_weight * squares
    return cfl / rate if rate > 0.0 else math.inf


def steps_for(time: float, time_step: float | None, limit: float) -> int:
    """Return in how many steps a time is passed; refuse a step over the limit."""
    step = min(limit, time) if time_step is None else float(time_step)
    if not 0.0 < step <= limit * (1.0 + SLACK) and time > 0.0:
        fault = "time step over the CFL limit" if step > limit else "bad time step"
        raise ConfigError(fault, found=step, need=f"> 0 and <= {limit:.6g}")
    return math.ceil(time / step - 1e-9) if time > 0.0 and math.isfinite(limit) else 0


def require_width(band_mm: float | None, spacing: tuple[float, ...]) -> None:
    """Refuse a band in which the stencils of the wall's neighbours do not fit."""
    if band_mm is not None and not band_mm >= NARROWEST * max(spacing):
        need = f">= {NARROWEST * max(spacing):.6g} mm"
        raise ConfigError("band too narrow", found=band_mm, need=need)
