"""Starts: told apart by their values, put on the scan's grid, or refused."""

import image_builders as make
import numpy as np
import pytest
from scipy.special import logit

from vesselseg import Grid, LevelSet, Probability, Volume
from vesselseg.errors import InputError, NoInterfaceError
from vesselseg.io import read_start, write_image

SHAPE = (20, 22, 24)
SPACING = (1.2, 1.0, 0.8)
GRID = Grid.from_spacing(SHAPE, SPACING, (-5, 3, 2))
SCAN = Volume(make.field(SHAPE), GRID)
CENTRE, RADIUS = GRID.world((9.6, 10.3, 11.2)), 5.0


def ball(grid=GRID):
    """Signed distance to a ball in mm."""
    index = np.moveaxis(np.indices(grid.shape_kji), 0, -1)
    return np.linalg.norm(grid.world(index) - CENTRE, axis=-1) - RADIUS


def soft(grid=GRID, width=0.5):
    return 1.0 / (1.0 + np.exp(ball(grid) / width))


def moved(by, shape=SHAPE):
    return Grid.from_spacing(shape, SPACING, np.array([-5, 3, 2]) + by)


MASK, LABELS = ball() < 0, (ball() < 0).astype("u1") + (ball() < -3)
HOLED = np.where(ball() < -4, np.nan, MASK).astype("f4")
SALT = np.random.default_rng(0).random(SHAPE) < 0.05
POINT = np.zeros(SHAPE, bool)
POINT[5, 5, 5] = True
SHEET = np.zeros(SHAPE, bool)
SHEET[:, 10] = True

# id | values | grid | options | exit code, or type of the result | words of error or notes
ROWS = [
    ("probability", soft(), GRID, {}, Probability, ""),
    ("phi", ball(), GRID, {}, LevelSet, ""),
    ("phi-clamped", ball().clip(-3, 3), GRID, {}, LevelSet, ""),
    ("mask", MASK, GRID, {}, Probability, "0.18 voxel on average and 0.53 at most"),
    ("mask-float", MASK.astype("f4"), GRID, {}, Probability, "0.18 voxel"),
    ("logit-named", logit(soft()), GRID, {"kind": "logit"}, Probability, ""),
    ("logit", 3 * logit(soft()), GRID, {}, 3, "kind of start not clear"),
    ("phi-flipped", -3 * ball(), GRID, {}, 3, "--start-kind"),
    ("kind-no", soft(), GRID, {"kind": "odd"}, 2, "unknown kind of start"),
    ("B050", np.zeros(SHAPE, "u1"), GRID, {}, 3, "mask has no foreground voxel"),
    ("B051", np.ones(SHAPE, "u1"), GRID, {}, 3, "mask has no background voxel"),
    ("B050-soft", 0.4 * soft(), GRID, {}, 3, "start has no lumen"),
    ("B051-phi", ball() - 99, GRID, {"kind": "phi"}, 3, "start has no background"),
    ("B052", LABELS, GRID, {}, 3, "label map: found labels 0,1,2; choose with --label N"),
    ("B052-mask", LABELS, GRID, {"kind": "mask"}, 3, "labels 0,1,2"),
    ("B052-label", LABELS, GRID, {"label": 2}, Probability, "0.18 voxel"),
    ("B052-absent", LABELS, GRID, {"label": 3}, 3, "mask has no foreground voxel"),
    ("B052-both", LABELS, GRID, {"label": 1, "kind": "phi"}, 2, "contradict"),
    ("B052-many", np.round(make.field(SHAPE)), GRID, {}, 3, "labels 0,1,2,3,4,5,6,7 and 93 more"),
    ("B053", soft().round(1), GRID, {}, Probability, ""),
    ("B054-nan", HOLED, GRID, {}, 3, "non-finite voxels"),
    ("B054-negative", soft() - 0.2, GRID, {"kind": "probability"}, 3, "not a probability"),
    ("B055", soft(moved(0, (21, 22, 24))), moved(0, (21, 22, 24)), {}, Probability,
     "grids differ (21, 22, 24), (20, 22, 24)"),
    ("B055-bare", soft(moved(0, (21, 22, 24))), None, {}, 3,
     "found (21, 22, 24), need (20, 22, 24) as the scan"),
    ("B055-flat", soft()[3], Grid.from_spacing((22, 24), 1.0), {}, 3, "as the scan"),
    ("bare", soft(), None, {}, Probability, "taken on the scan's grid"),
    ("B056", soft(moved((3.2, 0, 0))), moved((3.2, 0, 0)), {}, Probability,
     "grids differ by 3.2 mm, covers 83% of it"),
    ("B056-mask", ball(moved((1, 0, 0))) < 0, moved((1, 0, 0)), {}, Probability, "0.18 voxel"),
    ("B056-near", soft(), moved((5e-4, 0, 0)), {}, Probability, ""),
    ("B056-apart", soft(), moved((500, 0, 0)), {}, 3, "start and scan do not overlap"),
    ("B057", POINT, GRID, {}, Probability, "0.18 voxel"),
    ("B057-sheet", SHEET, GRID, {}, Probability, "0.18 voxel"),
    ("B058", ball() > 0, GRID, {}, Probability, "start touches every face of the scan"),
    ("B059", SALT, GRID, {}, Probability, "separate pieces"),
]  # fmt: skip


