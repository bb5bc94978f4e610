"""PyTorch files become checkpoints; what is no weights file is refused and nothing in it runs."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_runner import run

from vesselseg import nets
from vesselseg.errors import CheckpointError, ConfigError, EnvironmentFault
from vesselseg.nets import checkpoint, convert
from vesselseg.nets.convert import ImportSettings, import_checkpoint

UNET = ImportSettings(network="unet", options={"width": 2, "levels": 2}, classes=2)


def unet() -> torch.nn.Module:
    torch.manual_seed(1)
    return nets.create("unet", 2, 1, 2, distance=False, width=2, levels=2)


def fcn(**options) -> dict[str, torch.Tensor]:
    """A small file of torchvision's FCN on RGB images."""
    torch.manual_seed(2)
    name = options.pop("name", "fcn-resnet50")
    return nets.create(name, 2, 3, 2, distance=False, width=2, **options).state_dict()


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("key", [None, "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module."])
def test_a_state_dict_is_imported_bitwise(tmp_path, prefix, key, old):
    """B083: the format before zip is read too."""
    state = unet().state_dict()
    tensors = {prefix + k: v for k, v in state.items()}
    content = tensors if key is None else {key: tensors, "epoch": 3}
    torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=not old)
    made = checkpoint.load(import_checkpoint(tmp_path / "a.pt", tmp_path / "a", UNET))
    again = checkpoint.network(made).state_dict()
    assert all(torch.equal(v, again[k]) for k, v in state.items())
    assert made.card["source"]["file"] == "a.pt"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_taken_B089(tmp_path, dtype):
    state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in unet().state_dict().items()}
    torch.save(state, tmp_path / "a.pt")
    made = checkpoint.load(import_checkpoint(tmp_path / "a.pt", tmp_path / "a", UNET))
    assert all(torch.equal(made.tensors[k], v.float()) for k, v in state.items())


@pytest.mark.parametrize(
    "options", [{}, {"aux": True}, {"name": "fcn-resnet101"}, {"name": "deeplabv3-resnet50"}]
)
def test_files_of_torchvision_are_recognised_and_see_grey(tmp_path, options):
    """A grey image gives what the RGB network says of its three equal channels."""
    more = dict(options)
    state = fcn(**options)
    torch.save(state, tmp_path / "a.pt")
    made = checkpoint.load(import_checkpoint(tmp_path / "a.pt", tmp_path / "a"))
    assert made.card["architecture"]["name"] == more.pop("name", "fcn-resnet50")
    assert made.card["architecture"]["aux"] is bool(more)
    rates = {"rates": (1, 2, 3)} if "deeplab" in made.card["architecture"]["name"] else {}
    made.card["architecture"] |= rates
    name = made.card["architecture"]["name"]
    rgb = nets.create(name, 2, 3, 2, distance=False, width=2, **more, **rates).eval()
    rgb.load_state_dict(state)
    grey = torch.rand(1, 1, 40, 33)
    with torch.no_grad():
        found = checkpoint.network(made)(grey)
        want = rgb(grey.expand(-1, 3, -1, -1))
    rounding = 1e-4 * want.abs().max().item()  # of one sum, through a hundred layers
    torch.testing.assert_close(found, want, atol=rounding, rtol=0)


def test_a_backbone_alone_fills_the_encoder(tmp_path):
    backbone = {k.removeprefix("backbone."): v for k, v in fcn().items() if "backbone" in k}
    torch.save({**backbone, "fc.weight": torch.ones(3, 3)}, tmp_path / "a.pt")
    settings = ImportSettings(network="unet-resnet50", options={"width": 2}, distance=True)
    made = checkpoint.load(import_checkpoint(tmp_path / "a.pt", tmp_path / "a", settings))
    conv = made.tensors["encoder.conv1.weight"]
    assert torch.equal(conv, backbone["conv1.weight"].sum(1, keepdim=True))
    assert torch.equal(made.tensors["encoder.layer4.2.bn3.bias"], backbone["layer4.2.bn3.bias"])
    backbone.pop("layer1.0.bn1.bias")
    torch.save(backbone, tmp_path / "b.pt")
    with pytest.raises(CheckpointError, match=r"encoder.layer1.0.bn1.bias missing \(2,\)"):
        import_checkpoint(tmp_path / "b.pt", tmp_path / "b", settings)


class Evil:
    """Writes a file when it is unpickled by an unguarded reader."""

    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self):
        return os.system, (f"touch '{self.sentinel}'",)


def packed(path: Path, member: bytes = b"\0" * 100_000) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", member)


def whole(**changes) -> dict[str, torch.Tensor]:
    state = {**unet().state_dict(), **changes}
    return {k: v for k, v in state.items() if v is not None}


