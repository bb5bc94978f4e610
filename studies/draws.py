"""Look at walls drawn from a prior: how smooth they are, and whether they vary as it says.

``python studies/draws.py`` writes ``results/draws.json`` and ``.png``: a Y of radius 4 voxels with
a standard deviation of 0.2 voxel and correlation lengths of 1, 2 and 3 voxels. Variance of the
draws over that of the file near the wall, angle of their normals with those of the mean, how far
along the wall half the correlation reaches; a slice with twenty walls, and one wall of each length.
``--quick``: forty draws. ``--draws 400`` is the default.
"""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vesselseg import phantoms
from vesselseg.fields import LevelSet, Refinement, StopReason, Volume
from vesselseg.io.atomic import write_bytes
from vesselseg.preview.wall import camera, shade, vertex_normals
from vesselseg.prior.boundary import BoundaryPrior, PriorSettings
from vesselseg.prior.surface import extract
from vesselseg.wall_geometry import gradient

RESULTS = Path(__file__).parent / "results"
LENGTHS = (1.0, 2.0, 3.0)  # voxels
STD = 0.2  # voxel
SHOWN = 20  # walls in a slice
WALL = (0.98, 0.64, 0.42)


def prior_of(length: float) -> BoundaryPrior:
    """Return the prior of the exact Y; lengths in the file are metres, a voxel 1 mm."""
    shape = phantoms.make("bifurcation", radius=4.0)
    grid = shape.grid(1.0, shape=(28, 40, 34))
    level = LevelSet(np.clip(shape.phi(grid), -5.0, 5.0), grid, 5.0)
    std = np.full(grid.shape_kji, STD, dtype=np.float32)
    wall = Refinement(level, std, StopReason.CONVERGED, 1)
    scan = Volume((level.phi_mm < 0).astype(np.float32), grid, "Y")
    return BoundaryPrior.from_refinement(wall, scan, settings=PriorSettings(ell_mm=length))


def measured(prior: BoundaryPrior, draws: int) -> dict[str, float]:
    """Return what the draws show near the wall."""
    phi = prior.phi_mean_m.astype(np.float64)
    step = 1e-3
    slopes = gradient(phi, (step,) * 3)
    steep = np.linalg.norm(slopes, axis=0)
    near = (np.abs(phi) < 0.5 * step) & (steep > 0.9)  # in the crotch the mean has no normal
    normal = np.stack([g[near] / steep[near] for g in slopes])
    total, angles = np.zeros(phi.shape), list[float]()
    products = np.zeros(13)  # of neighbours 0, 1, 2, … voxels apart along the first axis
    for seed in range(draws):
        offset = prior.sample(1, seed)[0] - phi
        total += np.square(offset) / draws
        turned = np.stack([g[near] for g in gradient(phi + offset, (step,) * 3)])
        cosine = (turned * normal).sum(0) / np.linalg.norm(turned, axis=0)
        angles.append(float(np.degrees(np.sqrt(2.0 * np.mean(1.0 - np.minimum(cosine, 1.0))))))
        inner = offset[5:-5]
        products += [float(np.mean(inner[: len(inner) - n] * inner[n:])) for n in range(13)]
    ratio = total[near] / np.square(prior.phi_std_m[near], dtype=np.float64)
    apart = products / products[0]
    half = float(np.interp(-0.5, -apart, np.arange(13)))
    return {
        "variance of the draws / of the file": float(ratio.mean()),
        "lowest 5 %": float(np.percentile(ratio, 5)),
        "highest 5 %": float(np.percentile(ratio, 95)),
        "normals, degrees rms": float(np.sqrt(np.mean(np.square(angles)))),
        "half correlation, voxels": half,
    }


def shaded(axes: Any, prior: BoundaryPrior, phi: NDArray[np.floating]) -> None:
    """Draw one wall in space."""
    from matplotlib.collections import TriMesh
    from matplotlib.tri import Triangulation

    surface = extract(phi.astype(np.float64), prior.arrays["/grid/ijk_to_world"])
    corners = 1e3 * surface.points @ camera().T
    faces = surface.faces
    sides = corners[faces][:, 1:] - corners[faces][:, :1]
    faces = faces[np.cross(sides[:, 0], sides[:, 1])[:, 2] > 0]
    faces = faces[np.argsort(corners[faces].mean(axis=1)[:, 2])]
    colours = shade(np.tile(WALL, (len(corners), 1)), vertex_normals(corners, surface.faces))
    mesh = TriMesh(Triangulation(corners[:, 0], corners[:, 1], faces))
    mesh.set_facecolor(list(colours))
    axes.add_collection(mesh)
    axes.autoscale_view()
    axes.set_aspect("equal")
    axes.axis("off")


def picture(priors: dict[float, BoundaryPrior], found: list[dict[str, Any]]) -> bytes:
    """Draw slices with many walls above, single walls below."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7.2), layout="constrained")
    grid = figure.subplots(2, len(priors))
    for column, (length, prior), row in zip(grid.T, priors.items(), found, strict=True):
        draws = prior.sample(SHOWN, seed=0)
        middle = prior.phi_mean_m.shape[1] // 2
        for phi in draws:
            column[0].contour(phi[:, middle], [0.0], colors="tab:blue", linewidths=0.5, alpha=0.6)
        column[0].contour(prior.phi_mean_m[:, middle], [0.0], colors="black", linewidths=1.2)
        column[0].set_aspect("equal")
        column[0].set_xticks([])
        column[0].set_yticks([])
        angle = row["normals, degrees rms"]
        column[0].set_title(f"ℓ = {length:g} voxel, normals {angle:.1f}° rms", size=10)
        shaded(column[1], prior, draws[0])
    figure.suptitle(f"{SHOWN} walls of s.d. {STD} voxel and their mean; below one of them", size=11)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110, metadata={"Software": None})
    return buffer.getvalue()


def main() -> None:
    """Run the study."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=400)
    parser.add_argument("--quick", action="store_true", help="forty draws")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "draws.json")
    options = parser.parse_args()
    priors = {length: prior_of(length) for length in LENGTHS}
    draws = 40 if options.quick else options.draws
    found = [{"length, voxels": n, **measured(p, draws)} for n, p in priors.items()]
    result = {"draws": draws, "std_voxel": STD, "table": found}
    write_bytes(options.output, (json.dumps(result, indent=1) + "\n").encode(), overwrite=True)
    write_bytes(options.output.with_suffix(".png"), picture(priors, found), overwrite=True)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
