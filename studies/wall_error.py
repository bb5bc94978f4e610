"""How far is the wall from the truth? ``python studies/wall_error.py``.

Phantoms with an exact wall, imaged with a point spread of 0.6 voxels and noise. Every wall is
refined from an independent start, the true wall displaced smoothly by 1 voxel rms; ours from the
network's wall as well. The shapes reported here are others than those on which settings were
chosen, ours and the peers'. Rows are kept in the result file; only missing ones are computed, and
those of the methods after ``--redo`` (``ours`` stands for all of ours).
"""

from __future__ import annotations

import argparse
import json
import math
import operator
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray
from peers import PEERS, isosurfaces
from scenes import (
    PSF,
    REPORTED,
    REPORTED_PLANAR,
    RESULTS,
    START_RMS,
    TUNING,
    Scene,
    cases,
    in_parallel,
    in_turn,
    listed,
    scaled,
)

from vesselseg import metrics
from vesselseg.calibration import calibrated
from vesselseg.errors import InputError
from vesselseg.fields import LevelSet, Refinement, Volume
from vesselseg.infer import segment
from vesselseg.io.atomic import write_bytes
from vesselseg.solvers.refine import refine
from vesselseg.solvers.settings import RefineSettings

__all__ = ["REPORTED", "RESULTS", "TUNING", "cases", "in_parallel"]  # for the other studies

FILE = RESULTS / "wall_error.json"
SNR = (3.0, 6.0, 12.0)
COLUMNS = ("mean", "rms", "p95", "max", "bias", "normals", "far", "seconds")
COVER = ("within_1", "within_2")  # two more columns where a wall states its s.d.
OURS = {
    "start": "start",
    "network": "network",
    "refined_network": "refined from the network",
    "refined": "**refined from the start**",
    "chan_vese": "our Chan-Vese",
    "local": "our Chan-Vese with local means",
    "gac": "our geodesic active contour",
}
FLOWS = ("chan_vese", "local", "gac")
FLOW_STEPS = 60
BASELINES = {
    "isosurface": "Gaussian isosurface, level 0.5, best width",
    "isosurface_tuned": "the same, width and level tuned with the truth",
}
NAMES = {**OURS, **BASELINES, **{name: peer.name for name, peer in PEERS.items()}}
FLOOR = "Cramér-Rao figure, patches of r²"


@dataclass(frozen=True)
class Group:
    """Scenes that differ in the draw only."""

    shape: str
    radius: float
    snr: float
    variant: str
    draws: int

    @property
    def key(self) -> str:
        """Name the group in the result file."""
        return f"{self.shape}/{self.radius:g}/{self.variant}/{self.snr:g}"

    @property
    def planar(self) -> bool:
        """Whether the scenes are 2-D."""
        return self.shape in REPORTED_PLANAR

    def methods(self) -> list[str]:
        """Return the walls that can be had."""
        return [n for n in NAMES if n not in PEERS or self.planar or not PEERS[n].planar]

    def scenes(self) -> list[Scene]:
        """Return the scenes, by draw."""
        args = (self.shape, self.radius, self.snr)
        return [Scene(*args, draw, self.variant) for draw in range(self.draws)]


def hard(variant: str, draws: int, snr: float = 6.0, radius: float = 4.0) -> list[Group]:
    """Return the shapes under a hard condition: all but one, which takes minutes to render."""
    shapes = [name for name in REPORTED if name != "smooth_bifurcation"]
    return [Group(name, radius, snr, variant, draws) for name in shapes]


def conditions(draws: int, hard_draws: int) -> dict[str, list[Group]]:
    """Return what is asked: the plain cases by SNR, and the hard ones."""
    plain = {f"SNR {snr:g}": [Group(n, 4.0, snr, "plain", draws) for n in REPORTED] for snr in SNR}
    names = ("bias field", "neighbour", "dropout", "voxels 2:1:1")
    return {
        **plain,
        **{name: hard(name, hard_draws) for name in names},
        "Rician, SNR 3": hard("Rician", hard_draws, snr=3.0),
        "radius 2.5": hard("plain", hard_draws, radius=2.5),
        "radius 6": hard("plain", hard_draws, radius=6.0),
        "2-D": [Group(name, 8.0, 6.0, "plain", draws) for name in REPORTED_PLANAR],
    }


