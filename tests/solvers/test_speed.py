"""Laws of the flows: they find the wall, also under a bias field; a given speed is exact."""

from functools import lru_cache

import numpy as np
import pytest

from vesselseg import metrics, phantoms
from vesselseg.errors import ConfigError, NumericalError
from vesselseg.fields import LevelSet, StopReason, Volume
from vesselseg.solvers import speed
from vesselseg.solvers.refine import refine, settled
from vesselseg.solvers.settings import RefineSettings
from vesselseg.synth.forward import ForwardModel, render_phantom

CASES = {
    "sphere": ("sphere", 6.0, 1.0, {}),
    "tube through the faces": ("tube", 4.0, 1.0, {}),
    "anisotropic torus": ("torus", 6.0, (1.6, 1.0, 0.8), {"ring": 2.0}),
    "circle": ("circle", 8.0, 1.0, {}),
}
# The flows find the half-way level or the steepest slope of the blurred image: both lie inside a
# curved wall, by about s² κ / 2 and s² κ for a blur s of 0.7 and, with the edge filter, 1.1 voxels.
ACCURACY = {"gac": 0.3, "chan_vese": 0.15, "local": 0.2}


@lru_cache(maxsize=16)
def case(name, snr=None):
    shape, radius, spacing, options = CASES[name]
    shape = phantoms.make(shape, radius=radius, **options)
    grid = shape.grid(spacing)
    noise = {"noise": "none"} if snr is None else {"snr": snr}
    return shape.phi(grid), render_phantom(shape, grid, ForwardModel(psf_voxels=0.6, **noise), 1)


def flow(phi, image, start=0.0, **settings):
    """Errors of a flow from a wall that lies ``start`` voxels inside the true one."""
    grid = image.grid
    options = {"iterations": 40, "volume_limits": (0.1, 10.0)} | settings
    level_set = LevelSet((phi + start * grid.h_max).astype(np.float32), grid, 4.5 * grid.h_max)
    result = refine(level_set, image, RefineSettings(**options))
    return metrics.wall_errors(result.level_set.phi_mm, phi, grid), result


@pytest.mark.parametrize("start", [1.5, -1.5])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("energy", ACCURACY)
def test_a_flow_finds_the_wall(energy, name, start):
    errors, result = flow(*case(name), start, energy=energy)
    assert errors["rms_voxel"] <= ACCURACY[energy]
    assert result.reason is StopReason.CONVERGED


@pytest.mark.parametrize("energy", ACCURACY)
def test_noise_adds_little(energy):
    """SNR 6: a tenth of a voxel more at most; the curvature weight smooths."""
    errors, result = flow(*case("anisotropic torus", 6.0), 1.0, energy=energy)
    assert errors["rms_voxel"] <= ACCURACY[energy] + 0.1
    assert result.converged


def test_local_means_follow_a_bias_field():
    """Intensities that rise by more than twofold along x: half the error of global means."""
    shape = phantoms.make("torus", radius=4.0, ring=2.2)
    grid = shape.grid(1.0)
    phi = shape.phi(grid)
    image = render_phantom(shape, grid, ForwardModel(psf_voxels=0.6, noise="none"), 1)
    bias = np.linspace(0.6, 1.4, grid.shape_kji[2], dtype=np.float32)
    biased = Volume(image.values * bias, grid)
    one, other = (
        flow(phi, biased, 1.0, energy=energy, means_length=4.0)[0]["rms_voxel"]
        for energy in ("local", "chan_vese")
    )
    assert one <= 0.15
    assert one <= 0.5 * other


@pytest.mark.parametrize("move", [3.0, -3.0], ids=["outward", "inward"])
@pytest.mark.parametrize("name", ["sphere", "circle"])
def test_a_given_speed_acts_for_its_time(name, move):
    """P-14 with redistancing on the way; ENO2: 0.4 (T/R) h and 0.01 h of quadrature."""
    shape = phantoms.make(name, radius=8.0)
    grid = shape.grid(1.0)
    phi = shape.phi(grid)
    start = LevelSet(phi.astype(np.float32), grid, 4.5)
    image = Volume(np.zeros(grid.shape_kji, np.float32), grid)
    settings = RefineSettings(energy="given", time=1.5)
    field = np.full(grid.shape_kji, move / 1.5)
    result = refine(start, image, settings, speed=move / 1.5)
    errors = metrics.wall_errors(result.level_set.phi_mm, phi - move, grid)
    assert errors["rms_mm"] <= 0.4 * abs(move) / 8.0 + 0.01
    assert result.reason is StopReason.CONVERGED
    same = refine(start, image, settings, speed=field)
    assert np.array_equal(same.level_set.phi_mm, result.level_set.phi_mm)


