"""Which energy places the wall best, and at what cost? ``python studies/energies.py``.

Phantoms on which no setting was chosen, from the same start 1 voxel rms off the truth. The flows
get 60 steps: they need more of them than the posterior.
"""

from __future__ import annotations

from shipped import PLANAR, SHAPES, Shipped, main

SHIPPED = Shipped(
    name="energies",
    parts={
        "energies": {
            "cases": {"phantoms": SHAPES, "snr": [3, 6, 12], "draws": 2},
            "config": {"refine": {"iterations": 60}},
            "space": {"refine.energy": ["map", "chan_vese", "local", "gac"]},
            "keep": [],
        }
    },
    quick={"energies": {"cases": {**PLANAR, "snr": [3, 12]}}},
    by=("refine.energy", "snr"),
    metrics=("rms_voxel", "p95_voxel", "bias_voxel", "within_1", "within_2", "seconds"),
    figure="error_by_snr",
)

if __name__ == "__main__":
    main(SHIPPED)
