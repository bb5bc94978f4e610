"""Judge the shipped weights on synthetic volumes that no training or choice has seen.

``python studies/heldout.py [--dims 2]`` writes ``results/heldout-3d.json`` and ``.md``: 48
volumes of 64³ to 96³ over four noise levels and three vessel sizes, torus, helix and arch among
the trees. ``calibrate`` fits temperature and scale of the standard deviation on a list of its
own. Intervals are 95 % bootstrap intervals of the median over volumes.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special
from skimage.filters import threshold_otsu

from vesselseg import metrics, nets, synth
from vesselseg.fields import Case, Probability, Volume
from vesselseg.grid import Grid
from vesselseg.infer import SIGMA_FLOOR, SegmentSettings, segment
from vesselseg.io.atomic import write_bytes

SNRS = (3.0, 6.0, 12.0, 24.0)
RADII = {"thin 1.5-3": (1.5, 3.0), "medium 3-6": (3.0, 6.0), "wide 6-11": (6.0, 11.0)}
SIDES = (64, 80, 96, 64)
LISTS = {"heldout": 9001, "train": 5001}  # family -> seed; calibration uses the second
RESULTS = Path(__file__).parent / "results"
MEASURES = (
    "dice", "near_mean_voxel", "near_p95_voxel", "bias_voxel", "normal_rms_deg", "false_share",
    "missed_share", "within_1_voxel_share", "within_1", "within_2", "cl_dice",
    "calibration_error", "otsu_dice",
)  # fmt: skip


def cases(family: str, dims: int) -> Iterator[tuple[dict[str, str], Case]]:
    """Yield the stratum and the case of every volume, or image, of a list."""
    for number, (snr, name) in enumerate(itertools.product(SNRS, RADII)):
        for draw, side in enumerate(SIDES):
            settings = synth.SynthSettings(
                shape=(side,) * dims, family=family, snr=(snr, snr), radius=RADII[name], empty=0.0
            )
            case = synth.case(LISTS[family] + number, 2 * draw, settings)
            yield {"snr": f"SNR {snr:g}", "radius": name}, case


def predict(case: Case, model: Path | None) -> Probability:
    """Segment a case on a grid of 1 mm voxels."""
    grid = Grid.from_spacing(case.phi.shape, 1.0)
    settings = SegmentSettings(polarity=case.facts["polarity"])
    return segment(Volume(case.image[0], grid), model, settings)


def measure(case: Case, result: Probability) -> dict[str, float]:
    """Return the measures of one volume; nan where there is no wall to compare."""
    inside, truth = result.phi_mm < 0, case.phi < 0
    near = np.abs(case.phi) < 3.0
    image = nets.normalise(case.image[0], case.facts["polarity"] == "dark")
    row = {
        "dice": metrics.dice(inside, truth),
        "cl_dice": metrics.cl_dice(inside, truth),
        "calibration_error": metrics.calibration_error(result.values[near], truth[near]),
        "otsu_dice": metrics.dice(image > threshold_otsu(image), truth),
        "lumen_share": float(truth.mean()),
    }
    if inside.any() and not inside.all():
        row |= metrics.wall_errors(result.phi_mm, case.phi, 1.0)
        row |= metrics.coverage(result.phi_mm, case.phi, result.sigma_mm, 1.0)
    return row


def calibrate(model: Path, dims: int) -> dict[str, float]:
    """Fit temperature, sigma scale and power of weights whose card says one for all.

    The power is that of largest likelihood, the scale the one that covers best.
    """
    distance, inside, error, sigma = [], [], [], []
    for _, case in cases("train", dims):
        result = predict(case, model)
        near = np.abs(case.phi) < 3.0
        distance.append(result.phi_mm[near])
        inside.append(case.phi[near] < 0)
        if not (result.phi_mm < 0).any():
            continue
        wall = metrics.wall(result.phi_mm, 1.0)
        miss = np.abs(metrics.sample(case.phi.astype(float), wall.index))
        kept = miss < metrics.NEAR_VOXELS
        error.append(miss[kept])
        sigma.append(metrics.sample(result.sigma_mm.astype(float), wall.index)[kept])
    x, y = np.concatenate(distance).astype(float), np.concatenate(inside)
    e, s = np.concatenate(error), np.maximum(np.concatenate(sigma), SIGMA_FLOOR)

    def surprise(temperature: float) -> float:
        return float(np.mean(np.logaddexp(0.0, np.where(y, 2.0, -2.0) * temperature * x)))

    def unlikely(logs: NDArray[np.floating]) -> float:
        z = e * np.exp(-logs[0]) * s ** -logs[1]
        return float(np.mean(0.5 * z**2 + logs[0] + logs[1] * np.log(s)))

    def uncovered(scale: float) -> float:
        z = e / (scale * s**power)
        return sum((np.mean(z <= k) - special.erf(k / 2**0.5)) ** 2 for k in (1, 2))

    temperature = optimize.minimize_scalar(surprise, bounds=(0.2, 4.0), method="bounded").x
    power = float(optimize.minimize(unlikely, [0.0, 1.0], method="Nelder-Mead").x[1])
    scale = min(np.linspace(0.2, 3.0, 281), key=uncovered)
    found = {"temperature": temperature, "sigma_scale": scale, "sigma_power": power}
    return {name: round(float(value), 4) for name, value in found.items()}


def interval(values: NDArray[np.floating], of: Callable[..., Any] = np.nanmedian) -> list[float]:
    """Return value, lower and upper end of its 95 % bootstrap interval."""
    rng = np.random.default_rng(0)
    draws = of(values[rng.integers(0, len(values), (2000, len(values)))], axis=1)
    return [float(v) for v in (of(values), *np.nanpercentile(draws, (2.5, 97.5)))]


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return median and interval of every measure, over all volumes and by stratum."""
    groups: dict[str, list[dict[str, Any]]] = {"all": rows}
    groups["lumen > 3 %"] = [row for row in rows if row["lumen_share"] > 0.03]
    for row in rows:
        groups.setdefault(row["snr"], []).append(row)
        groups.setdefault(row["radius"], []).append(row)
    return {
        name: {"volumes": len(group)}
        | {m: interval(np.array([row.get(m, np.nan) for row in group])) for m in MEASURES}
        for name, group in groups.items()
    }


def table(groups: dict[str, Any]) -> str:
    """Render the summary as Markdown."""
    head = f"| stratum | volumes | {' | '.join(MEASURES)} |"
    lines = [head, "|" + "---|" * (len(MEASURES) + 2)]
    for name, group in groups.items():
        cells = ["{:.3f} ({:.3f}-{:.3f})".format(*group[m]) for m in MEASURES]
        lines.append(f"| {name} | {group['volumes']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Evaluate and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="checkpoint; default: the shipped one")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS)
    parser.add_argument("--dims", type=int, choices=(2, 3), default=3)
    arguments = parser.parse_args()
    rows = []
    for stratum, case in cases("heldout", arguments.dims):
        result = predict(case, arguments.model)
        rows.append({**stratum, "model": result.model_id, **case.facts, **stratum})
        rows[-1] |= measure(case, result)
        print(f"{len(rows)} {stratum} Dice {rows[-1]['dice']:.3f}", flush=True)
    groups = summary(rows)
    full = {"model": rows[0]["model"], "summary": groups, "rows": rows}
    stem = f"heldout-{arguments.dims}d"
    write_bytes(arguments.output / f"{stem}.json", (json.dumps(full) + "\n").encode())
    write_bytes(arguments.output / f"{stem}.md", table(groups).encode())
    print(table(groups))


if __name__ == "__main__":
    main()