def test_the_energy_given_needs_a_speed():
    phi, image = case("circle")
    with pytest.raises(ConfigError, match="no speed"):
        flow(phi, image, energy="given")


def test_a_vessel_that_vanishes_under_a_flow_is_reported():
    """F37: a small disc under an inward speed; the step is named."""
    shape = phantoms.make("circle", radius=3.0)
    grid = shape.grid(1.0)
    start = LevelSet(shape.phi(grid).astype(np.float32), grid, 4.5)
    image = Volume(np.zeros(grid.shape_kji, np.float32), grid)
    settings = RefineSettings(energy="given", time=10.0, volume_limits=(0.0, 10.0))
    with pytest.raises(NumericalError, match=r"(vessel|volume) lost at step \d"):
        refine(start, image, settings, speed=-1.0)


@pytest.mark.parametrize("gain", [0.0, 1e-35])
@pytest.mark.parametrize("energy", ACCURACY)
def test_an_image_that_shows_nothing_ends_all_the_same(energy, gain):
    """The curvature alone shrinks the disc, by less than half in three steps."""
    phi, image = case("circle")
    noise = np.random.default_rng(0).normal(size=phi.shape).astype(np.float32)
    empty = Volume(np.float32(gain) * noise, image.grid)
    _, result = flow(phi, empty, energy=energy, iterations=3)
    assert np.count_nonzero(result.level_set.phi_mm < 0) >= 0.5 * np.count_nonzero(phi < 0)


def test_the_edge_function_is_one_on_flat_ground_and_small_on_edges():
    """And the same in every unit of the image."""
    phi, image = case("sphere")
    near = np.flatnonzero(np.abs(phi) < 2.0)
    edge = speed.edge_map(image.values, near, 0.8, (1.0, 1.0, 1.0))
    assert edge[np.abs(phi) > 5.0].min() >= 0.99
    assert np.median(edge[np.abs(phi) < 0.3]) <= 0.15
    for gain in (512.0, 1e30, 1e-30):
        scaled = speed.edge_map(image.values * np.float32(gain), near, 0.8, (1.0, 1.0, 1.0))
        assert np.abs(scaled - edge).max() <= 1e-5


@pytest.mark.parametrize("dims", [2, 3])
def test_the_velocity_of_an_edge_points_downhill(dims):
    """x first: -h ∇g of a plane in g."""
    shape = (1, 6, 7) if dims == 2 else (5, 6, 7)
    k, j, i = np.indices(shape, dtype=float)
    velocity = speed.downhill(0.1 * i + 0.2 * j + 0.3 * k, (2.0, 1.0, 0.5), dims)
    assert velocity.shape == (k.size, dims)
    assert velocity[0] == pytest.approx([-0.1, -0.1, -0.075][:dims])


def test_the_region_speed_vanishes_half_way_and_is_bounded():
    image = np.array([0.0, 0.5, 1.0, 9.0])
    assert speed.region_speed(image, 1.0, 0.0) == pytest.approx([-1.0, 0.0, 1.0, 1.0])
    for gain in (1e30, 1e-35):
        scaled = speed.region_speed(np.float32(gain) * image.astype(np.float32), gain, 0.0)
        assert scaled == pytest.approx([-1.0, 0.0, 1.0, 1.0], abs=1e-6)
    assert speed.region_speed(image, 0.0, 1.0) == pytest.approx([1.0, 0.0, -1.0, -1.0])


def test_local_means_are_those_of_two_flat_regions():
    phi, _ = case("sphere")
    image = np.where(phi < 0, 5.0, 2.0)
    near = np.flatnonzero(np.abs(phi) < 4.0)
    inner, outer = speed.local_means(image, phi, near, 8.0, (1.0, 1.0, 1.0))
    assert inner == pytest.approx(np.full(len(near), 5.0), abs=1e-9)
    assert outer == pytest.approx(np.full(len(near), 2.0), abs=1e-9)


@pytest.mark.parametrize(
    ("steps", "reason"),
    [
        ([0.001], None),
        ([0.5, 0.001], None),
        ([0.5, 0.001, 0.002], StopReason.CONVERGED),
        ([0.05] * 9, None),
    ],
    ids=["too early", "once", "twice", "creeping"],
)
def test_a_flow_rests_after_two_short_steps(steps, reason):
    assert settled(steps, 0.01) is reason
