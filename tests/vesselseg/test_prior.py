"""The prior of exact shapes: every stored field against its formula, and the way to disk."""

import json
import subprocess
import sys

import numpy as np
import prior_builders as make
import pytest

from vesselseg.errors import ConfigError, DataError, NoInterfaceError
from vesselseg.fields import LevelSet, Probability, StopReason
from vesselseg.grid import Grid
from vesselseg.prior import fields
from vesselseg.prior.boundary import BoundaryPrior, PriorSettings, without_paths
from vesselseg.prior.check import check
from vesselseg.prior.file import content_digest, decode
from vesselseg.solvers import viscous_distance

RIGHT = make.oblique((0.9, 1.0, 1.25))
LEFT = make.oblique((0.9, 1.0, 1.25), left_handed=True)
UNIT = np.eye(4)
SHAPE = (24, 26, 30)


def failures(prior):
    return [f for f in check(prior) if f.level == "error" and not f.ok]


def at_wall(prior):
    return np.abs(prior.phi_mean_m) < 1e-3 * prior.grid.h_max


@pytest.mark.parametrize("affine", [UNIT, RIGHT, LEFT], ids=["unit", "oblique", "left-handed"])
def test_sphere_has_the_fields_of_a_sphere(affine):
    grid = Grid(SHAPE, affine)
    radius = 6.0
    prior = make.prior(make.sphere(grid, radius), grid)
    assert failures(prior) == []
    centre, h = make.middle(grid) * 1e-3, grid.h_max * 1e-3
    out = prior.vertices_m - centre
    distance = np.linalg.norm(out, axis=1)
    # The triangles, not their corners, lie on the wall: corners stand out by the sagitta of a
    # triangle of edge e, e²/8R in the mean, and no edge is much longer than a voxel.
    outside = distance - radius * 1e-3
    assert outside.min() > 0.0 and outside.max() < (1.3 * h) ** 2 / (8 * radius * 1e-3)
    volume = 4 / 3 * np.pi * (radius * 1e-3) ** 3
    assert prior.attributes["/surface"]["volume_m3"] == pytest.approx(volume, rel=1e-3)
    normal = prior.arrays["/surface/vertex_normal"]
    assert (np.sum(normal * out, axis=1) / distance).min() > np.cos(np.radians(1.5))
    curvature = prior.arrays["/surface/vertex_curvature"]
    assert np.abs(curvature * radius * 1e-3 / 2 - 1).max() < 0.05  # second differences: O(h²/R²)
    exact = 4 / 3 * np.pi * (radius * 1e-3) ** 3
    assert prior.attributes["/geometry"]["volume_m3"] == pytest.approx(exact, rel=3e-3)
    corners = prior.vertices_m[prior.faces]
    areas = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    assert np.sum(areas * (corners.mean(axis=1) - centre), axis=1).min() > 0.0  # outward, each
    assert np.allclose(prior.vertex_std_m, 0.2 * h)


def test_lengths_in_millimetres_are_those_in_metres_times_a_thousand():
    prior = make.prior(make.sphere(Grid(SHAPE, RIGHT), 6.0), Grid(SHAPE, RIGHT))
    for name in ("phi_mean", "phi_std", "vertices", "vertex_std"):
        metres, found = getattr(prior, f"{name}_m"), getattr(prior, f"{name}_mm")
        assert found.dtype == np.float64
        assert found == pytest.approx(1e3 * metres.astype(float), rel=1e-12)
    assert prior.step_rms_mm == pytest.approx(1e3 * prior.arrays["/quality/step_rms"].astype(float))


def test_writing_tells_the_digest_that_reading_finds(tmp_path):
    prior = make.prior(make.sphere(Grid(SHAPE, RIGHT), 6.0), Grid(SHAPE, RIGHT))
    told = prior.write(tmp_path / "a.h5")
    assert told == BoundaryPrior.read(tmp_path / "a.h5").attributes["/"]["content_sha256"]
    assert len(told) == 64


def test_voxel_normals_point_out_in_the_world():
    grid = Grid(SHAPE, LEFT)
    prior = make.prior(make.sphere(grid, 6.0), grid)
    near = at_wall(prior)
    out = (make.points(grid) - make.middle(grid))[near]
    out /= np.linalg.norm(out, axis=1, keepdims=True)
    assert np.sum(prior.arrays["/geometry/normal"][near] * out, axis=1).min() > 0.999
    far = np.abs(prior.phi_mean_m) > 5.01e-3 * grid.h_max
    assert not prior.arrays["/geometry/normal"][far].any()


