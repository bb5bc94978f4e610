"""Random vessels in voxel units: branching axes, their level set, its random deformation.

A vessel is a chain of round cones (convex hulls of two balls). Points are (z, y, x) in voxels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numba import njit
from numpy.typing import NDArray

from . import phantoms
from .fields import Field
from .forward import gaussian_process
from .solvers import advect, redistance

MARGIN = 7.5  # voxels about each vessel where its distance is computed
BAND = 4.0  # voxels where the deformed level set is redistanced to high order
FAR = 12.0  # clamp of the distance in voxels
MAX_SHARE = 0.22  # of the local radius: largest shift of the wall by the deformation
TRAINING_SHAPES = (
    "bifurcation",
    "stenosis",
    "aneurysm",
    "tapered_tube",
    "curved_tube",
    "two_vessels",
)
HELD_OUT_SHAPES = ("torus", "helix", "arch")


@njit(cache=True)
def _grow(
    roots: NDArray,
    normals: NDArray,
    uniforms: NDArray,
    size: NDArray,
    tortuosity: float,
    branching: float,
    thinnest: float,
    planar: bool,
    segments: NDArray,
) -> int:
    """Walk each root (point, direction, radius) through the box; return the number of segments.

    The curvature of the axis is an Ornstein-Uhlenbeck process; branches share the cube of the
    radius (Murray 1926); the radius ripples and has one dip or bulge per branch.
    """
    stack = np.zeros((64, 8))
    height = len(roots)
    stack[:height, :7] = roots
    count, draw = 0, 0
    curl, move, point, home = np.zeros(3), np.zeros(3), np.zeros(3), np.zeros(3)
    while height > 0 and count < len(segments):
        height -= 1
        point[:] = stack[height, :3]
        move[:] = stack[height, 3:6]
        home[:] = move
        base, level = stack[height, 6], stack[height, 7]
        target = base
        curl[:] = 0.0
        u = uniforms[draw % len(uniforms) :]
        if len(u) < 8:
            u = uniforms
        draw += 8
        ripple, wave, phase = 0.12 * u[0], (3.0 + 9.0 * u[1]) * base, 6.28 * u[2]
        bump = 0.0 if u[3] < 0.5 else (-0.6 + 1.4 * (u[3] - 0.5) * 2.0)
        where, width = (5.0 + 40.0 * u[4]), (0.7 + 1.5 * u[5]) * base
        travelled, since = 0.0, 0.0
        last = base * (1.0 + ripple * math.sin(phase))
        while count < len(segments):
            step = max(0.8, 0.35 * base)
            keep = math.exp(-step / (5.0 * base + 4.0))
            kick = math.sqrt(1.0 - keep * keep) * tortuosity / (base + 3.0)
            # A weak pull to the first heading: long vessels cross the box, they do not coil up.
            pull = (1.0 - keep) * 0.12 / (0.3 * base + 1.0)
            for d in range(3):
                curl[d] = keep * curl[d] + kick * normals[draw % len(normals)]
                curl[d] += pull * (home[d] - move[d])
                draw += 1
            if planar:
                curl[0] = 0.0
            along = curl[0] * move[0] + curl[1] * move[1] + curl[2] * move[2]
            bend = 0.0
            for d in range(3):
                curl[d] -= along * move[d]
                bend += curl[d] * curl[d]
            limit = 0.55 / base
            scale = min(1.0, limit / math.sqrt(bend)) if bend > 0.0 else 1.0
            norm = 0.0
            for d in range(3):
                move[d] += step * scale * curl[d]
                norm += move[d] * move[d]
            norm = math.sqrt(norm)
            for d in range(3):
                move[d] /= norm
                segments[count, d] = point[d]
                point[d] += step * move[d]
                segments[count, 3 + d] = point[d]
            travelled += step
            since += step
            base += 0.25 * (target - base)
            offset = (travelled - where) / width
            now = base * (1.0 + ripple * math.sin(phase + 6.28 * travelled / wave))
            now *= 1.0 + bump * math.exp(-0.5 * offset * offset)
            now = max(now, 0.7)
            # A round cone needs abs(difference of radii) < length.
            now = min(max(now, last - 0.7 * step), last + 0.7 * step)
            segments[count, 6] = last
            segments[count, 7] = now
            last = now
            count += 1
            gone = False
            for d in range(3):
                gone = gone or point[d] < -base - 3.0 or point[d] > size[d] + base + 3.0
            if gone:
                break
            chance = uniforms[draw % len(uniforms)]
            draw += 1
            if since > 2.5 * base and chance < branching * step / base and height < 60:
                share = 0.08 + 0.42 * uniforms[draw % len(uniforms)]
                angle = 0.5 + uniforms[(draw + 1) % len(uniforms)]
                side = np.zeros(3)
                for d in range(3):
                    side[d] = normals[(draw + d) % len(normals)]
                if planar:
                    side[0] = 0.0
                draw += 5
                along = side[0] * move[0] + side[1] * move[1] + side[2] * move[2]
                norm = 1e-12
                for d in range(3):
                    side[d] -= along * move[d]
                    norm += side[d] * side[d]
                norm = math.sqrt(norm)
                child = base * share ** (1.0 / 3.0)
                if child > thinnest and level < 4.0:
                    for d in range(3):
                        side[d] /= norm
                        stack[height, d] = point[d]
                        stack[height, 3 + d] = math.cos(angle) * move[d] + math.sin(angle) * side[d]
                    stack[height, 6] = child
                    stack[height, 7] = level + 1.0
                    height += 1
                    target = base * (1.0 - share) ** (1.0 / 3.0)
                    norm = 0.0
                    for d in range(3):
                        move[d] -= 0.6 * share * side[d]
                        norm += move[d] * move[d]
                    norm = math.sqrt(norm)
                    for d in range(3):
                        move[d] /= norm
                    since = 0.0
    return count


@njit(cache=True)
def _rasterise(segments: NDArray, margin: float, phi: NDArray, radius: NDArray) -> None:
    """Lower phi to the distance to each round cone near it; keep the radius of the closest.

    Distance of a round cone: I. Quilez, "distance functions", sdRoundCone.
    """
    nz, ny, nx = phi.shape
    for s in range(len(segments)):
        az, ay, ax = segments[s, 0], segments[s, 1], segments[s, 2]
        bz, by, bx = segments[s, 3] - az, segments[s, 4] - ay, segments[s, 5] - ax
        ra, rb = segments[s, 6], segments[s, 7]
        reach = max(ra, rb) + margin
        z0, z1 = max(0, math.ceil(min(az, az + bz) - reach)), min(nz - 1, max(az, az + bz) + reach)
        y0, y1 = max(0, math.ceil(min(ay, ay + by) - reach)), min(ny - 1, max(ay, ay + by) + reach)
        x0, x1 = max(0, math.ceil(min(ax, ax + bx) - reach)), min(nx - 1, max(ax, ax + bx) + reach)
        l2 = bz * bz + by * by + bx * bx
        rr = ra - rb
        a2 = l2 - rr * rr
        ball = a2 <= 1e-9
        il2 = 1.0 / max(l2, 1e-12)
        for k in range(z0, math.floor(z1) + 1):
            pz = k - az
            for j in range(y0, math.floor(y1) + 1):
                py = j - ay
                for i in range(x0, math.floor(x1) + 1):
                    px = i - ax
                    pp = pz * pz + py * py + px * px
                    if ball:
                        d = math.sqrt(pp) - max(ra, rb)
                    else:
                        y = pz * bz + py * by + px * bx
                        z = y - l2
                        across = max(pp * l2 - y * y, 0.0)
                        x2 = across * l2
                        y2, z2 = y * y * l2, z * z * l2
                        k2 = rr * abs(rr) * x2
                        if (z2 if z > 0.0 else -z2) * a2 > k2:
                            d = math.sqrt(x2 + z2) * il2 - rb
                        elif (y2 if y > 0.0 else -y2) * a2 < k2:
                            d = math.sqrt(x2 + y2) * il2 - ra
                        else:
                            d = (math.sqrt(x2 * a2 * il2) + y * rr) * il2 - ra
                    if d < phi[k, j, i]:
                        phi[k, j, i] = d
                        share = 0.0 if ball else min(max((y * il2), 0.0), 1.0)
                        radius[k, j, i] = ra + share * (rb - ra)


@njit(cache=True)
def _sweep(distance: NDArray, fixed: NDArray) -> None:
    """Solve the eikonal equation outside the fixed voxels, first order (Zhao 2005)."""
    nz, ny, nx = distance.shape
    big = np.float32(1e9)
    for turn in range(8):
        for kk in range(nz):
            k = kk if turn & 1 else nz - 1 - kk
            for jj in range(ny):
                j = jj if turn & 2 else ny - 1 - jj
                for ii in range(nx):
                    i = ii if turn & 4 else nx - 1 - ii
                    if fixed[k, j, i]:
                        continue
                    a = min(
                        distance[k - 1, j, i] if k > 0 else big,
                        distance[k + 1, j, i] if k < nz - 1 else big,
                    )
                    b = min(
                        distance[k, j - 1, i] if j > 0 else big,
                        distance[k, j + 1, i] if j < ny - 1 else big,
                    )
                    c = min(
                        distance[k, j, i - 1] if i > 0 else big,
                        distance[k, j, i + 1] if i < nx - 1 else big,
                    )
                    if a > b:
                        a, b = b, a
                    if b > c:
                        b, c = c, b
                    if a > b:
                        a, b = b, a
                    u = a + np.float32(1.0)
                    if u > b:
                        u = (a + b + math.sqrt(max(2.0 - (a - b) * (a - b), 0.0))) / 2.0
                        if u > c:
                            total = a + b + c
                            rest = total * total - 3.0 * (a * a + b * b + c * c - 1.0)
                            u = (total + math.sqrt(max(rest, 0.0))) / 3.0
                    if u < distance[k, j, i]:
                        distance[k, j, i] = u


@njit(cache=True)
def _climb(points: NDArray, moves: NDArray, phi: NDArray, steps: int) -> None:
    """Move axis points across the axis towards the lowest phi; keep those still in the lumen."""
    nz, ny, nx = phi.shape
    size = (nz, ny, nx)
    slope = np.zeros(3)
    index = np.zeros(3, np.int64)
    for p in range(len(points)):
        inside = True
        for n in range(steps):
            for d in range(3):
                index[d] = round(points[p, d])
                inside = inside and 0 <= index[d] < size[d]
            if not inside:
                break
            k, j, i = index
            slope[:] = 0.0
            if 0 < k < nz - 1:
                slope[0] = (phi[k + 1, j, i] - phi[k - 1, j, i]) / 2
            if 0 < j < ny - 1:
                slope[1] = (phi[k, j + 1, i] - phi[k, j - 1, i]) / 2
            if 0 < i < nx - 1:
                slope[2] = (phi[k, j, i + 1] - phi[k, j, i - 1]) / 2
            along = slope[0] * moves[p, 0] + slope[1] * moves[p, 1] + slope[2] * moves[p, 2]
            for d in range(3):
                points[p, d] -= (0.5 - 0.4 * n / steps) * (slope[d] - along * moves[p, d])


@njit(cache=True)
def _stamp(points: NDArray, phi: NDArray, reach: float, out: NDArray) -> None:
    nz, ny, nx = phi.shape
    for p in range(len(points)):
        z, y, x = points[p]
        for k in range(max(0, math.ceil(z - reach)), min(nz - 1, math.floor(z + reach)) + 1):
            for j in range(max(0, math.ceil(y - reach)), min(ny - 1, math.floor(y + reach)) + 1):
                for i in range(
                    max(0, math.ceil(x - reach)), min(nx - 1, math.floor(x + reach)) + 1
                ):
                    near = (k - z) ** 2 + (j - y) ** 2 + (i - x) ** 2 <= reach * reach
                    if near and phi[k, j, i] < 0:
                        out[k, j, i] = 1


def random_tree(
    size: Sequence[int], radii: tuple[float, float], planar: bool, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Draw the round cones of one to four trees, or of a bundle of thin vessels.

    Parameters
    ----------
    size : three ints
        Of the box, (z, y, x).
    radii : (low, high)
        Root radii, log-uniform, voxels.
    planar : bool
        Keep every axis in the plane z = 0.
    """
    low, high = np.log(radii[0]), np.log(radii[1])
    bundle = rng.random() < 0.35
    count = int(rng.integers(4, 9)) if bundle else int(rng.choice([1, 1, 2, 2, 3, 4]))
    box = np.array(size, dtype=np.float64)
    roots = np.zeros((count, 7))
    for root in roots:
        radius = np.exp(rng.uniform(low, min(high, low + 0.9) if bundle else high))
        start = rng.uniform(0.1, 0.9, 3) * box
        axis = rng.integers(1, 3) if planar else rng.integers(0, 3)
        start[axis] = -1.0 - radius if rng.random() < 0.5 else box[axis] + radius
        move = rng.uniform(0.2, 0.8, 3) * box - start
        if planar:
            start[0] = move[0] = 0.0
        root[:3], root[3:6], root[6] = start, move / np.linalg.norm(move), radius
    segments = np.zeros((1500, 8))
    found = _grow(
        roots,
        rng.standard_normal(6000),
        rng.random(4000),
        box,
        rng.uniform(0.05, 0.75),
        rng.choice([0.0, 0.03, 0.06, 0.1]),
        max(0.8, 0.7 * radii[0]),
        planar,
        segments,
    )
    return segments[:found]


