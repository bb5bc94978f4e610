"""The one training loop: case source in, checkpoint out.

Case ``i`` depends on ``(seed, i)`` alone, and so do the random numbers of step ``i``, which
dropout draws: the position is one integer, and an interrupted run, resumed on the same number of
CPU threads, ends with the bits of an uninterrupted one. Several processes (torchrun) take the
cases of a step in turn and average their gradients: two are one with twice the batch.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from . import nets
from .errors import ConfigError, EnvironmentFault, NumericalError
from .fields import Progress, silent
from .infer import require_device
from .nets import board, checkpoint, losses, optim, ranks
from .nets.interrupt import sigterm
from .nets.ranks import Ranks
from .nets.samples import Cases, CaseSource, Sample, loader
from .nets.settings import TrainConfig
from .nets.state import State, fresh, restore, write_best, write_last

__all__ = ["State", "TrainConfig", "fit", "fresh", "require", "restore", "with_steps"]

VALIDATION_SEED = 1_000_003  # added to the seed: validation cases are never trained on
TIMED_STEPS = 8
ONE_SIGMA = 0.683
COMPILERS = ("c++", "g++", "clang++")


def fit(
    config: TrainConfig,
    case: CaseSource,
    output: Path,
    *,
    validation: CaseSource | None = None,
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
        Folder for ``best``, ``last`` (each .json + .safetensors), ``metrics.jsonl``,
        ``curve.png`` and, if asked for, TensorBoard's event files.
    validation : callable, optional
        Source of the validation cases; default: ``case``, with another seed.
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
    with ranks.joined(config.device) as group:
        previous = checkpoint.load(output / "last.json") if resume else None
        config = with_steps(config, case, previous, group)
        state = restore(config, previous, output) if previous else fresh(config)
        if not optim.gave_up(config, state.validated):
            run(config, state, case, validation or case, output, progress, group)
    return output / "best.json"


def run(
    config: TrainConfig,
    state: State,
    case: CaseSource,
    validation: CaseSource,
    output: Path,
    progress: Progress,
    group: Ranks,
) -> None:
    """Take the steps that are left."""
    steps, saved, wanted = config.steps or 0, time.monotonic(), config.tensorboard and group.leads
    with sigterm() as stopped, board.board(output, state.step, wanted=wanted) as note:
        for batch in batches(config, case, state.step, group):
            row = train_step(config, state, batch, group)
            if (ends := state.step == steps) or state.step % config.interval == 0:
                row |= validate(config, validation, state.ema, group)
                improved(config, state, row, output, group)
                ends = ends or optim.gave_up(config, state.validated)
            state.rows.append(row)
            note(row)
            if group.leads:
                progress("train", state.step / steps, said(row, steps))
            stop = any(group.gather(stopped.is_set()))
            overdue = time.monotonic() - saved > 60.0 * config.save_minutes
            if group.leads and (ends or overdue or stop):
                write_last(config, state, output)
                saved = time.monotonic()
            if ends:
                break
            if stop:
                raise KeyboardInterrupt


def said(row: dict[str, float], steps: int) -> str:
    """Return a row in words."""
    return f"step {row['step']:.0f} of {steps}, loss {row['loss']:.3f}"


def require(config: TrainConfig) -> None:
    """Refuse, before any folder is made, a device, compiler, loss or network that there is not."""
    require_device(config.device)
    if config.compile and not any(map(shutil.which, COMPILERS)):
        found, need = "none of " + ", ".join(COMPILERS), "a C++ compiler, or compile = false"
        raise EnvironmentFault("cannot compile networks", found=found, need=need)
    if config.tensorboard:
        board.require()
    for name in config.losses:
        losses.find(name)
    with torch.device("meta"):
        nets.create(**config.architecture)


def with_steps(
    config: TrainConfig,
    case: CaseSource,
    previous: checkpoint.Checkpoint | None,
    group: Ranks = Ranks(),  # noqa: B008 - frozen
) -> TrainConfig:
    """Fix the number of steps: as given, as stored, by epochs, or as many as fit into the hours.

    Milestones in epochs become steps.
    """
    if config.steps is not None:
        return config
    if config.epochs is not None:
        size = getattr(case, "size", None)
        if size is None:
            raise ConfigError("epochs without end", path="epochs", remedy="give steps or --data")
        epoch = math.ceil(size / (config.batch * config.accumulate * group.count))
        milestones = tuple(epoch * number for number in config.milestones)
        update = {"steps": config.epochs * epoch, "milestones": milestones}
        return config.model_copy(update=update)
    if previous is not None:
        return config.model_copy(update={"steps": previous.card["steps"]})
    timed = config.model_copy(update={"steps": TIMED_STEPS})
    state, clock = fresh(timed), [time.monotonic()]
    for batch in batches(timed, case, 0, group):
        train_step(timed, state, batch, group)
        clock.append(time.monotonic())
    steps = 3600.0 * (config.hours or 0.0) / np.median(np.diff(clock))
    steps = min(group.gather(max(1, int(steps))))
    return config.model_copy(update={"steps": steps})


def batches(
    config: TrainConfig, case: CaseSource, first: int, group: Ranks
) -> Iterator[tuple[Sample, ...]]:
    """Return the batches of this process for the steps from ``first`` on."""
    share = config.batch * config.accumulate * group.count
    indices = range(first * share + group.rank, (config.steps or 0) * share, group.count)
    width = config.batch, config.workers, config.drop_channel
    each = iter(loader(case, config.seed, indices, *width))
    return zip(*[each] * config.accumulate, strict=True)


def train_step(
    config: TrainConfig, state: State, batches: tuple[Sample, ...], group: Ranks
) -> dict[str, float]:
    """Take one step of the optimizer and return its row of ``metrics.jsonl``."""
    rate = config.lr * optim.schedule(config, state.step, config.steps or 1, state.validated)
    for parameters in state.optimizer.param_groups:
        parameters["lr"] = rate
    state.optimizer.zero_grad()
    values: dict[str, float] = {}
    for part, batch in enumerate(batches):
        stream = (group.rank * config.accumulate + part) << 40  # dropout of its own for each
        torch.manual_seed((config.seed + state.step + stream) % 2**63)
        terms = evaluate(config, state.net, batch)[2]
        for name, term in terms.items():
            values[name] = values.get(name, 0.0) + term.item() / len(batches)
        bad = [name for name, value in values.items() if not math.isfinite(value)]
        if bad:
            raise NumericalError(f"loss term '{bad[0]}' is not finite", found=f"step {state.step}")
        total = torch.stack(list(terms.values())).sum() / len(batches)
        torch.autograd.backward(state.scaler.scale(total))
    group.average_gradients(state.net)
    state.scaler.unscale_(state.optimizer)
    nn.utils.clip_grad_norm_(state.net.parameters(), config.clip)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.step += 1
    optim.average(state.ema, state.net, min(config.ema, (1 + state.step) / (10 + state.step)))
    values = mean(group.gather(values))
    return {"step": state.step, "lr": rate, "loss": sum(values.values()), **values}


def evaluate(
    config: TrainConfig, net: nn.Module, batch: Sample
) -> tuple[nets.Heads, losses.Target, dict[str, Tensor]]:
    """Return the heads, the target and the weighted terms of the loss."""
    image, *truth = (t.to(ranks.local(config.device)) for t in batch)
    kind = getattr(torch, config.low or "bfloat16")
    with torch.autocast(image.device.type, kind, enabled=config.low is not None):
        output = net(image)
    heads, target = nets.heads(output, config.classes), losses.Target(*truth)
    return heads, target, losses.parts(heads, target, config.losses, config.loss)


@torch.inference_mode()
def validate(
    config: TrainConfig, case: CaseSource, net: nn.Module, group: Ranks
) -> dict[str, float]:
    """Return the mean loss and scores of new cases, see ``losses.scores`` and ``spread``."""
    rows, misses = [], []
    data = Cases(case, config.seed + VALIDATION_SEED)
    for index in range(group.rank, config.validation_cases, group.count):
        image, phi, line, labels = (t[None] for t in data[index])
        heads, target, terms = evaluate(config, net, (image, phi, line, labels))
        total = sum(t.item() for t in terms.values())
        rows.append({"val_loss": total, **losses.scores(heads, target)})
        misses.append(losses.misses(heads, target))
    rows = [row for part in group.gather(rows) for row in part]
    return mean(rows) | spread([row for part in group.gather(misses) for row in part])


def spread(misses: list[Tensor]) -> dict[str, float]:
    """Return what 68.3 % of the wall's errors stay below, in voxels and in predicted s.d."""
    both = torch.cat(misses, 1).numpy()
    if both.shape[1] == 0:
        return {}
    error, z = np.quantile(both, ONE_SIGMA, axis=1).tolist()
    return {"val_sigma": error, "val_z": z}


def mean(rows: list[dict[str, float]]) -> dict[str, float]:
    """Return the mean of each value; of one row the row itself."""
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def improved(
    config: TrainConfig, state: State, row: dict[str, float], output: Path, group: Ranks
) -> None:
    """Note a validation; store the averaged weights if its loss is the lowest so far."""
    state.validated.append(row["val_loss"])
    if row["val_loss"] < state.best:
        state.best = row["val_loss"]
        if group.leads:
            write_best(config, state, row, output)
