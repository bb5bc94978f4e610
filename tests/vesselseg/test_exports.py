"""Exports: every format, read back by a reader of others, has the wall where it is."""

import errno
import json
import re
import xml.etree.ElementTree as Tree

import h5py
import nibabel
import numpy as np
import prior_builders as make
import pytest
from scipy.ndimage import map_coordinates
from scipy.spatial import cKDTree

from vesselseg.cli import main
from vesselseg.errors import ConfigError, DataError, EnvironmentFault
from vesselseg.export import TARGETS, export
from vesselseg.fields import Volume
from vesselseg.grid import Grid
from vesselseg.io import atomic
from vesselseg.io.velocity import read_flow
from vesselseg.prior.boundary import BoundaryPrior, PriorSettings

AFFINE = make.oblique((0.9, 1.0, 1.25), left_handed=True)
GRID = Grid((22, 24, 30), AFFINE)
WITHIN = 0.01  # of the smallest voxel side
MILLIMETRES = {"m": 1e3, "cm": 10.0, "mm": 1.0}
VENC = (1.0, 1.5, 2.0)


@pytest.fixture(scope="module")
def prior():
    """An oblique tube on an oblique, oblong, left-handed grid, with openings and velocity."""
    axis = GRID.affine[:3, 2] + 0.3 * GRID.affine[:3, 1]
    made = make.prior(make.tube(GRID, 5.0, axis), GRID)
    assert len(made.openings) == 2
    u = np.arange(2 * np.prod(GRID.shape_kji) * 3, dtype=np.float32)
    u = (u / u.size).reshape(2, *GRID.shape_kji, 3)
    facts = {"venc_ms": np.array(VENC), "background_corrected": 1, "unwrapped": 1, "rr_s": 0.8}
    return BoundaryPrior(
        {**made.arrays, "/velocity/u": u, "/velocity/sigma_u": u[0, ..., 0] + 1},
        {**made.attributes, "/velocity": facts},
    )


def on(affine_mm, phi_kji):
    """Return the distance in mm at world points of a field on a grid."""

    def at(points):
        ijk = (points - affine_mm[:3, 3]) @ np.linalg.inv(affine_mm[:3, :3]).T
        return map_coordinates(phi_kji.astype(float), ijk.T[::-1], order=1, mode="nearest")

    return at


# Each reader returns what it found of the wall in mm, vertices or a distance, and the names of its
# parts, or None where the format has none.


def read_stl(stem, facts):
    trimesh = pytest.importorskip("trimesh")
    mesh = trimesh.load(f"{stem}.stl")
    assert mesh.is_watertight and mesh.volume > 0
    parts = [p for p in facts["labels"].values() if len(trimesh.load(f"{stem}_{p}.stl").faces)]
    assert f"RAS+ {facts['length_unit']}".encode() in stem.with_suffix(".stl").read_bytes()[:80]
    return mesh.vertices * MILLIMETRES[facts["length_unit"]], parts


def read_vtp(stem, facts):
    mesh = pytest.importorskip("pyvista").read(f"{stem}.vtp")
    found = {name: str(mesh.field_data[name][0]) for name in ("unit", "frame", "labels")}
    assert (found["unit"], found["frame"]) == (facts["length_unit"], "RAS+")
    names = dict(pair.split(":") for pair in found["labels"].split())
    assert mesh.is_manifold
    parts = [names[str(n)] for n in np.unique(mesh.cell_data["label"])]
    assert np.abs(np.linalg.norm(mesh.point_data["normal"], axis=1) - 1).max() < 1e-3
    return np.array(mesh.points) * MILLIMETRES[found["unit"]], parts


def read_simvascular(stem, facts):
    mesh = pytest.importorskip("pyvista").read(f"{stem}.vtp")
    rows = list(Tree.parse(f"{stem}.mdl").getroot().iter("face"))
    ids = {int(row.get("id")): row.get("name") for row in rows}
    assert [r.get("type") for r in rows] == ["wall"] + ["cap"] * (len(rows) - 1)
    parts = [ids[n] for n in np.unique(mesh.cell_data["ModelFaceID"])]
    return np.array(mesh.points) * MILLIMETRES[facts["length_unit"]], parts


