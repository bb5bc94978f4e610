"""The training loop: it learns, stops, resumes and refuses."""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import special

from vesselseg import nets, training
from vesselseg.config import build
from vesselseg.errors import CheckpointError, ConfigError, EnvironmentFault, NumericalError
from vesselseg.fields import Case
from vesselseg.nets import checkpoint, losses, ranks, state
from vesselseg.nets.samples import Cases
from vesselseg.pipeline import TrainRun, like_init
from vesselseg.training import TrainConfig, fit

QUICK = {
    "options": {"size": "tiny"},
    "validation_cases": 1,
    "validate_every": 4,
    "steps": 12,
    "warmup": 2,
}


@pytest.fixture(autouse=True)
def one_thread():
    """Sums over threads are rounded in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def ball_case(seed: int, index: int) -> Case:
    rng = np.random.default_rng((seed, index))
    x = np.indices((16, 16, 16)) - rng.uniform(6, 10, 3)[:, None, None, None]
    phi = np.sqrt((x**2).sum(0)) - rng.uniform(3, 5)
    image = 1 / (1 + np.exp(2 * phi)) + rng.normal(0, 0.1, phi.shape)
    axis = (phi < -2).astype(np.uint8)
    return Case(image[None].astype(np.float32), phi.astype(np.float32), axis)


def same_case(seed: int, index: int) -> Case:
    return ball_case(0, 0)


def broken_case(seed: int, index: int) -> Case:
    case = ball_case(seed, index)
    return Case(case.image, case.phi * np.float32(np.nan), case.centreline)


def dark_case(seed: int, index: int) -> Case:
    case = ball_case(seed, index)
    return Case(-case.image, case.phi, case.centreline, {"polarity": "dark"})


def digest(folder) -> str:
    return json.loads((folder / "last.json").read_text())["sha256"]


def test_one_case_is_learned_by_heart(tmp_path):
    """Dice above 0.95 and a wall within 0.2 voxels on the only case there is."""
    config = TrainConfig(**QUICK | {"steps": 120, "validate_every": 120, "ema": 0.9, "lr": 1e-2})
    path = fit(config, same_case, tmp_path)
    row = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert row["val_dice"] > 0.95
    assert row["val_wall"] < 0.2
    assert checkpoint.network(checkpoint.load(path)).training is False


def test_a_run_leaves_metrics_curve_and_two_checkpoints(tmp_path):
    fit(TrainConfig(**QUICK), ball_case, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert [row["step"] for row in rows if "val_loss" in row] == [4, 8, 12]
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    best = checkpoint.load(tmp_path / "best.json")
    assert best.card["validation"]["val_loss"] == min(
        r["val_loss"] for r in rows if "val_loss" in r
    )
    assert len(list(tmp_path.iterdir())) == 6
    said = best.card["validation"]
    assert best.card["calibration"] == state.calibration(said)
    assert best.card["calibration"]["sigma_scale"] == said["val_z"] > 0


def test_the_validation_calibrates_what_the_network_says_of_its_errors():
    """Errors of 0.3 voxel where the network says 0.5: its s.d. is scaled by 0.6, p is honest."""
    torch.manual_seed(0)
    phi = torch.empty(2, 64, 64, 64).uniform_(-1.5, 1.5)
    sdf = phi + 0.3 * torch.randn(phi.shape)
    heads = nets.Heads(torch.zeros(2, 1, 64, 64, 64), sdf, torch.full_like(sdf, math.log(0.5)))
    misses = losses.misses(heads, losses.Target(phi, phi < 0))
    found = state.calibration(training.spread([misses[:, :1000], misses[:, 1000:]]))
    assert found["sigma_scale"] == pytest.approx(0.6, rel=0.01)  # of 17e4 draws
    d = np.linspace(-1, 1, 101)
    p = 1 / (1 + np.exp(2 * found["temperature"] * d))
    assert np.abs(p - special.ndtr(-d / 0.3)).max() < 0.015  # 0.01 of the form, the rest of draws


def test_a_network_without_a_distance_is_left_uncalibrated():
    logit = torch.zeros(1, 1, 16, 16)
    misses = losses.misses(nets.Heads(logit), losses.Target(logit[0], logit[0]))
    assert training.spread([misses]) == {} == state.calibration({})


def test_weights_to_start_from_are_trained_at_a_low_rate_unless_one_is_given():
    run = {"init": "vesselnet-2d-v1", "steps": 1}
    assert like_init(TrainRun(**run)).lr == 1e-4
    assert like_init(TrainRun(**run)).network == "vesselnet"
    assert like_init(TrainRun(**run, lr=3e-3)).lr == 3e-3
    assert like_init(TrainRun(**run, network="unet")).lr == 1e-4
    assert like_init(TrainRun(steps=1)).lr == TrainConfig(steps=1).lr


@pytest.mark.parametrize("stop_at", [1, 5, 8])
def test_a_resumed_run_ends_with_the_same_bits(tmp_path, stop_at):
    """F05: SIGTERM after a step, then resume."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    config = TrainConfig(**QUICK)
    fit(config, ball_case, whole)

    def interrupt(stage: str, fraction: float, message: str) -> None:
        if round(12 * fraction) == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        fit(config, ball_case, broken, progress=interrupt)
    assert json.loads((broken / "last.json").read_text())["step"] == stop_at
    fit(config, ball_case, broken, resume=True)
    assert digest(broken) == digest(whole)
    for name in ("metrics.jsonl", "best.json"):
        assert (broken / name).read_bytes() == (whole / name).read_bytes()


