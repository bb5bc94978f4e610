"""Closed forms of the posterior variance on a flat wall."""

import numpy as np
import pytest
from scipy.integrate import quad

from vesselseg import phantoms
from vesselseg.cuda_kernels.appearance import excess
from vesselseg.cuda_kernels.displacement import doubted_sigma, pin_strength, posterior_sigma
from vesselseg.fields import LevelSet
from vesselseg.solvers.band import make_band
from vesselseg.solvers.refine import pose
from vesselseg.solvers.settings import RefineSettings
from vesselseg.solvers.step import see
from vesselseg.synth.forward import ForwardModel, render_phantom

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


def test_an_image_that_is_explained_is_not_doubted_and_doubt_brings_back_the_start():
    sigma, before = np.array([0.05, 0.1]), np.array([0.3, 0.4])
    assert doubted_sigma(sigma, before, 1.0) == pytest.approx(sigma, rel=1e-12)
    misfits = (1.0, 1.5, 4.0, 20.0)
    doubted = np.array([doubted_sigma(sigma, before, m) for m in misfits])
    assert np.all(np.diff(doubted, axis=0) > 0.0)
    nothing = doubted_sigma(np.zeros(2), before, 1e12)  # no noise at all, and all of it wrong
    assert nothing == pytest.approx(before, rel=1e-6)


def test_a_perfect_fit_and_one_better_than_white_noise_have_no_misfit():
    assert excess(0.0, 0.0) == excess(0.5, 1.0) == 1.0
    assert excess(6.0, 2.0) == 3.0


def test_information_of_a_wall_is_the_summed_squared_slope():
    """i = D² / (2 √π s σ² V) per wall area for a blur s and voxels V: the Cramér-Rao bound.

    On a sphere of eight voxels to 5 %: the voxels of its curved layers count for its area.
    """
    ball = phantoms.make("sphere", radius=8.0)
    grid = ball.grid(1.0)
    image = render_phantom(ball, grid, ForwardModel(snr=6.0, psf_voxels=0.6), 0)
    start = LevelSet(ball.phi(grid).astype(np.float32), grid, 4.5)
    problem = pose(start, image, RefineSettings())
    view = see(problem, make_band(problem.start, problem.spacing, problem.band_mm), 0.6)
    blur, noise = np.sqrt(0.6**2 + 1.0 / 12.0), 0.7 / 6.0
    exact = 0.7**2 / (2.0 * np.sqrt(np.pi) * blur * noise**2)
    assert np.mean(view.known) == pytest.approx(exact, rel=0.05)
