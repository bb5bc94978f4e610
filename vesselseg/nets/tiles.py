"""Overlapping tiles: how an image is padded, cut and blended."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float32]
Tile = tuple[slice, ...]

MIN_SIZE = 16  # voxels along an axis
STRIDE = 8


def pad(image: Floats) -> Floats:
    """Extend the end of every axis by reflection to a multiple of 8, at least 16."""
    extra = [(0, max(MIN_SIZE, -(-n // STRIDE) * STRIDE) - n) for n in image.shape]
    return np.pad(image, extra, mode="symmetric")


def plan(shape: tuple[int, ...], largest: int, overlap: int) -> Iterator[Tile]:
    """Cover the shape with equal tiles of multiples of 8, as few as the largest size allows."""
    starts, sizes = [], []
    for n in shape:
        count = 1 if n <= largest else -(-(n - overlap) // (largest - overlap))
        size = -(-(n + (count - 1) * overlap) // (count * STRIDE)) * STRIDE
        starts.append([round(s) for s in np.linspace(0, n - size, count)])
        sizes.append(size)
    for corner in itertools.product(*starts):
        yield tuple(slice(a, a + s) for a, s in zip(corner, sizes, strict=True))


def gaussian(shape: tuple[int, ...]) -> Tensor:
    """Return the blending weight of a tile: s.d. of a quarter of its size."""
    window = torch.ones(())
    for n in shape:
        x = (torch.arange(n) - (n - 1) / 2) / (n / 4)
        window = window[..., None] * torch.exp(-0.5 * x.square())
    return window
