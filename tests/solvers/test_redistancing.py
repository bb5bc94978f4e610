"""Laws of redistancing: order, accuracy, the wall stays, layout and bad input."""

import numba
import numpy as np
import pytest

from vesselseg.cuda_kernels.tricubic import tricubic
from vesselseg.errors import ConfigError, DataError, NoInterfaceError
from vesselseg.solvers import redistance
from vesselseg.solvers.redistancing import extend

METHODS = ("closest-point", "pde", "fmm")
OWN = METHODS[:2]
BAND = 4.5  # voxels


def solve(method, start, grid):
    return redistance(start, grid.spacing_mm, method=method, band_mm=BAND * grid.h_max)


def band_error(out, phi, grid, mask):
    """Errors, in mm, of the band that the metrics speak of: |phi| < 4 of the largest spacings."""
    return np.abs(out - phi)[mask & (np.abs(phi) < 4.0 * grid.h_max)]


@pytest.mark.parametrize(
    ("method", "order"), [("closest-point", 3.7), ("pde", 2.7)], ids=["closest-point", "pde"]
)
@pytest.mark.parametrize(
    ("name", "radius", "options"), [("sphere", 10.0, {}), ("torus", 4.5, {"ring": 2.6})]
)
def test_error_in_mm_falls_with_the_promised_order(
    exact, distort, interior, method, order, name, radius, options
):
    """P-19; the centre of the ball, where the distance has a kink, is left out."""
    sizes, errors = (1.0, 0.72, 0.5), []
    for h in sizes:
        phi, grid = exact(name, radius, h, margin=5.0, **options)
        mask = interior(phi) & (phi > -0.75 * radius)
        out = solve(method, distort(phi, grid), grid)
        errors.append(band_error(out, phi, grid, mask).mean())
    assert np.polyfit(np.log(sizes), np.log(errors), 1)[0] >= order


@pytest.mark.parametrize("method", OWN)
@pytest.mark.parametrize(("name", "radius"), [("sphere", 20.0), ("torus", 9.0)])
def test_a_smooth_wall_is_met_to_a_thousandth_of_a_voxel(
    exact, distort, interior, method, name, radius
):
    """Band L1 <= 1e-3 h, maximum <= 1e-2 h on grids of about 50³ voxels."""
    options = {"ring": 1.9} if name == "torus" else {}
    phi, grid = exact(name, radius, 1.0, margin=5.0, **options)
    mask = interior(phi) & (phi > -0.75 * radius)
    error = band_error(solve(method, distort(phi, grid), grid), phi, grid, mask)
    assert error.mean() <= 1e-3
    assert error.max() <= 1e-2


HARD = {
    "thin ball": ("sphere", 3.0, 1.0),
    "thin ring": ("torus", 2.0, 1.0),
    "thin tube through the faces": ("tilted_tube", 2.0, 1.0),
    "thick slices": ("tilted_tube", 4.0, (3.0, 1.0, 1.0)),
    "three spacings": ("torus", 5.0, (2.0, 1.0, 0.7)),
    "crease": ("bifurcation", 4.0, 1.0),
    "crease, anisotropic": ("bifurcation", 3.0, (1.5, 1.0, 1.0)),
    "two vessels": ("two_vessels", 3.0, 1.0),
    "star": ("star", 10.0, 1.0),
    "circle, anisotropic": ("circle", 8.0, (1.0, 0.5)),
}


HARDER = {
    "ball of three voxels": ("sphere", 1.5, 1.0),
    "tube of three voxels": ("tilted_tube", 1.5, 1.0),
    "two thin vessels": ("two_vessels", 2.0, 1.0),
    "two vessels, thick slices": ("two_vessels", 3.0, (2.0, 1.0, 1.0)),
    "crease, thin": ("bifurcation", 2.0, 1.0),
    "crease, thick slices": ("bifurcation", 6.0, (4.0, 1.0, 1.0)),
}
SLOPES = ("distorted", "waves", "noise")


