"""Losses: each term against an independent reference, and finite whatever comes."""

from __future__ import annotations

import math
import sys
import types

import numpy as np
import pytest
import torch

from vesselseg import nets
from vesselseg.errors import ConfigError, EnvironmentFault
from vesselseg.nets import losses

SETTINGS = losses.LossSettings()
SHAPE = (2, 6, 8, 8)


def random_case(classes: int = 1):
    """Heads of random numbers and a random wall with a tube around its axis."""
    generator = torch.Generator().manual_seed(0)
    logit = torch.randn(2, classes, *SHAPE[1:], generator=generator)
    sdf, log_sigma, phi = (torch.randn(SHAPE, generator=generator) for _ in range(3))
    labels = torch.randint(0, max(2, classes), SHAPE, generator=generator)
    target = losses.Target(3.0 * phi, (phi < -0.5).to(torch.uint8), labels.to(torch.uint8))
    return nets.Heads(logit, sdf, log_sigma), target


def special_target(kind: str) -> losses.Target:
    """An empty, a full or a one-voxel lumen."""
    phi = torch.full(SHAPE, -12.0 if kind == "full" else 12.0)
    if kind == "one voxel":
        phi[:, 3, 4, 4] = -0.5
    inside = (phi < 0).to(torch.uint8)
    return losses.Target(phi, inside, inside)


@pytest.mark.parametrize("classes", [1, 2, 4])
@pytest.mark.parametrize("name", losses.TERMS)
def test_values_and_slopes_are_finite(name, classes):
    """For logits of ±1e4, and those at which float32 rounds an index to one."""
    for kind in ("empty", "full", "one voxel"):
        target = special_target(kind)
        for size in (0.0, 10.0, 40.0, 1e4):
            truth = torch.where(target.phi < 0, 1.0, -1.0)[:, None]
            for sign in (1.0, -1.0, truth):
                raw = torch.full((2, classes + 2, *SHAPE[1:]), size, requires_grad=True)
                value = losses.TERMS[name](nets.heads(sign * raw, classes), target, SETTINGS)
                value.backward()
                assert torch.isfinite(value)
                assert torch.isfinite(raw.grad).all()


def test_the_focal_tversky_of_an_empty_target_is_left_out():
    target = special_target("empty")
    raw = torch.zeros(2, 1, *SHAPE[1:], requires_grad=True)
    value = losses.focal_tversky(nets.Heads(raw), target, SETTINGS)
    value.backward()
    assert value == 0.0
    assert not raw.grad.any()


def test_the_slope_of_the_focal_tversky_is_bounded():
    """gamma (1 - T)^(gamma - 1) is at most 7.5 for 1 - T >= 1e-4."""
    index = torch.linspace(0.0, 1.0, 1001, requires_grad=True)
    miss = (1.0 - index).clamp(min=losses.LEAST_MISS) ** SETTINGS.tversky_gamma
    miss.sum().backward()
    assert index.grad.abs().max() <= 7.5


def np_case(classes: int):
    """Shares p and t ``(N, K, voxels)`` in float64, computed by other means."""
    heads, target = random_case(classes)
    x = heads.logit.double().numpy().reshape(2, classes, -1)
    phi = target.phi.double().numpy().reshape(2, -1)
    if classes == 1:
        p = 1.0 / (1.0 + np.exp(-x))
        t = (1.0 / (1.0 + np.exp(phi / 0.5)))[:, None]
        return np.concatenate([1 - p, p], 1), np.concatenate([1 - t, t], 1)
    e = np.exp(x)
    labels = target.labels.numpy().reshape(2, -1)
    t = np.stack([labels == k for k in range(classes)], 1).astype(float)
    return e / e.sum(1, keepdims=True), t


def jaccard_loss(p, t):
    """Lovász extension by its definition: a sum over the sorted errors of 1 - Jaccard steps."""
    truth = t > 0.5
    if not truth.any():
        return np.nan
    error = np.abs(p - truth)
    order = np.argsort(-error)
    total, before, wrong = 0.0, 0.0, set()
    for i in order:
        wrong.add(i)
        guess = np.array([truth[j] != (j in wrong) for j in range(len(p))])
        value = 1.0 - (guess & truth).sum() / (guess | truth).sum()
        total += error[i] * (value - before)
        before = value
    return total


