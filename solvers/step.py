"""One step of the default energy ``map``: the wall moves to its most probable place."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from vesselseg.cuda_kernels import displacement as formulas

from .appearance import (
    Appearance,
    Profile,
    estimate_psf,
    fit_appearance,
    flow_profile,
    lumen_profile,
    misfit,
    noise_parts,
)
from .band import CORE, Band, make_band
from .displacement import Data, Values, WallPrior, smooth_along_wall, solve_displacement
from .settings import RefineSettings
from .watch import vessel_lost

MAX_STEP = 0.7  # of the wall in one step, in largest spacings: the model is linear that far
FIRST_PSF = 0.6
LEARN_BLUR_AT = (2, 4)  # steps after which the blur is estimated
REACH = 3.0  # of the start's s.d.: the wall moves no further, so it cannot crawl along a neighbour
ROUGH = 2.0  # largest spacings: curvature that varies over less is roughness
AVERAGED = 2.5  # largest spacings: over which a wall without detail averages the image's noise
DETAIL = 40.0  # largest spacings to the wall's dimension: how much seen roughness softens it
TRIM = 0.05  # of the wall, at tips and creases, may still move when the wall is said to rest
SIGMA_FLOOR = 0.02  # of the wall position, in largest spacings: the redistancer's and model's own
FLOW_FLOOR = 0.2  # the same where the scan is that of a flow: blunt or parabolic, nobody knows
FLOW_START = 1.0  # least s.d. of the start there, in largest spacings: slow blood is not seen


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
    def shows_flow(self) -> bool:
        """Whether the scan is an image of a flow."""
        return self.settings.profile == "flow"

    @property
    def flow_parts(self) -> int:
        """Components of a velocity."""
        return self.wall_dims + 1

    @property
    def learns_blur(self) -> bool:
        """Whether the blur is estimated: that of a ramp is no other than a shift of it."""
        return self.settings.psf is None and not self.shows_flow

    @property
    def least_sigma_mm(self) -> float:
        """S.d. of the wall that no image takes away."""
        return self.unit * (FLOW_FLOOR if self.shows_flow else SIGMA_FLOOR)

    @property
    def least_start_mm(self) -> float:
        """S.d. of the start that it has at least."""
        return self.unit * (FLOW_START if self.shows_flow else SIGMA_FLOOR)

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
    facts: tuple[tuple[str, float], ...] = ()
    time: float = 0.0
    before: NDArray | None = None
    fields: tuple[NDArray, ...] = ()


@dataclass(frozen=True, eq=False)
class View:
    """A wall seen through its images: the scan's model first, the linearised data, the prior."""

    band: Band
    looks: tuple[Appearance, ...]
    table: NDArray[np.uint32]
    data: Data
    known: Values
    prior: WallPrior


def first_psf(settings: RefineSettings) -> float:
    """Return the blur that the settings state, else the one that is believed before any is seen."""
    return FIRST_PSF if settings.psf is None else settings.psf


def map_step(problem: Problem, state: State) -> State:
    """Gauss-Newton step on the posterior of the wall's displacement."""
    band = make_band(state.phi, problem.spacing, problem.band_mm)
    if problem.learns_blur and state.steps in LEARN_BLUR_AT:
        means = problem.settings.means_length * problem.unit
        known = noise_parts(problem.image), problem.settings.averages
        state = replace(state, psf=estimate_psf(problem.image, band, state.psf, means, *known))
    view = see(problem, band, state.psf)
    step = solve_displacement(view.data, view.prior, view.table, problem.spacing, problem.area_mm)
    limit = MAX_STEP * problem.unit
    sigma = sigma_at(problem, band)
    step = formulas.bounded_step(step, view.prior.moved, sigma, REACH, limit)
    near = np.abs(band.phi_mm[: band.core]) <= 0.5 * problem.unit
    if not near.any():
        raise vessel_lost(state.steps + 1)
    return replace(
        state,
        phi=band.moved(step),
        steps=state.steps + 1,
        rms_mm=trimmed_rms(step[near]),
        facts=(("noise", view.looks[0].noise), ("contrast", contrast_of(view))),
    )


def trimmed_rms(step: NDArray) -> float:
    """Root mean square of all but the largest steps."""
    squares = np.sort(step**2)
    return float(np.sqrt(np.mean(squares[: max(int(len(squares) * (1.0 - TRIM)), 1)])))


def see(problem: Problem, band: Band, psf: float) -> View:
    """Fit the image models to a wall and gather what they say of its displacement."""
    looks = observe(problem, band, psf)
    table, owner = band.graph()
    data = linearise(band, looks, owner)
    # Fisher information per wall area: that of the voxels, spread along the wall.
    length = ROUGH * problem.unit
    known = smooth_along_wall(data.precision, table, length, problem.spacing) / problem.area_mm
    prior = wall_prior(problem, band, table, np.maximum(known, 0.0))
    return View(band, looks, table, data, known, prior)


