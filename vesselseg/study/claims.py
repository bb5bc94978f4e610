"""Which runner does which case: locks that the kernel frees when their holder dies.

A claim is a lock on one byte of one file, at the index of the case. It belongs to the open file
(Linux ``F_OFD_SETLK``), so that two runners exclude each other in one process and on one or two
hosts; there is nothing to clean up. On a file system without locks a claim is a file made with
O_EXCL, beside a counter that its runner raises: a claim whose counter rests for five minutes of
the observer's monotonic clock is taken over.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import struct
import threading
import time
from pathlib import Path

from ..errors import EnvironmentFault

HELD = {errno.EAGAIN, errno.EACCES}
NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS, 524}  # 524: ENOTSUPP of NFS
BEAT_SECONDS = 20.0
STALE_SECONDS = 300.0
NAME = "claims"


class Claims:
    """The claims of one runner.

    Parameters
    ----------
    folder : Path
        Of the study.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.notices: list[str] = []
        self._files: Beacons | None = None
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        try:
            self._handle = os.open(folder / NAME, flags, 0o666)
        except OSError as error:
            fault = f"cannot write: {error.strerror}"
            raise EnvironmentFault(fault, path=folder / NAME) from None

    def take(self, index: int) -> bool:
        """Claim a case; False if another runner holds it."""
        if self._files is None:
            try:
                self._lock(fcntl.F_WRLCK, index)
                return True
            except OSError as error:
                if error.errno in HELD:
                    return False
                if error.errno not in NO_LOCKS:
                    raise EnvironmentFault(
                        f"cannot lock: {error.strerror}", path=self.folder / NAME
                    ) from None
            self._files = Beacons(self.folder / "claimed")
            self.notices.append("no file locks here: a dead runner's cases wait for five minutes")
        return self._files.take(index)

    def free(self, index: int) -> None:
        """Give a case back."""
        if self._files is None:
            self._lock(fcntl.F_UNLCK, index)
        else:
            self._files.free(index)

    def _lock(self, kind: int, index: int) -> None:
        span = struct.pack("hhqqi4x", kind, os.SEEK_SET, index, 1, 0)  # struct flock of Linux
        fcntl.fcntl(self._handle, fcntl.F_OFD_SETLK, span)

    def idle(self) -> bool:
        """Whether no runner holds any case of the study."""
        span = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        try:
            found = fcntl.fcntl(self._handle, fcntl.F_OFD_GETLK, span)
        except OSError:
            return not any((self.folder / "claimed").glob("*.claim"))
        return bool(struct.unpack("hhqqi4x", found)[0] == fcntl.F_UNLCK)

    def close(self) -> None:
        """Free everything."""
        os.close(self._handle)
        if self._files is not None:
            self._files.close()

    def __enter__(self) -> Claims:
        return self

    def __exit__(self, *fault: object) -> None:
        self.close()


class Beacons:
    """Claims as files, each naming its runner, whose counter shows that it lives."""

    def __init__(self, folder: Path, *, stale_seconds: float = STALE_SECONDS) -> None:
        self.folder = folder
        self.stale_seconds = stale_seconds
        self.own = secrets.token_hex(8)
        self._held: set[int] = set()
        self._seen: dict[str, tuple[str, float]] = {}
        folder.mkdir(exist_ok=True)
        self._count = 0
        self._beat()
        self._stop = threading.Event()
        threading.Thread(target=self._beating, daemon=True).start()

    def take(self, index: int) -> bool:
        """Claim a case; a dead runner's is taken over."""
        path = self.folder / f"{index}.claim"
        if not self._make(path):
            try:
                owner = path.read_text()
            except OSError:  # freed just now
                return False
            if not self._dead(owner) or not self._remove(path, owner) or not self._make(path):
                return False
        self._held.add(index)
        return True

    def free(self, index: int) -> None:
        """Give a case back."""
        self._held.discard(index)
        (self.folder / f"{index}.claim").unlink(missing_ok=True)

    def close(self) -> None:
        """Free everything and stop the counter."""
        self._stop.set()
        for index in list(self._held):
            self.free(index)
        (self.folder / f"{self.own}.beat").unlink(missing_ok=True)

    def _make(self, path: Path) -> bool:
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        except FileExistsError:
            return False
        os.write(handle, self.own.encode())
        os.close(handle)
        return True

    def _remove(self, path: Path, owner: str) -> bool:
        """Take a dead claim away; of several observers one succeeds, and never with a new one."""
        aside = path.with_suffix(f".{self.own}")
        try:
            path.rename(aside)
        except OSError:
            return False
        dead = aside.read_text() == owner
        if not dead:  # another observer was faster, and this is its claim
            with contextlib.suppress(OSError):
                os.link(aside, path)
        aside.unlink()
        return dead

    def _dead(self, owner: str) -> bool:
        if not owner:
            return False
        try:
            count = (self.folder / f"{owner}.beat").read_text()
        except OSError:
            count = ""
        now = time.monotonic()
        before, since = self._seen.setdefault(owner, (count, now))
        if before != count:
            self._seen[owner] = (count, now)
            return False
        return now - since > self.stale_seconds

    def _beat(self) -> None:
        self._count += 1
        (self.folder / f"{self.own}.beat").write_text(str(self._count))

    def _beating(self) -> None:
        while not self._stop.wait(BEAT_SECONDS):
            with contextlib.suppress(OSError):
                self._beat()
