"""What does a higher order cost, and what does it buy? ``python studies/scheme_order.py``.

A torus and a sphere grow by one mm at unit speed: the exact wall is the old one, offset. The error
of the wall and the processor's time, over schemes and voxel sizes.
"""

from __future__ import annotations

import time
from typing import Any

from shipped import Rows, Shipped, main

from vesselseg import metrics, phantoms
from vesselseg.study import CaseInput
from vesselseg.study.plots import pareto
from vesselseg.study.results import means

VOXELS = [1.0, 0.7, 0.5, 0.35]
REPEATS = 2


def grown(case: CaseInput, parameters: dict[str, Any]) -> dict[str, float]:
    """Return the error of the offset wall and the seconds that it took."""
    from vesselseg.solvers.evolution import advect

    shape = phantoms.make(case.facts["phantom"], radius=case.facts["radius"])
    grid = shape.grid(parameters["voxel_mm"], margin_mm=5.0)
    phi = shape.phi(grid)
    seconds = []
    for _ in range(REPEATS):  # the first may compile
        clock = time.process_time()
        moved = advect(phi, grid.spacing_mm, 1.0, speed=1.0, scheme=parameters["scheme"])
        seconds.append(time.process_time() - clock)
    errors = metrics.wall_errors(moved, phi - 1.0, grid)
    return {"rms_mm": errors["rms_mm"], "max_mm": errors["max_mm"], "cpu_s": min(seconds)}


def figure(found: dict[str, Rows]) -> Any:
    """Draw error against time, a line a scheme; the front joins what nothing beats."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = means(found["schemes"], ("scheme", "voxel_mm"), ("rms_mm", "cpu_s"))
    drawing = Figure(figsize=(5.0, 3.4), layout="constrained")
    FigureCanvasAgg(drawing)
    axes = drawing.subplots()
    for scheme, mark in (("eno2", "s"), ("weno5", "o")):
        line = [row for row in rows if row["scheme"] == scheme]
        axes.plot([r["cpu_s"] for r in line], [r["rms_mm"] for r in line], mark, label=scheme)
    front = pareto([(row["cpu_s"], row["rms_mm"]) for row in rows])
    axes.plot(*zip(*front, strict=True), color="0.6", zorder=0, label="not beaten")
    axes.set(xscale="log", yscale="log", xlabel="CPU seconds", ylabel="rms error of the wall, mm")
    axes.grid(alpha=0.3)
    axes.legend()
    return drawing


SHIPPED = Shipped(
    name="scheme_order",
    parts={
        "schemes": {
            "stage": grown,
            "cases": {"phantoms": ["sphere", "torus"], "radius": 4},
            "space": {"scheme": ["eno2", "weno5"], "voxel_mm": VOXELS},
        }
    },
    quick={"schemes": {"cases": {"phantoms": ["sphere"]}, "space": {"voxel_mm": VOXELS[:3]}}},
    by=("scheme", "voxel_mm"),
    metrics=("rms_mm", "max_mm", "cpu_s"),
    figure=figure,
)

if __name__ == "__main__":
    main(SHIPPED)
