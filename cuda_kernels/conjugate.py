"""Linear solves along a wall on a device: the launches that ``sheet.solve_along_wall`` stands for.

Nothing is read back: after convergence the launches that are left do nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

PARTS = 4096  # room for the sums of the blocks of any grid


@dataclass(frozen=True, eq=False)
class Work:
    """Buffers of solves over lists of up to so many voxels and so many iterations."""

    vectors: Any  # p, q, r, diagonal, middle
    parts: Any  # sums of the blocks: p q, squared residual, squared goal
    rz: Any  # squared residual before each iteration
    goal: Any


def work(xp: Any, room: int, most: int) -> Work:
    """Return buffers; ``xp`` is the library that makes the device's arrays."""
    return Work(xp.empty((5, room)), xp.empty((3, PARTS)), xp.zeros(most + 1), xp.full(1, -1.0))


def solve_along_wall(
    device: Any,
    table: Any,
    scale: Any,
    precision: Any,
    weight: Any,
    rhs: Any,
    x: Any,
    count: Any,
    twice: bool,
    most: int,
    tolerance: float,
    buffers: Work,
) -> None:
    """Solve (precision + K weight K) x = rhs, or (precision + K) x = rhs; x holds the start.

    As ``sheet.solve_along_wall``, whose arguments these are between the device and the buffers;
    ``count`` (1,) is how many entries the lists have.
    """
    p, q, r, diagonal, middle = buffers.vectors
    curves, parts, goals = buffers.parts
    rz, goal = buffers.rz, buffers.goal
    bent = middle if twice else p
    launch = device.launch
    # The system is applied to the start as to any direction: rz[0] = 0 over a goal below it.
    launch("sheet_reset", x, p, rz, goal, count)
    for i in range(-1, most):
        at = max(i, 0)
        if twice:
            launch("sheet_bend", table, scale, weight, p, middle, rz, goal, at, count)
        launch("sheet_system", table, scale, precision, p, bent, q, curves, rz, goal, at, count)
        if i < 0:
            launch(
                "sheet_start", table, scale, precision, weight, rhs, q, r, diagonal, parts, goals,
                tolerance, twice, count,
            )  # fmt: skip
        else:
            launch("sheet_step", p, q, diagonal, curves, x, r, parts, rz, goal, i, count)
        launch("sheet_turn", r, diagonal, parts, goals, p, rz, goal, i, count)