def test_torus_is_a_torus():
    grid = Grid.from_spacing((18, 30, 30), 1.0)
    prior = make.prior(make.torus(grid, 8.0, 4.0), grid)
    assert failures(prior) == []
    lumen = prior.attributes["/geometry"]
    assert (lumen["n_components"], lumen["euler"], lumen["genus"]) == (1, 0, 1)
    assert prior.attributes["/surface"]["euler"] == 0
    exact = 2 * np.pi**2 * 8.0 * 4.0**2 * 1e-9
    assert lumen["volume_m3"] == pytest.approx(exact, rel=3e-3)
    x, y, z = (prior.vertices_m * 1e3 - make.middle(grid)).T
    # corners stand out by the sagitta of the triangles, at most e²/8r with e = 1.1 voxels
    assert np.abs(np.hypot(np.hypot(x, y) - 8.0, z) - 4.0).max() < 0.04
    assert prior.attributes["/surface"]["volume_m3"] == pytest.approx(exact, rel=1e-3)


@pytest.mark.parametrize("radius", [2.5, 4.0, 6.0])
def test_volume_fractions_sum_to_the_volume(radius):
    """Curvature is accounted for: planes alone are off by h²/4R², 4 % at the smallest radius."""
    grid = Grid.from_spacing((22, 22, 22), (1.2, 1.0, 0.8))
    prior = make.prior(make.sphere(grid, radius), grid)
    total = prior.arrays["/geometry/volume_fraction"].sum(dtype=float) * grid.voxel_mm
    assert total == pytest.approx(4 / 3 * np.pi * radius**3, rel=5e-3)


def test_lumen_without_a_flat_end_is_closed_at_the_box():
    """A ball that the box cuts through has no axis there, hence no opening."""
    grid = Grid.from_spacing((24, 26, 16), 1.0)
    ball = np.linalg.norm(make.points(grid) - [18.2, 12.1, 11.3], axis=-1) - 8.0
    prior = make.prior(ball, grid)
    assert failures(prior) == []
    label = prior.arrays["/surface/face_label"]
    corners = prior.vertices_m[prior.faces[label == 0]] * 1e3
    assert len(corners) and np.isclose(corners[..., 0], 15.5).all()
    assert len(prior.openings) == 0
    assert any("leaves the field of view" in w for w in prior.warnings)


def test_components_are_ordered_by_volume():
    grid = Grid.from_spacing((20, 20, 44), 1.0)
    centre = make.middle(grid)
    shift = np.array([11.0, 0, 0])
    small = np.linalg.norm(make.points(grid) - centre + shift, axis=-1) - 4.0
    large = np.linalg.norm(make.points(grid) - centre - shift, axis=-1) - 6.0
    prior = make.prior(np.minimum(small, large), grid)
    component = prior.arrays["/geometry/component"]
    assert failures(prior) == []
    assert set(component[large < 0]) == {1} and set(component[small < 0]) == {2}
    assert prior.attributes["/geometry"]["n_components"] == 2
    point = prior.attributes["/geometry"]["interior_point_m"] * 1e3
    assert np.linalg.norm(point - centre - shift) < 1.0


def test_circle_works_in_two_dimensions(tmp_path):
    affine = make.oblique((0.8, 1.0, 3.0), left_handed=True)
    grid = Grid((30, 34), affine)
    prior = make.prior(make.sphere(grid, 6.0), grid)
    assert failures(prior) == []
    assert prior.attributes["/"]["geometry_kind"] == "planar2d"
    assert prior.attributes["/geometry"]["volume_m3"] == pytest.approx(np.pi * 36e-6, rel=3e-3)
    out = prior.vertices_m - make.middle(grid) * 1e-3
    assert np.abs(np.linalg.norm(out, axis=1) - 6e-3).max() < 2e-5
    tangent = np.diff(prior.vertices_m[prior.faces], axis=1)[:, 0]
    normal = np.cross(tangent, affine[:3, 2])
    assert np.sum(normal * out[prior.faces[:, 0]], axis=1).min() > 0.0
    curvature = prior.arrays["/surface/vertex_curvature"]
    assert np.abs(curvature * 6e-3 - 1).max() < 0.05
    prior.write(tmp_path / "circle.prior.h5")
    again = BoundaryPrior.read(tmp_path / "circle.prior.h5")
    assert again.to_bytes() == prior.to_bytes()
    assert again.sample(2, 0).shape == (2, 30, 34)


