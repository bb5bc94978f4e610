"""A user's folder: pairs, reading, splitting, and patches whose wall is where the mask's is."""

from __future__ import annotations

import json
import pickle

import h5py
import nibabel
import numpy as np
import pytest
import tifffile
from scipy.io import savemat

from vesselseg import metrics
from vesselseg.config import build
from vesselseg.dataset import augment, folder, pairs, source, split, subset
from vesselseg.dataset.augment import OFF, AugmentSettings
from vesselseg.dataset.folder import Item, load
from vesselseg.dataset.source import DataSettings, cut, sources
from vesselseg.dataset.split import groups_by
from vesselseg.errors import ConfigError, DataError, InputError
from vesselseg.fields import Case
from vesselseg.synth import SynthSettings, write_dataset

SHAPE = (20, 24, 28)
AT = np.indices(SHAPE).astype("f4")
BALL = np.sqrt(sum((x - c) ** 2 for x, c in zip(AT, (9.3, 11.6, 14.2), strict=True))) - 6.0
IMAGE = (100.0 * (BALL < 0) + 7 * np.sin(AT.sum(0))).astype("f4")
MASK = (BALL < 0).astype("u1")


def mat_7_3(path, name, values):
    """As MATLAB writes it: a block of its own before the HDF5 file, axes reversed by storage."""
    with h5py.File(path, "w", userblock_size=512) as file:
        file[name] = values
        file["dx"] = np.ones((1, 1))
    with path.open("r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM")


WRITERS = {
    ".npy": lambda path, values: np.save(path, values),
    ".nii.gz": lambda path, values: nibabel.save(
        nibabel.Nifti1Image(values.T, np.diag([1, 1, 2, 1.0])), path
    ),
    ".h5": lambda path, values: (
        h5py.File(path, "w").create_dataset("image", data=values).file.close()
    ),
    ".tif": lambda path, values: tifffile.imwrite(path, values),
    ".mat": lambda path, values: savemat(path, {"image": values.T, "dx": 1.0}),
    "7.3.mat": lambda path, values: mat_7_3(path, "image", values),
}


def put(root, stem="a", image=IMAGE, mask=MASK, suffix=".npy", mask_stem=None):
    """Write one pair and return the folder."""
    for part in ("magn", "mask"):
        (root / part).mkdir(parents=True, exist_ok=True)
    WRITERS[suffix](root / "magn" / (stem + suffix), image)
    WRITERS[suffix](root / "mask" / ((mask_stem or stem) + suffix), mask)
    return root


@pytest.mark.parametrize("suffix", WRITERS)
def test_every_format_gives_the_same_arrays(tmp_path, suffix):
    item = load(pairs(put(tmp_path, suffix=suffix))[0], 1, 1)
    assert np.array_equal(item.labels, MASK)
    low, high = np.percentile(IMAGE, (0.5, 99.5))
    assert np.abs(item.image[0] * (high - low) + low - IMAGE).max() < 1e-3
    assert item.spacing_mm == ((2.0, 1.0, 1.0) if suffix == ".nii.gz" else (1.0, 1.0, 1.0))
    assert ("no voxel size: taken as 1 mm" in item.notes) == (suffix != ".nii.gz")


def test_a_sidecar_gives_the_voxel_size_of_image_and_mask(tmp_path):
    put(tmp_path)
    (tmp_path / "magn" / "a.json").write_text('{"spacing_mm": [2, 1, 0.5]}')
    item = load(pairs(tmp_path)[0], 1, 1)
    assert (item.spacing_mm, item.notes) == ((2.0, 1.0, 0.5), ())
    for bad in ("[2, 1, 0]", '"x"', "[2, 1]", "{}"):
        (tmp_path / "magn" / "a.json").write_text(f'{{"spacing_mm": {bad}}}')
        with pytest.raises(InputError, match=r"spacing|sidecar"):
            load(pairs(tmp_path)[0], 1, 1)


def test_colours_are_channels_and_255_is_lumen(tmp_path):
    """The layout of brain and skin sets: RGB pictures, masks of 0 and 255."""
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 255, (32, 40, 3), dtype="u1")
    mask = np.zeros((32, 40), "u1")
    mask[8:20, 10:30] = 255
    put(tmp_path, image=picture, mask=mask, suffix=".tif", mask_stem="a_mask")
    item = load(pairs(tmp_path)[0], 3, 1)
    assert item.image.shape == (3, 32, 40)
    assert np.corrcoef(item.image[1].ravel(), picture[..., 1].ravel())[0, 1] > 1 - 1e-6
    assert set(np.unique(item.labels)) == {0, 1}
    with pytest.raises(DataError, match="3 components"):
        load(pairs(tmp_path)[0], 1, 1)


