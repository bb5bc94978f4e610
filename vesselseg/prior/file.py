"""The bytes of a prior file: HDF5 for solvers and VTKHDF for viewers in one, and the way back.

HDF5 works in memory alone. Metadata and data are covered by checksums of the library (version 1.10
format, fletcher32), every dataset by its SHA-256, and everything but the volatile provenance by
``content_sha256``. Equal content gives equal bytes.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Mapping
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..flow import CARREAU
from ..grid import check_affine
from ..io.hdf5_guard import DAMAGED, guard_hdf5, read_array
from ..meridian import Meridian
from ..wall_geometry import gradient
from .fields import spacing_of
from .schema import (
    FIXED_ROOT,
    FORMAT,
    KINDS,
    VERSION,
    VOLATILE,
    find,
    order,
    storage,
    structure_fault,
)
from .vtk import add_vtk

PathLike = str | os.PathLike[str]
Arrays = Mapping[str, NDArray[Any]]
Attributes = Mapping[str, Mapping[str, Any]]
Listed = tuple[str, h5py.HLObject | str, dict[str, tuple[str, Any]]]

MAX_BYTES = 8 << 30
CHUNK = 32
MAX_ATTRIBUTE_BYTES = 1 << 20


def encode(arrays: Arrays, attributes: Attributes) -> bytes:
    """Return the file; nothing is validated here."""
    with h5py.File(
        "prior", "w", driver="core", backing_store=False, libver=("v110", "v110")
    ) as file:
        for path in sorted(set(attributes) - set(arrays), key=order):
            _set_attributes(file.require_group(path), path, attributes[path])
        for path in sorted(arrays, key=order):
            dtype, unit = storage(path)
            dataset = put(file, path, np.ascontiguousarray(arrays[path], dtype), unit)
            _set_attributes(dataset, path, attributes.get(path, {}))
        add_vtk(file, put)
        file.attrs["content_sha256"] = np.bytes_(content_digest(file))
        file.flush()
        return bytes(file.id.get_file_image())


def stored_digest(data: bytes) -> str:
    """Return the ``content_sha256`` that the bytes of a file state."""
    with h5py.File(io.BytesIO(data), "r") as file:
        return str(_text(file.attrs["content_sha256"]))


def decode(
    source: bytes | PathLike, path: PathLike | None = None, *, sane: bool = True
) -> tuple[dict[str, NDArray[Any]], dict[str, dict[str, Any]], tuple[str, ...]]:
    """Read a file or its bytes through every guard.

    Parameters
    ----------
    source : bytes or path-like
    path : path-like, optional
        Name in messages if ``source`` is bytes.
    sane : bool
        Refuse values that contradict each other too.

    Returns
    -------
    arrays : dict
        Path to array, without those of VTKHDF.
    attributes : dict
        Path of a group or dataset to its attributes; text is str.
    notes : tuple of str
        What was not read: parts a newer minor version added.

    Raises
    ------
    DataError
        Everything that makes the file not a prior of this version, whole and consistent.
    """
    path = path if isinstance(source, bytes) else source
    with guard_hdf5(
        source, max_bytes=MAX_BYTES, allowed_soft_links=is_assembly_link, path=path, what="prior"
    ) as (file, datasets):
        try:
            arrays, attributes, notes = _read(file, datasets, path)
        except DAMAGED as error:
            raise DataError("not a readable prior: damaged", path=path) from error
    fault = semantic_fault(arrays, attributes) if sane else ""
    if fault:
        raise DataError(fault, path=path)
    return arrays, attributes, notes


def is_assembly_link(link: str, target: str) -> bool:
    """Whether a soft link is one of the format's own."""
    block = link.rsplit("/", 1)[-1]
    return link == f"/VTKHDF/Assembly/{block}/{block}" and target == f"/VTKHDF/{block}"


def digest(array: NDArray[Any]) -> str:
    """Return the SHA-256 of the C-ordered little-endian bytes."""
    return hashlib.sha256(np.ascontiguousarray(array).data if array.size else b"").hexdigest()


def content_digest(file: h5py.File) -> str:
    """Return the digest over all paths, links, dtypes, shapes, data digests and attributes."""
    return _digest_of(_listing(file, None))


def semantic_fault(arrays: Arrays, attributes: Attributes) -> str:
    """Return the first contradiction among the values; empty if there is none."""
    for path, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            return f"{path}: not a number or infinite values"
    kind = attributes["/"]["geometry_kind"]
    fault = _grid_fault(arrays["/grid/ijk_to_world"], attributes["/grid"])
    fault = fault or _axis_fault(arrays["/grid/ijk_to_world"], attributes["/grid"], kind)
    if fault:
        return fault
    phi, mask = arrays["/geometry/phi_mean"], arrays["/geometry/mask"] != 0
    spacing = spacing_of(arrays["/grid/ijk_to_world"], phi.ndim)
    revolved = kind == "axisymmetric"
    slope = np.sqrt(np.sum(np.square(gradient(phi, spacing, revolved)), axis=0))
    near = np.abs(phi) < 3 * max(spacing)
    median = float(np.median(slope[near])) if near.any() else 0.0
    if not 0.8 <= median <= 1.2:
        return f"not a signed distance: found median |grad phi| {median:.3g}, need 0.8 to 1.2"
    if not np.array_equal(mask, phi < 0):
        return "wrong sign: mask differs from phi_mean < 0"
    probability = arrays["/images/probability"]
    inner, outer = probability[near & mask], probability[near & ~mask]
    if inner.size and outer.size and inner.mean() < outer.mean():
        return "wrong sign: the probability is lower inside the lumen than outside"
    return _fluid_fault(attributes.get("/physics"))


