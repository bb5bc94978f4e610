"""Bad priors: a row is id | how the file is built | what the one line says."""

import contextlib
import ctypes
import io
import os
import signal
import subprocess
import sys

import h5py
import numpy as np
import prior_builders as make
import pytest

from vesselseg.errors import DataError
from vesselseg.prior.boundary import BoundaryPrior
from vesselseg.prior.file import decode, encode

GOOD = make.small()
DATA = GOOD.to_bytes()
PHI = "/geometry/phi_mean"


def cut(share):
    return lambda folder: DATA[: int(len(DATA) * share)]


def edit(change, **options):
    return lambda folder: make.edited(DATA, lambda file: change(file), **options)


def attribute(path, name, value=None):
    """Replace an attribute, or delete it."""

    def change(file):
        del file[path].attrs[name]
        if value is not None:
            file[path].attrs[name] = value

    return edit(change)


def dataset(path, value=None, **options):
    """Replace a dataset, or delete it, with its attributes kept."""

    def change(file):
        kept = dict(file[path].attrs)
        del file[path]
        if value is not None or options:
            new = file.create_dataset(path, data=value, **options)
            new.attrs.update(kept)

    return edit(change)


def content(path, change, **attributes):
    """Change values before writing: every digest is right."""

    def build(folder):
        arrays = {**GOOD.arrays, path: change(np.array(GOOD.arrays[path]))}
        return encode(arrays, {**GOOD.attributes, **attributes})

    return build


def killed_writer(folder):
    """A direct writer in the newest format that dies with the file open."""
    target = folder / "killed.h5"
    script = (
        "import h5py, os, sys; f = h5py.File(sys.argv[1], 'w', libver='latest');"
        "f['a'] = range(9); f.flush(); os.kill(os.getpid(), 9)"
    )
    code = subprocess.run([sys.executable, "-c", script, str(target)], check=False).returncode
    assert code == -signal.SIGKILL
    return target.read_bytes()


def external_storage(folder):
    def change(file):
        del file[PHI]
        segments = [(str(folder / "canary"), 0, 4 * 20**3)]
        file.create_dataset(PHI, (20, 20, 20), "<f4", external=segments)

    return make.edited(DATA, change)


def external_link(folder):
    def change(file):
        del file[PHI]
        file[PHI] = h5py.ExternalLink(str(folder / "canary"), "/x")

    return make.edited(DATA, change)


def virtual(file):
    del file[PHI]
    layout = h5py.VirtualLayout((20, 20, 20), "<f4")
    layout[:] = h5py.VirtualSource("canary", "x", (20, 20, 20))
    file.create_virtual_dataset(PHI, layout)


def soft_loop(file):
    file["/geometry/loop"] = h5py.SoftLink("/geometry/loop")


def soft_elsewhere(file):
    file["/geometry/other"] = h5py.SoftLink(PHI)


def soft_from_the_assembly(file):
    del file["/VTKHDF/Assembly/wall/wall"]
    file["/VTKHDF/Assembly/wall/wall"] = h5py.SoftLink("/geometry")


def hard_cycle(file):
    file["/geometry/up"] = file["/"]


def claim(shape, chunks):
    return dataset(PHI, shape=shape, dtype="<f4", chunks=chunks)


def foreign_filter(file):
    del file[PHI]
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_chunk((20, 20, 20))
    plan.set_filter(32015, h5py.h5z.FLAG_OPTIONAL)
    space = h5py.h5s.create_simple((20, 20, 20))
    name = PHI.encode()
    h5py.h5d.create(file.id, name, h5py.h5t.IEEE_F32LE, space, plan).write_direct_chunk(
        (0, 0, 0), bytes(4 * 20**3)
    )


def other_value(file):
    file[PHI][3, 3, 3] += np.float32(1e-6)


def other_digest(file):
    file[PHI].attrs.modify("sha256", np.bytes_("0" * 64))


def put(value):
    def change(array):
        array[3, 3, 3] = value
        return array

    return change


def grid_with(**values):
    return {"/grid": {**GOOD.attributes["/grid"], **values}}


def long_text(file):
    file["/quality"].attrs["more"] = "of variable length"


