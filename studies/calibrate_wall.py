"""Is the wall's standard deviation honest? ``python studies/calibrate_wall.py``.

Fits a factor per class of SNR and radius on one family of phantoms and states what the scaled
standard deviation covers on another one; writes the table into the package.
"""

from __future__ import annotations

import argparse
import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from wall_error import REPORTED, RESULTS, TUNING, cases

from vesselseg import metrics
from vesselseg.calibration import FILE, Calibration, calibrated, mean_radius_voxels
from vesselseg.fields import LevelSet, Refinement, Volume
from vesselseg.infer import segment
from vesselseg.io.atomic import write_bytes
from vesselseg.solvers.refine import refine

SNR = (3.0, 6.0, 12.0)
RADII = (2.5, 4.0, 6.0)
INSIDE = (0.6827, 0.9545)  # shares of a normal distribution within one and two s.d.
PACKAGE = Path(__file__).parent.parent / "vesselseg" / "data"


def refined(image: Volume) -> Refinement:
    """Run network and refinement, not calibrated."""
    return refine(LevelSet.from_probability(segment(image)), image)


def deviations(run: Refinement, truth: NDArray) -> tuple[NDArray, NDArray, NDArray]:
    """Return signed error, its s.d. and area at samples of the refined wall near the truth."""
    wall = metrics.wall(run.level_set.phi_mm, run.level_set.grid)
    error = metrics.sample(np.asarray(truth, dtype=float), wall.index)
    sigma = metrics.sample(np.asarray(run.sigma_mm, dtype=float), wall.index)
    near = np.abs(error) <= metrics.NEAR_VOXELS * run.level_set.grid.h_min
    return error[near], sigma[near], wall.area_mm2[near]


def fit_factor(parts: list[tuple[NDArray, NDArray, NDArray]]) -> float:
    """Return the factor that makes one and two s.d. cover what they should, in the mean."""
    z = np.concatenate([np.abs(e) / s for e, s, _ in parts])
    area = np.concatenate([a / a.sum() for _, _, a in parts])
    return float(np.mean([metrics.quantile(z, area, q) / k for k, q in enumerate(INSIDE, 1)]))


def main() -> None:
    """Fit, report and write the table."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--draws", type=int, default=1)
    given = options.parse_args()
    factor = np.ones((len(SNR), len(RADII)))
    radius = np.zeros_like(factor)
    for (a, snr), (b, r) in product(enumerate(SNR), enumerate(RADII)):
        runs = [(refined(v), t) for _, t, v in cases(TUNING, (r,), snr, given.draws)]
        factor[a, b] = fit_factor([deviations(run, truth) for run, truth in runs])
        radius[a, b] = np.mean([mean_radius_voxels(run) for run, _ in runs])
        print(f"fit    SNR {snr:4g} radius {r:g}: factor {factor[a, b]:.2f}", flush=True)
    name = f"{len(TUNING) * factor.size * given.draws} phantoms: {', '.join(TUNING)}"
    table = Calibration(name, np.array(SNR), radius.mean(axis=0), factor, 0.0, 0.0, 0.0)
    rows: list[dict[str, Any]] = []
    for snr, r in product(SNR, RADII):
        for facts, truth, image in cases(REPORTED, (r,), snr, given.draws):
            run = calibrated(refined(image), table)
            error, sigma, area = deviations(run, truth)
            within = [metrics.mean(np.abs(error) <= k * sigma, area) for k in (1, 2)]
            bias = -metrics.mean(error, area) / run.level_set.grid.h_max
            rows.append(facts | {"within_1": within[0], "within_2": within[1], "bias_voxel": bias})
        part = rows[-len(REPORTED) * given.draws :]
        shown = [np.mean([row[k] for row in part]) for k in ("within_1", "within_2", "bias_voxel")]
        print(f"report SNR {snr:4g} radius {r:g}: " + " ".join(f"{v:+.3f}" for v in shown))
    bias = [row["bias_voxel"] for row in rows]
    tree = {
        "name": name,
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
    classes = [
        {
            "SNR": f"{snr:g}",
            "radius, voxels": f"{r:g}",
            **{
                k: float(np.mean([w[n] for w in rows if (w["snr"], w["radius"]) == (snr, r)]))
                for k, n in (
                    ("±1 s.d.", "within_1"),
                    ("±2 s.d.", "within_2"),
                    ("bias", "bias_voxel"),
                )
            },
        }
        for snr, r in product(SNR, RADII)
    ]
    text = json.dumps(tree | {"table": classes, "cases": rows}, indent=1)
    write_bytes(RESULTS / "calibrate_wall.json", text.encode(), overwrite=True)
    print({k: tree[k] for k in ("coverage_1sigma", "coverage_2sigma", "bias_voxel")})


if __name__ == "__main__":
    main()