def test_workers_change_nothing(tmp_path):
    config = TrainConfig(**QUICK | {"steps": 2})
    fit(config, ball_case, tmp_path / "none")
    fit(config.model_copy(update={"workers": 1}), ball_case, tmp_path / "one")
    assert digest(tmp_path / "none") == digest(tmp_path / "one")


def test_another_configuration_is_not_resumed(tmp_path):
    fit(TrainConfig(**QUICK | {"steps": 1}), ball_case, tmp_path)
    with pytest.raises(CheckpointError, match="another configuration"):
        fit(TrainConfig(**QUICK | {"steps": 1, "lr": 1e-4}), ball_case, tmp_path, resume=True)
    with pytest.raises(CheckpointError, match="no such file"):
        fit(TrainConfig(**QUICK), ball_case, tmp_path / "new", resume=True)


def test_hours_become_steps_once(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "TIMED_STEPS", 2)
    config = TrainConfig(**QUICK | {"steps": None, "hours": 1e-5})
    fit(config, ball_case, tmp_path)
    steps = json.loads((tmp_path / "last.json").read_text())["steps"]
    assert steps >= 1
    assert (
        training.with_steps(config, ball_case, checkpoint.load(tmp_path / "last.json")).steps
        == steps
    )


def test_training_goes_on_from_given_weights(tmp_path):
    first = fit(TrainConfig(**QUICK), ball_case, tmp_path / "first")
    config = TrainConfig(**QUICK | {"init": str(first), "seed": 1})
    state = training.fresh(config)
    want = checkpoint.load(first).tensors
    assert all(torch.equal(v, want[k]) for k, v in state.net.state_dict().items())


def test_a_loss_that_is_not_finite_stops_with_its_name(tmp_path):
    with pytest.raises(NumericalError, match="'soft_bce' is not finite"):
        fit(TrainConfig(**QUICK), broken_case, tmp_path)


def test_samples_are_turned_together_and_differently():
    cases = Cases(ball_case, 3)
    turns = set()
    for index in range(12):
        raw, (image, phi, line, labels) = ball_case(3, index), cases[index]
        assert sorted(phi.ravel().tolist()) == sorted(raw.phi.ravel().tolist())
        assert torch.equal(line, (phi < -2).to(torch.uint8))
        assert torch.equal(labels, (phi < 0).to(torch.uint8))
        assert np.corrcoef(image.numpy().ravel(), -np.tanh(phi.numpy().ravel()))[0, 1] > 0.8
        turns.add(tuple(np.argwhere(phi.numpy() == raw.phi[0, 3, 7])[0]))
    assert len(turns) > 6


def two_channels(seed: int, index: int) -> Case:
    case = ball_case(seed, index)
    return Case(np.concatenate([case.image, case.image[:, ::-1]]), case.phi, case.centreline)


def test_the_asked_share_of_cases_loses_one_channel_of_several():
    """Of 60 draws at 0.5: three s.d. of a binomial are 0.19."""
    lost = [(Cases(two_channels, 0, 0.5)[n][0] == 0).all((1, 2, 3)) for n in range(60)]
    assert max(int(gone.sum()) for gone in lost) == 1
    assert {int(gone.nonzero()[0]) for gone in lost if gone.any()} == {0, 1}
    assert np.mean([bool(gone.any()) for gone in lost]) == pytest.approx(0.5, abs=0.19)
    whole, alone = Cases(two_channels, 0)[1], Cases(ball_case, 0, 1.0)[1]
    assert not (whole[0] == 0).all((1, 2, 3)).any()
    assert alone[0].abs().max() > 0


