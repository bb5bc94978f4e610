"""Measured velocity: what is read, what is refused, and the flow that comes out of a phantom."""

import functools
from dataclasses import replace

import h5py
import nibabel as nib
import numpy as np
import prior_builders as make
import pytest

from vesselseg import phantoms
from vesselseg.config import resolve
from vesselseg.errors import ConfigError, DataError
from vesselseg.fields import LevelSet, Refinement, StopReason
from vesselseg.flow import Flow, FlowSettings, averages, corrected, in_world, parse_speed, sigma_u
from vesselseg.grid import Grid
from vesselseg.io import read_flow, read_volume
from vesselseg.pipeline import PipelineConfig, build_prior, shown, speed
from vesselseg.prior.boundary import BoundaryPrior
from vesselseg.prior.check import check
from vesselseg.prior.fields import traction_scale
from vesselseg.prior.file import decode
from vesselseg.prior.page import page
from vesselseg.solvers.refine import refine
from vesselseg.solvers.settings import RefineSettings
from vesselseg.synth.flow_mri import FlowModel, flow_scan

VENC = 1.2


@functools.cache
def tube_scan(snr=8.0, venc=VENC, seeds=1):
    shape = phantoms.make("tilted_tube", radius=4.0)
    grid = shape.grid(1.0, shape=(26, 26, 26))
    q = 0.4 * np.pi * 16e-6  # 0.4 m/s on average, 0.8 m/s at most
    model = FlowModel(snr=snr, venc_ms=venc)
    scans = flow_scan(shape, grid, np.full(len(shape.axis_xyz), q), model, list(range(seeds)))
    return shape, grid, q, scans


def refined(shape, grid, snr):
    level = LevelSet(np.clip(shape.phi(grid), -5, 5), grid, 5.0)
    std = np.full(grid.shape_kji, 0.1, dtype=np.float32)
    estimates = {"noise": 1 / snr, "psf_voxels": 0.6}
    return Refinement(level, std, StopReason.CONVERGED, 1, estimates=estimates)


@functools.cache
def flow_prior(snr=8.0, seed=0, **options):
    shape, grid, q, scans = tube_scan(snr, seeds=6)
    volume, flow = scans[seed]
    refinement = refined(shape, grid, snr)
    return BoundaryPrior.from_refinement(refinement, volume, None, flow=flow, **options), q


def test_flow_of_a_tube_is_found_within_its_standard_deviation():
    """Partial volume and blur are in the model: without noise 0.5 % is left."""
    prior, q = flow_prior(snr=8.0)
    assert [f for f in check(prior) if f.level == "error" and not f.ok] == []
    table = prior.openings
    assert sorted(table["name"]) == [b"inlet", b"outlet"]
    inlet, outlet = (table[table["name"] == n][0] for n in (b"inlet", b"outlet"))
    assert inlet["q_mean_m3s"] < 0 < outlet["q_mean_m3s"]
    assert outlet["normal_out"] == pytest.approx([0.36, 0.48, 0.8], abs=0.01)
    hits = []
    for seed in range(6):
        rows = flow_prior(snr=8.0, seed=seed)[0].openings
        hits += (np.abs(np.abs(rows["q_mean_m3s"]) - q) <= 2 * rows["q_std_m3s"]).tolist()
    # 95 % expected of 12; fewer than 9 has a probability of 2e-3 even at 90 %
    assert sum(hits) >= 9
    clean = flow_prior_clean()
    assert np.abs(clean.openings["q_mean_m3s"]) == pytest.approx([q, q], rel=5e-3)
    assert clean.quality["mass_balance"] == pytest.approx(0.0, abs=0.01 * q)
    assert outlet["reynolds"] == pytest.approx(0.4 * 8e-3 / 3.3e-6, rel=0.15)


def flow_prior_clean():
    shape, grid, _, scans = tube_scan(1e4)
    volume, flow = scans[0]
    return BoundaryPrior.from_refinement(refined(shape, grid, 1e4), volume, None, flow=flow)


