"""The folder ``{magn,mask,sdf}``: which files belong together, and what is in them."""

from __future__ import annotations

import functools
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ..errors import DataError
from ..fields import Field
from ..grid import Grid
from ..io.choices import Choices, Raw
from ..io.guard import read_bytes_checked
from ..io.volume import FORMATS, base_name, read_channels, read_field
from ..metrics import skeleton
from ..solvers.redistancing import redistance
from ..solvers.start import logit

PathLike = str | os.PathLike[str]

IMAGES, MASKS, DISTANCES = "magn", "mask", "sdf"
TAIL = "_mask"  # a mask may be named like its image, or so
FAR = 12.0  # voxels: distances are clamped here
TUBE = 1.5  # voxels about the centreline
PERCENTILES = (0.5, 99.5)  # those of the networks
MAX_SIDECAR = 1 << 16
MOST_INSIDE = 4096


@dataclass(frozen=True)
class Pair:
    """An image and its mask, and a level set that knows the wall better, if there is one."""

    stem: str
    image: Path
    mask: Path
    sdf: Path | None = None


@dataclass(frozen=True, eq=False)
class Item:
    """A pair as read, on its own grid.

    Parameters
    ----------
    image : (channels, nz, ny, nx) or (channels, ny, nx) float32
        0 and 1 are the 0.5 and 99.5 percentiles of each channel of the whole scan.
    phi_mm : (nz, ny, nx) or (ny, nx) float32
        Signed distance to the wall, negative in the lumen, clamped.
    tube : same shape uint8
        One about the skeleton of the mask.
    labels : same shape uint8
    level : same shape float32
        Zero at the wall: the file of ``sdf``, else ``-logit`` of a soft mask, ±0.5 of a hard one.
    spacing_mm : tuple of float
        Per array axis.
    """

    image: Field
    phi_mm: Field
    tube: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    level: Field
    spacing_mm: tuple[float, ...]
    notes: tuple[str, ...] = ()

    @functools.cached_property
    def inside(self) -> NDArray[np.int32]:
        """Some voxels (m, ndim) of the lumen, spread evenly over it."""
        found = np.argwhere(self.labels > 0).astype(np.int32)
        return found[:: max(1, len(found) // MOST_INSIDE)]

    @property
    def nbytes(self) -> int:
        """Memory held."""
        arrays = (self.image, self.phi_mm, self.tube, self.labels, self.level)
        return sum(a.nbytes for a in arrays)

    def plane(self, axis: int, index: int) -> Item:
        """Return a slice as an item of two dimensions, with a distance of its own."""
        cut: Any = (*(slice(None) for _ in range(axis)), index)
        image, labels = self.image[(slice(None), *cut)], self.labels[cut]
        level, tube = self.level[cut], self.tube[cut]
        spacing = tuple(s for a, s in enumerate(self.spacing_mm) if a != axis)
        return Item(image, distance_mm(level, spacing), tube, labels, level, spacing)


def pairs(folder: PathLike, image_suffix: str = "", mask_suffix: str = "") -> tuple[Pair, ...]:
    """Pair the files of ``magn`` and ``mask`` by their names.

    Parameters
    ----------
    folder : path-like
        Holds ``magn`` and ``mask``; a mask is named like its image, or with ``_mask`` behind.
        A folder ``sdf`` may hold level sets of some of them, negative in the lumen, of which the
        zero set counts. Hidden files and ``.json`` files are passed over.
    image_suffix, mask_suffix : str
        Only images and masks of these endings; default: every known format.

    Raises
    ------
    DataError
        A folder is missing or empty, a file has an unknown format, two files have one name, or
        an image or mask has no partner; the first ones are named.
    """
    images = _stems(Path(folder) / IMAGES, image_suffix)
    masks = _stems(Path(folder) / MASKS, mask_suffix)
    for stem in [s for s in masks if s.endswith(TAIL)]:
        plain = stem.removesuffix(TAIL)
        if plain in masks:
            raise DataError("two masks of one image", path=masks[stem], found=masks[plain].name)
        masks[plain] = masks.pop(stem)
    distances = Path(folder) / DISTANCES
    walls = _stems(distances, "") if distances.is_dir() else {}
    alone = [images[s] for s in sorted(images.keys() - masks.keys())]
    alone += [files[s] for files in (masks, walls) for s in sorted(files.keys() - images.keys())]
    if alone:
        names = ", ".join(f"{p.parent.name}/{p.name}" for p in alone[:3])
        fault = f"{len(alone)} files without a partner"
        remedy = f"give image and mask one name, in {IMAGES} and {MASKS}"
        raise DataError(fault, path=folder, found=names, remedy=remedy)
    return tuple(Pair(s, images[s], masks[s], walls.get(s)) for s in sorted(images))


def _stems(folder: Path, suffix: str) -> dict[str, Path]:
    if not folder.is_dir():
        need = f"{IMAGES} and {MASKS}, with files of equal names"
        raise DataError("no such folder", path=folder, need=need)
    found: dict[str, Path] = {}
    for file in sorted(folder.iterdir()):
        if file.name.startswith(".") or file.suffix == ".json":
            continue
        if suffix and not file.name.endswith(suffix):
            continue
        if not any(file.name.lower().endswith(known) for known in FORMATS):
            raise DataError("unknown image format", path=file, remedy="move it elsewhere")
        stem = base_name(file)
        if stem in found:
            raise DataError("two files of one name", path=file, found=found[stem].name)
        found[stem] = file
    if not found:
        raise DataError("no images in the folder", path=folder, need=suffix or "any known format")
    return found


def load(pair: Pair, channels: int, classes: int) -> Item:
    """Read and check a pair.

    Raises
    ------
    DataError
        If image, mask and level set differ in shape or grid, the mask holds what it may not, or
        the level set has another lumen than the mask.
    """
    layers, grid, raw = read_image(pair.image, channels)
    mask = _beside(pair.mask, pair.image, grid, raw)
    labels, level = understood(mask, classes, pair.mask)
    if pair.sdf is not None:
        level = _beside(pair.sdf, pair.image, grid, raw)
        wrong = int(((level < 0) & (labels == 0) | (level > 0) & (labels > 0)).sum())
        if wrong:
            need = f"numbers below zero in the lumen of {pair.mask.name} alone"
            raise DataError("another lumen", path=pair.sdf, found=f"{wrong} voxels", need=need)
    doubts = {
        "no voxel size: taken as 1 mm": not _sized(pair.image, raw),
        "the mask is empty": not labels.any(),
    }
    notes = tuple(text for text, true in doubts.items() if true)
    image = np.stack([_unit(layer) for layer in layers])
    phi, spacing = distance_mm(level, grid.spacing_mm), grid.spacing_mm
    return Item(image, phi, tube(labels > 0, spacing), labels, level, spacing, notes)


def _beside(path: Path, image: Path, grid: Grid, raw: Raw) -> Field:
    """Read a mask or level set, which must lie on the grid of its image."""
    values, other, _ = read_field(path, _choices(path, image), unit_spacing=True)
    if values.shape != grid.shape_kji:
        found, need = f"shape {values.shape}", f"{grid.shape_kji} as {image.name}"
        raise DataError(
            f"{path.parent.name} does not fit its image", path=path, found=found, need=need
        )
    if raw.placed and not other.fits(grid) and _holds_size(path):
        found, need = f"voxels of {other.spacing_mm} mm", f"the grid of {image.name}"
        fault = f"{path.parent.name} lies elsewhere than its image"
        raise DataError(fault, path=path, found=found, need=need)
    return values


def read_image(path: Path, channels: int) -> tuple[list[Field], Grid, Raw]:
    """Read the channels of an image; without a voxel size it is taken as 1 mm."""
    return read_channels(path, channels, _choices(path), unit_spacing=True)


def _choices(path: Path, beside: Path | None = None) -> Choices:
    """Return how a file is read: with the voxel size of ``<stem>.json`` if there is one."""
    sidecar = next((s for p in (path, beside) if p and (s := _sidecar(p)).is_file()), None)
    if sidecar is None:
        return Choices()
    try:
        size = json.loads(read_bytes_checked(sidecar, limit=MAX_SIDECAR))["spacing_mm"]
        numbers = tuple(float(n) for n in np.atleast_1d(size))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        need = '{"spacing_mm": [z, y, x]}'
        raise DataError("bad sidecar", path=sidecar, need=need) from error
    if not numbers or not all(math.isfinite(n) and n > 0 for n in numbers):
        raise DataError("bad spacing_mm", path=sidecar, found=size, need="numbers > 0")
    return Choices(spacing_mm=numbers)


def _sidecar(path: Path) -> Path:
    return path.with_name(base_name(path) + ".json")


def _holds_size(path: Path) -> bool:
    """Return whether the format, not a default, says where the mask lies."""
    return FORMATS[next(s for s in FORMATS if path.name.lower().endswith(s))] in ("nifti", "itk")


def _sized(path: Path, raw: Raw) -> bool:
    known = raw.affine is not None and not np.array_equal(raw.affine, np.eye(4))
    return raw.placed or _sidecar(path).is_file() or known


def understood(
    mask: Field, classes: int, path: PathLike
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Return labels and a level, zero at the wall, of a mask.

    One class: above 0.5 is lumen; numbers from 0 to 1 stay soft. Several: whole numbers below
    ``classes``, zero the background.
    """
    whole = bool(np.array_equal(mask, np.round(mask)))
    if classes > 1:
        if not whole or mask.min() < 0 or mask.max() >= classes:
            found = f"{mask.min():g} to {mask.max():g}" + ("" if whole else ", fractions")
            need = f"whole numbers from 0 to {classes - 1}"
            raise DataError("labels do not fit the classes", path=path, found=found, need=need)
        labels = mask.astype(np.uint8)
    else:
        labels = (mask > 0.5).astype(np.uint8)
    if classes == 1 and not whole and mask.min() >= 0 and mask.max() <= 1:
        return labels, -logit(mask)
    return labels, np.where(labels > 0, -0.5, 0.5).astype(np.float32)


def distance_mm(level: Field, spacing_mm: tuple[float, ...]) -> Field:
    """Return the signed distance to the wall, clamped; constant where there is no wall."""
    band = FAR * max(spacing_mm)
    inside = level < 0
    if inside.all() or not inside.any():
        return np.full(level.shape, -band if inside.all() else band, np.float32)
    return redistance(level, spacing_mm, band_mm=band).astype(np.float32)


def tube(lumen: NDArray[np.bool_], spacing_mm: tuple[float, ...]) -> NDArray[np.uint8]:
    """Return the voxels of the lumen within 1.5 smallest voxels of its skeleton."""
    if not lumen.any():
        return np.zeros(lumen.shape, np.uint8)
    away = ndimage.distance_transform_edt(~skeleton(lumen), sampling=spacing_mm)
    return np.asarray(lumen & (away <= TUBE * min(spacing_mm)), dtype=np.uint8)


def _unit(layer: Field) -> Field:
    low, high = np.percentile(layer, PERCENTILES)
    return np.asarray((layer - low) * (1.0 / (high - low) if high > low else 0.0), np.float32)
