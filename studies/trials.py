"""What the comparisons of networks share: small equal trainings, one held-out list, a table.

Data: random images of 64 x 64 pixels of the training family; judged on images of the held-out
family. A trial whose result is in the file is not run again, so an interrupted study goes on.
"""

from __future__ import annotations

import argparse
import functools
import json
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch

from vesselseg import metrics, nets, synth
from vesselseg.config import build
from vesselseg.dataset import subset
from vesselseg.dataset.folder import Item
from vesselseg.errors import NoInterfaceError
from vesselseg.fields import Case
from vesselseg.io.atomic import write_bytes
from vesselseg.nets import checkpoint
from vesselseg.training import TrainConfig, fit

RESULTS = Path(__file__).parent / "results"
SIDE = 64
JUDGED = 48
SEEDS = {"train": 11, "heldout": 9101}
MEASURES = ("dice", "iou", "wall_voxel", "hd95_voxel", "cl_dice")


@dataclass(frozen=True)
class Pool:
    """A finite set of synthetic images as a case source: index modulo its size.

    Of the set ``share`` may be kept: the hardest and most different images.
    """

    size: int
    share: float = 1.0

    @functools.cached_property
    def kept(self) -> list[int]:
        """Numbers of the images."""
        if self.share == 1:
            return list(range(self.size))
        return subset.choose(
            [item(drawn("train", SEEDS["train"], n)) for n in range(self.size)], self.share
        )

    def __call__(self, seed: int, index: int) -> Case:
        """Return an image of the pool, or, for the seed of validation, of another one."""
        number = self.kept[index % len(self.kept)]
        return drawn("train", SEEDS["train"] + seed // 1_000_003, number)


def item(case: Case) -> Item:
    """Return a case as a file of a folder would be read."""
    image = np.stack([nets.normalise(c, case.facts["polarity"] == "dark") for c in case.image])
    labels = (case.phi < 0).astype(np.uint8)
    return Item(image, case.phi, case.centreline, labels, case.phi, (1.0,) * case.phi.ndim)


@functools.lru_cache(maxsize=2048)
def drawn(family: str, seed: int, index: int) -> Case:
    """Draw an image once."""
    empty = 0.0 if family == "heldout" else 0.03
    settings = build(synth.SynthSettings, {"shape": (SIDE, SIDE), "family": family, "empty": empty})
    return synth.case(seed, 2 * index, settings)


def trial(changes: Mapping[str, Any], pool: Pool, seed: int) -> dict[str, float]:
    """Train a network on a pool of images and judge it; return its row."""
    config = build(TrainConfig, {**BASE, **changes, "seed": seed})
    for index in range(len(pool.kept)):
        pool(seed, index)  # drawn before the clock starts
    clock = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        made = fit(config, pool, Path(folder))
        net = checkpoint.network(checkpoint.load(made))
    row = {"cpu_s": time.process_time() - clock}
    row["parameters"] = float(sum(p.numel() for p in net.parameters()))
    return row | judged(net)


BASE = {
    "dims": 2,
    "distance": False,
    "losses": {"bce_dice": 1.0},
    "batch": 8,
    "lr": 1e-3,
    "beta2": 0.999,
    "ema": 0.98,
    "validate_every": 10**6,
    "validation_cases": 1,
    "save_minutes": 1e6,
}


@torch.inference_mode()
def judged(net: torch.nn.Module) -> dict[str, float]:
    """Return the medians over the held-out list, and the CPU seconds an image takes."""
    rows, clock = [], 0.0
    for index in range(JUDGED):
        case = drawn("heldout", SEEDS["heldout"], index)
        image = nets.normalise(case.image[0], case.facts["polarity"] == "dark")
        start = time.process_time()
        logit = nets.heads(net(torch.from_numpy(image)[None, None])).logit
        clock += time.process_time() - start
        rows.append(scores(-nets.lumen_logit(logit)[0].numpy().astype(float), case.phi))
    means = {name: float(np.nanmean([r[name] for r in rows])) for name in ("dice", "iou")}
    rest = {n: float(np.nanmedian([r[n] for r in rows])) for n in MEASURES if n not in means}
    return {**means, **rest, "s_per_image": clock / JUDGED}


def scores(level: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Return the measures of one image; nan where there is no wall to compare."""
    inside, true = level < 0, truth < 0
    row = {name: float("nan") for name in MEASURES}
    row |= {"dice": metrics.dice(inside, true), "iou": metrics.iou(inside, true)}
    row["cl_dice"] = metrics.cl_dice(inside, true)
    try:
        found = metrics.wall_errors(level, truth.astype(float), 1.0)
    except NoInterfaceError:
        return row
    return row | {"wall_voxel": found["near_mean_voxel"], "hd95_voxel": found["p95_voxel"]}


@dataclass(frozen=True)
class Study:
    """A table of trials: name -> (changes of the settings, pool or its size)."""

    name: str
    trials: Mapping[str, tuple[Mapping[str, Any], int | Pool]]
    note: str

    def run(self, steps: int, seeds: Iterable[int], file: Path) -> dict[str, Any]:
        """Run what is not in the file yet, storing after each trial."""
        kept = json.loads(file.read_text()) if file.is_file() else {}
        rows: dict[str, dict[str, float]] = (
            kept.get("rows", {}) if kept.get("steps") == steps else {}
        )
        for seed in seeds:
            for name, (changes, size) in self.trials.items():
                key = f"{name}/{seed}"
                if key in rows:
                    continue
                length = {} if {"steps", "epochs"} & changes.keys() else {"steps": steps}
                pool = size if isinstance(size, Pool) else Pool(size)
                rows[key] = trial({**length, **changes}, pool, seed)
                print(f"{key:<36} Dice {rows[key]['dice']:.3f}  {rows[key]['cpu_s']:.0f} CPU s")
                write_bytes(file, self.text(rows, steps))
        write_bytes(file, self.text(rows, steps))
        return {"rows": rows}

    def text(self, rows: dict[str, dict[str, float]], steps: int) -> bytes:
        """Return the result file: the table of means over seeds, and every trial."""
        found = {"note": self.note, "steps": steps, "table": self.table(rows), "rows": rows}
        return (json.dumps(found, indent=1) + "\n").encode()

    def table(self, rows: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
        """Return one row a trial: mean and s.d. over seeds."""
        lines = []
        for name in self.trials:
            mine = [row for key, row in rows.items() if key.rpartition("/")[0] == name]
            if not mine:
                continue
            mean = {k: float(np.mean([r[k] for r in mine])) for k in mine[0]}
            spread = float(np.std([r["dice"] for r in mine], ddof=1)) if len(mine) > 1 else None
            lines.append({
                "trial": name,
                "Dice": mean["dice"],
                "s.d.": "" if spread is None else f"{spread:.3f}",
                "IoU": mean["iou"],
                "wall, voxel": mean["wall_voxel"],
                "HD95, voxel": mean["hd95_voxel"],
                "clDice": mean["cl_dice"],
                "parameters": f"{mean['parameters'] / 1e6:.2f} M",
                "training, CPU s": round(mean["cpu_s"]),
                "ms an image": round(1e3 * mean["s_per_image"], 1),
                "seeds": len(mine),
            })  # fmt: skip
        return lines


def picture(table: list[dict[str, Any]], title: str) -> bytes:
    """Draw Dice and wall error of every trial."""
    import io

    from matplotlib.figure import Figure

    figure = Figure((8, 0.6 + 0.28 * len(table)), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    names = [row["trial"] for row in table][::-1]
    for panel, key in zip(panels, ("Dice", "wall, voxel"), strict=True):
        values = [row[key] for row in table][::-1]
        error = [float(row["s.d."] or 0.0) if key == "Dice" else 0.0 for row in table][::-1]
        panel.barh(names, values, xerr=error, color="#4878a8", error_kw={"lw": 1})
        panel.set_xlabel(key)
    figure.suptitle(title, fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def main(study: Study, steps: int, seeds: int, extra: Callable[[Any], str] | None = None) -> None:
    """Run a study from the command line; ``--quick`` leaves the results alone."""
    parser = argparse.ArgumentParser(description=study.note)
    parser.add_argument("--quick", action="store_true", help="a few steps, nothing is kept")
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--seeds", type=int, default=seeds)
    parser.add_argument("--only", default="", help="trials whose name holds this")
    given = parser.parse_args()
    torch.set_num_threads(1)  # waiting threads would count as work
    numba.set_num_threads(1)
    if given.only:
        trials = {n: t for n, t in study.trials.items() if given.only in n}
        study = Study(study.name, trials, study.note)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) if given.quick else RESULTS
        if given.quick:
            short = {
                n: ({**c, "steps": 2, "epochs": None}, Pool(8, getattr(pool, "share", 1.0)))
                for n, (c, pool) in study.trials.items()
            }
            study = Study(study.name, short, study.note)
        file = home / f"{study.name}.json"
        study.run(given.steps, range(1 if given.quick else given.seeds), file)
        table = json.loads(file.read_text())["table"]
        write_bytes(home / f"{study.name}.png", picture(table, study.note))
    for row in table:
        print(json.dumps(row))
    if extra is not None:
        print(extra(table))
