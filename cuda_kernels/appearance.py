"""How the images depend on the wall: formulas of ``solvers.appearance`` at listed voxels.

They are the reference of the kernels of ``appearance.cu``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
from numba import prange
from scipy import special

from .jit import compiled
from .stencils import Array

NORMAL_MAD = 1.4826  # median absolute deviation to standard deviation
LEAST_NOISE = 1e-3  # of the signal
FAR_SIGNAL = 30.0  # in s.d. of the noise: beyond, noise makes a vector no longer
SAMPLES = 3001  # of the tables of vectors' lengths, from zero to FAR_SIGNAL
NO_BLOCK = 1e-9  # of the squared weight: a determinant below it tells nothing


def blurred_flow(
    phi: Array, normal: Array, bend: Array, kappa: Array, psf: float, deep: float,
    spacing: tuple[float, ...],
) -> tuple[Array, Array, Array]:  # fmt: skip
    """Return the blurred speed d - κ d²/2 at depth d below the wall, its slope, and weights.

    With z ~ N(0, s²) and d = -(phi + z), E[max(d, 0)] = s φ(a) - phi Φ(-a) and
    E[max(d, 0)²] = (phi² + s²) Φ(-a) - phi s φ(a), a = phi / s. Poiseuille flow in a tube of
    radius 1/κ has this profile exactly. The blur of a curved wall is that of the lumen. Voxels
    ``deep`` mm below the wall weigh nothing: the flow there follows no simple law.
    """
    s = blur_mm(normal, psf, spacing)
    place = phi + np.clip(0.5 * (psf**2 + 1.0 / 12.0) * bend, -0.5 * s, 0.5 * s)
    bell = np.exp(-0.5 * (place / s) ** 2) / np.sqrt(2.0 * np.pi)
    share = special.ndtr(-place / s)
    ramp = s * bell - place * share
    square = (place**2 + s**2) * share - place * s * bell
    kappa = np.clip(kappa, 0.0, 1.0 / deep)
    near = (phi > -deep).astype(np.float64)
    return ramp - 0.5 * kappa * square, share - kappa * ramp, near


def blur_mm(normal: Array, psf: float, spacing: tuple[float, ...]) -> Array:
    """S.d. of the blur along normals (n, 3), voxel box included."""
    across = (normal * spacing) ** 2
    return np.asarray(np.sqrt((psf**2 + 1.0 / 12.0) * across.sum(axis=1)))


@functools.cache
def vector_lengths(parts: int) -> tuple[Array, Array, Array]:
    """Signal, mean and s.d. of the length of a signal plus unit noise in so many parts.

    Mean √2 Γ((k+1)/2)/Γ(k/2) ₁F₁(-1/2; k/2; -θ²/2), Rician for k = 2 (Koay & Basser 2006, eq. 2
    and 16); the variance is k + θ² less the squared mean.
    """
    signal = np.linspace(0.0, FAR_SIGNAL, SAMPLES)
    rest = np.sqrt(2.0) * special.gamma(0.5 * (parts + 1)) / special.gamma(0.5 * parts)
    mean = rest * special.hyp1f1(-0.5, 0.5 * parts, -0.5 * signal**2)
    return signal, mean, np.sqrt(parts + signal**2 - mean**2)


def lengthen(
    inside: Array, slope: Array, outer: Array, contrast: Array, noise: float, parts: int,
    rests: bool,
) -> tuple[Array, Array, Array]:  # fmt: skip
    """Profile, slope and s.d. in units of the noise of the length of a noisy vector.

    ``outer``, ``contrast`` and ``noise`` are those of the fit before; the contrast that is fitted
    to this profile is that of the signal itself. ``rests``: no signal outside.
    """
    signal, mean, spread = vector_lengths(parts)
    rest = np.interp(outer / noise, mean, signal) * (not rests)
    clear = rest + contrast * inside / noise
    length = np.interp(np.abs(clear), signal, mean) + np.maximum(np.abs(clear) - FAR_SIGNAL, 0.0)
    base = np.interp(rest, signal, mean)
    safe = np.where(np.abs(contrast) > 1e-9 * noise, contrast / noise, np.inf)
    longer = np.where(np.isfinite(safe), (length - base) / safe, inside)
    gain = np.sign(clear) * np.interp(np.abs(clear), signal, np.gradient(mean, signal))
    return longer, gain * slope, np.interp(np.abs(clear), signal, spread)


def solve_blocks(wide: Array, whole: Array, ridge: float) -> Array:
    """Return outer intensity and contrast (2, ...) of blocks from moments (5, ...) in windows.

    Weighted regression I ~ μ_out + D P; a block that saw little is pulled to those of ``whole``
    (5,), and no contrast has another sign than the whole's.
    """
    outer, contrast = _line(whole)
    w, p, pp = ridge / max(float(whole[0]), 1e-12) * whole[:3]
    more = np.array([w, p, pp, w * outer + p * contrast, p * outer + pp * contrast])
    fitted = np.empty((2, *wide.shape[1:]))
    _fit_blocks(wide.reshape(5, -1), more, outer, contrast, fitted.reshape(2, -1))
    return fitted


def _line(moments: Array) -> tuple[float, float]:
    """Solve the normal equations of moments (1, P, P², I, I P); zeros where they are singular."""
    w, p, pp, i, ip = (float(m) for m in moments)
    determinant = w * pp - p * p
    if determinant <= 0.0:
        return 0.0, 0.0
    return (i * pp - ip * p) / determinant, (w * ip - p * i) / determinant


@compiled(parallel=True)
def _fit_blocks(wide: Array, more: Array, outer: float, contrast: float, out: Array) -> None:
    """Write the line of each block with ``more`` moments, or the given one where there is none."""
    sign = np.sign(contrast)
    for n in prange(wide.shape[1]):
        w, p, pp = wide[0, n] + more[0], wide[1, n] + more[1], wide[2, n] + more[2]
        i, ip = wide[3, n] + more[3], wide[4, n] + more[4]
        determinant = w * pp - p * p
        out[0, n], out[1, n] = outer, contrast
        if determinant > NO_BLOCK * max(w * w, 1e-300):
            out[0, n] = (i * pp - ip * p) / determinant
            out[1, n] = (w * ip - p * i) / determinant
        out[1, n] = sign * max(sign * out[1, n], 0.0)


def fit_noise(deviation: float, strength: float) -> float:
    """S.d. of the noise from the median absolute deviation, no less than a share of the signal."""
    return max(NORMAL_MAD * deviation, LEAST_NOISE * strength, 1e-12)


def excess(together: float, alone: float) -> float:
    """Return the ratio of two powers, at least one; one where there is no residual at all."""
    return max(together / max(alone, 1e-300), 1.0) if together > 0.0 else 1.0


def window_excess(together: Array, alone: Array, most: float) -> Array:
    """Ratio of two powers in windows; small where there is next to none of the ``most`` alone."""
    return np.asarray(together / np.maximum(alone, 1e-12 * max(most, 1e-300)))


def believed(here: Array, whole: float) -> Array:
    """Return misfits of windows, at least one, as far as that of the whole is beyond one."""
    return np.asarray(1.0 + (1.0 - 1.0 / whole) * np.maximum(here - 1.0, 0.0))


def weigh(
    residual: Array, contrast: Array, spread: Array, own: Array, noise: float, peak: float
) -> Array:
    """Return weights that are small where the residual is no noise."""
    tail = 4.0 * noise + 0.5 * np.abs(contrast) * peak
    excess = np.square(np.square(residual / tail))
    return np.asarray(own / (np.square(spread) * (1.0 + excess)))


def choose_psf(blurs: Array, cost: Callable[[int], float], psf: float) -> float:
    """Go downhill over costs from the blur nearest to psf, then to the vertex of a parabola.

    ``cost`` is asked only where the way leads, for each is a fit to the whole wall.
    """
    best = int(np.clip(np.abs(blurs - psf).argmin(), 1, len(blurs) - 2))
    while best > 1 and cost(best - 1) < cost(best):
        best -= 1
    while best < len(blurs) - 2 and cost(best + 1) < cost(best):
        best += 1
    three = range(best - 1, best + 2)
    a, b, _ = np.polyfit(blurs[three], [cost(n) for n in three], 2)
    vertex = -b / (2.0 * a) if a > 0.0 else blurs[min(three, key=cost)]
    return float(np.clip(vertex, blurs[0], blurs[-1]))


def inform(
    slope: Array, contrast: Array, weight: Array, residual: Array, noise: float
) -> tuple[Array, Array]:
    """Return the precision of the displacement at each voxel and its gradient."""
    jacobian = contrast * slope
    weighted = weight * jacobian / noise**2
    return weighted * jacobian, weighted * residual
