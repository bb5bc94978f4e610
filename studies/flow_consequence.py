"""What is the wall worth in flow? ``python studies/flow_consequence.py``.

Vessels that repeat themselves in a periodic box, so that a flow needs no inlet: straight, oblique
and winding tubes, a stenosis, and a tube that forks and joins again. Each is imaged with a point
spread of 0.6 voxels, without noise and at SNR 6; every recipe finds the wall from that image
alone; and peclet-flow (``pip install "vesselseg[flow]"``), a cut-cell solver of others, drives
Stokes flow through the wall by one pressure gradient. Errors are those against the same solver on
the exact wall. Before a recipe sees an image it is repeated by eight voxels, so that the walls
repeat too: for the oblique tube on every side, which leaves its repetitions 10 to 17 voxels away
from it; for the others along the axis alone. Across it they lie in 16 voxels of plain ground on
every side, as a vessel by itself does: in a lattice of thin tubes, 10 voxels apart, the network
misses much, and that is another question.

Wall shear stress is that at one flow rate, at the feet of the exact wall's points on each wall.
The flow is linear: the pressure drop at one flow rate is off by the inverse of the flow rate at
one pressure drop.

A wall that parts the lumen lets nothing through: it is *severed*, its flow rate is off by -100 %
and it has no shear at that flow rate. A wall whose flow does not settle has neither, and is
counted.

A second opinion, scikit-fem with the extra ``mesh``: the walls of a straight tube become priors,
their surfaces are meshed by Gmsh and Stokes flow is solved by finite elements that fit the wall,
with the examples of this repository.

Rows are kept in the result file and only missing ones are computed.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_PROC_BIND", "false")  # else the flow solver's runtime complains

import numpy as np
from numpy.typing import NDArray
from peers import WIDTHS, blurred, from_mask
from scenes import PSF, RESULTS, ROOT, listed, scaled
from scipy.ndimage import map_coordinates

from vesselseg import metrics, phantoms
from vesselseg.fields import LevelSet, Refinement, StopReason, Volume
from vesselseg.grid import Grid
from vesselseg.infer import segment
from vesselseg.io.atomic import write_bytes
from vesselseg.phantoms.shapes import Points, tube_part
from vesselseg.pipeline import build_prior
from vesselseg.prior.boundary import BoundaryPrior
from vesselseg.solvers.redistancing import redistance
from vesselseg.solvers.refine import refine
from vesselseg.solvers.settings import RefineSettings
from vesselseg.synth.forward import ForwardModel, image_of, phantom_occupancy

FILE = RESULTS / "flow_consequence.json"
WRAP = 8  # voxels of the repeated image about the period
GROUND = 16  # voxels of plain ground about a vessel that repeats itself along its axis alone
FREE = 5.0  # voxels between a lumen and the face of its box
OFF_GRID = (0.13, -0.21)  # of the axes, voxels
DEPTHS = (1.5, 2.5)  # voxels inside the wall where the velocity is read for the shear
SETTLED = 1e-5  # relative change of a flow rate a step, looked at every few steps
EVERY, MOST_STEPS = 10, 1000
RADII = (3.0, 6.0, 9.0)  # of the other vessels, voxels
SEVERED = 0.01  # of the exact flow rate: less is none
GOAL = {"4.2": (1.0, 2.5), "6.2": (0.7, 1.5), "9.3": (0.5, 1.0)}  # %, noise-free and SNR 6
WALLS = {
    "mask": "network's mask, EDT",
    "half": "mask at half contrast, EDT",
    "fast_marching": "fast marching of the image",
    "isosurface": "Gaussian isosurface, best width",
    "chan_vese": "Chan-Vese",
    "prior": "**prior**",
}
COLUMNS = ("flow %", "mean shear %", "shear rms %", "wall rms voxel")
Row = list[float | None]  # a wall's errors in that order; None = there is no such figure


class UnsettledError(RuntimeError):
    """A flow did not settle."""


@dataclass(frozen=True, eq=False)
class Vessel:
    """A lumen in a periodic box of unit voxels, with its corner at the origin.

    Parameters
    ----------
    distance : callable
        Points ``(n, 3)``, x first, to signed distances; it knows the repetitions near the box.
    size : tuple of int
        Voxels of the box (nx, ny, nz).
    direction : (3,) array
        Unit vector of the pressure gradient.
    poiseuille : float
        Flow rate at unit gradient and viscosity where mathematics knows it, else nan.
    alone : bool
        Whether the image shows no repetitions across z.
    """

    distance: Callable[[Points], Points]
    size: tuple[int, int, int]
    direction: Points
    poiseuille: float = math.nan
    alone: bool = False

    @property
    def ground(self) -> tuple[int, int, int]:
        """Voxels of plain ground on each side of the box, x first."""
        return (GROUND, GROUND, 0) if self.alone else (0, 0, 0)

    @property
    def margin(self) -> tuple[int, int, int]:
        """Voxels that the image shows on each side of the box, x first."""
        return (GROUND, GROUND, WRAP) if self.alone else (WRAP, WRAP, WRAP)

    def grid(self, beyond: tuple[int, int, int] = (0, 0, 0)) -> Grid:
        """Return the voxels of the box, and as many beyond it on each side."""
        shape = [n + 2 * more for n, more in zip(self.size, beyond, strict=True)]
        return Grid.from_spacing(shape[::-1], 1.0, [0.5 - more for more in beyond])

    def core(self, field: NDArray) -> NDArray:
        """Return what the box holds of a field on the grid of the image."""
        return field[tuple(slice(more, -more) for more in self.margin[::-1])]

    def imaged(self, share: NDArray, model: ForwardModel, draw: int) -> Volume:
        """Image the lumen's share of the voxels of the box, repeated and on its ground."""
        grounded = np.pad(share, [(more, more) for more in self.ground[::-1]])
        values = image_of(grounded, self.grid(self.ground), model, draw, "flow").values
        rest = [a - b for a, b in zip(self.margin, self.ground, strict=True)]
        whole = np.pad(values, [(more, more) for more in rest[::-1]], mode="wrap")
        return Volume(whole, self.grid(self.margin))

    def world(self, index: Points, normal: Points) -> tuple[Points, Points]:
        """Return index points and normals on the grid of the image in the box, x first."""
        return index[:, ::-1] + 0.5 - np.array(self.margin), normal[:, ::-1]

    @property
    def section(self) -> float:
        """Mean velocity of the box to flow rate: the volume of the box over the period."""
        period = min(n / abs(d) for n, d in zip(self.size, self.direction, strict=True) if d)
        return float(np.prod(self.size)) / period


