"""The whole path: scan and start in, a checked prior out."""

import json
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

import vesselseg
from vesselseg import metrics, phantoms
from vesselseg.calibration import calibrated, shipped
from vesselseg.config import build
from vesselseg.errors import ConfigError, DataError, NoInterfaceError
from vesselseg.fields import LevelSet, Probability, Volume
from vesselseg.grid import Grid
from vesselseg.io import read_volume
from vesselseg.nets import checkpoint
from vesselseg.pipeline import PipelineConfig, TrainRun, build_prior, train
from vesselseg.prior import check as prior_check
from vesselseg.solvers.refine import refine
from vesselseg.solvers.settings import RefineSettings
from vesselseg.synth.cases import SynthSettings
from vesselseg.synth.folder import write_dataset
from vesselseg.synth.forward import ForwardModel, render_phantom

TURN = np.linalg.qr(np.array([[1.0, 0.3, 0.1], [-0.3, 1.0, 0.2], [0.1, -0.2, 1.0]]))[0]


def scan(name="torus", radius=3.0, spacing=1.0, rotation=None, snr=8.0, **options):
    """A phantom, its exact distance, its image and a soft start 0.4 mm too large."""
    shape = phantoms.make(name, radius=radius, **options)
    grid = shape.grid(spacing, rotation=rotation)
    truth = shape.phi(grid)
    image = render_phantom(shape, grid, ForwardModel(snr=snr, psf_voxels=0.6), 3)
    values = 1.0 / (1.0 + np.exp(np.clip(2.0 * (truth - 0.4), -30, 30)))
    return shape, truth, image, Probability(values.astype(np.float32), grid, "start:test")


def failures(prior):
    return [f for f in prior_check.check(prior) if not f.ok and f.level == "error"]


@pytest.mark.parametrize(
    ("spacing", "rotation"),
    [(1.0, None), ((1.5, 1.0, 1.0), TURN), (1.0, TURN @ np.diag([1.0, 1.0, -1.0]))],
    ids=["even", "oblique and uneven", "left-handed"],
)
def test_the_wall_lies_where_the_vessel_is_in_the_world(spacing, rotation):
    shape, _, image, start = scan(spacing=spacing, rotation=rotation)
    prior = build_prior(image, start=start)
    assert failures(prior) == []
    away = np.abs(shape.sdf(1e3 * prior.vertices_m))
    # The start is 0.4 mm off; a tenth of a voxel is twice the expected wall error at this SNR.
    assert away.mean() < 0.1 * max(np.atleast_1d(spacing))


def test_the_path_works_on_a_planar_scan():
    _, truth, image, start = scan("circle", 8.0)
    prior = build_prior(image, start=start)
    assert failures(prior) == []
    assert metrics.wall_errors(1e3 * prior.phi_mean_m, truth, image.grid)["mean_voxel"] < 0.15


def test_the_path_repeats_bit_for_bit():  # P-27
    _, _, image, start = scan("tilted_tube", 2.5)
    digests = {build_prior(image, start=start).attributes["/"]["content_sha256"] for _ in range(2)}
    files = [build_prior(image, start=start) for _ in range(2)]
    arrays = [{p: a.tobytes() for p, a in f.arrays.items() if "volatile" not in p} for f in files]
    assert arrays[0] == arrays[1]
    assert len(digests) == 1


def test_one_scan_in_millimetres_and_in_metres_gives_one_prior(tmp_path):  # P-31
    _, _, image, start = scan("tilted_tube", 2.5)
    walls = []
    for unit, factor in (("mm", 1.0), ("meter", 1e-3), ("micron", 1e3)):
        affine = np.diag([factor, factor, factor, 1.0]) @ image.grid.affine
        stored = nib.Nifti1Image(image.values.T, affine)
        stored.header.set_xyzt_units(unit)
        stored.header.set_sform(affine, code=1)
        stored.header.set_qform(affine, code=1)
        nib.save(stored, tmp_path / "scan.nii")
        read = read_volume(tmp_path / "scan.nii")
        placed = Probability(start.values, read.grid, start.model_id)
        walls.append(build_prior(read, start=placed).vertices_m)
    for other in walls[1:]:
        # The affine is stored in float32: 1e-7 of a field of view of 30 mm.
        np.testing.assert_allclose(other, walls[0], atol=3e-8)


def test_turning_the_array_moves_no_wall():  # P-12
    shape, _, image, start = scan("aneurysm", 3.0)
    centre = []
    for axes, flip in (((0, 1, 2), ()), ((2, 0, 1), (1,)), ((1, 0, 2), (0, 2))):
        values, p = (np.flip(a.transpose(axes), flip).copy() for a in (image.values, start.values))
        affine = turned(image.grid, axes, flip)
        grid = Grid(values.shape, affine)
        prior = build_prior(Volume(values, grid), start=Probability(p, grid, "start:turned"))
        distance = shape.sdf(1e3 * prior.vertices_m)
        centre.append([np.mean(distance), np.std(distance)])
    # Jacobi and reduction orders differ between layouts: the same wall to a hundredth of a voxel.
    np.testing.assert_allclose(centre[1:], [centre[0]] * 2, atol=0.01)


