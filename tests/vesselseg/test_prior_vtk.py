"""What VTK and pyvista show of a prior: the wall where it is in the world."""

import io

import h5py
import numpy as np
import prior_builders as make
import pytest

from vesselseg.grid import Grid

AFFINES = {
    "anisotropic": np.diag([0.8, 1.0, 1.3, 1.0]),
    "oblique": make.oblique((0.8, 1.0, 1.3)),
    "left-handed": make.oblique((0.8, 1.0, 1.3), left_handed=True),
}
SHAPES = {"sphere": lambda g: make.sphere(g, 6.0), "torus": lambda g: make.torus(g, 7.0, 4.0)}


def distance_mm(shape, grid, points_m):
    offset = np.asarray(points_m) * 1e3 - make.middle(grid)
    if shape == "sphere":
        return np.linalg.norm(offset, axis=1) - 6.0
    return np.hypot(np.hypot(*offset.T[:2]) - 7.0, offset[:, 2]) - 4.0


@pytest.fixture(params=[(s, a) for s in SHAPES for a in AFFINES], ids=" ".join)
def written(request, tmp_path):
    shape, name = request.param
    grid = Grid((26, 30, 34), AFFINES[name])
    prior = make.prior(SHAPES[shape](grid), grid)
    path = tmp_path / "x.prior.h5"
    prior.write(path)
    return shape, grid, prior, path


def test_pyvista_shows_the_wall_in_the_right_place(written):
    pyvista = pytest.importorskip("pyvista")
    shape, grid, prior, path = written
    blocks = pyvista.read(path, force_ext=".vtkhdf")
    volume, wall = blocks["volume"][0], blocks["wall"][0]
    assert np.array_equal(wall.points, prior.vertices_m)
    # corners of triangles stand out by their sagitta, never farther than this
    assert np.abs(distance_mm(shape, grid, wall.points)).max() < 0.05 * grid.h_max
    assert np.array_equal(wall.regular_faces, prior.faces)
    assert {"vertex_normal", "vertex_std", "vertex_curvature", "face_label"} <= set(
        wall.array_names
    )
    assert wall.volume == pytest.approx(prior.attributes["/surface"]["volume_m3"], rel=1e-6)
    fields = {p.rsplit("/")[-1] for p, a in prior.arrays.items() if a.shape[:3] == grid.shape_kji}
    assert set(volume.array_names) == fields
    assert np.array_equal(volume["phi_mean"], prior.phi_mean_m.ravel())
    again = volume.contour([0.0], scalars="phi_mean", method="flying_edges")
    # linear along the edges of the grid: h²κ/8
    assert np.abs(distance_mm(shape, grid, again.points)).max() < 0.08 * grid.h_max


def test_vtk_reads_both_blocks(written):
    modules = pytest.importorskip("vtkmodules.vtkIOHDF")
    _, grid, prior, path = written
    reader = modules.vtkHDFReader()
    reader.SetFileName(str(path))
    reader.Update()
    blocks = reader.GetOutput()
    assert blocks.GetNumberOfBlocks() == 2
    volume, wall = leaves(blocks)
    assert volume.GetDimensions() == grid.shape_kji[::-1]
    assert wall.GetNumberOfPolys() == len(prior.faces)
    for index, point in ((0, 0), (np.array(grid.shape_kji) - 1, volume.GetNumberOfPoints() - 1)):
        expected = grid.world(np.broadcast_to(index, 3))
        assert np.allclose(np.array(volume.GetPoint(point)) * 1e3, expected, atol=1e-9)


def leaves(block):
    """Data sets below a block of VTK."""
    if not hasattr(block, "GetNumberOfBlocks"):
        return [block]
    return [leaf for n in range(block.GetNumberOfBlocks()) for leaf in leaves(block.GetBlock(n))]


def test_planar_prior_has_arrays_and_lines(tmp_path):
    pyvista = pytest.importorskip("pyvista")
    grid = Grid((30, 34), make.oblique((0.8, 1.0, 3.0)))
    prior = make.prior(make.sphere(grid, 6.0), grid)
    prior.write(tmp_path / "x.prior.h5")
    blocks = pyvista.read(tmp_path / "x.prior.h5", force_ext=".vtkhdf")
    volume, wall = blocks["volume"][0], blocks["wall"][0]
    assert volume.dimensions == (34, 30, 1)
    assert np.array_equal(volume["phi_mean"], prior.phi_mean_m.ravel())
    assert wall.n_lines == len(prior.faces)
    assert np.abs(distance_mm("sphere", grid, wall.points)).max() < 0.02


def test_structure_is_what_vtk_needs():
    """Always run: each item silently empties the blocks when it is missing."""
    with h5py.File(io.BytesIO(make.small().to_bytes()), "r") as file:
        root = file["VTKHDF"]
        for group in (root, root["Assembly"], root["Assembly/volume"], root["Assembly/wall"]):
            assert (
                group.id.get_create_plist().get_link_creation_order() & h5py.h5p.CRT_ORDER_TRACKED
            )
        assert [root[b].attrs["Index"] for b in ("volume", "wall")] == [0, 1]
        for name in ("volume", "wall"):
            assert root["Assembly"][name].get(name, getlink=True).path == f"/VTKHDF/{name}"
        assert root.attrs["Version"].tolist() == [2, 2]
        for group, kind in ((root, "MultiBlockDataSet"), (root["volume"], "ImageData")):
            stored = group.attrs.get_id("Type")
            assert stored.dtype.kind == "S" and group.attrs["Type"].decode() == kind
        for kind in ("Vertices", "Lines", "Polygons", "Strips"):
            assert set(root["wall"][kind]) == {
                "Connectivity", "Offsets", "NumberOfCells", "NumberOfConnectivityIds",
            }  # fmt: skip


def test_every_dataset_is_protected():
    """Chunked, shuffled, deflated, checksummed; no clock, no scalar, no variable length."""
    with h5py.File(io.BytesIO(make.small().to_bytes()), "r") as file:
        seen = []

        def visit(name, item):
            for key in item.attrs:
                assert item.attrs.get_id(key).dtype.kind in "Siuf", (name, key)
            if isinstance(item, h5py.Dataset):
                seen.append(name)
                assert item.shape != () and {"units", "sha256"} <= set(item.attrs)
                if item.size:
                    assert item.fletcher32 and item.shuffle and item.compression == "gzip"
                    assert np.prod(item.chunks) <= 3 * 32**3
                assert h5py.h5o.get_info(item.id).mtime == 0

        file.visititems(visit)
        assert len(seen) > 30
