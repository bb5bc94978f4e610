"""Closed forms of the posterior variance and of the evidence on a flat wall."""

import numpy as np
import pytest
from scipy.integrate import quad

from vesselseg.solvers.uncertainty import (
    evidence_penalty,
    fisher_information,
    posterior_sigma,
    prior_weight,
)

RATIOS = np.array([1e-4, 1e-2, 1.0, 1e2, 1e4, 1e6])


@pytest.mark.parametrize("length", [1.0, 7.0])
@pytest.mark.parametrize("sigma", [0.2, 1.5])
def test_variance_on_a_surface_has_its_closed_form(length, sigma):
    """1 / (4π l² √(iτ)) · atan √(i/τ), to the 0.5 % of the table."""
    tau = prior_weight(sigma, length, 2)
    information = RATIOS * tau
    root = np.sqrt(information / tau)
    exact = np.arctan(root) / (4.0 * np.pi * length**2 * np.sqrt(information * tau))
    found = posterior_sigma(information, np.full(RATIOS.shape, sigma), length, 2) ** 2
    assert found == pytest.approx(exact, rel=5e-3)


@pytest.mark.parametrize("length", [1.0, 7.0])
def test_log_determinant_on_a_surface_has_its_closed_form(length):
    """(2√r atan √r - log(1 + r)) / (4π l²)."""
    tau = prior_weight(0.5, length, 2)
    exact = 2.0 * np.sqrt(RATIOS) * np.arctan(np.sqrt(RATIOS)) - np.log1p(RATIOS)
    found = evidence_penalty(RATIOS * tau, np.full(RATIOS.shape, 0.5), length, 2)
    assert found == pytest.approx(exact / (4.0 * np.pi * length**2), rel=5e-3)


@pytest.mark.parametrize("ratio", RATIOS)
def test_a_curve_agrees_with_quadrature(ratio):
    """∫ dq / 2π over the whole line, by adaptive quadrature."""
    sigma, length = 0.7, 3.0
    tau = float(prior_weight(sigma, length, 1))
    u2 = lambda q: (1.0 + (length * q) ** 2) ** 2  # noqa: E731
    parts = [(0.0, 1.0), (1.0, 10.0), (10.0, 300.0)]
    variance = sum(quad(lambda q: 1.0 / (tau * (ratio + u2(q))), *p)[0] for p in parts) / np.pi
    logdet = sum(quad(lambda q: np.log1p(ratio / u2(q)), *p)[0] for p in parts) / np.pi
    given = np.array([ratio * tau]), np.array([sigma]), length, 1
    assert posterior_sigma(*given)[0] ** 2 == pytest.approx(variance, rel=5e-3)
    assert evidence_penalty(*given)[0] == pytest.approx(logdet, rel=5e-3)


@pytest.mark.parametrize("dims", [1, 2])
def test_without_information_the_prior_stays(dims):
    sigma = np.array([0.1, 0.5, 2.0])
    assert posterior_sigma(np.zeros(3), sigma, 5.0, dims) == pytest.approx(sigma, rel=1e-3)


@pytest.mark.parametrize("dims", [1, 2])
def test_more_information_means_less_variance(dims):
    tau = prior_weight(0.5, 5.0, dims)
    values = posterior_sigma(np.logspace(-4, 8, 60) * tau, np.full(60, 0.5), 5.0, dims)
    assert np.all(np.diff(values) < 0.0)
    assert values[-1] < 0.02 * values[0]


def test_information_of_a_blurred_wall_is_the_summed_squared_slope():
    """Σ (D φ'(x))² / σ² over voxels across the wall, per area: the Cramér-Rao bound."""
    contrast, blur, noise, voxel = 0.7, 0.9, 0.11, 0.5
    x = np.arange(-20.0, 20.0, voxel)
    slope = contrast * np.exp(-0.5 * (x / blur) ** 2) / (blur * np.sqrt(2.0 * np.pi))
    exact = np.sum(slope**2) / noise**2  # voxels of 1 x 1 x 0.5: one column per unit area
    found = fisher_information(np.array([contrast]), np.array([blur]), noise, voxel)
    assert found[0] == pytest.approx(exact, rel=1e-6)
