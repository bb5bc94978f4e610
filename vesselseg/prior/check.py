"""The invariants of a prior file, each by number and name.

The numbers are those of the format's documentation. An error makes the file unfit for a solver, a
warning is for its user to judge.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .. import wall_geometry as geometry
from ..errors import DataError
from ..io.guard import read_bytes_checked
from ..io.hdf5_guard import guard_hdf5
from ..meridian import Meridian
from .boundary import ABSOLUTE_PATH, BoundaryPrior
from .cut import CAP_TOLERANCE
from .fields import EDGE_VOXELS, cap_points, columns_of, edge_distance, quality_figures, spacing_of
from .file import MAX_BYTES, decode, encode, is_assembly_link, semantic_fault
from .revolved import ring_vectors, ring_volume
from .surface import area_vectors, enclosed_volume, is_closed
from .vtk import vtk_fault

PathLike = str | os.PathLike[str]
Level = Literal["error", "warning"]
Outcome = tuple[Level, bool, str]

ROUNDING = 1e-3
KIND_NAMES = ("unknown", "inlet", "outlet")
OPENING_NAME = re.compile(rb"[a-z][a-z0-9_]*")


@dataclass(frozen=True)
class Finding:
    """The outcome of one invariant; ``ok`` False at level ``error`` makes the file unfit."""

    id: int
    name: str
    level: Level
    ok: bool
    message: str


@dataclass(frozen=True, eq=False)
class Subject:
    """A prior under examination, lengths in m, with what several invariants need."""

    prior: BoundaryPrior
    data: bytes
    deep: bool
    affine: NDArray[np.float64]
    spacing: tuple[float, ...]
    gradients: list[NDArray[np.floating]]

    @property
    def h(self) -> float:
        """Largest voxel size."""
        return max(self.spacing)

    @property
    def rows(self) -> NDArray[np.float64] | None:
        """Distances of the rows from an axis of revolution, in rows; None without one."""
        return geometry.rows(len(self.phi)) if self.prior.axisymmetric else None

    def areas(self, faces: NDArray[Any]) -> NDArray[np.floating]:
        """Area times outward normal of faces, of an axis of revolution what they sweep."""
        measure = ring_vectors if self.prior.axisymmetric else area_vectors
        return measure(self.prior.vertices_m, faces, self.affine)

    @property
    def phi(self) -> NDArray[np.float32]:
        """Mean signed distance."""
        return self.prior.phi_mean_m

    def array(self, path: str) -> NDArray[Any]:
        """Return a dataset."""
        return self.prior.arrays[path]

    def of(self, path: str) -> Mapping[str, Any]:
        """Return the attributes of a group or dataset."""
        return self.prior.attributes[path]

    @property
    def cell_label(self) -> NDArray[np.uint8]:
        """Label of each face, in 2-D of each edge."""
        return self.array("/surface/face_label" if self.phi.ndim == 3 else "/surface/edge_label")

    def index(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Map world points (n, 3) to index points in array order."""
        ijk = (points - self.affine[:3, 3]) @ np.linalg.inv(self.affine[:3, :3]).T
        return ijk[:, : self.phi.ndim][:, ::-1]

    @property
    def openings(self) -> NDArray[Any]:
        """Table of inlets and outlets."""
        return self.array("/boundary/openings")


