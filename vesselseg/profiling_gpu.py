"""The profile of a CUDA device: what ``vesselseg.profiling`` does, by events on its stream."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .cuda_kernels.catalogue import KERNELS, instances
from .cuda_kernels.examples import example
from .errors import NumericalError
from .fields import Progress
from .profiling import (
    BAND,
    EVERY,
    MOST_SECONDS,
    REPEATS,
    SMALL,
    STEPS,
    job_r,
    noisy_image,
    quantiles,
    swaying,
    vessel_tree,
)
from .solvers import map_on_device, on_device, redistance, stable_time_step
from .solvers.refine import problem_of, refine_array
from .solvers.schemes import SCHEMES
from .solvers.settings import RefineSettings

SIZES = (128, 256, 512)
QUICK = (64,)
KERNEL_SIZE = 128  # of the kernels: their twins make what they are compared with
LARGE = 256  # of those that go through whole fields, which must not fit into a cache
DENSE = (
    "reinit_dense<float,5>",
    "reinit_dense<float,2>",
    "advect_dense<float,5>",
    "band_clamp<float>",
    "collect_tiles<float>",
    "copy<float>",
)
JOB_CHECKED = 128  # largest grid on which job R is compared with the CPU
COPIED_BYTES = 2**30
ROUNDS = 4096  # of 64 operations a lane
LANES = 4 * 8 * 256  # for each multiprocessor: four for each of its threads
Call = Callable[[], Any]


def measured(device: Any, quick: bool, seed: int, progress: Progress) -> dict[str, Any]:
    """Measure rates, kernels and jobs of a device; see ``profiling.profile``."""
    with on_device.current(device):
        progress("profile", 0.0, "memory and arithmetic")
        rates = {"copy_bytes_per_s": copy_rate(device), "operations_per_s": issue_rate(device)}
        right, wrong = sorted_out(device, seed, progress)
        work = [(name, QUICK[0] if quick else KERNEL_SIZE) for name in right]
        work += [(name, LARGE) for name in DENSE if name in right and not quick]
        kernels = []
        for n, (name, size) in enumerate(work):
            progress("profile", 0.15 + 0.5 * n / len(work), name)
            row = kernel_row(device, name, size, seed, rates)
            kernels.append(row | {"max_error": right[name]})
        jobs: list[dict[str, Any]] = []
        for n, size in enumerate(sizes := QUICK if quick else SIZES):
            progress("profile", 0.7 + 0.3 * n / len(sizes), f"jobs, {size}³")
            jobs += jobs_on(device, vessel_tree(size))
    return {"rates": rates, "kernels": kernels, "jobs": jobs, "wrong": wrong}


def sorted_out(device: Any, seed: int, progress: Progress) -> tuple[dict[str, float], list[str]]:
    """Compare every kernel with its twin: the errors of those that are right, what is wrong."""
    right: dict[str, float] = {}
    wrong: list[str] = []
    names = [n for n in instances() if "double,double" not in n and "<double" not in n]
    for n, name in enumerate(names):
        progress("profile", 0.05 + 0.1 * n / len(names), name)
        try:
            right[name] = checked(device, name, seed)
        except NumericalError as error:
            wrong.append(error.line())
    return right, wrong


def gpu_facts(device: Any) -> dict[str, Any]:
    """Name, driver, libraries and size of a CUDA device."""
    cupy = device.xp
    facts = cupy.cuda.runtime.getDeviceProperties(device.index)
    return {
        "kind": "cuda",
        "name": facts["name"].decode(),
        "driver": cupy.cuda.runtime.driverGetVersion(),
        "runtime": cupy.cuda.runtime.runtimeGetVersion(),
        "cupy": cupy.__version__,
        "multiprocessors": device.multiprocessors,
        "memory_bytes": int(facts["totalGlobalMem"]),
        "l2_bytes": int(facts["l2CacheSize"]),
        "clock_mhz": cupy.cuda.Device(device.index).attributes.get("ClockRate", 0) / 1e3,
    }


# --- times -------------------------------------------------------------------------------------


@contextmanager
def named(device: Any, name: str) -> Iterator[None]:
    """Mark a range that NVIDIA's profilers show by its name."""
    cuda = getattr(device.xp, "cuda", None)
    if cuda is None:
        yield
        return
    cuda.nvtx.RangePush(name)
    try:
        yield
    finally:
        cuda.nvtx.RangePop()


def seconds_on(device: Any, call: Call, before: Call = lambda: None) -> list[float]:
    """Seconds on the device of several calls, after one that does not count."""
    taken: list[float] = []
    while len(taken) < 2 or (len(taken) <= REPEATS and sum(taken) < MOST_SECONDS):
        before()
        taken.append(once(device, call))
    return taken[1:]


