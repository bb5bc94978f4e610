"""The energies that move a wall by a speed field: one pure function each, fields in, speed out.

Speeds are in mm per unit of time, dimensionless but for that: about one where the image is clear.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from vesselseg.cuda_kernels import wall as kernels

EDGE = 0.35  # of the strongest slopes near the wall: a slope that halves the edge function
STRONGEST = 95.0  # percentile of the slopes that counts as the strongest
BLOCK = 4.0  # edge of the blocks in which local means are summed, in largest spacings
RIDGE = 2.0  # pseudo-samples that pull an empty neighbourhood to the means of the whole band


def edge_map(image: NDArray, near: NDArray, width: float, spacing: tuple[float, ...]) -> NDArray:
    """Edge function g = 1 / (1 + (|∇(G * I)| / λ)²), one on flat ground, near zero on edges.

    Caselles, Kimmel & Sapiro 1997, eq. 5. G is a Gaussian of s.d. ``width`` voxels. λ follows the
    slopes at the flat indices ``near``, so that the unit of the image does not matter.
    """
    # In units of the brightest voxel, so that no square leaves the range of float32.
    image = image / np.float32(max(float(np.abs(image).max()), float(np.finfo(np.float32).tiny)))
    slopes = np.zeros(image.shape, np.float32)
    for axis, h in enumerate(spacing):
        if image.shape[axis] > 1:
            order = [int(a == axis) for a in range(3)]
            slopes += (ndimage.gaussian_filter(image, width, order, mode="nearest") / h) ** 2
    scale = EDGE**2 * float(np.percentile(slopes.reshape(-1)[near], STRONGEST))
    return np.asarray(1.0 / (1.0 + slopes / max(scale, 1e-30)), dtype=np.float32)


def downhill(edge: NDArray, spacing: tuple[float, ...], dims: int) -> NDArray:
    """Velocity (n, dims), x first, that carries a wall towards edges: -h ∇g (eq. 8)."""
    axes = range(2, 2 - dims, -1)
    slopes = [-min(spacing) * np.gradient(edge, spacing[a], axis=a) for a in axes]
    return np.stack(slopes, axis=-1).reshape(-1, dims).astype(np.float32)


def region_speed(image: NDArray, inner: NDArray | float, outer: NDArray | float) -> NDArray:
    """Speed [(I - μ_out)² - (I - μ_in)²] / D² within ±1 (Chan & Vese 2001, eq. 9).

    With global means or, after Lankton & Tannenbaum 2008, local ones. It is divided by the
    squared contrast D, so that the weight of the curvature has the unit of a length.
    """
    image = image.astype(np.float64)
    contrast = np.maximum(np.square(np.subtract(inner, outer)), np.finfo(np.float64).tiny)
    speed = (np.square(image - outer) - np.square(image - inner)) / contrast
    return np.asarray(np.clip(speed, -1.0, 1.0))


def global_means(image: NDArray, phi: NDArray) -> tuple[float, float]:
    """Mean intensities of lumen and surroundings."""
    lumen = image[phi < 0]
    total = float(lumen.sum(dtype=np.float64))
    rest = float(image.sum(dtype=np.float64)) - total
    return total / lumen.size, rest / (image.size - lumen.size)


def local_means(
    image: NDArray, phi: NDArray, near: NDArray, length_mm: float, spacing: tuple[float, ...]
) -> tuple[NDArray, NDArray]:
    """Mean intensities on either side of the wall in a Gaussian window about each voxel.

    Lankton & Tannenbaum 2008, eq. 6 and 7, over the band's voxels ``near`` (flat indices) alone:
    summed in blocks of four voxels, so that the cost goes with the wall's area.
    """
    index = np.stack(np.unravel_index(near, image.shape), axis=-1).astype(np.int32)
    size = np.maximum(np.round(BLOCK * max(spacing) / np.array(spacing)), 1)
    size = np.minimum(size, image.shape).astype(np.int64)
    sums = np.zeros((5, *(-(-np.array(image.shape) // size))))
    samples = image.reshape(-1)[near].astype(np.float64)
    inside = (phi.reshape(-1)[near] < 0).astype(np.float64)
    kernels.block_sums(index, size, np.ones(len(near)), inside, samples, sums)
    whole, lumen, _, intensity, bright = sums
    width = length_mm / (size * np.array(spacing))
    # A Gaussian window of this width holds about (2π)^(d/2) σ^d blocks.
    ridge = RIDGE / float(np.prod(np.sqrt(2.0 * np.pi) * np.maximum(width, 0.4)))
    where = ((index + 0.5) / size - 0.5).T
    found = []
    for count, amount in ((lumen, bright), (whole - lumen, intensity - bright)):
        mean = amount.sum() / max(count.sum(), 1.0)
        wide = [ndimage.gaussian_filter(s, width, mode="constant") for s in (count, amount)]
        blocks = (wide[1] + ridge * mean) / (wide[0] + ridge)
        found.append(ndimage.map_coordinates(blocks, where, order=1, mode="nearest"))
    return found[0], found[1]
