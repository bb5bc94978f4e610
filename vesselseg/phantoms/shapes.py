"""Distances behind the phantoms: tubes about a curve, ellipsoids, plane curves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]
# Value, first and second derivative at parameters t in [0, 1].
Curve = Callable[[Points], tuple[Points, Points, Points]]
Wall = tuple[Points, Points, Points]


@dataclass(frozen=True, eq=False)
class Part:
    """A smooth piece of a shape.

    Parameters
    ----------
    distance : callable
        ``(n, 3)`` points to signed distances ``(n,)`` and outward unit normals ``(n, 3)``.
    wall : tuple
        Quadrature of the surface: points ``(m, 3)``, normals ``(m, 3)``, area weights ``(m,)``.
    axis, axis_radius : arrays
        ``(k, 3)`` and ``(k,)``.
    """

    distance: Callable[[Points], tuple[Points, Points]]
    wall: Wall
    axis: Points
    axis_radius: Points


def ball(centre: Points, radius: float) -> Part:
    """Return a ball as a part."""

    def distance(x: Points) -> tuple[Points, Points]:
        return _about(x, np.broadcast_to(centre, x.shape), np.full(len(x), radius))

    wall = _cap(centre, np.array([0.0, 0.0, 1.0]), radius, -1.0)
    return Part(distance, wall, centre[None], np.array([radius]))


def capsule(a: Points, b: Points, radius: float) -> Part:
    """Return a straight tube with round ends as a part."""
    along = b - a

    def distance(x: Points) -> tuple[Points, Points]:
        t = np.clip((x - a) @ along / (along @ along), 0.0, 1.0)
        return _about(x, a + t[:, None] * along, np.full(len(x), radius))

    def curve(t: Points) -> tuple[Points, Points, Points]:
        c = a + t[:, None] * along
        return c, np.broadcast_to(along, c.shape), np.zeros_like(c)

    def width(t: Points) -> tuple[Points, Points, Points]:
        return np.full_like(t, radius), np.zeros_like(t), np.zeros_like(t)

    t = np.linspace(0, 1, 200)
    return Part(distance, _tube_wall(curve, width), curve(t)[0], width(t)[0])


def tube_part(curve: Curve, width: Curve, samples: int = 200) -> Part:
    """Return the union of the balls of radius ``width`` about a curve as a part.

    Its distance is minₜ(|x - c(t)| - r(t)), exact on both sides of the wall as long as the tube
    does not overlap itself (r < 1/curvature, |dr/ds| < 1): every inner normal passes through the
    centre of the ball that touches the wall there.
    """
    from scipy.spatial import cKDTree

    knots = np.linspace(0, 1, samples)
    centres, radii = curve(knots)[0], width(knots)[0]
    constant = bool(np.ptp(radii) == 0.0)
    tree = cKDTree(centres)

    def start(x: Points) -> NDArray[np.intp]:
        if constant:
            return np.asarray(tree.query(x)[1])
        nearest = []
        for block in np.array_split(x, max(1, len(x) // 4096)):
            squares = (block**2).sum(1)[:, None] - 2 * block @ centres.T + (centres**2).sum(1)
            nearest.append((np.sqrt(np.maximum(squares, 0.0)) - radii).argmin(1))
        return np.concatenate(nearest)

    def distance(x: Points) -> tuple[Points, Points]:
        near = start(x)
        low, high = knots[np.maximum(near - 1, 0)], knots[np.minimum(near + 1, samples - 1)]
        t = _foot(x, curve, width, knots[near], low, high)
        return _about(x, curve(t)[0], width(t)[0])

    return Part(distance, _tube_wall(curve, width), centres, radii)


def _foot(x: Points, curve: Curve, width: Curve, t: Points, low: Points, high: Points) -> Points:
    """Solve (c - x)·c' = r'|c - x| between two knots: Newton's method, guarded by bisection."""
    for _ in range(7):
        c, c1, c2 = curve(t)
        _, r1, r2 = width(t)
        offset = c - x
        rho = np.maximum(np.linalg.norm(offset, axis=1), 1e-12)
        along = (offset * c1).sum(1)
        residual = along - r1 * rho
        slope = (c1 * c1).sum(1) + (offset * c2).sum(1) - r2 * rho - r1 * along / rho
        low, high = np.where(residual < 0, t, low), np.where(residual < 0, high, t)
        step = t - residual / np.where(slope > 0, slope, 1.0)
        good = (slope > 0) & (step >= low) & (step <= high)
        t = np.where(good, step, (low + high) / 2)
    return t


def _about(x: Points, centre: Points, radius: Points) -> tuple[Points, Points]:
    offset = x - centre
    rho = np.linalg.norm(offset, axis=1)
    normal = offset / np.maximum(rho, 1e-300)[:, None]
    normal[rho == 0] = (0.0, 0.0, 1.0)
    return rho - radius, normal


def _cap(centre: Points, direction: Points, radius: float, lowest: float) -> Wall:
    """Quadrature of the part u·direction > lowest of a sphere."""
    nodes, weights = np.polynomial.legendre.leggauss(48)
    u = lowest + (nodes + 1) / 2 * (1 - lowest)
    angle = np.arange(96) * 2 * np.pi / 96
    e1, e2 = frame(direction[None])
    ring = np.cos(angle)[:, None] * e1 + np.sin(angle)[:, None] * e2
    normal = u[:, None, None] * direction + np.sqrt(1 - u**2)[:, None, None] * ring
    weight = np.repeat(weights * (1 - lowest) / 2 * radius**2 * 2 * np.pi / 96, 96)
    normal = normal.reshape(-1, 3)
    return centre + radius * normal, normal, weight


