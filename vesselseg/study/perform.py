"""One case, in whichever process: image, start, stage, metrics, and the durable artefacts.

The result is a record of plain values, which the runner writes into its ledger. A worker writes
the artefacts of its case and nothing else.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import resource
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .. import device
from ..errors import EnvironmentFault, InputError, printable
from .plan import GROUPS, RESERVED, STAGES, TRUTH, Job, Study, pipeline_config, stage_function

if TYPE_CHECKING:
    from ..fields import Probability, Volume
    from ..prior.boundary import BoundaryPrior

Record = dict[str, Any]
HISTORY_DIGITS = 4
TEXT_LIMIT = 300
NO_SPACE = "no space"


@dataclass(frozen=True)
class Work:
    """What every job of a study shares; small, for it travels with each.

    Parameters
    ----------
    study : Study
    folder : str
        Of the study.
    memory : int or None
        Bytes that a worker may take; None for no limit of its own.
    """

    study: Study
    folder: str
    memory: int | None = None


@dataclass(frozen=True, eq=False)
class CaseInput:
    """A case as a function of the user's sees it.

    Parameters
    ----------
    job : Job
    folder : Path
        Where its own files may be kept.
    """

    job: Job
    folder: Path

    @property
    def facts(self) -> dict[str, Any]:
        """What stands in the table about its source."""
        return self.job.source.facts

    def volume(self) -> Volume:
        """Return the scan."""
        return self.job.source.volume()

    def start(self, volume: Volume) -> Any:
        """Return the start, on the grid of the scan."""
        return self.job.source.start(volume)

    def truth(self, volume: Volume) -> NDArray[np.float64] | None:
        """Return the true signed distance in mm, if there is one."""
        return self.job.source.truth(volume)


@dataclass(frozen=True, eq=False)
class Found:
    """What a stage found: figures, files by name, the steps of the wall in voxels."""

    metrics: dict[str, Any]
    files: dict[str, bytes]
    content: str
    steps: list[float]


class Clock:
    """Seconds by part of a case."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Add the time inside to a part."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - begin
            self.seconds[name] = round(self.seconds.get(name, 0.0) + spent, 5)


def perform(work: Work, job: Job) -> Record:
    """Do one case; whatever happens in it, a record comes back.

    This is the outermost handler of a case, as the command line is that of a command: a fault of
    one case, a user's function included, never stops a study.
    """
    prepare(work)
    clock, found, fault, stop = Clock(), None, None, None
    _reset_peak()
    try:
        found = stage(work, job, clock)
    except InputError as error:
        if isinstance(error, EnvironmentFault) and error.fault.startswith(NO_SPACE):
            stop = error.as_dict()
        fault = {"kind": error.kind, "reason": error.line()}
    except MemoryError as error:
        fault = {"kind": "memory", "reason": printable(f"out of memory: {error}".rstrip(": "))}
    except Exception as error:
        text = f"{type(error).__name__}: {error}"[:TEXT_LIMIT]
        fault = {"kind": "defect", "reason": printable(text)}
    artefacts: dict[str, Any] = {}
    if found is not None:
        try:
            with clock.part("write"):
                artefacts = store(Path(work.folder), job, found.files)
        except EnvironmentFault as error:  # no later case could be kept either
            stop = error.as_dict()
    state = "stopped" if stop else "failed" if fault else "done"
    return {
        **identity(job),
        "state": state,
        "metrics": found.metrics if found else {},
        "content_sha256": found.content if found else None,
        "steps": found.steps if found else [],
        "artefacts": artefacts,
        "fault": stop or fault,
        "seconds": clock.seconds,
        "peak_bytes": peak_bytes(),
        "worker": f"{socket.gethostname()}-{os.getpid()}",
    }


def identity(job: Job) -> Record:
    """Return what names a case in the ledger."""
    facts, parameters = job.source.facts, job.parameters
    head = {"case": job.name, "id": job.id, "index": job.index}
    return {**head, "facts": facts, "parameters": parameters}


