"""Running a study: its folder, what is left to do, and the loop that a kill cannot spoil."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import Busy, ConfigError, DataError, EnvironmentFault
from ..fields import Progress, silent
from ..io.atomic import TEMP, check_folder, write_bytes
from . import engines
from .claims import NAME as CLAIMS
from .claims import Claims
from .engines import Engine
from .ledger import Ledger, intact
from .perform import Record, Work
from .plan import (
    Expansion,
    Job,
    Study,
    check,
    refuse_while_loading,
    stage_digest,
    study_from,
)
from .sources import file_digest, inputs, resolved
from .space import rounds, size

FILE = "study.json"
SCHEMA = "vesselseg-study 1"
FOLDERS = ("ledger", "cases", "phantoms")
WAIT_SECONDS = 0.2

Watch = Callable[[Record], None]


@dataclass(frozen=True)
class Opened:
    """A study in its folder.

    Parameters
    ----------
    study : Study
        With the names of its files resolved.
    folder : Path
    inputs : mapping
        Digest of each file when the study began.
    cases : int
        How many there are.
    """

    study: Study
    folder: Path
    inputs: Mapping[str, str]
    cases: int


@dataclass
class Summary:
    """What a run left.

    Parameters
    ----------
    cases : int
        Of the whole study.
    done, failed : int
        Of the whole study.
    ran : int
        Cases that this run did.
    failures : list of record
    seconds : float
    notices : list of str
        What the user should know: torn lines, changed inputs, missing locks.
    """

    cases: int
    done: int = 0
    failed: int = 0
    ran: int = 0
    failures: list[Record] = field(default_factory=list)
    seconds: float = 0.0
    notices: list[str] = field(default_factory=list)


def run(
    study: Study | Mapping[str, Any],
    folder: str | Path,
    *,
    engine: Engine | None = None,
    force_new: bool = False,
    progress: Progress = silent,
    watch: Watch | None = None,
) -> Summary:
    """Run a study, or go on with it where its folder holds it already.

    Parameters
    ----------
    study : Study or mapping of its fields
    folder : path
        Made if it is missing.
    engine : Engine, optional
        See ``engines.choose``; default: in this process.
    force_new : bool
        Delete what the folder holds of another study.
    progress : callable
    watch : callable
        Called with the record of each case that ends.

    Returns
    -------
    Summary
        Cases may have failed; it is not an error here.

    Raises
    ------
    ConfigError, DataError
        The study cannot be run, or is not the one that the folder holds.
    EnvironmentFault
        Disk full, or no folder; what is done stays done, and ``resume`` goes on.
    """
    refuse_while_loading()
    asked = study if isinstance(study, Study) else study_from(study)
    opened = prepare(asked, Path(folder), force_new=force_new)
    return _go(opened, engine, progress, watch, again=False)


def resume(
    folder: str | Path,
    *,
    retry: bool = False,
    engine: Engine | None = None,
    progress: Progress = silent,
    watch: Watch | None = None,
) -> Summary:
    """Go on with a study; with ``retry`` its failed cases are tried again.

    Raises
    ------
    DataError
        No study there, or code, version or settings differ from those it began with.
    """
    refuse_while_loading()
    return _go(open_study(Path(folder), same=True), engine, progress, watch, again=retry)


def prepare(study: Study, folder: Path, *, force_new: bool = False) -> Opened:
    """Check a study and write ``study.json``, or find it there as it is."""
    check(study)
    study = study.model_copy(update={"cases": resolved(study.cases)})
    digests = inputs(study.cases)
    count = len(Expansion(study, folder, digests).sources) * size(
        study.space, study.points, study.search
    )
    content = {
        "study": study.model_dump(mode="json"),
        "inputs": digests,
        "cases": count,
        **circumstances(study),
    }
    facts = {"schema": SCHEMA, "hash": _hash(content), **content}
    check_folder(folder)
    if force_new:
        _clear(folder)
    elif (folder / FILE).exists():
        _same(facts, _read(folder), folder)
    elif _strangers(folder):
        remedy = "choose an empty or a new folder"
        raise ConfigError("folder holds something else", path=folder, remedy=remedy)
    if not (folder / FILE).exists():
        write_bytes(folder / FILE, (json.dumps(facts, indent=1) + "\n").encode())
    for name in FOLDERS:
        check_folder(folder / name)
    return Opened(study, folder, digests, count)


def _strangers(folder: Path) -> bool:
    """Whether a folder holds what no study makes; another runner may be making it just now."""
    names = [path.name for path in folder.iterdir()]
    return any(n not in (*FOLDERS, FILE, CLAIMS) and not TEMP.fullmatch(n) for n in names)


def circumstances(study: Study) -> dict[str, Any]:
    """Return what results depend on beside the study: version, code, device."""
    return {"version": __version__, "code": stage_digest(study), "device": _device(study)}


def _device(study: Study) -> str:
    from ..device import choose

    return choose(str(study.config.get("device", "auto"))).name


def _hash(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _read(folder: Path) -> dict[str, Any]:
    path = folder / FILE
    try:
        tree = json.loads(path.read_text())
    except FileNotFoundError:
        fault = "not a study" if folder.is_dir() else "no such folder"
        remedy = "vesselseg study run FILE.toml -o DIR makes one"
        raise DataError(fault, path=folder, remedy=remedy) from None
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read the study: {error}", path=path) from None
    schema = tree.get("schema") if isinstance(tree, dict) else None
    if schema != SCHEMA:
        remedy = "take the version of vesselseg that made it"
        raise DataError("unknown schema", path=path, found=schema, need=SCHEMA, remedy=remedy)
    return dict(tree)


def open_study(folder: Path, *, same: bool = False) -> Opened:
    """Open the study of a folder.

    Parameters
    ----------
    same : bool
        Also require that code, version and device are those it began with.
    """
    tree = _read(folder)
    content = {k: v for k, v in tree.items() if k not in ("schema", "hash")}
    if not same:
        return Opened(Study.model_construct(**tree["study"]), folder, tree["inputs"], tree["cases"])
    study = study_from(tree["study"], folder / FILE)
    now = {**content, **circumstances(study)}
    _same({**tree, **now, "hash": _hash(now)}, tree, folder)
    return Opened(study, folder, tree["inputs"], tree["cases"])


def _same(now: Mapping[str, Any], held: Mapping[str, Any], folder: Path) -> None:
    if now["hash"] == held.get("hash"):
        return
    which = [name for name in ("version", "code", "device", "inputs") if now[name] != held[name]]
    other = [k for k, v in now["study"].items() if v != held["study"].get(k)]
    what = ", ".join([*other, *which]) or "study.json was edited"
    remedy = "take another folder, or --force-new to delete what is there"
    found, need = f"{now['hash']} ({what})", held.get("hash")
    raise DataError("config hash differs", path=folder, found=found, need=need, remedy=remedy)


def _clear(folder: Path) -> None:
    """Delete a study, and nothing else."""
    if not (folder / FILE).exists():
        return
    with Claims(folder) as claims:
        if not claims.idle():
            raise Busy("a runner works on this study", path=folder, remedy="stop it first")
        (folder / FILE).unlink()
        for name in FOLDERS:
            shutil.rmtree(folder / name, ignore_errors=True)


def _go(
    opened: Opened, engine: Engine | None, progress: Progress, watch: Watch | None, *, again: bool
) -> Summary:
    study, folder = opened.study, opened.folder
    engine = engine or engines.choose("serial", 0)
    work = Work(study, str(folder.absolute()), engine.limit)
    begin = time.perf_counter()
    expansion = Expansion(study, folder.absolute(), opened.inputs)
    summary = Summary(opened.cases)
    tell = _Teller(summary, progress, watch, begin)
    with Ledger(folder) as ledger, Claims(folder) as claims, engines.start(engine, work) as each:
        loop = _Loop(ledger, claims, each, tell, again)
        asked = rounds(study.space, study.points, study.search, study.seed)
        points = next(asked, None)
        while points is not None:
            jobs = expansion.jobs(points)
            loop.carry_out(jobs)
            try:
                points = asked.send(objectives(jobs, points, ledger, study.search.objective))
            except StopIteration:
                points = None
        summary.notices += ledger.notices + claims.notices + _changed(opened, ledger)
    finish(summary, ledger)
    summary.seconds = time.perf_counter() - begin
    return summary


@dataclass
class _Teller:
    """Says how far the study is."""

    summary: Summary
    progress: Progress
    watch: Watch | None
    begin: float
    known: int = 0

    def skipped(self, count: int) -> None:
        self.known += count
        if count:
            self.progress("study", self.known / max(self.summary.cases, 1), f"{count} done before")

    def ended(self, record: Record) -> None:
        self.summary.ran += 1
        self.known += 1
        total, ran = max(self.summary.cases, 1), self.summary.ran
        rate = ran / (time.perf_counter() - self.begin)
        left = max(total - self.known, 0) / rate
        text = f"{self.known} of {total}, {rate:.2g}/s, {left:.0f} s left; {record['case']}"
        self.progress("study", min(self.known / total, 1.0), f"{text} {record['state']}")
        if self.watch is not None:
            self.watch(record)


@dataclass
class _Loop:
    """What is left of some jobs: first those without a record, then those whose files are bad."""

    ledger: Ledger
    claims: Claims
    each: engines.Each
    tell: _Teller
    again: bool

    def carry_out(self, jobs: Sequence[Job]) -> None:
        """Do what is to be done; return when no job is left, here or with another runner."""
        before = {job.id: self.ledger.latest(job.id) for job in jobs}
        left = [job for job in jobs if self._open(before[job.id])]
        self.tell.skipped(len(jobs) - len(left))
        self._all(left)
        # Digests take a while, so the workers got their jobs first.
        folder = self.ledger.folder.parent
        bad = [
            job
            for job in jobs
            if (record := before[job.id]) and record["state"] == "done"
            and not intact(folder, record)
        ]  # fmt: skip
        self._all(bad, but={job.id: before[job.id] for job in bad})

    def _open(self, record: Record | None) -> bool:
        if record is None or record["state"] == "missing":
            return True
        return self.again and record["state"] == "failed"

    def _all(self, jobs: Sequence[Job], but: Mapping[str, Record | None] | None = None) -> None:
        known = {job.id: len(self.ledger.records.get(job.id, ())) for job in jobs}
        while jobs:
            held: list[Job] = []
            for job, record in self.each(self._claimed(jobs, known, held)):
                self._record(job, record)
            jobs = held
            if held:
                time.sleep(WAIT_SECONDS)

    def _claimed(
        self, jobs: Sequence[Job], known: Mapping[str, int], held: list[Job]
    ) -> Iterator[Job]:
        """Give the jobs that this runner may do; leave out what another one did meanwhile."""
        for job in jobs:
            if not self.claims.take(job.index):
                held.append(job)
                continue
            self.ledger.refresh()
            if len(self.ledger.records.get(job.id, ())) > known[job.id]:
                self.claims.free(job.index)
                self.tell.skipped(1)
                continue
            yield job

    def _record(self, job: Job, record: Record) -> None:
        if record["state"] == "stopped":
            fault = record["fault"]
            remedy = "free some space, then vesselseg study resume"
            raise EnvironmentFault(fault["fault"], path=fault["path"], found=fault["found"],
                                   need=fault["need"], remedy=remedy)  # fmt: skip
        self.ledger.append(record)
        self.claims.free(job.index)
        self.tell.ended(record)


def objectives(
    jobs: Sequence[Job], points: Sequence[Mapping[str, Any]], ledger: Ledger, name: str
) -> list[float | None]:
    """Return the mean objective of each point over its cases; None if any case failed."""
    sums: list[float | None] = []
    for point in points:
        records = [ledger.latest(job.id) for job in jobs if job.parameters == point]
        values = [r["metrics"].get(name) for r in records if r and r["state"] == "done"]
        good = len(values) == len(records) and None not in values
        sums.append(sum(values) / len(values) if good and values else None)
    return sums


def _changed(opened: Opened, ledger: Ledger) -> list[str]:
    """Return the files that are no longer what the results were made of."""
    notices = []
    for path, digest in opened.inputs.items():
        try:
            same = file_digest(path) == digest
        except DataError:
            same = False
        if not same:
            notices.append(f"{path}: changed or gone since the study began; its results are stale")
    return notices


def finish(summary: Summary, ledger: Ledger) -> None:
    """Count what counts."""
    for record in ledger.outcomes():
        summary.done += record["state"] == "done"
        if record["state"] == "failed":
            summary.failed += 1
            summary.failures.append(record)