def test_dark_blood_is_shown_bright():
    dark, bright = Cases(dark_case, 0)[1], Cases(ball_case, 0)[1]
    torch.testing.assert_close(dark[0], bright[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, "one of steps, epochs and hours"),
        ({"steps": 3, "hours": 1.0}, "one of steps, epochs and hours"),
        ({"steps": 0}, "steps"),
        ({"steps": 3, "lr": 0.0}, "lr"),
        ({"steps": 3, "dims": 4}, "dims"),
        ({"steps": 3, "distance": False}, "loss 'sdf_l1' needs distance = true"),
        ({"steps": 3, "learning_rate": 1.0}, "unknown key 'learning_rate'"),
        ({"steps": 3, "compile": True, "precision": "bf16"}, "needs precision = fp32"),
    ],
)
def test_bad_settings_are_refused(change, expected):
    with pytest.raises(ConfigError, match=expected):
        build(TrainConfig, change)


def disc_case(seed: int, index: int) -> Case:
    case = ball_case(seed, index)
    return Case(case.image[:, 8], case.phi[8], case.centreline[8])


def shell_case(seed: int, index: int) -> Case:
    """A disc of three shells, each with an intensity of its own."""
    case = disc_case(0, 0)
    depth = np.clip(case.phi / case.phi.min(), 0.0, 0.99)
    labels = np.where(case.phi < 0, 1 + np.floor(3.0 * depth), 0.0)
    image = labels[None] + 0.1 * case.image
    return Case(image.astype("f4"), case.phi, case.centreline, {}, labels.astype("u1"))


