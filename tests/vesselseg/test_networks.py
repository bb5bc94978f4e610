"""The registry: every network by name, held to one set of laws."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from vesselseg import nets
from vesselseg.errors import ConfigError, EnvironmentFault
from vesselseg.nets import (
    blocks,
    checkpoint,
    encoders,
    fcn,
    optim,
    query_mask,
    registry,
    resunet,
    segnet,
    unext,
)
from vesselseg.nets.optim import OptimSettings

SMALL = {
    "deconvnet": {"width": 4, "fc_width": 16, "fc_kernel": 2},
    "deeplabv3-resnet50": {"width": 8, "rates": (1, 2, 2)},
    "fcn-resnet101": {"width": 2},
    "fcn-resnet50": {"width": 4},
    "query-mask": {"width": 8, "queries": 2, "layers": 1},
    "resunet": {"width": 4},
    "segnet": {"width": 4},
    "unet": {"width": 4, "levels": 3},
    "unet-resnet50": {"width": 4},
    "unet-vgg16": {"width": 4},
    "unext": {"widths": (8, 8, 16, 16, 20)},
    "vesselnet": {"size": "tiny"},
}
COUNTS = [
    ("fcn-resnet50", 2, 3, 2, {}, 32_947_266),
    ("fcn-resnet50", 2, 3, 2, {"aux": True}, 35_307_588),
    ("fcn-resnet101", 2, 3, 2, {}, 51_939_394),
    ("deeplabv3-resnet50", 2, 3, 2, {}, 39_633_986),
    ("unet", 2, 1, 4, {"norm": "none"}, 31_030_788),
    ("unet", 2, 1, 4, {}, 31_036_676),
    ("unet", 3, 1, 2, {"norm": "none"}, 90_292_738),
    ("unet-vgg16", 2, 3, 1, {}, 25_856_577),
    ("unet-resnet50", 2, 3, 1, {}, 40_919_841),
    ("resunet", 2, 1, 1, {}, 8_221_121),
    ("unext", 2, 3, 1, {}, 1_580_961),
    ("unext", 2, 3, 1, {"widths": (16, 32, 128, 160, 256)}, 1_471_921),
    ("segnet", 2, 3, 2, {}, 29_477_442),
    ("deconvnet", 2, 3, 2, {}, 55_431_746),
    ("deconvnet", 2, 3, 2, {"fc_width": 4096}, 251_791_938),
    ("query-mask", 2, 1, 1, {}, 1_132_736),
    ("query-mask", 3, 1, 1, {}, 1_999_616),
    ("vesselnet", 3, 1, 3, {"size": "small"}, 670_599),
    ("vesselnet", 3, 1, 3, {"size": "base"}, 1_191_539),
    ("vesselnet", 3, 1, 3, {"size": "large"}, 2_286_187),
    ("vesselnet", 2, 1, 3, {"size": "wide"}, 1_646_755),
]
EVERY = [(name, dims) for name, entry in registry.NETWORKS.items() for dims in entry.dims]
SIZES = {2: (17, 50), 3: (16, 17, 23)}


def meta(name, dims, inputs, classes, **options):
    """A network without memory: names and shapes only."""
    with torch.device("meta"):
        return nets.create(name, dims, inputs, classes, distance=False, **options)


def total(net) -> int:
    return sum(p.numel() for p in net.parameters())


def batch(dims: int, side: int = 48):
    """Two images of a bright disc or ball in noise, and the lumen."""
    generator = torch.Generator().manual_seed(0)
    x = torch.stack(torch.meshgrid(*[torch.arange(side)] * dims, indexing="ij")).float()
    inside = [(x - c * side).square().sum(0).sqrt() < 0.32 * side for c in (0.45, 0.55)]
    lumen = torch.stack(inside)
    return lumen[:, None] + 0.1 * torch.randn(2, 1, *x.shape[1:], generator=generator), lumen


@pytest.mark.parametrize(("name", "dims", "inputs", "classes", "options", "count"), COUNTS)
def test_networks_have_the_recorded_number_of_parameters(
    name, dims, inputs, classes, options, count
):
    assert total(meta(name, dims, inputs, classes, **options)) == count


def test_every_network_is_recorded_and_tested():
    assert set(SMALL) == set(nets.names()) == {row[0] for row in COUNTS}


@pytest.mark.parametrize(("name", "dims"), EVERY)
def test_a_network_takes_any_size_and_learns_one_batch_by_heart(name, dims, tmp_path):
    """Sizes, slopes, Dice above 0.95 and a bitwise save and load, for one and four classes."""
    for classes in (1, 4):
        torch.manual_seed(0)
        net = nets.create(name, dims, 2, classes, **SMALL[name])
        y = net(torch.rand(2, 2, *SIZES[dims]))
        assert y.shape == (2, classes + 2, *SIZES[dims])
        y.square().mean().backward()
        assert all(torch.isfinite(p.grad).all() for p in net.parameters())
    architecture = {"name": name, "dims": dims, "distance": False, **SMALL[name]}
    net = nets.create(**architecture)
    if (name, dims) != ("segnet", 3):  # pads to 64³: the plane stands for it
        assert overfit(net, *batch(dims, 48 if dims == 2 else 16)) > 0.95
    path = checkpoint.save(tmp_path / "net", net.state_dict(), {"architecture": architecture})
    again = checkpoint.network(checkpoint.load(path)).state_dict()
    assert all(torch.equal(v, again[k]) for k, v in net.state_dict().items())


def overfit(net, image, lumen, steps: int = 120) -> float:
    """Train on one batch until the Dice in evaluation mode is above 0.95; return it."""
    optimizer = optim.optimizer(OptimSettings(lr=1e-2), net.parameters())
    for step in range(1, steps + 1):
        net.train()
        logit = nets.heads(net(image)).logit[:, 0]
        p = logit.sigmoid()
        overlap = 2 * (p * lumen).sum() / (p.square().sum() + lumen.sum())
        loss = F.binary_cross_entropy_with_logits(logit, lumen.float()) + 1 - overlap
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 10 == 0:
            with torch.no_grad():
                found = net.eval()(image)[:, 0] > 0
            dice = 2 * (found & lumen).sum() / (found.sum() + lumen.sum())
            if dice > 0.95:
                break
    return dice.item()


# --- torchvision's keys ------------------------------------------------------------------------


def published(*sections: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the sections of the key list; backbones get their prefix."""
    result, section = {}, ""
    for line in Path(__file__).with_name("torchvision_keys.txt").read_text().splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif section in sections:
            key, _, shape = line.partition(" ")
            head = "" if section.startswith("vgg") or "classifier" in key else "backbone."
            result[head + key] = tuple(int(n) for n in shape.split("x")) if shape else ()
    return result


