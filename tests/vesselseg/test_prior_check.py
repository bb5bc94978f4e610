"""Every invariant of a prior has a file that breaks it and nothing else."""

import functools
import json

import numpy as np
import prior_builders as make
import pytest

from vesselseg.flow import Flow
from vesselseg.grid import Grid
from vesselseg.prior.boundary import BoundaryPrior
from vesselseg.prior.check import check, summary
from vesselseg.prior.fields import quality_figures

GOOD = make.small()
CELLS = ("/surface/faces", "/surface/face_label")


def changed(**named):
    """A mutation that replaces arrays: double underscores stand for slashes."""

    def change(arrays, attributes):
        for name, function in named.items():
            path = "/" + name.replace("__", "/")
            arrays[path] = function(np.array(arrays[path]))

    return change


def stated(path, **values):
    """A mutation that replaces attributes."""

    def change(arrays, attributes):
        attributes[path].update(values)

    return change


def one_voxel(value, where=(10, 10, 10)):
    def change(array):
        array[where] = value
        return array

    return change


def steeper(arrays, attributes):
    """Scale phi, with everything that follows from it but the slope."""
    phi, quality = attributes["/geometry/phi_mean"], attributes["/quality"]
    arrays["/geometry/phi_mean"] = arrays["/geometry/phi_mean"] * np.float32(1.05)
    phi["band_halfwidth_m"] *= 1.05
    figures = quality_figures(arrays)
    phi["eikonal_rms"] = figures.pop("eikonal_rms")
    quality.update(figures)


def one_opening(arrays, attributes):
    table = np.zeros(1, dtype=arrays["/boundary/openings"].dtype)
    table["label"], table["name"] = 2, b"inlet"
    arrays["/boundary/openings"] = table


def swollen(vertices):
    centre = vertices.mean(axis=0)
    return centre + (vertices - centre) * 1.03  # 0.15 h at radius 5 h


def text(content):
    return lambda _: np.frombuffer(content.encode(), dtype=np.uint8)


MUTATIONS = {
    "1 mask": ({1, 2, 12}, changed(geometry__mask=one_voxel(0))),  # a mask is asked three times
    "1 nan": ({1, 13}, changed(geometry__phi_std=one_voxel(np.nan, (0, 0, 0)))),
    "2 component": ({2}, changed(geometry__component=lambda c: c * 2)),
    "2 euler": ({2}, stated("/geometry", euler=0)),
    "2 genus": ({2}, stated("/geometry", genus=1)),
    "3 slope": ({3}, steeper),
    "3 viscous": ({3}, changed(geometry__phi_viscous=lambda v: -v)),
    "4 inward": ({4}, changed(geometry__normal=lambda n: -n)),
    "4 length": ({4}, changed(geometry__normal=lambda n: 1.01 * n)),
    "5 band": ({5}, changed(geometry__band_index=lambda b: b[:-1])),
    "6 sum": ({6}, changed(geometry__volume_fraction=lambda f: f * np.float32(0.98))),
    "6 range": ({6}, changed(geometry__volume_fraction=one_voxel(1.5))),
    "6 stated": ({6}, stated("/geometry", volume_m3=4e-7)),
    "7 hole": ({7}, changed(**{p[1:].replace("/", "__"): lambda a: a[:-1] for p in CELLS})),
    "7 inward": ({7}, changed(surface__faces=lambda f: f[:, ::-1])),
    "7 index": ({7}, changed(surface__faces=one_voxel(10**6, (0, 0)))),
    "8 wall": ({8}, changed(surface__vertices=swollen)),
    "9 label": ({9}, changed(boundary__label=one_voxel(2))),
    "9 table": ({9}, one_opening),
    "12 domain": ({12}, changed(boundary__domain=one_voxel(0))),
    "13 zero": ({13}, changed(geometry__phi_std=one_voxel(0.0))),
    "14 odd": ({14}, stated("/geometry/covariance", m=3)),
    "14 length": ({14}, stated("/geometry/covariance", ell_m=-1e-3)),
    "14 normaliser": ({14}, changed(geometry__covariance__normaliser=one_voxel(0.0))),
    "18 interior": ({18}, stated("/geometry", interior_point_m=np.zeros(3))),
    "20 quality": ({20}, stated("/quality", eikonal_mean=0.2)),
    "20 normals": ({20}, stated("/quality", normal_rms_deg=9.0)),
    "22 json": ({22}, changed(provenance__json=text("{"))),
    "22 path": ({22}, changed(provenance__json=text('{"weights": "/home/me/best.pt"}'))),
}