def check(source: PathLike | BoundaryPrior, deep: bool = False) -> list[Finding]:
    """Examine a prior file, or a prior as it would be written.

    Parameters
    ----------
    source : path-like or BoundaryPrior
    deep : bool
        Draw 200 samples too and compare their spread with ``phi_std``.

    Returns
    -------
    list of Finding
        In the order of the numbers; a number may come twice, as an error and as a warning. A file
        that cannot be read gives number 1 alone.
    """
    path = None if isinstance(source, BoundaryPrior) else source
    try:
        if isinstance(source, BoundaryPrior):
            data = encode(source.arrays, source.attributes)
        else:
            data = read_bytes_checked(source, limit=MAX_BYTES)
        prior = BoundaryPrior(*decode(data, path, sane=False))
        fault = semantic_fault(prior.arrays, prior.attributes)
    except DataError as error:
        return [Finding(1, "readable", "error", False, error.line())]
    phi, affine = prior.phi_mean_m, prior.arrays["/grid/ijk_to_world"]
    spacing = spacing_of(affine, phi.ndim)
    gradients = geometry.gradient(phi, spacing, prior.axisymmetric)
    subject = Subject(prior, data, deep, affine, spacing, gradients)
    findings = [Finding(1, "readable", "error", not fault, fault or "whole and consistent")]
    findings += [Finding(1, "version", "warning", False, note) for note in prior.notes]
    for number, (name, examine) in INVARIANTS.items():
        outcomes = examine(subject)
        findings += [Finding(number, name, level, bool(ok), text) for level, ok, text in outcomes]
    return findings


def _topology(s: Subject) -> Iterator[Outcome]:
    mask = s.phi < 0
    found, stored = geometry.topology(mask, s.rows), s.of("/geometry")
    figures = {n: getattr(found, n) for n in ("n_components", "euler", "genus")}
    wrong = [f"{n} {stored[n]}, is {v}" for n, v in figures.items() if stored[n] != v]
    wrong += ["mask"] if not np.array_equal(s.array("/geometry/mask") != 0, mask) else []
    same = np.array_equal(s.array("/geometry/component"), found.component)
    wrong += [] if same else ["component"]
    yield "error", not wrong, "; ".join(wrong) or ", ".join(f"{n} {v}" for n, v in figures.items())
    yield "warning", found.n_components == 1, f"{found.n_components} component(s)"


def _eikonal(s: Subject) -> Iterator[Outcome]:
    distance = np.abs(s.phi)
    near = (distance > s.h) & (distance < 3 * s.h)
    slope = np.sqrt(np.sum([np.square(g[near], dtype=np.float64) for g in s.gradients], axis=0))
    if slope.size == 0:
        yield "error", False, "no voxel between one and three voxels from the wall"
        return
    median, p95 = float(np.median(slope)), float(np.percentile(np.abs(slope - 1), 95))
    yield "error", 0.97 <= median <= 1.03, f"median |grad phi| {median:.4f}, need 0.97 to 1.03"
    yield "warning", p95 <= 0.15, f"95 % of | |grad phi| - 1 | below {p95:.3f}, want 0.15"
    if (viscous := s.prior.arrays.get("/geometry/phi_viscous")) is not None:
        moved = np.count_nonzero((viscous < 0) != (s.phi < 0))
        yield "error", not moved, f"phi_viscous has the sign of phi_mean but in {moved} voxels"


def _normals(s: Subject) -> Iterator[Outcome]:
    near = np.abs(s.phi) < 2 * s.h
    recomputed = geometry.unit_normals(s.gradients, near, columns_of(s.affine))[near].astype(
        np.float64
    )
    normal = s.array("/geometry/normal")[near].astype(np.float64)
    along = np.sum(normal * recomputed, axis=1)
    length = np.abs(np.linalg.norm(normal, axis=1) - 1.0).max(initial=0.0)
    low = float(np.percentile(along, 1)) if along.size else 0.0
    text = f"1 % of n . grad phi below {low:.4f}, need 0.98; |n| off by at most {length:.1e}"
    yield "error", low >= 0.98 and length <= 1e-3, text


def _band(s: Subject) -> Iterator[Outcome]:
    half = float(s.of("/geometry/phi_mean")["band_halfwidth_m"])
    index = np.flatnonzero(np.abs(s.phi) <= half)
    same = np.array_equal(s.array("/geometry/band_index"), index)
    text = f"{index.size} voxels within {half / s.h:.2f} h, need at least 4 h"
    yield "error", same and half >= 4.0 * s.h * (1 - 1e-6), text


