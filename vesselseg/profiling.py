"""How fast is every kernel on this machine, and how fast could it be? ``vesselseg profile``.

Two floors bound a kernel: the bytes that it must move over the rate at which memory is copied,
and its operations over the rate at which they are done. Both rates are measured in the same run.
A kernel gets a time only after its result was right on fresh random input.
"""

from __future__ import annotations

import ast
import datetime
import inspect
import math
import os
import platform
import re
import subprocess
import textwrap
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import __version__, device
from .cuda_kernels import advect as moving
from .cuda_kernels import closest_point as closest
from .cuda_kernels import gate, launch, reinit, roof, wall
from .cuda_kernels import tiles as tiling
from .cuda_kernels.jit import threads
from .errors import NumericalError
from .fields import LevelSet, Progress, Volume, silent
from .grid import Grid
from .solvers import advect, redistance, stable_time_step
from .solvers.layers import find_interface
from .solvers.refine import refine
from .solvers.reinitialisation import CFL, _band_list
from .solvers.settings import RefineSettings
from .solvers.tiles import collect_tiles
from .synth import vascular
from .synth.forward import occupancy

BAND = 4.5  # half-width, voxels
SIZES = (128, 256)
QUICK = (32,)
COPIED_BYTES = 2**28  # of one array: far more than any cache holds
REPEATS = 30
MOST_SECONDS = 2.0  # for the repeats of one kernel or job
SMALL = (21, 19, 37)  # no multiple of a tile, along no axis
SMALL_SPACING = (1.2, 0.5, 0.5)
ALLOWED = 8.0 * float(np.finfo(np.float32).eps)  # of the largest magnitude
TREE_SEED, TREE_RADII = 9, (5.0, 9.0)
SNR = 6.0
STEPS, EVERY = 100, 5  # job R


@dataclass(frozen=True, eq=False)
class Work:
    """One call of a kernel.

    Parameters
    ----------
    name : str
    kernel : callable
        A Numba function.
    arguments : tuple
    items : int
        Voxels that it works on.
    bytes_each : float
        Bytes per voxel that no program could leave out: every value read and written once.
    operations : int
        Arithmetic operations per voxel, 0 where the data decide.
    written : tuple of int
        Places of the arguments that it only writes: poisoned before the check.
    changed : tuple of int
        Places of those that it reads and writes: given anew before every call.
    """

    name: str
    kernel: Any
    arguments: tuple[Any, ...]
    items: int
    bytes_each: float
    operations: int = 0
    written: tuple[int, ...] = ()
    changed: tuple[int, ...] = ()


def profile(
    name: str = "cpu", *, quick: bool = False, progress: Progress = silent
) -> dict[str, Any]:
    """Measure every kernel and the jobs made of them against what the machine could do.

    Parameters
    ----------
    name : str
        ``cpu``: the Numba kernels, on as many threads as Numba is given; ``cuda`` or ``cuda:N``:
        the CUDA kernels; ``auto``: the device if there is one.
    quick : bool
        One small grid only.

    Returns
    -------
    dict
        ``device`` and the ``rates`` measured in this run; ``kernels`` with both floors, the
        quantiles of the times, the fraction of the larger floor and the error found; ``jobs``.

    On a device a kernel that is wrong is left out and said, in ``wrong``.

    Raises
    ------
    NumericalError
        If a kernel of the processor gives a wrong result.
    """
    chosen = device.choose(name)
    seed = int.from_bytes(os.urandom(4), "little")
    general = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "source": source_version(),
        "seed": seed,
    }
    if chosen.name == "cpu":
        return general | measured(quick, seed, progress)
    from . import profiling_gpu

    gpu = launch.device(chosen.index, lines=True)
    found = profiling_gpu.measured(gpu, quick, seed, progress)
    return general | {"device": profiling_gpu.gpu_facts(gpu)} | found


