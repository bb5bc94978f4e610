"""Where cases run: in this process, in worker processes, or on Dask. All give the same results.

An engine is a context that gives ``each(jobs) -> (job, record)``. It asks for the next job only
when a worker is free, so a runner claims no case that nobody works on; a worker that dies is
replaced and its case tried once more.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Literal

from .. import device
from ..errors import ConfigError, EnvironmentFault
from .perform import WORKER, Record, Work, failure, peak_bytes, perform
from .plan import Job

Results = Iterator[tuple[Job, Record]]
Each = Callable[[Iterator[Job]], Results]
Name = Literal["serial", "processes", "dask"]

ENGINES = ("serial", "processes", "dask")
ATTEMPTS = 2
POLL_SECONDS = 0.25
GRACE_SECONDS = 2.0
THREADS = ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
PARENT_DEATH = 1  # PR_SET_PDEATHSIG of Linux
QUEUES = ("slurm", "pbs")


@dataclass(frozen=True)
class Engine:
    """Which engine, and how much of it.

    Parameters
    ----------
    name : {"serial", "processes", "dask"}
    workers : int
        Local processes, or jobs of a queue.
    memory : int, optional
        Bytes a worker may take; default: an equal share of what is free.
    scheduler : str, optional
        Address of a Dask scheduler that runs already.
    queue : {"slurm", "pbs"}, optional
        Start Dask workers as jobs of this queue; account, partition and time limit come from
        Dask's own configuration file.
    """

    name: Name
    workers: int = 1
    memory: int | None = None
    scheduler: str | None = None
    queue: Literal["slurm", "pbs"] | None = None

    @property
    def limit(self) -> int | None:
        """Bytes that one worker may take; None in this process, which is not ours to limit."""
        if self.memory is not None or self.name == "serial" or self.scheduler or self.queue:
            return self.memory
        return device.available_bytes() // max(self.workers, 1)


def choose(
    name: str | None = None,
    workers: int | None = None,
    *,
    threads: int = 1,
    memory: int | None = None,
    scheduler: str | None = None,
    queue: str | None = None,
) -> Engine:
    """Apply the rule: 0 workers is serial; Dask where it is installed; else local processes.

    Raises
    ------
    ConfigError
        Unknown engine, or options that contradict each other.
    EnvironmentFault
        Dask is asked for and missing.
    """
    if name is not None and name not in ENGINES:
        raise ConfigError("unknown engine", found=name, need=" or ".join(ENGINES))
    if queue is not None and queue not in QUEUES:
        raise ConfigError("unknown queue", found=queue, need=" or ".join(QUEUES))
    if (scheduler or queue) and (name not in (None, "dask") or workers == 0):
        raise ConfigError("a scheduler or a queue needs the engine dask", found=name or "serial")
    if scheduler and queue:
        raise ConfigError("both a scheduler and a queue", remedy="leave out one of them")
    if workers == 0 and name not in (None, "serial"):
        raise ConfigError(f"engine {name} without workers", need="--workers 1 or more")
    present = importlib.util.find_spec("distributed") is not None
    if name is None:
        name = (
            "serial" if workers == 0 else "dask" if present or scheduler or queue else "processes"
        )
    if name == "dask" and not present:
        remedy = "pip install 'vesselseg[cluster]', or --engine processes"
        raise EnvironmentFault("Dask is not installed", remedy=remedy)
    count = 1 if name == "serial" else workers or max(1, device.cores() // threads)
    return Engine(name, count, memory, scheduler, queue)  # type: ignore[arg-type]


def start(engine: Engine, work: Work) -> AbstractContextManager[Each]:
    """Start the workers; leaving the context stops them within seconds, whatever they do."""
    if engine.name == "dask":
        return _dask(engine, work)
    return _serial(work) if engine.name == "serial" else _processes(engine, work)


@contextmanager
def _serial(work: Work) -> Iterator[Each]:
    def each(jobs: Iterator[Job]) -> Results:
        for job in jobs:
            yield job, {**perform(work, job), "attempt": 1}

    yield each


class _Worker:
    """A process of its own, its pipe, and what it works on."""

    def __init__(self, number: int, work: Work) -> None:
        self.number, self.work = number, work
        self.job: Job | None = None
        self.attempt = 0
        self.peak = 0
        self._spawn()

    def _spawn(self) -> None:
        # Spawned, never forked: numba, torch and HDF5 do not survive a fork.
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        with _environment(worker_environment(self.work.study.threads, self.number)):
            self.process = context.Process(target=_serve, args=(theirs, self.work), daemon=True)
            self.process.start()
        theirs.close()

    def give(self, job: Job, attempt: int = 1) -> None:
        self.job, self.attempt, self.peak = job, attempt, 0
        with contextlib.suppress(OSError):  # dead already: its pipe says so next
            self.pipe.send(job)

    def take(self) -> Record | None:
        """Return the record of the finished job; None if the job begins again elsewhere."""
        job = self.job
        assert job is not None
        try:
            record: Record = self.pipe.recv()
        except (EOFError, OSError):
            self.stop()
            code = self.process.exitcode or 0
            self._spawn()
            if self.attempt < ATTEMPTS:
                self.give(job, self.attempt + 1)
                return None
            record = failure(job, "killed", obituary(code), self.peak)
        self.job = None
        return {**record, "attempt": self.attempt}

    def watch(self) -> None:
        """Remember the peak memory, for a dead process no longer tells."""
        self.peak = max(self.peak, peak_bytes(self.process.pid or 0))

    def stop(self) -> None:
        self.pipe.close()
        self.process.kill()
        self.process.join(GRACE_SECONDS)


def obituary(code: int) -> str:
    """Say how a worker died."""
    if code < 0:
        return f"killed by signal {-code}" + (" (memory?)" if code == -signal.SIGKILL else "")
    return f"the worker ended with code {code}"


@contextmanager
def _processes(engine: Engine, work: Work) -> Iterator[Each]:
    workers = [_Worker(number, work) for number in range(engine.workers)]

    def each(jobs: Iterator[Job]) -> Results:
        free = list(workers)
        while True:
            for worker in free:
                if (job := next(jobs, None)) is not None:
                    worker.give(job)
            busy = {worker.pipe: worker for worker in workers if worker.job is not None}
            if not busy:
                return
            ready: list[Any] = wait(list(busy), POLL_SECONDS)
            free = []
            for worker in busy.values():
                worker.watch()
            for pipe in ready:
                worker = busy[pipe]
                job = worker.job
                record = worker.take()
                if record is not None and job is not None:
                    free.append(worker)
                    yield job, record

    try:
        yield each
    finally:
        for worker in workers:
            worker.stop()


def _serve(pipe: Connection, work: Work) -> None:
    """Do jobs until the runner is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the runner decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(PARENT_DEATH, signal.SIGKILL)  # a killed runner leaves no worker
    device.quiet_threads()
    with contextlib.suppress(EOFError, OSError):
        while True:
            pipe.send(perform(work, pipe.recv()))


def worker_environment(threads: int, number: int | None = None) -> dict[str, str]:
    """Return the variables of a worker: its threads, and one GPU each where there are several."""
    variables = dict.fromkeys(THREADS, str(threads)) | {WORKER: "1"}
    gpus = visible_gpus()
    if number is not None and len(gpus) > 1:
        variables["CUDA_VISIBLE_DEVICES"] = gpus[number % len(gpus)]
    return variables


def visible_gpus() -> list[str]:
    """Return the indices of the GPUs that may be used."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [part for part in given.split(",") if part]
    return [str(n) for n in range(len(device.gpus()))]


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Set variables for children that start inside, and put the old ones back."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _dask(engine: Engine, work: Work) -> Iterator[Each]:
    from .on_dask import connected

    with connected(engine, work) as each:
        yield each