def even(length: float) -> int:
    """Round up to a multiple of four, which the solver's multigrid likes."""
    return 4 * math.ceil(length / 4)


def straight(radius: float) -> Vessel:
    """Tube along z."""
    return swaying(radius, 16, poiseuille=math.pi * radius**4 / 8)


def oblique(radius: float) -> Vessel:
    """Tube along (0, 1, 1)."""
    n = max(32, even((2 * radius + 2 * FREE - 1) * math.sqrt(2)))
    along = np.array([0.0, 1.0, 1.0]) / math.sqrt(2)
    centre = n / 2 + np.array([*OFF_GRID, 0.0])

    def distance(x: Points) -> Points:
        best = np.full(len(x), np.inf)
        for shift in (-n, 0, n):
            offset = x - centre - np.array([0.0, shift, 0.0])
            across = offset - (offset @ along)[:, None] * along
            best = np.minimum(best, np.linalg.norm(across, axis=1))
        return best - radius

    return Vessel(distance, (n, n, n), along, math.pi * radius**4 / 8)


def winding(radius: float) -> Vessel:
    """Tube about a wave of amplitude 0.75 r and length 10 r: radius of curvature 3.4 r."""
    return swaying(radius, even(10 * radius), sway=1.5 * radius)


def stenosis(radius: float) -> Vessel:
    """Tube narrowed by 40 percent of its radius over 2.4 r."""
    return swaying(radius, even(8 * radius), dip=0.4)


def fork(radius: float) -> Vessel:
    """Two tubes that part by 3.2 r and join again, at first 0.8 r thick: a Y at each end."""
    return swaying(0.8 * radius, even(12 * radius), sway=1.6 * radius, branches=(1.0, -1.0))


