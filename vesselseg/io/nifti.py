"""NIfTI-1 and NIfTI-2: the header is checked here, understood by nibabel, and written by it."""

from __future__ import annotations

import gzip
import hashlib
import os
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, DataError
from ..grid import Grid
from .atomic import write_bytes
from .choices import Choices, Raw, pick_component, pick_frame, real_numbers
from .guard import GZIP, gunzip, gunzip_head, read_bytes_checked

PathLike = str | os.PathLike[str]

HEADER_BYTES: dict[int, Any] = {348: nibabel.Nifti1Header, 540: nibabel.Nifti2Header}
MAGIC = {348: (b"n+1\0", b"ni1\0"), 540: (b"n+2\0\r\n\x1a\n", b"ni2\0\r\n\x1a\n")}
TYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 32: "c8", 64: "f8", 256: "i1", 512: "u2"}
TYPES |= {768: "u4", 1024: "i8", 1280: "u8", 1536: "f16", 1792: "c16", 2048: "c32"}
COLOURS = {128: ("R", "G", "B"), 2304: ("R", "G", "B", "A")}
MAX_OFFSET = 16 << 20
TO_MM = {1: 1e3, 2: 1.0, 3: 1e-3}
UNPLACED = "no orientation in the header: axes taken as right, anterior, superior"


def read(path: PathLike, choices: Choices) -> Raw:
    """Read ``.nii``, ``.nii.gz`` or ``.hdr`` + ``.img``; nothing is allocated for a false claim."""
    data = read_bytes_checked(path, limit=choices.limits.expanded_bytes)
    digest = hashlib.sha256(data).hexdigest()
    zipped = data.startswith(GZIP)
    if str(path).lower().endswith(".gz") and not zipped:
        raise DataError("not gzip (plain NIfTI?)", path=path, remedy="rename it to .nii")
    header, pair = _header(gunzip_head(data, 544, path) if zipped else data, path)
    shape, dtype, offset = _layout(header, pair, path)
    total = offset + choices.limits.check(shape, dtype.itemsize, path, min(len(shape), 3))
    if pair:
        data = _voxels_of_pair(path, zipped, choices)
        digest = hashlib.sha256(digest.encode() + data).hexdigest()
    body = gunzip(data, total, path) if zipped else data
    if len(body) < total:
        raise DataError(f"truncated: needs {total} bytes, has {len(body)}", path=path)
    if len(body) > total:
        raise DataError(f"{len(body) - total} bytes after the end", path=path)
    if not pair:
        _check_extensions(body, header, offset, path)
    voxels = np.frombuffer(body, dtype, offset=offset).reshape(shape)
    values, notes = _scalar_frame(voxels, header, choices, path)
    try:
        affine, placed, more = _affine(header, values.T.shape, path)
    except DataError:
        if choices.spacing_mm is None:
            raise
        affine, placed, more = None, False, ("geometry of the header not usable, ignored",)
    return Raw(values, affine, digest, placed, notes + more)


def write_image(
    path: PathLike, values: NDArray[Any], grid: Grid, *, overwrite: bool = False
) -> None:
    """Write a field on its grid as ``.nii`` or ``.nii.gz``.

    Parameters
    ----------
    values : (nz, ny, nx) or (ny, nx) array
        bool and uint8 become uint8, everything else float32.
    grid : Grid
        Goes into sform and qform, in mm.

    Raises
    ------
    ConfigError
        Other suffix, or the file exists and ``overwrite`` is False.
    EnvironmentFault
        As ``atomic.write_bytes``.
    """
    name = os.fspath(path).lower()
    if not name.endswith((".nii", ".nii.gz")):
        raise ConfigError("unknown image suffix", path=path, need=".nii or .nii.gz")
    packed = name.endswith(".gz")
    write_bytes(path, image_bytes(values, grid, packed=packed, path=path), overwrite=overwrite)


