"""Predictions against truth, from files."""

from __future__ import annotations

import csv
import json
import math

import numpy as np
import pytest
from cli_runner import assert_refused, run

from vesselseg import metrics
from vesselseg.evaluation import evaluate, shift
from vesselseg.grid import Grid
from vesselseg.io import write_image

GRID = Grid.from_spacing((26, 28, 24), (1.0, 0.8, 1.2))
POINTS = np.moveaxis(np.indices(GRID.shape_kji), 0, -1) * GRID.spacing_mm
DISTANCE = np.linalg.norm(POINTS - np.array([12.4, 11.3, 13.2]), axis=-1)


@pytest.fixture
def put(tmp_path):
    """Write an image on the grid and return its path."""

    def write(name, values, grid=GRID):
        write_image(tmp_path / name, np.asarray(values), grid, overwrite=True)
        return tmp_path / name

    return write


def test_a_sphere_grown_by_a_length_is_off_by_that_length(put):
    """0.3 of the smallest voxel, as level sets and as a probability, within 0.01 voxel."""
    truth = put("t.nii.gz", (DISTANCE - 6.0).astype("f4"))
    grown = DISTANCE - 6.24
    for values in (grown, 1.0 / (1.0 + np.exp(2.0 * grown))):
        found = evaluate(put("p.nii.gz", values.astype("f4")), truth)["wall"]
        assert found["mean_voxel"] == pytest.approx(0.3, abs=0.01)
        assert found["bias_voxel"] == pytest.approx(-0.3, abs=0.01)


def test_distances_far_from_the_truth_are_not_cut_off(put):
    small, large = DISTANCE - 2.0, DISTANCE - 10.0
    paths = put("t.nii.gz", small.astype("f4")), put("p.nii.gz", large.astype("f4"))
    found = evaluate(*paths)["wall"]
    assert found["mean_mm"] == pytest.approx(8.0, abs=0.1)
    assert (found["near_mean_mm"], found["false_share"]) == (None, 1.0)


def test_labels_are_compared_class_by_class(put):
    rng = np.random.default_rng(0)
    a, b = (rng.integers(0, 4, GRID.shape_kji).astype("u1") for _ in range(2))
    b[b == 3] = 5
    found = evaluate(put("p.nii.gz", a), put("t.nii.gz", b))
    assert set(found["classes"]) == {"1", "2", "3", "5"}
    for number, row in found["classes"].items():
        x, y = a == int(number), b == int(number)
        assert row["iou"] == pytest.approx((x & y).sum() / (x | y).sum())
        assert row["dice"] == pytest.approx(2 * (x & y).sum() / (x.sum() + y.sum()))
    assert found["mean_dice"] == pytest.approx(
        np.mean([r["dice"] for r in found["classes"].values()])
    )
    assert found["iou"] == pytest.approx(((a > 0) & (b > 0)).sum() / ((a > 0) | (b > 0)).sum())


def test_topology_is_counted_and_an_empty_prediction_has_no_wall(put):
    shell = (np.abs(DISTANCE - 7.0) < 2.0).astype("u1")
    found = evaluate(put("p.nii.gz", shell), put("t.nii.gz", (DISTANCE < 8).astype("u1")))
    assert found["topology"]["prediction"] == {"components": 1.0, "cavities": 1.0, "tunnels": 0.0}
    assert found["topology"]["truth"]["cavities"] == 0.0
    found = evaluate(put("p.nii.gz", 0 * shell), put("t.nii.gz", shell))
    assert (found["dice"], found["wall"], found["cl_dice"]) == (0.0, None, 0.0)