def reference(name: str, p, t) -> float:
    """Each overlap term, written as its formula."""
    axes = [(n, k) for n in range(2) for k in range(1, p.shape[1])]
    each = lambda f: float(np.nanmean([f(p[n, k], t[n, k]) for n, k in axes]))  # noqa: E731
    weight = np.array([0.1] + [0.9] * (p.shape[1] - 1))[:, None]

    def index(a, b):
        both = (a * b).sum() + 1.0
        return both / (both + 0.7 * ((1 - a) * b).sum() + 0.3 * (a * (1 - b)).sum())

    def dice(a, b):
        return 1 - (2 * (a * b).sum() + 1) / ((a**2).sum() + (b**2).sum() + 1)

    def generalised(n):
        w = 1 / np.maximum(t[n].sum(1) ** 2, 1)
        return 1 - 2 * (w * (p[n] * t[n]).sum(1)).sum() / (w * (p[n] + t[n]).sum(1)).sum()

    ce = float(-(t * np.log(p)).sum(1).mean())
    return {
        "soft_bce": lambda: ce,
        "weighted_ce": lambda: float(
            np.mean(
                [
                    -(weight * a * np.log(b)).sum() / (weight * a).sum()
                    for a, b in zip(t, p, strict=True)
                ]
            )
        ),
        "dice": lambda: each(dice),
        "bce_dice": lambda: 0.5 * ce + each(dice),
        "generalised_dice": lambda: float(np.mean([generalised(n) for n in range(2)])),
        "focal": lambda: float(-(t * (1 - p) ** 2 * np.log(p)).sum(1).mean()),
        "tversky": lambda: each(lambda a, b: 1 - index(a, b)),
        "focal_tversky": lambda: each(lambda a, b: (1 - index(a, b)) ** 0.75),
        "lovasz": lambda: each(jaccard_loss),
    }[name]()


OVERLAP = (
    "soft_bce", "weighted_ce", "dice", "bce_dice", "generalised_dice", "focal", "tversky",
    "focal_tversky", "lovasz",
)  # fmt: skip


@pytest.mark.parametrize("classes", [1, 4])
@pytest.mark.parametrize("name", OVERLAP)
def test_a_term_equals_its_formula(name, classes):
    heads, target = random_case(classes)
    value = losses.TERMS[name](heads, target, SETTINGS).item()
    assert value == pytest.approx(reference(name, *np_case(classes)), rel=1e-5)


@pytest.mark.parametrize("classes", [1, 4])
@pytest.mark.parametrize("name", losses.TERMS)
def test_a_term_of_a_batch_is_the_mean_of_the_terms_of_its_images(name, classes):
    """So gradients that are accumulated, or averaged over processes, are those of one batch."""
    heads, target = random_case(classes)
    target = target._replace(phi=target.phi + torch.tensor([0.0, 9.0])[:, None, None, None])
    each = [
        losses.TERMS[name](
            nets.Heads(*(x[n : n + 1] for x in heads[:3])),
            losses.Target(*(x[n : n + 1] for x in target)),
            SETTINGS,
        ).item()
        for n in range(2)
    ]
    assert each[0] != each[1]
    whole = losses.TERMS[name](heads, target, SETTINGS).item()
    assert whole == pytest.approx(np.mean(each), rel=1e-5)


def test_the_lovasz_loss_is_one_minus_jaccard_on_hard_predictions():
    """All 2^8 predictions of eight voxels."""
    truth = torch.tensor([1, 1, 1, 0, 0, 0, 0, 0], dtype=torch.bool)
    target = losses.Target(torch.where(truth, -9.0, 9.0)[None], truth[None])
    for bits in range(256):
        guess = torch.tensor([bool(bits >> i & 1) for i in range(8)])
        logit = torch.where(guess, 60.0, -60.0)[None, None]
        want = 1.0 - (guess & truth).sum() / (guess | truth).sum()
        value = losses.lovasz(nets.Heads(logit), target, SETTINGS)
        assert value.item() == pytest.approx(want.item(), abs=1e-6)


