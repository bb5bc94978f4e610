"""ONNX: a network as one file for other runtimes, and such a file as a network.

The graph takes one tile of fixed size. The card of the checkpoint travels in the file's metadata,
so that the file alone is a model with its calibration.
"""

from __future__ import annotations

import importlib
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import CheckpointError, ConfigError, EnvironmentFault, NumericalError
from ..io.atomic import write_bytes
from . import checkpoint
from .tiles import gaussian

LARGEST = 1e-4  # difference between the graph and the network
KEY = "vesselseg"
TILE = {2: 256, 3: 96}
OVERLAP = 16


class OnnxNet(nn.Module):
    """An exported network, run by onnxruntime on the CPU; any size, by its own tiles."""

    def __init__(self, data: bytes, path: Path | None = None) -> None:
        super().__init__()
        runtime = extra("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 4
        faults = importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state")
        broken = tuple(v for v in vars(faults).values() if is_fault(v))
        try:
            self.session = runtime.InferenceSession(data, options, ["CPUExecutionProvider"])
        except (*broken, RuntimeError, ValueError) as error:
            fault = str(error).partition("\n")[0][:120]
            raise CheckpointError(f"not an ONNX model: {fault}", path=path) from None
        shape = self.session.get_inputs()[0].shape
        if len(shape) not in (4, 5) or not all(isinstance(n, int) for n in shape):
            raise CheckpointError("not a tile of fixed size", path=path, found=shape)
        self.tile = tuple(shape[2:])

    def card(self, path: Path) -> dict[str, Any]:
        """Return the card in the file."""
        held = self.session.get_modelmeta().custom_metadata_map.get(KEY, "")
        return checkpoint.checked_card(held.encode(), path)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, in_channels, ...)`` to ``(N, outputs, ...)``, blending tiles if there are."""
        rows = [self.image(image.float().cpu().numpy()) for image in x]
        return torch.from_numpy(np.stack(rows)).to(x.device)

    def image(self, image: np.ndarray) -> np.ndarray:
        """Run one image ``(in_channels, ...)``."""
        size = image.shape[1:]
        lacking = [max(0, t - n) for t, n in zip(self.tile, size, strict=True)]
        padded = np.pad(image, [(0, 0), *((0, n) for n in lacking)], mode="symmetric")
        name, window = self.session.get_inputs()[0].name, gaussian(self.tile).numpy()
        total: Any = 0.0
        weight = np.zeros(padded.shape[1:], np.float32)
        for corner in corners(padded.shape[1:], self.tile):
            box = tuple(slice(a, a + t) for a, t in zip(corner, self.tile, strict=True))
            found = self.session.run(None, {name: padded[(slice(None), *box)][None]})[0][0]
            if isinstance(total, float):
                total = np.zeros((len(found), *weight.shape), np.float32)
            total[(slice(None), *box)] += window * found
            weight[box] += window
        crop = tuple(slice(0, n) for n in size)
        return np.asarray((total / weight)[(slice(None), *crop)])


def corners(shape: tuple[int, ...], tile: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Return the first voxels of overlapping tiles of one size that cover a shape."""
    starts = []
    for n, t in zip(shape, tile, strict=True):
        count = 1 if n == t else -(-(n - OVERLAP) // (t - OVERLAP))
        starts.append([round(s) for s in np.linspace(0, n - t, count)])
    return [
        tuple(int(a) for a in c) for c in np.array(np.meshgrid(*starts)).T.reshape(-1, len(tile))
    ]


def export(model: str | Path, output: Path, tile: int | None = None) -> Path:
    """Write a checkpoint as an ONNX file of one tile; return its path.

    Parameters
    ----------
    model : path
        Checkpoint, or the name of shipped weights.
    output : Path
        Ends in ``.onnx``.
    tile : int, optional
        Side in voxels, a multiple of 16; default: 96 in 3-D, 256 in 2-D.

    Raises
    ------
    EnvironmentFault
        The extra ``onnx`` is not installed.
    NumericalError
        If the graph differs from the network by more than 1e-4; nothing is written.
    """
    for name in ("onnx", "onnxscript", "onnxruntime"):
        extra(name)
    read = checkpoint.load(checkpoint.located(str(model)))
    net = checkpoint.network(read)
    dims, channels = read.card["architecture"]["dims"], read.card["architecture"]["in_channels"]
    side = TILE[dims] if tile is None else tile
    if side % 16 or side < 2 * OVERLAP:
        raise ConfigError("bad tile", found=side, need=f"a multiple of 16, >= {2 * OVERLAP}")
    shape = (1, channels, *(side,) * dims)
    facts = {k: v for k, v in read.card.items() if k != "config"}
    data = graph(net, shape, {**facts, "tile": side})
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(shape, generator=generator) * 3.0 - 0.5
    with torch.no_grad():
        wrong = (OnnxNet(data)(image) - net(image)).abs().max().item()
    if not wrong <= LARGEST:
        found, need = f"{wrong:.2g}", f"at most {LARGEST:g}"
        raise NumericalError("the graph differs from the network", found=found, need=need)
    write_bytes(output, data)
    return output


def graph(net: nn.Module, shape: tuple[int, ...], card: dict[str, Any]) -> bytes:
    """Return the bytes of an ONNX model with the card in its metadata."""
    with warnings.catch_warnings(action="ignore"), torch.no_grad():
        program = torch.onnx.export(
            net.eval(), (torch.zeros(shape),), dynamo=True, verbose=False, external_data=False
        )
    if program is None:
        raise CheckpointError("this network cannot be exported")
    proto = program.model_proto
    held = proto.metadata_props.add()
    held.key, held.value = KEY, json.dumps(card, sort_keys=True)
    return bytes(proto.SerializeToString())


def extra(name: str) -> Any:
    """Import a package of the extra ``onnx``."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        remedy = "pip install 'vesselseg[onnx]'"
        raise EnvironmentFault(f"ONNX needs {name}: {error}", remedy=remedy) from None


def is_fault(value: object) -> bool:
    """Return whether a name of onnxruntime is a class of errors."""
    return isinstance(value, type) and issubclass(value, Exception)
