"""Mutate files of every format and read them; run as a process of its own, see test_fuzz.py."""

import json
import pathlib
import resource
import sys
import time
import traceback

import h5py
import image_builders as make
import numpy as np
import tifffile
from scipy.io import savemat

from vesselseg import Grid, Volume
from vesselseg.errors import InputError
from vesselseg.io import Limits, read_start, read_volume

LIMITS = Limits(voxels=1 << 24, expanded_bytes=1 << 27)
ADDED_BYTES, SECONDS = 300 << 20, 2.0
SCAN = Volume(make.field(), Grid.from_spacing(make.SHAPE, 1.0))


def velocity(path):
    with h5py.File(path, "w") as file:
        for n, name in enumerate("uvw"):
            file.create_dataset(name, data=make.field((2, 7, 8, 9), seed=n), compression=1)
        file["dx"] = np.array([[2.4, 2.0, 1.0]], "f4")


def single(path):
    with h5py.File(path, "w", libver=("v110", "v110")) as file:
        data = make.field()
        file.create_dataset("i", data=data, chunks=(4, 9, 10), shuffle=True, fletcher32=True)
        file["i"].attrs["spacing_mm"] = [1.0, 2.0, 3.0]


def bases(folder):
    """Return the good files: name to bytes, and how each is read."""
    velocity(folder / "v.h5")
    single(folder / "s.h5")
    header = "{'descr': '<f4', 'fortran_order': False, 'shape': (8, 9, 10)}"
    np.savez_compressed(folder / "c.npz", a=make.field())
    for name, packed in (("u.mat", False), ("p.mat", True)):
        savemat(folder / name, {"image": make.field(), "dx": 1.0}, do_compression=packed)
    record = {"S": {"mask": make.field(), "flow": {"u": make.field() * 1j}}}
    savemat(folder / "k.mat", record, do_compression=True)
    tifffile.imwrite(folder / "t.tif", make.field(), compression="zlib")
    series = make.nii(make.field((2, *make.SHAPE)))
    files = {
        "a.nii": (make.nii(), {}),
        "f.nii": (series, {"frame": "mean"}),
        "g.nii.gz": (make.gz(make.nii()), {}),
        "n.npy": (make.npy(header, make.field().tobytes()), {"spacing_mm": 1.0}),
        "c.npz": ((folder / "c.npz").read_bytes(), {"spacing_mm": 1.0}),
        "v.h5": ((folder / "v.h5").read_bytes(), {"frame": 1}),
        "s.h5": ((folder / "s.h5").read_bytes(), {}),
        "u.mat": ((folder / "u.mat").read_bytes(), {"spacing_mm": 1.0}),
        "p.mat": ((folder / "p.mat").read_bytes(), {"spacing_mm": 1.0}),
        "k.mat": ((folder / "k.mat").read_bytes(), {"spacing_mm": 1.0, "key": "S.mask"}),
        "t.tif": ((folder / "t.tif").read_bytes(), {"spacing_mm": 1.0}),
    }
    if "SimpleITK" in sys.modules:
        files |= {"m.mha": (make.mha(), {}), "z.mha": (make.mha(CompressedData="True"), {})}
        files |= {"r.nrrd": (make.nrrd(encoding="gzip"), {})}
    if "pydicom" in sys.modules:
        files["d/1.dcm"] = (make.dicom_slice(0), {})
    return files


def mutated(data, random):
    """Flip, overwrite, cut, double or insert; half of the time within the header."""
    out = bytearray(data)
    reach = len(out) if random.random() < 0.5 else min(len(out), 600)
    for _ in range(random.integers(1, 9)):
        at = int(random.integers(reach))
        kind = random.integers(8)
        if kind < 4:
            out[at] ^= 1 << int(random.integers(8))
        elif kind < 6:
            out[at : at + 4] = random.choice([b"\xff" * 4, bytes(4), b"\x7f\xff\xff\xff"])
        elif kind == 6:
            out[at:at] = random.bytes(int(random.integers(1, 9)))
        elif random.random() < 0.2:
            del out[max(at, 16) :]
            break
        reach = min(reach, len(out))
    return bytes(out)


def main(seeds, folder):
    (folder / "d").mkdir()
    files = bases(folder)
    for name, (data, options) in files.items():
        (folder / name).write_bytes(data)
        read_volume(folder / name.split("/")[0], limits=LIMITS, **options)
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + ADDED_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    counts, failures, slowest = {"read": 0, "refused": 0}, [], 0.0
    for seed in range(seeds):
        random = np.random.default_rng(seed)
        name, (data, options) = list(files.items())[seed % len(files)]
        (folder / name).write_bytes(mutated(data, random))
        start = time.process_time()
        try:
            path = folder / name.split("/")[0]
            read_volume(path, limits=LIMITS, **options)
            counts["read"] += 1
            if not options:
                read_start(path, SCAN)
        except InputError:
            counts["refused"] += 1
        except BaseException:  # a report of everything that must not happen
            failures.append([seed, name, traceback.format_exc()[-600:]])
        (folder / name).write_bytes(data)
        slowest = max(slowest, time.process_time() - start)
        if time.process_time() - start > SECONDS:
            failures.append([seed, name, "too slow"])
    print(json.dumps({**counts, "failures": failures, "slowest_s": slowest}))


if __name__ == "__main__":
    for extra in ("SimpleITK", "pydicom"):
        try:
            __import__(extra)
        except ImportError:
            print(f"{extra} is missing: its formats are left out", file=sys.stderr)
    main(int(sys.argv[1]), pathlib.Path(sys.argv[2]))
