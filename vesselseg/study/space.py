"""The parameter space of a study: which settings are tried, in which order.

Every method but ``bayes`` gives all its points at once. The Bayesian search gives them in rounds
and learns the objective of each before the next; as the sampler is seeded and the rounds are told
in order, a resumed study asks for the same points again, on every engine.
"""

from __future__ import annotations

import difflib
import itertools
import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from ..config import Settings, build
from ..errors import ConfigError, EnvironmentFault

Point = dict[str, Any]
Rounds = Generator[list[Point], list[float | None], None]

MAX_CASES = 10**6
DIGITS = 6  # of a drawn number: tables stay readable, and nobody knows a setting better


class Interval(Settings):
    """A range of a number: ``{low = 0.3, high = 1.2, log = true}``; ``whole``: integers only."""

    low: float
    high: float
    log: bool = False
    whole: bool = False

    @model_validator(mode="after")
    def _rising(self) -> Interval:
        if not self.low < self.high or (self.log and self.low <= 0):
            raise ValueError("needs low < high, and 0 < low on a logarithmic scale")
        return self

    def at(self, share: float) -> float | int:
        """Return the value at a share from 0 to 1 of the way."""
        if self.whole:
            return int(min(self.low + math.floor(share * (self.high - self.low + 1)), self.high))
        if self.log:
            value = self.low * (self.high / self.low) ** share
        else:
            value = self.low + (self.high - self.low) * share
        return float(f"{value:.{DIGITS}g}")


class Search(Settings):
    """How the space is searched.

    Parameters
    ----------
    method : {"grid", "random", "sobol", "bayes"}
        All combinations; ``n`` independent points; ``n`` points of a scrambled Sobol sequence
        (Sobol 1967, Owen 1998); ``n`` points of a tree-structured Parzen estimator (Bergstra et
        al. 2011), which needs the extra ``study``.
    objective : str
        Metric, averaged over the cases, that ``bayes`` and ``tune`` make small.
    maximise : bool
        Make it large instead.
    batch : int
        Points of one round of ``bayes``: as many run at once.
    """

    method: Literal["grid", "random", "sobol", "bayes"] = "grid"
    n: int = Field(16, ge=1, le=MAX_CASES)
    objective: str = "rms_voxel"
    maximise: bool = False
    batch: int = Field(4, ge=1, le=1000)


def axes(space: Mapping[str, Any], search: Search) -> dict[str, list[Any] | Interval]:
    """Return the values of every parameter, a list or an interval.

    Raises
    ------
    ConfigError
        An empty list, a value given twice, or an interval in a grid.
    """
    result: dict[str, list[Any] | Interval] = {}
    for name, given in space.items():
        if isinstance(given, Interval | Mapping):
            if search.method == "grid":
                remedy = "set search.method to random, sobol or bayes, or give a list"
                raise ConfigError(f"space: {name} is an interval in a grid", remedy=remedy)
            tree = given.model_dump() if isinstance(given, Interval) else _numbers(given)
            result[name] = build(Interval, tree, f"space.{name}")
            continue
        values = list(given) if isinstance(given, list | tuple) else [given]
        if not values:
            raise ConfigError(f"space: {name} has no values", need="a list, or an interval")
        for n, value in enumerate(values):
            if value in values[:n]:
                raise ConfigError(f"space: {name} has a value twice", found=value)
        result[name] = values
    return result


def _numbers(given: Mapping[str, Any]) -> dict[str, Any]:
    return {k: float(v) if type(v) is int else v for k, v in given.items()}


def size(space: Mapping[str, Any], points: Sequence[Point], search: Search) -> int:
    """Return how many points there will be, before any is made."""
    if points:
        return len(points)
    if search.method != "grid":
        return search.n
    return math.prod(len(v) for v in axes(space, search).values() if isinstance(v, list))


def rounds(space: Mapping[str, Any], points: Sequence[Point], search: Search, seed: int) -> Rounds:
    """Give the points in rounds; each takes the objective of its points, None where it failed."""
    known = axes(space, search)
    if points or not known:
        yield [dict(point) for point in points] or [{}]
    elif search.method == "grid":
        yield list(_grid(known))
    elif search.method == "bayes":
        yield from _bayes(known, search, seed)
    else:
        draw = _sobol if search.method == "sobol" else _random
        rows = draw(search.n, len(known), seed)
        yield [_point(known, row) for row in rows]


def _grid(known: Mapping[str, Any]) -> Iterator[Point]:
    for values in itertools.product(*known.values()):
        yield dict(zip(known, values, strict=True))


def _random(n: int, dims: int, seed: int) -> NDArray[np.float64]:
    return np.random.default_rng(np.random.SeedSequence([seed, 101])).random((n, dims))


def _sobol(n: int, dims: int, seed: int) -> NDArray[np.float64]:
    from scipy.stats import qmc

    rng = np.random.default_rng(np.random.SeedSequence([seed, 102]))
    # Balanced are only powers of two; the first n of the next one are the best that n can be.
    return np.asarray(qmc.Sobol(dims, seed=rng).random_base2(math.ceil(math.log2(n)))[:n])


def _point(known: Mapping[str, Any], row: NDArray[np.float64]) -> Point:
    return {
        name: v.at(float(u)) if isinstance(v, Interval) else v[int(u * len(v))]
        for (name, v), u in zip(known.items(), row, strict=True)
    }


def _bayes(known: Mapping[str, Any], search: Search, seed: int) -> Rounds:
    optuna = import_optuna()
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=max(4, search.batch))
    direction = "maximize" if search.maximise else "minimize"
    study = optuna.create_study(sampler=sampler, direction=direction)
    kinds = {name: _distribution(optuna, values) for name, values in known.items()}
    asked = 0
    while asked < search.n:
        trials = [study.ask(kinds) for _ in range(min(search.batch, search.n - asked))]
        asked += len(trials)
        told = yield [_chosen(known, trial.params) for trial in trials]
        for trial, value in zip(trials, told, strict=True):
            failed = optuna.trial.TrialState.FAIL if value is None else None
            study.tell(trial, value, state=failed)


def _distribution(optuna: Any, values: list[Any] | Interval) -> Any:
    kinds = optuna.distributions
    if isinstance(values, list):  # by place: values may be lists, which Optuna does not take
        return kinds.CategoricalDistribution(range(len(values)))
    if values.whole:
        return kinds.IntDistribution(int(values.low), int(values.high), log=values.log)
    return kinds.FloatDistribution(values.low, values.high, log=values.log)


def _chosen(known: Mapping[str, Any], drawn: Mapping[str, Any]) -> Point:
    return {
        name: v[drawn[name]] if isinstance(v, list) else _short(drawn[name])
        for name, v in known.items()
    }


def _short(value: float | int) -> float | int:
    return value if isinstance(value, int) else float(f"{value:.{DIGITS}g}")


def import_optuna() -> Any:
    """Return Optuna, or say how to install it."""
    try:
        import optuna
    except ImportError:
        remedy = "pip install 'vesselseg[study]', or search.method = sobol"
        raise EnvironmentFault("the Bayesian search needs Optuna", remedy=remedy) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def nearest(name: str, known: Sequence[str]) -> str:
    """Return the remedy of an unknown name: the nearest one, or all."""
    near = difflib.get_close_matches(name, known, 1, 0.4)
    return f"did you mean '{near[0]}'?" if near else "known: " + ", ".join(known)
