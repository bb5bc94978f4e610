"""Measured blood velocity: units, wraps, offsets, noise. m/s, components along the world's axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field as Bounded

from .config import Settings
from .errors import ConfigError, DataError
from .fields import Field
from .grid import Grid

Floats = NDArray[np.floating]
Flags = NDArray[np.bool_]

FASTEST_MS = 20.0  # nothing in a body is faster: the unit is another one
MOST_AVERAGED = 1000.0
LEAST_ROUGH = 300  # second differences that tell the noise
TORN = 0.02  # share of neighbours in the lumen that may differ by more than venc after unwrapping
LEAST_STATIC = 200  # voxels a background is fitted to
CARREAU = ("nu_zero", "relaxation_s", "exponent")  # what is told of that fluid beside nu
PER_MS = {"m/s": 1.0, "cm/s": 1e-2, "mm/s": 1e-3}


class FlowSettings(Settings):
    """What is done with measured velocity.

    Parameters
    ----------
    unwrap : bool
        Remove wraps inside the lumen.
    background : "none" or "linear"
        Subtract a linear function of space fitted to static tissue.
    channel : bool
        Let the refinement see the speed as a second image beside the magnitude.
    noise_factor : float
        Variance of a velocity in units of (venc / π / SNR)²: 2 for a reference-subtracted
        measurement, 4 where a scan without flow was subtracted too.
    sigma_ms : float or None
        Noise s.d. of a component, instead of the one from SNR and venc.
    rr_s : float
        Length of the heart cycle; 0 = unknown.
    nu, nu_std, rho : float
        Kinematic viscosity of the fluid and its s.d., m²/s, and density, kg/m³.
    model : "newtonian" or "carreau"
        Of "carreau" ``nu`` is that at high shear rates γ: ν + (ν₀ - ν)(1 + (λγ)²)^((n-1)/2).
    nu_zero, relaxation_s, exponent : float
        ν₀ in m²/s, λ in s and n of "carreau"; by default those of blood (Cho & Kensey,
        Biorheology 28 (1991) 241, at 1060 kg/m³).
    """

    unwrap: bool = True
    background: Literal["none", "linear"] = "none"
    channel: bool = False
    noise_factor: float = Bounded(2.0, gt=0.0, le=16.0)
    sigma_ms: float | None = Bounded(None, gt=0.0, le=100.0)
    rr_s: float = Bounded(0.0, ge=0.0, le=60.0)
    nu: float = Bounded(3.3e-6, gt=0.0, le=1.0)
    nu_std: float = Bounded(0.3e-6, ge=0.0, le=1.0)
    rho: float = Bounded(1060.0, gt=0.0, le=1e5)
    model: Literal["newtonian", "carreau"] = "newtonian"
    nu_zero: float = Bounded(5.28e-5, gt=0.0, le=1.0)
    relaxation_s: float = Bounded(3.313, gt=0.0, le=1e3)
    exponent: float = Bounded(0.3568, gt=0.0, le=1.0)

    def fluid(self) -> dict[str, Any]:
        """Return what a prior says of the fluid, by the names of its attributes."""
        facts = {"nu_mean": self.nu, "nu_std": self.nu_std, "rho": self.rho, "model": self.model}
        if self.model == "newtonian":
            return facts
        return facts | {name: getattr(self, name) for name in CARREAU}


@dataclass(frozen=True, eq=False)
class Flow:
    """Velocity on the grid of the scan.

    Parameters
    ----------
    u_ms : (nt, nz, ny, nx, 3) or (nt, ny, nx, 3) float32
        m/s, components right, anterior, superior.
    grid : Grid
    venc_ms : three floats
        Encoding velocity of the three measured components; the largest where they are not those
        of the world.
    name, sha256 : str
    averaged : float
        Of how many magnitude images the scan is the mean: frames, encodings. See ``averages``.
    with_magnitude : bool
        Whether the scan beside it is a magnitude, from which the noise of the phase follows.
    background_corrected, unwrapped : bool
    notes : tuple of str
    """

    u_ms: NDArray[np.float32]
    grid: Grid
    venc_ms: tuple[float, float, float]
    name: str = "velocity"
    sha256: str = ""
    averaged: float = 1.0
    with_magnitude: bool = True
    background_corrected: bool = False
    unwrapped: bool = False
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        u = np.ascontiguousarray(self.u_ms, dtype=np.float32)
        need = (*self.grid.shape_kji, 3)
        if u.ndim != len(need) + 1 or u.shape[1:] != need or not len(u):
            raise DataError("velocity does not fit its grid", found=u.shape, need=f"(nt, *{need})")
        if not np.isfinite(u).all():
            raise DataError(
                "velocity: non-finite voxels", found=int((~np.isfinite(u)).sum()), need=0
            )
        fastest = float(np.abs(u).max())
        if fastest > FASTEST_MS:
            found, need_text = f"{fastest:.3g} m/s", f"at most {FASTEST_MS:g} m/s"
            remedy = "name the unit: --velocity-unit cm/s or mm/s, or phase"
            raise DataError("velocity of another unit", found=found, need=need_text, remedy=remedy)
        if len(self.venc_ms) != 3 or not all(0.0 < v < 1e3 for v in self.venc_ms):
            raise DataError("bad venc", found=self.venc_ms, need="three numbers of m/s > 0")
        u.setflags(write=False)
        object.__setattr__(self, "u_ms", u)

    @property
    def venc(self) -> float:
        """Largest encoding velocity, m/s."""
        return max(self.venc_ms)

    @property
    def speed(self) -> Field:
        """Root mean square over the frames of the speed, m/s, on the grid."""
        squares = np.square(self.u_ms, dtype=np.float64).sum(axis=-1)
        return np.asarray(np.sqrt(squares.mean(axis=0)), dtype=np.float32)

    def times(self, rr_s: float) -> NDArray[np.float64]:
        """Return the times of the frames, s; of a cycle of 1 s where its length is unknown."""
        return np.arange(len(self.u_ms)) / len(self.u_ms) * (rr_s or 1.0)


def in_world(parts: Floats, grid: Grid, axes: str) -> Floats:
    """Turn measured components (..., 3) into right, anterior, superior.

    Parameters
    ----------
    axes : str
        Where positive components point: three letters of RLAPIS, such as ``RAS`` or ``LPS``, or
        index axes with signs, such as ``ijk`` or ``+i-j+k``.
    """
    columns = grid.affine[:3, :3] / np.linalg.norm(grid.affine[:3, :3], axis=0)
    named = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}
    words = _signed(axes)
    if len(words) != 3:
        _refuse_axes(axes)
    rows = []
    for sign, letter in words:
        if letter in named:
            axis, way = named[letter]
            rows.append(sign * way * np.eye(3)[axis])
        else:
            rows.append(sign * columns[:, "ijk".index(letter)])
    matrix = np.array(rows)
    if abs(np.linalg.det(matrix)) < 0.5:
        _refuse_axes(axes)
    return np.asarray(np.einsum("...m,mx->...x", parts, matrix), dtype=np.float32)


def _signed(axes: str) -> list[tuple[int, str]]:
    words, sign = list[tuple[int, str]](), 1
    for letter in axes.replace(",", ""):
        if letter in "+-":
            sign = -1 if letter == "-" else 1
        elif letter in "RLAPSIijk":
            words.append((sign, letter))
            sign = 1
        else:
            _refuse_axes(axes)
    return words


def _refuse_axes(axes: str) -> None:
    need = "three different directions, such as RAS, LPS, ijk or +i-j+k"
    raise ConfigError("bad velocity axes", path="--velocity-axes", found=axes, need=need)


def pcmra(magnitude: Floats, flow: Flow) -> Field:
    """Return the angiogram: magnitude times speed, over the largest."""
    product = np.asarray(magnitude, dtype=np.float64) * flow.speed
    return np.asarray(product / max(float(product.max()), 1e-30), dtype=np.float32)


def sigma_u(
    magnitude: Floats, lumen: Flags, noise: float, flow: Flow, settings: FlowSettings
) -> Field:
    """Return the noise s.d. of a velocity component, m/s, on the grid.

    σ = √factor · venc / (π · SNR) with the SNR of the voxel; where the magnitude is noise, the
    phase is uniform and σ = venc / √3 (Lee et al., Magn. Reson. Med. 33 (1995) 122). Without a
    magnitude it is one number, from second differences of the velocity in the lumen.
    """
    if settings.sigma_ms is not None:
        return np.full(flow.grid.shape_kji, settings.sigma_ms, dtype=np.float32)
    if not flow.with_magnitude:
        return np.full(flow.grid.shape_kji, _roughness(flow, lumen), dtype=np.float32)
    per_frame = max(noise, 1e-30) * np.sqrt(flow.averaged)
    snr = np.maximum(np.asarray(magnitude, dtype=np.float64), 0.0) / per_frame
    white = np.sqrt(settings.noise_factor) * flow.venc / (np.pi * np.maximum(snr, 1e-3))
    return np.asarray(np.minimum(white, flow.venc / np.sqrt(3.0)), dtype=np.float32)


def averages(flow: Flow, magnitude: Floats, core: Flags, settings: FlowSettings) -> float:
    """Return of how many magnitude images a scan is the mean, as told by the velocity's noise.

    The phase of one image has σ = √factor · venc / (π SNR₁), the mean of n has SNR = √n SNR₁. Both
    noises are those of second differences in the core of the lumen; without enough of it, or where
    the noise was stated, what the flow says itself comes back. A mean of magnitudes has the bright
    floor of its single images, not that of its own noise (Rician; Koay & Basser 2006).
    """
    rough, grain = _rough(flow.u_ms, core), _rough(magnitude[None], core)
    if settings.sigma_ms is not None or not flow.with_magnitude or grain.size < LEAST_ROUGH:
        return flow.averaged
    noise = max(_spread(grain), 1e-30)
    per_image = math.pi * _spread(rough) / (math.sqrt(settings.noise_factor) * flow.venc)
    ratio = float(np.median(magnitude[core])) / noise * per_image
    return float(np.clip(ratio**2, 1.0, MOST_AVERAGED))


def _roughness(flow: Flow, lumen: Flags) -> float:
    """Return the noise of the velocity as second differences in the lumen tell it, m/s."""
    return max(_spread(_rough(flow.u_ms, lumen)), 1e-6 * flow.venc)


def _rough(frames: Floats, lumen: Flags) -> Floats:
    """Return the second differences within the lumen of frames (t, grid, ...), flat."""
    found = []
    for axis in range(lumen.ndim):
        cut = [(slice(None),) * axis + (slice(a, b),) for a, b in ((0, -2), (1, -1), (2, None))]
        inside = lumen[cut[0]] & lumen[cut[1]] & lumen[cut[2]]
        found.append(np.abs(np.diff(frames, 2, axis=axis + 1)[:, inside]).ravel())
    return np.concatenate(found)


def _spread(differences: Floats) -> float:
    """Return the robust s.d. of noise by its second differences; 0 of none."""
    if not differences.size:
        return 0.0
    return 1.4826 * float(np.median(differences)) / math.sqrt(6.0)


def corrected(flow: Flow, phi_mm: Floats, magnitude: Floats, settings: FlowSettings) -> Flow:
    """Return the velocity without offsets of static tissue and without wraps in the lumen.

    Raises
    ------
    DataError
        If wraps remain that cannot be told from flow.
    """
    if settings.background == "linear":
        flow = _without_background(flow, phi_mm, magnitude)
    return _unwrapped(flow, phi_mm) if settings.unwrap else flow


def _without_background(flow: Flow, phi_mm: Floats, magnitude: Floats) -> Flow:
    """Subtract a linear function of space fitted to static tissue (Walker et al. 1993).

    Static tissue: brighter than half the median of the lumen, two voxels off its wall. The fit is
    repeated without what lies beyond three robust standard deviations.
    """
    h = flow.grid.h_max
    bright = magnitude > 0.5 * np.median(magnitude[phi_mm < 0])
    static = bright & (phi_mm > 2 * h)
    if np.count_nonzero(static) < LEAST_STATIC:
        note = "too little static tissue for a background: none subtracted"
        return replace(flow, notes=(*flow.notes, note))
    axes = [np.linspace(-1.0, 1.0, n) for n in flow.grid.shape_kji]
    terms = np.stack([np.ones(flow.grid.shape_kji), *np.meshgrid(*axes, indexing="ij")], axis=-1)
    mean = flow.u_ms.mean(axis=0, dtype=np.float64)
    offset = np.zeros_like(mean)
    for part in range(3):
        rows, values = terms[static], mean[static][:, part]
        good = np.ones(len(values), dtype=bool)
        weights = np.zeros(terms.shape[-1])
        for _ in range(3):
            weights, *_ = np.linalg.lstsq(rows[good], values[good], rcond=None)
            rest = values - rows @ weights
            spread = 1.4826 * float(np.median(np.abs(rest - np.median(rest))))
            good = np.abs(rest) <= 3.0 * max(spread, 1e-12)
        offset[..., part] = terms @ weights
    u = (flow.u_ms - offset).astype(np.float32)
    return replace(flow, u_ms=u, background_corrected=True)


def _unwrapped(flow: Flow, phi_mm: Floats) -> Flow:
    """Unwrap each frame and component in the lumen by sorted reliability (Herráez et al. 2002).

    The multiple of 2 venc is the one that leaves the layer along the wall slowest.
    """
    from skimage.restoration import unwrap_phase

    h = flow.grid.h_max
    lumen = phi_mm < 0
    if _torn(flow.u_ms, lumen, flow.venc_ms) == 0.0:
        return flow
    u = flow.u_ms.copy()
    rim = lumen & (phi_mm > -1.5 * h)
    for frame in u:
        for part, venc in enumerate(flow.venc_ms):
            phase = np.ma.array(np.pi / venc * frame[..., part].astype(np.float64), mask=~lumen)
            found = np.ma.getdata(unwrap_phase(phase, rng=0)) * venc / np.pi
            turns = np.round(np.median(found[rim]) / (2 * venc))
            frame[..., part] = np.where(lumen, found - 2 * venc * turns, frame[..., part])
    torn = _torn(u, lumen & (phi_mm < -0.5 * h), flow.venc_ms)
    if torn > TORN:
        need = f"at most {TORN:.0%} of neighbours in the lumen more than venc apart"
        remedy = "measure with a higher venc, or keep the wraps: --set flow.unwrap=false"
        found_text = f"{torn:.1%}"
        raise DataError(
            "velocity wrapped beyond repair", found=found_text, need=need, remedy=remedy
        )
    changed = int(np.count_nonzero((np.abs(u - flow.u_ms) > min(flow.venc_ms)).any(axis=(0, -1))))
    if not changed:
        return flow
    note = f"velocity unwrapped at {changed} voxels"
    return replace(flow, u_ms=u, unwrapped=True, notes=(*flow.notes, note))


def _torn(u: Floats, lumen: Flags, venc_ms: Sequence[float]) -> float:
    """Share of neighbours in the lumen whose velocities differ by more than venc."""
    pairs = torn = 0
    for axis in range(lumen.ndim):
        low = (slice(None),) * axis + (slice(None, -1),)
        high = (slice(None),) * axis + (slice(1, None),)
        both = lumen[low] & lumen[high]
        step = np.abs(np.diff(u, axis=axis + 1))[:, both]
        torn += int(np.count_nonzero((step > np.asarray(venc_ms)).any(axis=-1)))
        pairs += step.shape[0] * step.shape[1]
    return torn / pairs if pairs else 0.0


def parse_speed(text: str, option: str = "--venc") -> tuple[float, ...]:
    """Read ``150cm/s`` or ``1.5,1.5,2m/s``: one or three speeds with their unit, to m/s."""
    unit = next((u for u in sorted(PER_MS, key=len, reverse=True) if text.strip().endswith(u)), "")
    body = text.strip().removesuffix(unit)
    try:
        values = tuple(float(word) * PER_MS[unit] for word in body.split(",")) if unit else ()
    except ValueError:
        values = ()
    if len(values) not in (1, 3) or not all(0.0 < v < 1e3 for v in values):
        need = "a speed with its unit, such as 150cm/s or 1.5m/s, or three of them"
        raise ConfigError("bad speed", path=option, found=text, need=need)
    return values * 3 if len(values) == 1 else values


def facts(flow: Flow) -> dict[str, Any]:
    """Return what the provenance says of the velocity."""
    return {"name": flow.name, "sha256": flow.sha256, "frames": len(flow.u_ms)}