def test_tractions_may_differ_by_what_the_flow_loses():
    """Poiseuille: -dp/dx = 8 ν q / (π R⁴), between plates w apart 12 ν q / w³; nothing measured."""
    prior, q = flow_prior(snr=8.0)
    outlet, fast = prior.attributes["/boundary/outlet"], prior.openings["u_max_ms"].max()
    length = np.ptp(prior.openings["centre_m"] @ prior.openings["normal_out"][0])
    lost = 8 * 3.3e-6 * q * length / (np.pi * 4e-3**4)
    assert outlet["g_o_mean"] == 0.0
    assert outlet["sigma_go"] - fast**2 == pytest.approx(lost, rel=0.15)
    assert "sigma_go" not in prior.attributes["/boundary/inlet"]
    known = np.zeros(2, dtype=prior.openings.dtype)
    known["q_mean_m3s"], known["u_max_ms"] = (-1e-3, 1e-3), 0.2
    line = {
        "/centerline/points": np.array([[0, 0, 0], [0.01, 0, 0], [0.03, 0, 0.0]]),
        "/centerline/radius": np.full(3, 3e-3, dtype=np.float32),
        "/centerline/edges": np.array([[0, 1], [1, 2]]),
    }
    slit = 0.2**2 + 12 * 3.3e-6 * 1e-3 / 6e-3**3 * 0.03
    assert traction_scale(line, known, 3.3e-6, planar=True) == pytest.approx(slit, rel=1e-6)


def test_the_fluid_is_stored_as_it_is_set():
    plain = flow_prior()[0].attributes["/physics"]
    assert dict(plain) == {"nu_mean": 3.3e-6, "nu_std": 0.3e-6, "rho": 1060.0, "model": "newtonian"}
    blood = resolve(PipelineConfig, None, ["flow.model=carreau", "flow.nu_zero=6e-5"]).flow
    thinning, _ = flow_prior(flow_settings=blood)
    found = BoundaryPrior(*decode(thinning.to_bytes())).attributes["/physics"]
    assert (found["model"], found["nu_zero"]) == ("carreau", 6e-5)
    assert 0.0 < found["exponent"] < 1.0 < found["relaxation_s"]  # of blood: shear-thinning
    assert any("carreau, viscosity at high shear 3.3" in line for line in page(thinning))


def test_profiles_vanish_on_the_rim_and_are_parabolic_inside():
    prior, _ = flow_prior(snr=8.0)
    for row in prior.openings:
        group = f"/boundary/{row['name'].decode()}"
        points = prior.arrays[f"{group}/points"]
        mean, std = (prior.arrays[f"{group}/u_{n}"][0] for n in ("mean", "std"))
        radius = np.linalg.norm(points - row["centre_m"], axis=1)
        rim = np.isclose(radius, 4e-3, atol=0.1e-3)
        assert rim.sum() > 10
        assert not mean[radius > 0.9999 * radius.max()].any()
        inner = radius < 3e-3
        normal = np.sign(row["q_mean_m3s"]) * mean @ row["normal_out"]
        exact = 0.8 * (1 - (radius / 4e-3) ** 2)
        # six terms, each velocity within about four of its standard deviations
        assert np.abs(normal - exact)[inner].max() < 4 * std[inner].max()
        assert prior.attributes[group]["rim"] == "dirichlet0"


def test_without_velocity_openings_have_no_kind():
    grid = Grid.from_spacing((24, 24, 24), 1.0)
    table = make.prior(make.tube(grid, 4.0, (0, 0, 1)), grid).openings
    assert table["name"].tolist() == [b"opening_1", b"opening_2"]
    assert not table["kind"].any() and not table["has_flow"].any()


