"""The targets of ``vesselseg export``, and the one function that writes their files."""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConfigError, DataError
from ..io.atomic import check_folder, check_target, write_files
from ..prior.boundary import BoundaryPrior
from . import grids, surfaces
from .scene import METRES, Scene

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Target:
    """A format.

    Parameters
    ----------
    write : callable
        Scene to files: suffix of the name to bytes.
    unit : str
        Unit of length unless another is asked for.
    axes : str
        How arrays or points are laid out.
    fixed : bool
        The unit is the format's own.
    planar : bool
        2-D priors too.
    """

    write: Callable[[Scene], dict[str, bytes]]
    unit: str
    axes: str
    fixed: bool = False
    planar: bool = False


XYZ = "points (x, y, z)"
TARGETS = {
    "nifti": Target(grids.nifti, "mm", "NIfTI, grid of the scan", fixed=True, planar=True),
    "stl": Target(surfaces.stl, "m", XYZ),
    "vtp": Target(surfaces.vtp, "m", XYZ, planar=True),
    "xdmf": Target(grids.xdmf, "m", XYZ),
    "gmsh": Target(surfaces.gmsh, "m", XYZ),
    "simvascular": Target(surfaces.simvascular, "cm", XYZ),
    "openfoam": Target(surfaces.openfoam, "m", XYZ),
    "hemelb": Target(surfaces.hemelb, "m", XYZ, fixed=True),
    "palabos": Target(surfaces.palabos, "m", XYZ),
    "lbm": Target(grids.lbm, "m", "arrays [k, j, i]"),
    "cutfem": Target(grids.cutfem, "m", "arrays [k, j, i] of nodes", planar=True),
    "4dflownet": Target(grids.fourdflownet, "mm", "arrays [frame, i, j, k]", fixed=True),
    "inr": Target(grids.inr, "m", XYZ, planar=True),
    "npz": Target(grids.npz, "m", "arrays [k, j, i]", planar=True),
    "peclet": Target(grids.peclet, "m", "arrays [i, j, k], Fortran order"),
}


def export(
    prior: BoundaryPrior,
    target: str,
    output: str | os.PathLike[str],
    *,
    unit: str | None = None,
    overwrite: bool = False,
) -> list[Path]:
    """Write a prior in the format of a solver, mesher or viewer.

    Parameters
    ----------
    prior : BoundaryPrior
    target : str
        One of ``TARGETS``.
    output : path-like
        Folder and stem of the files: ``DIR/NAME`` makes ``DIR/NAME.stl`` and so on, and
        ``DIR/NAME.json``, which states unit, frame, axes and openings. A missing DIR is made.
    unit : {"m", "cm", "mm"}, optional
        Unit of length; default: the target's.
    overwrite : bool

    Returns
    -------
    list of Path
        The files, the statement last.

    Raises
    ------
    ConfigError
        Unknown target or unit, bad name, or a file that exists.
    DataError
        The prior lacks what the target needs.
    EnvironmentFault
        Folder, permission, disk.
    """
    chosen = _chosen(target, unit)
    path = Path(output)
    if not NAME.fullmatch(path.name):
        need = "letters, digits, dots, dashes and underscores"
        raise ConfigError("bad name of an export", path=path, found=path.name, need=need)
    if prior.phi_mean_m.ndim == 2 and not chosen.planar:
        need = "a 3-D prior, or one of " + ", ".join(n for n, t in TARGETS.items() if t.planar)
        raise DataError(f"no 2-D form of the target {target}", need=need)
    scene = Scene(prior, path.name, unit or chosen.unit)
    files = chosen.write(scene)
    files[".json"] = _statement(scene, target, chosen, list(files))
    for ending in {"." + suffix.split(".", 1)[1] for suffix in files}:
        if path.name.endswith(ending):
            remedy = f"give {path.name.removesuffix(ending)}"
            raise ConfigError(f"{ending} is added by the export", path=path, remedy=remedy)
    check_folder(path.parent)
    targets = {path.with_name(path.name + suffix): data for suffix, data in files.items()}
    for file in targets:
        check_target(file, overwrite=overwrite)
    older = _older(path, target) if overwrite else []
    write_files(targets.items(), overwrite=overwrite)
    for file in older:
        if file not in targets:  # parts that this prior has not would be taken for its own
            file.unlink(missing_ok=True)
    return list(targets)


def _older(path: Path, target: str) -> list[Path]:
    """Return the files of an earlier export of the same name to the same target."""
    try:
        facts = json.loads(path.with_name(path.name + ".json").read_bytes())
        named = [str(name) for name in facts["files"] if facts["target"] == target]
    except (OSError, ValueError, LookupError, TypeError):
        return []
    return [path.with_name(n) for n in named if NAME.fullmatch(n) and n.startswith(path.name)]


def _chosen(target: str, unit: str | None) -> Target:
    if target not in TARGETS:
        near = difflib.get_close_matches(target, TARGETS, 1)
        remedy = f"did you mean {near[0]}?" if near else "known: " + ", ".join(TARGETS)
        raise ConfigError("unknown export target", path="--to", found=target, remedy=remedy)
    chosen = TARGETS[target]
    if unit is not None and unit not in METRES:
        raise ConfigError("unknown unit", path="--length-unit", found=unit, need="m, cm or mm")
    if chosen.fixed and unit not in (None, chosen.unit):
        need = f"{chosen.unit}, the unit of {target}"
        raise ConfigError("unit is fixed", path="--length-unit", found=unit, need=need)
    return chosen


def _statement(scene: Scene, target: str, chosen: Target, suffixes: list[str]) -> bytes:
    """Return what every export states beside its files."""
    root, grid = scene.prior.attributes["/"], scene.prior.attributes["/grid"]
    facts: dict[str, Any] = {
        "target": target,
        "geometry_kind": root["geometry_kind"],
        "files": [scene.name + suffix for suffix in suffixes],
        "length_unit": scene.unit,
        "frame": "RAS+",
        "axes": chosen.axes,
        "ijk_to_ras": scene.affine.tolist(),
        "labels": {str(label): name for label, name in scene.parts.items()},
        "openings": scene.openings,
        "interior_point": scene.interior.tolist(),
        "case_id": root["case_id"],
        "content_sha256": root["content_sha256"],
    }
    if scene.prior.axisymmetric:
        facts["axis"] = {
            "point": (np.asarray(grid["axis_origin_m"]) * scene.scale).tolist(),
            "direction": np.asarray(grid["axis_direction"]).tolist(),
        }
    return (json.dumps(facts, indent=1) + "\n").encode()
