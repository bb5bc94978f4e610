"""The demonstration: a real scan without a ground truth, and a phantom with one."""

from __future__ import annotations

import time
from dataclasses import replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np

from .. import data, metrics, phantoms
from ..fields import LevelSet, Probability, Progress, Volume, silent
from ..infer import segment
from ..io import read_volume
from ..io.atomic import check_folder, check_target, write_bytes
from ..pipeline import PipelineConfig, build_prior
from ..preview.page import preview
from ..prior import check as prior_check
from ..prior.boundary import BoundaryPrior
from ..solvers.refine import refine
from ..solvers.settings import RefineSettings
from ..synth.forward import ForwardModel, render_phantom
from .picture import compare

PHANTOM = "bifurcation"
RADIUS_VOXELS = 4.0
VOXEL_MM = 0.8
MODEL = ForwardModel(snr=6.0, psf_voxels=0.6)
CAROTID_NOTE = "voxel size unknown: 1 mm assumed"
NAMES = {
    "network": "network",
    "refined": "refined wall",
    "isosurface": "Gaussian isosurface",
    "chan_vese": "Chan-Vese",
}
FIGURES = ("mean", "p95", "bias")


def run_demo(
    output: Path, *, seed: int = 0, overwrite: bool = False, progress: Progress = silent
) -> dict[str, Any]:
    """Make priors and pictures of the bundled carotid scan and of a phantom.

    Parameters
    ----------
    output : Path
        Folder; made if it is missing.
    seed : int
        Of the phantom's noise.
    overwrite : bool
        Replace files of an earlier run.

    Returns
    -------
    dict
        ``carotid``, ``phantom``, ``warnings``, ``ok`` and ``seconds``; JSON-ready. Nothing in
        millimetres is said of the carotid scan, whose voxel size nobody knows.

    Raises
    ------
    ConfigError, EnvironmentFault
        A file exists and ``overwrite`` is False, or the folder cannot be written.
    """
    begin = time.perf_counter()
    folder = check_folder(output)
    names = ("carotid.prior.h5", "carotid.png", "phantom.prior.h5", "phantom.png", "comparison.png")
    paths = {name: folder / name for name in names}
    for path in paths.values():
        check_target(path, overwrite=overwrite)
    carotid = _carotid(paths, _within("carotid", progress))
    phantom = _phantom(paths, seed, _within("phantom", progress))
    parts = {"carotid": carotid, "phantom": phantom}
    notes = [f"{name}: {note}" for name, part in parts.items() for note in part.pop("warnings")]
    return {
        **parts,
        "ok": carotid["check"]["ok"] and phantom["check"]["ok"],
        "warnings": notes,
        "seconds": round(time.perf_counter() - begin, 1),
    }


def table(result: dict[str, Any]) -> str:
    """Render the result as text."""
    carotid, phantom = result["carotid"], result["phantom"]
    cover = phantom["coverage"]
    lines = [
        f"carotid   {carotid['components']} lumen components, {carotid['end']}; "
        f"check {_verdict(carotid)}; voxel size unknown",
        f"          {carotid['prior']}",
        f"          {carotid['picture']}",
        f"phantom   {phantom['name'].replace('_', ' ')}, radius {RADIUS_VOXELS:g} voxels, voxel "
        f"{VOXEL_MM:g} mm, SNR {MODEL.snr:g}; {phantom['end']}; check {_verdict(phantom)}",
        *(f"          {phantom[name]}" for name in ("prior", "picture", "comparison")),
        "",
        f"{'wall error':<20}{'mean':>16}{'95 %':>18}{'bias':>18}{'normals':>12}",
    ]
    for key, name in NAMES.items():
        row = phantom["errors"][key]
        cells = [f"{row[f + '_voxel']:+.3f} / {row[f + '_mm']:+.3f}" for f in FIGURES]
        cells = [
            c if f == "bias" else c.replace("+", "") for c, f in zip(cells, FIGURES, strict=True)
        ]
        lines.append(
            f"{name:<20}{cells[0]:>16}{cells[1]:>18}{cells[2]:>18}{row['normal_rms_deg']:>10.1f} °"
        )
    lines += [
        f"{'':<20}{'voxels / mm':>16}{'':>18}{'+ = too small':>18}{'rms':>12}",
        "",
        f"standard deviation: ± 1 covers {cover['within_1']:.0%} of the wall (68 % expected), "
        f"± 2 covers {cover['within_2']:.0%} (95 %)",
        f"{result['seconds']:.0f} s",
    ]
    return "\n".join(lines)


