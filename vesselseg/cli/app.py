"""The command ``vesselseg``: each verb is a thin shell over one public function."""

from __future__ import annotations

import errno
import re
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer

from .. import __version__, device
from ..errors import ConfigError, EnvironmentFault, InputError
from . import verbs
from .terminal import PipeClosed, Terminal, silence_stdout, stdout_fault

# Typer 0.29 carries its own copy of click, earlier ones import it: take the class from the family.
UsageError: Any = typer.BadParameter.__base__

ANYWHERE = {
    "--quiet": "quiet",
    "-q": "quiet",
    "--verbose": "verbose",
    "-v": "verbose",
    "--debug": "debug",
    "--json-errors": "json_errors",
}
ONCE = {"-i": "--input", "--input": "--input", "-o": "--output", "--output": "--output"}


class Terminated(BaseException):
    """SIGTERM arrived; unwinds so that unfinished files are removed."""


app = typer.Typer(
    name="vesselseg",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="From an MR scan of blood vessels to a boundary prior. Research use only.",
    epilog="-q, -v, --debug and --json-errors work with every verb, before or after it.",
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"vesselseg {__version__}")
        raise typer.Exit


@app.callback()
def common(
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Errors only.")] = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Say every step.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    json_errors: Annotated[
        bool, typer.Option("--json-errors", help="Print an error as one JSON object.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Take the options that every verb understands; ``main`` has read them already."""


verbs.register(app)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code (0, 2 to 8, 70, 130, 141 or 143)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    terminal, rest = _hoist(arguments)
    device.quiet_threads()
    with _terminate_by_exception(), warnings.catch_warnings():
        if not terminal.debug:
            warnings.simplefilter("ignore")
        try:
            return _run(rest, terminal)
        except (KeyboardInterrupt, typer.Abort):
            return 130
        except Terminated:
            return 143
        except PipeClosed:
            silence_stdout()
            return 141


def _run(arguments: list[str], terminal: Terminal) -> int:
    """Run once, and once more after a damaged compiler cache was deleted."""
    try:
        return _verb(arguments, terminal)
    except InputError as error:
        return _refuse(error, terminal)
    except UsageError as error:
        return _refuse(_usage(error), terminal)
    except MemoryError:
        fault = EnvironmentFault("out of memory", remedy="crop the scan or free memory")
        return _refuse(fault, terminal)
    except OSError as error:
        # Files have a writer of their own that names them: what is full here is the output.
        if error.errno != errno.ENOSPC:
            return _defect(error, terminal)
        return _refuse(stdout_fault(error), terminal)
    except Exception as error:  # the outermost handler: all that is left is a defect of ours
        if not (device.is_numba_cache_fault(error.__traceback__) and device.heal_numba_cache()):
            return _defect(error, terminal)
    terminal.warn(["the compiled cache was damaged; it was deleted and is made anew"])
    return _run(arguments, terminal)


def _verb(arguments: list[str], terminal: Terminal) -> int:
    _given_once(arguments)
    command = typer.main.get_command(app)
    result = command.main(
        args=arguments, prog_name="vesselseg", standalone_mode=False, obj=terminal
    )
    return result if isinstance(result, int) else 0


def _refuse(error: InputError, terminal: Terminal) -> int:
    if terminal.debug:
        traceback.print_exc()
    terminal.error(error)
    return error.exit_code


def _defect(error: Exception, terminal: Terminal) -> int:
    fault = InputError(
        f"internal defect ({type(error).__name__}: {error})",
        remedy="please report it with the output of the same call and --debug",
    )
    _refuse(fault, terminal)
    return 70


def _usage(error: Any) -> ConfigError:
    """Turn a usage error of the parser into one of ours."""
    text = re.sub(r"\s+", " ", error.format_message()).strip().rstrip(".")
    context = getattr(error, "ctx", None)
    name = context.command_path if context is not None else "vesselseg"
    if text == "Missing command" and context is not None:
        text += ", one of " + ", ".join(context.command.list_commands(context))
    return ConfigError(text[:1].lower() + text[1:], remedy=f"see {name} --help")


def _hoist(arguments: list[str]) -> tuple[Terminal, list[str]]:
    """Split the options that work anywhere from the rest."""
    stop = arguments.index("--") if "--" in arguments else len(arguments)
    found = {ANYWHERE[a] for a in arguments[:stop] if a in ANYWHERE}
    rest = [a for a in arguments[:stop] if a not in ANYWHERE] + arguments[stop:]
    return Terminal(**dict.fromkeys(found, True)), rest


def _given_once(arguments: list[str]) -> None:
    """Refuse a second input or output, of which the parser would silently take the last."""
    seen = [ONCE[name] for a in arguments if (name := a.partition("=")[0]) in ONCE]
    for name in ("--input", "--output"):
        if seen.count(name) > 1:
            raise ConfigError("given more than once", path=name, remedy="run one scan a call")


@contextmanager
def _terminate_by_exception() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        raise Terminated

    before: Callable[..., Any] | int | None = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
