"""Write synthetic cases to a folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from . import synth
from .errors import printable
from .fields import Case, Progress, silent
from .grid import Grid
from .io import write_image
from .io.atomic import check_folder, check_target, write_bytes

if TYPE_CHECKING:
    from .synth import SynthSettings

PARTS = ("magn", "mask", "sdf", "centreline")


def write_cases(
    folder: Path,
    count: int,
    settings: SynthSettings,
    *,
    seed: int = 0,
    workers: int = 0,
    overwrite: bool = False,
    progress: Progress = silent,
) -> list[Path]:
    """Make cases 0 to ``count - 1`` and write them.

    Parameters
    ----------
    folder : Path
        Gets ``magn/``, ``mask/``, ``sdf/`` (voxels, negative inside) and ``centreline/``, with
        one ``case_000000.nii.gz`` each per case, and ``parameters.json``.
    workers : int
        Processes; 0 uses none. The files do not depend on it.

    Returns
    -------
    list of Path
        The scans.

    Raises
    ------
    ConfigError, EnvironmentFault
        A file exists and ``overwrite`` is False, or the folder cannot be written.
    """
    parts = {part: check_folder(folder / part) for part in PARTS}
    table = folder / "parameters.json"
    names = [f"case_{index:06d}.nii.gz" for index in range(count)]
    for path in [table, *(parts[part] / name for part in PARTS for name in names)]:
        check_target(path, overwrite=overwrite)
    facts = {}
    for index, case in enumerate(_cases(count, settings, seed, workers)):
        _write(case, {part: path / names[index] for part, path in parts.items()}, overwrite)
        facts[names[index]] = case.facts
        progress("synth", (index + 1) / count, printable(names[index]))
    described = {"seed": seed, "settings": settings.model_dump(mode="json"), "cases": facts}
    write_bytes(table, json.dumps(described, indent=1, default=_plain).encode(), overwrite=True)
    return [parts["magn"] / name for name in names]


def _cases(count: int, settings: SynthSettings, seed: int, workers: int) -> Iterator[Case]:
    make = partial(synth.case, seed, settings=settings)
    if workers == 0:
        yield from map(make, range(count))
        return
    with get_context("spawn").Pool(workers) as pool:
        yield from pool.imap(make, range(count))


def _write(case: Case, paths: dict[str, Path], overwrite: bool) -> None:
    grid = Grid.from_spacing(case.phi.shape, 1.0)
    fields = {
        "magn": case.image[0],
        "mask": case.phi < 0.0,
        "sdf": case.phi,
        "centreline": case.centreline,
    }
    for part, path in paths.items():
        write_image(path, np.asarray(fields[part]), grid, overwrite=overwrite)


def _plain(value: object) -> object:
    """Turn NumPy numbers and arrays into what JSON knows."""
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else str(value)
