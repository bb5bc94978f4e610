"""The gate in front of HDF5 and gzip, used on its own."""

import gzip
import hashlib
import io

import h5py
import numpy as np
import pytest

from vesselseg.errors import DataError, InputError
from vesselseg.io.guard import gunzip, sha256_file, size_text
from vesselseg.io.hdf5_guard import guard_hdf5, read_array


def image(build):
    stream = io.BytesIO()
    with h5py.File(stream, "w", libver=("v110", "v110")) as file:
        build(file)
    return stream.getvalue()


def linked(file):
    data = file.create_dataset("a/x", data=np.arange(6.0), chunks=(3,), fletcher32=True)
    file["b"] = data
    file["a/soft"] = h5py.SoftLink("/b")
    file["type"] = np.dtype("f4")
    file["empty"] = h5py.Empty("f4")


@pytest.mark.parametrize("rule", [
    frozenset({"/a/soft"}), lambda link, target: (link, target) == ("/a/soft", "/b"),
], ids=["set", "function"])  # fmt: skip
def test_hard_links_of_data_and_named_soft_links_pass(tmp_path, rule):
    data = image(linked)
    (tmp_path / "x.h5").write_bytes(data)
    for source in (data, tmp_path / "x.h5"):
        with guard_hdf5(source, allowed_soft_links=rule) as (file, datasets):
            assert set(datasets) == {"/a/x", "/b", "/empty"}
            assert datasets["/a/x"] == datasets["/b"]
            assert np.array_equal(read_array(file["a/soft"], slice(2, 4)), [2, 3])
        assert not file


def test_linked_data_count_once_against_the_limit():
    data = image(lambda f: f.update({"x": np.zeros(100_000), "y": np.zeros(10)}))
    double = image(lambda f: f.update({"x": np.zeros(100_000)}) or f.update({"y": f["x"]}))
    with guard_hdf5(double, max_bytes=800_080) as (_, datasets):
        assert len(datasets) == 2
    with pytest.raises(DataError, match="claims too much"), guard_hdf5(data, max_bytes=800_079):
        pass


def test_no_flipped_bit_of_a_guarded_file_changes_what_is_read():
    """400 seeds on a file with checksums: refused, or read unchanged."""
    data, refused = image(linked), 0
    rule = frozenset({"/a/soft"})
    for seed in range(400):
        at, bit = np.random.default_rng(seed).integers([0, 0], [len(data), 8])
        bad = bytearray(data)
        bad[at] ^= 1 << bit
        try:
            with guard_hdf5(bytes(bad), allowed_soft_links=rule) as (_, datasets):
                for name in ("/a/x", "/b"):
                    if name in datasets:
                        assert np.array_equal(read_array(datasets[name]), np.arange(6.0))
        except InputError:
            refused += 1
    print(f"{refused} of 400 flips refused, the others changed nothing")
    assert refused > 100


def test_damaged_groups_are_refused_by_name():
    data = image(lambda f: [f.create_group(f"group{n}").create_group("x") for n in range(9)])
    bad = data.replace(b"OHDR", b"OHDX")
    with (
        pytest.raises(DataError, match=r"x\.prior\.h5: not a readable prior: damaged"),
        guard_hdf5(bad[:40] + data[40:100] + bad[100:], path="x.prior.h5", what="prior"),
    ):
        pass


def test_sizes_and_digests(tmp_path):
    assert [size_text(s) for s in (7, 4096, 3.2e9, 4e13)] == ["7 B", "4.1 kB", "3.2 GB", "40 TB"]
    (tmp_path / "x").write_bytes(b"abc" * 10**6)
    assert sha256_file(tmp_path / "x") == hashlib.sha256(b"abc" * 10**6).hexdigest()
    for path, words in ((tmp_path / "y", "no such file"), (tmp_path, "is a directory")):
        with pytest.raises(DataError, match=words):
            sha256_file(path)


def test_a_gzip_stream_longer_than_a_block_is_expanded_whole():
    data = np.random.default_rng(0).integers(0, 255, 3 << 20, "u1").tobytes()
    for expected in (data, bytes(3 << 20)):
        assert gunzip(gzip.compress(expected, 1), len(expected), "x") == expected
    with pytest.raises(DataError, match="needs 3145729 bytes, has 3145728"):
        gunzip(gzip.compress(data, 1), len(data) + 1, "x")
