"""Weights of other programs: a PyTorch file becomes safetensors and a sidecar.

A PyTorch file is a pickle, which can run anything when it is opened. It is opened by
``weights_only=True`` alone, in releases of PyTorch whose allow-list has no known hole, and after
the sizes of its members were checked.
"""

from __future__ import annotations

import hashlib
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from ..config import Settings
from ..errors import CheckpointError, EnvironmentFault
from . import checkpoint, create

SAFE_TORCH = (2, 10)  # earlier releases let a crafted file through weights_only
NESTED = ("state_dict", "model_state_dict", "model", "net", "network", "weights")
WRAPPERS = ("_orig_mod.", "module.", "_orig_mod.", "model.")  # in the order they are undone
BROKEN = (  # what unpickling random bytes raises
    RuntimeError, EOFError, ValueError, LookupError, AttributeError, TypeError, OSError,
    AssertionError, ArithmeticError, struct.error,
)  # fmt: skip
ENCODERS = ("encoder", "backbone")  # parts of our networks that have torchvision's keys
FIRST = "backbone.conv1.weight"
LAST = "classifier.4.weight"


class ImportSettings(Settings):
    """Which network the weights are of: those of ``nets.create``; default: by the tensors' names.

    A file of torchvision's VGG16 or ResNet alone fills the encoder of a network that has it;
    the rest is random, of ``seed``.
    """

    network: str = ""
    options: dict[str, Any] = Field(default_factory=dict)
    dims: int = Field(2, ge=2, le=3)
    in_channels: int = Field(1, ge=1)
    classes: int = Field(1, ge=1, le=255)
    distance: bool = False
    seed: int = Field(0, ge=0)


