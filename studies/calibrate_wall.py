"""Is the wall's standard deviation honest? ``python studies/calibrate_wall.py``.

Fits a factor per class of SNR and radius on one family of phantoms and states what the scaled
standard deviation covers on another one; writes the table into the package.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scenes import REPORTED, RESULTS, TUNING, cases, in_parallel

from vesselseg import metrics
from vesselseg.calibration import FILE, Calibration, mean_radius_voxels
from vesselseg.fields import LevelSet
from vesselseg.infer import segment
from vesselseg.io.atomic import write_bytes
from vesselseg.solvers.refine import refine

SNR = (3.0, 6.0, 12.0)
RADII = (2.5, 4.0, 6.0)
INSIDE = (0.6827, 0.9545)  # shares of a normal distribution within one and two s.d.
PACKAGE = Path(__file__).parent.parent / "vesselseg" / "data"


@dataclass(frozen=True, eq=False)
class Row:
    """One case: what was drawn, and signed error, s.d. and area at samples of its refined wall."""

    facts: dict[str, Any]
    error: NDArray[np.float64]
    sigma: NDArray[np.float64]
    area: NDArray[np.float64]
    radius: float
    snr: float
    model_id: str


def measured(job: tuple[tuple[str, ...], float, float, int]) -> list[Row]:
    """Run network and refinement on the cases of one class."""
    family, radius, snr, draws = job
    rows = []
    for facts, truth, image in cases(family, (radius,), snr, draws):
        found = segment(image)
        run = refine(LevelSet.from_probability(found), image)
        wall = metrics.wall(run.level_set.phi_mm, image.grid)
        error = metrics.sample(np.asarray(truth, dtype=float), wall.index)
        sigma = metrics.sample(np.asarray(run.sigma_mm, dtype=float), wall.index)
        near = np.abs(error) <= metrics.NEAR_VOXELS * image.grid.h_min
        samples = (error[near], sigma[near], wall.area_mm2[near])
        known = (mean_radius_voxels(run), run.estimates["wall_snr"], found.model_id)
        rows.append(Row(facts, *samples, *known))
    return rows


def fit_factor(rows: list[Row]) -> float:
    """Return the factor that makes one and two s.d. cover what they should, in the mean."""
    z = np.concatenate([np.abs(row.error) / row.sigma for row in rows])
    area = np.concatenate([row.area / row.area.sum() for row in rows])
    return float(np.mean([metrics.quantile(z, area, q) / k for k, q in enumerate(INSIDE, 1)]))


def stated(row: Row, table: Calibration) -> dict[str, Any]:
    """Return what the scaled standard deviation of one case covers, and its bias."""
    sigma = table.at(row.snr, row.radius) * row.sigma
    within = {f"within_{k}": metrics.mean(np.abs(row.error) <= k * sigma, row.area) for k in (1, 2)}
    return {**row.facts, **within, "bias_voxel": -metrics.mean(row.error, row.area)}


def main() -> None:
    """Fit, report and write the table."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--draws", type=int, default=1)
    given = options.parse_args()
    classes = list(product(SNR, RADII))
    jobs = [(family, r, snr, given.draws) for family in (TUNING, REPORTED) for snr, r in classes]
    found = in_parallel(measured, jobs)
    fitted, reported = found[: len(classes)], found[len(classes) :]
    shape = (len(SNR), len(RADII))
    factor = np.reshape([fit_factor(part) for part in fitted], shape)
    radius = np.reshape([np.mean([row.radius for row in part]) for part in fitted], shape)
    name = f"{len(TUNING) * factor.size * given.draws} phantoms: {', '.join(TUNING)}"
    model_id = fitted[0][0].model_id
    table = Calibration(name, model_id, np.array(SNR), radius.mean(axis=0), factor, 0.0, 0.0, 0.0)
    rows = [stated(row, table) for part in reported for row in part]
    bias = [row["bias_voxel"] for row in rows]
    tree = {
        "name": name,
        "model_id": model_id,
        "snr": list(SNR),
        "radius_voxels": table.radius_voxels.round(3).tolist(),
        "factor": factor.round(3).tolist(),
        "coverage_2sigma": round(float(np.mean([row["within_2"] for row in rows])), 4),
        "coverage_1sigma": round(float(np.mean([row["within_1"] for row in rows])), 4),
        "bias_voxel": round(float(np.mean(bias)), 4),
        "bias_std_voxel": round(float(np.std(bias)), 4),
        "reported_on": list(REPORTED),
    }
    write_bytes(PACKAGE / FILE, (json.dumps(tree, indent=1) + "\n").encode(), overwrite=True)
    lines = []
    for snr, r in classes:
        part = [row for row in rows if (row["snr"], row["radius"]) == (snr, r)]
        titles = {"±1 s.d.": "within_1", "±2 s.d.": "within_2", "bias": "bias_voxel"}
        shown = {title: float(np.mean([row[n] for row in part])) for title, n in titles.items()}
        lines.append({"SNR": f"{snr:g}", "radius, voxels": f"{r:g}", **shown})
        print(*(f"{v:.3f}" if isinstance(v, float) else v for v in lines[-1].values()))
    text = json.dumps(tree | {"table": lines, "cases": rows}, indent=1)
    write_bytes(RESULTS / "calibrate_wall.json", text.encode(), overwrite=True)
    print({k: tree[k] for k in ("coverage_1sigma", "coverage_2sigma", "bias_voxel")})


if __name__ == "__main__":
    main()
