"""How do time and memory grow? ``python studies/scaling.py``.

Redistancing, one energy step, whole refinements and job R (100 evolution steps, ENO2/RK2,
redistanced every fifth) against the grid at a fixed wall, against the wall at a fixed grid, and on
one and two threads, up to a vessel tree in 256³ voxels. Every number of threads is a process of
its own; their results must be equal bit by bit. Needs a quiet machine.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

import vesselseg as vs
from vesselseg.io.atomic import write_bytes
from vesselseg.profiling import BAND, EVERY, STEPS, job_r, swaying
from vesselseg.solvers import redistance
from vesselseg.synth import vascular
from vesselseg.synth.cases import perturbed
from vesselseg.synth.forward import occupancy

Made = TypeVar("Made")
RESULTS = Path(__file__).parent / "results"
SPACING = (1.0, 1.0, 1.0)
RADIUS = 6.0  # of the tubes
SNR = 6.0
TREE_SEED = 9
ENERGY_STEPS = (3, 13)  # one energy step is the difference of two runs over that of their steps
REPEATS = 3
SMALL = "tree/small"


def tubes(size: int, count: int, length: int) -> NDArray[np.float32]:
    """Return the distance to parallel tubes with round ends, the first in the middle."""
    z, y, x = np.ogrid[:size, :size, :size]
    middle = (size - 1) / 2 + 0.13
    beyond = np.maximum(np.abs(z - middle) - length / 2, 0.0)
    places = [(0, 0), (1, 1), (-1, -1), (1, -1), (-1, 1), (1, 0), (-1, 0), (0, 1)][:count]
    away = [
        np.sqrt(beyond**2 + (y - middle - 24.0 * a) ** 2 + (x - middle - 24.0 * b) ** 2)
        for a, b in places
    ]
    return np.asarray(np.minimum.reduce(away) - RADIUS, dtype=np.float32)


def tree(size: int) -> NDArray[np.float32]:
    """Return the distance to a random vessel tree."""
    rng = np.random.default_rng(TREE_SEED)
    segments = vascular.random_tree((size,) * 3, (5.0, 9.0), False, rng)
    return vascular.level_set(segments, (size,) * 3)[0]


def scene(name: str) -> NDArray[np.float32]:
    """Return the distance of a scene: ``wall/SIZE``, ``area/TUBES`` or ``tree/SIZE``."""
    kind, number = name.split("/")
    if kind == "tree":
        return tree(int(number))
    return tubes(int(number), 1, 40) if kind == "wall" else tubes(128, int(number), 90)


def problem(phi: NDArray) -> tuple[vs.LevelSet, vs.Volume]:
    """Return a perturbed start and a noisy image of a wall."""
    grid = vs.Grid.from_spacing(phi.shape, SPACING)
    share = occupancy(phi, SPACING, 0.6, supersample=2)
    noise = np.random.default_rng(1).standard_normal(phi.shape, dtype=np.float32)
    image = vs.Volume(share + noise / np.float32(SNR), grid)
    moved = perturbed(phi, grid, 0.5, 1).astype(np.float32)
    start = redistance(moved, SPACING, band_mm=BAND)
    return vs.LevelSet(start, grid, BAND), image


def flow(start: vs.LevelSet, image: vs.Volume, steps: int) -> vs.Refinement:
    """Take so many energy steps of Chan-Vese."""
    settings = vs.RefineSettings(energy="chan_vese", iterations=steps, tolerance=1e-9)
    return vs.refine(start, image, settings)


def energy_step(start: vs.LevelSet, image: vs.Volume) -> tuple[float, NDArray]:
    """Return the seconds of one energy step, apart from what a refinement takes once."""
    few, many = ENERGY_STEPS
    short, first = seconds(lambda: flow(start, image, few), 2)
    long, last = seconds(lambda: flow(start, image, many), 2)
    return (long - short) / max(last.steps - first.steps, 1), last.level_set.phi_mm


def seconds(call: Callable[[], Made], repeats: int = REPEATS) -> tuple[float, Made]:
    """Return the shortest wall time of some runs, and what they gave."""
    best = np.inf
    for _ in range(repeats):
        clock = time.perf_counter()
        result = call()
        best = min(best, time.perf_counter() - clock)
    return best, result


def peak_fields(call: Callable[[], object], voxels: int) -> float | None:
    """Return the peak memory of a call in float32 fields beyond what was there before."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return None
    Path("/proc/self/clear_refs").write_text("5")
    before = _kilobytes(status, "VmRSS")
    kept = call()
    added = _kilobytes(status, "VmHWM") - before
    del kept
    return round(1024.0 * added / (4.0 * voxels), 2)


