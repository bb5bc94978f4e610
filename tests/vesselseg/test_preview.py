"""Pictures of priors: what is where, in any orientation, in two and three dimensions."""

import io
import re
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from vesselseg.grid import Grid
from vesselseg.preview.page import Scene, draw, within
from vesselseg.preview.planes import deepest, planes
from vesselseg.preview.wall import decimate, vertex_normals

CODES = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}


def grid_of(codes, shape, spacing):
    """A grid whose i, j, k run towards the three letters."""
    affine = np.eye(4)
    affine[:3, :3] = 0.0
    for column, letter in enumerate(codes):
        axis, sign = CODES[letter]
        affine[axis, column] = sign * spacing[::-1][column]
    return Grid(shape, affine)


def ball(grid, radius):
    """Signed distance to a ball in the middle of the grid, and its triangles."""
    from skimage.measure import find_contours, marching_cubes

    index = np.moveaxis(np.indices(grid.shape_kji), 0, -1)
    centre = grid.world((np.array(grid.shape_kji) - 1) / 2)
    phi = np.linalg.norm(grid.world(index) - centre, axis=-1) - radius
    if grid.ndim == 3:
        vertices, faces, _, _ = marching_cubes(phi, 0.0)
        return phi, grid.world(vertices), faces[:, ::-1]
    line = find_contours(phi, 0.0)[0][:-1]
    edges = np.stack([np.arange(len(line)), np.roll(np.arange(len(line)), -1)], axis=1)
    return phi, grid.world(line), edges


def scene_of_ball(grid, radius, **facts):
    phi, vertices, faces = ball(grid, radius)
    sigma = np.full(phi.shape, 0.2)
    return Scene(
        name="ball",
        grid=grid,
        phi=phi,
        sigma=sigma,
        vertices=vertices,
        faces=faces,
        vertex_sigma=np.full(len(vertices), 0.2),
        **facts,
    )


@pytest.mark.parametrize(
    ("shape", "spacing"), [((14, 22, 18), (2.0, 0.8, 1.0)), ((24, 20), (0.7, 1.0))]
)
@pytest.mark.parametrize("full", [True, False])
def test_a_prior_with_and_without_images_becomes_a_png(shape, spacing, full):
    grid = Grid.from_spacing(shape, spacing)
    scene = scene_of_ball(grid, 5.0)
    if full:
        probability = 1.0 / (1.0 + np.exp(scene.phi))
        facts = {"image": -scene.phi, "probability": probability, "step_rms": np.array([0.2, 0.1])}
        scene = scene_of_ball(grid, 5.0, **facts)
    with Image.open(io.BytesIO(draw(scene, dpi=50))) as image:
        assert image.size == (666, 375)
        colours = np.asarray(image.convert("RGB")).reshape(-1, 3)
    assert len(np.unique(colours, axis=0)) > 100  # walls and bands, not an empty page


def test_the_same_scene_gives_the_same_bytes():
    scene = scene_of_ball(Grid.from_spacing((12, 12, 12), 1.0), 4.0)
    assert draw(scene, dpi=40) == draw(scene, dpi=40)


def texts_of(scene, monkeypatch):
    """Every text of the picture."""
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    found = []
    save = Figure.savefig

    def record(figure, *arguments, **options):
        save(figure, *arguments, **options)
        found.extend(text.get_text() for text in figure.findobj(Text))

    monkeypatch.setattr(Figure, "savefig", record)
    draw(scene, dpi=40)
    return [text for text in found if text and text not in scene.notes]


@pytest.mark.parametrize("note", ["voxel size unknown: 1 mm assumed", None])
@pytest.mark.parametrize(("shape", "bars"), [((16, 14, 20), 4), ((24, 20), 1)])
def test_lengths_are_in_voxels_where_the_voxel_size_is_assumed(monkeypatch, note, shape, bars):
    grid = Grid.from_spacing(shape, 2.0)
    notes = () if note is None else (note,)
    shown = texts_of(scene_of_ball(grid, 10.0, step_rms=np.array([0.4]), notes=notes), monkeypatch)
    unit, other = ("mm", r"\bvoxels?$") if note is None else ("voxels", r"\bmm\b")
    size = " × ".join(map(str, shape[::-1])) + " voxels"
    assert (size in shown) == (note is not None)
    assert unit in shown  # above the colours of the standard deviation
    assert f"rms displacement, {unit}" in shown
    assert len([t for t in shown if re.fullmatch(rf"[\d.]+ {unit[:5]}s?", t)]) == bars
    assert not [t for t in shown if re.search(other, t) and t != size]


