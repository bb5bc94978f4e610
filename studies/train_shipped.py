"""Train the weights that the package ships.

``python studies/train_shipped.py -o DIR`` (3-D, about an hour on one core) and ``--dims 2``.
Two runs of the one training loop: small patches at a high rate, then larger ones, for the
context that tells vessels from their neighbours, at a falling rate. Every phase can be resumed.
"""

from __future__ import annotations

import argparse
import logging
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from vesselseg import synth
from vesselseg.fields import Case
from vesselseg.training import TrainConfig, fit

log = logging.getLogger("train_shipped")


@dataclass(frozen=True)
class Source:
    """Synthetic cases of one size; the twins of a geometry go to different batches of two."""

    shape: tuple[int, ...]

    def __call__(self, seed: int, index: int) -> Case:
        """Return case ``index`` with its group of four reordered to 0, 2, 1, 3."""
        group, place = divmod(index, 4)
        twin = 4 * group + (0, 2, 1, 3)[place]
        return synth.case(seed, twin, synth.SynthSettings(shape=self.shape))


@dataclass(frozen=True)
class Phase:
    """One call of ``fit``."""

    name: str
    side: int
    settings: dict[str, float | int | str]


PHASES = {
    3: (
        Phase("small", 48, {"size": "base", "seed": 1, "steps": 1800, "batch": 2, "lr": 3e-3, "final_lr": 0.3}),
        Phase("large", 64, {"size": "base", "seed": 2, "steps": 450, "batch": 2, "lr": 1e-3, "final_lr": 0.01}),
    ),
    2: (
        Phase("small", 96, {"size": "wide", "seed": 1, "steps": 1500, "batch": 8, "lr": 3e-3, "final_lr": 0.3}),
        Phase("large", 160, {"size": "wide", "seed": 2, "steps": 400, "batch": 4, "lr": 1e-3, "final_lr": 0.01}),
    ),
}  # fmt: skip


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
    parser.add_argument("--scale", type=float, default=1.0, help="share of the steps")
    parser.add_argument("--only", help="run this phase alone")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(arguments.threads)
    init = ""
    for phase in PHASES[arguments.dims]:
        folder = arguments.output / phase.name
        steps = max(1, round(arguments.scale * int(phase.settings["steps"])))
        settings = {**phase.settings, "steps": steps, "init": init, "dims": arguments.dims}
        config = TrainConfig(**settings, workers=1, validation_cases=24)
        init = str(folder / "best.json")
        if arguments.only in (None, phase.name):
            source = Source((phase.side,) * arguments.dims)
            resume = (folder / "last.json").exists()
            fit(config, source, folder, progress=Report(), resume=resume)
            log.info("phase %s done", phase.name)


if __name__ == "__main__":
    main()
