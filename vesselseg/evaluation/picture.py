"""Pictures of an evaluation: best, median and worst case; calibration of what was predicted."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..preview.panels import FAINT, INK, NETWORK, STYLE, WALL

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .cases import Shown

TITLES = {1: ("only",), 2: ("best", "worst"), 3: ("best", "median", "worst")}


def cases(slices: Sequence[Shown]) -> bytes:
    """Draw slices with the true wall and the predicted one, as PNG."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE):
        figure = Figure((4.2 * len(slices), 4.6), layout="constrained")
        for number, (drawn, title) in enumerate(zip(slices, TITLES[len(slices)], strict=True), 1):
            axes = figure.add_subplot(1, len(slices), number)
            axes.imshow(drawn.image, cmap="gray", origin="lower")
            for level, colour in ((drawn.truth, WALL), (drawn.found, NETWORK)):
                if level.min() < 0 < level.max():
                    axes.contour(level, [0.0], colors=[colour], linewidths=1.2)
            axes.set_title(f"{title}: {drawn.name}", color=INK, fontsize=10)
            axes.set_axis_off()
        figure.supxlabel("truth blue, prediction orange", color=FAINT, fontsize=9)
        return png(figure)


def calibration(details: Sequence[dict[str, Any]]) -> bytes | None:
    """Draw reliability and sparsification of all cases; None where nothing states its certainty."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    curves = [bin_ for d in details for bin_ in d.get("calibration", {}).get("curve", [])]
    ranked = [d["sparsification"] for d in details if "sparsification" in d]
    if not curves and not ranked:
        return None
    with mpl.rc_context(STYLE):
        figure = Figure((9, 4.2), layout="constrained")
        left, right = figure.subplots(1, 2)
        left.plot([0, 1], [0, 1], color=FAINT, lw=1)
        x, y = pooled(curves)
        left.plot(x, y, "o-", color=WALL)
        left.set(xlabel="predicted probability", ylabel="share inside, 3 voxels about the wall")
        for name, colour in (("by_sigma", NETWORK), ("by_error", FAINT)):
            if ranked:
                mean = np.mean([r[name] for r in ranked], axis=0)
                right.plot(ranked[0]["left_out"], mean, color=colour, label=name.replace("_", " "))
        right.set(xlabel="share of the wall left out", ylabel="mean error of the rest / of all")
        if ranked:
            right.legend(frameon=False, labelcolor=INK)
        return png(figure)


def pooled(curves: Sequence[dict[str, float]], bins: int = 10) -> tuple[list[float], list[float]]:
    """Return mean probability and observed share of the bins of all cases together."""
    x, y = [], []
    for number in range(bins):
        mine = [c for c in curves if min(int(c["p"] * bins), bins - 1) == number]
        if mine:
            weight = [c["n"] for c in mine]
            x.append(float(np.average([c["p"] for c in mine], weights=weight)))
            y.append(float(np.average([c["share"] for c in mine], weights=weight)))
    return x, y


def png(figure: Figure) -> bytes:
    """Return a figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