def observe(problem: Problem, band: Band, psf: float) -> tuple[Appearance, ...]:
    """Fit the model of the scan and those of the images of the blood's speed."""
    means = problem.settings.means_length * problem.unit
    seen = [(problem.image, scan_profile(problem, band, psf), scan_parts(problem))]
    for channel in problem.channels:
        seen.append((channel, flow_profile(band, psf), problem.flow_parts))
    return tuple(
        fit_appearance(image, band, profile, means, parts) for image, profile, parts in seen
    )


def scan_profile(problem: Problem, band: Band, psf: float) -> Profile:
    """Return what the scan shows of the lumen: all of it alike, or its flow."""
    if problem.shows_flow:
        return flow_profile(band, psf)
    return lumen_profile(band, psf, problem.settings.averages)


def scan_parts(problem: Problem) -> int:
    """Return of how many noisy parts a value of the scan is the length."""
    return problem.flow_parts if problem.shows_flow else noise_parts(problem.image)


def linearise(band: Band, looks: tuple[Appearance, ...], owner: NDArray[np.int32]) -> Data:
    """Gather the data of every band voxel at the core voxel that holds its wall point.

    The displacement is constant along normals, so voxels at all depths speak for one point; the
    noise of the images is independent, so their information adds.
    """
    own = np.maximum(owner, 0)

    def gather(values: Values) -> Values:
        heard = np.where(owner >= 0, values, 0.0)
        return np.bincount(own, weights=heard, minlength=band.core).astype(np.float64)

    jacobians = [look.contrast * look.slope for look in looks]
    weighted = [look.weight * j / look.noise**2 for look, j in zip(looks, jacobians, strict=True)]
    precision = sum(w * j for w, j in zip(weighted, jacobians, strict=True))
    gradient = sum(w * look.residual for w, look in zip(weighted, looks, strict=True))
    return Data(gather(np.asarray(precision)), gather(np.asarray(gradient)))


def wall_prior(problem: Problem, band: Band, table: NDArray[np.uint32], known: Values) -> WallPrior:
    """Prior of the wall: a thin plate, stiff where its curvature varies little, pinned weakly.

    The rough part κ - B κ of the mean curvature, B = (1 - l² Δ_Γ)⁻¹, costs; a constant curvature,
    however strong, costs nothing, so that no vessel shrinks. Its stiffness T balances the
    information i of the image at the wavelength over which noise is averaged, T = i a⁴, and falls
    where roughness is seen at lengths that noise hardly reaches: there is true detail.
    """
    length = ROUGH * problem.unit

    def smooth(values: Values) -> Values:
        return smooth_along_wall(values, table, length, problem.spacing)

    kappa = band.kappa[: band.core]
    rough = kappa - smooth(kappa)
    detail = np.maximum(smooth(smooth(rough) ** 2), 0.0)
    softness = DETAIL * problem.unit**problem.wall_dims
    reach4 = (AVERAGED * problem.unit) ** 4
    stiffness = formulas.plate_stiffness(detail, float(np.median(known)), reach4, softness)
    pin = formulas.pin_strength(sigma_at(problem, band), stiffness, problem.wall_dims)
    moved = band.points.extend(problem.start)[: band.core]
    return WallPrior(stiffness, pin, rough, moved)


def sigma_at(problem: Problem, band: Band) -> Values:
    """S.d. of the start at the core voxels, constant along normals."""
    sigma = band.points.extend(problem.sigma)[: band.core]
    return np.asarray(np.maximum(sigma, problem.least_start_mm))


def contrast_of(view: View) -> float:
    """Typical contrast of the scan at the wall."""
    return float(np.median(np.abs(view.looks[0].contrast[: view.band.core])))


def posterior(problem: Problem, state: State) -> tuple[NDArray, NDArray, dict[str, float]]:
    """Return the final distance, its s.d. constant along normals, and the estimates."""
    band = make_band(state.phi, problem.spacing, problem.band_mm)
    view = see(problem, band, state.psf)
    precision = np.maximum(view.known, 0.0) + view.prior.pin
    core_sigma = formulas.posterior_sigma(precision, view.prior.stiffness, problem.wall_dims)
    misfits = [misfit(look, band, problem.image.shape) for look in view.looks]
    worst = np.maximum.reduce([here for _, here in misfits])[: band.core]
    core_sigma = formulas.doubted_sigma(core_sigma, sigma_at(problem, band), worst)
    core_sigma = np.hypot(core_sigma, problem.least_sigma_mm)
    sigma = band.spread(core_sigma, float(np.median(core_sigma)))
    contrast, noise = contrast_of(view), view.looks[0].noise
    estimates = {
        "noise": noise,
        "contrast": contrast,
        "wall_snr": contrast / noise,
        "psf_voxels": state.psf,
        "misfit": max(whole for whole, _ in misfits),
        "stiffness": float(np.median(view.prior.stiffness)),
    }
    distance = np.clip(band.distance_field, -problem.band_mm, problem.band_mm)
    return distance, sigma, estimates
