"""Operations on a list of band voxels: geometry, image model, Laplacian along the wall."""

from __future__ import annotations

import math

from numba import njit, prange

from .jit import compiled
from .stencils import Array, lower_upper

ROOT_TWO_PI = math.sqrt(2.0 * math.pi)
SAME_WALL = 0.3  # cosine between normals below which two neighbours lie on different walls


@njit(error_model="numpy")
def second_differences(
    phi: Array, k: int, j: int, i: int, hz: float, hy: float, hx: float
) -> tuple[float, float, float, float, float, float]:
    """Hessian (zz, yy, xx, zy, zx, yx) of phi at the voxel, or beside it at a face of the box.

    Clamped neighbours would invent a bend at the faces, where vessels leave the field of view.
    """
    nz, ny, nx = phi.shape
    k = min(max(k, 1), max(nz - 2, 0))
    j = min(max(j, 1), max(ny - 2, 0))
    i = min(max(i, 1), max(nx - 2, 0))
    ka, kb = lower_upper(nz, k, 1)
    ja, jb = lower_upper(ny, j, 1)
    ia, ib = lower_upper(nx, i, 1)
    here = 2.0 * phi[k, j, i]
    zz = (phi[kb, j, i] - here + phi[ka, j, i]) / (hz * hz)
    yy = (phi[k, jb, i] - here + phi[k, ja, i]) / (hy * hy)
    xx = (phi[k, j, ib] - here + phi[k, j, ia]) / (hx * hx)
    zy = (phi[kb, jb, i] - phi[kb, ja, i] - phi[ka, jb, i] + phi[ka, ja, i]) / (4.0 * hz * hy)
    zx = (phi[kb, j, ib] - phi[kb, j, ia] - phi[ka, j, ib] + phi[ka, j, ia]) / (4.0 * hz * hx)
    yx = (phi[k, jb, ib] - phi[k, jb, ia] - phi[k, ja, ib] + phi[k, ja, ia]) / (4.0 * hy * hx)
    return zz, yy, xx, zy, zx, yx


@compiled(parallel=True)
def wall_geometry(
    phi: Array, index: Array, normal: Array, kappa: Array, bend: Array,
    hz: float, hy: float, hx: float,
) -> None:  # fmt: skip
    """Write unit normals (n, 3: z, y, x), mean curvature and blur bend at listed voxels.

    The mean curvature is tr H - nᵀ H n, 1/mm. The bend tr[H (M - M n nᵀ M / nᵀ M n)] with
    M = diag(h²) is its counterpart for a blur of one voxel along each axis, mm.
    """
    nz, ny, nx = phi.shape
    cap = 2.0 / min(hz, hy, hx)
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
        gz /= norm
        gy /= norm
        gx /= norm
        normal[n, 0] = gz
        normal[n, 1] = gy
        normal[n, 2] = gx
        zz, yy, xx, zy, zx, yx = second_differences(phi, k, j, i, hz, hy, hx)
        along = zz * gz * gz + yy * gy * gy + xx * gx * gx
        along += 2.0 * (zy * gz * gy + zx * gz * gx + yx * gy * gx)
        # The Hessian of a distance divided by |∇phi| is the shape operator.
        kappa[n] = min(max((zz + yy + xx - along) / norm, -cap), cap)
        mz = hz * hz * gz
        my = hy * hy * gy
        mx = hx * hx * gx
        across = max(mz * gz + my * gy + mx * gx, 1e-20)
        blurred = zz * mz * mz + yy * my * my + xx * mx * mx
        blurred += 2.0 * (zy * mz * my + zx * mz * mx + yx * my * mx)
        bend[n] = (zz * hz * hz + yy * hy * hy + xx * hx * hx - blurred / across) / norm


