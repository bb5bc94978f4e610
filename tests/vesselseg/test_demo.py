"""The demonstration."""

import json

import numpy as np
import pytest

from vesselseg import demo
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
    assert not any(" m³" in line or "mm³" in line for line in text.splitlines())