def import_checkpoint(
    path: Path,
    stem: Path,
    settings: ImportSettings = ImportSettings(),  # noqa: B008 - frozen
) -> Path:
    """Turn a PyTorch file of weights into a checkpoint; return its sidecar.

    Parameters
    ----------
    path : Path
        A ``state_dict``, alone or under a usual key, of torchvision's FCN or DeepLabv3 models or
        of any network of ours. The first convolution of an RGB network is summed over RGB
        where ours sees one channel.
    stem : Path
        Path of the result, without suffix.
    settings : ImportSettings

    Raises
    ------
    CheckpointError
        If the file is no weights file, is damaged or does not fit the network.
    EnvironmentFault
        If this PyTorch is too old to open such files safely.
    """
    tensors = read_state(path)
    architecture = described(settings) if settings.network else recognised(tensors, path)
    torch.manual_seed(settings.seed)
    net = create(**architecture)
    take(net, tensors, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    card = {"architecture": architecture, "name": stem.name}
    card["source"] = {"file": path.name, "sha256": digest}
    return checkpoint.save(stem, net.state_dict(), card)


def read_state(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a PyTorch file by name, without the prefixes that wrappers add."""
    if path.is_dir():
        raise CheckpointError("is a directory", path=path, need="a PyTorch file")
    data = checkpoint.read_limited(path, checkpoint.MAX_WEIGHTS_BYTES)
    version = tuple(int(n) for n in re.findall(r"\d+", torch.__version__)[:2])
    if version < SAFE_TORCH:
        need = "torch >= " + ".".join(str(n) for n in SAFE_TORCH)
        raise EnvironmentFault(
            "this PyTorch opens pickled files unsafely", found=torch.__version__, need=need
        )
    if data.startswith(b"PK"):
        check_members(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickles that no torch.save wrote
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise CheckpointError(
            "not a weights file",
            path=path,
            found=f"a pickled {found[1]}" if found else "a pickle of another kind",
            remedy="save model.state_dict()",
        ) from None
    except BROKEN as error:
        fault = str(error).partition("\n")[0]
        raise CheckpointError(f"not a PyTorch file: {fault}", path=path) from None
    return named_tensors(loaded, path)


def check_members(path: Path) -> None:
    """Refuse a zip with packed or too many bytes before any of them is read."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise CheckpointError(f"not a PyTorch file: {error}", path=path) from None
    packed = [m.filename for m in members if m.compress_type != zipfile.ZIP_STORED]
    if packed:
        raise CheckpointError(
            "compressed member", path=path, found=packed[0], need="a file of torch.save"
        )
    total = sum(m.file_size for m in members)
    if total > checkpoint.MAX_WEIGHTS_BYTES:
        need = f"<= {checkpoint.MAX_WEIGHTS_BYTES} bytes"
        raise CheckpointError("too large", path=path, found=total, need=need)


def named_tensors(loaded: Any, path: Path) -> dict[str, Tensor]:
    """Find the state_dict in what a file held and strip the prefixes of wrappers."""
    for key in NESTED:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    if not isinstance(loaded, Mapping) or not loaded:
        found, remedy = type(loaded).__name__, "save model.state_dict()"
        raise CheckpointError("not a weights file", path=path, found=found, remedy=remedy)
    for key, value in loaded.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise CheckpointError(
                f"key {key!r} is no tensor", path=path, found=type(value).__name__
            )
    tensors = {key: value.detach() for key, value in loaded.items()}
    for prefix in WRAPPERS:
        if all(key.startswith(prefix) for key in tensors):
            tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    for key, value in tensors.items():
        counter = value.ndim == 0 and value.dtype == torch.int64
        if value.dtype not in (*checkpoint.FLOATS, torch.float64) and not counter:
            need = "float64, float32, float16 or bfloat16"
            raise CheckpointError(f"tensor {key} is {value.dtype}", path=path, need=need)
        if not torch.isfinite(value.float()).all():
            raise CheckpointError(f"tensor {key} has non-finite values", path=path)
    return tensors


def described(settings: ImportSettings) -> dict[str, Any]:
    """Return the architecture that the settings name."""
    shape = {"dims": settings.dims, "in_channels": settings.in_channels}
    heads = {"classes": settings.classes, "distance": settings.distance}
    return {"name": settings.network, **shape, **heads, **settings.options}


def recognised(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Any]:
    """Return the architecture of torchvision's FCN and DeepLabv3 files, by their names."""
    if FIRST not in tensors or LAST not in tensors:
        raise CheckpointError(
            "network not recognised",
            path=path,
            found=", ".join(list(tensors)[:3]),
            remedy="name it: --set network=unet --set classes=2, and its options",
        )
    depth = 101 if "backbone.layer3.22.conv1.weight" in tensors else 50
    pyramid = any(key.startswith("classifier.0.convs.") for key in tensors)
    name = f"deeplabv3-resnet{depth}" if pyramid else f"fcn-resnet{depth}"
    aux = any(key.startswith("aux_classifier.") for key in tensors)
    classes = len(tensors[LAST])
    shape = {"dims": 2, "in_channels": 1, "classes": classes, "distance": False}
    return {"name": name, **shape, "width": len(tensors[FIRST]), "aux": aux}


def take(net: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Fill a network, or the encoder of one, with tensors of the file."""
    need = net.state_dict()
    for part in ENCODERS:
        inside = {k for k in need if k.startswith(part + ".")}
        found = {f"{part}.{k}": v for k, v in tensors.items() if f"{part}.{k}" in inside}
        if found:
            tensors = {**{k: v for k, v in need.items() if k not in inside}, **found}
    fitted = {k: grey(v, need[k]) if k in need else v for k, v in tensors.items()}
    checkpoint.fill(net, fitted, path)


def grey(tensor: Tensor, need: Tensor) -> Tensor:
    """Sum the first convolution of an RGB network over RGB: a grey image has them alike."""
    rgb = tensor.ndim == need.ndim == 4 and (tensor.shape[1], need.shape[1]) == (3, 1)
    return tensor.sum(1, keepdim=True) if rgb else tensor