@pytest.mark.parametrize(
    ("name", "sections", "options", "count"),
    [
        ("fcn-resnet50", ("resnet50", "fcn"), {}, 326),
        ("fcn-resnet50", ("resnet50", "fcn", "aux"), {"aux": True}, 334),
        ("fcn-resnet101", ("resnet101", "fcn"), {}, 632),
        ("fcn-resnet101", ("resnet101", "fcn", "aux"), {"aux": True}, 640),
        ("deeplabv3-resnet50", ("resnet50", "deeplabv3"), {}, 362),
    ],
)
def test_weights_of_torchvision_fit(name, sections, options, count):
    have = {k: tuple(v.shape) for k, v in meta(name, 2, 3, 2, **options).state_dict().items()}
    assert have == published(*sections)
    assert list(have) == list(published(*sections))
    assert len(have) == count


def test_encoders_have_the_keys_of_torchvision():
    with torch.device("meta"):
        plain, normed = (encoders.VGG(2, 3, 64, norm=norm) for norm in (False, True))
        resnet = encoders.ResNet(3, 64)
    for net, section in ((plain, "vgg16"), (normed, "vgg16_bn"), (resnet, "resnet50")):
        have = {k: tuple(v.shape) for k, v in net.state_dict().items()}
        assert have == {k.removeprefix("backbone."): v for k, v in published(section).items()}
    assert (total(plain), total(resnet)) == (14_714_688, 23_508_032)


