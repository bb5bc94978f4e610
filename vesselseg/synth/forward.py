"""Image formation: from a wall to an MR image.

I = μ_out + (μ_in - μ_out)·P, times a bias field, plus noise. P, the share of the lumen in a
voxel, is the average over the voxel box of the lumen's indicator blurred by a Gaussian PSF:
computed on a finer grid, since the planar profile Φ(-φ/s) is wrong on curved walls (its 0.5 set
lies s²/(2r) off the wall of a tube) and has no meaning for thin vessels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from numba import njit
from numpy.typing import NDArray
from pydantic import Field as Limits

from ..config import Settings
from ..errors import ConfigError, DataError
from ..fields import Field, Volume
from ..grid import Grid
from ..phantoms.problems import Phantom
from .banded import Operator, apply_all, box, cubic, gaussian, linear

BLOCK = 64
START_BLUR = 0.4  # s.d., in fine voxels per axis, of the edge that is sampled: no aliasing


class ForwardModel(Settings):
    """How a wall becomes an image.

    Parameters
    ----------
    snr : float
        abs(lumen - background) / s.d. of the noise.
    psf_voxels : float or one per array axis
        S.d. of the Gaussian point spread function in voxels, without the voxel box, whose
        average is taken apart.
    lumen, background : float
        Intensities before bias field and noise.
    bias : float
        S.d. of the logarithm of the multiplicative bias field.
    bias_length : float
        Its correlation length as a share of the longest side of the field of view.
    noise : {"gaussian", "rician", "none"}
        Rician: the magnitude of a complex signal with this s.d. in each part.
    correlated : float
        Share of the noise variance that is correlated, with ``noise_length`` in voxels
        (autocorrelation exp(-d²/(2l²))).
    neighbours : int
        Number of ellipsoidal organs beside the lumen, with intensities between background and
        lumen; they never cover it.
    dropout : float
        Largest share of the lumen's contrast lost in patches.
    slice_factor : float
        Slices of this many voxels along the first axis, interpolated back to the grid.
    slice_gap : float
        Share of each slice that is not excited.
    supersample : int
        Fine samples per voxel and axis.
    """

    snr: float = Limits(12.0, gt=0)
    psf_voxels: float | tuple[float, ...] = 0.7
    lumen: float = 1.0
    background: float = 0.3
    bias: float = Limits(0.0, ge=0, le=2)
    bias_length: float = Limits(0.6, gt=0.02)
    noise: Literal["gaussian", "rician", "none"] = "gaussian"
    correlated: float = Limits(0.0, ge=0, le=1)
    noise_length: float = Limits(1.5, ge=0.3, le=50)
    neighbours: int = Limits(0, ge=0, le=50)
    dropout: float = Limits(0.0, ge=0, le=1)
    slice_factor: float = Limits(1.0, ge=1, le=16)
    slice_gap: float = Limits(0.0, ge=0, lt=1)
    supersample: int = Limits(3, ge=1, le=8)


@njit(cache=True)
def _edge(phi: NDArray, sd: float) -> NDArray:
    flat = phi.ravel()
    out = np.empty_like(flat)
    scale = 1.0 / (sd * math.sqrt(2.0))
    for i in range(flat.size):
        u = flat[i] * scale
        if u > 3.2:
            out[i] = 0.0
        elif u < -3.2:
            out[i] = 1.0
        else:
            out[i] = 0.5 * math.erfc(u)
    return out.reshape(phi.shape)


def _sampled_edge(phi: Field, fine: NDArray) -> Field:
    """Return the lumen's indicator after a Gaussian of ``START_BLUR`` fine voxels per axis."""
    if np.ptp(fine) <= 1e-6 * fine.max():
        return np.asarray(_edge(phi, START_BLUR * float(fine[0])))
    # Along the normal n the s.d. is that of the projected Gaussian: sqrt(Σ(nₐsₐ)²).
    slopes = np.gradient(phi, *[float(h) for h in fine])
    total = sum(np.square(g) for g in slopes)
    along = sum(np.square(g * np.float32(h)) for g, h in zip(slopes, fine, strict=True))
    blur = START_BLUR * np.sqrt(along / np.maximum(total, np.float32(1e-12)))
    return np.asarray(_edge((phi / np.maximum(blur, 1e-3 * fine.min())).astype(np.float32), 1.0))


