"""Stated rules for islands, holes and components; the topology of a lumen, counted and kept."""

import itertools

import numpy as np
import pytest
from scipy import ndimage
from skimage.measure import euler_number as peer_euler_number

from vesselseg import phantoms
from vesselseg.cuda_kernels.simple_points import are_simple
from vesselseg.errors import ConfigError, DataError, NoInterfaceError
from vesselseg.fields import LevelSet, Volume
from vesselseg.solvers import redistance
from vesselseg.solvers.refine import refine
from vesselseg.solvers.settings import RefineSettings
from vesselseg.solvers.topology import (
    SMALLEST_VOXELS,
    euler_number,
    keep_components,
    keep_topology,
    topology_report,
)


def box(shape, *parts):
    """Make a level set of ±1: boxes (start, stop per axis) of lumen."""
    phi = np.ones(shape, np.float32)
    for part in parts:
        phi[tuple(slice(a, b) for a, b in part)] = -1.0
    return phi


LARGE = ((2, 8), (2, 8), (2, 12))
MIDDLE = ((2, 8), (12, 18), (2, 8))
ISLAND = ((12, 14), (2, 4), (2, 4))
SHAPE = (16, 20, 16)


def count(phi, part):
    return int(np.sum(phi[tuple(slice(a, b) for a, b in part)] < 0))


def test_a_clean_lumen_is_returned_as_it_is():
    phi = box(SHAPE, LARGE)
    out, notes = keep_components(phi)
    assert out is phi
    assert notes == ()


@pytest.mark.parametrize(
    ("choice", "options", "kept"),
    [
        ("all", {}, (True, True)),
        ("largest", {}, (True, False)),
        (1, {}, (True, False)),
        (2, {}, (True, True)),
        (5, {}, (True, True)),
        ("seed", {"seed_kji": (4, 14, 4)}, (False, True)),
    ],
)
def test_components_are_chosen(choice, options, kept):
    out, notes = keep_components(box(SHAPE, LARGE, MIDDLE), choice, **options)
    assert (count(out, LARGE) > 0, count(out, MIDDLE) > 0) == kept
    assert any("left out" in note for note in notes) == (kept != (True, True))


def test_islands_below_the_resolution_go_and_are_counted():
    out, notes = keep_components(box(SHAPE, LARGE, ISLAND))
    assert count(out, ISLAND) == 0
    assert count(out, LARGE) == 6 * 6 * 10
    assert notes == (f"1 lumen islands below {SMALLEST_VOXELS[3]} voxels removed",)


def test_a_lumen_of_islands_alone_keeps_the_largest():
    other = ((2, 4), (2, 4), (2, 5))
    out, _ = keep_components(box(SHAPE, ISLAND, other))
    assert count(out, other) == 12
    assert count(out, ISLAND) == 0


def test_small_holes_are_filled_and_large_ones_stay():
    """A hole of eight voxels goes; the tunnel of a ring, open to the outside, is none."""
    phi = box(SHAPE, LARGE)
    phi[4:6, 4:6, 4:6] = 0.5
    out, notes = keep_components(phi)
    assert count(out, LARGE) == 6 * 6 * 10
    assert any("holes" in note for note in notes)
    ring = box((7, 12, 12), ((1, 6), (1, 11), (1, 11)))
    ring[:, 5:7, 5:7] = 1.0
    assert keep_components(ring)[1] == ()


def test_two_dimensions_have_their_own_limit():
    """A disc of twelve pixels is an island, one of sixteen is not."""
    main = ((2, 8), (2, 12))
    small, enough = ((12, 15), (2, 6)), ((12, 16), (8, 12))
    out, _ = keep_components(box((20, 20), main, small, enough))
    assert count(out, small) == 0
    assert count(out, enough) == 16


@pytest.mark.parametrize("choice", [0, -1])
def test_a_senseless_number_is_refused(choice):
    with pytest.raises(ConfigError):
        keep_components(box(SHAPE, LARGE), choice)


