"""The whole path: scan -> probability -> level set -> refined wall -> boundary prior.

Only this module joins the network half and the solver half.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from . import __version__, dataset, evaluation, meridian
from .calibration import calibrated, shipped
from .config import Settings, build
from .cuda_kernels import launch
from .cuda_kernels.jit import threads
from .device import Device, choose
from .errors import DataError, EnvironmentFault
from .fields import LevelSet, Probability, Progress, Refinement, Volume, silent
from .flow import Flow, FlowSettings, averages, corrected
from .infer import SegmentSettings, images_and_classes, segment, thread_count
from .io.atomic import check_folder, write_bytes
from .meridian import Held
from .nets import borrowed, checkpoint
from .prior.boundary import BoundaryPrior, PriorSettings
from .solvers.flow_on_device import disagreement, without_kernels
from .solvers.redistancing import redistance
from .solvers.refine import refine
from .solvers.settings import RefineSettings
from .solvers.topology import keep_components, topology_report
from .synth.cases import SynthSettings, case
from .training import TrainConfig, fit

FINE_TUNING_LR = 1e-4  # a higher one unlearns what the weights to start from knew
AGREEMENT = 1e-4  # voxels between the redistancing of a device and of the CPU
RECORDED = ("numpy", "scipy", "numba", "torch", "scikit-image", "h5py")


class PipelineConfig(Settings):
    """Settings of the whole path.

    Parameters
    ----------
    model : str, optional
        Checkpoint; default: the shipped one.
    components : "all", "largest", "seed" or int
        Which lumen components the prior holds, see ``solvers.topology``.
    seed_point : three floats, optional
        World point (RAS+, mm) in the component kept by ``components = "seed"``.
    seed : int
        Recorded in the provenance; the path itself draws no random number.
    """

    model: str | None = None
    components: Literal["all", "largest", "seed"] | Annotated[int, Field(ge=1)] = "all"
    seed_point: Annotated[tuple[float, float, float], Field(strict=False)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    device: str = "auto"
    segment: SegmentSettings = SegmentSettings()
    refine: RefineSettings = RefineSettings()
    prior: PriorSettings = PriorSettings()
    flow: FlowSettings = FlowSettings()


class TrainRun(TrainConfig):
    """Settings of ``train``: those of the network and of its cases; see also ``nets.borrowed``.

    Parameters
    ----------
    data : DataSettings, optional
        A folder of the user's cases.
    synth : SynthSettings, optional
        Without a folder; default: the training family, 64 voxels wide.
    """

    data: dataset.DataSettings | None = None
    synth: SynthSettings | None = None

    @model_validator(mode="before")
    @classmethod
    def _borrowed(cls, tree: Any) -> Any:
        return borrowed.ours(tree) if isinstance(tree, dict) else tree


def build_prior(
    volume: Volume,
    config: PipelineConfig | None = None,
    *,
    start: Probability | LevelSet | None = None,
    flow: Flow | None = None,
    channels: Sequence[Volume] = (),
    progress: Progress = silent,
) -> BoundaryPrior:
    """Turn a scan into a boundary prior.

    Parameters
    ----------
    volume : Volume
        2-D or 3-D scan.
    config : PipelineConfig, optional
    start : Probability or LevelSet, optional
        A start of the user's on the same grid; without it the network finds the lumen.
    flow : Flow, optional
        Measured velocity on the same grid: it names inlets and outlets and gives their flow.
    channels : sequence of Volume
        The further images that a network of several channels sees, see ``segment``.
    progress : callable
        Called as ``progress(stage, fraction, message)``.

    Returns
    -------
    BoundaryPrior
        In SI units, ready to be written. With ``config.prior.axis`` the scan is folded about that
        axis and the fields lie on the half plane.

    Raises
    ------
    NoInterfaceError
        If no lumen is found.
    NumericalError
        If the refinement loses the vessel.
    """
    config = config or PipelineConfig()
    device = refining_device(config, volume.grid.shape_kji)
    clock = time.perf_counter()
    seconds: dict[str, float] = {}
    about = None if config.prior.axis is None else meridian.fold(volume.grid, config.prior.axis)
    if about is not None:
        volume, *channels = map(about.image, (volume, *channels))
        start = None if start is None else about.image(start)
        flow = None if flow is None else about.flow(flow)
    whole, half = (meridian.whole, meridian.half) if about is not None else (itself, itself)
    if start is None:
        seen, *more = map(whole, (volume, *channels))
        start = half(segment(seen, config.model, config.segment, channels=more, progress=progress))
        seconds["segment"] = time.perf_counter() - clock
    probability = start if isinstance(start, Probability) else None
    level_set = level_set_of(whole(start))
    level_set = whole(chosen(half(level_set), config))
    settings = config.refine
    evidences: list[Volume] = []
    if flow is not None:
        flow, settings = shown(flow, volume, half(level_set), config)
        if config.flow.channel and flow.with_magnitude:  # else the scan is the speed
            evidences = [whole(speed(flow))]
    refined, device = refined_on(device, level_set, whole(volume), evidences, settings, progress)
    if about is not None:
        refined = meridian.half_refinement(refined)
    level_set = chosen(refined.level_set, config)
    estimates = refined.estimates | topology_report(level_set.phi_mm)
    refined = replace(refined, level_set=level_set, estimates=estimates)
    evidence = None if probability is None else probability.model_id
    usual = config.refine == RefineSettings() and settings.profile == "lumen" and not evidences
    if usual and evidence == shipped().model_id:
        refined = calibrated(refined)
    if flow is not None:
        flow = corrected(flow, level_set.phi_mm, volume.values, config.flow)
    progress("prior", 0.0, "fields and surface")
    prior = BoundaryPrior.from_refinement(
        replace(refined, seconds=seconds | refined.seconds),
        volume,
        probability,
        settings=config.prior.model_copy(update={"axis": "i"} if about is not None else {}),
        provenance=_provenance(config, device, refined),
        flow=flow,
        flow_settings=config.flow,
    )
    progress("prior", 1.0, "done")
    return prior


def _provenance(config: PipelineConfig, device: Device, refined: Refinement) -> dict[str, Any]:
    return {
        "config": config.model_dump(mode="json"),
        "seed": config.seed,
        "versions": {"vesselseg": __version__} | {p: _version(p) for p in RECORDED},
        "device": device.as_dict(),
        "threads": {"numba": threads(), "torch": thread_count()},
        "calibration_set": shipped().name if "calibrated" in refined.estimates else "none",
    }


def speed(flow: Flow) -> Volume:
    """Return the speed of a flow as an image."""
    return Volume(flow.speed, flow.grid, flow.name)


def shown(
    flow: Flow, volume: Volume, level_set: LevelSet, config: PipelineConfig
) -> tuple[Flow, RefineSettings]:
    """Say what the scan beside a flow shows, where the settings do not.

    The speed itself, or magnitude: the noise of the velocity tells of how many images the mean.
    """
    core = level_set.phi_mm < -volume.grid.h_max
    flow = replace(flow, averaged=averages(flow, volume.values, core, config.flow))
    known = {"averages": flow.averaged} if flow.with_magnitude else {"profile": "flow"}
    unsaid = {k: v for k, v in known.items() if k not in config.refine.model_fields_set}
    return flow, config.refine.model_copy(update=unsaid)


def itself(held: Held) -> Held:
    """Return what it is given: a scan that is not revolved needs no mirror."""
    return held


def level_set_of(start: Probability | LevelSet) -> LevelSet:
    """Return the wall that a start begins with."""
    return LevelSet.from_probability(start) if isinstance(start, Probability) else start


def refining_device(config: PipelineConfig, shape: Sequence[int] = ()) -> Device:
    """Apply the device rule to what the configuration asks for."""
    return choose(config.device, without_kernels(config.refine, shape))


def refined_on(
    device: Device,
    level_set: LevelSet,
    volume: Volume,
    channels: Sequence[Volume],
    settings: RefineSettings,
    progress: Progress,
) -> tuple[Refinement, Device]:
    """Refine on a device; ``auto`` begins anew on the CPU where the device fails.

    It fails if it lacks memory, or if it redistances a small torus otherwise than the CPU.
    """

    def refined(gpu: launch.Device | None) -> Refinement:
        return refine(level_set, volume, settings, channels=channels, device=gpu, progress=progress)

    if device.name == "cpu":
        return refined(None), device
    gpu = launch.device(device.index)
    try:
        fault = "" if disagreement(gpu) <= AGREEMENT else "gives other results than the CPU"
        if not fault:
            return refined(gpu), device
    except MemoryError:
        fault = "has not enough memory"
    if device.requested != "auto":
        raise EnvironmentFault(f"{device.name} {fault}", path="--device", remedy="take auto or cpu")
    return refined(None), replace(device, name="cpu", reason=f"{device.name} {fault}")


def chosen(level_set: LevelSet, config: PipelineConfig) -> LevelSet:
    """Keep the components that the configuration asks for; redistance if any was removed."""
    seed = None
    if config.components == "seed":
        seed = _seed_voxel(level_set, config.seed_point)
    phi, notes = keep_components(level_set.phi_mm, config.components, seed_kji=seed)
    if not notes:
        return level_set
    distance = redistance(phi, level_set.grid.spacing_mm, band_mm=level_set.band_mm)
    return replace(level_set, phi_mm=distance, notes=level_set.notes + notes)


def train(
    config: TrainRun,
    output: str | Path,
    *,
    progress: Progress = silent,
    resume: bool = False,
) -> Path:
    """Train a network on a folder of cases or on synthetic scans; return its best weights' sidecar.

    Parameters
    ----------
    config : TrainRun
        Without a network of its own it takes that of ``init``.
    output : path
        Folder for checkpoints, metrics, the learning curve and, of a folder of cases,
        ``split.json``: which were trained on, and what had to be assumed about them.
    resume : bool
        Continue from the last checkpoint; bitwise on the CPU.
    """
    config = like_init(config)
    if config.data is None:
        patch = {"shape": (64,) * config.dims, "channels": config.in_channels}
        synth = config.synth or build(SynthSettings, patch)
        drawn = functools.partial(case, settings=synth)
        return fit(config, drawn, check_folder(output), progress=progress, resume=resume)
    shape = config.dims, config.in_channels, config.classes
    cases, validation, manifest = dataset.sources(config.data, *shape, config.seed)
    doubts = dataset.notes((cases, validation))
    text = json.dumps({**manifest, "notes": doubts}, indent=1) + "\n"
    write_bytes(check_folder(output) / "split.json", text.encode())
    counts = f"{cases.size} cases to train on, {validation.size} to validate"
    progress("data", 1.0, f"{counts}; {len(doubts)} notes in split.json" if doubts else counts)
    return fit(config, cases, Path(output), validation=validation, progress=progress, resume=resume)


def evaluate_model(
    model: str | Path | None = None,
    folder: str | Path | None = None,
    *,
    number: int = 12,
    dims: int = 3,
    settings: SegmentSettings = SegmentSettings(),  # noqa: B008 - frozen
    progress: Progress = silent,
) -> evaluation.Scores:
    """Judge a network on scans with masks, or on synthetic scans held out of every training.

    Parameters
    ----------
    model : path, optional
        Checkpoint; default: the shipped one.
    folder : path, optional
        Holds ``magn`` and ``mask``, or ``val`` with both.
    number, dims : int
        Of the synthetic scans, without a folder.
    settings : SegmentSettings
    """
    channels, classes = images_and_classes(model)

    def predict(volume: Volume, more: Sequence[Volume]) -> Probability:
        return segment(volume, model, settings, channels=more)

    if folder is not None:
        shape = channels, classes, settings.lumen_classes
        return evaluation.evaluate_cases(
            evaluation.folder_cases(folder, predict, *shape), 0, progress
        )
    drawn = evaluation.synthetic_cases(dims, number, predict, channels)
    return evaluation.evaluate_cases(drawn, number, progress)


def like_init(config: TrainRun) -> TrainRun:
    """Take from the weights to start from what is not given: architecture, and a low rate."""
    if not config.init:
        return config
    update: dict[str, Any] = {} if "lr" in config.model_fields_set else {"lr": FINE_TUNING_LR}
    if "network" not in config.model_fields_set:
        architecture = dict(checkpoint.load(checkpoint.located(config.init)).card["architecture"])
        own = {"dims", "in_channels", "classes", "distance"}
        shape = {key: architecture.pop(key) for key in own & architecture.keys()}
        update |= {**shape, "network": architecture.pop("name"), "options": architecture}
    return config.model_copy(update=update)


def _seed_voxel(level_set: LevelSet, point: tuple[float, float, float] | None) -> tuple[int, ...]:
    if point is None:
        raise DataError("components = seed without a seed point", remedy="set seed_point")
    grid = level_set.grid
    voxel = np.rint(grid.index(point)).astype(int)
    if (voxel < 0).any() or (voxel >= grid.shape_kji).any():
        raise DataError("the seed point lies outside the scan", found=point)
    return tuple(int(n) for n in voxel)


def _version(package: str) -> str:
    return importlib.metadata.version(package)