def test_written_read_written_is_byte_identical(tmp_path):
    """P-29."""
    grid = Grid(SHAPE, LEFT)
    prior = make.prior(make.sphere(grid, 6.0), grid, provenance={"seed": 3})
    path = tmp_path / "a.prior.h5"
    prior.write(path)
    again = BoundaryPrior.read(path)
    again.write(tmp_path / "b.prior.h5")
    assert path.read_bytes() == (tmp_path / "b.prior.h5").read_bytes()
    for name, array in prior.arrays.items():
        assert np.array_equal(again.arrays[name], array), name
    for name, values in prior.attributes.items():
        for key, value in values.items():
            assert np.array_equal(again.attributes[name][key], value) or key == "content_sha256"
    assert again.grid.mismatch_mm(grid) < 1e-12
    assert again.provenance["seed"] == 3


def test_only_volatile_facts_leave_the_content_digest_alone():
    grid = Grid.from_spacing((20, 20, 20), 1.0)
    phi = make.sphere(grid, 5.0)
    volume, probability = make.scan(phi, grid)

    def digest(volatile, provenance=None):
        prior = BoundaryPrior.from_refinement(
            make.refinement(phi, grid), volume, probability,
            volatile=volatile, provenance=provenance,
        )  # fmt: skip
        return str(decode(prior.to_bytes())[1]["/"]["content_sha256"])

    assert digest({"host": "a"}) == digest({"host": "another", "seconds": 3.0}) == digest(None)
    assert digest(None) != digest(None, {"seed": 1})


def test_fresh_process_writes_the_same_bytes(tmp_path):
    """P-27: another hash seed, another process."""
    script = "import sys, prior_builders as b; sys.stdout.buffer.write(b.small().to_bytes())"
    result = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        check=True,
        env={"PYTHONHASHSEED": "123", "PYTHONPATH": "tests/bad", "OMP_NUM_THREADS": "1"},
    )
    assert result.stdout == make.small().to_bytes()


@pytest.mark.parametrize(("axes", "flips"), make.LAYOUTS, ids=str)
def test_reoriented_scan_gives_the_same_surface(axes, flips):
    """P-12: permuted and flipped arrays with the affine that says so."""
    grid = Grid(SHAPE, RIGHT)
    phi = make.sphere(grid, 6.0).astype(np.float32)
    first = make.prior(phi, grid).vertices_m
    second = make.prior(*make.relaid(phi, grid, axes, flips)).vertices_m
    assert first.shape == second.shape
    first, second = (np.array(sorted(map(tuple, v.round(12)))) for v in (first, second))
    assert np.abs(first - second).max() < 1e-9  # m: 1e-6 mm


def test_prior_is_in_metres():
    """P-31: a scan ten times as large gives the same prior, ten times as large."""
    one, ten = (Grid.from_spacing((20, 20, 20), h) for h in (0.5, 5.0))
    first, second = (make.prior(make.sphere(g, 10 * g.h_min), g) for g in (one, ten))
    # curvature is a second difference of float32: rounding of phi grows by (phi / h)²
    for path, power, rounding in (
        ("/surface/vertices", 1, 1e-6),
        ("/geometry/phi_mean", 1, 1e-6),
        ("/geometry/curvature", -1, 1e-4),
    ):
        a, b = (p.arrays[path].astype(float) for p in (first, second))
        assert np.abs(b / 10.0**power - a).max() <= rounding * np.abs(a).max(), path
    assert first.vertices_m.max() < 0.011  # 20 voxels of 0.5 mm


def test_draws_have_the_stored_spread_and_are_repeatable():
    prior = make.small()
    draws = prior.sample(150, seed=5)
    assert draws.shape == (150, 20, 20, 20)
    assert np.array_equal(draws[:2], prior.sample(2, seed=5))
    spread = np.sqrt(np.mean(np.square(draws - prior.phi_mean_m, dtype=float), axis=0))
    ratio = float(np.mean(spread / prior.phi_std_m))
    assert abs(ratio - 1) < 0.05  # standard error 1/sqrt(2 · 150 · about 20 independent patches)
    with pytest.raises(ConfigError, match="number of draws"):
        prior.sample(0, seed=1)


