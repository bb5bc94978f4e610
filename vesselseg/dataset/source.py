"""Cases from files: index -> file, place, pose -> patch, as ``case(seed, index)``."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field as Limits
from scipy import ndimage

from ..config import Settings
from ..errors import ConfigError, DataError
from ..fields import Case, Field
from ..solvers.redistancing import redistance
from .augment import OFF, AugmentSettings, pose, repaint
from .folder import FAR, IMAGES, Item, Pair, load, pairs
from .split import groups_by, split
from .subset import choose

MARGIN = 8  # voxels about a patch in which its distance is measured anew
REACH = 10  # voxels beyond which a spline does not feel a voxel
SAME = 1e-3  # relative difference of spacings that needs no resampling


class DataSettings(Settings):
    """A folder of the user's own cases.

    Parameters
    ----------
    folder : str
        Holds ``train`` and ``val``, each with ``magn`` and ``mask``; or ``magn`` and ``mask``
        themselves, of which ``validation`` are set apart.
    patch : tuple of int
        Size of a case in working voxels; default: 64 in 3-D, 128 in 2-D.
    voxel_mm : float, optional
        Working voxel; default: the finest spacing of each file.
    image_suffix, mask_suffix : str
        Read only files of these endings.
    validation : float
        Share or number of cases for validation where there is no ``val``.
    groups : str
        Regular expression for the patient in a file's name; patients are never divided.
    foreground : float
        Share of patches that are centred on the lumen.
    dark : bool
        Whether blood is darker than its surroundings.
    subset : float
        Share of the training cases to keep, the hardest and most different ones.
    cache_mb : int
        Memory for files that were read; per worker process.
    """

    folder: str
    patch: tuple[int, ...] = Limits((), strict=False)
    voxel_mm: float | None = Limits(None, gt=0)
    image_suffix: str = ""
    mask_suffix: str = ""
    validation: float = Limits(0.2, gt=0)
    groups: str = ""
    foreground: float = Limits(0.7, ge=0, le=1)
    dark: bool = False
    subset: float = Limits(1.0, gt=0, le=1)
    cache_mb: int = Limits(2000, ge=1)
    augment: AugmentSettings = AugmentSettings()


@dataclass
class Memory:
    """Items that were read, the oldest dropped beyond a number of bytes."""

    limit: int
    held: OrderedDict[str, Item] = field(default_factory=OrderedDict)

    def __reduce__(self) -> tuple[Any, ...]:
        return Memory, (self.limit,)  # a worker process begins with none

    def get(self, pair: Pair, channels: int, classes: int) -> Item:
        """Return the item of a pair, from memory or from its files."""
        item = self.held.pop(pair.stem, None) or load(pair, channels, classes)
        self.held[pair.stem] = item
        while sum(i.nbytes for i in self.held.values()) > self.limit and len(self.held) > 1:
            self.held.popitem(last=False)
        return item


@dataclass(frozen=True, eq=False)
class FolderCases:
    """Picklable ``case(seed, index) -> Case`` over pairs of files.

    Every run of ``size`` indices takes each pair once, in an order of its own.
    """

    pairs: tuple[Pair, ...]
    patch: tuple[int, ...]
    channels: int
    classes: int
    settings: DataSettings
    augment: AugmentSettings
    memory: Memory

    @property
    def size(self) -> int:
        """Number of pairs."""
        return len(self.pairs)

    def item(self, number: int) -> Item:
        """Return a pair as read; a 2-D network also takes volumes, by their slices."""
        item = self.memory.get(self.pairs[number], self.channels, self.classes)
        found, wanted = item.labels.ndim, len(self.patch)
        if found not in (wanted, wanted + 1):
            remedy = f"--set dims={found}" if found == 2 else None
            raise DataError(
                "bad dims",
                path=self.pairs[number].image,
                found=f"{found}-D",
                need=f"{wanted}-D",
                remedy=remedy,
            )
        return item

    def __call__(self, seed: int, index: int) -> Case:
        """Draw a patch of the pair whose turn it is."""
        epoch, turn = divmod(index, self.size)
        number = int(np.random.default_rng((seed, epoch, 2)).permutation(self.size)[turn])
        rng = np.random.default_rng((seed, index, 3))
        item = self.item(number)
        if item.labels.ndim == len(self.patch) + 1:
            item = slice_of(item, self.settings.foreground, rng)
        facts = {"file": self.pairs[number].image.name, "span": (0.0, 1.0)}
        facts |= {"polarity": "dark" if self.settings.dark else "bright"}
        case = cut(item, self.patch, self.settings, self.augment, rng)
        case.facts.update(facts)
        return case


def slice_of(item: Item, foreground: float, rng: np.random.Generator) -> Item:
    """Draw a slice across the coarsest axis."""
    axis = int(np.argmax(item.spacing_mm))
    count = item.labels.shape[axis]
    others = tuple(a for a in range(item.labels.ndim) if a != axis)
    full = np.flatnonzero(item.labels.any(others))
    lumen = rng.random() < foreground and len(full) > 0
    return item.plane(axis, int(rng.choice(full)) if lumen else int(rng.integers(count)))


def cut(
    item: Item,
    patch: tuple[int, ...],
    settings: DataSettings,
    augment: AugmentSettings,
    rng: np.random.Generator,
) -> Case:
    """Cut a patch out of an item: at a random place, in a random pose, repainted.

    A patch that hangs over the edge sees the scan mirrored there, as in inference; the mirrored
    distance is the distance to the mirrored wall.
    """
    h = settings.voxel_mm or min(item.spacing_mm)
    step = np.array([h / s if abs(h / s - 1.0) > SAME else 1.0 for s in item.spacing_mm])
    middle = place(item, np.array(patch) * step, settings.foreground, rng)
    turned = pose(tuple(n + 2 * MARGIN for n in patch), augment, rng)
    if turned is not None:
        image, phi, tube, labels = sampled(item, turned * column(step) + column(middle), 3)
        phi = measured(phi / np.float32(h))
        inner = tuple(slice(MARGIN, MARGIN + n) for n in patch)
        image, phi = image[(slice(None), *inner)], phi[inner]
        tube, labels = tube[inner], labels[inner]
    else:
        at = np.indices(patch) - column((np.array(patch) - 1.0) / 2.0)
        straight = at * column(step) + column(middle)
        if np.all(step == 1.0):
            straight = np.rint(straight)
        image, phi, tube, labels = sampled(item, straight, 1)
        phi = phi / np.float32(h)
    phi = np.clip(phi, -FAR, FAR).astype(np.float32)
    tube = tube * (phi < 0)
    return Case(repaint(image, augment, rng), phi, tube.astype(np.uint8), {}, labels.copy())


def column(vector: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return ``(n, 1, 1, ...)``, one number for each axis of a map of n dimensions."""
    return vector.reshape(-1, *(1,) * len(vector))


