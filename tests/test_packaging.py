"""What is in the tree is in the wheel: a subpackage that pyproject forgets would vanish."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = {"vesselseg": "vesselseg", "solvers": "vesselseg/solvers"}
FOLDERS["cuda_kernels"] = "vesselseg/cuda_kernels"
SCRATCH = shutil.ignore_patterns("__pycache__", "*.egg-info")


def copy_tree(target):
    """Copy what a build reads; the links are left out, as in a clone without links."""
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, target)
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, target / folder, ignore=SCRATCH, symlinks=True)
    for link in ("solvers", "cuda_kernels"):
        (target / "vesselseg" / link).unlink(missing_ok=True)


def expected(tree):
    """The names that the wheel must hold."""
    return {
        f"{FOLDERS[folder]}/{file.relative_to(tree / folder).as_posix()}"
        for folder in FOLDERS
        for file in (tree / folder).rglob("*")
        if file.is_file()
    }


def in_wheel(tree, target):
    """Build a wheel from the tree with what is installed, and list it."""
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", target, tree]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = target.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    tree = tmp_path_factory.mktemp("tree")
    copy_tree(tree)
    planted = tree / "vesselseg" / "forgotten"
    planted.mkdir()
    (planted / "__init__.py").write_text('"""A subpackage that pyproject does not list."""\n')
    return expected(tree), in_wheel(tree, tmp_path_factory.mktemp("wheel"))


def test_the_wheel_holds_the_tree_and_misses_only_the_planted_subpackage(built):
    tree, wheel = built
    assert tree - wheel == {"vesselseg/forgotten/__init__.py"}
    assert wheel - tree == set()


@pytest.mark.parametrize(
    "name",
    [
        "py.typed",
        "data/carotid.nii.gz",
        "data/carotid-LICENSE.txt",
        "data/aorta-velocity.h5",
        "data/aorta-velocity-LICENSE.txt",
        "solvers/__init__.py",
        "cuda_kernels/__init__.py",
        "cuda_kernels/advect.cu",
        "cuda_kernels/stencils.cuh",
    ],
)
def test_the_wheel_holds_what_users_need(built, name):
    assert f"vesselseg/{name}" in built[1]


def test_shipped_files_stay_small(built):
    weights = [ROOT / name for name in built[1] if name.endswith(".safetensors")]
    assert all(file.stat().st_size <= 5e6 for file in weights)
    assert sum(file.stat().st_size for file in weights) <= 10e6