def read_openfoam(stem, facts):
    vtk = pytest.importorskip("vtkmodules.vtkIOGeometry")
    reader = vtk.vtkSTLReader()
    reader.SetFileName(f"{stem}.stl")
    reader.ScalarTagsOn()
    reader.Update()
    mesh = pytest.importorskip("pyvista").wrap(reader.GetOutput())
    parts = re.findall(r"^solid (\w+)$", stem.with_suffix(".stl").read_text(), re.MULTILINE)
    assert len(np.unique(mesh.cell_data.active_scalars)) == len(parts)
    inside = re.search(r"locationInMesh \((.*)\)", stem.with_suffix(".snappy").read_text())[1]
    assert np.allclose([float(x) for x in inside.split()], facts["interior_point"])
    return np.array(mesh.points) * MILLIMETRES[facts["length_unit"]], parts


def read_gmsh(stem, facts):
    mesh = pytest.importorskip("meshio").read(f"{stem}.msh")
    tags = mesh.cell_data["gmsh:physical"][0]
    names = {int(tag): name for name, (tag, dim) in mesh.field_data.items() if dim == 2}
    return mesh.points * MILLIMETRES[facts["length_unit"]], [names[t] for t in np.unique(tags)]


def read_hemelb(stem, facts):
    profile = pytest.importorskip("yaml").safe_load(stem.with_suffix(".pr2").read_text())
    assert profile["StlFile"] == f"{stem.name}.stl" and profile["StlFileUnitId"] == 0
    for row, stated in zip(profile["Iolets"], facts["openings"], strict=True):
        normal = np.array([row["Normal"][a] for a in "xyz"])
        assert np.allclose(normal, -np.array(stated["normal_out"]), atol=1e-8)  # into the lumen
        assert row["Radius"] == pytest.approx(stated["radius"])
        assert np.allclose([row["Centre"][a] for a in "xyz"], stated["centre"], rtol=1e-8)
    mesh = pytest.importorskip("trimesh").load(f"{stem}.stl")
    return mesh.vertices * 1e3, ["wall", *(row["Name"] for row in profile["Iolets"])]


def read_palabos(stem, facts):
    found, parts = read_stl(stem, facts)
    root = Tree.parse(f"{stem}_param.xml").getroot()
    named = [row.get("name") for row in root.iter("opening")]
    assert named == [row["name"] for row in facts["openings"]]
    assert root.find("mesh").text.strip() == f"{stem.name}.stl"
    return found, parts


def read_nifti(stem, facts):
    image = nibabel.load(f"{stem}_phi.nii.gz")
    assert image.header.get_xyzt_units()[0] == facts["length_unit"] == "mm"
    mask = nibabel.load(f"{stem}_mask.nii.gz")
    values = np.asarray(image.dataobj).T
    assert np.array_equal(np.asarray(mask.dataobj).T != 0, values < 0)
    return on(image.affine, values), None


def read_xdmf(stem, facts):
    mesh = pytest.importorskip("meshio").read(f"{stem}.xdmf")
    points, scale = mesh.points, MILLIMETRES[facts["length_unit"]]
    corners = points[mesh.cells_dict["hexahedron"]]
    edges = np.abs(np.linalg.norm(corners[:, [1, 3, 4]] - corners[:, [0]], axis=2) * scale)
    assert np.allclose(edges, (0.9, 1.0, 1.25))  # no cell joins samples that are not neighbours
    sides = np.moveaxis(corners[:, [1, 3, 4]] - corners[:, [0]], 1, 0)
    assert np.linalg.det(np.moveaxis(sides, 0, 1)).min() > 0  # nor is any inside out
    phi, normal = mesh.point_data["phi"] * scale, mesh.point_data["normal"]
    near = np.abs(phi) < 1.5
    return points[near] * scale - phi[near, None] * normal[near], None


