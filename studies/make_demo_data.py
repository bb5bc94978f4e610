"""Make the scans bundled with the package from their published originals.

``python studies/make_demo_data.py carotid.vtk example_grid.h5`` writes ``carotid.nii.gz`` and
``aorta-velocity.h5`` into ``vesselseg/data``. Every value is kept exactly. The two licence texts
lie beside them and are copied by hand.
"""

from __future__ import annotations

import gzip
import io
import sys
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from vesselseg.io.atomic import write_bytes

DATA = Path(__file__).parent.parent / "vesselseg" / "data"
NOTE = b"flow-MRI magnitude; true voxel size and orientation unknown, 1 mm assumed"


def vtk_scalars(path: Path) -> NDArray[np.float32]:
    """Read the scalars of a legacy binary VTK file of structured points as ``[k, j, i]``."""
    data = path.read_bytes()
    head, _, body = data.partition(b"LOOKUP_TABLE default\n")
    words = head.split()
    nx, ny, nz = (int(words[words.index(b"DIMENSIONS") + n]) for n in (1, 2, 3))
    return np.frombuffer(body, ">f4", nx * ny * nz).reshape(nz, ny, nx).astype(np.float32)


def nifti_bytes(values: NDArray[np.float32]) -> bytes:
    """Render integers as int16 NIfTI whose header claims neither unit nor orientation."""
    whole = values.astype(np.int16)
    if not np.array_equal(whole, values):
        raise SystemExit("the scalars are not integers that fit int16")
    image = nib.Nifti1Image(whole.T, None)
    image.header.set_zooms((1.0, 1.0, 1.0))
    image.header["xyzt_units"] = 0
    image.header["descrip"] = NOTE
    return gzip.compress(image.to_bytes(), 9, mtime=0)


def hdf5_bytes(path: Path) -> bytes:
    """Copy every dataset, compressed, without times or names of machines."""
    buffer = io.BytesIO()
    with h5py.File(path) as source, h5py.File(buffer, "w", libver=("v110", "v110")) as target:
        for name, data in source.items():
            options = {"compression": "gzip", "compression_opts": 9, "shuffle": True}
            target.create_dataset(name, data=data[...], fletcher32=True, **options)
    return buffer.getvalue()


def main() -> None:
    """Write both files."""
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    carotid, aorta = map(Path, sys.argv[1:])
    write_bytes(DATA / "carotid.nii.gz", nifti_bytes(vtk_scalars(carotid)))
    write_bytes(DATA / "aorta-velocity.h5", hdf5_bytes(aorta))


if __name__ == "__main__":
    main()