ROWS = {
    "B120 empty": (lambda folder: b"", "empty file"),
    "B120 text": (lambda folder: b"not HDF5 at all" * 100, "not a readable prior"),
    "B120 cut at 1 %": (cut(0.01), "not a readable prior: truncated"),
    "B120 cut at 50 %": (cut(0.5), "not a readable prior: truncated"),
    "B120 cut by a byte": (cut(1 - 1e-6), "not a readable prior: truncated"),
    "B120 superblock": (lambda f: DATA[:13] + b"\x55" + DATA[14:], "not a readable prior"),
    "B120 other HDF5": (
        edit(lambda file: file.attrs.modify("format", np.bytes_("other-format"))),
        "not a prior file",
    ),
    "B121": (killed_writer, "not closed properly"),
    "B122 no dataset": (dataset("/geometry/curvature"), "/geometry/curvature missing"),
    "B122 no group": (edit(lambda file: file.pop("quality")), "/quality missing"),
    "B122 no attribute": (attribute("/geometry", "genus"), "attribute genus of /geometry missing"),
    "B122 rank": (dataset(PHI, np.zeros((20, 400), "<f4")), "shape"),
    "B122 length": (dataset("/surface/vertex_std", np.zeros(3, "<f4")), "shape"),
    "B122 scalar": (dataset("/geometry/band_index", np.int64(3)), "shape"),
    "B122 dtype": (dataset(PHI, np.zeros((20, 20, 20))), "dtype float64"),
    "B122 big-endian": (dataset(PHI, np.zeros((20, 20, 20), ">f4")), "dtype"),
    "B122 attribute type": (attribute("/geometry", "genus", np.bytes_("no")), "attribute genus"),
    "B122 attribute shape": (attribute("/grid", "direction", np.eye(3)), "attribute direction"),
    "B122 variable length": (edit(long_text), "variable length"),
    "B122 kind": (attribute("/", "geometry_kind", np.bytes_("klein")), "geometry_kind"),
    "B122 major": (attribute("/", "format_version", np.bytes_("2.0")), "major version"),
    "B122 no number": (attribute("/", "format_version", np.bytes_("x.y")), "major version"),
    "B123": (external_storage, "external storage of /geometry/phi_mean not allowed"),
    "B124 external link": (external_link, "external link"),
    "B124 virtual": (edit(virtual), "virtual dataset"),
    "B124 soft loop": (edit(soft_loop), "soft link"),
    "B124 soft link": (edit(soft_elsewhere), "soft link"),
    "B124 assembly": (edit(soft_from_the_assembly), "soft link"),
    "B124 cycle": (edit(hard_cycle), "linked twice"),
    "B125": (claim((100_000, 100_000, 1000), (32, 32, 32)), "claims"),
    "B126 one chunk": (claim((512, 512, 512), (512, 512, 512)), "shape"),
    "B126 list": (
        dataset("/geometry/band_index", shape=(1 << 26,), dtype="<i8", chunks=(1 << 15,)),
        "claims",
    ),
    "B127": (edit(foreign_filter), "filter 32015"),
    "B129 nan": (content(PHI, put(np.nan)), "not a number"),
    "B129 inf": (content("/geometry/phi_std", put(np.inf)), "not a number"),
    "B129 slope": (content(PHI, lambda phi: phi * np.float32(0.7)), "not a signed distance"),
    "B129 millimetres": (content(PHI, lambda phi: phi * np.float32(1e3)), "not a signed distance"),
    "B129 mask": (content("/geometry/mask", put(1)), "wrong sign: mask"),
    "B129 probability": (content("/images/probability", lambda p: 1 - p), "wrong sign"),
    "B130 no spacing": (attribute("/grid", "spacing_ijk_m"), "spacing_ijk_m of /grid missing"),
    "B130 spacing": (
        content(PHI, lambda a: a, **grid_with(spacing_ijk_m=[0.002] * 3)),
        "spacing_ijk_m disagrees with ijk_to_world",
    ),
    "B130 origin": (
        content(PHI, lambda a: a, **grid_with(origin_xyz_m=[1e-3] * 3)),
        "origin_xyz_m",
    ),
    "B130 direction": (
        content(PHI, lambda a: a, **grid_with(direction=np.eye(3)[::-1].ravel())),
        "direction disagrees",
    ),
    "B130 shear": (
        content(
            "/grid/ijk_to_world",
            lambda a: a + np.outer([1e-4, 0, 0, 0], [0, 1, 0, 0]),
            **grid_with(
                direction=[1, 0.1 / np.sqrt(1.01), 0, 0, 1 / np.sqrt(1.01), 0, 0, 0, 1],
                spacing_ijk_m=[1e-3, 1e-3 * np.sqrt(1.01), 1e-3],
            ),
        ),
        "sheared affine",
    ),
    "B130 no units": (attribute(PHI, "units"), "attribute units of /geometry/phi_mean"),
    "B130 millimetres": (attribute(PHI, "units", np.bytes_("mm")), "found mm, need m"),
    "B130 length unit": (attribute("/", "length_unit", np.bytes_("mm")), "length_unit"),
    "B130 world": (attribute("/", "world", np.bytes_("LPS+")), "found LPS+, need RAS+"),
    "B130 sign": (attribute("/", "phi_sign", np.bytes_("positive_inside")), "phi_sign"),
    "B130 axes": (attribute("/", "axes", np.bytes_("ijk")), "axes"),
    "B131 value": (edit(other_value), "content differs from its digest: /geometry/phi_mean"),
    "B131 value, sealed": (edit(other_value, sealed=True), "content differs from its digest"),
    "B131 digest": (edit(other_digest, sealed=True), "content differs from its digest"),
    "B131 attribute": (
        attribute("/quality", "converged", np.int64(0)),
        "content differs from its digest: content_sha256",
    ),
}