def _volume_fraction(s: Subject) -> Iterator[Outcome]:
    fraction = s.array("/geometry/volume_fraction").astype(np.float64)
    far = np.abs(s.phi) > 0.5 * float(np.linalg.norm(s.spacing))
    exact = bool(np.array_equal(fraction[far], (s.phi < 0)[far]))
    inside = bool(fraction.min() >= 0.0 and fraction.max() <= 1.0)
    size = geometry.voxels(s.phi.shape, s.spacing, s.rows)
    volume = float((fraction * size).sum())
    ratio = volume / max(_supersampled_volume(s, size), 1e-30)
    stored = float(s.of("/geometry")["volume_m3"]) / max(volume, 1e-30)
    ok = exact and inside and abs(ratio - 1) <= 0.01 and abs(stored - 1) <= ROUNDING
    text = f"sum / sub-voxel volume {ratio:.4f}, stored volume / sum {stored:.4f}"
    yield "error", ok, text + ("" if exact and inside else "; values out of place")


def _supersampled_volume(s: Subject, size: NDArray[np.float64]) -> float:
    """Volume of phi < 0, m³: four sub-samples an axis of the cubic spline, near the wall.

    A sub-sample counts by its depth over its own width across the wall. ``size`` is that of each
    voxel; of a ring a sub-sample has the share of its own circle.
    """
    from scipy import ndimage

    near = (ndimage.maximum_filter(s.phi, 3) >= 0) & (ndimage.minimum_filter(s.phi, 3) < 0)
    spline = ndimage.spline_filter(s.phi.astype(np.float64), order=3, mode="nearest")
    where = np.argwhere(near).T.astype(np.float64)
    offsets = (np.indices((4,) * s.phi.ndim).reshape(s.phi.ndim, -1).T - 1.5) / 4.0
    widths = [np.abs(g[near]) * h / 4.0 for g, h in zip(s.gradients, s.spacing, strict=True)]
    width = np.maximum(np.sum(widths, axis=0), 1e-3 * s.h)
    inside = 0.0
    for offset in offsets:
        value = ndimage.map_coordinates(
            spline, where + offset[:, None], order=3, prefilter=False, mode="nearest"
        )
        share = np.clip(0.5 - value / width, 0.0, 1.0)
        share *= 1.0 if s.rows is None else 1.0 + offset[0] / s.rows[where[0].astype(int)]
        inside += float((share * size[near]).sum()) / len(offsets)
    return inside + float(size[(s.phi < 0) & ~near].sum())


def _closed_surface(s: Subject) -> Iterator[Outcome]:
    points, faces = s.prior.vertices_m, s.prior.faces
    if faces.size == 0 or faces.min() < 0 or faces.max() >= len(points):
        yield "error", False, "faces name vertices that do not exist, or there are none"
        return
    areas = s.areas(faces)
    total = float(np.linalg.norm(areas, axis=1).sum())
    left = areas.sum(axis=0)
    if s.prior.axisymmetric:  # across the axis a circle adds up to nothing
        left = left @ Meridian.of(s.affine).along
        volume = ring_volume(points, faces, s.affine)
    else:
        volume = enclosed_volume(points, faces, s.affine)
    rest = float(np.linalg.norm(left)) / max(total, 1e-300)
    closed = is_closed(faces) and bool(s.of("/surface")["watertight"])
    text = f"closed {closed}, volume {volume:.4g}, |sum of area vectors| / area {rest:.1e}"
    yield "error", closed and volume > 0.0 and rest <= 1e-6, text


