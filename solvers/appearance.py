"""How the images depend on the wall: blur, local intensities, noise.

Scan: I_k = μ_out(x) + D(x) P_k(phi) + noise, with P the blurred lumen. Image of the blood's speed:
the same with the blurred ramp of a flow that rests at the wall. μ_out and D vary slowly. Both may
be the length of a noisy vector (magnitude images, speeds), which noise makes longer.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, special

from vesselseg.cuda_kernels import wall as kernels
from vesselseg.cuda_kernels.closest_point import sample_at

from .band import Band

BLOCK = 4.0  # edge of the blocks in which moments are summed, in largest spacings
PSF_RANGE = np.array([0.25, 0.4, 0.55, 0.7, 0.85, 1.0, 1.2])
NORMAL_MAD = 1.4826  # median absolute deviation to standard deviation
RIDGE = 2.0  # pseudo-samples that pull an empty neighbourhood to the global intensities
DEEP = 1.5  # largest spacings below the wall: the flow deeper in follows no simple law
CLEAR = 4.0  # in s.d. of the noise: a vector of this length is as long as without it
FAR_SIGNAL = 30.0  # in s.d. of the noise: beyond, noise makes a vector no longer

Values = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Profile:
    """An image of unit contrast and zero background; all arrays (n,).

    ``inside``, its ``slope`` per mm of outward wall displacement, and the ``weight`` of voxels;
    ``rests`` where the signal outside is known to be zero.
    """

    inside: Values
    slope: Values
    weight: Values
    rests: bool = False


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


def blur_mm(band: Band, psf: float) -> Values:
    """S.d. of the blur along the wall's normal, voxel box included."""
    across = (band.normal * band.spacing) ** 2
    return np.asarray(np.sqrt((psf**2 + 1.0 / 12.0) * across.sum(axis=1)))


def lumen_profile(band: Band, psf: float) -> Profile:
    """Blurred lumen: 1 inside, 0 outside."""
    n = len(band.phi_mm)
    inside, slope = np.empty(n), np.empty(n)
    kernels.blurred_occupancy(
        band.phi_mm, band.normal, band.bend, psf, inside, slope, *band.spacing
    )
    return Profile(inside, slope, np.ones(n))


def flow_profile(band: Band, psf: float) -> Profile:
    """Blurred speed d - κ d²/2 at depth d below the wall, mm: that of a viscous flow along it.

    With z ~ N(0, s²) and d = -(phi + z), E[max(d, 0)] = s φ(a) - phi Φ(-a) and
    E[max(d, 0)²] = (phi² + s²) Φ(-a) - phi s φ(a), a = phi / s. Poiseuille flow in a tube of
    radius 1/κ has this profile exactly. The blur of a curved wall is that of ``lumen_profile``.
    """
    s = blur_mm(band, psf)
    phi = band.phi_mm + np.clip(0.5 * (psf**2 + 1.0 / 12.0) * band.bend, -0.5 * s, 0.5 * s)
    bell = np.exp(-0.5 * (phi / s) ** 2) / np.sqrt(2.0 * np.pi)
    share = special.ndtr(-phi / s)
    ramp = s * bell - phi * share
    square = (phi**2 + s**2) * share - phi * s * bell
    kappa = np.clip(band.kappa, 0.0, 1.0 / (DEEP * max(band.spacing)))
    near = phi > -DEEP * max(band.spacing)
    return Profile(ramp - 0.5 * kappa * square, share - kappa * ramp, near.astype(np.float64), True)


def fit_appearance(
    image: NDArray, band: Band, profile: Profile, means_mm: float, parts: int
) -> Appearance:
    """Fit local intensities and robust noise to the length of a vector of so many parts.

    Each further pass goes without what the one before found implausible.
    """
    fit = fit_once(image, band, profile, means_mm)
    lowest = np.minimum(fit.outer, fit.outer + fit.contrast * profile.inside.max())
    if float(np.median(lowest[: band.core])) > CLEAR * fit.noise:
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
        inside, slope, spread = _lengthened(profile, before, parts)
    samples = kernels.gather(band.index, image).astype(np.float64)
    outer, contrast = _local_means(samples, inside, trust, band, image.shape, means_mm)
    residual = samples - outer - contrast * inside
    core = (residual / spread)[: band.core]
    noise = NORMAL_MAD * float(np.median(np.abs(core - np.median(core))))
    scale = float(np.median(np.abs((contrast * profile.inside)[: band.core])))
    noise = max(noise, 1e-3 * scale, 1e-12)
    tail = 4.0 * noise + 0.5 * np.abs(contrast) * float(profile.inside.max())
    excess = np.square(np.square(residual / tail))
    weight = profile.weight / (np.square(spread) * (1.0 + excess))
    return Appearance(slope, outer, contrast, residual, weight, noise, parts)


def noise_parts(image: NDArray) -> int:
    """Tell a magnitude image, which has two noisy parts and no value below zero, from others."""
    return 2 if float(image.min()) >= 0.0 else 1


