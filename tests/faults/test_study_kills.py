"""F06, F08: a study killed at any moment loses nothing and does nothing twice that was done."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from study_cases import of, toml

from vesselseg import study

CASES = 60
FEW, MANY = 3, 100


def start(folder, file, *engine):
    command = [sys.executable, "-m", "vesselseg", "study", "run", file, "-o", folder, *engine]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen([str(c) for c in command], **quiet)


def wait_for(file, runner):
    """Wait until a case has begun."""
    while not file.exists():
        assert runner.poll() is None, "the study ended before a case began"
        time.sleep(0.02)


def done_lines(folder):
    """Name of every case that a ledger calls done, once a line; torn last lines left out."""
    names = []
    for file in (folder / "ledger").glob("*.jsonl"):
        whole = file.read_bytes().rpartition(b"\n")[0]
        names += [json.loads(line)["case"] for line in whole.splitlines()]
    return names


@pytest.mark.parametrize(
    "kills", [FEW, pytest.param(MANY, marks=pytest.mark.slow)], ids=["few", "many"]
)
def test_f06_a_killed_study_loses_nothing_and_repeats_nothing_done(tmp_path, kills):
    """Each run is killed within 0.3 s of its first case, in whatever it does then."""
    folder, file = tmp_path / "s", tmp_path / "s.toml"
    cases = CASES if kills == FEW else 20 * kills
    file.write_text(toml(of("logged", draws=cases)))
    engine, rng = ("--engine", "processes", "--workers", "2"), random.Random(6)
    begun, survived = folder / "begun.log", 0
    for _ in range(kills):
        before = begun.stat().st_size if begun.exists() else 0
        runner = start(folder, file, *engine)
        while runner.poll() is None and not (begun.exists() and begun.stat().st_size > before):
            time.sleep(0.005)
        time.sleep(rng.uniform(0.0, 0.3))
        runner.send_signal(signal.SIGKILL)
        survived += runner.wait() != -signal.SIGKILL
        done = done_lines(folder)
        assert len(done) == len(set(done)), "a case was done twice"
    killed_with = len(done_lines(folder))
    assert killed_with < cases or survived
    clock = time.monotonic()
    summary = study.resume(folder)
    assert (summary.done, summary.failed, summary.ran) == (cases, 0, cases - killed_with)
    if kills == MANY:  # on a quiet machine: two seconds, and what the cases themselves take
        assert time.monotonic() - clock < 2.0 + 0.1 * summary.ran
    began = Counter(begun.read_text().split())
    again = sum(count - 1 for count in began.values())
    assert len(began) == cases
    assert again <= 2 * kills, "only what two workers had in hand begins again"
    assert not [p for p in folder.rglob("*.tmp") if "cases" not in p.parts]


@pytest.mark.parametrize(
    ("engine", "number", "code"),
    [
        ("processes", signal.SIGINT, 130),
        pytest.param("processes", signal.SIGTERM, 143, marks=pytest.mark.slow),
        pytest.param("dask", signal.SIGINT, 130, marks=pytest.mark.slow),
    ],
)
def test_f08_a_stopped_study_ends_within_seconds_and_resumes(tmp_path, engine, number, code):
    folder, file = tmp_path / "s", tmp_path / "s.toml"
    file.write_text(toml(of("logged", draws=4, space={"seconds": [30.0]})))
    runner = start(folder, file, "--engine", engine, "--workers", "1")
    wait_for(folder / "begun.log", runner)
    clock = time.monotonic()
    runner.send_signal(number)
    assert runner.wait(30) == code
    assert time.monotonic() - clock < 5.0
    assert study.status(folder)["to_do"] == 4
    with pytest.raises(ProcessLookupError):
        os.kill(runner.pid, 0)


def test_the_workers_of_a_killed_runner_die_with_it(tmp_path):
    folder, file = tmp_path / "s", tmp_path / "s.toml"
    file.write_text(toml(of("logged", draws=2, space={"seconds": [60.0]})))
    runner = start(folder, file, "--engine", "processes", "--workers", "1")
    wait_for(folder / "begun.log", runner)
    children = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(runner.pid)], capture_output=True, text=True
    ).stdout.split()
    runner.kill()
    runner.wait()
    clock = time.monotonic()
    while any(Path(f"/proc/{pid}").exists() for pid in children):
        assert time.monotonic() - clock < 5.0
        time.sleep(0.02)
    assert children
