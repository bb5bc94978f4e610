"""The CUDA sources compiled by g++ for the CPU, and a device that launches them there."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vesselseg.cuda_kernels.catalogue import KERNELS, instances
from vesselseg.cuda_kernels.launch import Recording, bind, source

HEADER = Path(__file__).parent / "cuda_on_cpu.h"
FLAGS = ("-std=c++17", "-O1", "-fPIC", "-shared", "-w", "-U_FORTIFY_SOURCE")
FLAGS += ("-ffp-contract=off", "-fno-strict-aliasing")
SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-g")
GUARD = 64  # bytes of a pattern before and behind every array
PATTERN = np.uint8(0xA5)
BLOCKS = 3  # a grid smaller than most lists: kernels must stride


class LaunchError(RuntimeError):
    """A divergent barrier, or memory written beside an array."""


def symbol(instance: str) -> str:
    """Name of the C function that launches an instance."""
    return "launch_" + re.sub(r"\W+", "_", instance).strip("_")


def compiler() -> str:
    """Return g++, or skip the test."""
    found = shutil.which("g++")
    if found is None:
        pytest.skip("no g++ to compile the CUDA kernels for the CPU")
    return found


@functools.cache
def build(
    instance: str, edits: tuple[tuple[str, str], ...] = (), extra: tuple[str, ...] = ()
) -> Path:
    """Compile the file of an instance; with all others as it stands, alone with planted edits."""
    file = KERNELS[instance.partition("<")[0]].file
    return _built(file, (instance,) if edits else tuple(instances(file)), edits, extra)


@functools.cache
def _built(
    file: str,
    names: tuple[str, ...],
    edits: tuple[tuple[str, str], ...],
    extra: tuple[str, ...],
) -> Path:
    """Compile some instances of a file into a library kept by the digest of its input."""
    text = source(file)
    for old, new in edits:
        assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times in {file}"
        text = text.replace(old, new)
    stubs = "".join(f"VS_KERNEL({symbol(name)}, {name})\n" for name in names)
    text = f'#include "{HEADER.name}"\n{text}\n{stubs}'
    command = [compiler(), *FLAGS, *extra, f"-I{HEADER.parent}", "-x", "c++", "-"]
    version = subprocess.run([command[0], "--version"], capture_output=True, text=True).stdout
    key = "\0".join((text, HEADER.read_text(), *command[1:], version)).encode()
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "vesselseg-on-cpu"
    library = cache / f"{file}-{hashlib.sha256(key).hexdigest()[:20]}.so"
    if not library.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            made = Path(folder) / "made.so"
            done = subprocess.run(
                [*command, "-o", made], input=text, capture_output=True, text=True
            )
            assert done.returncode == 0, done.stderr[-4000:]
            made.rename(library)
    return library


class HostDevice:
    """What ``launch.Device`` is for a GPU, for the same sources on the CPU and NumPy arrays.

    ``seed`` 0 runs threads and blocks in order, any other shuffles them.
    """

    xp: Any = np
    index = 0
    memory = (1,)  # of the host, as DLPack counts
    multiprocessors = 1

    def __init__(
        self,
        seed: int = 0,
        edits: tuple[tuple[str, str], ...] = (),
        extra: tuple[str, ...] = (),
        blocks: int = BLOCKS,
    ) -> None:
        self.seed, self.edits, self.extra, self.blocks = seed, edits, extra, blocks
        self.kept: dict[Any, Any] = {}
        self._recording: list[Callable[[], None]] | None = None

    def launch(self, instance: str, *args: Any) -> None:
        """Launch an instance; every array it is given stands between guard words meanwhile."""
        run = functools.partial(self._run, instance, bind(instance, args))
        if self._recording is not None:
            self._recording.append(run)
        else:
            run()

    def record(self, function: Callable[[], None]) -> Recording:
        """Keep the launches that a function makes, without running them."""
        self._recording = []
        try:
            function()
            return Recording(tuple(self._recording))
        finally:
            self._recording = None

    def _run(self, instance: str, bound: list[Any]) -> None:
        kernel = KERNELS[instance.partition("<")[0]]
        library = ctypes.CDLL(str(build(instance, self.edits, self.extra)))
        function = getattr(library, symbol(instance))
        function.restype = ctypes.c_char_p
        guarded: dict[int, tuple[Any, Any]] = {}
        guard = 0 if self.extra else GUARD  # the sanitizers watch the ends of arrays themselves
        values = []
        for value in bound:
            if isinstance(value, np.ndarray):
                at = value.ctypes.data if value.size else id(value)
                if at not in guarded:
                    guarded[at] = value, _between_guards(value, guard)
                value = ctypes.c_void_p(guarded[at][1].ctypes.data + guard)
            elif value is None:
                value = ctypes.c_void_p(0)
            else:
                value = np.ctypeslib.as_ctypes_type(value.dtype)(value.item())
            values.append(value)
        pointers = (ctypes.c_void_p * len(values))(
            *(ctypes.cast(ctypes.byref(v), ctypes.c_void_p) for v in values)
        )
        shape = (ctypes.c_uint * 6)(self.blocks, 1, 1, kernel.threads, 1, 1)
        fault = function(shape, ctypes.c_uint(self.seed), pointers)
        for array, room in guarded.values():
            inner = room[guard : guard + array.nbytes]
            if array.flags.writeable:
                array[...] = inner.view(array.dtype).reshape(array.shape)
            elif not np.array_equal(inner, array.reshape(-1).view(np.uint8)):
                raise LaunchError(f"{instance}: a read-only array was written")
            if (room[:guard] != PATTERN).any() or (room[guard + array.nbytes :] != PATTERN).any():
                raise LaunchError(f"{instance}: memory beside an array was written")
        if fault:
            raise LaunchError(fault.decode())

    def release(self) -> None:
        """Give back what refinements keep."""
        self.kept.clear()

    def put(self, values: Any, out: Any) -> None:
        """Copy values into an array."""
        out[...] = values

    def later(self, array: Any) -> Any:
        """Copy an array at once, with the face of a copy on its way."""
        return Copied(array.copy())


class There(np.ndarray):
    """An array of a device whose memory is not the host's."""


