"""The demonstration's comparison with the truth, as a picture."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..fields import Volume
from ..preview.panels import (
    FAINT,
    INK,
    NETWORK,
    STYLE,
    WALL,
    caption,
    fine,
    outline,
    picture,
    ruler,
    scale_bar,
    window,
)
from ..preview.planes import planes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = NDArray[Any]

COLOURS = {
    "network": NETWORK,
    "refined": WALL,
    "isosurface": "#ba9bf0",
    "chan_vese": "#81c784",
}


def compare(
    volume: Volume,
    truth: Array,
    walls: Mapping[str, Array],
    errors: Mapping[str, Mapping[str, float]],
    coverage: Mapping[str, float],
    names: Mapping[str, str],
    focus: Array,
) -> bytes:
    """Draw walls on a slice beside their errors.

    Parameters
    ----------
    truth : (nz, ny, nx) array
        Signed distance to the true wall, mm.
    walls : mapping
        Name to level set on the same grid, negative inside.
    errors : mapping
        Name to the figures of ``metrics.wall_errors``.
    names : mapping
        Name to the words to show.
    focus : (3,) array of int
        The voxel in the middle of the slice.

    Returns
    -------
    bytes
        A PNG file.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(13.333, 6.2))
        FigureCanvasAgg(figure)
        figure.text(0.025, 0.945, "Walls against the truth", size=17, weight="bold", va="center")
        _slice(figure.add_axes((0.025, 0.07, 0.5, 0.79)), volume, truth, walls, focus)
        _bars(figure.add_axes((0.68, 0.13, 0.295, 0.73)), errors, names)
        figure.text(
            0.975,
            0.945,
            f"± 2 s.d. of the refined wall cover the truth on {coverage['within_2']:.0%} of it",
            color=FAINT,
            ha="right",
            va="center",
        )
        buffer = io.BytesIO()
        figure.savefig(buffer, dpi=150, metadata={"Software": None})
    return buffer.getvalue()


def _slice(
    axes: Axes, volume: Volume, truth: Array, walls: Mapping[str, Array], focus: Array
) -> None:
    grid = volume.grid
    radius = -float(truth.min())
    plane = planes(grid, True)[1]
    step = plane.spacing(grid)
    shown = plane.cut(volume.values, focus)
    low, high = np.percentile(volume.values, (1.0, 99.8))
    picture(axes, shown, step, low, high)
    for name, phi in walls.items():
        values = fine(plane.cut(phi, focus))
        up, right = ruler(shown.shape, values.shape, step)
        outline(axes, right, up, values, colors=COLOURS[name], linewidths=1.8)
    values = fine(plane.cut(truth, focus))
    outline(axes, right, up, values, colors="white", linewidths=2.0, linestyles=":")
    window(axes, plane.place(grid, focus), 0.55 * radius, step)
    caption(axes, "dotted white: the true wall")
    scale_bar(axes)


def _bars(axes: Axes, errors: Mapping[str, Mapping[str, float]], names: Mapping[str, str]) -> None:
    axes.set_facecolor("none")
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    for row, (name, found) in enumerate(errors.items()):
        mean, p95 = found["mean_voxel"], found["p95_voxel"]
        axes.barh(row, p95, height=0.5, color=COLOURS[name], alpha=0.35)
        axes.barh(row, mean, height=0.5, color=COLOURS[name])
        axes.text(p95, row, f"  {mean:.2f} / {p95:.2f}", va="center", size=10, color=INK)
    axes.set_yticks(range(len(errors)), [names[name] for name in errors], size=11, color=INK)
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.set_xlim(0.0, 1.25 * max(found["p95_voxel"] for found in errors.values()))
    axes.set_xlabel("wall error, voxels: mean (solid) and 95th percentile", size=10)