def place(
    item: Item, size: NDArray[np.float64], foreground: float, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Draw the middle of a patch: near a voxel of the lumen, or anywhere it fits."""
    shape = np.array(item.labels.shape, dtype=np.float64)
    low = np.minimum((size - 1) / 2, (shape - 1) / 2)
    high = shape - 1 - low
    lumen = rng.random() < foreground and len(item.inside) > 0
    middle = rng.uniform(low, high)
    if lumen:
        middle = item.inside[rng.integers(len(item.inside))] + size * rng.uniform(-0.25, 0.25)
    return np.clip(middle, low, high)


def sampled(
    item: Item, at: NDArray[np.float64], order: int
) -> tuple[Field, Field, NDArray[np.uint8], NDArray[np.uint8]]:
    """Sample image, distance, tube and labels at index positions ``(ndim, ...)``, mirrored.

    Whole positions take the voxels themselves. Splines are fitted to the part of the scan about
    the positions: beyond ten voxels nothing of it is felt.
    """
    axes = tuple(range(1, at.ndim))
    first = np.floor(at.min(axes)).astype(int) - REACH
    last = np.ceil(at.max(axes)).astype(int) + REACH
    spans = zip(first, last, item.labels.shape, strict=True)
    window = np.ix_(*(mirrored(np.arange(a, b + 1), n) for a, b, n in spans))
    inner = at - column(first.astype(float))
    nearest = tuple(np.rint(inner).astype(int))
    tube, labels = item.tube[window][nearest], item.labels[window][nearest]
    fields = [*item.image, item.phi_mm]
    if np.array_equal(inner, np.rint(inner)):
        values = [f[window][nearest] for f in fields]
    else:
        orders = [*(order for _ in item.image), 3]
        values = [
            ndimage.map_coordinates(f[window], inner, order=k, mode="nearest")
            for f, k in zip(fields, orders, strict=True)
        ]
    return np.stack(values[:-1]), values[-1], tube, labels


def mirrored(index: NDArray[np.int_], length: int) -> NDArray[np.int_]:
    """Return which voxels of an axis stand at positions beyond its ends."""
    folded = index % (2 * length)
    return np.where(folded < length, folded, 2 * length - 1 - folded)


def measured(phi: Field) -> Field:
    """Return the signed distance in voxels to the zero set of a warped distance."""
    if not phi.min() < 0 < phi.max():
        return phi
    return redistance(phi, 1.0, band_mm=FAR)


def sources(
    settings: DataSettings, dims: int, channels: int, classes: int, seed: int = 0
) -> tuple[FolderCases, FolderCases, dict[str, list[str]]]:
    """Return the cases of training and validation and the manifest: part -> names.

    Raises
    ------
    DataError
        See ``folder.pairs``; or one scan is in both parts.
    ConfigError
        The patch has other dimensions than the network.
    """
    patch = settings.patch or ((64,) * 3 if dims == 3 else (128,) * 2)
    if len(patch) != dims or min(patch) < 16 or max(patch) > 1024:
        need = f"{dims} numbers from 16 to 1024"
        raise ConfigError("bad patch", path="data.patch", found=patch, need=need)
    endings = settings.image_suffix, settings.mask_suffix
    folder = Path(settings.folder)
    if (folder / IMAGES).is_dir():
        every = {pair.stem: pair for pair in pairs(folder, *endings)}
        groups = groups_by(settings.groups, list(every)) if settings.groups else None
        parts = split(list(every), {"val": settings.validation, "train": -1}, groups, seed)
        chosen = {name: tuple(every[stem] for stem in stems) for name, stems in parts.items()}
    else:
        chosen = {name: pairs(folder / name, *endings) for name in ("train", "val")}
    empty = [name for name, found in chosen.items() if not found]
    if empty:
        raise DataError(f"no cases left for '{empty[0]}'", path=folder, remedy="add some cases")

    def made(part: str, augment: AugmentSettings) -> FolderCases:
        memory = Memory(settings.cache_mb * 2**20)
        return FolderCases(chosen[part], patch, channels, classes, settings, augment, memory)

    train, val = made("train", settings.augment), made("val", OFF)
    if settings.subset < 1:
        kept = choose([train.item(n) for n in range(train.size)], settings.subset)
        train = replace(train, pairs=tuple(train.pairs[n] for n in kept))
    manifest = {"train": [p.stem for p in train.pairs], "val": [p.stem for p in val.pairs]}
    return train, val, manifest


def notes(cases: Sequence[FolderCases]) -> list[str]:
    """Read every file once; return what had to be assumed, with the names of the files."""
    lines = []
    for source in cases:
        for number, pair in enumerate(source.pairs):
            lines += [f"{pair.image.name}: {note}" for note in source.item(number).notes]
    return lines
