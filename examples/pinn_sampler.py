"""Batches for a network of coordinates: ``python examples/pinn_sampler.py lumen.h5``.

The file is that of ``vesselseg export scan.prior.h5 --to inr -o lumen``. A batch holds points in
the lumen, where the equations hold; points of the wall, where nothing slips, each moved along its
normal by a draw of the wall's standard deviation, so that the network learns how sure the wall
is; and samples with their velocity, where there is one.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

Batch = dict[str, NDArray[np.float64]]


def batches(file: Path, size: int, seed: int = 0) -> Iterator[Batch]:
    """Yield batches without end; lengths and axes are those of the file.

    Keys: ``inside`` (size, 3), ``wall`` (size, 3), ``weight`` (size,) = 1/s.d.², and where the
    file has velocity ``data`` (size, 4) = x, y, z, t with ``velocity`` (size, 3).
    """
    with h5py.File(file) as held:
        obs = {name: held[f"obs/{name}"][...] for name in held["obs"]}
        wall = {name: held[f"wall/{name}"][...] for name in held["wall"]}
        spacing = held["meta/spacing"][...]
    rng = np.random.default_rng(seed)
    depth = -obs["phi"]
    while True:
        chosen = rng.choice(len(depth), size, p=depth / depth.sum())
        shift = (rng.random((size, 3)) - 0.5) * spacing.min()
        shift *= np.minimum(1.0, depth[chosen] / spacing.min())[:, None]  # stays in the lumen
        on_wall = rng.integers(len(wall["xyz"]), size=size)
        jitter = rng.standard_normal(size) * wall["std"][on_wall]
        batch = {
            "inside": obs["xyz"][chosen] + shift,
            "wall": wall["xyz"][on_wall] + jitter[:, None] * wall["normal"][on_wall],
            "weight": 1.0 / np.square(wall["std"][on_wall], dtype=np.float64),
        }
        if "u" in obs:
            point = rng.integers(len(obs["xyz"]), size=size)
            frame = rng.integers(len(obs["t"]), size=size)
            batch["data"] = np.column_stack([obs["xyz"][point], obs["t"][frame, 0]])
            batch["velocity"] = np.stack([obs[n][point, frame] for n in "uvw"], axis=1)
        yield batch


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("file", type=Path)
    options.add_argument("--size", type=int, default=1024)
    given = options.parse_args()
    for name, array in next(batches(given.file, given.size)).items():
        print(name, array.shape)
