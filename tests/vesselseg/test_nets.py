"""Networks, losses and checkpoints."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from vesselseg import nets
from vesselseg.errors import CheckpointError, ConfigError
from vesselseg.nets import checkpoint, losses

PARAMETERS = [
    (3, "small", 670_599),
    (3, "base", 1_191_539),
    (3, "large", 2_286_187),
    (2, "wide", 1_646_755),
]
TINY = {"name": "vesselnet", "dims": 3, "in_channels": 1, "classes": 1, "size": "tiny"}


@pytest.mark.parametrize(("dims", "size", "count"), PARAMETERS)
def test_networks_have_the_recorded_number_of_parameters(dims, size, count):
    net = nets.create("vesselnet", dims, size=size)
    assert sum(p.numel() for p in net.parameters()) == count


@pytest.mark.parametrize("classes", [1, 4])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("size", [(16, 17, 23), (31, 19)])
def test_output_has_the_size_of_the_input(size, channels, classes):
    net = nets.create("vesselnet", len(size), channels, classes, size="tiny")
    y = net(torch.rand(2, channels, *size))
    assert y.shape == (2, classes + 2, *size)
    y.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters())


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'vesselnet'"):
        nets.create("vesslnet")
    with pytest.raises(ConfigError, match="small"):
        nets.create("vesselnet", size="huge")
    with pytest.raises(ConfigError, match="unknown loss 'dise'"):
        losses.parts(*random_case(), {"dise": 1.0})


def test_dark_blood_is_the_mirror_of_bright_blood():
    image = np.random.default_rng(0).normal(size=(20, 20))
    np.testing.assert_allclose(nets.normalise(-image, dark=True), nets.normalise(image), atol=1e-6)
    assert not nets.normalise(np.ones((4, 4))).any()


def random_case(fill: float | None = None):
    generator = torch.Generator().manual_seed(0)
    draw = lambda: torch.randn(2, 8, 8, 8, generator=generator)  # noqa: E731
    heads = nets.Heads(*(draw() for _ in range(3)))
    phi = 3.0 * draw() if fill is None else torch.full((2, 8, 8, 8), fill)
    return heads, losses.Target(phi, (phi < -2.0).to(torch.uint8))


@pytest.mark.parametrize("term", sorted(losses.TERMS))
@pytest.mark.parametrize("fill", [None, 12.0, -12.0])
@pytest.mark.parametrize("extreme", [0.0, 1e4, -1e4])
def test_losses_and_their_slopes_are_finite(term, fill, extreme):
    raw = torch.full((2, 3, 8, 8, 8), extreme, requires_grad=True)
    _, target = random_case(fill=fill)
    value = losses.TERMS[term](nets.heads(raw), target)
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(raw.grad).all()


def test_every_weight_moves_the_loss():
    heads, target = random_case()
    base = losses.parts(heads, target, losses.DEFAULT)
    assert set(base) == set(losses.TERMS)
    for name in losses.TERMS:
        twice = losses.parts(heads, target, {**losses.DEFAULT, name: 2 * losses.DEFAULT[name]})
        assert sum(twice.values()) - sum(base.values()) == pytest.approx(
            base[name].item(), rel=1e-4
        )
        assert abs(base[name].item()) > 1e-3


def test_losses_vanish_on_the_truth():
    _, target = random_case()
    sdf = losses.saturated(target.phi)
    exact = nets.Heads(-2.0 * target.phi, sdf, torch.zeros_like(sdf))
    assert losses.dice(exact, target) == pytest.approx(0.0, abs=1e-5)
    assert losses.sdf_l1(exact, target) == 0.0
    assert losses.scores(exact, target) == (1.0, pytest.approx(0.02, abs=0.05))


def test_sdf_nll_is_least_where_sigma_is_the_error():
    _, target = random_case()
    sdf = losses.saturated(target.phi) + 0.3
    at = {
        s: losses.weighted_mean(
            0.5 * (0.3 / s) ** 2 + torch.log(torch.full_like(sdf, s)), torch.ones_like(sdf)
        )
        for s in (0.2, 0.3, 0.45)
    }
    assert min(at, key=at.get) == 0.3
    log_sigma = torch.full_like(sdf, np.log(0.3)).requires_grad_()
    losses.sdf_nll(nets.Heads(sdf, sdf, log_sigma), target).backward()
    assert log_sigma.grad.abs().max() < 1e-6


def write(folder: Path, tensors=None, **changes) -> Path:
    torch.manual_seed(0)
    state = nets.create(**TINY).state_dict() if tensors is None else tensors
    return checkpoint.save(folder / "net", state, {"architecture": TINY, **changes})


def test_checkpoints_come_back_bitwise(tmp_path):
    path = write(tmp_path)
    torch.manual_seed(0)
    want = nets.create(**TINY).state_dict()
    have = checkpoint.network(checkpoint.load(path)).state_dict()
    assert all(torch.equal(want[k], have[k]) for k in want)
    weights = path.with_suffix(".safetensors")
    assert checkpoint.load(weights).card == checkpoint.load(path).card


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_are_upcast(tmp_path, dtype):
    tensors = {k: v.to(dtype) for k, v in nets.create(**TINY).state_dict().items()}
    read = checkpoint.load(write(tmp_path, tensors))
    assert {t.dtype for t in read.tensors.values()} == {torch.float32}


def edit_card(path: Path, **changes) -> None:
    card = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in card.items() if v is not None}))


def state(**changes):
    tensors = dict(nets.create(**TINY).state_dict())
    for name, value in changes.items():
        tensors[name.replace("__", ".")] = value
    return {k: v for k, v in tensors.items() if v is not None}


FILE_FAULTS = {
    "B080 missing": (lambda p, w: w.unlink(), "no such file"),
    "B080 empty": (lambda p, w: w.write_bytes(b""), "empty file"),
    "B080 text": (lambda p, w: w.write_text("hello"), "checksum mismatch"),
    "B080 cut": (lambda p, w: w.write_bytes(w.read_bytes()[:5000]), "checksum mismatch"),
    "B080 sidecar empty": (lambda p, w: p.write_bytes(b""), "empty file"),
    "B080 sidecar text": (lambda p, w: p.write_text("hello"), "not valid JSON"),
    "B080 sidecar cut": (lambda p, w: p.write_text(p.read_text()[:90]), "not valid JSON"),
    "B080 sidecar list": (lambda p, w: p.write_text("[]"), "not a checkpoint sidecar"),
    "B080 sidecar binary": (lambda p, w: p.write_bytes(b"\xff\xfe{}"), "not valid JSON"),
    "B080 sidecar nested": (lambda p, w: p.write_text("[" * 100_000), "not valid JSON"),
    "B086 version": (lambda p, w: edit_card(p, version=3), "made for v3, need this is v1"),
    "B086 no architecture": (lambda p, w: edit_card(p, architecture=None), "lacks 'architecture'"),
    "B088 flip": (
        lambda p, w: w.write_bytes(w.read_bytes()[:-9] + b"\x7f" + w.read_bytes()[-8:]),
        "checksum mismatch",
    ),
    "B088 other file": (lambda p, w: edit_card(p, weights="other.safetensors"), "no such file"),
    "B092 folder": (lambda p, w: (w.unlink(), w.mkdir()), "not a regular file"),
    "B103 duplicate": (
        lambda p, w: p.write_text(p.read_text().replace("{", '{"sha256": "x",', 1)),
        "duplicate key 'sha256'",
    ),
}


@pytest.mark.parametrize("fault", FILE_FAULTS)
def test_damaged_files_are_refused_in_one_line(tmp_path, fault):
    spoil, expected = FILE_FAULTS[fault]
    path = write(tmp_path)
    spoil(path, path.with_suffix(".safetensors"))
    with pytest.raises(CheckpointError, match=expected) as caught:
        checkpoint.network(checkpoint.load(path))
    assert "\n" not in caught.value.line()
    assert caught.value.exit_code == 4


PATH_FAULTS = {
    "B080 nothing": ("no.json", "no such file"),
    "B081 pickle": ("net.pt", "not a weights file"),
    "B088 no sidecar": ("alone.safetensors", "sidecar missing"),
    "B088 other weights": ("net-000009.safetensors", "sidecar of another file"),
    "B092 folder": ("", "is a directory"),
}


@pytest.mark.parametrize("fault", PATH_FAULTS)
def test_wrong_paths_are_refused(tmp_path, fault):
    name, expected = PATH_FAULTS[fault]
    write(tmp_path)
    for other in ("net.pt", "alone.safetensors", "net-000009.safetensors"):
        (tmp_path / other).write_bytes(b"x")
    with pytest.raises(CheckpointError, match=expected):
        checkpoint.load(tmp_path / name)


TENSOR_FAULTS = {
    "B085 missing": (lambda: state(head__bias=None), r"head.bias missing \(3,\)"),
    "B085 extra": (lambda: state(more=torch.ones(2)), r"more extra \(2,\)"),
    "B085 misshaped": (lambda: state(head__bias=torch.ones(2)), r"head.bias \(2,\) not \(3,\)"),
    "B087 nan": (lambda: state(head__bias=torch.full((3,), torch.nan)), "head.bias has non-finite"),
    "B087 inf": (lambda: state(head__bias=torch.full((3,), torch.inf)), "head.bias has non-finite"),
    "B089 int": (
        lambda: state(head__bias=torch.ones(3, dtype=torch.int8)),
        "head.bias is torch.int8",
    ),
    "B080 no tensors": (dict, "no tensors"),
}


@pytest.mark.parametrize("fault", TENSOR_FAULTS)
def test_wrong_tensors_are_refused_by_name(tmp_path, fault):
    make, expected = TENSOR_FAULTS[fault]
    path = write(tmp_path, make())
    with pytest.raises(CheckpointError, match=expected):
        checkpoint.network(checkpoint.load(path))


@pytest.mark.parametrize(
    ("change", "expected"),
    [({"dims": 5}, "dims"), ({"size": "huge"}, "size"), ({"colour": 1}, "bad architecture")],
)
def test_wrong_architectures_are_refused(tmp_path, change, expected):
    path = write(tmp_path)
    edit_card(path, architecture=TINY | change)
    with pytest.raises(CheckpointError, match=expected):
        checkpoint.network(checkpoint.load(path))


def packed(header: str | bytes, body: bytes = b"", size: int | None = None) -> bytes:
    text = header.encode() if isinstance(header, str) else header
    return struct.pack("<Q", len(text) if size is None else size) + text + body


def entry(name: str, start: int, end: int, shape: str = "[1]") -> str:
    return f'"{name}": {{"dtype": "F32", "shape": {shape}, "data_offsets": [{start}, {end}]}}'


HEADERS = {
    "header 2^62": packed("{}", size=2**62),
    "header > 100 MB": packed("{}", size=101_000_000),
    "overlap": packed("{" + entry("a", 0, 4) + "," + entry("b", 0, 4) + "}", b"\0" * 4),
    "hole": packed("{" + entry("a", 0, 4) + "," + entry("b", 8, 12) + "}", b"\0" * 12),
    "trailing bytes": packed("{" + entry("a", 0, 4) + "}", b"\0" * 9),
    "bad UTF-8": packed(b'{"\xff": 1}'),
    "duplicate key": packed("{" + entry("a", 0, 4) + "," + entry("a", 0, 4) + "}", b"\0" * 4),
    "overflowing shape": packed(
        "{" + entry("a", 0, 4, "[4294967296, 4294967297]") + "}", b"\0" * 4
    ),
}


@pytest.mark.parametrize("fault", HEADERS)
def test_bad_safetensors_headers_are_refused(fault):
    """B090: the digest agrees, the content does not."""
    with pytest.raises(CheckpointError, match="not a safetensors file") as caught:
        checkpoint.parse(HEADERS[fault], Path("net.safetensors"))
    assert "\n" not in caught.value.line()


def test_a_kill_between_weights_and_sidecar_leaves_the_last_pair(tmp_path):
    """F04: the sidecar is the commit, old weights go after it."""
    first = checkpoint.save(tmp_path / "net", state(), {"architecture": TINY}, tag="-1")
    before = checkpoint.load(first).card["sha256"]
    (tmp_path / "net-2.safetensors").write_bytes(safetensors.torch.save({"a": torch.ones(2)}))
    assert checkpoint.load(first).card["sha256"] == before
    checkpoint.save(tmp_path / "net", state(), {"architecture": TINY}, tag="-2")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net-2.safetensors", "net.json"]
