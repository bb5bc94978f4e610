import numpy as np
import pytest
from scipy.spatial import cKDTree
from scipy.special import erf

from vesselseg import phantoms
from vesselseg.errors import ConfigError
from vesselseg.grid import Grid
from vesselseg.phantoms import problems, unions

SMOOTH = [n for n in phantoms.names() if n not in {"aneurysm", "bifurcation", "tree", "arch"}]
CLOSED_3D = [
    "sphere",
    "ellipsoid",
    "torus",
    "curved_tube",
    "helix",
    "tapered_tube",
    "stenosis",
    "aneurysm",
    "bifurcation",
    "smooth_bifurcation",
    "arch",
    "two_vessels",
]
TURN = np.linalg.qr(np.random.default_rng(3).standard_normal((3, 3)))[0]


@pytest.fixture(scope="module")
def made():
    return {name: phantoms.make(name, radius=4.0) for name in phantoms.names()}


def near_wall(phantom, count=400, reach=0.4, seed=0):
    rng = np.random.default_rng(seed)
    low, high = phantom.low_xyz - 1, phantom.high_xyz + 1
    points = rng.uniform(low, high, (40 * count, phantom.ndim))
    phi = phantom.sdf(points)
    return points[np.abs(phi) < reach * phantom.radius_mm][:count]


@pytest.mark.parametrize("name", phantoms.names())
def test_gradient_of_the_distance_has_unit_length(made, name):
    points = near_wall(made[name])
    size = np.linalg.norm(made[name].normal(points), axis=-1)
    # Central differences of step 1e-3 r are exact to 1e-6; kinks (creases, nozzle) take a few %.
    assert len(points) > 50
    assert np.mean(np.abs(size - 1) < 1e-5) > 0.95
    assert size.max() < 1 + 1e-5


@pytest.mark.parametrize("name", SMOOTH)
def test_foot_of_every_point_lies_on_the_wall(made, name):
    phantom = made[name]
    points = near_wall(phantom)
    foot = points - phantom.sdf(points)[..., None] * phantom.normal(points)
    off = np.abs(phantom.sdf(foot))
    # The normal is a difference with step 1e-3 r: foot error up to reach·step²·curvature.
    assert np.percentile(off, 95) < 2e-5


@pytest.mark.parametrize(
    "name, point, expected",
    [
        ("sphere", (9.0, 0, 0), 5.0),
        ("sphere", (0.0, 0, 0), -4.0),
        ("torus", (0.0, 0, 0), 8.0),
        ("torus", (12.0, 0, 1), -3.0),
        ("tube", (6.0, 0, 55), 2.0),
        ("channel", (0.0, 0), -4.0),
        ("circle", (3.0, 4), 1.0),
        ("ellipse", (6.0, 0), 2.0),
        ("ellipse", (0.0, 9.6), 2.0),
        ("ellipsoid", (0.0, 0, 10), 10 - 7.6),
        ("nozzle", (-10.0, 0.0), -4 / 3),
        ("plane", (0.48, 0.6, 0.64), 1.0),
        ("stenosis", (0.0, 0, 0), -2.0),
        ("two_vessels", (0.1, 0.0, 0.0), None),
    ],
)
def test_distance_equals_the_closed_form(made, name, point, expected):
    value = float(made[name].sdf(point))
    if name == "two_vessels":
        left, right = -3.9 + 0.0, 3.9
        expected = min(abs(0.1 - left) - 4.0, abs(0.1 - right) - 2.8)
    assert value == pytest.approx(expected, abs=1e-9)


def test_ellipsoid_agrees_with_dense_sampling(made):
    rng = np.random.default_rng(0)
    u = rng.standard_normal((100_000, 3))
    surface = u / np.linalg.norm(u, axis=1, keepdims=True) * np.array([4.0, 5.6, 7.6])
    points = rng.uniform(-12, 12, (2000, 3))
    dense = cKDTree(surface).query(points)[0]
    error = dense - np.abs(made["ellipsoid"].sdf(points))
    assert error.min() > -1e-9  # no sample can be closer than the closest point
    assert np.percentile(error, 99) < 2e-2  # mean sample distance 0.06, squared over distance


@pytest.mark.parametrize("name", ["curved_tube", "stenosis", "aneurysm", "bifurcation", "arch"])
def test_no_wall_sample_is_closer_than_the_distance(monkeypatch, name):
    seen = []
    union = unions.union
    monkeypatch.setattr(problems, "union", lambda parts: seen.append(parts) or union(parts))
    phantom = phantoms.make(name, radius=4.0)
    cloud = np.concatenate([part.wall[0] for part in seen[0]])
    depth = np.min([part.distance(cloud)[0] for part in seen[0]], axis=0)
    cloud = np.concatenate([cloud[depth > -1e-7], phantom.crease_xyz])
    rng = np.random.default_rng(1)
    points = rng.uniform(phantom.low_xyz - 3, phantom.high_xyz + 3, (6000, 3))
    phi = np.abs(phantom.sdf(points))
    error = cKDTree(cloud).query(points)[0] - phi
    assert error.min() > -1e-6
    # Samples are 0.1 to 0.3 mm apart: at 1 mm their distance is too long by up to 0.02 mm.
    assert np.percentile(error[phi > 1.0], 99) < 0.02