def once(device: Any, call: Call) -> float:
    """Seconds of a call between two events of the stream, or by the clock of the host."""
    cuda = getattr(device.xp, "cuda", None)
    if cuda is None:
        clock = time.perf_counter()
        call()
        return time.perf_counter() - clock
    first, last = cuda.Event(), cuda.Event()
    first.record()
    call()
    last.record()
    last.synchronize()
    return 1e-3 * float(cuda.get_elapsed_time(first, last))


def copy_rate(device: Any) -> float:
    """Bytes per second, read and written, of copying a large array."""
    words = COPIED_BYTES // 4 if hasattr(device.xp, "cuda") else 2**16
    source, out = device.xp.zeros(words, np.float32), device.xp.ones(words, np.float32)
    replay = device.record(lambda: device.launch("copy<float>", source, out, words))
    return 8.0 * words / min(seconds_on(device, replay))


def issue_rate(device: Any) -> float:
    """Lane-instructions per second of independent fused multiply-adds in registers."""
    lanes = LANES * device.multiprocessors
    rounds = ROUNDS if hasattr(device.xp, "cuda") else 1
    values = device.xp.ones(lanes, np.float32)
    replay = device.record(lambda: device.launch("calculate", values, 0.999, 1e-3, rounds, lanes))
    return 64.0 * int(lanes) * rounds / min(seconds_on(device, replay))


# --- kernels -----------------------------------------------------------------------------------


