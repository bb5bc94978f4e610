"""What if start, blur or prior are not as they should be? ``python studies/sensitivity.py``.

One thing varies at a time: the error of the start; the s.d. that a start of 1 voxel error claims;
the blur that is assumed where the true one is 0.6 voxels; the length over which intensities may
vary, under a bias field.
"""

from __future__ import annotations

from typing import Any

from shipped import PLANAR, SHAPES, Rows, Shipped, main

from vesselseg.study.results import means

PLAIN: dict[str, Any] = {"cases": {"phantoms": SHAPES, "snr": 6, "draws": 2}, "keep": []}
ERRORS = [0.25, 0.5, 1.0, 1.5, 2.0]
CLAIMS = [0.25, 0.5, 1.0, 2.0, 4.0]
BLURS = [0.3, 0.45, 0.6, 0.75, 0.9]
LENGTHS = [2.0, 4.0, 8.0, 16.0, 64.0]


def figure(found: dict[str, Rows]) -> Any:
    """Draw the wall's error against each thing that varies."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(11.0, 2.9), layout="constrained")
    FigureCanvasAgg(drawing)
    for axes, (name, cases) in zip(drawing.subplots(1, 4, sharey=True), found.items(), strict=True):
        rows = means(cases, (name,), ("rms_voxel",))
        axes.plot([row[name] for row in rows], [row["rms_voxel"] for row in rows], "o-")
        axes.set(xlabel=name)
        axes.grid(alpha=0.3)
    drawing.axes[0].set_ylim(bottom=0.0)  # shared, so not before all is drawn
    drawing.axes[0].set_ylabel("rms error of the wall, voxels")
    return drawing


SHIPPED = Shipped(
    name="sensitivity",
    parts={
        "start_error": {**PLAIN, "cases": {**PLAIN["cases"], "start_error": ERRORS}},
        "start_sd": {**PLAIN, "cases": {**PLAIN["cases"], "start_sd": CLAIMS}},
        "refine.psf": {**PLAIN, "space": {"refine.psf": BLURS}},
        "refine.means_length": {
            **PLAIN,
            "cases": {**PLAIN["cases"], "image": {"bias": 0.25}},
            "space": {"refine.means_length": LENGTHS},
        },
    },
    quick={
        "start_error": {"cases": {**PLANAR, "start_error": [0.5, 1.5]}},
        "start_sd": {"cases": {**PLANAR, "start_sd": [0.5, 2.0]}},
        "refine.psf": {"cases": PLANAR, "space": {"refine.psf": [0.3, 0.9]}},
        "refine.means_length": {"cases": PLANAR, "space": {"refine.means_length": [4.0, 16.0]}},
    },
    by=(),
    metrics=("rms_voxel", "p95_voxel", "bias_voxel", "within_2", "steps"),
    figure=figure,
)

if __name__ == "__main__":
    main(SHIPPED)
