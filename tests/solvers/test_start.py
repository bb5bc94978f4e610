"""From a probability to a level set: the wall at p = 0.5 is kept, a mask states its floor."""

import numpy as np
import pytest

from vesselseg import metrics
from vesselseg.errors import NoInterfaceError
from vesselseg.fields import LevelSet, Probability
from vesselseg.solvers.start import MASK_SIGMA, SIGMA_LIMITS, logit


def soft(phi, width=0.8):
    return (1.0 / (1.0 + np.exp(np.clip(phi / width, -30.0, 30.0)))).astype(np.float32)


@pytest.mark.parametrize("spacing", [1.0, (2.0, 1.0, 0.8)], ids=["isotropic", "anisotropic"])
def test_the_wall_lies_where_the_logit_vanishes(exact, spacing):
    """Linear in the logit: 0.01 voxel rms, where a mask would be off by 0.2."""
    phi, grid = exact("torus", 4.0, spacing)
    level = LevelSet.from_probability(Probability(soft(phi), grid))
    errors = metrics.wall_errors(level.phi_mm, phi, grid)
    assert errors["rms_mm"] <= 0.01 * grid.h_max
    assert level.band_mm >= 4.0 * grid.h_max
    assert level.phi_mm.dtype == np.float32


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7])
def test_inside_and_outside_agree_with_the_mask(exact, threshold):
    """P-34: the sign is that of p > 0.5, and a larger probability never shrinks the lumen."""
    phi, grid = exact("star", 8.0)
    p = soft(phi + 0.3 * np.sin(np.arange(phi.shape[1])))
    level = LevelSet.from_probability(Probability(p, grid))
    assert np.array_equal(level.phi_mm < 0, p > 0.5)
    shift = logit(np.array([threshold])) - logit(np.array([0.5]))
    other = 1.0 / (1.0 + np.exp(-(logit(p) - shift)))
    moved = LevelSet.from_probability(Probability(other.astype(np.float32), grid))
    larger, smaller = (moved, level) if threshold < 0.5 else (level, moved)
    assert not np.any((smaller.phi_mm < 0) & ~(larger.phi_mm < 0))


def test_a_mask_states_its_floor(exact):
    phi, grid = exact("torus", 4.0, (2.0, 1.0, 1.0))
    mask = (phi < 0).astype(np.float32)
    level = LevelSet.from_probability(Probability(mask, grid, soft=False))
    assert np.array_equal(level.phi_mm < 0, phi < 0)
    assert np.allclose(level.sigma_mm, MASK_SIGMA * grid.h_max)
    errors = metrics.wall_errors(level.phi_mm, phi, grid)
    assert errors["rms_mm"] <= 2.0 * MASK_SIGMA * grid.h_max


def test_a_flat_probability_is_less_certain_than_a_steep_one(exact):
    """The s.d. grows with the width of the soft edge and stays within its limits."""
    phi, grid = exact("torus", 4.0)
    near = np.abs(phi) < 0.7
    means = []
    for width in (0.05, 0.3, 1.0, 20.0):
        level = LevelSet.from_probability(Probability(soft(phi, width), grid))
        means.append(float(np.median(level.sigma_mm[near])))
        assert level.sigma_mm.min() >= np.float32(SIGMA_LIMITS[0]) * grid.h_max
        assert level.sigma_mm.max() <= np.float32(SIGMA_LIMITS[1]) * grid.h_max
    assert means == sorted(means)
    assert means[1] < 0.5 * means[2]


def test_the_networks_own_distance_and_deviation_are_taken(exact):
    phi, grid = exact("torus", 4.0)
    mine = Probability(soft(phi), grid, phi_mm=(phi + 0.25).astype(np.float32),
                       sigma_mm=np.full(phi.shape, 0.4, np.float32))  # fmt: skip
    level = LevelSet.from_probability(mine)
    errors = metrics.wall_errors(level.phi_mm, phi + 0.25, grid)
    assert errors["rms_voxel"] <= 0.01
    assert np.allclose(level.sigma_mm, 0.4)


@pytest.mark.parametrize(("value", "what"), [(0.0, "lumen"), (1.0, "background"), (0.5, "lumen")])
def test_a_probability_without_both_sides_is_refused(exact, value, what):
    _, grid = exact("circle", 5.0)
    with pytest.raises(NoInterfaceError, match=what):
        LevelSet.from_probability(Probability(np.full(grid.shape_kji, value, np.float32), grid))


def test_the_logit_is_finite_and_odd():
    p = np.array([0.0, 1e-9, 0.25, 0.5, 0.75, 1.0])
    values = logit(p)
    assert np.isfinite(values).all()
    assert values[3] == 0.0
    assert values == pytest.approx(-values[::-1], rel=1e-5, abs=1e-5) or values[1] == values[0]
    assert np.all(np.diff(values) >= 0.0)
