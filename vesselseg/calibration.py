"""Calibration of the refined wall's standard deviation, fitted on phantoms with a known wall.

The table in ``data/wall_calibration.json`` is written by ``studies/calibrate_wall.py``: a factor
per class of wall SNR and lumen radius, fitted on one family of shapes, and the coverage and bias
that another family then shows.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .fields import Refinement
from .solvers.watch import mean_radius

FILE = "wall_calibration.json"
MARGIN = 1.5  # a case may lie this factor outside the classes and still count as calibrated
EXPLAINED = 1.5  # misfit above which an image is none like those of the phantoms, whose is one


@dataclass(frozen=True, eq=False)
class Calibration:
    """Factors on a grid of wall SNR and radius, and what they achieve.

    Parameters
    ----------
    name : str
        Names the phantoms they were fitted on.
    model_id : str
        The network that found their lumen: another start has another error.
    snr, radius_voxels : (n,), (m,) arrays, rising
    factor : (n, m) array
        Multiplies the standard deviation.
    coverage_2sigma, bias_voxel, bias_std_voxel : float
        On the other family of shapes.
    """

    name: str
    model_id: str
    snr: NDArray[np.float64]
    radius_voxels: NDArray[np.float64]
    factor: NDArray[np.float64]
    coverage_2sigma: float
    bias_voxel: float
    bias_std_voxel: float

    def at(self, snr: float, radius_voxels: float) -> float:
        """Interpolate the factor, linear in the logarithms, constant beyond the table."""
        rows = [np.interp(np.log(radius_voxels), np.log(self.radius_voxels), f)
                for f in self.factor]  # fmt: skip
        return float(np.interp(np.log(snr), np.log(self.snr), rows))

    def covers(self, snr: float, radius_voxels: float) -> bool:
        """Whether a case lies within the classes, give or take the margin."""
        pairs = ((snr, self.snr), (radius_voxels, self.radius_voxels))
        return all(nodes[0] / MARGIN <= v <= nodes[-1] * MARGIN for v, nodes in pairs)


@functools.cache
def shipped() -> Calibration:
    """Read the table inside the package."""
    tree: dict[str, Any] = json.loads((files(__package__) / "data" / FILE).read_text())

    def array(key: str) -> NDArray[np.float64]:
        return np.array(tree[key], dtype=np.float64)

    return Calibration(
        tree["name"],
        tree["model_id"],
        array("snr"),
        array("radius_voxels"),
        array("factor"),
        tree["coverage_2sigma"],
        tree["bias_voxel"],
        tree["bias_std_voxel"],
    )


def calibrated(refinement: Refinement, table: Calibration | None = None) -> Refinement:
    """Scale the standard deviation of a refined 3-D wall and state what it covers.

    Outside the classes of the table, in 2-D and where the image shows more than the model explains
    the refinement comes back as it is, and the prior says that it is not calibrated. It holds for
    the default settings and the network named in the table alone: the caller sees to that.
    """
    table = table or shipped()
    grid, known = refinement.level_set.grid, refinement.estimates
    radius = mean_radius_voxels(refinement)
    snr = known.get("wall_snr", 0.0)
    unlike = known.get("misfit", 1.0) > EXPLAINED
    if grid.ndim != 3 or unlike or not table.covers(snr, radius):
        return refinement
    estimates = {
        "coverage_2sigma": table.coverage_2sigma,
        "bias_mm": table.bias_voxel * grid.h_max,
        "bias_std_mm": table.bias_std_voxel * grid.h_max,
        "calibrated": 1.0,
        "mean_radius_voxels": radius,
        "sigma_factor": table.at(snr, radius),
    }
    return replace(
        refinement,
        sigma_mm=refinement.sigma_mm * np.float32(estimates["sigma_factor"]),
        estimates=known | estimates,
    )


def mean_radius_voxels(refinement: Refinement) -> float:
    """Return the mean lumen radius in largest voxels."""
    level = refinement.level_set
    return mean_radius(level.phi_mm, level.grid.spacing_mm) / level.grid.h_max
