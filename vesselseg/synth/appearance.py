"""Random appearance of a level set: tissues, distractors, flow effects, blur, noise.

Intensities are relative to a bright lumen of one; ``paint`` scales them at the end. The numbers
are chosen to cover magnitude images and angiograms: bright blood on a dark or grey, structured
background, dark air, and black blood.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..fields import Field
from .banded import Operator, apply_all, gaussian
from .forward import add_noise, gaussian_process, occupancy, slice_operators

RENDER_FACTOR = 2  # fine samples per voxel: worst error of the partial volume 0.01 at r = 1.5


def paint(
    phi: Field,
    rng: np.random.Generator,
    *,
    snr: float,
    psf: float,
    anisotropy: float,
    easy: bool,
    black_blood: bool,
    distractors: int,
    plain: bool = False,
) -> tuple[Field, dict[str, Any]]:
    """Render phi (voxels) with random tissues and flow effects, or with neither (``plain``).

    Returns the image and what was drawn: noise kind, contrast, bias, gamma and so on.
    """
    shape = phi.shape
    outside = _ground(shape, rng, black_blood) if plain else _tissues(shape, rng, black_blood)
    easy = easy or plain
    for _ in range(distractors):
        _distract(outside, rng, black_blood)
    inside = _lumen(phi, rng, easy, black_blood)
    if not easy and rng.random() < 0.3:
        width, level = rng.uniform(0.7, 1.6), rng.uniform(-0.3, 0.45)
        outside += np.float32(level) * np.exp(-0.5 * ((phi - width) / width) ** 2)
    texture = 0.0 if easy else rng.uniform(0.0, 0.15)
    if texture:
        outside *= 1 + np.float32(texture) * gaussian_process(shape, rng.uniform(1.0, 3.0), rng)
    blur = gaussian(np.arange(max(shape)), psf)
    cut: list[Operator | None] = [(blur[0][:n], blur[1][:n]) for n in shape]
    outside = apply_all(outside, cut, last_first=True)
    share = occupancy(phi, (1.0,) * phi.ndim, psf, supersample=RENDER_FACTOR)
    image = np.maximum(outside + share * (inside - outside), 0)
    contrast = _contrast(phi, inside, outside)
    strength = 0.0 if plain else rng.uniform(0.0, 0.08 if easy else 0.35)
    bias = gaussian_process(shape, rng.uniform(0.4, 1.0) * max(shape), rng)
    image = image * np.exp(np.float32(strength) * np.clip(bias, -1.5, 1.5))
    gamma = 1.0 if easy else float(rng.uniform(0.7, 1.4))
    top = np.float32(1.2)
    image = top * (image / top) ** np.float32(gamma)
    kind = "rician" if rng.random() < 0.6 else "gaussian"
    correlated = 0.0 if rng.random() < 0.3 else float(rng.uniform(0.0, 0.8))
    noise = {"kind": kind, "correlated": correlated, "length": float(rng.uniform(1.0, 3.0))}
    image = _acquire(image, contrast / snr, anisotropy, noise, rng)
    facts = {"contrast": contrast, "bias": float(strength), "gamma": gamma, "noise": noise}
    return np.asarray(image * rng.uniform(50, 1000), dtype=np.float32), facts


def _ramp(field: Field, rng: np.random.Generator, levels: NDArray, slope: float) -> Field:
    """Turn a smooth field into tissues: plateaus joined by ramps of about two voxels."""
    edges = np.sort(rng.normal(0.0, 0.9, len(levels) - 1))
    half = 0.5 * slope
    knots = np.stack([edges - half, edges + half], axis=1).ravel()
    knots = np.maximum.accumulate(knots + 1e-6 * np.arange(len(knots)))
    values = np.repeat(levels, 2)[1:-1]
    return np.asarray(np.interp(field, knots, values), dtype=np.float32)


def _ground(shape: Sequence[int], rng: np.random.Generator, black_blood: bool) -> Field:
    """Draw one tissue, 0 to 0.6 of the lumen."""
    level = rng.uniform(0.35, 1.0) if black_blood else rng.uniform(0.0, 0.6)
    return np.full(shape, level, dtype=np.float32)


def _tissues(shape: Sequence[int], rng: np.random.Generator, black_blood: bool) -> Field:
    """Draw two to six tissues, 0 to 0.6 of the lumen, and perhaps dark air."""
    count = int(rng.integers(2, 7))
    low, high = (0.35, 1.0) if black_blood else (0.0, float(rng.choice([0.15, 0.35, 0.6])))
    levels = rng.uniform(low, high, count)
    length = float(np.exp(rng.uniform(np.log(5.0), np.log(30.0))))
    field = _ramp(gaussian_process(shape, length, rng), rng, levels, 1.5 / length)
    if rng.random() < 0.4:
        length = float(np.exp(rng.uniform(np.log(8.0), np.log(30.0))))
        air = gaussian_process(shape, length, rng)
        level = rng.uniform(-0.3, 1.2)
        gate = np.clip((level - air) * (length / 1.5) + 0.5, 0.0, 1.0)
        field *= 0.05 + 0.95 * gate
    return field


def _distract(image: Field, rng: np.random.Generator, black_blood: bool) -> None:
    """Paint an organ over the tissues, perhaps brighter than the lumen; a vein is darker."""
    shape = np.array(image.shape)
    n = len(shape)
    kind = str(rng.choice(["ellipsoid", "shell", "plate", "vein"]))
    if kind == "vein":
        low, high = (0.2, 0.6) if black_blood else (0.0, 0.55)
        image += _vein(image.shape, rng) * (np.float32(rng.uniform(low, high)) - image)
        return
    turn, _ = np.linalg.qr(rng.standard_normal((n, n)))
    centre = rng.uniform(0.0, 1.0, n) * shape
    small = rng.random() < 0.4
    size = rng.uniform(1.5, 5.0) if small else rng.uniform(0.08, 0.35) * shape.max()
    semi = size * rng.uniform(0.6, 1.4, n)
    if kind == "plate":
        semi[0] = rng.uniform(0.7, 3.0)
        semi[1:] = rng.uniform(0.15, 0.6, n - 1) * shape.max()
    axes = [
        np.arange(m, dtype=np.float32) - np.float32(c) for m, c in zip(shape, centre, strict=True)
    ]
    squares = np.zeros(tuple(shape), dtype=np.float32)
    for row, s in zip(turn, semi, strict=True):
        line = sum(np.ix_(*[a * np.float32(v / s) for a, v in zip(axes, row, strict=True)]))
        squares += np.square(np.asarray(line, dtype=np.float32))
    depth = (1 - np.sqrt(squares)) * np.float32(semi.min())
    if kind == "shell":
        half = np.float32(rng.uniform(0.6, 2.0))
        depth = half - np.abs(depth - half)
    cover = np.clip(depth + 0.5, 0.0, 1.0)
    level = rng.uniform(0.0, 0.6) if black_blood else rng.uniform(0.0, 1.25)
    image += cover * (np.float32(level) - image)


def _vein(shape: Sequence[int], rng: np.random.Generator) -> Field:
    """Draw the cover of a bent tube across the image: what looks like a vessel but is darker."""
    n = len(shape)
    turn, _ = np.linalg.qr(rng.standard_normal((n, n)))
    centre = rng.uniform(0.1, 0.9, n) * np.array(shape)
    axes = [
        np.arange(m, dtype=np.float32) - np.float32(c) for m, c in zip(shape, centre, strict=True)
    ]
    along, *across = (
        sum(np.ix_(*[a * np.float32(v) for a, v in zip(axes, row, strict=True)])) for row in turn
    )
    reach = float(max(shape))
    sway, wave, phase = rng.uniform(0, 0.15) * reach, rng.uniform(0.5, 2.0), rng.uniform(0, 6.28)
    across[0] = across[0] + np.float32(sway) * np.sin(
        np.float32(6.28 * wave / reach) * along + np.float32(phase)
    )
    radius = float(np.exp(rng.uniform(np.log(1.0), np.log(6.0))))
    distance = np.sqrt(sum(np.square(a) for a in across))
    return np.clip(np.float32(radius + 0.5) - distance, 0.0, 1.0).astype(np.float32)


def _lumen(phi: Field, rng: np.random.Generator, easy: bool, black_blood: bool) -> Field:
    """Draw the intensity inside: in-flow along the vessel, profile across it, dropout."""
    if black_blood:
        return np.full(phi.shape, rng.uniform(0.0, 0.15), dtype=np.float32)
    level = np.full(phi.shape, 1.0 if easy else rng.uniform(0.7, 1.1), dtype=np.float32)
    if easy:
        return level
    if rng.random() < 0.6:
        slow = gaussian_process(phi.shape, rng.uniform(8.0, 40.0), rng)
        level *= np.exp(np.float32(rng.uniform(0.05, 0.35)) * np.clip(slow, -2, 2))
    if rng.random() < 0.2:  # blood saturates on its way through the slab
        way = _ramp_along(phi.shape, rng)
        level *= 1 - np.float32(rng.uniform(0.1, 0.6)) * (1 - np.exp(-2 * way))
    if rng.random() < 0.3:
        depth = np.maximum(-phi, 0) / np.float32(rng.uniform(0.8, 4.0))
        loss = rng.uniform(0.1, 0.5)
        if rng.random() < 0.7:
            level *= 1 - np.float32(loss) * np.exp(-depth)
        else:  # the core of a jet or of recirculation loses signal by dephasing
            level *= 1 - np.float32(loss) * (1 - np.exp(-depth))
    if rng.random() < 0.25:
        patches = gaussian_process(phi.shape, rng.uniform(3.0, 10.0), rng)
        loss = rng.uniform(0.3, 0.8)
        level *= 1 - np.float32(loss) * np.clip((patches - 1.2) / 0.4, 0.0, 1.0)
    return level


def _ramp_along(shape: Sequence[int], rng: np.random.Generator) -> Field:
    """Return 0 to 1 from one corner of the image to the opposite one along a random direction."""
    weights = np.abs(rng.standard_normal(len(shape)))
    weights /= weights.sum()
    axes = [
        np.linspace(0, w, n, dtype=np.float32)[:: rng.choice([-1, 1])]
        for w, n in zip(weights, shape, strict=True)
    ]
    return np.asarray(sum(np.ix_(*axes)), dtype=np.float32)


def _contrast(phi: Field, inside: Field, outside: Field) -> float:
    """Mean lumen intensity minus mean background beside it, at least 0.1, without sign."""
    lumen, beside = phi < 0, (phi > 0.5) & (phi < 5)
    if not lumen.any() or not beside.any():
        return 0.6
    return max(0.1, abs(float(inside[lumen].mean()) - float(outside[beside].mean())))


def _acquire(
    image: Field, sd: float, anisotropy: float, noise: dict[str, Any], rng: np.random.Generator
) -> Field:
    """Add noise, on thick slices along one axis if the voxels are not cubes."""
    if anisotropy <= 1.0:
        return add_noise(image, sd, rng, **noise)
    axis = int(rng.integers(0, image.ndim))
    gap = float(rng.uniform(0.05, 0.3)) if rng.random() < 0.25 else 0.0
    smooth = bool(rng.random() < 0.6)
    down, up = slice_operators(image.shape[axis], anisotropy, gap, smooth)
    operators: list[Operator | None] = [None] * image.ndim
    operators[axis] = down
    thick = add_noise(apply_all(image, operators, last_first=True), sd, rng, **noise)
    operators[axis] = up
    return apply_all(thick, operators, last_first=True)
