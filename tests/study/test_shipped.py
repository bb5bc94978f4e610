"""The shipped studies run in their quick form: small cases, the same script."""

import importlib
import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "studies"))
shipped = importlib.import_module("shipped")

NAMES = ("energies", "scheme_order", "sensitivity", "network_or_refinement", "anisotropy")


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_study_runs_quickly(name, tmp_path):
    asked = importlib.import_module(name).SHIPPED
    written = shipped.main(asked, ["--quick", "--workers", "0", "-o", str(tmp_path)])
    result = json.loads(written.read_text())
    assert result["cases"] >= 4
    assert all(row["failed"] == 0 for row in result["table"])
    numbers = [row[m] for row in result["table"] for m in asked.metrics]
    assert None not in numbers
    assert written.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    if name == "energies":  # the posterior beats every flow where there is noise
        rms = {r["refine.energy"]: r["rms_voxel"] for r in result["table"] if r["snr"] == 3.0}
        assert min(rms, key=rms.get) == "map"


def test_every_shipped_study_has_its_row():
    rows = (Path(shipped.__file__).parent / "README.md").read_text()
    assert all(f"studies/{name}.py" in rows for name in NAMES)
