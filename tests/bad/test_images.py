# ruff: noqa: E501
"""Bad images: a row is id | how to build it | what must happen (0 reads, else the exit code)."""

import os
import pathlib
import socket
import threading
import zipfile

import image_builders as make
import numpy as np
import pytest

from vesselseg.errors import InputError
from vesselseg.io import Limits, read_volume
from vesselseg.io import guard as guard_module

INF, NAN = float("inf"), float("nan")
GOOD = make.nii()
GOOD_GZ = make.gz(GOOD)
AFFINE = np.array([[1.0, 0, 0, 5], [0, 2, 0, -3], [0, 0, 3, 1], [0, 0, 0, 1]])


def sheared(by):
    affine = np.eye(4)
    affine[0, 1] = by
    return affine


def nifti(**patch):
    return make.nii(**patch)


# id | file name | bytes | options | exit code | words of the error, or of a note
ROWS = [
    ("B004", "a.nii", b"", {}, 3, "empty file"),
    ("B005", "a.nii.gz", b"", {}, 3, "empty file"),
    ("B006", "a.nii.gz", GOOD, {}, 3, "not gzip (plain NIfTI?); rename it to .nii"),
    ("B007", "a.nii", GOOD_GZ, {}, 0, ""),
    ("B008", "notes.txt", b"hello", {}, 3, "unknown image format"),
    ("B009", "a.nii", GOOD[: len(GOOD) // 2], {}, 3, f"truncated: needs {len(GOOD)} bytes"),
    ("B009-short", "a.nii", GOOD[:200], {}, 3, "wrong header size"),
    ("B009-long", "a.nii", GOOD + b"tail", {}, 3, "4 bytes after the end"),
    *(
        (f"B010-{end}", "a.nii.gz", GOOD_GZ[:end], {}, 3, "gzip stream ends early")
        for end in (len(GOOD_GZ) // 2, int(len(GOOD_GZ) * 0.995), len(GOOD_GZ) - 8)
    ),
    ("B011", "a.nii.gz", make.flip(GOOD_GZ, len(GOOD_GZ) - 6, 0), {}, 3, "gzip checksum mismatch"),
    ("B013", "a.nii.gz", make.flip(GOOD_GZ, len(GOOD_GZ) - 2, 0), {}, 3, "gzip length mismatch"),
    ("B014", "a.nii.gz", GOOD_GZ + b"rubbish", {}, 3, "7 bytes after the end"),
    ("B015-exact", "a.nii.gz", make.gz(GOOD[:500]) + make.gz(GOOD[500:]), {}, 0, ""),
    ("B015-more", "a.nii.gz", GOOD_GZ + make.gz(b"more"), {}, 3, "expands to too much"),
    ("B016", "a.nii.gz", lambda: bomb((1000, 1000, 1000)), {}, 3, "too many voxels"),
    ("B016-4d", "a.nii.gz", lambda: bomb((100, 1000, 1000, 10)),
     {"limits": Limits(expanded_bytes=10**9)}, 3, "expands to 2 GB"),
    ("B017", "a.nii.gz", lambda: bomb((16, 16, 16)), {}, 3, "expands to too much"),
    ("B018", "a.nii", nifti(dim={1: 32767, 2: 32767, 3: 32767}), {}, 3, "3.52e+13"),
    ("B019", "a.nii", nifti(dim=[4, 200, 200, 200, 100, 1, 1, 1]), {}, 3, "truncated"),
    ("B019-gz", "a.nii.gz", make.gz(nifti(dim=[4, 200, 200, 200, 100, 1, 1, 1])), {}, 3, "truncated"),
    *((f"B020-{n}", "a.nii", nifti(dim={0: n}), {}, 3, "number of dimensions") for n in (0, 8, 9, -1)),
    ("B020-1", "a.nii", nifti(dim={0: 1}), {}, 3, "number of dimensions"),
    ("B021-0", "a.nii", nifti(dim={2: 0}), {}, 3, "dimension 2 is 0"),
    ("B021-16", "a.nii", nifti(dim={3: -16}), {}, 3, "dimension 3 is -16"),
    ("B022-2d", "a.nii", make.nii(make.field((9, 10))), {}, 0, ""),
    ("B022-flat", "a.nii", make.nii(make.field((1, 9, 10))), {}, 0, "axis k of one voxel dropped"),
    ("B022-flat-j", "a.nii", make.nii(make.field((8, 1, 10))), {}, 0, "axis j of one voxel dropped"),
    ("B022-4d", "a.nii", make.nii(make.field((1, 8, 9, 10))), {}, 0, ""),
    ("B022-line", "a.nii", make.nii(make.field((1, 1, 10))), {}, 3, "two axes longer than one"),
    ("B023-4d", "a.nii", make.nii(make.field((5, 8, 9, 10))), {}, 3,
     "5 frames: found shape (10, 9, 8, 5), need one frame; choose with --frame 0 to 4"),
    ("B023-4d-frame", "a.nii", make.nii(make.field((5, 8, 9, 10))), {"frame": 4}, 0, ""),
    ("B023-4d-mean", "a.nii", make.nii(make.field((5, 8, 9, 10))), {"frame": "mean"}, 0, ""),
    ("B023-4d-no", "a.nii", make.nii(make.field((5, 8, 9, 10))), {"frame": 5}, 2, "need 0 to 4"),
    ("B023-5d", "a.nii", make.nii(make.field((3, 1, 8, 9, 10)), intent_code=1007), {}, 3,
     "3 components: found shape (10, 9, 8, 1, 3), need one component; choose with --component"),
    ("B023-5d-one", "a.nii", make.nii(make.field((3, 1, 8, 9, 10))), {"component": 2}, 0, ""),
    ("B023-5d-no", "a.nii", make.nii(make.field((3, 1, 8, 9, 10))), {"component": 3}, 2, "component"),
    ("B023-6d", "a.nii", make.nii(make.field((2, 1, 1, 8, 9, 10))), {}, 3, "number of dimensions"),
    ("B023-rgb", "a.nii", lambda: colour(3), {}, 3, "--component R|G|B"),
    ("B023-rgb-one", "a.nii", lambda: colour(3), {"component": "G"}, 0, ""),
    ("B023-rgba", "a.nii", lambda: colour(4), {}, 3, "--component R|G|B|A"),
    ("B024", "a.nii", nifti(datatype=9999), {}, 3, "unknown datatype"),
    ("B024-bitpix", "a.nii", nifti(bitpix=8), {}, 3, "datatype and bitpix disagree"),
    ("B025", "a.nii", make.nii(make.field(dtype="c8")), {}, 3, "complex image"),
    ("B025-part", "a.nii", make.nii(make.field(dtype="c8")), {"part": "magnitude"}, 0, ""),
    ("B026-f16", "a.nii", make.nii(make.field(dtype="c16"), datatype=1536), {}, 3, "unusable number type"),
    ("B026-i8", "a.nii", make.nii(make.field(dtype="i8") + 2**60), {}, 3, "integers beyond 2^53"),
    ("B026-i4", "a.nii", make.nii(make.field(dtype="i4") + 2**25), {}, 0, "beyond 2^24 rounded"),
    ("B027-magic", "a.nii", nifti(magic=b"xx"), {}, 3, "wrong magic"),
    ("B027-size", "a.nii", nifti(sizeof_hdr=347), {}, 3, "wrong header size"),
    ("B027-swapped", "a.nii", make.swapped(GOOD), {}, 0, ""),
    ("B028", "a.hdr", nifti(magic=b"ni1"), {}, 3, "need a.img beside it"),
    ("B028-nii", "a.nii", nifti(magic=b"ni1"), {}, 3, "voxels are in another file"),
    *(
        (f"B029-{at:g}", "a.nii", nifti(vox_offset=at), {}, 3, "bad data offset")
        for at in (1e9, -352, NAN, 3, 352.5)
    ),
    ("B030-nan", "a.nii", nifti(scl_slope=NAN), {}, 0, "values used unscaled"),
    ("B030-inf", "a.nii", nifti(scl_slope=INF), {}, 3, "bad intensity scaling"),
    ("B030-inter", "a.nii", nifti(scl_slope=1, scl_inter=NAN), {}, 3, "bad intensity scaling"),
    *(
        (f"B031-{size}", "a.nii", lambda size=size: extended(size), {}, 3, "bad header extension")
        for size in (-(2**31), -16, 0, 40, 4096)
    ),
    ("B031-good", "a.nii", lambda: extended(32), {}, 0, ""),
    ("B032", "a.nii", make.nii(np.full((8, 9, 10), 7.0, "f4")), {}, 3, "image has no contrast"),
    ("B033-nan", "a.nii", lambda: holed(NAN), {}, 3, "2 non-finite voxels: found first at (i,j,k) = (3, 2, 1)"),
    ("B033-inf", "a.nii", lambda: holed(INF), {}, 3, "non-finite"),
    ("B033-fill", "a.nii", lambda: holed(NAN), {"nan_fill": 1.0}, 0, "2 non-finite voxels set to 1"),
    ("B034-big", "a.nii", make.nii(make.field() * np.float32(1e36)), {}, 3, "intensities too large"),
    ("B034-f8", "a.nii", make.nii(make.field(dtype="f8") * 1e300), {}, 3, "intensities too large"),
    ("B034-scaled", "a.nii", nifti(scl_slope=3e38), {}, 3, "intensities too large"),
    ("B034-tiny", "a.nii", make.nii(make.field() * np.float32(1e-42)), {}, 3, "no contrast"),
    ("B039-passwd", "a.mhd", make.mha(ElementDataFile="/etc/passwd"), {}, 3, "detached data file not allowed"),
    ("B039-up", "a.mha", make.mha(ElementDataFile="../x"), {}, 3, "detached data file not allowed"),
    ("B039-list", "a.mha", make.mha(ElementDataFile="LIST"), {}, 3, "detached data file not allowed"),
    ("B040", "a.nrrd", make.nrrd(extra=["data file: /etc/passwd"]), {}, 3, "detached data file not allowed"),
    ("B040-nhdr", "a.nhdr", make.nrrd(extra=["datafile: x.raw"]), {}, 3, "detached data file not allowed"),
    ("B041-negative", "a.mha", make.mha(DimSize="10 -9 8"), {}, 3, "bad DimSize"),
    ("B041-huge", "a.mha", make.mha(DimSize="99999 99999 99999"), {}, 3, "too many voxels"),
    ("B041-text", "a.mha", make.mha(Offset="a b c"), {}, 3, "bad Offset"),
    ("B041-end", "a.mha", make.mha().replace(b"ElementDataFile", b"ElementDataFiles"), {}, 3, "detached"),
    ("B041-endless", "a.mha", b"NDims" * 2000, {}, 3, "no end found"),
    ("B041-vector", "a.nrrd", lambda: vectors(), {}, 3, "scalar image"),
    ("B041-itk", "a.nrrd", make.nrrd(endian="sideways"), {}, 3, "not readable by ITK"),
    ("B041-93", "a.mha", b"NDims = 3\nDimSize = 8 8 8\nElementType = MET_FLOAT\nElementDataFile = LOCAL\n12345", {}, 3, "not a binary"),
    ("B041-ndims", "a.mha", make.mha(NDims=10), {}, 3, "number of dimensions"),
    ("B041-matrix", "a.mha", make.mha(TransformMatrix="1 " * 90), {}, 3, "bad TransformMatrix"),
    ("B041-key", "a.mha", make.mha(Surprise="1"), {}, 3, "unknown header key"),
    ("B041-channels", "a.mha", make.mha(ElementNumberOfChannels=3), {}, 3, "scalar image"),
    ("B041-cut", "a.mha", make.mha()[:-7], {}, 3, "truncated or padded"),
    ("B041-zcut", "a.mha", make.mha(CompressedData="True")[:-7], {}, 3, "truncated or padded"),
    ("B041-zbad", "a.mha", make.mha(CompressedData="True")[:-500] + bytes(500), {}, 3, "truncated or padded"),
    ("B041-zhead", "a.mha", make.mha(CompressedData="True").replace(b"LOCAL\nx", b"LOCAL\ny"), {}, 3, "damaged"),
    ("B041-zsize", "a.mha", make.mha(CompressedData="True", CompressedDataSize=5), {}, 3, "CompressedDataSize"),
    ("B041-zgood", "a.mha", make.mha(CompressedData="True"), {}, 0, ""),
    ("B041-good", "a.mha", make.mha(), {}, 0, ""),
    ("B041-shear", "a.mha", make.mha(TransformMatrix="1 0.2 0 0 1 0 0 0 1"), {}, 3, "sheared affine"),
    ("B041-noend", "a.mha", b"NDims = 3\n" * 500, {}, 3, "no end found"),
    ("B041-line", "a.mha", b"NDims = 3\nNDims = 2\nElementDataFile = LOCAL\n", {}, 3, "bad header line"),
    ("B041-nrrd", "a.nrrd", make.nrrd(sizes="-1 9 8"), {}, 3, "bad sizes"),
    ("B041-nrrd-type", "a.nrrd", make.nrrd(type="block"), {}, 3, "unknown type or encoding"),
    ("B041-nrrd-magic", "a.nrrd", b"NRRT" + make.nrrd(), {}, 3, "wrong magic"),
    ("B041-nrrd-gzip", "a.nrrd", make.nrrd(encoding="gzip"), {}, 0, ""),
    ("B041-nrrd-cut", "a.nrrd", make.nrrd(encoding="gzip")[:-9], {}, 3, "truncated or padded"),
    ("B041-nrrd-good", "a.nrrd", make.nrrd(), {}, 0, ""),
    ("B044-object", "a.npy", make.npy("{'descr': '|O', 'fortran_order': False, 'shape': (8, 9)}"), {}, 3, "objects"),
    ("B044-pickle", "a.npy", b"cos\nsystem\n(S'touch pwned'\ntR.", {}, 3, "not a NumPy array"),
    ("B044-code", "a.npy", make.npy("__import__('os').system('touch pwned')"), {}, 3, "not a NumPy array"),
    ("B044-claim", "a.npy", make.npy("{'descr': '<f4', 'fortran_order': False, 'shape': (100000, 100000, 100)}"), {}, 3, "too many voxels"),
    ("B044-negative", "a.npy", make.npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-8, 9)}"), {}, 3, "bad shape"),
    ("B044-cut", "a.npy", make.npy("{'descr': '<f4', 'fortran_order': False, 'shape': (8, 9)}", b"x"), {}, 3, "truncated"),
    ("B045-bomb", "a.npz", lambda: npz({"a.npy": claimed((8, 9, 10), 500 << 20)}), {}, 3, "truncated or padded"),
    ("B045-path", "a.npz", lambda: npz({"../../x.npy": array_bytes()}), {}, 3, "bad member name"),
    ("B045-two", "a.npz", lambda: npz({"a.npy": array_bytes(), "b.npy": array_bytes()}), {}, 3, "--key"),
    ("B045-key", "a.npz", lambda: npz({"a.npy": array_bytes(), "b.npy": array_bytes()}), {"key": "b", "spacing_mm": 1}, 0, ""),
    ("B045-nokey", "a.npz", lambda: npz({"a.npy": array_bytes()}), {"key": "c"}, 2, "no such array"),
    ("B045-encrypted", "a.npz", lambda: encrypted(), {}, 3, "encrypted"),
    ("B045-damaged", "a.npz", lambda: npz({"a.npy": array_bytes()})[:-30], {}, 3, "damaged archive"),
    ("B065-none", "a.npy", lambda: array_bytes(), {}, 3, "no voxel size; give --spacing"),
    *(
        (f"B065-{size}", "a.nii", nifti(pixdim={2: size}), {}, 3, "bad voxel size")
        for size in (0, -1, NAN, INF)
    ),
    ("B065-given", "a.nii", nifti(pixdim={2: 0}), {"spacing_mm": (3, 2, 1)}, 0, "not usable, ignored"),
    ("B065-bad", "a.nii", GOOD, {"spacing_mm": (3, 2)}, 2, "need 1 or 3 numbers > 0"),
    ("B066-small", "a.nii", make.nii(affine=np.diag([1e-9, 1e-9, 1e-9, 1])), {}, 3, "implausible spacing; units?"),
    ("B066-large", "a.nii", make.nii(affine=np.diag([1e9, 1e9, 1e9, 1])), {}, 3, "implausible spacing; units?"),
    ("B067-m", "a.nii", make.nii(affine=1e-3 * AFFINE, xyzt_units=1), {}, 0, ""),
    ("B067-micron", "a.nii", make.nii(affine=1e3 * AFFINE, xyzt_units=3), {}, 0, ""),
    ("B067-unknown", "a.nii", nifti(xyzt_units=0), {}, 0, "unit of length unknown"),
    ("B068-zero", "a.nii", nifti(srow_x=[0, 0, 0, 0]), {}, 3, "singular affine"),
    ("B068-nan", "a.nii", nifti(srow_y=[NAN, 0, 0, 0]), {}, 3, "bad affine"),
    ("B068-given", "a.nii", nifti(srow_x=[0, 0, 0, 0]), {"spacing_mm": 2}, 0, "pixdim differs"),
    ("B069", "a.nii", make.nii(affine=sheared(0.1)), {}, 3, "sheared affine"),
    ("B070", "a.nii", make.nii(affine=np.diag([-1.0, 1, 1, 1])), {}, 0, ""),
    ("B071", "a.nii", nifti(qform_code=1, qoffset_x=4.0), {}, 0, "qform differs from sform by 4 mm"),
    ("B071-qform", "a.nii", nifti(sform_code=0, qform_code=1, quatern_b=2.0), {}, 3, "bad qform"),
    ("B071-pixdim", "a.nii", nifti(pixdim={1: 2.0}), {}, 0, "pixdim differs from the sform"),
    ("B072", "a.nii", nifti(sform_code=0), {}, 0, "no orientation"),
    ("B073", "a.nii", make.nii(affine=np.diag([1.0, 1, 25, 1])), {}, 0, "25 times longer"),
    ("B074-in", "a.nii", make.nii(affine=sheared(9e-4)), {}, 0, ""),
    ("B074-out", "a.nii", make.nii(affine=sheared(2e-3)), {}, 3, "sheared affine"),
]  # fmt: skip


def vectors():
    """A NRRD file whose first axis is a vector: two dimensions for ITK."""
    absent = dict.fromkeys(("space", "space directions", "space origin"))
    return make.nrrd(make.field((8, 9, 3)), kinds="vector domain domain", **absent)


def bomb(shape):
    """2 GB of zeros whose header claims ``shape`` of uint16."""
    dim = [len(shape), *shape[::-1]] if len(shape) == 3 else [4, *shape]
    head = make.nii(make.field((2, 2, 2), "u2"), dim=[*dim, *[1] * (8 - len(dim))])[:352]
    return make.zeros_gz(head, 30)


def colour(channels):
    dtype = [(name, "u1") for name in "RGBA"[:channels]]
    return make.nii(make.field((8, 9, 10, channels), "u1").view(dtype)[..., 0])


def holed(value):
    values = make.field()
    values[1, 2, 3] = values[4, 4, 4] = value
    return make.nii(values)


def extended(size):
    """A file whose 32-byte header extension claims another size."""
    extension = np.array([size, 6], "<i4").tobytes() + bytes(24)
    patched = make.patched(GOOD, vox_offset=384)
    return patched[:348] + b"\1\0\0\0" + extension + GOOD[352:]


def array_bytes():
    return claimed((8, 9, 10), None)


def claimed(shape, zeros):
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}"
    return make.npy(header, make.field(shape).tobytes() if zeros is None else bytes(zeros))


def npz(members):
    import io

    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return stream.getvalue()


def encrypted():
    data = bytearray(npz({"a.npy": array_bytes()}))
    data[6] |= 1
    data[data.rindex(b"PK\x01\x02") + 8] |= 1
    return bytes(data)


@pytest.mark.parametrize(("name", "data", "options", "code", "words"), [
    pytest.param(*row[1:], id=row[0]) for row in ROWS
])  # fmt: skip
def test_bad_image(tmp_path, guarded, name, data, options, code, words):
    path = tmp_path / name
    path.write_bytes(data() if callable(data) else data)
    if path.suffix in (".mha", ".mhd", ".nrrd", ".nhdr"):
        pytest.importorskip("SimpleITK")
    result = guarded(lambda: read_volume(path, **options), path=path)
    if isinstance(result, InputError):
        assert (result.exit_code, words in str(result)) == (code, True), str(result)
    else:
        assert code == 0
        assert np.isfinite(result.values).all()
        assert words in "; ".join(result.notes)
        assert bool(words) == bool(result.notes) or "orientation" in str(result.notes)


def test_b012_no_flipped_bit_of_a_gzip_file_goes_unnoticed(tmp_path):
    """400 flips behind the ten bytes of the gzip header, which hold no data."""
    path, refused = tmp_path / "a.nii.gz", 0
    for seed in range(400):
        at, bit = np.random.default_rng(seed).integers([10, 0], [len(GOOD_GZ), 8])
        path.write_bytes(make.flip(GOOD_GZ, at, bit))
        with pytest.raises(InputError):
            read_volume(path)
        refused += 1
    assert refused == 400


def test_b027_a_byte_swapped_file_reads_equal(tmp_path):
    for name, data in (("a.nii", GOOD), ("b.nii", make.swapped(GOOD))):
        (tmp_path / name).write_bytes(data)
    first, second = (read_volume(tmp_path / n) for n in ("a.nii", "b.nii"))
    assert np.array_equal(first.values, second.values)
    assert np.array_equal(first.grid.affine, second.grid.affine)


def test_b028_a_pair_with_its_image_reads_equal(tmp_path):
    (tmp_path / "a.nii").write_bytes(GOOD)
    (tmp_path / "b.hdr").write_bytes(make.patched(GOOD, magic=b"ni1", vox_offset=0)[:348])
    (tmp_path / "b.img").write_bytes(GOOD[352:])
    assert np.array_equal(
        read_volume(tmp_path / "a.nii").values, read_volume(tmp_path / "b.hdr").values
    )


def test_b067_b070_units_and_handedness_keep_the_place_in_the_world(tmp_path):
    grids = []
    for unit, factor in ((1, 1e-3), (2, 1.0), (3, 1e3)):
        scaled = AFFINE.copy()
        scaled[:3] *= factor
        (tmp_path / "a.nii").write_bytes(make.nii(affine=scaled, xyzt_units=unit))
        grids.append(read_volume(tmp_path / "a.nii").grid)
    # the header holds single precision
    assert max(g.mismatch_mm(grids[1]) for g in grids) < 1e-5


@pytest.mark.parametrize(("name", "words"), [
    ("B001", "no such file"), ("B001-txt", "no such file"), ("B002", "is a directory"),
    ("B036-fifo", "not a regular file"), ("B036-zero", "not a regular file"),
    ("B036-socket", "not a regular file"), ("B037-loop", "in a loop"),
    ("B037-dangling", "no such file"), ("B038-nul", "bad file name"),
])  # fmt: skip
def test_not_a_regular_file(tmp_path, guarded, name, words):
    path = tmp_path / "x.nii"
    if name == "B001-txt":
        path = tmp_path / "x.txt"
    elif name == "B002":
        path.mkdir()
    elif name == "B036-fifo":
        os.mkfifo(path)
    elif name == "B036-zero":
        path.symlink_to("/dev/zero")
    elif name == "B037-loop":
        path.symlink_to(path)
    elif name == "B037-dangling":
        path.symlink_to(tmp_path / "gone")
    elif name == "B038-nul":
        path = f"{tmp_path}/x\0.nii"
    if name == "B036-socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(os.path.relpath(path))
            result = guarded(lambda: read_volume(path))
    else:
        result = guarded(lambda: read_volume(path))
    assert result.exit_code == 3
    assert words in str(result)


def test_b003_permission_denied(tmp_path, guarded):
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    path = tmp_path / "a.nii"
    path.write_bytes(GOOD)
    path.chmod(0)
    result = guarded(lambda: read_volume(path))
    path.chmod(0o600)
    assert (result.exit_code, "permission denied" in str(result)) == (5, True)


@pytest.mark.parametrize("name", [
    b"new\nline.nii", b"\x1b[31mred.nii", b"x" * 251 + b".nii", b"\xff\xfe.nii", "🧠.nii".encode(),
    b" .nii", b"-o.nii",
])  # fmt: skip
@pytest.mark.parametrize("data", [GOOD, b""], ids=["good", "bad"])
def test_b038_odd_names(tmp_path, guarded, name, data):
    path = tmp_path / os.fsdecode(name)
    path.write_bytes(data)
    result = guarded(lambda: read_volume(path), path=path)
    assert isinstance(result, InputError) == (not data)


@pytest.mark.parametrize("grow", [b"", b"more"], ids=["touched", "grown"])
def test_b035_a_file_that_changes_meanwhile(tmp_path, monkeypatch, grow):
    path, calls = tmp_path / "a.nii", []
    path.write_bytes(GOOD)
    fstat = os.fstat

    def racing(handle):
        calls.append(handle)
        if len(calls) == 2:
            with path.open("ab") as file:
                file.write(grow)
            os.utime(path, ns=(1, 1))
        return fstat(handle)

    monkeypatch.setattr(guard_module.os, "fstat", racing)
    with pytest.raises(InputError, match="changed during read"):
        read_volume(path)


def test_b035_a_file_that_grows_while_it_is_read(tmp_path):
    """With a real writer the answer is the whole file or a refusal, never a part."""
    path, stop = tmp_path / "a.nii", threading.Event()
    path.write_bytes(GOOD)

    def write():
        while not stop.is_set():
            path.write_bytes(GOOD)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(100):
            try:
                values = read_volume(path).values
            except InputError:
                continue
            assert np.array_equal(values, make.field())
    finally:
        stop.set()
        writer.join()


def test_b035_an_itk_file_that_changes_between_check_and_reading(tmp_path, monkeypatch):
    sitk = pytest.importorskip("SimpleITK")
    path, read = tmp_path / "a.mha", sitk.ReadImage
    path.write_bytes(make.mha())

    def racing(*arguments, **options):
        path.write_bytes(make.mha(2 * make.field()))
        return read(*arguments, **options)

    monkeypatch.setattr(sitk, "ReadImage", racing)
    with pytest.raises(InputError, match="changed during read"):
        read_volume(path)


@pytest.mark.parametrize(("error", "words"), [
    (PermissionError(13, "Permission denied"), "permission denied"),
    (OSError(5, "Input/output error"), "cannot read: Input/output error"),
])  # fmt: skip
def test_b003_a_file_that_the_system_will_not_give(tmp_path, monkeypatch, error, words):
    path = tmp_path / "a.nii"
    path.write_bytes(GOOD)

    def fail(*arguments, **options):
        raise error

    if isinstance(error, PermissionError):
        monkeypatch.setattr(os, "open", fail)
    else:
        monkeypatch.setattr(guard_module, "_blocks", fail)
    with pytest.raises(InputError, match=words) as caught:
        read_volume(path)
    assert caught.value.exit_code == 5


def test_limits_are_those_of_the_caller(tmp_path):
    path = tmp_path / "a.nii"
    path.write_bytes(GOOD)
    assert read_volume(path, limits=Limits(voxels=720)).values.size == 720
    with pytest.raises(InputError, match="too many voxels: found 720, need at most 719"):
        read_volume(path, limits=Limits(voxels=719))
    with pytest.raises(InputError, match="file too large"):
        read_volume(path, limits=Limits(expanded_bytes=len(GOOD) - 1))


def test_reading_uses_no_pickle_and_no_second_file():
    """The words that would do so do not occur in the readers."""
    folder = pathlib.Path(guard_module.__file__).parent
    text = "".join(p.read_text() for p in folder.glob("*.py"))
    assert "allow_pickle" not in text
    assert "np.load" not in text
