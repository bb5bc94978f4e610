"""MetaImage and NRRD files through SimpleITK, after their header and voxels were checked here."""

from __future__ import annotations

import hashlib
import math
import os
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import DataError, EnvironmentFault
from .choices import Choices, Raw, real_numbers
from .guard import read_bytes_checked, sha256_file

PathLike = str | os.PathLike[str]

INSTALL = 'pip install "vesselseg[dicom]"'
MAX_LINES, MAX_LINE = 200, 4096
META_TYPES = {"CHAR": 1, "UCHAR": 1, "SHORT": 2, "USHORT": 2, "INT": 4, "UINT": 4}
META_TYPES |= {"FLOAT": 4, "DOUBLE": 8}
META_TEXT = {"ObjectType", "AnatomicalOrientation", "ElementType", "ElementDataFile", "Modality"}
META_TEXT |= {"BinaryData", "BinaryDataByteOrderMSB", "ElementByteOrderMSB", "CompressedData"}
META_NUMBERS = {"NDims": 1, "CompressedDataSize": 1, "CompressionLevel": 1, "DimSize": "n"}
META_NUMBERS |= {"Offset": "n", "Position": "n", "Origin": "n", "CenterOfRotation": "n"}
META_NUMBERS |= {"ElementSpacing": "n", "ElementSize": "n", "ElementNumberOfChannels": 1}
META_NUMBERS |= {"TransformMatrix": "nn", "Rotation": "nn", "Orientation": "nn"}
NRRD_TYPES = {
    1: "signed char|int8|int8_t|uchar|unsigned char|uint8|uint8_t",
    2: "short|short int|signed short|signed short int|int16|int16_t"
    "|ushort|unsigned short|unsigned short int|uint16|uint16_t",
    4: "int|signed int|int32|int32_t|uint|unsigned int|uint32|uint32_t|float",
    8: "double",
}
NRRD_ELSEWHERE = {"data file", "datafile", "line skip", "lineskip", "byte skip", "byteskip"}


@dataclass(frozen=True)
class Claim:
    """What a header says of its voxels."""

    shape: tuple[int, ...]
    itemsize: int
    packed: bool
    offset: int


def read(path: PathLike, choices: Choices) -> Raw:
    """Read ``.mha`` or ``.nrrd`` with the data in the same file; needs the extra ``dicom``."""
    data = read_bytes_checked(path, limit=choices.limits.expanded_bytes)
    meta = os.fspath(path).lower().endswith((".mha", ".mhd"))
    claim = _meta(data, path) if meta else _nrrd(data, path)
    size = choices.limits.check(claim.shape, claim.itemsize, path, len(claim.shape))
    _check_voxels(data, claim, size, path)
    image = _load(path, "MetaImageIO" if meta else "NrrdImageIO", len(claim.shape))
    digest = hashlib.sha256(data).hexdigest()
    if sha256_file(path) != digest:
        raise DataError("changed during read", path=path, remedy="wait for its writer to finish")
    n = image.GetDimension()
    affine = np.eye(4)
    affine[:n, :n] = np.reshape(image.GetDirection(), (n, n)) * image.GetSpacing()
    affine[:n, 3] = image.GetOrigin()
    affine[:2] *= -1.0  # ITK's world is LPS
    import SimpleITK

    return Raw(real_numbers(SimpleITK.GetArrayFromImage(image), choices, path), affine, digest)


def _load(path: PathLike, reader: str, ndim: int) -> Any:
    try:
        import SimpleITK
    except ImportError as error:
        raise EnvironmentFault("SimpleITK is missing", path=path, remedy=INSTALL) from error
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        image = SimpleITK.ReadImage(os.fspath(path), imageIO=reader)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise DataError("not readable by ITK", path=path, found=reason) from error
    if image.GetDimension() != ndim or image.GetNumberOfComponentsPerPixel() != 1:
        raise DataError("not a scalar image", path=path, remedy="save one component as NIfTI")
    return image


def _check_voxels(data: bytes, claim: Claim, size: int, path: PathLike) -> None:
    """Refuse voxels that are not all there, or followed by anything else."""
    voxels = len(data) - claim.offset
    if claim.packed:
        stream = zlib.decompressobj(wbits=47)
        try:
            voxels = len(stream.decompress(data[claim.offset :], size + 1))
        except zlib.error as error:
            raise DataError("damaged compressed data", path=path) from error
        if not stream.eof or stream.unused_data:
            voxels = -1 if voxels == size else voxels
    if voxels != size:
        found = f"{voxels} bytes" if voxels >= 0 else "a damaged end"
        raise DataError("truncated or padded", path=path, found=found, need=f"{size} bytes")


