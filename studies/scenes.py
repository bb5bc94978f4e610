"""The scenes of the accuracy studies: phantoms with an exact wall, their images and starts."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vesselseg import phantoms
from vesselseg.fields import LevelSet, Volume
from vesselseg.grid import Grid
from vesselseg.io.atomic import write_bytes
from vesselseg.solvers.redistancing import redistance
from vesselseg.synth.cases import perturbed
from vesselseg.synth.forward import ForwardModel, image_of, phantom_occupancy

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "studies" / "results"
KEPT = ROOT / "out" / "phantoms"  # blurred phantoms take minutes to make and never change

REPORTED = ("aneurysm", "arch", "bifurcation", "curved_tube", "helix", "smooth_bifurcation")
TUNING = ("ellipsoid", "sphere", "stenosis", "tapered_tube", "tilted_tube", "torus")
REPORTED_PLANAR = ("circle", "ellipse", "star")
TUNING_PLANAR = ("oval", "trefoil", "disc")
OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "oval": ("ellipse", {"axes": (1.0, 1.4)}),
    "trefoil": ("star", {"arms": 3, "depth": 0.2}),
    "disc": ("ellipse", {"axes": (1.0, 0.8)}),
}
PSF = 0.6
START_RMS = 1.0  # of the independent start, in smallest voxels
BAND = 6.0  # the start is a distance this far from the wall, in largest voxels
ORGAN_GAP = 1.0  # voxels between the lumen and the flat organ beside it
ORGAN_LEVEL = 0.8  # its contrast as a share of the lumen's


@dataclass(frozen=True)
class Variant:
    """What makes a scene hard: settings of the image, voxel sides, an organ beside the lumen."""

    model: dict[str, Any] = field(default_factory=dict)
    spacing: tuple[float, ...] | float = 1.0
    organ: bool = False


VARIANTS = {
    "plain": Variant(),
    "bias field": Variant({"bias": 0.25}),
    "neighbour": Variant(organ=True),
    "dropout": Variant({"dropout": 0.8}),
    "voxels 2:1:1": Variant(spacing=(2.0, 1.0, 1.0)),
    "Rician": Variant({"noise": "rician"}),
}


@dataclass(frozen=True)
class Scene:
    """One image to be made: shape, radius in mm, variant, signal-to-noise ratio and draw."""

    shape: str
    radius: float
    snr: float
    draw: int
    variant: str = "plain"

    def image(self) -> Volume:
        """Render it; the noise of a draw is the same for every ratio."""
        variant = VARIANTS[self.variant]
        made = blurred_phantom(self.shape, self.radius, self.variant)
        model = ForwardModel(snr=self.snr, psf_voxels=PSF, **variant.model)
        share = made.share
        if made.organ is not None:
            share = share + np.float32(ORGAN_LEVEL) * made.organ
        seed = 1000 * self.draw + int(10 * self.radius)
        return image_of(share, made.grid, model, seed, self.shape)

    def truth(self) -> NDArray[np.float64]:
        """Exact signed distance to the wall, mm."""
        return blurred_phantom(self.shape, self.radius, self.variant).truth

    def start(self) -> LevelSet:
        """Return the true wall after a smooth random displacement: knows nothing of the image."""
        made = blurred_phantom(self.shape, self.radius, self.variant)
        grid = made.grid
        phi = perturbed(made.truth, grid, START_RMS, self.draw)
        band = BAND * grid.h_max
        phi = redistance(phi, grid.spacing_mm, band_mm=band)
        sigma = np.full(grid.shape_kji, START_RMS * grid.h_min)
        return LevelSet(phi, grid, band, sigma)


@dataclass(frozen=True, eq=False)
class Blurred:
    """A phantom on a grid: exact distance, blurred lumen share, that of the organ beside it."""

    grid: Grid
    truth: NDArray[np.float64]
    share: NDArray[np.float32]
    organ: NDArray[np.float32] | None


def phantom(shape: str, radius: float) -> phantoms.Phantom:
    """Make a phantom by its name in the studies."""
    name, options = OPTIONS.get(shape, (shape, {}))
    return phantoms.make(name, radius=radius, **options)


def organ_beside(shape: phantoms.Phantom, gap: float) -> phantoms.Phantom:
    """Return all that lies beyond a plane (y constant) which the lumen misses by a gap."""
    face = shape.high_xyz[1] + gap
    return phantoms.custom(lambda x: face - x[:, 1], shape.low_xyz, shape.high_xyz)


@lru_cache(maxsize=2)
def blurred_phantom(shape: str, radius: float, variant: str) -> Blurred:
    """Make a phantom ready for its images, or read it from an earlier run."""
    chosen = VARIANTS[variant]
    solid = phantom(shape, radius)
    grid = solid.grid(chosen.spacing)
    file = KEPT / f"{_digest(shape, radius, chosen)}.npz"
    if file.is_file():
        with np.load(file) as kept:
            organ = kept["organ"] if chosen.organ else None
            return Blurred(grid, kept["truth"], kept["share"], organ)
    organ = None
    if chosen.organ:
        organ = phantom_occupancy(organ_beside(solid, ORGAN_GAP * grid.h_min), grid, PSF)
    made = Blurred(grid, solid.phi(grid), phantom_occupancy(solid, grid, PSF), organ)
    arrays = {"truth": made.truth, "share": made.share}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays, **({} if organ is None else {"organ": organ}))
    KEPT.mkdir(parents=True, exist_ok=True)
    write_bytes(file, buffer.getvalue())
    return made


def _digest(shape: str, radius: float, variant: Variant) -> str:
    """Name what a phantom depends on: its parameters and the code that makes it."""
    code = (
        "phantoms/problems",
        "phantoms/shapes",
        "phantoms/unions",
        "synth/forward",
        "synth/banded",
    )
    text = [(ROOT / "vesselseg" / f"{name}.py").read_text() for name in code]
    organ = ("flat", ORGAN_GAP) if variant.organ else None
    facts = (OPTIONS.get(shape, shape), radius, variant.spacing, organ, PSF)
    return hashlib.sha256(repr((facts, text)).encode()).hexdigest()[:24]


def cases(
    shapes: tuple[str, ...], radii: tuple[float, ...], snr: float, draws: int
) -> Iterator[tuple[dict[str, Any], NDArray, Volume]]:
    """Yield what was drawn, the exact distance and the image of every plain case."""
    for name in shapes:
        for radius in radii:
            for draw in range(draws):
                scene = Scene(name, radius, snr, draw)
                facts = {"shape": name, "radius": radius, "snr": snr, "draw": draw}
                yield facts, scene.truth(), scene.image()


def scaled(image: Volume) -> NDArray[np.float64]:
    """Return the image with 0 in the surroundings and 1 in the lumen, by the true intensities."""
    model = ForwardModel()
    values = image.values.astype(np.float64)
    return np.asarray((values - model.background) / (model.lumen - model.background))


def in_turn(
    work: Callable[[Any], Any], jobs: list[Any], workers: int | None = None
) -> Iterator[Any]:
    """Run the jobs on all cores, one thread each; yield the results in the order of the jobs."""
    for variable in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ[variable] = "1"
    with ProcessPoolExecutor(workers or os.cpu_count(), get_context("spawn")) as pool:
        yield from pool.map(work, jobs)


def listed(head: dict[str, Any], rows: dict[str, dict[str, Any]]) -> str:
    """Write a result readably: its head indented, then a line for each group of rows."""
    lines = [
        f"  {json.dumps(name)}: {{\n"
        + ",\n".join(f"   {json.dumps(key)}: {json.dumps(part)}" for key, part in by.items())
        + "\n  }"
        for name, by in rows.items()
    ]
    body = json.dumps(head, indent=1, ensure_ascii=False)
    return body[:-2] + ',\n "rows": {\n' + ",\n".join(lines) + "\n }\n}\n"


def in_parallel(work: Callable[[Any], Any], jobs: list[Any]) -> list[Any]:
    """Run the jobs on all cores, one thread each; the order of the results is that of the jobs."""
    return list(in_turn(work, jobs))


def tuning_trials(ndim: int, snr: float) -> list[tuple[NDArray, NDArray, NDArray, Grid]]:
    """Return image, start, truth and grid of the scenes on which peers are tuned."""
    family, radius, draws = (TUNING, 4.0, 1) if ndim == 3 else (TUNING_PLANAR, 8.0, 4)
    scenes = [Scene(name, radius, snr, 50 + n) for name in family for n in range(draws)]
    return [(scaled(image := s.image()), s.start().phi_mm, s.truth(), image.grid) for s in scenes]
