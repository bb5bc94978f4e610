"""Time integrators as data: SSP Runge-Kutta tables and the stencils that go with them."""

from __future__ import annotations

from dataclasses import dataclass


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
