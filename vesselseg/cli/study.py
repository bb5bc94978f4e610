"""The verbs of ``vesselseg study``: thin shells over ``vesselseg.study``."""

from __future__ import annotations

import json
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

from .. import device
from ..errors import DataError, StudyFailed
from .options import Options, command
from .terminal import Terminal, show, stdout_text

if TYPE_CHECKING:
    from ..fields import Progress
    from ..study import Engine, Summary
    from ..study.runner import Watch

LISTED = 20
LIVE_ROWS = 8
LINES = 20


def run(terminal: Terminal, options: Options) -> int:
    """Run a study file; the same command goes on where it was stopped."""
    from .. import study
    from ..study.plan import refuse_inside_inputs

    asked = study.read_study(options.file, options.set or [])
    refuse_inside_inputs(asked, options.output, options.file.parent)
    engine = engine_of(options, asked.threads)
    if options.dry_run:
        from ..study.plan import check
        from ..study.space import size

        check(asked)
        points = size(asked.space, asked.points, asked.search)
        plan = {"points": points, "engine": engine.name, "workers": engine.workers}
        show({**plan, "study": asked.model_dump(mode="json")}, True, str)
        return 0
    with watching(terminal, engine) as (progress, watch):
        summary = study.run(
            asked,
            options.output,
            engine=engine,
            force_new=options.force_new,
            progress=progress,
            watch=watch,
        )
    return ended(terminal, options, summary, options.output)


def resume(terminal: Terminal, options: Options) -> int:
    """Go on with a study that was stopped."""
    return _again(terminal, options, retry=False)


def retry(terminal: Terminal, options: Options) -> int:
    """Try the failed cases of a study again, and go on with it."""
    return _again(terminal, options, retry=True)


def _again(terminal: Terminal, options: Options, *, retry: bool) -> int:
    from .. import study

    engine = engine_of(options, 1)
    with watching(terminal, engine) as (progress, watch):
        summary = study.resume(
            options.folder, retry=retry, engine=engine, progress=progress, watch=watch
        )
    return ended(terminal, options, summary, options.folder)


def status(terminal: Terminal, options: Options) -> None:
    """Say how far a study is, and which cases failed."""
    from ..study import results

    found = results.status(options.folder)
    terminal.warn(found["notices"])
    show(found, options.json, lambda: "\n".join(status_lines(found)))


def table(terminal: Terminal, options: Options) -> None:
    """Print the table of a study as CSV, JSON with --json, or write it to a file."""
    from ..study import results

    if options.table is not None:
        path = results.write_table(options.folder, options.table, overwrite=options.overwrite)
        show({"file": str(path)}, options.json, lambda: str(path))
        return
    rows = results.table(options.folder, times=options.times)
    lines = ",\n".join(json.dumps(row) for row in rows)
    stdout_text(f"[\n{lines}\n]" if options.json else results.csv_text(rows).rstrip("\n"))


def plot(terminal: Terminal, options: Options) -> None:
    """Draw the figures of a study, PNG and SVG, into its folder."""
    from .. import study

    paths = study.plot(options.folder, metric=options.metric, x=options.x, y=options.y)
    show({"files": [str(p) for p in paths]}, options.json, lambda: "\n".join(map(str, paths)))


def report(terminal: Terminal, options: Options) -> None:
    """Write the report of a study: one HTML file with figures and example cases."""
    from .. import study

    overwrite = options.overwrite or options.page is None
    path = study.report(options.folder, options.page, metric=options.metric, overwrite=overwrite)
    show({"file": str(path)}, options.json, lambda: str(path))


def tune(terminal: Terminal, options: Options) -> int:
    """Choose settings on the cases of a study file and judge them on those of its [report]."""
    from ..study import tuning

    asked = tuning.read_tuning(options.file, options.set or [])
    engine = engine_of(options, asked.study.threads)
    with watching(terminal, engine) as (progress, watch):
        tuned = tuning.tune(asked, options.output, engine=engine, progress=progress, watch=watch)
    result = tuned.as_dict()
    show(result, options.json, lambda: "\n".join(f"{k:<10} {v}" for k, v in result.items()))
    if tuned.failed:
        fault = f"{tuned.failed} cases failed"
        remedy = "see vesselseg study status of its two studies"
        terminal.error(StudyFailed(fault, path=options.output, remedy=remedy))
    return StudyFailed.exit_code if tuned.failed else 0


def check(terminal: Terminal, options: Options) -> int:
    """Compare the artefacts of a study with their digests: ``vesselseg check DIR``."""
    from ..study import results

    found = results.verified(options.file)
    show(found, options.json, lambda: "\n".join(f"{k:<10} {v}" for k, v in found.items()))
    if found["damaged"]:
        fault = f"{len(found['damaged'])} of {found['done']} cases lack their artefacts"
        remedy = "vesselseg study resume DIR does them again"
        first = found["damaged"][0]
        terminal.error(DataError(fault, path=options.file, found=first, remedy=remedy))
    return 0 if found["ok"] else DataError.exit_code


# --- shared by the verbs -----------------------------------------------------------------------


def engine_of(options: Options, threads: int) -> Engine:
    """Return the engine that the options ask for."""
    from .. import study

    memory = None if options.memory is None else device.parse_bytes(options.memory)
    return study.choose(
        options.engine,
        options.workers,
        threads=threads,
        memory=memory,
        scheduler=options.scheduler,
        queue="slurm" if options.slurm else "pbs" if options.pbs else None,
    )


