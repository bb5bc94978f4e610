"""One step of the default energy ``map``: the wall moves to its most probable place."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter

from vesselseg.errors import NumericalError

from .appearance import Appearance, blur_mm, estimate_psf, fit_appearance
from .band import CORE, Band, make_band
from .displacement import (
    Data,
    WallPrior,
    log_evidence,
    smooth_along_wall,
    solve_displacement,
)
from .settings import RefineSettings
from .uncertainty import fisher_information, posterior_sigma

MAX_STEP = 0.7  # of the wall in one step, in largest spacings: the model is linear that far
FIRST_PSF, FIRST_LENGTH, FIRST_SCALE = 0.6, 7.0, 0.5
LEARN_BLUR_AT = (3, 6)  # steps after which the blur is estimated
LEARN_PRIOR_AT = 3  # once, from a stiff wall: a wall that follows the noise would ask for more
EVIDENCE_SLACK = 0.05  # of the Occam term: the accuracy of its flat-wall form
LENGTHS = (3.0, 4.5, 7.0, 10.0, 14.0)  # candidates for the prior, in largest spacings
SCALES = (0.5, 1.0)
FAIRING, FAIRING_PASSES = 3.0, 2  # length of the filter that removes the start's roughness
REACH = 3.0  # of the start's s.d.: the wall moves no further, so it cannot crawl along a neighbour
THIN = 0.15  # of the radius: a pass of the filter moves no wall further, so thin branches survive
TRIM = 0.05  # of the wall, at tips and creases, may still move when the wall is said to rest
SIGMA_FLOOR = 0.02  # of the wall position, in largest spacings: the redistancer's and model's own


@dataclass(frozen=True, eq=False)
class Problem:
    """Everything that stays fixed: image, start and its s.d. as 3-D arrays, settings.

    ``speed`` is the given speed of the wall, ``channels`` further images of the lumen's speed.
    """

    image: NDArray[np.float32]
    start: NDArray
    sigma: NDArray
    spacing: tuple[float, ...]
    band_mm: float
    wall_dims: int
    settings: RefineSettings
    speed: NDArray | float | None = None
    channels: tuple[NDArray[np.float32], ...] = ()

    @property
    def unit(self) -> float:
        """Largest voxel size, mm."""
        return max(self.spacing[-self.wall_dims - 1 :])

    @property
    def voxel_mm(self) -> float:
        """Volume of a voxel in mm³, area of a pixel in mm²."""
        return float(np.prod(self.spacing[-self.wall_dims - 1 :]))

    @property
    def area_mm(self) -> float:
        """Share of a core voxel in the wall's area in mm², or in its length in mm."""
        return self.voxel_mm / (2.0 * CORE * self.unit)


@dataclass(frozen=True, eq=False)
class State:
    """What one step hands to the next."""

    phi: NDArray
    steps: int = 0
    rms_mm: float = float("inf")
    psf: float = FIRST_PSF
    length_mm: float = 0.0
    scale: float = FIRST_SCALE
    facts: tuple[tuple[str, float], ...] = ()
    time: float = 0.0
    before: NDArray | None = None
    fields: tuple[NDArray, ...] = ()


def fair(phi: NDArray, spacing: tuple[float, ...], band_mm: float) -> NDArray:
    """Remove a wall's roughness below the resolution without shrinking it.

    The wall moves by -l² (B - B²) κ with B = (1 - l² Δ_Γ)⁻¹: roughness of wavenumber q is
    multiplied by 1 - (l q)⁴ / (1 + l² q²)², while a constant curvature, however strong, moves
    nothing. (Curvature flow would shrink a thin vessel.)
    """
    unit = max(spacing)
    length = FAIRING * unit
    # The deepest point within three voxels: the radius of the lumen about a wall point.
    radius = maximum_filter(np.maximum(-phi, 0.0), size=7)
    for _ in range(FAIRING_PASSES):
        band = make_band(phi, spacing, band_mm)
        table, _ = band.graph()
        bend = band.kappa[: band.core]
        once = smooth_along_wall(bend, table, length, spacing)
        twice = smooth_along_wall(once, table, length, spacing)
        most = np.minimum(MAX_STEP * unit, THIN * band.points.extend(radius)[: band.core])
        move = np.clip(length**2 * (twice - once), -most, most)
        phi = moved_wall(band, move)
    return phi


def prior_sigma(
    start: NDArray, faired: NDArray, sigma: NDArray, spacing: tuple[float, ...], band_mm: float
) -> NDArray[np.float64]:
    """S.d. of a faired start about the truth, constant along normals.

    Where the filter moved the wall it may have removed true detail, so that its move adds to the
    start's own s.d. The displacement is smooth in units of the s.d.: it is smoothed along the
    wall, as a rough s.d. would print through.
    """
    band = make_band(faired, spacing, band_mm)
    table, _ = band.graph()
    variance = band.points.extend(sigma.astype(np.float64)) ** 2 + band.points.extend(start) ** 2
    length = FAIRING * max(spacing)
    smooth = smooth_along_wall(variance[: band.core], table, length, spacing)
    core = np.sqrt(np.maximum(smooth, variance[: band.core].min()))
    return band.spread(core, float(np.median(core)))


