"""Sums over blocks of voxels, seen through a Gaussian window: local means on a device."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from .on_device import Array, Box, Device
from .step import Problem

TRUNCATE = 4.0  # s.d. at which a Gaussian filter ends, as in scipy.ndimage


@dataclass(frozen=True, eq=False)
class Window:
    """Blocks of ``size`` voxels, sums (count, channels) in them, the filter's weights.

    ``volume`` is how many blocks the window holds: what undoes the filter's normalisation.
    """

    size: tuple[int, ...]
    blocks: tuple[int, ...]
    weights: tuple[Array, ...]
    volume: float
    whole: Array
    sums: tuple[Array, Array]

    @property
    def count(self) -> int:
        """Number of blocks."""
        return math.prod(self.blocks)

    def filtered(self, device: Device) -> Array:
        """Filter the first sums along each axis, zero beyond the faces; return where they are."""
        wide, other = self.sums
        for axis, weights in enumerate(self.weights):
            device.launch("filter_axis<double>", wide, other, weights, weights.size // 2, axis, 0,
                          self.whole.size, *self.blocks)  # fmt: skip
            wide, other = other, wide
        return wide


def window_for(problem: Problem, box: Box, block: float, channels: int) -> Window:
    """Make room for sums over blocks of so many largest spacings, ``means_length`` about each."""
    spacing = np.array(problem.spacing)
    size = np.maximum(np.round(block * spacing.max() / spacing), 1)
    size = np.minimum(size, box.shape).astype(int)
    blocks = tuple(int(n) for n in -(-np.array(box.shape) // size))
    sums = tuple(box.empty(math.prod(blocks), channels, dtype=np.float64) for _ in range(2))
    whole = box.empty(channels, dtype=np.float64)
    bare = Window(tuple(int(n) for n in size), blocks, (), 0.0, whole, (sums[0], sums[1]))
    return through(bare, box, problem.settings.means_length * problem.unit)


def through(window: Window, box: Box, length: float) -> Window:
    """Return the same sums in the same room, seen through a Gaussian of another s.d., mm."""
    width = length / (np.array(window.size) * box.spacing)
    weights = tuple(box.device.xp.asarray(gaussian(w)) for w in width)
    # A Gaussian window of this width holds about (2π)^(d/2) σ^d blocks.
    volume = float(np.prod(np.sqrt(2.0 * np.pi) * np.maximum(width, 0.4)))
    return replace(window, weights=weights, volume=volume)


def gaussian(width: float, *, derivative: bool = False) -> NDArray[np.float64]:
    """Weights of a Gaussian filter or of its derivative, as scipy.ndimage takes them."""
    radius = int(TRUNCATE * width + 0.5)
    x = np.arange(-radius, radius + 1, dtype=np.float64)
    weights = np.exp(-0.5 * (x / width) ** 2)
    weights /= weights.sum()
    return weights * x / width**2 if derivative else weights