def test_an_assumed_voxel_size_does_not_change_the_picture():
    """Lengths four times as large, exactly, in a picture in voxels."""
    facts = {"notes": ("unit of length unknown in the header: mm taken",)}
    small, large = (
        replace(
            scene_of_ball(Grid.from_spacing((14, 12, 16), (2.0 * s, s, s)), 5.0 * s, **facts),
            step_rms=s * np.array([0.2, 0.1]),
            sigma=np.full((14, 12, 16), 0.2 * s),
        )
        for s in (1.0, 4.0)
    )
    large = replace(large, vertex_sigma=4.0 * large.vertex_sigma)
    assert small.size == large.size == "16 × 12 × 14 voxels, sides 1 : 1 : 2"
    assert draw(small, dpi=40) == draw(large, dpi=40)
    assert draw(replace(small, notes=()), dpi=40) != draw(replace(large, notes=()), dpi=40)


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PSR", "SLA", "IRP", "ARI"])
def test_slices_show_the_patient_the_same_way_in_every_orientation(codes):
    """A mark to the patient's left, front and top lies at the same place on the page."""
    shape, spacing = (9, 11, 13), (1.5, 1.0, 0.5)
    grid = grid_of(codes, shape, spacing)
    index = np.moveaxis(np.indices(shape), 0, -1)
    world = grid.world(index)
    low, high = world.reshape(-1, 3).min(0), world.reshape(-1, 3).max(0)
    share = (world - low) / (high - low)
    for plane, (right, up) in zip(planes(grid, True), ((0, 1), (0, 2), (1, 2)), strict=True):
        middle = (np.array(shape) - 1) // 2
        rightwards = plane.cut(share[..., right], middle)
        upwards = plane.cut(share[..., up], middle)
        sign = -1 if right == 0 else 1  # the patient's right is on the left of the page
        assert (sign * np.diff(rightwards, axis=1) > 0).all()
        assert (np.diff(upwards, axis=0) > 0).all()
        letters = {0: "RL", 1: "PA"}[right] + {1: "PA", 2: "IS"}[up]
        assert "".join(plane.letters) == letters


def test_a_voxel_is_placed_where_its_slice_shows_it():
    grid = grid_of("LPS", (5, 6, 7), (2.0, 1.0, 0.5))
    values = np.zeros(grid.shape_kji)
    at = np.array([1, 4, 2])
    values[tuple(at)] = 1.0
    for plane in planes(grid, True):
        shown = plane.cut(values, at)
        row, column = np.unravel_index(int(shown.argmax()), shown.shape)
        up, right = plane.spacing(grid)
        assert plane.place(grid, at) == pytest.approx((column * right, row * up))


def test_the_tip_of_every_arrow_lies_in_the_picture():
    """Matplotlib draws no arrow whose tip does not: an opening near the edge had none."""
    axes = Figure().add_subplot()
    axes.set(xlim=(0, 20), ylim=(30, 0))  # rows of an image run downwards
    middle, way = np.array([10.0, 2.0]), np.array([3.0, -6.0])
    for tail, tip, slid in ((middle, middle + way, 4 / 6), (middle + way, middle, 0.0)):
        ends = within(axes, (tail, tip))
        assert np.allclose(ends[1], tip - slid * (tip - tail)) and ends[1][1] >= 0.0
        assert np.allclose(ends[1] - ends[0], tip - tail)


def test_no_letters_without_an_orientation():
    grid = Grid.from_spacing((8, 8, 8), 1.0)
    assert all(plane.letters == ("", "", "", "") for plane in planes(grid, False))
    note = "no orientation in the header: axes taken as right, anterior, superior"
    assert not scene_of_ball(grid, 3.0, notes=(note,)).oriented
    assert scene_of_ball(grid, 3.0).oriented


def test_the_slices_pass_through_the_thickest_lumen():
    grid = Grid.from_spacing((20, 20, 40), (1.0, 1.0, 1.0))
    index = np.moveaxis(np.indices(grid.shape_kji), 0, -1)
    thin = np.linalg.norm(index - (10, 10, 8), axis=-1) - 3
    thick = np.linalg.norm(index - (9, 11, 28), axis=-1) - 6
    at, depth = deepest(np.minimum(thin, thick), grid)
    assert np.array_equal(at, (9, 11, 28))
    assert depth == pytest.approx(6.0, abs=1.0)  # to a voxel: distance to the nearest outside


def test_decimation_keeps_place_and_colour(monkeypatch):
    grid = Grid.from_spacing((30, 30, 30), 1.0)
    _, vertices, faces = ball(grid, 10.0)
    monkeypatch.setattr("vesselseg.preview.wall.MAX_FACES", 1000)
    fewer, kept, values = decimate(vertices, faces, vertices[:, 0])
    assert 100 < len(kept) <= 1000 < len(faces)
    radius = np.linalg.norm(fewer - vertices.mean(0), axis=1)
    assert np.abs(radius - 10.0).max() < 1.5  # about the size of a merged cell
    assert values == pytest.approx(fewer[:, 0])
    outward = vertex_normals(vertices, faces) * (vertices - vertices.mean(0))
    assert (outward.sum(1) > 0).all()
