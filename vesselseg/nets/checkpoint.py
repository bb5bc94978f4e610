"""Checkpoints: a safetensors file and a JSON sidecar (the card) that names and hashes it.

Two files cannot be replaced together, so the weights go to a name of their own and the sidecar,
replaced last, is the commit; only then is the previous weights file removed. Nothing is ever
unpickled.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from ..errors import CheckpointError, ConfigError
from ..io.atomic import write_bytes
from . import create

FORMAT = "vesselseg-checkpoint"
VERSION = 1
MAX_WEIGHTS_BYTES = 2**31
MAX_CARD_BYTES = 2**24
FLOATS = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Weights and card as read from disk.

    Parameters
    ----------
    tensors : dict of str to Tensor
        Finite float32 tensors by name.
    card : dict
        The sidecar: ``architecture``, ``calibration``, ``config``, ``sha256`` and facts.
    path : Path
        The sidecar.
    net : nn.Module, optional
        The network itself where the file holds a graph instead of tensors.
    """

    tensors: dict[str, Tensor]
    card: dict[str, Any]
    path: Path
    net: nn.Module | None = None

    @property
    def model_id(self) -> str:
        """Name and digest of the weights."""
        return f"{self.card.get('name', self.path.stem)}:{self.card['sha256'][:12]}"

    def subset(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors whose names start with ``prefix.``, without it."""
        start = prefix + "."
        return {k.removeprefix(start): v for k, v in self.tensors.items() if k.startswith(start)}


def save(
    stem: Path, tensors: Mapping[str, Tensor], card: Mapping[str, Any], *, tag: str = ""
) -> Path:
    """Write ``<stem><tag>.safetensors``, then commit it by ``<stem>.json``; return the latter.

    Parameters
    ----------
    stem : Path
        Path without suffix.
    tensors : mapping of str to Tensor
    card : mapping
        JSON-ready facts; must hold ``architecture``, the arguments of ``nets.create``.
    tag : str
        Makes the name of the weights new, so that a kill leaves the last pair whole.
    """
    data = safetensors.torch.save({k: stored(v) for k, v in tensors.items()})
    weights = stem.with_name(f"{stem.name}{tag}.safetensors")
    full = {
        "format": FORMAT,
        "version": VERSION,
        **card,
        "weights": weights.name,
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    write_bytes(weights, data)
    sidecar = stem.with_name(stem.name + ".json")
    write_bytes(sidecar, (json.dumps(full, indent=1, sort_keys=True) + "\n").encode())
    for old in stem.parent.glob(f"{stem.name}-*.safetensors"):
        if tag and old != weights:
            old.unlink()
    return sidecar


def stored(tensor: Tensor) -> Tensor:
    """Return a tensor as files hold it; a counter becomes float32, exact up to 2^24."""
    counter = tensor.ndim == 0 and tensor.dtype == torch.int64
    return (tensor.float() if counter else tensor.detach()).contiguous()


def load(path: str | Path) -> Checkpoint:
    """Read a checkpoint by the path of its sidecar or of its weights, or an exported ``.onnx``.

    Raises
    ------
    CheckpointError
        If a file is missing, is not what it should be, has another digest than the sidecar
        says, or holds integers or non-finite numbers.
    """
    if Path(path).suffix == ".onnx":
        from .onnx import OnnxNet

        net = OnnxNet(read_limited(Path(path), MAX_WEIGHTS_BYTES), Path(path))
        return Checkpoint({}, net.card(Path(path)), Path(path), net)
    sidecar = sidecar_of(Path(path))
    card = read_card(sidecar)
    weights = sidecar.with_name(Path(card["weights"]).name)
    if Path(path).suffix == ".safetensors" and weights.name != Path(path).name:
        raise CheckpointError(
            "sidecar of another file", path=sidecar, found=weights.name, need=Path(path).name
        )
    data = read_limited(weights, MAX_WEIGHTS_BYTES)
    if hashlib.sha256(data).hexdigest() != card["sha256"]:
        raise CheckpointError(
            "checksum mismatch", path=weights, remedy="fetch the file again; its bytes changed"
        )
    return Checkpoint(parse(data, weights), card, sidecar)


def shipped_stem(dims: int) -> Path:
    """Return the path, without suffix, of the weights inside the package."""
    return Path(str(resources.files(__package__))) / f"vesselnet-{dims}d-v1"


def shipped(dims: int) -> Path:
    """Return the sidecar of the weights inside the package for 2-D or 3-D scans."""
    path = shipped_stem(dims).with_suffix(".json")
    if not path.is_file():
        raise CheckpointError(
            f"no weights are shipped for {dims}-D scans", remedy="give --start FILE or --model FILE"
        )
    return path


def located(name: str) -> Path:
    """Return the path of a checkpoint: a file of the user's, or shipped weights by their name."""
    known = {shipped_stem(dims).name: shipped_stem(dims).with_suffix(".json") for dims in (2, 3)}
    return known.get(name, Path(name))


def network(checkpoint: Checkpoint, prefix: str = "") -> nn.Module:
    """Make the network that the card names and fill it with the checkpoint's weights."""
    if checkpoint.net is not None:
        return checkpoint.net.eval()
    architecture = checkpoint.card["architecture"]
    tensors = checkpoint.subset(prefix) if prefix else checkpoint.tensors
    try:
        with torch.device("meta"):  # a wrong card could ask for more memory than there is
            agree(create(**architecture), tensors, checkpoint.path)
    except (ConfigError, TypeError) as error:
        raise CheckpointError(f"bad architecture: {error}", path=checkpoint.path) from None
    net = create(**architecture)
    fill(net, tensors, checkpoint.path)
    return net.eval()


def fill(net: nn.Module, tensors: Mapping[str, Tensor], path: Path | None = None) -> None:
    """Load the tensors into the network; names and shapes must agree exactly."""
    agree(net, tensors, path)
    net.load_state_dict(dict(tensors))


def agree(net: nn.Module, tensors: Mapping[str, Tensor], path: Path | None = None) -> None:
    """Refuse tensors that do not fit the network by name and shape."""
    need = {k: tuple(v.shape) for k, v in net.state_dict().items()}
    have = {k: tuple(v.shape) for k, v in tensors.items()}
    faults = [f"{k} missing {need[k]}" for k in need if k not in have]
    faults += [f"{k} extra {have[k]}" for k in have if k not in need]
    faults += [f"{k} {have[k]} not {need[k]}" for k in need if k in have and have[k] != need[k]]
    if faults:
        raise CheckpointError(
            f"{len(faults)} tensors do not fit the network", path=path, found=", ".join(faults[:3])
        )


def sidecar_of(path: Path) -> Path:
    """Return the sidecar that belongs to the path of weights or of a sidecar."""
    if path.is_dir():
        raise CheckpointError("is a directory", path=path, need="a .json or .safetensors file")
    if not path.exists():
        raise CheckpointError("no such file", path=path)
    if path.suffix == ".json":
        return path
    if path.suffix != ".safetensors":
        raise CheckpointError(
            "not a weights file", path=path, need=".safetensors with its .json, or .onnx",
            remedy="save a state_dict with safetensors; pickled files are never opened",
        )  # fmt: skip
    for name in (path.stem, path.stem.rpartition("-")[0]):
        if name and path.with_name(name + ".json").exists():
            return path.with_name(name + ".json")
    raise CheckpointError("sidecar missing", path=path, need=path.stem + ".json beside it")


def read_card(path: Path) -> dict[str, Any]:
    """Read and check a sidecar."""
    return checked_card(read_limited(path, MAX_CARD_BYTES), path)


def checked_card(data: bytes, path: Path) -> dict[str, Any]:
    """Parse and check a card."""
    try:
        card = json.loads(data, object_pairs_hook=unique)
    except (UnicodeDecodeError, RecursionError, ValueError) as error:
        raise CheckpointError(f"sidecar is not valid JSON: {error}", path=path) from None
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        raise CheckpointError("not a checkpoint sidecar", path=path, need=f"format {FORMAT}")
    if card.get("version") != VERSION:
        found, need = f"made for v{card.get('version')}", f"this is v{VERSION}"
        raise CheckpointError("other checkpoint version", path=path, found=found, need=need)
    kinds = {"weights": str, "sha256": str, "architecture": dict}
    for key, kind in kinds.items():
        if not isinstance(card.get(key), kind):
            raise CheckpointError(f"sidecar lacks '{key}'", path=path)
    return card


def parse(data: bytes, path: Path) -> dict[str, Tensor]:
    """Turn the bytes of a safetensors file into finite float32 tensors."""
    try:
        size = int.from_bytes(data[:8], "little")
        if 8 + size <= len(data):
            json.loads(data[8 : 8 + size], object_pairs_hook=unique)
        tensors = safetensors.torch.load(data)
    except (SafetensorError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise CheckpointError(f"not a safetensors file: {error}", path=path) from None
    if not tensors:
        raise CheckpointError("no tensors in the file", path=path)
    for name, tensor in tensors.items():
        if tensor.dtype not in FLOATS:
            raise CheckpointError(
                f"tensor {name} is {tensor.dtype}", path=path, need="float32, float16 or bfloat16"
            )
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"tensor {name} has non-finite values", path=path)
    return {name: tensor.float() for name, tensor in tensors.items()}


def unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Build a JSON object and refuse a key given twice."""
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"duplicate key '{key}'")
        result[key] = value
    return result


def read_limited(path: Path, limit: int) -> bytes:
    """Read a whole regular file of at most ``limit`` bytes."""
    try:
        size = path.stat().st_size
        if not path.is_file() or size > limit:
            raise CheckpointError(
                "not a regular file or too large", path=path, found=size, need=f"<= {limit} bytes"
            )
        data = path.read_bytes()
    except OSError as error:
        fault = (error.strerror or str(error)).lower()
        raise CheckpointError(f"cannot read: {fault}", path=path) from None
    if not data:
        raise CheckpointError("empty file", path=path)
    return data