class Memory:
    """NumPy under the name of a device's library: its arrays are ``There``, and are counted.

    ``made`` are the bytes of new arrays, ``moved`` those that came from arrays of the host.
    """

    ndarray = There

    def __init__(self) -> None:
        self.made = self.moved = 0

    def __getattr__(self, name: str) -> Any:
        found = getattr(np, name)
        if not callable(found) or isinstance(found, type):
            return found

        def call(*args: Any, **options: Any) -> Any:
            result = found(*args, **options)
            if not isinstance(result, np.ndarray):
                return result
            given = [a for a in args if isinstance(a, np.ndarray)]
            self.moved += sum(a.nbytes for a in given if not isinstance(a, There) and a.ndim)
            if not any(np.may_share_memory(result, a) for a in given):
                self.made += result.nbytes
            return result.view(There)

        return call

    def from_dlpack(self, array: Any) -> Any:
        """Return an array of another library, which lies on the device: nothing moves."""
        return np.from_dlpack(array).view(There)


class SeparateDevice(HostDevice):
    """An emulated device with memory of its own: arrays of the host are refused by its kernels.

    NumPy's arrays are the host's, those of torch count as the device's. ``log`` holds when a
    recording ran, when a copy to the host was asked for, and when it was waited for.
    """

    def __init__(self) -> None:
        super().__init__(blocks=1)
        self.xp = Memory()
        self.log: list[str] = []
        self.recorded = self.brought = 0  # recordings, bytes copied to the host

    def launch(self, instance: str, *args: Any) -> None:
        """Launch an instance on arrays of the device."""
        if any(isinstance(a, np.ndarray) and not isinstance(a, There) for a in args):
            raise LaunchError(f"{instance}: an array of the host")
        super().launch(instance, *args)

    def record(self, function: Callable[[], None]) -> Any:
        """Keep launches and write down when they run."""
        self.recorded += 1
        replay = super().record(function)

        def step() -> None:
            self.log.append("step")
            replay()

        return step

    def put(self, values: Any, out: Any) -> None:
        """Copy values into an array of the device."""
        self.xp.moved += 0 if isinstance(values, There) else values.nbytes
        out[...] = values

    def later(self, array: Any) -> Any:
        """Copy an array to the host, and write down when it is waited for."""
        if not isinstance(array, There):
            raise LaunchError("a copy to the host of an array of the host")
        self.log.append("ask")
        self.brought += array.nbytes
        copied = Copied(np.array(array))
        value = copied.value

        def waited() -> Any:
            self.log.append("read")
            return value()

        copied.value = waited  # type: ignore[method-assign]
        return copied


class Copied:
    """A copy that has come."""

    def __init__(self, host: Any) -> None:
        self.host = host

    def ready(self) -> bool:
        """Tell whether the copy has come."""
        return True

    def value(self) -> Any:
        """Return the copy."""
        return self.host


def _between_guards(array: Any, guard: int) -> Any:
    room = np.full(array.nbytes + 2 * guard, PATTERN, np.uint8)
    room[guard : guard + array.nbytes] = array.reshape(-1).view(np.uint8)
    return room


def host_device(seed: int = 0, **options: Any) -> HostDevice:
    """Return the CPU as a device, or skip the test where there is no g++."""
    compiler()
    return HostDevice(seed, **options)
