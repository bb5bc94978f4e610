"""The demonstration."""

import json
import re

import numpy as np
import pytest

from vesselseg.demo import example as demo
from vesselseg.errors import ConfigError
from vesselseg.fields import Volume
from vesselseg.grid import Grid
from vesselseg.metrics import wall_errors


def test_the_carotid_scan_is_whole_and_says_what_nobody_knows():
    volume = demo.carotid_scan()
    assert volume.values.shape == (45, 49, 76)
    assert (volume.values.min(), volume.values.max()) == (0.0, 580.0)
    assert "voxel size unknown: 1 mm assumed" in volume.notes
    assert any("no orientation" in note for note in volume.notes)


def test_the_isosurface_is_the_half_level_set_of_the_filtered_image():
    """On a plane the half level lies on the wall, whatever the filter."""
    grid = Grid.from_spacing((12, 12, 24), 1.0)
    x = np.broadcast_to(np.arange(24.0), grid.shape_kji)
    image = 1.0 + 2.0 * np.clip(x - 10.7 + 0.5, 0.0, 1.0)  # partial volume of x > 10.7
    found = demo.isosurface(Volume(image, grid), lumen=3.0, background=1.0)
    errors = wall_errors(found, 10.7 - x, grid)
    assert errors["max_mm"] < 0.06  # linear interpolation of the filtered edge
    assert abs(errors["bias_mm"]) < 0.06


def test_files_of_an_earlier_run_are_not_replaced_unasked(tmp_path):
    (tmp_path / "comparison.png").write_bytes(b"mine")
    with pytest.raises(ConfigError, match="--overwrite"):
        demo.run_demo(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["comparison.png"]
    assert (tmp_path / "comparison.png").read_bytes() == b"mine"


def assert_only_the_phantom_has_millimetres(text):
    carotid, _, phantom = text.partition("\nphantom ")
    assert "voxel size unknown" in carotid
    assert not re.search(r"\dmm|\bmm", carotid)
    assert re.search(r"\bmm\b", phantom)


def test_the_table_states_no_length_of_the_carotid_in_millimetres():
    ending = {"end": "converged after 9 steps", "check": {"ok": True}}
    row = {f"{figure}_{unit}": 0.1 for figure in demo.FIGURES for unit in ("mm", "voxel")}
    errors = dict.fromkeys(demo.NAMES, row | {"normal_rms_deg": 5.0})
    files = dict.fromkeys(("prior", "picture", "comparison"), "file")
    phantom = {"name": demo.PHANTOM, "errors": errors, "coverage": {"within_1": 0.7}}
    phantom["coverage"]["within_2"] = 0.95
    carotid = {"components": 2, **ending, **files}
    parts = {"carotid": carotid, "phantom": {**phantom, **ending, **files}, "seconds": 9.0}
    assert_only_the_phantom_has_millimetres(demo.table(parts))


@pytest.mark.slow
def test_the_demo_beats_network_and_isosurface_and_its_priors_pass(tmp_path):
    result = demo.run_demo(tmp_path / "out")
    names = {"carotid.prior.h5", "carotid.png", "phantom.prior.h5", "phantom.png", "comparison.png"}
    assert {p.name for p in (tmp_path / "out").iterdir()} == names
    assert json.loads(json.dumps(result)) == result
    assert result["ok"]
    mean = {name: row["mean_voxel"] for name, row in result["phantom"]["errors"].items()}
    print(mean)
    assert mean["refined"] < 0.85 * min(mean["network"], mean["isosurface"])
    text = demo.table(result)
    assert "passed" in text
    assert_only_the_phantom_has_millimetres(text)