def _fluid_fault(fluid: Mapping[str, Any] | None) -> str:
    if fluid is None or fluid["model"] == "newtonian":
        return ""
    if fluid["model"] != "carreau":
        return f"attribute model of /physics: found {fluid['model']}, need newtonian or carreau"
    missing = [n for n in CARREAU if n not in fluid]
    return f"attribute {missing[0]} of /physics missing" if missing else ""


def _grid_fault(affine: NDArray[np.float64], stored: Mapping[str, Any]) -> str:
    columns = affine[:3, :3]
    spacing = np.asarray(stored["spacing_ijk_m"])
    scale = float(np.linalg.norm(columns, axis=0).max())
    pairs = {
        "spacing_ijk_m": (spacing, np.linalg.norm(columns, axis=0)),
        "origin_xyz_m": (stored["origin_xyz_m"], affine[:3, 3]),
        "direction": (np.reshape(stored["direction"], (3, 3)) * spacing, columns),
    }
    for name, (found, need) in pairs.items():
        if np.abs(np.asarray(found) - need).max() > 1e-6 * scale:
            values = [np.array2string(np.asarray(v), precision=7) for v in (found, need)]
            return f"{name} disagrees with ijk_to_world: found {values[0]}, need {values[1]}"
    try:
        check_affine(affine * np.array([[1e3], [1e3], [1e3], [1.0]]))
    except DataError as error:
        return error.line()
    return ""


def _axis_fault(affine: NDArray[np.float64], stored: Mapping[str, Any], kind: str) -> str:
    """Return what is wrong with the axis of a revolved lumen; no other kind has one."""
    names = ("axis_origin_m", "axis_direction")
    given = [name for name in names if name in stored]
    if kind != "axisymmetric":
        return f"{given[0]} of /grid belongs to geometry_kind axisymmetric" if given else ""
    if len(given) < len(names):
        return f"attribute {next(n for n in names if n not in given)} of /grid missing"
    meridian, step = Meridian.of(affine), float(np.linalg.norm(affine[:3, 1]))
    away = np.asarray(stored[names[0]]) - meridian.origin
    wrong = np.linalg.norm(away - (away @ meridian.along) * meridian.along) > 1e-6 * step
    if wrong or np.abs(np.asarray(stored[names[1]]) - meridian.along).max() > 1e-6:
        return "the axis disagrees with ijk_to_world: it lies half a sample before the first row"
    return ""


def _read(
    file: h5py.File, datasets: Mapping[str, h5py.Dataset], path: PathLike | None
) -> tuple[dict[str, NDArray[Any]], dict[str, dict[str, Any]], tuple[str, ...]]:
    listing = _listing(file, path)
    attributes = {
        name: {key: _text(value) for key, (_, value) in stored.items()}
        for name, item, stored in listing
        if not isinstance(item, str)
    }
    newer = _require_version(attributes["/"], path)
    known = {name: item for name, item in datasets.items() if find(name)}
    fault = structure_fault(known, attributes) or _convention_fault(known, attributes)
    if fault:
        need = f"what version {'.'.join(map(str, VERSION))} of the format prescribes"
        raise DataError(fault, path=path, need=None if "need" in fault else need)
    if attributes["/"]["content_sha256"] != _digest_of(listing):
        raise DataError("content differs from its digest: content_sha256", path=path)
    arrays = {name: _read_whole(item, attributes[name], path) for name, item in known.items()}
    seen = {_address(item) for item in known.values()}
    for name, item in datasets.items():
        if name.startswith("/VTKHDF/") and _address(item) not in seen:
            _read_whole(item, attributes[name], path)
    strange = [n for n in attributes if not find(n) and not n.startswith("/VTKHDF")]
    notes = (f"unknown to this version, not read: {', '.join(strange)}",) if strange else ()
    kept = {n: _own_attributes(n, values) for n, values in attributes.items() if find(n)}
    return arrays, kept, newer + notes


def _listing(file: h5py.File, path: PathLike | None) -> list[Listed]:
    """List every path with its object, or the target of a soft link, and its attributes.

    The file must have passed the guard: there are no other links and no cycles.
    """
    found: list[Listed] = []
    stack: list[tuple[str, h5py.HLObject]] = [("/", file["/"])]
    while stack:
        name, item = stack.pop()
        found.append((name, item, _read_attributes(item, name, path)))
        for key in item if isinstance(item, h5py.Group) else ():
            child = f"{name.rstrip('/')}/{key}"
            link = item.get(key, getlink=True)
            if isinstance(link, h5py.SoftLink):
                found.append((child, str(link.path), {}))
            else:
                stack.append((child, item[key]))
    return found


