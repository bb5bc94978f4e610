"""Laws of the evolution: offsets, curvature flow, step limits, symmetries, watchdog."""

import math
import tracemalloc

import numba
import numpy as np
import pytest
from scipy.ndimage import binary_erosion

from vesselseg import metrics, phantoms
from vesselseg.cuda_kernels import tiles as tile_kernels
from vesselseg.errors import ConfigError, DataError, NumericalError
from vesselseg.grid import Grid
from vesselseg.solvers import advect, evolution, redistance, stable_time_step
from vesselseg.solvers.schemes import SCHEMES as TABLE
from vesselseg.solvers.tiles import collect_tiles

SCHEMES = ("weno5", "eno2")


@pytest.mark.parametrize("time", [2.0, -2.0], ids=["outward", "inward"])
@pytest.mark.parametrize(("name", "radius"), [("sphere", 8.0), ("circle", 8.0)])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_constant_speed_shifts_the_wall_by_the_distance(exact, scheme, time, name, radius):
    """P-14: 0.04 (T/R) h with WENO5, ten times as much with ENO2, and 0.01 h of quadrature."""
    phi, grid = exact(name, radius)
    out = advect(phi, grid.spacing_mm, abs(time), speed=np.sign(time), scheme=scheme)
    errors = metrics.wall_errors(out, phi - time, grid)
    limit = (0.04 if scheme == "weno5" else 0.4) * abs(time) / radius + 0.01
    assert errors["rms_mm"] <= limit
    assert abs(errors["bias_mm"]) <= limit


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_velocity_carries_the_wall_along(exact, scheme):
    """Velocities are (x, y, z): a move of 1.5, -1, 0.5 mm to the accuracy of an offset."""
    phi, grid = exact("sphere", 6.0, (1.2, 1.0, 0.8))
    move = np.array([1.5, -1.0, 0.5])
    points = grid.world(np.moveaxis(np.indices(grid.shape_kji), 0, -1)) - move
    velocity = np.broadcast_to(move, (*phi.shape, 3))
    out = advect(phi, grid.spacing_mm, 1.0, velocity=velocity, scheme=scheme)
    errors = metrics.wall_errors(out, np.linalg.norm(points, axis=-1) - 6.0, grid)
    assert errors["rms_mm"] <= (0.01 if scheme == "weno5" else 0.05)


@pytest.mark.parametrize(
    ("name", "rate"), [("sphere", 4.0), ("circle", 2.0), ("tube", 2.0)], ids=str
)
def test_curvature_shrinks_spheres_and_tubes_at_the_exact_rate(exact, name, rate):
    """P-16, P-17: d(R²)/dt = -2 (n - 1) for n curved directions, to 3 (h/R)² + 1e-3."""
    radius, time = 8.0, 4.0
    phi, grid = exact(name, radius)
    out = advect(phi, grid.spacing_mm, time, curvature_weight=1.0)
    wall = metrics.wall(out, grid)
    points = grid.world(wall.index)
    inner = np.all((wall.index > 4) & (wall.index < np.array(phi.shape) - 5), axis=1)
    moved = phantoms.make(name, radius=radius).sdf(points)[inner]
    found = (radius**2 - (radius + np.average(moved, weights=wall.area_mm2[inner])) ** 2) / time
    tolerance = 3.0 / radius**2 + 1e-3
    assert abs(found / rate - 1.0) <= tolerance


def test_curvature_flow_never_grows_the_area(exact):
    """P-17, on a star: every wall section moves inward on average; slack 1e-9."""
    phi, grid = exact("star", 8.0)
    lengths = [metrics.wall(phi, grid).area_mm2.sum()]
    for _ in range(4):
        phi = advect(phi, grid.spacing_mm, 0.5, curvature_weight=1.0)
        lengths.append(metrics.wall(phi, grid).area_mm2.sum())
    assert np.diff(lengths).max() <= 1e-9