def test_velocity_is_stored_with_its_noise(tmp_path):
    prior, _ = flow_prior()
    prior.write(tmp_path / "x.prior.h5")
    again = BoundaryPrior.read(tmp_path / "x.prior.h5")
    _, _, _, scans = tube_scan(8.0, seeds=6)
    assert np.array_equal(again.arrays["/velocity/u"], scans[0][1].u_ms)
    assert again.attributes["/velocity"]["venc_ms"].tolist() == [VENC] * 3
    inside = again.phi_mean_m < -1e-3
    # sqrt(2) venc / (pi SNR), of magnitude 1 in the lumen
    expected = np.sqrt(2) * VENC / np.pi / 8.0
    assert np.median(again.arrays["/velocity/sigma_u"][inside]) == pytest.approx(expected, rel=0.1)
    again.write(tmp_path / "y.prior.h5")
    assert (tmp_path / "x.prior.h5").read_bytes() == (tmp_path / "y.prior.h5").read_bytes()


def test_stated_noise_is_that_of_the_velocity():
    shape, grid, _, scans = tube_scan(8.0, seeds=6)
    u = np.array([flow.u_ms[0] for _, flow in scans])
    inside = shape.phi(grid) < -1.0
    measured = u.std(axis=0, ddof=1)[inside].mean()
    volume, flow = scans[0]
    stated = sigma_u(volume.values, inside, 1 / 8.0, flow, FlowSettings())
    # 6 draws: the mean of many s.d. is 5 % low
    assert stated[inside].mean() == pytest.approx(measured, rel=0.12)


def test_wraps_in_the_lumen_are_removed():
    shape, grid, _, scans = tube_scan(20.0, venc=0.6)
    volume, wrapped = scans[0]
    _, _, _, plain = tube_scan(20.0, venc=VENC)
    inside = shape.phi(grid) < -1.0
    assert np.abs(wrapped.u_ms[0][inside] - plain[0][1].u_ms[0][inside]).max() > 1.0
    found = corrected(wrapped, shape.phi(grid), volume.values, FlowSettings())
    assert found.unwrapped and "unwrapped" in found.notes[-1]
    assert np.abs(found.u_ms[0][inside] - plain[0][1].u_ms[0][inside]).max() < 0.3
    assert corrected(plain[0][1], shape.phi(grid), volume.values, FlowSettings()) is plain[0][1]


def test_what_cannot_be_unwrapped_is_refused():
    shape, grid, _, _ = tube_scan()
    noise = np.random.default_rng(0).uniform(-0.1, 0.1, (1, *grid.shape_kji, 3))
    torn = Flow(noise, grid, (0.1, 0.1, 0.1))
    with pytest.raises(DataError, match=r"wrapped beyond repair.*higher venc"):
        corrected(torn, shape.phi(grid), np.ones(grid.shape_kji), FlowSettings())
    kept = corrected(torn, shape.phi(grid), np.ones(grid.shape_kji), FlowSettings(unwrap=False))
    assert kept is torn


def test_a_linear_background_is_subtracted():
    shape, grid, _, scans = tube_scan(50.0)
    volume, flow = scans[0]
    k, j, i = np.indices(grid.shape_kji)
    offset = np.stack([0.02 + 1e-3 * i, -0.01 + 5e-4 * k, 1e-3 * j], axis=-1)
    tilted = Flow(flow.u_ms + offset, grid, flow.venc_ms)
    lit = np.maximum(volume.values, 0.6)  # static tissue as bright as that
    found = corrected(tilted, shape.phi(grid), lit, FlowSettings(background="linear"))
    assert found.background_corrected
    assert np.abs(found.u_ms - flow.u_ms).max() < 2e-3
    dim = np.where(shape.phi(grid) < 0, lit, 0.1)
    dark = corrected(tilted, shape.phi(grid), dim, FlowSettings(background="linear"))
    assert not dark.background_corrected and "static tissue" in dark.notes[-1]


