"""Inlets and outlets: where the lumen leaves the field of view, or where the user cuts it.

An opening is a flat section across the lumen. From an exit, sections are followed into the vessel;
their centroids, fitted by a parabola, give the axis and its direction at the cut. Lengths are in
metres, normals point out of the flow domain.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..meridian import Meridian
from .section import Floats, Lumen, Section, as_unit, patch, pieces, polygon, rim, section

Curve = Callable[[float], Floats]

LEAST_EXIT = 4  # samples of the lumen on the faces of the box: fewer only touch it
STEP = 0.5  # of a voxel, between the sections that are followed
FITTED = 3.0  # radii of the axis that the parabola is fitted to
SETBACK = 0.5  # radii between the first whole section and the cut
SHORTEST = 0.75  # radii: a shorter run of sections is the dome of a wall, not a vessel
LARGER = 1.5  # a section that grows by this has met a branch
PASSES = 2
FIRST_LABEL = 2
# No direction of a scan is likely to be across this one: the order of openings does not depend on
# the layout of the array.
ORDER = as_unit((0.331, 0.447, 0.831))


@dataclass(frozen=True, eq=False)
class Opening:
    """A flat end of the flow domain.

    Parameters
    ----------
    centre, normal : (3,)
        Centroid, m, and unit normal out of the domain.
    rim : (n, 3)
        Its edge in order; two points in 2-D.
    area, perimeter, radius : float
        m² and m; in 2-D the width, 2 ends, half the width.
    section : Section
        The samples it was measured on.
    """

    centre: Floats
    normal: Floats
    rim: Floats
    area: float
    perimeter: float
    radius: float
    section: Section

    @property
    def roundness(self) -> float:
        """4πA/P²: one for a circle; one in 2-D."""
        if self.rim.shape[0] == 2:
            return 1.0
        return 4.0 * np.pi * self.area / self.perimeter**2

    def height(self, points: Floats) -> Floats:
        """Signed distance of world points to the plane, positive outside the domain."""
        return np.asarray((points - self.centre) @ self.normal)


@dataclass(frozen=True, eq=False)
class Ends:
    """All openings of a lumen and what they cut off.

    Parameters
    ----------
    openings : tuple of Opening
        In the order of their labels 2, 3, …
    owner : grid uint8
        0 where the voxel stays, else the label of the opening that cuts it off.
    notes : tuple of str
    """

    openings: tuple[Opening, ...]
    owner: NDArray[np.uint8]
    notes: tuple[str, ...] = ()


def find_openings(
    lumen: Lumen,
    cuts: Sequence[Sequence[float]] = (),
    points: Sequence[Sequence[float]] = (),
) -> Ends:
    """Find the openings of a lumen.

    Parameters
    ----------
    lumen : Lumen
    cuts : sequence of six floats
        A point and the outward normal of each plane of the user, m.
    points : sequence of three floats
        Points of the lumen to open it at, across its axis; the smaller side is cut off.

    Raises
    ------
    DataError
        A plane or point of the user does not meet the lumen, a plane meets it several times away
        from its point, or a cut does not separate the lumen.
    """
    asked = [_at_plane(lumen, cut) for cut in cuts]
    owner = np.zeros(lumen.phi.shape, dtype=np.uint8)
    for point in points:
        asked.append(_at_point(lumen, np.asarray(point, dtype=np.float64)))
    found, notes = list(asked), []
    owner = _owners(lumen, lumen.mask, asked, strict=True)
    domain = lumen.mask & (owner == 0)
    edge = []
    for exit_ in _exits(lumen, domain):
        opening = _at_exit(lumen, *exit_)
        if opening is None:
            where = ", ".join(f"{1e3 * x:.4g}" for x in exit_[0])
            notes.append(f"the lumen leaves the field of view at ({where}) mm without an opening")
        else:
            edge.append(opening)
    kept = []
    cut_off = _owners(lumen, domain, edge, strict=False)
    for number, opening in enumerate(edge):
        if (cut_off == number + 1).any():
            kept.append((opening, cut_off == number + 1))
        else:
            notes.append("an exit from the field of view could not be cut flat: left as it is")
    parts = [(o, owner == n + 1) for n, o in enumerate(found)] + kept
    parts.sort(key=lambda part: -float(part[0].centre @ ORDER))
    owner = np.zeros(lumen.phi.shape, dtype=np.uint8)
    for number, (_, removed) in enumerate(parts):
        owner[removed] = FIRST_LABEL + number
    return Ends(tuple(o for o, _ in parts), owner, tuple(dict.fromkeys(notes)))


def reordered(ends: Ends, order: Sequence[int]) -> Ends:
    """Return some of the openings in another order, with the labels that follow from it."""
    owner = np.zeros_like(ends.owner)
    for new, old in enumerate(order):
        owner[ends.owner == FIRST_LABEL + old] = FIRST_LABEL + new
    return Ends(tuple(ends.openings[n] for n in order), owner, ends.notes)


def remeasured(lumen: Lumen, opening: Opening, centre: Floats, normal: Floats) -> Opening | None:
    """Measure an opening again in another plane; None if that cuts no whole section."""
    return _measured(lumen, centre, normal, opening.radius)


def crosses(opening: Opening, meridian: Meridian) -> bool:
    """Whether an opening of a mirrored lumen lies on the axis."""
    sides = meridian.radius(opening.rim)
    return bool(sides.min() < 0.0 < sides.max())


# --- where ------------------------------------------------------------------------------------


def _exits(lumen: Lumen, domain: NDArray[np.bool_]) -> list[tuple[Floats, Floats, float]]:
    """Return centre, outward direction and radius of every patch of lumen on the box's faces."""
    from scipy import ndimage

    shell = np.zeros(domain.shape, dtype=bool)
    for axis in range(domain.ndim):
        shell[(slice(None),) * axis + ([0, -1],)] = True
    labels, _ = ndimage.label(domain & shell, np.ones((3,) * domain.ndim, dtype=int))
    last = np.array(domain.shape) - 1
    columns = lumen.affine[:3, : lumen.ndim] / np.array(lumen.spacing)[::-1]
    found = list[tuple[Floats, Floats, float]]()
    for number, box in enumerate(ndimage.find_objects(labels), 1):
        where = np.argwhere(labels[box] == number) + [s.start for s in box]
        if len(where) < (LEAST_EXIT if lumen.ndim == 3 else 2):
            continue
        high, low = (where == last).sum(axis=0), (where == 0).sum(axis=0)
        direction = as_unit(columns @ (high - low)[::-1] + 1e-12 * ORDER)
        size = len(where) * float(np.prod(lumen.spacing)) ** ((lumen.ndim - 1) / lumen.ndim)
        radius = np.sqrt(size / np.pi) if lumen.ndim == 3 else size / 2
        found.append((lumen.world(where.mean(axis=0)), direction, float(radius)))
    return found


