import json

import h5py
import numpy as np
import pytest
from scipy.ndimage import binary_dilation
from scipy.spatial import cKDTree
from scipy.stats import norm

from vesselseg import phantoms, synth
from vesselseg.config import build
from vesselseg.errors import ConfigError, DataError
from vesselseg.grid import Grid
from vesselseg.synth import banded, forward, vascular
from vesselseg.synth.forward import ForwardModel, render, render_phantom

SMALL = synth.SynthSettings(shape=(40, 36, 44))
CLEAN = ForwardModel(noise="none", lumen=1.0, background=0.0)


def tube(radius, shape=(20, 20, 20), name="tilted_tube"):
    phantom = phantoms.make(name, radius=radius)
    return phantom, phantom.grid(1.0, shape=shape)


def inner(array, cut=4):
    return array[(slice(cut, -cut),) * array.ndim]


# Partial volume


@pytest.mark.parametrize(
    "radius, psf, limit",
    [(5.0, 0.45, 0.003), (5.0, 1.0, 0.002), (3.0, 0.7, 0.004), (2.0, 0.7, 0.007), (1.0, 0.7, 0.03)],
)
def test_partial_volume_agrees_with_sixfold_supersampling(radius, psf, limit):
    phantom, grid = tube(radius)
    exact = forward.phantom_occupancy(phantom, grid, psf, supersample=6)
    found = forward.occupancy(phantom.phi(grid), grid.spacing_mm, psf, supersample=3)
    total = np.sqrt(psf**2 + 1 / 12)
    planar = norm.cdf(-phantom.phi(grid) / total)
    error = np.abs(inner(found - exact)).max()
    # The cubic interpolant of a sampled distance is what is left; it grows as the tube thins.
    assert error < limit
    assert np.abs(inner(planar - exact)).max() > 5 * error  # what the planar profile would cost


@pytest.mark.parametrize("name", ["sphere", "tilted_tube"])
def test_half_level_of_the_blurred_wall_lies_inside(name):
    radius, psf = 6.0, 0.9
    phantom, grid = tube(radius, (30, 30, 30), name)
    image = forward.phantom_occupancy(phantom, grid, psf)
    total2 = psf**2 + 1 / 12
    curvature = {"sphere": 2, "tilted_tube": 1}[name] / radius
    corrected = norm.cdf(-(phantom.phi(grid) + total2 * curvature / 2) / np.sqrt(total2))
    # Third-order terms of the profile: (s/r)³ of the contrast.
    assert np.abs(inner(image - corrected)).max() < 2 * (np.sqrt(total2) / radius) ** 3
    volume, truth = image.sum(), np.count_nonzero(phantom.phi(grid) < 0)
    assert volume == pytest.approx(truth, rel=0.02)  # blurring conserves the lumen


def test_blocks_join_without_a_seam(monkeypatch):
    phantom, grid = tube(4.0, (40, 30, 50), "helix")
    phi = phantom.phi(grid)
    whole = forward.occupancy(phi, grid.spacing_mm, 0.8)
    monkeypatch.setattr(forward, "BLOCK", 16)
    # Up to the float32 rounding of the sums, whose order depends on the offset.
    np.testing.assert_allclose(forward.occupancy(phi, grid.spacing_mm, 0.8), whole, atol=2e-5)


def test_anisotropic_psf_blurs_its_own_axis():
    phantom = phantoms.make("plane", normal=(0, 0, 1))
    grid = phantom.grid((2.0, 1.0, 1.0), shape=(16, 8, 8))
    image = forward.occupancy(phantom.phi(grid), grid.spacing_mm, (1.5, 0.0, 0.0))[:, 4, 4]
    z = grid.world(np.stack([np.arange(16), np.full(16, 4), np.full(16, 4)], -1))[:, 2]
    exact = norm.cdf(-z / np.sqrt((1.5 * 2.0) ** 2 + 4 / 12))
    # The voxel box as a Gaussian of the same variance: good to 0.5 %. The ends are extrapolated.
    np.testing.assert_allclose(image[3:-3], exact[3:-3], atol=0.006)


