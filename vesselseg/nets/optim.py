"""Optimizers by name, and the learning rate as a function of the step and of what was validated.

Nothing here has a memory: a resumed run replays its validations and is where it was.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from ..config import Settings


class OptimSettings(Settings):
    """Optimizer, learning rate and when to give up.

    Parameters
    ----------
    optimizer : str
        ``beta1`` and ``beta2`` are those of adam and adamw, ``momentum`` and ``nesterov`` of sgd.
    scheduler : str
        ``cosine`` falls to the share ``final_lr``; ``plateau`` multiplies by ``factor`` after
        more than ``patience`` validations in a row without a lower loss, down to ``min_lr``;
        ``multistep`` multiplies by ``factor`` at each of the ``milestones`` (steps, or epochs
        where the length is given in epochs); ``cyclic``
        swings between ``final_lr`` and one in ``cycle`` steps (Smith 2017, triangular).
    warmup : int
        Steps of linear growth, before any of them.
    early_stopping : int
        Stop after so many validations in a row without a lower loss; -1: never.
    clip : float
        Largest norm of the gradient.
    """

    optimizer: Literal["adamw", "adam", "sgd", "adagrad"] = "adamw"
    lr: float = Field(3e-3, gt=0)
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.95, ge=0, lt=1)
    momentum: float = Field(0.9, ge=0, lt=1)
    nesterov: bool = False
    weight_decay: float = Field(1e-2, ge=0)
    clip: float = Field(1.0, gt=0)
    scheduler: Literal["cosine", "plateau", "multistep", "cyclic"] = "cosine"
    warmup: int = Field(30, ge=0)
    final_lr: float = Field(0.01, ge=0, le=1, description="last rate over the first")
    factor: float = Field(0.5, gt=0, lt=1)
    patience: int = Field(10, ge=0)
    min_lr: float = Field(1e-7, ge=0)
    milestones: tuple[int, ...] = Field((), strict=False)
    cycle: int = Field(2000, ge=2)
    early_stopping: int = Field(-1, ge=-1)

    @model_validator(mode="after")
    def _two_patiences(self) -> OptimSettings:
        stop, wait = self.early_stopping, self.patience
        if self.scheduler == "plateau" and 0 <= stop <= wait:
            raise ValueError(
                f"the scheduler's patience {wait} must be smaller than early_stopping {stop}"
            )
        if self.optimizer == "sgd" and self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs a momentum")
        return self


Make = Callable[[OptimSettings, list[nn.Parameter]], torch.optim.Optimizer]


def _adamw(settings: OptimSettings, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    betas = (settings.beta1, settings.beta2)
    return torch.optim.AdamW(parameters, settings.lr, betas, 1e-8, settings.weight_decay)


def _adam(settings: OptimSettings, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    betas = (settings.beta1, settings.beta2)
    return torch.optim.Adam(parameters, settings.lr, betas, 1e-8, settings.weight_decay)


def _sgd(settings: OptimSettings, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    decay = settings.weight_decay
    return torch.optim.SGD(
        parameters, settings.lr, settings.momentum, 0.0, decay, settings.nesterov
    )


def _adagrad(settings: OptimSettings, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adagrad(parameters, settings.lr, weight_decay=settings.weight_decay)


OPTIMIZERS: dict[str, Make] = {
    "adamw": _adamw,
    "adam": _adam,
    "sgd": _sgd,
    "adagrad": _adagrad,
}


def optimizer(settings: OptimSettings, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """Make the optimizer of all parameters that are not frozen."""
    return OPTIMIZERS[settings.optimizer](settings, [p for p in parameters if p.requires_grad])


def moments(optimizer: torch.optim.Optimizer, net: nn.Module) -> dict[str, Tensor]:
    """Return all that the optimizer remembers, by ``<what>.<name of the parameter>``."""
    return {
        f"{what}.{name}": value
        for name, parameter in net.named_parameters()
        for what, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)  # the momentum of SGD without momentum is None
    }


def set_moments(
    optimizer: torch.optim.Optimizer, net: nn.Module, kept: Mapping[str, Tensor]
) -> None:
    """Give back to the optimizer what ``moments`` returned."""
    parameters = dict(net.named_parameters())
    for key, value in kept.items():
        what, _, name = key.partition(".")
        like = parameters[name].detach() if value.ndim else torch.empty(())
        optimizer.state[parameters[name]][what] = torch.empty_like(like).copy_(value)


@torch.no_grad()
def average(ema: nn.Module, net: nn.Module, keep: float) -> None:
    """Move averaged weights towards the new ones; the statistics of batches are copied."""
    for old, new in zip(ema.parameters(), net.parameters(), strict=True):
        old.lerp_(new, 1.0 - keep)
    for kept, latest in zip(ema.buffers(), net.buffers(), strict=True):
        kept.copy_(latest)


def _cosine(settings: OptimSettings, step: int, steps: int, _: Sequence[float]) -> float:
    wave = 0.5 + 0.5 * math.cos(math.pi * min(1.0, step / steps))
    return settings.final_lr + (1.0 - settings.final_lr) * wave


def _plateau(settings: OptimSettings, step: int, steps: int, losses: Sequence[float]) -> float:
    share, best, waited = 1.0, math.inf, 0
    for loss in losses:
        waited = 0 if loss < best else waited + 1
        best = min(best, loss)
        if waited > settings.patience:
            share, waited = share * settings.factor, 0
    return max(share, min(1.0, settings.min_lr / settings.lr))


def _multistep(settings: OptimSettings, step: int, steps: int, _: Sequence[float]) -> float:
    return settings.factor ** sum(step >= m for m in settings.milestones)


def _cyclic(settings: OptimSettings, step: int, steps: int, _: Sequence[float]) -> float:
    height = 1.0 - abs(2.0 * ((step / settings.cycle) % 1.0) - 1.0)
    return settings.final_lr + (1.0 - settings.final_lr) * height


SCHEDULERS = {
    "cosine": _cosine,
    "plateau": _plateau,
    "multistep": _multistep,
    "cyclic": _cyclic,
}


def schedule(settings: OptimSettings, step: int, steps: int, losses: Sequence[float]) -> float:
    """Return the rate of a step over ``lr``.

    Parameters
    ----------
    step, steps : int
        Steps done, and to do in all.
    losses : sequence of float
        Every validation loss so far, in order.
    """
    ramp = min(1.0, (step + 1) / (settings.warmup + 1))
    return ramp * SCHEDULERS[settings.scheduler](settings, step, steps, losses)


def gave_up(settings: OptimSettings, losses: Sequence[float]) -> bool:
    """Return whether the last ``early_stopping`` validations were no better than one before."""
    wait = settings.early_stopping
    if wait < 0 or not losses:
        return False
    best = min(range(len(losses)), key=losses.__getitem__)
    return len(losses) - 1 - best >= max(1, wait)
