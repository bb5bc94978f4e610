"""Stages of the tests: functions as a user would write them."""

import os
import signal
import time
from pathlib import Path

from vesselseg.study.engines import POLL_SECONDS


def number(case, parameters):
    """Give a figure that depends on everything it should depend on."""
    facts = case.facts
    return {"error": facts["snr"] * parameters.get("a", 1.0) + facts["draw"], "word": "x"}


def logged(case, parameters):
    """Leave a line when it begins and take a moment."""
    with (case.folder.parent.parent / "begun.log").open("a") as log:
        log.write(case.job.name + "\n")
    time.sleep(parameters.get("seconds", 0.02))
    return {"error": float(case.facts["draw"])}


def faulty(case, parameters):
    """Fail in three ways at draws 3, 8 and 12."""
    draw = case.facts["draw"]
    if draw == 3:
        raise ValueError("draw three\nis bad")
    if draw == 8:
        return {"error": float("nan")}
    if draw == 12:
        raise MemoryError("1 GB")
    return {"error": float(draw)}


def deadly(case, parameters):
    """Kill the worker at draw 1: each time, or until a file is there."""
    mark = case.folder.parent.parent / "spared"
    if case.facts["draw"] == 1 and not mark.exists():
        if parameters.get("once"):
            mark.touch()
        time.sleep(2.0 * POLL_SECONDS)  # the runner has seen its memory
        os.kill(os.getpid(), signal.SIGKILL)
    return {"error": 1.0}


def greedy(case, parameters):
    """Take more memory than a worker may have, at draw 1."""
    if case.facts["draw"] == 1:
        return {"error": float(len(bytearray(parameters["bytes"])))}
    return {"error": 0.0}


def bowl(case, parameters):
    """Have its least value at x = 0.3."""
    return {"error": (parameters["x"] - 0.3) ** 2 + 0.01 * case.facts["draw"]}


def environment(case, parameters):
    """Tell what a worker sees."""
    names = ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "MALLOC_TRIM_THRESHOLD_")
    seen = {name: os.environ.get(name) for name in names}
    return {**seen, "method": Path("/proc/self/cmdline").read_text().split("\0")[1]}


def full(case, parameters):
    """Count from zero and never end."""
    while True:
        time.sleep(0.1)