@pytest.mark.parametrize("case", HARDER)
@pytest.mark.parametrize("slopes", SLOPES)
def test_never_worse_than_fast_marching_on_the_hardest(exact, distort, interior, case, slopes):
    """Thin walls, creases, thick slices under slopes of 0.5 to 1.5 that vary within a voxel."""
    phi, grid = exact(*HARDER[case])
    mask, waves = interior(phi), np.indices(phi.shape).sum(axis=0)
    factor = {
        "distorted": distort(np.ones_like(phi), grid),
        "waves": 1.0 + 0.5 * np.sin(0.8 * waves),
        "noise": np.random.default_rng(5).uniform(0.5, 1.5, phi.shape),
    }[slopes]
    peer = band_error(solve("fmm", phi * factor, grid), phi, grid, mask)
    own = band_error(solve("closest-point", phi * factor, grid), phi, grid, mask)
    assert own.mean() <= peer.mean()
    assert own.max() <= peer.max()


@pytest.mark.parametrize("case", HARD)
def test_never_worse_than_fast_marching(exact, distort, interior, crossings, case):
    """Mean and largest error of the band; and the wall stays: P-01, P-02."""
    phi, grid = exact(*HARD[case])
    start, mask = distort(phi, grid), interior(phi)
    peer = band_error(solve("fmm", start, grid), phi, grid, mask)
    before = crossings(phi)
    for method in OWN:
        out = solve(method, start, grid)
        error = band_error(out, phi, grid, mask)
        assert error.mean() <= 0.25 * peer.mean(), method
        assert error.max() <= peer.max(), method
        assert np.array_equal(out < 0, start < 0), method
        moved = np.abs(crossings(out) - before)
        assert np.sqrt(np.mean(moved**2)) <= 0.03, method
        assert moved.max() < 0.25, method


@pytest.mark.parametrize("method", OWN)
def test_a_smooth_wall_is_not_moved(exact, distort, crossings, method):
    """P-02: 0.01 h rms, 0.05 h at most; the exact distance itself is the reference."""
    for name, radius, spacing in (("torus", 5.0, 1.0), ("circle", 8.0, (1.0, 0.5))):
        phi, grid = exact(name, radius, spacing)
        out = redistance(distort(phi, grid), grid.spacing_mm, method=method, band_mm=3.0)
        moved = np.abs(crossings(out) - crossings(phi))
        assert np.sqrt(np.mean(moved**2)) <= 0.01
        assert moved.max() <= 0.05


@pytest.mark.parametrize("method", OWN)
@pytest.mark.parametrize("factor", [0.1, 10.0])
def test_the_scale_of_phi_does_not_matter(exact, distort, method, factor):
    """P-13."""
    phi, grid = exact("torus", 3.0)
    start = distort(phi, grid)
    one = redistance(start, grid.spacing_mm, method=method, band_mm=3.0)
    other = redistance(factor * start, grid.spacing_mm, method=method, band_mm=3.0)
    assert np.abs(one - other).max() <= 1e-6


@pytest.mark.parametrize("method", OWN)
def test_units_of_length_by_powers_of_two_are_exact(exact, distort, method):
    """P-11: bitwise, since no constant has a unit."""
    phi, grid = exact("torus", 3.0, (1.5, 1.0, 0.75))
    start, spacing = distort(phi, grid), np.array(grid.spacing_mm)
    one = redistance(start, spacing, method=method, band_mm=3.0)
    other = redistance(4.0 * start, 4.0 * spacing, method=method, band_mm=12.0)
    assert np.array_equal(4.0 * one, other)


@pytest.mark.parametrize("method", OWN)
def test_inside_and_outside_are_treated_alike(exact, distort, method):
    """P-09, bitwise."""
    phi, grid = exact("torus", 3.0)
    start = distort(phi, grid)
    one = redistance(start, grid.spacing_mm, method=method, band_mm=3.0)
    assert np.array_equal(redistance(-start, grid.spacing_mm, method=method, band_mm=3.0), -one)


