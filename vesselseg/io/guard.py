"""Checks that every reader shares: the file, its size, its gzip stream, what it claims."""

from __future__ import annotations

import errno
import hashlib
import math
import os
import stat
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ..errors import DataError, EnvironmentFault

PathLike = str | os.PathLike[str]

BLOCK = 1 << 20
GZIP = b"\x1f\x8b"


@dataclass(frozen=True)
class Limits:
    """What a file may claim before anything is allocated for it.

    Parameters
    ----------
    voxels : int
        Of one frame.
    expanded_bytes : int
        Of the whole file, decompressed.
    """

    voxels: int = 1 << 28
    expanded_bytes: int = 4 << 30

    def check(self, shape: tuple[int, ...], itemsize: int, path: PathLike, spatial: int = 3) -> int:
        """Return the bytes of an array whose last ``spatial`` axes make a frame, or refuse."""
        voxels, size = math.prod(shape[-spatial:]), math.prod(shape) * itemsize
        remedy = "crop the scan, or raise the limit"
        if voxels > self.voxels:
            found, need = f"{voxels:.3g}", f"at most {self.voxels:.3g}"
            raise DataError("claims too many voxels", path=path, found=found, need=need)
        if size > self.expanded_bytes:
            need = f"at most {size_text(self.expanded_bytes)}"
            fault = f"expands to {size_text(size)}"
            raise DataError(fault, path=path, need=need, remedy=remedy)
        return size


DEFAULT_LIMITS = Limits()


def read_bytes_checked(path: PathLike, *, limit: int) -> bytes:
    """Read a regular file whole; refuse one that is empty, too large, or changes meanwhile."""
    with os.fdopen(_open_regular(path), "rb") as file:
        before = os.fstat(file.fileno())
        if before.st_size == 0:
            raise DataError("empty file", path=path)
        if before.st_size > limit:
            found, need = size_text(before.st_size), f"at most {size_text(limit)}"
            raise DataError("file too large", path=path, found=found, need=need)
        try:
            data = _blocks(file, before.st_size)
        except OSError as error:
            raise EnvironmentFault(f"cannot read: {error.strerror}", path=path) from error
        after = os.fstat(file.fileno())
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns) or (
        len(data) != before.st_size
    ):
        raise DataError("changed during read", path=path, remedy="wait for its writer to finish")
    return data


def _blocks(file: BinaryIO, size: int) -> bytes:
    """Read ``size`` bytes, and one more if there is one."""
    data = file.read(size)
    return data + file.read(1)


def sha256_file(path: PathLike) -> str:
    """Return the SHA-256 of a regular file as hexadecimal digits."""
    with os.fdopen(_open_regular(path), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def gunzip_head(data: bytes, size: int, path: PathLike) -> bytes:
    """Return the first ``size`` bytes of a gzip stream, fewer if there are fewer."""
    try:
        return zlib.decompressobj(wbits=31).decompress(data[:BLOCK], size)
    except zlib.error as error:
        raise _gzip_fault(error, path) from error


def gunzip(data: bytes, size: int, path: PathLike) -> bytearray:
    """Expand a gzip file of one or more members to exactly ``size`` bytes.

    Every member must end, with the right checksum and length, and nothing may follow the last.
    At most one block more than ``size`` is ever expanded.
    """
    out, at = bytearray(), 0
    while at < len(data):
        if data[at : at + 2] != GZIP:
            raise DataError(f"{len(data) - at} bytes after the end of the gzip stream", path=path)
        stream, piece = zlib.decompressobj(wbits=31), b""
        while not stream.eof:
            if not piece:
                piece, at = data[at : at + BLOCK], at + BLOCK
                if not piece:
                    raise DataError("gzip stream ends early", path=path, remedy="copy it again")
            try:
                out += stream.decompress(piece, BLOCK)
            except zlib.error as error:
                raise _gzip_fault(error, path) from error
            if len(out) > size:
                need = f"{size} bytes as its header says"
                raise DataError("gzip stream expands to too much", path=path, need=need)
            piece = stream.unconsumed_tail
        at = min(at, len(data)) - len(stream.unused_data)
    if len(out) < size:
        raise DataError(f"truncated: needs {size} bytes, has {len(out)}", path=path)
    return out


def size_text(size: float) -> str:
    """Write a number of bytes for people."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def _open_regular(path: PathLike) -> int:
    """Open a regular file; a FIFO or a device is neither waited for nor read."""
    try:
        mode = Path(path).stat().st_mode
        if stat.S_ISDIR(mode):
            raise DataError("is a directory", path=path, need="a file")
        if not stat.S_ISREG(mode):
            raise DataError("not a regular file", path=path)
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError as error:
        raise DataError("no such file", path=path) from error
    except PermissionError as error:
        raise EnvironmentFault("permission denied", path=path) from error
    except OSError as error:
        fault = "symbolic links in a loop" if error.errno == errno.ELOOP else str(error.strerror)
        raise DataError(f"cannot open: {fault}", path=path) from error
    except ValueError as error:
        raise DataError("bad file name", path=path, need="a name without NUL") from error


def _gzip_fault(error: zlib.error, path: PathLike) -> DataError:
    fault = "damaged gzip stream"
    for sign, text in (
        ("data check", "gzip checksum mismatch"),
        ("length check", "gzip length mismatch"),
    ):
        fault = text if sign in str(error) else fault
    return DataError(fault, path=path, remedy="copy or compress the file again")
