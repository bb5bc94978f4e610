"""Linear solves along a wall, launch by launch, end where the Numba twin ends."""

import numpy as np
import pytest
from build import host_device

from vesselseg.cuda_kernels import conjugate, sheet
from vesselseg.cuda_kernels.examples.common import SPACING, counted, tube
from vesselseg.cuda_kernels.examples.wall import listed


@pytest.mark.parametrize("twice", [True, False])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_solve_is_the_twins_to_its_last_iteration(twice, seed):
    """Sums in another order change the last digits, not the number of iterations."""
    rng = np.random.default_rng(3)
    at = listed(tube((9, 17, 19), rng), 3.0, rng)
    n, table, scale = at.core, at.core_table, 0.2 * np.array(SPACING) ** -2.0
    precision, weight = rng.uniform(0.1, 2.0, (2, n))
    rhs = rng.normal(size=n)
    want, found = np.zeros(n), np.zeros(n)
    steps = sheet.solve_along_wall(table, scale, precision, weight, rhs, want, twice, 40, 1e-4)
    assert 3 < steps < 40
    device, room = host_device(seed), conjugate.work(np, n + 5, 40)
    conjugate.solve_along_wall(
        device, table, scale, precision, weight, rhs, found, counted(n), twice, 40, 1e-4, room
    )
    assert np.count_nonzero(room.rz > room.goal) == steps
    assert np.abs(found - want).max() < 1e-10 * np.abs(want).max()


def test_a_start_that_solves_the_system_stays():
    rng = np.random.default_rng(4)
    at = listed(tube((9, 17, 19), rng), 3.0, rng)
    n, scale = at.core, np.array(SPACING) ** -2.0
    one, x = np.ones(n), np.full(n, 2.0)
    conjugate.solve_along_wall(
        host_device(), at.core_table, scale, one, one, 2.0 * one, x, counted(n), False, 5, 1e-6,
        conjugate.work(np, n, 5),
    )  # fmt: skip
    assert (x == 2.0).all()
