"""What the shipped network finds in the two bundled scans, none of which chose a setting.

``python studies/real_scans.py`` (a minute) segments the carotid angiogram and the mean speed of
the aorta, lists the components, and compares the aorta, as the network finds it and refined as the
image of a flow, with the mask of its flow data. It writes
``results/real_scans.json`` and ``.png``: brightest values along each axis above, depth of the
lumen below.
"""

from __future__ import annotations

import argparse
import io
import json
from importlib import resources
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from vesselseg import metrics
from vesselseg.fields import LevelSet, Probability, Volume
from vesselseg.infer import SegmentSettings, segment
from vesselseg.io import read_volume
from vesselseg.io.atomic import write_bytes
from vesselseg.solvers.refine import refine
from vesselseg.solvers.settings import RefineSettings
from vesselseg.solvers.topology import keep_components

RESULTS = Path(__file__).parent / "results"
DATA = Path(str(resources.files("vesselseg"))) / "data"
LISTED = 12

Mask = NDArray[np.bool_]


def components(mask: Mask) -> list[dict[str, Any]]:
    """Return voxels, share of the volume and extent of the largest components."""
    parts, count = ndimage.label(mask)
    boxes = ndimage.find_objects(parts)
    rows: list[dict[str, Any]] = [
        {
            "voxels": int(np.count_nonzero(parts[box] == number)),
            "box_kji": [[s.start, s.stop] for s in box],
        }
        for number, box in enumerate(boxes, 1)
    ]
    rows.sort(key=lambda row: -row["voxels"])
    for row in rows:
        row["share"] = round(row["voxels"] / mask.size, 5)
    return [{"components": count}, *rows[:LISTED]]


def found(volume: Volume, model: str | None, accurate: bool) -> Probability:
    """Return where the network sees the lumen."""
    return segment(volume, model, SegmentSettings(accurate=accurate))


def agreement(lumen: Mask, mask: Mask) -> dict[str, float]:
    """Compare a lumen with a mask."""
    both = np.count_nonzero(lumen & mask)
    shares = {
        "dice": metrics.dice(lumen, mask),
        "share_of_the_mask_found": both / np.count_nonzero(mask),
        "share_of_the_lumen_in_the_mask": both / max(1, np.count_nonzero(lumen)),
    }
    return {name: round(float(value), 3) for name, value in shares.items()}


def picture(pairs: list[tuple[Volume, Mask]]) -> bytes:
    """Draw projections of scans and lumens."""
    from matplotlib.figure import Figure

    figure = Figure((15, 6), layout="constrained")
    panels = figure.subplots(2, 3 * len(pairs))
    for number, (volume, mask) in enumerate(pairs):
        for axis in range(3):
            column = 3 * number + axis
            panels[0, column].imshow(volume.values.max(axis), cmap="gray", aspect="auto")
            panels[1, column].imshow(mask.sum(axis), cmap="magma", aspect="auto")
    for panel in panels.ravel():
        panel.set_axis_off()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=80)
    return buffer.getvalue()


def main() -> None:
    """Segment both scans and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="checkpoint; default: the shipped one")
    parser.add_argument("--accurate", action="store_true")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    carotid = read_volume(DATA / "carotid.nii.gz")
    aorta = read_volume(DATA / "aorta-velocity.h5", frame="mean")
    with h5py.File(DATA / "aorta-velocity.h5") as file:
        flow = np.asarray(file["mask"][0].T, dtype=bool)
    seen = [found(v, arguments.model, arguments.accurate) for v in (carotid, aorta)]
    lumens = [np.asarray(one.values > 0.5) for one in seen]
    wall = refine(LevelSet.from_probability(seen[1]), aorta, RefineSettings(profile="flow"))
    refined = keep_components(wall.level_set.phi_mm, "all")[0] < 0
    result = {
        "carotid": components(lumens[0]),
        "aorta": components(lumens[1]),
        "aorta_against_mask": agreement(lumens[1], flow),
        "refined_aorta_against_mask": agreement(refined, flow),
    }
    print(json.dumps(result, indent=1))
    write_bytes(
        arguments.output / "real_scans.json", (json.dumps(result, indent=1) + "\n").encode()
    )
    pairs = list(zip((carotid, aorta), lumens, strict=True))
    write_bytes(arguments.output / "real_scans.png", picture(pairs))


if __name__ == "__main__":
    main()
