"""The axis of a lumen as a graph: points, radii, edges, branches. Lengths are in metres.

Topology comes from thinning (Lee, Kashyap and Chu, CVGIP 56 (1994) 462, as in scikit-image), which
keeps handles and pieces; places come from the centroids of the sections across it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, sparse
from scipy.sparse import csgraph

from .openings import Ends, Opening
from .section import Floats, Lumen, as_unit, section

SPUR = 1.25  # radii: shorter side branches are bumps of the wall
LOOP = 6.0  # voxels: shorter cycles are clusters of the skeleton
NEAR = 3  # neighbours on each side that give the tangent
PASSES = 2
FARTHEST = 0.8  # radii a point may move to the centroid of its section
WIDER = 1.6  # a section larger than that, in inscribed radii, lies across a junction
Edges = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Centreline:
    """A graph along the axis.

    Parameters
    ----------
    points : (n, 3)
    radius : (n,)
        Of the circle as large as the section; at junctions of the inscribed ball.
    edges : (ne, 2) int
    branch : (ne,) int
        Number of the chain between ends and junctions that an edge belongs to.
    """

    points: Floats
    radius: Floats
    edges: Edges
    branch: NDArray[np.int64]

    @property
    def degree(self) -> NDArray[np.int64]:
        """Number of edges at each point."""
        return np.bincount(self.edges.ravel(), minlength=len(self.points))

    @property
    def loops(self) -> int:
        """Number of independent cycles."""
        pieces = csgraph.connected_components(_graph(self.edges, len(self.points)))[0]
        return len(self.edges) - len(self.points) + int(pieces)

    def facts(self) -> dict[str, int]:
        """Return the number of branches, ends, junctions and loops."""
        degree = self.degree
        return {
            "n_branches": len(np.unique(self.branch)),
            "n_ends": int((degree == 1).sum()),
            "n_junctions": int((degree > 2).sum()),
            "n_loops": self.loops,
        }


def centreline(lumen: Lumen, ends: Ends) -> Centreline:
    """Return the centreline of the flow domain; it ends at the centres of the openings."""
    voxels, edges = _skeleton(lumen, lumen.mask)
    inside = ends.owner[tuple(voxels.T)] == 0
    if ends.openings and not inside.any():  # a straight tube may shrink to nothing
        voxels, edges = _foot(lumen, ends.openings[0])[None], edges[:0]
    for opening in ends.openings:
        voxels, edges = _reached(lumen, opening, voxels, edges, ends)
    points = lumen.world(voxels.astype(np.float64))
    radius = lumen.at(points, lumen.depth) if len(points) else np.zeros(0)
    cut_off = ends.owner[tuple(voxels.T)] != 0
    leads = cut_off.copy()  # a branch to an opening is none of the wall's bumps
    for opening in ends.openings:
        leads |= np.linalg.norm(points - opening.centre, axis=1) < 1.5 * opening.radius
    kept = _pruned(points, edges, radius, leads)
    points, edges, radius = _without(points, edges, radius, ~kept | cut_off)
    points, edges, radius = _joined(lumen, ends, points, edges, radius)
    points, radius = _centred(lumen, points, edges, radius, len(ends.openings))
    return Centreline(points, radius, edges, _branches(edges, len(points)))


def _skeleton(lumen: Lumen, domain: NDArray[np.bool_]) -> tuple[NDArray[np.int64], Edges]:
    """Thin the domain; return voxels and the edges between them, without little cycles."""
    from skimage.morphology import skeletonize

    boxes = ndimage.find_objects(domain.astype(np.int8))
    if not boxes:
        return np.zeros((0, lumen.ndim), dtype=np.int64), np.zeros((0, 2), dtype=np.int64)
    thin = skeletonize(np.pad(domain[boxes[0]], 1))
    voxels = np.argwhere(thin) - 1 + [s.start for s in boxes[0]]
    if not len(voxels):  # a ball may be thinned away
        deepest = np.unravel_index(np.argmax(np.where(domain, lumen.depth, 0.0)), domain.shape)
        voxels = np.array([deepest], dtype=np.int64)
    number = np.full(domain.shape, -1, dtype=np.int64)
    number[tuple(voxels.T)] = np.arange(len(voxels))
    padded = np.pad(number, 1, constant_values=-1)
    found = []
    for step in np.ndindex(*(3,) * lumen.ndim):
        if step > (1,) * lumen.ndim:
            other = padded[tuple((voxels + step).T)]
            mine = np.flatnonzero(other >= 0)
            found.append(np.stack([mine, other[mine]], axis=1))
    edges = np.concatenate(found)
    length = np.linalg.norm((voxels[edges[:, 0]] - voxels[edges[:, 1]]) * lumen.spacing, axis=1)
    return voxels, _without_little_cycles(edges, length, len(voxels), LOOP * lumen.h)


def _reached(
    lumen: Lumen, opening: Opening, voxels: NDArray[np.int64], edges: Edges, ends: Ends
) -> tuple[NDArray[np.int64], Edges]:
    """Join an opening that thinning has left behind by the deepest path to the skeleton."""
    from skimage.graph import MCP_Geometric

    away = np.linalg.norm(lumen.world(voxels.astype(np.float64)) - opening.centre, axis=1)
    away[ends.owner[tuple(voxels.T)] != 0] = np.inf
    if not len(voxels) or away.min() < 1.5 * opening.radius + lumen.h:
        return voxels, edges
    cost = np.where(lumen.mask, (lumen.h / np.maximum(lumen.depth, 0.1 * lumen.h)) ** 2, -1.0)
    start = tuple(_foot(lumen, opening).tolist())
    if not lumen.mask[start]:
        return voxels, edges
    paths = MCP_Geometric(cost, sampling=lumen.spacing)
    costs, _ = paths.find_costs([start], [tuple(v) for v in voxels.tolist()], find_all_ends=False)
    end = int(np.argmin(costs[tuple(voxels.T)]))
    if not np.isfinite(costs[tuple(voxels[end])]):
        return voxels, edges  # in another component
    path = np.array(paths.traceback(tuple(voxels[end].tolist())))[:-1]
    names = len(voxels) + np.arange(len(path))
    links = np.stack([names, np.append(names[1:], end)], axis=1)
    return np.concatenate([voxels, path]), np.concatenate([edges, links])


def _foot(lumen: Lumen, opening: Opening) -> NDArray[np.int64]:
    """Return the voxel a step inside the middle of an opening."""
    index = np.rint(lumen.index(opening.centre - lumen.h * opening.normal)).astype(np.int64)
    return np.asarray(np.clip(index, 0, np.array(lumen.phi.shape) - 1))


def _without_little_cycles(edges: Edges, length: Floats, count: int, limit: float) -> Edges:
    """Keep a shortest tree and the edges that close a cycle longer than the limit."""
    graph = sparse.coo_matrix((length, edges.T), shape=(count, count)).tocsr()
    tree = csgraph.minimum_spanning_tree(graph)
    inside = set(zip(*(part.tolist() for part in tree.nonzero()), strict=True))
    kept = [e for e in edges.tolist() if tuple(e) in inside or tuple(e[::-1]) in inside]
    both = (tree + tree.T).tolil()
    for (a, b), size in zip(edges.tolist(), length.tolist(), strict=True):
        if (a, b) in inside or (b, a) in inside:
            continue
        around = csgraph.dijkstra(both.tocsr(), indices=a, limit=limit)[b]
        if not np.isfinite(around):
            kept.append([a, b])
            both[a, b] = both[b, a] = size
    return np.array(kept, dtype=np.int64).reshape(-1, 2)


def _graph(edges: Edges, count: int) -> sparse.csr_matrix:
    ones = np.ones(len(edges))
    return sparse.coo_matrix((ones, edges.T), shape=(count, count)).tocsr()


def _neighbours(edges: Edges, count: int) -> list[list[int]]:
    near: list[list[int]] = [[] for _ in range(count)]
    for a, b in edges.tolist():
        near[a].append(b)
        near[b].append(a)
    return near


def _pruned(
    points: Floats, edges: Edges, radius: Floats, leads: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Return which points stay when side branches no longer than the vessel is wide are removed.

    The shortest goes first; a branch with a tip in ``leads`` stays.
    """
    kept = np.ones(len(points), dtype=bool)
    while True:
        near = _neighbours(edges[kept[edges].all(axis=1)], len(points))
        spurs = []
        for tip in (n for n, others in enumerate(near) if len(others) == 1 and not leads[n]):
            chain, before, here = [tip], tip, near[tip][0]
            while len(near[here]) == 2:
                chain.append(here)
                before, here = here, next(n for n in near[here] if n != before)
            length = float(np.linalg.norm(points[here] - points[tip]))
            if len(near[here]) > 2 and length < SPUR * radius[here]:
                spurs.append((length, chain))
        if not spurs:
            return kept
        kept[min(spurs)[1]] = False


