"""The verbs of ``vesselseg``; heavy modules are imported inside them, so that help is fast."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import device
from ..errors import ConfigError, DataError, EnvironmentFault, NumericalError
from . import study
from .options import Options, command, components, points, reading, revolution, settings
from .terminal import Terminal, show

if TYPE_CHECKING:
    import typer

    from ..evaluation import Scores
    from ..fields import Volume
    from ..flow import Flow
    from ..prior.boundary import BoundaryPrior

SAVED = ("prob", "phi", "sigma", "mask", "labels")
HDF5 = {".h5", ".hdf5", ".vtkhdf"}
OPEN_WITH = "pyvista.read(file, force_ext='.vtkhdf')"


def demo(terminal: Terminal, options: Options) -> int:
    """Run the bundled carotid scan and a phantom with known truth."""
    machine(options, "the energy map")
    from ..demo import example

    with terminal.progress() as progress:
        result = example.run_demo(
            options.output,
            seed=options.seed or 0,
            overwrite=options.overwrite,
            progress=progress,
        )
    terminal.warn(result["warnings"])
    show(result, options.json, lambda: example.table(result))
    if not result["ok"]:
        terminal.error(DataError("a prior does not pass its check", path=options.output))
    return 0 if result["ok"] else DataError.exit_code


def prior(terminal: Terminal, options: Options) -> None:
    """Make a boundary prior of a scan: the whole path."""
    machine(options)
    from ..io import read_start
    from ..io.atomic import check_target
    from ..pipeline import PipelineConfig, build_prior, refining_device
    from ..prior import check as prior_check

    given = {
        "seed": options.seed,
        "device": options.device,
        "segment.device": network_device(options),
        "segment.accurate": options.accurate or None,
        "segment.polarity": options.polarity,
        "model": options.model,
        "components": components(options.components),
        "prior.cuts": points(options.cut, 6, "--cut"),
        "prior.seed_points": points(options.seed_point, 3, "--seed-point"),
        "prior.extension_mm": options.extension,
        "prior.axis": revolution(options.axis),
    }
    config = settings(PipelineConfig, options, given)
    refining_device(config)
    if config.components == "seed" and config.seed_point is None:
        remedy = "add --set seed_point=[x,y,z], RAS+ mm"
        raise ConfigError("components = seed without a seed point", remedy=remedy)
    distinct(options, options.output)
    ending(options.output, ".h5", ".hdf5")
    check_target(options.output, overwrite=options.overwrite)
    volume, *more = scans(options)
    start = None
    if options.start is not None:
        kind: Any = options.start_kind  # read_start refuses an unknown one
        start = read_start(options.start, volume, kind=kind, label=options.label)
    flow = velocity(options, volume)
    needed = fits(options, volume.values.size)
    if options.dry_run:
        plan(volume.grid.as_dict(), config.model_dump(mode="json"), needed)
        return
    terminal.warn(volume.notes)
    with about(options.input), terminal.progress() as progress:
        built = build_prior(
            volume, config, start=start, flow=flow, channels=more, progress=progress
        )
    terminal.warn(note for note in built.warnings if note not in volume.notes)
    failed = [f for f in prior_check.check(built) if not f.ok and f.level == "error"]
    terminal.warn(f"the prior fails its check: {f.name}: {f.message}" for f in failed)
    if options.strict and failed:
        remedy = "look at the preview; a finer scan or another start may help"
        raise NumericalError(f"the prior fails {failed[0].name}", path=options.input, remedy=remedy)
    if options.strict and not built.quality["converged"]:
        raise NumericalError(
            "the refinement did not converge", path=options.input, remedy="raise refine.iterations"
        )
    digest = built.write(options.output, overwrite=options.overwrite)
    show(written(built, options.output, digest), options.json, lambda: str(options.output))


def refine(terminal: Terminal, options: Options) -> None:
    """Make a boundary prior of a scan and a start of your own, without the network."""
    prior(terminal, options)


def segment(terminal: Terminal, options: Options) -> None:
    """Find the lumen with the network: a probability map on the scan's grid."""
    limits(options)
    from ..infer import SegmentSettings, require_device
    from ..infer import segment as run
    from ..io import write_image
    from ..io.atomic import check_target

    given = {"device": network_device(options), "accurate": options.accurate or None}
    given |= {"polarity": options.polarity}
    config = settings(SegmentSettings, options, given)
    require_device(config.device)
    targets = saved(options)
    distinct(options, *targets.values())
    for path in targets.values():
        check_target(path, overwrite=options.overwrite)
    volume, *more = scans(options)
    needed = fits(options, volume.values.size)
    if options.dry_run:
        plan(volume.grid.as_dict(), config.model_dump(mode="json"), needed)
        return
    terminal.warn(volume.notes)
    with about(options.input), terminal.progress() as progress:
        found = run(volume, options.model, config, channels=more, progress=progress)
    terminal.warn(note for note in found.notes if note not in volume.notes)
    fields: dict[str, Any] = {"prob": found.values, "phi": found.phi_mm, "sigma": found.sigma_mm}
    fields |= {"labels": found.labels, "mask": found.values > 0.5}  # exactly a half is outside
    lacking = [name for name in targets if fields[name] is None]
    if lacking:
        need = "--save of prob,mask, or another network"
        if lacking[0] != "labels":
            need += " with a distance, of the scan's dimensions"
        raise ConfigError(f"this network gives no {lacking[0]}", path=options.model, need=need)
    for name, path in targets.items():
        write_image(path, fields[name], volume.grid, overwrite=options.overwrite)
    paths = {name: str(path) for name, path in targets.items()}
    result = {"files": paths, "model": found.model_id, "warnings": list(found.notes)}
    show(result, options.json, lambda: "\n".join(paths.values()))


