"""What does every CUDA kernel take of a chip? Registers, spills, shared memory, instructions.

    python studies/cuda_resources.py [--quick]

Needs NVIDIA's runtime compiler (``pip install nvidia-cuda-nvrtc-cu12``), no device. Nothing here is
a time. ``--quick`` compiles the float32 stencils for one architecture.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

from vesselseg.cuda_kernels import nvrtc
from vesselseg.cuda_kernels.catalogue import instances

OUT = Path(__file__).parent / "results" / "cuda_resources.json"
QUICK = ("advect_tiles<float,5>", "reinit_dense<float,5>", "grow_closest<float,double>")


def main() -> None:
    """Compile, print a table, write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("-o", "--out", type=Path, default=None)
    given = parser.parse_args()
    names = QUICK if given.quick else instances()
    architectures = ("sm_90",) if given.quick else nvrtc.ARCHITECTURES
    rows = []
    print("| instance | architecture | registers | spilt bytes | shared bytes | SASS | per voxel |")
    print("|---|---|---|---|---|---|---|")
    for name in names:
        for architecture in architectures:
            r = nvrtc.resources(name, architecture)
            rows.append(dataclasses.asdict(r))
            print(
                f"| `{name}` | {architecture} | {r.registers} | {r.spill_bytes} | "
                f"{r.shared_bytes} | {r.instructions} | {r.per_voxel or '-'} |",
                flush=True,
            )
    target = given.out or (None if given.quick else OUT)
    if target is not None:
        found = {"nvrtc": nvrtc.version(), "kernels": rows}
        target.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