def occupancy(
    phi_mm: NDArray,
    spacing_mm: Sequence[float],
    psf_voxels: float | Sequence[float] = 0.0,
    *,
    supersample: int = 3,
) -> Field:
    """Return the share of the lumen in each voxel, blurred by a Gaussian PSF.

    Parameters
    ----------
    phi_mm : (nz, ny, nx) or (ny, nx) array
        Signed distance in mm, exact near the wall.
    spacing_mm : sequence
    psf_voxels : float or one per axis
        S.d. in voxels, without the voxel box.
    supersample : int
        Fine samples per voxel and axis; phi is interpolated by cubics.
    """
    phi = np.asarray(phi_mm, dtype=np.float32)
    spacing = np.asarray(spacing_mm, dtype=np.float64)
    psf = np.broadcast_to(np.asarray(psf_voxels, dtype=np.float64), (phi.ndim,))
    halo = tuple(int(np.ceil(4 * s)) + 2 for s in psf)
    padded = np.pad(phi, [(h, h) for h in halo], mode="reflect", reflect_type="odd")

    def fine_phi(low: Sequence[int], high: Sequence[int]) -> Field:
        span = tuple(slice(a, b + 2 * h) for a, b, h in zip(low, high, halo, strict=True))
        block = padded[span] + np.float32(0.0)
        operators = [cubic(_fine_positions(n, supersample)) for n in block.shape]
        return apply_all(block, operators, last_first=True)

    reach = float(np.linalg.norm((np.array(halo) + 1) * spacing))
    return _by_blocks(phi, fine_phi, spacing, psf, halo, supersample, reach)


def phantom_occupancy(
    phantom: Phantom,
    grid: Grid,
    psf_voxels: float | Sequence[float] = 0.0,
    *,
    supersample: int = 3,
) -> Field:
    """Return the same from a phantom's exact distance at every fine sample."""
    psf = np.broadcast_to(np.asarray(psf_voxels, dtype=np.float64), (grid.ndim,))
    halo = tuple(int(np.ceil(4 * s)) + 2 for s in psf)

    def fine_phi(low: Sequence[int], high: Sequence[int]) -> Field:
        axes = [
            _fine_positions(b - a + 2 * h, supersample) + a - h
            for a, b, h in zip(low, high, halo, strict=True)
        ]
        index = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
        return np.asarray(phantom.sdf(grid.world(index)), dtype=np.float32)

    spacing = np.asarray(grid.spacing_mm)
    reach = float(np.linalg.norm((np.array(halo) + 1) * spacing))
    return _by_blocks(phantom.phi(grid), fine_phi, spacing, psf, halo, supersample, reach)


def _fine_positions(count: int, factor: int) -> NDArray[np.float64]:
    return (np.arange(count * factor) + 0.5) / factor - 0.5


