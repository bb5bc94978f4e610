"""The covariance against the dense matrix of its definition, on a grid small enough for one."""

import itertools
from dataclasses import replace

import numpy as np
import prior_builders as make
import pytest

from vesselseg.errors import ConfigError
from vesselseg.grid import Grid
from vesselseg.prior import covariance
from vesselseg.prior.boundary import BoundaryPrior, PriorSettings
from vesselseg.prior.check import check
from vesselseg.prior.covariance import Elliptic

CASES = [
    ((4, 5, 3), Elliptic((1.0, 0.7, 1.4), 1.3, 4)),
    ((5, 3, 4), Elliptic((1.0, 1.0, 1.0), 0.6, 2)),
    ((6, 7), Elliptic((0.5, 0.8), 1.1, 4)),
    ((6, 5), Elliptic((0.6, 0.8), 1.1, 4, revolved=True)),
    ((4, 7), Elliptic((1.0, 0.5), 0.7, 2, revolved=True)),
]


def dense(shape, operator):
    """I - ℓ²Δ with zero flux, written out neighbour by neighbour.

    Revolved: the flux through the circle between two rows, over the rows' own circumference.
    """
    index = np.arange(np.prod(shape)).reshape(shape)
    matrix = np.eye(index.size)
    for axis, h in enumerate(operator.spacing):
        first, second = (
            np.take(index, range(*r), axis).ravel()
            for r in ((0, shape[axis] - 1), (1, shape[axis]))
        )
        for a, b in itertools.chain(
            zip(first, second, strict=True), zip(second, first, strict=True)
        ):
            here, there = (np.unravel_index(n, shape)[0] + 0.5 for n in (a, b))
            ring = (here + there) / 2 / here if operator.revolved and axis == 0 else 1.0
            matrix[a, a] += (operator.ell / h) ** 2 * ring
            matrix[a, b] -= (operator.ell / h) ** 2 * ring
    return matrix


def kernel_of(shape, operator):
    """K: A⁻ᵐ, revolved that of white noise in the volume, A⁻ᵐ r⁻¹."""
    kernel = np.linalg.matrix_power(np.linalg.inv(dense(shape, operator)), operator.m)
    return kernel / radii(shape, operator)[None, :]


def radii(shape, operator):
    """Row by row the distance from the axis in rows, one where there is none."""
    rows = np.repeat(np.arange(shape[0]) + 0.5, np.prod(shape[1:]))
    return rows if operator.revolved else np.ones_like(rows)


def covariance_of(shape, operator, std):
    """D K D with the variance std² from the diagonal of K itself."""
    kernel = kernel_of(shape, operator)
    assert np.allclose(kernel, kernel.T, atol=1e-12 * np.abs(kernel).max())
    scale = std.ravel() / np.sqrt(np.diag(kernel))
    return scale[:, None] * kernel * scale[None, :]


@pytest.mark.parametrize(("shape", "operator"), CASES)
def test_normaliser_is_the_diagonal_of_the_dense_inverse(shape, operator):
    exact = np.diag(kernel_of(shape, operator)) * radii(shape, operator)
    assert np.allclose(operator.normaliser(shape).ravel(), np.sqrt(exact), rtol=1e-12)