def _kilobytes(status: Path, key: str) -> int:
    return next(int(line.split()[1]) for line in status.read_text().splitlines() if key in line)


def measured(name: str, file: Path, whole: bool) -> dict[str, Any]:
    """Time a scene in this process; ``whole``: memory and the long jobs as well."""
    with np.load(file) as kept:
        arrays = {key: kept[key] for key in kept.files}
    clock = time.perf_counter()
    grid = vs.Grid.from_spacing(arrays["phi"].shape, SPACING)
    start, image = vs.LevelSet(arrays["start"], grid, BAND), vs.Volume(arrays["image"], grid)
    phi = 1.3 * start.phi_mm + np.float32(0.0)
    speed = swaying(phi.shape)
    jobs: dict[str, Callable[[], NDArray]] = {
        "redistance": lambda: redistance(phi, SPACING, band_mm=BAND),
        "map": lambda: vs.refine(start, image).level_set.phi_mm,
    }
    results, times = {}, {}
    for key, job in jobs.items():
        times[key], results[key] = seconds(job, REPEATS if key == "redistance" else 2)
    times["energy_step"], results["energy"] = energy_step(start, image)
    if whole:
        times["job_r"], results["job_r"] = seconds(lambda: job_r(start.phi_mm, speed), 2)
        memory = {key: peak_fields(job, phi.size) for key, job in jobs.items()}
        memory["job_r"] = peak_fields(lambda: job_r(start.phi_mm, speed), phi.size)
    digest = hashlib.sha256(b"".join(np.ascontiguousarray(r) for r in results.values()))
    return {
        "scene": name,
        "seconds": times,
        "fields_beyond_input": memory if whole else None,
        "sha256": digest.hexdigest(),
        "wall_s": round(time.perf_counter() - clock, 2),
    }