@contextlib.contextmanager
def watched(path):
    """Yield a function that says whether anybody opened the file; HDF5 escapes audit hooks."""
    libc = ctypes.CDLL(None, use_errno=True)
    handle = libc.inotify_init1(os.O_NONBLOCK)
    libc.inotify_add_watch(handle, os.fsencode(path), 0x20)  # IN_OPEN

    def opened():
        try:
            return bool(os.read(handle, 4096))
        except BlockingIOError:
            return False

    try:
        yield opened
    finally:
        os.close(handle)


@pytest.mark.parametrize("row", ROWS)
def test_bad_prior_is_refused_in_one_line(row, tmp_path, guarded, monkeypatch):
    build, words = ROWS[row]
    canary = tmp_path / "canary"
    canary.write_bytes(bytes(4 * 20**3))
    monkeypatch.setenv("HDF5_PLUGIN_PATH", str(tmp_path))
    path = tmp_path / "case.prior.h5"
    path.write_bytes(build(tmp_path))
    error = guarded(lambda: BoundaryPrior.read(path), path=path)
    assert isinstance(error, DataError), error
    assert words in error.line()
    assert error.exit_code == 3


@pytest.mark.parametrize("build", [external_storage, external_link])
def test_no_foreign_file_is_opened(build, tmp_path):
    """B123, B124: refused from the creation properties alone."""
    canary = tmp_path / "canary"
    canary.write_bytes(bytes(4 * 20**3))
    data = build(tmp_path)
    with watched(canary) as opened:
        with pytest.raises(DataError):
            decode(data)
        assert not opened()
        canary.read_bytes()
        assert opened(), "the watch works"


def test_newer_minor_version_is_read_with_a_note(tmp_path):
    """B122: what it added is named and left out."""

    def change(file):
        file.attrs.modify("format_version", np.bytes_("1.7"))
        file["/geometry/wall_motion"] = np.zeros(3)

    path = tmp_path / "new.prior.h5"
    path.write_bytes(make.edited(DATA, change, sealed=True))
    prior = BoundaryPrior.read(path)
    assert np.array_equal(prior.phi_mean_m, GOOD.phi_mean_m)
    assert any("1.7" in note for note in prior.notes)
    assert any("/geometry/wall_motion" in note for note in prior.notes)


@pytest.mark.parametrize("flips", [80, pytest.param(400, marks=pytest.mark.slow)])
def test_no_bit_flip_changes_what_is_read(flips):
    """B128: all over the file; the few not refused lie in bytes that HDF5 does not use."""
    grid = make.Grid.from_spacing((14, 14, 14), 1.0)
    prior = make.prior(make.sphere(grid, 4.0), grid)
    data = prior.to_bytes()
    rng = np.random.default_rng(128)
    refused = 0
    for bit in ((np.arange(flips) + rng.random(flips)) / flips * 8 * len(data)).astype(int):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << (bit % 8)
        try:
            read = BoundaryPrior(*decode(bytes(flipped)))
        except DataError:
            refused += 1
        else:
            assert read.to_bytes() == data
    assert refused >= 0.95 * flips, refused


def test_a_file_is_read_while_it_is_replaced(tmp_path):
    """F28: the reader holds one whole version."""
    path = tmp_path / "x.prior.h5"
    GOOD.write(path)
    first = path.read_bytes()
    other = BoundaryPrior(GOOD.arrays, {**GOOD.attributes, "/images/probability": {"source": "x"}})
    with io.FileIO(path) as handle:
        other.write(path, overwrite=True)
        assert handle.readall() == first
    assert BoundaryPrior.read(path).attributes["/images/probability"]["source"] == "x"
