"""Synthetic cases: random vessels with a known wall, deformed by the solver, and their images.

``case(seed, index)`` is a pure function: two consecutive indices share a geometry and differ in
appearance. ``forward`` holds the image formation with given settings, ``appearance`` the random
one, ``vascular`` the geometry.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field as Limits
from pydantic import model_validator

from ..config import Settings
from ..errors import ConfigError, DataError
from ..fields import Case, Field
from ..grid import Grid
from . import vascular
from .appearance import paint
from .forward import ForwardModel, gaussian_process, occupancy, render, render_phantom

__all__ = [
    "ForwardModel",
    "Shape",
    "SynthSettings",
    "case",
    "perturbed",
    "render",
    "render_phantom",
]

Range = tuple[float, float]
Shape = Callable[[tuple[int, ...], np.random.Generator], NDArray]
FAMILIES = {"train": 0, "heldout": 1}
SHARE_LIMITS = (0.003, 0.45)
ATTEMPTS = 12
THIN = 0.6  # share of the lumen's radius that a perturbed wall may move at most


class SynthSettings(Settings):
    """What the random cases look like. Lengths are voxels of the working grid.

    Parameters
    ----------
    shape : (nz, ny, nx) or (ny, nx)
    channels : {1, 2}
        Magnitude, or magnitude and speed.
    family : {"train", "heldout"}
        Held out: torus, helix and arch among the trees, and random numbers of its own.
    radius : (low, high)
        Root radii, log-uniform.
    snr, psf : (low, high)
        Lumen contrast / noise s.d., log-uniform; s.d. of the PSF without the voxel box.
    anisotropy : float
        Largest ratio of voxel sides before interpolation to the working grid.
    distractors : int
        Most ellipsoids, shells and plates in a case.
    easy, empty, black_blood, flow, shapes, deformed : float
        Shares of cases: without distractors and at SNR >= 12; without lumen; dark lumen; one
        channel that is the speed, or speed times magnitude (PC-MRA), instead of the magnitude;
        phantoms instead of trees; with a deformed wall.
    plain, straight : float
        Shares of cases: blood and ground of one intensity each; straight tubes instead of either.
    """

    shape: tuple[int, ...] = Limits((64, 64, 64), strict=False)
    channels: Literal[1, 2] = 1
    family: Literal["train", "heldout"] = "train"
    radius: Range = Limits((1.5, 11.0), strict=False)
    snr: Range = Limits((3.0, 40.0), strict=False)
    psf: Range = Limits((0.35, 1.05), strict=False)
    anisotropy: float = Limits(4.0, ge=1, le=8)
    distractors: int = Limits(5, ge=0, le=30)
    easy: float = Limits(0.2, ge=0, le=1)
    empty: float = Limits(0.03, ge=0, le=1)
    black_blood: float = Limits(0.1, ge=0, le=1)
    flow: float = Limits(0.12, ge=0, le=1)
    shapes: float = Limits(0.15, ge=0, le=1)
    deformed: float = Limits(0.7, ge=0, le=1)
    plain: float = Limits(0.0, ge=0, le=1)
    straight: float = Limits(0.0, ge=0, le=1)

    @model_validator(mode="after")
    def _ranges(self) -> SynthSettings:
        if len(self.shape) not in (2, 3) or min(self.shape) < 16 or max(self.shape) > 1024:
            raise ValueError("shape needs 2 or 3 numbers from 16 to 1024")
        for name in ("radius", "snr", "psf"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name} needs 0 < low <= high")
        return self


DEFAULT = SynthSettings()


@dataclass(frozen=True, eq=False)
class Geometry:
    """A wall in voxels, its axis, and what was drawn."""

    phi: Field
    centreline: NDArray[np.uint8]
    facts: dict[str, Any]


def case(
    seed: int, index: int, settings: SynthSettings = DEFAULT, shape: Shape | None = None
) -> Case:
    """Draw one synthetic case.

    Parameters
    ----------
    seed, index : int >= 0
        Index 2n and 2n + 1 share a geometry.
    settings : SynthSettings
    shape : callable, optional
        Any geometry instead of the random vessels: ``shape(shape_kji, rng)`` returns an array
        that is negative in the lumen, about a distance in voxels near its zero set. It is
        deformed and redistanced like the others.

    Returns
    -------
    Case
        ``phi`` in voxels, |∇φ| = 1 to high order within 3 voxels of the wall.

    Raises
    ------
    ConfigError
        On a negative seed or index.
    DataError
        If the callable returns an array of another shape, or one that is not finite.
    """
    if seed < 0 or index < 0:
        raise ConfigError("bad seed or index", found=f"{seed}, {index}", need="numbers >= 0")
    geometry = _geometry(seed, index // 2, settings, shape)
    rng = _stream(seed, index, settings, 1)
    easy = bool(rng.random() < settings.easy)
    low, high = np.log(settings.snr)
    snr = float(np.exp(rng.uniform(min(high, max(low, np.log(12.0))) if easy else low, high)))
    psf = float(rng.uniform(*settings.psf))
    coarse = not easy and rng.random() < 0.5
    anisotropy = float(np.exp(rng.uniform(0, np.log(settings.anisotropy)))) if coarse else 1.0
    kind = _kind(settings, rng)
    black_blood = bool(rng.random() < settings.black_blood) and kind == "magnitude"
    count = 0 if easy else int(rng.integers(0, settings.distractors + 1))
    plain = _among(settings.plain, rng)
    image, painted = paint(
        geometry.phi,
        rng,
        snr=snr,
        psf=psf,
        anisotropy=anisotropy,
        easy=easy,
        black_blood=black_blood,
        distractors=count,
        plain=plain,
    )
    channels = [image]
    if settings.channels == 2 or kind != "magnitude":
        speed = _speed_channel(geometry, image, psf, snr, rng)
        product = {"magnitude": [image, speed], "speed": [speed], "angiogram": [image * speed]}
        channels = product[kind]
    facts = {
        **geometry.facts,
        "seed": seed,
        "index": index,
        "snr": snr,
        "psf": psf,
        "anisotropy": anisotropy,
        "easy": easy,
        "plain": plain,
        "polarity": "dark" if black_blood else "bright",
        "distractors": count,
        "image": kind,
        **painted,
    }
    return Case(np.stack(channels), geometry.phi, geometry.centreline, facts)


def _stream(seed: int, index: int, settings: SynthSettings, purpose: int) -> np.random.Generator:
    entropy = [seed, index, purpose, FAMILIES[settings.family]]
    return np.random.default_rng(np.random.SeedSequence(entropy))


@lru_cache(maxsize=8)
def _geometry(seed: int, index: int, settings: SynthSettings, custom: Shape | None) -> Geometry:
    """Draw vessels, or a shape of the user; deform and redistance them."""
    rng = _stream(seed, index, settings, 0)
    if custom is None and rng.random() < settings.empty:
        return _empty(settings.shape)
    segments = None
    if custom is None:
        segments, name, phi, radius = _vessels(settings, rng)
    else:
        name, phi, radius = getattr(custom, "__name__", "custom"), *_drawn(custom, settings, rng)
    deformed = bool(rng.random() < settings.deformed) and bool((phi < 0).any())
    if deformed:
        phi = vascular.deform(phi, radius, rng)
    if not phi.min() < 0 < phi.max():
        return _empty(settings.shape)
    phi = vascular.signed_distance(phi)
    wall = np.abs(phi) < 1
    facts = {
        "shape": name,
        "lumen_share": float((phi < 0).mean()),
        "radius": float(np.median(radius[wall])) if wall.any() else 0.0,
        "deformed": deformed,
    }
    if segments is None:
        axis = vascular.thinned(phi)
    else:
        axis = vascular.centreline(segments, phi, deformed)
    phi.setflags(write=False)
    axis.setflags(write=False)
    return Geometry(phi, axis, facts)


def _empty(shape: tuple[int, ...]) -> Geometry:
    nothing = np.full(shape, vascular.FAR, dtype=np.float32)
    return Geometry(
        nothing, np.zeros(shape, dtype=np.uint8), {"shape": "empty", "lumen_share": 0.0}
    )


def _vessels(
    settings: SynthSettings, rng: np.random.Generator
) -> tuple[NDArray[np.float64], str, Field, Field]:
    """Draw vessels until they fill a plausible share of the volume: axes, name, phi, radius."""
    planar = len(settings.shape) == 2 and bool(rng.random() < 0.5)
    for _ in range(ATTEMPTS):
        segments, name = _segments(settings, planar, rng)
        phi, radius = vascular.level_set(segments, settings.shape)
        if SHARE_LIMITS[0] <= float((phi < 0).mean()) <= SHARE_LIMITS[1]:
            break
    return segments, name, phi, radius


def _drawn(custom: Shape, settings: SynthSettings, rng: np.random.Generator) -> tuple[Field, Field]:
    """Return the distance and the local radius of a shape of the user."""
    level = np.asarray(custom(settings.shape, rng))
    if level.shape != settings.shape or not np.isfinite(level).all():
        found = level.shape if level.shape != settings.shape else "non-finite values"
        raise DataError("bad shape of the user", found=found, need=f"finite, {settings.shape}")
    if not level.min() < 0 < level.max():
        return level.astype(np.float32), np.ones(level.shape, dtype=np.float32)
    phi = vascular.signed_distance(level.astype(np.float32))
    return phi, vascular.local_radius(phi)


def _segments(
    settings: SynthSettings, planar: bool, rng: np.random.Generator
) -> tuple[NDArray[np.float64], str]:
    shape = settings.shape
    thick = max(shape) * 2 // 3
    size = shape if len(shape) == 3 else (0 if planar else thick, *shape)
    held_out = settings.family == "heldout"
    if _among(settings.straight, rng):
        segments, name = vascular.random_tubes(size, settings.radius, planar, rng), "straight"
    elif not planar and rng.random() < settings.shapes:
        known = vascular.HELD_OUT_SHAPES if held_out else vascular.TRAINING_SHAPES
        segments, name = vascular.random_shape(known, size, settings.radius, rng)
    else:
        segments, name = vascular.random_tree(size, settings.radius, planar, rng), "tree"
    if len(shape) == 2 and not planar:
        segments[:, [0, 3]] -= thick / 2  # the image is the middle plane
    return segments, name


def _among(share: float, rng: np.random.Generator) -> bool:
    """Draw whether a case is among a share; nothing is drawn, all else stays, where it is zero."""
    return share > 0 and bool(rng.random() < share)


def _kind(settings: SynthSettings, rng: np.random.Generator) -> str:
    """Draw what the first channel shows."""
    if settings.channels == 2 or rng.random() >= settings.flow:
        return "magnitude"
    return "speed" if rng.random() < 0.5 else "angiogram"


def _speed_channel(
    geometry: Geometry, magnitude: Field, psf: float, snr: float, rng: np.random.Generator
) -> Field:
    """Draw a speed image: flow blunt to parabolic, wraps above venc, phase noise where it is dark.

    The phase noise of a component is venc/(π·SNR) times signal in the lumen over signal here
    (Gudbjartsson 1995), up to a random phase in air; half of the images have static tissue
    masked out.
    """
    phi = geometry.phi
    local = np.float32(max(geometry.facts.get("radius", 2.0), 1.0))
    depth = np.clip(-phi / local, 0.0, 1.0)
    slow = gaussian_process(phi.shape, 0.5 * max(phi.shape), rng)
    blunt = np.float32(rng.uniform(2.0, 8.0))  # 2: Poiseuille; above: the core of pulsatile flow
    speed = (1 - (1 - depth) ** blunt) * np.exp(np.float32(0.3) * np.clip(slow, -2, 2))
    share = occupancy(phi, (1.0,) * phi.ndim, psf, supersample=2)
    venc = np.float32(rng.uniform(0.8, 2.0))
    lumen = phi < 0
    signal = float(magnitude[lumen].mean()) if lumen.any() else float(magnitude.max())
    dark = signal / np.maximum(magnitude, np.float32(1e-3 * abs(signal) + 1e-6))
    spread = np.minimum(venc / np.float32(np.pi * snr) * dark, venc).astype(np.float32)
    total = np.zeros(phi.shape, dtype=np.float32)
    for part in (speed * share * c for c in _direction(phi.ndim, rng)):
        noisy = part + spread * rng.standard_normal(phi.shape, dtype=np.float32)
        wrapped = (noisy + venc) % (2 * venc) - venc
        total += np.square(wrapped)
    if rng.random() < 0.5:
        total *= phi < np.float32(rng.uniform(-0.5, 3.0))
    return np.sqrt(total)


def _direction(ndim: int, rng: np.random.Generator) -> NDArray[np.float32]:
    vector = rng.standard_normal(ndim)
    return np.asarray(vector / np.linalg.norm(vector), dtype=np.float32)


def perturbed(
    phi_mm: NDArray,
    grid: Grid,
    rms_voxel: float,
    seed: int,
    *,
    length_voxels: float = 5.0,
) -> NDArray[np.float64]:
    """Displace a wall at random and smoothly: a start that knows nothing of the image.

    The displacement is uniformly distributed over ±√3 ``rms_voxel`` smallest voxels (so that none
    is much larger than the others) and smooth in space; where the lumen is thin it is less, so
    that no branch is lost.

    Parameters
    ----------
    phi_mm : (nz, ny, nx) or (ny, nx) array
        Signed distance in mm, negative in the lumen.
    grid : Grid
    rms_voxel : float
        Root mean square of the displacement.
    seed : int
    length_voxels : float
        Correlation length in voxels: autocorrelation near exp(-d²/(2l²)).

    Returns
    -------
    (nz, ny, nx) or (ny, nx) float64 array
        A function with the displaced wall as its zero set, a distance only roughly.
    """
    from scipy.special import ndtr

    phi = np.asarray(phi_mm, dtype=np.float64)
    rng = np.random.default_rng(np.random.SeedSequence([seed, 11]))
    share = 2.0 * ndtr(gaussian_process(grid.shape_kji, length_voxels, rng)) - 1.0
    depth = vascular.local_radius(phi)
    most = np.minimum(np.sqrt(3.0) * rms_voxel * grid.h_min, THIN * depth)
    return np.asarray(phi - most * share, dtype=np.float64)