def read_lbm(stem, facts):
    with np.load(f"{stem}.npz") as file:
        assert (str(file["unit"]), str(file["frame"])) == (facts["length_unit"], "RAS+")
        fraction, ways = file["link_fraction"], file["directions_xyz"]
        affine = file["ijk_to_ras"] * [[1e3], [1e3], [1e3], [1]]
        flags = file["flags"]
    assert set(np.unique(flags)) == {0, 1, 2, 3, 4}
    axial = np.flatnonzero(np.abs(ways).sum(axis=1) == 1)
    found = []
    for way in axial:
        kji = np.argwhere(fraction[way] >= 0)
        ijk = kji[:, ::-1] + fraction[way][tuple(kji.T)][:, None] * ways[way]
        found.append(ijk @ affine[:3, :3].T + affine[:3, 3])
    return np.concatenate(found), None


def read_cutfem(stem, facts):
    """Points of the edges between nodes at which phi = 0, taken for linear along them."""
    with np.load(f"{stem}.npz") as file:
        assert (str(file["unit"]), str(file["frame"])) == (facts["length_unit"], "RAS+")
        phi, affine = file["phi"], file["node_to_ras"][:3] * MILLIMETRES[facts["length_unit"]]
    found = []
    for axis in range(3):
        low, high = (np.moveaxis(phi, axis, 0)[s] for s in (slice(None, -1), slice(1, None)))
        low, high = (np.moveaxis(part, 0, axis) for part in (low, high))
        kji = np.argwhere((low < 0) != (high < 0))
        share = low[tuple(kji.T)] / (low - high)[tuple(kji.T)]
        found.append(kji + share[:, None] * np.eye(3)[axis])
    ijk = np.concatenate(found)[:, ::-1]
    return ijk @ affine[:, :3].T + affine[:, 3], None


def read_npz(stem, facts):
    with np.load(f"{stem}.npz") as file:
        affine = file["ijk_to_ras"] * [[1e3], [1e3], [1e3], [1]]
        assert np.array_equal(file["mask"] != 0, file["level_set"] < 0)
        assert file["u_s"].shape == file["magn"].shape
        return on(affine, file["level_set"] * 1e3), None


def read_peclet(stem, facts):
    with np.load(f"{stem}.npz") as file:
        sdf, affine = file["sdf"], file["ijk_to_ras"] * [[1e3], [1e3], [1e3], [1]]
        assert sdf.dtype == np.float64 and sdf.flags.f_contiguous
        assert np.allclose(file["extent"] / file["cells"], (9e-4, 1e-3, 1.25e-3))
        return on(affine, -1e3 * sdf.T), None


def read_4dflownet(stem, facts):
    with h5py.File(f"{stem}.h5") as file:
        assert file["u"].shape == (2, *GRID.shape_kji[::-1]) and file["u"].dtype == np.float32
        assert np.allclose(file["dx"], (0.9, 1.0, 1.25))  # mm
        # all three measured components share in each axis of an oblique grid
        assert [float(file[f"venc_{n}"][0]) for n in "uvw"] == [max(VENC)] * 3
        share = file["mask"][0].T
    return lambda points: None if share.max() == 1 else points, None


def read_inr(stem, facts):
    with h5py.File(f"{stem}.h5") as file:
        assert file.attrs["unit"] == facts["length_unit"]
        assert file["obs/u"].shape == (len(file["obs/xyz"]), 2)
        assert np.allclose(file["obs/t"][:, 0], (0.0, 0.4))
        parts = ["wall", *sorted(file["openings"])]
        caps = [file[f"openings/{name}/xyz"][...] for name in parts[1:]]
        points = np.concatenate([file["wall/xyz"][...], *caps])
    return points * MILLIMETRES[facts["length_unit"]], parts


READERS = {
    name.removeprefix("read_"): f
    for name, f in globals().items()
    if name[:5] == "read_" and f.__module__ == __name__
}


def test_every_target_has_a_reader():
    assert set(READERS) == set(TARGETS)


