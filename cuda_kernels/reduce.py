"""What the kernels of ``reduce.cu`` compute, in NumPy: the reference of their tests.

The Numba path has no use for them: on a CPU the host decides and sums for itself.
"""

from __future__ import annotations

import math

import numpy as np

from .stencils import Array

CHUNKS = 512


def clear(words: Array) -> None:
    """Set every word to zero."""
    words[:] = 0


def copy(source: Array, out: Array) -> None:
    """Copy a field."""
    np.copyto(out, source)


def keep_count(count: Array, kept: Array, emptied: Array) -> None:
    """Remember how long a list is, and empty another."""
    kept[0], emptied[0] = count[0], 0


def chunked(values: Array) -> Array:
    """Return sums (CHUNKS,) over equal parts of a flat field."""
    size = -(-values.size // CHUNKS)
    padded = np.zeros(CHUNKS * size)
    padded[: values.size] = values
    return np.asarray(padded.reshape(CHUNKS, size).sum(axis=1))


def wall_sums(
    phi: Array, moved: Array, earlier: Array, clock: Array, near: float, width: float
) -> Array:
    """Return sums (CHUNKS, 4): squared steps near the wall, their number, lumen, faces."""
    wide = (moved if clock[1] > 0.0 else phi).astype(np.float64)
    at_wall = np.abs(phi.astype(np.float64)) < near
    faces = np.zeros(phi.shape)
    for axis, n in enumerate(phi.shape):
        if n > 1:
            place = np.moveaxis(faces, axis, 0)
            place[0] += 1
            place[-1] += 1
    columns = (
        at_wall * (wide - earlier.astype(np.float64)) ** 2,
        at_wall,
        np.clip(0.5 - wide / width, 0.0, 1.0),
        faces * (wide < 0),
    )
    return np.stack([chunked(np.ravel(c)) for c in columns], axis=1)


def mean_sums(image: Array, phi: Array) -> Array:
    """Return sums (CHUNKS, 3): voxels of the lumen, their image, that of all voxels."""
    lumen = phi.reshape(-1) < 0
    flat = image.reshape(-1).astype(np.float64)
    return np.stack([chunked(c) for c in (lumen, lumen * flat, flat)], axis=1)


def total(parts: Array) -> Array:
    """Sum entries (n, columns) over n."""
    return np.asarray(parts.sum(axis=0))


def open_report(limits: Array, most: Array, least: Array) -> None:
    """Begin a report: no speed yet, and no voxel seen by inspect_tiles."""
    limits[:], most[0], least[0] = 0.0, 0, ~np.uint64(0)


def plan_steps(
    limits: Array, clock: Array, squares: float, h: float, cfl: float, travel: float, most: float,
    lasting: float,
) -> None:  # fmt: skip
    """Choose the steps of a flow as ``solvers.flow.flow_step`` does: clock = {dt, steps, time}."""
    normal, vector, bent = (float(x) for x in limits)
    rate = normal * math.sqrt(squares) + vector + 2.0 * bent * squares
    stable = cfl / rate if rate > 0.0 else math.inf
    fastest = normal / h + vector
    time = min(travel / fastest if fastest > 0.0 else stable, most * stable, lasting - clock[2])
    moves = math.isfinite(time) and time > 0.0 and math.isfinite(rate)
    steps = math.ceil(time / stable - 1e-9) if moves else 0
    clock[:] = time / steps if moves else 0.0, steps, clock[2] + (time if moves else 0.0)


def accept(moved: Array, phi: Array, before: Array, clock: Array) -> None:
    """Make the moved wall the present one, and the present one the one before."""
    before[:] = phi
    if clock[1] > 0.0:
        phi[:] = moved
