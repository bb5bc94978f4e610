"""Operations on a list of band voxels: geometry, image model, Laplacian along the wall."""

from __future__ import annotations

import math

import numpy as np
from numba import njit, prange

from .advect import curvature
from .stencils import Array, lower_upper

ROOT_TWO_PI = math.sqrt(2.0 * math.pi)
SAME_WALL = 0.3  # cosine between normals below which two neighbours lie on different walls


@njit(parallel=True, cache=True, error_model="numpy")
def wall_geometry(
    phi: Array, index: Array, normal: Array, kappa: Array, hz: float, hy: float, hx: float
) -> None:
    """Write unit normals (n, 3: z, y, x) and mean curvature of phi at listed voxels."""
    nz, ny, nx = phi.shape
    for n in prange(index.shape[0]):
        k = index[n, 0]
        j = index[n, 1]
        i = index[n, 2]
        ka, kb = lower_upper(nz, k, 1)
        ja, jb = lower_upper(ny, j, 1)
        ia, ib = lower_upper(nx, i, 1)
        gz = (phi[kb, j, i] - phi[ka, j, i]) / (max(kb - ka, 1) * hz)
        gy = (phi[k, jb, i] - phi[k, ja, i]) / (max(jb - ja, 1) * hy)
        gx = (phi[k, j, ib] - phi[k, j, ia]) / (max(ib - ia, 1) * hx)
        norm = max(math.sqrt(gz * gz + gy * gy + gx * gx), 1e-6)
        normal[n, 0] = gz / norm
        normal[n, 1] = gy / norm
        normal[n, 2] = gx / norm
        kappa[n], _ = curvature(phi, k, j, i, hz, hy, hx)


@njit(parallel=True, cache=True, error_model="numpy")
def blurred_occupancy(
    phi: Array,
    normal: Array,
    kappa: Array,
    psf: float,
    inside: Array,
    slope: Array,
    hz: float,
    hy: float,
    hx: float,
) -> None:
    """Write the blurred lumen fraction P and dP/d(outward displacement) of listed voxels.

    P = Φ(-(phi + s² κ / 2) / s): a Gaussian blur of s.d. s along the normal of a wall with mean
    curvature κ, to second order. The voxel box adds h²/12 per axis to s². ``psf`` is the s.d. of
    the blur in voxels.
    """
    for n in prange(phi.shape[0]):
        s2 = (psf * psf + 1.0 / 12.0) * (
            (normal[n, 0] * hz) ** 2 + (normal[n, 1] * hy) ** 2 + (normal[n, 2] * hx) ** 2
        )
        s = math.sqrt(s2)
        # Beyond 2s the expansion in the curvature no longer holds: cap its shift.
        shift = min(max(0.5 * s2 * kappa[n], -0.5 * s), 0.5 * s)
        a = (phi[n] + shift) / s
        inside[n] = 0.5 * math.erfc(a / math.sqrt(2.0))
        slope[n] = math.exp(-0.5 * a * a) / (ROOT_TWO_PI * s)


@njit(parallel=True, cache=True, error_model="numpy")
def wall_neighbours(label: Array, index: Array, normal: Array, table: Array) -> None:
    """Write the list entries of the six face neighbours on the same wall, -1 elsewhere."""
    nz, ny, nx = label.shape
    for n in prange(index.shape[0]):
        k = index[n, 0]
        j = index[n, 1]
        i = index[n, 2]
        for side in range(6):
            axis = side // 2
            step = 2 * (side % 2) - 1
            c = k + step * (axis == 0)
            b = j + step * (axis == 1)
            a = i + step * (axis == 2)
            m = -1
            if c >= 0 and b >= 0 and a >= 0 and c < nz and b < ny and a < nx:
                m = label[c, b, a]
            if m >= 0:
                cosine = (
                    normal[n, 0] * normal[m, 0]
                    + normal[n, 1] * normal[m, 1]
                    + normal[n, 2] * normal[m, 2]
                )
                m = m if cosine > SAME_WALL else -1
            table[n, side] = m


@njit(parallel=True, cache=True, error_model="numpy")
def shift_wall(phi: Array, index: Array, displacement: Array, out: Array) -> None:
    """Write out = phi - displacement at listed voxels: the wall moves outward by it."""
    for n in prange(index.shape[0]):
        k = index[n, 0]
        j = index[n, 1]
        i = index[n, 2]
        out[k, j, i] = phi[k, j, i] - displacement[n]


@njit(cache=True, error_model="numpy")
def scatter(index: Array, values: Array, out: Array) -> None:
    """Write listed values into a field."""
    for n in range(index.shape[0]):
        out[index[n, 0], index[n, 1], index[n, 2]] = values[n]


@njit(cache=True, error_model="numpy")
def block_sums(
    index: Array, size: Array, weight: Array, inside: Array, image: Array, sums: Array
) -> None:
    """Add weighted moments (1, P, P², I, I P) of listed voxels into blocks of given size."""
    for n in range(index.shape[0]):
        k = index[n, 0] // size[0]
        j = index[n, 1] // size[1]
        i = index[n, 2] // size[2]
        w = weight[n]
        p = inside[n]
        sums[0, k, j, i] += w
        sums[1, k, j, i] += w * p
        sums[2, k, j, i] += w * p * p
        sums[3, k, j, i] += w * image[n]
        sums[4, k, j, i] += w * image[n] * p


def gather(index: Array, values: Array) -> Array:
    """Return the listed voxels of a field."""
    return np.asarray(values[index[:, 0], index[:, 1], index[:, 2]])