@pytest.mark.parametrize(("values", "grid", "options", "expected", "words"), [
    pytest.param(*row[1:], id=row[0]) for row in ROWS
])  # fmt: skip
def test_start(tmp_path, guarded, values, grid, options, expected, words):
    path = tmp_path / ("start.npy" if grid is None else "start.nii.gz")
    np.save(path, values) if grid is None else write_image(path, values, grid)
    result = guarded(lambda: read_start(path, SCAN, **options), path=path)
    if isinstance(result, InputError):
        assert (result.exit_code, words in str(result)) == (expected, True), str(result)
        return
    assert type(result) is expected
    assert result.grid is GRID
    assert words in "; ".join(result.notes)
    assert bool(words) == bool(result.notes)
    if expected is Probability:
        binary = "0.18 voxel" in str(result.notes)
        assert result.soft != binary
        assert result.model_id == "start:start"


def test_no_wall_is_an_error_of_its_own(tmp_path):
    write_image(tmp_path / "m.nii", np.zeros(SHAPE, "u1"), GRID)
    with pytest.raises(NoInterfaceError):
        read_start(tmp_path / "m.nii", SCAN)


@pytest.mark.parametrize("kind", ["probability", "phi"])
@pytest.mark.parametrize("flip", [1, -1], ids=["", "left-handed"])
def test_a_start_on_another_grid_keeps_its_wall(tmp_path, kind, flip):
    """Interpolated where the ball's distance is: within h²/(8 R) of the exact distance."""
    affine = np.diag([0.9 * flip, 0.7, 0.8, 1.0])
    affine[:3, 3] = [-6 if flip > 0 else -6 + 0.9 * 29, 2.5, 1.3]
    grid = Grid((36, 34, 30), affine)
    values = soft(grid) if kind == "probability" else ball(grid)
    write_image(tmp_path / "s.nii.gz", values, grid)
    start = read_start(tmp_path / "s.nii.gz", SCAN)
    phi = start.phi_mm if kind == "phi" else -0.5 * logit(start.values.astype("f8"))
    near = np.abs(ball()) < 1.5
    assert np.abs(phi - ball())[near].max() < 3 * 0.9**2 / (8 * (RADIUS - 1.5))
    assert "resampled" in start.notes[0]


@pytest.mark.parametrize("values", [
    MASK, MASK.astype("u1"), MASK.astype("f8"), np.asfortranarray(MASK), np.repeat(MASK, 2, 0)[::2],
], ids=["bool", "uint8", "float64", "F-order", "view"])  # fmt: skip
def test_b060_layout_and_type_of_a_mask_do_not_matter(tmp_path, values):
    np.save(tmp_path / "m.npy", values)
    start = read_start(tmp_path / "m.npy", SCAN)
    assert np.array_equal(start.values, MASK.astype("f4"))


def test_a_flat_start_fits_a_flat_scan(tmp_path):
    grid = Grid.from_spacing((22, 24), (1.0, 0.8))
    scan = Volume(make.field((22, 24)), grid)
    write_image(tmp_path / "s.nii", soft()[9], grid)
    assert np.array_equal(read_start(tmp_path / "s.nii", scan).values, soft()[9].astype("f4"))
    shifted = Grid.from_spacing((22, 24), (1.0, 0.8), (0.4, 0, 0))
    write_image(tmp_path / "t.nii", soft()[9], shifted)
    assert "0.4 mm" in str(read_start(tmp_path / "t.nii", scan).notes)