def _wall_on_zero(s: Subject) -> Iterator[Outcome]:
    faces = s.prior.faces[s.cell_label == 1]
    faces = faces[(faces >= 0).all(axis=1) & (faces < len(s.prior.vertices_m)).all(axis=1)]
    index = s.index(s.prior.vertices_m[np.unique(faces)])
    index = index[((index >= 0) & (index <= np.array(s.phi.shape) - 1)).all(axis=1)]
    offset = np.abs(geometry.interpolate(s.phi, index, order=3))
    worst = float(np.percentile(offset, 99)) / s.h if offset.size else 0.0
    yield (
        "error",
        worst <= 0.05,
        f"99 % of wall vertices within {worst:.4f} h of phi = 0, need 0.05",
    )


def _ids(s: Subject) -> Iterator[Outcome]:
    table = s.openings
    ids, names = table["label"].tolist(), table["name"].tolist()
    on_grid = set(np.unique(s.array("/boundary/label")).tolist()) - {0, 1}
    on_surface = set(np.unique(s.cell_label).tolist()) - {0, 1}
    inner = (p for p in s.prior.attributes if p not in s.prior.arrays)
    groups = {p.split("/")[2].encode() for p in inner if p.startswith("/boundary/")}
    strange = groups - set(names)
    ok = ids == list(range(2, 2 + len(ids))) and on_grid == on_surface == set(ids) and not strange
    ok &= len(set(names)) == len(names) and all(OPENING_NAME.fullmatch(n) for n in names)
    text = f"table {ids}, label {sorted(on_grid)}, surface {sorted(on_surface)}"
    yield "error", ok, text + (f", groups without row {sorted(strange)}" if strange else "")


def _caps(s: Subject) -> Iterator[Outcome]:
    points, faces, label = s.prior.vertices_m, s.prior.faces, s.cell_label
    if not len(s.openings) or faces.size == 0 or faces.min() < 0 or faces.max() >= len(points):
        yield "error", True, "no caps to look at"  # a broken surface is the matter of number 7
        return
    wrong, taken = list[str](), list[NDArray[Any]]()
    for row in s.openings:
        cap = faces[label == row["label"]]
        used = np.unique(cap)
        name, normal = row["name"].decode(), row["normal_out"]
        if not len(used):  # the matter of number 9
            continue
        height = (points[used] - row["centre_m"]) @ normal - row["extension_m"]
        total = s.areas(cap).sum(axis=0)
        area = float(np.linalg.norm(total))
        rough = float(np.sqrt(np.mean(height**2)))
        faults = {
            f"{rough / s.h:.2f} h rms off its plane": rough > 0.25 * s.h,
            "does not face outward": total @ normal < 0.9 * np.linalg.norm(total),
            f"area {area:.4g}, stated {row['area_m2']:.4g}": abs(area / row["area_m2"] - 1)
            > CAP_TOLERANCE,
            "normal not of length one": abs(np.linalg.norm(normal) - 1.0) > 1e-6,
            "shares vertices with another": any(np.isin(used, t).any() for t in taken),
        }
        taken.append(used)
        wrong += [f"{name}: {fault}" for fault, holds in faults.items() if holds]
    yield "error", not wrong, "; ".join(wrong) or f"{len(s.openings)} caps"


def _across(s: Subject) -> Iterator[Outcome]:
    for row in s.openings:
        angle = _tilt_deg(s, row)
        name = row["name"].decode()
        yield "warning", angle <= 10.0, f"{name} {angle:.1f} degrees off across the lumen, want 10"
        rim = s.prior.vertices_m[np.unique(s.prior.faces[s.cell_label == row["label"]])]
        index = s.index(rim - row["extension_m"] * row["normal_out"])
        near = bool(len(rim)) and (
            edge_distance(index, s.spacing, s.phi.shape, s.prior.axisymmetric) < EDGE_VOXELS * s.h
        )
        yield "warning", bool(row["at_fov_edge"]) or not near, f"{name} and the edge of the scan"
    if not len(s.openings):
        yield "warning", True, "no openings"


