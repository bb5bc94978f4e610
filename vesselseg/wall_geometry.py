"""What a signed distance says about its wall: normals, curvature, partial volumes, topology.

Lengths are in the unit of the spacing. Fields are ``[k, j, i]`` or ``[j, i]``; a gradient has the
components of the array axes, a normal the world components (x, y, z).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Flags = NDArray[np.bool_]

STRIPS = 8  # of a pixel across r, each of which sweeps its own circle


def gradient(phi: Floats, spacing: tuple[float, ...], revolved: bool = False) -> list[Floats]:
    """Return the central differences of phi along the array axes.

    ``revolved``: half a sample before the first row lies an axis about which phi is even.
    """
    ghost = int(revolved)
    parts = np.gradient(np.concatenate([phi[:ghost], phi]) if ghost else phi, *spacing)
    return [part[ghost:] for part in parts]


def unit_normals(gradients: list[Floats], where: Flags, columns: Floats) -> NDArray[np.float32]:
    """Return ∇φ/‖∇φ‖ in world components where asked, zero elsewhere.

    ``columns`` (3, 3) holds the unit vectors of i, j, k in the world; they may be slightly off
    orthogonal, hence the dual basis.
    """
    dual = np.linalg.inv(columns).T[:, : len(gradients)][:, ::-1]
    vectors = np.stack([g[where] for g in gradients], axis=-1).astype(np.float64) @ dual.T
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    result = np.zeros((*where.shape, 3), dtype=np.float32)
    result[where] = vectors / np.where(lengths > 0.0, lengths, 1.0)
    return result


def rows(count: int) -> NDArray[np.float64]:
    """Return the distance of each row of a half plane from its axis of revolution, in rows."""
    return np.asarray(np.arange(count) + 0.5)


def voxels(
    shape: tuple[int, ...], spacing: tuple[float, ...], rows: Floats | None = None
) -> NDArray[np.float64]:
    """Return the volume of each voxel, or of the ring that each pixel sweeps at those rows."""
    found = np.full(shape, float(np.prod(spacing)))
    return found if rows is None else 2.0 * np.pi * spacing[0] * rows[:, None] * found


def second_difference(phi: Floats, axis: int, revolved: bool = False) -> Floats:
    """Return φ(+1) - 2φ + φ(-1) along an axis, zero at its ends; about an axis as there."""
    width = [(1, 1) if a == axis else (0, 0) for a in range(phi.ndim)]
    if phi.shape[axis] < 3:
        return np.zeros_like(phi)
    found = np.pad(np.diff(phi, 2, axis=axis), width)
    if revolved and axis == 0:
        found[0] = phi[1] - phi[0]
    return found


def curvatures(
    phi: Floats,
    gradients: list[Floats],
    spacing: tuple[float, ...],
    where: Flags,
    rows: Floats | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the sum and the product of the principal curvatures where asked, zero elsewhere.

    The sum is div n = (tr H - nᵀHn)/‖∇φ‖, the product nᵀ adj(H) n/‖∇φ‖² (Goldman, Comput. Aided
    Geom. Des. 22 (2005) 632, eq. 4.1). ``rows``, the distances from an axis of revolution in rows,
    say that the second principal curvature is n_r / r; without it the product is 0 in 2-D.
    """
    part = np.stack([g[where] for g in gradients]).astype(np.float64)
    norm = np.maximum(np.sqrt(np.sum(part**2, axis=0)), 0.5)  # a ridge has no normal
    n = part / norm
    second = {}
    for a, h in enumerate(spacing):
        second[a, a] = second_difference(phi, a, rows is not None)[where] / (h**2 * norm)
    for a, b in itertools.combinations(range(phi.ndim), 2):
        mixed = np.gradient(gradients[a], spacing[b], axis=b)[where] / norm
        second[a, b] = second[b, a] = mixed
    total, product = np.zeros(part.shape[1]), np.zeros(part.shape[1])
    for a in range(phi.ndim):
        total += second[a, a] * (1.0 - n[a] ** 2)
    for a, b in itertools.combinations(range(phi.ndim), 2):
        total -= 2.0 * n[a] * n[b] * second[a, b]
    for a, b, c in ((0, 1, 2), (1, 2, 0), (2, 0, 1)) if phi.ndim == 3 else ():
        product += n[c] ** 2 * (second[a, a] * second[b, b] - second[a, b] ** 2)
        product += 2.0 * n[a] * n[b] * (second[a, c] * second[b, c] - second[a, b] * second[c, c])
    if rows is not None:
        around = n[0] / (np.broadcast_to(rows[:, None], phi.shape)[where] * spacing[0])
        total, product = total + around, total * around
    found = np.zeros((2, *phi.shape), dtype=np.float32)
    found[:, where] = total, product
    return found[0], found[1]