def test_log_density_of_draws_is_that_of_white_noise():
    prior = make.small()
    assert prior.log_density(prior.phi_mean_m) == 0.0
    voxels = prior.phi_mean_m.size
    values = [prior.log_density(draw) for draw in prior.sample(5, seed=2)]
    # -2 log p is chi-squared: mean = voxels, relative s.d. sqrt(2 / voxels) = 1.6 %; float32
    # rounding of the draws is amplified by A^(m/2), hence the wider bound
    assert np.allclose(values, -voxels / 2, rtol=0.1)
    with pytest.raises(DataError):
        prior.log_density(prior.phi_mean_m[:-1])


def test_estimates_and_notes_reach_the_file():
    grid = Grid.from_spacing((20, 20, 20), 1.0)
    prior = make.prior(
        make.sphere(grid, 5.0),
        grid,
        provenance={"calibration_set": "twenty vessels"},
        estimates={
            "bias_mm": 0.02, "bias_std_mm": 0.01, "coverage_2sigma": 0.95, "calibrated": 1.0,
        },
        notes=("the mean of 12 frames",),
    )  # fmt: skip
    phi, std = (prior.attributes[f"/geometry/phi_{n}"] for n in ("mean", "std"))
    assert (phi["bias_m"], phi["bias_std_m"]) == pytest.approx((2e-5, 1e-5))
    assert (std["coverage_2sigma"], std["calibrated"]) == (0.95, 1)
    assert std["calibration_set"] == "twenty vessels"
    assert "the mean of 12 frames" in prior.warnings
    assert not any("calibrated" in w for w in prior.warnings)
    assert np.allclose(prior.arrays["/quality/step_rms"], [3e-4, 1e-5])
    assert all(f.ok for f in check(prior) if f.id == 13)


def test_evidence_says_where_it_comes_from():
    grid = Grid.from_spacing((20, 20, 20), 1.0)
    phi = make.sphere(grid, 5.0)
    volume, network = make.scan(phi, grid)
    mask = Probability((phi < 0).astype(np.float32), grid, "start:mask.nii", soft=False)
    start = Probability(network.values, grid, "start:p.nii")
    for evidence, source in (
        (network, "network"),
        (start, "start"),
        (mask, "derived"),
        (None, "derived"),
    ):
        prior = BoundaryPrior.from_refinement(make.refinement(phi, grid), volume, evidence)
        assert prior.attributes["/images/probability"]["source"] == source
        assert failures(prior) == []


def test_the_spread_of_the_probability_is_that_of_a_wall_that_moves():
    """To first order in the wall's s.d., a tenth of the width of the step: 2 % are left."""
    grid = Grid(SHAPE, LEFT)
    phi, sigma = make.sphere(grid, 6.0), 0.05
    p, width = lambda away: 1.0 / (1.0 + np.exp(2.0 * away)), 2.0
    sure = np.full(SHAPE, sigma)
    evidence = Probability(p(phi), grid, "network-of-the-test", sigma_mm=sure)
    volume, _ = make.scan(phi, grid)
    prior = BoundaryPrior.from_refinement(make.refinement(phi, grid), volume, evidence)
    moved = np.array([p(phi + sigma * x) for x in np.linspace(-3, 3, 61)])
    weight = np.exp(-0.5 * np.linspace(-3, 3, 61) ** 2)
    spread = np.sqrt(np.average((moved - np.average(moved, 0, weight)) ** 2, 0, weight))
    near = np.abs(phi) < width
    found = prior.arrays["/images/probability_std"]
    assert np.abs(found / spread - 1)[near].max() < 0.03
    wide = Probability(p(phi), grid, "network-of-the-test", sigma_mm=100.0 * sure)
    prior = BoundaryPrior.from_refinement(make.refinement(phi, grid), volume, wide)
    most = np.sqrt(p(phi) * (1 - p(phi)))
    assert (prior.arrays["/images/probability_std"] <= most + 1e-6).all()
    assert "/images/probability_std" not in make.small().arrays  # its evidence states none