def test_the_verb_prints_json_and_refuses_what_does_not_fit(put, capfd):
    mask = put("m.nii.gz", (DISTANCE < 6).astype("u1"))
    code, out, err = run(capfd, "evaluate", mask, "--truth", mask, "--json")
    assert (code, err) == (0, [])
    assert json.loads(out)["dice"] == 1.0
    other = Grid.from_spacing(GRID.shape_kji, (1.0, 0.8, 1.3))
    moved = put("o.nii.gz", (DISTANCE < 6).astype("u1"), other)
    assert_refused(run(capfd, "evaluate", moved, "--truth", mask), 3, "another grid")
    scan = put("s.nii.gz", (300.5 * DISTANCE + 7).astype("f4"))
    assert_refused(run(capfd, "evaluate", scan, "--truth", mask), 3, "kind not clear")
    assert_refused(run(capfd, "evaluate", mask), 2, "--truth")


# --- radii, calibration, lists -----------------------------------------------------------------


def test_a_tube_grown_by_a_length_is_too_wide_by_that_length():
    x = np.indices((24, 32, 30)) * np.array([1.0, 0.8, 1.2])[:, None, None, None]
    depth = np.hypot(x[1] - 12.4, x[2] - 17.4)
    found = metrics.radius_error(depth - 6.4, depth - 6.0)
    assert found["mean_mm"] == found["bias_mm"] == pytest.approx(0.4)
    # Voxels off the axis are less deep than the radius.
    assert found["bias_share"] == pytest.approx(0.4 / 6.0, rel=0.3)
    lost = metrics.radius_error(np.full(depth.shape, 9.0), depth - 6.0)
    assert lost["mean_share"] == 1.0


def test_a_true_ranking_of_errors_has_no_area_and_a_reversed_one_has():
    """The predicted wall is off by a tilt, its s.d. by construction right, flat or reversed."""
    x = np.indices((40, 40)).astype(float)
    truth = x[0] - 19.3
    pred = truth + 0.1 * (x[1] - 20.0)
    error = np.abs(0.1 * (x[1] - 20.0))
    areas = [
        metrics.sparsification(pred, truth, sigma, 1.0)["ause"]
        for sigma in (error + 1e-3, np.full_like(error, 1.0) + 1e-9 * x[1], 3.0 - error)
    ]
    assert areas[0] == pytest.approx(0.0, abs=0.01)
    assert areas[0] < 0.1 < areas[1] < areas[2]


def test_reliability_bins_hold_their_voxels():
    rng = np.random.default_rng(0)
    p = rng.random(20000)
    curve = metrics.reliability(p, rng.random(20000) < p**2)
    for row in curve:
        assert row["share"] == pytest.approx(row["p"] ** 2, abs=0.04)
    assert sum(row["n"] for row in curve) == 20000
    gap = sum(row["n"] * abs(row["p"] - row["share"]) for row in curve) / 20000
    assert gap == pytest.approx(metrics.calibration_error(p, rng.random(20000) < p**2), abs=0.02)


@pytest.fixture
def lists(tmp_path):
    """Predictions that are right, a little and very wrong, beside their truth."""
    for part in ("found", "truth"):
        (tmp_path / part).mkdir()
    for name, grown in (("a", 0.0), ("b", 0.8), ("c", 4.0)):
        phi = DISTANCE - 6.0
        write_image(tmp_path / "truth" / f"{name}_mask.nii.gz", (phi < 0).astype("u1"), GRID)
        soft = 1 / (1 + np.exp(2 * (phi - grown)))
        write_image(tmp_path / "found" / f"{name}.nii.gz", soft.astype("f4"), GRID)
    return tmp_path


