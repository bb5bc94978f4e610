"""The profile of a device runs through, here on the sources compiled by g++."""

import pytest
from build import host_device

from vesselseg import profiling, profiling_gpu
from vesselseg.cuda_kernels.catalogue import instances
from vesselseg.errors import NumericalError
from vesselseg.fields import silent
from vesselseg.solvers import redistance


def test_a_profile_of_a_device_holds_every_kernel_and_job(monkeypatch):
    """Times of an emulation mean nothing: what is asked is that each is there, and right."""
    chosen = ["advect_tiles<float,2>", "next_layer", "wall_sums<float>", "calculate"]
    monkeypatch.setattr(profiling_gpu, "instances", lambda: chosen)
    monkeypatch.setattr(profiling_gpu, "QUICK", (20,))
    monkeypatch.setattr(profiling_gpu, "MOST_SECONDS", 0.0)
    monkeypatch.setattr(profiling_gpu, "STEPS", 5)
    monkeypatch.setattr(profiling, "STEPS", 5)
    monkeypatch.setattr(profiling_gpu, "refinements_on", lambda *arguments: [])  # the next test
    found = profiling_gpu.measured(host_device(), True, 7, silent)
    assert [row["name"] for row in found["kernels"]] == chosen
    assert set(chosen) <= set(instances())
    rows = found["kernels"] + found["jobs"]
    assert all(row["median_ms"] > 0.0 for row in rows)
    job = next(row for row in found["jobs"] if row["name"] == "job R")
    assert job["max_error"] <= 2e-3
    assert job["farthest_differing"] < 1e-2
    assert found["wrong"] == []
    facts = {"device": {"name": "g++", "kind": "cuda"}}
    assert "job R" in profiling.table(found | facts)


def test_a_kernel_of_whole_fields_is_also_timed_where_no_cache_holds_them(monkeypatch):
    monkeypatch.setattr(profiling_gpu, "instances", lambda: ["copy<float>", "next_layer"])
    sizes = {"KERNEL_SIZE": 8, "LARGE": 16, "SIZES": (), "MOST_SECONDS": 0.0}
    for name, value in sizes.items():
        monkeypatch.setattr(profiling_gpu, name, value)
    rows = profiling_gpu.measured(host_device(), False, 7, silent)["kernels"]
    shapes = [(row["name"], row["shape"][0]) for row in rows]
    assert shapes == [("copy<float>", 8), ("next_layer", 8), ("copy<float>", 16)]
    assert set(profiling_gpu.DENSE) <= set(instances())


def test_a_wrong_kernel_gets_no_time(monkeypatch):
    device = host_device()
    run = device.launch
    device.launch = lambda name, *args: None if name == "total" else run(name, *args)
    assert profiling_gpu.checked(device, "wall_sums<float>", 1) < 1e-9
    with pytest.raises(NumericalError, match="kernel total is wrong"):
        profiling_gpu.checked(device, "total", 1)
    monkeypatch.setattr(profiling_gpu, "instances", lambda: ["total", "wall_sums<float>"])
    right, wrong = profiling_gpu.sorted_out(device, 1, silent)
    assert list(right) == ["wall_sums<float>"]
    assert wrong == [line for line in wrong if line.startswith("kernel total is wrong")] != []


@pytest.mark.slow
def test_refinements_are_timed_with_and_without_the_host(monkeypatch):
    monkeypatch.setattr(profiling_gpu, "MOST_SECONDS", 0.0)
    phi = profiling.vessel_tree(16)
    start = redistance(phi, 1.0, band_mm=profiling.BAND)
    rows = profiling_gpu.refinements_on(host_device(blocks=1), phi, start)
    assert [row["name"] for row in rows] == [
        "chan_vese, 5 steps, arrays of the host",
        "map to its own stop, arrays of the host",
        "map to its own stop, arrays of the device",
        "map, a step",
    ]
    assert all(row["median_ms"] > 0.0 for row in rows)
    assert rows[-1]["launches"] > 500
