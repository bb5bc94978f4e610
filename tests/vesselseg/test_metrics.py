"""Metrics obey the geometry they measure."""

from __future__ import annotations

import numpy as np
import pytest

from vesselseg import metrics
from vesselseg.errors import NoInterfaceError
from vesselseg.grid import Grid

SPACINGS = [(1.0, 1.0, 1.0), (2.0, 0.8, 1.0), (0.5, 0.7)]


def ball(spacing, radius=10.3, shift=0.0, size=32.0):
    """Return the exact signed distance to a sphere or circle, in mm."""
    shape = [round(size / s) for s in spacing]
    x = np.stack(
        np.meshgrid(*(np.arange(n) * s for n, s in zip(shape, spacing, strict=True)), indexing="ij")
    )
    x = x - size / 2
    x[-1] -= shift
    return np.sqrt((x**2).sum(0)) - radius


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("offset", [0.3, -0.3])
def test_an_offset_wall_is_off_by_its_offset(spacing, offset):
    """Shrinking the lumen by 0.3 h gives 0.3 ± 0.01 h and a positive bias."""
    h = min(spacing)
    phi = ball(spacing)
    errors = metrics.wall_errors(phi + offset * h, phi, spacing)
    for name in ("mean_voxel", "rms_voxel", "near_mean_voxel", "near_p95_voxel"):
        assert errors[name] == pytest.approx(abs(offset), abs=0.01), name
    # backward distances go to tangent planes: d² / 2r too long d = 0.7 h from the nearest sample
    assert errors["p95_mm"] == pytest.approx(abs(offset) * h, abs=0.03 * max(spacing))
    assert errors["bias_mm"] == pytest.approx(offset * h, abs=0.01 * h)
    assert errors["max_mm"] == pytest.approx(abs(offset) * h, abs=0.06 * max(spacing))
    assert errors["false_share"] == errors["missed_share"] == 0.0
    assert errors["normal_rms_deg"] < 1e-3


@pytest.mark.parametrize("spacing", SPACINGS)
def test_a_shifted_sphere_has_half_the_shift_on_average(spacing):
    """The distance is |shift cos θ|: mean 1/2 over a sphere, 2/π over a circle; no bias."""
    shift = 0.3 * min(spacing)
    errors = metrics.wall_errors(ball(spacing, shift=shift), ball(spacing), spacing)
    share = 0.5 if len(spacing) == 3 else 2.0 / np.pi
    assert errors["mean_mm"] == pytest.approx(share * shift, abs=0.01)
    assert errors["bias_mm"] == pytest.approx(0.0, abs=0.01)
    assert 0.0 < errors["normal_rms_deg"] < np.degrees(shift / 10.3)


def test_distances_do_not_depend_on_the_scale_of_the_prediction():
    phi = ball((1.0, 1.0, 1.0))
    want = metrics.wall_errors(phi + 0.3, phi, 1.0)
    have = metrics.wall_errors(7.0 * (phi + 0.3), phi, 1.0)
    assert have == {k: pytest.approx(v, abs=1e-6) for k, v in want.items()}


def test_false_and_missed_walls_are_told_apart():
    """Two balls of one size, one of them known: half the wall is false, or half is missed."""
    one = ball((1.0, 1.0, 1.0), radius=5.0, shift=-8.0)
    both = np.minimum(one, ball((1.0, 1.0, 1.0), radius=5.0, shift=8.0))
    extra, lost = metrics.wall_errors(both, one, 1.0), metrics.wall_errors(one, both, 1.0)
    assert extra["false_share"] == pytest.approx(0.5, abs=0.01)
    assert extra["missed_share"] == 0.0
    assert lost["missed_share"] == pytest.approx(0.5, abs=0.01)
    assert lost["within_1_voxel_share"] == pytest.approx(0.5, abs=0.01)
    assert metrics.false_surface(both, one, 1.0) == pytest.approx(extra["false_share"])
    assert extra["near_mean_mm"] == pytest.approx(0.0, abs=0.02)


@pytest.mark.parametrize("slope", [0.0, 0.37, 0.81])
def test_areas_sum_to_that_of_the_surface(slope):
    """Tilted planes: the area weights undo the denser sampling of tilted walls."""
    x = np.indices((64, 64, 64)) - 31.5
    plane = metrics.wall((x[0] + slope * x[1] + 0.11) / np.hypot(1.0, slope), 1.0)
    inside = (np.abs(plane.points_mm - 31.5)[:, 1:] < 25.0).all(1)
    assert plane.area_mm2[inside].sum() == pytest.approx(2500.0 * np.hypot(1.0, slope), rel=0.03)


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_coverage_of_a_normal_error_follows_its_scale(scale):
    """Smooth normal error of s.d. 0.3 against sigma = scale * 0.3: 2 Φ(scale) - 1."""
    from scipy import ndimage, stats

    rng = np.random.default_rng(0)
    noise = ndimage.gaussian_filter(rng.normal(size=(160, 160)), 1.5, mode="wrap")
    noise *= 0.3 / noise.std()
    z, y = np.indices((64, 160, 160))[:2]
    phi = (z - 7.4 - 0.31 * y) / np.hypot(1.0, 0.31)  # tilted: a level wall favours some errors
    wavy = phi + noise
    result = metrics.coverage(wavy, phi, np.full(phi.shape, scale * 0.3), 1.0)
    for k in (1, 2):
        exact = 2 * stats.norm.cdf(k * scale) - 1
        assert result[f"within_{k}"] == pytest.approx(exact, abs=0.03)
    assert result["z_rms"] == pytest.approx(1 / scale, rel=0.03)
    assert result["near_share"] == 1.0


def test_overlap_measures_agree_with_counting():
    a, b = np.zeros((2, 10), bool)
    a[:6], b[4:8] = True, True
    assert metrics.dice(a, b) == pytest.approx(2 * 2 / 10)
    assert metrics.iou(a, b) == pytest.approx(2 / 8)
    assert metrics.dice(a & ~a, b & ~b) == 1.0
    assert metrics.components(a[None] ^ b[None]) == 2


def test_centreline_dice_ignores_the_thickness():
    thin, thick = np.zeros((2, 24, 24, 24), bool)
    thin[:, 11:14, 11:14] = True
    thick[:, 9:16, 9:16] = True
    assert metrics.cl_dice(thin, thick) > 0.9 > metrics.dice(thin, thick)
    assert metrics.cl_dice(thin, np.roll(thick, 8, axis=1)) == 0.0
    assert metrics.cl_dice(thin & ~thin, thin & ~thin) == 1.0


def test_calibration_error_is_the_gap():
    rng = np.random.default_rng(0)
    p = rng.random(20_000)
    inside = rng.random(20_000) < p
    assert metrics.calibration_error(p, inside) < 0.02
    assert metrics.calibration_error(np.full(100, 0.9), np.zeros(100)) == pytest.approx(0.9)


def test_a_level_set_without_a_wall_is_refused():
    phi = ball((1.0, 1.0, 1.0))
    with pytest.raises(NoInterfaceError, match="no wall"):
        metrics.wall_errors(np.abs(phi) + 1.0, phi, 1.0)


def test_a_grid_gives_its_spacing():
    grid = Grid.from_spacing((16, 40, 32), (2.0, 0.8, 1.0))
    phi = ball(grid.spacing_mm)
    assert metrics.wall_errors(phi, phi, grid) == metrics.wall_errors(phi, phi, grid.spacing_mm)