@pytest.mark.parametrize("seed", [None, (0, 0, 0)])
def test_a_seed_outside_the_lumen_is_refused(seed):
    with pytest.raises(NoInterfaceError, match="seed"):
        keep_components(box(SHAPE, LARGE), "seed", seed_kji=seed)


def test_the_input_is_not_modified_and_only_signs_change():
    phi = box(SHAPE, LARGE, ISLAND) * np.linspace(0.5, 2.0, SHAPE[2], dtype=np.float32)
    before = phi.copy()
    out, _ = keep_components(phi)
    assert np.array_equal(phi, before)
    assert np.array_equal(np.abs(out), np.abs(phi))


def test_background_that_reaches_a_face_is_no_hole():
    """A lumen across the corner of the image leaves a few voxels beyond it; they stay."""
    y, x = np.indices((20, 20))
    phi = np.where(np.abs(x + y - 5) < 2.5, -1.0, 1.0)
    assert np.count_nonzero(phi[:3, :3] > 0) < SMALLEST_VOXELS[2]
    assert keep_components(phi)[1] == ()


def test_a_hole_is_filled_with_the_island_in_it():
    phi = box((11, 11, 11), ((2, 9), (2, 9), (2, 9)))
    phi[4:7, 4:7, 4:7] = 1.0
    phi[5, 5, 5] = -1.0
    out, notes = keep_components(phi)
    assert count(out, ((2, 9), (2, 9), (2, 9))) == 7**3
    assert len(notes) == 2


def test_a_seed_in_an_island_keeps_the_island_and_tells_what_went():
    out, notes = keep_components(box(SHAPE, LARGE, ISLAND), "seed", seed_kji=(12, 2, 2))
    assert (count(out, LARGE), count(out, ISLAND)) == (0, 8)
    assert notes == ("1 further lumen components left out (seed)",)


@pytest.mark.parametrize("seed", [(40, 2, 2), (-10, 5, 5)])
def test_a_seed_outside_the_scan_is_refused(seed):
    with pytest.raises(NoInterfaceError, match="seed"):
        keep_components(box(SHAPE, LARGE), "seed", seed_kji=seed)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_field_that_is_not_finite_is_refused(value):
    phi = box(SHAPE, LARGE)
    phi[0, 0, 0] = value
    with pytest.raises(DataError):
        keep_components(phi)
    with pytest.raises(DataError):
        keep_topology(box(SHAPE, LARGE), phi, 1.0)


# --- the report

Z, Y, X = np.indices((30, 30, 48)).astype(float)


def ball(centre, radius):
    return np.sqrt((Z - centre[0]) ** 2 + (Y - centre[1]) ** 2 + (X - centre[2]) ** 2) - radius


def ring(x, large, small):
    """Torus about the z axis through (15, 15, x)."""
    return np.hypot(np.hypot(Y - 15.0, X - x) - large, Z - 15.0) - small


BALL = ball((15.2, 14.7, 15.4), 8.0)
TWO_BALLS = np.minimum(ball((15.0, 15.0, 13.0), 7.0), ball((15.0, 15.0, 34.0), 7.0))
RING = ring(24.0, 10.0, 3.4)
SHAPES = {
    "nothing": (np.ones((4, 5, 6)), (0, 0, 0)),
    "everything": (-np.ones((4, 5, 6)), (1, 0, 0)),
    "ball": (BALL, (1, 0, 0)),
    "two balls": (TWO_BALLS, (2, 0, 0)),
    "hollow ball": (np.maximum(BALL, 4.0 - (BALL + 8.0)), (1, 1, 0)),
    "ring": (RING, (1, 0, 1)),
    "hollow ring": (np.maximum(RING, -(RING + 2.0)), (1, 1, 2)),
    "double ring": (np.minimum(ring(16.0, 8.0, 3.0), ring(32.0, 8.0, 3.0)), (1, 0, 2)),
    "tube through the faces": (np.hypot(Y - 15.3, X - 20.1) - 5.0, (1, 0, 0)),
    "voxels joined at a corner": (np.where(np.eye(3)[:, :, None] * np.eye(3) > 0, -1.0, 1.0),
                                  (1, 0, 0)),
    "disc": (BALL[15], (1, 0, 0)),
    "annulus": (RING[15], (1, 1, 0)),
    "target": (np.minimum(RING[15], np.hypot(Y[0] - 15.0, X[0] - 24.0) - 3.0), (2, 1, 0)),
}  # fmt: skip


