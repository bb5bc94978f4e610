"""Islands, holes and the choice of components, by stated rules."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from vesselseg.errors import ConfigError, NoInterfaceError

# A lumen smaller than a sphere (disc) four voxels wide is not resolved: volume 4/3 π 2³ (π 2²).
SMALLEST_VOXELS = {3: 33, 2: 13}


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
        Level set, negative in the lumen. Components are joined through faces, edges and
        corners, holes through faces.
    choice : "all", "largest", "seed" or int
        What is kept besides: everything, the largest component, the one at ``seed_kji``, or
        that many of the largest.

    Returns
    -------
    phi, notes
        A level set that is redistanced by the caller if notes is not empty.

    Raises
    ------
    NoInterfaceError
        If nothing is left, or the seed lies outside the lumen.
    """
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
        at = 0 if seed_kji is None else int(label[tuple(seed_kji)])
        if at == 0:
            raise NoInterfaceError(
                "the seed point lies outside the lumen", found=seed_kji, remedy="move it"
            )
        chosen = [at]
    keep = np.isin(label, chosen)
    notes = []
    if (small := count - len(large)) > 0:
        notes.append(f"{small} lumen islands below {smallest} voxels removed")
    if (left := len(large) - len(chosen)) > 0:
        notes.append(f"{left} further lumen components left out ({choice})")
    hollow, holes = ndimage.label(~keep)
    extent = np.bincount(hollow.ravel(), minlength=holes + 1)
    extent[0] = smallest
    filled = (extent < smallest)[hollow] & ~inside
    if filled.any():
        notes.append(f"{int(np.sum(extent < smallest))} holes below {smallest} voxels filled")
    if not notes:
        return phi, ()
    magnitude = np.maximum(np.abs(phi), np.finfo(phi.dtype).tiny)
    out = np.where(keep | filled, -magnitude, magnitude).astype(phi.dtype)
    return out, tuple(notes)


def _how_many(choice: str | int, available: int) -> int:
    if isinstance(choice, int):
        if choice < 1:
            raise ConfigError("bad number of components", found=choice, need="at least 1")
        return choice
    return 1 if choice == "largest" else available
