"""What is written comes back: values, place in the world, bytes."""

import functools
import gzip
import itertools
import json
import subprocess
import sys

import h5py
import nibabel
import numpy as np
import pytest
from cli_runner import assert_refused, run
from scipy.io import savemat

from vesselseg import Grid, Volume
from vesselseg.errors import ConfigError, DataError
from vesselseg.io import Limits, read_volume, write_image

SHAPE = (4, 5, 6)
VALUES = np.random.default_rng(0).random(SHAPE).astype("f4")
OBLIQUE = np.array([[0.6, -0.8, 0, 3], [0.8, 0.6, 0, -7], [0, 0, 1, 2], [0, 0, 0, 1]])
ORIENTATIONS = [
    (axes, signs)
    for axes in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]


def oriented(axes, signs):
    affine = np.eye(4)
    affine[:3, :3] = (np.eye(3)[list(axes)] * signs).T * [0.5, 0.75, 2.0]
    affine[:3, 3] = [10, -20, 30]
    return affine


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize(("axes", "signs"), ORIENTATIONS)
def test_every_orientation_round_trips_bitwise(tmp_path, axes, signs, suffix):
    """The affines are exact in the single precision of the header, so nothing may change."""
    path, grid = tmp_path / f"a{suffix}", Grid(SHAPE, oriented(axes, signs))
    write_image(path, VALUES, grid)
    volume = read_volume(path)
    assert np.array_equal(volume.values, VALUES)
    assert np.array_equal(volume.grid.affine, grid.affine)
    assert volume.notes == ()


@pytest.mark.parametrize("code", [0, 1], ids=["sform", "qform"])
@pytest.mark.parametrize(("axes", "signs"), ORIENTATIONS)
def test_every_orientation_is_read_where_nibabel_puts_it(tmp_path, axes, signs, code):
    """Each voxel keeps its world point; the quaternion is single precision."""
    image = nibabel.Nifti1Image(VALUES.T, OBLIQUE @ oriented(axes, signs))
    image.header.set_xyzt_units("mm")
    if code:
        image.set_qform(image.affine, 1)
        image.set_sform(None, 0)
    nibabel.save(image, tmp_path / "a.nii")
    volume = read_volume(tmp_path / "a.nii")
    known = nibabel.load(tmp_path / "a.nii")
    k, j, i = 1, 2, 3
    assert volume.values[k, j, i] == known.dataobj[i, j, k]
    expected = (known.affine @ [i, j, k, 1])[:3]
    assert np.abs(volume.grid.world((k, j, i)) - expected).max() < 1e-5


@pytest.mark.parametrize("shape", [(5, 6), (4, 5, 6)], ids=["2-D", "3-D"])
@pytest.mark.parametrize("dtype", [bool, "u1", "f4", "f8", "i2", ">f4"])
def test_fields_round_trip(tmp_path, shape, dtype):
    values, grid = (10 * VALUES[:1, : shape[-2]] if len(shape) == 2 else 10 * VALUES), None
    values = values.reshape(shape).round(1).astype(dtype)
    affine = OBLIQUE @ np.diag([1, 1, 3.0, 1])
    grid = Grid(shape, affine)
    write_image(tmp_path / "a.nii.gz", values, grid)
    volume = read_volume(tmp_path / "a.nii.gz")
    assert np.array_equal(volume.values, values.astype("f4"))
    assert volume.grid.mismatch_mm(grid) < 1e-5
    stored = nibabel.load(tmp_path / "a.nii.gz").get_data_dtype()
    assert stored == (np.uint8 if dtype in (bool, "u1") else np.float32)


def test_equal_fields_give_equal_bytes(tmp_path):
    for name in "ab":
        write_image(tmp_path / f"{name}.nii.gz", VALUES, Grid(SHAPE, OBLIQUE))
    first, second = ((tmp_path / f"{n}.nii.gz").read_bytes() for n in "ab")
    assert first == second
    assert gzip.decompress(first)[348:352] == bytes(4)


def test_a_slightly_sheared_grid_round_trips(tmp_path):
    affine = OBLIQUE.copy()
    affine[0, 2] = 9e-4
    write_image(tmp_path / "a.nii", VALUES, Grid(SHAPE, affine))
    volume = read_volume(tmp_path / "a.nii")
    assert np.abs(volume.grid.affine - affine).max() < 1e-6
    assert volume.notes == ()


def test_an_image_is_written_only_where_it_fits_and_is_wanted(tmp_path):
    grid = Grid(SHAPE, np.eye(4))
    with pytest.raises(ConfigError, match="unknown image suffix"):
        write_image(tmp_path / "a.png", VALUES, grid)
    with pytest.raises(DataError, match="does not fit its grid"):
        write_image(tmp_path / "a.nii", VALUES[0], grid)
    write_image(tmp_path / "a.nii", VALUES, grid)
    with pytest.raises(ConfigError, match="give --overwrite"):
        write_image(tmp_path / "a.nii", VALUES, grid)
    write_image(tmp_path / "a.nii", 2 * VALUES, grid, overwrite=True)
    assert np.array_equal(read_volume(tmp_path / "a.nii").values, 2 * VALUES)
    assert [p.name for p in tmp_path.iterdir()] == ["a.nii"]


