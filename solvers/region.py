"""The Chan-Vese energy in two and three dimensions: what the field uses today."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from .evolution import advect
from .redistancing import redistance
from .step import Problem, State

TRAVEL = 0.5  # largest distance the wall may move in one step, in smallest spacings


def chan_vese_speed(image: NDArray, phi: NDArray) -> NDArray:
    """Speed [(I - μ_out)² - (I - μ_in)²] / D² with global means (Chan & Vese 2001, eq. 9).

    It is divided by the squared contrast D, so that it lies near ±1 on two flat regions and
    the curvature weight has the unit of a length.
    """
    inside = phi < 0
    inner, outer = float(image[inside].mean()), float(image[~inside].mean())
    contrast = max((inner - outer) ** 2, 1e-30)
    return np.asarray(((image - outer) ** 2 - (image - inner) ** 2) / contrast)


def chan_vese_step(problem: Problem, state: State) -> State:
    """Move the wall by the region speed and its curvature, then redistance."""
    fine = min(problem.spacing)
    speed = np.clip(chan_vese_speed(problem.image, state.phi), -1.0, 1.0)
    moved = advect(
        state.phi,
        problem.spacing,
        TRAVEL * fine,
        speed=speed.astype(state.phi.dtype),
        curvature_weight=problem.settings.smoothing * fine,
        scheme="eno2",
        band_mm=0.75 * problem.band_mm,
    )
    phi = redistance(moved, problem.spacing, band_mm=problem.band_mm)
    near = np.abs(state.phi) < problem.unit
    rms = float(np.sqrt(np.mean((phi[near] - state.phi[near]) ** 2)))
    return replace(state, phi=phi, steps=state.steps + 1, rms_mm=rms)


def with_the_starts_sigma(
    problem: Problem, state: State
) -> tuple[NDArray, NDArray, dict[str, float]]:
    """Return the final distance with the start's s.d.: this energy knows no uncertainty."""
    return state.phi, problem.sigma, {}
