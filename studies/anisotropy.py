"""What do thick slices cost? ``python studies/anisotropy.py``.

The same vessels, radius 4 mm, in voxels of 1 mm whose slices grow to 4 mm. Errors are in mm: the
smallest voxel stays the same.
"""

from __future__ import annotations

from shipped import PLANAR, SHAPES, Shipped, main

SHIPPED = Shipped(
    name="anisotropy",
    parts={
        "anisotropy": {
            "cases": {
                "phantoms": SHAPES,
                "spacing": [[1, 1, 1], [1.5, 1, 1], [2, 1, 1], [3, 1, 1], [4, 1, 1]],
                "snr": 6,
                "draws": 2,
            },
            "space": {"refine.energy": ["map", "chan_vese"]},
            "keep": [],
            "metrics": ["rms_mm", "p95_mm", "bias_mm", "within_2", "normal_rms_deg"],
        }
    },
    quick={"anisotropy": {"cases": {**PLANAR, "spacing": [[1, 1], [2, 1], [3, 1]]}}},
    by=("refine.energy", "spacing"),
    metrics=("rms_mm", "p95_mm", "bias_mm", "within_2", "normal_rms_deg"),
    figure="heat_map",
)

if __name__ == "__main__":
    main(SHIPPED)
