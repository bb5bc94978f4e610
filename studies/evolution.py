"""How true and how fast is the evolution? ``python studies/evolution.py``.

Zalesak's slotted sphere after one turn and LeVeque's deformation field after its return; walls
under a constant speed and under their curvature; the cost of one step beside SimpleITK's and
scikit-image's geodesic active contours. Costs are CPU seconds of one process, taken in turns.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import erfc

from vesselseg import metrics, phantoms
from vesselseg.errors import NoInterfaceError
from vesselseg.fields import LevelSet, Volume
from vesselseg.grid import Grid
from vesselseg.io.atomic import write_bytes
from vesselseg.solvers import advect, redistance, stable_time_step
from vesselseg.solvers.evolution import CFL, march
from vesselseg.solvers.flow import flow_step, gac, prepared
from vesselseg.solvers.refine import pose
from vesselseg.solvers.schemes import SCHEMES
from vesselseg.solvers.settings import RefineSettings
from vesselseg.solvers.step import State
from vesselseg.solvers.tiles import collect_tiles
from vesselseg.solvers.watch import volume_mm

RESULTS = Path(__file__).parent / "results"
NAMES = {"weno5": "WENO5 + RK3", "eno2": "ENO2 + RK2"}
EVERY = 10  # steps between two redistancings
SIDE = 100.0  # mm, of the box of the two classical tests


def box(n: int) -> tuple[Grid, tuple[NDArray, ...]]:
    """Return a cubic grid of n³ voxels of SIDE mm and its coordinates x, y, z."""
    h = SIDE / n
    affine = np.diag([h, h, h, 1.0])
    affine[:3, 3] = 0.5 * h
    z, y, x = ((np.indices((n, n, n), dtype=np.float32) + 0.5) * h).astype(np.float32)
    return Grid((n, n, n), affine), (x, y, z)


def zalesak(n: int) -> tuple[Grid, NDArray, list[tuple[float, NDArray]]]:
    """Slotted sphere (Zalesak 1979; in 3-D Enright et al. 2002, §3.3.1): one turn about z."""
    grid, (x, y, z) = box(n)
    sphere = np.sqrt((x - 50) ** 2 + (y - 75) ** 2 + (z - 50) ** 2) - 15
    slot = np.maximum(np.abs(x - 50) - 2.5, y - 82.5)
    turn = np.stack([50 - y, x - 50, np.zeros_like(z)], axis=-1)
    return grid, np.maximum(sphere, -slot), [(2.0 * np.pi, turn)]


def deformation(n: int) -> tuple[Grid, NDArray, list[tuple[float, NDArray]]]:
    """Sphere in LeVeque's field (1996, §9; Enright et al. 2002, §3.3.2), there and back.

    The field's factor cos(π t / 3) only changes the clock: 3 / π with it, 3 / π against it.
    """
    grid, (x, y, z) = box(n)
    sphere = np.sqrt((x - 35) ** 2 + (y - 35) ** 2 + (z - 35) ** 2) - 15
    a, b, c = (np.pi / SIDE * v for v in (x, y, z))
    field = SIDE * np.stack(
        [
            2 * np.sin(a) ** 2 * np.sin(2 * b) * np.sin(2 * c),
            -np.sin(2 * a) * np.sin(b) ** 2 * np.sin(2 * c),
            -np.sin(2 * a) * np.sin(2 * b) * np.sin(c) ** 2,
        ],
        axis=-1,
    )
    return grid, sphere, [(3.0 / np.pi, field), (3.0 / np.pi, -field)]


def carried(
    phi: NDArray, spacing: tuple[float, ...], time: float, velocity: NDArray, scheme: str,
    every: int | None,
) -> NDArray:  # fmt: skip
    """Advect, on the full grid or in a band that is redistanced every few steps."""
    if every is None:
        return advect(phi, spacing, time, velocity=velocity, scheme=scheme)
    steps = int(np.ceil(time / stable_time_step(spacing, velocity=velocity)))
    band = (4.0 + every * CFL) * max(spacing)
    for first in range(0, steps, every):
        now = min(every, steps - first)
        phi = redistance(phi, spacing, band_mm=band)
        phi = advect(phi, spacing, now * time / steps, velocity=velocity, scheme=scheme,
                     band_mm=band)  # fmt: skip
    return phi


def classical(case: Callable, n: int, scheme: str, every: int | None) -> dict[str, Any]:
    """Run one of the two classical tests and compare its end with its beginning."""
    grid, exact, parts = case(n)
    phi, clock = exact, time.process_time()
    row = {
        "test": case.__name__,
        "grid": f"{n}³",
        "scheme": NAMES[scheme],
        "redistanced": "never" if every is None else f"every {every} steps",
    }
    try:
        for duration, velocity in parts:
            phi = carried(
                phi, grid.spacing_mm, duration, velocity.astype(np.float32), scheme, every
            )
        seconds = time.process_time() - clock
        return row | differences(exact, phi, grid) | {"CPU s": seconds}
    except NoInterfaceError:
        names = ("L1, voxels", "wall, mean", "wall, 95 %", "CPU s")
        return row | {"volume %": -100.0} | dict.fromkeys(names, "lost")


def differences(exact: NDArray, phi: NDArray, grid: Grid) -> dict[str, float]:
    """Volume lost, volume in the wrong place over the wall's area, distance of the walls."""
    h = grid.h_min
    before, after = (redistance(f, grid.spacing_mm, band_mm=6 * h) for f in (exact, phi))
    share = [np.clip(0.5 - f / h, 0.0, 1.0) for f in (before, after)]
    wrong = float(np.abs(share[1] - share[0]).sum(dtype=np.float64)) * h**3
    errors = metrics.wall_errors(after, before, grid)
    volume = [volume_mm(f, grid.spacing_mm) for f in (before, after)]
    return {
        "volume %": 100.0 * (volume[1] / volume[0] - 1.0),
        "L1, voxels": wrong / metrics.wall(before, grid).area_mm2.sum() / h,
        "wall, mean": errors["mean_voxel"],
        "wall, 95 %": errors["p95_voxel"],
    }


