"""What a study found: status, table, CSV and Parquet, means by setting.

Reads the ledger alone and imports nothing heavy: ten thousand cases take less than a second.
"""

from __future__ import annotations

import csv
import io
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, EnvironmentFault
from .ledger import Ledger, intact
from .runner import open_study
from .space import nearest

if TYPE_CHECKING:
    import pandas

Row = dict[str, Any]

FORMULA = ("=", "+", "-", "@", "\t", "\r")
VOLATILE = ("seconds", "peak_mb", "attempt", "worker")


def records(folder: str | Path) -> tuple[list[Row], list[str]]:
    """Return what counts of every case, by index, and the notices of the ledger."""
    opened = open_study(Path(folder))
    ledger = Ledger(opened.folder)
    ledger.refresh()
    return list(ledger.outcomes()), ledger.notices


def status(folder: str | Path) -> dict[str, Any]:
    """Return how far a study is: counts, failures with their reasons, memory, seconds a case.

    Raises
    ------
    DataError
        No study there, or a damaged ledger.
    """
    opened = open_study(Path(folder))
    found, notices = records(folder)
    counts = Counter(record["state"] for record in found)
    done = [record for record in found if record["state"] == "done"]
    seconds = [sum(record["seconds"].values()) for record in done]
    return {
        "folder": str(folder),
        "cases": opened.cases,
        "done": counts["done"],
        "failed": counts["failed"],
        "missing": counts["missing"],
        "to_do": opened.cases - counts["done"] - counts["failed"],
        "failures": [{"case": r["case"], **r["fault"]} for r in found if r["state"] == "failed"],
        "seconds_a_case": statistics.median(seconds) if seconds else None,
        "peak_mb": max((r["peak_bytes"] for r in found), default=0) // 10**6,
        "notices": notices,
    }


def verified(folder: str | Path) -> dict[str, Any]:
    """Compare every artefact with the digest in the ledger.

    Returns
    -------
    dict
        ``file, ok, done`` and ``damaged``: the cases whose artefacts are gone or changed.
    """
    found, _ = records(folder)
    done = [record for record in found if record["state"] in ("done", "missing")]
    damaged = [record["case"] for record in done if not intact(Path(folder), record)]
    return {"file": str(folder), "ok": not damaged, "done": len(done), "damaged": damaged}


def table(folder: str | Path, *, times: bool = False) -> list[Row]:
    """Return one row a case: what it was, its settings, its metrics; equal on every engine.

    Parameters
    ----------
    times : bool
        Also what differs from run to run: seconds, peak memory, attempts, worker.
    """
    return rows(records(folder)[0], times=times)


def rows(found: Iterable[Mapping[str, Any]], *, times: bool = False) -> list[Row]:
    """Return the rows of records; every row has every column."""
    made = [_row(record, times) for record in found]
    names = dict.fromkeys(name for row in made for name in row)
    last = ("content_sha256", "reason", *VOLATILE)
    order = [n for n in names if n not in last] + [n for n in last if n in names]
    return [{name: row.get(name) for name in order} for row in made]


def _row(record: Mapping[str, Any], times: bool) -> Row:
    row = {
        "case": record["case"],
        "state": record["state"],
        **record["facts"],
        **{name: _cell(value) for name, value in record["parameters"].items()},
        **record["metrics"],
        "content_sha256": record["content_sha256"],
        "reason": (record["fault"] or {}).get("reason"),
    }
    if times:
        seconds = record["seconds"].get("stage")
        peak = round(record["peak_bytes"] / 1e6, 1)
        row |= dict(zip(VOLATILE, (seconds, peak, record.get("attempt"), record["worker"]),
                        strict=True))  # fmt: skip
    return row


def _cell(value: Any) -> Any:
    return ":".join(map(str, value)) if isinstance(value, list | tuple) else value


def frame(folder: str | Path, *, times: bool = True) -> pandas.DataFrame:
    """Return the table as a pandas frame (extra ``study``)."""
    return _pandas().DataFrame(table(folder, times=times))


