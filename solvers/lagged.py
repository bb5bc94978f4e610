"""Steps on a device that are judged one step late, so that the host never waits for them.

While a step runs the host reads the numbers of the one before it: a wall that rests is found one
step later, and the step after it is given up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vesselseg.fields import Progress, StopReason

from .step import Problem
from .watch import Watch

Rests = Callable[[list[float], float], StopReason | None]
Rows = list[dict[str, float]]


@dataclass(frozen=True)
class Judged:
    """What a step did: its rms in mm, the lumen in voxels, its voxels in the faces, other facts."""

    rms_mm: float
    lumen: float
    in_faces: float
    facts: dict[str, float] = field(default_factory=dict)


def face_samples(shape: Sequence[int]) -> int:
    """Return how many samples lie in the faces of a box, or in the edges of a plane."""
    return max(sum(2 * math.prod(shape) // n for n in shape if n > 1), 1)


def run(
    device: Any,
    problem: Problem,
    take: Callable[[int], Any],
    judge: Callable[[NDArray[np.float64], int], Judged],
    watch: Watch,
    rests: Rests,
    progress: Progress,
) -> tuple[StopReason, Rows, bool]:
    """Step until the wall rests or the limit is reached: ``solvers.refine.iterate``.

    ``take`` launches the step after so many and returns the array that ``judge`` is given later.
    Also tells whether one step more was taken, whose wall does not count.
    """
    settings, shape = problem.settings, problem.start.shape
    samples = face_samples(shape)
    history: Rows = []
    coming: list[Any] = []
    reason = None
    while reason is None and len(history) < settings.iterations:
        taken = len(history) + len(coming)
        if taken < settings.iterations:
            coming.append(device.later(take(taken)))
            if len(coming) < 2:
                continue
        number = len(history) + 1
        done = judge(coming.pop(0).value(), number)
        volume = done.lumen * float(np.prod(problem.spacing))
        watch.judge(volume, done.in_faces / samples, number)
        history.append({"step_rms_mm": done.rms_mm, "volume_mm3": volume, **done.facts})
        progress("refine", number / settings.iterations, f"step {done.rms_mm:.4f} mm rms")
        steps = [row["step_rms_mm"] / problem.unit for row in history]
        reason = rests(steps, settings.tolerance)
    return reason or StopReason.STEP_LIMIT, history, bool(coming)