# --- the forms of the papers -------------------------------------------------------------------


def test_dilation_keeps_an_eighth_of_the_resolution():
    body = encoders.ResNet(1, 4, dilated=True).eval()
    assert [f.shape[-1] for f in body(torch.rand(1, 1, 64, 64))] == [32, 16, 8, 8, 8]
    dilations = [body.layer3[0], body.layer3[1], body.layer4[0], body.layer4[1]]
    assert [b.conv2.dilation[0] for b in dilations] == [1, 2, 2, 4]


def test_unet_goes_from_96_to_6_by_6_by_1024():
    net = meta("unet", 2, 1, 4)
    seen = []
    net.down[-1].register_forward_hook(lambda *a: seen.append(tuple(a[2].shape)))
    with torch.device("meta"):
        net(torch.rand(1, 1, 96, 96))
    assert seen == [(1, 1024, 6, 6)]


def test_a_residual_of_zero_leaves_the_shortcut_alone():
    unit = resunet.Unit(2, 3, 5, 2).eval()
    torch.nn.init.zeros_(unit.residual[-1].weight)
    torch.nn.init.zeros_(unit.residual[-1].bias)
    x = torch.rand(1, 3, 8, 8)
    assert torch.equal(unit(x), unit.shortcut(x))


@pytest.mark.parametrize("axis", [2, 3])
def test_the_shift_equals_direct_indexing(axis):
    x = torch.rand(2, 10, 6, 7)
    want = torch.zeros_like(x)
    for group in range(5):
        for i in range(x.shape[axis]):
            source = i - (group - 2)
            if 0 <= source < x.shape[axis]:
                channels = slice(2 * group, 2 * group + 2)
                want[:, channels].select(axis, i).copy_(x[:, channels].select(axis, source))
    assert torch.equal(unext.shifted(x, axis), want)


@pytest.mark.parametrize("dims", [2, 3])
def test_maxima_return_to_their_places(dims):
    """Without its convolutions the mirror gives back each maximum where it was, zeros elsewhere."""
    encoder = encoders.VGG(dims, 1, 1, norm=False)
    mirror = segnet.Mirror(dims, encoder.widths, transposed=False)
    mirror.stages = torch.nn.ModuleList(torch.nn.Identity() for _ in mirror.stages)
    features = torch.rand(1, 1, *[32] * dims)
    sizes, places, x = [], [], features
    pool = F.max_pool2d if dims == 2 else F.max_pool3d
    for _ in range(5):
        sizes.append(list(x.shape[2:]))
        x, place = pool(x, 2, return_indices=True)
        places.append(place)
    back = mirror(x, places, sizes)
    assert (back == features.max()).sum() == 1
    assert torch.equal(back, torch.where(features == features.max(), features, 0.0))


def test_masks_are_products_of_queries_and_pixels():
    torch.manual_seed(0)
    net = query_mask.QueryMask(2, 1, 2, 8, 3, 1).eval()
    x = torch.rand(2, 1, 32, 32)
    q, pixels = net.parts(x)
    masks = torch.zeros(2, 6, 8, 8)
    for n in range(2):
        for k in range(6):
            masks[n, k] = (q[n, k, :, None, None] * pixels[n]).sum(0) / 32**0.5
    classes = torch.stack([masks[:, :3].exp().sum(1).log(), masks[:, 3:].exp().sum(1).log()], 1)
    want = F.interpolate(classes, size=(32, 32), mode="bilinear")
    torch.testing.assert_close(net(x), want, atol=1e-5, rtol=1e-5)
    before = net(x)
    net.query.data = net.query.data[[2, 0, 1, 4, 5, 3]]
    torch.testing.assert_close(net(x), before, atol=1e-5, rtol=1e-5)


