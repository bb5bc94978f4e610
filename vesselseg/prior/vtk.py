"""The VTKHDF face of a prior file: a volume and a wall that share the datasets of the prior.

A MultiBlockDataSet of an ImageData and a PolyData (VTK file format 2.2, VTK >= 9.4). Data are hard
links, the assembly holds soft ones, and both the root and the assembly keep creation order:
without it, VTK shows blocks without arrays and says nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from .schema import SCHEMA, Entry

Put = Callable[[h5py.File, str, NDArray[Any], str], h5py.Dataset]

VERSION = np.array([2, 2], dtype="<i8")
TOPOLOGY = ("Vertices", "Lines", "Polygons", "Strips")
BLOCKS = {"volume": "ImageData", "wall": "PolyData"}
WALL = "/VTKHDF/wall"
VOLUME = "/VTKHDF/volume"


def add_vtk(file: h5py.File, put: Put) -> None:
    """Add the group /VTKHDF to a prior that is being written."""
    root = file.create_group("VTKHDF", track_order=True)
    _describe(root, "MultiBlockDataSet")
    for index, (name, kind) in enumerate(BLOCKS.items()):
        block = root.create_group(name, track_order=True)
        _describe(block, kind)
        block.attrs["Index"] = np.int64(index)
    assembly = root.create_group("Assembly", track_order=True)
    for name in BLOCKS:
        assembly.create_group(name, track_order=True)[name] = h5py.SoftLink(f"/VTKHDF/{name}")
    for name, value in image_attributes(file).items():
        root["volume"].attrs[name] = value
    for path, value in cells(file["/surface"]).items():
        put(file, f"{WALL}/{path}", value, "1")
    for target, source in links(file):
        parent, name = target.rsplit("/", 1)
        file.require_group(parent)[name] = file[source]


def vtk_fault(file: h5py.File) -> str:
    """Return what makes the VTKHDF part disagree with the prior; empty if nothing does."""
    if "/VTKHDF" not in file:
        return "/VTKHDF missing"
    for name in BLOCKS:
        link = file.get(f"/VTKHDF/Assembly/{name}/{name}", getlink=True)
        if not isinstance(link, h5py.SoftLink) or f"/VTKHDF/{name}" not in file:
            return f"block {name} is not in the assembly"
    for target, source in links(file):
        if target not in file or file[target] != file[source]:
            return f"{target} is not {source}"
    for name, value in image_attributes(file).items():
        found = file[VOLUME].attrs.get(name)
        if found is None or not np.array_equal(found, value):
            return f"{name} of the volume: found {found}, need {value}"
    for path, value in cells(file["/surface"]).items():
        if f"{WALL}/{path}" not in file or not np.array_equal(file[f"{WALL}/{path}"], value):
            return f"{WALL}/{path} differs from the surface"
    return ""


def image_attributes(file: h5py.File) -> dict[str, NDArray[Any]]:
    """Return what places the image in the world: VTK reads Direction row by row."""
    grid = file["/grid"].attrs
    last = np.asarray(grid["shape_ijk"]) - 1
    return {
        "WholeExtent": np.array([0, last[0], 0, last[1], 0, last[2]], dtype="<i8"),
        "Origin": np.array(grid["origin_xyz_m"], dtype="<f8"),
        "Spacing": np.array(grid["spacing_ijk_m"], dtype="<f8"),
        "Direction": np.array(grid["direction"], dtype="<f8"),
    }


def cells(surface: h5py.Group) -> dict[str, NDArray[Any]]:
    """Return the arrays that VTK needs beside the prior's own: all four kinds, even empty."""
    faces = np.asarray(surface["faces" if "faces" in surface else "edges"])
    used = "Polygons" if faces.shape[1] == 3 else "Lines"
    arrays = {"NumberOfPoints": np.array([len(surface["vertices"])], dtype="<i8")}
    for kind in TOPOLOGY:
        flat = faces.ravel() if kind == used else faces[:0].ravel()
        count = len(faces) if kind == used else 0
        arrays[f"{kind}/Connectivity"] = flat.astype("<i8")
        arrays[f"{kind}/Offsets"] = np.arange(count + 1, dtype="<i8") * faces.shape[1]
        arrays[f"{kind}/NumberOfCells"] = np.array([count], dtype="<i8")
        arrays[f"{kind}/NumberOfConnectivityIds"] = np.array([len(flat)], dtype="<i8")
    return arrays


def links(file: h5py.File) -> Iterator[tuple[str, str]]:
    """Yield (place in VTKHDF, path of the prior) of every array that both share."""
    for entry in SCHEMA:
        if "<name>" not in entry.path and entry.path in file:
            place = _place(entry)
            if place:
                yield f"{place}/{entry.path.rsplit('/', 1)[1]}", entry.path
    yield f"{WALL}/Points", "/surface/vertices"


def _place(entry: Entry) -> str:
    if entry.axes in (("grid",), ("grid", "3")):
        return f"{VOLUME}/PointData"
    if entry.path.startswith("/surface/vertex_"):
        return f"{WALL}/PointData"
    return f"{WALL}/CellData" if entry.path.endswith("_label") else ""


def _describe(group: h5py.Group, kind: str) -> None:
    group.attrs["Version"] = VERSION
    group.attrs["Type"] = np.bytes_(kind)  # fixed ASCII: a variable-length string is not found