@functools.cache
def flowing():
    """A tube with openings and made-up flow."""
    grid = Grid.from_spacing((20, 20, 24), 1.0)
    phi = make.tube(grid, 4.0, (1, 0, 0))
    volume, _ = make.scan(phi, grid)
    u = np.zeros((1, *grid.shape_kji, 3))
    u[..., 0] = np.maximum(0.5 * (1 - (1 + phi / 4.0) ** 2), 0.0) * (phi < 0)
    flow = Flow(u, grid, (1.0, 1.0, 1.0))
    refinement = make.refinement(phi, grid, estimates={"noise": 10.0, "psf_voxels": 0.3})
    return BoundaryPrior.from_refinement(refinement, volume, None, flow=flow)


def table(**values):
    def change(arrays, attributes):
        rows = np.array(arrays["/boundary/openings"])
        for name, value in values.items():
            rows[name][0] = value
        arrays["/boundary/openings"] = rows

    return change


def outside_the_plane(arrays, attributes):
    rows = np.array(arrays["/boundary/openings"])
    rows["centre_m"] += 1e-3 * rows["normal_out"]
    arrays["/boundary/openings"] = rows


def moving_rim(arrays, attributes):
    for part in ("u_mean", "u_std"):
        arrays[f"/boundary/outlet/{part}"] = arrays[f"/boundary/outlet/{part}"] + np.float32(0.01)


FLOWING = {
    "10 area": ({10}, "error", table(area_m2=6e-5)),
    "10 plane": ({10}, "error", outside_the_plane),
    "10 inward": ({10}, "error", table(normal_out=[-1.0, 0.0, 0.0])),
    "11 tilted": ({11}, "warning", table(normal_out=[0.966, 0.259, 0.0])),
    "11 edge": ({11}, "warning", table(at_fov_edge=0)),
    "1 fluid": ({1}, "error", stated("/physics", model="bingham")),
    "1 carreau": ({1}, "error", stated("/physics", model="carreau", nu_zero=5e-5)),
    "15 traction": ({15}, "error", stated("/boundary/outlet", sigma_go=0.0)),
    "15 slip": ({15}, "error", moving_rim),
    "16 stated": ({16}, "error", stated("/quality", mass_balance=1e-4)),
    "16 leak": ({16}, "warning", table(q_mean_m3s=1e-3)),
}


@pytest.mark.parametrize("name", FLOWING)
def test_what_is_wrong_with_an_opening_is_found(name):
    expected, level, change = FLOWING[name]
    good = flowing()
    before = {one: failing_of_flowing(one) for one in ("error", "warning")}
    assert before["error"] == set()
    arrays = dict(good.arrays)
    attributes = {path: dict(values) for path, values in good.attributes.items()}
    change(arrays, attributes)
    assert expected <= failing(BoundaryPrior(arrays, attributes), level) - before[level]


@functools.cache
def failing_of_flowing(level):
    return failing(flowing(), level)


WARNINGS = {
    "13 large": (13, changed(geometry__phi_std=lambda s: s * 11)),
    "13 calibrated": (13, stated("/geometry/phi_std", calibrated=0)),
    "13 coverage": (13, stated("/geometry/phi_std", coverage_2sigma=0.8)),
    "17 bias": (17, stated("/geometry/phi_mean", bias_m=-1e-4)),
}


