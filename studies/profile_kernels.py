"""How fast is every kernel, and how fast could it be? ``python studies/profile_kernels.py``.

What ``vesselseg profile`` measures, with other programs' redistancing and level-set steps in the
same run, as a result named for device and day and a picture: operations over bytes against the
two roofs of the machine, and each kernel's share of its floor. Needs a quiet machine.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vesselseg import device as machine
from vesselseg import profiling
from vesselseg.io.atomic import write_bytes

RESULTS = Path(__file__).parent / "results"
Peer = tuple[str, str, tuple[int, ...], Callable[[], Any]]  # name, our job, grid, call


def peers(size: int) -> Iterator[Peer]:
    """Other programs' answers to our jobs, those that are installed."""
    phi = profiling.vessel_tree(size)
    mask = phi < 0
    if importlib.util.find_spec("skfmm"):
        import skfmm

        field = np.asarray(1.3 * phi, dtype=np.float64)
        yield ("scikit-fmm, band", "redistance, closest points", phi.shape,
               lambda: skfmm.distance(field, narrow=profiling.BAND))  # fmt: skip
    from scipy import ndimage

    yield ("scipy distance transform", "redistance, closest points", phi.shape,
           lambda: ndimage.distance_transform_edt(mask))  # fmt: skip
    if importlib.util.find_spec("edt"):
        import edt

        yield ("edt", "redistance, closest points", phi.shape, lambda: edt.edt(mask))
    if importlib.util.find_spec("torch"):
        yield ("plain torch, 100 dense steps of first order", "job R", phi.shape,
               lambda: torch_steps(phi, profiling.swaying(phi.shape), "cpu"))  # fmt: skip
    from skimage import segmentation

    plane = np.asarray(profiling.noisy_image(phi)[size // 2], dtype=np.float64)
    yield ("scikit-image chan_vese, a plane, 50 steps", "chan_vese, 5 steps", plane.shape,
           lambda: segmentation.chan_vese(plane, max_num_iter=50, tol=0.0))  # fmt: skip


def peers_on(device: Any, size: int) -> Iterator[Peer]:
    """Return the same on a CUDA device, those that are installed; nobody has run this yet."""
    cupy = device.xp
    phi = profiling.vessel_tree(size)
    mask = cupy.asarray(phi < 0)
    from cupyx.scipy import ndimage

    yield ("cupyx distance transform", "redistance, closest points", phi.shape,
           lambda: ndimage.distance_transform_edt(mask))  # fmt: skip
    if importlib.util.find_spec("cucim"):
        from cucim.core.operations import morphology
        from cucim.skimage import segmentation

        yield ("cuCIM distance transform", "redistance, closest points", phi.shape,
               lambda: morphology.distance_transform_edt(mask))  # fmt: skip
        plane = cupy.asarray(profiling.noisy_image(phi)[size // 2], dtype=cupy.float64)
        ours = "chan_vese, 5 steps, arrays of the host"
        yield ("cuCIM chan_vese, a plane, 50 steps", ours, plane.shape,
               lambda: segmentation.chan_vese(plane, max_num_iter=50, tol=0.0))  # fmt: skip
    if importlib.util.find_spec("torch"):
        import torch

        if torch.cuda.is_available():
            name = f"cuda:{device.index}"
            field = torch.as_tensor(phi, device=name)
            speed = torch.as_tensor(profiling.swaying(phi.shape), device=name)

            def steps() -> None:
                torch_steps(field, speed, name)
                torch.cuda.synchronize(device.index)

            yield ("plain torch, 100 dense steps of first order", "job R", phi.shape, steps)


def measured_peers(chosen: str, quick: bool) -> Iterator[dict[str, Any]]:
    """Time the peers on the device that was profiled and on the processor, one after the other."""
    found = machine.choose(chosen)
    of_cpu = peers(profiling.QUICK[0] if quick else profiling.SIZES[0])
    runs: list[tuple[str, Iterator[Peer], Callable[[Any], list[float]]]]
    runs = [("cpu", of_cpu, profiling.seconds_of)]
    if found.name != "cpu":
        from vesselseg import profiling_gpu
        from vesselseg.cuda_kernels import launch

        gpu = launch.device(found.index)
        of_gpu = peers_on(gpu, profiling_gpu.QUICK[0] if quick else profiling_gpu.SIZES[1])
        runs.insert(0, (found.name, of_gpu, functools.partial(profiling_gpu.seconds_on, gpu)))
    for place, made, timer in runs:
        for name, ours, shape, call in made:
            times = profiling.quantiles(timer(call))
            yield {"name": name, "on": place, "beside": ours, "shape": list(shape), **times}


def torch_steps(phi: Any, speed: Any, device: str) -> Any:
    """Evolve by Godunov's scheme of first order on the whole grid, as a user of torch would."""
    import torch

    field, v = torch.as_tensor(phi, device=device), torch.as_tensor(speed, device=device)
    step = 0.5 / (3.0**0.5 * float(v.abs().max()))
    for _ in range(profiling.STEPS):
        total = torch.zeros_like(field)
        for axis in range(3):
            size = field.shape[axis]
            first, last = field.narrow(axis, 0, 1), field.narrow(axis, size - 1, 1)
            padded = torch.cat([first, field, last], axis)
            slope = torch.diff(padded, dim=axis)
            left, right = slope.narrow(axis, 0, size), slope.narrow(axis, 1, size)
            outward = torch.maximum(left.clamp(min=0) ** 2, right.clamp(max=0) ** 2)
            inward = torch.maximum(left.clamp(max=0) ** 2, right.clamp(min=0) ** 2)
            total += torch.where(v > 0, outward, inward)
        field = field - step * v * torch.sqrt(total)
    return field


def picture(result: dict[str, Any], path: Path) -> None:
    """Draw the roofs with the kernels below them, and each kernel's share of its floor."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    largest = max(row["shape"][-1] for row in result["kernels"])
    rows = list({row["name"]: row for row in result["kernels"]}.values())  # on its largest grid
    rates = result["rates"]
    copy, peak = rates["copy_bytes_per_s"], rates["operations_per_s"]
    figure, (roof, bars) = plt.subplots(1, 2, figsize=(10, 4.6), layout="constrained")
    intensity = np.geomspace(0.5, 100.0, 200)
    roof.loglog(intensity, 1e-9 * np.minimum(copy * intensity, peak), color="black")
    counted = [row for row in rows if row["operations_per_voxel"]]
    for row in counted:
        work = row["operations_per_voxel"] * row["voxels"]
        at = work / row["bytes"], 1e-6 * work / row["median_ms"]
        roof.plot(*at, "o")
        roof.annotate(row["name"], at, fontsize=7, ha="right", va="top")
    roof.set(xlabel="operations per byte", ylabel="G operations/s", title=f"up to {largest}³")
    roof.grid(alpha=0.3, which="both")
    places = np.arange(len(rows))[::-1]
    bars.barh(places, [100 * row["fraction"] for row in rows], color="tab:blue")
    bars.axvline(100, color="black", lw=0.8)
    bars.set_yticks(places, [row["name"] for row in rows], fontsize=7)
    bars.set(xlabel="share of the larger floor, %", xscale="log")
    figure.savefig(path, dpi=90)
    plt.close(figure)


def name_of(result: dict[str, Any]) -> str:
    """Return device and date as a file name."""
    facts = result["device"]
    count = facts.get("threads", 0)
    threads = f" {count} thread{'s' * (count > 1)}" if count else ""
    return re.sub(r"[^a-z0-9]+", "-", f"{facts['name']}{threads} {result['date']}".lower())


def main() -> None:
    """Measure, print, and write result and picture."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--device", default="cpu", help="cpu or cuda[:N]")
    options.add_argument("--quick", action="store_true", help="one small grid")
    options.add_argument("--check", action="store_true", help="CUDA kernels against twins, no time")
    options.add_argument("-o", "--output", type=Path, default=RESULTS, help="folder")
    given = options.parse_args()
    if given.check:
        sys.exit(checked(given.device))
    result: dict[str, Any] = profiling.profile(given.device, quick=given.quick) | {"peers": []}
    print(profiling.table(result))
    file = given.output / f"{name_of(result)}.json"

    def write() -> None:
        write_bytes(file, (json.dumps(result, indent=1) + "\n").encode(), overwrite=True)

    write()  # whatever the peers do
    picture(result, file.with_suffix(".png"))
    for row in measured_peers(given.device, given.quick):
        print(f"{row['name']}, {row['on']}: {row['median_ms']:.1f} ms")
        result["peers"].append(row)
        write()
    print(file)
    sys.exit(min(len(result.get("wrong", [])), 1))


def checked(name: str) -> int:
    """Compare every CUDA kernel of a device with its twin, without a time; tell if one is wrong."""
    from vesselseg import profiling_gpu
    from vesselseg.cuda_kernels import launch
    from vesselseg.fields import silent
    from vesselseg.solvers import flow_on_device, on_device

    gpu = launch.device(machine.choose(name).index)
    with on_device.current(gpu):
        right, wrong = profiling_gpu.sorted_out(gpu, 1, silent)
    print("\n".join([*wrong, f"{len(right)} kernels are right, {len(wrong)} wrong"]))
    print(f"a torus is redistanced to {flow_on_device.disagreement(gpu):.2g} voxels of the CPU")
    return min(len(wrong), 1)


if __name__ == "__main__":
    main()
