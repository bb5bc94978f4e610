"""What the panels of the pictures share: colours, slices in mm, contours, scale bars."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .planes import Plane

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = NDArray[Any]

PAGE, PANEL, INK, FAINT = "#14171c", "#000000", "#e8ebef", "#8d96a3"
WALL, NETWORK, AMBER = "#4fc3f7", "#ffb74d", "#ffca28"
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": FAINT,
    "axes.edgecolor": FAINT,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "figure.facecolor": PAGE,
    "axes.facecolor": PAGE,
    "savefig.facecolor": PAGE,
}


@dataclass(frozen=True)
class Unit:
    """What lengths are written in: ``name``, and how many of the grid's mm one of them is."""

    name: str = "mm"
    mm: float = 1.0

    def text(self, length: float) -> str:
        """Return a length with its unit."""
        return f"{length:g} {self.name.removesuffix('s') if length == 1 else self.name}"


MILLIMETRE = Unit()


def ruler(coarse: Any, fine: Any, step: tuple[float, float]) -> tuple[Array, Array]:
    """Return the positions in mm, upwards and rightwards, of interpolated samples."""
    up, right = (np.linspace(0, n - 1, m) * s for n, m, s in zip(coarse, fine, step, strict=True))
    return up, right


def window(
    axes: Axes, centre: tuple[float, float], radius: float, step: tuple[float, float]
) -> None:
    """Show the neighbourhood of the vessel, with the proportions of the panel."""
    ratio = axes.bbox.width / axes.bbox.height
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    half = max(5.0 * radius, 8 * max(step))
    half = min(half, max((top - bottom) / 2, (right - left) / 2 / ratio))
    for size, low, high, middle, move in (
        (half * ratio, left, right, centre[0], axes.set_xlim),
        (half, bottom, top, centre[1], axes.set_ylim),
    ):
        inside = min(max(middle, low + size), high - size)
        middle = inside if high - low >= 2 * size else (low + high) / 2
        move(middle - size, middle + size)


def picture(axes: Axes, image: Array, step: tuple[float, float], low: float, high: float) -> None:
    """Show a slice in grey, voxel by voxel, with true proportions and axes in mm."""
    height, width = (n * s for n, s in zip(image.shape, step, strict=True))
    extent = (-step[1] / 2, width - step[1] / 2, -step[0] / 2, height - step[0] / 2)
    axes.set_facecolor(PANEL)
    axes.imshow(
        image,
        cmap="gray",
        vmin=low,
        vmax=max(high, low + 1e-6),
        origin="lower",
        extent=extent,
        interpolation="nearest",
    )
    axes.set_aspect("equal")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def outline(axes: Axes, right: Array, up: Array, values: Array, **style: Any) -> None:
    """Draw the zero set, if there is one."""
    if values.min() < 0.0 < values.max():
        axes.contour(right, up, values, [0.0], **style)


def fine(values: Array, order: int = 3) -> Array:
    """Interpolate four times finer, so that sub-voxel contours are smooth."""
    from scipy.ndimage import zoom

    size = [(4 * (n - 1) + 1) / n for n in values.shape]
    return np.asarray(zoom(values.astype(np.float64), size, order=order, mode="nearest"))


def logit(probability: Array) -> Array:
    """Return log p / (1 - p), which interpolates well; p is clipped."""
    p = np.clip(probability.astype(np.float64), 1e-4, 1 - 1e-4)
    return np.asarray(np.log(p / (1 - p)))


def frame(axes: Axes, plane: Plane) -> None:
    """Write the letters of the patient's axes on the sides of a slice."""
    shade = {"boxstyle": "round,pad=0.12", "facecolor": "black", "alpha": 0.55, "linewidth": 0}
    places = (
        (0.015, 0.5, "left", "center"),
        (0.985, 0.5, "right", "center"),
        (0.5, 0.03, "center", "bottom"),
        (0.5, 0.97, "center", "top"),
    )
    for (x, y, side, end), letter in zip(places, plane.letters, strict=True):
        if letter:
            text = axes.text(x, y, letter, ha=side, va=end, transform=axes.transAxes, bbox=shade)
            text.set(weight="bold", color=INK, size=10)


def scale_bar(axes: Axes, unit: Unit = MILLIMETRE) -> None:
    """Draw a bar of a round length in the lower right corner; the axes are in mm."""
    from matplotlib.patheffects import withStroke

    halo = [withStroke(linewidth=3.5, foreground="black", alpha=0.7)]
    left, right = axes.get_xlim()
    bottom, top = axes.get_ylim()
    width = right - left
    most = max(width / unit.mm / 4, 0.1)
    round_length = max(v for v in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100) if v <= most)
    length = round_length * unit.mm
    x, y = right - 0.04 * width - length, bottom + 0.055 * (top - bottom)
    axes.plot([x, x + length], [y, y], color=INK, lw=2.2, solid_capstyle="butt", path_effects=halo)
    axes.text(
        x + length / 2,
        y + 0.02 * (top - bottom),
        unit.text(round_length),
        ha="center",
        va="bottom",
        size=8.5,
        path_effects=halo,
    )


def caption(axes: Axes, text: str) -> None:
    """Write a small title above a panel."""
    axes.set_title(text, size=10, color=FAINT, pad=4)
