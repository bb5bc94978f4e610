"""Registers, spills and instructions of the CUDA kernels, from NVIDIA's runtime compiler alone."""

import pytest

from vesselseg.cuda_kernels import nvrtc
from vesselseg.cuda_kernels.catalogue import BUDGETS, KERNELS, instances

pytestmark = pytest.mark.skipif(
    nvrtc.library() is None, reason="no NVRTC: pip install nvidia-cuda-nvrtc-cu12"
)


@pytest.mark.parametrize("name", BUDGETS)
def test_hot_kernels_keep_their_budgets(name):
    """To a twentieth: other versions of the compiler schedule a little otherwise."""
    registers, per_voxel = BUDGETS[name]
    found = nvrtc.resources(name, "sm_90")
    assert found.spill_bytes == found.stack_bytes == 0
    assert found.registers <= 1.05 * registers
    assert abs(found.per_voxel - per_voxel) <= 0.05 * per_voxel


def test_instructions_per_voxel_are_part_of_the_kernel():
    """Two architectures encode branches differently; both find a loop of about the same length."""
    counts = [nvrtc.resources("advect_dense<float,5>", a) for a in ("sm_80", "sm_90")]
    assert all(100 < c.per_voxel < c.instructions for c in counts)
    assert abs(counts[0].per_voxel - counts[1].per_voxel) < 0.1 * counts[0].per_voxel


@pytest.mark.slow
@pytest.mark.parametrize("architecture", nvrtc.ARCHITECTURES)
@pytest.mark.parametrize("name", [n for n in instances() if "float" in n or "<" not in n])
def test_every_kernel_compiles_without_warning_or_spill(name, architecture):
    assert nvrtc.resources(name, architecture).spill_bytes == 0


def test_budgets_are_of_kernels_that_exist():
    assert set(BUDGETS) <= set(instances())
    assert {name.partition("<")[0] for name in BUDGETS} <= set(KERNELS)