@pytest.mark.parametrize("name", CLOSED_3D)
def test_volume_agrees_with_the_integral_over_the_lumen(made, name):
    phantom = made[name]
    grid = phantom.grid(1.0)
    u = phantom.phi(grid) / 0.8
    # A smoothed step: exact for offset surfaces up to second order, not across the 1 mm gap.
    inside = 0.5 - erf(u / np.sqrt(2)) / 2 - u * np.exp(-(u**2) / 2) / np.sqrt(8 * np.pi)
    assert phantom.volume_mm3 == pytest.approx(inside.sum() * grid.voxel_mm, rel=5e-3)


@pytest.mark.parametrize("name", ["torus", "helix", "stenosis", "aneurysm"])
def test_area_is_the_derivative_of_the_volume(made, name):
    phantom = made[name]
    grid = phantom.grid(0.8)
    phi = phantom.phi(grid)
    u = phi / 0.64
    # A Gaussian whose second moment vanishes: exact for offset surfaces up to second order.
    kernel = (1.5 - u**2 / 2) * np.exp(-(u**2) / 2) / np.sqrt(2 * np.pi) / 0.64
    area = kernel.sum() * grid.voxel_mm
    assert phantom.area_mm2 == pytest.approx(area, rel=6e-3)  # creases lose a little


@pytest.mark.parametrize(
    "name, options, area, volume",
    [
        ("sphere", {}, 4 * np.pi * 16, 4 / 3 * np.pi * 64),
        ("tube", {"length": 20.0}, 160 * np.pi + 64 * np.pi, 320 * np.pi + 256 / 3 * np.pi),
        ("circle", {}, 8 * np.pi, 16 * np.pi),
        ("ellipsoid", {"axes": (1, 1, 1)}, 4 * np.pi * 16, 4 / 3 * np.pi * 64),
        ("ellipse", {"axes": (1, 1)}, 8 * np.pi, 16 * np.pi),
    ],
)
def test_measures_equal_closed_forms(name, options, area, volume):
    phantom = phantoms.make(name, **options)
    assert phantom.area_mm2 == pytest.approx(area, rel=1e-6)
    assert phantom.volume_mm3 == pytest.approx(volume, rel=1e-6)


@pytest.mark.parametrize(
    "name, point, curvature",
    [
        ("sphere", (2.4, 3.2, 0.0), 0.5),
        ("tube", (4.0, 0.0, 1.0), 0.25),
        ("torus", (16.0, 0.0, 0.0), 1 / 4 + 1 / 16),
        ("torus", (8.0, 0.0, 0.0), 1 / 4 - 1 / 8),
        ("circle", (4.0, 0.0), 0.25),
        ("ellipse", (4.0, 0.0), 4.0 / 7.6**2),
        ("plane", (0.0, 0.0, 0.0), 0.0),
    ],
)
def test_curvature_is_div_n(made, name, point, curvature):
    assert made[name].curvature(point) == pytest.approx(curvature, abs=1e-5)


@pytest.mark.parametrize("name", ["sphere", "helix", "bifurcation", "ellipse"])
def test_grid_leaves_a_margin_and_cuts_no_wall(made, name):
    phantom = made[name]
    turn = TURN if phantom.ndim == 3 else np.eye(3)
    spacing = (1.4, 0.8, 1.0)[: phantom.ndim]
    phi = phantom.phi(phantom.grid(spacing, rotation=turn))
    faces = [np.take(phi, i, axis=a).min() for a in range(phi.ndim) for i in (0, -1)]
    assert min(faces) > 4 * min(spacing)


def test_oblique_anisotropic_grid_sees_the_same_shape(made):
    phantom = made["tapered_tube"]
    straight, turned = phantom.grid(0.7), phantom.grid((1.2, 0.6, 0.9), rotation=TURN)
    volumes = [np.count_nonzero(phantom.phi(g) < 0) * g.voxel_mm for g in (straight, turned)]
    assert volumes[0] == pytest.approx(volumes[1], rel=0.01)


def test_crease_points_lie_on_the_wall_and_are_found(made):
    phantom = made["bifurcation"]
    assert len(phantom.crease_xyz) > 100
    assert np.abs(phantom.sdf(phantom.crease_xyz)).max() < 1e-6
    assert phantom.near_crease(phantom.crease_xyz[:5] + 0.1, 0.2).all()
    assert not made["sphere"].near_crease(np.zeros((3, 3)), 5.0).any()


def test_a_shape_of_your_own_takes_one_function():
    box = phantoms.custom(lambda x: np.abs(x).max(axis=1) - 3.0, (-3, -3), (3, 3))
    assert box.phi(Grid.from_spacing((9, 9), 1.0, (-4, -4, 0)))[4, 4] == -3.0


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: phantoms.make("spere"), "sphere"),
        (lambda: phantoms.make("sphere", radius=-1), "positive"),
        (lambda: phantoms.make("helix", pich=2), "pitch"),
    ],
)
def test_wrong_names_and_options_are_named(call, words):
    with pytest.raises(ConfigError, match=words):
        call()