def test_leading_axes_are_channels(tmp_path):
    for n, (image, mask) in enumerate([(np.stack([IMAGE, -IMAGE]), MASK), (IMAGE[:2], MASK[0])]):
        item = load(pairs(put(tmp_path / str(n), image=image, mask=mask))[0], 2, 1)
        assert item.image.shape == (2, *mask.shape)


@pytest.mark.parametrize(
    ("value", "lumen"), [(0.5, False), (np.nextafter(np.float32(0.5), 1), True), (1.0, True)]
)
def test_above_a_half_is_lumen(tmp_path, value, lumen):
    mask = np.zeros(SHAPE, "f4")
    mask[9, 9, 9], mask[0, 0, 0] = value, 0.25
    item = load(pairs(put(tmp_path, mask=mask))[0], 1, 1)
    assert bool(item.labels[9, 9, 9]) == lumen
    assert item.labels.sum() == lumen
    assert ("the mask is empty" in item.notes) == (not lumen)


def test_a_soft_mask_keeps_its_wall_between_voxels(tmp_path):
    soft = 1 / (1 + np.exp(2 * BALL))
    item = load(pairs(put(tmp_path, mask=soft.astype("f4")))[0], 1, 1)
    hard = load(pairs(put(tmp_path / "h"))[0], 1, 1)
    near = np.abs(BALL) < 2
    # Interpolating the logit is exact but for curvature; a mask knows its wall to half a voxel.
    assert np.abs(item.phi_mm - BALL)[near].max() < 0.02
    assert 0.1 < np.abs(hard.phi_mm - BALL)[near].max() < 0.8


