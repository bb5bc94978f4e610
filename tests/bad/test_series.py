"""HDF5 images and DICOM folders that must be refused, or read."""

import ctypes
import os
import struct
import subprocess
import sys

import h5py
import image_builders as make
import numpy as np
import pytest

from vesselseg.errors import InputError
from vesselseg.io import read_volume

IN_OPEN = 0x20  # of inotify


def velocity(file, frames=3, **replaced):
    shape = (frames, 7, 8, 9)
    for n, name in enumerate("uvw"):
        if name not in replaced:
            file.create_dataset(name, data=make.field(shape, seed=n), chunks=(1, 7, 8, 9))
    sizes = {"dx": np.array([[2.4, 2.0, 1.0]], "f4")}
    for name, value in (sizes | replaced).items():
        if value is not None:
            file[name] = value


def one(file, values=None, **attributes):
    dataset = file.create_dataset("image", data=make.field() if values is None else values)
    dataset.attrs.update(attributes)


def external(file):
    file.create_dataset("image", (8, 9), "u1", external=[(file.attrs["canary"], 0, 72)])


def virtual(file):
    layout = h5py.VirtualLayout((8, 9), "f4")
    layout[:] = h5py.VirtualSource(file.attrs["canary"], "x", (8, 9))
    file.create_virtual_dataset("image", layout)


def link(file):
    file["image"] = h5py.ExternalLink(file.attrs["canary"], "/x")


def cycle(file):
    file.create_group("a")["up"] = file["/"]


def many(file):
    for n in range(4097):
        file.create_group(f"g{n}")


HDF5 = [
    ("speed", lambda f: velocity(f), {"frame": 1}, 0, "speed of the velocity"),
    ("component", lambda f: velocity(f), {"frame": 1, "component": "v"}, 0, "v of the velocity"),
    ("component-no", lambda f: velocity(f), {"frame": 1, "component": "x"}, 2, "speed, u, v or w"),
    ("frames", lambda f: velocity(f), {}, 3, "3 frames: found shape (3, 7, 8, 9)"),
    ("frame-no", lambda f: velocity(f), {"frame": 3}, 2, "need 0 to 2"),
    ("no-dx", lambda f: velocity(f, dx=None), {"frame": 0}, 3, "no voxel size"),
    ("shapes", lambda f: velocity(f, w=np.zeros(4, "f4")), {"frame": 0}, 3, "bad velocity"),
    ("bad-dx", lambda f: velocity(f, dx=np.eye(4)), {"frame": 0}, 3, "bad /dx"),
    ("frames-given", lambda f: one(f, make.field((3, 8, 9))[None]), {"spacing_mm": 1}, 0, ""),
    ("one", lambda f: one(f, spacing_mm=[3.0, 2.0, 1.0]), {}, 0, "no orientation"),
    ("one-given", lambda f: one(f), {"spacing_mm": 2.0}, 0, ""),
    ("B065-none", lambda f: one(f), {}, 3, "no voxel size; give --spacing"),
    ("B065-bad", lambda f: one(f, spacing_mm=[1.0, -1.0, 1.0]), {}, 3, "bad spacing_mm"),
    ("B065-text", lambda f: one(f, spacing_mm="wide"), {}, 3, "bad spacing_mm"),
    ("text", lambda f: one(f, np.full((8, 9), b"x")), {"spacing_mm": 1}, 3, "number type"),
    ("none", lambda f: f.create_group("g"), {}, 3, "0 image datasets: found none"),
    ("two", lambda f: (one(f), f.create_dataset("b", data=make.field())), {}, 3, "--key"),
    ("two-no", lambda f: one(f), {"key": "b"}, 2, "no such dataset"),
    ("B123", external, {}, 3, "external storage of /image not allowed"),
    ("B124-external", link, {}, 3, "external link /image not allowed"),
    ("B124-soft", lambda f: f.update({"a": h5py.SoftLink("/a")}), {}, 3, "soft link /a not"),
    ("B124-cycle", cycle, {}, 3, "group /a/up is linked twice"),
    ("B124-virtual", virtual, {}, 3, "virtual dataset /image not allowed"),
    ("B125", lambda f: f.create_dataset("i", (100000, 100000, 1000), "f4", chunks=(8, 8, 8)),
     {}, 3, "/i claims too much: found 40 TB"),
    ("B126", lambda f: f.create_dataset("i", (2**16, 2**16), "u1", chunks=(64, 64)),
     {}, 3, "claims too many voxels"),
    ("B126-chunk", lambda f: f.create_dataset("i", (8, 8), "u1", chunks=(2**16, 2**15),
     maxshape=(None, None), compression=1), {}, 3, "claims too much"),
    ("B127", lambda f: f.create_dataset("i", data=make.field(), compression="lzf"),
     {}, 3, "filter 32000 of /i not available"),
    ("many", many, {}, 3, "too many objects"),
]  # fmt: skip