@pytest.mark.parametrize(
    ("axes", "expected"),
    [("RAS", (1, 2, 3)), ("LPS", (-1, -2, 3)), ("SAR", (3, 2, 1)), ("-i+j-k", (1, 3, 2))],
)
def test_components_are_turned_into_the_world(axes, expected):
    columns = np.array([[-1, 0, 0], [0, 0, -1], [0, 1, 0]], dtype=float)  # i = L, j = S, k = P
    affine = np.eye(4)
    affine[:3, :3] = columns * [2.0, 1.0, 1.5]
    found = in_world(np.array([1.0, 2.0, 3.0]), Grid((4, 4, 4), affine), axes)
    if axes == "-i+j-k":  # -i = R: 1; j = S: 2; -k = A: 3
        expected = (1, 3, 2)
    assert found.tolist() == list(expected)


@pytest.mark.parametrize("axes", ["RRS", "RA", "xyz", "R-L-S", "iij"])
def test_axes_that_are_no_axes_are_refused(axes):
    with pytest.raises(ConfigError, match="velocity axes"):
        in_world(np.zeros(3), Grid.from_spacing((4, 4, 4), 1.0), axes)


def test_speeds_need_their_unit():
    assert parse_speed("150cm/s") == pytest.approx((1.5, 1.5, 1.5))
    assert parse_speed("1,1.5,2 m/s".replace(" ", "")) == (1.0, 1.5, 2.0)
    for bad in ("150", "fast", "-1m/s", "1,2m/s"):
        with pytest.raises(ConfigError, match="bad speed"):
            parse_speed(bad)


# --- files --------------------------------------------------------------------------------------


def saved(tmp_path, unit=1.0, frames=1):
    """A scan and three NIfTI images of its velocity."""
    _, grid, _, scans = tube_scan()
    volume, flow = scans[0]
    nib.save(nib.Nifti1Image(volume.values.T, grid.affine), tmp_path / "mag.nii.gz")
    paths = []
    for n, name in enumerate("uvw"):
        values = np.stack([flow.u_ms[0][..., n].T / unit] * frames, axis=-1)
        image = nib.Nifti1Image(values if frames > 1 else values[..., 0], grid.affine)
        image.header.set_xyzt_units("mm")
        paths.append(tmp_path / f"{name}.nii.gz")
        nib.save(image, paths[-1])
    return read_volume(tmp_path / "mag.nii.gz"), flow, paths


@pytest.mark.parametrize(("unit", "scale"), [("m/s", 1.0), ("cm/s", 0.01), ("phase", VENC / np.pi)])
def test_three_images_give_the_velocity(tmp_path, unit, scale):
    volume, flow, paths = saved(tmp_path, scale, frames=3)
    found = read_flow(paths, volume, venc_ms=(VENC,) * 3, unit=unit, axes="RAS")
    assert found.u_ms.shape == (3, *volume.values.shape, 3)
    assert np.abs(found.u_ms - flow.u_ms).max() < 1e-5


def test_velocity_that_does_not_fit_is_refused(tmp_path):
    volume, _, paths = saved(tmp_path)
    good = {"venc_ms": (VENC,) * 3, "unit": "m/s", "axes": "RAS"}
    for change, error, text in (
        ({"venc_ms": None}, DataError, "no venc.*--venc"),
        ({"unit": None}, ConfigError, "unit of velocity not stated"),
        ({"unit": "knots"}, ConfigError, "unknown unit"),
        ({"axes": None}, ConfigError, "direction of velocity not stated"),
        ({"unit": "steps"}, DataError, "another unit"),
    ):
        with pytest.raises(error, match=text):
            read_flow(paths, volume, **(good | change))
    with pytest.raises(ConfigError, match="2 files"):
        read_flow(paths[:2], volume, **good)
    fast = nib.load(paths[0])
    nib.save(nib.Nifti1Image(fast.get_fdata() * 100, fast.affine), paths[0])
    with pytest.raises(DataError, match=r"another unit.*cm/s"):
        read_flow(paths, volume, **good)
    nib.save(nib.Nifti1Image(fast.get_fdata()[:-1], fast.affine), paths[0])
    with pytest.raises(DataError, match="another shape"):
        read_flow(paths, volume, **good)
    moved = fast.affine.copy()
    moved[0, 3] += 5.0
    nib.save(nib.Nifti1Image(fast.get_fdata(), moved), paths[0])
    with pytest.raises(DataError, match="another grid"):
        read_flow(paths, volume, **good)