def estimate_psf(image: NDArray, band: Band, psf: float, means_mm: float, parts: int) -> float:
    """Blur that leaves the smallest residual near the wall; parabola through the best three."""
    start = fit_appearance(image, band, lumen_profile(band, psf), means_mm, parts)
    before = start if start.parts > 1 else None

    @functools.cache
    def cost(n: int) -> float:
        profile = lumen_profile(band, PSF_RANGE[n])
        fit = fit_once(image, band, profile, means_mm, start.parts, before)
        return float(np.mean(np.minimum(np.abs(fit.residual[: band.core]), 4.0 * fit.noise) ** 2))

    # Downhill from the present blur: each trial is a fit to the whole wall.
    best = int(np.clip(np.abs(PSF_RANGE - psf).argmin(), 1, len(PSF_RANGE) - 2))
    while best > 1 and cost(best - 1) < cost(best):
        best -= 1
    while best < len(PSF_RANGE) - 2 and cost(best + 1) < cost(best):
        best += 1
    three = range(best - 1, best + 2)
    a, b, _ = np.polyfit(PSF_RANGE[three], [cost(n) for n in three], 2)
    vertex = -b / (2.0 * a) if a > 0.0 else PSF_RANGE[min(three, key=cost)]
    return float(np.clip(vertex, PSF_RANGE[0], PSF_RANGE[-1]))


@functools.cache
def vector_lengths(parts: int) -> tuple[Values, Values, Values]:
    """Signal, mean and s.d. of the length of a signal plus unit noise in so many parts.

    Mean √2 Γ((k+1)/2)/Γ(k/2) ₁F₁(-1/2; k/2; -θ²/2), Rician for k = 2 (Koay & Basser 2006, eq. 2
    and 16); the variance is k + θ² less the squared mean.
    """
    signal = np.linspace(0.0, FAR_SIGNAL, 3001)
    rest = np.sqrt(2.0) * special.gamma(0.5 * (parts + 1)) / special.gamma(0.5 * parts)
    mean = rest * special.hyp1f1(-0.5, 0.5 * parts, -0.5 * signal**2)
    return signal, mean, np.sqrt(parts + signal**2 - mean**2)


def _lengthened(profile: Profile, before: Appearance, parts: int) -> tuple[Values, Values, Values]:
    """Profile, slope and s.d. in units of the noise of the length of a noisy vector.

    The contrast that is fitted to this profile is that of the signal itself.
    """
    signal, mean, spread = vector_lengths(parts)
    noise, contrast = before.noise, before.contrast
    rest = np.interp(before.outer / noise, mean, signal) * (not profile.rests)
    clear = rest + contrast * profile.inside / noise
    length = np.interp(np.abs(clear), signal, mean) + np.maximum(np.abs(clear) - FAR_SIGNAL, 0.0)
    base = np.interp(rest, signal, mean)
    safe = np.where(np.abs(contrast) > 1e-9 * noise, contrast / noise, np.inf)
    inside = np.where(np.isfinite(safe), (length - base) / safe, profile.inside)
    gain = np.sign(clear) * np.interp(np.abs(clear), signal, np.gradient(mean, signal))
    return inside, gain * profile.slope, np.interp(np.abs(clear), signal, spread)


def _local_means(
    samples: NDArray,
    inside: NDArray,
    weight: NDArray,
    band: Band,
    shape: tuple[int, ...],
    length_mm: float,
) -> tuple[Values, Values]:
    """Weighted regression I ~ μ_out + D P in a Gaussian window of the given s.d."""
    size = np.maximum(np.round(BLOCK * max(band.spacing) / np.array(band.spacing)), 1)
    size = np.minimum(size, shape).astype(np.int64)
    blocks = tuple(-(-np.array(shape) // size))
    sums = np.zeros((5, *blocks))
    kernels.block_sums(band.index, size, weight, inside, samples, sums)
    width = length_mm / (size * band.spacing)
    total = sums.sum(axis=(1, 2, 3))
    local = np.stack([ndimage.gaussian_filter(s, width, mode="constant") for s in sums])
    # A Gaussian window of this width holds about (2π)^(d/2) σ^d blocks: undo its normalisation.
    local *= np.prod(np.sqrt(2.0 * np.pi) * np.maximum(width, 0.4))
    outer, contrast = _solve(total, np.zeros(2), 0.0)
    ridge = RIDGE / max(float(total[0]), 1e-12) * total[:3]
    outer_blocks, contrast_blocks = _solve(
        local
        + np.array(
            [*ridge, ridge[0] * outer + ridge[1] * contrast, ridge[1] * outer + ridge[2] * contrast]
        )[:, None, None, None],
        np.array([outer, contrast]),
        1e-9,
    )
    sign = np.sign(contrast)
    contrast_blocks = sign * np.maximum(sign * contrast_blocks, 0.0)
    where = (band.index + 0.5) / size - 0.5
    origin = np.zeros_like(band.index)
    sample = np.empty((2, len(where)))
    for values, out in zip((outer_blocks, contrast_blocks), sample, strict=True):
        sample_at(values, origin, where, out)
    return sample[0], sample[1]


def _solve(moments: NDArray, fallback: NDArray, floor: float) -> tuple[Values, Values]:
    """Solve the 2 x 2 normal equations from moments (1, P, P², I, I P)."""
    w, p, pp, i, ip = moments
    determinant = w * pp - p * p
    good = determinant > floor * np.maximum(w * w, 1e-300)
    safe = np.where(good, determinant, 1.0)
    outer = np.where(good, (i * pp - ip * p) / safe, fallback[0])
    contrast = np.where(good, (w * ip - p * i) / safe, fallback[1])
    return outer, contrast
