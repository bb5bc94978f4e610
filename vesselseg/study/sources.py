"""Where the cases of a study come from: scans in files, or phantoms with a known wall."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import io
import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field

from ..config import Settings, build
from ..errors import ConfigError, DataError
from .space import nearest

if TYPE_CHECKING:
    from ..fields import LevelSet, Probability, Volume
    from ..grid import Grid

Scalar = str | int | float | bool | None
Made = tuple["Grid", NDArray[np.float64], NDArray[np.float32]]

BAND = 6.0  # half-width of an exact start's distance, largest voxels
LEAST_SD = 0.1  # voxels: s.d. of a start without error
KEPT_SCENES = 4  # blurred phantoms a worker holds; more are read from the study's folder
WILD = "*?["


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else [value]


def _number(value: Any) -> Any:
    return [float(v) if type(v) is int else v for v in _listed(value)]


def _sides(value: Any) -> Any:
    """Read voxel sides: each entry is a number, or one number per array axis."""
    return [tuple(_number(v)) if isinstance(v, list | tuple) else v for v in _number(value)]


Names = Annotated[tuple[str, ...], BeforeValidator(_listed), Field(strict=False)]
Positive = Annotated[float, Field(gt=0, le=1e4)]
Numbers = Annotated[tuple[Positive, ...], BeforeValidator(_number), Field(strict=False)]
Lengths = Annotated[
    tuple[Annotated[float, Field(ge=0, le=20)], ...], BeforeValidator(_number), Field(strict=False)
]
Spacings = Annotated[
    tuple[Positive | Annotated[tuple[Positive, ...], Field(strict=False)], ...],
    BeforeValidator(_sides),
    Field(strict=False),
]


class Cases(Settings):
    """What a study looks at: files, or phantoms; where several values stand, all combinations.

    Parameters
    ----------
    files, starts, truths : names or globs
        Scans; their starts (probability, mask or level set) and true walls, in the same order.
    phantoms : names
        Of ``vesselseg.phantoms``.
    radius : mm
        Lumen radius.
    spacing : mm, or (z, y, x) mm
        Voxel sides.
    shape : (nz, ny, nx) or (ny, nx), optional
        Default: as large as the phantom and a margin.
    snr, psf : numbers
        Contrast over the s.d. of the noise; s.d. of the point spread in voxels.
    image : table
        Further keys of ``synth.ForwardModel``, such as ``bias = [0.0, 0.25]``.
    start_error, start_sd : voxels
        Rms of the smooth displacement of the exact start; the s.d. it claims (default: its error).
    draws : int
        Draws of noise and start. A draw is the same for every setting.
    """

    files: Names = ()
    starts: Names = ()
    truths: Names = ()
    phantoms: Names = ()
    radius: Numbers = (4.0,)
    spacing: Spacings = (1.0,)
    shape: Annotated[tuple[int, ...] | None, Field(strict=False)] = None
    snr: Numbers = (6.0,)
    psf: Lengths = (0.6,)
    image: dict[str, Any] = Field(default_factory=dict)
    start_error: Lengths = (1.0,)
    start_sd: Lengths = ()
    draws: int = Field(1, ge=1, le=100_000)

    def count(self) -> int:
        """Return how many phantoms' images there will be, before any is made."""
        axes = (self.phantoms, self.radius, self.spacing, self.snr, self.psf, self.start_error)
        sides = [*axes, self.start_sd or (None,), *map(_listed, self.image.values())]
        return int(np.prod([float(len(a)) for a in sides])) * self.draws