def test_the_viscous_distance_is_that_of_the_solver_and_can_be_left_out():
    """P-31: metres are millimetres times a thousandth, to the rounding of float32."""
    grid = Grid((20, 22, 24), LEFT)
    phi = make.sphere(grid, 5.0)
    for epsilon, settings in ((0.625, {}), (0.3, {"viscous_mm": 0.3})):
        prior = make.prior(phi, grid, settings=PriorSettings(**settings))
        stored = prior.attributes["/geometry/phi_viscous"]
        assert (stored["epsilon_m"], stored["pinned"]) == (pytest.approx(epsilon * 1e-3), 1)
        found = 1e3 * prior.arrays["/geometry/phi_viscous"].astype(float)
        band = 5 * grid.h_max
        exact = viscous_distance(prior.phi_mean_mm, grid.spacing_mm, epsilon, band_mm=band)
        assert np.abs(found - exact).max() < 1e-4
        deepest = prior.phi_mean_mm.argmin()
        assert found.flat[deepest] > prior.phi_mean_mm.min() + 0.5 * epsilon  # the peak is round
    none = make.prior(phi, grid, settings=PriorSettings(viscous_mm=0.0))
    assert "/geometry/phi_viscous" not in none.arrays
    assert failures(none) == []


@pytest.mark.parametrize("affine", [UNIT, LEFT], ids=["unit", "oblique"])
def test_gaussian_curvature_is_the_product_of_the_principal_ones(affine):
    """Of the level set through the voxel, by second differences: O(h²) of its radius."""
    grid = Grid((26, 34, 40), affine)
    x, y, z = np.moveaxis(make.points(grid) - make.middle(grid), -1, 0)
    ball, ring = np.sqrt(x * x + y * y + z * z), np.hypot(x, y)
    tube = make.tube(grid, 6.0, affine[:3, 2] + 0.3 * affine[:3, 1])
    away = np.hypot(ring - 11.0, z)  # from the circle in the middle of a torus
    across = (ring - 11.0) / away  # the cosine of the angle to the outside
    shapes = {
        "ball": (ball - 7.0, 1.0 / ball**2),
        "tube": (tube, np.zeros_like(tube)),
        "torus": (away - 5.0, across / (away * ring)),
    }
    for name, (phi, exact) in shapes.items():
        arrays, _ = fields.lumen(phi.astype(np.float32) * np.float32(1e-3), _metres(affine), 5e-3)
        found = 1e-6 * arrays["/geometry/curvature_gauss"]
        near = np.abs(phi) < grid.h_max
        near &= np.pad(np.ones([n - 4 for n in grid.shape_kji], dtype=bool), 2)
        error = np.abs(found - exact)[near]
        assert error.mean() < 0.02 / 25 and error.max() < 0.1 / 25, name
        assert not found[np.abs(phi) > 5.01].any()
    inner = near & (across < -0.3)
    assert (found[inner] < 0).all() and (found[near & (across > 0.3)] > 0).all()


def _metres(affine):
    return affine * np.array([[1e-3], [1e-3], [1e-3], [1.0]])


def test_correlation_length_is_at_most_half_the_smallest_radius():
    grid = Grid.from_spacing((20, 20, 28), 1.0)
    wide, thin = (make.prior(make.tube(grid, r, (1, 0, 0)), grid) for r in (6.0, 2.5))
    assert wide.attributes["/geometry/covariance"]["ell_m"] == pytest.approx(2e-3)
    assert 0.75e-3 < thin.attributes["/geometry/covariance"]["ell_m"] <= 1.25e-3
    given = make.prior(
        make.tube(grid, 6.0, (1, 0, 0)), grid, settings=PriorSettings(ell_mm=0.7, m=2)
    )
    stored = given.attributes["/geometry/covariance"]
    assert (stored["ell_m"], stored["m"]) == (pytest.approx(7e-4), 2)


def test_provenance_holds_no_path_of_the_machine():
    grid = Grid.from_spacing((20, 20, 20), 1.0)
    facts = {
        "weights": "/home/someone/nets/best.safetensors",
        "text": "read from '/data/a b/scan.nii.gz', then C:\\Users\\me\\x.nii",
        "rate": "3 m/s, 1/2",
        "nested": [{"cache": "/var/cache/"}],
        "bad": float("nan"),
        "count": np.int64(3),
    }
    prior = make.prior(make.sphere(grid, 5.0), grid, provenance=facts)
    stored = prior.provenance
    assert stored["weights"] == "best.safetensors"
    assert "/data" not in stored["text"] and "Users" not in stored["text"]
    assert stored["rate"] == "3 m/s, 1/2"
    assert (stored["nested"], stored["bad"], stored["count"]) == ([{"cache": "cache"}], "nan", 3)
    assert json.dumps(without_paths(stored)) == json.dumps(stored)
    assert failures(prior) == []