def _tilt_deg(s: Subject, row: Any) -> float:
    """Angle between an opening and the direction that the wall's normals before it have least."""
    points, normals = s.prior.vertices_m, s.array("/surface/vertex_normal").astype(np.float64)
    wall = np.unique(s.prior.faces[s.cell_label == 1])
    offset = points[wall] - row["centre_m"]
    height, radius = offset @ row["normal_out"], float(row["radius_m"])
    near = (height < 0) & (height > -1.5 * radius - s.h)
    near &= np.linalg.norm(offset, axis=1) < 2.0 * radius + 2.0 * s.h
    if np.count_nonzero(near) < 3:
        return 0.0
    moment = normals[wall][near].T @ normals[wall][near]
    if s.phi.ndim == 2:
        out = s.affine[:3, 2] / np.linalg.norm(s.affine[:3, 2])
        moment = moment + 1e6 * np.trace(moment) * np.outer(out, out)
    axis = np.linalg.eigh(moment)[1][:, 0]
    return float(np.degrees(np.arccos(min(abs(float(axis @ row["normal_out"])), 1.0))))


def _no_slip(s: Subject) -> Iterator[Outcome]:
    wrong = []
    for row in s.openings:
        name = row["name"].decode()
        group = f"/boundary/{name}"
        if f"{group}/u_mean" not in s.prior.arrays:
            continue
        points = s.array(f"{group}/points")
        _, rim = cap_points(s.prior.arrays, row)
        if len(rim) != len(points):
            wrong.append(f"{name}: {len(points)} points, its cap has {len(rim)}")
        elif any(s.array(f"{group}/{field}")[:, rim].any() for field in ("u_mean", "u_std")):
            wrong.append(f"{name}: velocity on the rim")
        elif not rim.any():
            wrong.append(f"{name}: no point on the rim")
        elif not s.of(group).get("sigma_go", 1.0) > 0.0:
            wrong.append(f"{name}: sigma_go is not positive")
    yield "error", not wrong, "; ".join(wrong) or "velocity is zero on every rim"


def _mass(s: Subject) -> Iterator[Outcome]:
    known = s.openings[s.openings["has_flow"] != 0]
    total, spread = float(known["q_mean_m3s"].sum()), float(np.hypot.reduce(known["q_std_m3s"]))
    text = f"sum of the flows {total:.3g}, two standard deviations {2 * spread:.3g}"
    yield "warning", len(known) < 2 or abs(total) <= 2.0 * spread, text
    stored = s.of("/quality")
    same = abs(stored["mass_balance"] - total) <= ROUNDING * max(spread, 1e-12)
    yield "error", same, "stored mass balance is that of the table" if same else text


def _domain(s: Subject) -> Iterator[Outcome]:
    domain, mask = s.array("/boundary/domain") != 0, s.array("/geometry/mask") != 0
    ok = not (domain & ~mask).any() and (len(s.openings) > 0 or np.array_equal(domain, mask))
    yield "error", bool(ok), "domain within the lumen" if ok else "domain differs from the lumen"


def _standard_deviation(s: Subject) -> Iterator[Outcome]:
    std, stored = s.prior.phi_std_m, s.of("/geometry/phi_std")
    low = float(std.min())
    yield "error", low > 0.0, f"smallest phi_std {low / s.h:.3g} h"
    near = np.abs(s.phi) < s.h
    high = float(std[near].max(initial=0.0)) / s.h
    yield "warning", high <= 2.0, f"largest phi_std at the wall {high:.3g} h, want at most 2 h"
    yield "warning", bool(stored["calibrated"]), f"calibrated {stored['calibrated']}"
    share = float(stored["coverage_2sigma"])
    yield "warning", 0.93 <= share <= 0.97, f"2 s.d. coverage {share:.3f}, want 0.93 to 0.97"