def opened(canary, function):
    """Run a function; fail if the canary was opened meanwhile, by Python or a C library."""
    libc = ctypes.CDLL(None, use_errno=True)
    watch = libc.inotify_init1(os.O_NONBLOCK)
    assert libc.inotify_add_watch(watch, os.fsencode(canary), IN_OPEN) >= 0
    try:
        return function()
    finally:
        with pytest.raises(BlockingIOError):
            os.read(watch, 4096)
        os.close(watch)


def test_the_canary_notices_a_c_library(tmp_path):
    canary = tmp_path / "canary"
    canary.write_bytes(bytes(100))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("image", (8, 9), "u1", external=[(str(canary), 0, 72)])
        with pytest.raises(pytest.fail.Exception):
            opened(canary, lambda: file["image"][()])


@pytest.mark.parametrize(("build", "options", "code", "words"), [
    pytest.param(*row[1:], id=row[0]) for row in HDF5
])  # fmt: skip
def test_hdf5_image(tmp_path, guarded, build, options, code, words):
    path, canary = tmp_path / "a.h5", tmp_path / "canary"
    canary.write_bytes(bytes(1000))
    with h5py.File(path, "w") as file:
        file.attrs["canary"] = str(canary)
        build(file)
    read = lambda: opened(canary, lambda: read_volume(path, **options))  # noqa: E731
    result = guarded(read, path=path)
    if isinstance(result, InputError):
        assert (result.exit_code, words in str(result)) == (code, True), str(result)
    else:
        assert code == 0
        assert words in "; ".join(result.notes)


@pytest.mark.parametrize(("data", "words"), [
    pytest.param(b"hello" * 100, "not HDF5", id="B120-text"),
    pytest.param(b"\x89HDF\r\n\x1a\n" + bytes(300), "damaged", id="B120-superblock"),
    pytest.param(None, "truncated", id="B120-cut"),
])  # fmt: skip
def test_not_hdf5(tmp_path, guarded, data, words):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        velocity(file)
    path.write_bytes(data or path.read_bytes()[:-5000])
    result = guarded(lambda: read_volume(path, frame=0), path=path)
    assert words in str(result)


def test_b121_a_file_left_open_by_a_killed_writer(tmp_path, guarded):
    path = tmp_path / "a.h5"
    script = "import h5py, os, signal; f = h5py.File('a.h5', 'w', libver='latest')\n"
    script += "f['x'] = range(9); f.flush(); os.kill(os.getpid(), signal.SIGKILL)"
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=False)
    result = guarded(lambda: read_volume(path), path=path)
    assert "not closed properly" in str(result)


def test_a_damaged_chunk_is_refused(tmp_path, guarded):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("i", data=make.field(), chunks=(8, 9, 10), fletcher32=True)
        where = file["i"].id.get_chunk_info(0).byte_offset
    path.write_bytes(make.flip(path.read_bytes(), where + 50, 3))
    result = guarded(lambda: read_volume(path, spacing_mm=1), path=path)
    assert "content of /i differs from its checksum" in str(result)