def order(sizes: list[float], errors: list[float]) -> float:
    """Slope of log error over log size."""
    return float(np.polyfit(np.log(sizes), np.log(errors), 1)[0])


def offsets(radii: tuple[float, ...]) -> list[dict[str, Any]]:
    """Move spheres by a constant speed for T = R / 4; errors in voxels beside the law P-14."""
    rows = []
    for scheme, factor in (("weno5", 0.04), ("eno2", 0.4)):
        for sense in (1.0, -1.0):
            part = []
            for radius in radii:
                shape = phantoms.make("sphere", radius=radius)
                way = sense * radius / 4.0
                grid = shape.grid(1.0, margin_mm=6.0 + max(way, 0.0))
                phi = shape.phi(grid)
                out = advect(phi, 1.0, abs(way), speed=sense, scheme=scheme)
                error = metrics.wall_errors(out, phi - way, grid)["rms_voxel"]
                part.append({
                    "scheme": NAMES[scheme], "R / h": radius, "T / R": sense / 4.0, "rms": error,
                    "limit": factor / 4.0 + 0.01,
                })  # fmt: skip
            fitted = order([1 / r for r in radii], [p["rms"] / p["R / h"] for p in part])
            rows += [p | {"order": fitted} for p in part]
    return rows


def curvature_rates(radii: tuple[float, ...]) -> list[dict[str, Any]]:
    """Shrink spheres and cylinders by their curvature: d(R²)/dt against -4 and -2."""
    rows = []
    for name, rate in (("sphere", 4.0), ("tube", 2.0)):
        part = []
        for radius in radii:
            shape = phantoms.make(name, radius=radius)
            grid = shape.grid(1.0)
            span = radius**2 / 16.0
            out = advect(shape.phi(grid), 1.0, span, curvature_weight=1.0)
            wall = metrics.wall(out, grid)
            # A tube leaves the box: only its middle counts, as far as the faces do not reach.
            margin = 4 if name == "tube" else 0
            inner = np.all(
                (wall.index >= margin) & (wall.index <= np.array(out.shape) - 1 - margin), axis=1
            )
            moved = shape.sdf(grid.world(wall.index))[inner]
            end = radius + np.average(moved, weights=wall.area_mm2[inner])
            error = abs((radius**2 - end**2) / span / rate - 1.0)
            part.append({"shape": name, "R / h": radius, "relative error": error,
                         "limit": 3.0 / radius**2 + 1e-3})  # fmt: skip
        fitted = order([1 / r for r in radii], [p["relative error"] for p in part])
        rows += [p | {"order": fitted} for p in part]
    return rows