@dataclass(frozen=True)
class Phantom:
    """The image of a phantom: its scene, and what was drawn."""

    name: str
    radius: float
    spacing: float | tuple[float, ...]
    shape: tuple[int, ...] | None
    image: tuple[tuple[str, Any], ...]
    start_error: float
    start_sd: float | None
    draw: int
    seed: int
    store: str

    @property
    def label(self) -> str:
        """Name for a folder."""
        return self.name

    @property
    def facts(self) -> dict[str, Scalar]:
        """What stands in the table."""
        facts = {
            "phantom": self.name,
            "radius": self.radius,
            "spacing": _text(self.spacing),
            **{"psf" if k == "psf_voxels" else k: _text(v) for k, v in self.image},
            "start_error": self.start_error,
            "draw": self.draw,
        }
        return facts if self.start_sd is None else facts | {"start_sd": self.start_sd}

    @property
    def identity(self) -> str:
        """What the result depends on."""
        shape = None if self.shape is None else list(self.shape)
        return json.dumps([self.facts, shape, self.seed], sort_keys=True)

    def made(self) -> Made:
        """Return grid, exact distance in mm and blurred share of the lumen."""
        psf = dict(self.image)["psf_voxels"]
        return _blurred(self.name, self.radius, self.spacing, self.shape, psf, self.store)

    def volume(self) -> Volume:
        """Render the image; the noise of a draw is the same for every contrast and setting."""
        from ..synth.forward import ForwardModel, image_of

        grid, _, share = self.made()
        model = build(ForwardModel, dict(self.image), "cases.image")
        return image_of(share, grid, model, self._stream("noise"), self.name)

    def start(self, volume: Volume) -> LevelSet:
        """Return the true wall after a smooth random displacement: knows nothing of the image."""
        from ..fields import LevelSet
        from ..solvers.redistancing import redistance
        from ..synth.cases import perturbed

        grid, truth, _ = self.made()
        phi: NDArray[Any] = truth
        band = BAND * grid.h_max
        if self.start_error:
            phi = perturbed(truth, grid, self.start_error, self._stream("start"))
        sd = self.start_error if self.start_sd is None else self.start_sd
        phi = redistance(phi, grid.spacing_mm, band_mm=band)
        sigma = np.full(grid.shape_kji, max(sd, LEAST_SD) * grid.h_min, dtype=np.float32)
        return LevelSet(phi, grid, band, sigma)

    def truth(self, volume: Volume) -> NDArray[np.float64]:
        """Return the exact signed distance to the wall, mm."""
        return self.made()[1]

    def _stream(self, purpose: str) -> int:
        text = f"{self.seed}/{self.name}/{self.radius:g}/{self.draw}/{purpose}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4])


@dataclass(frozen=True)
class Scan:
    """A scan in a file, with its start and its true wall if there are any."""

    file: str
    start_file: str | None
    truth_file: str | None
    digests: tuple[str, ...]

    @property
    def label(self) -> str:
        """Name for a folder."""
        return stem(self.file)

    @property
    def facts(self) -> dict[str, Scalar]:
        """What stands in the table."""
        return {"scan": Path(self.file).name}

    @property
    def identity(self) -> str:
        """What the result depends on: the content of the files, not their names."""
        return json.dumps(self.digests)

    def volume(self) -> Volume:
        """Read the scan; refuse files that have changed."""
        from ..io import read_volume

        for file, digest in zip(self.files, self.digests, strict=True):
            if file_digest(file) != digest:
                remedy = "put it back, or begin anew with --force-new"
                raise DataError("input changed since the study began", path=file, remedy=remedy)
        return read_volume(self.file)

    def start(self, volume: Volume) -> Probability | LevelSet:
        """Read the start, on the grid of the scan."""
        from ..io import read_start

        if self.start_file is None:
            raise DataError("no start of this scan", path=self.file, remedy="set cases.starts")
        return read_start(self.start_file, volume)

    def truth(self, volume: Volume) -> NDArray[np.float64] | None:
        """Read the true wall, on the grid of the scan; None if there is none."""
        from ..fields import LevelSet
        from ..io import read_start
        from ..solvers.redistancing import redistance

        if self.truth_file is None:
            return None
        true = read_start(self.truth_file, volume)
        level = true if isinstance(true, LevelSet) else LevelSet.from_probability(true)
        grid = volume.grid
        reach = float(np.linalg.norm(np.multiply(grid.shape_kji, grid.spacing_mm)))
        return np.asarray(redistance(level.phi_mm, grid.spacing_mm, band_mm=reach), dtype=float)

    @property
    def files(self) -> tuple[str, ...]:
        """The files of the case."""
        found = (self.file, self.start_file, self.truth_file)
        return tuple(name for name in found if name is not None)