def test_the_slope_of_the_boundary_loss_is_the_distance():
    heads, target = random_case()
    logit = heads.logit.clone().requires_grad_()
    losses.boundary(nets.Heads(logit), target, SETTINGS).backward()
    p = torch.sigmoid(heads.logit)
    slope = logit.grad / (p * (1 - p)) * 4.0 * target.phi.numel()
    torch.testing.assert_close(slope[:, 0], target.phi, atol=1e-3, rtol=1e-3)


def test_skeletons_are_openings_taken_off():
    """Against SciPy's grey morphology, in two and three dimensions."""
    from scipy import ndimage

    for shape in ((12, 13), (7, 8, 9)):
        x = np.random.default_rng(0).random(shape)
        cross, box = ndimage.generate_binary_structure(len(shape), 1), np.ones((3,) * len(shape))
        want, level = np.zeros(shape), x
        for _ in range(3):
            low = ndimage.grey_erosion(level, footprint=cross, mode="nearest")
            rest = level - np.minimum(
                level, ndimage.grey_dilation(low, footprint=box, mode="nearest")
            )
            want = want + np.maximum(rest - want * rest, 0)
            level = low
        found = losses.soft_skeleton(torch.from_numpy(x)[None, None], 2)[0, 0].numpy()
        np.testing.assert_allclose(found, want, atol=1e-12)


def test_soft_cl_dice_sees_a_break_that_dice_hardly_sees():
    x = torch.zeros(1, 9, 40)
    x[:, 3:6, 2:38] = 1.0
    phi = torch.where(x > 0, -3.0, 3.0)
    target = losses.Target(phi, x.to(torch.uint8))
    broken = phi.clone()
    broken[..., 18:22] = 3.0
    rows = {}
    for name in ("dice", "soft_cl_dice"):
        whole, cut = (
            losses.TERMS[name](nets.Heads(-5.0 * p[:, None]), target, SETTINGS)
            for p in (phi, broken)
        )
        rows[name] = (whole.item(), cut.item())
    assert rows["soft_cl_dice"][0] == pytest.approx(0.0, abs=0.02)
    assert rows["soft_cl_dice"][1] > 0.05


def test_distance_terms_equal_their_formula_and_skeleton_recall_counts():
    heads, target = random_case()
    phi, sdf = target.phi.numpy(), heads.sdf.numpy()
    sigma = np.exp(heads.log_sigma.numpy())
    residual = sdf - 4.0 * np.tanh(phi / 4.0)
    weight = np.exp(-((phi / 3.0) ** 2)) + 0.1
    nll = sigma * (0.5 * (residual / sigma) ** 2 + np.log(sigma))
    want = {"sdf_l1": np.abs(residual), "sdf_nll": nll}
    for name, values in want.items():
        value = losses.TERMS[name](heads, target, SETTINGS).item()
        each = [np.average(v, weights=w) for v, w in zip(values, weight, strict=True)]
        assert value == pytest.approx(np.mean(each), rel=1e-5)
    tube, p = target.centreline.bool(), torch.sigmoid(heads.logit[:, 0])
    shares = [1 - p[n][tube[n]].mean().item() for n in range(2)]
    value = losses.skeleton_recall(heads, target, SETTINGS).item()
    assert value == pytest.approx(np.mean(shares), rel=1e-5)


def test_every_weight_moves_the_loss():
    """The ancestor's sum returned one of its terms alone."""
    heads, target = random_case()
    weights = dict.fromkeys(losses.TERMS, 0.7)
    base = losses.parts(heads, target, weights)
    assert set(base) == set(losses.TERMS)
    for name in losses.TERMS:
        twice = losses.parts(heads, target, {**weights, name: 1.4})
        moved = sum(v.item() for v in twice.values()) - sum(v.item() for v in base.values())
        assert moved == pytest.approx(base[name].item(), rel=1e-3)
        assert abs(base[name].item()) > 1e-3


def test_constants_reach_their_terms():
    heads, target = random_case()
    changes = {
        "background_weight": (0.4, "weighted_ce"),
        "miss_weight": (0.3, "tversky"),
        "tversky_gamma": (1.3, "focal_tversky"),
        "focal_gamma": (1.0, "focal"),
        "thinning": (1, "soft_cl_dice"),
    }
    assert set(changes) == set(losses.LossSettings.model_fields) - {"deep_weight"}
    for field, (value, name) in changes.items():
        other = SETTINGS.model_copy(update={field: value})
        first, second = (losses.TERMS[name](heads, target, s).item() for s in (SETTINGS, other))
        assert not math.isclose(first, second, rel_tol=1e-3)


