"""Time each stage of the path on a 128³ scan, and its memory.

``python studies/bench_path.py`` renders a bifurcation of 10 voxels radius, runs the path twice in
one process - the first run compiles - and writes ``studies/results/bench_path.json``.
"""

from __future__ import annotations

import json
import platform
import resource
import time
from pathlib import Path
from typing import Any

from vesselseg import device, phantoms
from vesselseg.forward import ForwardModel, render
from vesselseg.io.atomic import write_bytes
from vesselseg.pipeline import build_prior

RESULT = Path(__file__).parent / "results" / "bench_path.json"
SHAPE = (128, 128, 128)


def run(volume: Any) -> dict[str, float]:
    """Return the seconds of each stage as the progress reports tell them, and the total."""
    begin = last = time.perf_counter()
    seconds: dict[str, float] = {}
    current = ""

    def report(stage: str, fraction: float, message: str) -> None:
        nonlocal last, current
        now = time.perf_counter()
        current = current or stage  # what comes before the first report belongs to its stage
        seconds[current] = seconds.get(current, 0.0) + now - last
        last, current = now, stage

    prior = build_prior(volume, progress=report)
    report("end", 1.0, "")
    encoding = time.perf_counter()
    prior.to_bytes()
    seconds["encode"] = time.perf_counter() - encoding
    return {**{k: round(v, 2) for k, v in seconds.items()}, "total": round(last - begin, 2)}


def main() -> None:
    """Run, print and write."""
    shape = phantoms.make("bifurcation", radius=10.0)
    grid = shape.grid(1.0, shape=SHAPE)
    volume = render(shape.phi(grid), grid, ForwardModel(snr=6.0, psf_voxels=0.6), 0)
    first, second = run(volume), run(volume)
    result = {
        "shape": SHAPE,
        "first_run_s": first,
        "second_run_s": second,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "cores": device.cores(),
        "python": platform.python_version(),
    }
    print(json.dumps(result, indent=1))
    write_bytes(RESULT, json.dumps(result, indent=1).encode())


if __name__ == "__main__":
    main()