def saved(options: Options) -> dict[str, Path]:
    """Return the images to write: the output itself, and the others beside it by their names."""
    names = [name.strip() for name in options.save.split(",")]
    wrong = [name for name in names if name not in SAVED]
    if wrong:
        need = "some of " + ",".join(SAVED)
        raise ConfigError("unknown image", path="--save", found=wrong[0], need=need)
    suffix = ending(options.output, ".nii", ".nii.gz")
    others = {n: options.output.with_name(n + suffix) for n in names if n != "prob"}
    return {"prob": options.output, **others}


def train(terminal: Terminal, options: Options) -> None:
    """Train a network on synthetic scans or on ``--data``; see ``models`` for ``network``."""
    limits(options)
    from ..pipeline import TrainRun, like_init
    from ..pipeline import train as run
    from ..training import require

    given = {
        "seed": options.seed,
        "steps": options.steps,
        "epochs": options.epochs,
        "hours": options.hours,
        "init": options.init,
        "workers": options.workers or None,
        "device": network_device(options),
        "data.folder": None if options.data is None else str(options.data),
    }
    config = like_init(settings(TrainRun, options, given))
    require(config)
    if options.dry_run:
        plan({}, config.model_dump(mode="json"), 0)
        return
    leads = device.leads()
    kept = any((options.output / name).exists() for name in ("last.json", "best.json"))
    if leads and kept and not (options.resume or options.overwrite):
        remedy = "--resume goes on with it, --overwrite begins anew"
        raise ConfigError("a training is here", path=options.output, remedy=remedy)
    with terminal.progress() as progress:
        made = run(config, options.output, progress=progress, resume=options.resume)
    if leads:
        show({"checkpoint": str(made)}, options.json, lambda: str(made))


def models(terminal: Terminal, options: Options) -> None:
    """List the networks and the shipped checkpoints, or show one of them."""
    working_folder()
    from ..nets import catalogue

    if options.action == "info" and options.name:
        facts = catalogue.about(options.name)
        show(facts, options.json, lambda: "\n".join(outline(facts)))
        return
    if options.action != "list" or options.name:
        need = "list, or info with a name"
        raise ConfigError("unknown request", path="models", found=options.action, need=need)
    found = {"networks": catalogue.networks(), "checkpoints": catalogue.shipped()}
    show(found, options.json, lambda: "\n".join(model_lines(found)))