OTHERS = {
    "dropout and batch norm": {
        "network": "unet",
        "options": {"width": 2, "levels": 2, "dropout": 0.5},
        "distance": False,
        "losses": {"weighted_ce": 1.0, "focal_tversky": 1.0},
        "optimizer": "sgd",
    },
    "auxiliary head": {
        "network": "fcn-resnet50",
        "options": {"width": 1, "aux": True},
        "optimizer": "adagrad",
        "scheduler": "plateau",
        "validate_every": 1,
        "patience": 0,
    },
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_networks_optimizers_and_schedulers_resume_bitwise(tmp_path, kind):
    """F05 with all that has a state: statistics, dropout, momentum, sums, patience."""
    config = TrainConfig(**QUICK | {"dims": 2, "steps": 6} | OTHERS[kind])
    fit(config, disc_case, tmp_path / "whole")

    def interrupt(stage: str, fraction: float, message: str) -> None:
        if round(6 * fraction) == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        fit(config, disc_case, tmp_path / "broken", progress=interrupt)
    fit(config, disc_case, tmp_path / "broken", resume=True)
    assert digest(tmp_path / "broken") == digest(tmp_path / "whole")
    card = checkpoint.load(tmp_path / "whole" / "best.json").card
    assert card["architecture"]["name"] == config.network
    row = json.loads((tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()[-1])
    assert ("val_wall" in row) == config.distance
    assert ("deep/dice" in row) == ("aux" in config.options)


def test_several_classes_are_learned(tmp_path):
    """Four classes, background included, of the only case there is."""
    changes = {"classes": 4, "distance": False, "losses": {"soft_bce": 1.0, "dice": 1.0}}
    changes |= {"network": "unet", "options": {"width": 8, "levels": 2}, "lr": 1e-2, "batch": 1}
    config = TrainConfig(**QUICK | changes | {"dims": 2, "steps": 120, "ema": 0.0})
    path = fit(config, shell_case, tmp_path)
    row = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert min(row[f"val_dice_{number}"] for number in (1, 2, 3)) > 0.9
    case = shell_case(0, 0)
    image = torch.from_numpy(nets.normalise(case.image[0]))[None, None]
    with torch.no_grad():
        found = checkpoint.network(checkpoint.load(path))(image).argmax(1)[0].numpy()
    for number in range(4):
        a, b = found == number, case.labels == number
        assert 2 * (a & b).sum() / (a.sum() + b.sum()) > 0.9


def test_patience_ends_a_run_and_a_resumed_one_stays_ended(tmp_path):
    changes = {"scheduler": "plateau", "patience": 1, "early_stopping": 2, "lr": 1e-9}
    config = TrainConfig(**QUICK | {"dims": 2, "validate_every": 1, "steps": 50} | changes)
    fit(config, disc_case, tmp_path)
    last = json.loads((tmp_path / "last.json").read_text())
    rows = (tmp_path / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(row)["val_loss"] for row in rows]
    assert last["step"] == len(losses) < 50
    assert len(losses) - 1 - losses.index(min(losses)) == 2
    before = digest(tmp_path)
    fit(config, disc_case, tmp_path, resume=True)
    assert digest(tmp_path) == before


@pytest.mark.parametrize("name", ["foo", "cuda:", "CUDA", "auto", "cuda:0 "])
def test_an_unknown_device_is_refused(name):
    with pytest.raises(ConfigError, match="device: must be cpu, cuda or cuda:N"):
        build(TrainConfig, {"steps": 1, "device": name})


def test_a_missing_device_is_refused_before_the_folder_is_made(tmp_path):
    with pytest.raises(EnvironmentFault, match="device cuda:999 is not usable"):
        fit(TrainConfig(device="cuda:999", **QUICK), ball_case, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


class Killed(BaseException):
    """The power goes."""


@pytest.mark.parametrize("writes", [0, 2, 3, 4, 6, 7, 9, 11])
def test_a_run_killed_between_any_two_writes_resumes_to_the_same_bits(
    tmp_path, monkeypatch, writes
):
    """F04, F05: what is on disk after some of its writes is always a run that can go on."""
    monkeypatch.setattr(state, "curve", lambda rows: b"drawn elsewhere")
    config = TrainConfig(**QUICK | {"dims": 2, "steps": 3, "validate_every": 2, "save_minutes": 0})
    fit(config, disc_case, tmp_path / "whole")
    left, write = [writes], state.write_bytes

    def until_killed(path, data):
        if not left[0]:
            raise Killed
        left[0] -= 1
        write(path, data)

    for module in (state, checkpoint):
        monkeypatch.setattr(module, "write_bytes", until_killed)
    with pytest.raises(Killed):
        fit(config, disc_case, tmp_path / "broken")
    left[0] = 10**6
    begun = (tmp_path / "broken" / "last.json").is_file()
    assert begun == (writes >= 4)  # metrics, curve, weights, sidecar
    fit(config, disc_case, tmp_path / "broken", resume=begun)
    assert digest(tmp_path / "broken") == digest(tmp_path / "whole")
    for name in ("metrics.jsonl", "best.json"):
        whole, broken = (tmp_path / n / name for n in ("whole", "broken"))
        assert broken.read_bytes() == whole.read_bytes()


# --- more than one batch, process or number type -----------------------------------------------

PLAIN = {
    "dims": 2,
    "steps": 3,
    "warmup": 0,
    "optimizer": "sgd",
    "lr": 0.1,
    "ema": 0.5,
    "precision": "fp32",
}


def weights(folder) -> dict[str, torch.Tensor]:
    return checkpoint.load(folder / "last.json").tensors


def largest_difference(one, other) -> float:
    """Of the weights after some steps, over how far the first ones moved from zero."""
    a, b = weights(one), weights(other)
    return max((a[k] - b[k]).abs().max().item() for k in a)


def test_accumulated_batches_are_one_large_batch(tmp_path):
    """Four of one against one of four, all terms of the default loss; 1e-5 is for rounding."""
    config = TrainConfig(**QUICK | PLAIN | {"batch": 4})
    fit(config, disc_case, tmp_path / "one")
    fit(config.model_copy(update={"batch": 1, "accumulate": 4}), disc_case, tmp_path / "four")
    assert 0 < largest_difference(tmp_path / "one", tmp_path / "four") < 1e-5
    rows = [(tmp_path / n / "metrics.jsonl").read_text().splitlines()[-1] for n in ("one", "four")]
    first, second = map(json.loads, rows)
    assert first["loss"] == pytest.approx(second["loss"], abs=1e-5)


# Gloo's threads may still drop a tensor while an interpreter ends, which then aborts (PyTorch issue
# 190489): the processes leave without ending theirs.
RANK = """
import os
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
import test_training as t
from vesselseg.training import TrainConfig, fit
fit(TrainConfig(**t.QUICK | t.PLAIN), t.disc_case, Path(sys.argv[2]))
os._exit(0)
"""


def two_processes(output: Path) -> list[subprocess.Popen]:
    """Start what torchrun would, without its own seconds."""
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        port = str(door.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    arguments = [sys.executable, "-c", RANK, str(Path(__file__).parent), str(output)]
    ranks = ({**os.environ, **shared, "RANK": str(r), "LOCAL_RANK": str(r)} for r in range(2))
    pipe = subprocess.PIPE
    return [subprocess.Popen(arguments, env=e, stderr=pipe, text=True) for e in ranks]


def test_two_processes_are_one_with_twice_the_batch(tmp_path):
    """Gloo on the CPU; one of them writes."""
    running = two_processes(tmp_path / "two")
    fit(TrainConfig(**QUICK | PLAIN | {"batch": 4}), disc_case, tmp_path / "one")
    errors = [process.communicate(timeout=120)[1] for process in running]
    assert [process.returncode for process in running] == [0, 0], errors
    assert 0 < largest_difference(tmp_path / "one", tmp_path / "two") < 1e-5
    assert len(list((tmp_path / "two").iterdir())) == 6
    one, two = (json.loads((tmp_path / n / "best.json").read_text()) for n in ("one", "two"))
    assert one["validation"]["val_loss"] == pytest.approx(two["validation"]["val_loss"], abs=1e-5)


def test_each_process_takes_its_own_cases():
    """All ranks together see each index of a step once."""
    config = TrainConfig(steps=2, batch=2, accumulate=3)
    seen = []
    for rank in range(2):
        source = Recorder()
        list(training.batches(config, source, 1, ranks.Ranks(rank, 2)))
        seen += source.indices
    assert sorted(seen) == list(range(12, 24))


class Recorder:
    def __init__(self) -> None:
        self.indices = []

    def __call__(self, seed: int, index: int) -> Case:
        self.indices.append(index)
        return disc_case(seed, index)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_short_numbers_learn_and_resume_bitwise(tmp_path, precision):
    config = TrainConfig(**QUICK | {"dims": 2, "precision": precision, "steps": 6})
    fit(config, disc_case, tmp_path / "whole")
    full = config.model_copy(update={"precision": "fp32"})
    fit(full, disc_case, tmp_path / "full")
    assert largest_difference(tmp_path / "whole", tmp_path / "full") > 0

    def interrupt(stage: str, fraction: float, message: str) -> None:
        if round(6 * fraction) == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        fit(config, disc_case, tmp_path / "broken", progress=interrupt)
    fit(config, disc_case, tmp_path / "broken", resume=True)
    assert digest(tmp_path / "broken") == digest(tmp_path / "whole")
    scaler = json.loads((tmp_path / "whole" / "last.json").read_text())["scaler"]
    assert ("scale" in scaler) == (precision == "fp16")
    rows = (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(row)["loss"] for row in rows]
    assert np.isfinite(losses).all()


def test_an_overflow_of_half_precision_is_skipped_not_learned(tmp_path):
    """A scale beyond float16 halves until the gradients fit; the weights stay finite."""
    config = TrainConfig(**QUICK | {"dims": 2, "precision": "fp16", "steps": 2})
    state = training.fresh(config)
    state.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    before = {k: v.clone() for k, v in state.net.state_dict().items()}
    (batch,) = list(training.batches(config.model_copy(update={"steps": 1}), disc_case, 0, ALONE))
    training.train_step(config, state, batch, ALONE)
    assert all(torch.equal(v, before[k]) for k, v in state.net.state_dict().items())
    assert state.scaler.get_scale() == 2.0**39


ALONE = ranks.Ranks()


class Finite(Recorder):
    size = 5


def test_epochs_are_rounds_over_a_folder(tmp_path):
    changes = {"dims": 2, "steps": None, "epochs": 3, "batch": 2, "milestones": [1, 2]}
    config = TrainConfig(**QUICK | changes)
    fixed = training.with_steps(config, Finite(), None)
    assert (fixed.steps, fixed.milestones, fixed.interval) == (9, (3, 6), 4)
    own = config.model_copy(update={"validate_every": None})
    assert training.with_steps(own, Finite(), None).interval == 3
    with pytest.raises(ConfigError, match="give steps or --data"):
        training.with_steps(config, disc_case, None)


def test_validation_cases_come_from_their_own_source(tmp_path):
    source = Recorder()
    config = TrainConfig(**QUICK | {"dims": 2, "steps": 4, "validation_cases": 3})
    fit(config, disc_case, tmp_path, validation=source)
    assert source.indices == [0, 1, 2]


def test_tensorboard_gets_every_row(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = TrainConfig(**QUICK | {"dims": 2, "steps": 4, "tensorboard": True})
    fit(config, disc_case, tmp_path)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    for name in ("loss", "lr", "val_loss"):
        want = [(row["step"], row[name]) for row in rows if name in row]
        found = [(e.step, e.value) for e in events.Scalars(name)]
        assert found == [(step, pytest.approx(value)) for step, value in want]


def test_tensorboard_that_is_not_there_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    config = TrainConfig(**QUICK | {"tensorboard": True})
    with pytest.raises(EnvironmentFault, match=r"vesselseg\[tensorboard\]"):
        fit(config, ball_case, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's compiler about torch itself
def test_a_compiled_network_learns_the_same(tmp_path):
    """To rounding: fused operations add in another order."""
    config = TrainConfig(**QUICK | {"dims": 2, "steps": 3, "precision": "fp32"})
    rows = []
    for compiled in (False, True):
        folder = tmp_path / str(compiled)
        fit(config.model_copy(update={"compile": compiled}), disc_case, folder)
        rows.append([json.loads(s) for s in (folder / "metrics.jsonl").read_text().splitlines()])
    for plain, fused in zip(*rows, strict=True):
        assert fused["loss"] == pytest.approx(plain["loss"], rel=1e-4)


# The configuration that a UNeXt training prints, of another program.
PRINTED = """
cfg = "None"
dataset = "DsDL"
deep_supervision = false
early_stopping = -1
epochs = 20
factor = 0.1
gamma = 0.6666666666666666
img_ext = ".tif"
input_channels = 3
input_h = 256
input_w = 256
loss = "BCEDiceLoss"
lr = 0.0001
mask_ext = ".tif"
milestones = "1,2"
min_lr = 1e-05
momentum = 0.9
name = "prova1"
nesterov = false
num_classes = 1
num_workers = 4
optimizer = "Adam"
patience = 2
scheduler = "CosineAnnealingLR"
weight_decay = 0.0001
batch_size = 8
arch = "UNext"
"""


def test_a_configuration_of_another_program_loads_as_it_is():
    tree = tomllib.loads(PRINTED)
    config = build(TrainRun, tree)
    assert (config.network, config.dims, config.in_channels, config.classes) == ("unext", 2, 3, 1)
    assert (config.batch, config.epochs, config.workers, config.optimizer) == (8, 20, 4, "adam")
    assert (config.losses, config.early_stopping) == ({"bce_dice": 1.0}, -1)
    assert config.lr * config.final_lr == pytest.approx(1e-5)
    assert config.data.folder == "DsDL"
    assert (config.data.image_suffix, config.data.patch) == (".tif", (256, 256))
    assert (config.warmup, config.ema, config.distance) == (0, 0.0, False)
    steps = build(TrainRun, tree | {"scheduler": "MultiStepLR", "deep_supervision": True})
    assert (steps.milestones, steps.factor) == ((1, 2), pytest.approx(2 / 3))
    assert steps.options == {"deep_supervision": True}
    plateau = build(TrainRun, tree | {"scheduler": "ReduceLROnPlateau"})
    assert (plateau.factor, plateau.patience, plateau.min_lr) == (0.1, 2, 1e-5)
    elsewhere = build(TrainRun, tree | {"data": {"folder": "mine"}})
    assert (elsewhere.data.folder, elsewhere.data.mask_suffix) == ("mine", ".tif")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"batchs": 4}, "did you mean 'batch'"),
        ({"data": 3}, "data"),
        ({"lr": 0.0}, "lr"),
        ({"lr": "fast"}, "lr"),
        ({"min_lr": [1]}, "min_lr"),
        ({"milestones": 5}, "milestones"),
        ({"loss": 5}, "loss"),
        ({"arch": 5}, "network"),
        ({"input_h": "x"}, "data: .* integer: found x"),
    ],
)
def test_bad_values_of_another_program_are_refused(change, words):
    with pytest.raises(ConfigError, match=words):
        build(TrainRun, tomllib.loads(PRINTED) | change)