def moved(device: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return copies of an example's arrays on the device, its numbers as they are."""
    return tuple(device.xp.array(a) if isinstance(a, np.ndarray) else a for a in args)


def checked(device: Any, name: str, seed: int) -> float:
    """Compare a kernel with its twin on random input and poisoned output; return the error."""
    case = example(name, SMALL, seed)
    args = moved(device, case.args)
    device.launch(name, *args)
    back = tuple(
        on_device.to_host(device, a) if isinstance(b, np.ndarray) else a
        for a, b in zip(args, case.args, strict=True)
    )
    # The example allows for one order of rounding; a device contracts and divides in its own.
    error = float(case.error(back))
    if not error <= max(4.0 * case.tolerance, 1e-6):
        raise NumericalError(
            f"kernel {name} is wrong", found=f"error {error:.2g}", need=f"{case.tolerance:.2g}"
        )
    return error


def kernel_row(
    device: Any, name: str, size: int, seed: int, rates: dict[str, float]
) -> dict[str, Any]:
    """Time a kernel as a graph of one launch, its arguments given anew before each."""
    case = example(name, (size,) * 3, seed)
    args, given = moved(device, case.args), moved(device, case.args)
    arrays = [(a, b) for a, b in zip(args, given, strict=True) if hasattr(a, "dtype") and a.ndim]

    def before() -> None:
        for a, b in arrays:
            a[...] = b

    with named(device, name):
        taken = seconds_on(device, device.record(lambda: device.launch(name, *args)), before)
    used = resources(device, name)
    kernel = KERNELS[name.partition("<")[0]]
    work = case.visited * (used.get("sass_per_voxel") or 0)
    bytes_ = case.visited * kernel.bytes
    floor_bytes = 1e3 * bytes_ / rates["copy_bytes_per_s"]
    floor_issue = 1e3 * work / rates["operations_per_s"]
    row = {
        "name": name,
        "shape": [size] * 3,
        "voxels": case.visited,
        "bytes": int(bytes_),
        "operations_per_voxel": used.get("sass_per_voxel"),
        "floor_bytes_ms": floor_bytes,
        "floor_operations_ms": floor_issue or None,
        **used,
        **quantiles(taken),
    }
    return row | {"fraction": max(floor_bytes, floor_issue) / row["median_ms"]}


def resources(device: Any, name: str) -> dict[str, Any]:
    """Return registers, spills, shared memory and instructions of a kernel on this chip."""
    if not hasattr(device.xp, "cuda"):
        return {}
    from .cuda_kernels import nvrtc

    if nvrtc.library() is None:
        return {}
    chip = device.xp.cuda.Device(device.index).compute_capability
    found = nvrtc.resources(name, f"sm_{chip}")
    return {
        "sass_per_voxel": found.per_voxel,
        "regs": found.registers,
        "spill_bytes": found.spill_bytes,
        "smem": found.shared_bytes,
    }


# --- jobs --------------------------------------------------------------------------------------


def jobs_on(device: Any, phi: NDArray[np.float32]) -> list[dict[str, Any]]:
    """Time redistancing, job R with a graph and without, refinements, on one vessel tree."""
    spacing, xp = (1.0,) * 3, device.xp
    start, speed = redistance(phi, spacing, band_mm=BAND), swaying(phi.shape)
    field = xp.array(start)
    box = on_device.box_of(device, field, spacing)
    band, room, buffer = on_device.band_for(box), on_device.layers_for(box), box.empty()
    source = xp.array(1.3 * phi)
    alone = device.record(lambda: on_device.launch_redistance(box, room, source, BAND, buffer))
    step = stable_time_step(spacing, speed=speed)
    clock = xp.asarray(np.array([step, float(EVERY), 0.0]))
    drive = on_device.Drive(xp.asarray(speed.reshape(-1)), None, None)
    scheme = SCHEMES["eno2"]
    part = device.record(
        lambda: on_device.launch_evolution(
            box, band, room, drive, scheme, field, [buffer], clock, EVERY, BAND
        )
    )
    given = xp.array(start)

    def again() -> None:
        field[...] = given

    def replayed() -> None:
        for _ in range(STEPS // EVERY):
            part()

    def plain() -> None:
        for _ in range(STEPS // EVERY):
            for launch in part.launches:
                launch()

    rows = []
    for name, call in (
        ("redistance, closest points", alone),
        ("job R", replayed),
        ("job R without graph", plain),
    ):
        with named(device, name):
            taken = seconds_on(device, call, again)
        rows.append({"name": name, "shape": list(phi.shape), **quantiles(taken)})
    again()
    clock_of_host = time.perf_counter()
    replayed()
    rows[1]["host_ms"] = 1e3 * (time.perf_counter() - clock_of_host)
    rows[1]["graph"] = part.graph is not None
    if max(phi.shape) <= JOB_CHECKED:
        rows[1] |= compared(on_device.to_host(device, field), job_r(start, speed))
    rows[1]["peak_bytes"] = pool_bytes(device)
    return rows + refinements_on(device, phi, start)


def compared(found: NDArray, expected: NDArray) -> dict[str, float]:
    """Largest difference in voxels, and how far from the wall a voxel changed sides."""
    differing = np.abs(expected[(found < 0) != (expected < 0)])
    return {
        "max_error": float(np.abs(found - expected).max()),
        "farthest_differing": float(differing.max(initial=0.0)),
    }


def pool_bytes(device: Any) -> int | None:
    """Bytes that CuPy has taken from the device."""
    if not hasattr(device.xp, "cuda"):
        return None
    return int(device.xp.get_default_memory_pool().total_bytes())


def refinements_on(device: Any, phi: NDArray[np.float32], start: NDArray) -> list[dict[str, Any]]:
    """Time refinements as a user calls them, on arrays of the host and of the device, and a step.

    The first call makes room and records, the others take what it kept.
    """
    spacing, image = (1.0,) * 3, noisy_image(phi)
    flow = RefineSettings(energy="chan_vese", iterations=5, tolerance=1e-9)
    of_host = "arrays of the host", (start, image)
    of_device = "arrays of the device", (device.xp.array(start), device.xp.array(image))
    rows = []
    for name, settings, (place, (wall, scan)) in (
        ("chan_vese, 5 steps", flow, of_host),
        ("map to its own stop", None, of_host),
        ("map to its own stop", None, of_device),
    ):
        taken = []
        with named(device, name):
            for _ in range(3):
                clock = time.perf_counter()
                found = refine_array(wall, scan, spacing, settings, band_mm=BAND, device=device)
                taken.append(time.perf_counter() - clock)
        rows.append({"name": f"{name}, {place}", "shape": list(phi.shape),
                     **quantiles(taken[1:]), "first_ms": 1e3 * taken[0],
                     "steps": len(found.history)})  # fmt: skip
    device.release()
    return [*rows, map_step_on(device, start, image)]


def map_step_on(device: Any, start: NDArray, image: NDArray) -> dict[str, Any]:
    """Time one step of ``map`` as a replayed graph, and how long the host is busy with it."""
    problem = problem_of(start, image, (1.0,) * 3, RefineSettings(), band_mm=BAND)
    clock = time.perf_counter()
    to = map_on_device.opened(device, problem)
    step = to.steps["step"]
    recorded = time.perf_counter() - clock

    def again() -> None:
        to.phi[...] = to.start

    with named(device, "map, a step"):
        taken = seconds_on(device, step, again)
    again()
    clock = time.perf_counter()
    step()
    return {
        "name": "map, a step", "shape": list(problem.start.shape), **quantiles(taken),
        "host_ms": 1e3 * (time.perf_counter() - clock), "recording_ms": 1e3 * recorded,
        "launches": len(step.launches), "graph": step.graph is not None,
        "peak_bytes": pool_bytes(device),
    }  # fmt: skip