def import_checkpoint(terminal: Terminal, options: Options) -> None:
    """Turn a PyTorch file of weights into a checkpoint; nothing in it is run."""
    limits(options)
    from ..io.atomic import check_target
    from ..nets.convert import ImportSettings
    from ..nets.convert import import_checkpoint as run

    config = settings(ImportSettings, options, {"seed": options.seed})
    distinct(options, options.output)
    stem = options.output.with_suffix("")
    ending(options.output, ".json")
    for suffix in (".json", ".safetensors"):
        check_target(stem.with_suffix(suffix), overwrite=options.overwrite)
    made = run(options.file, stem, config)
    show({"checkpoint": str(made)}, options.json, lambda: str(made))


def export_onnx(terminal: Terminal, options: Options) -> None:
    """Write a network as an ONNX file of one tile, checked against the network first."""
    limits(options)
    from ..io.atomic import check_target
    from ..nets import checkpoint
    from ..nets.onnx import export

    ending(options.output, ".onnx")
    check_target(options.output, overwrite=options.overwrite)
    model = options.name or checkpoint.shipped(options.dims)
    made = export(model, options.output, options.tile)
    show({"file": str(made)}, options.json, lambda: str(made))


def synth(terminal: Terminal, options: Options) -> None:
    """Make synthetic scans with their exact distance to the wall."""
    limits(options)
    from ..synth.cases import SynthSettings
    from ..synth.folder import write_dataset

    config = settings(SynthSettings, options, {})
    with terminal.progress() as progress:
        folder = write_dataset(
            options.output,
            options.number,
            config,
            options.seed or 0,
            validation=options.validation,
            kind=options.format,
            overwrite=options.overwrite,
            progress=progress,
        )
    result = {"folder": str(folder), "cases": options.number}
    show(result, options.json, lambda: str(folder))


def check(terminal: Terminal, options: Options) -> int:
    """Test every invariant of a prior; a scan, checkpoint or study is read through."""
    if options.file.is_dir():
        return study.check(terminal, options)
    if not is_prior(options):
        terminal.warn(described(options)["warnings"])
        show({"file": str(options.file), "ok": True}, options.json, lambda: f"ok  {options.file}")
        return 0
    from ..prior import check as prior_check

    findings = prior_check.check(options.file, deep=options.deep)
    failed = [f for f in findings if not f.ok and f.level == "error"]
    rows = [
        {"id": f.id, "name": f.name, "level": f.level, "ok": f.ok, "message": f.message}
        for f in findings
    ]
    result = {"file": str(options.file), "ok": not failed, "findings": rows}
    show(result, options.json, lambda: "\n".join(finding_lines(rows)))
    if failed:
        text = f"{len(failed)} of {len(findings)} invariants do not hold"
        first = f"{failed[0].name}: {failed[0].message}"
        terminal.error(DataError(text, path=options.file, found=first))
    return DataError.exit_code if failed else 0


def info(terminal: Terminal, options: Options) -> None:
    """Show what a prior, a scan or a checkpoint holds and where it comes from."""
    if is_prior(options) and not options.json:
        from ..prior.boundary import BoundaryPrior
        from ..prior.page import page

        lines = page(BoundaryPrior.read(options.file))
        show({}, False, lambda: "\n".join([*lines, "", f"  open with {OPEN_WITH}"]))
        return
    result = described(options)
    show(result, options.json, lambda: "\n".join(outline(result)))


def evaluate(terminal: Terminal, options: Options) -> None:
    """Compare images or a network's results with the truth: overlap, walls, topology, calibration.

    FILE --truth FILE, or a folder with --truth FOLDER; or --model with a folder of magn and mask;
    or --model alone, on -n synthetic scans.
    """
    limits(options)
    if options.prediction is None and options.model is None:
        raise ConfigError("nothing to evaluate", need="FILE --truth FILE, or --model FILE")
    if (options.truth is None) == (options.model is None):
        raise ConfigError("give --truth of predictions, or --model to run on scans")
    if options.report is not None:
        from ..io.atomic import check_folder

        check_folder(options.report)
    from .. import evaluation

    if options.truth is not None and not Path(options.prediction or "").is_dir():
        found = evaluation.evaluate(options.prediction or "", options.truth)
        show(found, options.json, lambda: "\n".join(outline(found)))
        return
    if options.truth is not None:
        scores = evaluation.evaluate_folder(options.prediction or "", options.truth)
    else:
        scores = judged(terminal, options)
    if options.report is not None:
        scores.write(options.report)
    result = {"cases": scores.rows, "summary": scores.summary}
    show(result, options.json, lambda: "\n".join(summary_lines(scores.summary)))