@lru_cache(maxsize=32)
def _unit_segments(name: str) -> NDArray[np.float64]:
    """Round cones of a phantom of radius one: its parts' axes, cut where they jump."""
    shape = phantoms.make(name, radius=1.0)
    axis, width = shape.axis_xyz[:, ::-1], shape.axis_radius
    if name == "torus":
        axis, width = np.concatenate([axis, axis[:1]]), np.append(width, width[0])
    jump = np.linalg.norm(np.diff(axis, axis=0), axis=1)
    joined = jump < 5 * np.median(jump)
    alone = ~np.append(joined, False) & ~np.insert(joined, 0, False)
    links = np.concatenate([axis[:-1], axis[1:], width[:-1, None], width[1:, None]], axis=1)
    balls = np.concatenate([axis, axis, width[:, None], width[:, None]], axis=1)
    return np.concatenate([links[joined][:], balls[alone]])


def random_shape(
    names: Sequence[str],
    size: Sequence[int],
    radii: tuple[float, float],
    rng: np.random.Generator,
) -> tuple[NDArray[np.float64], str]:
    """Place one of the phantoms at random: round cones and the name."""
    name = str(rng.choice(list(names)))
    unit = _unit_segments(name)
    extent = np.ptp(unit[:, :3], axis=0).max() / 2 + 1
    top = max(radii[0] * 1.05, min(radii[1], 0.75 * max(size) / extent))
    radius = float(np.exp(rng.uniform(np.log(radii[0]), np.log(top))))
    turn, _ = np.linalg.qr(rng.standard_normal((3, 3)))
    centre = rng.uniform(0.35, 0.65, 3) * np.array(size)
    segments = unit * radius
    segments[:, :3] = segments[:, :3] @ turn.T + centre
    segments[:, 3:6] = segments[:, 3:6] @ turn.T + centre
    return segments, name