@pytest.mark.parametrize("unit", ["own", "mm"])
@pytest.mark.parametrize("target", TARGETS)
def test_an_export_read_back_has_the_wall_where_it_is(prior, target, unit, tmp_path):
    chosen = None if unit == "own" else unit
    if chosen and TARGETS[target].fixed:
        pytest.skip("the unit is the format's own")
    files = export(prior, target, tmp_path / "a" / "case", unit=chosen)
    assert all(f.is_file() for f in files) and sorted(files) == sorted((tmp_path / "a").iterdir())
    facts = json.loads(files[-1].read_text())
    assert facts["frame"] == "RAS+" and facts["length_unit"] == (chosen or TARGETS[target].unit)
    if chosen and target in ("lbm", "npz", "peclet"):
        with np.load(tmp_path / "a" / "case.npz") as file:
            assert np.allclose(file["ijk_to_ras"], AFFINE)
        return
    found, parts = READERS[target](tmp_path / "a" / "case", facts)
    names = [row["name"].decode() for row in prior.openings]
    assert parts is None or set(parts) == {"wall", *names}
    if target == "4dflownet":
        with h5py.File(tmp_path / "a" / "case.h5") as file:
            share = file["mask"][0].T
        assert np.array_equal(share, prior.arrays["/geometry/volume_fraction"])
        return
    reach = WITHIN * GRID.h_min
    wall = prior.vertices_mm
    if callable(found):
        expected = on(AFFINE, prior.phi_mean_mm)(wall)
        assert np.abs(found(wall) - expected).max() < reach
    elif target in ("cutfem", "lbm", "xdmf"):  # points of phi = 0 elsewhere than at the vertices
        axis = GRID.affine[:3, 2] + 0.3 * GRID.affine[:3, 1]
        offset = found - make.middle(GRID)
        away = offset - np.outer(offset @ axis, axis) / (axis @ axis)
        error = np.linalg.norm(away, axis=1) - 5.0
        # a link's phi is taken for linear, and normals are central differences: h²/8r, h²/6r²
        assert abs(error.mean()) < 3 * reach and np.abs(error).max() < 0.05
    else:
        assert cKDTree(found).query(wall)[0].max() < reach
        assert cKDTree(wall).query(found)[0].max() < reach


def test_nodes_lie_at_the_corners_of_voxels_and_hold_the_distance(prior, tmp_path):
    export(prior, "cutfem", tmp_path / "case", unit="mm")
    with np.load(tmp_path / "case.npz") as file:
        phi, affine = file["phi"], file["node_to_ras"]
    assert phi.shape == tuple(n + 1 for n in GRID.shape_kji)
    corner = AFFINE @ [-0.5, -0.5, -0.5, 1.0]
    assert np.allclose(affine[:, 3], corner) and np.allclose(affine[:3, :3], AFFINE[:3, :3])
    axis = AFFINE[:3, 2] + 0.3 * AFFINE[:3, 1]
    exact = make.tube(Grid(phi.shape, affine), 5.0, axis, middle=make.middle(GRID))
    assert np.abs(phi - exact)[np.abs(exact) < 1.5].max() < WITHIN * GRID.h_min
    # back at the voxels by another spline, away from the box where that one knows no neighbours
    inner = np.stack(np.indices(GRID.shape_kji)[(slice(None), *[slice(4, -4)] * 3)], axis=-1)
    back = map_coordinates(phi, np.moveaxis(inner + 0.5, -1, 0), order=3)
    kept = prior.phi_mean_mm[(slice(4, -4),) * 3]
    assert np.abs(back - kept)[np.abs(kept) < 1.5].max() < WITHIN * GRID.h_min


def test_nodes_of_a_half_plane_begin_on_the_axis(tmp_path):
    grid = Grid((12, 26), AFFINE)
    middle = AFFINE[:3, 3] - 0.5 * AFFINE[:3, 1] + 12.0 * AFFINE[:3, 0]
    ball = np.linalg.norm(make.points(grid) - middle, axis=-1) - 5.0
    export(make.prior(ball, grid, settings=PriorSettings(axis="i")), "cutfem", tmp_path / "case")
    with np.load(tmp_path / "case.npz") as file:
        phi, nodes = 1e3 * file["phi"], Grid((13, 27), file["node_to_ras"] * 1e3)
    away = np.linalg.norm(make.points(nodes) - middle, axis=-1)
    assert away[0].min() == pytest.approx(
        0.45
    )  # the axis: half a voxel before and after the ball's
    near = np.abs(away - 5.0) < 1.5
    assert near[0].any() and np.abs(phi - away + 5.0)[near].max() < WITHIN


