"""Laws of the viscous signed distance: exact solutions, the limit, the pinned wall, bad input."""

import numpy as np
import pytest
from scipy.integrate import solve_ivp

from vesselseg.errors import ConfigError, DataError, NoInterfaceError, NumericalError
from vesselseg.solvers import redistance, viscous, viscous_distance


def radial(radius, edge, epsilon, dims):
    """Solution about a circle or ball: q - ε (q' + (n - 1) q / r) = 1 for the slope q outside,
    which is one at the edge, and the same with -ε inside, where the slope is 0 at the centre."""

    def outside(r, y):
        return [y[1], (y[1] - 1.0) / epsilon - (dims - 1) * y[1] / r]

    def inside(r, y):
        return [y[1], (1.0 - y[1]) / epsilon - (dims - 1) * y[1] / r]

    options = {"method": "Radau", "rtol": 1e-9, "atol": 1e-12, "dense_output": True}
    centre = 1e-6 * radius
    outer = solve_ivp(outside, (edge, radius), [0.0, 1.0], **options).sol
    inner = solve_ivp(inside, (centre, radius), [0.0, centre / (epsilon * dims)], **options).sol

    def phi(r):
        out = outer(np.clip(r, radius, edge).ravel())[0] - outer(radius)[0]
        deep = inner(np.clip(r, centre, radius).ravel())[0] - inner(radius)[0]
        return np.where(r < radius, deep.reshape(r.shape), out.reshape(r.shape))

    return phi


def distances(dims, spacing, reach):
    """Distances to a point that lies on no voxel, on a grid that reaches so far."""
    h = np.broadcast_to(spacing, (dims,))
    axes = [(np.arange(2 * int(reach / s) + 1) - int(reach / s) + 0.3) * s for s in h]
    return np.sqrt(sum(g * g for g in np.meshgrid(*axes, indexing="ij")))


@pytest.mark.parametrize("epsilon", [0.25, 1.0])
@pytest.mark.parametrize(
    ("dims", "spacing", "radius"),
    [(2, 1.0, 6.0), (3, 1.0, 6.0), (2, (1.0, 0.5), 6.0), (3, (1.0, 0.8, 0.5), 4.0)],
    ids=["circle", "ball", "circle, anisotropic", "ball, anisotropic"],
)
def test_circles_and_balls_are_met(dims, spacing, radius, epsilon):
    """To a fiftieth of the largest voxel, a small part of what the viscosity changes."""
    r = distances(dims, spacing, radius + 6.0)
    out = viscous_distance(r - radius, spacing, epsilon, band_mm=3.0)
    edge = radius + 3.0 + 2.0 * np.max(spacing) + viscous.MARGIN * epsilon
    exact = radial(radius, edge, epsilon, dims)(r)
    near = np.abs(r - radius) < 2.0
    changed = np.abs(exact - (r - radius))[near]
    tolerance = 0.02 * np.max(spacing)
    assert changed.max() > 4.0 * tolerance
    assert np.abs(out - exact)[near].mean() <= tolerance


@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_no_work_is_done_beyond_the_reach(scale, monkeypatch):
    """In any unit: 9e-3 is less in float32 than in float64, and all the far field lay within it."""
    kept, listed = viscous.solve, []

    def spy(exact, index, *rest):
        listed.append(len(index))
        return kept(exact, index, *rest)

    monkeypatch.setattr(viscous, "solve", spy)
    phi = scale * np.clip(distances(2, 1.0, 24.0) - 6.0, -5.0, 5.0)
    for dtype in (np.float32, np.float64):
        viscous_distance(phi.astype(dtype), scale, 0.5 * scale, band_mm=5.0 * scale)
    assert listed[0] == listed[1] < 0.5 * phi.size


def test_the_error_falls_with_the_square_of_the_voxel():
    """Where ε is more than half a voxel: two grids, a factor of at least three."""
    errors = []
    for h in (1.0, 0.5):
        r = distances(2, h, 9.0)
        exact = radial(5.0, 5.0 + 2.0 + 2.0 * h + viscous.MARGIN, 1.0, 2)(r)
        out = viscous_distance(r - 5.0, h, 1.0, band_mm=2.0)
        errors.append(np.abs(out - exact)[np.abs(r - 5.0) < 1.5].mean())
    assert errors[1] <= errors[0] / 3.0