def mutated(change):
    arrays = dict(GOOD.arrays)
    attributes = {path: dict(values) for path, values in GOOD.attributes.items()}
    change(arrays, attributes)
    return BoundaryPrior(arrays, attributes)


def failing(source, level="error", deep=False):
    return {f.id for f in check(source, deep) if not f.ok and f.level == level}


def test_good_prior_passes_every_invariant(tmp_path):
    path = tmp_path / "x.prior.h5"
    GOOD.write(path)
    findings = check(path, deep=True)
    assert [f for f in findings if f.level == "error" and not f.ok] == []
    assert {f.id for f in findings} == set(range(1, 23))
    assert [f.id for f in findings] == sorted(f.id for f in findings)
    json.dumps([vars(f) for f in findings])
    assert all(f.name and f.message for f in findings)


@pytest.mark.parametrize("name", MUTATIONS)
def test_mutated_prior_fails_exactly_there(name):
    expected, change = MUTATIONS[name]
    assert failing(mutated(change)) == expected


@pytest.mark.parametrize("name", WARNINGS)
def test_doubtful_prior_is_warned_about(name):
    number, change = WARNINGS[name]
    before = sum(not f.ok for f in check(calibrated()))
    after = [f for f in check(mutated(lambda *p: (well_known(*p), change(*p)))) if not f.ok]
    assert before == 0
    assert [(f.id, f.level) for f in after] == [(number, "warning")]


def well_known(arrays, attributes):
    attributes["/geometry/phi_std"].update(calibrated=1, coverage_2sigma=0.95)


def calibrated():
    return mutated(well_known)


def test_shape_itself_can_deserve_a_warning():
    grid = Grid.from_spacing((20, 20, 40), 1.0)
    centre = make.middle(grid)
    shift = np.array([10.0, 0, 0])
    parts = [np.linalg.norm(make.points(grid) - centre + s, axis=-1) - 1.7 for s in (shift, -shift)]
    prior = make.prior(np.minimum(*parts), grid)
    assert {2, 21} <= failing(prior, "warning")


def test_wrong_normaliser_is_found_by_drawing():
    scaled = mutated(changed(geometry__covariance__normaliser=lambda s: s * np.float32(1.3)))
    assert failing(scaled) == set()
    assert failing(scaled, deep=True) == {14}


def move_the_image(file):
    file["/VTKHDF/volume"].attrs.modify("Origin", np.zeros(3) + 0.01)


def forget_a_link(file):
    del file["/VTKHDF/volume/PointData/phi_mean"]


def copy_instead_of_link(file):
    del file["/VTKHDF/wall/Points"]
    file.copy("/surface/vertices", "/VTKHDF/wall/Points")


def forget_the_assembly(file):
    del file["/VTKHDF/Assembly/wall/wall"]


def forget_everything(file):
    del file["/VTKHDF"]


@pytest.mark.parametrize(
    "change",
    [move_the_image, forget_a_link, copy_instead_of_link, forget_the_assembly, forget_everything],
)
def test_broken_vtk_part_fails_nineteen(tmp_path, change):
    path = tmp_path / "x.prior.h5"
    path.write_bytes(make.edited(GOOD.to_bytes(), change, sealed=True))
    assert failing(path) == {19}


def test_unreadable_file_fails_the_first_invariant_alone(tmp_path):
    path = tmp_path / "x.prior.h5"
    path.write_bytes(GOOD.to_bytes()[:-1000])
    findings = check(path)
    assert [(f.id, f.level, f.ok) for f in findings] == [(1, "error", False)]
    assert "truncated" in findings[0].message


def test_summary_is_plain_json():
    facts = summary(GOOD)
    assert json.loads(json.dumps(facts)) == facts
    assert facts["geometry"]["n_components"] == 1
    assert facts["grid"]["shape_kji"] == [20, 20, 20]
    assert facts["warnings"] == list(GOOD.warnings)
