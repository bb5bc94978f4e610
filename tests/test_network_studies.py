"""The studies of the network: its cases on disk, and what is fitted and reported."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

from vesselseg import synth
from vesselseg.fields import Case, Probability
from vesselseg.grid import Grid
from vesselseg.nets import checkpoint
from vesselseg.synth.forward import gaussian_process

sys.path.insert(0, str(Path(__file__).parent.parent / "studies"))
heldout = importlib.import_module("heldout")
train_shipped = importlib.import_module("train_shipped")


def source_of(shape, folder, count):
    return train_shipped.Source((synth.SynthSettings(shape=shape),), folder, count)


def test_a_case_from_the_folder_is_the_case_drawn(tmp_path):
    source = source_of((20, 24), tmp_path, 8)
    first, again = source(3, 1), source(3, 1)
    drawn = synth.case(3, 2, synth.SynthSettings(shape=(20, 24)))  # 0, 2, 1, 3 of each four
    for name in ("image", "phi", "centreline"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
    # Half precision: 11 bits.
    np.testing.assert_allclose(first.image, drawn.image, rtol=2**-11)
    np.testing.assert_allclose(first.phi, drawn.phi, rtol=2**-11, atol=1e-4)
    np.testing.assert_array_equal(first.centreline, drawn.centreline)
    assert first.facts == again.facts
    np.testing.assert_array_equal(source(3, 9).phi, first.phi)  # beyond the count they come again
    assert len(list(tmp_path.rglob("*.npz"))) == 1


def test_shuffled_indices_visit_every_case_once(tmp_path):
    source = source_of((16, 16), tmp_path, 12)
    for index in range(12):
        source(0, index)
    assert len(list(tmp_path.rglob("*.npz"))) == 12


def test_every_batch_is_of_one_kind_and_all_kinds_come(tmp_path):
    radii = ((1.5, 3.0), (3.0, 6.0))
    phase = train_shipped.Phase("x", (16, 24), 16, 0, 8, 2, 1e-3, 0.1, radii)
    source = phase.source(2, tmp_path)
    shapes = [source(0, index).phi.shape for index in range(16)]
    assert shapes == [(16, 16)] * 4 + [(24, 24)] * 4 + [(16, 16)] * 4 + [(24, 24)] * 4
    assert {(k.shape, k.radius) for k in source.kinds} == {
        ((n, n), r) for n in (16, 24) for r in radii
    }
    assert {k.radius for k in source.kinds[:2]} == set(radii)


def test_every_other_group_is_of_the_earlier_phase(tmp_path, monkeypatch):
    first = train_shipped.Phase("x", (16,), 8, 5, 8, 2, 1e-3, 0.1)
    second = train_shipped.Phase("y", (24,), 8, 7, 8, 2, 1e-3, 0.1, beside="x")
    monkeypatch.setattr(train_shipped, "PHASES", {2: (first, second)})
    source = second.source(2, tmp_path)
    for offset in (0, 1000):  # training, validation
        cases = [source(7 + offset, index) for index in range(16)]
        assert [c.facts["seed"] - offset for c in cases] == ([7] * 4 + [5] * 4) * 2
        assert {c.facts["index"] for c in cases if c.facts["seed"] == 5 + offset} == set(range(8))
        assert {c.phi.shape for c in cases if c.facts["seed"] == 5 + offset} == {(16, 16)}


def test_correlation_length_of_a_field_is_found():
    """exp(-d²/(2 l²)) is 1/e at d = l √2."""
    rng, walls = np.random.default_rng(0), []
    for _ in range(12):
        field = gaussian_process((40, 40, 4), 3.0, rng)
        index = np.stack(np.indices(field.shape), -1).reshape(-1, 3)[::7]
        walls.append((index.astype(float), field.ravel()[::7].astype(float)))
    # Bins of one voxel, twelve fields of about a hundred patches.
    assert heldout.correlation_length(walls) == pytest.approx(3.0 * 2**0.5, rel=0.15)


def fake(case: Case, sigma: float, offset: float) -> Probability:
    phi = case.phi + np.float32(offset)
    values = (1.0 / (1.0 + np.exp(2.0 * phi))).astype(np.float32)
    grid = Grid.from_spacing(phi.shape, 1.0)
    return Probability(values, grid, "fake", phi, np.full(phi.shape, sigma, np.float32))


def test_measures_of_an_offset_wall():
    case = synth.case(1, 0, synth.SynthSettings(shape=(40, 40, 40), empty=0.0, flow=0.0))
    row = heldout.measure(case, fake(case, 0.5, 0.3))
    assert row["near_mean_voxel"] == pytest.approx(0.3, abs=0.05)
    assert row["false_share"] < 0.01 and row["within_1"] > 0.98
    exact = heldout.measure(case, fake(case, 0.5, 0.0))
    assert exact["dice"] == 1.0 and exact["near_mean_voxel"] < 0.02


@pytest.mark.slow
def test_calibration_of_unknown_weights_is_finite(tmp_path, monkeypatch):
    monkeypatch.setattr(heldout, "CALIBRATION_DRAWS", 1)
    monkeypatch.setattr(heldout, "SIDES", (32,))
    read = checkpoint.load(checkpoint.shipped(3))
    facts = {"architecture": read.card["architecture"]}
    found = heldout.calibrate(checkpoint.save(tmp_path / "net", read.tensors, facts), 3)
    assert 0.2 < found["temperature"] < 4.0 and found["sigma_scale"] > 0
    assert 0 < found["correlation_voxels"] <= 24 and len(found["classes"]) >= 4


def test_groups_are_those_of_the_facts():
    facts = {"anisotropy": 1.0, "distractors": 0, "polarity": "bright", "lumen_share": 0.1}
    nothing = np.zeros((4, 4), np.float32)
    case = Case(nothing[None], nothing, nothing.astype(np.uint8), facts)
    strata = {"snr": "SNR 3", "radius": "thin 1.5-3", "list": "magnitude"}
    names = heldout.classes(case, strata)
    assert names[:4] == ["all", "lumen > 3 %", "SNR 3", "thin 1.5-3"]
    assert "cubic voxels" in names and "no distractors" in names
    assert heldout.classes(case, {"list": "speed"}) == ["speed images"]