def judged(terminal: Terminal, options: Options) -> Scores:
    """Run a network on scans whose truth is known."""
    from ..infer import SegmentSettings, require_device
    from ..nets import checkpoint
    from ..pipeline import evaluate_model

    config = settings(SegmentSettings, options, {"device": network_device(options)})
    require_device(config.device)
    model = checkpoint.located(options.model or "")
    with terminal.progress() as progress:
        return evaluate_model(
            model,
            options.prediction,
            number=options.number,
            dims=options.dims,
            settings=config,
            progress=progress,
        )


def preview(terminal: Terminal, options: Options) -> None:
    """Draw a prior: slices, projection, wall and convergence."""
    working_folder()
    from ..io.atomic import check_target, write_bytes
    from ..preview.page import preview as draw
    from ..prior.boundary import BoundaryPrior

    distinct(options, options.output)
    ending(options.output, ".png")
    check_target(options.output, overwrite=options.overwrite)
    drawn = draw(BoundaryPrior.read(options.file))
    write_bytes(options.output, drawn, overwrite=options.overwrite)
    show({"file": str(options.output)}, options.json, lambda: str(options.output))


def export(terminal: Terminal, options: Options) -> None:
    """Write a prior for a solver, mesher or viewer, as files that begin with DIR/NAME.

    Targets: nifti, stl, vtp, xdmf, gmsh, simvascular, openfoam, hemelb, palabos, lbm, 4dflownet,
    inr, npz, peclet.
    """
    working_folder()
    from ..export import export as run
    from ..prior.boundary import BoundaryPrior

    held = BoundaryPrior.read(options.file)
    with about(options.file):
        files = run(
            held,
            options.to,
            options.output,
            unit=options.length_unit,
            overwrite=options.overwrite,
        )
    paths = [str(file) for file in files]
    show({"target": options.to, "files": paths}, options.json, lambda: "\n".join(paths))


def profile(terminal: Terminal, options: Options) -> int:
    """Measure every kernel of the level set on this machine against what the machine could do."""
    machine(options)
    from .. import profiling

    with terminal.progress() as progress:
        found = profiling.profile(options.device or "cpu", quick=options.quick, progress=progress)
    show(found, options.json, lambda: profiling.table(found))
    return NumericalError.exit_code if found.get("wrong") else 0


def doctor(terminal: Terminal, options: Options) -> int:
    """Say what this machine offers, what is missing and how to install it."""
    report = device.doctor()
    show(report, options.json, lambda: "\n".join(outline(report)))
    return 0 if report["ok"] else 5


# --- shared by the verbs -----------------------------------------------------------------------


def scans(options: Options) -> tuple[Volume, ...]:
    """Read the scan and what else the network sees: the speed, or more images of the same file."""
    from ..infer import images_and_classes
    from ..io.choices import Choices
    from ..io.volume import read_scans

    count = 1 if options.start else images_and_classes(options.model)[0]
    chosen = Choices(**reading(options))
    if count != 2 or not velocity_files(options):
        return read_scans(options.input, count, chosen)
    from ..pipeline import speed

    scan = read_scans(options.input, 1, chosen)[0]
    flow = velocity(options, scan)
    return (scan,) if flow is None else (scan, speed(flow))


def velocity_files(options: Options) -> list[Path]:
    """Return the files of the velocity that was named, or the scan's own that holds one."""
    from ..io.velocity import has_velocity

    named = [Path(word) for word in (options.velocity or "").split(",") if word]
    if not named and options.key is None and has_velocity(options.input):
        named = [options.input]
    return named