def carotid_scan() -> Volume:
    """Read the bundled carotid scan; its notes say that the voxel size is assumed."""
    with as_file(files(data) / "carotid.nii.gz") as path:
        volume = read_volume(path)
    kept = tuple(note for note in volume.notes if "unit of length" not in note)
    return replace(volume, notes=(CAROTID_NOTE, *kept))


def _carotid(paths: dict[str, Path], progress: Progress) -> dict[str, Any]:
    volume = carotid_scan()
    prior = build_prior(volume, PipelineConfig(), progress=progress)
    prior.write(paths["carotid.prior.h5"], overwrite=True)
    write_bytes(paths["carotid.png"], preview(prior))
    lumen = prior.attributes["/geometry"]
    return {
        "prior": str(paths["carotid.prior.h5"]),
        "picture": str(paths["carotid.png"]),
        "components": int(lumen["n_components"]),
        "genus": int(lumen["genus"]),
        **_ending(prior),
        "check": _checked(paths["carotid.prior.h5"]),
        "warnings": list(prior.warnings),
    }


def _phantom(paths: dict[str, Path], seed: int, progress: Progress) -> dict[str, Any]:
    shape = phantoms.make(PHANTOM, radius=RADIUS_VOXELS * VOXEL_MM)
    grid = shape.grid(VOXEL_MM, margin_mm=8 * VOXEL_MM)
    truth = shape.phi(grid)
    volume = render_phantom(shape, grid, MODEL, seed)
    found = segment(volume, progress=progress)
    prior = build_prior(volume, PipelineConfig(seed=seed), start=found, progress=progress)
    prior.write(paths["phantom.prior.h5"], overwrite=True)
    write_bytes(paths["phantom.png"], preview(prior))
    progress("comparison", 0.0, "isosurface and Chan-Vese")
    refined = prior.phi_mean_mm
    walls: dict[str, Any] = {
        "network": found.phi_mm,
        "refined": refined,
        "isosurface": isosurface(volume, MODEL.lumen, MODEL.background),
        "chan_vese": chan_vese(volume, found),
    }
    errors = {name: metrics.wall_errors(phi, truth, grid) for name, phi in walls.items()}
    cover = metrics.coverage(refined, truth, prior.phi_std_mm, grid)
    focus = np.round(grid.index(shape.crease_xyz.mean(axis=0))).astype(int)
    picture = compare(volume, truth, walls, errors, cover, NAMES, focus)
    write_bytes(paths["comparison.png"], picture)
    return {
        "name": PHANTOM,
        "seed": seed,
        "snr": MODEL.snr,
        "psf_voxels": MODEL.psf_voxels,
        "voxel_mm": VOXEL_MM,
        "prior": str(paths["phantom.prior.h5"]),
        "picture": str(paths["phantom.png"]),
        "comparison": str(paths["comparison.png"]),
        **_ending(prior),
        "errors": errors,
        "coverage": cover,
        "check": _checked(paths["phantom.prior.h5"]),
        "warnings": list(prior.warnings),
    }


def isosurface(volume: Volume, lumen: float, background: float) -> np.ndarray:
    """Return the baseline: the image, filtered by a Gaussian of one voxel, about its mid level.

    Parameters
    ----------
    lumen, background : float
        True mean intensities; the level is half way between them.

    Returns
    -------
    array
        Negative inside, in units of the contrast; only its zero set is a wall.
    """
    from scipy.ndimage import gaussian_filter

    smooth = gaussian_filter(volume.values.astype(np.float64), 1.0)
    return np.asarray((0.5 * (lumen + background) - smooth) / (lumen - background))


def chan_vese(volume: Volume, start: Probability) -> np.ndarray:
    """Return the level set of Chan and Vese (2001), started from the same wall, mm."""
    settings = RefineSettings(energy="chan_vese", iterations=100)
    return refine(LevelSet.from_probability(start), volume, settings).level_set.phi_mm


def _within(case: str, progress: Progress) -> Progress:
    def report(stage: str, fraction: float, message: str) -> None:
        progress(f"{case} {stage}", fraction, message)

    return report


def _ending(prior: BoundaryPrior) -> dict[str, Any]:
    steps = len(prior.step_rms_mm)
    converged = bool(prior.quality["converged"])
    end = f"{'converged' if converged else 'not converged'} after {steps} steps"
    return {"steps": steps, "converged": converged, "end": end}


def _checked(path: Path) -> dict[str, Any]:
    findings = prior_check.check(path)
    failed = [f"{f.name}: {f.message}" for f in findings if not f.ok and f.level == "error"]
    return {"ok": not failed, "invariants": len(findings), "failed": failed}


def _verdict(part: dict[str, Any]) -> str:
    return "passed" if part["check"]["ok"] else "FAILED: " + "; ".join(part["check"]["failed"])
