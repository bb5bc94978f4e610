"""Axisymmetric priors: what is swept against exact figures, and scans folded about their axis."""

import dataclasses
import functools

import nibabel as nib
import numpy as np
import prior_builders as make
import pytest

from vesselseg import meridian
from vesselseg.cli import main
from vesselseg.errors import DataError
from vesselseg.fields import LevelSet, Volume
from vesselseg.flow import Flow
from vesselseg.grid import Grid
from vesselseg.pipeline import PipelineConfig, build_prior
from vesselseg.prior.boundary import BoundaryPrior, PriorSettings
from vesselseg.prior.check import check
from vesselseg.prior.page import page
from vesselseg.prior.revolved import on_axis

AXIAL, RADIAL = 0.8, 1.0  # mm
SETTINGS = PriorSettings(axis="i")


def half_plane(rows=14, columns=40, turned=True):
    """A half plane with its axis oblique in the world, and (r, z) of its samples, mm."""
    affine = np.diag([AXIAL, RADIAL, 1.0, 1.0])
    if turned:
        affine[:3, :3] = make.rotation(37.0, (1, 2, 3)) @ affine[:3, :3]
    affine[:3, 3] = [3.0, -8.0, 40.0] + 0.5 * affine[:3, 1]
    r, z = RADIAL * (np.arange(rows) + 0.5), AXIAL * np.arange(columns)
    return Grid((rows, columns), affine), *np.meshgrid(r, z, indexing="ij")


def failures(prior):
    return [f for f in check(prior, deep=True) if f.level == "error" and not f.ok]


@functools.cache
def shaped(name):
    grid, r, z = half_plane()
    phi = {
        "cylinder": r - 6.3,
        "sphere": np.hypot(r, z - 15.7) - 6.3,
        "annulus": np.abs(r - 7.1) - 3.2,
        "torus": np.hypot(r - 6.6, z - 15.7) - 4.2,
    }[name]
    return make.prior(phi, grid, settings=SETTINGS)


LENGTH = 40 * AXIAL
# volume and surface of the whole lumen in mm, openings, genus; the tubes leave the field of view
EXACT = {
    "cylinder": (np.pi * 6.3**2 * LENGTH, np.pi * 6.3**2, 2, 0),
    "sphere": (4 / 3 * np.pi * 6.3**3, 4 * np.pi * 6.3**2, 0, 0),
    "annulus": (np.pi * (10.3**2 - 3.9**2) * LENGTH, np.pi * (10.3**2 - 3.9**2), 2, 1),
    "torus": (2 * np.pi**2 * 6.6 * 4.2**2, 4 * np.pi**2 * 6.6 * 4.2, 0, 1),
}


@pytest.mark.parametrize("name", EXACT)
def test_what_is_swept_has_its_exact_measures(name):
    prior, (volume, area, openings, genus) = shaped(name), EXACT[name]
    lumen, surface = prior.attributes["/geometry"], prior.attributes["/surface"]
    assert prior.axisymmetric and failures(prior) == []
    # partial volumes are exact to second order: (h / r)² / 24 is 0.1 %
    assert lumen["volume_m3"] == pytest.approx(volume * 1e-9, rel=1.5e-3)
    assert (lumen["genus"], lumen["n_components"], len(prior.openings)) == (genus, 1, openings)
    if openings:
        # rims are roots of splines, exact to four thousandths of a voxel
        slack = 0.004 * prior.openings["perimeter_m"].max() * 1e3
        assert prior.openings["area_m2"] * 1e6 == pytest.approx([area] * 2, abs=slack)
        planes = np.ptp(prior.openings["centre_m"] @ prior.openings["normal_out"][0])
        assert surface["volume_m3"] == pytest.approx(area * 1e-6 * planes, rel=2e-3)
    else:
        assert surface["volume_m3"] == pytest.approx(volume * 1e-9, rel=2e-3)
        assert surface["area_m2"] == pytest.approx(area * 1e-6, rel=2e-3)


