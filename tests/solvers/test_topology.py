"""Stated rules for islands, holes and components."""

import numpy as np
import pytest

from vesselseg.errors import ConfigError, NoInterfaceError
from vesselseg.solvers.topology import SMALLEST_VOXELS, keep_components


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
