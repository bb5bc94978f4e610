"""Segmentation: grids, tiles, settings, and the shipped weights."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from vesselseg import infer, nets, synth
from vesselseg.errors import CheckpointError, DataError, EnvironmentFault
from vesselseg.fields import Volume
from vesselseg.grid import Grid
from vesselseg.infer import SegmentSettings, segment
from vesselseg.nets import checkpoint, tiles

TURN = Rotation.from_euler("xyz", [20, 10, -30], degrees=True).as_matrix()


class Threshold(torch.nn.Module):
    """Stands in for a network: distance 2 - 4 x, sigma 0.5, no context."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        sdf = 2.0 - 4.0 * x[:, 0]
        return torch.stack([-sdf, sdf, torch.full_like(sdf, np.log(0.5))], 1)


class Blur(torch.nn.Module):
    """Stands in for a network with a context of seven voxels."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.nn.functional.avg_pool3d(x, 7, 1, 3, count_include_pad=False)[:, 0]
        return torch.stack([y, 4.0 * (0.5 - y), torch.zeros_like(y)], 1)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Random weights of the smallest network, for 2-D and 3-D."""
    folder, paths = tmp_path_factory.mktemp("weights"), {}
    for dims in (2, 3):
        torch.manual_seed(0)
        architecture = dict(name="vesselnet", dims=dims, in_channels=1, classes=1, size="tiny")
        state = nets.create(**architecture).state_dict()
        card = {"architecture": architecture}
        paths[dims] = checkpoint.save(folder / f"net{dims}", state, card)
    return paths


@pytest.fixture
def as_model(monkeypatch):
    """Put a module in the place of the weights."""

    def put(net, temperature=1.0, scale=1.0, power=1.0, half_turns=False):
        model = infer.Model(net, temperature, scale, power, "fake", half_turns=half_turns)
        monkeypatch.setattr(infer, "load_model", lambda *_: model)
        monkeypatch.setattr(checkpoint, "shipped", lambda _: "fake.json")

    return put


def ball(grid: Grid, centre=None, radius=6.0) -> Volume:
    """Return a bright ball in world coordinates, with a soft edge of a millimetre."""
    index = np.moveaxis(np.indices(grid.shape_kji), 0, -1)
    middle = grid.world((np.array(grid.shape_kji) - 1) / 2) if centre is None else centre
    phi = np.linalg.norm(grid.world(index) - middle, axis=-1) - radius
    return Volume(1.0 / (1.0 + np.exp(phi / 0.5)), grid)


GRIDS = {
    "isotropic": Grid.from_spacing((24, 33, 17), 1.0),
    "anisotropic": Grid.from_spacing((12, 30, 27), (3.0, 0.9, 1.1)),
    "thin": Grid.from_spacing((5, 40, 40), (4.0, 1.0, 1.0)),
    "2-D": Grid.from_spacing((41, 50), (0.8, 1.0)),
    "oblique": Grid(
        (20, 27, 30),
        np.block([[TURN @ np.diag([1.1, -1.0, 1.5]), np.ones((3, 1))], [np.zeros(3), 1.0]]),
    ),
    "sagittal": Grid(
        (30, 27, 20),
        np.array([[0, 0, -1.5, 9], [1.0, 0, 0, 0], [0, -1.2, 0, 4], [0, 0, 0, 1.0]]),
    ),
}


@pytest.mark.parametrize("name", GRIDS)
def test_the_result_lies_on_the_grid_of_the_scan(name, weights):
    volume = ball(GRIDS[name])
    result = segment(volume, weights[volume.grid.ndim])
    assert result.grid is volume.grid
    for array in (result.values, result.phi_mm, result.sigma_mm):
        assert array.shape == volume.grid.shape_kji
    assert np.array_equal(result.values > 0.5, result.phi_mm < 0)
    assert result.sigma_mm.min() >= 0.05 * volume.grid.h_min * (1 - 1e-6)


@pytest.mark.parametrize("name", GRIDS)
def test_the_wall_stays_where_the_network_put_it(name, as_model):
    """A stand-in that thresholds the image: turning and resampling move no wall."""
    as_model(Threshold())
    volume = ball(GRIDS[name])
    result = segment(volume)
    agreed = (result.phi_mm < 0) == (nets.normalise(volume.values) > 0.5)
    assert agreed.mean() > 0.99
    assert (result.phi_mm < 0).any()


@pytest.mark.parametrize("shape", [(17, 16, 40), (150, 20, 16), (9, 31, 7)])
def test_any_size_works(shape, weights):
    volume = Volume(np.random.default_rng(0).random(shape), Grid.from_spacing(shape, 1.0))
    assert segment(volume, weights[3]).values.shape == shape