def vessel_tree(n: int) -> tuple[NDArray, Grid]:
    """Distance to a branching tree that fills n³ voxels of 1 mm, within 8 mm of its wall."""
    shape = phantoms.make("tree", radius=n / 20.0)
    coarse = shape.grid(4.0, shape=(n // 4,) * 3, shift_voxels=(0.0, 0.0, 0.0))
    grid = shape.grid(1.0, shape=(n, n, n), shift_voxels=(0.0, 0.0, 0.0))
    phi = np.kron(shape.phi(coarse), np.ones((4, 4, 4))).astype(np.float32)
    near = np.abs(phi) < 8.0 + 4.0 * np.sqrt(3.0)
    phi[near] = shape.sdf(grid.world(np.argwhere(near)))
    return redistance(phi, 1.0, band_mm=8.0), grid


def scan(phi: NDArray, grid: Grid) -> Volume:
    """Image of a distance: a wall blurred over 0.7 voxels, SNR 6."""
    noise = np.random.default_rng(1).normal(0.0, 1.0 / 6.0, phi.shape)
    return Volume((0.5 * erfc(phi / 0.7 / np.sqrt(2.0)) + noise).astype(np.float32), grid)


def fastest(work: dict[str, Callable[[], float]], repeats: int) -> dict[str, float]:
    """Run every work in turns and return the smallest of its figures."""
    found: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(repeats):
        for name, call in work.items():
            found[name].append(call())
    return {name: min(values) for name, values in found.items()}


def cpu(call: Callable[[], object]) -> float:
    """CPU seconds of a call."""
    clock = time.process_time()
    call()
    return time.process_time() - clock


def step_costs(n: int, repeats: int) -> dict[str, Any]:
    """Compare one step of a geodesic active contour with those of the peers, on one thread."""
    import SimpleITK as sitk
    from skimage.segmentation import (
        inverse_gaussian_gradient,
        morphological_geodesic_active_contour,
    )

    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    phi, grid = vessel_tree(n)
    image, start = scan(phi, grid), LevelSet(phi, grid, 4.5)
    problem = pose(start, image, RefineSettings(energy="gac"))
    fields, spacing = prepared(problem), problem.spacing
    tiles = collect_tiles(problem.start, problem.band_mm)
    edge = 1.0 / (1.0 + np.asarray(inverse_gaussian_gradient(image.values, sigma=1.0)))
    feature = sitk.GetImageFromArray((fields[2] / fields[2].max()).reshape(phi.shape))
    first = sitk.GetImageFromArray(problem.start)

    def ours(steps: int) -> None:
        listed = collect_tiles(problem.start, problem.band_mm)
        motion = gac(problem, problem.start, listed, fields)
        march(problem.start.copy(), motion, listed, SCHEMES["eno2"], spacing,
              0.2, steps)  # fmt: skip

    def theirs(steps: int) -> None:
        flow = sitk.GeodesicActiveContourLevelSetImageFilter()
        flow.SetPropagationScaling(0.0)
        flow.SetCurvatureScaling(0.3)
        flow.SetAdvectionScaling(1.0)
        flow.SetMaximumRMSError(0.0)
        flow.SetNumberOfIterations(steps)
        flow.Execute(first, feature)

    def morphological(steps: int) -> None:
        morphological_geodesic_active_contour(edge, steps, problem.start < 0, smoothing=1)

    state = State(problem.start, fields=fields)
    moved = problem.start.copy()
    runs = {"ours": (ours, 2, 22), "SimpleITK": (theirs, 2, 12), "skimage": (morphological, 1, 3)}
    for call, few, _ in runs.values():
        call(few)
    flow_step(problem, state)

    def marginal(call: Callable[[int], None], few: int, many: int) -> float:
        return (cpu(lambda: call(many)) - cpu(lambda: call(few))) / (many - few)

    work = {name: (lambda run=run: marginal(*run)) for name, run in runs.items()}
    work["ours with listing"] = lambda: cpu(lambda: ours(1))
    work["flow step"] = lambda: cpu(lambda: flow_step(problem, state))
    work["redistance"] = lambda: cpu(lambda: redistance(moved, spacing, band_mm=problem.band_mm))
    seconds = fastest(work, repeats)
    layers = int(np.count_nonzero(np.abs(problem.start) < 2.5))  # SimpleITK's five layers
    voxels = {"ours": tiles.voxels, "ours with listing": tiles.voxels, "SimpleITK": layers,
              "skimage": layers}  # fmt: skip
    per_voxel = {name: 1e9 * seconds[name] / count for name, count in voxels.items()}
    return {
        "grid": f"{n}³",
        "band voxels": tiles.voxels,
        "layer voxels": layers,
        "seconds": seconds,
        "ns per band voxel": per_voxel,
        "SimpleITK / ours, per band voxel": per_voxel["SimpleITK"] / per_voxel["ours"],
        "SimpleITK / ours, per step": seconds["SimpleITK"] / seconds["ours"],
        "SimpleITK / ours with listing, per band voxel": per_voxel["SimpleITK"]
        / per_voxel["ours with listing"],
        "skimage / ours, per step": seconds["skimage"] / seconds["ours"],
    }


def band_costs(sizes: tuple[int, ...], repeats: int) -> list[dict[str, Any]]:
    """Seconds of one RK2 step in a band of 6 voxels and on the full grid."""
    rows = []
    for n in sizes:
        phi, _ = vessel_tree(n)
        step = stable_time_step((1.0,) * 3, speed=0.2)
        options = {"speed": 0.2, "scheme": "eno2", "time_step": step}

        def some(count: int, band: float | None, phi: NDArray = phi, options: Any = options,
                 step: float = step) -> float:  # fmt: skip
            return cpu(lambda: advect(phi, 1.0, count * step, band_mm=band, **options))

        some(1, None)
        work = {
            "narrow": lambda some=some: (some(9, 6.0) - some(1, 6.0)) / 8,
            "full": lambda some=some: (some(3, None) - some(1, None)) / 2,
        }
        voxels = collect_tiles(phi, 6.0).voxels
        found = fastest(work, repeats)
        rows.append({"grid": f"{n}³", "band voxels": voxels, **found,
                     "ns per band voxel": 1e9 * found["narrow"] / voxels,
                     "full / narrow": found["full"] / found["narrow"]})  # fmt: skip
    return rows


def job_r(n: int, repeats: int) -> dict[str, Any]:
    """Wall seconds of 100 steps of ENO2 with RK2 on a tree, redistanced every 5."""
    start, _ = vessel_tree(n)
    step = stable_time_step((1.0,) * 3, speed=0.5)
    options = {"speed": 0.5, "scheme": "eno2", "time_step": step, "band_mm": 6.0}

    def run(count: int) -> tuple[float, float]:
        phi, moving, distancing = start, 0.0, 0.0
        for n in range(count):
            clock = time.perf_counter()
            phi = advect(phi, 1.0, 5 * step, **(options | {"speed": 0.5 * (-1) ** n}))
            moving += time.perf_counter() - clock
            clock = time.perf_counter()
            phi = redistance(phi, 1.0, band_mm=6.0)
            distancing += time.perf_counter() - clock
        return moving, distancing

    run(2)
    moving, distancing = min((run(20) for _ in range(repeats)), key=sum)
    return {"grid": f"{n}³", "evolve s": moving, "redistance s": distancing,
            "sum s": moving + distancing}  # fmt: skip


def costs(quick: bool) -> dict[str, Any]:
    """Costs in this process: CPU seconds on one thread; on several the wall time of job R alone."""
    n, repeats = (64, 3) if quick else (128, 7)
    threads = int(os.environ.get("NUMBA_NUM_THREADS", "0"))
    found = {"threads": threads, "job R": job_r(128 if quick else 256, 1 if quick else 2)}
    if threads == 1:
        found["step"] = step_costs(n, repeats)
        found["band"] = band_costs((64,) if quick else (64, 128, 256), repeats)
    return found


def costs_on(threads: int, quick: bool) -> dict[str, Any]:
    """Take the costs in a fresh process with so many threads."""
    names = ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS")
    environment = os.environ | dict.fromkeys(names, str(threads))
    command = [sys.executable, __file__, "--costs-only", *(["--quick"] if quick else [])]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def picture(path: Path, n: int, rows: dict[tuple[str, str], list[dict[str, Any]]]) -> None:
    """Draw the two classical tests in a plane, and the errors over the resolution."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(10.5, 3.4), layout="constrained")
    for axis, case, plane in ((axes[0], zalesak, n // 2), (axes[1], deformation, 35 * n // 100)):
        grid, exact, parts = case(n)
        axis.contour(exact[plane], levels=[0.0], colors="black", linewidths=1.0)
        for scheme, colour in (("eno2", "tab:orange"), ("weno5", "tab:blue")):
            phi = exact
            for duration, velocity in parts:
                phi = carried(phi, grid.spacing_mm, duration, velocity.astype(np.float32), scheme,
                              EVERY)  # fmt: skip
            axis.contour(phi[plane], levels=[0.0], colors=colour, linewidths=1.0)
        middle = (50, 75) if case is zalesak else (35, 35)
        axis.set(title=f"{case.__name__}, {n}³", aspect="equal",
                 xlim=[(middle[0] + s) * n / 100 for s in (-22, 22)],
                 ylim=[(middle[1] + s) * n / 100 for s in (-22, 22)])  # fmt: skip
        axis.set_axis_off()
    for (label, key), part in rows.items():
        axes[2].loglog([r["R / h"] for r in part], [r[key] for r in part], "o-", label=label)
    axes[2].set(xlabel="R / h", title="offset (voxels), curvature (relative)")
    axes[2].legend(fontsize=7)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def main() -> None:
    """Run the study and write its result."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--quick", action="store_true", help="small grids, a minute")
    options.add_argument(
        "--sizes",
        type=int,
        nargs="+",
        default=[64, 100],
        help="of the classical tests; 128 is slow",
    )
    options.add_argument("--threads", type=int, nargs="+", default=[1], help="of the cost table")
    options.add_argument("--costs-only", action="store_true", help="print the costs as JSON")
    options.add_argument("-o", "--output", type=Path, default=RESULTS / "evolution.json")
    given = options.parse_args()
    if given.costs_only:
        print(json.dumps(costs(given.quick), default=float))
        return
    radii = (4.0, 8.0) if given.quick else (6.0, 12.0, 24.0)
    result: dict[str, Any] = {"offset": offsets(radii), "curvature": curvature_rates(radii)}
    result["costs"] = [costs_on(threads, given.quick) for threads in given.threads]
    for name, rows in result.items():
        for row in rows:
            print(name, row, flush=True)
    result["table"] = []
    for n in [32] if given.quick else given.sizes:
        for case, scheme, every in product((zalesak, deformation), NAMES, (None, EVERY)):
            result["table"].append(classical(case, n, scheme, every))
            print(*result["table"][-1].values(), sep="  ", flush=True)
            text = json.dumps(result, indent=1, default=float)
            write_bytes(given.output, text.encode(), overwrite=True)
    lines = {
        (f"offset, {name}", "rms"): [
            r for r in result["offset"] if r["scheme"] == name and r["T / R"] > 0
        ]
        for name in NAMES.values()
    } | {
        (f"curvature, {name}", "relative error"): [
            r for r in result["curvature"] if r["shape"] == name
        ]
        for name in ("sphere", "tube")
    }
    picture(given.output.with_suffix(".png"), 64, lines)


if __name__ == "__main__":
    main()