def _covariance(s: Subject) -> Iterator[Outcome]:
    stored = s.of("/geometry/covariance")
    m, ell = int(stored["m"]), float(stored["ell_m"])
    low = float(s.array("/geometry/covariance/normaliser").min())
    ok = m % 2 == 0 and m > s.phi.ndim / 2 and ell > 0.0 and low > 0.0
    text = f"m {m}, ell {ell / s.h:.2f} h, smallest normaliser {low:.3g}"
    yield "error", ok, text
    if s.deep and ok:
        near = s.array("/geometry/band_index")
        square = np.zeros(near.size)
        for seed in range(200):
            offset = (s.prior.sample(1, seed)[0] - s.phi).ravel()[near]
            square += np.square(offset, dtype=np.float64) / 200
        ratio = float(np.mean(np.sqrt(square) / s.prior.phi_std_m.ravel()[near]))
        yield "error", abs(ratio - 1) <= 0.1, f"spread of 200 draws / phi_std {ratio:.3f}"
    yield from _stored_walls(s)


def _stored_walls(s: Subject) -> Iterator[Outcome]:
    """Look at the draws and modes that a file may hold."""
    stored = [s.prior.arrays.get(f"/geometry/covariance/{n}") for n in ("modes", "eigenvalues")]
    samples = s.prior.arrays.get("/geometry/samples")
    modes, share = stored
    if modes is not None and share is not None:
        held = np.square(modes, dtype=np.float64).sum(axis=0)
        most = float((held / np.square(s.prior.phi_std_m, dtype=np.float64)).max())
        falling = bool((share > 0.0).all() and (np.diff(share) <= 0.0).all())
        ok = falling and most <= 1.0 + ROUNDING and float(share.sum()) <= 1.0 + ROUNDING
        text = f"{len(modes)} modes hold {share.sum():.3f} of the variance, at most {most:.3f}"
        yield "error", ok, text
    elif modes is not None or share is not None:
        yield "error", False, "modes and eigenvalues belong together"
    if samples is not None and len(samples):
        near = s.array("/geometry/band_index")
        offset = (samples - s.phi).reshape(len(samples), -1)[:, near].astype(np.float64)
        ratio = float(np.sqrt(np.mean(np.square(offset / s.prior.phi_std_m.ravel()[near]))))
        text = f"spread of {len(samples)} stored draws / phi_std {ratio:.3f}"
        yield "error", 0.5 <= ratio <= 2.0, text


def _bias(s: Subject) -> Iterator[Outcome]:
    bias = abs(float(s.of("/geometry/phi_mean")["bias_m"])) / s.h
    yield "warning", bias <= 0.05, f"|bias| {bias:.3g} h, want at most 0.05 h"


def _interior(s: Subject) -> Iterator[Outcome]:
    point = np.asarray(s.of("/geometry")["interior_point_m"])
    value = _phi_at(s, point[None])[0]
    yield "error", value < 0.0, f"phi at the interior point {value / s.h:.2f} h"
    if "/centerline/points" in s.prior.arrays:
        worst = float(_phi_at(s, s.array("/centerline/points")).max(initial=-s.h))
        yield "error", worst < 0.0, f"largest phi on the centreline {worst / s.h:.2f} h"