def test_phi_is_in_mm_and_calibration_is_applied(as_model):
    grid = Grid.from_spacing((20, 20, 20), 0.5)
    as_model(Threshold(), temperature=0.7, scale=0.6, power=2.0)
    result = segment(ball(grid, radius=3.0))
    sdf = 2.0 - 4.0 * nets.normalise(ball(grid, radius=3.0).values)
    np.testing.assert_allclose(result.phi_mm, 0.5 * sdf, atol=0.02)  # bfloat16 of ±2
    np.testing.assert_allclose(
        result.values, 1 / (1 + np.exp(2 * 0.7 * result.phi_mm / 0.5)), atol=1e-5
    )
    np.testing.assert_allclose(result.sigma_mm, 0.5 * 0.6 * 0.5**2, rtol=0.02)


def test_no_standard_deviation_is_below_the_floor(as_model):
    as_model(Threshold(), scale=1e-6)
    result = segment(ball(GRIDS["isotropic"]))
    np.testing.assert_allclose(result.sigma_mm, 0.05, rtol=1e-6)


@pytest.mark.parametrize("overlap", [16, 32])
def test_tiles_leave_no_seams(overlap, as_model):
    """P-28: further from the end of a tile than the network sees, its cut changes nothing."""
    as_model(Blur())
    shape = (96, 24, 104)
    volume = Volume(np.random.default_rng(0).random(shape), Grid.from_spacing(shape, 1.0))
    whole = segment(volume, settings=SegmentSettings(bf16=False))
    cut = segment(volume, settings=SegmentSettings(tile=64, overlap=overlap, bf16=False))
    far = np.ones(shape, bool)
    ends = {end for tile in tiles.plan(shape, 64, overlap) for end in borders(tile)}
    assert len(ends) > 8
    for axis, place in ends:
        if 0 < place < shape[axis]:
            np.moveaxis(far, axis, 0)[place - 3 : place + 3] = False
    np.testing.assert_allclose(cut.phi_mm[far], whole.phi_mm[far], atol=1e-4)
    assert np.abs(cut.phi_mm - whole.phi_mm).max() < 0.2


def borders(tile):
    """Yield (axis, index) of the ends of a tile."""
    for axis, part in enumerate(tile):
        yield axis, part.start
        yield axis, part.stop


@pytest.mark.parametrize("shape", [(16, 144, 152), (288, 400, 24), (1000, 16)])
def test_tiles_cover_everything_and_overlap(shape):
    plan = list(tiles.plan(shape, 144, 32))
    count = np.zeros(shape, np.uint8)
    for tile in plan:
        count[tile] += 1
        sizes = [part.stop - part.start for part in tile]
        assert max(sizes) <= 144
        assert all(size % 8 == 0 for size in sizes)
    assert count.min() >= 1
    for axis in range(len(shape)):
        ends = sorted({(t[axis].start, t[axis].stop) for t in plan})
        assert all(a[1] - b[0] >= 24 for a, b in itertools.pairwise(ends))


def test_a_component_that_the_logit_doubts_is_no_vessel():
    sdf = np.full((9, 20, 9), 3.0, np.float32)
    sdf[3:6, 3:6, 3:6] = sdf[3:6, 12:15, 3:6] = -1.0
    logit = np.where(np.arange(20)[None, :, None] < 9, 2.0, -0.2) + 0.0 * sdf
    found = infer.without_doubtful(logit.astype(np.float32), sdf)
    np.testing.assert_array_equal(found[:, :9], sdf[:, :9])
    assert found[:, 9:].min() == infer.OUTSIDE
    nothing = np.abs(sdf)
    np.testing.assert_array_equal(infer.without_doubtful(logit, nothing), nothing)


def test_sums_on_the_disk_are_those_in_memory(as_model, monkeypatch):
    as_model(Blur())
    shape = (40, 72, 24)
    volume = Volume(np.random.default_rng(0).random(shape), Grid.from_spacing(shape, 1.0))
    settings = SegmentSettings(tile=64, bf16=False)
    memory = segment(volume, settings=settings)
    maps, memmap = [], np.memmap
    monkeypatch.setattr(infer, "STREAM", 1000)
    monkeypatch.setattr(infer.np, "memmap", lambda *a, **k: maps.append(1) or memmap(*a, **k))
    disk = segment(volume, settings=settings)
    assert len(maps) == 2
    np.testing.assert_array_equal(disk.phi_mm, memory.phi_mm)


