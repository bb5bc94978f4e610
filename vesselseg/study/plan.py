"""A study: cases, a parameter space, what is done with each, and what is kept.

It is a TOML file or an object of the same fields; ``expand`` turns it into jobs.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import inspect
import json
import os
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from ..config import Settings, build, load_toml, override
from ..errors import ConfigError
from .sources import WILD, Cases, Source, check_cases, code_digest, file_digest, sources
from .space import MAX_CASES, Point, Search, axes, nearest, size

STAGES = ("segment", "refine", "prior")
KEPT = {
    "segment": ("probability", "mask", "phi"),
    "refine": ("prior", "preview", "mask", "phi"),
    "prior": ("prior", "preview", "mask", "phi", "probability"),
}
GROUPS: dict[str, tuple[str, ...]] = {
    "wall": (
        *(f"{name}_{unit}" for name in ("rms", "mean", "p95", "max", "bias", "near_mean",
          "near_rms", "near_p95") for unit in ("voxel", "mm")),
        "normal_rms_deg", "false_share", "missed_share", "within_1_voxel_share",
    ),
    "coverage": ("within_1", "within_2", "z_rms", "sigma_mean_mm"),
    "overlap": ("dice", "iou"),
    "centreline": ("cl_dice",),
    "lumen": ("components", "cavities", "tunnels", "volume_mm3"),
    "end": ("steps", "converged"),
}  # fmt: skip
TRUTH = ("wall", "coverage", "overlap", "centreline")  # groups that need a true wall
USUAL = (
    "rms_voxel", "mean_voxel", "p95_voxel", "max_voxel", "bias_voxel", "rms_mm", "normal_rms_deg",
    "within_1", "within_2", "dice", "components", "volume_mm3", "steps", "converged",
)  # fmt: skip
RESERVED = ("case", "state", "content_sha256", "reason")


def _reference(value: Any) -> Any:
    """Name a function by its file, so that another process can load it."""
    if not callable(value):
        return value
    file = inspect.getsourcefile(value)
    if file is None or "<" in value.__qualname__:
        raise ConfigError("a stage must be a function of a module", found=value.__qualname__)
    return f"{Path(file).absolute()}:{value.__qualname__}"


Text = Annotated[tuple[str, ...], Field(strict=False)]


class Study(Settings):
    """What is asked.

    Parameters
    ----------
    stage : {"segment", "refine", "prior"} or function
        What is done with a case: the network, the refinement of a start, the whole path, or a
        function ``f(case, parameters) -> {name: number or text}`` of a module (in TOML
        ``"file.py:name"``).
    seed : int
        Of every draw.
    cases : Cases
    space : mapping
        Dotted settings of the pipeline, or parameters of the function, to a list of values or an
        interval, see ``space.Interval``.
    points : list of mappings
        Settings tried one by one instead of a space.
    search : Search
        How the space is searched.
    config : mapping
        Settings of the pipeline that all cases share.
    metrics : names
        Default: the usual ones.
    keep : names
        What is stored of each case: prior, preview, probability, mask, phi; default: the prior,
        or the probability of ``segment``.
    threads : int
        Of each case, on every engine, for results depend on it.
    """

    stage: Annotated[str, BeforeValidator(_reference)] = "refine"
    seed: int = Field(0, ge=0, lt=2**63)
    cases: Cases = Cases()
    space: dict[str, Any] = Field(default_factory=dict)
    points: Annotated[tuple[dict[str, Any], ...], Field(strict=False)] = ()
    search: Search = Search()
    config: dict[str, Any] = Field(default_factory=dict)
    metrics: Text = ()
    keep: Text | None = None
    threads: int = Field(1, ge=1, le=256)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the metrics asked for."""
        return self.metrics or USUAL

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of what is stored of each case."""
        first = ("probability",) if self.stage == "segment" else ("prior",)
        return first if self.keep is None else self.keep


@dataclass(frozen=True)
class Job:
    """One case with one point of the space."""

    index: int
    name: str
    id: str
    source: Source
    parameters: Point


def study_from(tree: Mapping[str, Any], path: Any = None) -> Study:
    """Build a study from a tree of settings."""
    return build(Study, tree, path)


def read_study(path: str | os.PathLike[str], assignments: Sequence[str] = ()) -> Study:
    """Read a study file; names of files in it are relative to its folder.

    Raises
    ------
    ConfigError
        Not TOML, an unknown key, or a value out of range.
    """
    study = study_from(override(load_toml(path), assignments), path)
    return relative_to(study, Path(path).absolute().parent)


def relative_to(study: Study, folder: Path) -> Study:
    """Return the study with the names of its files made absolute."""
    cases = {
        name: tuple(os.path.normpath(folder / pattern) for pattern in getattr(study.cases, name))
        for name in ("files", "starts", "truths")
    }
    stage = study.stage
    if ".py:" in stage:
        stage = os.path.normpath(folder / stage)
    return study.model_copy(update={"cases": study.cases.model_copy(update=cases), "stage": stage})


def check(study: Study) -> None:
    """Refuse, before any case is built, what cannot be run.

    Raises
    ------
    ConfigError
        Unknown stage, parameter, metric or output (with the nearest name), more than a million
        cases, an empty space.
    """
    check_cases(study.cases)
    known = axes(study.space, study.search)
    if study.points and study.space:
        raise ConfigError("both space and points", remedy="leave out one of them")
    for n, point in enumerate(study.points):
        if point in study.points[:n]:
            raise ConfigError("a point is given twice", found=point)
    count = size(study.space, study.points, study.search) * max(
        len(study.cases.files), study.cases.count() if study.cases.phantoms else 1
    )
    if count > MAX_CASES:
        raise ConfigError("too many cases", found=f"{count:,}", need=f"at most {MAX_CASES:,}")
    if study.stage not in STAGES:
        stage_function(study.stage)
        return
    _check_names("metric", study.metrics, [m for names in GROUPS.values() for m in names])
    _check_names("output", study.outputs, KEPT[study.stage])
    if study.search.method == "bayes" and study.search.objective not in study.columns:
        _check_names("search.objective", (study.search.objective,), study.columns)
    if study.stage == "refine" and study.cases.files and not study.cases.starts:
        remedy = "set cases.starts, or take stage prior"
        raise ConfigError("stage refine needs a start of every scan", remedy=remedy)
    for point in study.points or _each(known):
        pipeline_config(study, point)


def _check_names(what: str, given: Sequence[str], known: Sequence[str]) -> None:
    for name in given:
        if name not in known:
            raise ConfigError(f"unknown {what}", found=name, remedy=nearest(name, known))


def _each(known: Mapping[str, Any]) -> Iterator[Point]:
    """Give every value once: all combinations may be a million."""
    yield {}
    for name, values in known.items():
        ends = values if isinstance(values, list) else (values.at(0.0), values.at(1.0))
        for value in ends:
            yield {name: value}


def pipeline_config(study: Study, point: Point) -> Any:
    """Return the settings of the pipeline at a point."""
    from ..pipeline import PipelineConfig

    tree = override(study.config, ())
    for name, value in point.items():
        *parents, last = name.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise ConfigError(f"space: '{parent}' of {name} is not a table")
        node[last] = value
    return build(PipelineConfig, tree, "space" if point else "config")


_here = threading.local()  # whether this thread loads a stage; others may run their studies


@functools.cache
def stage_function(reference: str) -> Callable[..., Any]:
    """Load ``file.py:name`` or ``module:name``."""
    place, _, name = reference.rpartition(":")
    if not place:
        remedy = nearest(reference, STAGES) + ", or give file.py:function"
        raise ConfigError("unknown stage", found=reference, remedy=remedy)
    _here.loading = True
    try:
        module = _module(place)
    finally:
        _here.loading = False
    function = getattr(module, name, None)
    if not callable(function):
        raise ConfigError("no such function", path=place, found=name)
    return function  # type: ignore[no-any-return]


def _module(place: str) -> Any:
    if not place.endswith(".py"):
        try:
            return importlib.import_module(place)
        except ImportError as error:
            raise ConfigError(f"cannot import the stage: {error}", path=place) from None
    main = sys.modules.get("__main__")
    if getattr(main, "__file__", None) and Path(main.__file__).absolute() == Path(place):  # type: ignore
        return main
    folder = str(Path(place).parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)  # its neighbours are found as when it runs as a script
    name = "stage_" + hashlib.sha256(place.encode()).hexdigest()[:12]
    spec = importlib.util.spec_from_file_location(name, place)
    if spec is None or spec.loader is None or not Path(place).is_file():
        raise ConfigError("no such file of a stage", path=place)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def refuse_while_loading() -> None:
    """Refuse to run a study from within the loading of its own stage."""
    if getattr(_here, "loading", False):
        remedy = "put the call below: if __name__ == '__main__'"
        raise ConfigError("the script runs its study when it is imported", remedy=remedy)


def refuse_inside_inputs(study: Study, folder: Path, home: Path) -> None:
    """Refuse a folder of results within a folder that a glob searches (B141).

    ``home`` is the folder of the study file, in which both may lie.
    """
    target = folder.absolute()
    for pattern in (*study.cases.files, *study.cases.starts, *study.cases.truths):
        parts = Path(pattern).absolute().parts
        wild = [n for n, part in enumerate(parts) if any(c in part for c in WILD)]
        root = Path(*parts[: wild[0]]) if wild else None
        if root is not None and target.is_relative_to(root) and root != home.absolute():
            remedy = "choose a folder beside it"
            raise ConfigError("output inside the study's input folder", path=folder, remedy=remedy)


def stage_digest(study: Study) -> str:
    """Return the digest of the code behind the stage."""
    if study.stage in STAGES:
        return code_digest()
    place = study.stage.rpartition(":")[0]
    own = file_digest(place) if place.endswith(".py") else place
    return hashlib.sha256((code_digest() + own).encode()).hexdigest()


class Expansion:
    """Turns points into jobs; each source meets each point, and indices go on over rounds.

    Raises
    ------
    ConfigError
        Two sources are the same (B192).
    """

    def __init__(self, study: Study, folder: Path, digests: Mapping[str, str]) -> None:
        self.sources = sources(study.cases, study.seed, folder / "phantoms", digests)
        common = [study.stage.rpartition("/")[2], study.config, study.seed, study.threads]
        self.common = json.dumps([*common, stage_digest(study)], sort_keys=True)
        self.count = 0
        self.seen: Counter[str] = Counter()
        seen: dict[str, Source] = {}
        for source in self.sources:
            if (other := seen.setdefault(source.identity, source)) is not source:
                names = f"{other.facts} and {source.facts}"
                remedy = "remove one: a file or a value is given twice"
                raise ConfigError("two cases are the same", found=names, remedy=remedy)

    def jobs(self, points: Sequence[Point]) -> list[Job]:
        """Return the jobs of some points, source by source."""
        return [self._job(source, point) for source in self.sources for point in points]

    def _job(self, source: Source, point: Point) -> Job:
        text = json.dumps([self.common, source.identity, point], sort_keys=True)
        self.seen[text] += 1  # a search may ask for a point again
        again = f"#{self.seen[text]}" if self.seen[text] > 1 else ""
        digest = hashlib.sha256((text + again).encode()).hexdigest()[:24]
        name = f"{self.count:05d}-{source.label}-{digest[:8]}"
        job = Job(self.count, name, digest, source, point)
        self.count += 1
        return job
