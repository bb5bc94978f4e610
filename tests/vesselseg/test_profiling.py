"""The profile times only kernels that are right, and knows what they could at best take."""

import json
from dataclasses import replace

import numpy as np
import pytest

from vesselseg import profiling
from vesselseg.cli import main
from vesselseg.cuda_kernels import stencils
from vesselseg.errors import NumericalError


@pytest.fixture(scope="module")
def works():
    return {work.name: work for work in profiling.small_works(0)}


def test_every_kernel_is_what_python_makes_of_its_source(works):
    errors = profiling.checked(list(works.values()))
    assert len(errors) == len(works) > 20


def wrong(work, change):
    """The same work by a kernel whose result is changed afterwards."""

    def kernel(*arguments):
        result = work.kernel(*arguments)
        change(arguments)
        return result

    kernel.py_func = work.kernel.py_func
    return replace(work, kernel=kernel)


def left_out(arguments):
    arguments[-1][3] = np.nan


def one_wrong(arguments):
    arguments[-1][3] *= 1.0 + 1e-5


@pytest.mark.parametrize("change", [left_out, one_wrong])
def test_a_kernel_with_one_wrong_value_gets_no_time(works, change):
    with pytest.raises(NumericalError, match="sample_at is wrong"):
        profiling.checked([wrong(works["sample_at"], change)])


def test_a_kernel_that_leaves_its_output_alone_is_found(works):
    def idle(*arguments):
        pass

    idle.py_func = works["write_distance"].kernel.py_func
    with pytest.raises(NumericalError, match="write_distance"):
        profiling.checked([replace(works["write_distance"], kernel=idle)])


def test_operations_are_those_of_the_formulas():
    # minmod: two magnitudes, their comparison and choice, two signs, theirs, a product, a choice.
    assert profiling.operations(stencils.minmod) == 9
    # upwind_sq: two signed sides, their parts of one sign, the larger of two squares.
    assert profiling.operations(stencils.upwind_sq) == 2 * 2 + 2 * 3 + 6
    assert 2 * profiling.operations(stencils.weno5_bend) < profiling.operations(stencils.weno5_pair)


def test_a_time_is_set_against_both_floors(works):
    rates = {"copy_bytes_per_s": 1e9, "operations_per_s": 1e9}
    work = works["advect_tiles, order 5"]
    row = profiling.timed(work, profiling.SMALL, rates, 0.0)
    assert row["floor_bytes_ms"] == pytest.approx(1e-6 * 16 * work.items)
    assert row["floor_operations_ms"] == pytest.approx(1e-6 * work.operations * work.items)
    larger = max(row["floor_bytes_ms"], row["floor_operations_ms"])
    assert row["fraction"] == pytest.approx(larger / row["median_ms"])
    assert row["p10_ms"] <= row["median_ms"] <= row["p90_ms"]


@pytest.mark.slow
def test_the_verb_prints_a_profile(capsys):
    assert main(["profile", "--quick", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {row["name"] for row in found["jobs"]} >= {"job R", "map to its own stop"}
    assert all(row["median_ms"] > 0 for row in found["kernels"])
