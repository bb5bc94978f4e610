"""The flow study asks its solver the right question: exact tubes give Poiseuille's flow."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.flow
sys.path.insert(0, str(Path(__file__).parent.parent / "studies"))


@pytest.mark.parametrize("shape", ["straight", "oblique"])
def test_the_exact_wall_gives_poiseuille_flow_and_shear(shape):
    pytest.importorskip("peclet.flow")
    study = importlib.import_module("flow_consequence")
    radius = 6.2
    vessel = study.SHAPES[shape](radius)
    index = np.moveaxis(np.indices(vessel.size[::-1]), 0, -1)
    x = vessel.grid().world(index).reshape(-1, 3)
    phi = vessel.distance(x).reshape(vessel.size[::-1])
    flow = study.Flow.through(phi, vessel)
    # a cut-cell solver of second order at six voxels a radius
    assert flow.rate == pytest.approx(vessel.poiseuille, rel=0.01)
    near = np.abs(phi) < 0.2
    points = x[near.ravel()]
    h = 1e-4
    normal = np.stack([vessel.distance(points + h * e) - vessel.distance(points - h * e)
                       for e in np.eye(3)], axis=1) / (2 * h)  # fmt: skip
    points = points - phi[near][:, None] * normal
    shear = flow.shear(points, normal) * flow.rate
    # half the gradient times r; read between samples of a parabola by straight lines it is h²/8 of
    # its second derivative low, 4 % here, on every wall alike
    assert np.mean(shear) == pytest.approx(radius / 2, rel=0.05)
    thinner = study.Flow.through(phi + 0.1, vessel)
    expected = (1 - 0.1 / radius) ** 4
    assert thinner.rate / flow.rate == pytest.approx(expected, rel=2e-3)
