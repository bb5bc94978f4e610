"""What networks there are: the registry and the shipped checkpoints, as facts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..errors import ConfigError
from . import checkpoint, create, registry


def networks() -> list[dict[str, Any]]:
    """Return name, dimensions, options and parameters (default options) of every network."""
    return [network(name) for name in registry.NETWORKS]


def network(name: str) -> dict[str, Any]:
    """Return the facts of one network of the registry."""
    entry = registry.find(name)
    counts = {}
    for dims in entry.dims:
        with torch.device("meta"):
            net = create(name, dims)
        counts[f"{dims}-D"] = sum(p.numel() for p in net.parameters())
    return {"name": name, "options": entry.options, "parameters": counts}


def shipped() -> list[dict[str, Any]]:
    """Return the cards of the checkpoints inside the package."""
    return [checkpoint.load(checkpoint.shipped(dims)).card for dims in (2, 3)]


def about(name: str) -> dict[str, Any]:
    """Return the facts of a network, of a shipped checkpoint or of a checkpoint file."""
    if name in registry.NETWORKS:
        return network(name)
    cards = {card["name"]: card for card in shipped()}
    if name in cards:
        return cards[name]
    if Path(name).suffix in (".json", ".safetensors", ".onnx"):
        return checkpoint.load(name).card
    need = " | ".join((*cards, *registry.NETWORKS, "a .json, .safetensors or .onnx file"))
    raise ConfigError(f"unknown model '{name}'", need=need)