def test_rates_beyond_the_features_are_told():
    net = nets.create("deeplabv3-resnet50", 2, width=1).eval()
    with pytest.warns(UserWarning, match=r"rates \[12, 24, 36\] act as 1 x 1 on features of 12x12"):
        net(torch.rand(1, 1, 96, 96))
    wide = fcn.Pyramid(8, 4, (12, 24, 36)).eval()
    point = wide.convs[1][0].weight[:, :, 1, 1][:, :, None, None]
    x = torch.rand(1, 8, 12, 12)
    torch.testing.assert_close(wide.convs[1][0](x), F.conv2d(x, point))


@pytest.mark.parametrize(
    ("name", "stages"),
    [("unet-vgg16", ("block1", "block2")), ("unet-resnet50", ("stem", "layer1"))],
)
def test_frozen_stages_stay_bitwise(name, stages):
    """Weights and statistics, after ten steps of an optimizer that decays weights."""
    net = nets.create(name, 2, width=4, freeze=stages)
    prefix = ("encoder.conv1", "encoder.bn1", "encoder.layer1") if "stem" in stages else tuple(
        f"encoder.features.{i}." for i in (0, 2, 5, 7)
    )  # fmt: skip
    before = {k: v.clone() for k, v in net.state_dict().items()}
    overfit(net, *batch(2, 32), steps=10)
    moved = {k for k, v in net.state_dict().items() if not torch.equal(v, before[k])}
    assert not {k for k in moved if k.startswith(prefix)}
    assert {k for k in before if k.startswith("encoder") and not k.startswith(prefix)} <= moved
    with pytest.raises(ConfigError, match="unknown stage to freeze: found top"):
        nets.create(name, 2, width=1, freeze=("top",))


@pytest.mark.parametrize(
    ("name", "options", "count"),
    [
        ("fcn-resnet50", {"width": 2, "aux": True}, 1),
        ("unet", {"width": 2, "levels": 4, "deep_supervision": True}, 2),
    ],
)
def test_auxiliary_heads_speak_in_training_only(name, options, count):
    net = nets.create(name, 2, **options)
    x = torch.rand(2, 1, 33, 40)
    heads = nets.heads(net(x))
    assert [tuple(d.shape) for d in heads.deep] == count * [(2, 1, 33, 40)]
    assert nets.heads(net.eval()(x)).deep == ()


# --- classes, names and options ----------------------------------------------------------------


def test_the_lumen_is_the_sum_of_its_classes():
    logit = torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    p = logit.softmax(1)
    for wanted, want in ((None, 1 - p[:, 0]), ((1, 3), p[:, 1] + p[:, 3])):
        torch.testing.assert_close(nets.lumen_logit(logit, wanted).sigmoid(), want)
    for wrong in ((), (0, 1, 2, 3), (4,)):
        with pytest.raises(ConfigError, match="bad lumen_classes"):
            nets.lumen_logit(logit, wrong)


@pytest.mark.parametrize(
    ("name", "dims", "options", "expected"),
    [
        ("vesslnet", 3, {}, "did you mean 'vesselnet'"),
        ("unext", 3, {}, "bad dims of network 'unext': found 3, need 2"),
        ("unet", 4, {}, "bad dims of network 'unet': found 4, need 2 or 3"),
        ("vesselnet", 3, {"size": "huge"}, "option 'size' of network 'vesselnet'.*'small'"),
        ("unet", 3, {"widht": 3}, "network 'unet' has no option 'widht': need width, levels"),
        ("unet", 3, {"width": 0}, "option 'width' of network 'unet'.*greater than or equal to 1"),
        ("unet", 3, {"width": 2.5}, "option 'width' of network 'unet'.*integer"),
        ("unext", 2, {"widths": [4, 4, 4, 4, 4]}, "option 'widths'.*greater than or equal to 5"),
        ("unet", 3, {"in_channels": 0}, "bad network: found 0 channels"),
    ],
)
def test_unknown_names_and_options_are_refused(name, dims, options, expected):
    with pytest.raises(ConfigError, match=expected):
        nets.create(name, dims, **options)


