"""Tuning that nobody reports on: settings chosen on one family of cases, judged on another."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..config import build, load_toml, override
from ..errors import ConfigError, NumericalError
from ..fields import Progress, silent
from ..io.atomic import check_folder, write_bytes
from .engines import Engine
from .perform import Record
from .plan import STAGES, Study, relative_to, study_from
from .results import records, value_of
from .runner import Watch, run
from .sources import Cases, inputs, resolved
from .space import Point

OTHERS = {  # families to report on, by dimension, where the file names none
    3: ("curved_tube", "helix", "bifurcation", "aneurysm"),
    2: ("ellipse", "star", "circle"),
}
MOST_REPORTED = 3


@dataclass(frozen=True)
class Tuning:
    """A study whose best point is sought on ``study.cases`` and judged on ``report``."""

    study: Study
    report: Cases


@dataclass(frozen=True)
class Tuned:
    """What was chosen and what it gives.

    Parameters
    ----------
    chosen : mapping
        The best point.
    objective : str
    training : float
        Its mean objective on the training family: too good, for it was chosen there.
    reported, default : float or None
        Means on the other family, of the chosen point and of the untouched settings.
    failed : int
        Failed cases of both families.
    file : str
        TOML with the chosen settings, for ``--config``.
    """

    chosen: Mapping[str, Any]
    objective: str
    training: float
    reported: float | None
    default: float | None
    failed: int
    file: str

    def as_dict(self) -> dict[str, Any]:
        """Return the fields."""
        return asdict(self)


def read_tuning(path: str | os.PathLike[str], assignments: Sequence[str] = ()) -> Tuning:
    """Read a study file with a table ``[report]`` of the cases to report on.

    Without the table, phantoms are reported on others of their dimension.
    """
    tree = override(load_toml(path), assignments)
    other = tree.pop("report", None)
    folder = Path(path).absolute().parent
    study = relative_to(study_from(tree, path), folder)
    if other is None:
        return Tuning(study, _others(study.cases))
    held = study.model_copy(update={"cases": build(Cases, other, path)})
    return Tuning(study, relative_to(held, folder).cases)


def _others(cases: Cases) -> Cases:
    from .. import phantoms

    if not cases.phantoms:
        remedy = "add a table [report] with files and starts of other patients"
        raise ConfigError("nothing to report on", remedy=remedy)
    names = [name for name in cases.phantoms if name in phantoms.names()]
    ndim = phantoms.make(names[0]).ndim if names else 3
    left = [name for name in OTHERS[ndim] if name not in cases.phantoms]
    return cases.model_copy(update={"phantoms": tuple(left[:MOST_REPORTED])})


def tune(
    tuning: Tuning,
    folder: str | Path,
    *,
    engine: Engine | None = None,
    progress: Progress = silent,
    watch: Watch | None = None,
) -> Tuned:
    """Find the best point on the training family and judge it on the other.

    Both are studies of their own, in ``folder/training`` and ``folder/reported``, that go on
    after a kill. A point of which a case fails is out.

    Raises
    ------
    ConfigError
        The families overlap, or there is no space to search.
    NumericalError
        No point survived every training case.
    """
    study, name = tuning.study, tuning.study.search.objective
    if not study.space and not study.points:
        raise ConfigError("nothing to tune", remedy="give the study a space or points")
    _disjoint(study.cases, tuning.report)
    target = check_folder(folder)
    ways = {"engine": engine, "progress": progress, "watch": watch}
    first = run(study, target / "training", **ways)  # type: ignore[arg-type]
    chosen, training = best(records(target / "training")[0], name, study.search.maximise)
    untouched: tuple[Point, ...] = (
        ({},) if study.stage in STAGES else ()
    )  # a function has no settings of its own
    points = (*untouched, chosen) if chosen else ({},)
    judged = study.model_copy(update={"cases": tuning.report, "space": {}, "points": points})
    second = run(judged, target / "reported", **ways)  # type: ignore[arg-type]
    ranks = {_key(p): v for p, v in ranking(records(target / "reported")[0], name)}
    tuned = Tuned(chosen, name, training, ranks.get(_key(chosen)), ranks.get(_key({})),
                  first.failed + second.failed, str(target / "tuned.toml"))  # fmt: skip
    write_bytes(target / "tuned.toml", toml(study.config, chosen).encode())
    write_bytes(target / "tuning.json", (json.dumps(tuned.as_dict(), indent=1) + "\n").encode())
    return tuned


def _disjoint(one: Cases, other: Cases) -> None:
    """Refuse families with a phantom, or the content of a file, in common."""
    both = set(one.phantoms) & set(other.phantoms)
    if not both and one.files and other.files:
        digests = inputs(resolved(one).model_copy(update={"starts": (), "truths": ()}))
        known = set(digests.values())
        held = inputs(resolved(other).model_copy(update={"starts": (), "truths": ()}))
        both = {path for path, digest in held.items() if digest in known}
    if both:
        remedy = "report on other cases than those the settings are chosen on"
        raise ConfigError("the families overlap", found=", ".join(sorted(both)), remedy=remedy)


def ranking(found: Sequence[Record], name: str) -> list[tuple[Point, float]]:
    """Return the points without a failed case and their mean objective, in their order."""
    groups: dict[str, list[Record]] = {}
    for record in found:
        groups.setdefault(_key(record["parameters"]), []).append(record)
    result = []
    for members in groups.values():
        values = [value_of(r, name) if r["state"] == "done" else None for r in members]
        known = [v for v in values if v is not None]
        if len(known) == len(values):
            result.append((members[0]["parameters"], sum(known) / len(known)))
    return result


def best(found: Sequence[Record], name: str, maximise: bool) -> tuple[Point, float]:
    """Return the best point and its mean objective; the first of equals."""
    ranks = ranking(found, name)
    if not ranks:
        remedy = "see vesselseg study status for the reasons"
        raise NumericalError(f"no point has {name} of every case", remedy=remedy)
    sign = -1.0 if maximise else 1.0
    return min(ranks, key=lambda pair: sign * pair[1])


def _key(point: Mapping[str, Any]) -> str:
    return json.dumps(point, sort_keys=True)


def toml(config: Mapping[str, Any], point: Point) -> str:
    """Render settings as TOML with dotted keys."""
    flat = {**_flat(config), **point}
    return "".join(f"{name} = {_value(value)}\n" for name, value in sorted(flat.items()))


def _flat(tree: Mapping[str, Any], head: str = "") -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, value in tree.items():
        inner = isinstance(value, Mapping)
        result |= _flat(value, f"{head}{name}.") if inner else {head + name: value}
    return result


def _value(value: Any) -> str:
    return json.dumps(list(value) if isinstance(value, tuple) else value)  # so far equal to TOML