def test_curvature_is_that_of_the_swept_surface():
    for name, exact in (("cylinder", 1 / 6.3e-3), ("sphere", 2 / 6.3e-3)):
        prior = shaped(name)
        wall = np.unique(prior.faces[prior.arrays["/surface/edge_label"] == 1])
        found = prior.arrays["/surface/vertex_curvature"][wall]
        # of a distance, sampled where it is steep: second differences of 6 voxels' radius
        assert np.abs(found / exact - 1).max() < 0.06, name
        near = np.abs(prior.phi_mean_m) < 0.7e-3
        gauss = prior.arrays["/geometry/curvature_gauss"][near]
        radius = 6.3e-3 + prior.phi_mean_m[near]  # of the level set through the sample
        assert np.abs(gauss * radius**2 - (name == "sphere")).max() < 0.06, name


def test_openings_are_discs_across_the_axis():
    prior = shaped("cylinder")
    facts = prior.attributes["/grid"]
    for row in prior.openings:
        offset = row["centre_m"] - facts["axis_origin_m"]
        along = offset @ facts["axis_direction"]
        assert np.linalg.norm(offset - along * facts["axis_direction"]) < 1e-9
        assert abs(row["normal_out"] @ facts["axis_direction"]) == pytest.approx(1, abs=1e-12)
        assert row["radius_m"] == pytest.approx(6.3e-3, rel=1e-3)
        assert row["perimeter_m"] == pytest.approx(2 * np.pi * 6.3e-3, rel=1e-3)
        # one wall point: s.d. 0.2 mm there, times 2πr
        assert row["area_std_m2"] == pytest.approx(2 * np.pi * 6.3e-3 * 0.2e-3, rel=0.05)
    line = prior.arrays["/centerline/points"] - facts["axis_origin_m"]
    assert np.abs(np.cross(line, facts["axis_direction"])).max() < 1e-9
    assert prior.arrays["/centerline/radius"] == pytest.approx(6.3e-3, rel=1e-3)
    frame = meridian.Meridian.of(prior.arrays["/grid/ijk_to_world"])
    closure = prior.faces[prior.arrays["/surface/edge_label"] == 0]
    assert len(closure) == 1 and on_axis(prior.vertices_m, closure, frame).all()


def test_area_std_is_that_of_drawn_walls():
    prior = shaped("cylinder")
    row, draws = prior.openings[0], prior.sample(200, seed=1)
    column = round(prior.grid.index(row["centre_m"] * 1e3)[1])
    radius = (
        prior.grid.spacing_mm[0] * 1e-3 * np.clip(0.5 - draws[:, :, column] / 1e-3, 0, 1).sum(1)
    )
    assert radius.mean() == pytest.approx(6.3e-3, rel=0.01)
    # s.d. of 200 draws: 5 %
    assert (np.pi * radius**2).std() == pytest.approx(row["area_std_m2"], rel=0.15)


def test_the_file_is_read_back_and_an_axis_elsewhere_is_refused(tmp_path):
    prior = shaped("sphere")
    prior.write(tmp_path / "x.prior.h5")
    again = BoundaryPrior.read(tmp_path / "x.prior.h5")
    assert np.array_equal(again.sample(1, 3), prior.sample(1, 3))
    assert any("half plane" in line for line in page(again))
    for name, change in (("axis_origin_m", 1e-4), ("axis_direction", 1e-3)):
        attributes = {p: dict(v) for p, v in prior.attributes.items()}
        attributes["/grid"][name] = attributes["/grid"][name] + change
        with pytest.raises(DataError, match="axis disagrees"):
            BoundaryPrior(prior.arrays, attributes).to_bytes()
    del attributes["/grid"]["axis_origin_m"]
    with pytest.raises(DataError, match="axis_origin_m of /grid missing"):
        BoundaryPrior(prior.arrays, attributes).to_bytes()