def level_set(segments: NDArray, shape: Sequence[int]) -> tuple[Field, Field]:
    """Return phi near the vessels (``MARGIN`` beyond) and the radius of the closest one."""
    size = tuple(shape) if len(shape) == 3 else (1, *shape)
    phi = np.full(size, MARGIN, dtype=np.float32)
    radius = np.full(size, segments[:, 6:].min(initial=1.0), dtype=np.float32)
    _rasterise(segments, MARGIN, phi, radius)
    return phi.reshape(shape), radius.reshape(shape)


def speed_field(shape: Sequence[int], rng: np.random.Generator) -> Field:
    """Draw a random field of order one: Gaussian process, sinusoid, affine or their product."""
    kind = str(rng.choice(["process", "sinusoid", "affine", "product"], p=[0.4, 0.2, 0.1, 0.3]))
    length = float(np.exp(rng.uniform(np.log(3.0), np.log(14.0))))
    if kind == "process":
        return gaussian_process(shape, length, rng)
    axes = [np.linspace(-1, 1, n, dtype=np.float32) for n in shape]
    if kind == "affine":
        slopes = rng.normal(0, 1, len(shape)).astype(np.float32)
        field = sum(np.ix_(*[a * s for a, s in zip(axes, slopes, strict=True)]))
        return np.asarray(field + rng.normal(0, 0.5), dtype=np.float32)
    waves = np.exp(rng.uniform(np.log(0.5), np.log(6.0), len(shape)))
    phases = rng.uniform(0, 2 * np.pi, len(shape))
    parts = [
        np.sin(np.pi * w * a + p).astype(np.float32)
        for a, w, p in zip(axes, waves, phases, strict=True)
    ]
    waves_now = np.full((1,) * len(shape), 1.6, dtype=np.float32)
    for part in np.ix_(*parts):
        waves_now = waves_now * part
    return waves_now if kind == "sinusoid" else waves_now * gaussian_process(shape, length, rng)