def failure(job: Job, kind: str, reason: str, peak: int) -> Record:
    """Return the record of a case whose worker did not live to make one."""
    rest: Record = {"metrics": {}, "content_sha256": None, "steps": [], "artefacts": {}}
    fault = {"kind": kind, "reason": reason}
    return {**identity(job), "state": "failed", **rest, "fault": fault, "seconds": {},
            "peak_bytes": peak, "worker": ""}  # fmt: skip


def prepare(work: Work) -> None:
    """Apply threads and memory limit to this process; cheap to repeat."""
    if work.memory is not None and os.environ.get(WORKER):
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        resource.setrlimit(resource.RLIMIT_DATA, (work.memory, hard))
    device.set_threads(work.study.threads)


WORKER = "VESSELSEG_STUDY_WORKER"  # set in processes that belong to a study alone


def stage(work: Work, job: Job, clock: Clock) -> Found:
    """Compute a case."""
    study = work.study
    if study.stage not in STAGES:
        return _own(work, job, clock)
    with clock.part("setup"):
        from .. import pipeline
        from ..infer import segment

        config = pipeline_config(study, job.parameters)
        device.set_threads(study.threads)  # the libraries are loaded now
    with clock.part("image"):
        volume = job.source.volume()
        needed = device.FIXED_BYTES + device.BYTES_PER_VOXEL * volume.values.size
        device.preflight(needed, work.memory, path=job.name)
        start = job.source.start(volume) if study.stage == "refine" else None
        truth = job.source.truth(volume)
    if study.stage == "segment":
        with clock.part("stage"):
            probability = segment(volume, config.model, config.segment)
        found = _segmented(study, volume, probability, truth, clock)
    else:
        with clock.part("stage"):
            prior = pipeline.build_prior(volume, config, start=start)
        found = _refined(study, prior, truth, clock)
    return found if found.files else replace(found, files=_figures(found.metrics))


def _own(work: Work, job: Job, clock: Clock) -> Found:
    """Call a function of the user's."""
    function = stage_function(work.study.stage)
    folder = case_folder(Path(work.folder), job)
    with clock.part("stage"):
        given = function(CaseInput(job, folder), dict(job.parameters))
    if not isinstance(given, Mapping):
        raise InputError("a stage returns a mapping of numbers", found=type(given).__name__)
    metrics = {str(k): _plain(str(k), v) for k, v in given.items()}
    taken = {*RESERVED, *job.parameters, *job.source.facts} & set(metrics)
    if taken:
        raise InputError("a stage returns a column that exists already", found=min(taken))
    files = _figures(metrics)
    return Found(metrics, files, _sha(files["result.json"]), [])


def _figures(metrics: Mapping[str, Any]) -> dict[str, bytes]:
    """Return the artefact of a case that keeps nothing else: its figures."""
    return {"result.json": json.dumps(metrics, sort_keys=True).encode()}


def _plain(name: str, value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"result not finite: {name}", found=value)
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise InputError(f"result {name} is no number or text", found=type(value).__name__)


def _refined(study: Study, prior: BoundaryPrior, truth: Any, clock: Clock) -> Found:
    from ..io.nifti import image_bytes
    from ..prior.file import stored_digest
    from ..prior.schema import VOLATILE

    # Date, host and times stand in the ledger: the file is the same whoever made it, and whenever.
    prior = replace(prior, arrays={**prior.arrays, VOLATILE: np.frombuffer(b"{}", np.uint8)})
    with clock.part("stage"):
        data = prior.to_bytes()
    phi, sigma, grid = prior.phi_mean_mm, prior.phi_std_mm, prior.grid
    steps = prior.step_rms_mm
    with clock.part("metrics"):
        end = {"steps": len(steps), "converged": int(bool(prior.quality["converged"]))}
        metrics = measured(study.columns, phi, sigma, truth, grid, end)
        files: dict[str, bytes] = {}
        images = {"mask": phi < 0, "phi": phi, "probability": prior.arrays[PROBABILITY]}
        for name in study.outputs:
            if name == "prior":
                files["prior.h5"] = data
            elif name == "preview":
                from ..preview.page import preview

                files["preview.png"] = preview(prior)
            else:
                files[f"{name}.nii.gz"] = image_bytes(images[name], grid)
    rms = [float(f"{v / grid.h_max:.{HISTORY_DIGITS}g}") for v in steps]
    return Found(metrics, files, stored_digest(data), rms)