def report(phi):
    found = topology_report(phi)
    return tuple(found[name] for name in ("components", "cavities", "tunnels"))


@pytest.mark.parametrize("name", SHAPES)
def test_the_report_is_exact(name):
    phi, expected = SHAPES[name]
    assert report(phi) == expected


@pytest.mark.parametrize("shape", [(9, 8, 7), (14, 15)])
def test_the_euler_number_is_that_of_the_peer(shape):
    random = np.random.default_rng(0)
    for share in (0.1, 0.3, 0.5, 0.8):
        mask = np.pad(random.random(shape) < share, 1)
        assert euler_number(mask) == peer_euler_number(mask, connectivity=mask.ndim)


# --- simple points


def simple_by_labels(block):
    """Count the pieces with scipy: 26 of the lumen, 6 of the background in the 18-neighbours."""
    faces, eighteen = (ndimage.generate_binary_structure(3, n) for n in (1, 2))
    centre = np.zeros((3, 3, 3), bool)
    centre[1, 1, 1] = True
    lumen = ndimage.label(block & ~centre, np.ones((3, 3, 3)))[1]
    label, _ = ndimage.label(~block & eighteen & ~centre)
    return lumen == 1 and len(set(label[faces & ~centre]) - {0}) == 1


def simple(blocks):
    bits = (blocks.reshape(-1, 27) * (1 << np.arange(27))).sum(1).astype(np.uint32)
    out = np.empty(len(bits), bool)
    are_simple(bits, out)
    return out


def test_simple_points_are_those_of_the_definition():
    random = np.random.default_rng(0)
    blocks = (
        random.random((5000, 3, 3, 3))
        < np.repeat([0.1, 0.3, 0.5, 0.7, 0.9], 1000)[:, None, None, None]
    )
    found = simple(blocks)
    assert 0.2 < found.mean() < 0.5
    assert np.array_equal(found, [simple_by_labels(block) for block in blocks])


def test_in_a_plane_simple_points_are_those_of_8_and_4_neighbours():
    """All 256 neighbourhoods."""
    planes = np.array(list(itertools.product((False, True), repeat=8)))
    planes = np.insert(planes, 4, False, axis=1).reshape(-1, 3, 3)
    blocks = np.zeros((256, 3, 3, 3), bool)
    blocks[:, 1] = planes
    expected = []
    for plane in planes:
        outside = ~plane
        outside[1, 1] = False
        label, _ = ndimage.label(outside)
        pieces = set(label[[0, 1, 1, 2], [1, 0, 2, 1]]) - {0}
        expected.append(ndimage.label(plane, np.ones((3, 3)))[1] == 1 and len(pieces) == 1)
    assert np.array_equal(simple(blocks), expected)


@pytest.mark.slow
def test_the_number_of_simple_points_is_the_known_one():
    """25 985 144 of the 2²⁶ neighbourhoods, as other implementations count."""
    found, chunk = 0, 1 << 22
    for first in range(0, 1 << 26, chunk):
        n = np.arange(first, first + chunk, dtype=np.uint32)
        out = np.empty(chunk, bool)
        are_simple((n & 0x1FFF) | ((n >> 13) << 14), out)
        found += np.count_nonzero(out)
    assert found == 25_985_144


# --- evolution that keeps the topology

