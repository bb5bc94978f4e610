"""The flow through an opening: a profile without slip at the rim, fitted to measured velocity.

On the section u(x) = (1 - ρ²) Σ c_k p_k(x) with ρ = 1 at the rim and 0 at the deepest point, p the
polynomials up to second order. What a voxel measures of it is the magnitude-weighted mean over its
point spread, so that the blur of scan and wall is in the fit, not in the flow.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations_with_replacement

import numpy as np
from numpy.typing import NDArray

from ..meridian import Meridian
from .openings import Opening, around, crosses
from .section import Floats, Lumen

DEEP = 0.5  # radii of vessel on each side of the plane whose voxels are used
VOXELS_PER_TERM = 4
LENGTH = 0.5  # correlation length of a profile in radii


@dataclass(frozen=True, eq=False)
class Measured:
    """What is known of the blood around the openings.

    Parameters
    ----------
    u : (nt, grid, 3) float32
        m/s.
    sigma : grid float32
        s.d. of a component, m/s.
    magnitude : grid float32
    psf_voxels : float
        s.d. of the point spread along each axis, without the voxel box.
    nu : float
        Kinematic viscosity, m²/s.
    """

    u: NDArray[np.float32]
    sigma: NDArray[np.float32]
    magnitude: NDArray[np.float32]
    psf_voxels: float
    nu: float


@dataclass(frozen=True, eq=False)
class Profile:
    """The fitted flow of one opening.

    Parameters
    ----------
    q_mean, q_std : float
        Out of the domain, m³/s (2-D: m²/s), mean over the frames.
    u_max : float
        Largest speed through the plane, m/s.
    u_mean, u_std : (nt, np, 3) float32
        At the points asked for.
    """

    q_mean: float
    q_std: float
    u_max: float
    u_mean: NDArray[np.float32]
    u_std: NDArray[np.float32]


def fit_profile(
    lumen: Lumen,
    opening: Opening,
    measured: Measured,
    shift: float,
    points: Floats,
    meridian: Meridian | None = None,
) -> Profile | None:
    """Fit the profile of an opening; None where too few voxels tell of it.

    Parameters
    ----------
    lumen, opening, measured
        Of a revolved lumen those of the mirrored plane.
    shift : float
        s.d. of the opening's area over its rim, m: the wall's share in the s.d. of the flow.
    points : (np, 3)
        World points of the plane where the profile is wanted.
    meridian : Meridian, optional
        The half plane of a revolved lumen: only its own voxels count, flows are those of rings.
    """
    where = _voxels(lumen, opening)
    if meridian is not None:
        where = where[meridian.radius(lumen.world(where.astype(np.float64))) > 0.0]
    if len(where) < VOXELS_PER_TERM:
        return None
    index = tuple(where.T)
    powers = _powers(lumen, opening, meridian)
    terms = min(len(powers), max(1, len(where) // VOXELS_PER_TERM))
    sigma = measured.sigma[index].astype(np.float64)
    values = measured.u[(slice(None), *index)].astype(np.float64)
    fits = []
    for offset in (0.0, shift, -shift):
        shape, volume = _basis(opening, offset, powers[:terms], meridian)
        seen = _blurred(lumen, opening, measured, shape, offset)
        design = _sampled(opening, seen, lumen.world(where.astype(np.float64)))
        rows = design / sigma[:, None]
        inverse = np.linalg.pinv(rows.T @ rows)
        solve = inverse @ (rows / sigma[:, None]).T
        weights = np.einsum("kv,tvx->tkx", solve, values)
        fits.append((shape, volume, design, inverse, weights))
    shape, volume, design, inverse, weights = fits[0]
    freedom = max(len(where) - terms, 1)
    misfit = values - np.einsum("vk,tkx->tvx", design, weights)
    along = np.einsum("tvx,x->tv", misfit, opening.normal) / sigma
    inverse = inverse * max(1.0, float(np.square(along).sum(axis=1).mean()) / freedom)
    flows = [float(f[1] @ f[4].mean(axis=0) @ opening.normal) for f in fits]
    variance = float(volume @ inverse @ volume) / len(measured.u)
    wall = 0.5 * abs(flows[1] - flows[2])
    at_points = _sampled(opening, shape, points)
    profile = np.einsum("pk,tkx->tpx", at_points, weights)
    spread = np.sqrt(np.maximum(np.einsum("pk,kl,pl->p", at_points, inverse, at_points), 0.0))
    fine = np.einsum("k...,tk->t...", shape, weights @ opening.normal)
    return Profile(
        flows[0],
        float(np.hypot(np.sqrt(max(variance, 0.0)), wall)),
        float(np.abs(fine).max()),
        profile.astype(np.float32),
        np.array(np.broadcast_to(spread[:, None], profile.shape), dtype=np.float32),
    )


def _powers(lumen: Lumen, opening: Opening, meridian: Meridian | None) -> list[tuple[int, ...]]:
    """Return the polynomials of a profile as the axes that are multiplied; even across an axis."""
    every = [c for n in range(3) for c in combinations_with_replacement(range(lumen.ndim - 1), n)]
    across = meridian is not None and crosses(opening, meridian)
    return [power for power in every if not (across and len(power) % 2)]


def _voxels(lumen: Lumen, opening: Opening) -> NDArray[np.int64]:
    """Index the voxels of the vessel near the plane."""
    reach = max(DEEP * opening.radius, lumen.h)
    wide = float(np.linalg.norm(opening.rim - opening.centre, axis=1).max())
    index, points, box = around(lumen, opening.centre, wide + reach)
    near = np.abs(opening.height(points)) <= reach
    near &= opening.section.covers(points.reshape(-1, 3)).reshape(near.shape)
    return np.asarray(index[near & lumen.mask[box]])


def _basis(
    opening: Opening, offset: float, powers: list[tuple[int, ...]], meridian: Meridian | None
) -> tuple[Floats, Floats]:
    """Return the terms on the samples of the plane (k, ...) and their integrals.

    ``offset`` moves the wall outward.
    """
    plane = opening.section
    phi = np.where(_piece(plane.piece), plane.phi - offset, np.abs(plane.phi))
    deepest = max(-float(phi.min()), 1e-30)
    depth = np.clip(-phi / deepest, 0.0, 1.0)
    half = (len(phi) - 1) // 2
    ticks = (np.arange(len(phi)) - half) * plane.step / opening.radius
    mesh = np.meshgrid(*[ticks] * phi.ndim, indexing="ij")
    shape = np.stack(
        [
            depth * (2.0 - depth) * np.prod([mesh[a] for a in power] or [np.ones_like(phi)], axis=0)
            for power in powers
        ]
    )
    weight = np.full(phi.size, plane.step**phi.ndim)
    if meridian is not None:
        points = plane.points((np.arange(len(phi)) - half)[:, None] * plane.step)
        weight *= 2.0 * np.pi * np.maximum(meridian.radius(points), 0.0)
    return shape, shape.reshape(len(powers), -1) @ weight


def _piece(piece: NDArray[np.bool_]) -> NDArray[np.bool_]:
    from scipy import ndimage

    return np.asarray(ndimage.binary_dilation(piece, iterations=2))


def _blurred(
    lumen: Lumen, opening: Opening, measured: Measured, shape: Floats, offset: float
) -> Floats:
    """Return what voxels see of the terms: the magnitude-weighted mean over the point spread."""
    from scipy import ndimage

    plane = opening.section
    columns = lumen.affine[:3, : lumen.ndim]
    variance = measured.psf_voxels**2 + 1.0 / 12.0
    width = [np.sqrt(variance * float(np.square(columns.T @ axis).sum())) for axis in plane.axes]
    smooth = [w / plane.step for w in width]
    inner, outer = _brightness(lumen, opening, measured)
    phi = plane.phi - offset
    inside = np.clip(0.5 - phi / plane.step, 0.0, 1.0)
    bright = outer + (inner - outer) * inside
    weight = ndimage.gaussian_filter(bright, smooth, mode="nearest")
    return np.stack(
        [ndimage.gaussian_filter(bright * term, smooth, mode="constant") / weight for term in shape]
    )


def _brightness(lumen: Lumen, opening: Opening, measured: Measured) -> tuple[float, float]:
    """Median magnitude in the lumen and outside it around an opening; at least a tenth apart."""
    _, _, box = around(lumen, opening.centre, opening.radius + 4.0 * lumen.h)
    phi, image = lumen.phi[box], measured.magnitude[box]
    inner, outer = image[phi < -lumen.h], image[(phi > lumen.h) & (phi < 4.0 * lumen.h)]
    inside = float(np.median(inner)) if inner.size else float(np.median(image[phi < 0]))
    outside = float(np.median(outer)) if outer.size else 0.0
    return (inside, max(outside, 0.0)) if inside > 0 else (1.0, 1.0)


def _sampled(opening: Opening, fields: Floats, points: Floats) -> Floats:
    """Interpolate fields on the plane at the feet of world points: (points, k)."""
    from scipy import ndimage

    plane = opening.section
    half = (fields.shape[1] - 1) // 2
    index = (plane.offsets(points) / plane.step + half).T
    return np.stack(
        [ndimage.map_coordinates(f, index, order=1, mode="constant") for f in fields], axis=1
    )
