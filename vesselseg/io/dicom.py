"""One DICOM series of slices, or of an enhanced multi-frame image; untested on vendor scanners.

Only uncompressed little-endian files are accepted: deflated ones expand without limit, and
encapsulated pixels need decoders.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import struct
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, DataError, EnvironmentFault
from .choices import Choices, Raw, pick_frame
from .guard import read_bytes_checked

PathLike = str | os.PathLike[str]

INSTALL = 'pip install "vesselseg[dicom]"'
PLAIN = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1")
TAGS: list[Any] = [
    "SeriesInstanceUID", "Rows", "Columns", "BitsAllocated", "PixelRepresentation",
    "SamplesPerPixel", "NumberOfFrames", "ImagePositionPatient", "ImageOrientationPatient",
    "PixelSpacing", "SliceThickness", "RescaleSlope", "RescaleIntercept", "PixelData",
    "TriggerTime", "InstanceNumber", "MRVelocityEncodingSequence",
    "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
    (0x0019, 0x10CC), (0x0051, 0x1014), (0x2001, 0x101A),
]  # fmt: skip
# Name, tag, m/s, and how its bytes are read where the file does not say
VENDORS = (
    ("GE", (0x0019, 0x10CC), 1e-3, "i"),
    ("Siemens", (0x0051, 0x1014), 1e-2, ""),
    ("Philips", (0x2001, 0x101A), 1e-2, "f"),
)
FRAME_ATTRIBUTES = {  # sequence of an enhanced image: its attributes, and what a slice calls them
    "PlanePositionSequence": {"ImagePositionPatient": ""},
    "PlaneOrientationSequence": {"ImageOrientationPatient": ""},
    "PixelMeasuresSequence": {"PixelSpacing": "", "SliceThickness": ""},
    "PixelValueTransformationSequence": {"RescaleSlope": "", "RescaleIntercept": ""},
    "CardiacSynchronizationSequence": {"NominalCardiacTriggerDelayTime": "TriggerTime"},
    "FrameContentSequence": {"TemporalPositionIndex": "InstanceNumber"},
    "MRImageFrameTypeSequence": {"ComplexImageComponent": ""},
}
OF_THE_IMAGE = ("Rows", "Columns", "BitsAllocated", "PixelRepresentation", "SamplesPerPixel")
COLLINEAR = 0.999
FASTEST = 1e5  # of a private element in its unit: more is no velocity
MAX_META = 10_000
SPACING_TOLERANCE = 0.01  # of the slice distance
DUPLICATE_MM = 1e-3
DAMAGED = (
    ValueError, LookupError, TypeError, AttributeError, EOFError, OSError,
    NotImplementedError, ArithmeticError, struct.error,
)  # fmt: skip


def read(path: PathLike, choices: Choices) -> Raw:
    """Read a folder with one series, or the series whose UID is ``key``; needs an extra."""
    files = sorted(p for p in Path(path).iterdir() if p.is_file() and _is_dicom(p))
    if not files:
        raise DataError("is a directory", path=path, need="a file, or a folder of DICOM slices")
    digest, left = hashlib.sha256(), choices.limits.expanded_bytes
    series: dict[str, list[tuple[Any, Path]]] = {}
    for file in files:
        data = read_bytes_checked(file, limit=left)
        left -= len(data)
        digest.update(data)
        image = _parse(data, file)
        frames = series.setdefault(str(image.get("SeriesInstanceUID", "")), [])
        frames += [(slice_, file) for slice_ in _expanded(image, file)]
    if choices.key is None and len(series) != 1:
        found, remedy = ", ".join(sorted(series)[:2]), "choose with --key UID"
        raise DataError(f"{len(series)} series", path=path, found=found, remedy=remedy)
    key = next(iter(series)) if choices.key is None else choices.key
    if key not in series:
        raise ConfigError(
            "no such series", path=path, found=key, need=", ".join(sorted(series)[:3])
        )
    return _frames(series[key], digest.hexdigest(), choices, path)


def _frames(slices: list[tuple[Any, Path]], digest: str, choices: Choices, path: PathLike) -> Raw:
    """Sort the slices of a time series into frames; without a choice there must be one."""
    if choices.frame is None:
        return _with_encoding(_stack(slices, digest, choices, path), slices)
    axes = _numbers(slices[0][0], "ImageOrientationPatient", 6, slices[0][1]).reshape(2, 3)
    normal = np.cross(*axes)
    places: dict[int, list[tuple[Any, Path]]] = {}
    for slice_, file in slices:
        height = float(_numbers(slice_, "ImagePositionPatient", 3, file) @ normal)
        places.setdefault(round(height / DUPLICATE_MM), []).append((slice_, file))
    counts = {len(group) for group in places.values()}
    if len(counts) != 1:
        found = f"{min(counts)} to {max(counts)}"
        raise DataError("slices with different numbers of frames", path=path, found=found)
    ordered = [sorted(group, key=lambda s: _moment(*s)) for group in places.values()]
    stacks = [
        _stack([group[t] for group in ordered], digest, choices, path) for t in range(counts.pop())
    ]
    shape = (len(stacks), *stacks[0].values.shape)
    values = pick_frame(lambda t: stacks[t].values, shape, len(stacks), choices, path)
    return _with_encoding(replace(stacks[0], values=values), slices)


def _moment(slice_: Any, file: Path) -> tuple[float, float]:
    """Return trigger time and instance number: what orders the frames of a slice."""
    time, instance = (_number(slice_, n, 0.0, file) for n in ("TriggerTime", "InstanceNumber"))
    return time, instance


def _with_encoding(raw: Raw, slices: list[tuple[Any, Path]]) -> Raw:
    """Add the encoding velocity, and its direction if the standard's sequence states it.

    Private tags are those of conformance statements; none was tried on files of a scanner.
    """
    slice_ = slices[0][0]
    try:
        for item in slice_.get("MRVelocityEncodingSequence") or ():
            venc = float(item.VelocityEncodingMaximumValue) / 100.0  # cm/s
            way = np.asarray(item.VelocityEncodingDirection, dtype=np.float64)
            note = "venc and direction of the standard's sequence: untested on scanners"
            return replace(
                raw, venc_ms=venc, direction=_axis_of(way, raw), notes=(*raw.notes, note)
            )
        for vendor, tag, unit, form in VENDORS:
            element = slice_.get(tag)
            speeds = [] if element is None else [unit * v for v in _values(element.value, form)]
            if speeds:
                note = f"venc {max(speeds):g} m/s of a private tag: untested on {vendor} scanners"
                return replace(raw, venc_ms=max(speeds), notes=(*raw.notes, note))
    except DAMAGED as error:
        raise DataError("damaged velocity encoding", path=slices[0][1]) from error
    return raw


def _values(value: Any, form: str) -> list[float]:
    """Return the positive numbers in a private element, also where its type was not stated."""
    if isinstance(value, bytes) and form:
        kind = {("i", 2): "<i2", ("i", 4): "<i4"}.get((form, len(value)), "<f4")
        found = np.frombuffer(value[: len(value) // 4 * 4 or 2], kind).astype(float).tolist()
    else:
        text = value.decode("latin-1") if isinstance(value, bytes) else str(value)
        found = [float(word) for word in re.findall(r"\d+(?:\.\d+)?", text)]
    return [number for number in found if 0.0 < number < FASTEST]


def _expanded(image: Any, file: Path) -> list[Any]:
    """Return the frames of an enhanced image as slices, any other image as it is.

    DICOM PS3.3 C.7.6.16: what the frames share stands in one group, the rest in one a frame.
    """
    groups = image.get("PerFrameFunctionalGroupsSequence") or ()
    if not groups:
        return [image]
    from pydicom.dataset import Dataset

    shared = (image.get("SharedFunctionalGroupsSequence") or (Dataset(),))[0]
    data, count = image.get("PixelData") or b"", _number(image, "NumberOfFrames", 1, file)
    bits = _numbers(image, "BitsAllocated", 1, file)[0]
    pixels = [int(_numbers(image, name, 1, file)[0]) for name in ("Rows", "Columns")]
    size = pixels[0] * pixels[1] * int(bits) // 8
    if (
        count != len(groups)
        or size < 1
        or len(data) not in (size * len(groups), size * len(groups) + 1)
    ):
        found, need = (
            f"{len(data)} bytes, {len(groups)} groups",
            f"{count:g} frames of {size} bytes",
        )
        raise DataError("frames missing or truncated", path=file, found=found, need=need)
    frames, kinds = [], set()
    for number, group in enumerate(groups):
        frame = Dataset()
        for name in OF_THE_IMAGE:
            setattr(frame, name, image.get(name, 1 if name == "SamplesPerPixel" else 0))
        for sequence, names in FRAME_ATTRIBUTES.items():
            for item in (group.get(sequence) or shared.get(sequence) or ())[:1]:
                for name, own in names.items():
                    if item.get(name) is not None:
                        setattr(frame, own or name, item.get(name))
        encoding = group.get("MRVelocityEncodingSequence") or shared.get(
            "MRVelocityEncodingSequence"
        )
        if encoding:
            frame.MRVelocityEncodingSequence = encoding
        way = tuple(encoding[0].get("VelocityEncodingDirection") or ()) if encoding else ()
        kinds.add((str(frame.get("ComplexImageComponent", "")), way))
        frame.PixelData = data[number * size : (number + 1) * size]
        frames.append(frame)
    if len(kinds) > 1:
        found = "; ".join(sorted(f"{part or 'image'} {list(way)}" for part, way in kinds)[:3])
        remedy = "export magnitude and each direction of velocity apart"
        raise DataError("frames of several kinds", path=file, found=found, remedy=remedy)
    return frames


def _axis_of(way_lps: NDArray[np.float64], raw: Raw) -> str:
    """Return the signed image axis along a direction of the patient, empty if it is oblique."""
    if raw.affine is None or way_lps.shape != (3,):
        return ""
    columns = raw.affine[:3, :3] / np.linalg.norm(raw.affine[:3, :3], axis=0)
    along = columns.T @ (way_lps * [-1.0, -1.0, 1.0])
    axis = int(np.argmax(np.abs(along)))
    if abs(along[axis]) < COLLINEAR * np.linalg.norm(way_lps):
        return ""
    return ("+" if along[axis] > 0 else "-") + "ijk"[axis]


def _is_dicom(file: Path) -> bool:
    with file.open("rb") as stream:
        return stream.read(132)[128:] == b"DICM"


def _parse(data: bytes, file: Path) -> Any:
    try:
        import pydicom
        from pydicom import errors
    except ImportError as error:
        raise EnvironmentFault("pydicom is missing", path=file, remedy=INSTALL) from error
    syntax = _transfer_syntax(data)
    if syntax not in PLAIN:
        remedy = "convert it with dcm2niix"
        fault = "compressed or unknown DICOM encoding"
        raise DataError(fault, path=file, found=syntax or "none", remedy=remedy)
    try:
        with warnings.catch_warnings(action="ignore"):
            found = pydicom.dcmread(io.BytesIO(data), specific_tags=list(TAGS))
            for tag in TAGS:
                found.get(tag)  # values are parsed on first use
    except RecursionError as error:
        raise DataError("DICOM sequences nested too deeply", path=file) from error
    except (errors.BytesLengthException, errors.InvalidDicomError, *DAMAGED) as error:
        raise DataError("damaged DICOM file", path=file, remedy="export it again") from error
    return found


def _transfer_syntax(data: bytes) -> str:
    """Return the UID from the file's meta group, which is always explicit little-endian."""
    at = data.find(b"\x02\x00\x10\x00UI", 132, MAX_META)
    if at < 0:
        return ""
    length = int.from_bytes(data[at + 6 : at + 8], "little")
    return data[at + 8 : at + 8 + min(length, 64)].decode("latin-1").rstrip("\0 ")


