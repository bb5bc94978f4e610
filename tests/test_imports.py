"""Imports go one way: cuda_kernels <- solvers <- vesselseg, and the halves meet in pipeline."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import vesselseg

ROOT = Path(__file__).parent.parent
FOLDERS = {"vesselseg": "vesselseg", "vesselseg.solvers": "solvers"}
FOLDERS["vesselseg.cuda_kernels"] = "cuda_kernels"
LEAVES = {"errors", "grid", "fields", "config"}
NETWORK_HALF = ("nets", "training", "infer", "metrics")
TORCH = ("nets", "training", "infer")
TOP = ("pipeline", "cli", "demo", "study", "__main__", "__init__")
HEAVY = (
    "torch", "cupy", "numba", "h5py", "scipy", "skimage", "matplotlib", "nibabel", "skfmm",
    "pydantic", "typer", "rich",
)  # fmt: skip


def modules():
    """Dotted name below ``vesselseg`` and source file of every module."""
    for package, folder in FOLDERS.items():
        for file in sorted((ROOT / folder).rglob("*.py")):
            inner = file.relative_to(ROOT / folder)
            linked = package == "vesselseg" and inner.parts[0] in ("solvers", "cuda_kernels")
            if not linked and "__pycache__" not in inner.parts:
                name = ".".join((package, *inner.with_suffix("").parts))
                yield name.removeprefix("vesselseg.").removesuffix(".__init__"), file


def imports(name, source, *, is_package=False):
    """Yield (module imported, whether inside a function) with names below ``vesselseg`` bare."""
    tree = ast.parse(source)
    inside = {
        id(child)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for child in ast.walk(function)
    }
    typing_only = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = ["vesselseg", *name.split(".")]
                up = parts[: len(parts) - node.level + is_package]
                base = ".".join([*up, *([node.module] if node.module else [])])
            found = [base] if node.module else [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for target in found:
            yield target.removeprefix("vesselseg."), id(node) in inside


def faults(name, source, *, is_package=False):
    """What a module imports against the rules."""
    head = name.split(".")[0]
    result = []
    for target, lazy in imports(name, source, is_package=is_package):
        first = target.split(".")[0]
        own = first in OWN or target == "vesselseg"
        if head == "cuda_kernels" and own and first != "cuda_kernels":
            result.append(f"{name}: kernels import nothing of the project, not {target}")
        if (
            head == "solvers"
            and own
            and first not in {*LEAVES, "phantoms", "solvers", "cuda_kernels"}
        ):
            result.append(f"{name}: solvers import leaves and kernels only, not {target}")
        if name in LEAVES and own and first not in LEAVES and not lazy:
            result.append(f"{name}: a leaf imports leaves only, not {target}")
        if head in NETWORK_HALF and first in {"solvers", "cuda_kernels", "synth", "pipeline"}:
            result.append(f"{name}: the network half never imports {target}")
        if first == "torch" and head not in TORCH:
            result.append(f"{name}: torch belongs to {', '.join(TORCH)}")
        if target == "skfmm" and name != "solvers.fmm":
            result.append(f"{name}: scikit-fmm is imported by solvers.fmm alone")
        if first in {"pipeline", "cli", "demo"} and not name.startswith(TOP):
            result.append(f"{name}: nothing below imports {target}")
    return result


FILES = dict(modules())
OWN = {name.split(".")[0] for name in FILES} | {"solvers", "cuda_kernels"}


@pytest.mark.parametrize("name", FILES)
def test_imports_go_one_way(name):
    file = FILES[name]
    assert faults(name, file.read_text(), is_package=file.name == "__init__.py") == []


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("cuda_kernels.tiles", "from ..errors import DataError"),
        ("cuda_kernels.tiles", "import vesselseg"),
        ("solvers.step", "from vesselseg.prior import BoundaryPrior"),
        ("solvers.step", "from ..io import read_volume"),
        ("solvers.step", "import torch"),
        ("solvers.step", "import skfmm"),
        ("grid", "from .io import read_volume"),
        ("nets.unet", "from ..solvers import redistance"),
        ("training", "from . import synth"),
        ("metrics", "from vesselseg.solvers.refine import refine"),
        ("synth", "import torch.nn"),
        ("prior", "from .pipeline import build_prior"),
    ],
)
def test_a_planted_wrong_import_is_found(name, source):
    assert len(faults(name, source)) == 1


def test_functions_may_import_what_leaves_may_not():
    assert faults("fields", "def read():\n    from .io import read_volume\n") == []


def test_no_submodule_bears_the_name_of_a_public_function():
    assert not {name for name in FILES if name in vesselseg.__all__}


@pytest.mark.parametrize(
    ("statement", "forbidden"),
    [
        ("import vesselseg", (*HEAVY, "numpy")),
        ("import vesselseg.cuda_kernels", HEAVY),
        ("import vesselseg.cli", (*(h for h in HEAVY if h not in ("typer", "rich")), "numpy")),
    ],
)
def test_importing_is_light_in_a_fresh_process(statement, forbidden):
    code = f"import sys; {statement}; print(*(set({forbidden!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
