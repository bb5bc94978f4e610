"""Predictions against truth, from files."""

from __future__ import annotations

import json

import numpy as np
import pytest
from cli_runner import assert_refused, run

from vesselseg.evaluation import evaluate
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