@pytest.mark.parametrize("method", OWN)
@pytest.mark.parametrize("aligned", [False, True])
def test_flipped_axes_give_the_flipped_result(exact, distort, method, aligned):
    """P-08, bitwise; the aligned ball has its wall and its medial axis on the grid's own planes."""
    phi, grid = exact("torus", 3.0)
    start = distort(phi, grid)
    if aligned:
        start = np.sqrt(sum((np.indices((17, 15, 19)) - 8.0) ** 2)) - 4.0
    one = redistance(start, grid.spacing_mm, method=method, band_mm=3.0)
    for axis in range(3):
        other = redistance(np.flip(start, axis), grid.spacing_mm, method=method, band_mm=3.0)
        assert np.array_equal(np.flip(other, axis), one)


@pytest.mark.parametrize("axes", [(1, 2, 0), (2, 1, 0)], ids=["turned", "swapped"])
def test_permuted_axes_give_the_permuted_result(exact, distort, axes):
    """P-07 and the rotations of P-08, to the rounding of sums taken in another order."""
    phi, grid = exact("torus", 3.0, (1.5, 1.0, 0.75))
    start, spacing = distort(phi, grid), np.array(grid.spacing_mm)
    one = redistance(start, spacing, band_mm=3.0)
    other = redistance(start.transpose(axes), spacing[list(axes)], band_mm=3.0)
    assert np.abs(other - one.transpose(axes)).max() <= 1e-6  # closest points are kept in float32


def test_a_shifted_grid_gives_the_shifted_result(exact, distort):
    """P-10, bitwise away from the new faces."""
    phi, grid = exact("torus", 3.0)
    start = distort(phi, grid)
    one = redistance(start, 1.0, band_mm=2.0)
    other = redistance(start[2:, 1:, 3:], 1.0, band_mm=2.0)
    assert np.array_equal(one[2:, 1:, 3:][5:, 5:, 5:], other[5:, 5:, 5:])


def test_a_wall_that_leaves_the_grid_is_continued(exact, distort):
    """A slanted tube: its closest points lie beyond the faces, up to the last voxel."""
    phi, grid = exact("tilted_tube", 6.0)
    error = np.abs(solve("closest-point", distort(phi, grid), grid) - phi)[np.abs(phi) < 4.0]
    assert error.max() <= 0.1
    assert error.mean() <= 1e-3


def test_a_redistanced_wall_stays_as_it_is(exact, distort, interior):
    """P-04: smooth 0.02 h; a crease 0.25 h. P-05: |∇phi| = 1, median 0.01, p95 0.05."""
    for name, most in (("torus", 0.02), ("bifurcation", 0.25)):
        phi, grid = exact(name, 4.0)
        once = solve("closest-point", distort(phi, grid), grid)
        twice = solve("closest-point", once, grid)
        near = np.abs(once) < 3.0  # the ring's own axis is a kink
        assert np.abs(twice - once)[near & interior(phi)].max() <= most
        slope = np.sqrt(sum(g**2 for g in np.gradient(once)))
        off = np.abs(slope - 1.0)[interior(phi) & (np.abs(phi) > 1.0) & (np.abs(phi) < 2.5)]
        assert np.median(off) <= 0.01
        if name == "torus":
            assert np.percentile(off, 95) <= 0.05


def _aslam(values, phi, known, steps):
    """v_t + sgn(phi) n . grad v = 0, first-order upwind, known voxels held (Aslam 2004)."""
    normal = [np.sign(phi) * g for g in np.gradient(phi)]
    out = values.copy()
    for _ in range(steps):
        rate = np.zeros_like(out)
        for axis, n in enumerate(normal):
            below = out - np.roll(out, 1, axis)
            above = np.roll(out, -1, axis) - out
            rate += np.maximum(n, 0.0) * below + np.minimum(n, 0.0) * above
        out = np.where(known, out, out - 0.5 * rate)
    return out


def test_an_extended_speed_is_constant_along_normals(exact):
    """Against the exact extension, and against Aslam's equation of first order."""
    phi, grid = exact("circle", 12.0, 1.0)
    points = grid.world(np.moveaxis(np.indices(grid.shape_kji), 0, -1))
    angle = np.arctan2(points[..., 1], points[..., 0])
    truth, near = np.sin(3.0 * angle), np.abs(phi) < 4.0
    start = np.where(np.abs(phi) < 1.5, truth, 7.0)
    own = extend(start, phi, 1.0, band_mm=4.5)
    assert np.abs(own - truth)[near].max() <= 0.02  # linear between voxels: (3 h / r)² / 8
    assert np.array_equal(own[np.abs(phi) > 5.0], start[np.abs(phi) > 5.0])
    equation = _aslam(start, phi, np.abs(phi) < 1.5, 60)
    assert np.abs(own - equation)[near].max() <= 0.1  # first order


