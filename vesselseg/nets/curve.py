"""Learning curves as a picture."""

from __future__ import annotations

import io
import statistics


def curve(rows: list[dict[str, float]]) -> bytes:
    """Draw loss, validation measures and learning rate against the step, as PNG."""
    from matplotlib.figure import Figure

    figure = Figure((9, 3), layout="constrained")
    panels = figure.subplots(1, 3)
    steps = [row["step"] for row in rows]
    width = max(1, len(rows) // 50)
    smooth = [
        statistics.fmean(r["loss"] for r in rows[max(0, i - width) : i + 1])
        for i in range(len(rows))
    ]
    panels[0].plot(steps, smooth, label="training")
    checked = [row for row in rows if "val_loss" in row]
    at = [row["step"] for row in checked]
    panels[0].plot(at, [row["val_loss"] for row in checked], "o-", ms=3, label="validation")
    for name, label in (("val_dice", "Dice"), ("val_wall", "wall error [voxel]")):
        if checked and name in checked[0]:
            panels[1].plot(at, [row[name] for row in checked], "o-", ms=3, label=label)
    panels[2].plot(steps, [row["lr"] for row in rows], label="learning rate")
    for panel in panels:
        panel.set_xlabel("step")
        if panel.lines:
            panel.legend(frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
