"""Time what a user waits for: ``vesselseg prior`` and ``vesselseg demo``, and their memory.

``python studies/bench_path.py`` renders a bifurcation on 128³ voxels and runs each command as a
process of its own, first with an empty folder of compiled kernels, then with the folder that run
left; it writes ``studies/results/bench_path.json``. ``--size 48`` tries it out.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from vesselseg import device, phantoms
from vesselseg.io import write_image
from vesselseg.io.atomic import write_bytes
from vesselseg.synth.forward import ForwardModel, render

RESULT = Path(__file__).parent / "results" / "bench_path.json"
RADIUS = 10.0 / 128.0  # of the vessel, over the size of the scan


def timed(cache: Path, *arguments: str) -> dict[str, float]:
    """Run the command line in a process of its own; return its seconds and peak memory."""
    command = [sys.executable, "-m", "vesselseg", *arguments, "--quiet"]
    begin = time.perf_counter()
    environment = os.environ | {"NUMBA_CACHE_DIR": str(cache)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)  # this child alone
    seconds = time.perf_counter() - begin
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return {"seconds": round(seconds, 2), "peak_bytes": usage.ru_maxrss * 1024}


def bench(size: int, folder: Path) -> dict[str, dict[str, dict[str, float]]]:
    """Return the figures of each command, with empty and with filled caches."""
    shape = phantoms.make("bifurcation", radius=RADIUS * size)
    grid = shape.grid(1.0, shape=(size,) * 3)
    scan = render(shape.phi(grid), grid, ForwardModel(snr=6.0, psf_voxels=0.6), 0)
    write_image(folder / "scan.nii.gz", scan.values, grid)
    source, target = str(folder / "scan.nii.gz"), str(folder / "scan.prior.h5")
    commands = {
        "prior": ("prior", "-i", source, "-o", target, "--overwrite"),
        "demo": ("demo", "-o", str(folder / "out"), "--overwrite"),
    }
    return {
        name: {state: timed(folder / f"cache-{name}", *command) for state in ("cold", "warm")}
        for name, command in commands.items()
    }


def main() -> None:
    """Run, print and write."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--size", type=int, default=128, help="voxels along each axis of the scan")
    options.add_argument("-o", "--output", type=Path, default=RESULT)
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = bench(given.size, Path(folder))
    result = {
        "shape": [given.size] * 3,
        **figures,
        "cores": device.cores(),
        "python": platform.python_version(),
    }
    text = json.dumps(result, indent=1) + "\n"
    print(text, end="")
    write_bytes(given.output, text.encode())


if __name__ == "__main__":
    main()