def test_scaled_integers_are_scaled(tmp_path):
    stored = (100 * VALUES).astype("i2")
    image = nibabel.Nifti1Image(stored.T, np.eye(4))
    image.header.set_slope_inter(0.25, -3)
    nibabel.save(image, tmp_path / "a.nii")
    expected = nibabel.load(tmp_path / "a.nii").get_fdata().T
    assert np.array_equal(Volume.read(tmp_path / "a.nii").values, expected.astype("f4"))


def test_frames_components_and_parts_are_the_chosen_ones(tmp_path):
    series = np.random.default_rng(1).random((3, 2, *SHAPE)).astype("f4")  # component, frame
    nibabel.save(nibabel.Nifti1Image(series.T, np.eye(4)), tmp_path / "a.nii")
    one = read_volume(tmp_path / "a.nii", frame=1, component=2)
    assert np.array_equal(one.values, series[2, 1])
    mean = read_volume(tmp_path / "a.nii", frame="mean", component=0)
    assert np.allclose(mean.values, series[0].mean(axis=0), rtol=1e-6)
    pair = (series[0, 0] + 1j * series[1, 1]).astype("c8")
    nibabel.save(nibabel.Nifti1Image(pair.T, np.eye(4)), tmp_path / "c.nii")
    for part, function in (("real", np.real), ("imag", np.imag), ("magnitude", np.abs)):
        values = read_volume(tmp_path / "c.nii", part=part).values
        assert np.array_equal(values, function(pair))


def test_a_flat_axis_is_dropped_without_moving_a_voxel(tmp_path):
    for axis in range(3):
        affine = OBLIQUE @ np.diag([1, 2, 3.0, 1])
        values = VALUES.take([1], axis=axis)
        nibabel.save(nibabel.Nifti1Image(values.T, affine), tmp_path / "a.nii")
        volume = read_volume(tmp_path / "a.nii")
        index = [1, 2, 3]
        index[axis] = 0
        flat = [n for a, n in enumerate(index) if a != axis]
        expected = (affine @ [*index[::-1], 1])[:3]
        assert volume.values[tuple(flat)] == values[tuple(index)]
        assert np.abs(volume.grid.world(flat) - expected).max() < 1e-5


def test_nifti_2_and_numpy_and_itk_files_read_equal(tmp_path):
    grid = Grid(SHAPE, np.diag([1, 2, 3.0, 1]))
    image = nibabel.Nifti2Image(VALUES.T, grid.affine)
    nibabel.save(image, tmp_path / "a.nii")
    np.save(tmp_path / "b.npy", VALUES)
    np.save(tmp_path / "f.npy", np.asfortranarray(VALUES))
    np.save(tmp_path / "t.npy", np.stack([VALUES, 2 * VALUES]))
    np.savez_compressed(tmp_path / "c.npz", image=VALUES)
    for name, options in (
        ("a.nii", {}),
        ("b.npy", {"spacing_mm": (3, 2, 1)}),
        ("f.npy", {"spacing_mm": (3, 2, 1)}),
        ("t.npy", {"spacing_mm": (3, 2, 1), "frame": 0}),
        ("c.npz", {"spacing_mm": (3, 2, 1)}),
    ):
        volume = read_volume(tmp_path / name, **options)
        assert np.array_equal(volume.values, VALUES)
        assert np.array_equal(volume.grid.affine, grid.affine)
        assert volume.name == name[0]


def test_itk_images_are_read_where_itk_puts_them(tmp_path):
    sitk = pytest.importorskip("SimpleITK")
    image = sitk.GetImageFromArray(VALUES)
    image.SetSpacing((1, 2, 3))
    image.SetOrigin((4, 5, 6))
    image.SetDirection((0, -1, 0, 0, 0, -1, 1, 0, 0))
    expected = np.array(image.TransformIndexToPhysicalPoint((3, 2, 1))) * [-1, -1, 1]
    for name, packed in (("a.mha", False), ("b.mha", True), ("a.nrrd", False), ("b.nrrd", True)):
        sitk.WriteImage(image, str(tmp_path / name), packed)
        volume = read_volume(tmp_path / name)
        assert np.array_equal(volume.values, VALUES)
        assert np.allclose(volume.grid.world((1, 2, 3)), expected)


def test_a_given_spacing_keeps_the_directions(tmp_path):
    write_image(tmp_path / "a.nii", VALUES, Grid(SHAPE, OBLIQUE))
    volume = read_volume(tmp_path / "a.nii", spacing_mm=(3, 2, 1.5))
    assert np.allclose(volume.grid.spacing_mm, (3, 2, 1.5))
    cosines = volume.grid.affine[:3, :3] / [1.5, 2, 3]
    assert np.allclose(cosines, OBLIQUE[:3, :3], atol=1e-6)


