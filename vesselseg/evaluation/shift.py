"""How scans differ from those a network learnt from: intensities and shapes, in their s.d."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ..config import build
from ..grid import Grid
from ..metrics import skeleton
from ..synth.cases import SynthSettings, case

Look = dict[str, float]

REFERENCE = 24  # synthetic cases
REFERENCE_SEED = 9701
SIDES = {2: 128, 3: 64}  # voxels of a synthetic scan
PERCENTILES = (0.5, 99.5)  # those that networks normalise by
SHELL_VOXELS = 3.0  # beyond the wall
WALL_VOXELS = 1.0  # about the wall, where voxels are of both sides
PER_SIGMA = 0.6745 * 6.0**0.5  # median size of a second difference of white noise, over its s.d.


def look(image: NDArray[np.floating], lumen: NDArray[np.bool_], grid: Grid) -> Look | None:
    """Describe a scan and its lumen; None without a lumen, or of one without a core.

    Returns
    -------
    dict
        ``blood``, ``around`` (3 voxels beyond the wall) and their difference ``contrast``, where
        0 and 1 are the 0.5 and 99.5 percentiles of the scan; ``noise`` in the same unit, by
        second differences; ``radius_voxels`` on the skeleton, ``lumen_share``, ``anisotropy``.
    """
    low, high = np.percentile(image, PERCENTILES)
    if not lumen.any() or lumen.all() or high <= low:
        return None
    x, h = (image - low) / (high - low), grid.h_min
    depth, away = (
        ndimage.distance_transform_edt(part, sampling=grid.spacing_mm) / h
        for part in (lumen, ~lumen)
    )
    core, shell = depth > WALL_VOXELS, (away > WALL_VOXELS) & (away <= 1.0 + SHELL_VOXELS)
    if not core.any() or not shell.any():
        return None
    blood, around = float(np.median(x[core])), float(np.median(x[shell]))
    axis = int(np.argmin(grid.spacing_mm))
    bend = ndimage.correlate1d(x, (1.0, -2.0, 1.0), axis=axis, mode="nearest")
    return {
        "blood": blood,
        "around": around,
        "contrast": blood - around,
        "noise": float(np.median(np.abs(bend[core | shell]))) / PER_SIGMA,
        "radius_voxels": float(depth[skeleton(lumen) & lumen].mean()),
        "lumen_share": float(lumen.mean()),
        "anisotropy": grid.h_max / h,
    }


def reference(dims: int) -> list[Look]:
    """Describe synthetic scans of the kind that the shipped networks learnt from."""
    settings = build(SynthSettings, {"shape": (SIDES[dims],) * dims, "empty": 0.0, "flow": 0.0})
    grid, looks = Grid.from_spacing(settings.shape, 1.0), []
    for index in range(REFERENCE):
        drawn = case(REFERENCE_SEED, 2 * index, settings)
        sign = -1 if drawn.facts["polarity"] == "dark" else 1
        found = look(sign * drawn.image[0], drawn.phi < 0, grid)
        if found is not None:  # thick slices were interpolated to cubes
            looks.append(found | {"anisotropy": drawn.facts["anisotropy"]})
    return looks


def table(looks: Sequence[Look], learnt: Sequence[Look]) -> list[dict[str, float | str]]:
    """Return one row a measure: both means, and their difference in s.d. of what was learnt."""
    rows: list[dict[str, float | str]] = []
    for name in looks[0] if looks else ():
        ours, theirs = (np.array([one[name] for one in part]) for part in (looks, learnt))
        spread = float(theirs.std(ddof=1))
        shift = float(ours.mean() - theirs.mean()) / spread if spread > 0 else float("nan")
        means = {"scans": float(ours.mean()), "learnt": float(theirs.mean()), "s.d.": spread}
        rows.append({"measure": name, **means, "shift": shift})
    return rows
