"""What the command line says: results on stdout, everything human on stderr."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import EnvironmentFault, InputError, printable

if TYPE_CHECKING:
    from ..fields import Progress


class PipeClosed(BaseException):
    """Nobody reads stdout any more; not an OSError, which typer would take for its own."""


@dataclass(frozen=True)
class Terminal:
    """How much to say and in which form.

    Parameters
    ----------
    quiet : bool
        No progress and no warnings.
    verbose : bool
        Every progress message, not one line a stage.
    debug : bool
        Tracebacks.
    json_errors : bool
        Errors as one JSON object.
    """

    quiet: bool = False
    verbose: bool = False
    debug: bool = False
    json_errors: bool = False

    def say(self, text: str) -> None:
        """Write one line to stderr unless quiet."""
        if not self.quiet:
            _write(f"vesselseg: {printable(text)}")

    def warn(self, notes: Iterable[str]) -> None:
        """Write one warning line per note."""
        for note in notes:
            self.say(f"warning: {note}")

    def error(self, error: InputError) -> None:
        """Write the one line, or the one object, of an error."""
        if self.json_errors:
            _write(json.dumps(error.as_dict()))
        else:
            _write(f"vesselseg: error: {error.line()}")

    @contextmanager
    def progress(self) -> Iterator[Progress]:
        """Give the callback that shows progress: bars on a terminal, else a line per stage."""
        if self.quiet:
            yield lambda stage, fraction, message: None
        elif sys.stderr is not None and sys.stderr.isatty():
            with _bars() as callback:
                yield callback
        else:
            yield self._lines()

    def _lines(self) -> Progress:
        begin = time.perf_counter()
        seen: set[tuple[str, str]] = set()

        def report(stage: str, fraction: float, message: str) -> None:
            key = (stage, message if self.verbose else "")
            if key not in seen:
                seen.add(key)
                self.say(f"{time.perf_counter() - begin:6.1f} s  {stage}: {message}".rstrip(": "))

        return report


@contextmanager
def _bars() -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    style = "{task.description:<12}", "{task.fields[message]}"
    columns = TextColumn(style[0]), BarColumn(), TimeElapsedColumn(), TextColumn(style[1])
    tasks: dict[str, TaskID] = {}
    with Bars(*columns, console=Console(stderr=True)) as bars:

        def report(stage: str, fraction: float, message: str) -> None:
            if stage not in tasks:
                for done in tasks.values():  # a stage may end before its last step
                    bars.update(done, completed=1.0)
                tasks[stage] = bars.add_task(stage, total=1.0, message=printable(message))
            bars.update(tasks[stage], completed=fraction, message=printable(message))

        yield report


def show(result: Mapping[str, Any], as_json: bool, human: Callable[[], str]) -> None:
    """Write a result to stdout: one JSON object, or the human text."""
    stdout_text(json.dumps(result, indent=2) if as_json else human())


def stdout_text(text: str) -> None:
    """Write text to stdout, and name what goes wrong with it."""
    try:
        print(text, flush=True)  # noqa: T201
    except BrokenPipeError:
        raise PipeClosed from None
    except OSError as error:
        raise stdout_fault(error) from None


def stdout_fault(error: OSError) -> EnvironmentFault:
    """Name a failure to write to stdout, and give up on it."""
    silence_stdout()
    return EnvironmentFault(f"cannot write the result: {error.strerror}", path="standard output")


def silence_stdout() -> None:
    """Point stdout at nothing, so that the interpreter's last flush stays quiet."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)


def _write(line: str) -> None:
    if sys.stderr is not None:
        sys.stderr.write(line + "\n")
        sys.stderr.flush()