def test_gmsh_reads_the_groups(prior, tmp_path):
    gmsh = pytest.importorskip("gmsh")
    export(prior, "gmsh", tmp_path / "case")
    gmsh.initialize(interruptible=False)
    try:
        gmsh.option.setNumber("General.Terminal", 0)
        gmsh.open(str(tmp_path / "case.msh"))
        found = {gmsh.model.getPhysicalName(*g) for g in gmsh.model.getPhysicalGroups(2)}
        count = len(gmsh.model.mesh.getNodes()[0])
    finally:
        gmsh.finalize()
    assert found == {"wall", *(row["name"].decode() for row in prior.openings)}
    assert count == len(prior.vertices_m)


def test_velocity_without_orientation_has_components_along_the_arrays(prior, tmp_path):
    export(prior, "4dflownet", tmp_path / "case")
    volume = Volume(np.zeros(GRID.shape_kji), GRID)
    back = read_flow([tmp_path / "case.h5"], volume)  # u, v, w of this layout are along i, j, k
    assert np.abs(back.u_ms - prior.arrays["/velocity/u"]).max() < 1e-6


def test_frames_of_a_cycle_of_unknown_length_have_times_of_their_own(prior, tmp_path):
    facts = {**prior.attributes["/velocity"], "rr_s": 0.0}
    unknown = BoundaryPrior(prior.arrays, {**prior.attributes, "/velocity": facts})
    for name, held, expected in (("a", prior, (0.8, "s")), ("b", unknown, (1.0, "cycles"))):
        export(held, "inr", tmp_path / name)
        with h5py.File(tmp_path / f"{name}.h5") as file:
            period, time_unit = expected
            assert np.allclose(file["obs/t"][:, 0], (0.0, period / 2))
            assert file.attrs["time"] == time_unit


def test_a_second_export_leaves_no_part_of_the_first(prior, tmp_path):
    first = export(prior, "stl", tmp_path / "case")
    (tmp_path / "case_notes.stl").write_bytes(b"of the user")
    closed = make.small()
    second = export(closed, "stl", tmp_path / "case", overwrite=True)
    parts = {row["name"].decode() for row in prior.openings}
    assert {f.name for f in first} - {f.name for f in second} == {f"case_{p}.stl" for p in parts}
    assert set(tmp_path.iterdir()) == {*second, tmp_path / "case_notes.stl"}
    export(closed, "vtp", tmp_path / "case", overwrite=True)
    assert set(second) < set(tmp_path.iterdir())  # those of another target are not of this export


def test_a_full_disk_leaves_the_whole_of_the_first_export(prior, tmp_path, monkeypatch):
    export(make.small(), "palabos", tmp_path / "case")
    before = {f: f.read_bytes() for f in tmp_path.iterdir()}
    store, stored = atomic._store, []

    def full(temp, data):
        stored.append(temp)
        if data != b"probe" and len(stored) > 2 * len(before):
            raise OSError(errno.ENOSPC, "no space left")
        store(temp, data)

    monkeypatch.setattr(atomic, "_store", full)
    with pytest.raises(EnvironmentFault, match="no space"):
        export(prior, "palabos", tmp_path / "case", overwrite=True)
    assert len(stored) > 2 * len(before)  # some files were stored already
    assert before == {f: f.read_bytes() for f in tmp_path.iterdir()}


def test_equal_priors_give_equal_bytes(prior, tmp_path):
    for target in TARGETS:
        first, second = (export(prior, target, tmp_path / n / target) for n in "ab")
        assert [f.read_bytes() for f in first] == [f.read_bytes() for f in second], target


