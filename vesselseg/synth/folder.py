"""Synthetic cases as a data set on disk, in the folder layout that training reads."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError
from ..fields import Case, Progress, silent
from ..io import atomic
from .cases import DEFAULT, Shape, SynthSettings, case

FileKind = Literal["npy", "h5"]
PARTS = ("magn", "mask", "sdf", "centreline")
FACTS = "facts.jsonl"
PREVIEW = "preview.png"
PREVIEWED = 12


def write_dataset(
    output: str | os.PathLike[str],
    n: int,
    settings: SynthSettings = DEFAULT,
    seed: int = 0,
    *,
    validation: int = 0,
    kind: FileKind = "npy",
    shape: Shape | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> Path:
    """Write n cases as a folder of ``magn``, ``mask``, ``sdf`` and ``centreline``.

    Parameters
    ----------
    output : path-like
        Holds these folders, or two sets of them, ``train`` and ``val``, if there is validation.
    n : int
        Number of cases, those for validation included.
    settings : SynthSettings
    seed : int
    validation : int
        Cases of the end that go to ``val``; even, since two cases share a geometry.
    kind : {"npy", "h5"}
        Files; an HDF5 file holds one dataset, named like its folder.
    shape : callable, optional
        See ``case``.

    Returns
    -------
    Path
        The folder. ``facts.jsonl``, one line a case, is written last; ``preview.png`` shows the
        first ones. ``sdf`` is in voxels.

    Raises
    ------
    ConfigError
        If the numbers make no sense, or files exist and ``overwrite`` is false.
    """
    if n < 1 or not 0 <= validation < n or (validation and (n % 2 or validation % 2)):
        found = f"{n}, {validation} for validation"
        need = "at least 1; with validation even numbers, as two cases share a geometry"
        raise ConfigError("bad number of cases", found=found, need=need)
    folder = Path(output)
    halves = [folder / "train", folder / "val"] if validation else [folder]
    atomic.check_folder(folder)
    for name in (FACTS, PREVIEW):
        atomic.check_target(folder / name, overwrite=overwrite)
    for half in halves:
        for part in (half, *(half / name for name in PARTS)):
            atomic.check_folder(part)
    lines, shown = [], []
    for index in range(n):
        drawn = case(seed, index, settings, shape)
        half = halves[-1] if index >= n - validation else halves[0]
        stem = f"{index:04d}"
        for name, array in parts(drawn).items():
            data = file_bytes(array, name, kind)
            atomic.write_bytes(half / name / f"{stem}.{kind}", data, overwrite=overwrite)
        row = {"file": f"{stem}.{kind}", "folder": half.relative_to(folder).as_posix()}
        lines.append(json.dumps(row | drawn.facts) + "\n")
        shown += [drawn] if index < PREVIEWED else []
        progress("synth", (index + 1) / n, f"case {index + 1} of {n}")
    atomic.write_bytes(folder / PREVIEW, preview(shown), overwrite=overwrite)
    atomic.write_bytes(folder / FACTS, "".join(lines).encode(), overwrite=overwrite)
    return folder


def parts(drawn: Case) -> dict[str, NDArray[Any]]:
    """Return the arrays of a case by folder; channels come first where there are several."""
    image = drawn.image[0] if len(drawn.image) == 1 else drawn.image
    mask = (drawn.phi < 0).astype(np.uint8)
    return {"magn": image, "mask": mask, "sdf": drawn.phi, "centreline": drawn.centreline}


def file_bytes(array: NDArray[Any], name: str, kind: FileKind) -> bytes:
    """Return an array as the bytes of a file."""
    buffer = io.BytesIO()
    if kind == "npy":
        np.save(buffer, array)
    else:
        import h5py

        with h5py.File(buffer, "w") as file:
            file.create_dataset(name, data=array, compression="gzip", track_times=False)
    return buffer.getvalue()


def preview(cases: list[Case]) -> bytes:
    """Draw the slice of each case with the most lumen, and its wall, as PNG."""
    from matplotlib.figure import Figure

    columns = min(6, len(cases))
    rows = -(-len(cases) // columns)
    figure = Figure((2.2 * columns, 2.3 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel in panels:
        panel.set_axis_off()
    for number, (panel, drawn) in enumerate(zip(panels, cases, strict=False)):
        image, phi = drawn.image[0], drawn.phi
        if phi.ndim == 3:
            k = int(np.argmax((phi < 0).sum(axis=(1, 2))))
            image, phi = image[k], phi[k]
        panel.imshow(image, cmap="gray", vmin=image.min(), vmax=np.percentile(image, 99.5))
        if phi.min() < 0 < phi.max():
            panel.contour(phi, [0.0], colors="tab:red", linewidths=1.0)
        panel.set_title(f"{number}: {drawn.facts['shape']}, SNR {drawn.facts['snr']:.0f}", size=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90, metadata={"Software": None})
    return buffer.getvalue()