def floor_voxel(snr: float, radius: float, ndim: int) -> float:
    """Cramér-Rao s.d. of the wall averaged over a patch of one radius squared, in voxels.

    σ² h³ 2 √π s / (D² A) with A = r² on a surface and a length r on a curve; s includes the voxel
    box.
    """
    blur = math.sqrt(PSF**2 + 1.0 / 12.0)
    return math.sqrt(2.0 * math.sqrt(math.pi) * blur / radius ** (ndim - 1)) / snr


@dataclass(frozen=True, eq=False)
class Found:
    """A wall, its s.d. if it states one, and the CPU seconds it took."""

    phi: NDArray
    sigma: NDArray | None
    seconds: float


def timed(make: Callable[[], LevelSet | Refinement | NDArray]) -> Found:
    """Make a wall and take the processor's time."""
    clock = time.process_time()
    made = make()
    seconds = time.process_time() - clock
    if isinstance(made, Refinement):
        return Found(made.level_set.phi_mm, made.sigma_mm, seconds)
    if isinstance(made, LevelSet):
        return Found(made.phi_mm, made.sigma_mm, seconds)
    return Found(made, None, seconds)


def ours(image: Volume, start: LevelSet) -> dict[str, Callable[[], LevelSet | Refinement]]:
    """Return our walls, to be made."""

    def network() -> LevelSet:
        return LevelSet.from_probability(segment(image))

    found = cache(network)

    def flow(energy: str) -> Refinement:
        return refine(start, image, RefineSettings(energy=energy, iterations=FLOW_STEPS))

    return {
        "start": lambda: start,
        "network": network,
        "refined_network": lambda: calibrated(refine(found(), image)),
        "refined": lambda: calibrated(refine(start, image)),
        **{energy: partial(flow, energy) for energy in FLOWS},
    }


@cache
def tuned_settings() -> dict[str, dict[str, dict[str, Any]]]:
    """Read the settings that ``peers.py --tune`` chose."""
    tree: dict[str, dict[str, dict[str, Any]]]
    tree = json.loads((RESULTS / "peers_tuning.json").read_text())
    return {name: {key: {k: v for k, v in chosen.items() if k != "rms_voxel"}
                   for key, chosen in by.items()} for name, by in tree.items()}  # fmt: skip


@cache
def warm() -> None:
    """Compile once, so that no row pays for it."""
    for name in ("disc", "sphere"):
        scene = Scene(name, 4.0, 12.0, 99)
        for make in ours(scene.image(), scene.start()).values():
            make()


def judged(job: tuple[Group, list[str]]) -> tuple[Group, dict[str, list[list[float]]]]:
    """Judge some methods on the scenes of a group."""
    group, methods = job
    if set(methods) & set(OURS):
        warm()
    rows: dict[str, list[list[float]]] = {name: [] for name in methods}
    for scene in group.scenes():
        image, truth, start = scene.image(), scene.truth(), scene.start()
        grid, clean = image.grid, scaled(image)
        made = ours(image, start)
        surfaces = cache(partial(isosurfaces, clean, start.phi_mm, truth, grid))
        if "refined_network" in methods:
            segment(image)  # its time is the row's of the network
        for name in methods:
            if name in PEERS:
                settings = tuned_settings()[name][f"{grid.ndim}-D, SNR {scene.snr:g}"]
                peer = PEERS[name].run
                make = partial(peer, clean, start.phi_mm, grid.spacing_mm, **settings)
            elif name in BASELINES:
                make = partial(operator.getitem, surfaces(), name)
            else:
                make = made[name]
            rows[name].append(row(make, truth, image, scene.radius))
    return group, rows


def row(make: Callable[[], Any], truth: NDArray, image: Volume, radius: float) -> list[float]:
    """Return the figures of one wall; a lost one misses the truth by the lumen's radius."""
    grid = image.grid
    try:
        found = timed(make)
        errors = metrics.wall_errors(found.phi, truth, grid)
    except InputError:
        lost = radius / grid.h_min
        return [lost, lost, lost, lost, lost, 90.0, 1.0, 0.0]
    values = [errors[f"{name}_voxel"] for name in COLUMNS[:5]]
    values += [errors["normal_rms_deg"], max(errors["false_share"], errors["missed_share"])]
    values.append(found.seconds)
    if found.sigma is not None:
        covered = metrics.coverage(found.phi, truth, found.sigma, grid)
        values += [covered[name] for name in COVER]
    return [float(f"{value:.3g}") for value in values]


Rows = dict[str, dict[str, list[list[float]]]]