def test_refusals_name_the_fault_and_write_nothing(prior, tmp_path):
    still = make.small()
    with pytest.raises(DataError, match="no velocity"):
        export(still, "4dflownet", tmp_path / "x")
    with pytest.raises(ConfigError, match="did you mean stl"):
        export(still, "stll", tmp_path / "x")
    with pytest.raises(ConfigError, match="unit is fixed"):
        export(still, "nifti", tmp_path / "x", unit="m")
    with pytest.raises(ConfigError, match="unknown unit"):
        export(still, "stl", tmp_path / "x", unit="inch")
    with pytest.raises(ConfigError, match="bad name"):
        export(still, "stl", tmp_path / "a b;c")
    for target, name in (("stl", "x.stl"), ("nifti", "x.nii.gz"), ("palabos", "x.json")):
        with pytest.raises(ConfigError, match=r"is added by the export; give x$"):
            export(still, target, tmp_path / name)
    assert not list(tmp_path.iterdir())
    export(still, "peclet", tmp_path / "x")
    before = {f: f.read_bytes() for f in tmp_path.iterdir()}
    with pytest.raises(ConfigError, match="output exists"):
        export(still, "peclet", tmp_path / "x")
    assert before == {f: f.read_bytes() for f in tmp_path.iterdir()}


def test_two_dimensional_priors_have_their_exports_and_one_line_for_the_others(tmp_path):
    grid = Grid((30, 34), AFFINE)
    flat = make.prior(make.sphere(grid, 6.0), grid)
    for target, facts in TARGETS.items():
        if facts.planar:
            assert export(flat, target, tmp_path / f"p-{target}")
        else:
            with pytest.raises(DataError, match="no 2-D form"):
                export(flat, target, tmp_path / f"q-{target}")


def test_an_axisymmetric_prior_says_so_and_names_its_axis(tmp_path):
    pyvista = pytest.importorskip("pyvista")
    grid = Grid((14, 30), AFFINE)
    direction, outward = (AFFINE[:3, a] / np.linalg.norm(AFFINE[:3, a]) for a in (0, 1))
    axis = AFFINE[:3, 3] - 0.5 * AFFINE[:3, 1]  # half a sample before the first row
    settings = PriorSettings(axis="i")
    middle = axis + 13.0 * direction
    ball = np.linalg.norm(make.points(grid) - middle, axis=-1) - 6.0
    swept = make.prior(ball, grid, settings=settings)
    for target, chosen in TARGETS.items():
        if chosen.planar:
            *_, statement = export(swept, target, tmp_path / target)
            facts = json.loads(statement.read_text())
            scale = MILLIMETRES[facts["length_unit"]]
            assert facts["geometry_kind"] == "axisymmetric"
            offset = np.array(facts["axis"]["point"]) * scale - axis
            assert np.abs(offset - (offset @ direction) * direction).max() < 1e-9
            assert np.allclose(facts["axis"]["direction"], direction)
    mesh = pyvista.read(tmp_path / "vtp.vtp")
    points, label = np.array(mesh.points) * 1e3, mesh.cell_data["label"]
    corners = points[mesh.lines.reshape(-1, 3)[:, 1:]]
    on_axis = np.abs((corners - axis) @ outward).max(axis=1) < 1e-6
    assert np.array_equal(label == 0, on_axis) and on_axis.any()
    assert "0:axis" in str(mesh.field_data["labels"][0])
    wall = np.linalg.norm(corners[label == 1] - middle, axis=-1)
    assert np.abs(wall - 6.0).max() < 0.05


def test_the_verb_writes_the_files_and_says_so(tmp_path, capsys):
    make.small().write(tmp_path / "x.prior.h5")
    call = ["export", str(tmp_path / "x.prior.h5"), "--to", "vtp", "-o", str(tmp_path / "out/w")]
    assert main([*call, "--json"]) == 0
    files = json.loads(capsys.readouterr().out)["files"]
    assert files == [str(tmp_path / "out/w.vtp"), str(tmp_path / "out/w.json")]
    assert main(call) == 2
    assert "output exists" in capsys.readouterr().err
