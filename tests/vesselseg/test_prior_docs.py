"""The documentation of the format says what the code does."""

import json
import re
from pathlib import Path

import numpy as np
import prior_builders as make
import pytest

from vesselseg.grid import Grid
from vesselseg.prior.schema import OPENING, OPENING_UNITS, markdown_table

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "prior-format.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


@pytest.fixture(params=["unit", "oblique", "planar"])
def written(request, tmp_path):
    affine = make.oblique((0.8, 1.0, 1.3), left_handed=True)
    grid = {
        "unit": Grid.from_spacing((20, 20, 20), 1.0),
        "oblique": Grid((20, 22, 24), affine),
        "planar": Grid((24, 26), affine),
    }[request.param]
    prior = make.prior(make.sphere(grid, 5.0), grid)
    path = tmp_path / "x.prior.h5"
    prior.write(path)
    return grid, prior, path


def test_table_of_contents_is_the_schema():
    """Regenerate it with ``vesselseg.prior_schema.markdown_table()``."""
    assert markdown_table() in TEXT


def test_openings_table_is_documented():
    for name in OPENING.names:
        assert f"{name}=" in OPENING_UNITS
        assert re.search(rf"`{name}(\[3\])?`", TEXT), name


def test_reader_is_twenty_lines_that_need_h5py_and_numpy_alone():
    imports = re.findall(r"^(?:import|from) (\w+)", BLOCKS[0], re.MULTILINE)
    assert imports == ["h5py", "numpy"]
    body = BLOCKS[0].split("def read_prior")[1].strip().splitlines()
    assert len(body) <= 20


def test_reader_and_sampler_of_the_documentation_work(written, capsys):
    grid, prior, path = written
    names = {}
    exec(BLOCKS[0] + BLOCKS[1], names)
    phi, std, s, covariance, spacing, vertices, cells, inside = names["read_prior"](path)
    assert "no opening found" in capsys.readouterr().out
    assert np.array_equal(phi, prior.phi_mean_m)
    assert np.array_equal(vertices, prior.vertices_m) and np.array_equal(cells, prior.faces)
    expected = make.points(grid)[prior.phi_mean_m < 0] * 1e-3
    assert np.allclose(inside, expected, atol=1e-12)
    draws = [
        names["draw"](phi, std, s, covariance, spacing, np.random.default_rng(n)) for n in range(60)
    ]
    spread = np.sqrt(np.mean(np.square(np.array(draws) - phi), axis=0))
    assert abs(float(np.mean(spread / std)) - 1) < 0.15  # 60 draws, few independent patches
    colour = prior.log_density(draws[0]) / (-0.5 * phi.size)
    assert colour == pytest.approx(1.0, rel=0.2)  # white: chi-squared of the number of voxels


def test_viewer_lines_work(written):
    pyvista = pytest.importorskip("pyvista")
    grid, prior, path = written
    code = BLOCKS[2].replace('"x.prior.h5"', "path").replace("wall.plot", "wall.set_active_scalars")
    code = code.replace('scalars="vertex_std"', '"vertex_std"')
    names = {"path": path, "pyvista": pyvista}
    exec(code, names)
    centre = make.middle(grid) * 1e-3
    radius = np.linalg.norm(names["wall"].points - centre, axis=1)
    assert np.abs(radius - 5e-3).max() < 0.05e-3  # the sagitta of the triangles
    if prior.phi_mean_m.ndim == 3:
        radius = np.linalg.norm(names["contour"].points - centre, axis=1)
        assert np.abs(radius - 5e-3).max() < 0.08e-3


def test_the_figures_of_the_draws_are_those_of_the_study():
    found = json.loads((ROOT / "studies" / "results" / "draws.json").read_text())["table"]
    degrees = [f"{row['normals, degrees rms']:.1f}°" for row in found]
    assert f"{degrees[0]}, {degrees[1]} and {degrees[2]} rms" in TEXT
    ratio = [row["variance of the draws / of the file"] for row in found]
    assert max(abs(r - 1) for r in ratio) < 0.003 and "within 0.3 %" in TEXT