def hdf5(path, flow, volume, *, vencs=True, lit=True):
    with h5py.File(path, "w") as file:
        for n, name in enumerate("uvw"):
            parts = flow.u_ms[..., n].transpose(0, 3, 2, 1)
            file[name] = np.repeat(parts, 2, axis=0)
            if vencs:
                file[f"venc_{name}"] = [VENC, VENC]
            if lit:
                file[f"mag_{name}"] = np.repeat(volume.values.T[None], 2, axis=0)
        file["dx"] = np.ones((2, 3))


def test_4dflownet_files_are_scan_and_velocity_in_one(tmp_path):
    _, _, _, scans = tube_scan()
    volume, flow = scans[0]
    path = tmp_path / "flow.h5"
    hdf5(path, flow, volume)
    scan = read_volume(path, frame="mean")
    assert np.abs(scan.values - volume.values).max() < 1e-6
    found = read_flow([path], scan)
    assert found.u_ms.shape[0] == 2 and np.array_equal(found.u_ms[1], flow.u_ms[0])
    assert found.venc_ms == (VENC,) * 3
    hdf5(path, flow, volume, vencs=False)
    with pytest.raises(DataError, match="no venc"):
        read_flow([path], scan)


def test_the_velocity_of_a_prior_is_read_back(tmp_path):
    prior, _ = flow_prior()
    prior.write(tmp_path / "x.prior.h5")
    volume = tube_scan(8.0, seeds=6)[3][0][0]
    found = read_flow([tmp_path / "x.prior.h5"], volume)
    assert np.array_equal(found.u_ms, prior.arrays["/velocity/u"])
    assert found.venc_ms == (VENC,) * 3


def test_a_prior_given_as_the_scan_is_named_as_what_it_is(tmp_path):
    make.small().write(tmp_path / "x.prior.h5")
    with pytest.raises(DataError, match="prior is no scan; give the scan"):
        read_volume(tmp_path / "x.prior.h5")


def test_frames_of_a_prior_are_all_kept():
    shape, grid, q, scans = tube_scan(20.0)
    volume, flow = scans[0]
    beat = Flow(np.concatenate([flow.u_ms, 0.5 * flow.u_ms]), grid, flow.venc_ms)
    settings = FlowSettings(rr_s=0.8)
    prior = BoundaryPrior.from_refinement(
        refined(shape, grid, 20.0), volume, None, flow=beat, flow_settings=settings
    )
    assert prior.arrays["/velocity/u"].shape[0] == 2
    assert prior.arrays["/boundary/outlet/t"].tolist() == [0.0, 0.4]
    mean = prior.arrays["/boundary/outlet/u_mean"]
    assert np.allclose(mean[1], 0.5 * mean[0], atol=1e-6)
    assert np.abs(prior.openings["q_mean_m3s"]) == pytest.approx([0.75 * q] * 2, rel=0.05)
    guess = BoundaryPrior.from_refinement(refined(shape, grid, 20.0), volume, None, flow=beat)
    assert any("heart cycle unknown" in w for w in guess.warnings)


def test_the_noise_of_the_velocity_tells_how_many_magnitudes_were_averaged():
    """The scans of ``flow_scan`` are the mean of four encodings."""
    shape, grid, _, scans = tube_scan(8.0, seeds=6)
    volume, flow = scans[0]
    core = shape.phi(grid) < -1.0
    # the flow's own curvature and the few hundred differences leave a fifth
    assert averages(flow, volume.values, core, FlowSettings()) == pytest.approx(4.0, rel=0.25)
    rng = np.random.default_rng(5)
    single = np.hypot(1.0 + rng.standard_normal(grid.shape_kji) / 8.0,
                      rng.standard_normal(grid.shape_kji) / 8.0)  # fmt: skip
    assert averages(flow, single, core, FlowSettings()) == pytest.approx(1.0, abs=0.25)
    assert averages(flow, single, core & (np.indices(core.shape)[0] < 2), FlowSettings()) == 1.0
    stated = FlowSettings(sigma_ms=0.1)
    assert averages(flow, volume.values, core, stated) == flow.averaged