def csv_text(made: Sequence[Row]) -> str:
    """Render rows as CSV; text that a spreadsheet would run as a formula is escaped (B195)."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = list(made[0]) if made else ["case", "state"]
    writer.writerow([_escaped(name) for name in names])
    writer.writerows([_escaped(row[name]) for name in names] for row in made)
    return text.getvalue()


def _escaped(value: Any) -> Any:
    return "'" + value if isinstance(value, str) and value.startswith(FORMULA) else value


def write_table(folder: str | Path, path: str | Path, *, overwrite: bool = True) -> Path:
    """Write the table, with times, as ``.csv`` or ``.parquet``.

    Raises
    ------
    ConfigError
        Another ending.
    EnvironmentFault
        Parquet without the extra ``study``.
    """
    from ..io.atomic import write_bytes

    target = Path(path)
    if target.suffix == ".csv":
        data = csv_text(table(folder, times=True)).encode()
    elif target.suffix == ".parquet":
        data = parquet_bytes(folder)
    else:
        raise ConfigError("unknown format of a table", path=target, need=".csv or .parquet")
    write_bytes(target, data, overwrite=overwrite)
    return target


def parquet_bytes(folder: str | Path) -> bytes:
    """Return the table as Parquet."""
    made = frame(folder)
    mixed = [n for n in made.columns if made[n].map(type).nunique() > 1 and made[n].dtype == object]
    for name in mixed:  # a column of numbers and words
        if not all(v is None or isinstance(v, str) for v in made[name]):
            made[name] = made[name].map(lambda v: v if v is None else str(v))
    buffer = io.BytesIO()
    made.to_parquet(buffer, index=False)
    return buffer.getvalue()


def _pandas() -> Any:
    try:
        import pandas
        import pyarrow  # noqa: F401 - the format of Parquet
    except ImportError:
        remedy = "pip install 'vesselseg[study]', or write .csv"
        raise EnvironmentFault("pandas and pyarrow are missing", remedy=remedy) from None
    return pandas


def varying(found: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[str]]:
    """Return the names of settings and of facts that take more than one value; not the draw."""
    parts = []
    for part in ("parameters", "facts"):
        values: dict[str, set[str]] = {}
        for record in found:
            for name, value in record[part].items():
                values.setdefault(name, set()).add(repr(value))
        parts.append([name for name, seen in values.items() if len(seen) > 1 and name != "draw"])
    return parts[0], parts[1]


def value_of(record: Mapping[str, Any], name: str) -> Any:
    """Return a fact, a setting, a metric or the stage's seconds of a record; None if not there."""
    if name == "seconds":
        return record["seconds"].get("stage")
    for part in ("parameters", "facts", "metrics"):
        if name in record[part]:
            return _cell(record[part][name])
    return None


def means(found: Sequence[Mapping[str, Any]], by: Sequence[str], names: Sequence[str]) -> list[Row]:
    """Return the mean of some figures over the done cases of each group, in order of appearance."""
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for record in found:
        groups.setdefault(tuple(value_of(record, name) for name in by), []).append(record)
    result = []
    for key, members in groups.items():
        done = [record for record in members if record["state"] == "done"]
        row: Row = dict(zip(by, key, strict=True))
        row |= {"cases": len(members), "failed": sum(r["state"] == "failed" for r in members)}
        for name in names:
            values = [v for r in done if _is_number(v := value_of(r, name))]
            row[name] = statistics.fmean(values) if values else None
        result.append(row)
    return result


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def numbers(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names of the metrics that are numbers, in order of appearance."""
    names: dict[str, None] = {}
    for record in found:
        names |= dict.fromkeys(n for n, v in record["metrics"].items() if _is_number(v))
    return list(names)


def headline(found: Sequence[Mapping[str, Any]], wanted: str | None = None) -> str:
    """Return the metric to show: the one asked for, else the wall's rms, else the first.

    Raises
    ------
    ConfigError
        No such metric, or none at all.
    """
    known = numbers(found)
    if wanted is not None and wanted not in known:
        raise ConfigError("unknown metric", found=wanted, remedy=nearest(wanted, known))
    if not known:
        raise ConfigError("no case has a figure yet", remedy="run the study first")
    return wanted or ("rms_voxel" if "rms_voxel" in known else known[0])