def test_importing_io_loads_no_heavy_library():
    script = "import sys, vesselseg.io, vesselseg.io.atomic\n"
    script += "print([m for m in ('torch','h5py','nibabel','scipy','numba') if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


# --- structs of MATLAB -------------------------------------------------------------------------


@pytest.fixture
def struct(tmp_path):
    """A flow scan as its scanner exports it: mask and complex echoes as fields of one struct."""
    rng, shape = np.random.default_rng(0), (6, 7, 5)
    echoes = rng.normal(size=(4, *shape)) + 1j * rng.normal(size=(4, *shape))
    fields = {f"echo{n}": echo for n, echo in enumerate(echoes)}
    record = {"mask": (rng.random(shape) > 0.5).astype("u1"), "venc": 1.5, "flow": fields}
    savemat(tmp_path / "a.mat", {"STR": record}, do_compression=True)
    with h5py.File(tmp_path / "b.mat", "w", userblock_size=512) as file:
        file["STR/mask"] = record["mask"].T
        for name, echo in fields.items():
            file[f"STR/flow/{name}"] = np.array(
                np.stack([echo.T.real, echo.T.imag], -1).view([("real", "f8"), ("imag", "f8")])[
                    ..., 0
                ]
            )
    return tmp_path, record["mask"], echoes


@pytest.mark.parametrize("name", ["a.mat", "b.mat"])
def test_fields_of_a_struct_are_read_and_averaged(struct, name):
    folder, mask, echoes = struct
    read = functools.partial(read_volume, folder / name, spacing_mm=1.0)
    assert np.array_equal(read(key="STR.mask").values, mask.T)
    four = ",".join(f"STR.flow.echo{n}" for n in range(4))
    mean = read(key=four, part="magnitude", frame="mean").values
    np.testing.assert_allclose(mean, np.abs(echoes).mean(0).T, rtol=1e-6)
    with pytest.raises(DataError, match=r"5 arrays: found STR.flow.echo0"):
        read()
    with pytest.raises(ConfigError, match=r"no such array: found STR.venc"):
        read(key="STR.mask,STR.venc")
    savemat(folder / "c.mat", {"image": mask, "facts": {"matrix": np.eye(4)}})
    assert np.array_equal(read_volume(folder / "c.mat", spacing_mm=1.0).values, mask.T)
    with pytest.raises(DataError, match="several shapes"):
        savemat(folder / name, {"S": {"a": np.ones((3, 4, 5)), "b": np.ones((3, 4))}})
        read(key="S.a,S.b")


def test_a_struct_that_unpacks_to_too_much_is_refused_before_it_is_read(tmp_path):
    savemat(tmp_path / "a.mat", {"S": {"a": np.zeros((80, 80, 80))}}, do_compression=True)
    assert (tmp_path / "a.mat").stat().st_size < 10_000
    with pytest.raises(DataError, match="structs too large"):
        read_volume(tmp_path / "a.mat", spacing_mm=1.0, limits=Limits(expanded_bytes=10**6))


# --- regions -----------------------------------------------------------------------------------


def test_a_region_is_a_part_of_the_scan_at_its_place(tmp_path):
    write_image(tmp_path / "a.nii.gz", VALUES, Grid(SHAPE, OBLIQUE))
    part = read_volume(tmp_path / "a.nii.gz", roi=(slice(1, 3), slice(None, 4), slice(2, None)))
    assert np.array_equal(part.values, VALUES[1:3, :4, 2:])
    whole = Grid(SHAPE, OBLIQUE)
    index = np.moveaxis(np.indices(SHAPE), 0, -1)[1:3, :4, 2:]
    here = np.moveaxis(np.indices(part.values.shape), 0, -1)
    np.testing.assert_allclose(part.grid.world(here), whole.world(index), atol=1e-5)


@pytest.mark.parametrize("roi", ["1:3,0:4", "0:9,:,:", "2:2,:,:", ":,:,0:1", "1:3,:,-1:2", "1,2,3"])
def test_a_region_outside_the_scan_is_refused(tmp_path, capfd, roi):
    write_image(tmp_path / "a.nii.gz", VALUES, Grid(SHAPE, OBLIQUE))
    assert_refused(run(capfd, "info", tmp_path / "a.nii.gz", "--roi", roi), 2, "bad region")


def test_info_of_a_region_has_its_shape(tmp_path, capfd):
    write_image(tmp_path / "a.nii.gz", VALUES, Grid(SHAPE, OBLIQUE))
    code, out, _ = run(capfd, "info", tmp_path / "a.nii.gz", "--roi", "1:3,:4,2:", "--json")
    assert (code, json.loads(out)["grid"]["shape_kji"]) == (0, [2, 4, 4])