def test_values_of_another_shape_cannot_be_extended(exact):
    phi, _ = exact("circle", 5.0, 1.0)
    with pytest.raises(DataError):
        extend(np.ones((3, 3)), phi, 1.0, band_mm=3.0)


@pytest.mark.parametrize("flat", [False, True])
def test_the_interpolant_reproduces_cubics_and_their_derivatives(flat):
    """At inner points, on grid planes, and beyond the faces to second order exactly."""
    z, y, x = np.indices((1 if flat else 5, 6, 7), dtype=float)
    phi = 0.3 * x**3 - x * y**2 + 0.2 * y**3 + 2.0 * x - y + (0.0 if flat else 0.5 * z**3 - z * x)
    for k, j, i in ((0.0, 2.3, 3.6), (0.0, 3.0, 4.0), (0.0, 0.4, 5.9)):
        k = 0.0 if flat else 2.0 + 0.3 * (j != 3.0)
        at = (0, 2, 3) if flat else (2, 2, 3)
        jet = tricubic(phi.ravel(), *phi.shape, *at, k - at[0], j - 2, i - 3)
        w = 0.0 if flat else 1.0
        value = 0.3 * i**3 - i * j**2 + 0.2 * j**3 + 2.0 * i - j + w * (0.5 * k**3 - k * i)
        slopes = (w * (1.5 * k**2 - i), 0.6 * j**2 - 2 * i * j - 1, 0.9 * i**2 - j**2 + 2 - w * k)
        bends = (w * 3 * k, 1.2 * j - 2 * i, 1.8 * i, 0.0, -w, -2 * j)
        assert jet == pytest.approx((value, *slopes, *bends), abs=1e-11)
    square = (x - 1.0) ** 2 + y * x
    jet = tricubic(square.ravel(), *square.shape, 0, 2, 6, 0.0, 0.5, 1.5)
    assert jet[0] == pytest.approx(6.5**2 + 2.5 * 7.5, abs=1e-11)


def _big(phi):
    held = np.zeros(tuple(n + 4 for n in phi.shape), phi.dtype)
    held[tuple(slice(2, -2) for _ in phi.shape)] = phi
    return held[tuple(slice(2, -2) for _ in phi.shape)]


def _read_only(phi):
    phi = phi.copy()
    phi.setflags(write=False)
    return phi


LAYOUTS = {
    "Fortran order": np.asfortranarray,
    "view of a larger array": _big,
    "negative stride": lambda phi: phi[::-1].copy()[::-1],
    "read-only": _read_only,
    "subclass": lambda phi: phi.view(np.memmap),
    "other byte order": lambda phi: phi.astype(phi.dtype.newbyteorder()),
    "list": lambda phi: phi.tolist(),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_layout_of_the_input_does_not_matter(exact, method, layout):
    """P-03, bitwise; and the input is not modified."""
    phi, grid = exact("circle", 5.0, (1.0, 0.8))
    given = LAYOUTS[layout](phi.copy())
    before = np.array(given)
    out = redistance(given, grid.spacing_mm, method=method, band_mm=3.0)
    assert np.array_equal(out, redistance(phi, grid.spacing_mm, method=method, band_mm=3.0))
    assert np.array_equal(np.array(given), before)
    assert out.flags.c_contiguous and out.dtype == np.float64


@pytest.mark.parametrize("method", OWN)
def test_a_volume_in_fortran_order_gives_the_same(exact, method):
    """P-03 in three dimensions, where scikit-fmm itself is wrong by many voxels."""
    phi, grid = exact("torus", 3.0, (1.5, 1.0, 0.75))
    one = redistance(phi, grid.spacing_mm, method=method, band_mm=3.0)
    other = redistance(np.asfortranarray(phi), grid.spacing_mm, method=method, band_mm=3.0)
    assert np.array_equal(one, other)


@pytest.mark.parametrize("method", OWN)
def test_float32_agrees_with_float64(exact, distort, method):
    """P-23: 1e-5 h in the band, from the same numbers."""
    phi, grid = exact("torus", 3.0)
    start = distort(phi, grid).astype(np.float32)
    one = redistance(start, grid.spacing_mm, method=method, band_mm=3.0)
    other = redistance(start.astype(float), grid.spacing_mm, method=method, band_mm=3.0)
    assert one.dtype == np.float32
    assert np.abs(one - other).max() <= 1e-5


@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="numba was started on one thread")
@pytest.mark.parametrize("method", OWN)
def test_the_number_of_threads_does_not_matter(exact, distort, method):
    """P-26, bitwise."""
    phi, grid = exact("torus", 3.0)
    start, used, results = distort(phi, grid), numba.get_num_threads(), []
    try:
        for count in (1, 2):
            numba.set_num_threads(count)
            results.append(redistance(start, grid.spacing_mm, method=method, band_mm=3.0))
    finally:
        numba.set_num_threads(used)
    assert np.array_equal(*results)


