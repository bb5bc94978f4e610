"""One Runge-Kutta stage of the level-set equation.

phi_t + V |∇phi| + u · ∇phi = b κ |∇phi|, κ = div(∇phi / |∇phi|), V > 0 grows the lumen
(Osher & Sethian 1988); one-sided derivatives by HJ-WENO5 (Jiang & Peng 2000) or ENO2
(Osher & Shu 1991), Godunov's choice for the normal term, central differences for κ.
"""

from __future__ import annotations

import numpy as np
from numba import njit, prange

from .jit import compiled
from .stencils import Array, Pair, eno2_pair, lower_upper, upwind_sq, weno5_pair


@njit(error_model="numpy")
def _pair(phi: Array, k: int, j: int, i: int, axis: int, order: int, h: float) -> Pair:
    nz, ny, nx = phi.shape
    n = nz if axis == 0 else (ny if axis == 1 else nx)
    c = k if axis == 0 else (j if axis == 1 else i)
    a1, b1 = lower_upper(n, c, 1)
    a2, b2 = lower_upper(n, c, 2)
    if axis == 0:
        m2, m1, p1, p2 = phi[a2, j, i], phi[a1, j, i], phi[b1, j, i], phi[b2, j, i]
    elif axis == 1:
        m2, m1, p1, p2 = phi[k, a2, i], phi[k, a1, i], phi[k, b1, i], phi[k, b2, i]
    else:
        m2, m1, p1, p2 = phi[k, j, a2], phi[k, j, a1], phi[k, j, b1], phi[k, j, b2]
    here = phi[k, j, i]
    if order == 2:
        return eno2_pair(m2, m1, here, p1, p2, h)
    a3, b3 = lower_upper(n, c, 3)
    if axis == 0:
        m3, p3 = phi[a3, j, i], phi[b3, j, i]
    elif axis == 1:
        m3, p3 = phi[k, a3, i], phi[k, b3, i]
    else:
        m3, p3 = phi[k, j, a3], phi[k, j, b3]
    return weno5_pair(m3, m2, m1, here, p1, p2, p3, h)


@njit(error_model="numpy")
def curvature(phi: Array, k: int, j: int, i: int, hz: float, hy: float, hx: float) -> Pair:
    """Mean curvature κ = div n and |∇phi| by the 19-point central formula; κ capped at 2/h."""
    nz, ny, nx = phi.shape
    ka, kb = lower_upper(nz, k, 1)
    ja, jb = lower_upper(ny, j, 1)
    ia, ib = lower_upper(nx, i, 1)
    here = phi[k, j, i]
    # Sums are ordered so that mirrored fields give the same value to the last bit.
    gz = (phi[kb, j, i] - phi[ka, j, i]) / (2.0 * hz)
    gy = (phi[k, jb, i] - phi[k, ja, i]) / (2.0 * hy)
    gx = (phi[k, j, ib] - phi[k, j, ia]) / (2.0 * hx)
    zz = (phi[kb, j, i] + phi[ka, j, i] - 2.0 * here) / (hz * hz)
    yy = (phi[k, jb, i] + phi[k, ja, i] - 2.0 * here) / (hy * hy)
    xx = (phi[k, j, ib] + phi[k, j, ia] - 2.0 * here) / (hx * hx)
    zy = (phi[kb, jb, i] + phi[ka, ja, i] - (phi[kb, ja, i] + phi[ka, jb, i])) / (4.0 * hz * hy)
    zx = (phi[kb, j, ib] + phi[ka, j, ia] - (phi[kb, j, ia] + phi[ka, j, ib])) / (4.0 * hz * hx)
    yx = (phi[k, jb, ib] + phi[k, ja, ia] - (phi[k, jb, ia] + phi[k, ja, ib])) / (4.0 * hy * hx)
    g2 = gz * gz + gy * gy + gx * gx
    norm = np.sqrt(g2)
    if norm < 1e-6:
        return 0.0, norm
    bend = (
        zz * (gy * gy + gx * gx)
        + yy * (gz * gz + gx * gx)
        + xx * (gz * gz + gy * gy)
        - 2.0 * (gz * gy * zy + gz * gx * zx + gy * gx * yx)
    )
    cap = 2.0 / min(hz, hy, hx)
    return min(max(bend / (g2 * norm), -cap), cap), norm


@compiled(parallel=True)
def advect_stage(
    phi: Array,
    speed: Array,
    velocity: Array,
    bend: float,
    base: Array,
    active: Array,
    out: Array,
    dt: float,
    ca: float,
    cb: float,
    order: int,
    hz: float,
    hy: float,
    hx: float,
) -> None:
    """Write out = ca base + cb (phi + dt rate(phi)) at active voxels, phi elsewhere.

    ``speed`` (nz, ny, nx) and ``velocity`` (nz, ny, nx, 3: x, y, z) may have zero size: absent.
    """
    nz, ny, nx = phi.shape
    has_speed = speed.size > 0
    has_velocity = velocity.size > 0
    for row in prange(nz * ny):
        k = row // ny
        j = row - k * ny
        for i in range(nx):
            if not active[k, j, i]:
                out[k, j, i] = phi[k, j, i]
                continue
            rate = 0.0
            if has_speed or has_velocity:
                zl, zr = _pair(phi, k, j, i, 0, order, hz)
                yl, yr = _pair(phi, k, j, i, 1, order, hy)
                xl, xr = _pair(phi, k, j, i, 2, order, hx)
            if has_speed:
                v = speed[k, j, i]
                outward = v > 0.0
                g2 = upwind_sq(zl, zr, outward) + upwind_sq(yl, yr, outward)
                rate -= v * np.sqrt(g2 + upwind_sq(xl, xr, outward))
            if has_velocity:
                ux = velocity[k, j, i, 0]
                uy = velocity[k, j, i, 1]
                uz = velocity[k, j, i, 2]
                rate -= ux * (xl if ux > 0.0 else xr)
                rate -= uy * (yl if uy > 0.0 else yr)
                rate -= uz * (zl if uz > 0.0 else zr)
            if bend != 0.0:
                kappa, norm = curvature(phi, k, j, i, hz, hy, hx)
                rate += bend * kappa * norm
            out[k, j, i] = ca * base[k, j, i] + cb * (phi[k, j, i] + dt * rate)
