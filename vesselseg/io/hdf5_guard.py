"""The gate in front of every HDF5 file that is read.

Links, storage, filters and claimed sizes are checked before any data are read, so that a file
can neither name another file, nor load a plugin, nor allocate what it claims.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator
from typing import Any

import h5py
import numpy as np

from ..errors import DataError
from .guard import read_bytes_checked, size_text

PathLike = str | os.PathLike[str]
SoftLinkRule = Callable[[str, str], bool] | frozenset[str]

MAX_OBJECTS = 4096
MAX_CHUNK = 64 << 20
FILTERS = {1: "deflate", 2: "shuffle", 3: "fletcher32"}  # built in: no other can load a plugin
DAMAGED = (OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError)


@contextlib.contextmanager
def guard_hdf5(
    source: bytes | PathLike,
    *,
    max_bytes: int = 8 << 30,
    allowed_soft_links: SoftLinkRule = frozenset(),
    path: PathLike | None = None,
    what: str = "HDF5 file",
) -> Iterator[tuple[h5py.File, dict[str, h5py.Dataset]]]:
    """Open an HDF5 file from memory and check all of it but the data.

    Parameters
    ----------
    source : bytes or path-like
        The file, or its bytes. HDF5 itself opens nothing on disk.
    max_bytes : int
        Limit of the file and of the sum of its datasets as stored in memory.
    allowed_soft_links : callable or frozenset of str
        ``rule(link, target)``, or the links allowed, as absolute paths inside the file.
    path : path-like, optional
        Name in error messages if ``source`` is bytes.
    what : str
        What the file should be, for the messages.

    Yields
    ------
    file : h5py.File
        Read-only.
    datasets : dict
        Absolute path to dataset; a dataset with several hard links comes under each of them.

    Raises
    ------
    DataError
        Damaged or truncated file, forbidden link, storage or filter, a claim beyond the limit.
    """
    if not isinstance(source, bytes):
        path, source = source, read_bytes_checked(source, limit=max_bytes)
    rule = allowed_soft_links
    allowed = rule if callable(rule) else lambda link, target: link in rule
    with _open(source, path, what) as file:
        try:
            datasets = dict(_walk(file, allowed, max_bytes, path))
        except DAMAGED as error:
            raise DataError(f"not a readable {what}: damaged", path=path) from error
        yield file, datasets


def read_array(
    dataset: h5py.Dataset, selection: Any = (), *, path: PathLike | None = None
) -> np.ndarray:
    """Read a guarded dataset or a part of it; a checksum or filter error becomes a DataError."""
    try:
        return np.asarray(dataset[selection])
    except (OSError, RuntimeError) as error:
        fault = f"content of {dataset.name} differs from its checksum"
        raise DataError(fault, path=path, remedy="copy or make the file again") from error


def viewer_link(link: str, target: str) -> bool:
    """Whether a soft link is one of those that a prior holds for viewers."""
    return link.startswith("/VTKHDF/Assembly/") and target.startswith("/VTKHDF/")


def _open(data: bytes, path: PathLike | None, what: str) -> h5py.File:
    access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    access.set_fapl_core(backing_store=False)
    access.set_file_image(data)
    try:
        return h5py.File(h5py.h5f.open(b"memory", h5py.h5f.ACC_RDONLY, access))
    except DAMAGED as error:
        text = str(error)
        fault = "not HDF5" if "signature not found" in text else "damaged"
        fault = "truncated" if "truncated" in text else fault
        fault = "not closed properly" if "already open" in text else fault
        raise DataError(f"not a readable {what}: {fault}", path=path) from error


def _walk(
    file: h5py.File, allowed: Callable[[str, str], bool], max_bytes: int, path: PathLike | None
) -> Iterator[tuple[str, h5py.Dataset]]:
    """Visit every link once; hard links to one dataset are legal, those to one group are not."""
    groups, sizes, links = {_address(file)}, dict[int, int](), 0
    stack = [("", file["/"])]
    while stack:
        prefix, group = stack.pop()
        for name in group:
            child, link = f"{prefix}/{name}", group.get(name, getlink=True)
            links += 1
            if links > MAX_OBJECTS:
                raise DataError("too many objects", path=path, need=f"at most {MAX_OBJECTS}")
            if isinstance(link, h5py.ExternalLink):
                raise DataError(f"external link {child} not allowed", path=path)
            if isinstance(link, h5py.SoftLink):
                if not allowed(child, link.path):
                    raise DataError(f"soft link {child} not allowed", path=path)
                continue
            item = group[name]
            address = _address(item)
            if isinstance(item, h5py.Dataset):
                sizes[address] = _claim(item, child, path)
                if sum(sizes.values()) > max_bytes:
                    found, need = size_text(sum(sizes.values())), f"at most {size_text(max_bytes)}"
                    raise DataError(f"{child} claims too much", path=path, found=found, need=need)
                yield child, item
            elif address in groups:
                raise DataError(f"group {child} is linked twice", path=path)
            elif isinstance(item, h5py.Group):
                groups.add(address)
                stack.append((child, item))


def _claim(dataset: h5py.Dataset, name: str, path: PathLike | None) -> int:
    """Check how a dataset is stored and return the bytes that reading it may take."""
    plan = dataset.id.get_create_plist()
    if plan.get_layout() == h5py.h5d.VIRTUAL:
        raise DataError(f"virtual dataset {name} not allowed", path=path)
    if plan.get_external_count():
        raise DataError(f"external storage of {name} not allowed", path=path)
    foreign = {plan.get_filter(n)[0] for n in range(plan.get_nfilters())} - set(FILTERS)
    if foreign:
        need = ", ".join(FILTERS.values())
        raise DataError(f"filter {min(foreign)} of {name} not available", path=path, need=need)
    chunk = plan.get_chunk() if plan.get_layout() == h5py.h5d.CHUNKED else (0,)
    shape = (0,) if dataset.shape is None else dataset.shape
    itemsize = int(dataset.id.get_type().get_size())
    size, buffer = math.prod(shape) * itemsize, math.prod(chunk) * itemsize
    if buffer > max(size, MAX_CHUNK):  # a chunk is expanded whole, whatever part of it is used
        raise DataError(f"chunk of {name} claims too much", path=path, found=size_text(buffer))
    return size


def _address(item: h5py.HLObject) -> int:
    return int(h5py.h5o.get_info(item.id).addr)
