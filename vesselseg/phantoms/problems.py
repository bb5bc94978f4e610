"""Exact problems: vessel-like shapes whose signed distance to the wall is known.

``make(name, radius=..., **options)`` returns a ``Phantom``: its signed distance in mm at any
point, its wall area, volume, curvature, axis and creases, and a grid that fits it. ``radius`` is
in mm, so in voxels of the default grid of 1 mm.

A tube is the union of the balls of radius r(t) about its axis c(t). Its signed distance is
minₜ(|x - c(t)| - r(t)), found by Newton's method from sampled starts. Sharp unions take the
distance to the crease into account, smooth ones are projected on their implicit surface.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import ConfigError
from ..grid import Grid
from .shapes import (
    Curve,
    Part,
    Points,
    ball,
    capsule,
    ellipsoid_distance,
    polygon_distance,
    star_distance,
    tube_part,
)
from .unions import smooth_union, union

CHUNK = 1 << 16


@dataclass(frozen=True, eq=False)
class Phantom:
    """A shape with a known wall.

    Parameters
    ----------
    name : str
    ndim : int
        Two or three.
    distance : callable
        ``(n, ndim)`` points, x first, mm, to ``(n,)`` signed distances in mm, negative inside.
    low_xyz, high_xyz : (ndim,) arrays
        Corners of a box that holds the wall (of the part to show, if the shape is infinite).
    radius_mm : float
        Typical radius.
    axis_xyz, axis_radius : (m, ndim), (m,) arrays
        Points of the centreline and the lumen radius there, mm; empty where there is no axis.
    crease_xyz : (n, ndim) array
        Points of the re-entrant creases, where the wall has no normal.
    measure : callable
        Returns wall area and volume, in mm² and mm³; 2-D: length and area in mm and mm².
    """

    name: str
    ndim: int
    distance: Callable[[Points], Points]
    low_xyz: Points
    high_xyz: Points
    radius_mm: float
    measure: Callable[[], tuple[float, float]]
    axis_xyz: Points = field(default_factory=lambda: np.zeros((0, 3)))
    axis_radius: Points = field(default_factory=lambda: np.zeros(0))
    crease_xyz: Points = field(default_factory=lambda: np.zeros((0, 3)))

    @property
    def area_mm2(self) -> float:
        """Wall area in mm² (2-D: length in mm); infinite for an infinite shape."""
        return self.measure()[0]

    @property
    def volume_mm3(self) -> float:
        """Lumen volume in mm³ (2-D: area in mm²); infinite for an infinite shape."""
        return self.measure()[1]

    def sdf(self, points_xyz_mm: ArrayLike) -> NDArray[np.float64]:
        """Return the signed distance in mm at points ``(..., ndim)`` or ``(..., 3)``."""
        points = np.asarray(points_xyz_mm, dtype=np.float64)[..., : self.ndim]
        flat = points.reshape(-1, self.ndim)
        blocks = [self.distance(flat[i : i + CHUNK]) for i in range(0, len(flat), CHUNK)]
        return np.concatenate([*blocks, np.zeros(0)]).reshape(points.shape[:-1])

    def phi(self, grid: Grid) -> NDArray[np.float64]:
        """Return the signed distance in mm at the voxel centres, ``[k, j, i]``."""
        index = np.moveaxis(np.indices(grid.shape_kji), 0, -1)
        return self.sdf(grid.world(index))

    def grid(
        self,
        spacing_mm: ArrayLike = 1.0,
        *,
        shape: Sequence[int] | None = None,
        margin_mm: float | None = None,
        shift_voxels: Sequence[float] = (0.31, 0.17, 0.43),
        rotation: ArrayLike | None = None,
    ) -> Grid:
        """Return a grid about the shape whose voxels are not aligned with the wall.

        Parameters
        ----------
        spacing_mm : float or one per array axis
        shape : tuple of int, optional
            ``(nz, ny, nx)`` or ``(ny, nx)``; by default as large as the box and its margin.
        margin_mm : float, optional
            Free space around the shape; default 6 voxels.
        shift_voxels : three floats
            Offset ``(x, y, z)`` of the grid's centre from the middle of the box.
        rotation : (3, 3) array, optional
            Turns the grid's axes.
        """
        n = self.ndim
        spacing = np.broadcast_to(np.asarray(spacing_mm, dtype=np.float64), (n,))[::-1]
        margin = 6.0 * spacing if margin_mm is None else np.full(n, margin_mm)
        turn = np.eye(3) if rotation is None else np.asarray(rotation, dtype=np.float64)
        half = np.abs(turn[:n, :n].T) @ ((self.high_xyz - self.low_xyz) / 2) + margin
        size = tuple(int(np.ceil(2 * a / s)) + 1 for a, s in zip(half, spacing, strict=True))
        size = size[::-1] if shape is None else tuple(shape)
        affine = np.eye(4)
        affine[:3, :3] = turn * np.r_[spacing, np.ones(3 - n)]
        middle = np.zeros(3)
        middle[:n] = (np.array(size[::-1]) - 1) / 2 + np.asarray(shift_voxels)[:n]
        centre = np.zeros(3)
        centre[:n] = (self.low_xyz + self.high_xyz) / 2
        affine[:3, 3] = centre - affine[:3, :3] @ middle
        return Grid(size, affine)

    def normal(self, points_xyz_mm: ArrayLike) -> NDArray[np.float64]:
        """Return the outward unit normals ``(..., ndim)``, the gradient of the distance."""
        points = np.asarray(points_xyz_mm, dtype=np.float64)[..., : self.ndim]
        step = 1e-3 * self.radius_mm
        offsets = step * np.eye(self.ndim)
        slopes = [self.sdf(points + e) - self.sdf(points - e) for e in offsets]
        return np.stack(slopes, axis=-1) / (2 * step)

    def curvature(self, points_xyz_mm: ArrayLike) -> NDArray[np.float64]:
        """Return div n in 1/mm at points ``(..., ndim)``: positive where the lumen is convex.

        Fourth-order differences of the distance: about 1e-5 relative on a smooth wall.
        """
        points = np.asarray(points_xyz_mm, dtype=np.float64)[..., : self.ndim]
        step = 0.02 * self.radius_mm
        total = -2.5 * self.ndim * self.sdf(points)
        for offset in step * np.eye(self.ndim):
            near = self.sdf(points + offset) + self.sdf(points - offset)
            far = self.sdf(points + 2 * offset) + self.sdf(points - 2 * offset)
            total += 4 / 3 * near - far / 12
        return total / step**2

    def near_crease(self, points_xyz_mm: ArrayLike, distance_mm: float) -> NDArray[np.bool_]:
        """Tell which points ``(..., ndim)`` lie within a distance of a crease."""
        from scipy.spatial import cKDTree

        points = np.asarray(points_xyz_mm, dtype=np.float64)[..., : self.ndim]
        if not len(self.crease_xyz):
            return np.zeros(points.shape[:-1], dtype=bool)
        return np.asarray(cKDTree(self.crease_xyz).query(points)[0] <= distance_mm)


def custom(
    distance: Callable[[Points], Points],
    low_xyz: ArrayLike,
    high_xyz: ArrayLike,
    *,
    radius: float = 4.0,
    name: str = "custom",
) -> Phantom:
    """Make a phantom of your own from a signed distance function.

    Parameters
    ----------
    distance : callable
        ``(n, ndim)`` points, x first, in mm, to ``(n,)`` signed distances, negative inside.
    low_xyz, high_xyz : (ndim,)
        Corners of a box that holds the wall, mm.
    """
    low, high = np.asarray(low_xyz, dtype=np.float64), np.asarray(high_xyz, dtype=np.float64)
    return Phantom(name, low.size, distance, low, high, radius, lambda: (np.nan, np.nan))


def names() -> tuple[str, ...]:
    """Return the names that ``make`` knows."""
    return tuple(_MAKERS)


def make(name: str, *, radius: float = 4.0, **options: Any) -> Phantom:
    """Make a phantom by name.

    Parameters
    ----------
    name : str
        One of ``names()``.
    radius : float
        Lumen radius in mm (half the width of the channel, the throat's surroundings, ...).
    options
        Shape parameters; the error for an unknown one names those that exist.
    """
    if name not in _MAKERS:
        near = difflib.get_close_matches(name, _MAKERS, 1, 0.4)
        remedy = f"did you mean '{near[0]}'?" if near else "known: " + ", ".join(_MAKERS)
        raise ConfigError("unknown phantom", found=name, remedy=remedy)
    if not 0.0 < radius < 1e6:
        raise ConfigError("bad phantom radius", found=radius, need="a positive number of mm")
    known = list(inspect.signature(_MAKERS[name]).parameters)[2:]
    for key in options:
        if key not in known:
            listed = ", ".join(known) or "none"
            raise ConfigError(f"phantom {name} has no option '{key}'", remedy=f"known: {listed}")
    return _MAKERS[name](name, float(radius), **options)


def _from_parts(name: str, radius: float, parts: Sequence[Part], smooth: float = 0.0) -> Phantom:
    walls = np.concatenate([part.wall[0] for part in parts])
    axis = np.concatenate([part.axis for part in parts])
    widths = np.concatenate([part.axis_radius for part in parts])
    solid = smooth_union(parts, smooth) if smooth else union(parts)
    low, high = walls.min(0) - smooth, walls.max(0) + smooth
    return Phantom(
        name,
        3,
        solid.distance,
        low,
        high,
        radius,
        lru_cache(solid.measure),
        axis,
        widths,
        solid.crease,
    )


def _sphere(name: str, radius: float, ndim: int = 3) -> Phantom:
    sizes = (2 * np.pi * radius, np.pi * radius**2)
    if ndim == 3:
        sizes = (4 * np.pi * radius**2, 4 / 3 * np.pi * radius**3)
    high = np.full(ndim, radius)
    axis, width = np.zeros((1, ndim)), np.array([radius])
    distance = lambda x: np.linalg.norm(x, axis=1) - radius  # noqa: E731
    return Phantom(name, ndim, distance, -high, high, radius, lambda: sizes, axis, width)


def _ellipsoid(name: str, radius: float, axes: Sequence[float] = (1.0, 1.4, 1.9)) -> Phantom:
    semi = radius * np.asarray(axes, dtype=np.float64)
    distance = partial(ellipsoid_distance, semi=semi)
    measure = lru_cache(partial(_ellipsoid_measure, tuple(semi)))
    return Phantom(name, semi.size, distance, -semi, semi, radius, measure)


def _ellipse(name: str, radius: float, axes: Sequence[float] = (1.0, 1.9)) -> Phantom:
    return _ellipsoid(name, radius, axes)


def _ellipsoid_measure(semi: tuple[float, ...]) -> tuple[float, float]:
    angle = (np.arange(2000) + 0.5) * np.pi / 1000
    if len(semi) == 2:
        a, b = semi
        speed = np.hypot(a * np.sin(angle), b * np.cos(angle))
        return float(speed.mean() * 2 * np.pi), float(np.pi * a * b)
    a, b, c = semi
    z, weight = np.polynomial.legendre.leggauss(200)
    s = np.sqrt(1 - z**2)[:, None]
    squares = (s * np.cos(angle) / a) ** 2 + (s * np.sin(angle) / b) ** 2 + (z[:, None] / c) ** 2
    area = a * b * c * (np.sqrt(squares).mean(1) * weight).sum() * 2 * np.pi
    return float(area), float(4 / 3 * np.pi * a * b * c)


def _torus(name: str, radius: float, ring: float = 3.0) -> Phantom:
    big = ring * radius
    turn = np.linspace(0, 2 * np.pi, 400, endpoint=False)
    axis = big * np.stack([np.cos(turn), np.sin(turn), 0 * turn], axis=1)
    high = np.array([big + radius, big + radius, radius])
    sizes = (4 * np.pi**2 * big * radius, 2 * np.pi**2 * big * radius**2)
    distance = lambda x: np.hypot(np.hypot(x[:, 0], x[:, 1]) - big, x[:, 2]) - radius  # noqa: E731
    width = np.full(len(axis), radius)
    return Phantom(name, 3, distance, -high, high, radius, lambda: sizes, axis, width)


def _infinite() -> tuple[float, float]:
    return np.inf, np.inf


def _tube(
    name: str,
    radius: float,
    length: float | None = None,
    direction: Sequence[float] = (0.0, 0.0, 1.0),
) -> Phantom:
    unit = np.asarray(direction, dtype=np.float64)
    unit = unit / np.linalg.norm(unit)
    if length is not None:
        half = length / 2 * unit
        return _from_parts(name, radius, [capsule(-half, half, radius)])
    high = np.full(3, 3 * radius)
    steps = np.linspace(-6 * radius, 6 * radius, 241)
    distance = lambda x: (  # noqa: E731
        np.linalg.norm(x - (x @ unit)[:, None] * unit, axis=1) - radius
    )
    axis, width = steps[:, None] * unit, np.full(steps.size, radius)
    return Phantom(name, 3, distance, -high, high, radius, _infinite, axis, width)


def _tilted_tube(name: str, radius: float, length: float | None = None) -> Phantom:
    return _tube(name, radius, length, (0.36, 0.48, 0.8))


def _arc(radius: float, start: float, stop: float) -> Curve:
    def curve(t: Points) -> tuple[Points, Points, Points]:
        angle, rate = start + (stop - start) * t, stop - start
        c = radius * np.stack([np.cos(angle), 0 * angle, np.sin(angle)], axis=1)
        d = radius * rate * np.stack([-np.sin(angle), 0 * angle, np.cos(angle)], axis=1)
        return c, d, -(rate**2) * c

    return curve


def _line(a: Points, b: Points) -> Curve:
    def curve(t: Points) -> tuple[Points, Points, Points]:
        c = a + t[:, None] * (b - a)
        return c, np.broadcast_to(b - a, c.shape), np.zeros_like(c)

    return curve


def _constant(value: float) -> Curve:
    return lambda t: (np.full_like(t, value), np.zeros_like(t), np.zeros_like(t))


def _curved_tube(name: str, radius: float, bend: float = 4.0, degrees: float = 100.0) -> Phantom:
    half = np.deg2rad(degrees) / 2
    arc = _arc(bend * radius, np.pi / 2 - half, np.pi / 2 + half)
    return _from_parts(name, radius, [tube_part(arc, _constant(radius))])


def _helix(
    name: str, radius: float, ring: float = 3.0, pitch: float = 4.0, turns: float = 1.5
) -> Phantom:
    big, rate, rise = ring * radius, 2 * np.pi * turns, pitch * radius * turns

    def curve(t: Points) -> tuple[Points, Points, Points]:
        cos, sin = big * np.cos(rate * t), big * np.sin(rate * t)
        zero = 0 * t
        c = np.stack([cos, sin, rise * (t - 0.5)], axis=1)
        d = np.stack([-rate * sin, rate * cos, zero + rise], axis=1)
        return c, d, -(rate**2) * np.stack([cos, sin, zero], axis=1)

    return _from_parts(name, radius, [tube_part(curve, _constant(radius), 600)])


def _tapered(name: str, radius: float, ratio: float = 0.45, length: float = 8.0) -> Phantom:
    half = np.array([0.18, 0.1, 0.5]) * length * radius
    slope = (ratio - 1) * radius
    width = lambda t: (radius + slope * t, np.full_like(t, slope), np.zeros_like(t))  # noqa: E731
    return _from_parts(name, radius, [tube_part(_line(-half, half), width)])


def _stenosis(
    name: str, radius: float, severity: float = 0.5, width: float = 1.2, length: float = 9.0
) -> Phantom:
    """Narrow a tube: radius r·(1 - severity·exp(-z²/(2·(width·r)²)))."""
    half = np.array([0.0, 0.0, length * radius / 2])
    spread = width / length

    def lumen(t: Points) -> tuple[Points, Points, Points]:
        z = (t - 0.5) / spread
        dip = severity * radius * np.exp(-(z**2) / 2)
        return radius - dip, dip * z / spread, dip * (1 - z**2) / spread**2

    return _from_parts(name, radius, [tube_part(_line(-half, half), lumen, 400)])


def _aneurysm(
    name: str, radius: float, sac: float = 1.4, offset: float = 1.5, length: float = 9.0
) -> Phantom:
    half = np.array([0.0, 0.0, length * radius / 2])
    centre = np.array([offset * radius, 0.0, 0.15 * radius])
    parts = [capsule(-half, half, radius), ball(centre, sac * radius)]
    return _from_parts(name, radius, parts)


def _bifurcation(
    name: str, radius: float, degrees: float = 70.0, length: float = 5.0, smooth: float = 0.0
) -> Phantom:
    """Join a trunk and two branches of Murray radius; ``smooth``: fillet width in radii."""
    half, reach = np.deg2rad(degrees) / 2, length * radius
    origin = np.zeros(3)
    child = radius * 2 ** (-1 / 3)
    tips = [reach * np.array([s * np.sin(half), 0.0, np.cos(half)]) for s in (-1, 1)]
    parts = [capsule(np.array([0.0, 0.0, -reach]), origin, radius)]
    parts += [capsule(origin, tip, child) for tip in tips]
    return _from_parts(name, radius, parts, smooth * radius)


def _smooth_bifurcation(
    name: str, radius: float, degrees: float = 70.0, length: float = 5.0, smooth: float = 1.0
) -> Phantom:
    return _bifurcation(name, radius, degrees, length, smooth)


def _tree(name: str, radius: float, seed: int = 0, depth: int = 3) -> Phantom:
    """Grow a binary tree of bent, tapering branches: Murray's law, sharp unions."""
    rng = np.random.default_rng(np.random.SeedSequence([seed, 7]))
    parts: list[Part] = []
    grow = [(np.zeros(3), np.array([0.0, 0.0, 1.0]), radius, 1)]
    while grow:
        start, heading, width, level = grow.pop()
        points = [start]
        for _ in range(4):
            heading = heading + rng.normal(0.0, 0.16, 3)
            heading /= np.linalg.norm(heading)
            points.append(points[-1] + 1.7 * width * heading)
        parts.append(_spline_part(np.array(points), width, 0.9 * width))
        if level < depth:
            side = np.cross(heading, rng.normal(size=3))
            side /= np.linalg.norm(side)
            share = rng.uniform(0.35, 0.65)
            for sign, part in ((1, share), (-1, 1 - share)):
                angle = np.deg2rad(rng.uniform(28, 48))
                turned = np.cos(angle) * heading + sign * np.sin(angle) * side
                grow.append((points[-1], turned, 0.9 * width * part ** (1 / 3), level + 1))
    return _from_parts(name, radius, parts)


def _spline_part(points: Points, first: float, last: float) -> Part:
    from scipy.interpolate import CubicSpline

    spline = CubicSpline(np.linspace(0, 1, len(points)), points)
    curve = lambda t: (spline(t), spline(t, 1), spline(t, 2))  # noqa: E731
    slope = last - first
    width = lambda t: (first + slope * t, np.full_like(t, slope), np.zeros_like(t))  # noqa: E731
    return tube_part(curve, width, 64)


def _arch(name: str, radius: float, ring: float = 3.2, branches: int = 3) -> Phantom:
    """Bend an aortic arch: 220 degrees of a ring with straight branches on its top."""
    big = ring * radius
    arc = _arc(big, np.deg2rad(-20), np.deg2rad(200))
    parts = [tube_part(arc, _constant(radius))]
    for angle in np.deg2rad(np.linspace(60, 120, branches) if branches > 1 else [90.0]):
        foot = big * np.array([np.cos(angle), 0.0, np.sin(angle)])
        tip = foot + 3.2 * radius * np.array([0.5 * np.cos(angle), 0.12, 1.0])
        parts.append(capsule(foot, tip, 0.38 * radius))
    return _from_parts(name, radius, parts)


def _two_vessels(
    name: str, radius: float, gap: float = 1.0, ratio: float = 0.7, length: float = 8.0
) -> Phantom:
    """Lay two slightly crossed vessels ``gap`` mm apart at their closest."""
    half = length * radius / 2
    offset = radius * (1 + ratio) + gap
    low, high = np.array([-offset / 2, 0.0, -half]), np.array([-offset / 2, 0.0, half])
    lean = np.array([0.0, 0.25 * half, half])
    beside = np.array([offset / 2, 0.0, 0.0])
    parts = [capsule(low, high, radius), capsule(beside - lean, beside + lean, ratio * radius)]
    return _from_parts(name, radius, parts)


def _plane(
    name: str, radius: float, normal: Sequence[float] = (0.48, 0.6, 0.64), ndim: int = 3
) -> Phantom:
    unit = np.asarray(normal, dtype=np.float64)[:ndim]
    unit = unit / np.linalg.norm(unit)
    high = np.full(ndim, 3 * radius)
    return Phantom(name, ndim, lambda x: x @ unit, -high, high, radius, _infinite)


def _circle(name: str, radius: float) -> Phantom:
    return _sphere(name, radius, 2)


def _channel(name: str, radius: float, degrees: float = 12.0) -> Phantom:
    angle = np.deg2rad(degrees)
    unit = np.array([-np.sin(angle), np.cos(angle)])
    along = np.array([np.cos(angle), np.sin(angle)])
    high = np.full(2, 3 * radius)
    axis = np.linspace(-6 * radius, 6 * radius, 241)[:, None] * along
    width = np.full(len(axis), radius)
    distance = lambda x: np.abs(x @ unit) - radius  # noqa: E731
    return Phantom(name, 2, distance, -high, high, radius, _infinite, axis, width)


def _star(name: str, radius: float, arms: int = 5, depth: float = 0.25) -> Phantom:
    """Draw the curve of polar radius r·(1 + depth·cos(arms·angle))."""
    distance = partial(star_distance, radius=radius, arms=arms, depth=depth)
    high = np.full(2, radius * (1 + depth))
    angle = np.linspace(0, 2 * np.pi, 20000, endpoint=False)
    rho = radius * (1 + depth * np.cos(arms * angle))
    slope = -radius * depth * arms * np.sin(arms * angle)
    length = float(np.hypot(rho, slope).mean() * 2 * np.pi)
    area = float((rho**2).mean() * np.pi)
    return Phantom(name, 2, distance, -high, high, radius, lambda: (length, area))


def _nozzle(name: str, radius: float) -> Phantom:
    """Draw the FDA benchmark nozzle in the plane of its axis (x); ``radius`` is that of the inlet.

    Inlet radius 6, cone of length 22.685, throat of radius 2 and length 40, sudden expansion
    (Stewart et al., Cardiovasc. Eng. Technol. 2012), scaled to the given radius.
    """
    unit = radius / 6.0
    upper = unit * np.array(
        [[-102.685, 6], [-62.685, 6], [-40, 2], [0, 2], [0, 6], [40, 6]], dtype=np.float64
    )
    corners = np.concatenate([upper, upper[::-1] * [1, -1]])
    following = np.roll(corners, -1, axis=0)
    length = float(np.linalg.norm(following - corners, axis=1).sum())
    twice = corners[:, 0] * following[:, 1] - corners[:, 1] * following[:, 0]
    sizes = (length, float(abs(twice.sum()) / 2))
    axis_x = np.linspace(upper[0, 0], upper[-1, 0], 400)
    axis = np.stack([axis_x, 0 * axis_x], axis=1)
    width = np.interp(axis_x, upper[:, 0] + 1e-9 * np.arange(6), upper[:, 1])
    return Phantom(
        name,
        2,
        partial(polygon_distance, corners=corners),
        corners.min(0),
        corners.max(0),
        radius,
        lambda: sizes,
        axis,
        width,
        corners,
    )


_MAKERS: dict[str, Callable[..., Phantom]] = {
    "sphere": _sphere,
    "ellipsoid": _ellipsoid,
    "torus": _torus,
    "tube": _tube,
    "tilted_tube": _tilted_tube,
    "curved_tube": _curved_tube,
    "helix": _helix,
    "tapered_tube": _tapered,
    "stenosis": _stenosis,
    "aneurysm": _aneurysm,
    "bifurcation": _bifurcation,
    "smooth_bifurcation": _smooth_bifurcation,
    "tree": _tree,
    "arch": _arch,
    "two_vessels": _two_vessels,
    "plane": _plane,
    "circle": _circle,
    "ellipse": _ellipse,
    "star": _star,
    "channel": _channel,
    "nozzle": _nozzle,
}
