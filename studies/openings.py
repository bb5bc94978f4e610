"""Find the openings of phantoms: where they are, how large, and what flows through them.

``python studies/openings.py`` writes ``results/openings.json`` and ``.png``: tubes, a bent tube
and a Y of 4 to 6 voxels that leave the field of view, in flow scans of SNR 6 and 12 (PSF 0.6
voxel), each case with noise of its own; the whole path refines the wall from a start one half voxel
off. Distance of the centre from the axis, angle of the normal, area, and flow against the truth;
the same for the exact wall. ``--quick``: one draw of two shapes. ``--draws 10`` is the default.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from vesselseg import phantoms
from vesselseg.fields import LevelSet, Refinement, StopReason, Volume
from vesselseg.flow import Flow
from vesselseg.grid import Grid
from vesselseg.io.atomic import write_bytes
from vesselseg.phantoms.problems import Phantom
from vesselseg.pipeline import build_prior
from vesselseg.prior.boundary import BoundaryPrior
from vesselseg.synth.flow_mri import FlowModel, flow_scan

RESULTS = Path(__file__).parent / "results"
SHAPES: dict[str, dict[str, Any]] = {
    "straight": {"name": "tube", "shape": (30, 26, 26)},
    "tilted": {"name": "tilted_tube", "shape": (34, 34, 34)},
    "to a corner": {"name": "tube", "shape": (36, 36, 36), "direction": (1.0, 1.0, 1.0)},
    "bent": {"name": "curved_tube", "shape": (32, 32, 32), "bend": 7.0},
    "Y": {"name": "bifurcation", "shape": (32, 34, 34)},
}
RADII = (4.0, 6.0)
SNRS = (6.0, 12.0)
MEAN_SPEED_MS = 0.4
VENC_MS = 1.2
START_ERROR = 0.5  # voxels rms


def problem(row: dict[str, Any], radius: float) -> tuple[Phantom, Grid, NDArray[np.float64]]:
    """Return shape, grid and the flow at each point of the axis, m³/s."""
    options = {k: v for k, v in row.items() if k not in ("name", "shape")}
    shape = phantoms.make(row["name"], radius=radius, **options)
    size = tuple(int(n * (1.0 if radius < 5 else 1.3)) for n in row["shape"])
    grid = shape.grid(1.0, shape=size)
    trunk = MEAN_SPEED_MS * np.pi * (1e-3 * radius) ** 2
    return shape, grid, trunk * (shape.axis_radius / shape.axis_radius.max()) ** 3


def start_of(truth: NDArray[np.float64], grid: Grid, seed: int) -> LevelSet:
    """Return the exact wall displaced smoothly."""
    rng = np.random.default_rng(np.random.SeedSequence([seed, 5]))
    bump = gaussian_filter(rng.standard_normal(truth.shape), 2.0)
    band = 5.0 * grid.h_max
    return LevelSet(np.clip(truth + START_ERROR * bump / bump.std(), -band, band), grid, band)


def exact_wall(truth: NDArray[np.float64], grid: Grid, snr: float) -> Refinement:
    """Return the exact wall in the place of a refined one."""
    level = LevelSet(np.clip(truth, -5.0, 5.0), grid, 5.0)
    std = np.full(grid.shape_kji, 0.01, dtype=np.float32)
    estimates = {"noise": 1.0 / snr, "psf_voxels": 0.6}
    return Refinement(level, std, StopReason.CONVERGED, 1, estimates=estimates)


def compared(
    shape: Phantom, flow_m3s: NDArray[np.float64], prior: BoundaryPrior
) -> list[dict[str, Any]]:
    """Return one row an opening: its errors."""
    rows = []
    for row in prior.openings:
        centre = 1e3 * row["centre_m"]
        near = int(np.argmin(np.linalg.norm(shape.axis_xyz - centre, axis=1)))
        near = int(np.clip(near, 1, len(shape.axis_xyz) - 2))
        along = shape.axis_xyz[near + 1] - shape.axis_xyz[near - 1]
        along = along / np.linalg.norm(along)
        offset = centre - shape.axis_xyz[near]
        offset = offset - (offset @ along) * along
        cosine = float(along @ row["normal_out"])
        area = np.pi * (1e-3 * shape.axis_radius[near]) ** 2
        through = np.sign(cosine) * flow_m3s[near]
        rows.append(
            {
                "name": row["name"].decode(),
                "centre_voxel": float(np.linalg.norm(offset)),
                "normal_deg": float(np.degrees(np.arccos(min(abs(cosine), 1.0)))),
                "area_percent": 100.0 * float(row["area_m2"] / area - 1.0),
                "area_sigmas": float((row["area_m2"] - area) / row["area_std_m2"]),
                "flow_percent": 100.0 * float(row["q_mean_m3s"] / through - 1.0),
                "flow_sigmas": float((row["q_mean_m3s"] - through) / row["q_std_m3s"]),
                "kind_right": bool((row["kind"] == 2) == (through > 0) and row["kind"] > 0),
            }
        )
    return rows


def run(
    shapes: dict[str, dict[str, Any]], radii: tuple[float, ...], draws: int
) -> list[dict[str, Any]]:
    """Return the rows of every shape, radius, SNR and draw; exact walls first."""
    found = []
    for (name, row), radius in ((i, r) for i in shapes.items() for r in radii):
        shape, grid, flow = problem(row, radius)
        truth = shape.phi(grid)
        for snr in SNRS:
            model = FlowModel(snr=snr, venc_ms=VENC_MS)
            case = f"{name} {radius} {snr}".encode()
            first = int.from_bytes(hashlib.sha256(case).digest()[:3], "little")
            seeds = list(range(first, first + draws))
            scans = flow_scan(shape, grid, flow, model, seeds)
            for draw, (volume, velocity) in enumerate(scans):
                for wall in ("exact", "refined"):
                    began = time.process_time()
                    if wall == "exact":
                        prior = made(exact_wall(truth, grid, snr), volume, velocity)
                    else:
                        start = start_of(truth, grid, seeds[draw])
                        prior = build_prior(volume, start=start, flow=velocity)
                    facts = {"shape": name, "radius": radius, "snr": snr, "draw": draw}
                    facts |= {"wall": wall, "seconds": time.process_time() - began}
                    errors = compared(shape, flow, prior)
                    facts["openings_right"] = len(errors) == (3 if name == "Y" else 2)
                    found += [facts | error for error in errors]
            print(f"{name}, radius {radius:g}, SNR {snr:g}", flush=True)
    return found


def made(refined: Refinement, volume: Volume, velocity: Flow) -> BoundaryPrior:
    """Return the prior of one scan."""
    return BoundaryPrior.from_refinement(refined, volume, None, flow=velocity)


def table(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one line a wall, SNR and radius."""
    lines = []
    for key in sorted({(r["wall"], r["snr"], r["radius"]) for r in rows}):
        mine = [r for r in rows if (r["wall"], r["snr"], r["radius"]) == key]

        def of(name: str, mine: list[dict[str, Any]] = mine) -> NDArray[np.float64]:
            return np.abs([r[name] for r in mine])

        lines.append(
            {
                "wall": key[0],
                "SNR": key[1],
                "radius": key[2],
                "openings": len(mine),
                "centre, voxels": float(of("centre_voxel").mean()),
                "largest": float(of("centre_voxel").max()),
                "normal °": float(of("normal_deg").mean()),
                "largest °": float(of("normal_deg").max()),
                "area %": float(of("area_percent").mean()),
                "95 % of areas": float(np.percentile(of("area_percent"), 95)),
                "area within 2 s.d.": float((of("area_sigmas") <= 2).mean()),
                "flow %": float(of("flow_percent").mean()),
                "flow within 2 s.d.": float((of("flow_sigmas") <= 2).mean()),
                "names right": float(np.mean([r["kind_right"] for r in mine])),
            }
        )
    return lines


