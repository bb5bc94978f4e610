"""What do half turns, flips and a second network bring? ``python studies/averaging.py``.

Runs the shipped network once, over the half turns and over all flips, and each ``--model`` beside
it, alone and two at a time, on volumes like the held-out ones, but of the family of the training
and of seeds of their own, and on clean phantoms at SNR 6 and without noise. It writes
``results/averaging.json``: medians and means over the volumes, the wall error paired with that of
the shipped network run once. ``--quick``: one volume of each class.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from heldout import RESULTS, cases, image_of, measure
from scenes import Scene

from vesselseg import metrics
from vesselseg.fields import Case, Probability, Volume
from vesselseg.infer import SegmentSettings, segment
from vesselseg.io.atomic import write_bytes
from vesselseg.nets import checkpoint

SEED = 7001  # neither trained nor calibrated on, nor held out
DRAWS = 3
SHAPES, RADII, SNRS = ("bifurcation", "curved_tube", "helix"), (2.0, 3.0, 4.0, 6.0), (6.0, 1e4)
SHOWN = {
    "Dice": "dice",
    "clDice": "cl_dice",
    "false surface": "false_share",
    "missed surface": "missed_share",
    "wall error, voxels": "near_mean_voxel",
    "within 2 s.d.": "within_2",
}


@dataclass(frozen=True)
class Way:
    """One way to segment: networks whose walls are averaged, over half turns or all flips."""

    name: str
    models: tuple[Path, ...]
    accurate: bool = False

    def __call__(self, volume: Volume, polarity: Any) -> Probability:
        """Return the mean wall; its variance is the mean one plus that of the members."""
        settings = SegmentSettings(polarity=polarity, accurate=self.accurate)
        found: list[Any] = [segment(volume, model, settings) for model in self.models]
        first: Probability = found[0]
        if len(found) == 1:
            return first
        phi = np.mean([each.phi_mm for each in found], axis=0)
        spread = np.var([each.phi_mm for each in found], axis=0)
        variance = np.mean([np.square(each.sigma_mm) for each in found], axis=0) + spread
        values = np.mean([each.values for each in found], axis=0)
        return replace(first, values=values, phi_mm=phi, sigma_mm=np.sqrt(variance))


def ways(others: list[Path], folder: Path) -> Iterator[Way]:
    """Yield what is compared; copies of the weights that mean half turns lie in a folder."""

    def copy(model: Path, name: str, turns: bool) -> Path:
        read = checkpoint.load(model)
        return checkpoint.save(folder / name, read.tensors, read.card | {"half_turns": turns})

    once = copy(checkpoint.shipped(3), "once", turns=False)
    yield Way("shipped, once", (once,))
    yield Way("shipped, all flips", (once,), accurate=True)
    names = ["shipped", *(f"other {number}" for number in range(1, len(others) + 1))]
    models = zip([checkpoint.shipped(3), *others], names, strict=True)
    turned = {name: copy(model, name, turns=True) for model, name in models}
    for count in (1, 2):
        for chosen in itertools.combinations(names, count):
            name = f"{' and '.join(chosen)}, half turns"
            yield Way(name, tuple(turned[each] for each in chosen))


def on_volumes(way: Way, volumes: list[Case]) -> list[dict[str, float]]:
    """Return the measures of every volume."""
    rows = []
    for case in volumes:
        start = time.process_time()
        result = way(image_of(case), case.facts["polarity"])
        seconds = time.process_time() - start
        rows.append(measure(case, result) | {"seconds": seconds})
    return rows


def on_phantoms(way: Way) -> dict[str, float]:
    """Return the r.m.s. error of the wall, mean over the phantoms of each noise level."""
    errors: dict[str, list[float]] = {}
    for shape, radius, snr in itertools.product(SHAPES, RADII, SNRS):
        scene = Scene(shape, radius, snr, 1)
        volume = scene.image()
        wall = way(volume, "bright").phi_mm
        assert wall is not None
        name = "clean, SNR 6" if snr == SNRS[0] else "clean, no noise"
        found = metrics.wall_errors(wall, scene.truth(), volume.grid)
        errors.setdefault(name, []).append(found["rms_voxel"])
    return {name: float(np.mean(values)) for name, values in errors.items()}


def row_of(
    way: Way, rows: list[dict[str, float]], first: list[dict[str, float]], clean: dict[str, float]
) -> dict[str, Any]:
    """Return a row of the table: median / mean over the volumes."""

    def values(found: list[dict[str, float]], name: str) -> np.ndarray:
        return np.array([row.get(name, np.nan) for row in found])

    cells = {}
    for title, name in SHOWN.items():
        v = values(rows, name)
        cells[title] = f"{np.nanmedian(v):.3f} / {np.nanmean(v):.3f}"
    ratio = np.log(values(rows, "near_mean_voxel") / values(first, "near_mean_voxel"))
    return {
        "way": way.name,
        **cells,
        "wall error, paired": f"{100 * (np.exp(np.nanmedian(ratio)) - 1):+.1f} %",
        **{title: f"{value:.3f}" for title, value in clean.items()},
        "CPU seconds": f"{np.median(values(rows, 'seconds')):.2f}",
    }


def main() -> None:
    """Compare and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, action="append", default=[], help="another network")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS)
    parser.add_argument("--quick", action="store_true", help="one volume of each class")
    arguments = parser.parse_args()
    draws = 1 if arguments.quick else DRAWS
    volumes = [case for _, case in cases("train", 3, draws, SEED)]
    table, full = [], {}
    with tempfile.TemporaryDirectory() as folder:
        for way in ways(arguments.model, Path(folder)):
            rows = on_volumes(way, volumes)
            full[way.name] = rows
            table.append(row_of(way, rows, next(iter(full.values())), on_phantoms(way)))
            print(table[-1], flush=True)
    text = json.dumps({"volumes": len(volumes), "table": table, "rows": full}) + "\n"
    write_bytes(arguments.output / "averaging.json", text.encode())


if __name__ == "__main__":
    main()