def test_auxiliary_heads_add_their_share():
    heads, target = random_case()
    deep = heads._replace(deep=(heads.logit,))
    found = losses.parts(deep, target, {"dice": 2.0, "sdf_l1": 1.0})
    assert set(found) == {"dice", "sdf_l1", "deep/dice"}
    assert found["deep/dice"] == 0.5 * found["dice"]


def test_losses_vanish_on_the_truth():
    _, target = random_case()
    sdf = losses.saturated(target.phi)
    exact = nets.Heads(-2.0 * target.phi[:, None], sdf, torch.zeros_like(sdf))
    assert losses.dice(exact, target, SETTINGS) == pytest.approx(0.0, abs=1e-5)
    assert losses.sdf_l1(exact, target, SETTINGS) == 0.0
    assert losses.scores(exact, target)["val_dice"] == 1.0
    assert losses.scores(exact, target)["val_wall"] == pytest.approx(0.02, abs=0.05)
    assert losses.scores(nets.Heads(exact.logit), target) == {"val_dice": 1.0}


def test_sdf_nll_is_least_where_sigma_is_the_error():
    _, target = random_case()
    sdf = losses.saturated(target.phi) + 0.3
    log_sigma = torch.full_like(sdf, math.log(0.3)).requires_grad_()
    heads = nets.Heads(sdf[:, None], sdf, log_sigma)
    losses.sdf_nll(heads, target, SETTINGS).backward()
    assert log_sigma.grad.abs().max() < 1e-6


def test_unknown_and_unfit_losses_are_refused(monkeypatch):
    heads, target = random_case()
    with pytest.raises(ConfigError, match="unknown loss 'dise'"):
        losses.parts(heads, target, {"dise": 1.0})
    with pytest.raises(ConfigError, match="no distance: need losses without sdf_l1, sdf_nll"):
        losses.parts(nets.Heads(heads.logit), target, {"sdf_l1": 1.0})
    monkeypatch.setitem(sys.modules, "monai", None)
    with pytest.raises(EnvironmentFault, match=r"needs MONAI.*vesselseg\[monai\]"):
        losses.parts(heads, target, {"monai:HausdorffDTLoss": 1.0})


def test_losses_of_monai_see_softmax_logits_and_one_channel_a_class(monkeypatch):
    stand_in = types.ModuleType("monai.losses")

    class Squared(torch.nn.Module):
        def __init__(self, softmax=False):
            super().__init__()
            assert softmax

        def forward(self, x, t):
            return (x.softmax(1) - t).square().mean()

    class Labelled(torch.nn.CrossEntropyLoss):
        def __init__(self, classes, dim):
            super().__init__()
            assert (classes, dim) == (2, 3)

    stand_in.Squared, stand_in.Plain = Squared, torch.nn.MSELoss
    stand_in.AsymmetricUnifiedFocalLoss, stand_in.NACLLoss = torch.nn.MSELoss, Labelled
    monkeypatch.setitem(sys.modules, "monai", types.ModuleType("monai"))
    monkeypatch.setitem(sys.modules, "monai.losses", stand_in)
    heads, target = random_case()
    p, t = np_case(1)
    value = losses.parts(heads, target, {"monai:Squared": 1.0})["monai:Squared"]
    assert value.item() == pytest.approx(np.square(p - t).mean(), rel=1e-5)
    names = ("monai:AsymmetricUnifiedFocalLoss", "monai:NACLLoss")
    shares, labels = losses.parts(heads, target, dict.fromkeys(names, 1.0)).values()
    assert shares.item() == pytest.approx(np.square(p - t).mean(), rel=1e-5)
    picked = np.where(t[:, 1] > 0.5, p[:, 1], p[:, 0])
    assert labels.item() == pytest.approx(-np.log(picked).mean(), rel=1e-5)
    with pytest.raises(ConfigError, match="'monai:Plain' takes no softmax"):
        losses.find("monai:Plain")
