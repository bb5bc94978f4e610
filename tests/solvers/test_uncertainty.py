"""Closed forms of the posterior variance on a flat wall."""

import numpy as np
import pytest
from scipy.integrate import quad

from vesselseg.solvers.uncertainty import fisher_information, pin_strength, posterior_sigma

KNOWN = np.array([1e-3, 1e-1, 1.0, 1e2, 1e4])


@pytest.mark.parametrize("stiffness", [0.3, 20.0, 500.0])
@pytest.mark.parametrize("dims", [1, 2])
def test_the_variance_is_the_integral_over_all_waves_along_the_wall(dims, stiffness):
    """∫ dq / (2π)^d 1 / (p + T q⁴) by adaptive quadrature, in units of (p / T)^(1/4)."""
    shell = (lambda u: u / (2.0 * np.pi)) if dims == 2 else (lambda u: 1.0 / np.pi)
    waves = sum(quad(lambda u: shell(u) / (1.0 + u**4), *p)[0] for p in ((0, 2), (2, np.inf)))
    for precision in KNOWN:
        knee = (precision / stiffness) ** 0.25
        exact = waves * knee**dims / precision
        found = posterior_sigma(np.array([precision]), np.array([stiffness]), dims)[0] ** 2
        assert found == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize("dims", [1, 2])
def test_without_information_the_starts_standard_deviation_stays(dims):
    sigma, stiffness = np.array([0.1, 0.5, 2.0]), np.array([1.0, 30.0, 400.0])
    pin = pin_strength(sigma, stiffness, dims)
    assert posterior_sigma(pin, stiffness, dims) == pytest.approx(sigma, rel=1e-12)


@pytest.mark.parametrize("dims", [1, 2])
def test_more_information_or_stiffness_means_less_variance(dims):
    stiffness = np.full(KNOWN.shape, 30.0)
    values = posterior_sigma(KNOWN, stiffness, dims)
    assert np.all(np.diff(values) < 0.0)
    assert np.all(posterior_sigma(KNOWN, 2.0 * stiffness, dims) < values)


def test_information_of_a_blurred_wall_is_the_summed_squared_slope():
    """Σ (D φ'(x))² / σ² over voxels across the wall, per area: the Cramér-Rao bound."""
    contrast, blur, noise, voxel = 0.7, 0.9, 0.11, 0.5
    x = np.arange(-20.0, 20.0, voxel)
    slope = contrast * np.exp(-0.5 * (x / blur) ** 2) / (blur * np.sqrt(2.0 * np.pi))
    exact = np.sum(slope**2) / noise**2  # voxels of 1 x 1 x 0.5: one column per unit area
    found = fisher_information(np.array([contrast]), np.array([blur]), noise, voxel)
    assert found[0] == pytest.approx(exact, rel=1e-6)
