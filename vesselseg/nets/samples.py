"""Training samples: a case source, normalised and turned, behind a torch data loader."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..fields import Case
from . import normalise

CaseSource = Callable[[int, int], Case]
Sample = tuple[Tensor, Tensor, Tensor, Tensor]


class Cases(Dataset[Sample]):
    """Index -> image ``(C, ...)``, phi, centreline and labels: normalised, flipped, transposed.

    One channel of several is zero in the share ``drop_channel`` of the cases.
    """

    def __init__(self, case: CaseSource, seed: int, drop_channel: float = 0.0) -> None:
        self.case = case
        self.seed = seed
        self.drop_channel = drop_channel

    def __getitem__(self, index: int) -> Sample:
        case = self.case(self.seed, index)
        dark = case.facts.get("polarity") == "dark"
        span = case.facts.get("span")
        image = np.stack([normalise(channel, dark, span) for channel in case.image])
        rng = np.random.default_rng((self.seed, index, 1))
        pose = symmetry(rng, case.phi.shape)
        if len(image) > 1 and rng.random() < self.drop_channel:
            image[rng.integers(len(image))] = 0.0
        labels = (case.phi < 0).astype(np.uint8) if case.labels is None else case.labels
        fields = [image, case.phi[None], case.centreline[None], labels[None]]
        x, phi, line, number = (torch.from_numpy(np.array(pose(a), order="C")) for a in fields)
        return x.float(), phi[0].float(), line[0], number[0]


def symmetry(rng: np.random.Generator, shape: tuple[int, ...]) -> Callable[[Any], Any]:
    """Draw an exact symmetry of the grid, acting on arrays with one leading channel axis."""
    axes = np.arange(len(shape))
    flips = [int(a) + 1 for a in axes if rng.random() < 0.5]
    if len(set(shape)) == 1:
        axes = rng.permutation(axes)
    order = [0, *(int(a) + 1 for a in axes)]
    return lambda array: np.flip(array, tuple(flips)).transpose(order)


def loader(
    case: CaseSource,
    seed: int,
    indices: range,
    batch: int,
    workers: int,
    drop_channel: float = 0.0,
) -> DataLoader[Sample]:
    """Return batches of the cases in order; workers are spawned, as forks inherit locks."""
    context = "spawn" if workers else None
    return DataLoader(
        Cases(case, seed, drop_channel),
        batch,
        sampler=indices,
        num_workers=workers,
        multiprocessing_context=context,
    )