def _numbers(slice_: Any, name: str, count: int, file: Path) -> NDArray[np.float64]:
    try:
        values = np.asarray(slice_.get(name), dtype=np.float64).ravel()
    except (TypeError, ValueError):
        values = np.empty(0)
    if values.shape != (count,) or not np.isfinite(values).all():
        raise DataError(f"bad {name}", path=file, need=f"{count} numbers")
    return values


def _number(slice_: Any, name: str, absent: float, file: Path) -> float:
    given = slice_.get(name) not in (None, "")
    return float(_numbers(slice_, name, 1, file)[0]) if given else absent


def _pixels(slice_: Any, file: Path) -> NDArray[Any]:
    rows, columns, bits = (
        int(_numbers(slice_, n, 1, file)[0]) for n in ("Rows", "Columns", "BitsAllocated")
    )
    many = _number(slice_, "NumberOfFrames", 1, file) > 1
    if many or slice_.get("SamplesPerPixel", 1) != 1:
        remedy = "convert it with dcm2niix"
        raise DataError("not a single grey slice", path=file, remedy=remedy)
    if bits not in (8, 16, 32):
        raise DataError("bad BitsAllocated", path=file, found=bits, need="8, 16 or 32")
    size, data = rows * columns * bits // 8, slice_.get("PixelData") or b""
    if size < 1 or len(data) not in (size, size + size % 2):
        found, need = f"{len(data)} bytes", f"{rows} x {columns} of {bits} bits"
        raise DataError("pixel data missing or truncated", path=file, found=found, need=need)
    sign = "i" if slice_.get("PixelRepresentation", 0) else "u"
    plain = np.frombuffer(data[:size], f"<{sign}{bits // 8}").reshape(rows, columns)
    slope, inter = slice_.get("RescaleSlope", 1), slice_.get("RescaleIntercept", 0)
    return plain if (slope, inter) == (1, 0) else plain * float(slope) + float(inter)