def swaying(
    radius: float,
    length: int,
    *,
    sway: float = 0.0,
    dip: float = 0.0,
    branches: tuple[float, ...] = (1.0,),
    poiseuille: float = math.nan,
) -> Vessel:
    """Return tubes along z about x = ± sway (1 - cos(2πz/L)) / 2 of radius r (1 - dip e^...)."""
    rate, periods = 2 * math.pi / length, 3
    reach = radius + FREE
    width, depth = even(2 * reach + len(branches) * sway), even(2 * reach)
    start = reach if len(branches) == 1 else width / 2

    def curve(sign: float, t: Points) -> tuple[Points, Points, Points]:
        z, speed, zero = (periods * t - 1) * length, periods * length, np.zeros_like(t)
        bend = sign * sway / 2 * rate * speed
        c = (start + OFF_GRID[0] + sign * sway / 2 * (1 - np.cos(rate * z)),
             zero + depth / 2 + OFF_GRID[1], z)  # fmt: skip
        d = (bend * np.sin(rate * z), zero, zero + speed)
        dd = (bend * rate * speed * np.cos(rate * z), zero, zero)
        return np.stack(c, axis=1), np.stack(d, axis=1), np.stack(dd, axis=1)

    def thickness(t: Points) -> tuple[Points, Points, Points]:
        speed, middle = periods * length, np.mod(periods * t, 1.0) - 0.5
        spread = 1.2 * radius
        z = middle * length / spread
        loss = dip * radius * np.exp(-(z**2) / 2)
        return (radius - loss, loss * z / spread * speed,
                loss * (1 - z**2) / spread**2 * speed**2)  # fmt: skip

    tubes = [tube_part(partial(curve, sign), thickness, 600) for sign in branches]

    def distance(x: Points) -> Points:
        return np.asarray(np.min([tube.distance(x)[0] for tube in tubes], axis=0))

    return Vessel(distance, (width, depth, length), np.array([0.0, 0.0, 1.0]), poiseuille, True)


SHAPES = {f.__name__: f for f in (straight, oblique, winding, stenosis, fork)}


@dataclass(frozen=True)
class Group:
    """Images of one vessel that differ in the draw of the noise only."""

    shape: str
    radius: float
    noisy: bool
    draws: int

    @property
    def key(self) -> str:
        """Name the group in the result file."""
        return f"{self.shape}/{self.radius:g}/{'SNR 6' if self.noisy else 'noise-free'}"


def asked(quick: bool) -> list[Group]:
    """Return what the study asks for; the figures to reach first."""
    if quick:
        return [Group("oblique", 4.2, False, 1), Group("oblique", 4.2, True, 1)]
    main = [("oblique", r, 10) for r in (4.2, 6.2, 9.3, 3.0)]
    rest = [(s, r, 3) for r in RADII for s in SHAPES if s != "oblique"]
    return [Group(s, r, noisy, n if noisy else 1)
            for s, r, n in main + rest for noisy in (False, True)]  # fmt: skip


def walls(image: Volume, wall: metrics.Wall) -> dict[str, Callable[[], NDArray]]:
    """Return the recipes: each gives a signed distance on the grid of the image."""
    grid = image.grid
    found = segment(image)
    start = LevelSet.from_probability(found)
    clean = scaled(image)

    def near_start(field: NDArray) -> NDArray:
        """Keep what lies near the network's wall, so that noise elsewhere makes no islands."""
        return np.where(np.abs(start.phi_mm) > 3.0, start.phi_mm, field)

    def best_isosurface() -> NDArray:
        """Choose where the true wall runs: islands that the network left elsewhere do not count."""
        made = [near_start(0.5 - blurred(clean, grid.spacing_mm, width)) for width in WIDTHS]
        fields = (redistance(field, 1.0) for field in made)
        return min(fields, key=lambda phi: float(np.mean(metrics.sample(phi, wall.index) ** 2)))

    def chan_vese() -> NDArray:
        settings = RefineSettings(energy="chan_vese", iterations=60)
        return refine(start, image, settings).level_set.phi_mm

    return {
        "mask": lambda: from_mask(found.values > 0.5, grid.spacing_mm, 0.0),
        "half": lambda: from_mask(near_start(0.5 - clean) < 0, grid.spacing_mm, 0.0),
        "fast_marching": lambda: redistance(near_start(0.5 - clean), 1.0, method="fmm"),
        "isosurface": best_isosurface,
        "chan_vese": chan_vese,
        "prior": lambda: build_prior(image).phi_mean_mm,
    }


