"""The engine ``dask``: a local cluster, a scheduler that runs already, or jobs of a queue."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import dask
import distributed

from ..errors import EnvironmentFault
from .engines import ATTEMPTS, Each, Engine, Results, _environment, visible_gpus, worker_environment
from .perform import Record, Work, failure, perform
from .plan import Job

CONNECT_SECONDS = 20.0
STARTUP_SECONDS = 120.0
LOOPBACK = "127.0.0.1:0"  # any free port; None would be 8787, seen by everyone, once a machine
QUEUE_MEMORY = 4 * 2**30


@contextmanager
def connected(engine: Engine, work: Work) -> Iterator[Each]:
    """Start or join a cluster and give ``each(jobs)``."""
    with _settled(work), _quiet(), _client(engine, work) as client:
        yield lambda jobs: _each(client, work, jobs)


def _each(client: Any, work: Work, jobs: Iterator[Job]) -> Results:
    """Keep one job on each thread of the cluster, as it is now; never a queue on a worker.

    A worker that dies takes only the job it works on with it.
    """
    running: dict[Any, Job] = {}
    done = distributed.as_completed()
    peak = 0
    try:
        while True:
            free = max(1, sum(client.nthreads().values())) - len(running)
            for _ in range(free):
                if (job := next(jobs, None)) is None:
                    break
                future = client.submit(_run, work, job, pure=False, key=f"{job.name}-{job.id}")
                running[future] = job
                done.add(future)
            if not running:
                return
            peak = max(peak, _memory(client))
            future = next(done)
            job = running.pop(future)
            yield job, _outcome(future, job, peak)
    finally:
        for future in running:
            future.cancel()


def _run(work: Work, job: Job) -> Record:
    """Do a job on a worker."""
    gpus = visible_gpus()
    if len(gpus) > 1:
        place = distributed.get_worker().name
        number = place if isinstance(place, int) else hash(place)
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[number % len(gpus)]
    return perform(work, job)


def _outcome(future: Any, job: Job, peak: int) -> Record:
    try:
        return {**future.result(), "attempt": 1}
    except distributed.KilledWorker:
        reason = "the worker was killed (signal 9? memory?)"
        return {**failure(job, "killed", reason, peak), "attempt": ATTEMPTS}


def _memory(client: Any) -> int:
    """Return the largest memory that a worker reports."""
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    return max((int(w.get("metrics", {}).get("memory", 0)) for w in workers), default=0)


@contextmanager
def _client(engine: Engine, work: Work) -> Iterator[Any]:
    if engine.scheduler is not None:
        try:
            with distributed.Client(engine.scheduler, timeout=CONNECT_SECONDS) as client:
                yield client
        except (OSError, ValueError) as error:
            remedy = "check the address: dask scheduler prints it"
            fault = f"no Dask scheduler: {error}"
            raise EnvironmentFault(fault, path=engine.scheduler, remedy=remedy) from None
        return
    with _cluster(engine, work) as cluster, distributed.Client(cluster) as client:
        if engine.queue is None:
            client.wait_for_workers(engine.workers, timeout=STARTUP_SECONDS)
        try:
            yield client
        except BaseException:  # also Ctrl-C: nobody waits for cases in hand
            _kill(cluster)
            raise


def _cluster(engine: Engine, work: Work) -> Any:
    if engine.queue is not None:
        return _queued(engine, work)
    return distributed.LocalCluster(
        n_workers=engine.workers,
        threads_per_worker=1,
        processes=True,
        host="127.0.0.1",
        dashboard_address=LOOPBACK,
        worker_dashboard_address=LOOPBACK,
        memory_limit=engine.limit,
        silence_logs=logging.ERROR,
    )


def _kill(cluster: Any) -> None:
    """Stop the local workers at once: a graceful end waits for what they do."""
    for nanny in cluster.workers.values():
        nanny.auto_restart = False
        if pid := getattr(nanny, "pid", None):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _queued(engine: Engine, work: Work) -> Any:
    """Return a cluster whose workers are jobs of SLURM or PBS, one thread and process each."""
    try:
        import dask_jobqueue
    except ImportError:
        remedy = "pip install 'vesselseg[cluster]'"
        raise EnvironmentFault("dask-jobqueue is not installed", remedy=remedy) from None
    slurm = engine.queue == "slurm"
    kind = dask_jobqueue.SLURMCluster if slurm else dask_jobqueue.PBSCluster
    exports = [f"export {k}={v}" for k, v in worker_environment(work.study.threads).items()]
    cluster = kind(
        cores=1,
        processes=1,
        scheduler_options={"dashboard_address": LOOPBACK},
        job_cpu=work.study.threads,
        memory=f"{(engine.memory or QUEUE_MEMORY) // 2**20}MiB",
        job_script_prologue=[*exports, "unset MALLOC_TRIM_THRESHOLD_"],
    )
    cluster.scale(jobs=engine.workers)
    return cluster


@contextmanager
def _settled(work: Work) -> Iterator[None]:
    """Set what Dask reads when a cluster starts, and put everything back.

    Its nanny makes the allocator give memory back after every array, which costs a stencil code a
    factor of 5 to 10: the variable is dropped. ``config.set`` merges and cannot.
    """
    own = worker_environment(work.study.threads)
    nanny = dask.config.config["distributed"]["nanny"]
    before = nanny["pre-spawn-environ"]
    kept = {k: v for k, v in before.items() if k != "MALLOC_TRIM_THRESHOLD_"}
    nanny["pre-spawn-environ"] = kept | own
    settings = {
        "distributed.scheduler.allowed-failures": ATTEMPTS - 1,
        "distributed.scheduler.worker-saturation": 1.0,
        "distributed.worker.profile.enabled": False,
    }
    variables = own | dict.fromkeys(["MALLOC_TRIM_THRESHOLD_"], "")
    try:
        with _environment(variables), dask.config.set(settings):
            os.environ.pop("MALLOC_TRIM_THRESHOLD_")
            yield
    finally:
        nanny["pre-spawn-environ"] = before


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Dask's log of dying workers off the terminal: the ledger says it better."""
    logs = [logging.getLogger(f"distributed{part}") for part in ("", ".nanny", ".scheduler")]
    levels = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.CRITICAL)
    with contextlib.ExitStack() as stack:
        for log, level in zip(logs, levels, strict=True):
            stack.callback(log.setLevel, level)
        yield
