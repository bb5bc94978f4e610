"""Random inputs of the CUDA kernels with what their Numba twins make of them.

A module stands for a ``.cu`` file. The same examples serve the tests on a CPU, the tests on a
device and the profile, which gives no time to a kernel with a wrong result. Outputs are filled
with NaN, or with the largest number.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from . import (
    advect,
    appearance,
    closest_point,
    displacement,
    energy,
    reduce,
    reinit,
    sheet,
    tiles,
    wall,
)
from .common import Example
from .common import wall as rough_wall

FAMILIES = (
    tiles,
    advect,
    reinit,
    closest_point,
    wall,
    appearance,
    displacement,
    sheet,
    reduce,
    energy,
)
EXAMPLES: dict[str, Callable[..., Example]] = {
    name: make for family in FAMILIES for name, make in family.EXAMPLES.items()
}


def example(instance: str, shape: tuple[int, int, int], seed: int, width: float = 2.5) -> Example:
    """Return an example of an instance on a field of a shape, in a band of a width, mm."""
    name, _, template = instance.rstrip(">").partition("<")
    kind, *rest = template.split(",")
    dtype = np.float64 if kind == "double" else np.float32
    rng = np.random.default_rng(seed)
    return EXAMPLES[name](rough_wall(shape, dtype, rng), width, rng, *rest)