@compiled(parallel=True)
def blurred_occupancy(
    phi: Array, normal: Array, bend: Array, psf: float, inside: Array, slope: Array,
    hz: float, hy: float, hx: float,
) -> None:  # fmt: skip
    """Write the blurred lumen fraction P and dP/d(outward displacement) of listed voxels.

    P = Φ(-(phi + shift) / s): a Gaussian blur with covariance Σ = (psf² + 1/12) diag(h²), of s.d.
    s = √(nᵀ Σ n) along the normal, moves the half-way point of a curved wall inward by
    ½ tr[H (Σ - Σ n nᵀ Σ / nᵀ Σ n)], to second order; s² κ / 2 for even voxels. ``psf`` is in
    voxels, the voxel box adds 1/12.
    """
    width = psf * psf + 1.0 / 12.0
    for n in prange(phi.shape[0]):
        s2 = width * (
            (normal[n, 0] * hz) ** 2 + (normal[n, 1] * hy) ** 2 + (normal[n, 2] * hx) ** 2
        )
        s = math.sqrt(max(s2, 1e-20))
        # Beyond half of s the expansion in the curvature no longer holds.
        shift = min(max(0.5 * width * bend[n], -0.5 * s), 0.5 * s)
        a = (phi[n] + shift) / s
        inside[n] = 0.5 * math.erfc(a / math.sqrt(2.0))
        slope[n] = math.exp(-0.5 * a * a) / (ROOT_TWO_PI * s)


@compiled(parallel=True)
def wall_neighbours(label: Array, index: Array, normal: Array, table: Array) -> None:
    """Write the list entries of the six face neighbours on the same wall, the own one elsewhere.

    The list holds the voxels labelled 1, 2, ...; later labels and 0 are no part of it.
    """
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
                m = label[c, b, a] - 1
            if m >= index.shape[0]:
                m = -1
            if m >= 0:
                cosine = (
                    normal[n, 0] * normal[m, 0]
                    + normal[n, 1] * normal[m, 1]
                    + normal[n, 2] * normal[m, 2]
                )
                m = m if cosine > SAME_WALL else -1
            table[n, side] = m if m >= 0 else n


@compiled(parallel=True)
def wall_owner(label: Array, index: Array, offset: Array, core: int, owner: Array) -> None:
    """Write the entry, below ``core``, of the voxel that holds each closest point; -1: none."""
    nz, ny, nx = label.shape
    for n in prange(index.shape[0]):
        k = min(max(round(index[n, 0] + float(offset[n, 0])), 0), nz - 1)
        j = min(max(round(index[n, 1] + float(offset[n, 1])), 0), ny - 1)
        i = min(max(round(index[n, 2] + float(offset[n, 2])), 0), nx - 1)
        m = label[k, j, i] - 1
        owner[n] = m if m < core else -1


@njit(error_model="numpy", forceinline=True)
def _valued(label: Array, values: Array, k: int, j: int, i: int, beyond: float) -> float:
    m = label[k, j, i]
    return float(values[m - 1]) if m > 0 and m <= values.shape[0] else beyond


@compiled(parallel=True)
def sample_listed(
    label: Array, values: Array, index: Array, offset: Array, beyond: float, out: Array
) -> None:
    """Trilinear samples at closest points of values known at the voxels labelled 1, 2, ..."""
    nz, ny, nx = label.shape
    for n in prange(index.shape[0]):
        z = min(max(index[n, 0] + float(offset[n, 0]), 0.0), nz - 1.0)
        y = min(max(index[n, 1] + float(offset[n, 1]), 0.0), ny - 1.0)
        x = min(max(index[n, 2] + float(offset[n, 2]), 0.0), nx - 1.0)
        k, j, i = int(z), int(y), int(x)
        total = 0.0
        for c in range(k, min(k + 2, nz)):
            for b in range(j, min(j + 2, ny)):
                for a in range(i, min(i + 2, nx)):
                    w = (1.0 - abs(z - c)) * (1.0 - abs(y - b)) * (1.0 - abs(x - a))
                    total += w * _valued(label, values, c, b, a, beyond)
        out[n] = total


@compiled(parallel=True)
def scatter(index: Array, values: Array, out: Array) -> None:
    """Write listed values into a field."""
    for n in prange(index.shape[0]):
        out[index[n, 0], index[n, 1], index[n, 2]] = values[n]


@compiled()
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


@compiled(parallel=True)
def gather(index: Array, values: Array, out: Array) -> None:
    """Write the listed voxels of a field."""
    for n in prange(index.shape[0]):
        out[n] = values[index[n, 0], index[n, 1], index[n, 2]]