FAULTS = {
    "no partner": (lambda d: (d / "magn" / "b.npy").write_bytes(b"x"), "magn/b.npy"),
    "no image": (lambda d: (d / "mask" / "c.npy").write_bytes(b"x"), "mask/c.npy"),
    "unknown format": (lambda d: (d / "magn" / "b.png").write_bytes(b"x"), "b.png: unknown image"),
    "twice": (
        lambda d: (d / "magn" / "a.h5").write_bytes(b"x"),
        "two files of one name: found a.h5",
    ),
    "two masks": (
        lambda d: (d / "mask" / "a_mask.npy").write_bytes(b"x"),
        "two masks of one image",
    ),
    "no folder": (lambda d: (d / "mask").rename(d / "masks"), "mask: no such folder"),
    "empty": (lambda d: [f.unlink() for f in (d / "magn").iterdir()], "magn: no images"),
    "other shape": (
        lambda d: np.save(d / "mask" / "a.npy", MASK[1:]),
        "mask/a.npy: mask does not fit",
    ),
    "damaged": (
        lambda d: (d / "mask" / "a.npy").write_bytes(b"x"),
        "mask/a.npy: not a NumPy array",
    ),
    "not finite": (lambda d: np.save(d / "magn" / "a.npy", IMAGE * np.nan), "non-finite"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_folder_is_refused_by_name(tmp_path, fault):
    spoil, words = FAULTS[fault]
    spoil(put(tmp_path))
    with pytest.raises(DataError) as error:
        load(pairs(tmp_path)[0], 1, 1)
    assert words in error.value.line()
    assert error.value.line().isprintable()


def test_labels_must_fit_the_classes(tmp_path):
    labels = MASK * (1 + (AT[0] > 9)).astype("u1")
    assert np.array_equal(load(pairs(put(tmp_path, mask=labels))[0], 1, 3).labels, labels)
    for bad in (labels + 1, labels * 0.5):
        with pytest.raises(DataError, match="need whole numbers from 0 to 2"):
            load(pairs(put(tmp_path, mask=bad.astype("f4")))[0], 1, 3)


def test_a_mask_elsewhere_in_the_world_is_refused(tmp_path):
    put(tmp_path, suffix=".nii.gz")
    nibabel.save(nibabel.Nifti1Image(MASK.T, np.diag([1, 1, 3, 1.0])), tmp_path / "mask/a.nii.gz")
    with pytest.raises(DataError, match="lies elsewhere"):
        load(pairs(tmp_path)[0], 1, 1)


# --- split -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("total", "sizes", "counts"),
    [
        (3929, {"test": 0.1, "val": 0.2, "train": -1}, {"test": 393, "val": 708, "train": 2828}),
        (3929, {"train": 2828, "val": 708, "test": 393}, {"train": 2828, "val": 708, "test": 393}),
        (200, {"train": 0.5, "val": 0.2, "test": -1}, {"train": 100, "val": 20, "test": 80}),
        (10, {"a": 0.3, "b": -1}, {"a": 3, "b": 7}),
    ],
)
def test_a_split_is_exact_disjoint_and_blind_to_order(total, sizes, counts):
    ids = [f"case{n}" for n in range(total)]
    parts = split(ids, sizes, seed=1)
    assert {k: len(v) for k, v in parts.items()} == counts
    assert sorted(n for part in parts.values() for n in part) == sorted(ids)
    assert split(ids[::-1], sizes, seed=1) == parts
    assert split(ids, sizes, seed=2) != parts


def test_patients_are_never_divided():
    rng = np.random.default_rng(0)
    ids = [f"p{n:02d}_{k}" for n in range(30) for k in range(rng.integers(1, 7))]
    groups = groups_by(r"^(p\d+)_", ids)
    parts = split(ids, {"val": 17, "train": -1}, groups, seed=3)
    assert len(parts["val"]) == 17
    assert not {groups[n] for n in parts["val"]} & {groups[n] for n in parts["train"]}


@pytest.mark.parametrize(
    ("sizes", "words"),
    [({"a": 3, "b": 2}, "add up"), ({"a": 7}, "add up"), ({"a": 1.5, "b": -1}, "bad size")],
)
def test_sizes_that_do_not_add_up_are_refused(sizes, words):
    with pytest.raises(ConfigError, match=words):
        split(list("abcdef"), sizes)
    with pytest.raises(ConfigError, match="no division by groups"):
        split(list("abcd"), {"a": 1, "b": -1}, dict(zip("abcd", "xxyy", strict=True)))
    with pytest.raises(ConfigError, match="no group in a name"):
        groups_by(r"p\d", ["p1", "q1"])


# --- patches -----------------------------------------------------------------------------------


def ball_item(spacing=(1.0, 1.0, 1.0), size=72.0, radius=14.0):
    """An exact ball on its own grid, its distance far from any edge."""
    shape = tuple(int(size / s) for s in spacing)
    at = np.indices(shape) * np.array(spacing).reshape(-1, *(1,) * len(shape))
    phi = np.sqrt(((at - size / 2.05) ** 2).sum(0)) - radius
    image = (1 / (1 + np.exp(4 * phi)))[None].astype("f4")
    lumen = (phi < 0).astype("u1")
    tube = folder.tube(lumen > 0, spacing)
    return Item(image, np.clip(phi, -12, 12).astype("f4"), tube, lumen, phi.astype("f4"), spacing)


def wall_of(case: Case) -> tuple[np.ndarray, float]:
    """Centre and scatter of the radius of a case's wall."""
    points = metrics.wall(case.phi, 1.0).index
    centre = np.linalg.lstsq(np.c_[2 * points, np.ones(len(points))], (points**2).sum(1))[0][:-1]
    return points, np.linalg.norm(points - centre, axis=1)


def exact_settings(**changes):
    return build(AugmentSettings, dict.fromkeys(
        ("rotation", "shift", "zoom", "elastic", "sine", "gamma", "contrast", "brightness", "bias",
         "noise", "blur"), 0.0) | {"share": 1.0, "low_resolution": 1.0} | changes)  # fmt: skip


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (2.0, 1.0, 0.8), (1.0, 0.8)])
def test_a_rotated_sphere_keeps_its_wall(spacing):
    """Within 0.05 voxel everywhere, in 2-D and from oblong voxels too."""
    item, h = ball_item(spacing), min(spacing)
    settings, turn = DataSettings(folder="", foreground=1.0), exact_settings(rotation=180.0)
    for seed in range(3):
        case = cut(item, (52,) * len(spacing), settings, turn, np.random.default_rng(seed))
        radii = wall_of(case)[1]
        assert np.abs(radii - 14.0 / h).max() < 0.05
        near = np.abs(case.phi) < 3
        slope = np.sqrt(sum(g**2 for g in np.gradient(case.phi)))[near]
        assert 0.97 < np.percentile(slope, 5) <= np.percentile(slope, 95) < 1.03