def picture(rows: list[dict[str, Any]]) -> bytes:
    """Draw the errors as dots, a colour a wall."""
    import io

    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.4), layout="constrained")
    names = {
        "centre_voxel": "centre off the axis, voxels",
        "normal_deg": "normal off the axis, degrees",
        "area_percent": "area, %",
        "flow_sigmas": "flow, its s.d.",
    }
    for axes, (key, title) in zip(figure.subplots(1, 4), names.items(), strict=True):
        for n, (wall, snr) in enumerate(sorted({(r["wall"], r["snr"]) for r in rows})):
            values = [r[key] for r in rows if (r["wall"], r["snr"]) == (wall, snr)]
            spread = n + 0.25 * np.linspace(-1, 1, len(values))
            axes.plot(spread, values, ".", ms=3, label=f"{wall}, SNR {snr:g}")
        axes.set_title(title, size=9)
        axes.set_xticks([])
        axes.grid(axis="y", alpha=0.3)
    figure.legend(loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=130, metadata={"Software": None})
    return buffer.getvalue()


def main() -> None:
    """Run the study."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--quick", action="store_true", help="two shapes, one draw")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "openings.json")
    options = parser.parse_args()
    if options.quick:
        rows = run({k: SHAPES[k] for k in ("tilted", "Y")}, RADII[:1], 1)
    else:
        rows = run(SHAPES, RADII, options.draws)
    summary = table(rows)
    result = {"table": summary, "rows": rows}
    write_bytes(options.output, (json.dumps(result, indent=1) + "\n").encode())
    write_bytes(options.output.with_suffix(".png"), picture(rows))
    print(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main()
