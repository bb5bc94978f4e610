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
    assert found == pytest.approx(exact, rel=1e-9)  # the figure asked for is 1e-8


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


def test_modes_are_the_eigenvectors_of_the_dense_matrix():
    shape, spacing, ell, m = (6, 5, 7), (1.0, 0.8, 1.2), 1.4, 4
    rng = np.random.default_rng(4)
    std, where = rng.uniform(0.5, 1.5, shape), rng.random(shape) < 0.7
    normaliser = covariance.normaliser(shape, spacing, ell, m)
    scale = np.diag((std / normaliser).ravel())
    kernel = np.linalg.matrix_power(np.linalg.inv(dense(shape, spacing, ell)), m)
    inside = np.flatnonzero(where)
    exact = (scale @ kernel @ scale)[np.ix_(inside, inside)]
    vectors, values = covariance.modes(std, normaliser, spacing, ell, m, 5, where)
    assert np.allclose(values, np.linalg.eigvalsh(exact)[::-1][:5], rtol=1e-8)
    flat = vectors.reshape(5, -1)
    assert np.allclose(flat @ flat.T, np.eye(5), atol=1e-10)
    assert not flat[:, ~where.ravel()].any()
    assert np.allclose(exact @ flat[:, inside].T, flat[:, inside].T * values, atol=1e-5)


def test_marginal_variance_is_the_square_of_the_stated_deviation():
    """Within 5 % at every voxel, by the operator itself and by 8000 draws."""
    shape, spacing, ell, m = (7, 6), (1.0, 1.3), 1.5, 4
    std = np.linspace(0.2, 0.8, 42).reshape(shape)
    normaliser = covariance.normaliser(shape, spacing, ell, m)
    rng = np.random.default_rng(11)
    total = np.zeros(shape)
    for _ in range(8000):
        total += covariance.draw(std, normaliser, spacing, ell, m, rng) ** 2 / 8000
    # relative s.d. of a variance from 8000 draws: sqrt(2/8000) = 1.6 %
    assert np.abs(total / std**2 - 1).max() < 0.06
    assert np.abs(np.mean(total / std**2) - 1) < 0.05
    for voxel in [(0, 0), (3, 2), (6, 5)]:
        index = np.array([voxel], dtype=float)
        found = covariance.functional_std(index, np.ones(1), std, normaliser, spacing, ell, m)
        assert found == pytest.approx(std[voxel], rel=1e-10)