def _phi_at(s: Subject, points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Phi at world points, positive outside the grid."""
    index = s.index(points)
    far = np.array(s.phi.shape) - 0.5
    inside = ((index >= -0.5 - ROUNDING) & (index <= far + ROUNDING)).all(axis=1)
    return np.where(inside, geometry.interpolate(s.phi, index), s.h)


def _vtkhdf(s: Subject) -> Iterator[Outcome]:
    with guard_hdf5(s.data, max_bytes=MAX_BYTES, allowed_soft_links=is_assembly_link) as (file, _):
        fault = vtk_fault(file)
    yield "error", not fault, fault or "volume and wall share the datasets of the prior"


def _quality(s: Subject) -> Iterator[Outcome]:
    stored = {**s.of("/quality"), "eikonal_rms": s.of("/geometry/phi_mean")["eikonal_rms"]}
    figures = quality_figures(s.prior.arrays, s.prior.axisymmetric)
    wrong = [
        f"{name}: stored {stored[name]:.5g}, is {value:.5g}"
        for name, value in figures.items()
        if abs(stored[name] - value) > ROUNDING * max(1.0, abs(value))
    ]
    yield "error", not wrong, "; ".join(wrong) or "stored figures are those of the fields"


def _resolution(s: Subject) -> Iterator[Outcome]:
    width = 2.0 * geometry.smallest_radius(s.phi) / s.h
    yield "warning", width >= 4.0, f"narrowest lumen {width:.1f} h wide, want 4 h"


def _provenance(s: Subject) -> Iterator[Outcome]:
    try:
        text = s.array("/provenance/json").tobytes().decode()
        tree = s.prior.provenance
    except ValueError as error:
        yield "error", False, f"provenance is not JSON: {error}"
        return
    found = ABSOLUTE_PATH.search(text)
    ok = isinstance(tree, dict) and not found
    yield "error", ok, f"absolute path {found[0]}" if found else f"{len(tree)} entries"


INVARIANTS: dict[int, tuple[str, Callable[[Subject], Iterator[Outcome]]]] = {
    2: ("topology", _topology),
    3: ("eikonal", _eikonal),
    4: ("normals", _normals),
    5: ("band", _band),
    6: ("volume-fraction", _volume_fraction),
    7: ("closed-surface", _closed_surface),
    8: ("wall-on-zero", _wall_on_zero),
    9: ("ids", _ids),
    10: ("caps", _caps),
    11: ("across", _across),
    12: ("domain", _domain),
    13: ("standard-deviation", _standard_deviation),
    14: ("covariance", _covariance),
    15: ("no-slip", _no_slip),
    16: ("mass-balance", _mass),
    17: ("bias", _bias),
    18: ("interior", _interior),
    19: ("vtkhdf", _vtkhdf),
    20: ("quality", _quality),
    21: ("resolution", _resolution),
    22: ("provenance", _provenance),
}


def summary(prior: BoundaryPrior) -> dict[str, Any]:
    """Return the JSON-able facts that ``vesselseg info`` shows."""
    root, lumen = prior.attributes["/"], prior.attributes["/geometry"]
    phi, std = prior.attributes["/geometry/phi_mean"], prior.attributes["/geometry/phi_std"]
    at_wall = prior.vertex_std_m
    facts = {
        "format_version": root["format_version"],
        "writer": root["writer"],
        "case_id": root["case_id"],
        "geometry_kind": root["geometry_kind"],
        "content_sha256": root["content_sha256"],
        "grid": prior.grid.as_dict(),
        "geometry": dict(lumen),
        "phi_mean": dict(phi),
        "phi_std": {**std, "median_at_wall_m": float(np.median(at_wall))},
        "covariance": dict(prior.attributes["/geometry/covariance"]),
        "surface": {
            **prior.attributes["/surface"],
            "vertices": len(prior.vertices_m),
            "faces": len(prior.faces),
        },
        "openings": [_opening_facts(row) for row in prior.openings],
        "centreline": dict(prior.attributes.get("/centerline", {})),
        "velocity": dict(prior.attributes.get("/velocity", {})),
        "evidence": prior.attributes["/images/probability"]["source"],
        "quality": dict(prior.quality),
        "warnings": list(prior.warnings),
        "notes": list(prior.notes),
    }
    result: dict[str, Any] = _jsonable(facts)
    return result


def _opening_facts(row: Any) -> dict[str, Any]:
    facts = {name: row[name].tolist() for name in row.dtype.names}
    return facts | {"name": row["name"].decode(), "kind": KIND_NAMES[int(row["kind"])]}


def _jsonable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _jsonable(v) for k, v in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return [_jsonable(v) for v in value] if isinstance(value, list | tuple) else value
