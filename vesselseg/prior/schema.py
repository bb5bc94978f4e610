"""Every path of the boundary-prior file, once: it drives writing, reading, checks and the docs."""

# ruff: noqa: E501  (the table is easier to read with one line a path)

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

FORMAT = "vesselseg-prior"
VERSION = (1, 0)
KINDS = {"cartesian3d": 3, "planar2d": 2, "axisymmetric": 2}
VOLATILE = "/provenance/volatile"
LIST_LIMIT = 1 << 22  # elements of a list, beside what its grid may need


class Facts(Protocol):
    """What the structure of an array is checked by: an array or a dataset not yet read."""

    @property
    def dtype(self) -> Any: ...  # noqa: D102

    @property
    def shape(self) -> Any: ...  # noqa: D102


OPENING = np.dtype(
    [("label", "u1"), ("name", "S32"), ("kind", "u1"), ("at_fov_edge", "u1"), ("has_flow", "u1")]
    + [("centre_m", "<f8", (3,)), ("normal_out", "<f8", (3,))]
    + [
        (name, "<f8")
        for name in (
            *("area_m2", "area_std_m2", "radius_m", "perimeter_m", "roundness"),
            *("planarity_rms_m", "extension_m", "q_mean_m3s", "q_std_m3s", "u_max_ms", "reynolds"),
        )
    ]
)
OPENING_UNITS = (
    "label=1 name=1 kind=1 at_fov_edge=1 has_flow=1 centre_m=m normal_out=1 area_m2=m^2 "
    "area_std_m2=m^2 radius_m=m perimeter_m=m roundness=1 planarity_rms_m=m extension_m=m "
    "q_mean_m3s=m^3/s q_std_m3s=m^3/s u_max_ms=m/s reynolds=1"
)
ATTRIBUTE = re.compile(r"(?P<name>\w+)(?P<optional>\?)?:(?P<type>text|f8|i8)(\[(?P<size>\d+)\])?")
NEED = {"M": "must", "R": "recommended", "o": "optional"}


@dataclass(frozen=True)
class Attribute:
    """An attribute: text (fixed length, UTF-8), or ``size`` numbers (0 = one number)."""

    name: str
    type: str
    size: int
    must: bool

    def encode(self, value: Any) -> Any:
        """Return the value as it is stored."""
        if self.type == "text":
            return np.bytes_(str(value).encode())
        return np.asarray(value, dtype=f"<{self.type}")

    def fault(self, value: Any) -> str:
        """Return what is wrong with a value, empty if nothing is."""
        if self.type == "text":
            return "" if isinstance(value, str) else "need text of fixed length"
        array = np.asarray(value)
        shape = (self.size,) if self.size else ()
        if array.dtype.kind != self.type[0] or array.shape != shape:
            return f"found {array.dtype} {array.shape}, need {self.type} {shape}"
        return "" if np.isfinite(array).all() else "not finite"


@dataclass(frozen=True)
class Entry:
    """A group (no dtype) or a dataset.

    Parameters
    ----------
    path : str
        ``<name>`` stands for the name of an opening.
    dtype : str
        ``opening`` is the compound type of the openings table.
    axes : tuple of str
        ``grid`` is (nz, ny, nx) or (ny, nx); a number is that length; any other word is a length
        that must be the same wherever it is used.
    ndim : int
        0 = every kind, else only that dimension.
    """

    path: str
    need: str
    meaning: str
    attributes: tuple[Attribute, ...] = ()
    dtype: str = ""
    axes: tuple[str, ...] = ()
    unit: str = ""
    ndim: int = 0

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        """Little-endian dtype of the dataset."""
        return OPENING if self.dtype == "opening" else np.dtype(f"<{self.dtype}")


def _entry(
    path: str, need: str, form: str, meaning: str, attributes: str = "", ndim: int = 0
) -> Entry:
    """``form`` is ``dtype axes unit``, empty for a group."""
    parsed = []
    for text in attributes.split():
        match = ATTRIBUTE.fullmatch(text)
        assert match, text
        size = int(match["size"] or 0)
        parsed.append(Attribute(match["name"], match["type"], size, not match["optional"]))
    dtype, axes, unit = form.split() if form else ("", "", "")
    words = tuple(axes.split(",")) if axes else ()
    return Entry(path, NEED[need], meaning, tuple(parsed), dtype, words, unit, ndim)


