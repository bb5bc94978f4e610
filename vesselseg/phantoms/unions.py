"""Unions of parts, sharp or with fillets: exact distances, creases, area and volume."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .shapes import Part, Points, Wall, frame

DENSE = 2500  # points of a crease cloud, at least


@dataclass(frozen=True, eq=False)
class Solid:
    """A union of parts: its distance, its creases, and its area and volume on demand."""

    distance: Callable[[Points], Points]
    crease: Points
    measure: Callable[[], tuple[float, float]]


def wall_measure(walls: Sequence[Wall], exposed: Sequence[NDArray[Any]]) -> tuple[float, float]:
    """Return area and volume (divergence theorem) of the exposed parts of the walls."""
    area = volume = 0.0
    for (p, n, w), share in zip(walls, exposed, strict=True):
        area += float((w * share).sum())
        volume += float(((p * n).sum(1) * w * share).sum()) / 3
    return area, volume


def union(parts: Sequence[Part]) -> Solid:
    """Return the sharp union: exact outside, and inside too, where a crease may be closest."""
    crease = _creases(parts)

    def distance(x: Points) -> Points:
        found = [part.distance(x) for part in parts]
        values = np.stack([f for f, _ in found])
        result = values.min(0)
        if not len(crease):
            return np.asarray(result)
        ordered = np.partition(values, 1, axis=0)
        # A foot on the deepest part can be hidden only if another part is that close.
        doubtful = (
            (ordered[0] < 0) & (ordered[1] < -ordered[0]) if len(parts) > 1 else result > np.inf
        )
        which = np.flatnonzero(doubtful)
        if len(which):
            inner = [(f[which], n[which]) for f, n in found]
            result[which] = _inside(x[which], inner, parts, crease)
        return np.asarray(result)

    def measure() -> tuple[float, float]:
        shares = []
        for i, part in enumerate(parts):
            points = part.wall[0]
            exposed = np.ones(len(points), dtype=bool)
            for other in (*parts[:i], *parts[i + 1 :]):
                near = np.flatnonzero(exposed & _close(points, other, 0.0))
                exposed[near] = other.distance(points[near])[0] > 0
            shares.append(exposed)
        return wall_measure([part.wall for part in parts], shares)

    return Solid(distance, crease, measure)


def _inside(
    x: Points, found: Sequence[tuple[Points, Points]], parts: Sequence[Part], crease: Points
) -> Points:
    """Distance to the wall from within: the closest exposed foot or the crease."""
    from scipy.spatial import cKDTree

    best = np.full(len(x), np.inf)
    for i, (value, normal) in enumerate(found):
        foot = x - value[:, None] * normal
        hidden = np.zeros(len(x), dtype=bool)
        for j, other in enumerate(parts):
            if j != i:
                hidden |= other.distance(foot)[0] < -1e-9
        best = np.where((value < 0) & ~hidden, np.minimum(best, -value), best)
    _, nearest = cKDTree(crease).query(x)
    point = _slide(x, crease[nearest], parts)
    return np.asarray(-np.minimum(best, np.linalg.norm(x - point, axis=1)))


def _two_nearest(p: Points, parts: Sequence[Part]) -> tuple[Points, Points, Points, Points]:
    """Distances to and normals of the two parts whose walls are closest to each point."""
    found = [part.distance(p) for part in parts]
    values = np.stack([f for f, _ in found])
    first, second = np.argsort(np.abs(values), axis=0)[:2]
    normals = np.stack([n for _, n in found])
    row = np.arange(len(p))
    return values[first, row], values[second, row], normals[first, row], normals[second, row]


def _to_crease(p: Points, parts: Sequence[Part]) -> tuple[Points, Points]:
    """One Gauss-Newton step on both distances; also returns the crease direction."""
    fa, fb, na, nb = _two_nearest(p, parts)
    cosine = (na * nb).sum(1)
    sine2 = np.maximum(1 - cosine**2, 1e-6)
    a, b = (fa - cosine * fb) / sine2, (fb - cosine * fa) / sine2
    along = np.cross(na, nb)
    along /= np.maximum(np.linalg.norm(along, axis=1, keepdims=True), 1e-12)
    return p - a[:, None] * na - b[:, None] * nb, along


def _slide(x: Points, p: Points, parts: Sequence[Part]) -> Points:
    """Move crease points along the crease to the ones closest to ``x``."""
    for _ in range(5):
        _, along = _to_crease(p, parts)
        p = p + ((x - p) * along).sum(1)[:, None] * along
        p, _ = _to_crease(p, parts)
        p, _ = _to_crease(p, parts)
    return p


def _settle(points: Points, pair: Sequence[Part]) -> tuple[Points, Points]:
    """Move points to the crease of two parts; drop those that do not arrive."""
    for _ in range(6):
        points, along = _to_crease(points, pair)
    arrived = np.abs([part.distance(points)[0] for part in pair]).max(0) < 1e-9
    return points[arrived], along[arrived]


def _close(points: Points, part: Part, gap: float) -> NDArray[np.bool_]:
    """Tell which points may lie within ``gap`` of a part or inside it (never too few)."""
    from scipy.spatial import cKDTree

    step = np.linalg.norm(np.diff(part.axis, axis=0), axis=1).max(initial=0.0)
    reach = part.axis_radius.max() + gap + step
    found = cKDTree(part.axis).query(points, distance_upper_bound=reach)[0]
    return np.asarray(np.isfinite(found))


def _creases(parts: Sequence[Part]) -> Points:
    """Return a dense cloud of points of the exposed intersection curves."""
    clouds = []
    for i, part in enumerate(parts):
        for other in parts[i + 1 :]:
            gap = 0.15 * float(min(part.axis_radius.min(), other.axis_radius.min()))
            points = part.wall[0]
            points = points[_close(points, other, gap)]
            points = points[np.abs(other.distance(points)[0]) < gap]
            if not len(points):
                continue
            pair = (part, other)
            points, along = _settle(points, pair)
            shifts = np.linspace(-2, 2, 1 + DENSE // max(1, len(points)))[:, None, None] * gap
            spread = (points + shifts * along).reshape(-1, 3)
            clouds.append(_settle(spread, pair)[0])
    cloud = np.concatenate([*clouds, np.zeros((0, 3))])
    if not len(cloud):
        return cloud
    depth = np.min([part.distance(cloud)[0] for part in parts], axis=0)
    return np.asarray(cloud[depth > -1e-7])


def smooth_union(parts: Sequence[Part], width: float) -> Solid:
    """Return the union with fillets: the zero set of smooth minima of the parts' distances.

    smin(a, b) = min(a, b) - w·h³/6, h = max(1 - |a - b|/w, 0) (I. Quilez, "smooth minimum"). It
    is no distance. The closest wall point is the foot on a part where no fillet is near, else it
    is found by Newton's method on the surface (shape operator by differences) from a dense cloud
    of points of the fillets.
    """
    from scipy.spatial import cKDTree

    def implicit(x: Points) -> tuple[Points, Points]:
        value, slope = parts[0].distance(x)
        for part in parts[1:]:
            other, normal = part.distance(x)
            h = np.maximum(1 - np.abs(value - other) / width, 0.0)
            share = np.where(value < other, h**2 / 2, 1 - h**2 / 2)[:, None]
            value = np.minimum(value, other) - width * h**3 / 6
            slope = (1 - share) * slope + share * normal
        return value, slope

    def project(p: Points, times: int) -> Points:
        for _ in range(times):
            value, slope = implicit(p)
            p = p - (value / np.maximum((slope**2).sum(1), 1e-2))[:, None] * slope
        return p

    def blended(p: Points) -> NDArray[np.bool_]:
        lowest = np.partition([part.distance(p)[0] for part in parts], 1, axis=0)
        return np.asarray(lowest[1] - lowest[0] < width)

    cloud = np.concatenate([*[part.wall[0] for part in parts], _creases(parts)])
    cloud = cloud[blended(cloud) & (implicit(cloud)[0] > -width)]
    cloud = project(cloud, 12)
    fillet = cloud[np.abs(implicit(cloud)[0]) < 1e-9]
    tree = cKDTree(fillet)

    def unit(p: Points) -> Points:
        slope = implicit(p)[1]
        return np.asarray(slope / np.maximum(np.linalg.norm(slope, axis=1, keepdims=True), 1e-12))

    def distance(x: Points) -> Points:
        found = [part.distance(x) for part in parts]
        best = np.full(len(x), np.inf)
        for value, normal in found:
            foot = x - value[:, None] * normal
            clean = (np.abs(implicit(foot)[0]) < 1e-9) & ~blended(foot)
            best = np.where(clean, np.minimum(best, np.abs(value)), best)
        reach, nearest = tree.query(x)
        active = np.flatnonzero(reach < 1.02 * best + 0.1 * width)
        p = fillet[nearest]
        for _ in range(6):
            start = x[active]
            moved = project(_newton_on_surface(start, p[active], unit, 1e-4 * width), 2)
            length = np.linalg.norm(start - moved, axis=1)
            gain = reach[active] - length
            better = (gain > 0) & (np.abs(implicit(moved)[0]) < 1e-8)
            p[active[better]], reach[active[better]] = moved[better], length[better]
            active = active[better & (gain > 1e-9 * width)]
            if not len(active):
                break
        return np.asarray(np.copysign(np.minimum(best, reach), implicit(x)[0]))

    def measure() -> tuple[float, float]:
        walls = np.concatenate([part.wall[0] for part in parts])
        return _kernel_measure(implicit, walls, width / 4)

    return Solid(distance, np.zeros((0, 3)), measure)


def _newton_on_surface(
    x: Points, p: Points, unit: Callable[[Points], Points], step: float
) -> Points:
    """Solve (I + d·S)·δ = tangential part of x - p in the tangent plane of p."""
    normal = unit(p)
    offset = x - p
    height = (offset * normal).sum(1)
    e1, e2 = frame(normal)
    d1 = (unit(p + step * e1) - unit(p - step * e1)) / (2 * step)
    d2 = (unit(p + step * e2) - unit(p - step * e2)) / (2 * step)
    a = 1 + height * (d1 * e1).sum(1)
    b = height * ((d1 * e2).sum(1) + (d2 * e1).sum(1)) / 2
    c = 1 + height * (d2 * e2).sum(1)
    t1, t2 = (offset * e1).sum(1), (offset * e2).sum(1)
    det = a * c - b * b
    safe = (a > 0.05) & (det > 0.05 * a)
    det = np.where(safe, det, 1.0)
    s1 = np.where(safe, (c * t1 - b * t2) / det, 0.3 * t1)
    s2 = np.where(safe, (a * t2 - b * t1) / det, 0.3 * t2)
    return np.asarray(p + s1[:, None] * e1 + s2[:, None] * e2)


def _kernel_measure(
    implicit: Callable[[Points], tuple[Points, Points]], surface: Points, width: float
) -> tuple[float, float]:
    """Area ∫δ(F)|∇F| and volume ∫H(-F) with a kernel without second moment, about 1e-4."""
    from scipy.special import erf

    step = width / 2
    spread = 0.8 * step
    low, high = surface.min(0) - 5 * step, surface.max(0) + 5 * step
    axes = [np.arange(a, b, step) for a, b in zip(low, high, strict=True)]
    area = volume = 0.0
    for z in axes[2]:
        x, y = np.meshgrid(axes[0], axes[1], indexing="ij")
        value, slope = implicit(np.stack([x, y, np.full_like(x, z)], axis=-1).reshape(-1, 3))
        u = value / spread
        gauss = np.exp(-(u**2) / 2) / np.sqrt(2 * np.pi)
        area += float(((1.5 - u**2 / 2) * gauss / spread * np.linalg.norm(slope, axis=1)).sum())
        volume += float((0.5 - erf(u / np.sqrt(2)) / 2 - u * gauss / 2).sum())
    return area * step**3, volume * step**3