def test_folders_are_compared_case_by_case_with_table_and_pictures(lists, capfd):
    out = lists / "report"
    arguments = (lists / "found", "--truth", lists / "truth", "-o", out, "--json")
    code, text, err = run(capfd, "evaluate", *arguments)
    assert (code, err) == (0, [])
    found = json.loads(text)
    dice = [row["dice"] for row in found["cases"]]
    assert [row["case"] for row in found["cases"]] == ["a", "b", "c"]
    assert dice[0] == 1.0 > dice[1] > dice[2]
    assert found["summary"]["dice"]["median"] == dice[1]
    assert found["cases"][2]["radius_bias_mm"] == pytest.approx(4.0, abs=0.5)
    assert found["cases"][2]["ece"] > found["cases"][0]["ece"]
    table = (out / "cases.csv").read_text().splitlines()
    assert len(table) == 4
    assert json.loads((out / "cases.json").read_text())["summary"] == found["summary"]
    for name in ("cases.png", "calibration.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    (lists / "found" / "d.npy").write_bytes(b"x")
    assert_refused(run(capfd, "evaluate", *arguments[:3]), 3, "d.npy", "without a partner")


def test_a_network_is_judged_on_a_folder_and_on_held_out_scans(tmp_path, capfd, monkeypatch):
    """Its distance, s.d. and probability are all scored."""
    from vesselseg.synth import SynthSettings, write_dataset

    write_dataset(tmp_path / "data", 2, SynthSettings(shape=(64, 64), empty=0.0, easy=1.0), seed=4)
    common = ("--model", "vesselnet-2d-v1", "--json")
    monkeypatch.setattr(shift, "REFERENCE", 3)
    code, out, err = run(capfd, "-q", "evaluate", tmp_path / "data", *common, "-o", tmp_path / "s")
    assert (code, err) == (0, [])
    rows = json.loads(out)["cases"]
    shifts = list(csv.DictReader((tmp_path / "s" / "shift.csv").read_text().splitlines()))
    assert [row["measure"] for row in shifts][:2] == ["blood", "around"]
    assert all(math.isfinite(float(row["scans"])) for row in shifts)
    assert [row["case"] for row in rows] == ["0000", "0001"]
    assert all(0 <= row["ece"] < 0.5 for row in rows)
    code, out, err = run(
        capfd, "-q", "evaluate", *common, "-n", 2, "--dims", 2, "-o", tmp_path / "r"
    )
    assert (code, err) == (0, [])
    rows = json.loads(out)["cases"]
    assert len(rows) == 2
    assert {"coverage_within_2", "coverage_ause", "wall_near_mean_voxel"} <= rows[0].keys()
    assert (tmp_path / "r" / "cases.png").is_file()


def test_an_evaluation_of_nothing_is_refused(capfd, tmp_path):
    assert_refused(run(capfd, "evaluate"), 2, "nothing to evaluate")
    assert_refused(run(capfd, "evaluate", tmp_path), 2, "--truth")
    both = ("evaluate", tmp_path, "--truth", tmp_path, "--model", "x.json")
    assert_refused(run(capfd, *both), 2, "--model")
    assert_refused(run(capfd, "evaluate", tmp_path, "--truth", tmp_path), 3, "no images")


def test_what_a_scan_looks_like_is_measured():
    """A ball of known blood, surroundings, noise, radius; and a shift in s.d. of what was seen."""
    rng, phi = np.random.default_rng(0), DISTANCE - 6.0
    clean = np.where(phi < 0, 300.0, np.where(DISTANCE < 10.5, 120.0, 100.0))
    found = shift.look(clean + rng.normal(0, 4.0, clean.shape), phi < 0, GRID)
    span = np.subtract(*np.percentile(clean, (99.5, 0.5)))  # noise widens it by about 20 units
    assert found["contrast"] == pytest.approx(180 / (span + 17), rel=0.03)
    assert found["noise"] == pytest.approx(4 / (span + 17), rel=0.05)
    assert found["radius_voxels"] == pytest.approx(6.0 / 0.8, rel=0.15)  # a skeleton of voxels
    assert found["anisotropy"] == pytest.approx(1.5)
    assert shift.look(clean, phi < -99, GRID) is None
    learnt = [found | {"noise": value} for value in (0.1, 0.2, 0.3)]
    rows = {row["measure"]: row for row in shift.table([found | {"noise": 0.5}], learnt)}
    assert rows["noise"]["shift"] == pytest.approx(3.0)