def test_a_plane_has_no_curvature(exact):
    """P-18, up to the faces of the box, which it leaves at an angle."""
    phi, grid = exact("plane", 5.0, (1.5, 1.0, 0.8))
    out = advect(phi, grid.spacing_mm, 2.0, curvature_weight=1.0)
    assert np.abs(out - phi).max() <= 1e-12 * np.abs(phi).max()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_plane_moves_exactly(exact, scheme):
    """P-18: any number of steps, up to the faces of the box; to rounding."""
    phi, grid = exact("plane", 5.0, (1.5, 1.0, 0.8))
    out = advect(phi, grid.spacing_mm, 1.0, speed=1.0, scheme=scheme)
    assert np.abs(out - (phi - 1.0)).max() <= 1e-12 * np.abs(phi).max()


@pytest.mark.parametrize("time", [2.0, -2.0], ids=["outward", "inward"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_vessel_leaves_the_box_unbent(scheme, time):
    """A tube that crosses the faces at an angle: the law of P-14 within three voxels of them."""
    shape, size, radius = phantoms.make("tilted_tube", radius=5.0), 40, 5.0
    whole = shape.grid(1.0)
    affine = np.array(whole.affine)
    affine[:3, 3] += (np.array(whole.shape_kji[::-1]) - size) / 2.0
    grid = Grid((size,) * 3, affine)
    out = advect(shape.phi(grid), 1.0, abs(time), speed=np.sign(time), scheme=scheme)
    wall = metrics.wall(out, grid)
    edge = np.any((wall.index < 3) | (wall.index > size - 4), axis=1)
    assert edge.any()
    error = shape.sdf(grid.world(wall.index))[edge] - time
    limit = (0.04 if scheme == "weno5" else 0.4) * abs(time) / radius + 0.01
    assert np.sqrt(np.mean(error**2)) <= limit


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_growing_lumen_holds_the_old_one(exact, scheme):
    """P-15 for a speed that varies but never shrinks the lumen."""
    phi, grid = exact("star", 8.0)
    speed = 0.5 + 0.5 * np.sin(np.arange(phi.shape[1]) / 2.0) * np.ones(phi.shape)
    out = advect(phi, grid.spacing_mm, 2.0, speed=speed, scheme=scheme)
    assert not np.any((phi < 0) & ~(out < 0))
    assert np.count_nonzero(out < 0) > np.count_nonzero(phi < 0)


@pytest.mark.parametrize("name", ["star", "torus"])
def test_one_step_moves_phi_by_no_more_than_the_bound(exact, name):
    """P-20: dt max|V| sup |grad phi|, the one-sided slopes of a distance being at most one."""
    phi, grid = exact(name, 6.0)
    speed = np.random.default_rng(3).uniform(-2.0, 2.0, phi.shape)
    step = stable_time_step(grid.spacing_mm, speed=speed)
    out = advect(phi, grid.spacing_mm, step, speed=speed, scheme="eno2")
    slopes = [np.abs(np.diff(phi, axis=a)).max() / h for a, h in enumerate(grid.spacing_mm)]
    # ENO2 adds half a second difference to a slope: at a kink at most twice the slope.
    assert np.abs(out - phi).max() <= step * 2.0 * 2.0 * np.linalg.norm(slopes) + 1e-9


@pytest.mark.parametrize("scheme", SCHEMES)
def test_flipped_axes_give_the_flipped_result(exact, scheme):
    """P-08, bitwise, all three terms at once."""
    phi, grid = exact("torus", 3.0, (1.5, 1.0, 0.75))
    random = np.random.default_rng(5)
    speed = random.normal(size=phi.shape)
    velocity = random.normal(size=(*phi.shape, 3))

    def run(flip):
        turned = velocity.copy()
        for axis in flip:
            turned[..., 2 - axis] *= -1.0
        given = [np.flip(a, flip) for a in (phi, speed, turned)]
        out = advect(given[0], grid.spacing_mm, 0.3, speed=given[1], velocity=given[2],
                     curvature_weight=0.2, scheme=scheme)  # fmt: skip
        return np.flip(out, flip)

    one = run(())
    for flip in ((0,), (1,), (2,), (0, 1, 2)):
        assert np.array_equal(run(flip), one)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_larger_box_changes_nothing_that_the_faces_do_not_reach(exact, interior, scheme):
    """P-10, bitwise, though every tile cuts the field elsewhere: one step, all terms."""
    large, _ = exact("torus", 5.0, margin=9)
    start = (3, 5, 7)
    part = tuple(slice(a, n - 2) for a, n in zip(start, large.shape, strict=True))
    random = np.random.default_rng(7)
    speed, velocity = random.normal(size=large.shape), random.normal(size=(*large.shape, 3))

    def run(cut):
        motion = {"speed": speed[cut], "velocity": velocity[cut], "curvature_weight": 0.1}
        return advect(large[cut], 1.0, 0.02, time_step=0.02, scheme=scheme, **motion)

    whole, inner = run(...)[part], run(part)
    near = interior(inner, 4 if scheme == "eno2" else 9)
    assert near.any()
    assert np.array_equal(whole[near], inner[near])


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_unit_of_length_does_not_matter(exact, scheme):
    """P-11: lengths times 2^k bitwise, times another number to rounding."""
    phi, grid = exact("star", 6.0, (1.2, 0.8))
    speed = np.random.default_rng(5).normal(size=phi.shape)

    def run(s):
        out = advect(phi * s, tuple(s * h for h in grid.spacing_mm), 0.5, speed=speed * s,
                     curvature_weight=0.1 * s * s, scheme=scheme)  # fmt: skip
        return out / s

    one = run(1.0)
    assert np.array_equal(run(8.0), one)
    assert np.array_equal(run(0.125), one)
    assert np.abs(run(3.7) - one).max() <= 1e-13 * np.abs(phi).max()


@pytest.mark.parametrize(("scheme", "nominal"), [("weno5", 3.0), ("eno2", 2.0)])
def test_the_offset_converges_at_the_order_of_its_scheme(exact, scheme, nominal):
    """P-19: L1 near the wall over three grids, the time step shrinking with h."""
    radii, errors = (8.0, 16.0, 32.0), []
    for radius in radii:
        phi, _ = exact("circle", radius)
        out = advect(phi, 1.0, radius / 4.0, speed=-1.0, scheme=scheme)
        near = np.abs(phi + radius / 4.0) < 2.0
        errors.append(np.abs(out - (phi + radius / 4.0))[near].mean() / radius)
    assert -np.polyfit(np.log(radii), np.log(errors), 1)[0] >= nominal - 0.3


def test_curvature_flow_converges_at_second_order(exact):
    """P-19: a distance to a circle becomes sqrt(r² + 2 b t) - R."""
    radii, errors = (6.0, 12.0, 24.0), []
    for radius in radii:
        phi, _ = exact("circle", radius)
        time = radius**2 / 16.0
        out = advect(phi, 1.0, time, curvature_weight=1.0)
        truth = np.sqrt((phi + radius) ** 2 + 2.0 * time) - radius
        errors.append(np.abs(out - truth)[np.abs(truth) < 2.0].mean() / radius)
    assert -np.polyfit(np.log(radii), np.log(errors), 1)[0] >= 2.0 - 0.3


def test_a_distance_stays_a_distance_under_a_constant_speed(exact):
    """P-06: 0.02 h in the band with WENO5; a sphere, away from its centre."""
    phi, grid = exact("sphere", 9.0)
    out = advect(phi, grid.spacing_mm, 1.0, speed=1.0)
    near = np.abs(phi - 1.0) < 4.0
    assert np.abs(out - (phi - 1.0))[near].max() <= 0.02


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_lumen_within_another_stays_within(exact, scheme):
    """P-15, comparison: a disc in a star under one speed of both signs; slack 1e-12."""
    star, grid = exact("star", 9.0)
    disc = phantoms.make("circle", radius=4.0).phi(grid)
    assert np.all(star <= disc)
    speed = np.sin(np.arange(star.shape[1]) / 2.0) * np.ones(star.shape)
    outer, inner = (advect(f, 1.0, 2.0, speed=speed, scheme=scheme) for f in (star, disc))
    assert np.all((outer < 0)[inner < 0])
    near = np.abs(inner) < 1.0
    assert np.all(outer[near] <= inner[near] + 1e-12)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_memory_stays_below_four_fields(scheme):
    """Beyond the input, the result included."""
    phi = phantoms.make("sphere", radius=20.0).phi(
        phantoms.make("sphere", radius=20.0).grid(1.0, shape=(80,) * 3)
    ).astype(np.float32)  # fmt: skip
    advect(phi, 1.0, 1.0, speed=0.5, scheme=scheme, band_mm=6.0)
    tracemalloc.start()
    advect(phi, 1.0, 1.0, speed=0.5, scheme=scheme, band_mm=6.0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak <= 4.0 * phi.nbytes


def test_inside_and_outside_are_treated_alike(exact):
    """P-09, bitwise: -phi under -V."""
    phi, grid = exact("torus", 3.0)
    speed = np.random.default_rng(5).normal(size=phi.shape)
    one = advect(phi, grid.spacing_mm, 0.5, speed=speed, curvature_weight=0.2)
    other = advect(-phi, grid.spacing_mm, 0.5, speed=-speed, curvature_weight=0.2)
    assert np.array_equal(-other, one)


def test_a_run_in_two_parts_equals_the_whole(exact):
    """P-32, bitwise, with one time step."""
    phi, grid = exact("star", 6.0)
    step = stable_time_step(grid.spacing_mm, speed=1.0)
    options = {"speed": 1.0, "time_step": step}
    whole = advect(phi, grid.spacing_mm, 8 * step, **options)
    half = advect(phi, grid.spacing_mm, 4 * step, **options)
    assert np.array_equal(advect(half, grid.spacing_mm, 4 * step, **options), whole)


@pytest.mark.parametrize("spacing", [1.0, (1.4, 1.0, 0.7)], ids=["cubic", "anisotropic"])
@pytest.mark.parametrize(("scheme", "reach"), [("eno2", 2), ("weno5", 3)])
def test_a_narrow_band_gives_the_full_result_inside(exact, scheme, reach, spacing):
    """P-30, bitwise: all that two steps do not carry in from the rim, all terms at once."""
    phi, grid = exact("torus", 6.0, spacing)
    random = np.random.default_rng(2)
    motion = {
        "speed": random.normal(size=phi.shape),
        "velocity": random.normal(size=(*phi.shape, 3)),
        "curvature_weight": 0.1,
        "scheme": scheme,
    }
    step = 0.5 * stable_time_step(
        grid.spacing_mm, **{k: v for k, v in motion.items() if k != "scheme"}
    )
    full = advect(phi, grid.spacing_mm, 2 * step, time_step=step, **motion)
    band = 0.95 * np.abs(phi).max()
    narrow = advect(phi, grid.spacing_mm, 2 * step, time_step=step, band_mm=band, **motion)
    outside = np.abs(phi) >= band
    assert np.array_equal(narrow[outside], phi[outside])
    stages = 2 * len(TABLE[scheme].stages)
    box = np.ones((2 * reach + 1,) * 3, bool)
    inner = binary_erosion(~outside, box, iterations=stages, border_value=1)
    assert outside.any() and (inner & (np.abs(phi) < 1.0)).any()
    assert np.array_equal(narrow[inner], full[inner])


@pytest.mark.parametrize("speed", [1.0, -1.0])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_wall_moves_in_a_band_of_three_voxels_as_on_the_full_grid(exact, scheme, speed):
    """P-30: the band is 3 h + k CFL h for k = 5 steps; the wall differs by less than 2e-3 h."""
    phi, grid = exact("torus", 5.0)
    step = stable_time_step(grid.spacing_mm, speed=speed)
    options = {"speed": speed, "scheme": scheme, "time_step": step}
    full = advect(phi, grid.spacing_mm, 5 * step, **options)
    narrow = advect(phi, grid.spacing_mm, 5 * step, band_mm=3.0 + 5 * evolution.CFL, **options)
    near = np.abs(full) < 1.0
    assert np.abs(narrow - full)[near].max() <= 2e-3


@pytest.mark.parametrize("shape", [(19, 37, 45), (8, 8, 16), (1, 9, 33), (3, 2, 1)], ids=str)
@pytest.mark.parametrize("width", [0.3, math.inf])
def test_the_tiles_hold_the_band_and_its_rim(shape, width):
    """Against plain NumPy; shapes that tiles do and do not divide."""
    phi = np.random.default_rng(4).normal(size=shape)
    tiles = collect_tiles(phi, width)
    inside, rim = np.zeros(shape, bool), np.zeros(shape, bool)
    for entry, number in enumerate(tiles.numbers):
        origin = np.array(tile_kernels.tile_origin(int(number), *shape[1:]))
        for field, rows in ((inside, tiles.bits), (rim, tiles.rim)):
            bits = (rows[entry][:, None] >> np.arange(16)) & 1
            for place in np.argwhere(bits.reshape(tile_kernels.TILE)) + origin:
                field[tuple(place)] = True
    assert np.array_equal(inside, np.abs(phi) < width)
    assert np.array_equal(rim, inside & ~binary_erosion(inside, border_value=1))
    assert tiles.voxels == np.count_nonzero(inside)


def test_a_wall_that_comes_to_the_rim_of_its_band_is_reported(exact):
    """F37's cause: beyond the band nothing moves; step and voxel are named."""
    phi, grid = exact("sphere", 6.0)
    with pytest.raises(NumericalError, match=r"rim of its band at step \d+, voxel") as error:
        advect(phi, grid.spacing_mm, 4.0, speed=1.0, scheme="eno2", band_mm=4.0)
    i, j, k = (int(n) for n in error.value.fault.split("= (")[1].rstrip(")").split(","))
    assert 2.0 <= phi[k, j, i] < 4.0


def test_float32_agrees_with_float64_over_200_steps(exact):
    """P-23: a run of 200 steps, 1e-3 h; Dice >= 0.9999. Redistanced half-way, as in use."""
    phi, grid = exact("circle", 8.0)
    step = stable_time_step(grid.spacing_mm, speed=1.0, curvature_weight=0.1)

    def run(dtype):
        state = phi.astype(dtype)
        for sense in (1.0, -1.0):
            state = advect(state, grid.spacing_mm, 100 * step, speed=0.1 * sense,
                           curvature_weight=0.1, time_step=step)  # fmt: skip
            state = redistance(state, grid.spacing_mm, band_mm=4.0)
        return state

    one, other = run(np.float32), run(np.float64)
    assert one.dtype == np.float32
    assert np.abs(one - other).max() <= 1e-3
    assert metrics.dice(one < 0, other < 0) >= 0.9999


@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="numba was started on one thread")
def test_the_number_of_threads_does_not_matter(exact):
    """P-26, bitwise."""
    phi, grid = exact("torus", 3.0)
    used, results = numba.get_num_threads(), []
    try:
        for count in (1, 2):
            numba.set_num_threads(count)
            results.append(advect(phi, grid.spacing_mm, 1.0, speed=0.5, curvature_weight=0.3))
    finally:
        numba.set_num_threads(used)
    assert np.array_equal(*results)


def test_the_step_limit_counts_the_absolute_speed():
    """A field that only shrinks the lumen limits the step as one that grows it."""
    one, other = (stable_time_step((1.0, 1.0), speed=v) for v in (2.0, -2.0))
    assert one == other == pytest.approx(0.5 / (2.0 * math.sqrt(2.0)))
    assert stable_time_step((1.0, 1.0)) == math.inf
    fine = stable_time_step((1.0, 0.5), curvature_weight=1.0)
    assert fine == pytest.approx(0.5 / (2.0 * (1.0 + 4.0)))


def test_a_step_over_the_limit_is_refused_with_both_numbers(exact):
    """F36: five times the CFL limit."""
    phi, grid = exact("circle", 5.0)
    limit = stable_time_step(grid.spacing_mm, speed=1.0)
    with pytest.raises(ConfigError) as error:
        advect(phi, grid.spacing_mm, 5.0, speed=-1.0, time_step=5.0 * limit)
    assert f"found {5.0 * limit}" in error.value.line()
    assert f"{limit:.6g}" in error.value.line()


@pytest.mark.parametrize("poison", [np.nan, np.inf, 1e9])
def test_the_watchdog_names_step_and_voxel(exact, monkeypatch, poison):
    """F35: injected in step 13, found at the check of step 20."""
    phi, grid = exact("circle", 5.0)
    real, count = evolution.kernels.advect_tiles, []

    def spoiled(state, *rest):
        real(state, *rest)
        count.append(1)
        if len(count) == 13 * 3:
            rest[6][0, 4, 7] = poison

    monkeypatch.setattr(evolution.kernels, "advect_tiles", spoiled)
    step = stable_time_step(grid.spacing_mm, speed=1.0)
    with pytest.raises(NumericalError, match="step 20") as error:
        advect(phi, grid.spacing_mm, 40 * step, speed=1.0, time_step=step)
    assert error.value.exit_code == 6
    assert "voxel (i,j,k) = (" in error.value.line()
    assert len(count) == 20 * 3


BAD = {
    "negative time": ({"time": -1.0, "speed": 1.0}, ConfigError),
    "endless time": ({"time": math.inf, "speed": 1.0}, ConfigError),
    "negative curvature weight": ({"time": 1.0, "curvature_weight": -1.0}, ConfigError),
    "unknown scheme": ({"time": 1.0, "speed": 1.0, "scheme": "weno7"}, ConfigError),
    "speed of another shape": ({"time": 1.0, "speed": np.ones((3, 3))}, DataError),
    "speed not finite": ({"time": 1.0, "speed": np.nan}, DataError),
    "velocity of another shape": ({"time": 1.0, "velocity": np.ones((5, 5))}, DataError),
    "zero step": ({"time": 1.0, "speed": 1.0, "time_step": 0.0}, ConfigError),
    "negative step": ({"time": 1.0, "speed": 1.0, "time_step": -0.1}, ConfigError),
    "band too narrow": ({"time": 1.0, "speed": 1.0, "band_mm": 2.9}, ConfigError),
    "velocity not finite": ({"time": 1.0, "velocity": np.full((23, 23, 2), np.nan)}, DataError),
    "nan step": ({"time": 1.0, "speed": 1.0, "time_step": np.nan}, ConfigError),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments_are_refused(exact, case):
    phi, grid = exact("circle", 5.0)
    options, error = dict(BAD[case][0]), BAD[case][1]
    with pytest.raises(error):
        advect(phi, grid.spacing_mm, options.pop("time"), **options)


def test_nothing_moves_without_speed_or_time(exact):
    phi, grid = exact("circle", 5.0)
    assert np.array_equal(advect(phi, grid.spacing_mm, 1.0), phi)
    assert np.array_equal(advect(phi, grid.spacing_mm, 0.0, speed=1.0), phi)
