"""Flat sections of a lumen: where a plane meets it, how large and how round the meeting is.

Lengths are in metres. In two dimensions the plane is a line across the image and a section is a
segment: its area is a width, its rim two points.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Flags = NDArray[np.bool_]

FINE = 2.0  # samples of a plane to a voxel, of one that is only followed
FINEST = 5.0  # of one that is measured
MOST = 20  # samples from the middle of a plane that is followed
REACH = 2.2  # half-width of a plane's patch in radii


@dataclass(frozen=True, eq=False)
class Lumen:
    """A level set in the world, as planes look at it.

    Parameters
    ----------
    phi : (nz, ny, nx) or (ny, nx) float
        Signed distance, m, negative inside.
    affine : (4, 4)
        ``(i, j, k, 1)`` to metres.
    """

    phi: Floats
    affine: Floats

    @property
    def ndim(self) -> int:
        """Two or three."""
        return self.phi.ndim

    @cached_property
    def inverse(self) -> Floats:
        """Metres to index steps."""
        return np.asarray(np.linalg.inv(self.affine[:3, :3]))

    @cached_property
    def spacing(self) -> tuple[float, ...]:
        """Voxel size per array axis, m."""
        lengths = np.linalg.norm(self.affine[:3, : self.ndim], axis=0)
        return tuple(float(h) for h in lengths[::-1])

    @property
    def h(self) -> float:
        """Largest voxel size, m."""
        return max(self.spacing)

    @cached_property
    def mask(self) -> Flags:
        """Where phi < 0."""
        return np.asarray(self.phi < 0)

    @cached_property
    def depth(self) -> Floats:
        """Distance to the wall inside, also where phi is clamped; 0 outside."""
        from ..wall_geometry import depth

        return depth(self.phi, self.spacing)

    @cached_property
    def outward(self) -> Floats:
        """Unit normal of a planar image; unused in 3-D."""
        column = self.affine[:3, 2]
        return np.asarray(column / np.linalg.norm(column))

    def index(self, points: Floats) -> Floats:
        """World points (..., 3) to index points (..., ndim) in array order."""
        ijk = (points - self.affine[:3, 3]) @ self.inverse.T
        return np.asarray(ijk[..., : self.ndim][..., ::-1])

    def world(self, index: Floats) -> Floats:
        """Index points (..., ndim) in array order to world points (..., 3)."""
        return np.asarray(index[..., ::-1] @ self.affine[:3, : self.ndim].T + self.affine[:3, 3])

    def at(self, points: Floats, field: Floats | None = None, order: int = 1) -> Floats:
        """Interpolate phi, or another field on the grid, at world points (n, 3).

        Cubic splines are fitted to the neighbourhood of the points alone.
        """
        from scipy import ndimage

        values = self.phi if field is None else field
        index = np.ascontiguousarray(self.index(points).T)
        size = np.array(values.shape)
        low = np.clip(np.floor([row.min() for row in index]).astype(int) - 8, 0, size - 1)
        high = np.clip(np.ceil([row.max() for row in index]).astype(int) + 9, low + 1, size)
        block = values[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
        index -= low[:, None]
        return np.asarray(
            ndimage.map_coordinates(block.astype(np.float64), index, order=order, mode="nearest")
        )

    def inside_box(self, points: Floats, margin: float = 0.0) -> Flags:
        """Whether points lie within the outermost samples, by a margin in voxels."""
        index = np.moveaxis(self.index(points), -1, 0)
        inside = np.ones(index.shape[1:], dtype=bool)
        for row, length in zip(index, self.phi.shape, strict=True):
            inside &= (row >= margin) & (row <= length - 1 - margin)
        return inside

    def across(self, direction: Floats) -> Floats:
        """Return the unit vectors (ndim - 1, 3) of the plane across a direction."""
        if self.ndim == 2:
            side = np.cross(self.outward, direction)
            return np.asarray(side / np.linalg.norm(side))[None]
        helper = np.eye(3)[np.argmin(np.abs(direction))]
        first = np.cross(direction, helper)
        first /= np.linalg.norm(first)
        return np.stack([first, np.cross(direction, first)])


@dataclass(frozen=True, eq=False)
class Section:
    """The piece of a plane that lies in the lumen around a point.

    Parameters
    ----------
    origin, normal : (3,)
        Plane.
    axes : (ndim - 1, 3)
        Unit vectors in it.
    step : float
        Distance of samples, m.
    phi : (2m + 1, ...) float
        Level set on the samples of the plane.
    piece : same shape bool
        The connected piece.
    centre : (3,)
        Its centroid.
    area, radius : float
        m² (2-D: m), and the radius of the circle (segment) of that area.
    whole : bool
        Whether it ends within the patch and within the box.
    """

    origin: Floats
    normal: Floats
    axes: Floats
    step: float
    phi: Floats
    piece: Flags
    centre: Floats
    area: float
    radius: float
    whole: bool

    def points(self, offsets: Floats) -> Floats:
        """World points of offsets (n, ndim - 1) in the plane, m."""
        return np.asarray(self.origin + offsets @ self.axes)

    def offsets(self, points: Floats) -> Floats:
        """Offsets in the plane of world points (n, 3)."""
        return np.asarray((points - self.origin) @ self.axes.T)

    def covers(self, points: Floats) -> Flags:
        """Whether the feet of world points on the plane lie in the piece, by samples."""
        half = (self.phi.shape[0] - 1) // 2
        index = np.rint(self.offsets(points) / self.step).astype(int) + half
        within = ((index >= 0) & (index < self.phi.shape[0])).all(axis=-1)
        index = np.clip(index, 0, self.phi.shape[0] - 1)
        return np.asarray(within & self.piece[tuple(index.T)])


def patch(
    lumen: Lumen, origin: Floats, normal: Floats, half_width: float, *, order: int = 1
) -> tuple[Floats, Floats, float, Flags]:
    """Sample phi on a plane: values, in-plane axes, step, and which samples lie in the box."""
    axes = lumen.across(normal)
    step = min(lumen.spacing) / (FINE if order == 1 else FINEST)
    step = max(step, half_width / MOST) if order == 1 else step
    half = int(np.ceil(half_width / step))
    ticks = np.arange(-half, half + 1) * step
    mesh = np.stack(np.meshgrid(*[ticks] * len(axes), indexing="ij"), axis=-1)
    points = (origin + mesh @ axes).reshape(-1, 3)
    values = lumen.at(points, order=order).reshape(mesh.shape[:-1])
    return values, axes, step, lumen.inside_box(points).reshape(values.shape)


def pieces(values: Floats, within: Flags) -> tuple[NDArray[np.int32], int]:
    """Label the connected pieces of the lumen in a patch."""
    from scipy import ndimage

    labels, count = ndimage.label((values < 0) & within)
    return labels, int(count)


def section(
    lumen: Lumen, origin: Floats, normal: Floats, radius: float, *, order: int = 1
) -> Section | None:
    """Return the piece of the plane's section nearest to its origin; None if there is none.

    The patch of the plane grows until the piece ends within it, up to four times.
    """
    reach = REACH * max(radius, lumen.h)
    for _ in range(4):
        values, axes, step, within = patch(lumen, origin, normal, reach, order=order)
        labels, count = pieces(values, np.ones_like(within))
        if not count:
            return None
        piece = labels == _nearest_label(labels)
        open_ended = any(piece.take(end, a).any() for a in range(piece.ndim) for end in (0, -1))
        if not open_ended:
            break
        reach *= 1.7
    share = np.clip(0.5 - values / _slope_width(values, step), 0.0, 1.0)
    weight = share * _grown(piece)
    ticks = (np.arange(len(values)) - (len(values) - 1) // 2) * step
    mass = max(float(weight.sum()), 1e-30)
    middle = np.array(
        [
            float((weight.sum(axis=tuple(b for b in range(weight.ndim) if b != a)) * ticks).sum())
            for a in range(weight.ndim)
        ]
    )
    area = mass * step**weight.ndim
    size = np.sqrt(area / np.pi) if lumen.ndim == 3 else area / 2.0
    whole = not open_ended and bool(within[piece].all())
    centre = origin + (middle / mass) @ axes
    return Section(
        origin, normal, axes, step, values, piece, centre, float(area), float(size), whole
    )


def _nearest_label(labels: NDArray[np.int32]) -> int:
    """Label of the piece nearest to the middle of a patch."""
    inside = np.argwhere(labels > 0)
    middle = (np.array(labels.shape) - 1) / 2
    nearest = inside[np.argmin(np.square(inside - middle).sum(axis=1))]
    return int(labels[tuple(nearest)])


def _slope_width(values: Floats, step: float) -> Floats:
    """Change of phi over a sample's width along its slope in the plane."""
    parts = np.gradient(values, step)
    parts = parts if isinstance(parts, tuple | list) else [parts]
    slope = np.sqrt(sum(np.square(p) for p in parts))
    return np.asarray(np.maximum(slope, 0.3) * step)


