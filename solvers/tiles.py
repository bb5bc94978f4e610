"""The narrow band of a level set as tiles."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vesselseg.cuda_kernels import tiles as kernels

Extreme = tuple[float, tuple[int, int, int]]  # a value and its voxel (i, j, k)


@dataclass(frozen=True, eq=False)
class Tiles:
    """The tiles of 8 x 8 x 16 voxels that hold a voxel with |phi| < width.

    ``numbers`` (n,) in C order; ``bits`` and ``rim`` (n, 64) hold for each row of 16 voxels which
    of them lie in the band, and which of those have a neighbour that does not.
    """

    shape: tuple[int, ...]
    width: float
    numbers: NDArray[np.int64]
    bits: NDArray[np.uint16]
    rim: NDArray[np.uint16]

    @property
    def voxels(self) -> int:
        """Number of voxels in the band."""
        return int(np.bitwise_count(self.bits).sum(dtype=np.int64))

    def voxel(self, entry: int, number: int) -> tuple[int, int, int]:
        """Return (i, j, k) of a voxel, counted in C order, of a listed tile."""
        origin = kernels.tile_origin(int(self.numbers[entry]), *self.shape[1:])
        inside = np.unravel_index(number, kernels.TILE)
        i, j, k = (int(a + b) for a, b in zip(origin[::-1], inside[::-1], strict=True))
        return i, j, k

    def extremes(self, phi: NDArray) -> tuple[Extreme, Extreme]:
        """Return max |phi| in the band, infinite for NaN, and min |phi| on its rim."""
        out = np.empty((len(self.numbers), 4))
        kernels.inspect_tiles(phi, self.numbers, self.bits, self.rim, out)
        most, least = int(np.argmax(out[:, 0])), int(np.argmin(out[:, 2]))
        return (
            (float(out[most, 0]), self.voxel(most, int(out[most, 1]))),
            (float(out[least, 2]), self.voxel(least, int(out[least, 3]))),
        )

    def index(self) -> NDArray[np.int64]:
        """Return the voxels of the band (n,), counted in C order of the field, tile by tile."""
        entry, row, i = np.nonzero((self.bits[..., None] >> np.arange(kernels.TILE[2])) & 1)
        k, j, i0 = np.array(
            [kernels.tile_origin(int(n), *self.shape[1:]) for n in self.numbers]
        ).T.reshape(3, -1)
        k = k[entry] + row // kernels.TILE[1]
        j = j[entry] + row % kernels.TILE[1]
        return np.asarray((k * self.shape[1] + j) * self.shape[2] + i0[entry] + i)

    def largest_speeds(
        self, speed: NDArray, velocity: NDArray, bend: NDArray, spacing: tuple[float, ...]
    ) -> tuple[float, float, float]:
        """Return max |V|, max Σ|u_a|/h_a and max |b| in the band; infinite where not finite."""
        out = np.zeros((len(self.numbers), 3))
        kernels.largest_speeds(
            speed, velocity, bend, self.shape, self.numbers, self.bits, np.array(spacing), out
        )
        normal, vector, bent = out.max(axis=0, initial=0.0)
        return float(normal), float(vector), float(bent)


def collect_tiles(phi: NDArray, width: float) -> Tiles:
    """List the band |phi| < width of a 3-D field; an infinite width takes the whole box."""
    return Tiles(phi.shape, width, *kernels.list_band(phi, width))