Source = Phantom | Scan


def sources(cases: Cases, seed: int, store: Path, known: Mapping[str, str]) -> list[Source]:
    """Return what the study looks at.

    Parameters
    ----------
    seed : int
        Of every draw.
    store : Path
        Folder for blurred phantoms, which are slow to make and serve many cases.
    known : mapping
        Digests of the files, see ``inputs``.
    """
    return list(_scans(cases, known) if cases.files else _phantoms(cases, seed, store))


def resolved(cases: Cases) -> Cases:
    """Return the cases with every glob replaced by the files that match it now."""
    found = {name: _matching(getattr(cases, name)) for name in ("files", "starts", "truths")}
    return cases.model_copy(update=found)


def inputs(cases: Cases) -> dict[str, str]:
    """Return path and digest of every file of resolved cases."""
    return {path: file_digest(path) for path in (*cases.files, *cases.starts, *cases.truths)}


def _matching(patterns: Sequence[str]) -> tuple[str, ...]:
    result: dict[str, None] = {}
    for pattern in patterns:
        path = Path(pattern).absolute()
        found = [path] if path.exists() else []
        if not found and any(c in pattern for c in WILD):
            root = Path(path.anchor)
            found = sorted(p for p in root.glob(str(path.relative_to(root))) if p.is_file())
        if not found:
            remedy = "check the folder; names are relative to the study file"
            raise DataError("no file matches", path=pattern, remedy=remedy)
        result |= dict.fromkeys(str(p) for p in found)
    return tuple(result)


def _scans(cases: Cases, known: Mapping[str, str]) -> Iterator[Scan]:
    by_stem: dict[str, str] = {}
    for path in cases.files:
        if (other := by_stem.setdefault(stem(path), path)) != path:
            remedy = "rename one: their results would bear one name"
            raise ConfigError("two scans of one name", path=path, found=other, remedy=remedy)
    columns = [
        _paired(cases.files, part, name)
        for name, part in (("starts", cases.starts), ("truths", cases.truths))
    ]
    for path, start, truth in zip(cases.files, *columns, strict=True):
        names = [name for name in (path, start, truth) if name is not None]
        yield Scan(path, start, truth, tuple(known[name] for name in names))


def _paired(
    files: Sequence[str], found: Sequence[str], name: str
) -> Sequence[str] | Sequence[None]:
    if found and len(found) != len(files):
        need = f"one for each of the {len(files)} files"
        raise ConfigError(f"cases.{name} do not fit cases.files", found=len(found), need=need)
    return found or [None] * len(files)


def stem(path: str) -> str:
    """Return the base name of a scan without its endings."""
    return Path(path).name.split(".")[0]


