"""F40: no mutation of any input does more than be refused."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("seeds", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_f40_mutated_files_are_read_or_refused(tmp_path, seeds):
    script = Path(__file__).with_name("fuzz.py")
    command = [sys.executable, "-W", "error", str(script), str(seeds), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(done.stdout)
    print(report)
    assert report["failures"] == []
    assert report["refused"] > seeds / 2
