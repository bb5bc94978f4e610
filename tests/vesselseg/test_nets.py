"""Checkpoints, and the intensities that a network sees."""

from __future__ import annotations

import contextlib
import json
import struct
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from fuzz import mutated

from vesselseg import nets
from vesselseg.errors import CheckpointError, InputError
from vesselseg.nets import blocks, checkpoint, vesselnet

TINY = {"name": "vesselnet", "dims": 3, "in_channels": 1, "classes": 1, "size": "tiny"}


def test_dark_blood_is_the_mirror_of_bright_blood():
    image = np.random.default_rng(0).normal(size=(20, 20))
    np.testing.assert_allclose(nets.normalise(-image, dark=True), nets.normalise(image), atol=1e-6)
    assert not nets.normalise(np.ones((4, 4))).any()


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


@pytest.mark.parametrize(
    "change", [{"name": "unet", "width": 4096, "levels": 5}, {"classes": 10**9}]
)
def test_an_architecture_beyond_any_memory_is_refused_by_its_shapes(tmp_path, change):
    """It would take half a terabyte and more."""
    path = write(tmp_path)
    base = TINY | change
    edit_card(
        path, architecture={k: v for k, v in base.items() if "name" not in change or k != "size"}
    )
    with pytest.raises(CheckpointError, match="tensors do not fit the network"):
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


@pytest.mark.parametrize("dims", [2, 3])
def test_unfolding_inverts_folding(dims):
    x = torch.randn(2, 3, *(4, 6, 8)[:dims])
    y = vesselnet.folded(x, 2)
    assert y.shape == (2, 3 * 2**dims, *(n // 2 for n in x.shape[2:]))
    assert torch.equal(y[:, 0], x[(slice(None), 0, *(slice(0, None, 2) for _ in range(dims)))])
    assert torch.equal(vesselnet.unfolded(y, 2), x)


def test_gradient_of_the_norm_in_bf16_is_that_of_float32():
    # bfloat16 has 8 bits: single numbers are off by 2^-9, and so are the gradients.
    torch.manual_seed(0)
    norm = vesselnet.Norm(16)
    torch.nn.init.normal_(norm.weight, 1.0, 0.3)
    x, slope = 3.0 + torch.randn(2, 16, 6, 5, 4), torch.randn(2, 16, 6, 5, 4)
    x, slope = x.bfloat16().float(), slope.bfloat16().float()

    def gradients(dtype):
        norm.zero_grad()
        image = x.to(dtype).requires_grad_()
        norm(image).backward(slope.to(dtype))
        return [g.float() for g in (image.grad, norm.weight.grad, norm.bias.grad)]

    for low, full in zip(gradients(torch.bfloat16), gradients(torch.float32), strict=True):
        assert (low - full).norm() < 0.01 * full.norm()


@pytest.mark.parametrize("shape", [(2, 2, 2), (2, 5, 4), (1, 1, 3), (4, 4, 4)])
@pytest.mark.parametrize("stride", [1, 2])
def test_gradient_of_a_convolution_in_bf16_is_that_of_float32_on_thin_maps(shape, stride):
    """Of 64 channels: there PyTorch's own is wrong on the first two."""
    torch.manual_seed(0)
    layer = blocks.conv(3, 64, 64, 3, stride)
    x = torch.randn(2, 64, *shape)

    def gradient(low):
        layer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            y = layer(x)
        y.float().square().sum().backward()
        return layer.weight.grad.clone()

    full = gradient(False)
    # bfloat16 rounds to 2^-9, image, weights, result and slope each.
    assert (gradient(True) - full).norm() < 0.02 * full.norm()


def test_mutated_checkpoints_are_read_or_refused_f40(tmp_path):
    """Weights behind their digest, the sidecar, and the bytes of weights themselves."""
    net = nets.create("vesselnet", 2, size="tiny")
    card = {"architecture": {"name": "vesselnet", "dims": 2, "in_channels": 1, "classes": 1,
                             "size": "tiny"}}  # fmt: skip
    sidecar = checkpoint.save(tmp_path / "net", net.state_dict(), card)
    weights = tmp_path / "net.safetensors"
    whole, refused = {path: path.read_bytes() for path in (sidecar, weights)}, 0
    for seed in range(120):
        random, path = np.random.default_rng(seed), (sidecar, weights)[seed % 2]
        path.write_bytes(data := mutated(whole[path], random))
        try:
            checkpoint.network(checkpoint.load(sidecar))
        except InputError as error:
            assert error.line().isprintable()
            refused += 1
        if path == weights:
            with contextlib.suppress(InputError):
                checkpoint.parse(data, path)
        path.write_bytes(whole[path])
    assert refused > 60