def image_bytes(
    values: NDArray[Any], grid: Grid, *, packed: bool = True, path: PathLike | None = None
) -> bytes:
    """Return what ``write_image`` writes, gzipped if packed; ``path`` names the file in faults."""
    array = np.asarray(values)
    if array.shape != grid.shape_kji:
        need = f"shape {grid.shape_kji}"
        raise DataError("image does not fit its grid", path=path, found=array.shape, need=need)
    array = array.astype(np.uint8 if array.dtype in (np.bool_, np.uint8) else np.float32)
    image = nibabel.Nifti1Image(array.T, grid.affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(grid.affine, code=1)
    image.set_qform(grid.affine, code=1, strip_shears=True)
    corners = np.array([[0, 0, 0, 1], [*(n - 1 for n in array.T.shape), 0, 1][:4]])
    shift = np.abs((image.get_qform() - grid.affine) @ corners.T).max()
    if shift > 1e-3 * grid.h_min:  # a quaternion holds no shear: better none than a wrong one
        image.set_qform(None, code=0)
    data: bytes = image.to_bytes()
    return gzip.compress(data, 4, mtime=0) if packed else data


def _header(head: bytes, path: PathLike) -> tuple[Any, bool]:
    """Return the header and whether the voxels lie in another file."""
    for sign in "<>":
        size = int(np.frombuffer(head.ljust(4, b"\0"), sign + "i4", 1)[0])
        if size in HEADER_BYTES and len(head) >= size:
            header = HEADER_BYTES[size](head[:size], endianness=sign, check=False)
            magic = head[344:348] if size == 348 else head[4:12]
            if magic not in MAGIC[size]:
                raise DataError("not NIfTI: wrong magic", path=path, found=magic)
            return header, magic == MAGIC[size][1]
    raise DataError("not NIfTI: wrong header size", path=path, need="348 or 540")


def _layout(header: Any, pair: bool, path: PathLike) -> tuple[tuple[int, ...], Any, int]:
    """Return the C-ordered shape (component, frame, k, j, i), the number type, the data offset."""
    dims = [int(n) for n in header["dim"]]
    if not 1 <= dims[0] <= 7:
        raise DataError("bad number of dimensions", path=path, found=dims[0], need="2 to 5")
    for axis, length in enumerate(dims[1 : dims[0] + 1], 1):
        if length < 1:
            raise DataError(f"dimension {axis} is {length}", path=path, need="at least 1")
    shape = dims[1 : dims[0] + 1]
    while len(shape) > 3 and shape[-1] == 1:
        shape.pop()
    if not 2 <= len(shape) <= 5:
        raise DataError("bad number of dimensions", path=path, found=tuple(shape), need="2 to 5")
    code, bits = int(header["datatype"]), int(header["bitpix"])
    fields = COLOURS.get(code)
    if fields is None and code not in TYPES:
        raise DataError("unknown datatype", path=path, found=code)
    sign = header.endianness
    dtype = np.dtype([(c, "u1") for c in fields] if fields else sign + TYPES[code])
    if bits != 8 * dtype.itemsize:
        raise DataError("datatype and bitpix disagree", path=path, found=f"{code} and {bits}")
    offset = float(header["vox_offset"])
    least = 0 if pair else int(header["sizeof_hdr"]) + 4
    if not (least <= offset <= MAX_OFFSET and offset == int(offset)):
        need = f"{least} to {MAX_OFFSET}"
        raise DataError("bad data offset", path=path, found=f"{offset:g}", need=need)
    return tuple(shape[::-1]), dtype, int(offset)


def _voxels_of_pair(path: PathLike, zipped: bool, choices: Choices) -> bytes:
    partner = Path(path).with_suffix(".img")
    if zipped or Path(path).suffix.lower() != ".hdr" or not partner.exists():
        raise DataError("voxels are in another file", path=path, need=f"{partner.name} beside it")
    return read_bytes_checked(partner, limit=choices.limits.expanded_bytes)


def _check_extensions(body: bytes | bytearray, header: Any, offset: int, path: PathLike) -> None:
    at = int(header["sizeof_hdr"]) + 4
    flagged = body[at - 4] != 0
    while flagged and at < offset:
        size = int(np.frombuffer(body, header.endianness + "i4", 1, at)[0])
        if size < 16 or size % 16 or at + size > offset:
            raise DataError("bad header extension", path=path, found=f"size {size}")
        at += size


def _scalar_frame(
    voxels: NDArray[Any], header: Any, choices: Choices, path: PathLike
) -> tuple[NDArray[Any], tuple[str, ...]]:
    """Pick component, frame and part, and apply the scaling."""
    shape = voxels.shape[::-1]
    if voxels.dtype.fields:
        names = list(voxels.dtype.fields)
        voxels = voxels[names[pick_component(names, shape, choices, path)]]
    if voxels.ndim == 5:
        names = [str(n) for n in range(voxels.shape[0])]
        voxels = voxels[pick_component(names, shape, choices, path)]
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    notes: tuple[str, ...] = ()
    if np.isnan(slope):
        slope, notes = 0.0, ("scl_slope is not a number: values used unscaled",)
    if slope and not (np.isfinite(slope) and np.isfinite(inter)):
        raise DataError("bad intensity scaling", path=path, found=f"{slope:g}, {inter:g}")

    def load(frame: int) -> NDArray[Any]:
        plain = real_numbers(voxels[frame] if voxels.ndim == 4 else voxels, choices, path)
        if slope in (0.0, 1.0) and (slope == 0.0 or inter == 0.0):
            return plain
        return np.asarray(plain.astype(np.float64) * slope + inter)

    frames = voxels.shape[0] if voxels.ndim == 4 else 1
    return pick_frame(load, shape, frames, choices, path), notes


def _affine(
    header: Any, shape_ijk: tuple[int, ...], path: PathLike
) -> tuple[NDArray[np.float64], bool, tuple[str, ...]]:
    """Return the affine in mm, whether the header places it, and what had to be assumed."""
    lengths = np.array([*shape_ijk, 1][:3])
    zooms = header["pixdim"]
    flat = (lengths == 1) & ~(zooms[1:4] > 0)  # an axis that does not exist needs no voxel size
    zooms[1:4][flat] = 1.0
    zooms[0] = zooms[0] if zooms[0] in (-1, 1) else 1
    size = zooms[1:4].astype(np.float64)
    if not (np.isfinite(size).all() and (size > 0).all()):
        found = " x ".join(f"{s:g}" for s in size)
        remedy = "repair pixdim or give --spacing"
        raise DataError("bad voxel size", path=path, found=found, need="> 0", remedy=remedy)
    notes = []
    unit = int(header["xyzt_units"]) & 7
    if unit not in TO_MM:
        notes.append("unit of length unknown in the header: mm taken")
    affine = np.diag([*size, 1.0])
    qform, sform = int(header["qform_code"]) > 0, int(header["sform_code"]) > 0
    if qform:
        try:
            affine = header.get_qform().astype(np.float64)
        except ValueError as error:
            raise DataError("bad qform", path=path, remedy="repair the header") from error
    if sform:
        rotated, affine = affine, header.get_sform().astype(np.float64)
        shift = np.abs((affine - rotated) @ np.array([*(lengths - 1), 1.0])).max()
        scale = np.abs(np.linalg.norm(affine[:3, :3], axis=0) / size - 1).max()
        if qform and shift > 1e-3 * size.min():
            notes.append(f"qform differs from sform by {shift:.3g} mm: sform used")
        elif scale > 1e-3:
            notes.append("pixdim differs from the sform: sform used")
    if not (qform or sform):
        notes.append(UNPLACED)
    affine[:3] *= TO_MM.get(unit, 1.0)
    return affine, qform or sform, tuple(notes)
