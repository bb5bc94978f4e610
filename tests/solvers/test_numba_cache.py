"""F22, F23: a damaged compiled cache is made anew with a warning, an absent one is no fault."""

import os
import subprocess
import sys

import pytest

RUN = """
import numpy as np
from vesselseg.cuda_kernels.closest_point import count_interface
sign = np.ones((4, 4, 4), np.int8)
sign[1, 1, 1] = -1
count = np.empty((4, 4), np.int64)
count_interface(sign, count)
print(count.sum())
"""
NOTHING_WRITABLE = """
import tempfile
def refuse(*args, **options):
    raise PermissionError("read-only")
tempfile.TemporaryFile = refuse
"""
FULL_DISK = """
import os
def refuse(*args, **options):
    raise OSError(28, "No space left on device")
os.replace = refuse
"""


def run(folder, first=""):
    """Call one small kernel in a fresh process; return its output and what it warned of."""
    given = os.environ | {"NUMBA_CACHE_DIR": str(folder)}
    given.pop("HOME", None)
    done = subprocess.run([sys.executable, "-c", first + RUN], capture_output=True, text=True,
                          env=given, timeout=120)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip(), done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A cache with one compiled kernel."""
    path = tmp_path_factory.mktemp("cache")
    assert run(path) == ("7", "")
    assert len([*path.rglob("*.nbi")]) == len([*path.rglob("*.nbc")]) == 1
    return path


DAMAGE = {"empty": lambda data: b"", "garbage": lambda data: b"\x93\x1b" * 40,
          "truncated": lambda data: data[: len(data) // 2]}  # fmt: skip


@pytest.mark.parametrize(
    ("suffix", "damage"), [("nbi", "truncated"), ("nbi", "garbage"), ("nbc", "empty"),
                           ("nbc", "truncated")]
)  # fmt: skip
def test_a_damaged_cache_heals_with_a_warning(folder, suffix, damage):
    """F22: the same result, and the next process reads the cache as if nothing had been."""
    file = next(folder.rglob(f"*.{suffix}"))
    file.write_bytes(DAMAGE[damage](file.read_bytes()))
    result, said = run(folder)
    assert result == "7"
    assert "damaged compiled code, made anew" in said
    assert run(folder) == ("7", "")


@pytest.mark.parametrize("fault", [NOTHING_WRITABLE, FULL_DISK], ids=["read-only", "full"])
def test_without_a_place_for_the_cache_the_code_stays_in_memory(tmp_path, fault):
    """F23, HOME unset as well."""
    assert run(tmp_path, fault) == ("7", "")
    assert [*tmp_path.rglob("*.nb?")] == []


def test_a_change_of_any_source_compiles_anew(tmp_path):
    """A kernel holds the functions of other files too, of which numba knows nothing."""
    changed = "from vesselseg.cuda_kernels import jit; jit.SOURCES = 'changed'"
    for first, count in (("", 1), (changed, 2), (changed, 2)):
        assert run(tmp_path, first) == ("7", "")
        assert len([*tmp_path.rglob("*.nbc")]) == count
