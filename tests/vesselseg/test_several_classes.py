"""Several classes and channels through the whole command line, as brain and heart sets need."""

from __future__ import annotations

import json

import nibabel
import numpy as np
import pytest
from cli_runner import assert_refused, run

from vesselseg import metrics
from vesselseg.errors import CheckpointError, DataError
from vesselseg.fields import Volume
from vesselseg.grid import Grid
from vesselseg.infer import SegmentSettings, segment
from vesselseg.io import read_volume

SIDE = 40
SPACING = np.diag([0.8, 1.2, 1.0, 1.0])
TRAIN = {
    "dims": 2, "in_channels": 2, "classes": 3, "options.size": "tiny", "lr": 0.01, "batch": 2,
    "data.patch": [SIDE, SIDE], "ema": 0.9, "warmup": 5, "validation_cases": 2,
    "validate_every": 40, "precision": "fp32",
}  # fmt: skip


def heart(rng):
    """A wall seen in the first channel only, about a cavity seen in the second only."""
    at = np.indices((SIDE, SIDE)) - rng.uniform(16, 24, 2)[:, None, None]
    r = np.hypot(*at)
    labels = np.where(r < 6, 2, np.where(r < 11, 1, 0)).astype("u1")
    seen = np.stack([labels == 1, labels == 2]).astype(float)
    return (100 * seen + rng.normal(0, 8, seen.shape)).astype("f4"), labels


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Pairs of images of two frames and masks of three labels."""
    folder, rng = tmp_path_factory.mktemp("heart"), np.random.default_rng(0)
    for part, count in (("train", 8), ("val", 2)):
        for name in ("magn", "mask"):
            (folder / part / name).mkdir(parents=True)
        for n in range(count):
            image, labels = heart(rng)
            for name, array in (("magn", image.T[:, :, None]), ("mask", labels.T)):
                file = folder / part / name / f"{n}.nii.gz"
                nibabel.save(nibabel.Nifti1Image(array, SPACING), file)
    return folder


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """A network of two channels and three classes, by the command line."""
    from vesselseg.cli.app import main

    out = tmp_path_factory.mktemp("run")
    changes = [f"{key}={json.dumps(value)}" for key, value in TRAIN.items()]
    options = [word for change in changes for word in ("--set", change)]
    argv = ["-q", "train", "--data", str(data), "-o", str(out), "--steps", "60", "--seed", "1"]
    assert main([*argv, *options]) == 0
    return out / "best.json"


def test_classes_are_trained_segmented_and_evaluated(data, trained, tmp_path, capfd):
    scan, truth = data / "val" / "magn" / "0.nii.gz", data / "val" / "mask" / "0.nii.gz"
    argv = ("-q", "segment", "-i", scan, "-o", tmp_path / "p.nii.gz", "--model", trained)
    code, _, err = run(capfd, *argv, "--save", "prob,labels,mask,phi")
    assert (code, err) == (0, [])
    names = ("p", "labels", "mask")
    prob, labels, mask = (read_volume(tmp_path / f"{n}.nii.gz").values for n in names)
    assert np.array_equal(labels > 0, prob > 0.5)
    assert np.array_equal(mask > 0, prob > 0.5)
    code, out, _ = run(capfd, "evaluate", tmp_path / "labels.nii.gz", "--truth", truth, "--json")
    rows = json.loads(out)["classes"]
    assert code == 0 and set(rows) == {"1", "2"}
    true = read_volume(truth).values
    for number, row in rows.items():
        assert row["dice"] == metrics.dice(labels == int(number), true == int(number))
        assert row["dice"] > 0.85
    code, out, err = run(capfd, "-q", "evaluate", data, "--model", trained, "--json")
    assert (code, err) == (0, [])
    first, second = json.loads(out)["cases"]
    assert first["dice_2"] == pytest.approx(rows["2"]["dice"])
    assert second["dice_1"] > 0.8


def test_the_wall_of_some_classes_is_judged_by_their_own(data, trained, capfd):
    """The cavity alone, a disc of 6 voxels, lies 5 voxels from the wall of both."""
    argv = ("-q", "evaluate", data, "--model", trained, "--json")
    rows = json.loads(run(capfd, *argv, "--set", "lumen_classes=[2]")[1])["cases"]
    for row in rows:
        assert row["dice"] > 0.8 and row["dice_1"] > 0.8
        assert row["wall_near_mean_voxel"] < 1.0


def test_labels_are_those_of_the_lumen_exactly_inside_it(data, trained):
    scan = data / "val" / "magn" / "1.nii.gz"
    channels = [read_volume(scan, frame=n) for n in range(2)]
    for wanted in (None, (2,), (0, 2)):
        found = segment(
            channels[0], trained, SegmentSettings(lumen_classes=wanted), channels=channels[1:]
        )
        inside = np.isin(found.labels, wanted or (1, 2))
        assert np.array_equal(inside, found.values > 0.5)
        assert (found.phi_mm is None) == (wanted is not None)


def test_channels_that_do_not_fit_are_refused(data, trained, capfd, tmp_path):
    scan = data / "val" / "magn" / "1.nii.gz"
    first, second = (read_volume(scan, frame=n) for n in range(2))
    with pytest.raises(CheckpointError, match="2 channels"):
        segment(first, trained)
    moved = Volume(second.values, Grid.from_spacing(second.values.shape, (1.0, 1.0)))
    with pytest.raises(DataError, match="another grid"):
        segment(first, trained, channels=[moved])
    mask = data / "val" / "mask" / "1.nii.gz"
    argv = ("segment", "-i", mask, "-o", tmp_path / "p.nii.gz", "--model", trained)
    assert_refused(run(capfd, *argv), 2, "frame")
    code, _, err = run(
        capfd, "-q", "segment", "-i", scan, "--frame", 0, "-o", tmp_path / "p.nii.gz",
        "--model", "vesselnet-2d-v1", "--save", "prob,labels",
    )  # fmt: skip
    assert (code, "gives no labels" in err[-1]) == (2, True)
    assert list(tmp_path.iterdir()) == []


def test_the_speed_is_the_second_of_two_channels(tmp_path, capfd):
    from vesselseg import nets
    from vesselseg.io import write_image
    from vesselseg.nets import checkpoint

    rng, grid = np.random.default_rng(0), Grid.from_spacing((16, 18, 20), (1.0, 1.0, 1.5))
    scan, *parts = (rng.normal(size=grid.shape_kji).astype("f4") for _ in range(4))
    files = [tmp_path / f"{name}.nii.gz" for name in ("scan", "u", "v", "w")]
    for file, values in zip(files, (scan, *parts), strict=True):
        write_image(file, values, grid)
    architecture = dict(name="vesselnet", dims=3, in_channels=2, classes=1, size="tiny")
    net = checkpoint.save(
        tmp_path / "net", nets.create(**architecture).state_dict(), {"architecture": architecture}
    )
    three = ",".join(str(file) for file in files[1:])
    argv = ("-q", "segment", "-i", files[0], "--velocity", three, "--velocity-unit", "m/s")
    out = tmp_path / "p.nii.gz"
    argv += ("--velocity-axes", "RAS", "--venc", "20m/s", "--model", net, "-o", out)
    code, _, err = run(capfd, *argv)
    assert (code, err) == (0, [])
    speed = Volume(np.sqrt(sum(part**2 for part in parts)), grid)
    found = segment(Volume(scan, grid), net, channels=[speed])
    np.testing.assert_allclose(read_volume(out).values, found.values, atol=1e-5)
