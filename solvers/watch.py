"""The watchdog: what stops a computation whose result would be worthless.

Each check raises a ``NumericalError`` that names the step, and the voxel where there is one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vesselseg.cuda_kernels.gate import lumen_sums
from vesselseg.errors import NoInterfaceError, NumericalError

from .settings import RefineSettings
from .tiles import Tiles

SLACK = 1.1  # of the domain's diameter, which no distance exceeds
THINNEST = 0.9  # mean radius in largest voxels: below, no sample need lie in the lumen
LEAK = 0.25  # share of the faces of the box that the lumen may take more than at the start


@dataclass(frozen=True)
class Watch:
    """What a refinement set out from: volume in mm³, share of the lumen in the faces."""

    volume_mm: float
    faces: float
    spacing: tuple[float, ...]
    settings: RefineSettings

    def check(self, phi: NDArray, step: int) -> float:
        """Stop a refinement that is lost, floods the vessel or leaks out; return the volume."""
        watch_field(phi, bound_mm(phi, self.spacing), step)
        volume = volume_mm(phi, self.spacing)
        self.judge(volume, face_share(phi), step)
        return volume

    def judge(self, volume: float, share: float, step: int) -> None:
        """Stop at a volume in mm³ or a share of the faces that no refinement should reach."""
        watch_volume(volume / self.volume_mm, step, self.settings)
        if share > self.faces + LEAK:
            raise NumericalError(
                f"vessel leaks through the faces of the image at step {step}",
                found=f"{100 * share:.0f} % of them in the lumen",
                need=f"at most {100 * (self.faces + LEAK):.0f} %",
                remedy="check the start against the scan, or give a larger part of the scan",
            )


def watch_from(phi: NDArray, spacing: tuple[float, ...], settings: RefineSettings) -> Watch:
    """Begin the watch over a refinement at its start."""
    return Watch(volume_mm(phi, spacing), face_share(phi), spacing, settings)


def bound_mm(phi: NDArray, spacing: tuple[float, ...]) -> float:
    """Return what no |phi| may exceed."""
    return SLACK * float(np.linalg.norm(np.multiply(phi.shape, spacing)))


def watch_field(phi: NDArray, bound: float, step: int) -> None:
    """Stop where phi is not finite or beyond the bound."""
    if -bound <= phi.min() and phi.max() <= bound:
        return
    worst = int(np.argmax(np.where(np.isfinite(phi), np.abs(phi), np.inf)))
    k, j, i = (int(n) for n in np.unravel_index(worst, phi.shape))
    raise lost(float(phi[k, j, i]), (i, j, k), bound, step)


def watch_band(phi: NDArray, tiles: Tiles, bound: float, reach: float, step: int) -> None:
    """Stop where phi is lost in the band, or the wall within reach of the band's rim.

    Beyond the rim nothing moves, so that a wall which came there would stand still.
    """
    if not len(tiles.numbers):
        return
    most, least = tiles.extremes(phi)
    if not most[0] <= bound:
        i, j, k = most[1]
        raise lost(float(phi[k, j, i]), most[1], bound, step)
    if least[0] < reach:
        raise at_rim(*least, reach, step)


def at_rim(value: float, voxel: tuple[int, int, int], reach: float, step: int) -> NumericalError:
    """Return the error of a wall that leaves its band."""
    return NumericalError(
        f"wall at the rim of its band at step {step}, voxel (i,j,k) = {voxel}",
        found=f"phi = {value:.3g} mm",
        need=f"abs(phi) >= {reach:.3g}",
        remedy="widen band_mm, or redistance and go on in shorter times",
    )


def vessel_lost(step: int) -> NumericalError:
    """Return the error of a level set that has no wall any more."""
    return NumericalError(
        f"vessel lost at step {step}",
        found="no wall left",
        remedy="check the start against the scan",
    )


def lost(value: float, voxel: tuple[int, int, int], bound: float, step: int) -> NumericalError:
    """Return the error of a level set that is no longer finite or bounded."""
    return NumericalError(
        f"level set lost at step {step}, voxel (i,j,k) = {voxel}",
        found=f"phi = {value:.3g} mm",
        need=f"abs(phi) <= {bound:.3g}",
        remedy="reduce the time step or the speed",
    )


def watch_volume(ratio: float, step: int, settings: RefineSettings) -> None:
    """Stop a refinement that loses or floods the vessel."""
    low, high = settings.volume_limits
    if not low <= ratio <= high:
        what = "exploded" if ratio > high else "lost"
        raise NumericalError(
            f"volume {what} at step {step}",
            found=f"{100 * ratio:.0f} % of the initial",
            need=f"{100 * low:.0f} to {100 * high:.0f} %",
            remedy="check the start against the scan or change refine.volume_limits",
        )


def volume_mm(phi: NDArray, spacing: tuple[float, ...]) -> float:
    """Lumen volume, mm³ (mm², times the plane's spacing if it has one), linear within a voxel."""
    planes = phi if phi.ndim == 3 else phi[None]
    sums = np.empty(planes.shape[0])
    lumen_sums(planes, max(spacing), sums)
    return float(sums.sum() * np.prod(spacing))


def mean_radius(phi: NDArray, spacing: tuple[float, ...]) -> float:
    """Return twice volume over area, the radius of a tube, mm; the area is that of a shell."""
    near = np.count_nonzero(np.abs(phi) < max(spacing))
    return tube_radius(volume_mm(phi, spacing), float(near), spacing)


def tube_radius(volume: float, near: float, spacing: tuple[float, ...]) -> float:
    """Return the mean radius of a volume in mm³ with so many voxels less than one from its wall."""
    return 2.0 * volume / max(near * float(np.prod(spacing)) / (2.0 * max(spacing)), 1e-30)


def require_thick(volume: float, near: float, spacing: tuple[float, ...]) -> None:
    """Refuse a vessel so thin that no sample need lie in it."""
    h = max(spacing)
    if (radius := tube_radius(volume, near, spacing)) < THINNEST * h:
        raise NoInterfaceError(
            "vessel thinner than a voxel",
            found=f"mean radius {radius:.3g} mm",
            need=f"at least {THINNEST * h:.3g} mm",
            remedy="give a finer scan or another start",
        )


def face_share(phi: NDArray) -> float:
    """Share of the lumen in the faces of a 3-D box, or in the edges of a plane."""
    axes = [a for a in range(3) if phi.shape[a] > 1]
    faces = [phi.take(end, axis=a) for a in axes for end in (0, -1)]
    count = sum(f.size for f in faces)
    return float(sum(int(np.count_nonzero(f < 0)) for f in faces) / max(count, 1))
