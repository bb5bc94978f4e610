"""Many cases: each compared with its truth, in a table and three pictures."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config import build
from ..dataset import folder as layout
from ..errors import DataError
from ..fields import Probability, Progress, Volume, silent
from ..grid import Grid
from ..io.atomic import check_folder, write_bytes
from ..io.choices import Choices
from ..io.volume import FORMATS, base_name, read_field
from ..synth.cases import SynthSettings, case
from . import shift
from .compare import Result, compare, evaluate, understood

PathLike = str | os.PathLike[str]
Predict = Callable[[Volume, Sequence[Volume]], Probability]  # the scan and its other channels
Judged = tuple[str, Volume | None, Result, Result, Grid]

HELD_OUT_SEED = 9501


@dataclass(frozen=True, eq=False)
class Shown:
    """One slice through the widest part of the truth."""

    name: str
    image: NDArray[np.floating]
    truth: NDArray[np.floating]
    found: NDArray[np.floating]


@dataclass(frozen=True, eq=False)
class Scores:
    """What ``evaluate_cases`` found.

    Parameters
    ----------
    rows : list of dict
        One a case: ``case`` and flat measures, None where a wall is missing.
    details : list of dict
        The full comparison of each case, see ``evaluate``.
    shown : list of Shown
        Slices of the best, the median and the worst case by Dice.
    looks : list of dict
        What each scan with a lumen looks like, see ``shift.look``.
    dims : int
    """

    rows: list[dict[str, Any]]
    details: list[dict[str, Any]]
    shown: list[Shown]
    looks: list[shift.Look] = field(default_factory=list)
    dims: int = 3

    @property
    def summary(self) -> dict[str, Any]:
        """Mean, median, least and largest value of every measure, and how many cases have it."""
        found = {}
        for name in dict.fromkeys(key for row in self.rows for key in row if key != "case"):
            values = [row[name] for row in self.rows if row.get(name) is not None]
            if values:
                middle = {"mean": float(np.mean(values)), "median": float(np.median(values))}
                ends = {"min": float(min(values)), "max": float(max(values))}
                found[name] = {**middle, **ends, "cases": len(values)}
        return found

    def write(self, output: PathLike) -> Path:
        """Write ``cases.json``, ``.csv`` and ``.png``, ``calibration.png`` and ``shift.csv``."""
        from . import picture

        folder = check_folder(output)
        held = {"summary": self.summary, "cases": self.rows, "details": self.details}
        write_bytes(folder / "cases.json", (json.dumps(held, indent=1) + "\n").encode())
        write_bytes(folder / "cases.csv", as_csv(self.rows))
        if self.looks:
            found = shift.table(self.looks, shift.reference(self.dims))
            write_bytes(folder / "shift.csv", as_csv(found))
        if self.shown:
            write_bytes(folder / "cases.png", picture.cases(self.shown))
        curves = picture.calibration(self.details)
        if curves:
            write_bytes(folder / "calibration.png", curves)
        return folder


def as_csv(rows: Sequence[dict[str, Any]]) -> bytes:
    """Return rows as a CSV file."""
    text = io.StringIO()
    names = list(dict.fromkeys(key for row in rows for key in row))
    table = csv.DictWriter(text, names, lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return text.getvalue().encode()


def evaluate_folder(predictions: PathLike, truths: PathLike) -> Scores:
    """Compare the files of two folders by their names; a truth may end in ``_mask``.

    Raises
    ------
    DataError
        If a file has no partner, or see ``evaluate``.
    """
    guesses, true = images(Path(predictions)), images(Path(truths))
    alone = sorted(guesses.keys() ^ true.keys())
    if alone:
        where = {**true, **guesses}[alone[0]]
        fault = f"{len(alone)} files without a partner"
        raise DataError(fault, path=where, remedy="give prediction and truth one name")
    details = [evaluate(guesses[name], true[name]) for name in sorted(true)]
    rows = [flat(name, found) for name, found in zip(sorted(true), details, strict=True)]

    def slice_of(number: int) -> Shown:
        name = sorted(true)[number]
        values, grid, _ = read_field(true[name], Choices(), unit_spacing=True)
        guess, _, _ = read_field(guesses[name], Choices(), unit_spacing=True)
        pair = understood(guess, guesses[name]), understood(values, true[name])
        return shown(name, None, *pair, grid)

    return Scores(rows, details, [slice_of(n) for n in best_median_worst(rows)])


def images(folder: Path) -> dict[str, Path]:
    """Return the images of a folder by name."""
    if not folder.is_dir():
        raise DataError("no such folder", path=folder, need="a folder beside a folder")
    files = [
        f for f in sorted(folder.iterdir()) if any(f.name.lower().endswith(s) for s in FORMATS)
    ]
    if not files:
        raise DataError("no images in the folder", path=folder)
    return {base_name(f).removesuffix(layout.TAIL): f for f in files}


def folder_cases(
    folder: PathLike,
    predict: Predict,
    channels: int = 1,
    classes: int = 1,
    lumen_classes: tuple[int, ...] | None = None,
) -> Iterator[Judged]:
    """Yield scans of ``folder/magn`` (or ``folder/val/magn``) as predicted, with their masks."""
    root = Path(folder)
    if not (root / layout.IMAGES).is_dir() and (root / "val").is_dir():
        root = root / "val"
    for pair in layout.pairs(root):
        item = layout.load(pair, channels, classes)
        fields, grid, raw = layout.read_image(pair.image, channels)
        volume, *more = (Volume(f, grid, pair.stem, raw.sha256, raw.notes) for f in fields)
        level = item.level
        if lumen_classes is not None:
            level = np.where(np.isin(item.labels, lumen_classes), -0.5, 0.5)
        truth = Result(item.labels.astype(np.int64), level)
        yield pair.stem, volume, of_probability(predict(volume, more)), truth, grid


def synthetic_cases(dims: int, count: int, predict: Predict, channels: int = 1) -> Iterator[Judged]:
    """Yield held-out synthetic scans as predicted, with their exact walls."""
    shape = (shift.SIDES[dims],) * dims
    facts = {"shape": shape, "family": "heldout", "empty": 0.0, "channels": channels}
    settings = build(SynthSettings, facts)
    for index in range(count):
        drawn = case(HELD_OUT_SEED, 2 * index, settings)
        grid, name = Grid.from_spacing(drawn.phi.shape, 1.0), f"heldout-{index:03d}"
        sign = -1 if drawn.facts["polarity"] == "dark" else 1
        volume, *more = (Volume(sign * image, grid, name) for image in drawn.image)
        truth = Result((drawn.phi < 0).astype(np.int64), drawn.phi)
        yield name, volume, of_probability(predict(volume, more)), truth, grid


def of_probability(found: Probability) -> Result:
    """Return what a probability says: its own distance and classes where it has them."""
    level = found.phi_mm
    if level is None:
        level = understood(np.asarray(found.values), found.model_id).level
    labels = (found.values > 0.5) if found.labels is None else found.labels
    return Result(labels.astype(np.int64), level, found.values, found.sigma_mm)


def evaluate_cases(cases: Iterable[Judged], count: int = 0, progress: Progress = silent) -> Scores:
    """Compare each case with its truth."""
    rows, details, slices, looks, dims = [], [], [], [], 3
    for number, (name, volume, pred, true, grid) in enumerate(cases, 1):
        found = compare(pred, true, grid)
        details.append(found)
        rows.append(flat(name, found))
        slices.append(shown(name, volume, pred, true, grid))
        if volume is not None and (seen := shift.look(volume.values, true.level < 0, grid)):
            looks.append(seen)
        dims = grid.ndim
        progress("evaluate", number / max(count, number), f"{name}: Dice {found['dice']:.3f}")
    return Scores(rows, details, [slices[n] for n in best_median_worst(rows)], looks, dims)


def flat(name: str, found: dict[str, Any]) -> dict[str, Any]:
    """Return the measures of a comparison as one row."""
    row: dict[str, Any] = {"case": name}
    row |= {key: found[key] for key in ("dice", "iou", "cl_dice", "mean_dice", "mean_iou")}
    wall, radius = found["wall"] or {}, found["radius"] or {}
    row |= {"assd_mm": wall.get("mean_mm"), "hd95_mm": wall.get("p95_mm")}
    for key in ("near_mean_voxel", "bias_voxel", "false_share", "missed_share"):
        row[f"wall_{key}"] = wall.get(key)
    row |= {f"radius_{key}": radius.get(key) for key in ("mean_mm", "bias_mm")}
    for who, counts in found["topology"].items():
        row |= {f"{key}_{who}": value for key, value in counts.items()}
    for number, both in found["classes"].items():
        row |= {f"dice_{number}": both["dice"], f"iou_{number}": both["iou"]}
    if "calibration" in found:
        row["ece"] = found["calibration"]["ece"]
    row |= {f"coverage_{key}": value for key, value in found.get("coverage", {}).items()}
    return row


def best_median_worst(rows: list[dict[str, Any]]) -> list[int]:
    """Return the indices of three cases by Dice, fewer if there are fewer."""
    order = sorted(range(len(rows)), key=lambda n: -rows[n]["dice"])
    return [order[n] for n in dict.fromkeys((0, len(order) // 2, len(order) - 1))]


def shown(name: str, volume: Volume | None, pred: Result, true: Result, grid: Grid) -> Shown:
    """Return the slice across the coarsest axis that holds most of the truth."""
    image = true.labels.astype(float) if volume is None else volume.values
    arrays = [np.asarray(a, dtype=float) for a in (image, true.level, pred.level)]
    if true.labels.ndim == 3:
        axis = int(np.argmax(grid.spacing_mm))
        others = tuple(a for a in range(3) if a != axis)
        index = int((true.labels > 0).sum(others).argmax())
        arrays = [a.take(index, axis) for a in arrays]
    return Shown(name, *arrays)