@dataclass(frozen=True, eq=False)
class Flow:
    """Stokes flow at unit viscosity and unit pressure gradient through one wall."""

    rate: float
    velocity: tuple[NDArray, ...]
    seconds: float

    @classmethod
    def through(cls, phi: NDArray, vessel: Vessel, least: float = 0.0) -> Flow:
        """Solve; ``phi`` is one period, negative in the lumen; less than ``least`` is no flow."""
        import peclet.flow

        clock = time.process_time()
        solver = peclet.flow.Solver(vessel.size, extent=[float(n) for n in vessel.size])
        solver.set_rho(1.0)
        solver.set_mu(1.0)
        solver.set_advection(False)
        solver.set_dt(50.0)
        solver.set_body_force(vessel.direction.tolist())
        solver.set_solid(np.asfortranarray(-phi.transpose(2, 1, 0), dtype=np.float64), True)

        def rate() -> float:
            parts = (solver.get_u(), solver.get_v(), solver.get_w())
            return vessel.section * float(vessel.direction @ [part.mean() for part in parts])

        before, now = 0.0, 1.0
        for _ in range(MOST_STEPS // EVERY):
            for _ in range(EVERY):
                solver.step()
            before, now = now, rate()
            if abs(now - before) < EVERY * SETTLED * max(abs(now), least):
                break
        else:
            raise UnsettledError(f"the flow did not settle in {MOST_STEPS} steps")
        parts = tuple(np.array(p) for p in (solver.get_u(), solver.get_v(), solver.get_w()))
        return cls(rate(), parts, time.process_time() - clock)

    def at(self, x: Points) -> Points:
        """Interpolate the velocity (n, 3) at points, each component between its own faces."""
        found = []
        for axis, part in enumerate(self.velocity):
            index = x - 0.5
            index[:, axis] += 0.5
            found.append(map_coordinates(part, index.T, order=1, mode="grid-wrap"))
        return np.stack(found, axis=1)

    def shear(self, x: Points, normal: Points) -> Points:
        """Return the wall shear stress (n,) at one flow rate, from two speeds under the wall.

        The speed is a parabola of the depth that vanishes at the wall, as in a tube.
        """
        speeds = []
        for depth in DEPTHS:
            u = self.at(x - depth * normal)
            u -= (u * normal).sum(1, keepdims=True) * normal
            speeds.append(np.linalg.norm(u, axis=1))
        (a, b), (ua, ub) = DEPTHS, speeds
        return (ua * b**2 - ub * a**2) / (a * b * (b - a)) / self.rate


@dataclass(frozen=True, eq=False)
class Reference:
    """The exact wall of a vessel: its distance, points, flow and shear."""

    vessel: Vessel
    share: NDArray
    truth: NDArray
    wall: metrics.Wall
    flow: Flow
    shear: Points

    @classmethod
    def of(cls, vessel: Vessel) -> Reference:
        """Make it."""
        solid = phantoms.custom(vessel.distance, (0, 0, 0), vessel.size)
        share = phantom_occupancy(solid, vessel.grid(), PSF)
        truth = solid.phi(vessel.grid(vessel.margin))
        wall, margin = metrics.wall(truth, 1.0), vessel.margin[::-1]
        own = ((wall.index >= margin) & (wall.index < np.array(truth.shape) - margin)).all(axis=1)
        wall = metrics.Wall(wall.index[own], wall.normal[own], wall.area_mm2[own], wall.spacing_mm)
        flow = Flow.through(vessel.core(truth), vessel)
        shear = flow.shear(*vessel.world(wall.index, wall.normal))
        return cls(vessel, share, truth, wall, flow, shear)

    def image(self, noisy: bool, draw: int) -> Volume:
        """Image the vessel."""
        noise = {"snr": 6.0} if noisy else {"noise": "none"}
        return self.vessel.imaged(self.share, ForwardModel(psf_voxels=PSF, **noise), draw)

    def judged(self, phi: NDArray) -> Row:
        """Return the errors of a wall, in the order of ``COLUMNS``."""
        area, least = self.wall.area_mm2, SEVERED * self.flow.rate
        offset = metrics.sample(phi, self.wall.index)
        rms = math.sqrt(np.average(offset**2, weights=area))
        try:
            flow = Flow.through(self.vessel.core(phi), self.vessel, least)
        except UnsettledError:
            return [None, None, None, rms]
        if abs(flow.rate) < least:
            return [-100.0, None, None, rms]
        normal = metrics.unit(metrics.gradient_at(phi, self.wall.index, self.wall.spacing_mm))
        feet = self.wall.index - offset[:, None] * normal
        shear = flow.shear(*self.vessel.world(feet, normal))
        mean = np.average(self.shear, weights=area)
        change = (shear - self.shear) / mean
        return [
            100.0 * (flow.rate / self.flow.rate - 1.0),
            100.0 * float(np.average(change, weights=area)),
            100.0 * math.sqrt(np.average(change**2, weights=area)),
            rms,
        ]


Rows = dict[str, dict[str, list[Row]]]


def compute(
    group: Group, draw: int, exact: Reference, names: list[str], have: dict[str, list[Row]]
) -> None:
    """Judge some recipes on one image of a group."""
    recipes = walls(exact.image(group.noisy, draw), exact.wall)
    for name in names:
        found = exact.judged(recipes[name]())
        have.setdefault(name, []).append([v if v is None else float(f"{v:.4g}") for v in found])


def second_opinion(noisy: bool) -> list[dict[str, Any]]:
    """Compare both solvers on the walls of a straight tube of radius 4.2."""
    vessel = swaying(4.2, 24, poiseuille=math.pi * 4.2**4 / 8)
    exact = Reference.of(vessel)
    recipes = walls(exact.image(noisy, 0), exact.wall)
    fitted = fitted_rate(vessel.core(exact.truth))
    lines = []
    for name in ("mask", "chan_vese", "prior"):
        phi = vessel.core(recipes[name]())
        rates = {
            "peclet-flow %": Flow.through(phi, vessel).rate / exact.flow.rate,
            "scikit-fem %": fitted_rate(phi) / fitted,
            "scikit-fem, exact wall, against Poiseuille %": fitted / vessel.poiseuille,
        }
        line = {title: round(100.0 * (float(rate) - 1.0), 2) for title, rate in rates.items()}
        lines.append({"image": "SNR 6" if noisy else "noise-free", "wall": WALLS[name], **line})
    return lines


def fitted_rate(phi: NDArray) -> float:
    """Flow rate at unit gradient and viscosity by finite elements, in voxels."""
    sys.path.insert(0, str(ROOT / "examples"))
    import stokes
    import volume_mesh

    grid, band = Grid.from_spacing(phi.shape, 1.0), 4.6
    level = LevelSet(np.clip(redistance(phi, 1.0, band_mm=band), -band, band), grid, band)
    wall = Refinement(level, np.full(phi.shape, 0.1), StopReason.CONVERGED, 0)
    prior = BoundaryPrior.from_refinement(wall, Volume(-phi, grid))
    centres = [row["centre_m"] for row in prior.openings]
    name = prior.openings[0]["name"].decode()
    with tempfile.TemporaryDirectory() as folder:
        volume_mesh.mesh(prior, Path(folder) / "lumen.msh")
        lumen = stokes.MeshTet.load(Path(folder) / "lumen.msh")
    rates = stokes.flow_rates(lumen, name)
    length = float(np.linalg.norm(centres[0] - centres[1]))
    return -rates[name] * stokes.VISCOSITY * length * 1e12  # metres to voxels of a millimetre


def headline(rows: Rows) -> list[dict[str, str]]:
    """Return the README's table: error of the flow rate of the oblique tube, and of its shear."""
    radii = [r for r in GOAL if f"oblique/{r}/SNR 6" in rows]
    lines = []
    for name, title in WALLS.items():
        line = {"wall": title}
        for noise in ("noise-free", "SNR 6"):
            for r in radii:
                line[f"{noise}, r = {r}"] = spread(rows[f"oblique/{r}/{noise}"].get(name, []), 0)
        for r in radii[1:2]:
            line[f"shear rms, SNR 6, r = {r}"] = spread(rows[f"oblique/{r}/SNR 6"].get(name, []), 2)
        lines.append(line)
    return lines


def known(rows: list[Row], column: int) -> list[float]:
    """Return the figures of a column that there are."""
    return [row[column] for row in rows if row[column] is not None]


def spread(rows: list[Row], column: int) -> str:
    """Write mean ± s.d. of a column, over the walls that have such a figure."""
    values = known(rows, column)
    if not values:
        return "none" if rows else ""
    mean = f"{np.mean(values):{'+' if column < 2 else ''}.2f}"
    return f"{mean} ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else mean


def draws(rows: list[Row]) -> str:
    """Write how many walls there are, and how many of them are severed or did not settle."""
    lost = {"severed": sum(row[:2] == [-100.0, None] for row in rows),
            "not settled": sum(row[0] is None for row in rows)}  # fmt: skip
    return ", ".join([str(len(rows)), *(f"{n} {word}" for word, n in lost.items() if n)])


def every_vessel(rows: Rows) -> list[dict[str, str]]:
    """Return one line for each vessel and wall."""
    lines = []
    for key, by in rows.items():
        shape, radius, noise = key.split("/")
        for name in (name for name in WALLS if by.get(name)):
            part = by[name]
            figures = {title: spread(part, i) for i, title in enumerate(COLUMNS)}
            open_ = (flow for flow in known(part, 0) if flow > -100.0)
            drop: list[Row] = [[100.0 * (1.0 / (1.0 + flow / 100.0) - 1.0)] for flow in open_]
            lines.append({"vessel": shape, "radius": radius, "image": noise, "wall": WALLS[name],
                          "draws": draws(part), "pressure drop %": spread(drop, 0) or "none",
                          **figures})  # fmt: skip
    return lines


def goals(rows: Rows) -> list[dict[str, Any]]:
    """Compare the mean error of the flow rate through the prior's wall with the goal."""
    lines = []
    for radius, limits in GOAL.items():
        for noise, limit in zip(("noise-free", "SNR 6"), limits, strict=True):
            part = rows.get(f"oblique/{radius}/{noise}", {}).get("prior")
            if part:
                mean = abs(float(np.mean(known(part, 0))))
                lines.append({"radius": radius, "image": noise, "draws": len(part),
                              "mean flow error %": round(mean, 3), "goal %": limit,
                              "reached": mean <= limit})  # fmt: skip
    return lines


def text(rows: Rows, exact: dict[str, Any], second: list[dict[str, Any]]) -> str:
    """Write the result readably, one line for the draws of a wall."""
    head = {
        "goals": goals(rows),
        "table": headline(rows),
        "second_opinion": second,
        "vessels": every_vessel(rows),
        "columns": list(COLUMNS),
        "exact": exact,
        "versions": {name: version(name) for name in ("peclet-flow", "numpy", "numba")},
    }
    return listed(head, rows)


def draw(rows: Rows, file: Path) -> None:
    """Draw the error of the flow rate over the radius, and that of the shear of every vessel."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure = plt.figure(figsize=(11, 7), layout="constrained")
    upper, lower = figure.subfigures(2, 1)
    for axis, noise in zip(upper.subplots(1, 2), ("noise-free", "SNR 6"), strict=True):
        draw_oblique(axis, rows, noise)
    every = lower.subplots(1, len(RADII), sharey=True)
    for axis, radius in zip(every, RADII, strict=True):
        draw_vessels(axis, rows, radius)
    every[0].set_ylabel("shear, rms error, % of the mean")
    figure.legend(*every[1].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.savefig(file, dpi=80)
    plt.close(figure)


def draw_oblique(axis: Any, rows: Rows, noise: str) -> None:
    """Draw the error of the flow rate through the oblique tube."""
    radii = sorted((k.split("/")[1] for k in rows if k.startswith("oblique/") and noise in k),
                   key=float)  # fmt: skip
    for name, title in WALLS.items():
        parts = [known(rows[f"oblique/{r}/{noise}"].get(name, []), 0) for r in radii]
        x = [float(r) for r, part in zip(radii, parts, strict=True) if part]
        axis.errorbar(x, [np.mean(v) for v in parts if v], [np.std(v) for v in parts if v],
                      marker="o", capsize=3, label=title.strip("*"))  # fmt: skip
    axis.axhline(0.0, color="black", linewidth=0.5)
    axis.set(title=f"oblique tube, {noise}", xlabel="radius, voxels", ylabel="flow rate, %")
    axis.set_yscale("symlog", linthresh=2.0)


def draw_vessels(axis: Any, rows: Rows, radius: float) -> None:
    """Draw the rms error of the shear of vessels of about one radius; lost walls are counted."""
    sizes = {s: min((float(k.split("/")[1]) for k in rows if k.startswith(f"{s}/")),
                    key=lambda r: abs(r - radius), default=0.0) for s in SHAPES}  # fmt: skip
    for number, (name, title) in enumerate(WALLS.items()):
        parts = [rows.get(f"{s}/{r:g}/SNR 6", {}).get(name, []) if abs(r - radius) < 0.5 else []
                 for s, r in sizes.items()]  # fmt: skip
        place = np.arange(len(parts)) + 0.14 * (number - 2.5)
        heights = [float(np.mean(known(part, 2) or [0.0])) for part in parts]
        axis.bar(place, heights, 0.13, label=title.strip("*"))
        for x, height, part in zip(place, heights, parts, strict=True):
            lost = len(part) - len(known(part, 2))
            if lost:
                axis.text(x, height, f"{lost} lost", rotation=90, ha="center", va="bottom", size=7)
    axis.set_xticks(range(len(sizes)), list(sizes), rotation=20)
    axis.set_title(f"wall shear stress, SNR 6, radius {radius:g}")


def about(exact: Reference) -> dict[str, Any]:
    """Return what is kept of the exact wall."""
    known, rate = exact.vessel.poiseuille, exact.flow.rate
    error = round(100 * (rate / known - 1), 3) if known == known else None
    return {"box": list(exact.vessel.size), "flow rate": float(f"{rate:.6g}"),
            "against Poiseuille %": error}  # fmt: skip


def main() -> None:
    """Compute what is missing and write tables and figure."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--quick", action="store_true", help="one vessel, a minute; keeps nothing")
    options.add_argument("--redo", nargs="+", default=[], choices=WALLS)
    given = options.parse_args()
    kept = json.loads(FILE.read_text()) if FILE.is_file() and not given.quick else {}
    rows: Rows = kept.get("rows", {})
    for have in rows.values():
        for name in given.redo:
            have.pop(name, None)
    vessels: dict[str, Any] = kept.get("exact", {})
    second: list[dict[str, Any]] = [] if given.redo else kept.get("second_opinion", [])

    def save() -> None:
        if not given.quick:
            write_bytes(FILE, text(rows, vessels, second).encode(), overwrite=True)

    if not (given.quick or second):
        second += second_opinion(False) + second_opinion(True)
        save()
    made = lru_cache(maxsize=1)(lambda shape, radius: Reference.of(SHAPES[shape](radius)))
    for group in asked(given.quick):
        have = rows.setdefault(group.key, {})
        for number in range(group.draws):
            names = [n for n in WALLS if len(have.get(n, [])) <= number]
            if names:
                exact = made(group.shape, group.radius)
                vessels[f"{group.shape}/{group.radius:g}"] = about(exact)
                compute(group, number, exact, names, have)
                save()
        for name in WALLS:
            print(group.key, name, *(spread(have[name], i) for i in range(len(COLUMNS))),
                  sep="\t", flush=True)  # fmt: skip
    if not given.quick:
        draw(rows, FILE.with_suffix(".png"))
    for line in goals(rows) + second:
        print(line)


if __name__ == "__main__":
    main()