def averages(rows: Rows, groups: Iterable[Group], method: str) -> dict[str, float] | None:
    """Average the figures of a method over groups; nothing if some are missing."""
    found = [rows.get(method, {}).get(group.key) for group in groups]
    if not found or None in found:
        return None
    values = [line for part in found for line in part or []]
    columns = [*COLUMNS, *COVER][: min(len(line) for line in values)]
    return {name: float(np.mean([line[i] for line in values])) for i, name in enumerate(columns)}


def summary(rows: Rows, asked: dict[str, list[Group]]) -> dict[str, Any]:
    """Make the tables: the README's, the hard cases, every SNR, and the verdicts."""
    plain, harder = [f"SNR {snr:g}" for snr in SNR], list(asked)[len(SNR) :]
    known = {name: {c: averages(rows, asked[c], name) for c in asked} for name in NAMES}
    by_snr, table, hard_table, tail = [], [], [], []
    for method, name in NAMES.items():
        parts = [known[method][c] for c in plain]
        if all(parts):
            table.append(headline(name, [part for part in parts if part]))
            by_snr += [{"SNR": f"{snr:g}", "wall": name, **rounded(part)}
                       for snr, part in zip(SNR, parts, strict=True) if part]  # fmt: skip
        if any(known[method][c] for c in harder):
            for figure, lines in (("rms", hard_table), ("p95", tail)):
                cells = {c: part[figure] if (part := known[method][c]) else "" for c in harder}
                lines.append({"wall": name, **cells})
    floors = {f"rms, {c}": floor_voxel(snr, 4.0, 3) for c, snr in zip(plain, SNR, strict=True)}
    if table:
        table.append({key: floors.get(key, "") for key in table[0]} | {"wall": FLOOR})
    return {
        "ratios": ratios(known, plain),
        "table": table,
        "hard": hard_table,
        "hard_p95": tail,
        "against_the_best_peer": [line for c in asked for line in verdicts(known, c)],
        "by_snr": by_snr,
    }


def headline(name: str, parts: list[dict[str, float]]) -> dict[str, Any]:
    """Return a row of the README's table: rms by SNR, the rest at SNR 6."""
    middle = parts[1]
    covered = {title: f"{100 * middle[key]:.0f} %" if key in middle else ""
               for title, key in zip(("±1 s.d.", "±2 s.d."), COVER, strict=True)}  # fmt: skip
    return {
        "wall": name,
        **{f"rms, SNR {snr:g}": part["rms"] for snr, part in zip(SNR, parts, strict=True)},
        "95 %": middle["p95"],
        "max": middle["max"],
        "bias": middle["bias"],
        "normals °": f"{middle['normals']:.1f}",
        **covered,
        "CPU s": f"{middle['seconds']:.2f}" if middle["seconds"] >= 0.005 else "",
    }


def ratios(known: dict[str, dict[str, Any]], plain: list[str]) -> dict[str, dict[str, float]]:
    """Return the rms of our walls, averaged over shapes and SNR, over that of the yardsticks."""

    def over_snr(method: str) -> float | None:
        parts = [known[method][c] for c in plain]
        return float(np.mean([part["rms"] for part in parts])) if all(parts) else None

    yard = {name: over_snr(name) for name in BASELINES}
    yard["cramer_rao"] = float(np.mean([floor_voxel(snr, 4.0, 3) for snr in SNR]))
    return {
        name: {to: round(mine / by, 3) for to, by in yard.items() if by}
        for name in ("refined", "refined_network")
        if (mine := over_snr(name)) is not None
    }


def verdicts(known: dict[str, dict[str, Any]], condition: str) -> list[dict[str, Any]]:
    """Compare the refined wall with the best peer or baseline, figure by figure."""
    mine, lines = known["refined"][condition], []
    others = {n: part for n in [*PEERS, *BASELINES] if (part := known[n][condition])}
    if mine and others:
        for figure in ("rms", "p95", "max", "normals"):
            best = min(others, key=lambda n: others[n][figure])
            ratio = mine[figure] / others[best][figure]
            lines.append({"condition": condition, "figure": figure, "ours": mine[figure],
                          "best": others[best][figure], "peer": best, "ratio": ratio})  # fmt: skip
    return [rounded(line) for line in lines]


def rounded(line: dict[str, Any]) -> dict[str, Any]:
    """Keep four digits."""
    return {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in line.items()}


def text(result: dict[str, Any], rows: Rows) -> str:
    """Write the tables readably and one line for the rows of a group."""
    head = {k: [rounded(line) for line in v] if isinstance(v, list) else v
            for k, v in result.items()}  # fmt: skip
    return listed(head, rows)