def inner_fraction(
    phi: Floats,
    gradients: list[Floats],
    spacing: tuple[float, ...],
    rows: Floats | None = None,
) -> NDArray[np.float32]:
    """Return the fraction of each voxel with phi < 0.

    The wall in a voxel is the plane with the voxel's normal and the voxel's mean of phi,
    φ + Σ h_a² φ_aa / 24, which puts the volume cut off by a curved wall right to second order.
    ``rows``, the distance of each row from an axis of revolution in rows, makes it the fraction of
    the ring that a pixel sweeps.
    """
    near = np.abs(phi) < 0.5 * float(np.linalg.norm(spacing))
    part = np.stack([g[near] for g in gradients]).astype(np.float64)
    norm = np.maximum(np.sqrt(np.sum(part**2, axis=0)), 1e-6)
    bends = (second_difference(phi, a, rows is not None)[near] for a in range(phi.ndim))
    mean = phi[near] + sum(bends) / 24.0
    extent = np.abs(part / norm) * np.array(spacing)[:, None]
    result = (phi < 0).astype(np.float32)
    if rows is None:
        result[near] = _cut_box(-mean / norm, extent)
        return result
    row = np.broadcast_to(rows[:, None], phi.shape)[near]
    place = (np.arange(STRIPS) + 0.5) / STRIPS - 0.5
    rise = spacing[0] * part[0] / norm
    extent[0] /= STRIPS
    strips = [(1.0 + x / row) * _cut_box(-mean / norm - x * rise, extent) for x in place]
    result[near] = np.clip(np.mean(strips, axis=0), 0.0, 1.0)
    return result


def _cut_box(offset: Floats, extent: Floats) -> Floats:
    """Volume fraction of a centred box below a plane; ``extent`` (d, n) = |n_a| h_a.

    Inclusion and exclusion over the corners; Scardovelli and Zaleski, J. Comput. Phys. 164 (2000)
    228, eq. 9.
    """
    d = len(extent)
    extent = np.maximum(extent, 1e-3 * extent.max(axis=0))  # keeps the quotient well conditioned
    top = offset + 0.5 * extent.sum(axis=0)
    total = np.zeros(offset.shape)
    for corner in itertools.product((0, 1), repeat=d):
        cut = top - np.tensordot(np.array(corner, dtype=float), extent, axes=1)
        total += (-1) ** sum(corner) * np.maximum(cut, 0.0) ** d
    factorial = 2.0 if d == 2 else 6.0
    fraction: Floats = np.clip(total / (factorial * extent.prod(axis=0)), 0.0, 1.0)
    return fraction


@dataclass(frozen=True, eq=False)
class Topology:
    """Lumen components by falling volume, Euler number of the voxels, genus of their surface."""

    component: NDArray[np.int64]
    n_components: int
    euler: int
    genus: int


def topology(mask: Flags, rows: Floats | None = None) -> Topology:
    """Label the lumen (26-neighbours, 2-D: 8) and count its handles and cavities.

    χ = components - handles + cavities; genus is the number of handles (2-D: 0, χ counts holes).
    ``rows``, the distances from an axis of revolution, say that the mask is a half plane: what
    it sweeps is counted. There χ is the number of runs on the axis: a circle has none.
    """
    from scipy import ndimage

    from .solvers.topology import euler_number

    labels, count = ndimage.label(mask, structure=np.ones((3,) * mask.ndim, dtype=int))
    weights = None if rows is None else np.broadcast_to(rows[:, None], mask.shape).ravel()
    sizes = np.bincount(labels.ravel(), weights, minlength=count + 1)[1:]
    rank = np.zeros(count + 1, dtype=np.int64)
    rank[1 + np.argsort(-sizes, kind="stable")] = np.arange(1, count + 1)
    if rows is not None:
        inner = np.pad(mask, ((0, 1), (1, 1)))
        euler = int(np.count_nonzero(inner[0, 1:] & ~inner[0, :-1]))
    else:
        box = ndimage.find_objects(mask.astype(np.int8))
        inner = np.pad(mask[box[0]], 1) if box else mask
        euler = euler_number(inner) if box else 0
    cavities = int(ndimage.label(~inner)[1]) - 1
    solid = mask.ndim == 3 or rows is not None
    genus = count + cavities - euler if solid else 0
    return Topology(rank[labels], int(count), euler, genus)