GROWN = {
    "two balls would merge": (TWO_BALLS, TWO_BALLS - 5.0, (1, 0, 0), (2, 0, 0)),
    "a ring would close": (RING, RING - 7.5, (1, 0, 0), (1, 0, 1)),
    "a ring would open": (RING, np.maximum(RING, 17.5 - X), (1, 0, 0), (1, 0, 1)),
    "a lumen would vanish": (BALL, np.abs(BALL) + 1.0, (0, 0, 0), (1, 0, 0)),
    "an island would appear": (BALL, np.minimum(BALL, ball((15, 15, 40), 4)), (2, 0, 0), (1, 0, 0)),
    "a hole would appear": (BALL, np.maximum(BALL, -BALL - 4.0), (1, 1, 0), (1, 0, 0)),
    "an annulus would close": (RING[15], RING[15] - 7.5, (1, 0, 0), (1, 1, 0)),
}


@pytest.mark.parametrize("case", GROWN)
def test_the_guard_keeps_the_topology_of_the_start(case):
    """And the wall moves all the same: where it is not held, and after redistancing."""
    old, new, without, expected = GROWN[case]
    assert report(new) == without
    out = keep_topology(old, new, 1.0)
    assert report(out) == report(old) == expected
    assert report(redistance(out, 1.0, band_mm=3.0)) == expected
    held = (out < 0) != (new < 0)
    assert held.any()
    assert np.array_equal(out[~held], new[~held])
    assert np.array_equal(held, held & ((old < 0) == (out < 0)))


@pytest.mark.parametrize("case", ["two balls would merge", "a ring would close"])
def test_the_guard_holds_only_a_sheet_one_voxel_thick(case):
    """A sheet between walls has no more voxels than the cut through it: 30 × 30."""
    old, new, _, _ = GROWN[case]
    held = (keep_topology(old, new, 1.0) < 0) != (new < 0)
    assert np.count_nonzero(held) <= 30 * 30
    inner = ndimage.binary_erosion(held)
    assert not inner.any()


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("shape", [(17, 18, 16), (40, 36)])
def test_no_smooth_evolution_changes_the_report(seed, shape):
    random = np.random.default_rng(seed)
    phi = ndimage.gaussian_filter(random.normal(size=shape), 1.5)
    before = report(phi)
    changed = 0
    for _ in range(3):
        new = phi + 0.7 * ndimage.gaussian_filter(random.normal(size=shape), 1.5)
        changed += report(new) != before
        phi = keep_topology(phi, new, (1.0, 2.0, 0.5)[: len(shape)])
        assert report(phi) == before
    assert changed > 0


def test_a_change_that_keeps_the_topology_passes_untouched():
    out = keep_topology(BALL, BALL - 2.5, 1.0)
    assert np.array_equal(out, BALL - 2.5)


def test_fields_of_two_shapes_are_refused():
    with pytest.raises(DataError):
        keep_topology(np.ones((4, 5)), np.ones((5, 4)), 1.0)


@pytest.mark.parametrize("keep", [False, True])
def test_refinement_reports_and_keeps_the_topology(keep):
    """Two discs on the image of one bar: they merge unless the topology is kept."""
    y, x = np.indices((28, 40)).astype(float)
    bar = np.maximum(np.abs(y - 14.0) - 6.0, np.abs(x - 20.0) - 14.0)
    discs = np.minimum(np.hypot(y - 14.0, x - 12.5), np.hypot(y - 14.0, x - 27.5)) - 6.0
    grid = phantoms.make("circle", radius=4.0).grid(1.0, shape=(28, 40))
    image = Volume(np.clip(0.5 - bar, 0.0, 1.0).astype(np.float32), grid)
    settings = RefineSettings(energy="chan_vese", iterations=25, keep_topology=keep)
    result = refine(LevelSet(discs.astype(np.float32), grid, 4.5), image, settings)
    assert result.estimates["components"] == (2.0 if keep else 1.0)
    assert result.estimates["cavities"] == result.estimates["tunnels"] == 0.0
    assert np.count_nonzero(result.level_set.phi_mm < 0) > 1.15 * np.count_nonzero(discs < 0)
