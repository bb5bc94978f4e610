"""How the images depend on the wall: blur, local intensities, noise.

I_k = μ_out(x) + D(x) P_k(phi) + noise, with P the blurred lumen, or, in images of the blood's speed
and of its signal times its speed, the blurred ramp of a flow that rests at the wall. μ_out and D
vary slowly. Both images may be the length of a noisy vector (magnitude images, speeds), which noise
makes longer.
"""

from __future__ import annotations

import functools
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from vesselseg.cuda_kernels import appearance as formulas
from vesselseg.cuda_kernels import wall as kernels
from vesselseg.cuda_kernels.closest_point import sample_at
from vesselseg.cuda_kernels.jit import threads

from .band import Band

BLOCK = 4.0  # edge of the blocks in which moments are summed, in largest spacings
PSF_RANGE = np.array([0.25, 0.4, 0.55, 0.7, 0.85, 1.0, 1.2])
MISFIT_LENGTH = 8.0  # largest spacings: s.d. of the window in which residuals are judged
RIDGE = 2.0  # pseudo-samples that pull an empty neighbourhood to the global intensities
DEEP = 2.0  # largest spacings below the wall: the flow deeper in follows no simple law
CLEAR = 4.0  # in s.d. of the noise: a vector of this length is as long as without it

Values = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Profile:
    """An image of unit contrast and zero background; all arrays (n,).

    ``inside``, its ``slope`` per mm of outward wall displacement, and the ``weight`` of voxels;
    ``rests`` where the signal outside is known to be zero; ``averages`` images are its mean, so
    that the noise of each was √averages times that of the image.
    """

    inside: Values
    slope: Values
    weight: Values
    rests: bool = False
    averages: float = 1.0


@dataclass(frozen=True, eq=False)
class Appearance:
    """An image model at the voxels of a band; all arrays (n,).

    ``slope`` of the profile per mm of outward wall displacement, ``contrast`` D, ``outer`` the
    expected background, ``residual`` I - model, ``weight`` small where the residual is no noise;
    ``noise`` s.d. of each of the ``parts`` of a vector, 1 where noise does not lengthen it.
    """

    slope: Values
    outer: Values
    contrast: Values
    residual: Values
    weight: Values
    noise: float
    parts: int


def lumen_profile(band: Band, psf: float, averages: float = 1.0) -> Profile:
    """Blurred lumen: 1 inside, 0 outside."""
    n = len(band.phi_mm)
    inside, slope = np.empty(n), np.empty(n)
    kernels.blurred_occupancy(
        band.phi_mm, band.normal, band.bend, psf, inside, slope, *band.spacing
    )
    return Profile(inside, slope, np.ones(n), averages=averages)


def flow_profile(band: Band, psf: float) -> Profile:
    """Blurred speed of a viscous flow along the wall, unit slope: ``appearance.blurred_flow``."""
    deep = DEEP * max(band.spacing)
    known = band.phi_mm, band.normal, band.bend, band.kappa
    return Profile(*formulas.blurred_flow(*known, psf, deep, band.spacing), True)


def fit_appearance(
    image: NDArray, band: Band, profile: Profile, means_mm: float, parts: int
) -> Appearance:
    """Fit local intensities and robust noise to the length of a vector of so many parts.

    Each further pass goes without what the one before found implausible.
    """
    fit = fit_once(image, band, profile, means_mm)
    lowest = np.minimum(fit.outer, fit.outer + fit.contrast * profile.inside.max())
    if float(np.median(lowest[: band.core])) > CLEAR * fit.noise * math.sqrt(profile.averages):
        parts = 1
    for _ in range(1 if parts == 1 else 2):
        fit = fit_once(image, band, profile, means_mm, parts, fit)
    return fit


def fit_once(
    image: NDArray,
    band: Band,
    profile: Profile,
    means_mm: float,
    parts: int = 1,
    before: Appearance | None = None,
) -> Appearance:
    """Fit with the trust, and for a vector the noise, of the fit before."""
    inside, slope = profile.inside, profile.slope
    trust = profile.weight if before is None else before.weight
    spread = np.ones(len(inside))
    if parts > 1 and before is not None:
        single = before.noise * math.sqrt(profile.averages)  # what lengthens a vector is its own
        known = before.outer, before.contrast, single, parts, profile.rests
        inside, slope, spread = formulas.lengthen(inside, slope, *known)
    samples = band.gather(image)
    outer, contrast = _local_means(samples, inside, trust, band, image.shape, means_mm)
    residual = samples - outer - contrast * inside
    core = (residual / spread)[: band.core]
    scale = float(np.median(np.abs((contrast * profile.inside)[: band.core])))
    noise = formulas.fit_noise(float(np.median(np.abs(core - np.median(core)))), scale)
    peak = float(profile.inside.max())
    weight = formulas.weigh(residual, contrast, spread, profile.weight, noise, peak)
    return Appearance(slope, outer, contrast, residual, weight, noise, parts)


