"""What the shipped studies share: command line, result file and figure of a ``vesselseg.study``.

A script states its question in its docstring, its study as a mapping of ``vesselseg.study.Study``,
what ``--quick`` makes smaller, and how the cases are averaged. Cases stay under ``out/studies``:
a second run goes on where the first was stopped, and does again what a change of the code touches.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vesselseg import study
from vesselseg.errors import DataError
from vesselseg.io.atomic import write_bytes
from vesselseg.study.plots import drawn, figures
from vesselseg.study.results import means, records

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "studies" / "results"
RUNS = ROOT / "out" / "studies"
SHAPES = ("bifurcation", "curved_tube", "helix")  # no setting of ours was chosen on these
PLANAR = {"phantoms": ["circle", "star"], "radius": 8, "draws": 1}
DIGITS = 4

Tree = Mapping[str, Any]
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Shipped:
    """A study of ours.

    Parameters
    ----------
    name : str
        Of its results.
    parts : mapping
        Name to study: one, or several that vary one thing each.
    quick : mapping
        Name of a part to what replaces its keys in a quick run.
    by, metrics : names
        The cases are averaged over all else; of several parts ``by`` is the part's own name.
    figure : str or function
        Name of a figure of ``vesselseg.study.plot``, or one of the records of the parts.
    """

    name: str
    parts: Mapping[str, Tree]
    quick: Mapping[str, Tree]
    by: Sequence[str]
    metrics: Sequence[str]
    figure: str | Callable[[dict[str, Rows]], Any]


def main(asked: Shipped, argv: Sequence[str] | None = None) -> Path:
    """Run a study of ours and write ``NAME.json`` and ``NAME.png``; quick ones under ``out``."""
    options = argparse.ArgumentParser(prog=f"python studies/{asked.name}.py")
    options.add_argument("--quick", action="store_true", help="small cases, under a minute")
    options.add_argument("--workers", type=int, help="processes; 0 = this one")
    options.add_argument("-o", "--output", type=Path, default=RUNS, help="folder of the cases")
    given = options.parse_args(argv)
    parts = {name: merged(tree, asked.quick.get(name, {}) if given.quick else {})
             for name, tree in asked.parts.items()}  # fmt: skip
    folder = given.output / (asked.name + ("-quick" if given.quick else ""))
    found = {name: done(tree, folder / name, given.workers) for name, tree in parts.items()}
    result = {
        "studies": parts,
        "cases": sum(map(len, found.values())),
        "versions": {name: importlib.metadata.version(name) for name in ("vesselseg", "numpy")},
        "table": table(asked, found),
    }
    target = (folder if given.quick else RESULTS) / f"{asked.name}.json"
    write_bytes(target, (json.dumps(result, indent=1, default=_name) + "\n").encode())
    if callable(asked.figure):
        figure = asked.figure(found)
    else:
        figure = figures(next(iter(found.values())), asked.metrics[0])[asked.figure]
    write_bytes(target.with_suffix(".png"), drawn(figure, "png"))
    return target


def _name(value: Any) -> str:
    return str(value.__name__)  # a stage of the script's own


def merged(tree: Tree, changes: Tree) -> dict[str, Any]:
    """Return a tree with some keys replaced, at any depth."""
    result = dict(tree)
    for name, value in changes.items():
        inner = isinstance(value, Mapping) and isinstance(tree.get(name), Mapping)
        result[name] = merged(tree[name], value) if inner else value
    return result


def done(tree: Tree, folder: Path, workers: int | None) -> Rows:
    """Run a study, or what is left of it; anew after a change of the code or of its settings."""
    shared = folder.parent.parent / "phantoms"  # rendered once for all studies
    for made in (folder, shared):
        made.mkdir(parents=True, exist_ok=True)
    if not (folder / "phantoms").exists():
        (folder / "phantoms").symlink_to(shared.absolute())

    def say(stage: str, fraction: float, message: str) -> None:
        print(f"{folder.name}: {message}", file=sys.stderr)

    engine = study.choose("serial" if workers == 0 else "processes", workers)
    try:
        summary = study.run(tree, folder, engine=engine, progress=say)
    except DataError:
        summary = study.run(tree, folder, engine=engine, progress=say, force_new=True)
    for record in summary.failures:
        print(f"failed: {record['case']}: {record['fault']['reason']}", file=sys.stderr)
    return records(folder)[0]


def table(asked: Shipped, found: Mapping[str, Rows]) -> Rows:
    """Return the means; of several parts with the columns ``varied`` and ``value`` first."""
    rows = []
    for name, cases in found.items():
        by = asked.by or (name,)
        for row in means(cases, by, asked.metrics):
            head = {} if asked.by else {"varied": name, "value": row.pop(name)}
            rows.append(head | {k: rounded(v) for k, v in row.items()})
    return rows


def rounded(value: Any) -> Any:
    """Keep four digits."""
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value
