"""Builders of good and bad image files; none is stored."""

import gzip
import struct
import warnings
import zlib

import nibabel
import numpy as np

SHAPE = (8, 9, 10)  # k, j, i


def field(shape=SHAPE, dtype="f4", seed=0):
    values = 100.0 * np.random.default_rng(seed).random(shape)
    return values.astype(dtype)


def nii(values=None, affine=None, header=None, **patch):
    """Bytes of a NIfTI-1 file; ``patch`` sets header fields, a dict sets elements of one."""
    values = field() if values is None else np.asarray(values)
    image = nibabel.Nifti1Image(
        values.T, np.eye(4) if affine is None else affine, dtype=values.dtype
    )
    image.header.set_xyzt_units("mm")
    return patched(image.to_bytes(), **patch)


def patched(data, **patch):
    header = nibabel.Nifti1Header(data[:348], check=False)
    for name, value in patch.items():
        if isinstance(value, dict):
            for index, element in value.items():
                header[name][index] = element
        else:
            with np.errstate(invalid="ignore"):
                header[name] = value
    return header.binaryblock + data[348:]


def swapped(data):
    """The same file in the other byte order."""
    header = nibabel.Nifti1Header(data[:348], check=False)
    dtype = header.get_data_dtype()
    voxels = np.frombuffer(data, dtype, offset=352).byteswap().tobytes()
    return header.as_byteswapped(">").binaryblock + data[348:352] + voxels


def flip(data, byte, bit):
    out = bytearray(data)
    out[byte] ^= 1 << bit
    return bytes(out)


def gz(data, level=6):
    return gzip.compress(data, level, mtime=0)


def zeros_gz(head, blocks, block=64 << 20):
    """A gzip file of ``head`` and many zeros, as members, made without making the zeros."""
    return gz(head) + blocks * gz(bytes(block), 9)


def npy(header, body=b""):
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + body


def mha(values=None, **fields):
    values = field() if values is None else values
    body = values.tobytes()
    ndim = values.ndim
    header = {
        "ObjectType": "Image", "NDims": ndim, "BinaryData": "True",
        "BinaryDataByteOrderMSB": "False", "CompressedData": "False",
        "TransformMatrix": " ".join("1" if i % (ndim + 1) == 0 else "0" for i in range(ndim**2)),
        "Offset": " ".join(["0"] * ndim), "ElementSpacing": " ".join(["1"] * ndim),
        "DimSize": " ".join(str(n) for n in values.shape[::-1]), "ElementType": "MET_FLOAT",
    }  # fmt: skip
    last = fields.pop("ElementDataFile", "LOCAL")
    header |= fields
    if header["CompressedData"] == "True":
        body = zlib.compress(body)
        header["CompressedDataSize"] = len(body)
        header |= fields
    lines = [f"{k} = {v}" for k, v in header.items() if v is not None]
    return "\n".join([*lines, f"ElementDataFile = {last}", ""]).encode() + body


def nrrd(values=None, extra=(), **fields):
    values = field() if values is None else values
    header = {
        "type": "float", "dimension": values.ndim, "space": "left-posterior-superior",
        "sizes": " ".join(str(n) for n in values.shape[::-1]),
        "space directions": "(1,0,0) (0,1,0) (0,0,1)", "kinds": "domain domain domain",
        "endian": "little", "encoding": "raw", "space origin": "(0,0,0)",
    }  # fmt: skip
    header |= fields
    body = values.tobytes()
    if header["encoding"] == "gzip":
        body = gzip.compress(body)
    kept = {k: v for k, v in header.items() if v is not None}
    lines = ["NRRD0005", *(f"{k}: {v}" for k, v in kept.items()), *extra]
    return "\n".join([*lines, "", ""]).encode() + body


def dicom_slice(n, *, series="1.2.3.4", tilt=0.0, rows=8, columns=9, gap=2.0, extra=None):
    """Bytes of one explicit little-endian MR slice."""
    import io

    import pydicom
    from pydicom.dataset import Dataset, FileMetaDataset

    slice_ = Dataset()
    slice_.SOPClassUID = "1.2.840.10008.5.1.4.1.1.4"
    slice_.SOPInstanceUID = f"1.2.3.{n + 1}"
    slice_.SeriesInstanceUID = series
    slice_.Modality = "MR"
    slice_.Rows, slice_.Columns = rows, columns
    slice_.PixelSpacing = [1.5, 1.0]
    slice_.SliceThickness = gap
    slice_.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    slice_.ImagePositionPatient = [-10.0, tilt * n, gap * n]
    slice_.SamplesPerPixel, slice_.PhotometricInterpretation = 1, "MONOCHROME2"
    slice_.BitsAllocated, slice_.BitsStored, slice_.HighBit = 16, 12, 11
    slice_.PixelRepresentation = 0
    slice_.PixelData = (field((8, 9), "u2", seed=n)).tobytes()
    for name, value in (extra or {}).items():
        setattr(slice_, name, value)
    slice_.file_meta = FileMetaDataset()
    slice_.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    slice_.file_meta.MediaStorageSOPClassUID = slice_.SOPClassUID
    slice_.file_meta.MediaStorageSOPInstanceUID = slice_.SOPInstanceUID
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pydicom.dcmwrite(stream, slice_, enforce_file_format=True)
    return stream.getvalue()


def nested_sequences(depth):
    """A DICOM element that nests sequences of undefined length."""
    open_ = struct.pack("<HH2sHI", 0x0040, 0xA730, b"SQ", 0, 0xFFFFFFFF)
    item = struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
    close = struct.pack("<HHI", 0xFFFE, 0xE00D, 0) + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    return (open_ + item) * depth + close * depth