@pytest.mark.parametrize("ndim", [2, 3])
def test_a_warped_wall_is_where_the_map_says(ndim):
    """Every wall point, looked up where the map points, lies on the ball; and nothing folds."""
    item, settings = ball_item((1.0,) * ndim), DataSettings(folder="", foreground=1.0)
    warp = exact_settings(rotation=30.0, zoom=0.3, shift=0.05, elastic=3.0, sine=2.0)
    size = (40,) * ndim
    for seed in range(4):
        looks = augment.pose((56,) * ndim, warp, after_place(item, size, seed)[1])
        middle = after_place(item, size, seed)[0]
        jacobian = np.stack([np.stack(np.gradient(part), -1) for part in looks], -2)
        assert np.linalg.det(jacobian).min() > 0.4**ndim / 1.3**ndim
        case = cut(item, size, settings, warp, np.random.default_rng(seed))
        points = metrics.wall(case.phi, 1.0).index
        if not len(points):
            continue
        there = np.stack([metrics.sample(part, points + source.MARGIN) for part in looks], -1)
        centre = 72 / 2.05
        radius = np.linalg.norm(there + middle - centre, axis=1)
        assert np.abs(radius - 14.0).max() < 0.05
        assert np.array_equal(case.labels > 0, case.labels == 1)


def after_place(item, size, seed):
    """The middle that ``cut`` draws, and its generator afterwards."""
    rng = np.random.default_rng(seed)
    return source.place(item, np.array(size, float), 1.0, rng), rng


def test_without_augmentation_the_voxels_are_those_of_the_file():
    item = ball_item()
    case = cut(item, (24, 32, 40), DataSettings(folder=""), OFF, np.random.default_rng(5))
    corner = np.argwhere(item.phi_mm == case.phi[0, 0, 0])
    boxes = [tuple(slice(a, a + n) for a, n in zip(c, case.phi.shape, strict=True)) for c in corner]
    (box,) = [b for b in boxes if np.array_equal(item.phi_mm[b], case.phi)]
    assert np.array_equal(item.image[0][box], case.image[0])
    assert np.array_equal(item.labels[box], case.labels)
    zero = cut(
        item, (24, 32, 40), DataSettings(folder=""), exact_settings(), np.random.default_rng(5)
    )
    assert np.array_equal(case.image, zero.image)


def test_oblong_voxels_become_cubes_without_moving_the_wall():
    item = ball_item((2.0, 1.0, 0.8))
    settings = DataSettings(folder="", voxel_mm=1.0, foreground=1.0)
    case = cut(item, (48, 48, 48), settings, OFF, np.random.default_rng(1))
    assert np.abs(wall_of(case)[1] - 14.0).max() < 0.05


def test_a_patch_beyond_the_scan_sees_it_mirrored():
    item = ball_item(size=30.0, radius=6.0)
    case = cut(item, (48, 48, 48), DataSettings(folder=""), OFF, np.random.default_rng(0))
    whole = np.pad(item.image[0], 24, mode="symmetric")
    assert any(
        np.array_equal(case.image[0], whole[a : a + 48, a : a + 48, a : a + 48]) for a in (14, 15)
    )


@pytest.mark.parametrize("name", ["gamma", "contrast", "brightness", "bias", "noise", "blur"])
def test_every_change_of_intensity_acts_and_leaves_the_wall_alone(name):
    item, settings = ball_item(), DataSettings(folder="", foreground=1.0)
    plain = cut(item, (32,) * 3, settings, OFF, np.random.default_rng(2))
    changed = exact_settings(**{name: 0.5})
    case = cut(item, (32,) * 3, settings, changed, np.random.default_rng(2))
    assert np.array_equal(case.phi, plain.phi)
    assert 0.001 < np.abs(case.image - plain.image).max() < 3
    assert np.isfinite(case.image).all()


def test_blur_blurs_and_low_resolution_coarsens():
    """A line of one voxel: its energy falls as that of a Gaussian, its sum stays."""
    line = np.zeros((1, 33, 33), "f4")
    line[0, :, 16] = 1
    rng = np.random.default_rng(0)
    soft = augment._blur(line.astype(float), exact_settings(blur=2.0), rng)
    width = np.random.default_rng(0).uniform(0, 2.0)
    peak = 1 / np.exp(-0.5 * (np.arange(-20, 21) / width) ** 2).sum()
    assert soft[0, 16].max() == pytest.approx(peak, rel=1e-3)
    assert soft[0, 16].sum() == pytest.approx(1.0)
    coarse = augment._low_resolution(line.astype(float), exact_settings(low_resolution=4.0), rng)
    assert coarse.shape == line.shape
    assert coarse[0, 16].max() < 0.8
    assert coarse[0, 16].sum() == pytest.approx(1.0, abs=0.2)


# --- the source --------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path):
    """Twelve flat cases of three patients."""
    rng = np.random.default_rng(0)
    for n in range(12):
        noisy = IMAGE + rng.normal(0, 1 + 5 * n, SHAPE)
        put(tmp_path, f"p{n % 3}_{n}", noisy.astype("f4"))
    return tmp_path


