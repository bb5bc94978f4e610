"""The covariance against the dense matrix of its definition, on a grid small enough for one."""

import itertools

import numpy as np
import pytest

from vesselseg.prior import covariance

CASES = [
    ((4, 5, 3), (1.0, 0.7, 1.4), 1.3, 4),
    ((5, 3, 4), (1.0, 1.0, 1.0), 0.6, 2),
    ((6, 7), (0.5, 0.8), 1.1, 4),
]


def dense(shape, spacing, ell):
    """I - ℓ²Δ with zero flux, written out neighbour by neighbour."""
    index = np.arange(np.prod(shape)).reshape(shape)
    matrix = np.eye(index.size)
    for axis, h in enumerate(spacing):
        first, second = (
            np.take(index, range(*r), axis).ravel()
            for r in ((0, shape[axis] - 1), (1, shape[axis]))
        )
        for a, b in itertools.chain(
            zip(first, second, strict=True), zip(second, first, strict=True)
        ):
            matrix[a, a] += (ell / h) ** 2
            matrix[a, b] -= (ell / h) ** 2
    return matrix


@pytest.mark.parametrize(("shape", "spacing", "ell", "m"), CASES)
def test_normaliser_is_the_diagonal_of_the_dense_inverse(shape, spacing, ell, m):
    power = np.linalg.matrix_power(np.linalg.inv(dense(shape, spacing, ell)), m)
    found = covariance.normaliser(shape, spacing, ell, m)
    assert np.allclose(found.ravel(), np.sqrt(np.diag(power)), rtol=1e-12)


@pytest.mark.parametrize(("shape", "spacing", "ell", "m"), CASES)
def test_powers_are_those_of_the_dense_matrix(shape, spacing, ell, m):
    field = np.random.default_rng(0).standard_normal(shape)
    matrix = np.linalg.matrix_power(dense(shape, spacing, ell), m // 2)
    for power, apply in ((m / 2, matrix), (-m / 2, np.linalg.inv(matrix))):
        found = covariance.apply_power(field, spacing, ell, power)
        assert np.allclose(found.ravel(), apply @ field.ravel(), rtol=1e-10, atol=1e-12)


def test_log_density_is_the_gaussian_exponent():
    shape, spacing, ell, m = CASES[0]
    rng = np.random.default_rng(1)
    std, offset = rng.uniform(0.5, 2.0, shape), rng.standard_normal(shape)
    normaliser = covariance.normaliser(shape, spacing, ell, m)
    scale = np.diag((std / normaliser).ravel())
    kernel = np.linalg.matrix_power(np.linalg.inv(dense(shape, spacing, ell)), m)
    exact = -0.5 * offset.ravel() @ np.linalg.solve(scale @ kernel @ scale, offset.ravel())
    found = covariance.log_density(offset, std, normaliser, spacing, ell, m)
    assert found == pytest.approx(exact, rel=1e-9)


def test_draws_have_the_covariance_of_the_dense_matrix():
    shape, spacing, ell, m = (4, 3), (1.0, 1.0), 0.8, 2
    std = np.linspace(0.5, 2.0, 12).reshape(shape)
    normaliser = covariance.normaliser(shape, spacing, ell, m)
    rng = np.random.default_rng(3)
    draws = np.array(
        [covariance.draw(std, normaliser, spacing, ell, m, rng).ravel() for _ in range(4000)]
    )
    scale = np.diag((std / normaliser).ravel())
    exact = scale @ np.linalg.matrix_power(np.linalg.inv(dense(shape, spacing, ell)), m) @ scale
    error = np.cov(draws.T) - exact
    assert np.allclose(np.sqrt(np.diag(exact)), std.ravel())
    assert np.abs(error / np.outer(std, std)).max() < 0.1  # s.d. of an entry: sqrt(2/4000) = 2.2 %