FAULTS = {
    "B080 empty": (lambda p: p.write_bytes(b""), "empty file"),
    "B080 text": (lambda p: p.write_text("hello world\n"), "not a "),
    "B080 cut": (
        lambda p: (torch.save(whole(), p), p.write_bytes(p.read_bytes()[:2000])),
        "not a PyTorch file",
    ),
    "B081 system": (lambda p: torch.save(Evil(p.with_name("ran")), p), "not a weights file"),
    "B081 plain pickle": (
        lambda p: p.write_bytes(pickle.dumps(Evil(p.with_name("ran")))),
        "not a ",
    ),
    "B082 module": (
        lambda p: torch.save(unet(), p),
        "not a weights file.*vesselseg.nets.unet.UNet; save model.state_dict",
    ),
    "B083 tar": (lambda p: p.write_bytes(b"a" * 257 + b"ustar" + b"\0" * 800), "not a "),
    "B084 numpy scalar": (
        lambda p: torch.save({"state_dict": whole(), "loss": np.float64(1.0)}, p),
        "a pickled numpy",
    ),
    "B084 number": (lambda p: torch.save({"a": torch.ones(1), "b": 3}, p), "key 'b' is no tensor"),
    "B085 missing": (lambda p: torch.save(whole(**{"head.bias": None}), p), "head.bias missing"),
    "B085 misshaped": (
        lambda p: torch.save(whole(**{"head.bias": torch.ones(3)}), p),
        r"head.bias \(3,\) not \(2,\)",
    ),
    "B085 list": (lambda p: torch.save([torch.ones(2)], p), "not a weights file: found list"),
    "B087 nan": (
        lambda p: torch.save(whole(**{"head.bias": torch.full((2,), torch.nan)}), p),
        "head.bias has non-finite",
    ),
    "B089 int": (
        lambda p: torch.save(whole(**{"head.bias": torch.ones(2, dtype=torch.int8)}), p),
        "head.bias is torch.int8",
    ),
    "B091 deflated": (packed, "compressed member: found archive/data.pkl"),
    "B092 folder": (lambda p: p.mkdir(), "is a directory"),
    "missing": (lambda p: None, "no such file"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_no_weights_file_is_refused_and_leaves_nothing(tmp_path, fault):
    build, expected = FAULTS[fault]
    build(tmp_path / "a.pt")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(CheckpointError, match=expected) as caught:
        import_checkpoint(tmp_path / "a.pt", tmp_path / "made", UNET)
    assert "\n" not in caught.value.line()
    assert sorted(tmp_path.iterdir()) == before


def test_a_member_larger_than_the_limit_is_refused_unread_B091(tmp_path, monkeypatch):
    torch.save(whole(), tmp_path / "a.pt")
    size = (tmp_path / "a.pt").stat().st_size
    monkeypatch.setattr(convert.checkpoint, "MAX_WEIGHTS_BYTES", size)
    data = bytearray((tmp_path / "a.pt").read_bytes())
    at = data.rindex(b"PK\x01\x02")  # the last entry of the directory claims 3 GB
    data[at + 24 : at + 28] = (3_000_000_000).to_bytes(4, "little")
    (tmp_path / "a.pt").write_bytes(data)
    with pytest.raises(CheckpointError, match="too large"):
        import_checkpoint(tmp_path / "a.pt", tmp_path / "made", UNET)


def test_an_old_torch_is_refused(tmp_path, monkeypatch):
    torch.save(whole(), tmp_path / "a.pt")
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    with pytest.raises(EnvironmentFault, match=r"found 2\.9\.1") as caught:
        import_checkpoint(tmp_path / "a.pt", tmp_path / "made", UNET)
    assert caught.value.exit_code == 5


def test_unknown_files_ask_for_the_network(tmp_path):
    torch.save(whole(), tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"not recognised.*--set network=unet"):
        import_checkpoint(tmp_path / "a.pt", tmp_path / "made")
    with pytest.raises(ConfigError, match="did you mean 'unet'"):
        import_checkpoint(tmp_path / "a.pt", tmp_path / "made", ImportSettings(network="unt"))


def test_the_verbs_import_and_show(tmp_path, capfd):
    torch.save(fcn(), tmp_path / "a.pt")
    argv = ["import-checkpoint", tmp_path / "a.pt", "-o", tmp_path / "a.json", "--json"]
    code, out, err = run(capfd, *argv)
    assert (code, err) == (0, [])
    assert json.loads(out) == {"checkpoint": str(tmp_path / "a.json")}
    code, _, (line,) = run(capfd, *argv)
    assert (code, "exists" in line) == (2, True)
    code, out, _ = run(capfd, "models", "info", tmp_path / "a.json", "--json")
    assert json.loads(out)["architecture"]["classes"] == 2
    code, out, _ = run(capfd, "models", "list", "--json")
    found = json.loads(out)
    assert code == 0
    assert [row["name"] for row in found["networks"]] == list(nets.names())
    assert {card["name"] for card in found["checkpoints"]} == {"vesselnet-2d-v1", "vesselnet-3d-v1"}
    code, out, _ = run(capfd, "models", "list")
    assert "unet                 31," in out
    code, out, _ = run(capfd, "models", "info", "unet", "--json")
    assert json.loads(out)["options"]["levels"] == 5
    for argv in (["info", "nope"], ["show"], ["info"], ["list", "unet"]):
        code, _, (line,) = run(capfd, "models", *argv)
        assert code == 2