def _grown(piece: Flags) -> Flags:
    from scipy import ndimage

    return np.asarray(ndimage.binary_dilation(piece, np.ones((3,) * piece.ndim, dtype=bool)))


def rim(lumen: Lumen, found: Section) -> Floats:
    """Return the rim of a section in the world, in order around it; in 2-D its two ends.

    The samples of the plane are those of the section, so the rim of one made with cubics is exact
    to a few thousandths of a voxel.
    """
    half = (found.phi.shape[0] - 1) // 2
    if lumen.ndim == 2:
        inside = np.flatnonzero(found.piece)
        ends: list[float] = []
        for last, step in ((inside[0], -1), (inside[-1], 1)):
            a, b = found.phi[last], found.phi[min(max(last + step, 0), len(found.phi) - 1)]
            ends.append(last + step * (a / (a - b) if a < 0 <= b else 0.0))
        return found.points((np.array(ends)[:, None] - half) * found.step)
    loop = outer_loop(np.where(_grown(found.piece), found.phi, np.abs(found.phi) + 1e-12))
    return found.points((loop - half) * found.step)


def outer_loop(values: Floats) -> Floats:
    """Return the longest closed contour of zero, without its repeated last point."""
    from skimage.measure import find_contours

    loops = [c[:-1] for c in find_contours(values, 0.0) if len(c) > 3 and (c[0] == c[-1]).all()]
    return max(loops, key=len) if loops else np.zeros((0, 2))


def polygon(offsets: Floats) -> tuple[float, Floats, float]:
    """Return area, centroid and perimeter of a closed polygon (n, 2); of a segment (2, 1)."""
    if offsets.shape[1] == 1:
        return float(np.ptp(offsets)), offsets.mean(axis=0), 2.0
    following = np.roll(offsets, -1, axis=0)
    cross = offsets[:, 0] * following[:, 1] - offsets[:, 1] * following[:, 0]
    twice = float(cross.sum())
    centroid = ((offsets + following) * cross[:, None]).sum(axis=0) / (3.0 * twice)
    length = float(np.linalg.norm(following - offsets, axis=1).sum())
    return abs(twice) / 2.0, np.asarray(centroid), length


def as_unit(vector: Any) -> Floats:
    """Return a vector of length one."""
    array = np.asarray(vector, dtype=np.float64)
    return np.asarray(array / np.linalg.norm(array))