def _without(
    points: Floats, edges: Edges, radius: Floats, gone: NDArray[np.bool_]
) -> tuple[Floats, Edges, Floats]:
    names = np.cumsum(~gone) - 1
    kept = ~gone[edges].any(axis=1)
    return points[~gone], names[edges[kept]], radius[~gone]


def _joined(
    lumen: Lumen, ends: Ends, points: Floats, edges: Edges, radius: Floats
) -> tuple[Floats, Edges, Floats]:
    """Put the centres of the openings first and join each to the nearest end of its vessel.

    Thinning ends anywhere within a radius of the plane: points nearer than that are passed by.
    """
    count = len(ends.openings)
    gone = np.zeros(len(points), dtype=bool)
    tips = np.bincount(edges.ravel(), minlength=len(points)) <= 1
    joins = []
    for number, opening in enumerate(ends.openings):
        if not tips.any():
            continue
        away = np.linalg.norm(points - opening.centre, axis=1)
        tip = int(np.argmin(np.where(tips, away, np.inf)))
        if away[tip] > 3.0 * opening.radius + 2.0 * lumen.h:
            continue
        near = _neighbours(edges, len(points))
        here, before = tip, -1
        while away[here] < 0.7 * opening.radius and len(near[here]) <= 2:
            following = [n for n in near[here] if n != before]
            if not following or len(near[following[0]]) > 2:
                break
            gone[here] = True
            before, here = here, following[0]
        tips[tip] = False
        joins.append((number, here))
    names = np.cumsum(~gone) - 1 + count
    kept = ~gone[edges].any(axis=1)
    extra = np.array([[n, names[p]] for n, p in joins if not gone[p]], dtype=np.int64)
    centres = np.array([o.centre for o in ends.openings]).reshape(-1, 3)
    joined = {n for n, p in joins if not gone[p]}
    lonely = np.array(
        [n not in joined for n in range(count)] + [False] * int((~gone).sum()), dtype=bool
    )
    everything = (
        np.concatenate([centres, points[~gone]]),
        np.concatenate([extra.reshape(-1, 2), names[edges[kept]]]).astype(np.int64),
        np.concatenate([[o.radius for o in ends.openings], radius[~gone]]),
    )
    return _without(*everything, lonely)


