"""All that a training step changes, and how it is kept: best and last checkpoint."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import nets
from ..errors import CheckpointError
from ..io.atomic import write_bytes
from . import checkpoint, optim, ranks
from .curve import curve
from .settings import TrainConfig

LOGISTIC = 1.702


@dataclass
class State:
    """All that a step changes."""

    net: nn.Module
    ema: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    step: int = 0
    best: float = 1e9
    rows: list[dict[str, float]] = field(default_factory=list)
    validated: list[float] = field(default_factory=list)


def fresh(config: TrainConfig) -> State:
    """Make the state before the first step."""
    torch.manual_seed(config.seed)
    device = ranks.local(config.device)
    net = ranks.together(nets.create(**config.architecture), device).to(device)
    ema = nets.create(**config.architecture).to(device).eval()
    if config.init:
        first = checkpoint.load(checkpoint.located(config.init))
        checkpoint.fill(net, first.tensors, first.path)
    ema.load_state_dict(net.state_dict())
    if config.compile:
        net.compile()
    # Gradients of half precision vanish below 6e-8 unless the loss is scaled up.
    scaler = torch.amp.GradScaler(torch.device(device).type, enabled=config.low == "float16")
    return State(net, ema, optim.optimizer(config, net.parameters()), scaler)


def restore(config: TrainConfig, last: checkpoint.Checkpoint, output: Path) -> State:
    """Rebuild the state that ``write_last`` stored."""
    if last.card.get("config_digest") != config.digest:
        raise CheckpointError(
            "cannot resume: another configuration made this run",
            path=last.path,
            remedy="resume with its own config or choose another folder",
        )
    state = fresh(config.model_copy(update={"init": ""}))
    state.step, state.best = last.card["step"], last.card["best"]
    checkpoint.fill(state.net, last.subset("net"), last.path)
    checkpoint.fill(state.ema, last.subset("ema"), last.path)
    optim.set_moments(state.optimizer, state.net, last.subset("optim"))
    if last.card.get("scaler"):
        state.scaler.load_state_dict(last.card["scaler"])
    lines = (output / "metrics.jsonl").read_text().splitlines()
    state.rows = [row for row in map(json.loads, lines) if row["step"] <= state.step]
    state.validated = [row["val_loss"] for row in state.rows if "val_loss" in row]
    return state


def card(config: TrainConfig, state: State) -> dict[str, Any]:
    """Return the sidecar's facts about the run."""
    return {
        "architecture": config.architecture,
        "config": config.model_dump(),
        "config_digest": config.digest,
        "step": state.step,
        "steps": config.steps,
        "best": state.best,
        "torch": torch.__version__,
    }


def write_best(config: TrainConfig, state: State, row: dict[str, float], output: Path) -> None:
    """Store the averaged weights and the validation that found them best."""
    facts = card(config, state) | {"validation": row, "calibration": calibration(row)}
    checkpoint.save(output / "best", state.ema.state_dict(), facts, tag=f"-{state.step:06d}")


def calibration(row: dict[str, float]) -> dict[str, float]:
    """Return what the validation says of the certainty of a network with a distance.

    Of a wall with normal errors of s.d. s a voxel at distance d is inside with the probability
    Phi(-d / s), which is ``sigmoid(-2 T d)`` within 0.01 for 2 T s = 1.702 (Haley 1952).
    """
    if not row.get("val_sigma") or not row.get("val_z"):
        return {}
    return {"temperature": 0.5 * LOGISTIC / row["val_sigma"], "sigma_scale": row["val_z"]}


def write_last(config: TrainConfig, state: State, output: Path) -> None:
    """Store all that a resumed run needs, the metrics and the learning curve."""
    tensors = {f"net.{k}": v for k, v in state.net.state_dict().items()}
    tensors |= {f"ema.{k}": v for k, v in state.ema.state_dict().items()}
    moments = optim.moments(state.optimizer, state.net)
    tensors |= {f"optim.{k}": v for k, v in moments.items()}
    lines = [json.dumps(row) + "\n" for row in state.rows]
    write_bytes(output / "metrics.jsonl", "".join(lines).encode())
    write_bytes(output / "curve.png", curve(state.rows))
    facts = card(config, state) | {"scaler": state.scaler.state_dict()}
    checkpoint.save(output / "last", tensors, facts, tag=f"-{state.step:06d}")
