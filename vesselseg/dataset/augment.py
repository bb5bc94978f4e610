"""Augmentation: a random smooth map of the patch, and random changes of its intensities.

Flips, quarter turns and transpositions are exact and belong to the training samples. The map here
moves the wall as a level set: the distance is interpolated where the map points and measured
anew, so that a mask's wall never snaps to voxels. It never folds: its slope is kept above zero.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from pydantic import Field as Limits
from pydantic import model_validator
from scipy import ndimage

from ..config import Settings
from ..fields import Field

Array = NDArray[np.float64]
Range = tuple[float, float]

LEAST_SLOPE = 0.4  # of the map along any direction, times its zoom: no fold, no crushed vessel
COARSE = 3  # control points per correlation length of the elastic map


class AugmentSettings(Settings):
    """How much patches vary; zeros change nothing, and then the voxels are those of the file.

    Parameters
    ----------
    share : float
        Of patches that each change below is drawn for; the pose has one draw.
    rotation : float
        Largest angle about a random axis, degrees.
    shift : float
        Largest shift, share of the patch.
    zoom : float
        Largest enlargement, and its inverse the largest reduction, minus one.
    elastic, elastic_length : float
        S.d. of a random smooth displacement, and its correlation length, voxels.
    sine : float
        Largest amplitude of a sine-shaped displacement, voxels; one to three waves a patch.
    gamma, contrast : float
        Largest factor of the exponent and of the contrast, minus one.
    brightness, bias, noise : float
        Largest offset, logarithm of a smooth factor, and s.d. of added noise; 1 is the span from
        the 0.5 to the 99.5 percentile of the scan.
    blur : float
        Largest s.d., voxels.
    low_resolution : float
        Largest factor by which the image is coarsened and interpolated back.
    """

    share: float = Limits(0.5, ge=0, le=1)
    rotation: float = Limits(15.0, ge=0, le=180)
    shift: float = Limits(0.1, ge=0, le=0.5)
    zoom: float = Limits(0.15, ge=0, le=1)
    elastic: float = Limits(1.0, ge=0, le=10)
    elastic_length: float = Limits(16.0, ge=4, le=256)
    sine: float = Limits(1.5, ge=0, le=10)
    gamma: float = Limits(0.4, ge=0, le=2)
    contrast: float = Limits(0.2, ge=0, le=2)
    brightness: float = Limits(0.1, ge=0, le=1)
    bias: float = Limits(0.3, ge=0, le=2)
    noise: float = Limits(0.08, ge=0, le=1)
    blur: float = Limits(0.8, ge=0, le=5)
    low_resolution: float = Limits(2.0, ge=1, le=4)

    @model_validator(mode="after")
    def _no_fold(self) -> AugmentSettings:
        if self.elastic > self.elastic_length / 4:
            raise ValueError("elastic must be at most a quarter of elastic_length")
        return self


OFF = AugmentSettings(share=0.0)


def pose(
    shape: tuple[int, ...], settings: AugmentSettings, rng: np.random.Generator
) -> Array | None:
    """Draw where each voxel of a patch looks, relative to the patch's middle, in voxels.

    Returns
    -------
    (ndim, *shape) float64 array, or None
        None: every voxel looks at itself. Otherwise a map without folds.
    """
    if rng.random() >= settings.share:
        return None
    n = len(shape)
    middle = (np.array(shape) - 1.0) / 2.0
    at = np.indices(shape, dtype=np.float64) - middle.reshape(-1, *(1,) * n)
    angle = np.radians(rng.uniform(-settings.rotation, settings.rotation))
    factor = (1.0 + settings.zoom) ** rng.uniform(-1.0, 1.0)
    matrix = rotation(n, angle, rng) / factor
    shift = rng.uniform(-settings.shift, settings.shift, n) * shape
    bend = elastic(shape, settings, rng) + sine(shape, settings, rng)
    steepest = steepness(bend)
    # |J v| >= |M v| - |du v|: with this bound on du the map keeps LEAST_SLOPE of its zoom.
    bend *= min(1.0, (1.0 - LEAST_SLOPE) / factor / max(steepest, 1e-12))
    looks = np.tensordot(matrix, at, 1) + shift.reshape(-1, *(1,) * n) + bend
    return None if np.array_equal(looks, at) else looks


def rotation(n: int, angle: float, rng: np.random.Generator) -> Array:
    """Return the matrix of a turn: in the plane, or about a random axis (Rodrigues)."""
    c, s = np.cos(angle), np.sin(angle)
    if n == 2:
        return np.array([[c, -s], [s, c]])
    x, y, z = axis = rng.standard_normal(3)
    x, y, z = axis = axis / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.asarray(c * np.eye(3) + s * cross + (1 - c) * np.outer(axis, axis))


def elastic(shape: tuple[int, ...], settings: AugmentSettings, rng: np.random.Generator) -> Array:
    """Draw a smooth random displacement ``(ndim, *shape)``."""
    if settings.elastic == 0:
        return np.zeros((len(shape), *shape))
    return np.stack([settings.elastic * smooth(shape, settings.elastic_length, rng) for _ in shape])


def smooth(shape: tuple[int, ...], length: float, rng: np.random.Generator) -> Array:
    """Draw a field of about unit variance and the correlation length, by splines."""
    step = length / COARSE
    knots = [int(np.ceil((n - 1) / step)) + 7 for n in shape]
    noise = ndimage.gaussian_filter(rng.standard_normal(knots), COARSE / np.sqrt(2.0), mode="wrap")
    # White noise under a Gaussian of s.d. s has the variance (4 pi s^2)^(-n/2).
    noise *= (np.sqrt(2.0 * np.pi) * COARSE) ** (len(shape) / 2)
    at = np.meshgrid(*[3 + np.arange(n) / step for n in shape], indexing="ij", sparse=False)
    return np.asarray(ndimage.map_coordinates(noise, at, order=3, mode="nearest"))


def sine(shape: tuple[int, ...], settings: AugmentSettings, rng: np.random.Generator) -> Array:
    """Draw a displacement of each axis that is a sine of the next one."""
    n, size = len(shape), settings.sine
    result = np.zeros((n, *shape))
    if size == 0:
        return result
    for axis in range(n):
        along = (axis + 1) % n
        waves, phase = rng.uniform(1.0, 3.0), rng.uniform(0.0, 2.0 * np.pi)
        wave = np.sin(2.0 * np.pi * waves * np.arange(shape[along]) / shape[along] + phase)
        room = [-1 if a == along else 1 for a in range(n)]
        result[axis] = rng.uniform(0.0, size) * wave.reshape(room)
    return result


def steepness(bend: Array) -> float:
    """Return the largest Frobenius norm of a displacement's derivative."""
    total = np.zeros(bend.shape[1:])
    for part in bend:
        total += sum(np.square(g) for g in np.gradient(part))
    return float(np.sqrt(total.max()))


