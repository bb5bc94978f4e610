"""Velocity from DICOM series as vendors write it: files made here, none of a scanner."""

import io

import image_builders as make
import numpy as np
import pytest

from vesselseg.cli import main
from vesselseg.errors import ConfigError, DataError
from vesselseg.io import read_flow, read_volume

pydicom = pytest.importorskip("pydicom")

from pydicom.dataset import Dataset  # noqa: E402
from pydicom.sequence import Sequence  # noqa: E402

SHAPE = (5, 8, 9)
STEP = 1.2 / 2048.0  # m/s of one step at a venc of 1.2 m/s


def steps(seed):
    """12-bit phase: 0 to 4095 for -venc to venc."""
    return np.random.default_rng(seed).integers(0, 4096, SHAPE).astype("<u2")


def series(folder, values, change=lambda slice_: None, implicit=False):
    """A folder of single slices, 1 x 1.5 x 2 mm, changed each."""
    folder.mkdir(parents=True)
    for k, plane in enumerate(values):
        path = folder / f"{k}.dcm"
        path.write_bytes(make.dicom_slice(k, extra={"PixelData": plane.tobytes()}))
        slice_ = pydicom.dcmread(path)
        change(slice_)
        if implicit:
            slice_.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2"
        pydicom.dcmwrite(path, slice_, enforce_file_format=True)
    return folder


def siemens(slice_):
    slice_.add_new((0x0051, 0x0010), "LO", "SIEMENS MR HEADER")
    slice_.add_new((0x0051, 0x1014), "SH", "v120_rl")


def philips(slice_):
    slice_.add_new((0x2001, 0x0010), "LO", "Philips Imaging DD 001")
    slice_.add_new((0x2001, 0x101A), "FL", [0.0, 0.0, 120.0])


def ge(slice_):
    slice_.add_new((0x0019, 0x0010), "LO", "GEMS_ACQU_01")
    slice_.add_new((0x0019, 0x10CC), "SS", 1200)


def rescaled(slice_):
    """Philips states phases in mrad or cm/s by slope and intercept."""
    philips(slice_)
    slice_.RescaleSlope, slice_.RescaleIntercept = 120.0 / 2048.0, -120.0


VENDORS = {"Siemens": siemens, "Philips": philips, "GE": ge}


def magnitude(folder):
    lit = np.random.default_rng(9).integers(10, 900, SHAPE).astype("<u2")
    return read_volume(series(folder / "mag", lit))


@pytest.mark.parametrize("implicit", [False, True], ids=["explicit", "implicit"])
@pytest.mark.parametrize("vendor", VENDORS)
def test_the_venc_of_a_vendor_is_read_and_marked_untested(tmp_path, vendor, implicit):
    parts = [series(tmp_path / n, steps(s), VENDORS[vendor], implicit) for s, n in enumerate("uvw")]
    flow = read_flow(parts, magnitude(tmp_path), unit="steps", axes="+i-jk")
    assert flow.venc_ms == pytest.approx((1.2, 1.2, 1.2))
    assert any(f"untested on {vendor} scanners" in note for note in flow.notes)
    # i is R -> -x of the world (LPS to RAS), j is P, here measured against j
    exact = np.stack([-(steps(0) - 2048.0), steps(1) - 2048.0, steps(2) - 2048.0], axis=-1) * STEP
    assert np.abs(flow.u_ms[0] - exact).max() < 1e-5
    stated = read_flow(
        parts, magnitude(tmp_path / "x"), venc_ms=(0.6,) * 3, unit="steps", axes="ijk"
    )
    assert stated.venc_ms == (0.6,) * 3  # --venc wins over the tag


def test_slope_and_intercept_give_the_velocity(tmp_path):
    parts = [series(tmp_path / n, steps(s), rescaled) for s, n in enumerate("uvw")]
    flow = read_flow(parts, magnitude(tmp_path), unit="cm/s", axes="ijk")
    assert np.abs(flow.u_ms[0, ..., 2] - (steps(2) - 2048.0) * STEP).max() < 1e-5


def encoding(way, venc=120.0):
    item = Dataset()
    item.VelocityEncodingDirection = [float(x) for x in way]
    item.VelocityEncodingMinimumValue, item.VelocityEncodingMaximumValue = 0.0, venc
    return Sequence([item])


def directed(way):
    def change(slice_):
        slice_.MRVelocityEncodingSequence = encoding(way)

    return change


def test_the_sequence_of_the_standard_states_venc_and_direction(tmp_path):
    """Directions are the patient's, LPS; the images' axes i, j, k point L, P, S here."""
    ways = ((1, 0, 0), (0, -1, 0), (0, 0, 1))
    parts = [series(tmp_path / n, steps(s), directed(w))
             for s, (n, w) in enumerate(zip("uvw", ways, strict=True))]  # fmt: skip
    flow = read_flow(parts, magnitude(tmp_path), unit="steps")
    exact = np.stack([-(steps(0) - 2048.0), steps(1) - 2048.0, steps(2) - 2048.0], axis=-1) * STEP
    assert np.abs(flow.u_ms[0] - exact).max() < 1e-5
    assert any("untested on scanners" in note for note in flow.notes)
    oblique = series(tmp_path / "o", steps(3), directed((0.7, 0.7, 0)))
    with pytest.raises(ConfigError, match="direction of velocity not stated"):
        read_flow([parts[0], parts[1], oblique], magnitude(tmp_path / "x"), unit="steps")