def _lines(data: bytes, path: PathLike, last: str) -> tuple[list[str], int]:
    """Return the lines of a text header up to the one that starts with ``last``, and its end."""
    lines, at = [], 0
    for _ in range(MAX_LINES):
        end = data.find(b"\n", at, at + MAX_LINE)
        if end < 0:
            break
        lines.append(data[at:end].decode("latin-1").rstrip("\r"))
        at = end + 1
        if lines[-1].startswith(last) if last else not lines[-1]:
            return lines, at
    raise DataError("bad header: no end found", path=path)


def _fields(lines: list[str], separator: str, path: PathLike) -> dict[str, str]:
    fields: dict[str, str] = {}
    for line in lines:
        key, found, value = (part.strip() for part in line.partition(separator))
        if not found or key in fields:
            raise DataError("bad header line", path=path, found=line[:60])
        fields[key] = value
    return fields


def _numbers(text: str, count: int, key: str, path: PathLike) -> list[float]:
    try:
        values = [float(word) for word in text.split()]
    except ValueError:
        values = []
    if len(values) != count or not all(map(math.isfinite, values)):
        raise DataError(f"bad {key}", path=path, found=text[:60], need=f"{count} numbers")
    return values


def _sizes(text: str, ndim: int, key: str, path: PathLike) -> tuple[int, ...]:
    if ndim not in (2, 3):
        raise DataError("bad number of dimensions", path=path, found=ndim, need="2 or 3")
    sizes = _numbers(text, ndim, key, path)
    if any(s < 1 or s != int(s) for s in sizes):
        raise DataError(f"bad {key}", path=path, found=text[:60], need="sizes of at least 1")
    return tuple(int(s) for s in sizes[::-1])


def _meta(data: bytes, path: PathLike) -> Claim:
    lines, offset = _lines(data, path, "ElementDataFile")
    fields = _fields(lines, "=", path)
    if fields.get("ElementDataFile") != "LOCAL":
        remedy = "save the image as one .mha or .nii.gz file"
        raise DataError("detached data file not allowed", path=path, remedy=remedy)
    ndim = int(_numbers(fields.get("NDims", ""), 1, "NDims", path)[0])
    shape = _sizes(fields.get("DimSize", ""), ndim, "DimSize", path)
    for key, value in fields.items():
        if key in META_NUMBERS:
            count = {1: 1, "n": ndim, "nn": ndim * ndim}[META_NUMBERS[key]]
            _numbers(value, count, key, path)
        elif key not in META_TEXT:
            raise DataError(f"unknown header key {key[:40]}", path=path, remedy="save as .nii.gz")
    kind = fields.get("ElementType", "").removeprefix("MET_")
    binary = fields.get("BinaryData", "").lower() == "true"
    channels = fields.get("ElementNumberOfChannels", "1")
    if kind not in META_TYPES or not binary or channels != "1":
        raise DataError(
            "not a binary scalar image", path=path, found=f"{kind}, {channels} channels"
        )
    packed = fields.get("CompressedData", "False").lower() == "true"
    if packed and fields.get("CompressedDataSize") != str(len(data) - offset):  # ITK trusts it
        need = f"CompressedDataSize = {len(data) - offset}"
        raise DataError("truncated or padded", path=path, need=need)
    return Claim(shape, META_TYPES[kind], packed, offset)


def _nrrd(data: bytes, path: PathLike) -> Claim:
    if not data.startswith(b"NRRD000"):
        raise DataError("not NRRD: wrong magic", path=path)
    lines, offset = _lines(data, path, "")
    kept = [line for line in lines[1:-1] if not line.startswith("#") and ":=" not in line]
    fields = {k.lower(): v for k, v in _fields(kept, ":", path).items()}
    if fields.keys() & NRRD_ELSEWHERE:
        remedy = "save the image as one .nrrd or .nii.gz file"
        raise DataError("detached data file not allowed", path=path, remedy=remedy)
    ndim = int(_numbers(fields.get("dimension", ""), 1, "dimension", path)[0])
    shape = _sizes(fields.get("sizes", ""), ndim, "sizes", path)
    kind, encoding = fields.get("type", "").lower(), fields.get("encoding", "").lower()
    sizes = [size for size, names in NRRD_TYPES.items() if kind in names.split("|")]
    if not sizes or encoding not in ("raw", "gzip", "gz"):
        found = f"{kind}, {encoding}"
        raise DataError("unknown type or encoding", path=path, found=found, need="raw or gzip")
    return Claim(shape, sizes[0], encoding != "raw", offset)
