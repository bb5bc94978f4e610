"""Islands, holes, the choice of components, and a guard that keeps the topology of a start.

The lumen is joined through faces, edges and corners, the background through faces alone; beyond
the box lies background.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from vesselseg.cuda_kernels.simple_points import flip_simple
from vesselseg.errors import ConfigError, DataError, NoInterfaceError

from .field import asfield, like_input

# A lumen smaller than a sphere (disc) four voxels wide is not resolved: volume 4/3 π 2³ (π 2²).
SMALLEST_VOXELS = {3: 33, 2: 13}
AT_THE_WALL = 1e-3  # |phi| of a voxel that may not change sides, in smallest spacings


def keep_components(
    phi: NDArray,
    choice: str | int = "all",
    *,
    seed_kji: Sequence[int] | None = None,
) -> tuple[NDArray, tuple[str, ...]]:
    """Remove islands and holes below the resolution, and the components not chosen.

    Parameters
    ----------
    phi : (nz, ny, nx) or (ny, nx)
        Level set, negative in the lumen. Background that reaches a face of the box is no hole.
    choice : "all", "largest", "seed" or int
        What is kept besides: everything, the largest component, the one at ``seed_kji``, or
        that many of the largest.

    Returns
    -------
    phi, notes
        A level set that is redistanced by the caller if notes is not empty.

    Raises
    ------
    DataError
        If phi is not finite.
    NoInterfaceError
        If the seed lies outside the lumen.
    """
    phi = np.asarray(phi)
    phi = phi if phi.dtype.kind == "f" else phi.astype(np.float32)
    if not np.isfinite(phi).all():
        raise DataError("non-finite level set", found=int(np.sum(~np.isfinite(phi))), need=0)
    inside = phi < 0
    touching = ndimage.generate_binary_structure(phi.ndim, phi.ndim)
    label, count = ndimage.label(inside, touching)
    sizes = np.bincount(label.ravel(), minlength=count + 1)[1:]
    order = np.argsort(-sizes, kind="stable") + 1
    smallest = SMALLEST_VOXELS[phi.ndim]
    # A lumen of nothing but islands is a thin vessel: then the largest one stays.
    large = [n for n in order if sizes[n - 1] >= smallest] or list(order[:1])
    chosen = large[: _how_many(choice, len(large))]
    if choice == "seed":
        chosen = [_label_at(label, seed_kji)]
    keep = np.isin(label, chosen)
    notes = []
    if (small := count - len({*large, *chosen})) > 0:
        notes.append(f"{small} lumen islands below {smallest} voxels removed")
    if (left := len({*large} - {*chosen})) > 0:
        notes.append(f"{left} further lumen components left out ({choice})")
    hollow, holes = ndimage.label(~keep)
    extent = np.bincount(hollow.ravel(), minlength=holes + 1)
    extent[0] = smallest
    for axis in range(phi.ndim):
        extent[hollow.take((0, -1), axis)] = smallest
    filled = (extent < smallest)[hollow]  # with the islands in them
    if filled.any():
        notes.append(f"{int(np.sum(extent < smallest))} holes below {smallest} voxels filled")
    if not notes:
        return phi, ()
    magnitude = np.maximum(np.abs(phi), np.finfo(phi.dtype).tiny)
    out = np.where(keep | filled, -magnitude, magnitude).astype(phi.dtype)
    return out, tuple(notes)


def _label_at(label: NDArray, seed_kji: Sequence[int] | None) -> int:
    within = seed_kji is not None and all(
        0 <= n < size for n, size in zip(seed_kji, label.shape, strict=True)
    )
    found = int(label[tuple(seed_kji)]) if within and seed_kji is not None else 0
    if found == 0:
        raise NoInterfaceError(
            "the seed point lies outside the lumen", found=seed_kji, remedy="move it"
        )
    return found


def topology_report(phi: NDArray) -> dict[str, float]:
    """Count what makes up the topology of a lumen.

    Parameters
    ----------
    phi : (nz, ny, nx) or (ny, nx)
        Level set, negative in the lumen.

    Returns
    -------
    dict
        ``components`` of the lumen, its ``cavities`` (in 2-D: holes), which are parts of the
        background that are not joined to the outside, and its ``tunnels``: the genus of all
        outer and inner walls together, components + cavities - Euler number, zero in 2-D.
    """
    lumen = np.asarray(phi) < 0
    if not lumen.any():
        return {"components": 0.0, "cavities": 0.0, "tunnels": 0.0}
    box = ndimage.find_objects(lumen.view(np.int8))[0]
    inner = np.pad(lumen[box], 1)
    components = ndimage.label(inner, np.ones((3,) * inner.ndim))[1]
    cavities = ndimage.label(~inner)[1] - 1
    tunnels = components + cavities - euler_number(inner) if inner.ndim == 3 else 0
    return {
        "components": float(components),
        "cavities": float(cavities),
        "tunnels": float(tunnels),
    }


def euler_number(mask: NDArray[np.bool_]) -> int:
    """Return vertices - edges + faces - cubes of the union of closed voxels (2-D: of squares).

    The outermost voxels must be background. Kovalevsky, Comput. Vis. Graph. Image Process. 46
    (1989) 141.
    """
    total = 0
    for across in itertools.product((False, True), repeat=mask.ndim):
        cells = mask
        for axis in np.flatnonzero(across):
            low, high = ([slice(None)] * mask.ndim for _ in range(2))
            low[axis], high[axis] = slice(None, -1), slice(1, None)
            cells = cells[tuple(low)] | cells[tuple(high)]
        total += (-1) ** across.count(False) * int(np.count_nonzero(cells))
    return total


def keep_topology(old: NDArray, new: NDArray, spacing_mm: float | Sequence[float]) -> NDArray:
    """Let a wall move from ``old`` to ``new`` without splitting, merging, opening or closing.

    The voxels that would change sides do so one after the other, in the order in which a wall
    that moves steadily reaches them, if they are simple points (Bertrand & Malandain 1994) by
    then; those that are not wait until a neighbour has made them simple (Han, Xu & Prince, IEEE
    PAMI 25 (2003) 755, §3). Those that never are keep their side, with the wall beside them.

    Parameters
    ----------
    old, new : (nz, ny, nx) or (ny, nx)
        Level sets of one shape, mm, negative in the lumen.
    spacing_mm : float or sequence
        Voxel size per array axis.

    Returns
    -------
    array
        ``new`` with the ``topology_report`` of ``old``; not redistanced where a voxel was held.
    """
    if np.shape(old) != np.shape(new):
        raise DataError("bad level set", found=f"shape {np.shape(new)}", need=np.shape(old))
    (before, _), (after, spacing) = asfield(old, spacing_mm), asfield(new, spacing_mm)
    inside = before < 0
    index = np.argwhere(inside != (after < 0))
    at = tuple(index.T)
    was, step = np.abs(before[at]), np.abs(after[at] - before[at])
    index = index[np.argsort(was / step, kind="stable")]
    flips = len(index)
    while flips:
        waiting = np.ones(len(index), np.bool_)
        flips = flip_simple(inside, index, waiting)
        index = index[waiting]
    held, after = tuple(index.T), after.copy()
    magnitude = np.minimum(np.abs(before[held]), AT_THE_WALL * min(spacing))
    after[held] = np.where(inside[held], -magnitude, magnitude)
    return like_input(after, new)


def _how_many(choice: str | int, available: int) -> int:
    if isinstance(choice, int):
        if choice < 1:
            raise ConfigError("bad number of components", found=choice, need="at least 1")
        return choice
    return 1 if choice == "largest" else available