def child(names: list[str], folder: Path, threads: int, cache: Path | None = None) -> list[Any]:
    """Measure scenes in a process with so many threads."""
    env = os.environ | {"NUMBA_NUM_THREADS": str(threads), "OMP_NUM_THREADS": str(threads)}
    if cache is not None:
        env["NUMBA_CACHE_DIR"] = str(cache)
    command = [sys.executable, __file__, "--measure", *names, "--folder", str(folder)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def store(name: str, folder: Path) -> dict[str, float]:
    """Make a scene once for all processes and say how large it is."""
    phi = scene(name)
    start, image = problem(phi)
    np.savez(_file(name, folder), phi=phi, start=start.phi_mm, image=image.values)
    return {"voxels": int(phi.size), "wall_voxels": int((np.abs(phi) < 0.5).sum())}


def _file(name: str, folder: Path) -> Path:
    return folder / f"{name.replace('/', '-')}.npz"


def line(name: str, size: dict[str, float], one: dict[str, Any], two: dict[str, Any]) -> dict:
    """Return a row of the table: milliseconds on one thread, and what a second thread brings."""
    kind, number = name.split("/")
    what = {
        "wall": f"one tube in {number}³",
        "area": f"{number} tubes in 128³",
        "tree": f"tree in {number}³",
    }
    row: dict[str, Any] = {"scene": what[kind], "wall voxels": size["wall_voxels"]}
    titles = {"redistance": "redistance, s", "energy_step": "energy step, s", "map": "map, s"}
    for key, title in (titles | {"job_r": "job R, s"}).items():
        value, both = one["seconds"].get(key), two["seconds"].get(key)
        row[title] = "" if value is None else round(value, 4)
        row[f"{title[:-3]}, 2 threads"] = "" if value is None else f"{value / both:.2f}x"
    memory = one["fields_beyond_input"]
    row["memory, fields"] = "" if memory is None else ", ".join(
        f"{key} {value:g}" for key, value in memory.items()
    )  # fmt: skip
    return row


def main() -> None:
    """Measure and write table and figure, or measure scenes as a child process."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--tree", type=int, default=256, help="largest grid")
    options.add_argument("--measure", nargs="*", help=argparse.SUPPRESS)
    options.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.measure is not None:
        for name in given.measure:
            print(json.dumps(measured(name, _file(name, given.folder), "tree" in name)), flush=True)
        return
    big = given.tree
    walls = [f"wall/{n}" for n in (64, 96, 128, 192) if n <= big]
    names = [*walls, *(f"area/{n}" for n in (1, 2, 4, 8)), f"tree/{big // 2}", f"tree/{big}"]
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        sizes = {name: store(name, folder) for name in names}
        small(folder)
        compiling = compile_seconds(folder)
        runs = {threads: child([SMALL, *names], folder, threads)[1:] for threads in (1, 2)}
    pairs = list(zip(*runs.values(), strict=True))
    unequal = [one["scene"] for one, two in pairs if one["sha256"] != two["sha256"]]
    if unequal:
        raise SystemExit(f"1 and 2 threads give different results: {', '.join(unequal)}")
    table = [line(n, sizes[n], one, two) for n, (one, two) in zip(names, pairs, strict=True)]
    result = {
        "settings": {"band_voxels": BAND, "snr": SNR, "steps": STEPS, "redistance_every": EVERY},
        "cores": os.cpu_count(),
        "threads_bitwise_equal": True,
        "compile_seconds": compiling,
        "table": table,
        "runs": {str(threads): part for threads, part in runs.items()},
        "sizes": sizes,
    }
    text = json.dumps(result, indent=1, ensure_ascii=False) + "\n"
    write_bytes(RESULTS / "scaling.json", text.encode(), overwrite=True)
    figure(names, sizes, runs)
    for row in table:
        print("  ".join(str(value) for value in row.values()))


def small(folder: Path) -> str:
    """Store a scene for compiling."""
    phi = tubes(32, 1, 12)
    start, image = problem(phi)
    np.savez(_file(SMALL, folder), phi=phi, start=start.phi_mm, image=image.values)
    return SMALL


def compile_seconds(folder: Path) -> float:
    """Return what the first of two equal rounds takes longer, with an empty cache of kernels."""
    with tempfile.TemporaryDirectory() as empty:
        first, second = child([SMALL, SMALL], folder, 1, Path(empty))
    return round(first["wall_s"] - second["wall_s"], 1)


def figure(names: list[str], sizes: dict[str, Any], runs: dict[int, list[Any]]) -> None:
    """Draw the times against voxels at a fixed wall and against the wall at a fixed grid."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained", sharey=True)
    for axis, kind, by, title in (
        (axes[0], "wall", "voxels", "voxels, wall fixed"),
        (axes[1], "area", "wall_voxels", "wall voxels, grid fixed"),
    ):
        for n, key in enumerate(("redistance", "energy_step", "map")):
            for threads, part in runs.items():
                points = [(sizes[name][by], run["seconds"][key])
                          for name, run in zip(names, part, strict=True)
                          if name.startswith(kind)]  # fmt: skip
                style = "o-" if threads == 1 else "s--"
                label = f"{key.replace('_', ' ')}, {threads} thread{'s' * (threads > 1)}"
                axis.loglog(*zip(*points, strict=True), style, color=f"C{n}", ms=4, label=label)
        axis.set_xlabel(title)
        axis.grid(alpha=0.3, which="both")
    axes[0].set_ylabel("seconds")
    axes[1].legend(fontsize=7)
    fig.savefig(RESULTS / "scaling.png", dpi=90)
    plt.close(fig)


if __name__ == "__main__":
    main()
