"""The data that flow: frozen types, checked once when they are made.

``Volume`` -segment-> ``Probability`` -from_probability-> ``LevelSet`` -refine-> ``Refinement``
-from_refinement-> ``BoundaryPrior``. Arrays are float32, C-ordered ``[k, j, i]`` (2-D:
``[j, i]``) and read-only; lengths are mm; phi < 0 in the lumen.
"""

from __future__ import annotations

import enum
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import DataError
from .grid import Grid

Field = NDArray[np.float32]
Progress = Callable[[str, float, str], None]


def silent(stage: str, fraction: float, message: str) -> None:
    """Report no progress: the default of every ``progress`` argument."""


def frozen_field(values: Any, grid: Grid, what: str) -> Field:
    """Return the values as a finite read-only float32 array on the grid, or raise DataError."""
    array = np.ascontiguousarray(values, dtype=np.float32)
    if array.shape != grid.shape_kji:
        raise DataError(f"{what} does not fit its grid", found=array.shape, need=grid.shape_kji)
    bad = np.size(array) - np.count_nonzero(np.isfinite(array))
    if bad:
        first = tuple(int(n) for n in np.argwhere(~np.isfinite(array))[0][::-1])
        raise DataError(f"{what}: {bad} non-finite voxels", found=f"first at (i,j,k) = {first}")
    if array is values:
        array = array.copy()
    array.setflags(write=False)
    return array


@dataclass(frozen=True, eq=False)
class Volume:
    """A scan: one scalar per voxel.

    Parameters
    ----------
    values : (nz, ny, nx) or (ny, nx) float32
        Intensities in any unit.
    grid : Grid
    name : str
        Base name of the scan, without folder and extension.
    sha256 : str
        Digest of the file it was read from, empty if made in memory.
    notes : tuple of str
        What the reader had to assume or warn of; carried into the prior's quality warnings.
    """

    values: Field
    grid: Grid
    name: str = "scan"
    sha256: str = ""
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", frozen_field(self.values, self.grid, "image"))

    @classmethod
    def read(cls, path: str | os.PathLike[str], **options: Any) -> Volume:
        """Read a scan; the options are those of ``vesselseg.io.read_volume``."""
        from .io import read_volume

        return read_volume(path, **options)


@dataclass(frozen=True, eq=False)
class Probability:
    """How likely each voxel belongs to the lumen, on the grid of the scan.

    Parameters
    ----------
    values : (nz, ny, nx) or (ny, nx) float32 in [0, 1]
        Soft: p = 0.5 exactly where ``phi_mm`` = 0.
    grid : Grid
    model_id : str
        Name and digest of the network, or ``start:<file>``.
    phi_mm : same shape, optional
        Signed distance to the predicted wall in mm, trusted near the wall.
    sigma_mm : same shape, optional
        Standard deviation of the predicted wall position along its normal, mm.
    soft : bool
        False if the values came from a binary mask.
    labels : same shape uint8, optional
        The likeliest class of each voxel, of a network of several; one of the lumen's exactly
        where ``values`` > 0.5.
    """

    values: Field
    grid: Grid
    model_id: str = "unknown"
    phi_mm: Field | None = None
    sigma_mm: Field | None = None
    soft: bool = True
    notes: tuple[str, ...] = ()
    labels: NDArray[np.uint8] | None = None

    def __post_init__(self) -> None:
        values = frozen_field(self.values, self.grid, "probability")
        if values.size and (values.min() < 0.0 or values.max() > 1.0):
            found = f"{values.min():.3g} to {values.max():.3g}"
            raise DataError("probability out of range", found=found, need="values in [0, 1]")
        object.__setattr__(self, "values", values)
        for name in ("phi_mm", "sigma_mm"):
            array = getattr(self, name)
            if array is not None:
                object.__setattr__(self, name, frozen_field(array, self.grid, name))


@dataclass(frozen=True, eq=False)
class LevelSet:
    """A signed distance in mm, negative in the lumen.

    Parameters
    ----------
    phi_mm : (nz, ny, nx) or (ny, nx) float32
        Exact within ``band_mm`` of the wall, clamped to it beyond.
    grid : Grid
    band_mm : float
        Half-width of the trusted band.
    sigma_mm : same shape, optional
        Standard deviation of the wall position before refinement, mm.
    """

    phi_mm: Field
    grid: Grid
    band_mm: float
    sigma_mm: Field | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "phi_mm", frozen_field(self.phi_mm, self.grid, "phi"))
        if self.sigma_mm is not None:
            object.__setattr__(self, "sigma_mm", frozen_field(self.sigma_mm, self.grid, "sigma_mm"))

    @classmethod
    def from_probability(
        cls, probability: Probability, *, band_mm: float | None = None
    ) -> LevelSet:
        """Place the wall where p = 0.5, to sub-voxel accuracy; see ``vesselseg.solvers``."""
        from .solvers.start import level_set_from_probability

        return level_set_from_probability(probability, band_mm=band_mm)


class StopReason(enum.StrEnum):
    """Why a refinement ended."""

    CONVERGED = "converged"
    RESOLUTION = "steps no longer shrink, below a tenth of a voxel"
    STEP_LIMIT = "step limit"


@dataclass(frozen=True, eq=False)
class Refinement:
    """A refined wall and how it was reached.

    Parameters
    ----------
    level_set : LevelSet
        The refined wall, redistanced.
    sigma_mm : same shape float32
        Posterior standard deviation of the wall position, mm, constant along normals.
    reason : StopReason
    steps : int
        Number of steps taken.
    history : tuple of dict
        One row a step: at least ``step_rms_mm``.
    seconds : dict
        Wall-clock seconds by stage, just-in-time compilation of a first run included.
    estimates : dict
        Numbers estimated on the way: noise s.d., contrast-to-noise ratio, PSF width, and so on.
    """

    level_set: LevelSet
    sigma_mm: Field
    reason: StopReason
    steps: int
    history: tuple[dict[str, float], ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)
    estimates: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        sigma = frozen_field(self.sigma_mm, self.level_set.grid, "sigma_mm")
        object.__setattr__(self, "sigma_mm", sigma)

    @property
    def converged(self) -> bool:
        """Whether the stop rule was met before the step limit."""
        return self.reason is not StopReason.STEP_LIMIT


@dataclass(frozen=True, eq=False)
class Case:
    """One training or evaluation sample in voxel units of an isotropic working grid.

    Parameters
    ----------
    image : (channels, nz, ny, nx) or (channels, ny, nx) float32
        Raw intensities; the network normalises them itself.
    phi : (nz, ny, nx) or (ny, nx) float32
        Exact signed distance to the wall in voxels, negative in the lumen, clamped to ±12.
    centreline : same shape uint8
        One within 1.5 voxels of the axis and inside the lumen, zero elsewhere.
    facts : dict
        What was drawn: shape, snr, psf, radius, anisotropy, polarity ...
    labels : same shape uint8, optional
        The number of each voxel's class, zero for the background; default: one where phi < 0.
    """

    image: Field
    phi: Field
    centreline: NDArray[np.uint8]
    facts: dict[str, Any] = field(default_factory=dict)
    labels: NDArray[np.uint8] | None = None