@pytest.mark.parametrize("name", ["deeplabv3-resnet50", "deconvnet"])
def test_a_batch_of_one_is_refused_where_normalisation_needs_two(name):
    with pytest.raises(ConfigError, match="need batch >= 2"):
        nets.create(name, 2, **SMALL[name])(torch.rand(1, 1, 64, 64))


def test_networks_of_monai_are_taken_or_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "monai", None)
    with pytest.raises(EnvironmentFault, match=r"needs MONAI.*pip install 'vesselseg\[monai\]'"):
        nets.create("monai:SegResNet", 2)
    stand_in = types.ModuleType("monai.networks.nets")

    class Tiny(torch.nn.Conv2d):
        def __init__(self, spatial_dims, in_channels, out_channels, kernel_size=1):
            super().__init__(in_channels, out_channels, kernel_size)

    stand_in.Tiny = Tiny
    for module in ("monai", "monai.networks"):
        monkeypatch.setitem(sys.modules, module, types.ModuleType(module))
    monkeypatch.setitem(sys.modules, "monai.networks.nets", stand_in)
    assert nets.create("monai:Tiny", 2, 1, 4)(torch.rand(1, 1, 17, 40)).shape == (1, 6, 17, 40)
    with pytest.raises(ConfigError, match="did you mean 'monai:Tiny'"):
        nets.create("monai:Tony", 2)
    with pytest.raises(ConfigError, match=r"'monai:Tiny' cannot be made.*unexpected keyword"):
        nets.create("monai:Tiny", 2, colour=3)


def test_mask2former_is_the_masks_by_what_they_are_or_the_cause_is_named(monkeypatch):
    """A torchvision of another torch shows as a RuntimeError that names it as its cause."""
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(EnvironmentFault, match=r"needs transformers.*'vesselseg\[compare\]'"):
        nets.create("mask2former", 2)
    stand_in = types.ModuleType("transformers")

    class Model(torch.nn.Module):
        def __init__(self, config):
            super().__init__()
            self.config = config

        def forward(self, pixel_values):
            count, _, ny, nx = pixel_values.shape
            rng = torch.Generator().manual_seed(0)
            sizes = (self.config.num_queries, self.config.num_labels + 1)
            return types.SimpleNamespace(
                class_queries_logits=torch.randn(count, *sizes, generator=rng),
                masks_queries_logits=torch.randn(count, sizes[0], ny // 4, nx // 4, generator=rng),
            )

    stand_in.Mask2FormerForUniversalSegmentation = Model
    stand_in.SwinConfig = stand_in.Mask2FormerConfig = types.SimpleNamespace
    monkeypatch.setitem(sys.modules, "transformers", stand_in)
    net = nets.create("mask2former", 2, 1, 3, distance=False, queries=5)
    x = torch.rand(2, 1, 64, 96)
    found = net.net(x)
    p = found.class_queries_logits.softmax(-1)[..., :3]
    each = [[sum(p[n, q, c] * found.masks_queries_logits[n, q] for q in range(5))
             for c in range(3)] for n in range(2)]  # fmt: skip
    masks = torch.stack([torch.stack(row) for row in each])
    torch.testing.assert_close(net(x), blocks.resize(masks, (64, 96)))
    assert net(torch.rand(1, 1, 33, 40)).shape == (1, 3, 33, 40)

    def broken(name):
        raise RuntimeError("cannot import") from ModuleNotFoundError("torchvision::nms")

    monkeypatch.delattr(stand_in, "Mask2FormerForUniversalSegmentation")
    stand_in.__getattr__ = broken
    with pytest.raises(EnvironmentFault, match="needs transformers: torchvision::nms"):
        nets.create("mask2former", 2)