def _at_exit(lumen: Lumen, start: Floats, direction: Floats, radius: float) -> Opening | None:
    """Follow sections from an exit until they are whole and cut a little further in."""
    found = _axis_from(lumen, start + lumen.h * direction, direction, radius)
    if found is None:
        return None
    place, tangent, first, last, radius = found
    at = first + min(SETBACK * radius, 0.5 * (last - first))
    return _measured(lumen, place(at), -tangent(at), radius)


def _at_plane(lumen: Lumen, cut: Sequence[float]) -> Opening:
    """Cut where the user says: at the piece of the plane that holds the point, or its only one."""
    values = np.asarray(cut, dtype=np.float64)
    point: Floats = values[:3]
    normal = as_unit(values[3:])
    where = "(" + ", ".join(f"{1e3 * x:.4g}" for x in point) + ") mm"
    if lumen.ndim == 2:
        normal = as_unit(normal - (normal @ lumen.outward) * lumen.outward)
        point = lumen.world(lumen.index(point))
    extent = float(np.linalg.norm(np.multiply(lumen.phi.shape, lumen.spacing)))
    sampled, axes, step, within = patch(lumen, point, normal, extent)
    labels, count = pieces(sampled, within)
    middle = tuple(n // 2 for n in labels.shape)
    remedy = "put the point of --cut inside the lumen where it should be cut"
    if not count:
        raise DataError("no opening found", found=f"the plane at {where} misses the lumen",
                        need="a plane across it", remedy=remedy)  # fmt: skip
    if not labels[middle] and count > 1:
        raise DataError(f"{count} openings in one cut", found=f"the plane at {where}",
                        need="one", remedy=remedy)  # fmt: skip
    chosen = np.argwhere(labels == (labels[middle] or 1))
    centre = point + ((chosen.mean(axis=0) - np.array(middle)) * step) @ axes
    if not labels[middle]:
        point = centre
    radius = 0.5 * step * float(np.ptp(chosen, axis=0).max() + 1)
    opening = _measured(lumen, point, normal, radius)
    if opening is None:
        raise DataError("no whole section at the cut", found=f"the plane at {where}",
                        remedy="move it into the field of view")  # fmt: skip
    return opening


def _at_point(lumen: Lumen, point: Floats) -> Opening:
    """Cut across the axis near a point; the smaller side is cut off."""
    where = "(" + ", ".join(f"{1e3 * x:.4g}" for x in point) + ") mm"
    if lumen.ndim == 2:
        point = lumen.world(lumen.index(point))
    beyond = float(lumen.at(point[None])[0])
    if beyond >= 0.0 or not lumen.inside_box(point[None])[0]:
        raise DataError("no opening found", found=f"seed point {where} lies outside the lumen",
                        need="a point inside it")  # fmt: skip
    radius = max(float(lumen.at(point[None], lumen.depth)[0]), lumen.h)
    direction = _along(lumen, point, radius)
    cut: Floats = point
    here = section(lumen, point, direction, radius)
    if here is not None:
        back = 0.5 * FITTED * here.radius
        found = _axis_from(lumen, here.centre + back * direction, direction, here.radius)
        if found is not None:
            place, tangent, first, last, radius = found
            depths = np.linspace(first, last, 65)
            at = depths[np.argmin([float(np.linalg.norm(place(d) - point)) for d in depths])]
            cut, direction = place(at), -tangent(at)
    opening = _measured(lumen, cut, direction, radius)
    if opening is None:
        raise DataError("no whole section at the seed point", found=where,
                        remedy="move it into the field of view")  # fmt: skip
    sides = []
    for sign in (1.0, -1.0):
        turned = replace(opening, normal=sign * opening.normal)
        removed = _owners(lumen, lumen.mask, [turned], strict=False)
        if removed.any():
            sides.append((int(removed.sum()), turned))
    if not sides:
        raise DataError("the cut does not separate the lumen", found=f"seed point {where}",
                        remedy="a loop needs two cuts: give planes by --cut")  # fmt: skip
    return min(sides, key=lambda side: side[0])[1]


# --- the axis ---------------------------------------------------------------------------------


def _axis_from(
    lumen: Lumen, start: Floats, direction: Floats, radius: float
) -> tuple[Curve, Curve, float, float, float] | None:
    """Follow the axis inward from an end and fit it by a parabola.

    The sections are taken across a first guess, then twice across the parabola itself.

    Returns
    -------
    place, inward : callables of the depth, m
        Points of the axis and its unit tangent.
    first, last : float
        Depths between which whole sections were seen.
    radius : float
    """
    seen = _follow(lumen, start, direction, radius)
    for _ in range(PASSES):
        if len(seen) < 3:
            return None
        place, inward, last = _parabola(np.array([s.centre for s in seen]))
        radius = float(np.median([s.radius for s in seen]))
        step = _step(lumen, radius)
        depths = np.arange(-radius, last + step, step)
        taken = [section(lumen, place(d), -inward(d), radius) for d in depths]
        seen = _run([s for s in taken if s is not None], lumen.ndim)
    if len(seen) < 3:
        return None
    place, inward, last = _parabola(np.array([s.centre for s in seen]))
    return (place, inward, 0.0, last, radius) if last > SHORTEST * radius else None


def _follow(lumen: Lumen, start: Floats, direction: Floats, radius: float) -> list[Section]:
    """Return whole sections from the first one on, going inward, the direction following them."""
    step, at, left = _step(lumen, radius), start, FITTED * radius
    seen = list[Section]()
    for _ in range(int(np.ceil((6.0 * radius + 8.0 * lumen.h) / step))):
        here = section(lumen, at, direction, radius)
        if here is None:
            break
        if here.whole:
            if seen and not _follows(here, seen, lumen.ndim):
                break
            seen.append(here)
            far = seen[max(len(seen) - 1 - int(np.ceil(here.radius / step)), 0)]
            if len(seen) > 2 and far is not here:
                ahead = as_unit(far.centre - here.centre)
                direction = as_unit(direction + ahead) if ahead @ direction > 0 else direction
            left = FITTED * here.radius
        if seen and float(np.linalg.norm(seen[0].centre - here.centre)) > left:
            break
        at = (here.centre if here.whole else at) - step * direction
    return seen


def _step(lumen: Lumen, radius: float) -> float:
    return max(STEP * lumen.h, radius / 8)


def _run(taken: Sequence[Section], ndim: int) -> list[Section]:
    """Keep the first unbroken run of whole sections of one vessel."""
    kept = list[Section]()
    for here in taken:
        if here.whole and (not kept or _follows(here, kept, ndim)):
            kept.append(here)
        elif kept:
            break
    return kept


def _follows(here: Section, kept: Sequence[Section], ndim: int) -> bool:
    """Whether a section goes on from others without a jump: a branch, or the vessel's end."""
    jump = float(np.linalg.norm(here.centre - kept[-1].centre))
    sizes = (here.area, kept[0].area)
    same = max(sizes) <= LARGER ** (ndim - 1) * min(sizes)
    return bool(same and jump <= 0.6 * here.radius + 3 * here.step)


def _parabola(centres: Floats) -> tuple[Curve, Curve, float]:
    """Fit a parabola to points of the axis; return its place and unit tangent at a depth."""
    depth = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(centres, axis=0), axis=1))])
    chord = as_unit(centres[-1] - centres[0])
    depth = np.maximum((centres - centres[0]) @ chord, 0.0) if depth[-1] == 0 else depth
    scale = max(float(depth[-1]), 1e-30)
    powers = 3 if len(centres) > 4 else 2
    basis = np.vander(depth / scale, powers, increasing=True)
    weights, *_ = np.linalg.lstsq(basis, centres, rcond=None)

    def place(at: float) -> Floats:
        return np.asarray(np.array([(at / scale) ** n for n in range(powers)]) @ weights)

    def inward(at: float) -> Floats:
        slope = [n * (at / scale) ** max(n - 1, 0) for n in range(powers)]
        return as_unit(np.array(slope) @ weights)

    return place, inward, scale