def measured(quick: bool, seed: int, progress: Progress) -> dict[str, Any]:
    """Measure rates, kernels and jobs of the processor."""
    before = clock_mhz()
    progress("profile", 0.0, "memory and arithmetic")
    rates = {"copy_bytes_per_s": copy_rate(), "operations_per_s": arithmetic_rate()}
    progress("profile", 0.05, "results")
    errors = checked(small_works(seed))
    kernels, jobs = [], []
    sizes = QUICK if quick else SIZES
    for done, size in enumerate(sizes):
        progress("profile", 0.2 + 0.8 * done / len(sizes), f"kernels and jobs, {size}³")
        phi = vessel_tree(size)
        kernels += [
            timed(work, phi.shape, rates, errors[work.name])
            for work in works(1.3 * phi, (1.0, 1.0, 1.0), BAND, np.random.default_rng(seed))
        ]
        jobs += [job_row(*job, phi.shape) for job in jobs_of(phi)]
    progress("profile", 1.0, "done")
    return {
        "device": cpu_facts() | {"clock_mhz": [before, clock_mhz()]},
        "rates": rates,
        "kernels": kernels,
        "jobs": jobs,
    }


# --- the machine -------------------------------------------------------------------------------


def cpu_facts() -> dict[str, Any]:
    """Name, threads, cache and libraries of the processor in use."""
    import numba

    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    model = re.search(r"^model name\s*:\s*(.*)$", text, re.MULTILINE)
    cache = Path("/sys/devices/system/cpu/cpu0/cache/index3/size")
    return {
        "kind": "cpu",
        "name": model[1].strip() if model else platform.machine(),
        "cores": device.cores(),
        "threads": threads(),
        "last_cache": cache.read_text().strip() if cache.is_file() else None,
        "vectors": next((v for v in ("avx512f", "avx2", "avx", "asimd") if v in text), None),
        "numba": numba.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def clock_mhz() -> float | None:
    """Clock of the first core at this moment, MHz."""
    file = Path("/proc/cpuinfo")
    found = (
        re.search(r"^cpu MHz\s*:\s*([\d.]+)", file.read_text(), re.M) if file.is_file() else None
    )
    return float(found[1]) if found else None


def source_version() -> dict[str, str | None]:
    """Version of the package, and the commit if it lies in a repository."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
        commit = done.stdout.strip() or None
    except (OSError, subprocess.TimeoutExpired):
        commit = None
    return {"version": __version__, "commit": commit}


def copy_rate() -> float:
    """Bytes per second, read and written, of copying a large array."""
    source = np.zeros(COPIED_BYTES // 4, np.float32)
    out = np.ones_like(source)
    shortest = min(seconds_of(lambda: roof.copy_flat(source, out), 5))
    return 2.0 * COPIED_BYTES / shortest


def arithmetic_rate() -> float:
    """float32 operations per second of products and sums on vectors, as the kernels use them.

    They are not contracted to one operation, and counted as two.
    """
    rounds = 4000
    lanes = np.ones((threads(), int(roof.LANES)), np.float32)
    factor, summand = np.float32(0.999), np.float32(1e-3)
    shortest = min(seconds_of(lambda: roof.calculate(lanes, factor, summand, rounds), 5))
    return lanes.size * roof.CHAIN * rounds / shortest


# --- the kernels -------------------------------------------------------------------------------


def vessel_tree(size: int) -> NDArray[np.float32]:
    """Distance to a random vessel tree in a cube, in voxels."""
    rng = np.random.default_rng(TREE_SEED)
    segments = vascular.random_tree((size,) * 3, TREE_RADII, False, rng)
    return np.asarray(vascular.level_set(segments, (size,) * 3)[0], dtype=np.float32)


def small_works(seed: int) -> list[Work]:
    """Every kernel on a small random wall in voxels of unequal sides."""
    rng = np.random.default_rng(seed)
    where = [(np.arange(n) - 0.5 * n) * h for n, h in zip(SMALL, SMALL_SPACING, strict=True)]
    z, y, x = np.meshgrid(*where, indexing="ij", sparse=True)
    centre = rng.uniform(-1.0, 1.0, 3)
    phi = np.sqrt((z - centre[0]) ** 2 + (y - centre[1]) ** 2 + (x - centre[2]) ** 2) - 4.0
    phi = phi * rng.uniform(0.7, 1.3) + 0.05 * rng.standard_normal(phi.shape)
    band = BAND * max(SMALL_SPACING)
    return works(phi.astype(np.float32), SMALL_SPACING, band, rng)


def works(
    phi: NDArray[np.float32],
    spacing: tuple[float, ...],
    band: float,
    rng: np.random.Generator,
) -> list[Work]:
    """List the kernels with arguments taken from one wall."""
    made = [*whole_field(phi, spacing), *on_tiles(phi, spacing, band, rng)]
    return [*made, *on_layers(phi, spacing, band), *on_lists(phi, spacing, band)]


def whole_field(phi: NDArray[np.float32], spacing: tuple[float, ...]) -> Iterable[Work]:
    """Kernels that look at every voxel."""
    n, touched = phi.size, np.empty(tiling.tile_count(phi.shape), np.bool_)
    sign, count = np.sign(phi).astype(np.int8), np.empty(phi.shape[:2], np.int64)
    yield Work("count_within", gate.count_within, (phi.reshape(-1), -1.0, 1.0), n, 4)
    sums = np.empty(phi.shape[0])
    yield Work("lumen_sums", gate.lumen_sums, (phi, max(spacing), sums), n, 4, written=(2,))
    yield Work("touched_tiles", tiling.touched_tiles, (phi, BAND, touched), n, 4)
    yield Work("write_signs", closest.write_signs, (phi, sign.copy()), n, 5)
    yield Work("count_interface", closest.count_interface, (sign, count), n, 1)


def on_tiles(
    phi: NDArray[np.float32],
    spacing: tuple[float, ...],
    band: float,
    rng: np.random.Generator,
) -> Iterable[Work]:
    """Kernels on the tiles of the band."""
    tiles = collect_tiles(phi, band)
    numbers, bits, rim, n = tiles.numbers, tiles.bits, tiles.rim, tiles.voxels
    covered = len(numbers) * int(np.prod(tiling.TILE))
    size, number = np.array(spacing, np.float32), np.float32
    speed = rng.uniform(-1.0, 1.0, phi.size).astype(np.float32)
    none, bend = np.empty((0, 0), np.float32), np.full(1, 0.1, np.float32)
    rows = (phi, band, numbers, np.empty_like(bits), np.empty_like(rim))
    yield Work("band_rows", tiling.band_rows, rows, covered, 4.25)
    copied = (phi, numbers, np.empty_like(phi))
    yield Work("copy_tiles", tiling.copy_tiles, copied, covered, 8, written=(2,))
    sizes, most = np.array(spacing), np.empty((len(numbers), 3))
    limits = (speed, none, bend, phi.shape, numbers, bits, sizes, most)
    yield Work("largest_speeds", tiling.largest_speeds, limits, n, 4, written=(7,))
    looked = (phi, numbers, bits, rim, np.empty((len(numbers), 4)))
    yield Work("inspect_tiles", tiling.inspect_tiles, looked, n, 4, written=(4,))
    base, out = phi.copy(), phi.copy()
    for order, curved in ((2, 0), (5, 0), (2, 1), (5, 1)):
        transport = moving.transport_eno2 if order == 2 else moving.transport_weno5
        work = operations(transport) + operations(moving.advance)
        work += operations(moving.curvature) if curved else 0
        yield Work(
            f"advect_tiles, order {order}" + ", curvature" * curved,
            moving.advect_tiles,
            (phi, speed, none, bend[:curved], base, numbers, bits, out,
             number(0.1), number(0.25), number(0.75), order, size),
            n, 16, work, written=(7,),
        )  # fmt: skip


def on_layers(phi: NDArray[np.float32], spacing: tuple[float, ...], band: float) -> Iterable[Work]:
    """Kernels of the closest points: the voxels beside the wall and the layer next to them."""
    label, index = find_interface(phi)
    n = len(index)
    offset, distance = np.zeros((30 * n, 3), np.float32), np.zeros(30 * n)
    yield Work("seed_closest", closest.seed_closest,
               (phi, index, offset, distance, *spacing), n, 36, changed=(2, 3))  # fmt: skip
    closest.seed_closest(phi, index, offset, distance, *spacing)
    waiting = np.arange(n, dtype=np.int32)
    index, _, last = closest.next_layer(label, index, distance, waiting, n, min(spacing))
    grown: tuple[Any, ...] = (phi, label, index, offset, distance, n, last, band, *spacing)
    yield Work("grow_closest", closest.grow_closest, grown, last - n, 40, changed=(1, 3, 4))
    closest.grow_closest(*grown)
    index, offset, distance = index[:last], offset[:last], distance[:last]
    flag = np.ones(last, np.bool_)
    found = (label, index, offset, distance, flag, *spacing)
    yield Work("find_improvable", closest.find_improvable, found, last, 38, changed=(4,))
    which = np.arange(0, last, 3)
    new = np.empty((len(which), 3), np.float32), np.empty(len(which))
    better = (phi, label, index, offset, which, *new, *spacing)
    yield Work("improve_closest", closest.improve_closest, better, len(which), 48, written=(5, 6))
    far, out = np.array([band], np.float32), np.empty_like(phi)
    signed = (phi, index, distance, far, out)
    yield Work("write_distance", closest.write_distance, signed, phi.size, 8, written=(4,))
    sampled = (phi, index, offset, np.empty(last))
    yield Work("sample_at", closest.sample_at, sampled, last, 36, written=(3,))


def on_lists(phi: NDArray[np.float32], spacing: tuple[float, ...], band: float) -> Iterable[Work]:
    """Kernels on lists of band voxels: reinitialisation, geometry, model of the image."""
    index, distance, arms = _band_list(phi, spacing, band)
    n, far = len(index), float(np.float32(distance.max() + max(spacing)))
    state = np.clip(phi, -far, far)
    for order in (2, 5):
        stage = (state, index, arms, state.copy(), state.copy(), 0.5, 0.5, CFL, order, far)
        name = f"reinit_stage, order {order}"
        yield Work(name, reinit.reinit_stage, (*stage, *spacing), n, 24, written=(4,))
    changed = (state, phi, index)
    yield Work("largest_change", reinit.largest_change, changed, n, 20)
    normal, kappa, bend = np.empty((n, 3)), np.empty(n), np.empty(n)
    geometry: tuple[Any, ...] = (phi, index, normal, kappa, bend, *spacing)
    yield Work("wall_geometry", wall.wall_geometry, geometry, n, 56, written=(2, 3, 4))
    wall.wall_geometry(*geometry)
    seen = (distance, normal, bend, 0.6, np.empty(n), np.empty(n), *spacing)
    yield Work("blurred_occupancy", wall.blurred_occupancy, seen, n, 56, written=(4, 5))


def operations(function: Any) -> int:
    """Count the arithmetic operations in the source of a function and those that it calls.

    Comparisons and choices count as one, index arithmetic as none, a loop's body once: the loops
    of the functions asked for run over the voxels of a row.
    """
    python = inspect.unwrap(getattr(function, "py_func", function))
    tree: Any = ast.parse(textwrap.dedent(inspect.getsource(python)))
    names = inspect.getclosurevars(python)
    known = {**names.globals, **names.nonlocals}
    return sum(_operations(line, known) for line in tree.body[0].body)


def _operations(node: ast.AST, names: dict[str, Any]) -> int:
    if isinstance(node, ast.Subscript):
        return 0
    own = isinstance(node, ast.BinOp | ast.UnaryOp | ast.Compare | ast.IfExp | ast.AugAssign)
    total = int(own)
    if isinstance(node, ast.Call):
        called = names.get(node.func.id) if isinstance(node.func, ast.Name) else None
        inner = operations(called) if hasattr(called, "py_func") else 0
        return inner + int(not inner) + sum(_operations(a, names) for a in node.args)
    return total + sum(_operations(child, names) for child in ast.iter_child_nodes(node))


# --- checks and times --------------------------------------------------------------------------


def checked(made: list[Work]) -> dict[str, float]:
    """Compare every kernel with its source run by Python; return the largest relative errors."""
    errors = {}
    for work in made:
        errors[work.name] = error = largest_error(work)
        if not error <= ALLOWED:
            raise NumericalError(
                f"kernel {work.name} is wrong",
                found=f"relative error {error:.2g}",
                need=f"at most {ALLOWED:.2g}",
                remedy="delete the compiled kernels (see vesselseg doctor) and try again",
            )
    return errors


def largest_error(work: Work) -> float:
    """Return the largest difference from the interpreted kernel, over the largest magnitude.

    What is only written is filled with NaN before, so that nothing left from another call counts;
    both must write the same values.
    """
    found = outcome(work, work.kernel)
    return max(map(relative, outcome(work, work.kernel.py_func), found), default=math.inf)


def outcome(work: Work, kernel: Callable[..., Any]) -> list[NDArray]:
    """Call a kernel on copies of its arguments; return every array after it, and its result."""
    arguments = [a.copy() if isinstance(a, np.ndarray) else a for a in work.arguments]
    for place in work.written:
        arguments[place].fill(np.nan)
    result = kernel(*arguments)
    arrays = [a for a in arguments if isinstance(a, np.ndarray)]
    return arrays if result is None else [*arrays, np.asarray(result)]


def relative(expected: NDArray, found: NDArray) -> float:
    """Largest difference over the largest magnitude; infinite where only one is NaN."""
    if expected.size == 0:
        return 0.0
    a, b = (np.asarray(v, dtype=np.float64) for v in (expected, found))
    if not np.array_equal(np.isnan(a), np.isnan(b)):
        return math.inf
    same = (a == b) | np.isnan(a)
    scale = float(np.max(np.abs(a), where=np.isfinite(a), initial=np.finfo(np.float32).tiny))
    return float(np.max(np.abs(a[~same] - b[~same]), initial=0.0)) / scale


def seconds_of(call: Callable[[], Any], repeats: int = REPEATS) -> list[float]:
    """Seconds of several calls after one that does not count, within ``MOST_SECONDS``."""
    call()
    taken: list[float] = []
    while not taken or (len(taken) < repeats and sum(taken) < MOST_SECONDS):
        clock = time.perf_counter()
        call()
        taken.append(time.perf_counter() - clock)
    return taken


def timed(
    work: Work, shape: tuple[int, ...], rates: dict[str, float], error: float
) -> dict[str, Any]:
    """Time a kernel and set it against its floors."""
    kept = {place: work.arguments[place].copy() for place in work.changed}
    taken: list[float] = []
    while len(taken) < 2 or (len(taken) <= REPEATS and sum(taken) < MOST_SECONDS):
        for place, values in kept.items():
            np.copyto(work.arguments[place], values)
        clock = time.perf_counter()
        work.kernel(*work.arguments)
        taken.append(time.perf_counter() - clock)
    moved = work.items * work.bytes_each
    calculated = work.items * work.operations
    floor_bytes = 1e3 * moved / rates["copy_bytes_per_s"]
    floor_operations = 1e3 * calculated / rates["operations_per_s"]
    row: dict[str, Any] = {
        "name": work.name,
        "shape": list(shape),
        "voxels": work.items,
        "bytes": int(moved),
        "operations_per_voxel": work.operations or None,
        "floor_bytes_ms": floor_bytes,
        "floor_operations_ms": floor_operations if work.operations else None,
        **quantiles(taken[1:]),
        "max_error": error,
    }
    return row | {"fraction": max(floor_bytes, floor_operations) / row["median_ms"]}


def quantiles(taken: list[float]) -> dict[str, Any]:
    """Median and the tenth and ninetieth percentiles, ms."""
    low, middle, high = np.percentile(taken, [10, 50, 90])
    return {"median_ms": 1e3 * middle, "p10_ms": 1e3 * low, "p90_ms": 1e3 * high,
            "repeats": len(taken)}  # fmt: skip


# --- the jobs ----------------------------------------------------------------------------------

Job = tuple[str, Callable[[], Any]]


def jobs_of(phi: NDArray[np.float32]) -> list[Job]:
    """List what a user asks for, on one wall: redistancing, evolution, refinement, job R."""
    spacing = (1.0,) * phi.ndim
    grid = Grid.from_spacing(phi.shape, spacing)
    field, speed = 1.3 * phi, swaying(phi.shape)
    image = Volume(noisy_image(phi), grid)
    start = LevelSet(redistance(phi, spacing, band_mm=BAND), grid, BAND)
    flow = RefineSettings(energy="chan_vese", iterations=5, tolerance=1e-9)
    return [
        ("redistance, closest points", lambda: redistance(field, spacing, band_mm=BAND)),
        ("redistance, pde", lambda: redistance(field, spacing, band_mm=BAND, method="pde")),
        ("job R", lambda: job_r(start.phi_mm, speed)),
        ("chan_vese, 5 steps", lambda: refine(start, image, flow)),
        ("map to its own stop", lambda: refine(start, image)),
    ]


def job_r(phi: NDArray, speed: NDArray) -> NDArray:
    """Evolve in a speed field for 100 steps (ENO2, RK2) and redistance after every fifth."""
    spacing = (1.0,) * phi.ndim
    step = stable_time_step(spacing, speed=speed)
    for _ in range(STEPS // EVERY):
        phi = advect(phi, spacing, EVERY * step, speed=speed, scheme="eno2", time_step=step,
                     band_mm=BAND)  # fmt: skip
        phi = redistance(phi, spacing, band_mm=BAND)
    return phi


def swaying(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return a smooth speed field of both signs."""
    z, y, x = (np.arange(n, dtype=np.float32) / 12.0 for n in shape)
    waves = np.sin(z)[:, None, None] * np.sin(y)[:, None] * np.sin(x)
    return np.asarray(waves * np.float32(0.1), dtype=np.float32)


def noisy_image(phi: NDArray[np.float32]) -> NDArray[np.float32]:
    """Blurred lumen of unit contrast with noise."""
    share = occupancy(phi, (1.0,) * phi.ndim, 0.6, supersample=1)
    noise = np.random.default_rng(1).standard_normal(phi.shape, dtype=np.float32)
    return np.asarray(share + noise / np.float32(SNR), dtype=np.float32)


def job_row(name: str, job: Callable[[], Any], shape: tuple[int, ...]) -> dict[str, Any]:
    """Time a job."""
    return {"name": name, "shape": list(shape), **quantiles(seconds_of(job))}


def table(result: dict[str, Any]) -> str:
    """Render a profile for the terminal."""
    rates, facts = result["rates"], result["device"]
    threads = f", threads {facts['threads']}" if "threads" in facts else ""
    lines = [
        f"{facts['name']}{threads}: copies "
        f"{1e-9 * rates['copy_bytes_per_s']:.1f} GB/s, "
        f"{1e-9 * rates['operations_per_s']:.1f} G operations/s",
        f"{'kernel':<34}{'grid':>6}{'voxels':>11}{'ms':>10}{'floor':>10}{'share':>8}{'ns/voxel':>10}",
    ]
    for row in result["kernels"]:
        floor = row["fraction"] * row["median_ms"]
        lines.append(
            f"{row['name']:<34}{row['shape'][-1]:>6}{row['voxels']:>11}{row['median_ms']:>10.3f}"
            f"{floor:>10.3f}{row['fraction']:>8.0%}{1e6 * row['median_ms'] / row['voxels']:>10.2f}"
        )
    lines.append(f"{'job':<34}{'grid':>6}{'ms':>10}{'p10':>10}{'p90':>10}")
    lines += [
        f"{row['name']:<34}{row['shape'][-1]:>6}{row['median_ms']:>10.1f}{row['p10_ms']:>10.1f}"
        f"{row['p90_ms']:>10.1f}"
        for row in result["jobs"]
    ]
    return "\n".join([*lines, *result.get("wrong", [])])
