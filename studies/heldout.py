"""Judge the shipped weights on synthetic volumes that no training or choice has seen.

``python studies/heldout.py [--dims 2]`` writes ``results/heldout-3d.json`` and ``.md``: volumes of
64³ to 96³ over four noise levels and three vessel sizes, torus, helix and arch among the trees,
and as many speed and PC-MRA images as one noise level has. ``--draws 17`` (204 volumes and 51 of
flow; 15 minutes on one core) is the full list, the default of 4 a quarter of it, ``--quick`` one
volume of each class. Each is also refined, images of flow as such. Intervals are 95 % bootstrap
intervals of the median over volumes. ``calibrate`` fits temperature and standard deviation of
weights on a list of its own.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scenes import in_turn
from scipy import optimize
from skimage.filters import threshold_otsu

from vesselseg import metrics, nets, synth
from vesselseg.calibration import EXPLAINED, calibrated, shipped
from vesselseg.errors import InputError
from vesselseg.fields import Case, LevelSet, Probability, Volume
from vesselseg.grid import Grid
from vesselseg.infer import SIGMA_FLOOR, SegmentSettings, probability, segment
from vesselseg.io.atomic import write_bytes
from vesselseg.solvers.refine import refine
from vesselseg.solvers.settings import RefineSettings

SNRS = (3.0, 6.0, 12.0, 24.0)
RADII = {"thin 1.5-3": (1.5, 3.0), "medium 3-6": (3.0, 6.0), "wide 6-11": (6.0, 11.0)}
SIDES = (64, 80, 96, 64)
# Family -> seed; calibration uses the second.
LISTS: dict[str, int] = {"heldout": 9001, "train": 5001}
CALIBRATION_DRAWS = 4
RESULTS = Path(__file__).parent / "results"
MEASURES = (
    "dice", "near_mean_voxel", "near_p95_voxel", "bias_voxel", "normal_rms_deg", "false_share",
    "missed_share", "within_1_voxel_share", "within_1", "within_2", "cl_dice",
    "calibration_error", "otsu_dice", "refined_near_mean_voxel", "start_near_mean_voxel",
    "refined_within_1", "refined_within_2", "misfit",
)  # fmt: skip
LAGS = np.arange(0.0, 25.0)  # voxels: bins of the correlation along the wall
SAMPLED = 500  # wall points a volume, for the correlation

Strata = dict[str, str]
Draw = tuple[int, int, synth.SynthSettings]  # what ``synth.case`` takes
Family = Literal["train", "heldout"]

MISFITS = {
    "misfit up to 1.5": EXPLAINED,
    "misfit 1.5-4": 4.0,
    "misfit above 4": math.inf,
}  # what the refinement says of a magnitude image
WANTED = (
    ("Dice", "dice", "0.90"),
    ("clDice", "cl_dice", "0.90"),
    ("false surface", "false_share", "0.10"),
    ("wall error, voxels", "near_mean_voxel", "0.28"),
    ("within 1 s.d.", "within_1", "0.66-0.70"),
    ("within 2 s.d.", "within_2", "0.93-0.97"),
    ("calibration error", "calibration_error", "0.03"),
    ("start, voxels", "start_near_mean_voxel", ""),
    ("refined, voxels", "refined_near_mean_voxel", "half"),
    ("within 1 s.d., refined", "refined_within_1", "0.66-0.70"),
    ("within 2 s.d., refined", "refined_within_2", "0.93-0.97"),
)
ORDER = (
    "all", "lumen > 3 %", "SNR 3", "SNR 6", "SNR 12", "SNR 24", *RADII, "cubic voxels",
    "anisotropy 1-2", "anisotropy 2-4", "no distractors", "1-2 distractors", "3-5 distractors",
    "bright blood", "dark blood", *MISFITS, "speed images", "angiogram images",
)  # fmt: skip
INTERVALS = ("all", "lumen > 3 %")  # classes shown with theirs


def listed(
    family: Family, dims: int, draws: int, seed: int | None = None
) -> Iterator[tuple[Strata, Draw]]:
    """Yield the stratum and the draw of every volume, or image, of a list of magnitude images."""
    first = LISTS[family] if seed is None else seed
    for number, (snr, name) in enumerate(itertools.product(SNRS, RADII)):
        for draw in range(draws):
            settings = synth.SynthSettings(
                shape=(SIDES[draw % len(SIDES)],) * dims,
                family=family,
                snr=(snr, snr),
                radius=RADII[name],
                empty=0.0,
                flow=0.0,
            )
            strata = {"snr": f"SNR {snr:g}", "radius": name, "list": "magnitude"}
            yield strata, (first + number, 2 * draw, settings)


def cases(
    family: Family, dims: int, draws: int, seed: int | None = None
) -> Iterator[tuple[Strata, Case]]:
    """Yield the stratum and the case of every volume of a list."""
    for strata, draw in listed(family, dims, draws, seed):
        yield strata, synth.case(*draw)


def listed_flow(dims: int, draws: int) -> Iterator[tuple[Strata, Draw]]:
    """Yield the draws of speed and PC-MRA images of the held-out family."""
    for number, radius in enumerate(RADII.values()):
        for draw in range(draws):
            settings = synth.SynthSettings(
                shape=(SIDES[draw % len(SIDES)],) * dims,
                family="heldout",
                radius=radius,
                empty=0.0,
                flow=1.0,
            )
            yield {"list": "flow"}, (LISTS["heldout"] + 100 + number, 2 * draw, settings)


def classes(case: Case, strata: Strata) -> list[str]:
    """Return the names of the groups that a case counts in."""
    if strata["list"] != "magnitude":
        return [f"{strata['list']} images"]
    facts = case.facts
    ratio, count = facts["anisotropy"], facts["distractors"]
    groups = ["all", *(["lumen > 3 %"] if facts["lumen_share"] > 0.03 else [])]
    groups += [strata["snr"], strata["radius"]]
    groups.append("cubic voxels" if ratio == 1 else f"anisotropy {'1-2' if ratio < 2 else '2-4'}")
    number = "no" if count == 0 else "1-2" if count < 3 else "3-5"
    return [*groups, f"{number} distractors", f"{facts['polarity']} blood"]


def image_of(case: Case) -> Volume:
    """Return the image on a grid of 1 mm voxels."""
    return Volume(case.image[0], Grid.from_spacing(case.phi.shape, 1.0))


def predict(case: Case, model: Path | None, accurate: bool = False) -> Probability:
    """Segment a case."""
    settings = SegmentSettings(polarity=case.facts["polarity"], accurate=accurate)
    return segment(image_of(case), model, settings)


def measure(case: Case, result: Probability) -> dict[str, float]:
    """Return the measures of one volume; nan where there is no wall to compare."""
    if result.phi_mm is None or result.sigma_mm is None:
        raise SystemExit("the network gives no distance")
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


def refined(case: Case, result: Probability) -> dict[str, float]:
    """Return error near the wall before and after the refinement by the image, and its coverage."""
    magnitude = case.facts["image"] == "magnitude"
    settings = RefineSettings(profile="lumen" if magnitude else "flow")
    try:
        found = refine(LevelSet.from_probability(result), image_of(case), settings)
    except InputError:
        return {}
    phi = found.level_set.phi_mm
    if result.phi_mm is None or not phi.min() < 0 < phi.max():
        return {}
    if magnitude and result.model_id == shipped().model_id:
        found = calibrated(found)
    both = {"start": result.phi_mm, "refined": phi}
    errors = {
        f"{name}_near_mean_voxel": metrics.wall_errors(one, case.phi, 1.0)["near_mean_voxel"]
        for name, one in both.items()
    }
    covered = metrics.coverage(phi, case.phi, found.sigma_mm, 1.0)
    return (
        errors
        | {f"refined_{name}": covered[name] for name in ("within_1", "within_2")}
        | {"misfit": found.estimates["misfit"]}
    )


def errors_at_wall(case: Case, result: Probability) -> tuple[NDArray[Any], ...]:
    """Return position, signed error and s.d. at the predicted wall points near a true one."""
    assert result.phi_mm is not None and result.sigma_mm is not None
    wall = metrics.wall(result.phi_mm, 1.0)
    miss = metrics.sample(case.phi.astype(float), wall.index)
    sigma = metrics.sample(result.sigma_mm.astype(float), wall.index)
    kept = np.abs(miss) < metrics.NEAR_VOXELS
    return wall.index[kept], miss[kept], sigma[kept]


def correlation_length(walls: list[tuple[NDArray[Any], NDArray[Any]]]) -> float:
    """Return the distance in voxels at which the correlation of the wall's error is 1/e.

    Pairs of points of one volume, binned by their distance; the error over its s.d.
    """
    rng = np.random.default_rng(0)
    product, count = np.zeros(len(LAGS)), np.zeros(len(LAGS))
    for index, z in walls:
        some = rng.permutation(len(z))[:SAMPLED]
        gap = np.linalg.norm(index[some, None] - index[None, some], axis=-1)
        which = np.round(gap).astype(int)
        use = which < len(LAGS)
        both = z[some, None] * z[None, some]
        product += np.bincount(which[use], both[use], len(LAGS))
        count += np.bincount(which[use], minlength=len(LAGS))
    share = product / np.maximum(count, 1)
    share /= share[0]
    below = np.flatnonzero(share < np.exp(-1.0))
    if not len(below):
        return float(LAGS[-1])
    k = int(below[0])
    part = (share[k - 1] - np.exp(-1.0)) / (share[k - 1] - share[k])
    return float(LAGS[k - 1] + part)


def calibrate(model: Path, dims: int) -> dict[str, Any]:
    """Fit the calibration of weights whose card says one for all.

    Returns
    -------
    dict
        ``temperature``, that of least calibration error, mean over volumes;
        ``sigma_power``, that of largest likelihood, and ``sigma_scale``, the one that covers best;
        ``correlation_voxels`` of the error along the wall; ``classes``, by noise and blur: what
        the scale would have to be times there.
    """
    distance, inside, error, sigma, walls, names = [], [], [], [], [], []
    for strata, case in cases("train", dims, CALIBRATION_DRAWS):
        result = predict(case, model)
        if result.phi_mm is None or not (result.phi_mm < 0).any():
            continue
        near = np.abs(case.phi) < 3.0
        index, miss, spread = errors_at_wall(case, result)
        if not len(miss) or not near.any():
            continue
        distance.append(result.phi_mm[near])
        inside.append(case.phi[near] < 0)
        error.append(np.abs(miss))
        sigma.append(np.maximum(spread, SIGMA_FLOOR))
        walls.append((index, miss))
        blur = "blur < 0.7" if case.facts["psf"] < 0.7 else "blur > 0.7"
        names.append(f"{strata['snr']}, {blur} voxel")
    e, s = np.concatenate(error), np.concatenate(sigma)

    def uncalibrated(temperature: float) -> float:
        pairs = zip(distance, inside, strict=True)
        return float(
            np.mean([metrics.calibration_error(probability(x, temperature), y) for x, y in pairs])
        )

    def unlikely(logs: NDArray[np.floating]) -> float:
        z = e * np.exp(-logs[0]) * s ** -logs[1]
        return float(np.mean(0.5 * z**2 + logs[0] + logs[1] * np.log(s)))

    def best_scale(error: NDArray[np.floating], shape: NDArray[np.floating]) -> float:
        def uncovered(scale: float) -> float:
            z = error / (scale * shape)
            return sum((float(np.mean(z <= k)) - math.erf(k / 2**0.5)) ** 2 for k in (1.0, 2.0))

        return float(min(np.linspace(0.2, 3.0, 281), key=uncovered))

    temperature = min(np.geomspace(0.3, 4.0, 40), key=uncalibrated)
    power = float(optimize.minimize(unlikely, [0.0, 1.0], method="Nelder-Mead").x[1])
    scale = best_scale(e, s**power)
    factors = {}
    for name in sorted(set(names)):
        own = [k for k, n in enumerate(names) if n == name]
        shape = np.concatenate([sigma[k] for k in own]) ** power
        factors[name] = round(best_scale(np.concatenate([error[k] for k in own]), shape) / scale, 3)
    fitted = {"temperature": temperature, "sigma_scale": scale, "sigma_power": power}
    scaled = [(i, m / (scale * v**power)) for (i, m), v in zip(walls, sigma, strict=True)]
    fitted["correlation_voxels"] = correlation_length(scaled)
    return {k: round(float(v), 4) for k, v in fitted.items()} | {"classes": factors}


def interval(values: NDArray[np.floating], of: Callable[..., Any] = np.nanmedian) -> list[float]:
    """Return value, lower and upper end of its 95 % bootstrap interval; nan of nothing."""
    if not np.isfinite(values).any():
        return [float("nan")] * 3
    values = values[np.isfinite(values)]
    rng = np.random.default_rng(0)
    draws = of(values[rng.integers(0, len(values), (2000, len(values)))], axis=1)
    return [float(v) for v in (of(values), *np.nanpercentile(draws, (2.5, 97.5)))]


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return median and interval of every measure, by group."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        for name in row["groups"]:
            groups.setdefault(name, []).append(row)
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
    return "\n".join(lines).replace("nan (nan-nan)", "-") + "\n"


def asked(groups: dict[str, Any]) -> list[dict[str, str]]:
    """Return the medians that are wanted of a network, by class, for the documentation."""
    rows = [{"volumes": "wanted", "number": "200", **{title: goal for title, _, goal in WANTED}}]
    for name in (n for n in ORDER if n in groups):
        form = "{:.2f} ({:.2f}-{:.2f})" if name in INTERVALS else "{:.2f}"
        cells = {title: form.format(*groups[name][key]) for title, key, _ in WANTED}
        cells = {title: "-" if "nan" in cell else cell for title, cell in cells.items()}
        rows.append({"volumes": name, "number": str(groups[name]["volumes"]), **cells})
    return rows


def judged(job: tuple[Strata, Draw, Path | None, bool]) -> dict[str, Any]:
    """Segment and refine one volume and return its row."""
    strata, draw, model, accurate = job
    case = synth.case(*draw)
    if strata["list"] != "magnitude":
        strata = {"list": str(case.facts["image"])}
    result = predict(case, model, accurate)
    row = {"model": result.model_id, "groups": classes(case, strata), **case.facts, **strata}
    row |= measure(case, result)
    if case.phi.ndim == 3:
        row |= refined(case, result)
    if "misfit" in row and strata["list"] == "magnitude":
        row["groups"].append(next(name for name, most in MISFITS.items() if row["misfit"] <= most))
    return row


def main() -> None:
    """Evaluate and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="checkpoint; default: the shipped one")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS)
    parser.add_argument("--dims", type=int, choices=(2, 3), default=3)
    parser.add_argument("--draws", type=int, default=4, help="volumes of each class")
    parser.add_argument("--quick", action="store_true", help="one volume of each class")
    parser.add_argument("--accurate", action="store_true", help="with all flips")
    arguments = parser.parse_args()
    draws = 1 if arguments.quick else arguments.draws
    dims, given = arguments.dims, (arguments.model, arguments.accurate)
    both = itertools.chain(listed("heldout", dims, draws), listed_flow(dims, draws))
    rows = []
    for row in in_turn(judged, [(*one, *given) for one in both]):
        rows.append(row)
        print(f"{len(rows)} {row['groups']} Dice {row['dice']:.3f}", flush=True)
    groups = summary(rows)
    full = {"model": rows[0]["model"], "table": asked(groups), "summary": groups, "rows": rows}
    stem = f"heldout-{dims}d"
    write_bytes(arguments.output / f"{stem}.json", (json.dumps(full) + "\n").encode())
    write_bytes(arguments.output / f"{stem}.md", table(groups).encode())
    print(table(groups))


if __name__ == "__main__":
    main()