def file_digest(path: str) -> str:
    """Return the SHA-256 of a file; DataError if it cannot be read."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - Path.open is the same
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"cannot read: {error.strerror}", path=path) from None


def _phantoms(cases: Cases, seed: int, store: Path) -> Iterator[Phantom]:
    starts = itertools.product(cases.start_error, cases.start_sd or (None,))
    scenes = itertools.product(
        cases.phantoms, cases.radius, cases.spacing, _images(cases), starts, range(cases.draws)
    )
    for name, radius, spacing, image, (error, sd), draw in scenes:
        yield Phantom(name, radius, spacing, cases.shape, image, error, sd, draw, seed, str(store))


def _images(cases: Cases) -> list[tuple[tuple[str, Any], ...]]:
    """Return the settings of every kind of image."""
    known = {"snr": cases.snr, "psf_voxels": cases.psf}
    given = {name: tuple(_number(values)) for name, values in cases.image.items()}
    axes = known | given
    return [tuple(zip(axes, chosen, strict=True)) for chosen in itertools.product(*axes.values())]


def check_cases(cases: Cases) -> None:
    """Refuse unknown phantoms and settings of the image.

    Raises
    ------
    ConfigError
        Names the nearest one.
    """
    if bool(cases.files) == bool(cases.phantoms):
        found = "both" if cases.files else "neither"
        raise ConfigError("cases", found=found, need="either files or phantoms")
    if not cases.phantoms:
        return
    from .. import phantoms

    for name in cases.phantoms:
        if name not in phantoms.names():
            remedy = nearest(name, phantoms.names())
            raise ConfigError("unknown phantom", found=name, remedy=remedy)
    if not cases.image:
        return
    from ..synth.forward import ForwardModel

    for image in _images(cases):
        build(ForwardModel, dict(image), "cases.image")


def _text(value: Any) -> Scalar:
    return ":".join(f"{v:g}" for v in value) if isinstance(value, list | tuple) else value


@functools.lru_cache(maxsize=KEPT_SCENES)
def _blurred(
    name: str,
    radius: float,
    spacing: float | tuple[float, ...],
    shape: tuple[int, ...] | None,
    psf: float | tuple[float, ...],
    store: str,
) -> Made:
    """Make a phantom ready for its images, or read what another case or worker made."""
    from .. import phantoms

    solid = phantoms.make(name, radius=radius)
    if shape is not None and len(shape) != solid.ndim:
        need = f"{solid.ndim} numbers"
        raise ConfigError(f"cases.shape does not fit {name}", found=shape, need=need)
    grid = solid.grid(spacing, shape=shape)
    key = repr((name, radius, spacing, shape, psf, code_digest()))
    file = Path(store) / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npz"
    with _one_at_a_time(file.with_suffix(".lock")):
        truth, share = _kept(file, lambda: _rendered(solid, grid, psf))
    return grid, truth, share


def _rendered(solid: Any, grid: Grid, psf: Any) -> tuple[NDArray[np.float64], NDArray]:
    from ..synth.forward import phantom_occupancy

    return solid.phi(grid), phantom_occupancy(solid, grid, psf)


def _kept(file: Path, make: Callable[[], tuple[NDArray, NDArray]]) -> tuple[NDArray, NDArray]:
    from ..io.atomic import write_bytes

    if file.is_file():
        with np.load(file, allow_pickle=False) as kept:
            return kept["truth"], kept["share"]
    truth, share = make()
    buffer = io.BytesIO()
    np.savez_compressed(buffer, truth=truth, share=share)
    write_bytes(file, buffer.getvalue())
    return truth, share


@contextlib.contextmanager
def _one_at_a_time(lock: Path) -> Iterator[None]:
    """Let one worker make a phantom while the others wait for it; freed by the kernel."""
    handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        with contextlib.suppress(OSError):  # without locks it is only made twice
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


DECIDING = (".py", ".json", ".safetensors")
SHOWING = ("cli", "demo", "preview", "study")  # rooms that decide no number of a result


@functools.cache
def code_digest() -> str:
    """Return the digest of the code that decides results; another one makes other cases."""
    root = Path(__file__).parent.parent
    digest = hashlib.sha256()
    for folder in (root, *(root / name for name in ("solvers", "cuda_kernels"))):
        for file in sorted(folder.resolve().rglob("*.*")):
            inner = file.relative_to(folder.resolve())
            if file.suffix in DECIDING and inner.parts[0] not in SHOWING:
                digest.update(f"{inner}\0".encode() + file.read_bytes())
    return digest.hexdigest()