def faulty(case):
    grid = Grid.from_spacing((20, 20, 20), 1.0)
    phi = make.sphere(grid, 5.0)
    other, thin = Grid.from_spacing((20, 20, 20), 1.1), Grid.from_spacing((1, 20, 20), 1.0)
    specks = np.where((np.indices(phi.shape) % 3 == 0).all(axis=0), -0.5, 0.5)
    return {
        "grids": (make.refinement(phi, grid), make.scan(phi, other)[0]),
        "band": (make.refinement(phi, grid, band_voxels=4.0), make.scan(phi, grid)[0]),
        "empty": (make.refinement(np.full_like(phi, 5.0), grid), make.scan(phi, grid)[0]),
        "full": (make.refinement(np.full_like(phi, -5.0), grid), make.scan(phi, grid)[0]),
        "thin": (make.refinement(phi[:1], thin), make.scan(phi[:1], thin)[0]),
        "specks": (make.refinement(specks, grid), make.scan(phi, grid)[0]),
    }[case]


@pytest.mark.parametrize(
    ("case", "error", "words"),
    [
        ("grids", DataError, "different grids"),
        ("band", DataError, "band too narrow"),
        ("empty", NoInterfaceError, "no wall"),
        ("full", NoInterfaceError, "no wall"),
        ("thin", DataError, "too thin"),
        ("specks", DataError, "too many lumen components"),
    ],
)
def test_unusable_refinement_is_refused(case, error, words):
    wall, volume = faulty(case)
    with pytest.raises(error, match=words):
        BoundaryPrior.from_refinement(wall, volume)


def test_contradictory_prior_is_not_written(tmp_path):
    grid = Grid.from_spacing((20, 20, 20), 1.0)
    phi = 0.3 * make.sphere(grid, 5.0)  # no distance
    prior = make.prior(phi, grid)
    with pytest.raises(DataError, match="not a signed distance"):
        prior.write(tmp_path / "x.prior.h5")
    assert list(tmp_path.iterdir()) == []


def test_existing_file_is_kept_unless_told_otherwise(tmp_path):
    path = tmp_path / "x.prior.h5"
    path.write_text("mine")
    with pytest.raises(ConfigError):
        make.small().write(path)
    assert path.read_text() == "mine"
    make.small().write(path, overwrite=True)
    assert BoundaryPrior.read(path).warnings == make.small().warnings


def test_unfinished_refinement_is_flagged():
    grid = Grid.from_spacing((20, 20, 20), 1.0)
    phi = make.sphere(grid, 5.0)
    volume, probability = make.scan(phi, grid)
    wall = make.refinement(phi, grid)
    object.__setattr__(wall, "reason", StopReason.STEP_LIMIT)
    prior = BoundaryPrior.from_refinement(wall, volume, probability)
    assert prior.quality["converged"] == 0
    assert any("did not converge" in w for w in prior.warnings)


def test_arrays_of_a_prior_are_read_only():
    with pytest.raises(ValueError, match="read-only"):
        make.small().phi_mean_m[0, 0, 0] = 1.0


def test_unclamped_level_set_gives_the_clamped_prior():
    grid = Grid.from_spacing((20, 20, 20), 1.0)
    phi = make.sphere(grid, 5.0)
    volume, probability = make.scan(phi, grid)
    wall = make.refinement(phi, grid)
    object.__setattr__(wall, "level_set", LevelSet(phi, grid, 5.0))
    prior = BoundaryPrior.from_refinement(wall, volume, probability)
    assert np.array_equal(prior.phi_mean_m, make.small().phi_mean_m)


def test_content_digest_is_that_of_the_documentation():
    """It is computed on the file: any reader of HDF5 can compute it."""
    import io

    import h5py

    data = make.small().to_bytes()
    with h5py.File(io.BytesIO(data), "r") as file:
        assert content_digest(file) == file.attrs["content_sha256"].decode()
