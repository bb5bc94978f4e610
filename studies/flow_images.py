"""What the wall of a scan is worth that shows the flow alone: speed, or magnitude times speed.

``python studies/flow_images.py [--quick]`` writes ``results/flow_images.json``: scans
of Poiseuille flow in vessels that chose no setting, four encodings blurred and made noisy as
complex images. The network's wall is refined on the speed and on the PC-MRA image, taken for blood
that is bright up to the wall and for a flow that rests there; for scale also on the magnitude.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np

from vesselseg import metrics, phantoms
from vesselseg.errors import InputError
from vesselseg.fields import Field, LevelSet, Volume
from vesselseg.grid import Grid
from vesselseg.infer import segment
from vesselseg.io.atomic import write_bytes
from vesselseg.pipeline import speed
from vesselseg.solvers.refine import refine
from vesselseg.solvers.settings import RefineSettings
from vesselseg.synth.flow_mri import FlowModel, flow_scan

RESULTS = Path(__file__).parent / "results"
SHAPES, RADII, SNRS = ("helix", "curved_tube"), (2.5, 4.0, 6.5), (8.0, 20.0)
MEAN_MS = 0.35
FIGURES = {"near_mean_voxel": "wall error", "bias_voxel": "bias", "within_2": "within 2 s.d."}
WAYS = {
    "the magnitude, for scale": ("magnitude", "lumen"),
    "speed, as blood": ("speed", "lumen"),
    "speed, as a flow": ("speed", "flow"),
    "PC-MRA, as blood": ("PC-MRA", "lumen"),
    "PC-MRA, as a flow": ("PC-MRA", "flow"),
}


def scanned(name: str, radius: float, snr: float) -> tuple[dict[str, Volume], Field]:
    """Return the images of a flow through a vessel, and its distance."""
    shape = phantoms.make(name, radius=radius)
    grid = shape.grid(1.0)
    area = np.pi * (1e-3 * radius) ** 2
    flow = np.full(len(shape.axis_radius), MEAN_MS * area)
    ((magnitude, velocity),) = flow_scan(shape, grid, flow, FlowModel(snr=snr), [1])
    seen = speed(velocity)
    product = Volume(magnitude.values * seen.values, grid, name)
    return {"magnitude": magnitude, "speed": seen, "PC-MRA": product}, shape.phi(grid)


def errors(phi: Field, truth: Field, sigma: Field, grid: Grid) -> dict[str, float]:
    """Return what the table shows of a wall."""
    found = metrics.wall_errors(phi, truth, grid) | metrics.coverage(phi, truth, sigma, grid)
    return {name: float(found[key]) for key, name in FIGURES.items()}


def judged(images: dict[str, Volume], truth: Field) -> list[dict[str, Any]]:
    """Return a row for each image: its network's wall, and that refined in each way."""
    rows: list[dict[str, Any]] = []
    for kind, image in images.items():
        seen = segment(image)
        profiles = [profile for one, profile in WAYS.values() if one == kind]
        if seen.phi_mm is None or seen.sigma_mm is None or not (seen.phi_mm < 0).any():
            rows += [{"image": kind, "profile": p} for p in ("network", *profiles)]
            continue
        network = errors(seen.phi_mm, truth, seen.sigma_mm, image.grid)
        rows.append({"image": kind, "profile": "network"} | network)
        for profile in profiles:
            row: dict[str, Any] = {"image": kind, "profile": profile}
            try:
                wall = refine(
                    LevelSet.from_probability(seen), image, RefineSettings(profile=profile)
                )
            except InputError as fault:
                rows.append(row | {"fault": str(fault)})
                continue
            phi = wall.level_set.phi_mm
            rows.append(row | errors(phi, truth, wall.sigma_mm, image.grid))
    return rows


def table(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return medians over scans, the network's and the refined wall's."""

    def medians(kind: str, profile: str) -> list[str]:
        mine = [r for r in rows if (r["image"], r["profile"]) == (kind, profile)]
        return [f"{np.nanmedian([r.get(f, np.nan) for r in mine]):.2f}" for f in FIGURES.values()]

    lines = []
    for way, (kind, profile) in WAYS.items():
        mine = [r for r in rows if (r["image"], r["profile"]) == (kind, profile)]
        lost = sum("wall error" not in r for r in mine)
        line: dict[str, Any] = {"image": way, "scans": len(mine), "lost": lost}
        line |= dict(zip((f"network's {f}" for f in FIGURES.values()), medians(kind, "network"),
                         strict=True))  # fmt: skip
        line |= dict(zip((f"refined {f}" for f in FIGURES.values()), medians(kind, profile),
                         strict=True))  # fmt: skip
        lines.append(line)
    return lines


def main() -> None:
    """Scan, refine and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one vessel")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    cases = list(itertools.product(SHAPES, RADII, SNRS))
    rows = []
    for name, radius, snr in cases[:1] if arguments.quick else cases:
        facts = {"shape": name, "radius_voxels": radius, "snr": snr}
        rows += [facts | row for row in judged(*scanned(name, radius, snr))]
        print(json.dumps(rows[-1]), flush=True)
    full = {"table": table(rows), "rows": rows}
    write_bytes(arguments.output / "flow_images.json", (json.dumps(full, indent=1) + "\n").encode())
    print(json.dumps(full["table"], indent=1))


if __name__ == "__main__":
    main()
