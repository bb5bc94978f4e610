"""A network as an ONNX file: the same numbers, the same segmentation, refused when damaged."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from cli_runner import assert_refused, run

from vesselseg import nets
from vesselseg.errors import CheckpointError, EnvironmentFault, NumericalError
from vesselseg.fields import Volume
from vesselseg.grid import Grid
from vesselseg.infer import SegmentSettings, segment
from vesselseg.nets import checkpoint

for name in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(name)
from vesselseg.nets import onnx  # noqa: E402


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A small random network of two dimensions with a calibration of its own."""
    torch.manual_seed(0)
    architecture = {"name": "vesselnet", "dims": 2, "in_channels": 1, "classes": 1, "size": "tiny"}
    net = nets.create(**architecture)
    card = {"architecture": architecture, "name": "mine", "calibration": {"temperature": 0.7}}
    return checkpoint.save(tmp_path_factory.mktemp("net") / "net", net.state_dict(), card)


@pytest.fixture(scope="module")
def exported(weights):
    return onnx.export(weights, weights.with_name("net.onnx"), 64)


@pytest.mark.parametrize("size", [(64, 64), (40, 50), (64, 150), (131, 70)])
def test_any_size_gives_what_the_network_gives_tile_by_tile(weights, exported, size):
    """Mirrored up to a tile, or blended of several: to 1e-4, as one tile is."""
    net = checkpoint.network(checkpoint.load(weights))
    x = torch.rand(1, 1, *size, generator=torch.Generator().manual_seed(1))
    image = np.pad(x[0, 0].numpy(), [(0, max(0, 64 - n)) for n in size], mode="symmetric")
    rows = [(a, b) for a in spread(image.shape[0]) for b in spread(image.shape[1])]
    i = (np.arange(64) - 31.5) / 16
    window = np.exp(-0.5 * (i[:, None] ** 2 + i**2))
    total, weight = 0.0, 0.0
    with torch.no_grad():
        found = checkpoint.network(checkpoint.load(exported))(x)[0].numpy()
        for a, b in rows:
            y = net(torch.from_numpy(image[None, None, a : a + 64, b : b + 64]))[0].numpy()
            room = [(a, image.shape[0] - a - 64), (b, image.shape[1] - b - 64)]
            total = total + np.pad(window * y, [(0, 0), *room])
            weight = weight + np.pad(window, room)
    want = (total / weight)[:, : size[0], : size[1]]
    assert found.shape == want.shape
    assert np.abs(found - want).max() < onnx.LARGEST


def spread(n: int) -> list[int]:
    """First voxels of the tiles of 64 along an axis, overlapping by at least 16."""
    return {64: [0], 70: [0, 6], 131: [0, 34, 67], 150: [0, 43, 86]}[n]


def test_a_scan_is_segmented_alike(weights, exported):
    x = np.indices((64, 64)) - 31.5
    image = (np.hypot(*x) < 9).astype("f4") + np.random.default_rng(0).normal(0, 0.1, (64, 64))
    volume = Volume(image.astype("f4"), Grid.from_spacing((64, 64), 1.0))
    first, second = (segment(volume, p, SegmentSettings(bf16=False)) for p in (weights, exported))
    assert np.abs(first.values - second.values).max() < onnx.LARGEST
    assert first.model_id == second.model_id


def test_a_graph_that_differs_is_not_written(weights, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx, "LARGEST", 0.0)
    with pytest.raises(NumericalError, match="differs from the network"):
        onnx.export(weights, tmp_path / "a.onnx", 64)
    assert list(tmp_path.iterdir()) == []


def test_damaged_files_are_refused(exported, tmp_path):
    data = exported.read_bytes()
    for spoilt in (b"", b"hello", data[: len(data) // 2], data[:-200]):
        (tmp_path / "a.onnx").write_bytes(spoilt)
        with pytest.raises(CheckpointError) as error:
            checkpoint.load(tmp_path / "a.onnx")
        assert "a.onnx" in error.value.line()
    with pytest.raises(CheckpointError, match="no such file"):
        checkpoint.load(tmp_path / "b.onnx")


def test_a_missing_package_is_named(weights, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(EnvironmentFault, match=r"vesselseg\[onnx\]"):
        onnx.export(weights, tmp_path / "a.onnx")


def test_the_verb_writes_a_file_and_refuses_a_bad_tile(weights, tmp_path, capfd):
    target = tmp_path / "net.onnx"
    code, out, err = run(capfd, "export-onnx", weights, "-o", target, "--tile", 48, "--json")
    assert (code, err) == (0, [])
    assert json.loads(out) == {"file": str(target)}
    assert checkpoint.load(target).card["tile"] == 48
    code, out, _ = run(capfd, "models", "info", target, "--json")
    assert json.loads(out)["name"] == "mine"
    again = ("export-onnx", weights, "-o", target)
    assert_refused(run(capfd, *again), 2, "output exists")
    assert_refused(run(capfd, *again, "--overwrite", "--tile", 50), 2, "multiple of 16")
    assert_refused(run(capfd, "export-onnx", weights, "-o", tmp_path / "a.pt"), 2, ".onnx")
