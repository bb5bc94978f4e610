"""Synthetic cases: random vessels with a known wall, deformed by the solver, and their images.

``case(seed, index)`` is a pure function: two consecutive indices share a geometry and differ in
appearance. ``forward`` holds the image formation with given settings, ``appearance`` the random
one, ``vascular`` the geometry.
"""

from __future__ import annotations

import io
import json
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field as Limits
from pydantic import model_validator

from ..config import Settings
from ..errors import ConfigError
from ..fields import Case, Field, Progress, silent
from ..grid import Grid
from . import vascular
from .appearance import paint
from .forward import ForwardModel, gaussian_process, occupancy, render, render_phantom

__all__ = [
    "ForwardModel",
    "SynthSettings",
    "case",
    "perturbed",
    "render",
    "render_phantom",
    "write_dataset",
]

Range = tuple[float, float]
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


def case(seed: int, index: int, settings: SynthSettings = DEFAULT) -> Case:
    """Draw one synthetic case.

    Parameters
    ----------
    seed, index : int >= 0
        Index 2n and 2n + 1 share a geometry.
    settings : SynthSettings

    Returns
    -------
    Case
        ``phi`` in voxels, |∇φ| = 1 to high order within 3 voxels of the wall.
    """
    if seed < 0 or index < 0:
        raise ConfigError("bad seed or index", found=f"{seed}, {index}", need="numbers >= 0")
    geometry = _geometry(seed, index // 2, settings)
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
    image, painted = paint(
        geometry.phi,
        rng,
        snr=snr,
        psf=psf,
        anisotropy=anisotropy,
        easy=easy,
        black_blood=black_blood,
        distractors=count,
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
def _geometry(seed: int, index: int, settings: SynthSettings) -> Geometry:
    """Draw vessels until they fill a plausible share of the volume."""
    rng = _stream(seed, index, settings, 0)
    shape = settings.shape
    if rng.random() < settings.empty:
        nothing = np.full(shape, vascular.FAR, dtype=np.float32)
        marks = np.zeros(shape, dtype=np.uint8)
        return Geometry(nothing, marks, {"shape": "empty", "lumen_share": 0.0})
    planar = len(shape) == 2 and bool(rng.random() < 0.5)
    for _ in range(ATTEMPTS):
        segments, name = _segments(settings, planar, rng)
        phi, radius = vascular.level_set(segments, shape)
        share = float((phi < 0).mean())
        if SHARE_LIMITS[0] <= share <= SHARE_LIMITS[1]:
            break
    deformed = bool(rng.random() < settings.deformed) and share > 0
    if deformed:
        phi = vascular.deform(phi, radius, rng)
    if not phi.min() < 0 < phi.max():
        return Geometry(
            np.full(shape, vascular.FAR, dtype=np.float32),
            np.zeros(shape, dtype=np.uint8),
            {"shape": "empty", "lumen_share": 0.0},
        )
    phi = vascular.signed_distance(phi)
    wall = np.abs(phi) < 1
    facts = {
        "shape": name,
        "lumen_share": float((phi < 0).mean()),
        "radius": float(np.median(radius[wall])) if wall.any() else 0.0,
        "deformed": deformed,
    }
    axis = vascular.centreline(segments, phi, deformed)
    phi.setflags(write=False)
    axis.setflags(write=False)
    return Geometry(phi, axis, facts)


def _segments(
    settings: SynthSettings, planar: bool, rng: np.random.Generator
) -> tuple[NDArray[np.float64], str]:
    shape = settings.shape
    thick = max(shape) * 2 // 3
    size = shape if len(shape) == 3 else (0 if planar else thick, *shape)
    held_out = settings.family == "heldout"
    if not planar and rng.random() < settings.shapes:
        known = vascular.HELD_OUT_SHAPES if held_out else vascular.TRAINING_SHAPES
        segments, name = vascular.random_shape(known, size, settings.radius, rng)
    else:
        segments, name = vascular.random_tree(size, settings.radius, planar, rng), "tree"
    if len(shape) == 2 and not planar:
        segments[:, [0, 3]] -= thick / 2  # the image is the middle plane
    return segments, name


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
    from scipy.ndimage import maximum_filter
    from scipy.special import ndtr

    phi = np.asarray(phi_mm, dtype=np.float64)
    rng = np.random.default_rng(np.random.SeedSequence([seed, 11]))
    share = 2.0 * ndtr(gaussian_process(grid.shape_kji, length_voxels, rng)) - 1.0
    depth = maximum_filter(np.maximum(-phi, 0.0), size=11)  # of the lumen beside a wall point
    most = np.minimum(np.sqrt(3.0) * rms_voxel * grid.h_min, THIN * depth)
    return np.asarray(phi - most * share, dtype=np.float64)


def write_dataset(
    output: str | os.PathLike[str],
    n: int,
    settings: SynthSettings = DEFAULT,
    seed: int = 0,
    *,
    overwrite: bool = False,
    progress: Progress = silent,
) -> Path:
    """Write n cases as ``magn``, ``mask``, ``sdf``, ``centreline`` ``/NNNN.npy``.

    ``facts.jsonl``, one line a case, is written last. ``sdf`` is in voxels. Returns the folder.

    Raises
    ------
    ConfigError
        If n is not positive, or files exist and ``overwrite`` is false.
    """
    from ..io import atomic

    if n < 1:
        raise ConfigError("bad number of cases", found=n, need="at least 1")
    folder = Path(output)
    atomic.check_folder(folder)
    atomic.check_target(folder / "facts.jsonl", overwrite=overwrite)
    for name in ("magn", "mask", "sdf", "centreline"):
        atomic.check_folder(folder / name)
    lines = []
    for index in range(n):
        drawn = case(seed, index, settings)
        image = drawn.image[0] if len(drawn.image) == 1 else drawn.image
        arrays = {
            "magn": image,
            "mask": (drawn.phi < 0).astype(np.uint8),
            "sdf": drawn.phi,
            "centreline": drawn.centreline,
        }
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.save(buffer, array)
            target = folder / name / f"{index:04d}.npy"
            atomic.write_bytes(target, buffer.getvalue(), overwrite=overwrite)
        lines.append(json.dumps({"file": f"{index:04d}.npy", **drawn.facts}))
        progress("synth", (index + 1) / n, f"case {index + 1} of {n}")
    text = "\n".join(lines) + "\n"
    atomic.write_bytes(folder / "facts.jsonl", text.encode(), overwrite=overwrite)
    return folder