def depth(phi: Floats, spacing: tuple[float, ...]) -> Floats:
    """Return -φ in the lumen, continued by the Euclidean distance where phi is clamped."""
    from scipy import ndimage

    inner = np.where(phi < 0, -phi, 0.0)
    deep = inner >= inner.max() * (1.0 - 1e-6)
    if np.count_nonzero(deep) > 1 and not deep.all():
        slices = [
            slice(max(s.start - 1, 0), s.stop + 1)
            for s in ndimage.find_objects(deep.astype(np.int8))[0]
        ]
        box = tuple(slices)
        steps, near = ndimage.distance_transform_edt(
            deep[box], sampling=spacing, return_indices=True
        )
        inner[box] += np.where(deep[box], steps + inner[box][tuple(near)] - inner[box], 0.0)
    return inner


def smallest_radius(phi: Floats) -> float:
    """Return the radius of the narrowest lumen: 5th percentile of depth on the local maxima."""
    from scipy import ndimage

    box = ndimage.find_objects((phi < 0).astype(np.int8))
    if not box:
        return 0.0
    inner = -phi[tuple(slice(max(s.start - 1, 0), s.stop + 1) for s in box[0])]
    ridge = (inner > 0) & (inner >= ndimage.maximum_filter(inner, size=3, mode="nearest"))
    return float(np.percentile(inner[ridge], 5)) if ridge.any() else 0.0


def interpolate(field: Any, index: Floats, order: int = 1) -> NDArray[np.float64]:
    """Interpolate a field at index points (n, d) in array order, clamped to the grid."""
    from scipy import ndimage

    values = np.asarray(field, dtype=np.float64)
    result: NDArray[np.float64] = ndimage.map_coordinates(
        values, np.moveaxis(index, -1, 0), order=order, mode="nearest"
    )
    return result


def slope_error(gradients: list[Floats], near: Flags) -> tuple[float, float, float]:
    """Return mean, maximum and rms of |‖∇φ‖ - 1| where asked; zeros if nowhere."""
    if not near.any():
        return 0.0, 0.0, 0.0
    slope = np.sqrt(np.sum([np.square(g[near], dtype=np.float64) for g in gradients], axis=0))
    error = np.abs(slope - 1.0)
    return float(error.mean()), float(error.max()), float(np.sqrt(np.mean(error**2)))


def normal_roughness_deg(
    phi: Floats, gradients: list[Floats], normal: Floats, spacing: tuple[float, ...]
) -> float:
    """Return the rms angle between the normal at h < |φ| < 2h and that at its foot on the wall.

    Zero for a distance function: its normal is constant along normals.
    """
    h = max(spacing)
    shell = (np.abs(phi) > h) & (np.abs(phi) < 2 * h)
    if not shell.any():
        return 0.0
    part = np.stack([g[shell] for g in gradients], axis=-1).astype(np.float64)
    part /= np.maximum(np.linalg.norm(part, axis=-1, keepdims=True), 0.5)
    foot = np.argwhere(shell) - phi[shell][:, None] * part / np.array(spacing)
    at_foot = np.stack([interpolate(normal[..., c], foot) for c in range(3)], axis=-1)
    here = normal[shell].astype(np.float64)
    lengths = np.linalg.norm(at_foot, axis=-1) * np.linalg.norm(here, axis=-1)
    cosine = np.sum(at_foot * here, axis=-1) / np.where(lengths > 0, lengths, 1.0)
    angle = np.degrees(np.arccos(np.clip(cosine, -1.0, 1.0)))
    return float(np.sqrt(np.mean(angle**2)))


def wall_contrast(image: Floats, phi: Floats, h: float) -> float:
    """Return the contrast across the wall over the noise: means and robust s.d. at h..3h."""
    inner = image[(phi < -h) & (phi > -3 * h)].astype(np.float64)
    outer = image[(phi > h) & (phi < 3 * h)].astype(np.float64)
    if inner.size == 0 or outer.size == 0:
        return 0.0
    spread = [1.4826 * float(np.median(np.abs(part - np.median(part)))) for part in (inner, outer)]
    noise = float(np.sqrt(np.mean(np.square(spread))))
    return abs(float(inner.mean() - outer.mean())) / noise if noise > 0.0 else 0.0
