"""How the image depends on the wall: blur, local intensities, noise.

I_k = μ_out(x) + D(x) P_k(phi) + noise, with P the blurred lumen and μ_out, D slowly varying.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from vesselseg.cuda_kernels import wall as kernels

from .band import Band

BLOCK = 4.0  # edge of the blocks in which moments are summed, in largest spacings
PSF_RANGE = np.array([0.25, 0.4, 0.55, 0.7, 0.85, 1.0, 1.2])
NORMAL_MAD = 1.4826  # median absolute deviation to standard deviation
RIDGE = 2.0  # pseudo-samples that pull an empty neighbourhood to the global intensities


@dataclass(frozen=True, eq=False)
class Appearance:
    """The image model at the voxels of a band; all arrays (n,).

    ``inside`` P, ``slope`` dP per mm of outward wall displacement, ``contrast`` D, ``residual``
    I - model, ``weight`` in (0, 1]: small where the residual is no noise; ``noise`` s.d.
    """

    inside: NDArray[np.float64]
    slope: NDArray[np.float64]
    contrast: NDArray[np.float64]
    residual: NDArray[np.float64]
    weight: NDArray[np.float64]
    noise: float
    psf: float


def blur_mm(band: Band, psf: float) -> NDArray[np.float64]:
    """S.d. of the blur along the wall's normal at the core voxels, voxel box included."""
    across = (band.normal[: band.core] * band.spacing) ** 2
    return np.asarray(np.sqrt((psf**2 + 1.0 / 12.0) * across.sum(axis=1)))


def fit_appearance(
    image: NDArray, band: Band, psf: float, means_mm: float, weight: NDArray | None = None
) -> Appearance:
    """Fit local intensities for a wall and a blur; robust noise from the residuals."""
    n = len(band.phi_mm)
    inside, slope = np.empty(n), np.empty(n)
    kernels.blurred_occupancy(
        band.phi_mm, band.normal, band.bend, psf, inside, slope, *band.spacing
    )
    samples = kernels.gather(band.index, image).astype(np.float64)
    trust = np.ones(n) if weight is None else weight
    outer, contrast = _local_means(samples, inside, trust, band, image.shape, means_mm)
    residual = samples - outer - contrast * inside
    core = residual[: band.core]
    noise = NORMAL_MAD * float(np.median(np.abs(core - np.median(core))))
    scale = float(np.median(np.abs(contrast[: band.core])))
    noise = max(noise, 1e-3 * scale, 1e-12)
    tail = 4.0 * noise + 0.5 * np.abs(contrast)
    return Appearance(
        inside, slope, contrast, residual, 1.0 / (1.0 + (residual / tail) ** 4), noise, psf
    )


def estimate_psf(image: NDArray, band: Band, means_mm: float) -> float:
    """Blur that leaves the smallest residual near the wall; parabola through the best three."""
    cost = np.empty(len(PSF_RANGE))
    for n, psf in enumerate(PSF_RANGE):
        fit = fit_appearance(image, band, psf, means_mm)
        cost[n] = np.mean(np.minimum(np.abs(fit.residual[: band.core]), 4.0 * fit.noise) ** 2)
    best = int(np.clip(np.argmin(cost), 1, len(PSF_RANGE) - 2))
    a, b, _ = np.polyfit(PSF_RANGE[best - 1 : best + 2], cost[best - 1 : best + 2], 2)
    vertex = -b / (2.0 * a) if a > 0.0 else PSF_RANGE[np.argmin(cost)]
    return float(np.clip(vertex, PSF_RANGE[0], PSF_RANGE[-1]))


def _local_means(
    samples: NDArray,
    inside: NDArray,
    weight: NDArray,
    band: Band,
    shape: tuple[int, ...],
    length_mm: float,
) -> tuple[NDArray, NDArray]:
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
    where = ((band.index + 0.5) / size - 0.5).T
    sample = [
        ndimage.map_coordinates(b, where, order=1, mode="nearest")
        for b in (outer_blocks, contrast_blocks)
    ]
    return sample[0], sample[1]


def _solve(moments: NDArray, fallback: NDArray, floor: float) -> tuple[NDArray, NDArray]:
    """Solve the 2 x 2 normal equations from moments (1, P, P², I, I P)."""
    w, p, pp, i, ip = moments
    determinant = w * pp - p * p
    good = determinant > floor * np.maximum(w * w, 1e-300)
    safe = np.where(good, determinant, 1.0)
    outer = np.where(good, (i * pp - ip * p) / safe, fallback[0])
    contrast = np.where(good, (w * ip - p * i) / safe, fallback[1])
    return outer, contrast