def _centred(
    lumen: Lumen, points: Floats, edges: Edges, radius: Floats, fixed: int
) -> tuple[Floats, Floats]:
    """Move points onto the centroids of their sections; openings and junctions stay."""
    near = _neighbours(edges, len(points))
    thinned, inscribed, radius = points, radius, radius.copy()
    free = [n for n, others in enumerate(near) if n >= fixed and len(others) == 2]
    for _ in range(PASSES):
        points = _smoothed(points, near, free)
        moved = points.copy()
        for n in free:
            tangent = _tangent(points, near, n)
            found = None if tangent is None else section(lumen, points[n], tangent, inscribed[n])
            if found is None or not found.whole or found.radius > WIDER * inscribed[n]:
                continue
            if np.linalg.norm(found.centre - points[n]) <= FARTHEST * found.radius:
                moved[n], radius[n] = found.centre, found.radius
        points = moved
    if len(points):  # a thin bend: back to where thinning left it
        points = np.where((lumen.at(points) >= 0.0)[:, None], thinned, points)
    return points, radius


def _smoothed(points: Floats, near: list[list[int]], free: list[int]) -> Floats:
    result = points.copy()
    for n in free:
        result[n] = 0.5 * points[n] + 0.25 * (points[near[n][0]] + points[near[n][1]])
    return result


def _tangent(points: Floats, near: list[list[int]], n: int) -> Floats | None:
    """Return the direction from a few neighbours behind to a few ahead."""
    tips = []
    for first in near[n]:
        before, here = n, first
        for _ in range(NEAR - 1):
            following = [m for m in near[here] if m != before]
            if len(following) != 1:
                break
            before, here = here, following[0]
        tips.append(points[here])
    offset = tips[0] - tips[1]
    return as_unit(offset) if float(np.linalg.norm(offset)) > 0.0 else None


def _branches(edges: Edges, count: int) -> NDArray[np.int64]:
    """Return the number of the chain between ends and junctions of each edge."""
    degree = np.bincount(edges.ravel(), minlength=count)
    owner = np.arange(len(edges))
    at: dict[int, list[int]] = {}
    for number, pair in enumerate(edges.tolist()):
        for point in pair:
            if degree[point] == 2:
                at.setdefault(point, []).append(number)
    pairs = np.array(list(at.values()), dtype=np.int64).reshape(-1, 2)
    links = sparse.coo_matrix((np.ones(len(pairs)), pairs.T), shape=(len(edges),) * 2)
    return (
        csgraph.connected_components(links, directed=False)[1].astype(np.int64)
        if len(edges)
        else owner
    )