def block_moments(
    weight: Values, first: Values, second: Values, band: Band, shape: tuple[int, ...]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Sum ω (1, a, a², b, a b) over blocks: the sums (5, ...) and the voxels along their edges."""
    size = np.maximum(np.round(BLOCK * max(band.spacing) / np.array(band.spacing)), 1)
    size = np.minimum(size, shape).astype(np.int64)
    sums = np.zeros((5, *(-(-np.array(shape) // size))))
    kernels.block_sums(band.index, size, weight, first, second, sums)
    return sums, size


def misfit(fit: Appearance, band: Band, shape: tuple[int, ...]) -> tuple[float, Values]:
    """Power of the residual's sums over blocks as a multiple of that of white noise, at least 1.

    Voxels of white noise add up like a random walk, E[(Σ ω r)²] = Σ (ω r)²; correlated noise,
    texture, neighbours and a wrong profile leave residuals that add up faster. Of the whole band
    and in a Gaussian window around its voxels (n,); the window's is believed as far as the whole
    is beyond white noise, which makes few blocks differ by chance.
    """
    own = fit.weight * fit.residual
    sums, size = block_moments(np.ones_like(own), own, own, band, shape)
    together, alone = np.square(sums[1]), sums[2]
    whole = formulas.excess(float(together.sum()), float(alone.sum()))
    width = MISFIT_LENGTH * max(band.spacing) / (size * np.asarray(band.spacing))
    local = _smoothed(np.stack([together, alone]), width)
    share = formulas.window_excess(local[0], local[1], float(alone.max()))
    here = np.empty(len(own))
    sample_at(share, np.zeros_like(band.index), (band.index + 0.5) / size - 0.5, here)
    return whole, formulas.believed(here, whole)


def noise_parts(image: NDArray) -> int:
    """Tell a magnitude image, which has two noisy parts and no value below zero, from others."""
    return 2 if float(image.min()) >= 0.0 else 1


def estimate_psf(
    image: NDArray, band: Band, psf: float, means_mm: float, parts: int, averages: float = 1.0
) -> float:
    """Blur that leaves the smallest residual near the wall; parabola through the best three."""
    start = fit_appearance(image, band, lumen_profile(band, psf, averages), means_mm, parts)
    before = start if start.parts > 1 else None

    @functools.cache
    def cost(n: int) -> float:
        profile = lumen_profile(band, PSF_RANGE[n], averages)
        fit = fit_once(image, band, profile, means_mm, start.parts, before)
        return float(np.mean(np.minimum(np.abs(fit.residual[: band.core]), 4.0 * fit.noise) ** 2))

    return formulas.choose_psf(PSF_RANGE, cost, psf)


def _local_means(
    samples: NDArray,
    inside: NDArray,
    weight: NDArray,
    band: Band,
    shape: tuple[int, ...],
    length_mm: float,
) -> tuple[Values, Values]:
    """Weighted regression I ~ μ_out + D P in a Gaussian window of the given s.d."""
    sums, size = block_moments(weight, inside, samples, band, shape)
    width = length_mm / (size * band.spacing)
    total = sums.sum(axis=(1, 2, 3))
    local = _smoothed(sums, width)
    # A Gaussian window of this width holds about (2π)^(d/2) σ^d blocks: undo its normalisation.
    local *= np.prod(np.sqrt(2.0 * np.pi) * np.maximum(width, 0.4))
    blocks = formulas.solve_blocks(local, total, RIDGE)
    where = (band.index + 0.5) / size - 0.5
    origin = np.zeros_like(band.index)
    sample = np.empty((2, len(where)))
    for values, out in zip(blocks, sample, strict=True):
        sample_at(values, origin, where, out)
    return sample[0], sample[1]


def _smoothed(sums: NDArray, width: NDArray) -> NDArray:
    """Gaussian means of each field of sums, as many at a time as there are threads."""
    local = np.empty_like(sums)

    def smooth(n: int) -> None:
        ndimage.gaussian_filter(sums[n], width, output=local[n], mode="constant")

    with ThreadPoolExecutor(threads()) as pool:
        list(pool.map(smooth, range(len(sums))))
    return local