def frame(direction: Points) -> tuple[Points, Points]:
    """Two unit vectors across each direction ``(n, 3)``."""
    helper = np.eye(3)[np.abs(direction).argmin(1)]
    first = np.cross(direction, helper)
    first /= np.linalg.norm(first, axis=1, keepdims=True)
    return first, np.cross(direction, first)


def _tube_wall(curve: Curve, width: Curve, along: int = 240, around: int = 96) -> Wall:
    """Quadrature of the envelope of the balls and of its two round ends.

    With u the unit normal, p = c + r·u, u = -r'·T + q·e, q² = 1 - r'² (arc length), the area
    element is r·(q² - r·r'' - r·q·K·e) with the curvature vector K of the axis.
    """
    nodes, weights = np.polynomial.legendre.leggauss(along)
    t = (nodes + 1) / 2
    c, c1, c2 = curve(t)
    r, r1, r2 = width(t)
    speed = np.linalg.norm(c1, axis=1)
    tangent = c1 / speed[:, None]
    pull = (c2 * tangent).sum(1)
    bend = (c2 - pull[:, None] * tangent) / speed[:, None] ** 2
    rs = r1 / speed
    rss = (r2 - rs * pull) / speed**2
    q = np.sqrt(np.maximum(1 - rs**2, 0.0))
    angle = np.arange(around) * 2 * np.pi / around
    e1, e2 = frame(tangent)
    e = np.cos(angle)[None, :, None] * e1[:, None] + np.sin(angle)[None, :, None] * e2[:, None]
    normal = -(rs[:, None] * tangent)[:, None] + q[:, None, None] * e
    point = c[:, None] + r[:, None, None] * normal
    turn = (bend[:, None] * e).sum(-1)
    area = r[:, None] * ((q**2 - r * rss)[:, None] - (r * q)[:, None] * turn)
    weight = area * (weights * speed / 2)[:, None] * 2 * np.pi / around
    body = (point.reshape(-1, 3), normal.reshape(-1, 3), weight.ravel())
    ends = []
    for end, sign in ((0.0, -1.0), (1.0, 1.0)):
        at = np.array([end])
        tip, lead, _ = curve(at)
        size, grow, _ = width(at)
        pace = float(np.linalg.norm(lead))
        lowest = -sign * float(grow[0]) / pace
        ends.append(_cap(tip[0], sign * lead[0] / pace, float(size[0]), lowest))
    return _join([body, *ends])


def _join(walls: Sequence[Wall]) -> Wall:
    p, n, w = zip(*walls, strict=True)
    return np.concatenate(p), np.concatenate(n), np.concatenate(w)


def ellipsoid_distance(x: Points, *, semi: Points) -> Points:
    """Signed distance to an ellipsoid or ellipse: root of Σ(aᵢxᵢ/(t + aᵢ²))² = 1 (Eberly 2013)."""
    square = semi**2
    y = np.maximum(np.abs(x), 1e-12 * semi.min())
    weight = (semi * y) ** 2
    # Left of the root the function is convex and decreasing: Newton's method is monotone there.
    low = (semi * y - square).max(1)
    t = low + 1e-15 * square.min()
    for _ in range(100):
        shifted = t[:, None] + square
        value = (weight / shifted**2).sum(1) - 1
        step = value / (2 * (weight / shifted**3).sum(1))
        t = t + np.maximum(step, 0.0)
        if np.all(np.abs(step) <= 1e-14 * (np.abs(t) + square.min())):
            break
    foot = square * y / (t[:, None] + square)
    return np.asarray(np.copysign(np.linalg.norm(foot - y, axis=1), t))


def star_distance(x: Points, *, radius: float, arms: int, depth: float) -> Points:
    """Signed distance to the curve of polar radius ``radius·(1 + depth·cos(arms·angle))``."""
    from scipy.spatial import cKDTree

    def curve(a: Points) -> tuple[Points, Points, Points]:
        rho = radius * (1 + depth * np.cos(arms * a))
        d = -radius * depth * arms * np.sin(arms * a)
        dd = -radius * depth * arms**2 * np.cos(arms * a)
        e = np.stack([np.cos(a), np.sin(a)], axis=1)
        f = np.stack([-np.sin(a), np.cos(a)], axis=1)
        first = d[:, None] * e + rho[:, None] * f
        return rho[:, None] * e, first, (dd - rho)[:, None] * e + 2 * d[:, None] * f

    knots = np.linspace(0, 2 * np.pi, 4096, endpoint=False)
    nearest = np.asarray(cKDTree(curve(knots)[0]).query(x)[1])
    step = 2 * np.pi / 4096
    t = knots[nearest]
    t = _foot(x, curve, lambda s: (0 * s, 0 * s, 0 * s), t, t - step, t + step)
    rho = np.hypot(x[:, 0], x[:, 1])
    angle = np.arctan2(x[:, 1], x[:, 0])
    side = rho - radius * (1 + depth * np.cos(arms * angle))
    return np.asarray(np.copysign(np.linalg.norm(x - curve(t)[0], axis=1), side))


def polygon_distance(x: Points, *, corners: Points) -> Points:
    """Signed distance to a closed polygon, negative inside (even-odd rule)."""
    best = np.full(len(x), np.inf)
    inside = np.zeros(len(x), dtype=bool)
    for a, b in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        along = b - a
        t = np.clip((x - a) @ along / (along @ along), 0.0, 1.0)
        best = np.minimum(best, np.linalg.norm(x - a - t[:, None] * along, axis=1))
        straddles = (a[1] > x[:, 1]) != (b[1] > x[:, 1])
        height = along[1] if along[1] else 1.0
        inside ^= straddles & (x[:, 0] < a[0] + (x[:, 1] - a[1]) / height * along[0])
    return np.where(inside, -best, best)