def _by_blocks(
    phi: NDArray,
    fine_phi: Callable[[Sequence[int], Sequence[int]], Field],
    spacing: NDArray,
    psf: NDArray,
    halo: tuple[int, ...],
    factor: int,
    reach: float,
) -> Field:
    """Fill blocks of the output one by one, so that memory stays bounded."""
    out = (phi < 0).astype(np.float32)
    counts = [int(np.ceil(n / BLOCK)) for n in phi.shape]
    fine = spacing / factor
    rest = [float(np.sqrt(max((factor * s) ** 2 - START_BLUR**2, 0.0))) for s in psf]
    for where in np.ndindex(*counts):
        low = [n * w // c for n, w, c in zip(phi.shape, where, counts, strict=True)]
        high = [n * (w + 1) // c for n, w, c in zip(phi.shape, where, counts, strict=True)]
        span = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        if np.abs(phi[span]).min() > reach:
            continue
        edge = _sampled_edge(fine_phi(low, high), fine)
        operators = [
            box((np.arange(b - a) + h + 0.5) * factor - 0.5, factor, s)
            for a, b, h, s in zip(low, high, halo, rest, strict=True)
        ]
        out[span] = apply_all(edge, operators, last_first=False)
    return out


def gaussian_process(shape: Sequence[int], length_voxels: float, rng: np.random.Generator) -> Field:
    """Draw a stationary Gaussian field of variance one, covariance exp(-d²/(2l²)).

    White noise on a lattice of step l/2.5 (at least one voxel) that reaches past the edges,
    times Gaussian weights of s.d. l/√2 scaled so that the variance is one at every voxel.
    """
    step = max(1.0, length_voxels / 2.5)
    sd = length_voxels / np.sqrt(2.0) / step
    pad = int(np.ceil(3.7 * sd)) + 1
    sizes = [int(np.ceil(n / step)) + 2 * pad for n in shape]
    field: Field = rng.standard_normal(sizes, dtype=np.float32)
    operators: list[Operator] = [
        gaussian(np.arange(n) / step + pad, sd, normalise="power") for n in shape
    ]
    return apply_all(field, operators, last_first=True)


def add_noise(
    clean: Field,
    sd: float,
    rng: np.random.Generator,
    *,
    kind: str = "gaussian",
    correlated: float = 0.0,
    length: float = 1.5,
) -> Field:
    """Add Gaussian or Rician noise, a share of its variance correlated over some voxels."""

    def draw() -> Field:
        noise: Field = np.sqrt(1 - correlated) * rng.standard_normal(clean.shape, dtype=np.float32)
        if correlated > 0:
            noise = noise + np.sqrt(correlated) * gaussian_process(clean.shape, length, rng)
        return np.asarray(sd * noise, dtype=np.float32)

    if kind == "none":
        return clean
    if kind == "gaussian":
        return clean + draw()
    return np.asarray(np.hypot(clean + draw(), draw()))


def slice_operators(
    count: int, factor: float, gap: float, smooth: bool
) -> tuple[Operator, Operator]:
    """Return the operators to thick slices and back to the fine grid."""
    slices = max(2, round(count / factor))
    step = count / slices
    centres = (np.arange(slices) + 0.5) * step - 0.5
    down = box(centres, max(step * (1 - gap), 1.0))
    back = (np.arange(count) + 0.5) / step - 0.5
    return down, cubic(back) if smooth else linear(back)


def render(
    phi_mm: NDArray, grid: Grid, model: ForwardModel, seed: int, *, name: str = "rendered"
) -> Volume:
    """Render the image of a wall.

    Parameters
    ----------
    phi_mm : (nz, ny, nx) or (ny, nx) array
        Signed distance in mm, negative in the lumen.
    grid : Grid
    model : ForwardModel
    seed : int
        Of the noise, the bias field and the neighbours.

    Raises
    ------
    DataError
        If phi does not fit the grid or is not finite.
    """
    phi = np.asarray(phi_mm)
    if phi.shape != grid.shape_kji or not np.isfinite(phi).all():
        found = phi.shape if phi.shape != grid.shape_kji else "non-finite values"
        raise DataError("phi does not fit its grid", found=found, need=grid.shape_kji)
    psf = _psf(model, grid.ndim)
    share = occupancy(phi, grid.spacing_mm, psf, supersample=model.supersample)
    return Volume(_compose(share, grid, model, seed), grid, name=name)


def render_phantom(phantom: Phantom, grid: Grid, model: ForwardModel, seed: int) -> Volume:
    """Render the image of a phantom from its exact distance at every fine sample."""
    psf = _psf(model, grid.ndim)
    share = phantom_occupancy(phantom, grid, psf, supersample=model.supersample)
    return image_of(share, grid, model, seed, phantom.name)


def image_of(share: Field, grid: Grid, model: ForwardModel, seed: int, name: str) -> Volume:
    """Make an image of a blurred lumen share: one share serves many draws of the noise."""
    return Volume(_compose(share, grid, model, seed), grid, name=name)


def _psf(model: ForwardModel, ndim: int) -> tuple[float, ...]:
    psf = np.atleast_1d(np.asarray(model.psf_voxels, dtype=np.float64))
    if psf.size not in (1, ndim) or psf.min() < 0 or psf.max() > 20:
        need = f"a number or {ndim} numbers from 0 to 20"
        raise ConfigError("bad psf_voxels", found=model.psf_voxels, need=need)
    return tuple(float(s) for s in np.broadcast_to(psf, (ndim,)))


def _compose(share: Field, grid: Grid, model: ForwardModel, seed: int) -> Field:
    """Contrast, neighbours, dropout, bias field, slices and noise, each with its own stream."""
    streams = [np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(4)]
    contrast = model.lumen - model.background
    longest = float(np.max(np.multiply(grid.shape_kji, grid.spacing_mm)))
    length = model.bias_length * longest / grid.h_min
    outside = np.full(grid.shape_kji, model.background, dtype=np.float32)
    for _ in range(model.neighbours):
        organ = _organ(grid, streams[1])
        level = model.background + contrast * streams[1].uniform(0.3, 1.0)
        outside += organ * (np.float32(level) - outside)
    inside = np.full(grid.shape_kji, model.lumen, dtype=np.float32)
    if model.dropout:
        patches = gaussian_process(grid.shape_kji, max(4.0, 0.1 * max(grid.shape_kji)), streams[2])
        loss = model.dropout / (1 + np.exp(-(patches - 1.0) / 0.2))
        inside -= np.float32(contrast) * loss.astype(np.float32)
    image = outside + share * (inside - outside)
    if model.bias:
        bias = gaussian_process(grid.shape_kji, length, streams[0])
        image = image * np.exp(np.float32(model.bias) * bias)
    sd = abs(contrast) / model.snr
    options = {"correlated": model.correlated, "length": model.noise_length}
    if model.slice_factor == 1.0 and not model.slice_gap:
        return add_noise(image, sd, streams[3], kind=model.noise, **options)
    down, up = slice_operators(image.shape[0], model.slice_factor, model.slice_gap, True)
    rest: list[Operator | None] = [None] * (image.ndim - 1)
    thick = apply_all(image, [down, *rest], last_first=True)
    thick = add_noise(thick, sd, streams[3], kind=model.noise, **options)
    return apply_all(thick, [up, *rest], last_first=True)


def _organ(grid: Grid, rng: np.random.Generator) -> Field:
    """Draw a soft-edged ellipsoid in index space."""
    sizes = np.array(grid.shape_kji)
    centre = rng.uniform(0.1, 0.9, grid.ndim) * sizes
    semi = rng.uniform(0.08, 0.3, grid.ndim) * sizes
    axes = np.ix_(
        *[((np.arange(n) - c) / s) ** 2 for n, c, s in zip(sizes, centre, semi, strict=True)]
    )
    radius = np.sqrt(sum(axes))
    edge = (1 - radius) * float(semi.min())
    return np.asarray(1 / (1 + np.exp(-np.clip(edge / 0.5, -30, 30))), dtype=np.float32)