def _read_attributes(
    item: h5py.HLObject, name: str, path: PathLike | None
) -> dict[str, tuple[str, Any]]:
    """Return dtype and value of every attribute; only fixed-length ones of modest size."""
    values = {}
    for number in range(h5py.h5a.get_num_attrs(item.id)):
        stored = h5py.h5a.open(item.id, index=number)
        key, dtype = stored.name.decode(), stored.dtype
        if dtype.kind not in "Siuf":
            fault = f"attribute {key} of {name} is of variable length or foreign type"
            raise DataError(fault, path=path, need="numbers or text of fixed length")
        if stored.get_storage_size() > MAX_ATTRIBUTE_BYTES:
            raise DataError(f"attribute {key} of {name} claims too much", path=path)
        value = np.empty(stored.shape, dtype)
        stored.read(value)
        values[key] = (str(dtype), value[()])
    return values


def _digest_of(listing: list[Listed]) -> str:
    lines: list[list[Any]] = []
    for path, item, stored in listing:
        if isinstance(item, str):
            lines.append([path, "link", item])
        elif path != VOLATILE:
            kept = sorted(set(stored) - ({"content_sha256"} if path == "/" else set()))
            found = [[name, stored[name][0], _plain(stored[name][1])] for name in kept]
            data = isinstance(item, h5py.Dataset)
            lines.append([path, *([str(item.dtype), item.shape] if data else ["group"]), found])
    text = json.dumps(sorted(lines, key=lambda line: str(line[0])), separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def put(file: h5py.File, path: str, array: NDArray[Any], unit: str) -> h5py.Dataset:
    """Make a dataset: chunked, checksummed and compressed unless it is empty."""
    options: dict[str, Any] = {}
    if array.size:
        options = {"chunks": _chunks(array.shape), "compression": "gzip", "compression_opts": 1}
        options |= {"shuffle": True, "fletcher32": True}
    dataset = file.create_dataset(path, data=array, track_times=False, **options)
    dataset.attrs["units"] = np.bytes_(unit)
    dataset.attrs["sha256"] = np.bytes_(digest(array))
    return dataset


def _chunks(shape: tuple[int, ...]) -> tuple[int, ...]:
    """At most 32 samples along an axis of a grid, 32³ along a list."""
    limit = CHUNK if len(shape) > 2 or min(shape) > 4 else CHUNK**3
    return tuple(min(n, limit) for n in shape)


def _set_attributes(item: h5py.HLObject, path: str, values: Mapping[str, Any]) -> None:
    entry = find(path)
    for attribute in entry.attributes if entry else ():
        if attribute.name in values and attribute.name != "content_sha256":
            item.attrs[attribute.name] = attribute.encode(values[attribute.name])


def _own_attributes(path: str, values: Mapping[str, Any]) -> dict[str, Any]:
    entry = find(path)
    names = [a.name for a in entry.attributes] if entry else []
    return {name: values[name] for name in names if name in values}


def _read_whole(
    item: h5py.Dataset, attributes: Mapping[str, Any], path: PathLike | None
) -> NDArray[Any]:
    array: NDArray[Any] = read_array(item, path=path)
    if digest(array) != attributes.get("sha256"):
        raise DataError(f"content differs from its digest: {item.name}", path=path)
    return array


def _require_version(root: Mapping[str, Any], path: PathLike | None) -> tuple[str, ...]:
    """Refuse another format or major version; return a note for a newer minor one."""
    if root.get("format") != FORMAT:
        found = root.get("format", "no attribute format")
        raise DataError("not a prior file", path=path, found=found, need=FORMAT)
    text = str(root.get("format_version"))
    parts = text.split(".")
    own = ".".join(map(str, VERSION))
    if len(parts) != 2 or not all(p.isdecimal() for p in parts) or int(parts[0]) != VERSION[0]:
        remedy = "read it with the vesselseg that wrote it"
        fault = "prior of another major version"
        raise DataError(fault, path=path, found=text, need=own, remedy=remedy)
    newer = int(parts[1]) > VERSION[1]
    return (f"written by a newer version of the format: {text}, this is {own}",) if newer else ()


def _convention_fault(known: Mapping[str, h5py.Dataset], attributes: Attributes) -> str:
    """Return the first convention that is not the format's: sign, axes, units."""
    axes = "kji" if KINDS[attributes["/"]["geometry_kind"]] == 3 else "ji"
    required = {"/": {**FIXED_ROOT, "axes": axes}, "/grid": {"sample_location": "cell_center"}}
    for path in known:
        entry = find(path)
        required[path] = {"units": entry.unit if entry else ""}
    for path, values in required.items():
        for name, need in values.items():
            found = attributes[path].get(name)
            if found != need:
                return f"attribute {name} of {path}: found {found}, need {need}"
    return ""


def _address(item: h5py.HLObject) -> int:
    return int(h5py.h5o.get_info(item.id).addr)


def _text(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value


def _plain(value: Any) -> Any:
    """Return an attribute as JSON can hold it, exactly."""
    return value.decode("latin-1") if isinstance(value, bytes) else np.asarray(value).tolist()