def test_each_epoch_sees_every_file_once_and_a_case_is_repeatable(data):
    settings = DataSettings(folder=str(data), patch=(16, 16, 16), groups=r"^(p\d)", validation=4)
    train, val, manifest = sources(settings, 3, 1, 1)
    assert {n[:2] for n in manifest["train"]} & {n[:2] for n in manifest["val"]} == set()
    assert (train.size, val.size) == (8, 4)
    for epoch in range(2):
        files = [train(0, 8 * epoch + n).facts["file"] for n in range(8)]
        assert len(set(files)) == 8
    again = pickle.loads(pickle.dumps(train))
    first, second = train(3, 5), again(3, 5)
    assert np.array_equal(first.image, second.image)
    assert not np.array_equal(first.image, train(4, 5).image)
    assert first.phi.shape == (16, 16, 16)


def test_planes_of_volumes_train_a_planar_network(data):
    settings = DataSettings(folder=str(data), patch=(16, 24), foreground=1.0)
    train, _, _ = sources(settings, 2, 1, 1)
    case = train(0, 0)
    assert case.phi.shape == (16, 24)
    assert (case.phi < 0).any()
    with pytest.raises(ConfigError, match="need 2 numbers"):
        sources(DataSettings(folder=str(data), patch=(16, 16, 16)), 2, 1, 1)
    flat, _, _ = sources(DataSettings(folder=str(data)), 3, 1, 1)
    assert flat(0, 0).phi.shape == (64, 64, 64)


def test_memory_is_bounded(data):
    settings = DataSettings(folder=str(data), patch=(16, 16, 16), cache_mb=1)
    train, _, _ = sources(settings, 3, 1, 1)
    for n in range(train.size):
        train(0, n)
    held = sum(i.nbytes for i in train.memory.held.values())
    assert 0 < held <= 2**20


def test_a_subset_prefers_the_hard_and_the_different(data):
    """The noisiest case is the hardest; doubles are taken last."""
    items = [load(pair, 1, 1) for pair in pairs(data)]
    easy, hard = (
        next(i for i, p in enumerate(pairs(data)) if p.stem.endswith(e)) for e in ("_0", "_11")
    )
    chosen = subset.choose([items[easy]] * 5 + [items[hard], items[5]], 0.3)
    assert 5 in chosen
    assert len(chosen) == 3
    assert len({0, 1, 2, 3, 4} & set(chosen)) == 1
    settings = DataSettings(folder=str(data), patch=(16, 16, 16), subset=0.5)
    assert sources(settings, 3, 1, 1)[0].size == 5  # half of the ten that train


def test_what_synth_writes_is_read_back(tmp_path):
    settings = build(SynthSettings, {"shape": (32, 32, 32), "empty": 0.0})
    write_dataset(tmp_path, 4, settings, seed=2)
    data = DataSettings(folder=str(tmp_path), patch=(32, 32, 32))
    _, val, manifest = sources(data, 3, 1, 1)
    assert len(manifest["train"]) + len(manifest["val"]) == 4
    number = int(manifest["val"][0])
    truth = np.load(tmp_path / "mask" / f"{number:04d}.npy")
    assert np.array_equal(val.item(0).labels, truth)
    exact = np.load(tmp_path / "sdf" / f"{number:04d}.npy")
    near = np.abs(exact) < 2
    assert np.abs(val.item(0).phi_mm - exact)[near].mean() < 0.02  # distance of a distance
    facts = [json.loads(line) for line in (tmp_path / "facts.jsonl").read_text().splitlines()]
    assert len(facts) == 4


# --- level sets beside the masks ---------------------------------------------------------------


def test_a_level_set_places_the_wall_that_a_mask_knows_to_half_a_voxel(tmp_path):
    """Any level set will do: its zero set counts. Curvature of a 6-voxel ball: 0.02."""
    put(tmp_path)
    (tmp_path / "sdf").mkdir()
    np.save(tmp_path / "sdf" / "a.npy", 3.0 * BALL)
    item = load(pairs(tmp_path)[0], 1, 1)
    near = np.abs(BALL) < 2
    assert np.abs(item.phi_mm - BALL)[near].max() < 0.02
    assert np.array_equal(item.labels, MASK)


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("a.npy", BALL + 1.0, "sdf/a.npy: another lumen"),
        ("a.npy", BALL[1:], "sdf does not fit its image"),
        ("b.npy", BALL, "sdf/b.npy"),
    ],
)
def test_a_level_set_of_something_else_is_refused(tmp_path, name, values, words):
    put(tmp_path)
    (tmp_path / "sdf").mkdir()
    np.save(tmp_path / "sdf" / name, values)
    with pytest.raises(DataError) as error:
        load(pairs(tmp_path)[0], 1, 1)
    assert words in error.value.line()
