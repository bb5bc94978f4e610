"""The point formulas and the integrators hold their formal order and their limits."""

import numpy as np
import pytest

from vesselseg.cuda_kernels import stencils
from vesselseg.cuda_kernels.reinit import edge_crossing
from vesselseg.solvers.schemes import SCHEMES, STEADY


@pytest.mark.parametrize("scheme", [*SCHEMES.values(), STEADY])
def test_every_stage_is_a_convex_combination(scheme):
    """Strong stability: Shu & Osher 1988."""
    assert all(ca >= 0.0 and cb > 0.0 and ca + cb == pytest.approx(1.0) for ca, cb in scheme.stages)


@pytest.mark.parametrize(("scheme", "order"), [("weno5", 3), ("eno2", 2)])
def test_the_integrators_have_their_order(scheme, order):
    """On y' = -y, over two step sizes; observed >= nominal - 0.3."""
    errors = []
    for count in (10, 20):
        y = 1.0
        for _ in range(count):
            base = y
            for ca, cb in SCHEMES[scheme].stages:
                y = ca * base + cb * (y - y / count)
        errors.append(abs(y - np.exp(-1.0)))
    assert np.log2(errors[0] / errors[1]) >= order - 0.3


@pytest.mark.parametrize(("width", "order"), [(3, 5), (2, 2)], ids=["weno5", "eno2"])
def test_one_sided_differences_have_their_order(width, order):
    pair = stencils.weno5_pair if width == 3 else stencils.eno2_pair
    errors = []
    for h in (0.1, 0.05):
        x = 0.4 + h * np.arange(-width, width + 1)
        errors.append(max(abs(d - np.cos(0.4)) for d in pair(*np.sin(x), h)))
    assert np.log2(errors[0] / errors[1]) >= order - 0.3


@pytest.mark.parametrize("h", [0.02, 1.0, 20.0])
def test_linear_float32_data_give_their_slope_at_every_spacing(h):
    """A smaller WENO epsilon gives 0/0 there."""
    values = np.float32(h) * np.arange(-3, 4, dtype=np.float32)
    for slope in (*stencils.weno5_pair(*values, h), *stencils.eno2_pair(*values[1:6], h)):
        assert slope == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize(("left", "right", "outward", "inward"), [
    (1.0, 1.0, 1.0, 1.0), (-1.0, 1.0, 0.0, 1.0), (1.0, -1.0, 1.0, 0.0), (2.0, -1.0, 4.0, 0.0),
    (-2.0, 1.0, 0.0, 4.0), (0.0, 0.0, 0.0, 0.0),
])  # fmt: skip
def test_godunov_takes_the_upwind_side(left, right, outward, inward):
    """A valley has no slope for a front that leaves it, a ridge none for one that reaches it."""
    assert stencils.upwind_sq(left, right, True) == outward
    assert stencils.upwind_sq(left, right, False) == (max(left, right) ** 2 if inward == 1.0 and
        left == right else inward)  # fmt: skip


@pytest.mark.parametrize("root", [1e-9, 0.1, 0.5, 0.99, 1.0 - 1e-9])
@pytest.mark.parametrize("bend", [0.0, 0.3, -0.3])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_wall_on_an_edge_is_found_to_rounding(root, bend, sign):
    """On quadratics, which the cubic holds exactly; from either end of the edge."""
    samples = [sign * (t - root) * (1.0 + bend * (t + root)) for t in (-1.0, 0.0, 1.0, 2.0)]
    assert edge_crossing(*samples) == pytest.approx(root, abs=1e-12)
    assert edge_crossing(*samples[::-1]) == pytest.approx(1.0 - root, abs=1e-12)


def test_a_crease_does_not_shift_the_wall_on_an_edge():
    """|t + 0.5|-like data: the quadratic of the smooth side is taken, here a straight line."""
    assert edge_crossing(-0.2, -0.4, 0.6, 1.6) == pytest.approx(0.4, abs=1e-12)