def deform(phi: Field, radius: Field, rng: np.random.Generator) -> Field:
    """Advect phi in a random speed field: the wall moves by at most 0.22 of the local radius."""
    strength = np.float32(rng.uniform(0.02, MAX_SHARE / 2))
    speed = np.clip(speed_field(phi.shape, rng), -2, 2) * strength * np.minimum(radius, 8)
    spacing = (1.0,) * phi.ndim
    return advect(phi, spacing, 1.0, speed=speed, scheme="eno2", band_mm=MARGIN - 1.5)


def signed_distance(phi: Field) -> Field:
    """Redistance phi: to high order within ``BAND`` voxels, first order to the ``FAR`` clamp."""
    near = np.asarray(redistance(phi, (1.0,) * phi.ndim, band_mm=BAND), dtype=np.float32)
    size = np.abs(near)
    fixed = size < BAND - 0.01
    far = np.where(fixed, size, np.float32(1e9))
    volume = (1,) * (3 - phi.ndim) + phi.shape
    far = np.ascontiguousarray(far.reshape(volume))
    _sweep(far, np.ascontiguousarray(fixed.reshape(volume)))
    return np.copysign(np.minimum(far.reshape(phi.shape), np.float32(FAR)), near)


def centreline(segments: NDArray, phi: Field, moved: bool) -> NDArray[np.uint8]:
    """Mark the voxels of the lumen within 1.5 voxels of the axis.

    After a deformation the axis points climb -phi in the planes normal to the axis; points that
    are not in the lumen then mark nothing.
    """
    volume = phi.reshape((1,) * (3 - phi.ndim) + phi.shape)
    along = segments[:, 3:6] - segments[:, :3]
    length = np.linalg.norm(along, axis=1)
    cuts = np.maximum(1, np.ceil(length / 0.8)).astype(np.int64)
    which = np.repeat(np.arange(len(segments)), cuts)
    place = (np.arange(len(which)) - np.repeat(np.cumsum(cuts) - cuts, cuts)) / cuts[which]
    points = segments[which, :3] + place[:, None] * along[which]
    moves = along[which] / np.maximum(length[which], 1e-9)[:, None]
    if moved:
        _climb(points, moves, volume, 10)
    out = np.zeros(volume.shape, dtype=np.uint8)
    _stamp(points, volume, 1.5, out)
    return out.reshape(phi.shape)