PROBABILITY = "/images/probability"


def _segmented(study: Study, volume: Volume, found: Probability, truth: Any, clock: Clock) -> Found:
    from ..fields import LevelSet
    from ..io.nifti import image_bytes

    with clock.part("metrics"):
        phi = LevelSet.from_probability(found).phi_mm
        metrics = measured(study.columns, phi, found.sigma_mm, truth, volume.grid, {})
        arrays = {"probability": found.values, "mask": found.values > 0.5, "phi": phi}
        files = {f"{n}.nii.gz": image_bytes(arrays[n], volume.grid) for n in study.outputs}
    return Found(metrics, files, _sha(np.ascontiguousarray(found.values).tobytes()), [])


def measured(
    names: tuple[str, ...], phi: Any, sigma: Any, truth: Any, grid: Any, end: Mapping[str, int]
) -> dict[str, Any]:
    """Return the metrics asked for; those of the truth only where it is known.

    Raises
    ------
    InputError
        If a figure is not finite: the wall is lost.
    """
    from .. import metrics
    from ..solvers.field import asfield
    from ..solvers.topology import topology_report
    from ..solvers.watch import volume_mm

    def lumen() -> dict[str, Any]:
        field, spacing = asfield(phi, grid.spacing_mm)
        report = {name: int(n) for name, n in topology_report(phi).items()}
        return {**report, "volume_mm3": volume_mm(field, spacing)}

    def overlap() -> dict[str, Any]:
        return {"dice": metrics.dice(phi < 0, truth < 0), "iou": metrics.iou(phi < 0, truth < 0)}

    groups: dict[str, Callable[[], dict[str, Any]]] = {
        "wall": lambda: metrics.wall_errors(phi, truth, grid),
        "coverage": lambda: metrics.coverage(phi, truth, sigma, grid),
        "overlap": overlap,
        "centreline": lambda: {"cl_dice": metrics.cl_dice(phi < 0, truth < 0)},
        "lumen": lumen,
        "end": lambda: dict(end),
    }
    values: dict[str, Any] = {}
    for group, known in GROUPS.items():
        lacking = (truth is None and group in TRUTH) or (sigma is None and group == "coverage")
        if set(known) & set(names) and not lacking:
            values |= groups[group]()
    return {name: _plain(name, values[name]) for name in names if name in values}


def case_folder(folder: Path, job: Job) -> Path:
    """Return the folder of a case, made if it is missing: none ever holds many files."""
    made = folder / "cases" / job.name
    made.mkdir(parents=True, exist_ok=True)
    return made


def store(folder: Path, job: Job, files: Mapping[str, bytes]) -> dict[str, Any]:
    """Write the artefacts of a case; return path, size and digest of each."""
    from ..io.atomic import write_bytes

    result = {}
    try:
        home = case_folder(folder, job)
    except OSError as error:
        raise EnvironmentFault(f"cannot write: {error.strerror}", path=folder) from None
    for name, data in files.items():
        path = home / (f"{job.source.label}.{name}" if name != "result.json" else name)
        write_bytes(path, data)
        role = name.split(".")[0]
        relative = str(path.relative_to(folder))
        result[role] = {"path": relative, "bytes": len(data), "sha256": _sha(data)}
    return result


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _reset_peak() -> None:
    with contextlib.suppress(OSError):  # a file system without it keeps the peak of all cases
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes(pid: int | str = "self") -> int:
    """Return the peak resident memory of a process, bytes; zero if it is gone."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    return 0
