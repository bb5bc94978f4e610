"""How far is the wall from the truth? ``python studies/wall_error.py``.

Phantoms with an exact wall, imaged with a point spread of 0.6 voxels and noise; the network's
wall, the refined one and the field's usual recipes against the truth. The shapes reported here
are others than those the settings were tried on (``TUNING``).
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from vesselseg import metrics, phantoms
from vesselseg.calibration import calibrated
from vesselseg.fields import LevelSet, Volume
from vesselseg.forward import ForwardModel, image_of, phantom_occupancy
from vesselseg.grid import Grid
from vesselseg.infer import segment
from vesselseg.io.atomic import write_bytes
from vesselseg.solvers.refine import refine
from vesselseg.solvers.settings import RefineSettings

RESULTS = Path(__file__).parent / "results"
REPORTED = ("aneurysm", "arch", "bifurcation", "curved_tube", "helix", "smooth_bifurcation")
TUNING = ("ellipsoid", "sphere", "stenosis", "tapered_tube", "tilted_tube", "torus")
PSF = 0.6
WIDTHS = (0.5, 0.7, 0.9, 1.1, 1.4, 1.8)
LEVELS = np.linspace(0.3, 0.54, 7)
SHOWN = ("mean_voxel", "rms_voxel", "p95_voxel", "bias_voxel", "normal_rms_deg")
COVER = ("within_1", "within_2")
NAMES = {
    "network": "network",
    "refined": "refined wall",
    "isosurface": "Gaussian isosurface, level 0.5, best width",
    "isosurface_tuned": "the same, width and level tuned with the truth",
    "chan_vese": "Chan-Vese 3-D",
}


def cases(
    shapes: tuple[str, ...], radii: tuple[float, ...], snr: float, draws: int
) -> Iterator[tuple[dict[str, Any], NDArray, Volume]]:
    """Yield what was drawn, the exact distance and the image of every case."""
    for name in shapes:
        for radius in radii:
            shape = phantoms.make(name, radius=radius)
            grid = shape.grid(1.0)
            truth = shape.phi(grid)
            share = phantom_occupancy(shape, grid, PSF)
            for draw in range(draws):
                model = ForwardModel(snr=snr, psf_voxels=PSF)
                image = image_of(share, grid, model, 1000 * draw + int(10 * radius), name)
                yield {"shape": name, "radius": radius, "snr": snr, "draw": draw}, truth, image


def isosurfaces(image: Volume, truth: NDArray, grid: Grid) -> dict[str, NDArray]:
    """Return the best isosurfaces of the filtered image: width tuned, and level as well."""
    model = ForwardModel()
    scaled = (image.values.astype(np.float64) - model.background) / (model.lumen - model.background)
    smooth = {w: gaussian_filter(scaled, w) for w in WIDTHS}

    def rms(width: float, level: float) -> float:
        return metrics.wall_errors(level - smooth[width], truth, grid)["rms_voxel"]

    half = min(WIDTHS, key=lambda w: rms(w, 0.5))
    width, level = min(((w, v) for w in WIDTHS for v in LEVELS), key=lambda c: rms(*c))
    return {"isosurface": 0.5 - smooth[half], "isosurface_tuned": level - smooth[width]}


def judge(truth: NDArray, image: Volume) -> dict[str, dict[str, Any]]:
    """Return the errors of every method on one case."""
    grid = image.grid
    found = segment(image)
    start = LevelSet.from_probability(found)
    clock = time.perf_counter()
    refined = calibrated(refine(start, image))
    seconds = time.perf_counter() - clock
    walls: dict[str, NDArray] = {
        "network": start.phi_mm,
        "refined": refined.level_set.phi_mm,
        **isosurfaces(image, truth, grid),
        "chan_vese": refine(
            start, image, RefineSettings(energy="chan_vese", iterations=60)
        ).level_set.phi_mm,
    }
    rows = {name: metrics.wall_errors(phi, truth, grid) for name, phi in walls.items()}
    for name, field, sigma in (
        ("network", start.phi_mm, start.sigma_mm),
        ("refined", refined.level_set.phi_mm, refined.sigma_mm),
    ):
        rows[name] |= metrics.coverage(field, truth, sigma, grid)
    rows["refined"] |= {
        "seconds": seconds,
        "steps": refined.steps,
        "converged": refined.converged,
        **{f"estimated_{k}": v for k, v in refined.estimates.items()},
    }
    return rows


def summary(rows: list[dict[str, Any]], snr: float) -> list[dict[str, Any]]:
    """Average every method over the cases of one SNR; unresolved vessels apart."""
    table = []
    for method, name in NAMES.items():
        part = [r["methods"][method] for r in rows if r["snr"] == snr]
        line: dict[str, Any] = {"SNR": f"{snr:g}", "wall": name}
        titles = ("mean", "rms", "95 %", "bias", "normals °")
        line |= {t: average(part, k) for t, k in zip(titles, SHOWN, strict=True)}
        covered = [f"{100 * average(part, k):.0f} %" if k in part[0] else "" for k in COVER]
        table.append(line | dict(zip(("±1 s.d.", "±2 s.d."), covered, strict=True)))
    return table


def average(rows: list[dict[str, Any]], key: str) -> float:
    """Return the mean of one figure."""
    return float(np.mean([row[key] for row in rows]))


def judged(job: tuple[tuple[str, ...], tuple[float, ...], float, int]) -> list[dict[str, Any]]:
    """Judge every method on the cases of one job."""
    rows = []
    for facts, truth, image in cases(*job):
        wall = judge(truth, image)
        rows.append(facts | {"methods": wall})
        print(
            f"{facts['shape']:<20} r {facts['radius']:g} SNR {facts['snr']:g}: "
            + ", ".join(f"{m} {wall[m]['mean_voxel']:.3f}" for m in NAMES),
            flush=True,
        )
    return rows


def in_parallel(work: Callable[[Any], Any], jobs: list[Any]) -> list[Any]:
    """Run the jobs on all cores, one thread each; the order of the results is that of the jobs."""
    for variable in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ[variable] = "1"
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
        return list(pool.map(work, jobs))


def main() -> None:
    """Run the study and write its result."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--snr", type=float, nargs="+", default=[3.0, 6.0, 12.0])
    options.add_argument("--radii", type=float, nargs="+", default=[4.0])
    options.add_argument("--draws", type=int, default=5)
    options.add_argument("--tuning", action="store_true", help="the shapes for trying settings")
    options.add_argument("-o", "--output", type=Path, default=RESULTS / "wall_error.json")
    given = options.parse_args()
    shapes = TUNING if given.tuning else REPORTED
    jobs = [((name,), (r,), snr, given.draws)
            for snr in given.snr for name in shapes for r in given.radii]  # fmt: skip
    rows = [row for part in in_parallel(judged, jobs) for row in part]
    table = [line for snr in given.snr for line in summary(rows, snr)]
    settings = {"shapes": shapes, "draws": given.draws, "radii": given.radii, "psf_voxels": PSF}
    better = [r["methods"]["refined"]["mean_voxel"] < r["methods"]["network"]["mean_voxel"]
              for r in rows]  # fmt: skip
    result = {
        "settings": settings,
        "refined_better_than_network": f"{sum(better)} of {len(better)}",
        "table": table,
        "cases": rows,
    }
    text = json.dumps(result, indent=1, default=float)
    write_bytes(given.output, text.encode(), overwrite=True)
    for line in table:
        print("  ".join(f"{v:.3f}" if isinstance(v, float) else str(v) for v in line.values()))
    print("refined better than the network:", result["refined_better_than_network"])


if __name__ == "__main__":
    main()
