"""What is trained and how: the settings of ``vesselseg.training.fit``."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from ..device import network_device
from . import bf16_pays, losses, optim
from .losses import LossSettings

EVERY = 250
DeviceName = Annotated[str, AfterValidator(network_device)]


class TrainConfig(optim.OptimSettings):
    """Settings of ``fit``; give ``steps``, ``epochs`` or ``hours``, which become steps once.

    Parameters
    ----------
    options : dict
        Those of the network.
    losses, loss : dict
        Weights of the terms, and their constants.
    init : str
        Checkpoint to start from.
    precision : str
        Of the network's own arithmetic; ``auto``: bf16 where the device computes in it.
    batch, accumulate : int
        A step takes ``accumulate`` batches, in each process.
    epochs : int
        Rounds over the cases of a folder.
    drop_channel : float
        Share of the cases of several channels that lose one of them, so that none is relied on.
    ema : float
        Share of the averaged weights that a step keeps.
    validate_every : int, optional
        Steps; default: an epoch of a folder, else 250.
    compile : bool
        Train the network as ``torch.compile`` makes it; needs a C++ compiler, pays on GPUs.
    tensorboard : bool
        Also write event files (extra ``tensorboard``).
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
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    workers: int = Field(0, ge=0)
    batch: int = Field(2, ge=1)
    accumulate: int = Field(1, ge=1)
    steps: int | None = Field(None, ge=1)
    epochs: int | None = Field(None, ge=1)
    hours: float | None = Field(None, gt=0)
    drop_channel: float = Field(0.0, ge=0, le=1)
    ema: float = Field(0.999, ge=0, lt=1)
    losses: dict[str, float] = Field(default_factory=lambda: dict(losses.DEFAULT))
    loss: LossSettings = LossSettings()
    validate_every: int | None = Field(None, ge=1)
    validation_cases: int = Field(16, ge=1)
    save_minutes: float = Field(10.0, ge=0)
    tensorboard: bool = False
    compile: bool = False

    @model_validator(mode="after")
    def _one_length(self) -> TrainConfig:
        if [self.steps, self.epochs, self.hours].count(None) != 2:
            raise ValueError("give one of steps, epochs and hours")
        blind = sorted(losses.NEED_DISTANCE & set(self.losses))
        if blind and not self.distance:
            raise ValueError(f"loss '{blind[0]}' needs distance = true")
        if self.compile and self.device == "cpu" and self.low:
            # The code that PyTorch 2.13 makes of vesselnet's gradient in bfloat16 is broken.
            raise ValueError("compile on a CPU needs precision = fp32")
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
        quiet = {"save_minutes", "workers", "tensorboard", "compile"}
        quiet |= set() if self.drop_channel else {"drop_channel"}  # runs older than it resume
        facts = self.model_dump(exclude=quiet) | {"validate_every": self.interval}
        text = json.dumps(facts, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def interval(self) -> int:
        """Steps from one validation to the next, once the number of steps is known."""
        epoch = self.steps // self.epochs if self.steps and self.epochs else EVERY
        return self.validate_every or epoch

    @property
    def low(self) -> str | None:
        """The short number type of the network's arithmetic, None for float32."""
        if self.precision == "auto":
            return "bfloat16" if bf16_pays(self.device) else None
        return {"fp32": None, "bf16": "bfloat16", "fp16": "float16"}[self.precision]
