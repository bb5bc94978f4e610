"""Axisymmetric scans: a 2-D image folded about its axis to the half plane, and mirrored again.

On the half plane i runs along the axis and j along the distance r from it, the first row at Δr/2:
the axis is a face of the box. Network, refinement and sections see the mirrored, whole plane. What
is measured on the other side of the axis is that of this side turned by half a turn about it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from .errors import DataError
from .fields import LevelSet, Probability, Refinement, Volume
from .flow import Flow
from .grid import Grid

Floats = NDArray[np.floating]
Axis = tuple[float, float, float, float, float, float] | Literal["i", "j"]
Held = TypeVar("Held", bound=Volume | Probability | LevelSet)

EXACT = 1e-3  # rows: nearer to samples, these are taken as they are
STRAIGHT = 0.5  # rows that the axis may drift over the length of the image
FEWEST = 3  # rows on one side of the axis for it to count
IMAGES = ("values", "phi_mm", "sigma_mm")


@dataclass(frozen=True, eq=False)
class Meridian:
    """The half plane in the world, in the unit of the affine it is made from.

    Parameters
    ----------
    origin : (3,)
        On the axis, beside the first sample.
    along, outward : (3,)
        Unit vectors of i, along the axis, and j, away from it.
    """

    origin: Floats
    along: Floats
    outward: Floats

    @classmethod
    def of(cls, affine: Floats) -> Meridian:
        """Return that of the affine of a half plane."""
        columns = affine[:3, :2] / np.linalg.norm(affine[:3, :2], axis=0)
        return cls(affine[:3, 3] - 0.5 * affine[:3, 1], columns[:, 0], columns[:, 1])

    def radius(self, points: Floats) -> Floats:
        """Signed distance of points (..., 3) of the plane from the axis."""
        return np.asarray((points - self.origin) @ self.outward)

    def on_axis(self, points: Floats) -> Floats:
        """Return the feet of points (..., 3) on the axis."""
        height = (points - self.origin) @ self.along
        return np.asarray(self.origin + height[..., None] * self.along)

    def turned(self, vectors: Floats) -> Floats:
        """Turn vectors (..., 3) by half a turn about the axis."""
        return np.asarray(2.0 * (vectors @ self.along)[..., None] * self.along - vectors)


def mirrored(field: Any, axis: int = 0) -> NDArray[Any]:
    """Return an even field on the whole plane; r runs along ``axis``."""
    return np.concatenate([np.flip(field, axis), field], axis=axis)


def mirrored_vectors(field: Floats, meridian: Meridian) -> Floats:
    """Return vectors (..., nr, nz, 3) on the whole plane."""
    below = np.flip(meridian.turned(field), -3)
    return np.concatenate([below, field], axis=-3)


def upper(field: NDArray[Any]) -> NDArray[Any]:
    """Return the half of a field on the whole plane where r > 0."""
    return field[len(field) // 2 :]


def whole_affine(affine: Floats, rows: int) -> NDArray[np.float64]:
    """Return the affine of the whole plane of a half plane of so many rows."""
    found = np.array(affine, dtype=np.float64)
    found[:3, 3] -= rows * found[:3, 1]
    return found


def whole_grid(grid: Grid) -> Grid:
    """Return the whole plane of a half plane."""
    rows, columns = grid.shape_kji
    return Grid((2 * rows, columns), whole_affine(grid.affine, rows))


def whole(held: Held) -> Held:
    """Mirror an image, probability or level set of the half plane."""
    return _mapped(held, whole_grid(held.grid), mirrored)


def half(held: Held) -> Held:
    """Return the half plane of what lies on the whole one; the mean of both halves."""
    rows, columns = held.grid.shape_kji
    affine = whole_affine(held.grid.affine, -(rows // 2))
    return _mapped(held, Grid((rows // 2, columns), affine), _folded)


def half_refinement(refinement: Refinement) -> Refinement:
    """Return the half plane of a wall refined on the whole one."""
    level, sigma = half(refinement.level_set), _folded(refinement.sigma_mm)
    return replace(refinement, level_set=level, sigma_mm=sigma)


def require_half_plane(grid: Grid, axis: Axis) -> None:
    """Refuse a grid that is no half plane of this axis.

    Raises
    ------
    DataError
        With the remedy.
    """
    if grid.ndim == 2 and (axis == "i" or fold(grid, axis).grid.mismatch_mm(grid) < 1e-3):
        return
    need = "samples with i along the axis and j from r = half a sample on"
    remedy = "fold the scan by vesselseg.meridian.fold"
    raise DataError("not the half plane of the axis", found=grid.shape_kji, need=need,
                    remedy=remedy)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Fold:
    """How a 2-D scan becomes a half plane.

    Parameters
    ----------
    grid : Grid
        The half plane.
    across : int
        Array axis of the scan that runs across the axis of revolution.
    sides : tuple of (nr,) arrays
        Where the rows of the half plane lie in those of the scan: on one side of the axis, or on
        both.
    notes : tuple of str
    """

    grid: Grid
    across: int
    sides: tuple[Floats, ...]
    notes: tuple[str, ...] = ()

    def image(self, held: Held) -> Held:
        """Fold an image, probability or level set."""
        folded = _mapped(held, self.grid, self._mean)
        return replace(folded, notes=(*held.notes, *self.notes))

    def flow(self, flow: Flow) -> Flow:
        """Fold measured velocity; what turns about the axis is kept."""
        meridian = Meridian.of(self.grid.affine)
        frames = []
        for frame in flow.u_ms:
            sides = [np.stack([self._side(frame[..., c], rows) for c in range(3)], axis=-1)
                     for rows in self.sides]  # fmt: skip
            frames.append(np.mean([sides[0], *map(meridian.turned, sides[1:])], axis=0))
        return replace(flow, u_ms=np.stack(frames).astype(np.float32), grid=self.grid)

    def _mean(self, values: Floats) -> Floats:
        return np.asarray(np.mean([self._side(values, rows) for rows in self.sides], axis=0))

    def _side(self, values: Floats, rows: Floats) -> Floats:
        from scipy import ndimage

        lines = np.asarray(values if self.across == 0 else values.T, dtype=np.float64)
        if np.abs(rows - np.rint(rows)).max() < EXACT:
            return np.asarray(lines[np.rint(rows).astype(int)])
        index = np.meshgrid(rows, np.arange(lines.shape[1]), indexing="ij")
        return np.asarray(ndimage.map_coordinates(lines, index, order=3, mode="mirror"))


def fold(grid: Grid, axis: Axis) -> Fold:
    """Lay a 2-D scan about its axis of revolution.

    Parameters
    ----------
    grid : Grid
    axis : "i", "j" or six floats
        A point (RAS+, mm) and the direction of the axis, along the rows or the columns of the
        image; or the index axis that it runs along, half a sample before the first one: the scan
        is a half plane already. Where the image has samples on both sides they are averaged;
        rows that do not lie at half samples from the axis are interpolated by cubic splines.

    Raises
    ------
    DataError
        The scan is not 2-D, the axis does not lie in it, along it or beside its samples.
    """
    if grid.ndim != 2:
        raise DataError("an axis of revolution needs a 2-D scan", found=grid.shape_kji,
                        need="(nr, nz)", remedy="give one meridian plane")  # fmt: skip
    if isinstance(axis, str):
        across, start = (0 if axis == "i" else 1), -0.5
    else:
        across, start = _placed(grid, np.asarray(axis, dtype=np.float64))
    rows = grid.shape_kji[across]
    below, above = start + 0.5, rows - 0.5 - start  # widths of the sides in rows
    if min(below, above) < -EXACT:
        raise DataError("the image does not reach its axis", found=f"axis at row {start:.4g}",
                        need=f"-0.5 to {rows - 0.5:g}")  # fmt: skip
    both = min(below, above) >= FEWEST
    way = 1 if both or above >= below else -1
    width = min(below, above) if both else max(below, above)
    steps = 0.5 + np.arange(int(width + EXACT))
    sides = (start + way * steps, start - way * steps) if both else (start + way * steps,)
    left_out = rows - len(sides) * len(steps)
    notes = ["folded about its axis: the fields lie on the half plane"] if both else []
    if left_out > 1:
        notes.append(f"{left_out} rows without a partner across the axis left out")
    affine, outward = np.array(grid.affine), grid.affine[:3, 1 - across]
    affine[:3, 0], affine[:3, 1] = grid.affine[:3, across], way * outward
    affine[:3, 3] += (start + 0.5 * way) * outward
    shape = (len(steps), grid.shape_kji[1 - across])
    return Fold(Grid(shape, affine), across, sides, tuple(notes))


def _placed(grid: Grid, axis: Floats) -> tuple[int, float]:
    """Return the array axis across an axis of revolution, and the row that this lies at."""
    direction = axis[3:] / np.linalg.norm(axis[3:])
    columns = grid.affine[:3, :3] / np.linalg.norm(grid.affine[:3, :3], axis=0)
    along = int(np.argmax(np.abs(direction @ columns[:, :2])))  # 0: i, 1: j
    across = along  # array axes run in the other order: across i is the array's first
    length = grid.shape_kji[1 - across] * grid.spacing_mm[1 - across]
    step = grid.spacing_mm[across]
    drift = length * np.linalg.norm(np.delete(direction @ columns, along))
    if drift > STRAIGHT * step:
        raise DataError("the axis does not run along the image", found=f"{drift / step:.3g} rows",
                        need=f"at most {STRAIGHT} rows of drift",
                        remedy="turn the image so that its rows follow the axis")  # fmt: skip
    offset = axis[:3] - grid.affine[:3, 3]
    away = abs(float(offset @ columns[:, 2]))
    if away > np.linalg.norm(grid.affine[:3, 2]):
        raise DataError("the axis does not lie in the image", found=f"{away:.3g} mm off its plane",
                        remedy="give a point of it in the plane")  # fmt: skip
    return across, float(grid.index(axis[:3])[across])


def _folded(field: NDArray[Any]) -> NDArray[Any]:
    above = upper(field)
    return np.asarray(0.5 * (above + np.flip(field[: len(above)], 0)))


def _mapped(held: Held, grid: Grid, change: Callable[[NDArray[Any]], NDArray[Any]]) -> Held:
    given = {n: getattr(held, n) for n in IMAGES if getattr(held, n, None) is not None}
    changed: dict[str, Any] = {n: change(a) for n, a in given.items()}
    if isinstance(held, Probability):
        changed["labels"] = None  # numbers of classes have no mean
    return replace(held, grid=grid, **changed)