def test_two_dimensional_occupancy_is_the_area_share():
    phantom, grid = tube(5.3, (20, 20), "circle")
    image = forward.occupancy(phantom.phi(grid), grid.spacing_mm, 0.0, supersample=4)
    assert image.sum() == pytest.approx(np.pi * 5.3**2, rel=2e-3)


# Noise and random fields


@pytest.mark.parametrize("shape", [(60, 100), (24, 40, 31)])
@pytest.mark.parametrize("length", [1.5, 6.0, 15.0])
def test_random_field_has_variance_one_and_its_covariance(shape, length):
    rng = np.random.default_rng(1)
    fields = np.stack([forward.gaussian_process(shape, length, rng) for _ in range(200)])
    spread = fields.var(axis=0, mean=np.zeros((1, *shape)))
    # 200 draws leave a standard error of 10 % a voxel, far less in the mean over voxels.
    assert spread.mean() == pytest.approx(1.0, abs=0.05)
    assert spread.min() > 0.55 and spread.max() < 1.6
    lag = round(length)
    pair = (fields[:, lag:] * fields[:, :-lag]).mean()
    assert pair == pytest.approx(np.exp(-0.5 * (lag / length) ** 2), abs=0.06)


def test_speed_fields_are_of_order_one():
    rng = np.random.default_rng(5)
    fields = [vascular.speed_field((20, 24, 28), rng) for _ in range(40)]
    assert 0.4 < np.mean([np.sqrt((f**2).mean()) for f in fields]) < 1.6


def test_rician_floor():
    noise = forward.add_noise(
        np.zeros((64, 64, 32), np.float32), 2.0, np.random.default_rng(0), kind="rician"
    )
    assert noise.mean() == pytest.approx(2.0 * np.sqrt(np.pi / 2), rel=0.02)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.8])
def test_noise_autocorrelation_equals_the_kernel(share):
    rng = np.random.default_rng(2)
    clean = np.zeros((64, 64, 64), np.float32)
    noise = forward.add_noise(clean, 3.0, rng, correlated=share, length=2.0)
    assert noise.std() == pytest.approx(3.0, rel=0.03)
    for lag in (1, 2, 4):
        found = (noise[lag:] * noise[:-lag]).mean() / 9.0
        # About 4000 independent patches: standard error 0.015.
        assert found == pytest.approx(share * np.exp(-0.5 * (lag / 2.0) ** 2), abs=0.05)


@pytest.mark.parametrize("make", [banded.cubic, banded.linear])
def test_interpolation_reproduces_linear_functions(make):
    positions = np.linspace(2.0, 12.0, 23)
    line = np.arange(16, dtype=np.float32)[:, None] * np.ones((1, 3), np.float32)
    found = banded.apply_axis(line, 0, make(positions))
    np.testing.assert_allclose(found[:, 1], positions, atol=1e-5)
    np.testing.assert_allclose(
        banded.apply_axis(np.ascontiguousarray(line.T), 1, make(positions))[1], positions, atol=1e-5
    )


# The forward model


def test_snr_is_contrast_over_noise():
    phantom, grid = tube(6.0, (32, 32, 32))
    model = ForwardModel(snr=5.0, lumen=300.0, background=100.0)
    volume = render(phantom.phi(grid), grid, model, 0)
    phi = phantom.phi(grid)
    assert volume.values[phi < -3].mean() == pytest.approx(300, abs=3)
    assert volume.values[phi > 3].mean() == pytest.approx(100, abs=3)
    assert volume.values[phi > 3].std() == pytest.approx(40, rel=0.05)


def test_render_from_samples_agrees_with_the_exact_phantom():
    phantom, grid = tube(4.0)
    sampled = render(phantom.phi(grid), grid, CLEAN, 0).values
    exact = render_phantom(phantom, grid, CLEAN, 0).values
    assert np.abs(inner(sampled - exact)).max() < 0.003  # cubic interpolation of the distance


