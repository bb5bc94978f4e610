"""The examples do what they say on a tube whose flow is known."""

import importlib
import sys
from itertools import islice
from pathlib import Path

import h5py
import numpy as np
import prior_builders as make
import pytest

from vesselseg.export import export
from vesselseg.grid import Grid
from vesselseg.prior.boundary import BoundaryPrior

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
GRID = Grid((12, 17, 17), make.oblique((1.0, 1.0, 1.0)))
RADIUS = 4.0


@pytest.fixture(scope="module")
def prior():
    return make.prior(make.tube(GRID, RADIUS, GRID.affine[:3, 2]), GRID)


def test_the_mesh_fills_the_lumen_and_its_flow_is_that_of_poiseuille(prior, tmp_path):
    pytest.importorskip("gmsh")
    pytest.importorskip("skfem")
    meshio = pytest.importorskip("meshio")
    volume_mesh, stokes = (importlib.import_module(n) for n in ("volume_mesh", "stokes"))
    file = tmp_path / "lumen.msh"
    count = volume_mesh.mesh(prior, file)
    made = meshio.read(file)
    tetra = made.points[made.cells_dict["tetra"]]
    size = np.einsum("ij,ij->i", np.cross(tetra[:, 1] - tetra[:, 0], tetra[:, 2] - tetra[:, 0]),
                     tetra[:, 3] - tetra[:, 0]) / 6  # fmt: skip
    assert len(tetra) == count
    stored = prior.attributes["/surface"]["volume_m3"]
    assert np.abs(size).sum() == pytest.approx(stored, rel=1e-6)
    names = [row["name"].decode() for row in prior.openings]
    assert set(made.field_data) == {"wall", "lumen", *names}
    centres = np.array([row["centre_m"] for row in prior.openings])
    length = np.linalg.norm(centres[0] - centres[1])
    rates = stokes.flow_rates(stokes.MeshTet.load(file), names[0], 10.0)
    exact = np.pi * (RADIUS * 1e-3) ** 4 * 10.0 / (8 * stokes.VISCOSITY * length)
    # the facets of a tube of four voxels keep its volume, not the fourth power of its radius
    assert -rates[names[0]] == pytest.approx(exact, rel=0.02)
    assert rates[names[1]] == pytest.approx(-rates[names[0]], rel=1e-6)  # nothing is lost


def test_every_piece_of_the_lumen_is_filled(tmp_path):
    pytest.importorskip("gmsh")
    volume_mesh = importlib.import_module("volume_mesh")
    grid = Grid.from_spacing((14, 14, 26), 1.0)
    both = [np.linalg.norm(make.points(grid) - c, axis=-1) - 3.4 for c in ((6, 6, 6), (18, 7, 7))]
    prior = make.prior(np.min(both, axis=0), grid)
    assert prior.attributes["/geometry"]["n_components"] == 2
    assert volume_mesh.mesh(prior, tmp_path / "lumen.msh") > 100  # it compares the volume itself
    stated = {**prior.attributes["/surface"], "volume_m3": 2e-7}
    wrong = BoundaryPrior(prior.arrays, {**prior.attributes, "/surface": stated})
    with pytest.raises(RuntimeError, match="nothing is written"):
        volume_mesh.mesh(wrong, tmp_path / "other.msh")
    assert not (tmp_path / "other.msh").exists()


def test_the_sampler_stays_in_the_lumen_and_jitters_the_wall_by_its_deviation(prior, tmp_path):
    sampler = importlib.import_module("pinn_sampler")
    export(prior, "inr", tmp_path / "lumen")
    drawn = list(islice(sampler.batches(tmp_path / "lumen.h5", 2000, seed=1), 3))
    axis = GRID.affine[:3, 2]

    def radii(points_m):
        offset = points_m * 1e3 - make.middle(GRID)
        return np.linalg.norm(offset - np.outer(offset @ axis, axis), axis=1)

    for batch in drawn:
        assert radii(batch["inside"]).max() < RADIUS
        # builders state 0.2 voxel; 2000 draws give it to 1/sqrt(4000) = 1.6 % each
        assert np.std(radii(batch["wall"])) == pytest.approx(0.2, rel=0.06)
        assert np.allclose(batch["weight"], 1 / 2e-4**2, rtol=1e-5)
        assert "data" not in batch
    assert not np.array_equal(drawn[0]["inside"], drawn[1]["inside"])
    again = next(sampler.batches(tmp_path / "lumen.h5", 2000, seed=1))
    assert np.array_equal(again["wall"], drawn[0]["wall"])
    with h5py.File(tmp_path / "lumen.h5", "r+") as file:
        points = len(file["obs/xyz"])
        file["obs/t"] = np.array([[0.0], [0.4]])
        for part, name in enumerate("uvw"):
            file[f"obs/{name}"] = np.full((points, 2), float(part))
    batch = next(sampler.batches(tmp_path / "lumen.h5", 10))
    assert batch["data"].shape == (10, 4) and np.array_equal(batch["velocity"][0], (0.0, 1.0, 2.0))
