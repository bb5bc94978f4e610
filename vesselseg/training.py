"""The one training loop: case source in, checkpoint out.

Case ``i`` depends on ``(seed, i)`` alone, and so do the random numbers of step ``i``, which
dropout draws: the position is one integer, and an interrupted run, resumed on the same number of
CPU threads, ends with the bits of an uninterrupted one.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from . import nets
from .errors import CheckpointError, NumericalError
from .fields import Progress, silent
from .infer import DeviceName, require_device
from .io.atomic import write_bytes
from .nets import checkpoint, losses, optim
from .nets.curve import curve
from .nets.interrupt import sigterm
from .nets.losses import LossSettings
from .nets.samples import Cases, CaseSource, Sample, loader

VALIDATION_SEED = 1_000_003  # added to the seed: validation cases are never trained on
TIMED_STEPS = 8


class TrainConfig(optim.OptimSettings):
    """Settings of ``fit``; give ``steps`` or ``hours``, which is turned into steps once.

    ``options``: those of the network; ``losses``: weights of the terms; ``loss``: their constants.
    """

    seed: int = 0
    network: str = "vesselnet"
    options: dict[str, Any] = Field(default_factory=dict)
    dims: int = Field(3, ge=2, le=3)
    in_channels: int = Field(1, ge=1)
    classes: int = Field(1, ge=1, le=255)
    distance: bool = True
    init: str = ""
    device: DeviceName = Field("cpu", description="cpu, cuda or cuda:N")
    bf16: bool | None = None
    workers: int = Field(0, ge=0)
    batch: int = Field(2, ge=1)
    steps: int | None = Field(None, ge=1)
    hours: float | None = Field(None, gt=0)
    ema: float = Field(0.999, ge=0, lt=1)
    losses: dict[str, float] = Field(default_factory=lambda: dict(losses.DEFAULT))
    loss: LossSettings = LossSettings()
    validate_every: int = Field(250, ge=1)
    validation_cases: int = Field(16, ge=1)
    save_minutes: float = Field(10.0, ge=0)

    @model_validator(mode="after")
    def _one_length(self) -> TrainConfig:
        if (self.steps is None) == (self.hours is None):
            raise ValueError("give either steps or hours")
        blind = sorted(losses.NEED_DISTANCE & set(self.losses))
        if blind and not self.distance:
            raise ValueError(f"loss '{blind[0]}' needs distance = true")
        return self

    @property
    def architecture(self) -> dict[str, Any]:
        """The arguments of ``nets.create``."""
        heads = {"classes": self.classes, "distance": self.distance}
        shape = {"name": self.network, "dims": self.dims, "in_channels": self.in_channels}
        return {**shape, **heads, **self.options}

    @property
    def digest(self) -> str:
        """Hash of everything that shapes the weights."""
        quiet = {"save_minutes", "workers"}
        text = json.dumps(self.model_dump(exclude=quiet), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass
class State:
    """All that a step changes."""

    net: nn.Module
    ema: nn.Module
    optimizer: torch.optim.Optimizer
    step: int = 0
    best: float = 1e9
    rows: list[dict[str, float]] = field(default_factory=list)
    validated: list[float] = field(default_factory=list)


def fit(
    config: TrainConfig,
    case: CaseSource,
    output: Path,
    *,
    progress: Progress = silent,
    resume: bool = False,
) -> Path:
    """Train a network and return the sidecar of its best weights.

    Parameters
    ----------
    config : TrainConfig
    case : callable
        Picklable ``case(seed, index) -> Case``; a batch needs cases of one shape.
    output : Path
        Folder for ``best``, ``last`` (each .json + .safetensors), ``metrics.jsonl`` and
        ``curve.png``.
    resume : bool
        Continue from ``last``; another configuration is refused.

    Raises
    ------
    ConfigError, EnvironmentFault
        See ``require``.
    NumericalError
        If a term of the loss is not finite; it is named.
    KeyboardInterrupt
        On SIGTERM, after the state is saved.
    """
    require(config)
    output.mkdir(parents=True, exist_ok=True)
    previous = checkpoint.load(output / "last.json") if resume else None
    config = with_steps(config, case, previous)
    state = restore(config, previous, output) if previous else fresh(config)
    if optim.gave_up(config, state.validated):
        return output / "best.json"
    steps, saved = config.steps or 0, time.monotonic()
    with sigterm() as stopped:
        for batch in batches(config, case, state.step):
            row = train_step(config, state, batch)
            if (ends := state.step == steps) or state.step % config.validate_every == 0:
                row |= validate(config, case, state.ema)
                write_best(config, state, row, output)
                ends = ends or optim.gave_up(config, state.validated)
            state.rows.append(row)
            progress("train", state.step / steps, f"loss {row['loss']:.3f}")
            overdue = time.monotonic() - saved > 60.0 * config.save_minutes
            if ends or overdue or stopped.is_set():
                write_last(config, state, output)
                saved = time.monotonic()
            if ends:
                break
            if stopped.is_set():
                raise KeyboardInterrupt
    return output / "best.json"


def require(config: TrainConfig) -> None:
    """Refuse, before any folder is made, a device, loss or network that there is not."""
    require_device(config.device)
    for name in config.losses:
        losses.find(name)
    with torch.device("meta"):
        nets.create(**config.architecture)


def fresh(config: TrainConfig) -> State:
    """Make the state before the first step."""
    torch.manual_seed(config.seed)
    net = nets.create(**config.architecture).to(config.device)
    ema = nets.create(**config.architecture).to(config.device).eval()
    if config.init:
        checkpoint.fill(net, checkpoint.load(config.init).tensors, Path(config.init))
    ema.load_state_dict(net.state_dict())
    return State(net, ema, optim.optimizer(config, net.parameters()))


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
    lines = (output / "metrics.jsonl").read_text().splitlines()
    state.rows = [row for row in map(json.loads, lines) if row["step"] <= state.step]
    state.validated = [row["val_loss"] for row in state.rows if "val_loss" in row]
    return state


def with_steps(
    config: TrainConfig, case: CaseSource, previous: checkpoint.Checkpoint | None
) -> TrainConfig:
    """Fix the number of steps: as given, as stored, or as many as fit into the hours."""
    if config.steps is not None:
        return config
    if previous is not None:
        return config.model_copy(update={"steps": previous.card["steps"]})
    timed = config.model_copy(update={"steps": TIMED_STEPS})
    state, clock = fresh(timed), [time.monotonic()]
    for batch in batches(timed, case, 0):
        train_step(timed, state, batch)
        clock.append(time.monotonic())
    steps = 3600.0 * (config.hours or 0.0) / np.median(np.diff(clock))
    return config.model_copy(update={"steps": max(1, int(steps))})


def batches(config: TrainConfig, case: CaseSource, first: int) -> Iterable[Sample]:
    """Return the batches of the steps from ``first`` on."""
    indices = range(first * config.batch, (config.steps or 0) * config.batch)
    return loader(case, config.seed, indices, config.batch, config.workers)


def train_step(config: TrainConfig, state: State, batch: Sample) -> dict[str, float]:
    """Take one step of the optimizer and return its row of ``metrics.jsonl``."""
    rate = config.lr * optim.schedule(config, state.step, config.steps or 1, state.validated)
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    torch.manual_seed((config.seed + state.step) % 2**63)
    terms = evaluate(config, state.net, batch)[2]
    values = {name: term.item() for name, term in terms.items()}
    bad = [name for name, value in values.items() if not math.isfinite(value)]
    if bad:
        raise NumericalError(f"loss term '{bad[0]}' is not finite", found=f"step {state.step}")
    state.optimizer.zero_grad()
    torch.autograd.backward(torch.stack(list(terms.values())).sum())
    nn.utils.clip_grad_norm_(state.net.parameters(), config.clip)
    state.optimizer.step()
    state.step += 1
    optim.average(state.ema, state.net, min(config.ema, (1 + state.step) / (10 + state.step)))
    return {"step": state.step, "lr": rate, "loss": sum(values.values()), **values}


def evaluate(
    config: TrainConfig, net: nn.Module, batch: Sample
) -> tuple[nets.Heads, losses.Target, dict[str, Tensor]]:
    """Return the heads, the target and the weighted terms of the loss."""
    image, *truth = (t.to(config.device) for t in batch)
    low = nets.bf16_pays(config.device) if config.bf16 is None else config.bf16
    with torch.autocast(image.device.type, torch.bfloat16, enabled=low):
        output = net(image)
    heads, target = nets.heads(output, config.classes), losses.Target(*truth)
    return heads, target, losses.parts(heads, target, config.losses, config.loss)


@torch.inference_mode()
def validate(config: TrainConfig, case: CaseSource, net: nn.Module) -> dict[str, float]:
    """Return the mean loss and scores of new cases, see ``losses.scores``."""
    rows = []
    data = Cases(case, config.seed + VALIDATION_SEED)
    for index in range(config.validation_cases):
        image, phi, line, labels = (t[None] for t in data[index])
        heads, target, terms = evaluate(config, net, (image, phi, line, labels))
        total = sum(t.item() for t in terms.values())
        rows.append({"val_loss": total, **losses.scores(heads, target)})
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def card(config: TrainConfig, state: State) -> dict[str, Any]:
    """Return the sidecar's facts about the run."""
    return {
        "architecture": config.architecture,
        "calibration": {"temperature": 1.0, "sigma_scale": 1.0, "sigma_power": 1.0},
        "config": config.model_dump(),
        "config_digest": config.digest,
        "step": state.step,
        "steps": config.steps,
        "best": state.best,
        "torch": torch.__version__,
    }


def write_best(config: TrainConfig, state: State, row: dict[str, float], output: Path) -> None:
    """Store the averaged weights if their validation loss is the lowest so far."""
    state.validated.append(row["val_loss"])
    if row["val_loss"] < state.best:
        state.best = row["val_loss"]
        facts = card(config, state) | {"validation": row}
        checkpoint.save(output / "best", state.ema.state_dict(), facts, tag=f"-{state.step:06d}")


def write_last(config: TrainConfig, state: State, output: Path) -> None:
    """Store all that a resumed run needs, the metrics and the learning curve."""
    tensors = {f"net.{k}": v for k, v in state.net.state_dict().items()}
    tensors |= {f"ema.{k}": v for k, v in state.ema.state_dict().items()}
    moments = optim.moments(state.optimizer, state.net)
    tensors |= {f"optim.{k}": v for k, v in moments.items()}
    lines = [json.dumps(row) + "\n" for row in state.rows]
    write_bytes(output / "metrics.jsonl", "".join(lines).encode())
    write_bytes(output / "curve.png", curve(state.rows))
    checkpoint.save(output / "last", tensors, card(config, state), tag=f"-{state.step:06d}")