def enhanced(path, values, way=(0, 0, 1), change=lambda image: None):
    """One enhanced multi-frame file; slices in falling order, to be sorted by their places."""
    path.parent.mkdir(exist_ok=True)
    image = pydicom.dcmread(io.BytesIO(make.dicom_slice(0)))
    image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.4.1"
    for name in ("PixelSpacing", "ImageOrientationPatient", "ImagePositionPatient"):
        delattr(image, name)
    measures, plane, shared = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [1.5, 1.0], 2.0
    plane.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    shared.PixelMeasuresSequence = Sequence([measures])
    shared.PlaneOrientationSequence = Sequence([plane])
    shared.MRVelocityEncodingSequence = encoding(way)
    image.SharedFunctionalGroupsSequence = Sequence([shared])
    frames = []
    for k in range(len(values)):
        place, group = Dataset(), Dataset()
        place.ImagePositionPatient = [-10.0, 0.0, 2.0 * (len(values) - 1 - k)]
        group.PlanePositionSequence = Sequence([place])
        frames.append(group)
    image.PerFrameFunctionalGroupsSequence = Sequence(frames)
    image.NumberOfFrames = len(values)
    image.PixelData = np.ascontiguousarray(values[::-1]).tobytes()
    change(image)
    pydicom.dcmwrite(path, image, enforce_file_format=True)
    return path.parent


def test_enhanced_multi_frame_files_are_read(tmp_path):
    ways = ((1, 0, 0), (0, -1, 0), (0, 0, 1))
    parts = [enhanced(tmp_path / n / "x.dcm", steps(s), w)
             for s, (n, w) in enumerate(zip("uvw", ways, strict=True))]  # fmt: skip
    flow = read_flow(parts, magnitude(tmp_path), unit="steps")
    exact = np.stack([-(steps(0) - 2048.0), steps(1) - 2048.0, steps(2) - 2048.0], axis=-1) * STEP
    assert np.abs(flow.u_ms[0] - exact).max() < 1e-5 and flow.venc_ms == pytest.approx((1.2,) * 3)


def test_damaged_enhanced_files_are_refused(tmp_path):
    def cut(image):
        image.PixelData = image.PixelData[:-2]

    def fewer(image):
        image.PerFrameFunctionalGroupsSequence = image.PerFrameFunctionalGroupsSequence[:-1]

    def mixed(image):
        image.PerFrameFunctionalGroupsSequence[1].MRVelocityEncodingSequence = encoding((1, 0, 0))

    def lost(image):
        del image.PerFrameFunctionalGroupsSequence[1].PlanePositionSequence

    for n, (change, text) in enumerate(((cut, "missing or truncated"), (fewer, "missing or trunc"),
                                        (mixed, "frames of several kinds"),
                                        (lost, "bad ImagePositionPatient"))):  # fmt: skip
        folder = enhanced(tmp_path / str(n) / "x.dcm", steps(0), change=change)
        with pytest.raises(DataError, match=text):
            read_volume(folder)


def test_what_the_series_does_not_say_is_asked_for(tmp_path):
    scan = magnitude(tmp_path)
    plain = [series(tmp_path / n, steps(s)) for s, n in enumerate("uvw")]
    with pytest.raises(DataError, match=r"no venc.*--venc"):
        read_flow(plain, scan, unit="steps", axes="ijk")
    with pytest.raises(ConfigError, match="unit of velocity not stated"):
        read_flow(plain, scan, venc_ms=(1.2,) * 3, axes="ijk")
    with pytest.raises(DataError, match="another unit"):
        read_flow(plain, scan, venc_ms=(1.2,) * 3, unit="phase", axes="ijk")
    short = series(tmp_path / "short", steps(0)[:-1], siemens)
    with pytest.raises(DataError, match="velocity of another shape"):
        read_flow([plain[0], short, plain[2]], scan, venc_ms=(1.2,) * 3, unit="steps", axes="ijk")


def test_the_command_reads_series_and_names_what_is_missing(tmp_path, capsys):
    magnitude(tmp_path)
    for s, n in enumerate("uvw"):
        series(tmp_path / n, steps(s))
    velocity = ",".join(str(tmp_path / n) for n in "uvw")
    out = tmp_path / "x.prior.h5"
    command = ["prior", "-i", str(tmp_path / "mag"), "--velocity", velocity, "-o", str(out)]
    unit = ["--velocity-unit", "steps", "--velocity-axes", "ijk"]
    assert main([*command, *unit]) == 3
    assert main([*command, "--venc", "150"]) == 2
    assert main([*command, *unit, "--venc", "150cm/s", "--dry-run"]) == 0
    errors = capsys.readouterr().err
    assert "no venc" in errors and "--venc 150cm/s" in errors and not out.exists()