# --- folding ------------------------------------------------------------------------------------


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("offset", [0.5, 0.0], ids=["between rows", "on a row"])
def test_a_scan_is_folded_about_its_axis(transposed, offset):
    """Smooth fields are even about the axis: both sides and splines give what the half holds."""
    half, r, z = half_plane(12, 20)
    rows = 24 if offset else 25
    position = np.arange(rows) - 12 + offset
    affine = meridian.whole_affine(half.affine, 12)
    affine[:3, 3] += (offset - 0.5) * affine[:3, 1]

    def scene(r, z):
        return np.exp(-((r / 5.0) ** 2)) * (1.0 + 0.1 * np.sin(z))

    values = scene(position[:, None] * RADIAL, z[:1])
    if transposed:
        values, affine[:3, :2] = values.T, affine[:3, [1, 0]].copy()
    grid = Grid(values.shape, affine)
    frame = meridian.Meridian.of(half.affine)
    folded = meridian.fold(grid, (*frame.origin, *frame.along))
    volume = folded.image(Volume(values, grid))
    assert volume.grid.mismatch_mm(half) < 1e-9
    # cubic splines of a Gaussian of 3.5 voxels
    assert np.abs(volume.values - scene(r, z)).max() < (1e-6 if offset else 2e-3)
    swirl = np.zeros((1, *values.shape, 3))
    turning = position[:, None] * np.ones_like(z[:1])
    turning = turning.T if transposed else turning
    swirl[0] = 0.01 * (turning[..., None] * (np.cross(frame.along, frame.outward) + frame.outward))
    swirl[0] += 0.3 * frame.along
    flow = folded.flow(Flow(swirl, grid, (1.0,) * 3))
    found = flow.u_ms[0] - 0.3 * frame.along
    across = found @ frame.outward
    inner = slice(None) if offset else slice(-8)  # splines see the far edge as a mirror
    assert np.abs(across - 0.01 * r)[inner].max() < 1e-5
    assert np.abs(found @ np.cross(frame.along, frame.outward) - across).max() < 1e-5


def test_a_half_plane_needs_no_folding_and_is_mirrored_exactly():
    grid, r, z = half_plane()
    folded = meridian.fold(grid, "i")
    volume = Volume(np.cos(r) + z, grid)
    same = folded.image(volume)
    assert np.array_equal(same.values, volume.values) and same.grid.mismatch_mm(grid) < 1e-9
    both = meridian.whole(volume)
    assert both.grid.mismatch_mm(Grid((28, 40), meridian.whole_affine(grid.affine, 14))) < 1e-9
    back = meridian.half(both)
    assert np.array_equal(back.values, volume.values) and back.grid.mismatch_mm(grid) < 1e-9


@pytest.mark.parametrize(
    ("axis", "text"),
    [
        ((3.0, -8.0, 90.0, 0, 0, 1), "does not lie in the image|does not run along"),
        ((3.0, -8.0, 40.0, 0, 0.2, 1), "does not run along"),
        ((3.0, -18.0, 40.0, 1, 0, 0), "does not reach its axis"),
    ],
)
def test_an_axis_that_is_none_of_the_image_is_refused(axis, text):
    grid, _, _ = half_plane(turned=False)
    with pytest.raises(DataError, match=text):
        meridian.fold(grid, axis)


def test_an_axis_needs_a_plane():
    with pytest.raises(DataError, match="needs a 2-D scan"):
        meridian.fold(Grid.from_spacing((8, 8, 8), 1.0), "i")
    grid, _, _ = half_plane()
    moved = meridian.fold(grid, (*(grid.affine[:3, 3]), *grid.affine[:3, 0]))
    with pytest.raises(DataError, match="not the half plane"):
        meridian.require_half_plane(moved.grid, (*grid.affine[:3, 3], *-grid.affine[:3, 1]))


# --- the whole path -----------------------------------------------------------------------------


def scan_of_a_tube(snr=12.0):
    """A tube of 6.3 mm in its whole meridian plane, with Poiseuille flow of 0.2 m/s on average."""
    half, _, _ = half_plane(22, 40)
    grid = meridian.whole_grid(half)
    fine = (np.arange(44 * 8) + 0.5) / 8 - 22
    inside = np.abs(fine) < 6.3

    def blurred(profile):
        from scipy.ndimage import gaussian_filter1d

        return gaussian_filter1d(profile, 0.6 * 8).reshape(44, 8).mean(axis=1)[:, None]

    rng = np.random.default_rng(2)
    magnitude = blurred(0.3 + 0.7 * inside) + np.zeros(grid.shape_kji)
    speed = blurred((0.3 + 0.7 * inside) * inside * 0.4 * (1 - (fine / 6.3) ** 2)) / magnitude
    noise = rng.standard_normal((2, *grid.shape_kji)) / snr
    seen = np.hypot(magnitude + noise[0], noise[1])
    frame = meridian.Meridian.of(half.affine)
    u = speed[..., None] * frame.along
    u = u + rng.standard_normal(u.shape) * np.sqrt(2) / np.pi / snr / magnitude[..., None]
    flow = Flow(np.clip(u, -0.99, 0.99)[None], grid, (1.0,) * 3)
    return Volume(seen, grid, "tube"), flow, frame


