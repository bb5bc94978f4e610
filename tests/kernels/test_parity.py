"""The CUDA sources, run on a CPU, give what their Numba twins give, whatever the schedule."""

import copy
import faulthandler
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from build import HostDevice, LaunchError, build, compiler, host_device

from vesselseg.cuda_kernels.catalogue import KERNELS, files, instances
from vesselseg.cuda_kernels.examples import EXAMPLES, example
from vesselseg.cuda_kernels.launch import source

SANITIZED = Path(__file__).parents[1] / "on_cpu" / "sanitized.py"
# A cube of whole tiles, odd sizes, a field narrower than a tile, a plane.
SHAPES = [(16, 16, 32), (11, 19, 37), (9, 5, 3), (1, 21, 39)]
WIDTHS = {"band": 2.5, "none": -1.0, "all": 1e9}


def run(device, name, case):
    """Launch an instance on copies of an example's arguments and return them."""
    args = tuple(copy.deepcopy(a) if isinstance(a, np.ndarray) else a for a in case.args)
    device.launch(name, *args)
    return args


def test_sources_hold_the_text_of_their_headers():
    """CuPy's cache on disk looks at nothing else: a changed header must be a changed source."""
    for file in files():
        assert '#include "' not in source(file)
    assert "block_sum(double value)" in source("reduce.cu")


def test_every_kernel_has_an_example():
    assert sorted(EXAMPLES) == sorted(KERNELS)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", instances())
def test_kernel_agrees_with_its_twin_in_every_schedule(name, shape):
    """Eight roundings of the largest value, unless the example says why more."""
    case = example(name, shape, seed=1)
    ordered = run(host_device(), name, case)
    error = case.error(ordered)
    assert error <= case.tolerance, f"{error:.3g} over {case.tolerance:.3g}"
    for seed in (1, 2):
        shuffled = run(host_device(seed), name, case)
        for a, b in zip(case.read(ordered), case.read(shuffled), strict=True):
            assert np.array_equal(a, b, equal_nan=True), "depends on the schedule"


@pytest.mark.parametrize("width", ["none", "all"])
@pytest.mark.parametrize("name", instances())
def test_empty_and_full_lists_are_cases_like_others(name, width):
    case = example(name, (9, 17, 21), seed=2, width=WIDTHS[width])
    assert case.error(run(host_device(), name, case)) <= case.tolerance


@pytest.mark.parametrize("name", [n for n in instances() if n.startswith("advect_tiles<float")])
def test_the_result_does_not_depend_on_the_grid_of_blocks(name):
    case = example(name, (16, 16, 32), seed=3)
    few, many = (run(HostDevice(blocks=n), name, case) for n in (1, 7))
    assert np.array_equal(case.read(few)[0], case.read(many)[0], equal_nan=True)


# Each fault, the file it is planted in, the instance it must show in, and how.
FAULTS = {
    "barrier after the load deleted": (
        "__ffs(mask) - 1);\n    }\n    __syncthreads();",
        "__ffs(mask) - 1);\n    }",
        "advect_tiles<float,5>",
    ),
    "barrier at the end of a tile deleted": (
        "        }\n        __syncthreads();\n    }\n}\n\nconstexpr int RING",
        "        }\n    }\n}\n\nconstexpr int RING",
        "advect_tiles<float,5>",
    ),
    "halo not loaded": (
        "for (int n = threadIdx.x; n < BLOCK; n += blockDim.x) {\n        const int row",
        "for (int n = threadIdx.x; n < BLOCK - PLANE; n += blockDim.x) {\n        const int row",
        "advect_tiles<float,5>",
    ),
    "early return before a barrier": (
        "const int active = list_active(bits + t * ROWS, list);\n        for (int n = threadIdx.x; "
        "n < active; n += blockDim.x) {\n            const T *p",
        "if (threadIdx.x == 7) return;\n        const int active = list_active(bits + t * ROWS, "
        "list);\n        for (int n = threadIdx.x; n < active; n += blockDim.x) {\n"
        "            const T *p",
        "advect_tiles<float,5>",
    ),
    "wrong side of Godunov": (
        "outward ? greater(greater(left, -right)", "outward ? greater(greater(-left, right)",
        "advect_tiles<float,2>",
    ),
    "corner of the mixed derivative": (
        "p[sy + 1] + p[-sy - 1]", "p[sy + 1] + p[-sy + 1]", "advect_tiles<float,2>",
    ),
    "three planes for four": (
        "constexpr int RING = 4;", "constexpr int RING = 3;", "advect_dense<float,5>",
    ),
    "clamped faces": (
        "load_block<true>(phi", "load_block<false>(phi", "advect_tiles<float,2>",
    ),
    "one row too many": (
        "const unsigned inside = in_box ? row_bits(row, run, width) : 0;",
        "const unsigned inside = in_box ? row_bits(row, TILE_X, width) : 0;",
        "collect_tiles<float>",
    ),
    "written beside the field": (
        "phi[n] = phi[n] < -far ? -far : (phi[n] > far ? far : phi[n]);",
        "phi[n + 1] = phi[n] < -far ? -far : (phi[n] > far ? far : phi[n]);",
        "band_clamp<float>",
    ),
}  # fmt: skip


def survives(name, case, device):
    """Tell whether a kernel passes; in a process of its own, which a fault may break."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the child runs none of the threads
        child = os.fork()
    if child == 0:
        faulthandler.disable()
        try:
            os._exit(0 if case.error(run(device, name, case)) <= case.tolerance else 1)
        except LaunchError:
            os._exit(2)
        finally:
            os._exit(3)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(fault):
    old, new, name = FAULTS[fault]
    case = example(name, (11, 19, 37), seed=1)
    build(name, ((old, new),))
    assert survives(name, case, host_device(1))
    found = [survives(name, case, host_device(seed, edits=((old, new),))) for seed in (0, 1, 2)]
    assert not all(found)


def sanitized(*arguments):
    """Run the kernels of a file under the sanitizers, in a process that loads them first."""
    library = subprocess.run(
        [compiler(), "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    ).stdout.strip()
    given = os.environ | {"LD_PRELOAD": library, "ASAN_OPTIONS": "detect_leaks=0"}
    command = [sys.executable, str(SANITIZED), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=given)


@pytest.mark.slow
@pytest.mark.parametrize("file", files())
def test_no_kernel_reads_or_writes_out_of_bounds(file):
    done = sanitized(file)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_the_sanitizers_see_one_sample_too_many():
    done = sanitized("advect.cu", "if (at >= n) return", "if (at > n) return")
    assert "heap-buffer-overflow" in done.stderr
