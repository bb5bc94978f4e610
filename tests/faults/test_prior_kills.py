"""F01, F02: a prior file is old or new, never anything else, whenever its writer is killed."""

import os
import random
import signal
import time

import prior_builders as make
import pytest

from vesselseg.prior.boundary import BoundaryPrior

KILLS = 50  # for each of the two cases


def write_for_ever(path, priors):
    while True:
        for prior in priors:
            prior.write(path, overwrite=True)


@pytest.mark.parametrize("case", ["F01 over a good prior", "F02 where there is none"])
def test_killed_writer_leaves_a_whole_file_or_none(tmp_path, case):
    grid = make.Grid.from_spacing((16, 16, 16), 1.0)
    priors = [make.prior(make.sphere(grid, r), grid) for r in (4.0, 4.5)]
    good = {p.to_bytes() for p in priors}
    path = tmp_path / "x.prior.h5"
    priors[0].write(path)
    start = time.perf_counter()
    priors[0].write(path, overwrite=True)
    seconds = time.perf_counter() - start
    rng = random.Random(case)
    absent = temps = 0
    for _ in range(KILLS):
        if case.startswith("F02"):
            path.unlink(missing_ok=True)
        child = os.fork()  # this process runs one thread: the child may go on
        if child == 0:
            write_for_ever(path, priors)
        time.sleep(rng.uniform(0.0, 1.5) * seconds)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        if path.exists():
            assert path.read_bytes() in good
        else:
            absent += 1
        temps += len(list(tmp_path.iterdir())) - path.exists()
    assert absent == 0 or case.startswith("F02")
    priors[1].write(path, overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == [path.name], f"{temps} temps were not swept"
    assert BoundaryPrior.read(path).to_bytes() == priors[1].to_bytes()