def described(engine: Engine) -> str:
    """Say where the cases run and how much memory each worker may take."""
    if engine.name == "serial":
        return "study: in this process"
    where = engine.scheduler or engine.queue or "local"
    limit = "" if engine.limit is None else f", at most {engine.limit / 2**30:.1f} GiB each"
    return f"study: {engine.name} ({where}), {engine.workers} workers{limit}"


def ended(terminal: Terminal, options: Options, summary: Summary, folder: Any) -> int:
    """Show what a run left; exit 7 with the list if a case failed."""
    terminal.warn(summary.notices)
    names = [record["case"] for record in summary.failures]
    stale = any("stale" in notice for notice in summary.notices)
    result = {
        "folder": str(folder),
        "cases": summary.cases,
        "done": summary.done,
        "failed": summary.failed,
        "ran": summary.ran,
        "seconds": round(summary.seconds, 2),
        "failures": [
            {"case": r["case"], **r["fault"], "peak_bytes": r["peak_bytes"]}
            for r in summary.failures
        ],
        "warnings": summary.notices,
    }
    show(result, options.json, lambda: "\n".join(result_lines(result)))
    if not (names or stale):
        return 0
    listed = ", ".join(names[:LISTED]) + (", ..." if len(names) > LISTED else "")
    fault = f"{len(names)} of {summary.cases} cases failed" if names else "results are stale"
    remedy = "vesselseg study retry DIR tries them again" if names else "begin anew: --force-new"
    terminal.error(StudyFailed(fault, path=folder, found=listed or None, remedy=remedy))
    return StudyFailed.exit_code


def result_lines(result: Mapping[str, Any]) -> list[str]:
    """Render what a run left."""
    head = "{folder}: {done} of {cases} done, {failed} failed; {ran} now, {seconds:.0f} s"
    return [head.format(**result), *failure_lines(result["failures"])]


def failure_lines(failures: Sequence[Mapping[str, Any]]) -> list[str]:
    """Render failed cases, one a line."""
    lines = []
    for failed in failures:
        text = failed.get("reason") or failed.get("fault")
        lines.append(f"failed  {failed['case']}  {text}")
    return lines


def status_lines(found: Mapping[str, Any]) -> list[str]:
    """Render a status."""
    names = ("cases", "done", "failed", "missing", "to_do", "seconds_a_case", "peak_mb")
    values = {name: found[name] for name in names if found[name] is not None}
    lines = [f"{k.replace('_', ' '):<15} {v:.3g}" if isinstance(v, float) else
             f"{k.replace('_', ' '):<15} {v}" for k, v in values.items()]  # fmt: skip
    return lines + failure_lines(found["failures"])


@contextmanager
def watching(terminal: Terminal, engine: Engine) -> Iterator[tuple[Progress, Watch]]:
    """Give the callbacks of a running study: a bar and a live table on a terminal, else lines."""
    if terminal.quiet:
        yield (lambda stage, fraction, message: None), (lambda record: None)
    elif sys.stderr is not None and sys.stderr.isatty():
        with _live(described(engine)) as callbacks:
            yield callbacks
    else:
        yield _lines(terminal, described(engine)), (lambda record: None)


def _lines(terminal: Terminal, title: str) -> Progress:
    """Say where it runs, then every twentieth of the study, or every case if verbose."""
    said = 0

    def progress(stage: str, fraction: float, message: str) -> None:
        nonlocal said
        if not said:
            terminal.say(title)
        if terminal.verbose or fraction * LINES >= said + 1 or not said:
            said = max(int(fraction * LINES), 1)
            terminal.say(f"{stage}: {message}")

    return progress


@contextmanager
def _live(title: str) -> Iterator[tuple[Progress, Watch]]:
    from rich.console import Console, Group
    from rich.live import Live
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars
    from rich.table import Table

    bars = Bars(BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    task = bars.add_task(title, total=1.0)
    last: deque[Mapping[str, Any]] = deque(maxlen=LIVE_ROWS)

    def shown() -> Group:
        names = list(last[-1]["metrics"])[:4] if last else []
        table = Table("case", "state", *names, "s")
        for record in last:
            cells = [_short(record["metrics"].get(name)) for name in names]
            table.add_row(record["case"], record["state"], *cells,
                          f"{sum(record['seconds'].values()):.2f}")  # fmt: skip
        return Group(table, bars) if last else Group(bars)

    with Live(shown(), console=Console(stderr=True), refresh_per_second=4) as live:

        def progress(stage: str, fraction: float, message: str) -> None:
            bars.update(task, completed=fraction, description=message.partition(";")[0])

        def watch(record: Mapping[str, Any]) -> None:
            last.append(record)
            live.update(shown())

        yield progress, watch


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


ENGINE = "engine workers scheduler slurm pbs memory json"
TABLE: dict[Callable[[Terminal, Options], int | None], str] = {
    run: f"file output set force_new dry_run {ENGINE}",
    resume: f"folder {ENGINE}",
    retry: f"folder {ENGINE}",
    status: "folder json",
    table: "folder table times overwrite json",
    plot: "folder metric x y json",
    report: "folder page metric overwrite json",
    tune: f"file output set {ENGINE}",
}


def register(app: typer.Typer) -> None:
    """Add ``study`` and its verbs to the application."""
    group = typer.Typer(help="Run, watch and report a study: many cases, many settings.")
    for verb, options in TABLE.items():
        group.command(verb.__name__)(command(verb, options))
    app.add_typer(group, name="study")