def test_rendering_is_repeatable_and_depends_on_the_seed():
    phantom, grid = tube(4.0)
    phi = phantom.phi(grid)
    model = ForwardModel(noise="rician", correlated=0.5, bias=0.2, neighbours=2, dropout=0.5)
    first, again, other = (render(phi, grid, model, s).values for s in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.1


def test_thick_slices_average_along_the_first_axis():
    phantom = phantoms.make("sphere", radius=6.0)
    grid = phantom.grid(1.0, shape=(32, 32, 32))
    thin = render(phantom.phi(grid), grid, CLEAN, 0).values
    model = CLEAN.model_copy(update={"slice_factor": 4.0})
    thick = render(phantom.phi(grid), grid, model, 0).values
    steepness = [np.abs(np.diff(image, axis=a)).max() for image in (thin, thick) for a in (0, 2)]
    assert steepness[2] < 0.6 * steepness[0]
    assert steepness[3] > 0.9 * steepness[1]
    assert thick.sum() == pytest.approx(thin.sum(), rel=0.02)


def test_neighbours_never_cover_the_lumen():
    phantom, grid = tube(5.0)
    model = CLEAN.model_copy(update={"neighbours": 6})
    image = render(phantom.phi(grid), grid, model, 1).values
    deep = phantom.phi(grid) < -3
    np.testing.assert_allclose(image[deep], 1.0, atol=1e-3)
    assert image[phantom.phi(grid) > 3].max() > 0.25


@pytest.mark.parametrize(
    "call, fault",
    [
        (lambda g: render(np.zeros((3, 3, 3)), g, CLEAN, 0), DataError),
        (lambda g: render(np.full(g.shape_kji, np.nan), g, CLEAN, 0), DataError),
        (
            lambda g: render(np.ones(g.shape_kji), g, ForwardModel(psf_voxels=(1.0, 2.0)), 0),
            ConfigError,
        ),
    ],
)
def test_unfit_input_is_refused(call, fault):
    with pytest.raises(fault):
        call(Grid.from_spacing((5, 6, 7), 1.0))


# Random cases


@pytest.fixture(scope="module")
def drawn():
    return [synth.case(11, index, SMALL) for index in range(40)]


def test_a_case_is_a_pure_function_of_seed_and_index(drawn):
    synth.cases._geometry.cache_clear()
    again = synth.case(11, 7, SMALL)
    np.testing.assert_array_equal(again.image, drawn[7].image)
    np.testing.assert_array_equal(again.phi, drawn[7].phi)
    assert again.facts == drawn[7].facts
    assert np.abs(drawn[6].image - drawn[7].image).max() > 0
    np.testing.assert_array_equal(drawn[6].phi, drawn[7].phi)
    assert np.abs(drawn[8].phi - drawn[6].phi).max() > 0


def test_every_case_is_well_formed(drawn):
    for c in drawn:
        assert c.image.shape == (1, *SMALL.shape) and c.image.dtype == np.float32
        assert c.phi.dtype == np.float32 and c.centreline.dtype == np.uint8
        assert np.isfinite(c.image).all() and c.image.std() > 0
        assert np.abs(c.phi).max() <= 12
        assert not c.centreline[c.phi >= 0].any()
        json.dumps(c.facts)


def test_lumen_shares_are_those_of_vessels(drawn):
    shares = np.array([c.facts["lumen_share"] for c in drawn])
    assert (shares == [(c.phi < 0).mean() for c in drawn]).all()
    assert np.mean((shares == 0) | ((shares > 0.002) & (shares < 0.5))) > 0.95
    assert 0.01 < np.median(shares) < 0.15


def test_centreline_lies_deep_in_its_vessel(drawn):
    for c in drawn[::2]:
        if c.facts["shape"] == "empty":
            continue
        assert c.centreline.any()
        lumen = np.argwhere(c.phi < -3.5)  # thick vessels: their middle is marked
        if len(lumen):
            gap = cKDTree(np.argwhere(c.centreline)).query(lumen)[0]
            assert np.percentile(gap, 90) < -c.phi.min()


def test_distance_has_a_unit_gradient_after_the_deformation(drawn):
    checked = 0
    for c in drawn[::2]:
        if not c.facts.get("deformed"):
            continue
        sides = np.stack([np.diff(c.phi, axis=a, append=np.nan) for a in range(3)])
        other = np.stack([np.diff(c.phi, axis=a, prepend=np.nan) for a in range(3)])
        size = np.linalg.norm((sides + other) / 2, axis=0)
        # Away from the medial axis and creases, where the slope jumps between neighbours.
        kink = binary_dilation(np.abs(sides - other).max(0) > 0.35)
        near = (np.abs(c.phi) < 3) & ~kink & np.isfinite(size)
        low, high = np.percentile(size[near], [5, 95])
        assert low > 0.95 and high < 1.05, c.facts
        checked += 1
    assert checked > 5


def test_deformation_moves_the_wall_by_less_than_a_quarter_radius():
    rng = np.random.default_rng(4)
    segments = np.array([[-20.0, 24, 24, 70, 24, 24, 8, 8]])
    phi, radius = vascular.level_set(segments, (48, 48, 48))
    moved = vascular.signed_distance(vascular.deform(phi, radius, rng))
    wall = np.abs(moved) < 0.5
    shift = np.abs(phi[wall] - moved[wall])
    assert 0.02 < shift.max() < 0.25 * 8


def test_a_wall_that_leaves_the_band_is_deformed_all_the_same():
    """The level set of this case folds until its wall is a voxel from the rim of the band."""
    settings = synth.SynthSettings(shape=(96, 96, 96), radius=(6.0, 11.0))
    drawn = synth.case(14, 282, settings)
    slope = np.linalg.norm(np.gradient(drawn.phi), axis=0)[np.abs(drawn.phi) < 2]
    assert drawn.facts["deformed"] and 0.1 < drawn.facts["lumen_share"] < 0.45
    assert np.percentile(slope, 5) > 0.95 and np.percentile(slope, 95) < 1.05


def test_undeformed_phantom_distance_is_exact():
    phantom = phantoms.make("torus", radius=5.0, ring=2.2)
    grid = phantom.grid(1.0, shape=(40, 40, 40))
    exact = phantom.phi(grid)
    axis = grid.index(phantom.axis_xyz)
    following = np.roll(axis, -1, axis=0)
    width = np.full((len(axis), 2), 5.0)
    segments = np.concatenate([axis, following, width], axis=1)
    phi, _ = vascular.level_set(segments, grid.shape_kji)
    near = np.abs(exact) < 3
    assert np.abs(phi - exact)[near].max() < 0.002  # chords of 1/400 turn: sagitta 3e-4
    full = vascular.signed_distance(phi)
    assert np.percentile(np.abs(full - exact)[near], 99) < 0.003
    assert np.abs(full - exact)[near].max() < 0.1
    far = (exact > 3) & (exact < 11)
    assert np.abs(full - exact)[far].mean() < 0.25  # first-order sweeping


def test_held_out_cases_show_other_shapes():
    names = {
        synth.case(0, 2 * i, SMALL.model_copy(update={"family": f, "shapes": 1.0})).facts["shape"]
        for f in ("heldout",)
        for i in range(10)
    }
    assert names - {"empty"} <= set(vascular.HELD_OUT_SHAPES)
    assert not set(vascular.HELD_OUT_SHAPES) & set(vascular.TRAINING_SHAPES)


@pytest.mark.parametrize("shape", [(48, 64), (33, 40)])
def test_two_dimensional_cases(shape):
    settings = synth.SynthSettings(shape=shape, empty=0.0, channels=2)
    for index in range(6):
        c = synth.case(3, index, settings)
        assert c.image.shape == (2, *shape) and c.phi.shape == shape
        assert np.isfinite(c.image).all()


@pytest.mark.parametrize("shape", [(24, 30, 28), (30, 28)])
def test_straight_tubes_are_cylinders(shape):
    rng = np.random.default_rng(4)
    size = (0,) * (3 - len(shape)) + shape
    for _ in range(8):
        tubes = vascular.random_tubes(size, (2.0, 4.0), len(shape) == 2, rng)
        phi, _ = vascular.level_set(tubes, shape)
        points = np.indices(phi.shape).reshape(len(shape), -1).T
        points = np.pad(points, ((0, 0), (3 - len(shape), 0)))
        exact = np.full(len(points), np.inf)
        for tube in tubes:
            along = (tube[3:6] - tube[:3]) / np.linalg.norm(tube[3:6] - tube[:3])
            across = np.linalg.norm(np.cross(points - tube[:3], along), axis=1)
            exact = np.minimum(exact, across - tube[6])
        exact = exact.reshape(shape)
        near = exact < vascular.MARGIN - 0.1
        assert near.any() and tubes[:, 6].min() >= 2.0 and tubes[:, 6].max() <= 4.0
        # float32 of squares of some hundred voxels: 1e-4
        np.testing.assert_allclose(phi[near], exact[near], atol=1e-3)
    settings = SMALL.model_copy(update={"straight": 1.0, "empty": 0.0})
    assert synth.case(0, 0, settings).facts["shape"] == "straight"


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_plain_image_has_one_blood_and_one_ground(share):
    changes = {"plain": share, "empty": 0.0, "distractors": 0, "snr": (1e5, 1e5), "anisotropy": 1.0}
    settings = SMALL.model_copy(update=changes | {"flow": 0.0, "easy": 0.0, "radius": (6.0, 8.0)})
    case = synth.case(2, 0, settings)
    assert case.facts["plain"] == bool(share)
    blood, ground = (case.image[0][side] for side in (case.phi < -5, case.phi > 5))
    spread = (np.ptp(blood) + np.ptp(ground)) / abs(blood.mean() - ground.mean())
    assert (spread < 1e-3) == bool(share)  # the noise is 1e-5


def test_a_kind_of_which_there_is_none_leaves_the_other_cases_as_they_are():
    rng = np.random.default_rng(0)
    before = rng.bit_generator.state
    assert not synth.cases._among(0.0, rng) and rng.bit_generator.state == before
    assert synth.cases._among(1.0, rng) and rng.bit_generator.state != before


def test_snr_range_can_be_one_number():
    settings = SMALL.model_copy(update={"snr": (6.0, 6.0), "easy": 0.0})
    assert synth.case(0, 0, settings).facts["snr"] == pytest.approx(6.0)


@pytest.mark.parametrize(
    "tree, words",
    [
        ({"shape": [64]}, "2 or 3 numbers"),
        ({"snr": [0.0, 3.0]}, "low"),
        ({"chanels": 1}, "channels"),
    ],
)
def test_bad_settings_are_named(tree, words):
    with pytest.raises(ConfigError, match=words):
        build(synth.SynthSettings, tree)


def test_dataset_has_equal_names_and_a_mask_of_negative_distance(tmp_path):
    synth.write_dataset(tmp_path / "set", 2, SMALL, 1)
    facts = [json.loads(s) for s in (tmp_path / "set/facts.jsonl").read_text().splitlines()]
    assert [f["file"] for f in facts] == ["0000.npy", "0001.npy"]
    for f in facts:
        parts = {n: np.load(tmp_path / "set" / n / f["file"]) for n in ("magn", "mask", "sdf")}
        np.testing.assert_array_equal(parts["mask"], parts["sdf"] < 0)
        assert parts["magn"].shape == SMALL.shape
    assert (tmp_path / "set/preview.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ConfigError, match="exists"):
        synth.write_dataset(tmp_path / "set", 1, SMALL, 1)


def test_dataset_of_two_halves_shares_no_geometry_and_is_the_same_in_hdf5(tmp_path):
    flat = synth.SynthSettings(shape=(32, 40))
    for kind in ("npy", "h5"):
        synth.write_dataset(tmp_path / kind, 6, flat, 2, validation=2, kind=kind)
    facts = [json.loads(s) for s in (tmp_path / "h5/facts.jsonl").read_text().splitlines()]
    assert [f["folder"] for f in facts] == ["train"] * 4 + ["val"] * 2
    for f in facts:
        for part in ("magn", "mask", "sdf", "centreline"):
            with h5py.File(tmp_path / "h5" / f["folder"] / part / f["file"]) as file:
                values = file[part][()]
            other = tmp_path / "npy" / f["folder"] / part / f["file"].replace("h5", "npy")
            np.testing.assert_array_equal(values, np.load(other))
    first = [synth.case(2, i, flat) for i in (0, 4)]
    assert np.abs(first[0].phi - first[1].phi).max() > 0
    for bad in ((5, 2), (6, 1), (2, 2)):
        with pytest.raises(ConfigError, match="number of cases"):
            synth.write_dataset(tmp_path / "bad", bad[0], flat, validation=bad[1])
    assert not (tmp_path / "bad").exists()


# Shapes and images of other kinds


def slab(shape, rng):
    """A shape of a user: not a distance, as its slope is two."""
    z = np.arange(shape[0]).reshape(-1, *(1,) * (len(shape) - 1)) + np.zeros(shape)
    return 2.0 * (np.abs(z - rng.uniform(14, 18)) - 5.0)


@pytest.mark.parametrize("shape", [(32, 24, 28), (32, 40)])
def test_any_shape_becomes_a_distance_with_an_axis(shape):
    settings = synth.SynthSettings(shape=shape, deformed=0.0)
    drawn = [synth.case(4, index, settings, slab) for index in (0, 1, 2)]
    for c in drawn:
        assert c.facts["shape"] == "slab"
        middle = np.argmin(c.phi[(slice(None), *(n // 2 for n in shape[1:]))])
        away = np.abs(np.arange(shape[0]) - middle)
        column = c.phi[(slice(None), *(n // 2 for n in shape[1:]))]
        near = np.abs(column) < 3
        # The middle plane is known to half a voxel.
        np.testing.assert_allclose(column[near], (away - 5.0)[near], atol=0.51)
        assert c.centreline.any() and not c.centreline[c.phi >= 0].any()
    np.testing.assert_array_equal(drawn[0].phi, drawn[1].phi)
    assert np.abs(drawn[2].phi - drawn[0].phi).max() > 0.01


@pytest.mark.parametrize("bad", [np.ones((3, 3)), np.full(SMALL.shape, np.nan)])
def test_a_bad_shape_is_refused(bad):
    with pytest.raises(DataError, match="bad shape"):
        synth.case(0, 0, SMALL, lambda shape, rng: bad)


def test_a_share_of_the_images_shows_flow():
    flow = SMALL.model_copy(update={"flow": 1.0, "empty": 0.0})
    kinds = [synth.case(6, index, flow).facts["image"] for index in range(12)]
    assert set(kinds) == {"speed", "angiogram"}
    none = SMALL.model_copy(update={"flow": 0.0})
    assert {synth.case(6, index, none).facts["image"] for index in range(6)} == {"magnitude"}


def test_speed_wraps_above_venc_and_is_noisy_where_the_magnitude_is_dark():
    axis = np.array([[-20.0, 24, 24, 70, 24, 24, 9, 9]])
    phi = vascular.level_set(axis, (40, 48, 48))[0]
    geometry = synth.cases.Geometry(phi, (phi < 0).astype(np.uint8), {"radius": 9.0})
    magnitude = np.where(phi < 0, 1.0, 0.05).astype(np.float32)
    draws = [
        synth.cases._speed_channel(geometry, magnitude, 0.5, 30.0, np.random.default_rng(seed))
        for seed in range(8)
    ]
    open_air = [d for d in draws if (d[phi > 4] > 0).any()]  # not masked
    assert 0 < len(open_air) < 8
    deep, air = (phi < -2)[1:], (phi > 4)[1:]
    for speed in open_air:
        step = np.abs(np.diff(speed, axis=0))
        # The magnitude is twenty times darker outside; noise there is 0.2 venc, venc >= 0.8.
        assert np.median(step[air]) > 0.05 and np.median(step[air]) > 5 * np.median(step[deep])
        assert speed.max() < 2.0 * 3**0.5 * 1.01  # three components, each at most venc