@pytest.mark.slow
def test_bfloat16_moves_the_wall_by_less_than_a_hundredth_of_a_voxel():
    """The rounding of the shipped network, on a scan with clear vessels."""
    case = synth.case(78, 0, synth.SynthSettings(flow=0.0, empty=0.0, easy=1.0))
    volume = Volume(case.image[0], Grid.from_spacing(case.phi.shape, 1.0))
    low, full = (segment(volume, settings=SegmentSettings(bf16=b)).phi_mm for b in (True, False))
    near = np.abs(full) < 0.5  # voxels beside the wall, where the distance has slope one
    assert near.sum() > 100
    assert np.sqrt(np.mean((low - full)[near] ** 2)) < 0.01


class Lopsided(Threshold):
    """Sees everything too near on one side and too far on the other."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = super().forward(x)
        ramp = torch.linspace(-0.5, 0.5, x.shape[-1])
        return y + ramp * torch.tensor([0.0, 1.0, 0.0]).view(1, 3, *(1,) * (x.ndim - 2))


def test_flips_average_and_add_their_spread(as_model):
    grid = Grid.from_spacing((16, 16, 16), 1.0)
    as_model(Lopsided())
    plain = segment(ball(grid), settings=SegmentSettings(bf16=False))
    flipped = segment(ball(grid), settings=SegmentSettings(bf16=False, accurate=True))
    np.testing.assert_allclose(flipped.phi_mm, flipped.phi_mm[..., ::-1], atol=1e-5)
    edge = np.sqrt(0.5**2 + 0.5**2)
    np.testing.assert_allclose(flipped.sigma_mm[..., 0], edge, rtol=1e-4)
    np.testing.assert_allclose(plain.sigma_mm, 0.5, rtol=1e-5)


@pytest.mark.parametrize("dims", [2, 3])
def test_a_model_of_half_turns_has_their_symmetry(as_model, dims):
    as_model(Lopsided(), half_turns=True)
    grid = Grid.from_spacing((16,) * dims, 1.0)
    turned = segment(ball(grid), settings=SegmentSettings(bf16=False))
    np.testing.assert_allclose(turned.phi_mm, turned.phi_mm[..., ::-1, ::-1], atol=1e-5)
    np.testing.assert_allclose(turned.phi_mm, turned.phi_mm[..., ::-1], atol=1e-5)
    np.testing.assert_allclose(turned.sigma_mm[..., 0], np.sqrt(0.5), rtol=1e-4)  # 0.5² + 0.5²


def test_the_card_says_whether_half_turns_are_meant(weights, tmp_path):
    read = checkpoint.load(weights[3])
    for said in (True, False):
        card = {"architecture": read.card["architecture"], "half_turns": said}
        path = checkpoint.save(tmp_path / "net", read.tensors, card)
        assert infer.load_model(path, 3, 1, "cpu").half_turns is said


@pytest.mark.parametrize(
    ("sign", "polarity"), [(1, "bright"), (-1, "dark"), (1, "auto"), (-1, "auto")]
)
def test_polarity_chooses_the_sign_of_contrast(sign, polarity, as_model):
    as_model(Threshold())
    volume = ball(GRIDS["isotropic"])
    shown = Volume(sign * volume.values, volume.grid)
    inside = segment(shown, settings=SegmentSettings(polarity=polarity)).values > 0.5
    if polarity != "auto":
        assert np.array_equal(inside, volume.values > 0.5)
    assert inside.any()


def test_a_grid_beyond_the_memory_is_coarsened_and_says_so(as_model):
    as_model(Threshold())
    volume = ball(Grid.from_spacing((40, 40, 40), 1.0), radius=12.0)
    result = segment(volume, settings=SegmentSettings(max_voxels=20_000))
    assert "to save memory" in result.notes[0]
    assert ((result.phi_mm < 0) == (volume.values > 0.5)).mean() > 0.97


@pytest.mark.parametrize(
    ("dims", "grid", "error", "expected"),
    [
        (3, "2-D", CheckpointError, "need 2-D"),
    ],
)
def test_weights_for_another_dimension_are_refused(dims, grid, error, expected, weights):
    with pytest.raises(error, match=expected):
        segment(ball(GRIDS[grid]), weights[dims])


CLASSES = {
    "one class": (1, None),
    "all but the background": (4, None),
    "two of four": (4, (1, 3)),
}


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("dims", [2, 3])
def test_without_a_distance_the_lumen_is_the_sum_of_its_classes(tmp_path, dims, kind):
    """A 2-D network sees the slices of a volume across its coarsest axis."""
    classes, wanted = CLASSES[kind]
    torch.manual_seed(0)
    architecture = dict(name="vesselnet", dims=dims, in_channels=1, classes=classes, size="tiny")
    architecture["distance"] = False
    net = nets.create(**architecture).eval()
    path = checkpoint.save(tmp_path / "net", net.state_dict(), {"architecture": architecture})
    volume = ball(Grid.from_spacing((24, 16, 32), 1.0))
    result = segment(volume, path, SegmentSettings(bf16=False, lumen_classes=wanted))
    assert result.phi_mm is None
    assert result.sigma_mm is None
    x = torch.from_numpy(nets.normalise(volume.values))
    with torch.no_grad():
        y = net(x[None, None])[0] if dims == 3 else net(x[:, None]).transpose(0, 1)
    p = y.sigmoid() if classes == 1 else y.softmax(0)
    keep = [0] if classes == 1 else list(wanted or (1, 2, 3))
    np.testing.assert_allclose(result.values, p[keep].sum(0), atol=1e-4)


def test_slices_run_across_the_coarsest_axis(tmp_path, weights):
    volume = ball(Grid.from_spacing((30, 9, 27), (1.0, 4.0, 1.0)))
    seen = []
    segment(volume, weights[2], progress=lambda stage, fraction, text: seen.append(text))
    assert seen[-1] == "slice 33 of 33"  # 9 slices of 4 mm on the working grid of 1 mm


def test_a_constant_image_is_refused(weights):
    grid = GRIDS["isotropic"]
    with pytest.raises(DataError, match="no contrast"):
        segment(Volume(np.ones(grid.shape_kji), grid), weights[3])


def test_threads_change_nothing_beyond_rounding(weights):
    """P-26."""
    volume, before = ball(GRIDS["isotropic"]), torch.get_num_threads()
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append(segment(volume, weights[3], SegmentSettings(bf16=False)).phi_mm)
    torch.set_num_threads(before)
    np.testing.assert_allclose(*results, atol=1e-5)


@pytest.mark.skipif(not nets.bf16_pays("cpu"), reason="the processor has no bfloat16")
def test_bfloat16_moves_the_wall_by_little():
    """Zero set of the shipped network: shift below 0.01 voxel rms against float32."""
    from vesselseg import metrics

    volume = noisy_ball(8.0, 0.1)
    low = segment(volume, settings=SegmentSettings(bf16=True))
    high = segment(volume, settings=SegmentSettings(bf16=False))
    assert metrics.wall_errors(low.phi_mm, high.phi_mm, volume.grid)["near_rms_voxel"] < 0.01


def noisy_ball(radius: float, noise: float) -> Volume:
    volume = ball(Grid.from_spacing((48, 48, 48), 1.0), radius=radius)
    extra = np.random.default_rng(0).normal(0, noise, volume.values.shape)
    return Volume(volume.values + extra, volume.grid)


@pytest.mark.parametrize("noise", [0.05, 0.15])
def test_the_shipped_weights_find_a_ball(noise):
    """Mean wall error below half a voxel and 2 s.d. that cover most of it."""
    from vesselseg import metrics

    volume = noisy_ball(8.0, noise)
    truth = np.sqrt(((np.indices((48, 48, 48)) - 23.5) ** 2).sum(0)) - 8.0
    result = segment(volume)
    errors = metrics.wall_errors(result.phi_mm, truth, volume.grid)
    assert errors["near_mean_voxel"] < 0.5
    assert errors["missed_share"] < 0.02
    assert metrics.coverage(result.phi_mm, truth, result.sigma_mm, volume.grid)["within_2"] > 0.8


@pytest.mark.parametrize(("usable", "name"), [(0, "cuda"), (0, "cuda:0"), (2, "cuda:2")])
def test_a_cuda_device_that_is_not_there_is_refused_before_any_work(monkeypatch, usable, name):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: usable > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: usable)
    monkeypatch.setattr(infer, "load_model", lambda *_: pytest.fail("weights were read"))
    volume = Volume(np.zeros((16, 16, 16), "f4"), Grid.from_spacing((16, 16, 16), 1.0))
    with pytest.raises(EnvironmentFault, match=f"device {name} is not usable"):
        segment(volume, settings=SegmentSettings(device=name))


@pytest.mark.parametrize("name", ["cpu", "cuda", "cuda:1"])
def test_a_device_that_is_there_is_taken(monkeypatch, name):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    asked = []
    monkeypatch.setattr(infer, "load_model", lambda *given: asked.append(given[-1]) or 1 / 0)
    volume = Volume(np.zeros((16, 16, 16), "f4"), Grid.from_spacing((16, 16, 16), 1.0))
    with pytest.raises(ZeroDivisionError):  # the weights are asked for: the device was let through
        segment(volume, settings=SegmentSettings(device=name))
    assert asked == [name]