def turned(grid, axes, flip):
    """The affine of an array that was transposed and flipped (array axes)."""
    step = np.eye(4)
    order = [2 - a for a in axes[::-1]]
    step[:3, :3] = np.eye(3)[:, order]
    shape = [grid.shape_kji[a] for a in axes]
    for axis in flip:
        mirror = np.eye(4)
        mirror[2 - axis, 2 - axis], mirror[2 - axis, 3] = -1.0, shape[axis] - 1.0
        step = step @ mirror
    return grid.affine @ step


def test_components_are_chosen_as_asked():
    shape, _, image, start = scan("two_vessels", 2.5, gap=3.0)
    labels = {}
    seed = tuple(float(x) for x in shape.axis_xyz[0])
    for choice in ("all", "largest", 1, "seed"):
        config = PipelineConfig(components=choice, seed_point=seed)
        prior = build_prior(image, config, start=start)
        labels[choice] = int(prior.attributes["/geometry"]["n_components"])
    assert labels == {"all": 2, "largest": 1, 1: 1, "seed": 1}
    with pytest.raises(DataError, match="seed point"):
        build_prior(image, PipelineConfig(components="seed"), start=start)
    far = PipelineConfig(components="seed", seed_point=(0.0, 0.0, 1e4))
    with pytest.raises(DataError, match="outside the scan"):
        build_prior(image, far, start=start)


def test_a_start_without_lumen_is_refused():
    _, _, image, start = scan("sphere", 4.0)
    empty = Probability(np.zeros_like(start.values), start.grid, "start:empty")
    with pytest.raises(NoInterfaceError, match="no lumen"):
        build_prior(image, start=empty)


def test_the_provenance_names_configuration_versions_and_calibration():
    _, _, image, start = scan("sphere", 4.0)
    prior = build_prior(image, PipelineConfig(seed=7), start=start)
    facts = prior.provenance
    assert facts["seed"] == 7
    assert facts["config"]["refine"]["energy"] == "map"
    assert {"vesselseg", "numba", "torch"} <= facts["versions"].keys()
    assert facts["device"]["name"] == "cpu"
    assert facts["calibration_set"] == "none"
    assert prior.attributes["/geometry/phi_std"]["calibrated"] == 0
    assert "machine" not in json.dumps(facts["config"])


def test_only_the_shipped_network_with_default_settings_is_called_calibrated():
    _, _, image, start = scan("sphere", 4.0)
    known = replace(start, model_id=shipped().model_id)
    for found, refine_settings, name in (
        (known, {}, shipped().name),
        (known, {"means_length": 9.0}, "none"),
        (start, {}, "none"),
    ):
        config = PipelineConfig(refine=RefineSettings(**refine_settings))
        prior = build_prior(image, config, start=found)
        assert prior.provenance["calibration_set"] == name
        assert prior.attributes["/geometry/phi_std"]["calibrated"] == int(name != "none")


def test_calibration_scales_only_within_its_classes():
    _, _, image, start = scan("sphere", 4.0)
    run = refine(LevelSet.from_probability(start), image)
    inside = calibrated(run)
    factor = inside.estimates["sigma_factor"]
    np.testing.assert_allclose(inside.sigma_mm, run.sigma_mm * np.float32(factor))
    assert inside.estimates["calibrated"] == 1.0
    _, _, clean, start = scan("sphere", 4.0, snr=500.0)
    beyond = calibrated(refine(LevelSet.from_probability(start), clean))
    assert "calibrated" not in beyond.estimates


def test_training_through_the_front_door_leaves_a_checkpoint(tmp_path):
    small = {"options": {"size": "small"}, "batch": 1, "validation_cases": 1, "steps": 2}
    config = build(TrainRun, {**small, "synth": {"shape": (32, 32, 32)}})
    made = vesselseg.train(config, tmp_path / "run")
    card = json.loads(made.read_text())
    assert card["architecture"]["name"] == "vesselnet"
    assert card["config"]["synth"]["shape"] == [32, 32, 32]
    with pytest.raises(ConfigError):
        train(TrainRun(in_channels=3, steps=1), tmp_path / "other")


def test_fine_tuning_on_a_folder_goes_on_from_the_shipped_weights(tmp_path):
    """All of a user's run: masks, split, notes, epochs; the loss falls below the first one."""
    data, run = tmp_path / "data", tmp_path / "run"
    write_dataset(data, 5, build(SynthSettings, {"shape": (48, 48), "empty": 0.0}), seed=3)
    tree = {
        "init": "vesselnet-2d-v1",
        "dims": 2,
        "epochs": 6,
        "batch": 2,
        "lr": 1e-3,
        "validate_every": 6,
        "validation_cases": 2,
        "data": {"folder": str(data), "patch": (48, 48), "validation": 1},
    }
    made = vesselseg.train(build(TrainRun, tree), run)
    card = json.loads(made.read_text())
    shipped = checkpoint.load(checkpoint.shipped(2)).card["architecture"]
    assert {k: card["architecture"].get(k) for k in shipped} == shipped
    assert card["steps"] == 12
    parts = json.loads((run / "split.json").read_text())
    assert (len(parts["train"]), len(parts["val"])) == (4, 1)
    assert "no voxel size: taken as 1 mm" in parts["notes"][0]
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert np.mean([r["loss"] for r in rows[-4:]]) < np.mean([r["loss"] for r in rows[:4]])