def _along(lumen: Lumen, point: Floats, radius: float) -> Floats:
    """Return the direction that the normals of the wall around a point have least of."""
    from ..wall_geometry import gradient

    reach = 2.2 * radius + lumen.h
    middle = np.rint(lumen.index(point)).astype(int)
    size = np.ceil(reach / np.array(lumen.spacing)).astype(int) + 1
    low, high = np.maximum(middle - size, 0), np.minimum(middle + size + 1, lumen.phi.shape)
    block = lumen.phi[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    slopes = np.stack(gradient(block.astype(np.float64), lumen.spacing), axis=-1)
    index = np.moveaxis(np.indices(block.shape), 0, -1) + low
    points = lumen.world(index.astype(np.float64))
    near = (np.abs(block) < lumen.h) & (np.linalg.norm(points - point, axis=-1) < reach)
    columns = lumen.affine[:3, : lumen.ndim] / np.array(lumen.spacing)[::-1]
    normals = slopes[near][:, ::-1] @ columns.T
    moment = normals.T @ normals
    if lumen.ndim == 2:
        moment += 1e6 * np.trace(moment) * np.outer(lumen.outward, lumen.outward)
    return np.asarray(np.linalg.eigh(moment)[1][:, 0])


def _measured(lumen: Lumen, origin: Floats, normal: Floats, radius: float) -> Opening | None:
    """Measure the section of a plane with cubics; None if it is not whole."""
    rough = section(lumen, origin, normal, radius)
    if rough is None or not rough.whole:
        return None
    fine = section(lumen, rough.centre, normal, rough.radius, order=3)
    if fine is None or not fine.whole:
        return None
    edge = rim(lumen, fine)
    if len(edge) < (3 if lumen.ndim == 3 else 2):
        return None
    area, middle, perimeter = polygon(fine.offsets(edge))
    size = np.sqrt(area / np.pi) if lumen.ndim == 3 else area / 2
    centre = fine.points(middle[None])[0]
    return Opening(centre, normal, edge, area, perimeter, float(size), fine)


# --- what they cut off ------------------------------------------------------------------------


def _owners(
    lumen: Lumen, domain: NDArray[np.bool_], openings: Sequence[Opening], *, strict: bool
) -> NDArray[np.uint8]:
    """Return 1 + the number of the opening that cuts a voxel off, 0 where it stays.

    Just outside each opening a slab of the lumen, thick enough that no step between neighbours
    crosses it, is taken away. What is left behind it and in front of no opening is cut off too.

    Raises
    ------
    DataError
        If ``strict`` and a cut leaves the lumen in one piece.
    """
    from scipy import ndimage

    touching = np.ones((3,) * lumen.ndim, dtype=bool)
    slabs = [_slab(lumen, domain, opening) for opening in openings]
    rest = domain.copy()
    for slab in slabs:
        rest[tuple(slab.T)] = False
    labels, _ = ndimage.label(rest, touching)
    sides = [_beside(lumen, labels, o, s) for o, s in zip(openings, slabs, strict=True)]
    inner = set().union(*(before for before, _ in sides)) if sides else set()
    owner = np.zeros(domain.shape, dtype=np.uint8)
    for number, (slab, (before, behind)) in enumerate(zip(slabs, sides, strict=True), 1):
        if not before or before & behind or behind & inner:
            if strict:
                x = ", ".join(f"{1e3 * v:.4g}" for v in openings[number - 1].centre)
                remedy = "turn its normal outward; a loop needs two cuts"
                fault = "the cut does not separate the lumen"
                raise DataError(fault, found=f"the cut at ({x}) mm", remedy=remedy)
            continue
        owner[np.isin(labels, list(behind)) if behind else np.zeros_like(domain)] = number
        owner[tuple(slab.T)] = number
    return owner


def _slab(lumen: Lumen, domain: NDArray[np.bool_], opening: Opening) -> NDArray[np.int64]:
    """Index the voxels of the domain just outside an opening, (n, ndim)."""
    from scipy import ndimage

    thick = _thickness(lumen, opening)
    reach = 1.3 * float(np.linalg.norm(opening.rim - opening.centre, axis=1).max()) + 2 * lumen.h
    index, points, box = around(lumen, opening.centre, reach + thick)
    height = opening.height(points)
    aside = np.linalg.norm(points - opening.centre - height[..., None] * opening.normal, axis=-1)
    layer = domain[box] & (height > 0.0) & (height <= thick) & (aside <= reach)
    labels, _ = ndimage.label(layer, np.ones((3,) * lumen.ndim, dtype=bool))
    covered = np.zeros(layer.shape, dtype=bool)
    covered[layer] = opening.section.covers(points[layer])
    kept = np.isin(labels, np.unique(labels[covered & (labels > 0)])) & layer
    return np.asarray(index[kept])


def _thickness(lumen: Lumen, opening: Opening) -> float:
    """Largest change of height between neighbours, m."""
    return float(np.abs(lumen.affine[:3, : lumen.ndim].T @ opening.normal).sum()) * (1 + 1e-9)


def around(
    lumen: Lumen, centre: Floats, reach: float
) -> tuple[NDArray[np.int64], Floats, tuple[slice, ...]]:
    """Index, world points and slices of the box of voxels around a point."""
    middle = np.rint(lumen.index(centre)).astype(int)
    size = np.ceil(reach / np.array(lumen.spacing)).astype(int) + 1
    low, high = np.maximum(middle - size, 0), np.minimum(middle + size + 1, lumen.phi.shape)
    box = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    index = np.moveaxis(np.indices(tuple(high - low)), 0, -1) + low
    return index, lumen.world(index.astype(np.float64)), box


def _beside(
    lumen: Lumen, labels: NDArray[np.int32], opening: Opening, slab: NDArray[np.int64]
) -> tuple[set[int], set[int]]:
    """Return the pieces that touch a slab from inside and from outside the opening."""
    if not len(slab):
        return set(), set()
    steps = np.stack(np.meshgrid(*[(-1, 0, 1)] * lumen.ndim, indexing="ij"), axis=-1)
    near = np.unique(
        (slab[:, None] + steps.reshape(1, -1, lumen.ndim)).reshape(-1, lumen.ndim), axis=0
    )
    near = near[((near >= 0) & (near < np.array(labels.shape))).all(axis=1)]
    found = labels[tuple(near.T)]
    height = opening.height(lumen.world(near.astype(np.float64)))
    before, behind = found[(height <= 0) & (found > 0)], found[(height > 0) & (found > 0)]
    return set(before.tolist()), set(behind.tolist())


def grid_labels(
    lumen: Lumen, ends: Ends, band_m: float
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return the flow domain and the nearest part of its boundary in the band.

    Returns
    -------
    domain : grid uint8
        The lumen without what the openings cut off.
    label : grid uint8
        0 none, 1 wall, 2, 3, … the openings.
    """
    from scipy import ndimage

    band = np.abs(lumen.phi) <= band_m
    label = band.astype(np.uint8)
    owner = ends.owner.copy()
    if ends.openings:  # outside the lumen, what is cut off owns what is nearest to it
        for number, where in enumerate(ndimage.find_objects(owner), 1):
            if where is None:
                continue
            pad = [int(np.ceil(band_m / h)) + 1 for h in lumen.spacing]
            box = tuple(
                slice(max(s.start - p, 0), s.stop + p) for s, p in zip(where, pad, strict=True)
            )
            near = ndimage.distance_transform_edt(
                lumen.mask[box] == 0, sampling=lumen.spacing, return_distances=False,
                return_indices=True,
            )  # fmt: skip
            mine = ends.owner[box][tuple(near)] == number
            owner[box][mine & ~lumen.mask[box]] = number
    for number, opening in enumerate(ends.openings, FIRST_LABEL):
        reach = float(np.linalg.norm(opening.rim - opening.centre, axis=1).max()) + band_m
        _, points, box = around(lumen, opening.centre, reach)
        height, phi = opening.height(points), lumen.phi[box]
        own = owner[box] == number
        flat = opening.section.covers(points.reshape(-1, 3)).reshape(phi.shape)
        closer = flat & (owner[box] == 0) & (height <= 0) & (-height < np.abs(phi))
        closer &= np.asarray(phi < 0)
        label[box][band[box] & (closer | (own & (height <= band_m)))] = number
        label[(owner == number) & (label != number)] = 0
    return (lumen.mask & (ends.owner == 0)).astype(np.uint8), label