def facts(given: argparse.Namespace) -> dict[str, Any]:
    """Return settings and versions."""
    packages = ("numpy", "scipy", "numba", "scikit-image", "SimpleITK")
    return {
        "draws": given.draws,
        "hard_draws": given.hard_draws,
        "psf_voxels": PSF,
        "start_rms_voxel": START_RMS,
        "shapes": [*REPORTED, *REPORTED_PLANAR],
        "columns": [*COLUMNS, *COVER],
        "peers": "settings: peers_tuning.json",
        "refine": RefineSettings().model_dump(),
        "versions": {name: version(name) for name in packages},
    }


def main() -> None:
    """Compute what is missing and write tables and figure."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--draws", type=int, default=10)
    options.add_argument("--hard-draws", type=int, default=3)
    options.add_argument("--redo", nargs="+", default=[], choices=[*NAMES, "ours"])
    options.add_argument("--only", nargs="+", choices=[*NAMES, "ours"], help="leave the rest")
    options.add_argument("--workers", type=int)
    given = options.parse_args()
    asked = conditions(given.draws, given.hard_draws)
    rows: Rows = json.loads(FILE.read_text()).get("rows", {}) if FILE.is_file() else {}
    redo, only = (named(chosen) for chosen in (given.redo, given.only or list(NAMES)))
    groups = list({group.key: group for part in asked.values() for group in part}.values())
    jobs = []
    for group in groups:
        missing = [
            m
            for m in group.methods()
            if m in only and (m in redo or len(rows.get(m, {}).get(group.key, [])) != group.draws)
        ]
        jobs += [(group, missing)] if missing else []
    for group, found in in_turn(judged, jobs, given.workers):
        for method, part in found.items():
            rows.setdefault(method, {})[group.key] = part
        line = ", ".join(f"{m} {np.mean([r[1] for r in part]):.3f}" for m, part in found.items())
        print(f"{group.key}: {line}", flush=True)
        save(rows, asked, given)
    save(rows, asked, given)
    figure(rows, asked)


def named(chosen: list[str]) -> set[str]:
    """Return the methods meant."""
    return {name for c in chosen for name in (OURS if c == "ours" else [c])}


def save(rows: Rows, asked: dict[str, list[Group]], given: argparse.Namespace) -> None:
    """Write the result file."""
    ordered = {name: rows[name] for name in NAMES if name in rows}
    result = {"settings": facts(given), **summary(ordered, asked)}
    write_bytes(FILE, text(result, ordered).encode(), overwrite=True)


def figure(rows: Rows, asked: dict[str, list[Group]]) -> None:
    """Draw the rms error of every method against SNR, and on the hard cases."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plain = [f"SNR {snr:g}" for snr in SNR]
    harder = list(asked)[len(SNR) :]
    fig, axes = plt.subplots(1, 2, figsize=(11, 4.2), width_ratios=(2, 3), layout="constrained")
    for n, (method, name) in enumerate(NAMES.items()):
        bold = method in ("refined", "refined_network")
        look: dict[str, Any] = {"color": plt.get_cmap("tab20")(n), "marker": "os^vDPX"[n % 7]}
        look |= {"lw": 2.5, "ms": 9} if bold else {"lw": 1.0, "ms": 5}
        for axis, names, line in ((axes[0], plain, "-"), (axes[1], harder, "")):
            parts = [averages(rows, asked[c], method) for c in names]
            shown = [(i, part["rms"]) for i, part in enumerate(parts) if part]
            if shown:
                label = name.strip("*") if axis is axes[1] else None
                axis.plot(*zip(*shown, strict=True), linestyle=line, label=label, **look)
    floors = [floor_voxel(snr, 4.0, 3) for snr in SNR]
    axes[0].plot(range(len(SNR)), floors, "k:", label=FLOOR)
    for axis, names in ((axes[0], plain), (axes[1], harder)):
        axis.set_yscale("log")
        axis.set_xticks(range(len(names)), names)
    axes[1].tick_params(axis="x", labelrotation=25)
    plt.setp(axes[1].get_xticklabels(), ha="right")
    for axis in axes:
        axis.grid(alpha=0.3, which="both")
    axes[0].set_ylabel("wall error, rms, voxels")
    fig.legend(loc="outside right upper", fontsize=7)
    fig.savefig(RESULTS / "wall_error.png", dpi=90)
    plt.close(fig)


if __name__ == "__main__":
    main()