def test_a_mean_of_magnitudes_is_refined_without_bias():
    """Its floor is that of one image, its noise half of that: a Rician of its own fits neither."""
    shape, grid, _, scans = tube_scan(5.0, seeds=3)
    truth = shape.phi(grid)
    start = LevelSet(np.clip(truth, -5, 5), grid, 5.0)
    offset = {1.0: [], 4.0: []}
    for volume, _ in scans:
        for n, found in offset.items():
            wall = refine(start, volume, RefineSettings(averages=n))
            found.append((wall.level_set.phi_mm - truth)[np.abs(truth) < 0.5].mean())
    plain, aware = (float(np.mean(offset[n])) for n in (1.0, 4.0))
    assert plain - aware > 0.02  # the lumen was too small
    assert abs(aware) < 0.03  # what the dephasing of the flow leaves, and the noise of three


def test_the_path_takes_the_averages_from_the_velocity():
    shape, grid, _, scans = tube_scan(6.0)
    volume, flow = scans[0]
    level = LevelSet(np.clip(shape.phi(grid), -5, 5), grid, 5.0)
    found, settings = shown(flow, volume, level, PipelineConfig())
    assert 2.5 < settings.averages < 6.0 and found.averaged == settings.averages
    own = PipelineConfig(refine=RefineSettings(averages=1.0))
    assert shown(flow, volume, level, own)[1].averages == 1.0


def test_the_path_knows_a_scan_of_the_speed_itself():
    _, grid, _, scans = tube_scan(6.0)
    flow = replace(scans[0][1], with_magnitude=False)
    level = LevelSet(np.ones(grid.shape_kji), grid, 5.0)
    seen = speed(flow)
    assert shown(flow, seen, level, PipelineConfig())[1] == RefineSettings(profile="flow")
    own = PipelineConfig(refine=RefineSettings(profile="lumen"))
    assert shown(flow, seen, level, own)[1].profile == "lumen"


def test_the_speed_is_not_seen_twice_where_it_is_the_scan():
    """A channel beside the magnitude adds information; beside itself it halves the variance."""
    shape, grid, _, scans = tube_scan(6.0)
    flow = replace(scans[0][1], with_magnitude=False)
    start = LevelSet(np.clip(shape.phi(grid) + 0.3, -5, 5), grid, 5.0)
    for known, same in ((flow, True), (replace(flow, with_magnitude=True), False)):
        once, twice = (
            build_prior(
                speed(flow) if same else scans[0][0],
                PipelineConfig(flow=FlowSettings(channel=channel)),
                start=start,
                flow=known,
            ).arrays["/geometry/phi_std"]
            for channel in (False, True)
        )
        assert np.array_equal(once, twice) == same


def test_velocity_beyond_its_venc_is_doubted_and_far_beyond_refused(tmp_path):
    volume, flow, paths = saved(tmp_path)
    fastest = float(np.abs(flow.u_ms[0, ..., 2]).max())
    given = {"unit": "m/s", "axes": "RAS"}
    right = read_flow(paths, volume, venc_ms=(VENC,) * 3, **given)
    assert not any("beyond its venc" in note for note in right.notes)
    doubted = read_flow(paths, volume, venc_ms=(fastest / 2,) * 3, **given)
    assert any("beyond its venc" in note for note in doubted.notes)
    slow = (VENC, VENC, fastest / 40)  # a slow flow in cm/s, read as m/s, stays below 20 m/s
    with pytest.raises(DataError, match=r"another unit.*--velocity-unit") as caught:
        read_flow(paths, volume, venc_ms=slow, **given)
    assert str(caught.value.path).endswith("w.nii.gz")
