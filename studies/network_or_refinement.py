"""When is the refinement worth it? ``python studies/network_or_refinement.py``.

The network's wall and the same wall after refinement, by signal-to-noise ratio and lumen radius.
Where the network finds no lumen, both miss the truth by the radius, and the case counts as lost.
"""

from __future__ import annotations

from typing import Any

from shipped import PLANAR, SHAPES, Rows, Shipped, main

from vesselseg import metrics
from vesselseg.study import CaseInput
from vesselseg.study.results import means

RADII = [2, 3, 4, 6]
FIGURES = ("network_rms", "refined_rms", "network_p95", "refined_p95")


def both(case: CaseInput, parameters: dict[str, Any]) -> dict[str, float]:
    """Return the errors of the network's wall and of the refined one, in voxels."""
    from vesselseg.errors import NoInterfaceError
    from vesselseg.fields import LevelSet
    from vesselseg.infer import segment
    from vesselseg.solvers.refine import refine

    volume = case.volume()
    truth = case.truth(volume)
    try:
        network = LevelSet.from_probability(segment(volume))
        refined = refine(network, volume).level_set
    except NoInterfaceError:
        missed = case.facts["radius"] / volume.grid.h_min
        return {**dict.fromkeys(FIGURES, missed), "ratio": 1.0, "lost": 1}
    found = {}
    for name, wall in (("network", network), ("refined", refined)):
        errors = metrics.wall_errors(wall.phi_mm, truth, volume.grid)
        found |= {f"{name}_{k}": errors[f"{k}_voxel"] for k in ("rms", "p95")}
    return {**found, "ratio": found["refined_rms"] / found["network_rms"], "lost": 0}


def figure(found: dict[str, Rows]) -> Any:
    """Draw both errors against the radius, a panel a ratio."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = means(found["walls"], ("snr", "radius"), ("network_rms", "refined_rms"))
    ratios = sorted({row["snr"] for row in rows})
    drawing = Figure(figsize=(3.2 * len(ratios), 2.9), layout="constrained")
    FigureCanvasAgg(drawing)
    for axes, snr in zip(drawing.subplots(1, len(ratios), sharey=True), ratios, strict=True):
        line = [row for row in rows if row["snr"] == snr]
        for name, mark in (("network", "s-"), ("refined", "o-")):
            axes.plot([r["radius"] for r in line], [r[f"{name}_rms"] for r in line], mark,
                      label=name)  # fmt: skip
        axes.set(title=f"SNR {snr:g}", xlabel="radius, voxels")
        axes.grid(alpha=0.3)
    drawing.axes[0].set_ylim(bottom=0.0)  # shared, so not before all is drawn
    drawing.axes[0].set_ylabel("rms error of the wall, voxels")
    drawing.axes[0].legend()
    return drawing


SHIPPED = Shipped(
    name="network_or_refinement",
    parts={
        "walls": {
            "stage": both,
            "cases": {"phantoms": SHAPES, "radius": RADII, "snr": [3, 6, 12], "draws": 2},
        }
    },
    quick={"walls": {"cases": {**PLANAR, "radius": [4, 8], "snr": [3, 12]}}},
    by=("snr", "radius"),
    metrics=(*FIGURES, "ratio", "lost"),
    figure=figure,
)

if __name__ == "__main__":
    main(SHIPPED)