@pytest.mark.parametrize("method", METHODS)
def test_beyond_the_band_phi_is_the_band(exact, method):
    phi, grid = exact("circle", 5.0, (1.0, 0.8))
    out = redistance(phi, grid.spacing_mm, method=method, band_mm=2.0)
    far = np.abs(phi) > 2.1
    assert np.array_equal(out[far], np.sign(phi[far]) * 2.0)
    assert np.abs(out).max() == 2.0


@pytest.mark.parametrize("method", METHODS)
def test_without_a_band_the_whole_domain_is_filled(exact, method):
    """A circle has no kink but its centre; fast marching is the slack: 0.3 voxels."""
    phi, grid = exact("circle", 5.0, 1.0)
    out = redistance(phi, grid.spacing_mm, method=method)
    assert np.abs(out - phi).max() <= 0.3


@pytest.mark.parametrize("method", METHODS)
def test_a_voxel_on_the_wall_stays_there(method):
    """A plane through voxel centres: zeros stay zeros, the rest is exact to rounding."""
    x = np.broadcast_to(np.arange(12.0) - 5.0, (10, 12)) * 2.5
    out = redistance(x, 1.0, method=method, band_mm=4.0)
    assert np.abs(out - np.clip(x / 2.5, -4.0, 4.0)).max() <= 1e-6


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [1.0, -1.0, 0.0, -0.0], ids=str)
def test_a_field_without_a_wall_is_refused(method, value):
    """P-22."""
    with pytest.raises(NoInterfaceError):
        redistance(np.full((6, 6), value), 1.0, method=method)


BAD = {
    "nan": (np.array([[1.0, -1.0], [np.nan, 1.0]]), 1.0, {}, DataError),
    "infinite": (np.array([[1.0, -1.0], [np.inf, 1.0]]), 1.0, {}, DataError),
    "complex": (np.array([[1.0, -1.0], [1j, 1.0]]), 1.0, {}, DataError),
    "one axis": (np.array([1.0, -1.0]), 1.0, {}, DataError),
    "four axes": (np.ones((2, 2, 2, 2)), 1.0, {}, DataError),
    "empty": (np.ones((0, 4)), 1.0, {}, DataError),
    "zero spacing": (np.array([[1.0, -1.0]]), 0.0, {}, DataError),
    "nan spacing": (np.array([[1.0, -1.0]]), np.nan, {}, DataError),
    "negative spacing": (np.array([[1.0, -1.0]]), (1.0, -1.0), {}, DataError),
    "three spacings for two axes": (np.array([[1.0, -1.0]]), (1.0, 1.0, 1.0), {}, DataError),
    "no band": (np.array([[1.0, -1.0]]), 1.0, {"band_mm": 0.0}, ConfigError),
    "nan band": (np.array([[1.0, -1.0]]), 1.0, {"band_mm": np.nan}, ConfigError),
    "unknown method": (np.array([[1.0, -1.0]]), 1.0, {"method": "edt"}, ConfigError),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused(case):
    phi, spacing, options, error = BAD[case]
    with pytest.raises(error):
        redistance(phi, spacing, **options)