# fmt: off
SCHEMA: tuple[Entry, ...] = (
    _entry("/", "M", "", "root",
           "format:text format_version:text length_unit:text velocity_unit:text world:text axes:text phi_sign:text geometry_kind:text case_id:text writer:text content_sha256:text"),
    _entry("/grid", "M", "", "the sampling grid of the scan",
           "shape_ijk:i8[3] spacing_ijk_m:f8[3] origin_xyz_m:f8[3] direction:f8[9] sample_location:text axis_origin_m?:f8[3] axis_direction?:f8[3]"),
    _entry("/grid/ijk_to_world", "M", "f8 4,4 m", "(i,j,k,1) to RAS+ metres"),
    _entry("/geometry", "M", "", "the lumen",
           "n_components:i8 euler:i8 genus:i8 volume_m3:f8 interior_point_m:f8[3] max_radius_m:f8"),
    _entry("/geometry/phi_mean", "M", "f4 grid m", "mean signed distance to the wall, < 0 in the lumen",
           "band_halfwidth_m:f8 far_field:text bias_m:f8 bias_std_m:f8 eikonal_rms:f8 method:text"),
    _entry("/geometry/phi_std", "M", "f4 grid m", "standard deviation of the wall position, > 0, constant along normals",
           "coverage_2sigma:f8 calibration_set:text calibrated:i8"),
    _entry("/geometry/phi_viscous", "R", "f4 grid m", "viscous distance: sgn |grad| - epsilon Laplacian = sgn, zero where phi_mean is", "epsilon_m:f8 pinned:i8"),
    _entry("/geometry/covariance", "M", "", "C = D K D, K = (I - ell² Laplacian)^-m, D = diag(phi_std / normaliser)",
           "kind:text ell_m:f8 m:i8 bc:text"),
    _entry("/geometry/covariance/normaliser", "M", "f4 grid 1", "square root of the diagonal of K"),
    _entry("/geometry/covariance/modes", "o", "f4 r,grid m", "largest directions of C within two voxels of the wall, each times its standard deviation"),
    _entry("/geometry/covariance/eigenvalues", "o", "f8 r 1", "share of the variance there that each mode holds"),
    _entry("/geometry/samples", "o", "f4 s,grid m", "draws of phi, seed 0"),
    _entry("/geometry/mask", "M", "u1 grid 1", "1 where phi_mean < 0"),
    _entry("/geometry/component", "M", "u1 grid 1", "lumen components 1, 2, … by falling volume, 0 outside"),
    _entry("/geometry/volume_fraction", "M", "f4 grid 1", "fraction of the voxel with phi_mean < 0"),
    _entry("/geometry/normal", "M", "f4 grid,3 1", "unit normal (x,y,z) out of the lumen in the band, else 0"),
    _entry("/geometry/curvature", "M", "f4 grid 1/m", "divergence of the normal in the band, else 0: cylinder 1/r, sphere 2/r"),
    _entry("/geometry/curvature_gauss", "o", "f4 grid 1/m^2", "product of the principal curvatures in the band, else 0; not of planar2d"),
    _entry("/geometry/band_index", "M", "i8 nb 1", "flat indices of the band, |phi_mean| <= band_halfwidth_m"),
    _entry("/boundary", "M", "", "parts of the boundary"),
    _entry("/boundary/domain", "M", "u1 grid 1", "flow domain: mask cut by the opening planes"),
    _entry("/boundary/label", "M", "u1 grid 1", "nearest part in the band: 0 none, 1 wall, >= 2 opening"),
    _entry("/boundary/openings", "M", "opening n mixed", "table of inlets and outlets; may be empty",
           "field_units:text"),
    _entry("/boundary/<name>", "R", "", "flow through one opening",
           "sigma_g?:f8 ell_g_m?:f8 m_g?:i8 rim?:text g_o_mean?:f8 sigma_go?:f8"),
    _entry("/boundary/<name>/points", "R", "f8 np,3 m", "points of the cap"),
    _entry("/boundary/<name>/u_mean", "R", "f4 nt,np,3 m/s", "mean velocity on the cap, 0 on the rim"),
    _entry("/boundary/<name>/u_std", "R", "f4 nt,np,3 m/s", "its standard deviation, 0 on the rim"),
    _entry("/boundary/<name>/t", "R", "f8 nt s", "times"),
    _entry("/surface", "M", "", "closed oriented boundary of the lumen",
           "watertight:i8 euler:i8 volume_m3:f8 area_m2:f8"),
    _entry("/surface/vertices", "M", "f8 nv,3 m", "vertices, RAS+"),
    _entry("/surface/faces", "M", "i4 nf,3 1", "triangles, counter-clockwise from outside", ndim=3),
    _entry("/surface/face_label", "M", "u1 nf 1", "1 wall, >= 2 opening, 0 closure at the box", ndim=3),
    _entry("/surface/edges", "M", "i4 nf,2 1", "edges, lumen on the left", ndim=2),
    _entry("/surface/edge_label", "M", "u1 nf 1", "1 wall, >= 2 opening, 0 closure at the box", ndim=2),
    _entry("/surface/vertex_normal", "M", "f4 nv,3 1", "unit normal out of the lumen"),
    _entry("/surface/vertex_std", "M", "f4 nv m", "phi_std at the vertex"),
    _entry("/surface/vertex_curvature", "M", "f4 nv 1/m", "curvature at the vertex"),
    _entry("/centerline", "R", "", "graph of the axis of the flow domain; it ends at the openings",
           "n_branches?:i8 n_ends?:i8 n_junctions?:i8 n_loops?:i8"),
    _entry("/centerline/points", "R", "f8 nc,3 m", "points"),
    _entry("/centerline/radius", "R", "f4 nc m", "radius of the circle as large as the section; at junctions of the inscribed ball"),
    _entry("/centerline/edges", "R", "i4 ne,2 1", "edges"),
    _entry("/centerline/branch", "R", "i4 ne 1", "number of the chain between ends and junctions"),
    _entry("/velocity", "R", "", "measured velocity",
           "venc_ms:f8[3] background_corrected:i8 unwrapped:i8 rr_s:f8"),
    _entry("/velocity/u", "R", "f4 nt,grid,3 m/s", "velocity (x,y,z)"),
    _entry("/velocity/sigma_u", "R", "f4 grid m/s", "standard deviation of the noise of a component of one frame, the worst where their venc differ"),
    _entry("/images", "M", "", "evidence used"),
    _entry("/images/probability", "M", "f4 grid 1", "probability of lumen", "source:text"),
    _entry("/images/probability_std", "R", "f4 grid 1", "its standard deviation, where the evidence has one"),
    _entry("/images/magnitude", "R", "f4 grid 1", "the scan, unit of the scanner"),
    _entry("/images/pcmra", "R", "f4 grid 1", "angiogram"),
    _entry("/physics", "R", "", "the fluid", "nu_mean:f8 nu_std:f8 rho:f8 model:text nu_zero?:f8 relaxation_s?:f8 exponent?:f8"),
    _entry("/quality", "M", "", "figures of merit; warnings one a line",
           "eikonal_mean:f8 eikonal_max:f8 normal_rms_deg:f8 wall_snr:f8 mass_balance:f8 mass_balance_sigma:f8 converged:i8 warnings:text"),
    _entry("/quality/step_rms", "R", "f4 ns m", "wall displacement of each refinement step, rms"),
    _entry("/provenance", "M", "", "where the prior comes from"),
    _entry("/provenance/json", "M", "u1 n1 1", "UTF-8 JSON: inputs, configuration, seed, versions"),
    _entry(VOLATILE, "R", "u1 n2 1", "UTF-8 JSON: times, durations, host; not in content_sha256"),
)
# fmt: on