def map_step(problem: Problem, state: State) -> State:
    """Gauss-Newton step on the posterior of the wall's displacement from the start."""
    settings = problem.settings
    band = make_band(state.phi, problem.spacing, problem.band_mm)
    if settings.psf is None and state.steps in LEARN_BLUR_AT:
        psf = estimate_psf(problem.image, band, settings.means_length * problem.unit)
        state = replace(state, psf=psf)
    look = observe(problem, band, state.psf)
    moved = displacement_so_far(problem, band)
    table, owner = band.graph()
    data = linearise(band, look, moved, owner)
    if state.steps == LEARN_PRIOR_AT:
        state = learn_prior(problem, state, band, look, data, table, moved)
    prior = wall_prior(problem, band, state)
    total = solve_displacement(data, prior, table, problem.spacing, problem.area_mm, moved)
    reach = REACH * prior.sigma_mm / state.scale
    limit = MAX_STEP * problem.unit
    step = np.clip(np.clip(total, -reach, reach) - moved, -limit, limit)
    near = np.abs(band.phi_mm[: band.core]) < 0.5 * problem.unit
    if not near.any():
        raise NumericalError(
            f"vessel lost at step {state.steps + 1}",
            found="no wall left",
            remedy="check the start against the scan",
        )
    facts = (("noise", look.noise), ("contrast", float(np.median(np.abs(look.contrast)))))
    return replace(
        state,
        phi=moved_wall(band, step),
        steps=state.steps + 1,
        rms_mm=trimmed_rms(step[near]),
        facts=facts,
    )


def trimmed_rms(step: NDArray) -> float:
    """Root mean square of all but the largest steps."""
    squares = np.sort(step**2)
    return float(np.sqrt(np.mean(squares[: max(int(len(squares) * (1.0 - TRIM)), 1)])))


def observe(problem: Problem, band: Band, psf: float) -> Appearance:
    """Fit the image model twice: the second time without what the first found implausible."""
    means = problem.settings.means_length * problem.unit
    first = fit_appearance(problem.image, band, psf, means)
    return fit_appearance(problem.image, band, psf, means, first.weight)


def displacement_so_far(problem: Problem, band: Band) -> NDArray[np.float64]:
    """Distance of the wall from the start at the core voxels, outward positive."""
    return band.points.extend(problem.start)[: band.core]


def linearise(band: Band, look: Appearance, moved: NDArray, owner: NDArray) -> Data:
    """Gather the data of every band voxel at the core voxel that holds its wall point.

    The displacement is constant along normals, so voxels at all depths speak for one point.
    """
    own = np.maximum(owner, 0)
    jacobian = look.contrast * look.slope
    weighted = np.where(owner >= 0, look.weight * jacobian / look.noise**2, 0.0)

    def gather(values: NDArray) -> NDArray[np.float64]:
        return np.bincount(own, weights=values, minlength=band.core).astype(np.float64)

    return Data(
        gather(weighted * jacobian),
        gather(weighted * (look.residual + jacobian * moved[own])),
    )


def wall_prior(problem: Problem, band: Band, state: State) -> WallPrior:
    """Prior of the displacement: the start's s.d. at the wall, scaled, and its length."""
    sigma = band.points.extend(problem.sigma)[: band.core] * state.scale
    return WallPrior(sigma, state.length_mm, problem.wall_dims)


def information(problem: Problem, band: Band, look: Appearance) -> NDArray[np.float64]:
    """Fisher information per wall area at the core voxels."""
    core = slice(band.core)
    blur = blur_mm(band, look.psf)
    contrast = look.contrast[core] * np.sqrt(look.weight[core])
    return fisher_information(contrast, blur, look.noise, problem.voxel_mm)


def learn_prior(
    problem: Problem,
    state: State,
    band: Band,
    look: Appearance,
    data: Data,
    table: NDArray,
    moved: NDArray,
) -> State:
    """Choose the prior's length and scale by the evidence (empirical Bayes).

    Of the candidates that the evidence cannot tell from the best, the smoothest is taken.
    """
    settings = problem.settings
    lengths = [settings.prior_length] if settings.prior_length else LENGTHS
    scales = [settings.prior_scale] if settings.prior_scale else SCALES
    known = information(problem, band, look)
    trials: list[tuple[float, float, State]] = []
    for length, scale in itertools.product(lengths, scales):
        trial = replace(state, length_mm=length * problem.unit, scale=scale)
        prior = wall_prior(problem, band, trial)
        solution = solve_displacement(data, prior, table, problem.spacing, problem.area_mm, moved)
        fit, occam = log_evidence(data, prior, solution, known, problem.area_mm)
        trials.append((fit - occam, occam, trial))
    best, occam, _ = max(trials, key=lambda t: t[0])
    close = [t for t in trials if t[0] >= best - EVIDENCE_SLACK * occam]
    return max(close, key=lambda t: (t[2].length_mm, t[0]))[2]


def moved_wall(band: Band, step: NDArray) -> NDArray:
    """Move the wall outward by the step: phi falls by it, constant along normals."""
    return (band.distance_field - band.spread(step)).astype(band.distance_field.dtype)


def posterior(problem: Problem, state: State) -> tuple[NDArray, NDArray, dict[str, float]]:
    """Return the final distance, its s.d. constant along normals, and the estimates."""
    band = make_band(state.phi, problem.spacing, problem.band_mm)
    look = observe(problem, band, state.psf)
    prior = wall_prior(problem, band, state)
    core_sigma = posterior_sigma(
        information(problem, band, look), prior.sigma_mm, prior.length_mm, prior.wall_dims
    )
    core_sigma = np.hypot(core_sigma, SIGMA_FLOOR * problem.unit)
    sigma = band.spread(core_sigma, float(np.median(core_sigma)))
    contrast = float(np.median(np.abs(look.contrast[: band.core])))
    estimates = {
        "noise": look.noise,
        "contrast": contrast,
        "wall_snr": contrast / look.noise,
        "psf_voxels": state.psf,
        "prior_length_mm": state.length_mm,
        "prior_scale": state.scale,
    }
    distance = np.clip(band.distance_field, -problem.band_mm, problem.band_mm)
    return distance, sigma, estimates