def velocity(options: Options, volume: Volume) -> Flow | None:
    """Read the velocity that was named, or the one that the scan's own file holds."""
    from ..flow import parse_speed
    from ..io.velocity import read_flow

    venc = None if options.venc is None else parse_speed(options.venc)
    named = velocity_files(options)
    if not named:
        for name in ("venc", "velocity_unit", "velocity_axes"):
            if getattr(options, name) is not None:
                option = "--" + name.replace("_", "-")
                raise ConfigError(
                    "no velocity to use it for", path=option, remedy="give --velocity"
                )
        return None
    flow = read_flow(
        named,
        volume,
        venc_ms=venc,
        unit=options.velocity_unit,
        axes=options.velocity_axes,
    )
    averaged = len(flow.u_ms) if options.frame == "mean" else 1
    speed = any(note.startswith("speed of the velocity") for note in volume.notes)
    return replace(flow, averaged=averaged, with_magnitude=not speed)


def machine(options: Options, without: str = "") -> None:
    """Refuse a ``--device`` that the solver does not run on, and apply the other limits."""
    if options.device is not None:
        device.choose(options.device, without)
    limits(options)


def network_device(options: Options) -> str | None:
    """Return the device of the network, None where ``--device auto`` leaves it to the settings."""
    return None if options.device == "auto" else options.device


@contextmanager
def about(scan: Path) -> Iterator[None]:
    """Name the scan in a fault of a computation that knew arrays only."""
    try:
        yield
    except (DataError, NumericalError) as error:
        if error.path is None:
            error.path = str(scan)
        raise


def working_folder() -> None:
    """Refuse a working folder that is gone: paths fail there, and the network's libraries abort."""
    try:
        Path.cwd()
    except OSError as error:
        fault = f"no working folder: {error.strerror}"
        raise EnvironmentFault(fault, remedy="change to a folder that exists") from None


def limits(options: Options) -> None:
    """Apply ``--threads``, and refuse a bad ``--memory`` or no working folder at once."""
    working_folder()
    device.set_threads(options.threads)
    if options.memory is not None:
        device.parse_bytes(options.memory)


def fits(options: Options, voxels: int) -> int:
    """Refuse what will not fit into memory; return the estimate in bytes."""
    limit = None if options.memory is None else device.parse_bytes(options.memory)
    needed = device.FIXED_BYTES + device.BYTES_PER_VOXEL * voxels
    device.preflight(needed, limit, path=options.input)
    return needed


def distinct(options: Options, *outputs: Path) -> None:
    """Refuse an output that is one of the inputs, and two outputs of one name."""
    sources = (options.input, options.start, options.file)
    for source, output in itertools.product(sources, outputs):
        if source is None or source == Path():
            continue
        same = source.exists() and output.exists() and source.samefile(output)
        if same or source.absolute() == output.absolute():
            raise ConfigError("output is the input", path=output, remedy="name another")
    for output in outputs:
        if outputs.count(output) > 1:
            raise ConfigError("two outputs of one name", path=output, remedy="rename --output")


def ending(output: Path, *known: str) -> str:
    """Return which of the known endings a name has; refuse any other."""
    for suffix in known:
        if output.name.endswith(suffix):
            return suffix
    need = "a name that ends in " + " or ".join(known)
    raise ConfigError("unknown output format", path=output, need=need)


def plan(grid: dict[str, Any], config: dict[str, Any], needed: int) -> None:
    """Show what a dry run would do."""
    show({"grid": grid, "config": config, "memory_bytes": needed}, True, str)


def written(built: BoundaryPrior, path: Path, digest: str) -> dict[str, Any]:
    """Describe a prior that was written."""
    facts = {"file": str(path), "content_sha256": digest, "quality": dict(built.quality)}
    return {**facts, "warnings": list(built.warnings)}


def is_prior(options: Options) -> bool:
    """Tell a prior from a scan by its name; ``--key`` marks an HDF5 scan."""
    return options.file.suffix.lower() in HDF5 and options.key is None