FIXED_ROOT = {
    "format": FORMAT,
    "length_unit": "m",
    "velocity_unit": "m/s",
    "world": "RAS+",
    "phi_sign": "negative_inside",
}


@cache
def find(path: str) -> Entry | None:
    """Return the entry of a path, or None for a path the format does not know."""
    for entry in SCHEMA:
        if entry.path == path or (
            "<name>" in entry.path
            and re.fullmatch(entry.path.replace("<name>", "[a-z][a-z0-9_]*"), path)
        ):
            return entry
    return None


def storage(path: str) -> tuple[np.dtype[Any], str]:
    """Return dtype and unit of a dataset of the format."""
    entry = find(path)
    if entry is None or not entry.dtype:
        raise KeyError(path)
    return entry.numpy_dtype, entry.unit


def of_kind(ndim: int) -> Iterable[Entry]:
    """Return the entries that exist in that dimension."""
    return (entry for entry in SCHEMA if entry.ndim in (0, ndim))


def order(path: str) -> tuple[int, str]:
    """Return the sort key that puts paths in the order of the table."""
    entry = find(path)
    return (SCHEMA.index(entry) if entry else len(SCHEMA), path)


def structure_fault(
    arrays: Mapping[str, Facts], attributes: Mapping[str, Mapping[str, Any]]
) -> str:
    """Return the first thing missing or of the wrong type, rank or length; empty if all is well."""
    kind = attributes.get("/", {}).get("geometry_kind")
    if kind not in KINDS:
        return f"attribute geometry_kind of /: found {kind!r}, need one of {', '.join(KINDS)}"
    for entry in of_kind(KINDS[kind]):
        present = entry.path in (arrays if entry.dtype else attributes)
        if entry.need == "must" and not present and "<name>" not in entry.path:
            return f"{entry.path} missing"
    for path, values in attributes.items():
        for known in _attributes(path):
            if known.name in values:
                fault = known.fault(values[known.name])
                if fault:
                    return f"attribute {known.name} of {path}: {fault}"
            elif known.must:
                return f"attribute {known.name} of {path} missing"
    lengths = _grid_lengths(attributes["/grid"]["shape_ijk"], KINDS[kind])
    return next(filter(None, (_shape_fault(p, a, lengths) for p, a in arrays.items())), "")


