"""Time the generator and the network: volumes per second, seconds and memory of a scan.

``python studies/bench_net.py`` (two minutes on two idle cores) draws 24 cases of 64³ on one core,
then segments noisy vessels of 64³, 128³ and 256³ voxels with the shipped weights, each in a
process of its own, and measures how far bfloat16 moves the wall. It writes
``results/bench_net.json``. ``--quick`` leaves out 256³.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from vesselseg import synth
from vesselseg.fields import Volume
from vesselseg.grid import Grid
from vesselseg.io.atomic import write_bytes

RESULT = Path(__file__).parent / "results" / "bench_net.json"
CASES = 24
SEED = 77
TRIALS = 4  # cases on which bfloat16 is compared with float32


def generator() -> dict[str, float]:
    """Return the cases of 64³ that one core draws in a second, geometry and image."""
    settings = synth.SynthSettings()
    synth.case(SEED, 0, settings)  # compiles
    start = time.process_time()
    for index in range(2, 2 + CASES):
        synth.case(SEED, index, settings)
    return {"volumes_per_core_second": round(CASES / (time.process_time() - start), 2)}


def scan(side: int) -> Volume:
    """Return a synthetic scan: cases of 128³ or less, side by side."""
    block = min(side, 128)
    settings = synth.SynthSettings(shape=(block,) * 3, empty=0.0, flow=0.0, black_blood=0.0)
    image = synth.case(SEED, 0, settings).image[0]
    values = np.tile(image, (side // block,) * 3)
    return Volume(values, Grid.from_spacing(values.shape, 1.0))


def inference(side: int, model: str | None, threads: int) -> dict[str, float]:
    """Segment one scan, the weights being loaded; return seconds, CPU seconds and peak memory."""
    import torch

    from vesselseg.infer import segment

    torch.set_num_threads(threads)
    volume = scan(side)
    segment(scan(32), model)
    wall, cpu = time.perf_counter(), time.process_time()
    segment(volume, model)
    seconds = {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {name: round(value, 2) for name, value in seconds.items()} | {"peak_bytes": peak}


def shift_of_bfloat16(model: str | None) -> dict[str, float]:
    """Return the r.m.s. distance in voxels by which bfloat16 moves the wall, over some cases."""
    from vesselseg import metrics
    from vesselseg.infer import SegmentSettings, segment

    moves = []
    settings = synth.SynthSettings(flow=0.0, empty=0.0, black_blood=0.0)
    for index in range(0, 2 * TRIALS, 2):
        image = synth.case(SEED + 1, index, settings).image[0]
        volume = Volume(image, Grid.from_spacing(image.shape, 1.0))
        low, full = (segment(volume, model, SegmentSettings(bf16=b)) for b in (True, False))
        if low.phi_mm is None or full.phi_mm is None or not (low.phi_mm < 0).any():
            continue
        wall = metrics.wall(low.phi_mm, 1.0)
        value = metrics.sample(full.phi_mm.astype(float), wall.index)
        slope = np.stack(np.gradient(full.phi_mm.astype(float)))
        steep = np.sqrt(sum(metrics.sample(s, wall.index) ** 2 for s in slope))
        moves.append(np.abs(value) / np.maximum(steep, 0.2))
    near = np.concatenate(moves)
    return {
        "rms_voxel": round(float(np.sqrt(np.mean(near**2))), 4),
        "median_voxel": round(float(np.median(near)), 4),
        "p95_voxel": round(float(np.percentile(near, 95)), 4),
    }


def main() -> None:
    """Run the measurements and write them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="checkpoint; default: the shipped one")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--side", type=int, help=argparse.SUPPRESS)
    parser.add_argument("-o", "--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(inference(arguments.side, arguments.model, arguments.threads)))
        return
    found = {"processor": platform.machine(), "threads": arguments.threads}
    found |= {"generator": generator()}
    for side in (64, 128) if arguments.quick else (64, 128, 256):
        command = [sys.executable, __file__, "--side", str(side)]
        command += ["--threads", str(arguments.threads)]
        command += ["--model", arguments.model] if arguments.model else []
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        found[f"inference {side}"] = json.loads(output)
        print(side, found[f"inference {side}"], flush=True)
    found["bfloat16"] = shift_of_bfloat16(arguments.model)
    print(json.dumps(found, indent=1))
    write_bytes(arguments.output, (json.dumps(found, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
