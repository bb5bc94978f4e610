"""What has been done: append-only lines of JSON, one file per runner, merged on reading.

Only runners write it, one ``write`` a line, so a kill can tear the last line of a file at most. A
case counts as done only if its artefacts exist with their digests; the ledger merely says which.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import DataError, EnvironmentFault
from ..io.atomic import FULL

Record = dict[str, Any]

FOLDER = "ledger"
SCHEMA = 1


class Ledger:
    """The records of a study, its own runner's and the others'.

    Parameters
    ----------
    folder : Path
        Of the study.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / FOLDER
        self.records: dict[str, list[Record]] = {}
        self.notices: list[str] = []
        self._offsets: dict[Path, int] = {}
        self._lines: dict[Path, int] = {}
        self._own: Path | None = None
        self._handle = -1

    def refresh(self) -> None:
        """Read what was written since the last time.

        Raises
        ------
        DataError
            A line that is not a record and not the last of its file (B191).
        """
        for file in sorted(self.folder.glob("*.jsonl")):
            if file != self._own:
                self._read(file)

    def _read(self, file: Path) -> None:
        try:
            with file.open("rb") as stream:
                stream.seek(self._offsets.get(file, 0))
                data = stream.read()
        except OSError as error:
            raise DataError(f"cannot read: {error.strerror}", path=file) from None
        whole = data.rfind(b"\n") + 1
        lines, before = data[:whole].splitlines(), self._lines.get(file, 0)
        for number, line in enumerate(lines, before + 1):
            self._add(_parsed(line, file, number))
        self._offsets[file] = self._offsets.get(file, 0) + whole
        self._lines[file] = before + len(lines)
        if whole < len(data):
            self.notices.append(f"{file.name}: its last line is torn and was ignored")

    def _add(self, record: Record) -> None:
        self.records.setdefault(record["id"], []).append(record)

    def open(self) -> None:
        """Make the file of this runner."""
        name = re.sub(r"[^\w.-]", "_", socket.gethostname())[:64]
        self._own = self.folder / f"{name}-{os.getpid()}-{secrets.token_hex(4)}.jsonl"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        try:
            self._handle = os.open(self._own, flags, 0o666)
        except OSError as error:
            raise EnvironmentFault(f"cannot write: {error.strerror}", path=self._own) from None

    def append(self, record: Record) -> None:
        """Write one record, durably; a line that did not fit is taken back.

        Raises
        ------
        EnvironmentFault
            Disk full, I/O error.
        """
        line = (json.dumps(record, separators=(",", ":")) + "\n").encode()
        end = os.fstat(self._handle).st_size
        try:
            if os.write(self._handle, line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fdatasync(self._handle)
        except OSError as error:
            os.ftruncate(self._handle, end)
            raise self._fault(error, len(line)) from None
        self._add(record)

    def _fault(self, error: OSError, needed: int) -> EnvironmentFault:
        if error.errno not in FULL:
            return EnvironmentFault(f"cannot write: {error.strerror}", path=self._own)
        free = shutil.disk_usage(self.folder).free
        found, need = f"{free / 1e6:.1f} MB free", f"~{needed / 1e6:.1f} MB"
        remedy = "free some space, then vesselseg study resume"
        return EnvironmentFault("no space", path=self._own, found=found, need=need, remedy=remedy)

    def close(self) -> None:
        """Close the file of this runner; an empty one is removed."""
        if self._handle >= 0 and self._own is not None:
            empty = os.fstat(self._handle).st_size == 0
            os.close(self._handle)
            self._handle = -1
            if empty:
                self._own.unlink(missing_ok=True)

    def __enter__(self) -> Ledger:
        self.open()
        self.refresh()
        return self

    def __exit__(self, *fault: object) -> None:
        self.close()

    def latest(self, case: str) -> Record | None:
        """Return what counts of a case: a record with its artefacts there, else the last one."""
        records = self.records.get(case)
        if not records:
            return None
        for record in reversed(records):
            if record["state"] == "done" and present(self.folder.parent, record):
                return record
        last = records[-1]
        return {**last, "state": "missing"} if last["state"] == "done" else last

    def outcomes(self) -> Iterator[Record]:
        """Give what counts of every case, by index."""
        found = [record for case in self.records if (record := self.latest(case)) is not None]
        yield from sorted(found, key=lambda record: record["index"])


def _parsed(line: bytes, file: Path, number: int) -> Record:
    try:
        record = json.loads(line)
        known = {"id", "case", "index", "state", "artefacts"}
        if isinstance(record, dict) and known <= set(record):
            return record
    except ValueError:
        pass
    remedy = "delete the line, or the file; its cases are then done again"
    raise DataError(f"line {number} is no record", path=file, remedy=remedy)


def present(folder: Path, record: Record) -> bool:
    """Whether every artefact of a record exists with its size; the digest is for ``intact``."""
    try:
        return all(
            os.stat(folder / part["path"]).st_size == part["bytes"]  # noqa: PTH116 - 10 000 times
            for part in record["artefacts"].values()
        )
    except OSError:
        return False


def intact(folder: Path, record: Record) -> bool:
    """Whether every artefact of a record exists with its digest."""
    try:
        for part in record["artefacts"].values():
            with (folder / part["path"]).open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != part["sha256"]:
                    return False
    except OSError:
        return False
    return True
