"""How much does a study cost beside its cases? ``python studies/study_speed.py``, quiet machine.

200 refinements of 64³ phantoms, in one process and on two local workers, each from a fresh start;
the overhead is the time of a worker that is neither stage, image, metrics nor durable write. Then
a study of 10 000 recorded cases: status, table and report. Then a killed study: how long until
work goes on.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from shipped import RESULTS, RUNS

from vesselseg import study
from vesselseg.io.atomic import write_bytes
from vesselseg.study.ledger import FOLDER
from vesselseg.study.results import records

FILE = RESULTS / "study_speed.json"
CASES = 200
RECORDED = 10_000
PHANTOMS = ["sphere", "torus"]
ALONE = {**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
STUDY = {
    "cases": {"phantoms": PHANTOMS, "shape": [64, 64, 64], "snr": [6, 12], "draws": CASES // 4},
}


def prepared(folder: Path) -> Path:
    """Make an empty folder that knows the phantoms already."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / "phantoms").symlink_to(folder.parent / "phantoms")
    return folder


def timed(folder: Path, workers: int, tree: dict[str, Any]) -> dict[str, float]:
    """Run a study in a fresh process; its imports and workers count."""
    write_bytes(folder.with_suffix(".json"), json.dumps(tree).encode())
    clock = time.perf_counter()
    command = [sys.executable, __file__, "--one", str(prepared(folder)), str(workers)]
    found = json.loads(
        subprocess.run(command, check=True, stdout=subprocess.PIPE, env=ALONE).stdout
    )
    return {"workers": workers, "wall_s": time.perf_counter() - clock, **found}


def one(folder: Path, workers: int) -> dict[str, float]:
    """Run a study here; the overhead leaves out the first cases, which pay for the start.

    The overhead is the time from the end of a case to that of the worker's next one, less what
    the next one spent on image, stage, metrics and its durable write.
    """
    engine = study.choose("processes" if workers else "serial", workers)
    ends: list[tuple[float, float]] = []

    def watch(record: dict[str, Any]) -> None:
        ends.append((time.perf_counter(), sum(record["seconds"].values())))

    tree = json.loads(folder.with_suffix(".json").read_text())
    study.run(tree, folder, engine=engine, watch=watch)
    found, start = records(folder)[0], min(2 * max(workers, 1), len(ends) - 1)
    steady = ends[start:]
    slot = max(workers, 1) * (steady[-1][0] - ends[start - 1][0]) / len(steady)
    return {
        "cases": len(found),
        "overhead_ms_a_case": 1e3 * (slot - sum(spent for _, spent in steady) / len(steady)),
        "case_ms": 1e3 * sum(spent for _, spent in steady) / len(steady),
        "write_ms_a_case": 1e3 * sum(r["seconds"]["write"] for r in found) / len(found),
        "peak_mb_a_worker": max(r["peak_bytes"] for r in found) / 1e6,
    }


def recorded(folder: Path, count: int) -> dict[str, float]:
    """Time the verbs on a ledger of many records, made of a real one's."""
    source = folder.parent / "two"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source, folder, symlinks=True)
    facts = json.loads((folder / "study.json").read_text())
    write_bytes(folder / "study.json", json.dumps({**facts, "cases": count}).encode())
    real = records(source)[0]
    lines = []
    for n in range(count):
        record = {**real[n % len(real)], "index": n, "id": f"{n:024x}", "case": f"{n:05d}"}
        record["facts"] = {**record["facts"], "draw": n}
        lines.append(json.dumps(record))
    shutil.rmtree(folder / FOLDER)
    (folder / FOLDER).mkdir()
    write_bytes(folder / FOLDER / "one.jsonl", ("\n".join(lines) + "\n").encode())
    return {f"{name}_s": least(3 if name != "report" else 1, name, folder, *more)
            for name, more in (("status", ()), ("table", ("--json",)), ("report", ()))}  # fmt: skip


def least(repeats: int, *arguments: Any) -> float:
    """Return the shortest time of a verb, a fresh process each."""
    seconds = []
    for _ in range(repeats):
        clock = time.perf_counter()
        verb(*arguments)
        seconds.append(time.perf_counter() - clock)
    return min(seconds)


class Enough(Exception):
    """The first case of a resumed study has ended."""


def resumed(folder: Path, tree: dict[str, Any]) -> dict[str, float]:
    """Kill a study on its way and time the next run until its first case begins."""
    write_bytes(folder.with_suffix(".json"), json.dumps(tree).encode())
    command = [sys.executable, __file__, "--one", str(prepared(folder)), "2"]
    runner = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=ALONE)
    while len(list((folder / "cases").glob("*/*.h5"))) < 10:
        time.sleep(0.05)
    runner.send_signal(signal.SIGKILL)
    runner.wait()
    before, clock, first = len(records(folder)[0]), time.perf_counter(), []

    def stop(record: dict[str, Any]) -> None:
        first.append(time.perf_counter() - clock - sum(record["seconds"].values()))
        raise Enough

    with contextlib.suppress(Enough):
        study.resume(folder, engine=study.choose("processes", 2), watch=stop)
    return {"done_before": before, "seconds_until_work": first[0]}


def verb(*arguments: Any) -> None:
    """Run ``vesselseg study`` in a process of its own."""
    command = [sys.executable, "-m", "vesselseg", "study", *map(str, arguments)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=ALONE)


def main() -> None:
    """Measure and write."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--quick", action="store_true", help="8 planar cases, 500 records")
    options.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.one:
        print(json.dumps(one(Path(given.one[0]), int(given.one[1]))))
        return
    quick = given.quick
    folder = RUNS / "study_speed"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "phantoms").mkdir(exist_ok=True)
    tree = STUDY
    if quick:
        tree = {"cases": {"phantoms": ["circle", "star"], "snr": [6, 12], "draws": 8}}
    warm = {"cases": {**tree["cases"], "snr": [6], "draws": 1}}
    timed(folder / "warm", 0, warm)  # renders the phantoms, compiles
    serial, two = timed(folder / "serial", 0, tree), timed(folder / "two", 2, tree)
    result = {
        "table": [{k: rounded(v) for k, v in row.items()} for row in (serial, two)],
        "speedup": rounded(serial["wall_s"] / two["wall_s"]),
        "recorded": {"cases": 500 if quick else RECORDED,
                     **recorded(folder / "recorded", 500 if quick else RECORDED)},
        "resume": resumed(folder / "killed", tree),
    }  # fmt: skip
    text = json.dumps(result, indent=1) + "\n"
    if not quick:
        write_bytes(FILE, text.encode())
    print(text)


def rounded(value: float) -> float:
    """Keep four digits."""
    return float(f"{value:.4g}")


if __name__ == "__main__":
    main()