@pytest.mark.parametrize("epsilon", [0.5, 1.0, 3.0])
def test_between_two_planes_the_crease_is_round(epsilon):
    """Exact: d = x - ε (exp(-(c - x) / ε) - exp(-c / ε)), c half the width;
    to 0.15 voxels where ε is at least half of one, the upwind viscosity."""
    half, h = 8.2, 0.5
    x = (np.arange(48) - 23.5) * h
    phi = np.broadcast_to(np.abs(x) - half, (6, 48))
    out = viscous_distance(phi, (2.0, h), epsilon)
    depth = half - np.abs(x)
    exact = depth - epsilon * (np.exp((depth - half) / epsilon) - np.exp(-half / epsilon))
    inner = depth > 0.0
    assert np.abs(out + exact)[:, inner].max() <= 0.15 * h
    assert np.abs(out - phi)[:, ~inner].max() <= 1e-12


@pytest.mark.parametrize("shape", [(20, 24), (12, 14, 16)])
def test_a_plane_stays_a_plane(shape):
    """Along the faces everywhere; tilted, away from the faces, where the wall ends."""
    spacing = (0.8, 1.0, 1.3)[: len(shape)]
    y, x = (n * h for n, h in zip(np.indices(shape)[:2], spacing, strict=False))
    out = viscous_distance(x - 5.3, spacing, 1.0)
    assert np.abs(out - (x - 5.3)).max() <= 1e-6
    phi = 0.6 * y + 0.8 * x - 8.1
    out = viscous_distance(phi, spacing, 0.5, band_mm=3.0)
    inner = (np.abs(phi) < 2.0) & (np.abs(0.8 * y - 0.6 * x - 0.3) < 1.5)
    assert inner.any()
    assert np.abs(out - phi)[inner].max() <= 0.02


def test_without_viscosity_it_is_the_distance():
    """Linear in ε, and equal to it in the limit, creases included."""
    r = distances(2, 1.0, 12.0)
    phi = np.minimum(r - 4.0, np.roll(r, 7, axis=1) - 4.0)
    exact = redistance(phi, 1.0, band_mm=4.0)
    gaps = [
        np.abs(viscous_distance(phi, 1.0, epsilon, band_mm=4.0) - exact).max()
        for epsilon in (1e-1, 1e-2, 1e-3, 1e-6)
    ]
    assert gaps[0] > gaps[1] > gaps[2] > gaps[3]
    assert gaps[2] <= 0.2 * gaps[1]
    assert gaps[3] <= 1e-5


@pytest.mark.parametrize("epsilon", [0.3, 2.0])
def test_the_wall_is_pinned(epsilon):
    """Every sign, every zero; beside the wall the value is the distance to a factor 1 ± ε κ."""
    r = distances(2, 1.0, 20.0)
    phi = r - r[20, 34]
    assert np.count_nonzero(phi == 0.0) > 0
    out = viscous_distance(phi, 1.0, epsilon, band_mm=4.0)
    assert np.array_equal(out < 0, phi < 0)
    assert np.array_equal(out == 0, phi == 0)
    near = (np.abs(phi) < 1.0) & (phi != 0.0)
    assert np.abs(out[near] / phi[near] - 1.0).max() <= 1.3 * epsilon / 14.0


def test_inside_and_outside_units_and_precision_are_treated_alike():
    """-phi gives the negative and lengths doubled the double, bitwise; float32 to 1e-5."""
    r = distances(3, 1.0, 8.0)
    phi = r - 4.3
    one = viscous_distance(phi, 1.0, 0.5, band_mm=3.0)
    assert np.array_equal(viscous_distance(-phi, 1.0, 0.5, band_mm=3.0), -one)
    assert np.array_equal(viscous_distance(2.0 * phi, 2.0, 1.0, band_mm=6.0), 2.0 * one)
    other = viscous_distance(phi.astype(np.float32), 1.0, 0.5, band_mm=3.0)
    assert other.dtype == np.float32
    assert np.abs(one - other).max() <= 1e-5


PHI = distances(2, 1.0, 6.0) - 3.0
BAD = {
    "nan": (np.where(PHI > 2, np.nan, PHI), 1.0, 0.5, None, DataError),
    "no wall": (np.abs(PHI), 1.0, 0.5, None, NoInterfaceError),
    "zero": (PHI, 1.0, 0.0, None, ConfigError),
    "negative": (PHI, 1.0, -1.0, None, ConfigError),
    "not a number": (PHI, 1.0, np.nan, None, ConfigError),
    "larger than the domain": (PHI, 1.0, 1e9, None, ConfigError),
    "no band": (PHI, 1.0, 0.5, 0.0, ConfigError),
    "endless band": (PHI, 1.0, 0.5, np.inf, ConfigError),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused(case):
    phi, spacing, epsilon, band, error = BAD[case]
    with pytest.raises(error):
        viscous_distance(phi, spacing, epsilon, band_mm=band)


def test_sweeps_that_do_not_settle_are_told(monkeypatch):
    monkeypatch.setattr(viscous, "MAX_SWEEPS", 2)
    with pytest.raises(NumericalError, match="settle"):
        viscous_distance(PHI, 1.0, 2.0)
