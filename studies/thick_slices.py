"""Thick slices: seen better by the 3-D network, or one by one by the 2-D network.

``python studies/thick_slices.py [--quick]`` writes ``results/thick_slices.json``. Volumes of the
training family, from a seed of their own, are averaged over slices 2 to 8 voxels thick; the 3-D
network resamples them to cubes, the 2-D one takes them slice by slice.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch

from vesselseg import metrics, synth
from vesselseg.fields import Case, Field, Probability, Volume
from vesselseg.grid import Grid
from vesselseg.infer import segment
from vesselseg.io.atomic import write_bytes
from vesselseg.nets import checkpoint
from vesselseg.solvers.redistancing import redistance

RESULTS = Path(__file__).parent / "results"
RATIOS = (2, 4, 6, 8)
RADII = ((1.5, 3.0), (3.0, 6.0), (6.0, 11.0))
SIDE = 96  # a multiple of all ratios
SEED = 7301
BAND = 8.0  # voxels
WALL = {"near_mean_mm": "wall error", "false_share": "false", "missed_share": "missed"}


def cases(draws: int) -> Iterator[Case]:
    """Yield volumes of cubes, bright blood among other organs."""
    common = {"anisotropy": 1.0, "snr": (8.0, 20.0), "empty": 0.0, "flow": 0.0, "black_blood": 0.0}
    for number in range(draws * len(RADII)):
        radius = RADII[number % len(RADII)]
        settings = synth.SynthSettings(shape=(SIDE,) * 3, radius=radius, **common)
        yield synth.case(SEED + number, 0, settings)


def sliced(case: Case, ratio: int) -> tuple[Volume, Field]:
    """Return the scan of slices ``ratio`` voxels thick, and the distance in their middles."""
    count = SIDE // ratio
    image = case.image[0].reshape(count, ratio, SIDE, SIDE).mean(1)
    middle = 0.5 * (case.phi[(ratio - 1) // 2 :: ratio] + case.phi[ratio // 2 :: ratio])
    return Volume(image, Grid.from_spacing(image.shape, (float(ratio), 1.0, 1.0))), middle


def level(found: Probability) -> Field:
    """Return the distance of a network, or that to where its probability is a half."""
    if found.phi_mm is not None:
        return found.phi_mm
    return redistance(0.5 - found.values, found.grid.spacing_mm, band_mm=BAND)


def judged(scan: Volume, truth: Field, dims: int) -> dict[str, float]:
    """Run a shipped network and compare; lengths in voxels of the plane."""
    clock = time.process_time()
    found = segment(scan, checkpoint.shipped(dims))
    row = {"CPU s": time.process_time() - clock}
    inside = found.values > 0.5
    row |= {"Dice": metrics.dice(inside, truth < 0), "clDice": metrics.cl_dice(inside, truth < 0)}
    if inside.any() and not inside.all() and (truth < 0).any():
        errors = metrics.wall_errors(level(found), truth.astype(float), scan.grid)
        row |= {name: errors[key] for key, name in WALL.items()}
    return row


def table(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the means of Dice and clDice and the medians of the rest."""
    lines = []
    for ratio in RATIOS:
        for dims in (3, 2):
            mine = [r for r in rows if (r["ratio"], r["dims"]) == (ratio, dims)]
            line: dict[str, Any] = {"slices": f"{ratio} voxels", "network": f"{dims}-D"}
            for name in ("Dice", "clDice", *WALL.values(), "CPU s"):
                of = np.nanmean if "ice" in name else np.nanmedian
                line[name] = float(of([r.get(name, np.nan) for r in mine]))
            lines.append(line)
    return lines


def main() -> None:
    """Run the study."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one case a radius, nothing is kept")
    parser.add_argument("--draws", type=int, default=4, help="cases a radius")
    given = parser.parse_args()
    torch.set_num_threads(1)  # waiting threads would count as work
    numba.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for number, case in enumerate(cases(1 if given.quick else given.draws)):
        for ratio in RATIOS:
            scan, truth = sliced(case, ratio)
            for dims in (3, 2):
                row = {"case": number, "ratio": ratio, "dims": dims, **judged(scan, truth, dims)}
                rows.append(row)
        print(f"case {number}", flush=True)
    made = table(rows)
    for line in made:
        print(json.dumps(line))
    if not given.quick:
        models = [checkpoint.load(checkpoint.shipped(dims)).model_id for dims in (3, 2)]
        held = {"models": models, "table": made, "rows": rows}
        write_bytes(RESULTS / "thick_slices.json", (json.dumps(held, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
