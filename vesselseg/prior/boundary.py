"""The boundary prior: the refined wall as a Gaussian field for flow solvers.

This module is the only place where millimetres become metres.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import PurePath, PureWindowsPath
from types import MappingProxyType
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field as Bounded

from .. import __version__
from ..calibration import EXPLAINED
from ..config import Settings
from ..errors import ConfigError, DataError, printable
from ..fields import Probability, Refinement, Volume
from ..flow import Flow, FlowSettings, pcmra, sigma_u
from ..grid import Grid
from ..meridian import Meridian, require_half_plane, upper
from ..wall_geometry import gradient, smallest_radius
from . import covariance, fields, revolved
from .centreline import centreline
from .covariance import Elliptic
from .cut import CAP_TOLERANCE, cap_areas, cut_wall, extended
from .inflow import Measured
from .openings import Ends, Opening, find_openings, grid_labels, reordered
from .relax import Frame, relaxed
from .schema import FIXED_ROOT, KINDS, OPENING_UNITS, VERSION, VOLATILE
from .section import Lumen
from .split import split
from .surface import CLOSURE, Surface, extract

PathLike = str | os.PathLike[str]
Floats = NDArray[np.floating]

METRE_PER_MM = 1e-3
MIN_BAND_VOXELS = 4.0
LEAST_STD_VOXELS = 1e-3
MIN_SAMPLES = 3
MOST_STORED_BYTES = 4 << 30  # of draws and modes; a reader takes files of twice that
ABSOLUTE_PATH = re.compile(
    r"(?<![^\s\"'=:,;(\[])(?:/[^\s/\"']+(?:/[^\s/\"']*)+|[A-Za-z]:\\[^\s\"']*)"
)
NO_OPENINGS = (
    "no opening found: the lumen ends inside the field of view, see --cut and --seed-point"
)


UNKNOWN_CYCLE = "length of the heart cycle unknown: times are those of a cycle of one second"
DEFAULT_PSF = 0.6
LEAST_DOUBT = 1e-6  # of a probability of 0 or 1
DEFAULT_VISCOUS = 0.5  # of the largest voxel side
Finite = Annotated[float, Bounded(allow_inf_nan=False)]
Three = Annotated[tuple[Finite, Finite, Finite], Bounded(strict=False)]
Six = Annotated[tuple[Finite, Finite, Finite, Finite, Finite, Finite], Bounded(strict=False)]


class PriorSettings(Settings):
    """How the covariance of a prior is chosen.

    Parameters
    ----------
    m : int
        Even order of the inverse elliptic operator.
    ell_mm : float or None
        Correlation length; None = two voxels, but at most half the smallest lumen radius.
    case_id : str
        Word for the case, without slashes; empty = a hash of the scan.
    cuts : sequence of six floats
        Openings besides those at the field of view: a world point (RAS+, mm) in the lumen and the
        normal that points out of the flow domain.
    seed_points : sequence of three floats
        Points of the lumen (RAS+, mm) to open it at, across its axis; the smaller part goes.
    extension_mm : float
        Length of straight flow extensions of the surface at every opening.
    viscous_mm : float or None
        Length ε of the viscous distance that is stored beside φ̄; None = half the largest voxel
        side, 0 = none is stored. An axisymmetric prior has none.
    samples, modes : int
        How many walls drawn from the prior (seed 0), and largest modes of its covariance, to store.
    axis : six floats, "i", "j" or None
        Axis of revolution of a 2-D scan: a point (RAS+, mm) and its direction, or the index axis
        that it runs along, half a sample before the first one. See ``vesselseg.meridian.fold``.
    """

    m: int = Bounded(4, ge=2, le=8, multiple_of=2)
    ell_mm: float | None = Bounded(None, gt=0.0, le=1e4)
    case_id: str = Bounded("", max_length=64, pattern=r"^[\w .+-]*$")
    cuts: tuple[Six, ...] = Bounded((), strict=False)
    seed_points: tuple[Three, ...] = Bounded((), strict=False)
    extension_mm: float = Bounded(0.0, ge=0.0, le=1e4)
    viscous_mm: float | None = Bounded(None, ge=0.0, le=1e4)
    samples: int = Bounded(0, ge=0, le=1000)
    modes: int = Bounded(0, ge=0, le=1000)
    axis: Six | Literal["i", "j"] | None = None


@dataclass(frozen=True, eq=False)
class BoundaryPrior:
    """A prior in SI units, as in the file.

    Parameters
    ----------
    arrays : mapping of path to array
        Every dataset; see ``docs/prior-format.md``.
    attributes : mapping of path to mapping
        Attributes of groups and datasets.
    notes : tuple of str
        Remarks of the reader, such as parts of a newer version that it left out.
    """

    arrays: Mapping[str, NDArray[Any]]
    attributes: Mapping[str, Mapping[str, Any]]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        frozen = {}
        for path, array in self.arrays.items():
            frozen[path] = np.asarray(array).view()
            frozen[path].setflags(write=False)
        attributes = {p: MappingProxyType(dict(v)) for p, v in self.attributes.items()}
        object.__setattr__(self, "arrays", MappingProxyType(frozen))
        object.__setattr__(self, "attributes", MappingProxyType(attributes))

    @classmethod
    def from_refinement(
        cls,
        refinement: Refinement,
        volume: Volume,
        probability: Probability | None = None,
        *,
        settings: PriorSettings = PriorSettings(),  # noqa: B008  (frozen)
        provenance: Mapping[str, Any] | None = None,
        volatile: Mapping[str, Any] | None = None,
        flow: Flow | None = None,
        flow_settings: FlowSettings = FlowSettings(),  # noqa: B008  (frozen)
    ) -> BoundaryPrior:
        """Make the prior of a refined wall.

        Parameters
        ----------
        refinement : Refinement
            Its level set must be a signed distance with a band of at least 4 voxels. Of its
            ``estimates``, ``bias_mm``, ``bias_std_mm``, ``coverage_2sigma`` and ``calibrated``
            are carried into the prior where present.
        volume : Volume
            The scan, on the same grid.
        probability : Probability, optional
            The evidence of network or start; without it, P(inside) of the refined wall itself.
        settings : PriorSettings
        provenance : mapping, optional
            JSON-able facts: versions, configuration, seed, device. Absolute paths are cut to base
            names. ``calibration_set`` names the vessels that the standard deviation was fitted on.
        volatile : mapping, optional
            What differs from run to run; by default creation time and host.
        flow : Flow, optional
            Measured velocity on the same grid, corrected already.
        flow_settings : FlowSettings

        Raises
        ------
        NoInterfaceError
            The level set has no wall.
        DataError
            Grids differ, the band is too narrow, or phi is no signed distance.
        """
        given = dict(provenance or {})
        arrays, attributes = _assemble(
            refinement, volume, probability, settings, flow, flow_settings
        )
        calibration_set = str(given.get("calibration_set", "none"))
        attributes["/geometry/phi_std"]["calibration_set"] = calibration_set
        facts = _facts(refinement, volume, probability, settings, given)
        if flow is not None:
            facts["velocity"] = {"name": PurePath(flow.name).name, "sha256": flow.sha256}
        seconds = {"seconds": dict(refinement.seconds)}
        moment = {**seconds, **(_now() if volatile is None else volatile)}
        arrays["/provenance/json"] = _json_bytes(facts)
        arrays[VOLATILE] = _json_bytes(moment)
        return cls(arrays, attributes)._with_walls(settings.samples, settings.modes)

    @classmethod
    def read(cls, path: PathLike) -> BoundaryPrior:
        """Read a prior file; raises DataError for anything that is not a whole, sane prior."""
        from .file import decode

        return cls(*decode(path))

    def write(self, path: PathLike, *, overwrite: bool = False) -> str:
        """Write the prior file whole or not at all; equal content gives equal bytes.

        Returns
        -------
        str
            The file's ``content_sha256``.

        Raises
        ------
        DataError
            The prior contradicts itself and would be refused by ``read``.
        ConfigError
            The file exists and ``overwrite`` is False.
        EnvironmentFault
            Folder, permission, disk.
        """
        from ..io.atomic import write_bytes
        from .file import stored_digest

        data = self.to_bytes()
        write_bytes(path, data, overwrite=overwrite)
        return stored_digest(data)

    def to_bytes(self) -> bytes:
        """Return the bytes of the prior file after validating the content."""
        from .file import encode, semantic_fault
        from .schema import structure_fault

        fault = structure_fault(self.arrays, self.attributes)
        fault = fault or semantic_fault(self.arrays, self.attributes)
        if fault:
            raise DataError(fault, remedy="no prior was written")
        return encode(self.arrays, self.attributes)

    def sample(self, n: int, seed: int) -> NDArray[np.float32]:
        """Draw walls: φ̄ + D A^(-m/2) ξ.

        Returns
        -------
        (n, nz, ny, nx) or (n, ny, nx) float32
            Draws of phi in metres; beyond the band, where φ̄ is clamped, they are clamped φ̄ plus
            the same field.
        """
        if n < 1:
            raise ConfigError("bad number of draws", found=n, need="at least 1")
        rng = np.random.default_rng(seed)
        draws = np.empty((n, *self.phi_mean_m.shape), dtype=np.float32)
        for k in range(n):
            draws[k] = self.phi_mean_m + covariance.draw(*self._field(), rng)
        return draws

    def log_density(self, phi_m: Any) -> float:
        """Return -½ |A^(m/2) D⁻¹ (φ - φ̄)|² of a level set in metres, without the constant."""
        phi = np.asarray(phi_m, dtype=np.float64)
        if phi.shape != self.phi_mean_m.shape or not np.isfinite(phi).all():
            raise DataError("bad phi", found=phi.shape, need=f"finite {self.phi_mean_m.shape}")
        return covariance.log_density(phi - self.phi_mean_m, *self._field())

    def modes(self, rank: int, seed: int = 0) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the largest directions of the wall's covariance within two voxels of the wall.

        Returns
        -------
        vectors : (rank, nz, ny, nx) or (rank, ny, nx)
            Orthonormal over those voxels, zero elsewhere.
        variances : (rank,)
            m²: C restricted there is about Σ variance · vector vectorᵀ.
        """
        near = self._near()
        if not 1 <= rank <= np.count_nonzero(near):
            need = f"1 to {np.count_nonzero(near)}"
            raise ConfigError("bad number of modes", found=rank, need=need)
        return covariance.modes(*self._field(), rank, near, seed)

    def _with_walls(self, samples: int, modes: int) -> BoundaryPrior:
        """Return the prior with walls drawn from it, and modes of its covariance, stored too."""
        claim = 4 * (samples + modes) * self.phi_mean_m.size
        if claim > MOST_STORED_BYTES:
            found = f"{samples} draws and {modes} modes, {claim / 2**30:.1f} GiB"
            need = f"at most {MOST_STORED_BYTES / 2**30:.0f} GiB"
            remedy = "draw them from the prior: BoundaryPrior.sample, .modes"
            raise ConfigError("too many walls to store", found=found, need=need, remedy=remedy)
        arrays = dict(self.arrays)
        if samples:
            arrays["/geometry/samples"] = self.sample(samples, seed=0)
        if modes:
            vectors, variances = self.modes(modes)
            whole = np.square(self.phi_std_m[self._near()], dtype=np.float64).sum()
            scale = np.sqrt(variances).reshape(-1, *[1] * self.phi_mean_m.ndim)
            arrays["/geometry/covariance/modes"] = (scale * vectors).astype(np.float32)
            arrays["/geometry/covariance/eigenvalues"] = variances / whole
        return replace(self, arrays=arrays)

    def _near(self) -> NDArray[np.bool_]:
        """Tell which voxels lie within two voxels of the wall."""
        return np.asarray(np.abs(self.phi_mean_m) < 2.0 * METRE_PER_MM * self.grid.h_max)

    def _field(self) -> tuple[Floats, Floats, Elliptic]:
        stored = self.attributes["/geometry/covariance"]
        spacing = tuple(s * METRE_PER_MM for s in self.grid.spacing_mm)
        operator = Elliptic(spacing, float(stored["ell_m"]), int(stored["m"]), self.axisymmetric)
        return self.phi_std_m, self.arrays["/geometry/covariance/normaliser"], operator

    @property
    def axisymmetric(self) -> bool:
        """Whether the fields lie on the half plane of an axis of revolution."""
        return bool(self.attributes["/"]["geometry_kind"] == "axisymmetric")

    @property
    def grid(self) -> Grid:
        """The grid of the scan, in mm as everywhere outside the file."""
        affine = np.array(self.arrays["/grid/ijk_to_world"])
        affine[:3] /= METRE_PER_MM
        return Grid(self.phi_mean_m.shape, affine)

    @property
    def phi_mean_m(self) -> NDArray[np.float32]:
        """Mean signed distance to the wall, m, negative in the lumen."""
        return self.arrays["/geometry/phi_mean"]

    @property
    def phi_std_m(self) -> NDArray[np.float32]:
        """Standard deviation of the wall position, m."""
        return self.arrays["/geometry/phi_std"]

    @property
    def vertices_m(self) -> NDArray[np.float64]:
        """Vertices of the wall, (nv, 3), RAS+ m."""
        return self.arrays["/surface/vertices"]

    @property
    def faces(self) -> NDArray[np.int32]:
        """Triangles (nf, 3), or edges (ne, 2) in two dimensions."""
        name = "faces" if self.phi_mean_m.ndim == 3 else "edges"
        return self.arrays[f"/surface/{name}"]

    @property
    def vertex_std_m(self) -> NDArray[np.float32]:
        """Standard deviation of the wall position at the vertices, m."""
        return self.arrays["/surface/vertex_std"]

    @property
    def phi_mean_mm(self) -> NDArray[np.float64]:
        """Mean signed distance to the wall, mm."""
        return _mm(self.phi_mean_m)

    @property
    def phi_std_mm(self) -> NDArray[np.float64]:
        """Standard deviation of the wall position, mm."""
        return _mm(self.phi_std_m)

    @property
    def vertices_mm(self) -> NDArray[np.float64]:
        """Vertices of the wall, (nv, 3), RAS+ mm."""
        return _mm(self.vertices_m)

    @property
    def vertex_std_mm(self) -> NDArray[np.float64]:
        """Standard deviation of the wall position at the vertices, mm."""
        return _mm(self.vertex_std_m)

    @property
    def openings(self) -> NDArray[Any]:
        """Table of inlets and outlets, one row each; see ``docs/prior-format.md``."""
        return self.arrays["/boundary/openings"]

    @property
    def step_rms_mm(self) -> NDArray[np.float64]:
        """Rms displacement of each refinement step, mm; empty if none was recorded."""
        return _mm(self.arrays.get("/quality/step_rms", np.zeros(0)))

    @property
    def quality(self) -> Mapping[str, Any]:
        """Figures of merit, by name."""
        return {k: v for k, v in self.attributes["/quality"].items() if k != "warnings"}

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should know before trusting the prior."""
        return tuple(str(self.attributes["/quality"]["warnings"]).splitlines())

    @property
    def provenance(self) -> dict[str, Any]:
        """The parsed provenance."""
        result: dict[str, Any] = json.loads(self.arrays["/provenance/json"].tobytes())
        return result


def _mm(lengths_m: NDArray[Any]) -> NDArray[np.float64]:
    return lengths_m.astype(np.float64) / METRE_PER_MM


def without_paths(value: Any) -> Any:
    """Return a JSON-able copy in which absolute paths are cut to their base names."""
    if isinstance(value, Mapping):
        return {without_paths(str(k)): without_paths(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [without_paths(v) for v in value]
    if isinstance(value, np.generic):
        return without_paths(value.item())
    if isinstance(value, float) and not np.isfinite(value):
        return str(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    return ABSOLUTE_PATH.sub(lambda m: PureWindowsPath(m[0]).name, str(value))


def _assemble(
    refinement: Refinement,
    volume: Volume,
    probability: Probability | None,
    settings: PriorSettings,
    flow: Flow | None,
    flow_settings: FlowSettings,
) -> tuple[dict[str, NDArray[Any]], dict[str, dict[str, Any]]]:
    """Return every array and attribute but the provenance; here millimetres become metres."""
    grid, level, estimates = volume.grid, refinement.level_set, refinement.estimates
    others = (probability, flow)
    _require_grid(grid, level.grid, *(None if o is None else o.grid for o in others))
    affine = np.array(grid.affine)
    affine[:3] *= METRE_PER_MM
    if settings.axis is not None:
        require_half_plane(grid, settings.axis)
    meridian = None if settings.axis is None else Meridian.of(affine)
    spacing = fields.spacing_of(affine, grid.ndim)
    band_m = _band_m(level.band_mm, grid)
    phi = (np.clip(level.phi_mm, -level.band_mm, level.band_mm) * METRE_PER_MM).astype(np.float32)
    std = refinement.sigma_mm.astype(np.float64) * METRE_PER_MM
    least_std = LEAST_STD_VOXELS * min(spacing)
    steps = [row["step_rms_mm"] * METRE_PER_MM for row in refinement.history]
    smallest = smallest_radius(phi)
    ell = min(2.0 * max(spacing), max(0.5 * smallest, 0.5 * min(spacing)))
    ell = ell if settings.ell_mm is None else settings.ell_mm * METRE_PER_MM

    operator = Elliptic(spacing, ell, settings.m, meridian is not None)
    arrays, lumen = fields.lumen(phi, affine, band_m, operator.revolved)
    arrays |= {
        "/grid/ijk_to_world": affine,
        "/geometry/phi_std": np.maximum(std, least_std).astype(np.float32),
        "/geometry/covariance/normaliser": operator.normaliser(phi.shape).astype(np.float32),
        "/images/magnitude": volume.values,
        "/quality/step_rms": np.array(steps, dtype=np.float32),
    }
    images, source = _evidence(phi, arrays["/geometry/phi_std"], probability, operator.revolved)
    smooth = {} if meridian else _viscous(arrays, spacing, level.band_mm, settings.viscous_mm)
    arrays |= images
    ends, surface = _boundary(arrays, affine, band_m, settings, operator)
    blood, balance = _blood(arrays, affine, ends, volume, estimates, flow, flow_settings, meridian)
    figures = fields.quality_figures(arrays, operator.revolved)
    doubts = _doubts(refinement, flow, flow_settings) | {
        NO_OPENINGS: not (ends.openings or ends.notes),
        f"the lumen has {lumen['n_components']} components": lumen["n_components"] > 1,
        "the lumen leaves the field of view": _leaves(arrays, meridian),
        "the narrowest lumen is less than 4 voxels wide": smallest < 2.0 * max(spacing),
        "standard deviations below a thousandth of a voxel were raised": std.min() < least_std,
    }
    noted = (flow, ends, volume, level, refinement, probability)
    notes = [printable(note) for o in noted if o is not None for note in o.notes]
    warnings = [text for text, holds in doubts.items() if holds] + notes
    attributes: dict[str, dict[str, Any]] = {
        "/": _root(volume, settings),
        "/grid": fields.grid_attributes(affine, grid.shape_kji) | _axis_facts(meridian),
        "/geometry": lumen,
        "/geometry/phi_mean": _wall_facts(estimates, band_m, figures.pop("eikonal_rms")),
        "/geometry/phi_std": {
            "coverage_2sigma": estimates.get("coverage_2sigma", 0.0),
            "calibrated": int(estimates.get("calibrated", 0)),
        },
        "/geometry/covariance": {
            "kind": "elliptic",
            "ell_m": ell,
            "m": settings.m,
            "bc": "zero flux at the faces of the box" + (", weight r" if meridian else ""),
        },
        **smooth,
        "/boundary": {},
        "/boundary/openings": {"field_units": OPENING_UNITS},
        **surface,
        "/images": {},
        "/images/probability": {"source": source},
        "/quality": {
            **figures,
            **balance,
            "converged": int(refinement.converged),
            "warnings": "\n".join(dict.fromkeys(warnings)),
        },
        "/provenance": {},
        **blood,
    }
    return arrays, attributes


def _doubts(
    refinement: Refinement, flow: Flow | None, flow_settings: FlowSettings
) -> dict[str, bool]:
    """Say what is to be doubted of a refinement and a flow, and whether it is so."""
    misfit = refinement.estimates.get("misfit", 1.0)
    return {
        "the image shows more than blood, surroundings and white noise near the wall (misfit "
        f"{misfit:.3g}): the standard deviation falls back on that of the start": misfit
        > EXPLAINED,
        "the standard deviation is not calibrated": not refinement.estimates.get("calibrated"),
        f"the refinement did not converge: {refinement.reason.value}": not refinement.converged,
        UNKNOWN_CYCLE: flow is not None and len(flow.u_ms) > 1 and not flow_settings.rr_s,
    }


def _wall_facts(
    estimates: Mapping[str, float], band_m: float, eikonal_rms: float
) -> dict[str, Any]:
    return {
        "band_halfwidth_m": band_m,
        "far_field": "clamped",
        "bias_m": estimates.get("bias_mm", 0.0) * METRE_PER_MM,
        "bias_std_m": estimates.get("bias_std_mm", 0.0) * METRE_PER_MM,
        "eikonal_rms": eikonal_rms,
        "method": "refined level set, signed distance",
    }


def _blood(
    arrays: dict[str, NDArray[Any]],
    affine: Floats,
    ends: Ends,
    volume: Volume,
    estimates: Mapping[str, float],
    flow: Flow | None,
    settings: FlowSettings,
    meridian: Meridian | None,
) -> tuple[dict[str, dict[str, Any]], dict[str, float]]:
    """Add measured velocity to the arrays; return its attributes and the balance of mass."""
    if flow is None:
        return {}, {"mass_balance": 0.0, "mass_balance_sigma": 0.0}
    inside = arrays["/geometry/phi_mean"] < 0
    noise, psf = estimates.get("noise", 0.0), estimates.get("psf_voxels", DEFAULT_PSF)
    sigma = sigma_u(volume.values, inside, noise, flow, settings)
    arrays["/velocity/u"], arrays["/velocity/sigma_u"] = flow.u_ms, sigma
    arrays["/images/pcmra"] = pcmra(volume.values, flow)
    plane, plane_affine = revolved.unfolded(arrays, affine) if meridian else (arrays, affine)
    u, sigma = plane["/velocity/u"], plane["/velocity/sigma_u"]
    measured = Measured(u, sigma, plane["/images/magnitude"], psf, settings.nu)
    lumen = Lumen(plane["/geometry/phi_mean"], plane_affine)
    times = flow.times(settings.rr_s)
    caps, balance = fields.flow_through(arrays, lumen, ends, measured, times, meridian)
    facts = {"/velocity": _velocity_facts(flow, settings), "/physics": settings.fluid()}
    return {**facts, **caps}, balance


def _velocity_facts(flow: Flow, settings: FlowSettings) -> dict[str, Any]:
    return {
        "venc_ms": flow.venc_ms,
        "background_corrected": int(flow.background_corrected),
        "unwrapped": int(flow.unwrapped),
        "rr_s": settings.rr_s,
    }


def _boundary(
    arrays: dict[str, NDArray[Any]],
    affine: Floats,
    band_m: float,
    settings: PriorSettings,
    operator: Elliptic,
) -> tuple[Ends, dict[str, Any]]:
    """Add openings, labels, surface and centreline to the arrays; return their attributes.

    Of a revolved lumen the openings that come back are those of the mirrored plane.
    """
    meridian = Meridian.of(affine) if operator.revolved else None
    plane, plane_affine = revolved.unfolded(arrays, affine) if meridian else (arrays, affine)
    lumen = Lumen(plane["/geometry/phi_mean"], plane_affine)
    cuts = [(*(METRE_PER_MM * x for x in cut[:3]), *cut[3:]) for cut in settings.cuts]
    points = [tuple(METRE_PER_MM * x for x in point) for point in settings.seed_points]
    extension = settings.extension_mm * METRE_PER_MM
    ends = find_openings(lumen, cuts, points)
    if meridian:
        ends = revolved.symmetric(ends, lumen, meridian)
    ends, closed, frame = _cut_flat(plane, lumen, ends)
    normals = np.array([o.normal for o in ends.openings])
    whole = extended(closed, normals, extension, lumen.h)
    wall, attributes = fields.wall(plane, frame, whole)
    domain, label = grid_labels(lumen, ends, band_m)
    openings: tuple[Opening, ...] = ends.openings
    if meridian:
        wall, attributes = revolved.folded_surface(wall, affine)
        domain, label = upper(domain), upper(label)
        openings = tuple(revolved.ring(o, meridian) for o in openings)
        axis = revolved.axis_line(arrays["/geometry/phi_mean"], domain, openings, affine)
    else:
        axis = centreline(lumen, ends)
    arrays |= wall
    arrays["/boundary/domain"], arrays["/boundary/label"] = domain, label
    arrays |= {
        "/centerline/points": axis.points,
        "/centerline/radius": axis.radius.astype(np.float32),
        "/centerline/edges": axis.edges.astype(np.int32),
        "/centerline/branch": axis.branch.astype(np.int32),
    }
    arrays["/boundary/openings"] = fields.openings_table(
        arrays, affine, openings, operator, extension
    )
    return ends, {"/surface": attributes, "/centerline": axis.facts()}


def _cut_flat(
    arrays: dict[str, NDArray[Any]], lumen: Lumen, ends: Ends
) -> tuple[Ends, Surface, Frame]:
    """Cut the wall at the openings; those that no cap closes as they were measured are left out."""
    frame = Frame(arrays["/geometry/phi_mean"], arrays["/geometry/normal"], lumen.affine)
    surface = split(extract(lumen.phi.astype(np.float64), lumen.affine), frame)
    while True:
        cut, failed = cut_wall(lumen, surface, ends)
        if not failed:
            cut = replace(cut, points=relaxed(cut.points, cut.faces, cut.label, frame))
            caps = cap_areas(cut, lumen.affine, len(ends.openings))
            areas = np.array([o.area for o in ends.openings])
            failed = tuple(np.flatnonzero(np.abs(caps / areas - 1.0) > CAP_TOLERANCE).tolist())
        if not failed:
            return ends, cut, frame
        note = f"{len(failed)} openings without one flat cap of their size left out"
        kept = [n for n in range(len(ends.openings)) if n not in failed]
        ends = replace(reordered(ends, kept), notes=(*ends.notes, note))


def _require_grid(grid: Grid, *others: Grid | None) -> None:
    if min(grid.shape_kji) < MIN_SAMPLES:
        need = f"at least {MIN_SAMPLES} samples along every axis"
        remedy = "give a single slice as a 2-D image"
        raise DataError("grid too thin for a prior", found=grid.shape_kji, need=need, remedy=remedy)
    for other in others:
        if other is not None and not grid.mismatch_mm(other) < 1e-3 * grid.h_min:
            found = f"corners {grid.mismatch_mm(other):.3g} mm apart"
            raise DataError("scan, start and wall are on different grids", found=found)


def _band_m(band_mm: float, grid: Grid) -> float:
    """Half-width that is stored: just inside the clamped far field."""
    half = band_mm / (1.0 + 1e-3)
    if half < MIN_BAND_VOXELS * grid.h_max:
        need = f"more than {MIN_BAND_VOXELS:g} times the largest spacing, {grid.h_max:.3g} mm"
        raise DataError("band too narrow for a prior", found=f"{band_mm:.4g} mm", need=need)
    return half * METRE_PER_MM


def _leaves(arrays: Mapping[str, NDArray[Any]], meridian: Meridian | None) -> bool:
    """Whether the surface is closed at the box anywhere but on an axis of revolution."""
    cell = "face" if "/surface/faces" in arrays else "edge"
    closure = arrays[f"/surface/{cell}s"][arrays[f"/surface/{cell}_label"] == CLOSURE]
    if meridian is None:
        return bool(len(closure))
    return not revolved.on_axis(arrays["/surface/vertices"], closure, meridian).all()


def _axis_facts(meridian: Meridian | None) -> dict[str, Any]:
    if meridian is None:
        return {}
    return {"axis_origin_m": meridian.origin, "axis_direction": meridian.along}


def _viscous(
    arrays: dict[str, NDArray[Any]],
    spacing: tuple[float, ...],
    band_mm: float,
    epsilon_mm: float | None,
) -> dict[str, dict[str, Any]]:
    """Add the viscous distance to the arrays, clamped as φ̄ is; return its attributes."""
    from ..solvers.viscous import viscous_distance

    epsilon = DEFAULT_VISCOUS * max(spacing) if epsilon_mm is None else epsilon_mm * METRE_PER_MM
    if not epsilon:
        return {}
    band_m = band_mm * METRE_PER_MM
    path = "/geometry/phi_viscous"
    arrays[path] = viscous_distance(arrays["/geometry/phi_mean"], spacing, epsilon, band_mm=band_m)
    return {path: {"epsilon_m": epsilon, "pinned": 1}}


def _evidence(
    phi: Floats, std: Floats, probability: Probability | None, revolved: bool
) -> tuple[dict[str, NDArray[np.float32]], str]:
    """Return the probability with its s.d. where one is known, and where it comes from.

    The s.d. is what the wall's own σ makes of p to first order, |∇p| σ, at most √(p(1-p)), which
    no quantity between 0 and 1 with the mean p exceeds. The logit of p is nearly linear across the
    wall, unlike p, so that its differences are taken: |∇p| = p(1-p) |∇ logit p|.
    """
    if probability is None:
        from scipy.special import ndtr

        return {"/images/probability": ndtr(-phi / std).astype(np.float32)}, "derived"
    p, images = probability.values, {"/images/probability": probability.values}
    if probability.soft and probability.sigma_mm is not None:
        sure = np.clip(p.astype(np.float64), LEAST_DOUBT, 1.0 - LEAST_DOUBT)
        parts = gradient(np.log(sure / (1.0 - sure)), probability.grid.spacing_mm, revolved)
        slope = np.sqrt(np.sum(np.square(parts), axis=0))
        variance = p * (1.0 - p)
        spread = np.minimum(variance * slope * probability.sigma_mm, np.sqrt(variance))
        images["/images/probability_std"] = spread.astype(np.float32)
    if not probability.soft:
        return images, "derived"
    return images, "start" if probability.model_id.startswith("start") else "network"


def _root(volume: Volume, settings: PriorSettings) -> dict[str, Any]:
    ndim = volume.grid.ndim
    kind = next(kind for kind, n in KINDS.items() if n == ndim)
    return {
        **FIXED_ROOT,
        "format_version": ".".join(map(str, VERSION)),
        "axes": "kji" if ndim == 3 else "ji",
        "geometry_kind": kind if settings.axis is None else "axisymmetric",
        "case_id": settings.case_id or _scan_digest(volume)[:16],
        "writer": f"vesselseg {__version__}",
        "content_sha256": "",
    }


def _scan_digest(volume: Volume) -> str:
    return volume.sha256 or hashlib.sha256(volume.values.tobytes()).hexdigest()


def _facts(
    refinement: Refinement,
    volume: Volume,
    probability: Probability | None,
    settings: PriorSettings,
    given: dict[str, Any],
) -> dict[str, Any]:
    """Return the provenance; what the caller gives wins."""
    own = {
        "writer": f"vesselseg {__version__}",
        "input": {"name": PurePath(volume.name).name, "sha256": _scan_digest(volume)},
        "evidence": None if probability is None else probability.model_id,
        "refinement": {
            "reason": refinement.reason.value,
            "steps": refinement.steps,
            "estimates": dict(refinement.estimates),
        },
        "prior": settings.model_dump(),
    }
    return {**own, **given}


def _now() -> dict[str, Any]:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"created": now, "host": socket.gethostname()}


def _json_bytes(tree: Mapping[str, Any]) -> NDArray[np.uint8]:
    text = json.dumps(without_paths(tree), sort_keys=True, ensure_ascii=False, allow_nan=False)
    return np.frombuffer(text.encode("utf-8", "backslashreplace"), dtype=np.uint8)