def repaint(image: Field, settings: AugmentSettings, rng: np.random.Generator) -> Field:
    """Change the intensities ``(channels, ...)`` of a patch; 0 and 1 are the scan's percentiles."""
    x = image.astype(np.float64)
    for change in (_bias, _gamma, _contrast, _blur, _low_resolution, _noise):
        if rng.random() < settings.share:
            x = change(x, settings, rng)
    return x.astype(np.float32)


def each(function: Callable[[Array], Array], x: Array) -> Array:
    """Apply a function to each channel."""
    return np.stack([function(channel) for channel in x])


def _bias(x: Array, settings: AugmentSettings, rng: np.random.Generator) -> Array:
    if settings.bias == 0:
        return x
    field = np.clip(smooth(x.shape[1:], float(max(x.shape[1:])), rng), -2.0, 2.0) / 2.0
    return np.asarray(x * np.exp(settings.bias * field))


def _gamma(x: Array, settings: AugmentSettings, rng: np.random.Generator) -> Array:
    power = (1.0 + settings.gamma) ** rng.uniform(-1.0, 1.0)
    return np.asarray(np.sign(x) * np.abs(x) ** power)


def _contrast(x: Array, settings: AugmentSettings, rng: np.random.Generator) -> Array:
    factor = (1.0 + settings.contrast) ** rng.uniform(-1.0, 1.0)
    return np.asarray(factor * x + rng.uniform(-settings.brightness, settings.brightness))


def _blur(x: Array, settings: AugmentSettings, rng: np.random.Generator) -> Array:
    width = rng.uniform(0.0, settings.blur)
    return each(lambda c: np.asarray(ndimage.gaussian_filter(c, width, mode="reflect")), x)


def _low_resolution(x: Array, settings: AugmentSettings, rng: np.random.Generator) -> Array:
    """Average over larger voxels along one axis or all, and interpolate back."""
    factor = rng.uniform(1.0, settings.low_resolution)
    n = x.ndim - 1
    axes = range(n) if rng.random() < 0.5 else (int(rng.integers(n)),)
    start = rng.uniform(0.0, 1.0)

    scale = np.ones(n)
    scale[list(axes)] = factor
    offset = start * (scale - 1.0)  # the coarse voxels need not meet the fine ones
    coarse = tuple(np.ceil(np.array(x.shape[1:]) / scale).astype(int) + 1)

    def coarsen(channel: Array) -> Array:
        width = np.sqrt(scale**2 - 1.0) / np.sqrt(12.0)
        mean = ndimage.gaussian_filter(channel, width, mode="reflect")
        few = ndimage.affine_transform(mean, scale, offset, coarse, order=1, mode="nearest")
        back = {"output_shape": channel.shape, "order": 1, "mode": "nearest"}
        return np.asarray(ndimage.affine_transform(few, 1.0 / scale, -offset / scale, **back))

    return each(coarsen, x)


def _noise(x: Array, settings: AugmentSettings, rng: np.random.Generator) -> Array:
    return x + rng.uniform(0.0, settings.noise) * rng.standard_normal(x.shape)
