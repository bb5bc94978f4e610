"""Train the weights that the package ships.

``python studies/train_shipped.py -o DIR`` (3-D, about three hours on one core) and ``--dims 2``.
Runs of the one training loop, each from the best weights of the one before: small patches at a
high rate, then larger ones, for the context that tells vessels from their neighbours, at a falling
rate, then all sizes, with cases of thin, medium or wide vessels alone among them, then these beside
clean single vessels; last, from the mean of the weights of these two phases, which is better than
either, images of speed and PC-MRA among all that. A phase that was stopped is resumed by the same
command; ``--prepare`` draws the cases ahead, or on another core meanwhile. ``--release`` then
calibrates the mean of that start and the last phase's best weights and stores it inside the
package, with the log and the learning curves under ``results``.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vesselseg import synth
from vesselseg.fields import Case
from vesselseg.io.atomic import write_bytes
from vesselseg.nets import checkpoint, losses
from vesselseg.training import VALIDATION_SEED, TrainConfig, fit

log = logging.getLogger("train_shipped")
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Source:
    """``count`` synthetic cases, in half precision, kept in a folder.

    Groups of four cases take the kinds in turn, in an order that shifts from round to round. A
    case is drawn where it is not in the folder yet: ``--prepare`` fills the folder ahead of the
    training, or beside it, and changes nothing but the time. Beyond ``count`` the cases come again,
    turned and flipped anew. The twins of a geometry go to different batches of two. Every other
    group is one of an earlier source, if there is one, with as many seeds less as it is ``ago``.
    """

    kinds: tuple[synth.SynthSettings, ...]
    folder: Path
    count: int
    earlier: Source | None = None
    ago: int = 0

    def __call__(self, seed: int, index: int) -> Case:
        """Return case ``index`` with its group of four reordered to 0, 2, 1, 3."""
        group, place = divmod(index, 4)
        if self.earlier is not None:
            group, turn = divmod(group, 2)
            if turn:
                return self.earlier(seed - self.ago, 4 * group + place)
        group %= self.count // 4
        twin = 4 * group + (0, 2, 1, 3)[place]
        settings = self.kinds[group % len(self.kinds)]
        path = self.folder / f"{seed}-{'x'.join(map(str, settings.shape))}" / f"{twin:06d}.npz"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(path, packed(synth.case(seed, twin, settings)))
        with np.load(path) as kept:
            facts = json.loads(str(kept["facts"]))
            image, phi = (kept[name].astype(np.float32) for name in ("image", "phi"))
            return Case(image, phi, kept["centreline"], facts)


def packed(case: Case) -> bytes:
    """Return a case as the bytes of an npz file."""
    buffer = io.BytesIO()
    image, phi = (x.astype(np.float16) for x in (case.image, case.phi))
    facts = np.array(json.dumps(case.facts))
    np.savez(buffer, image=image, phi=phi, centreline=case.centreline, facts=facts)
    return buffer.getvalue()


@dataclass(frozen=True)
class Phase:
    """One call of ``fit``: number of cases, their sides and root radii, and settings."""

    name: str
    sides: tuple[int, ...]
    cases: int
    seed: int
    steps: int
    batch: int
    lr: float
    final_lr: float
    radii: tuple[tuple[float, float], ...] = ((1.5, 11.0),)
    snr: tuple[float, float] = (3.0, 40.0)
    drawn: Mapping[str, float] = field(default_factory=dict)  # further settings of the cases
    losses: Mapping[str, float] = field(default_factory=dict)  # weights that differ
    beside: str = ""  # phase whose cases are every other group of four
    mean_of: int = 1  # phases before, the mean of whose best weights is the start

    def source(self, dims: int, folder: Path) -> Source:
        """Return the cases: every side with every range of radii."""
        drawn: dict[str, Any] = {"snr": self.snr, **self.drawn}
        kinds = tuple(
            synth.SynthSettings(shape=(side,) * dims, radius=radius, **drawn)
            for side, radius in latin(self.sides, self.radii)
        )
        own = Source(kinds, folder / "cases", self.cases)
        for phase in PHASES[dims]:
            if phase.name == self.beside:
                earlier = phase.source(dims, folder)
                return replace(own, earlier=earlier, ago=self.seed - phase.seed)
        return own


def latin(
    sides: tuple[int, ...], radii: tuple[tuple[float, float], ...]
) -> list[tuple[int, tuple[float, float]]]:
    """Return all pairs, so that a few of them in a row have many of either."""
    shifted = [
        (i, (i + turn) % len(radii)) for turn in range(len(radii)) for i in range(len(sides))
    ]
    return [(sides[i], radii[k]) for i, k in shifted]


SIZES = {3: "swift", 2: "base"}
HALF_TURNS = {3: True, 2: False}  # whether the mean over them is shipped
LIMITS = [
    "trained on synthetic scans alone, tuned on none that is real",
    "root radii of 1.5 to 11 voxels; thinner vessels are found in part",
    "round organs as bright as blood that touch a vessel are taken for aneurysms",
    "below SNR 3, and where the wall is not in the image, it guesses",
    "of a speed or PC-MRA image the wall is too narrow, by more than its s.d. says",
    "of an image without noise the wall is too wide",
]
VALIDATION_CASES = 32
PHASES = {
    3: (
        Phase("small", (64,), cases=2628, seed=11, steps=4000, batch=2, lr=3e-3, final_lr=0.3),
        Phase("large", (96,), cases=800, seed=12, steps=1600, batch=2, lr=1.5e-3, final_lr=0.01),
        Phase("final", (80,), cases=1600, seed=13, steps=1500, batch=2, lr=1e-3, final_lr=0.01),
        Phase(
            "long",
            (64, 80, 96, 64),
            cases=4000,
            seed=14,
            steps=6000,
            batch=2,
            lr=2e-3,
            final_lr=0.001,
            radii=((1.5, 11.0), (1.5, 3.0), (3.0, 6.0), (6.0, 11.0)),
            snr=(2.5, 25.0),
        ),
        Phase(
            "clean",
            (48, 64, 48, 80),
            cases=8500,
            seed=15,
            steps=8500,
            batch=2,
            lr=1.5e-3,
            final_lr=0.001,
            radii=((1.5, 11.0), (1.5, 3.0), (2.5, 5.0), (4.0, 8.0)),
            snr=(2.5, 200.0),
            drawn={"plain": 0.75, "straight": 0.35, "shapes": 0.5, "deformed": 0.4, "flow": 0.0},
            losses={"sdf_l1": 0.8},
            beside="long",
        ),
        Phase(
            "flow",
            (64, 48, 80, 64),
            cases=1600,
            seed=16,
            steps=1600,
            batch=2,
            lr=8e-4,
            final_lr=0.001,
            radii=((1.5, 11.0), (1.5, 3.0), (3.0, 6.0), (6.0, 11.0)),
            snr=(2.5, 60.0),
            drawn={"flow": 0.6},
            losses={"sdf_l1": 0.5},
            beside="clean",
            mean_of=2,
        ),
    ),
    2: (
        Phase("small", (96,), cases=12000, seed=1, steps=1500, batch=8, lr=3e-3, final_lr=0.3),
        Phase("large", (160,), cases=1800, seed=2, steps=300, batch=6, lr=1e-3, final_lr=0.01),
    ),
}


def config(phase: Phase, dims: int, init: str) -> TrainConfig:
    """Return the settings of a phase that starts from the weights ``init``."""
    return TrainConfig(
        options={"size": SIZES[dims]},
        dims=dims,
        seed=phase.seed,
        init=init,
        steps=phase.steps,
        batch=phase.batch,
        lr=phase.lr,
        final_lr=phase.final_lr,
        losses={**losses.DEFAULT, **phase.losses},
        workers=1,
        validation_cases=VALIDATION_CASES,
        save_minutes=5.0,
    )


def prepare(phase: Phase, dims: int, folder: Path) -> None:
    """Draw the cases of a phase ahead: those of the validation, then those of the training."""
    source = phase.source(dims, folder)
    for index in range(VALIDATION_CASES):
        source(phase.seed + VALIDATION_SEED, index)
    for index in range((2 if phase.beside else 1) * phase.cases):
        source(phase.seed, index)


def release(folder: Path, dims: int) -> Path:
    """Calibrate the weights and store them, in half precision, inside the package.

    They are the mean of the last phase's best ones and those it started from, where these were a
    mean themselves: fine-tuning costs less of what was known before (Wortsman et al. 2022).
    """
    from heldout import calibrate

    last = PHASES[dims][-1].name
    best = checkpoint.load(folder / last / "best.json")
    stem = checkpoint.shipped_stem(dims)
    card = {
        "name": stem.name,
        "licence": "BSD-3-Clause",
        "architecture": best.card["architecture"],
        "training": {
            "phases": [asdict(p) for p in PHASES[dims]],
            "data": "synthetic only",
        },
        "validation": best.card["validation"],
        "half_turns": HALF_TURNS[dims],
        "hardware": "one CPU core of two, shared",
        "polarity": "blood brighter than its surroundings; dark blood is inverted first",
        "use": "research; not a medical device",
        "limits": LIMITS,
        "held_out": f"studies/results/heldout-{dims}d.md",
    }
    begun = folder / last / "start.json"  # robust fine-tuning: half way back to the start
    ends = [best, checkpoint.load(begun)] if begun.exists() else [best]
    half = {name: tensor.half() for name, tensor in mean_weights(ends).items()}
    raw = checkpoint.save(folder / "half", half, card)
    calibration = calibrate(raw, dims)
    rows = []
    for phase in PHASES[dims]:
        lines = (folder / phase.name / "metrics.jsonl").read_text().splitlines()
        rows += [{"phase": phase.name, **json.loads(line)} for line in lines]
    kept = [row for row in rows if row["step"] % 10 == 0 or "val_loss" in row]
    text = "".join(json.dumps(rounded(row)) + "\n" for row in kept)
    write_bytes(RESULTS / f"{stem.name}-training.jsonl", text.encode())
    for phase in PHASES[dims]:
        picture = (folder / phase.name / "curve.png").read_bytes()
        write_bytes(RESULTS / f"{stem.name}-{phase.name}.png", picture)
    return checkpoint.save(stem, half, card | {"calibration": calibration})


def start(phase: Phase, dims: int, folder: Path) -> str:
    """Return the weights that a phase starts from: the best of those before, or their mean."""
    names = [each.name for each in PHASES[dims]]
    place = names.index(phase.name)
    found = [folder / name / "best.json" for name in names[max(place - phase.mean_of, 0) : place]]
    if len(found) < 2:
        return "".join(map(str, found))
    read = [checkpoint.load(path) for path in found]
    return str(checkpoint.save(folder / phase.name / "start", mean_weights(read), read[-1].card))


def mean_weights(found: Sequence[checkpoint.Checkpoint]) -> dict[str, torch.Tensor]:
    """Return the mean of weights of one descent (Wortsman et al. 2022)."""
    names = found[0].tensors
    return {name: torch.stack([each.tensors[name] for each in found]).mean(0) for name in names}


def rounded(row: dict[str, float | str]) -> dict[str, float | str]:
    """Shorten the numbers of a log line."""
    return {k: float(f"{v:.5g}") if isinstance(v, float) else v for k, v in row.items()}


class Report:
    """Logs one line in fifty steps."""

    def __init__(self) -> None:
        self.count = 0
        self.start = time.monotonic()

    def __call__(self, stage: str, fraction: float, message: str) -> None:
        """Log now and then."""
        self.count += 1
        if self.count % 50 == 0:
            pace = (time.monotonic() - self.start) / self.count
            log.info("%s %5.1f %% %s %.2f s a step", stage, 100 * fraction, message, pace)


def main() -> None:
    """Run the phases in order, each from the best weights of the one before."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--dims", type=int, choices=(2, 3), default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", help="run this phase alone")
    parser.add_argument("--prepare", action="store_true", help="draw the cases, train nothing")
    parser.add_argument("--release", action="store_true", help="calibrate and ship the result")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(arguments.threads)
    for phase in PHASES[arguments.dims]:
        folder = arguments.output / phase.name
        if arguments.release or arguments.only not in (None, phase.name):
            continue
        if arguments.prepare:
            prepare(phase, arguments.dims, arguments.output)
        else:
            settings = config(phase, arguments.dims, start(phase, arguments.dims, arguments.output))
            source = phase.source(arguments.dims, arguments.output)
            resume = (folder / "last.json").exists()
            fit(settings, source, folder, progress=Report(), resume=resume)
            log.info("phase %s done", phase.name)
    if arguments.release:
        log.info("stored %s", release(arguments.output, arguments.dims))


if __name__ == "__main__":
    main()
