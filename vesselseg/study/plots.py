"""Figures of a study, PNG and SVG: drawn where the study holds what they show."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..io.atomic import check_folder, write_bytes
from .results import headline, means, records, value_of, varying

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Records = Sequence[Mapping[str, Any]]

STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "vesselseg",
    "svg.fonttype": "path",
}
MARKS = "osD^vP*X<>"
MOST_LINES = 10
WIDE = 10.0  # ratio beyond which an axis is logarithmic
EXPECTED = {"within_1": 0.6827, "within_2": 0.9545}


def plot(folder: str | Path, *, metric: str | None = None, x: str | None = None,
         y: str | None = None) -> list[Path]:  # fmt: skip
    """Write the figures of a study to its folder ``plots``.

    Parameters
    ----------
    metric : str, optional
        What is shown; default: the rms error of the wall.
    x, y : str, optional
        The two settings or facts of the heat map; default: the first two that vary.

    Returns
    -------
    list of Path
        One PNG and one SVG of each figure.

    Raises
    ------
    ConfigError
        Unknown metric, or nothing to show yet.
    """
    made = figures(records(folder)[0], metric, x, y)
    target = check_folder(Path(folder) / "plots")
    paths = []
    for name, figure in made.items():
        for suffix in ("png", "svg"):
            path = target / f"{name}.{suffix}"
            write_bytes(path, drawn(figure, suffix))
            paths.append(path)
    return paths


def drawn(figure: Figure, suffix: str) -> bytes:
    """Return a figure as PNG or SVG."""
    import matplotlib as mpl

    buffer = io.BytesIO()
    with mpl.rc_context(STYLE):
        key = "Date" if suffix == "svg" else "Software"
        figure.savefig(buffer, format=suffix, dpi=130, metadata={key: None})
    return buffer.getvalue()


def figures(
    found: Records, metric: str | None = None, x: str | None = None, y: str | None = None
) -> dict[str, Figure]:
    """Return the figures that the records allow, by name."""
    import matplotlib as mpl

    shown = headline(found, metric)
    settings, facts = varying(found)
    both = [name for name in (x, y) if name] or [*settings, *facts]
    makers: dict[str, Callable[[], Figure | None]] = {
        "heat_map": lambda: _heat_map(found, shown, both),
        "error_by_snr": lambda: _by_snr(found, shown, settings),
        "convergence": lambda: _convergence(found, settings),
        "coverage": lambda: _coverage(found, settings),
        "pareto": lambda: _pareto(found, shown, settings),
    }
    with mpl.rc_context(STYLE):
        made = {name: make() for name, make in makers.items()}
    return {name: figure for name, figure in made.items() if figure is not None}


def _canvas(width: float = 6.0, height: float = 4.0) -> tuple[Figure, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots()


def _heat_map(found: Records, metric: str, names: Sequence[str]) -> Figure | None:
    """Show the mean of a metric over two settings."""
    if len(names) < 2:
        return None
    across, up = names[:2]
    cells = {(row[across], row[up]): row[metric] for row in means(found, (across, up), (metric,))}
    columns, lines = (_ordered({key[n] for key in cells}) for n in (0, 1))
    values = np.array([[cells.get((c, r)) or np.nan for c in columns] for r in lines], dtype=float)
    if max(values.shape) > 40 or np.isnan(values).mean() > 0.5:  # drawn at random: a cloud
        return _cloud(found, metric, across, up)
    figure, axes = _canvas(2.5 + 0.8 * len(columns), 2.0 + 0.45 * len(lines))
    image = axes.imshow(values, cmap="viridis_r", aspect="auto", origin="lower")
    middle = np.nanmean([np.nanmin(values), np.nanmax(values)])
    for (r, c), value in np.ndenumerate(values):
        if np.isfinite(value):
            ink = "white" if value > middle else "black"
            axes.text(c, r, f"{value:.3g}", ha="center", va="center", color=ink, size=8)
    axes.set_xticks(range(len(columns)), [_word(c) for c in columns])
    axes.set_yticks(range(len(lines)), [_word(r) for r in lines])
    axes.grid(False)
    axes.set(xlabel=across, ylabel=up)
    figure.colorbar(image, label=f"mean {metric}")
    return figure


def _cloud(found: Records, metric: str, across: str, up: str) -> Figure | None:
    """Show points that lie on no grid, coloured by the metric."""
    rows = [r for r in means(found, (across, up), (metric,)) if r[metric] is not None]
    if not rows or not all(isinstance(r[n], int | float) for r in rows for n in (across, up)):
        return None
    figure, axes = _canvas()
    x, y, c = ([row[name] for row in rows] for name in (across, up, metric))
    axes.set(xlabel=across, ylabel=up)
    figure.colorbar(axes.scatter(x, y, c=c, cmap="viridis_r", s=40), label=f"mean {metric}")
    return figure


def _by_snr(found: Records, metric: str, settings: Sequence[str]) -> Figure | None:
    """Show a metric against the signal-to-noise ratio, one line a setting."""
    ratios = {value_of(record, "snr") for record in found} - {None}
    if len(ratios) < 2:
        return None
    figure, axes = _canvas()
    for mark, (label, members) in zip(MARKS, _groups(found, settings), strict=False):
        rows = sorted(means(members, ("snr",), (metric,)), key=lambda row: row["snr"])
        rows = [row for row in rows if row[metric] is not None]
        axes.plot([r["snr"] for r in rows], [r[metric] for r in rows], marker=mark, label=label)
    axes.set(xlabel="signal-to-noise ratio", ylabel=f"mean {metric}", xscale="log")
    axes.set_xticks(sorted(ratios), [f"{r:g}" for r in sorted(ratios)])
    axes.minorticks_off()
    _legend(axes, settings)
    return figure


def _convergence(found: Records, settings: Sequence[str]) -> Figure | None:
    """Show the step of the wall against the iteration: median over the cases."""
    done = [record for record in found if len(record["steps"]) > 1]
    if not done:
        return None
    figure, axes = _canvas()
    for mark, (label, members) in zip(MARKS, _groups(done, settings), strict=False):
        longest = max(len(record["steps"]) for record in members)
        curve = [
            float(np.median([r["steps"][n] for r in members if len(r["steps"]) > n]))
            for n in range(longest)
        ]
        axes.plot(range(1, longest + 1), curve, marker=mark, ms=4, label=label)
    axes.set(xlabel="step", ylabel="rms step of the wall, voxels (median)", yscale="log")
    _legend(axes, settings)
    return figure


def _coverage(found: Records, settings: Sequence[str]) -> Figure | None:
    """Show how often the truth lies within one and two standard deviations."""
    done = [r for r in found if r["state"] == "done" and set(EXPECTED) <= set(r["metrics"])]
    if not done:
        return None
    groups = _groups(done, settings)
    figure, axes = _canvas(max(4.0, 1.5 + 0.9 * len(groups)))
    for place, (_, members) in enumerate(groups):
        for name, side, colour in (("within_1", -0.18, "C0"), ("within_2", 0.18, "C1")):
            values = [record["metrics"][name] for record in members]
            low, middle, high = np.percentile(values, (10, 50, 90))
            axes.plot([place + side] * 2, [low, high], color=colour, lw=2)
            axes.plot(place + side, middle, "o", color=colour)
    for (name, level), colour in zip(EXPECTED.items(), ("C0", "C1"), strict=True):
        axes.axhline(level, color=colour, ls="--", lw=1, label=f"{name}: {level:.0%} expected")
    axes.set_xticks(range(len(groups)), [label for label, _ in groups], rotation=20, ha="right")
    axes.set(ylabel="share of the wall (median, 10 % to 90 %)", ylim=(0.0, 1.02))
    axes.legend(fontsize=8, loc="lower right")
    return figure


def _pareto(found: Records, metric: str, settings: Sequence[str]) -> Figure | None:
    """Show time against error, a point a setting; the line joins those that none beats."""
    rows = means(found, settings, (metric, "seconds")) if settings else []
    rows = [row for row in rows if row[metric] is not None and row["seconds"]]
    if len(rows) < 2:
        return None
    figure, axes = _canvas()
    for row in rows:
        axes.plot(row["seconds"], row[metric], "o", color="C0", ms=5)
        if len(rows) <= MOST_LINES:
            text = ", ".join(_word(row[name]) for name in settings)
            axes.annotate(text, (row["seconds"], row[metric]), xytext=(5, 4),
                          textcoords="offset points", size=8)  # fmt: skip
    front = pareto([(row["seconds"], row[metric]) for row in rows])
    axes.plot(*zip(*front, strict=True), color="C1", lw=1.2, zorder=0, label="not beaten")
    spread = max(row["seconds"] for row in rows) / min(row["seconds"] for row in rows)
    scale = "log" if spread > WIDE else "linear"
    axes.set(xlabel="mean seconds of the stage", ylabel=f"mean {metric}", xscale=scale)
    axes.legend(fontsize=8)
    return figure


def pareto(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points that no other beats in both coordinates, small being good."""
    best, front = math.inf, []
    for x, y in sorted(points):
        if y < best:
            best = y
            front.append((x, y))
    return front


def _groups(found: Records, settings: Sequence[str]) -> list[tuple[str, list[Any]]]:
    """Return the done records by setting: at most ten groups, of the fewest settings needed."""
    groups: dict[str, list[Any]] = {}
    for record in found:
        if record["state"] == "done":
            words = [_word(value_of(record, name)) for name in settings]
            groups.setdefault(", ".join(words) or "all cases", []).append(record)
    if len(groups) > MOST_LINES:
        return _groups(found, settings[:-1])
    return list(groups.items())


def _legend(axes: Any, settings: Sequence[str]) -> None:
    if settings:
        axes.legend(title=", ".join(settings), fontsize=8, title_fontsize=8)


def _ordered(values: set[Any]) -> list[Any]:
    number = all(isinstance(v, int | float) for v in values)
    return sorted(values) if number else sorted(values, key=str)


def _word(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
