"""The options of the command line, each declared once, and how they reach the settings."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

import typer

from ..errors import ConfigError

if TYPE_CHECKING:
    from ..config import Model as SettingsModel
    from .terminal import Terminal

RANGES = {
    "seed": (0, 2**63 - 1),
    "threads": (1, 256),
    "workers": (0, 256),
    "number": (1, 10**6),
    "validation": (0, 10**6),
    "steps": (1, 10**9),
    "epochs": (1, 10**6),
    "dims": (2, 3),
}


def path(text: str) -> Path:
    """Refuse an empty path, which pathlib would take for the working folder."""
    if not text:
        raise typer.BadParameter("empty path")
    return Path(text)


@dataclass(frozen=True)
class Options:
    """Every option; a verb takes the ones it names, the others keep their defaults."""

    file: Annotated[Path, typer.Argument(parser=path, help="The file to look at.")] = Path()
    folder: Annotated[
        Path, typer.Argument(parser=path, metavar="DIR", help="The folder of a study.")
    ] = Path()
    action: Annotated[str, typer.Argument(metavar="list|info", help="What to show.")] = ""
    name: Annotated[
        str | None, typer.Argument(help="A network, a shipped checkpoint or its file.")
    ] = None
    input: Annotated[Path, typer.Option("-i", "--input", parser=path, help="The scan to read.")] = (
        Path()
    )
    output: Annotated[
        Path, typer.Option("-o", "--output", parser=path, help="File or folder to make.")
    ] = Path()
    start: Annotated[
        Path | None, typer.Option(parser=path, help="Probability, mask or level set to start from.")
    ] = None
    prediction: Annotated[
        Path | None, typer.Argument(parser=path, help="Image or folder to judge, or scans to run.")
    ] = None
    truth: Annotated[
        Path | None,
        typer.Option(parser=path, help="Labels, probability or level set; a folder for a folder."),
    ] = None
    report: Annotated[
        Path | None,
        typer.Option("-o", "--output", parser=path, help="Folder for table and pictures."),
    ] = None
    dims: Annotated[int, typer.Option(help="Dimensions of the scans: 2 or 3.")] = 3
    tile: Annotated[int | None, typer.Option(help="Side of the tile, a multiple of 16.")] = None
    start_kind: Annotated[
        str | None,
        typer.Option(metavar="probability|logit|mask|phi", help="What it is; default: its values."),
    ] = None
    label: Annotated[int | None, typer.Option(help="The label of --start that is lumen.")] = None
    components: Annotated[
        str | None, typer.Option(metavar="all|largest|N|seed", help="Parts of the lumen to keep.")
    ] = None
    to: Annotated[str, typer.Option(metavar="TARGET", help="Format; see the verb's text.")] = ""
    length_unit: Annotated[
        str | None, typer.Option(metavar="m|cm|mm", help="Of the files; default: the target's.")
    ] = None
    model: Annotated[str | None, typer.Option(help="Name or file of a network.")] = None
    save: Annotated[
        str, typer.Option(metavar="LIST", help="Of prob,phi,sigma,mask,labels, with commas.")
    ] = "prob"
    frame: Annotated[
        str | None, typer.Option(metavar="N|mean", help="Which frame of a 4-D scan.")
    ] = None
    component: Annotated[str | None, typer.Option(help="Which channel of a scan of several.")] = (
        None
    )
    part: Annotated[
        str | None, typer.Option(metavar="real|imag|magnitude|phase", help="Of complex values.")
    ] = None
    spacing: Annotated[
        str | None, typer.Option(metavar="Z,Y,X", help="Voxel size in mm where the file has none.")
    ] = None
    nan_fill: Annotated[
        float | None, typer.Option(metavar="V", help="Value for non-finite voxels.")
    ] = None
    key: Annotated[str | None, typer.Option(help="Which array of a file that holds several.")] = (
        None
    )
    roi: Annotated[
        str | None, typer.Option(metavar="K:K,J:J,I:I", help="Read a box of voxels only.")
    ] = None
    polarity: Annotated[
        str | None, typer.Option(metavar="bright|dark|auto", help="Blood against its surroundings.")
    ] = None
    velocity: Annotated[
        str | None,
        typer.Option(metavar="FILE|U,V,W", help="Velocity: an HDF5 file, or three images."),
    ] = None
    venc: Annotated[
        str | None, typer.Option(metavar="SPEED", help="Encoding velocity, such as 150cm/s.")
    ] = None
    velocity_unit: Annotated[
        str | None, typer.Option(metavar="m/s|cm/s|mm/s|phase|steps", help="Unit of --velocity.")
    ] = None
    velocity_axes: Annotated[
        str | None, typer.Option(metavar="RAS|+i-j+k", help="Where its components point.")
    ] = None
    cut: Annotated[
        list[str] | None,
        typer.Option(metavar="X,Y,Z,NX,NY,NZ", help="Opening: point (RAS+, mm), outward normal."),
    ] = None
    seed_point: Annotated[
        list[str] | None,
        typer.Option(metavar="X,Y,Z", help="Opening across the lumen at a point of it."),
    ] = None
    axis: Annotated[
        str | None,
        typer.Option(metavar="i|j|X,Y,Z,DX,DY,DZ", help="Axis of revolution of a 2-D scan."),
    ] = None
    extension: Annotated[
        float | None, typer.Option(metavar="MM", help="Length of straight flow extensions.")
    ] = None
    number: Annotated[int, typer.Option("-n", "--number", help="How many cases.")] = 1
    validation: Annotated[
        int, typer.Option(help="Cases of these that go to val/ instead of train/.")
    ] = 0
    accurate: Annotated[
        bool,
        typer.Option(
            "--accurate", help="Network: all flips, twice those by default; more overlap."
        ),
    ] = False
    format: Annotated[Literal["npy", "h5"], typer.Option(help="Files of the data set.")] = "npy"
    steps: Annotated[int | None, typer.Option(help="Training steps.")] = None
    epochs: Annotated[int | None, typer.Option(help="Rounds over --data instead of steps.")] = None
    data: Annotated[
        Path | None, typer.Option(parser=path, help="Folder {train,val}/{magn,mask} to train on.")
    ] = None
    hours: Annotated[float | None, typer.Option(help="Training time instead of steps.")] = None
    resume: Annotated[bool, typer.Option("--resume", help="Go on where it was stopped.")] = False
    init: Annotated[str | None, typer.Option(help="Weights to start from.")] = None
    deep: Annotated[bool, typer.Option("--deep", help="Also test the sampler: 200 draws.")] = False
    config: Annotated[Path | None, typer.Option(parser=path, help="Settings, a TOML file.")] = None
    set: Annotated[
        list[str] | None, typer.Option(metavar="A.B=C", help="Change a setting; repeatable.")
    ] = None
    device: Annotated[
        str | None, typer.Option(metavar="auto|cpu|cuda[:N]", help="Where to run; default: auto.")
    ] = None
    quick: Annotated[bool, typer.Option("--quick", help="One small grid only.")] = False
    seed: Annotated[int | None, typer.Option(help="Random seed.")] = None
    threads: Annotated[int | None, typer.Option(help="Number of threads.")] = None
    workers: Annotated[
        int | None,
        typer.Option(help="Processes; 0 = no multiprocessing at all."),
    ] = None
    engine: Annotated[
        str | None, typer.Option(metavar="serial|processes|dask", help="Where the cases run.")
    ] = None
    scheduler: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="A Dask scheduler that runs already.")
    ] = None
    slurm: Annotated[bool, typer.Option("--slurm", help="Start the workers as SLURM jobs.")] = False
    pbs: Annotated[bool, typer.Option("--pbs", help="Start the workers as PBS jobs.")] = False
    force_new: Annotated[
        bool, typer.Option("--force-new", help="Delete the other study in the folder.")
    ] = False
    times: Annotated[
        bool, typer.Option("--times", help="Also seconds, memory, attempts and worker.")
    ] = False
    table: Annotated[
        Path | None,
        typer.Option("-o", "--output", parser=path, help="File to make: .csv or .parquet."),
    ] = None
    page: Annotated[
        Path | None, typer.Option("-o", "--output", parser=path, help="The HTML file to make.")
    ] = None
    metric: Annotated[str | None, typer.Option(help="The figure of merit to show.")] = None
    x: Annotated[str | None, typer.Option("--x", help="Setting across the heat map.")] = None
    y: Annotated[str | None, typer.Option("--y", help="Setting up the heat map.")] = None
    memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Refuse to take more, such as 3G.")
    ] = None
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")] = False
    strict: Annotated[
        bool, typer.Option("--strict", help="Fail if the refinement does not converge.")
    ] = False
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show settings and memory, compute nothing.")
    ] = False
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False

    def __post_init__(self) -> None:
        for name, (low, high) in RANGES.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                need = f"{low} to {high}"
                raise ConfigError("out of range", path=f"--{name}", found=value, need=need)
        if self.nan_fill is not None and not math.isfinite(self.nan_fill):
            found = self.nan_fill
            raise ConfigError("not finite", path="--nan-fill", found=found, need="a finite number")


REQUIRED = ("file", "folder", "action", "input", "output")
Verb = Callable[["Terminal", Options], int | None]


def command(function: Verb, names: str, required: str = "") -> Callable[..., int | None]:
    """Make the function that typer reads: one parameter for each named option."""
    hints = get_type_hints(Options, include_extras=True)
    defaults = {f.name: f.default for f in fields(Options)}
    must = (*REQUIRED, *required.split())

    def run(context: typer.Context, **values: Any) -> int | None:
        return function(context.obj, Options(**values))

    parameters = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if name in must else defaults[name],
            annotation=hints[name],
        )
        for name in names.split()
    ]
    context = inspect.Parameter(
        "context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context
    )
    run.__signature__ = inspect.Signature([context, *parameters])  # type: ignore[attr-defined]
    run.__annotations__ = {"context": typer.Context, **{n: hints[n] for n in names.split()}}
    run.__doc__ = function.__doc__
    return run


def settings(
    model: type[SettingsModel], options: Options, given: Mapping[str, Any]
) -> SettingsModel:
    """Compose settings: defaults < file < ``--set`` < option.

    Parameters
    ----------
    given : mapping
        Dotted key to value; None means that the option was not given.
    """
    from ..config import build, load_toml, override

    tree = override(load_toml(options.config) if options.config else {}, options.set or [])
    for dotted, value in given.items():
        if value is None:
            continue
        *parents, last = dotted.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        if isinstance(node, dict):  # anything else is refused by the model
            node[last] = value
    return build(model, tree, options.config)


def reading(options: Options) -> dict[str, Any]:
    """Return the arguments of ``vesselseg.io.read_volume``."""
    return {
        "frame": _frame(options.frame),
        "component": number_or_word(options.component),
        "part": options.part,
        "spacing_mm": _spacing_mm(options.spacing),
        "nan_fill": options.nan_fill,
        "key": options.key,
        "roi": _roi(options.roi),
    }


def points(texts: list[str] | None, count: int, option: str) -> list[list[float]] | None:
    """Read repeated comma-separated numbers; None if the option was not given."""
    if not texts:
        return None
    found = []
    for text in texts:
        try:
            values = [float(word) for word in text.split(",")]
        except ValueError:
            values = []
        if len(values) != count or not all(math.isfinite(v) for v in values):
            raise ConfigError("bad point", path=option, found=text, need=f"{count} numbers")
        if count == 6 and not any(values[3:]):
            raise ConfigError("normal of length zero", path=option, found=text)
        found.append(values)
    return found


def revolution(text: str | None) -> str | list[float] | None:
    """Read ``--axis``: i, j, or a point and a direction."""
    if text is None or text in ("i", "j"):
        return text
    if text.count(",") != 5:
        need = "i, j, or a point and a direction: 6 numbers"
        raise ConfigError("bad axis", path="--axis", found=text, need=need)
    found = points([text], 6, "--axis")
    return found[0] if found else None


def _frame(text: str | None) -> int | Literal["mean"] | None:
    if text is None or text == "mean":
        return None if text is None else "mean"
    if not text.isdecimal():
        raise ConfigError("bad frame", path="--frame", found=text, need="a number from 0, or mean")
    return int(text)


def number_or_word(text: str | None) -> int | str | None:
    """Turn a whole number into one; leave any other word alone."""
    return int(text) if text is not None and text.isdecimal() else text


def components(text: str | None) -> int | str | None:
    """Read ``--components``."""
    value = number_or_word(text)
    if value == 0 or (isinstance(value, str) and value not in ("all", "largest", "seed")):
        need = "all, largest, seed or a number from 1"
        raise ConfigError("bad components", path="--components", found=text, need=need)
    return value


def _roi(text: str | None) -> tuple[slice, ...] | None:
    """Read ``K0:K1,J0:J1,I0:I1`` in voxels; an end that is left out is that of the scan."""
    if text is None:
        return None
    ends = [part.split(":") for part in text.split(",")]
    if not all(len(pair) == 2 and all(e.isdecimal() or not e for e in pair) for pair in ends):
        raise ConfigError("bad region", path="--roi", found=text, need="K0:K1,J0:J1,I0:I1")
    return tuple(slice(*(int(end) if end else None for end in pair)) for pair in ends)


def _spacing_mm(text: str | None) -> tuple[float, ...] | None:
    """Read ``Z,Y,X`` (or ``Y,X``, or one number) in mm."""
    if text is None:
        return None
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) not in (1, 2, 3) or not all(0.0 < v < float("inf") for v in values):
        need = "Z,Y,X in mm, for example 1.2,0.5,0.5"
        raise ConfigError("bad spacing", path="--spacing", found=text, need=need)
    return values