def _stack(slices: list[tuple[Any, Path]], digest: str, choices: Choices, path: PathLike) -> Raw:
    """Order the slices along their normal and refuse anything but an even, straight stack."""
    first, file = slices[0]
    axes = _numbers(first, "ImageOrientationPatient", 6, file).reshape(2, 3)
    size = _numbers(first, "PixelSpacing", 2, file)
    shape = (first.get("Rows"), first.get("Columns"))
    choices.limits.check((len(slices), *(int(n or 0) for n in shape)), 4, path)
    normal = np.cross(*axes)
    placed = []
    for slice_, file in slices:
        same = np.abs(_numbers(slice_, "ImageOrientationPatient", 6, file) - axes.ravel()).max()
        if same > 1e-4 or (slice_.get("Rows"), slice_.get("Columns")) != shape:
            raise DataError("slice differs in size or orientation", path=path, found=file.name)
        corner = _numbers(slice_, "ImagePositionPatient", 3, file)
        placed.append((float(corner @ normal), corner, slice_, file))
    placed.sort(key=lambda entry: entry[0])
    gaps = np.diff([height for height, *_ in placed])
    step = (
        float(np.median(gaps)) if len(gaps) else _number(first, "SliceThickness", 1.0, slices[0][1])
    )
    for gap, (_, _, _, below), (_, _, _, above) in zip(gaps, placed, placed[1:], strict=False):
        pair = f"{below.name}, {above.name}"
        if gap < DUPLICATE_MM:
            raise DataError("duplicate slice", path=path, found=pair)
        if abs(gap - step) > SPACING_TOLERANCE * step:
            fault = "missing slice or uneven spacing"
            raise DataError(
                fault, path=path, found=f"{gap:.4g} mm at {pair}", need=f"{step:.4g} mm"
            )
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = axes[0] * size[1], axes[1] * size[0]
    span = placed[-1][1] - placed[0][1]
    affine[:3, 2] = span / len(gaps) if len(gaps) else normal * step  # a tilt shows as shear
    affine[:3, 3] = placed[0][1]
    affine[:2] *= -1.0  # DICOM's world is LPS
    pixels = [_pixels(slice_, file) for _, _, slice_, file in placed]
    return Raw(np.stack(pixels), affine, digest)