def test_the_whole_path_finds_wall_and_flow_of_a_meridian_plane():
    volume, flow, frame = scan_of_a_tube()
    axis = (*frame.origin, *frame.along)
    _, r, _ = half_plane(44, 40)
    start = LevelSet(np.clip(np.abs(r - 22.0) - 6.1, -5, 5), volume.grid, 5.0)
    config = PipelineConfig(prior=PriorSettings(axis=axis))
    prior = build_prior(volume, config, start=start, flow=flow)
    assert failures(prior) == [] and prior.phi_mean_m.shape == (22, 40)
    q = 0.2 * np.pi * 6.3e-3**2
    assert sorted(prior.openings["name"].tolist()) == [b"inlet", b"outlet"]
    for row in prior.openings:
        # three standard deviations: each of these four fails once in 370 draws
        assert abs(row["area_m2"] - np.pi * 6.3e-3**2) < 3 * row["area_std_m2"]
        assert abs(abs(row["q_mean_m3s"]) - q) < 3 * row["q_std_m3s"]
        assert row["area_std_m2"] < 0.04 * row["area_m2"] and row["q_std_m3s"] < 0.06 * q
        group = f"/boundary/{row['name'].decode()}"
        profile = np.linalg.norm(prior.arrays[f"{group}/u_mean"][0], axis=1)
        points = prior.arrays[f"{group}/points"]
        away = np.linalg.norm(points - row["centre_m"], axis=1)
        assert profile[np.argmax(away)] == 0.0
        assert profile[np.argmin(away)] == pytest.approx(0.4, abs=0.06)


def test_the_command_takes_the_axis_and_previews_the_whole_plane(tmp_path, capsys):
    volume, _, frame = scan_of_a_tube()
    half = meridian.fold(volume.grid, (*frame.origin, *frame.along)).image(volume)
    image = nib.Nifti1Image(half.values.T[..., None], half.grid.affine)
    image.header.set_xyzt_units("mm")
    nib.save(image, tmp_path / "plane.nii.gz")
    out = str(tmp_path / "plane.prior.h5")
    command = ["prior", "-i", str(tmp_path / "plane.nii.gz"), "-o", out, "--axis"]
    for wrong in ("k", "1,2,3", "0,0,0,0,0,0"):
        assert main([*command, wrong]) == 2
    assert main([*command, "i"]) == 0
    assert BoundaryPrior.read(out).axisymmetric
    assert main(["check", out]) == 0
    for target in ("nifti", "vtp", "inr", "npz"):
        assert main(["export", out, "--to", target, "-o", str(tmp_path / target)]) == 0
    assert main(["preview", out, "-o", str(tmp_path / "plane.png")]) == 0
    from vesselseg.preview.page import scene_of

    scene = scene_of(BoundaryPrior.read(out))
    assert scene.phi.shape == (44, 40) and np.array_equal(scene.phi, np.flip(scene.phi, 0))
    offset = scene.vertices - frame.origin
    assert (offset @ frame.outward).min() == pytest.approx(-(offset @ frame.outward).max())


def test_a_mutated_half_plane_fails_its_check():
    prior = shaped("cylinder")

    def failed(path, change):
        arrays = dict(prior.arrays)
        arrays[path] = change(arrays[path].copy())
        return {f.id for f in check(dataclasses.replace(prior, arrays=arrays)) if not f.ok}

    def larger(table):
        table["area_m2"] *= 1.05
        return table

    assert 6 in failed("/geometry/volume_fraction", lambda f: f * np.float32(0.9))
    assert 10 in failed("/boundary/openings", larger)
    assert 7 in failed("/surface/edges", lambda e: np.flip(e, 1))
