"""The one family of errors, their exit codes and their one-line rendering."""

from __future__ import annotations

import os
import unicodedata
from typing import Any, ClassVar

MAX_LINE = 400


class InputError(Exception):
    """Base of every error that a user can cause or cure.

    Parameters
    ----------
    fault : str
        What is wrong, in a few words.
    path : path-like, optional
        The file, option or key at fault.
    found, need : optional
        The value found and the value needed.
    remedy : str, optional
        What to do about it.
    """

    exit_code: ClassVar[int] = 3
    kind: ClassVar[str] = "data"

    def __init__(
        self,
        fault: str,
        *,
        path: str | os.PathLike[str] | None = None,
        found: Any = None,
        need: Any = None,
        remedy: str | None = None,
    ) -> None:
        self.fault = fault
        self.path = None if path is None else os.fspath(path)
        self.found = found
        self.need = need
        self.remedy = remedy
        super().__init__(self.line())

    def line(self) -> str:
        """Render ``path: fault: found x, need y; remedy`` as one printable line."""
        facts = [f"found {self.found}"] if self.found is not None else []
        facts += [f"need {self.need}"] if self.need is not None else []
        text = self.fault + (": " + ", ".join(facts) if facts else "")
        text = f"{self.path}: {text}" if self.path is not None else text
        return printable(f"{text}; {self.remedy}" if self.remedy else text)

    def as_dict(self) -> dict[str, Any]:
        """Return the fields of ``--json-errors``."""
        names = ("path", "fault", "found", "need", "remedy")
        values = {n: getattr(self, n) for n in names}
        shown = {n: None if v is None else printable(str(v)) for n, v in values.items()}
        return {"code": self.exit_code, "kind": self.kind, **shown}


class ConfigError(InputError):
    """Usage, configuration or contradictory options."""

    exit_code = 2
    kind = "config"


class DataError(InputError):
    """An image, mask, affine, prior or study folder that cannot be used."""


class NoInterfaceError(DataError):
    """A level set, mask or probability without any wall."""


class CheckpointError(InputError):
    """Network weights or their sidecar."""

    exit_code = 4
    kind = "checkpoint"


class EnvironmentFault(InputError):
    """A missing dependency, device, permission, disk space or memory."""

    exit_code = 5
    kind = "environment"


class NumericalError(InputError):
    """The watchdog stopped a computation."""

    exit_code = 6
    kind = "numerical"


class StudyFailed(InputError):
    """A study ended and at least one case failed."""

    exit_code = 7
    kind = "study"


class Busy(InputError):
    """Another process holds the lock."""

    exit_code = 8
    kind = "busy"


def printable(text: str) -> str:
    """Escape control and undecodable characters and cut the text to one short line."""
    safe = "".join(c if unicodedata.category(c)[0] != "C" else ascii(c)[1:-1] for c in text)
    return safe if len(safe) <= MAX_LINE else safe[: MAX_LINE - 1] + "…"
