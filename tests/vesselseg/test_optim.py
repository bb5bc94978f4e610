"""Optimizers, learning rates and patience."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from vesselseg.config import build
from vesselseg.errors import ConfigError
from vesselseg.nets import optim
from vesselseg.nets.optim import OptimSettings, gave_up, schedule


@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_each_optimizer_minimises_a_quadratic(name):
    settings = OptimSettings(optimizer=name, lr=0.3, weight_decay=0.0)
    x = torch.nn.Parameter(torch.tensor([3.0, -2.0]))
    optimizer = optim.optimizer(settings, [x])
    for _ in range(200):
        optimizer.zero_grad()
        ((x - 1.0) ** 2 * torch.tensor([1.0, 0.2])).sum().backward()
        optimizer.step()
    assert (x - 1.0).abs().max() < 0.05


def test_settings_reach_torch():
    settings = OptimSettings(lr=0.02, beta1=0.7, beta2=0.8, weight_decay=0.3, momentum=0.6)
    x = torch.nn.Parameter(torch.zeros(2))
    for name in optim.OPTIMIZERS:
        made = optim.optimizer(settings.model_copy(update={"optimizer": name}), [x])
        assert type(made).__name__.lower() == name
        assert (made.defaults["lr"], made.defaults["weight_decay"]) == (0.02, 0.3)
        assert made.defaults.get("betas", (0.7, 0.8)) == (0.7, 0.8)
        assert made.defaults.get("momentum", 0.6) == 0.6
    nesterov = settings.model_copy(update={"optimizer": "sgd", "nesterov": True})
    assert optim.optimizer(nesterov, [x]).defaults["nesterov"]


def test_frozen_parameters_are_not_in_the_optimizer():
    net = torch.nn.Linear(2, 2)
    net.bias.requires_grad_(False)
    (group,) = optim.optimizer(OptimSettings(), net.parameters()).param_groups
    assert [p is net.weight for p in group["params"]] == [True]


def test_cosine_warms_up_and_falls_to_its_last_share():
    settings = OptimSettings(warmup=30, final_lr=0.01)
    rates = [schedule(settings, s, 1000, ()) for s in range(1001)]
    assert rates[0] == pytest.approx(1 / 31)
    assert max(rates) == pytest.approx(1.0, abs=0.01)
    assert rates.index(max(rates)) in range(28, 33)
    assert rates[-1] == pytest.approx(0.01)
    assert all(a >= b for a, b in itertools.pairwise(rates[31:]))


def test_multistep_and_cyclic_follow_their_numbers():
    steps = OptimSettings(scheduler="multistep", warmup=0, milestones=[3, 5], factor=0.1)
    want = [1, 1, 1, 0.1, 0.1, 0.01]
    assert [schedule(steps, s, 9, ()) for s in range(6)] == pytest.approx(want)
    cycle = OptimSettings(scheduler="cyclic", warmup=0, cycle=4, final_lr=0.2)
    want = [0.2, 0.6, 1.0, 0.6, 0.2, 0.6]
    assert [schedule(cycle, s, 9, ()) for s in range(6)] == pytest.approx(want)


def test_cyclic_equals_that_of_torch():
    settings = OptimSettings(scheduler="cyclic", warmup=0, cycle=10, final_lr=0.1, lr=0.5)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.05)
    peer = torch.optim.lr_scheduler.CyclicLR(optimizer, 0.05, 0.5, 5, cycle_momentum=False)
    for step in range(25):
        assert 0.5 * schedule(settings, step, 99, ()) == pytest.approx(peer.get_last_lr()[0])
        optimizer.step()
        peer.step()


SCRIPT = [1.0, 0.9, *[0.95] * 8, 0.8, *[0.85] * 12]  # better at validations 0, 1 and 10


def test_a_scripted_loss_gives_the_exact_rates_and_the_exact_stop():
    """Patience 2: the third validation without progress halves the rate, and every third after."""
    settings = OptimSettings(
        scheduler="plateau", warmup=0, lr=1.0, patience=2, early_stopping=9, min_lr=0.02
    )
    rates = [schedule(settings, 0, 1, SCRIPT[: n + 1]) for n in range(len(SCRIPT))]
    want = [1.0] * 4 + [0.5] * 3 + [0.25] * 6 + [0.125] * 3 + [0.0625] * 3 + [0.03125] * 3 + [0.02]
    assert rates == want
    stops = [n for n in range(len(SCRIPT)) if gave_up(settings, SCRIPT[: n + 1])]
    assert stops == [19, 20, 21, 22]


def test_plateau_equals_that_of_torch():
    settings = OptimSettings(scheduler="plateau", warmup=0, lr=0.1, patience=3, factor=0.3)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    peer = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=0.3, patience=3, threshold=0.0, min_lr=1e-7, eps=0.0
    )
    values = [math.sin(n) + 1.0 / (1 + n) for n in range(60)]
    for n, value in enumerate(values):
        peer.step(value)
        found = 0.1 * schedule(settings, 0, 1, values[: n + 1])
        assert found == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)


def test_no_early_stop_by_default():
    assert not gave_up(OptimSettings(), [1.0] * 10_000)


@pytest.mark.parametrize("stop", [4, 10])
def test_the_scheduler_must_act_before_the_stop(stop):
    tree = {"scheduler": "plateau", "patience": 10, "early_stopping": stop}
    with pytest.raises(
        ConfigError, match=f"patience 10 must be smaller than early_stopping {stop}"
    ):
        build(OptimSettings, tree)
    build(OptimSettings, tree | {"early_stopping": 11})
    build(OptimSettings, tree | {"early_stopping": -1})
    build(OptimSettings, tree | {"scheduler": "cosine"})


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"optimizer": "adamx"}, "optimizer.*'adamw'"),
        ({"scheduler": "step"}, "scheduler.*'cosine'"),
        ({"optimizer": "sgd", "nesterov": True, "momentum": 0.0}, "nesterov needs a momentum"),
        ({"early_stopping": -2}, "early_stopping"),
    ],
)
def test_bad_settings_are_refused(change, expected):
    with pytest.raises(ConfigError, match=expected):
        build(OptimSettings, change)