def markdown_table() -> str:
    """Return the table of contents as Markdown, as it stands in docs/prior-format.md."""
    rows = ["| path | dtype | axes | unit | | meaning |", "|---|---|---|---|---|---|"]
    for entry in SCHEMA:
        axes = f"({', '.join(entry.axes)})" if entry.axes else ""
        only = f" ({entry.ndim}-D only)" if entry.ndim else ""
        names = ", ".join(f"`{a.name}`" for a in entry.attributes)
        meaning = entry.meaning + only + (f"; attributes {names}" if names else "")
        dtype = entry.dtype if entry.dtype else "group"
        cells = (f"`{entry.path}`", dtype, axes, entry.unit, entry.need, meaning)
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows).replace("|phi_mean|", "\\|phi_mean\\|") + "\n"


def _attributes(path: str) -> tuple[Attribute, ...]:
    entry = find(path)
    return entry.attributes if entry else ()


def _grid_lengths(shape_ijk: NDArray[np.int64], ndim: int) -> dict[str, tuple[int, ...]]:
    return {"grid": tuple(int(n) for n in shape_ijk[:ndim][::-1])}


def _shape_fault(path: str, array: Facts, lengths: dict[str, tuple[int, ...]]) -> str:
    """Compare one array with its entry; lengths met for the first time are noted."""
    entry = find(path)
    if entry is None:
        return f"{path} is not part of the format"
    if array.dtype != entry.numpy_dtype:
        return f"{path}: found dtype {array.dtype}, need {entry.numpy_dtype}"
    found, need = tuple(array.shape), list[int]()
    group = path.rsplit("/", 1)[0]
    for word in entry.axes:
        if word == "grid":
            need += lengths["grid"]
        elif word.isdigit():
            need.append(int(word))
        else:
            here = found[len(need) : len(need) + 1] or (0,)
            need += lengths.setdefault(f"{group}:{word}", here)
    most = 16 * math.prod(lengths["grid"]) + LIST_LIMIT
    if "grid" not in entry.axes and math.prod(found) > most:
        return f"{path} claims too much for its grid: found shape {found}"
    return "" if found == tuple(need) else f"{path}: found shape {found}, need {tuple(need)}"
