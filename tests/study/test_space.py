"""The parameter space: every method gives the points it promises, and the same ones again."""

import numpy as np
import pytest

from vesselseg.errors import ConfigError
from vesselseg.study.space import Interval, Search, rounds, size


def drawn(space, seed=3, points=(), told=None, **search):
    """All points, each told its objective."""
    found, asked = [], rounds(space, points, Search(**search), seed)
    batch = next(asked)
    while True:
        found.append(batch)
        try:
            batch = asked.send([told(p) if told else 0.0 for p in batch])
        except StopIteration:
            return found


def test_a_grid_is_all_combinations_in_order():
    (points,) = drawn({"a": [1, 2], "b": ["x", "y", "z"]})
    assert points == [{"a": a, "b": b} for a in (1, 2) for b in "xyz"]
    assert size({"a": [1, 2], "b": ["x", "y", "z"]}, (), Search()) == 6


def test_a_list_of_points_and_no_space_stand_for_themselves():
    assert drawn({}, points=({"a": 1}, {"a": 3})) == [[{"a": 1}, {"a": 3}]]
    assert drawn({}) == [[{}]]


@pytest.mark.parametrize("method", ["random", "sobol"])
def test_drawn_points_lie_in_their_intervals_and_repeat(method):
    space = {
        "a": {"low": 1, "high": 2},
        "b": Interval(low=1e-3, high=1e1, log=True),
        "n": {"low": 2, "high": 5, "whole": True},
        "w": ["x", [1, 2]],
    }
    (points,) = drawn(space, method=method, n=24)
    assert len(points) == 24
    a, b, n = (np.array([p[k] for p in points]) for k in "abn")
    assert 1 <= a.min() < 1.3 < 1.7 < a.max() <= 2
    assert np.median(np.log10(b)) == pytest.approx(-1.0, abs=0.7)
    assert set(n) == {2, 3, 4, 5}
    assert {str(p["w"]) for p in points} == {"x", "[1, 2]"}
    assert drawn(space, method=method, n=24) == [points]
    assert drawn(space, seed=4, method=method, n=24) != [points]


def test_sobol_points_fill_the_square_more_evenly_than_chance():
    space = {"a": {"low": 0, "high": 1}, "b": {"low": 0, "high": 1}}
    (points,) = drawn(space, method="sobol", n=64)
    boxes = {(int(p["a"] * 8), int(p["b"] * 8)) for p in points}
    assert len(boxes) == 64  # one in each elementary box; of random points about 40 are hit


def test_the_bayesian_search_learns_and_repeats():
    pytest.importorskip("optuna")
    space = {"x": {"low": 0.0, "high": 1.0}, "k": ["good", "bad"]}

    def bowl(p):
        return (p["x"] - 0.3) ** 2 + (p["k"] == "bad")

    options = {"told": bowl, "method": "bayes", "n": 32, "batch": 4}
    found = drawn(space, **options)
    assert [len(batch) for batch in found] == [4] * 8
    early, late = ([bowl(p) for batch in part for p in batch] for part in (found[:2], found[-2:]))
    assert np.mean(late) < 0.5 * np.mean(early)
    assert drawn(space, **options) == found


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ({"a": []}, ("a", "no values")),
        ({"a": [1, 1]}, ("a", "twice")),
        ({"a": {"low": 0, "high": 1}}, ("a", "interval in a grid", "sobol")),
    ],
)
def test_a_bad_space_is_named(space, words):
    with pytest.raises(ConfigError) as caught:
        list(rounds(space, (), Search(), 0))
    assert all(word in caught.value.line() for word in words)


@pytest.mark.parametrize("bad", [{"low": 1, "high": 1}, {"low": 0, "high": 1, "log": True}, {}])
def test_a_bad_interval_is_named(bad):
    with pytest.raises(ConfigError, match=r"space\.a"):
        list(rounds({"a": bad}, (), Search(method="random"), 0))