@pytest.mark.parametrize(("shape", "operator"), CASES)
def test_powers_are_those_of_the_dense_matrix(shape, operator):
    field = np.random.default_rng(0).standard_normal(shape)
    root = np.sqrt(radii(shape, operator))
    half = np.linalg.matrix_power(dense(shape, operator), operator.m // 2)
    for power, apply in ((operator.m / 2, half), (-operator.m / 2, np.linalg.inv(half))):
        found = operator.apply_power(field, power)
        exact = root * (apply @ (field.ravel() / root))
        assert np.allclose(found.ravel(), exact, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("shape", "operator"), CASES)
def test_log_density_is_the_gaussian_exponent(shape, operator):
    rng = np.random.default_rng(1)
    std, offset = rng.uniform(0.5, 2.0, shape), rng.standard_normal(shape)
    exact = (
        -0.5 * offset.ravel() @ np.linalg.solve(covariance_of(shape, operator, std), offset.ravel())
    )
    found = covariance.log_density(offset, std, operator.normaliser(shape), operator)
    assert found == pytest.approx(exact, rel=1e-9)  # the figure asked for is 1e-8


@pytest.mark.parametrize("revolved", [False, True])
def test_draws_have_the_covariance_of_the_dense_matrix(revolved):
    shape, operator = (4, 3), Elliptic((1.0, 1.0), 0.8, 2, revolved)
    std = np.linspace(0.5, 2.0, 12).reshape(shape)
    normaliser = operator.normaliser(shape)
    rng = np.random.default_rng(3)
    draws = np.array([covariance.draw(std, normaliser, operator, rng).ravel() for _ in range(4000)])
    exact = covariance_of(shape, operator, std)
    error = np.cov(draws.T) - exact
    assert np.abs(error / np.outer(std, std)).max() < 0.1  # s.d. of an entry: sqrt(2/4000) = 2.2 %


def test_modes_are_the_eigenvectors_of_the_dense_matrix():
    shape, operator = (6, 5, 7), Elliptic((1.0, 0.8, 1.2), 1.4, 4)
    rng = np.random.default_rng(4)
    std, where = rng.uniform(0.5, 1.5, shape), rng.random(shape) < 0.7
    normaliser = operator.normaliser(shape)
    inside = np.flatnonzero(where)
    exact = covariance_of(shape, operator, std)[np.ix_(inside, inside)]
    vectors, values = covariance.modes(std, normaliser, operator, 5, where)
    assert np.allclose(values, np.linalg.eigvalsh(exact)[::-1][:5], rtol=1e-8)
    flat = vectors.reshape(5, -1)
    assert np.allclose(flat @ flat.T, np.eye(5), atol=1e-10)
    assert not flat[:, ~where.ravel()].any()
    assert np.allclose(exact @ flat[:, inside].T, flat[:, inside].T * values, atol=1e-5)


@pytest.mark.parametrize("revolved", [False, True])
def test_marginal_variance_is_the_square_of_the_stated_deviation(revolved):
    """Within 5 % at every voxel, by the operator itself and by 8000 draws."""
    shape, operator = (7, 6), Elliptic((1.0, 1.3), 1.5, 4, revolved)
    std = np.linspace(0.2, 0.8, 42).reshape(shape)
    normaliser = operator.normaliser(shape)
    rng = np.random.default_rng(11)
    total = np.zeros(shape)
    for _ in range(8000):
        total += covariance.draw(std, normaliser, operator, rng) ** 2 / 8000
    # relative s.d. of a variance from 8000 draws: sqrt(2/8000) = 1.6 %
    assert np.abs(total / std**2 - 1).max() < 0.06
    assert np.abs(np.mean(total / std**2) - 1) < 0.05
    for voxel in [(0, 0), (3, 2), (6, 5)]:
        index = np.array([voxel], dtype=float)
        found = covariance.functional_std(index, np.ones(1), std, normaliser, operator)
        assert found == pytest.approx(std[voxel], rel=1e-10)


@pytest.mark.parametrize("size", [(20, 20, 20), (24, 22)], ids=["3-D", "2-D"])
def test_stored_draws_and_modes_are_those_of_the_field(size, tmp_path):
    grid = Grid.from_spacing(size, 1.0)
    settings = PriorSettings(samples=3, modes=4)
    prior = make.prior(make.sphere(grid, 5.0), grid, settings=settings)
    assert np.array_equal(prior.arrays["/geometry/samples"], prior.sample(3, seed=0))
    modes, share = (prior.arrays[f"/geometry/covariance/{n}"] for n in ("modes", "eigenvalues"))
    _, variances = prior.modes(4)
    flat = modes.reshape(4, -1).astype(float)
    # float32 in the file
    assert flat @ flat.T == pytest.approx(np.diag(variances), abs=1e-6 * variances[0])
    near = np.abs(prior.phi_mean_m) < 2e-3
    assert share == pytest.approx(variances / np.square(prior.phi_std_m[near], dtype=float).sum())
    prior.write(tmp_path / "a.h5")
    BoundaryPrior.read(tmp_path / "a.h5").write(tmp_path / "b.h5")
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()
    assert not [f for f in check(prior) if f.id == 14 and not f.ok]


@pytest.mark.parametrize(("path", "factor"), [
    ("/geometry/samples", None), ("/geometry/covariance/modes", 1.5),
    ("/geometry/covariance/eigenvalues", -1.0), ("/geometry/covariance/eigenvalues", None),
])  # fmt: skip
def test_check_finds_stored_walls_of_another_field(path, factor):
    grid = Grid.from_spacing((16, 16), 1.0)
    prior = make.prior(make.sphere(grid, 5.0), grid, settings=PriorSettings(samples=3, modes=4))
    arrays = dict(prior.arrays)
    wrong = arrays.pop(path)
    if path.endswith("samples"):  # drawn with ten times the standard deviation
        arrays[path] = (prior.phi_mean_m + 10 * (wrong - prior.phi_mean_m)).astype(np.float32)
    elif factor is not None:
        arrays[path] = (factor * wrong).astype(wrong.dtype)
    found = [f for f in check(replace(prior, arrays=arrays)) if f.id == 14 and not f.ok]
    assert [f.level for f in found] == ["error"]


def test_more_walls_than_a_reader_takes_are_refused():
    prior = make.small()
    with pytest.raises(ConfigError, match="too many walls to store"):
        prior._with_walls(1 << 20, 0)