def described(options: Options) -> dict[str, Any]:
    """Return what is in a file, by its kind."""
    if is_prior(options):
        from ..prior.boundary import BoundaryPrior
        from ..prior.check import summary

        held = BoundaryPrior.read(options.file)
        provenance = {"provenance": held.provenance, "open_with": OPEN_WITH}
        return {"file": str(options.file), **summary(held), **provenance}
    if options.file.suffix in (".safetensors", ".json", ".onnx"):
        working_folder()
        from ..nets import checkpoint

        return {"file": str(options.file), **checkpoint.load(options.file).card, "warnings": []}
    from ..io import read_volume

    volume = read_volume(options.file, **reading(options))
    low, high = float(volume.values.min()), float(volume.values.max())
    facts = {"file": str(options.file), "grid": volume.grid.as_dict(), "values": [low, high]}
    return {**facts, "sha256": volume.sha256, "warnings": list(volume.notes)}


def finding_lines(rows: list[dict[str, Any]]) -> list[str]:
    """Render findings, one a line."""
    words = {True: "ok", False: "FAILED"}
    mark = ["warning" if not r["ok"] and r["level"] == "warning" else words[r["ok"]] for r in rows]
    return [
        f"{m:<8} {r['id']!s:>4}  {r['name']}: {r['message']}"
        for m, r in zip(mark, rows, strict=True)
    ]


def outline(tree: Any, indent: str = "") -> list[str]:
    """Render nested facts as indented lines."""
    lines: list[str] = []
    for name, value in tree.items():
        if isinstance(value, dict):
            lines += [f"{indent}{name}", *outline(value, indent + "  ")]
        else:
            text = value if isinstance(value, str) else json.dumps(value)
            lines.append(f"{indent}{name:<18} {text}")
    return lines


def summary_lines(summary: dict[str, Any]) -> list[str]:
    """Render the measures of many cases, one a line."""
    names = list(next(iter(summary.values()), {}))
    lines = [" " * 22 + "".join(f"{name:>10}" for name in names)]
    for measure, found in summary.items():
        lines.append(f"{measure:<22}" + "".join(f"{found[name]:>10.4g}" for name in names))
    return lines


def model_lines(found: dict[str, Any]) -> list[str]:
    """Render networks and checkpoints, one a line."""
    lines = []
    for row in found["networks"]:
        counts = ", ".join(f"{n:,} {dims}" for dims, n in row["parameters"].items())
        lines.append(f"{row['name']:<20} {counts}")
    for card in found["checkpoints"]:
        lines.append(f"{card['name']:<20} shipped, {card['architecture']['name']}")
    return lines


READING = "frame component part spacing nan_fill key roi"
MACHINE = "device threads"
VELOCITY = "velocity venc velocity_unit velocity_axes"
BLOOD = f"{VELOCITY} cut seed_point extension axis"
TABLE = {
    demo: "output seed overwrite json " + MACHINE,
    prior: "input output start start_kind label components model accurate polarity config set "
    f"seed memory strict overwrite dry_run json {BLOOD} {READING} {MACHINE}",
    refine: "input output start start_kind label components config set seed memory strict "
    f"overwrite dry_run json {BLOOD} {READING} {MACHINE}",
    segment: "input output model accurate polarity save config set memory overwrite dry_run json "
    f"{VELOCITY} {READING} {MACHINE}",
    train: "output data config set seed steps epochs hours init resume overwrite workers dry_run "
    f"json {MACHINE}",
    models: "action name json",
    import_checkpoint: "file output config set seed overwrite json",
    export_onnx: "name output dims tile overwrite json threads",
    synth: "output number validation format config set seed overwrite json threads",
    check: f"file deep json {READING}",
    info: f"file json {READING}",
    evaluate: "prediction truth model report number dims config set json device threads",
    preview: "file output overwrite json",
    export: "file to output length_unit overwrite json",
    profile: "quick json device threads",
    doctor: "json",
}
NAMES = tuple(verb.__name__.replace("_", "-") for verb in TABLE)


def register(app: typer.Typer) -> None:
    """Add every verb to the application."""
    for name, (verb, options) in zip(NAMES, TABLE.items(), strict=True):
        must = "start" if verb is refine else ""
        app.command(name)(command(verb, options, must))
    study.register(app)
