"""The report of a study: one HTML file that needs nothing beside it."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..io.atomic import write_bytes
from .plots import drawn, figures
from .results import headline, means, numbers, records, rows, status, value_of, varying

MOST_ROWS = 500  # of cases in the page; the table has them all
SHOWN = 8  # figures of merit in the means
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em;
  color: #1d2127; }
table { border-collapse: collapse; font-size: 13px; margin: 1em 0; display: block;
  overflow-x: auto; }
th, td { padding: 3px 9px; border-bottom: 1px solid #d9dde3; text-align: right;
  white-space: nowrap; }
th { background: #f2f4f7; } td:first-child, th:first-child { text-align: left; }
figure { margin: 1.5em 0; } img { max-width: 100%; } .failed { color: #b00020; }
"""
TITLES = {
    "heat_map": "Two settings",
    "error_by_snr": "Against the signal-to-noise ratio",
    "convergence": "Convergence",
    "coverage": "Coverage of the standard deviation",
    "pareto": "Time against error",
}


def report(folder: str | Path, output: str | Path | None = None, *, metric: str | None = None,
           overwrite: bool = True) -> Path:  # fmt: skip
    """Write the report of a study.

    Parameters
    ----------
    output : path, optional
        Default: ``report.html`` in its folder.
    metric : str, optional
        What the cases are ordered by; default: the rms error of the wall.

    Returns
    -------
    Path

    Raises
    ------
    ConfigError
        Nothing to report yet.
    """
    target = Path(output) if output else Path(folder) / "report.html"
    write_bytes(target, page(folder, metric).encode(), overwrite=overwrite)
    return target


def page(folder: str | Path, metric: str | None = None) -> str:
    """Return the report as HTML."""
    found, _ = records(folder)
    shown = headline(found, metric)
    parts = [
        _summary(folder),
        _means(found, shown),
        *_drawn(found, shown),
        *_examples(Path(folder), found, shown),
        _failures(found),
        _cases(found),
    ]
    title = html.escape(f"Study {Path(folder).absolute().name}")
    body = f"<h1>{title}</h1>\n" + "\n".join(part for part in parts if part)
    head = f'<meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>\n{body}\n</body></html>\n'


def _summary(folder: str | Path) -> str:
    known = status(folder)
    names = ("cases", "done", "failed", "to_do", "seconds_a_case", "peak_mb")
    cells = [{"": name.replace("_", " "), "value": known[name]} for name in names]
    return _table(cells)


def _means(found: Sequence[Mapping[str, Any]], shown: str) -> str:
    settings, facts = varying(found)
    by = settings or facts[:1]
    others = [name for name in numbers(found) if name != shown][: SHOWN - 1]
    lines = means(found, by, (shown, *others))
    lines = sorted(lines, key=lambda row: (row[shown] is None, row[shown]))
    return "<h2>Means over the cases, by setting</h2>" + _table(lines[:MOST_ROWS])


def _drawn(found: Sequence[Mapping[str, Any]], shown: str) -> list[str]:
    return [
        f"<h2>{TITLES[name]}</h2>{_image(drawn(figure, 'png'), name)}"
        for name, figure in figures(found, shown).items()
    ]


def _examples(folder: Path, found: Sequence[Mapping[str, Any]], shown: str) -> list[str]:
    """Show the best, the median and the worst case that left a prior."""
    kept = [r for r in found if "prior" in r["artefacts"] and value_of(r, shown) is not None]
    kept.sort(key=lambda record: value_of(record, shown))
    if not kept:
        return []
    chosen = {"Best": kept[0], "Median": kept[len(kept) // 2], "Worst": kept[-1]}
    return [_example(folder, word, record, shown) for word, record in chosen.items()]


def _example(folder: Path, word: str, record: Mapping[str, Any], shown: str) -> str:
    from ..preview.page import preview
    from ..prior.boundary import BoundaryPrior

    name = html.escape(record["case"])
    head = f"<h2>{word}: {name}, {shown} {_text(value_of(record, shown))}</h2>"
    try:
        picture = preview(BoundaryPrior.read(folder / record["artefacts"]["prior"]["path"]))
    except InputError as error:
        return head + f'<p class="failed">{html.escape(error.line())}</p>'
    return head + _image(picture, name)


def _failures(found: Sequence[Mapping[str, Any]]) -> str:
    failed = [r for r in found if r["state"] == "failed"]
    lines = [{"case": r["case"], "kind": r["fault"]["kind"], "reason": r["fault"]["reason"],
              "peak MB": r["peak_bytes"] // 10**6} for r in failed[:MOST_ROWS]]  # fmt: skip
    return f'<h2 class="failed">{len(failed)} failed</h2>' + _table(lines) if failed else ""


def _cases(found: Sequence[Mapping[str, Any]]) -> str:
    lines = rows(found[:MOST_ROWS])
    for line in lines:
        line.pop("content_sha256", None)
    more = f", the first {MOST_ROWS} of {len(found)}" if len(found) > MOST_ROWS else ""
    return f"<h2>Cases{more}</h2>" + _table(lines)


def _table(lines: Sequence[Mapping[str, Any]]) -> str:
    if not lines:
        return ""
    head = "".join(f"<th>{html.escape(str(name))}</th>" for name in lines[0])
    body = "\n".join(
        "<tr>" + "".join(f"<td>{_text(value)}</td>" for value in line.values()) + "</tr>"
        for line in lines
    )
    return f"<table><tr>{head}</tr>\n{body}</table>"


def _text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else html.escape(str(value))


def _image(data: bytes, name: str) -> str:
    text = base64.b64encode(data).decode()
    return f'<figure><img alt="{name}" src="data:image/png;base64,{text}"></figure>'