def test_hdf5_velocity_is_read_on_its_grid(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        velocity(file, origin=np.array([[5.0, 6.0, 7.0]], "f4"))
        u, v, w = (file[n][2] for n in "uvw")
    volume = read_volume(path, frame=2)
    assert volume.grid.shape_kji == (9, 8, 7)
    assert np.allclose(volume.grid.spacing_mm, (1.0, 2.0, 2.4))
    assert np.allclose(volume.grid.world((0, 0, 0)), (5, 6, 7))
    assert np.allclose(volume.values[4, 5, 6], np.sqrt(u**2 + v**2 + w**2)[6, 5, 4])
    mean = read_volume(path, frame="mean").values
    frames = [read_volume(path, frame=t).values for t in range(3)]
    assert np.allclose(mean, np.mean(frames, axis=0), rtol=1e-6)


def stack(folder, *, n=4, **options):
    folder.mkdir(exist_ok=True)
    for k in range(n):
        (folder / f"{k}.dcm").write_bytes(make.dicom_slice(k, **options))


def two_series(folder):
    stack(folder)
    (folder / "x.dcm").write_bytes(make.dicom_slice(9, series="1.2.3.5"))


def missing(folder):
    stack(folder, n=6)
    (folder / "3.dcm").unlink()


def duplicate(folder):
    stack(folder)
    (folder / "x.dcm").write_bytes(make.dicom_slice(2))


def turned(folder):
    stack(folder)
    extra = {"ImageOrientationPatient": [0, 1, 0, 0, 0, 1]}
    (folder / "x.dcm").write_bytes(make.dicom_slice(4, extra=extra))


def deflated(folder):
    stack(folder)
    data = (folder / "0.dcm").read_bytes()
    plain = data.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.9\0")
    (folder / "0.dcm").write_bytes(plain)


def retyped(folder, old, new):
    stack(folder)
    data = (folder / "0.dcm").read_bytes()
    assert old in data
    (folder / "0.dcm").write_bytes(data.replace(old, new))


def appended(folder, tail):
    stack(folder)
    data = (folder / "0.dcm").read_bytes()
    at = data.rindex(struct.pack("<HH", 0x7FE0, 0x0010))
    (folder / "0.dcm").write_bytes(data[:at] + tail + data[at:])


def claim_4gb(folder):
    tail = struct.pack("<HH2sHI", 0x0040, 0x0001, b"OB", 0, 0xFFFFFFF0)
    appended(folder, tail)


DICOM = [
    ("good", stack, {}, 0, ""),
    ("B042-two", two_series, {}, 3, "2 series: found 1.2.3.4, 1.2.3.5; choose with --key UID"),
    ("B042-key", two_series, {"key": "1.2.3.4"}, 0, ""),
    ("B042-nokey", two_series, {"key": "7"}, 2, "no such series"),
    ("B042-missing", missing, {}, 3, "missing slice or uneven spacing: found 4 mm at 2.dcm, 4.dcm"),
    ("B042-twice", duplicate, {}, 3, "duplicate slice: found 2.dcm, x.dcm"),
    ("B042-turned", turned, {}, 3, "slice differs in size or orientation: found x.dcm"),
    ("B042-tilt", lambda f: stack(f, tilt=0.3), {}, 3, "sheared affine"),
    ("B043-nested", lambda f: appended(f, make.nested_sequences(300)), {}, (0, 3), ""),
    ("B043-raw", lambda f: retyped(f, b"OW", b"SQ"), {}, 3, ""),
    ("B043-no-syntax", lambda f: retyped(f, b"\x02\0\x10\0UI", b"\x02\0\x11\0UI"),
     {}, 3, "found none"),
    ("B043-length", lambda f: retyped(f, b"\x28\0\x10\0US\x02", b"\x28\0\x10\0US\x03"),
     {}, 3, ""),
    ("B043-number", lambda f: retyped(f, b"1.5\\1.0", b"1.5\\   "), {}, 3, "bad PixelSpacing"),
    ("B043-deflated", deflated, {}, 3, "compressed or unknown DICOM encoding"),
    ("B043-4GB", claim_4gb, {}, 3, ""),
    ("B043-rows", lambda f: stack(f, rows=65535, columns=65535), {}, 3, ""),
    ("B043-cut", lambda f: stack(f, extra={"PixelData": b"xy"}), {}, 3, "missing or truncated"),
    ("B043-frames", lambda f: stack(f, extra={"NumberOfFrames": 5}), {}, 3, "single grey slice"),
    ("B043-bits", lambda f: stack(f, extra={"BitsAllocated": 64}), {}, 3, "bad BitsAllocated"),
    ("B043-place", lambda f: stack(f, extra={"ImagePositionPatient": None}), {}, 3, "bad ImagePos"),
]  # fmt: skip


@pytest.mark.parametrize(("build", "options", "code", "words"), [
    pytest.param(*row[1:], id=row[0]) for row in DICOM
])  # fmt: skip
def test_dicom_folder(tmp_path, guarded, build, options, code, words):
    pytest.importorskip("pydicom")
    folder = tmp_path / "series"
    build(folder)
    result = guarded(lambda: read_volume(folder, **options), path=folder)
    if isinstance(result, InputError):
        assert result.exit_code == (max(code) if isinstance(code, tuple) else code), str(result)
        assert words in str(result)
    else:
        assert code in (0, (0, 3))
        assert result.notes == ()


def test_b043_needs_little_memory(tmp_path):
    """The same under a memory limit of 300 MB beyond what the imports take."""
    pytest.importorskip("pydicom")
    for row in DICOM:
        if row[0].startswith("B043"):
            row[1](tmp_path / row[0])
    script = """
import pathlib, resource
import pydicom, vesselseg.io.dicom, vesselseg.io.volume
from vesselseg.errors import InputError
used = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (300 << 20),) * 2)
for folder in sorted(pathlib.Path(".").iterdir()):
    try:
        vesselseg.io.volume.read_volume(folder)
    except InputError as error:
        print(error.exit_code)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert set(done.stdout.split()) == {"3"}


def test_dicom_series_has_its_place_in_the_world(tmp_path):
    """DICOM's world is LPS, ours RAS: x and y change their signs."""
    pytest.importorskip("pydicom")
    stack(tmp_path / "s")
    volume = read_volume(tmp_path / "s")
    assert volume.values.shape == (4, 8, 9)
    assert np.array_equal(volume.values[2], make.field((8, 9), "u2", seed=2))
    assert np.allclose(volume.grid.spacing_mm, (2.0, 1.5, 1.0))
    assert np.allclose(volume.grid.world((2, 0, 0)), (10.0, 0.0, 4.0))
    assert np.allclose(volume.grid.world((2, 4, 3)), (7.0, -6.0, 4.0))


@pytest.mark.parametrize(("module", "name", "build"), [
    ("SimpleITK", "a.mha", lambda p: p.write_bytes(make.mha())), ("pydicom", "series", stack),
])  # fmt: skip
def test_a_missing_extra_is_named(tmp_path, monkeypatch, module, name, build):
    pytest.importorskip(module)
    build(tmp_path / name)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=r'is missing; pip install "vesselseg\[dicom\]"') as caught:
        read_volume(tmp_path / name)
    assert caught.value.exit_code == 5
