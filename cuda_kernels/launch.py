"""Launches of CUDA kernels: their sources and signatures, compilation, graphs, copies out.

A kernel's parameters are those of its ``.cu`` file, which is parsed: a Python number becomes the C
type, an array must have its type and lie in C order, ``None`` is a null pointer. Nothing here
waits for the device.
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np

from .catalogue import EXACT, KERNELS

# Division and root may be off by one or two in the last place, which saves a sixth of a stencil.
# CuPy forces -ftz=true on every kernel; it stands here for the resource checks.
OPTIONS = ("--std=c++17", "-ftz=true", "-prec-div=false", "-prec-sqrt=false")
MOST_VOXELS = 2**31 - 1  # kernels count in 32 bits

LINES = "-lineinfo"  # places in the sources for NVIDIA's profilers; the machine code stays the same

C_TYPES: dict[str, Any] = {
    "float": np.float32,
    "double": np.float64,
    "int": np.int32,
    "unsigned": np.uint32,
    "short": np.int16,
    "unsigned short": np.uint16,
    "signed char": np.int8,
    "unsigned char": np.uint8,
    "bool": np.bool_,
    "long long": np.int64,
    "unsigned long long": np.uint64,
}
KERNEL = re.compile(
    r"(?:template <([^>]*)>\s*)?__global__ void"
    r"(?:\s*__launch_bounds__\([^)]*\))?\s*(\w+)\(([^)]*)\)"
)


def options(instance: str) -> tuple[str, ...]:
    """Return how NVRTC compiles an instance."""
    name, _, template = instance.rstrip(">").partition("<")
    exact = KERNELS[name].file in EXACT and template.endswith("double")
    return (*OPTIONS, "-fmad=false") if exact else OPTIONS


@dataclass(frozen=True)
class Parameter:
    """A parameter of a kernel: its name, its C type or template argument, whether a pointer."""

    name: str
    type: str
    pointer: bool


@functools.cache
def source(file: str) -> str:
    """Return a .cu file with the headers pasted in.

    CuPy's cache on disk looks at this text only, so it must hold everything.
    """
    folder = resources.files(__package__)
    lines = [f'#line 1 "{file}"']
    for n, line in enumerate((folder / file).read_text().splitlines(), 1):
        if header := re.fullmatch(r'#include "(\w+\.cuh)"', line):
            text = source(header[1]).replace("#pragma once", "")
            lines += [text, f'#line {n + 1} "{file}"']
        else:
            lines.append(line)
    return "\n".join(lines) + "\n"


@functools.cache
def signatures(file: str) -> dict[str, tuple[tuple[str, ...], tuple[Parameter, ...]]]:
    """Return the template arguments' names and the parameters of every kernel of a file."""
    found = {}
    for template, name, parameters in KERNEL.findall(source(file)):
        names = tuple(part.split()[-1] for part in template.split(",") if part.strip())
        found[name] = names, tuple(_parameter(text) for text in parameters.split(","))
    return found


def _parameter(text: str) -> Parameter:
    words = text.replace("*", " * ").split()
    kind = " ".join(w for w in words[:-1] if w not in ("const", "*", "__restrict__"))
    return Parameter(words[-1], kind, "*" in words)


def bind(instance: str, args: Sequence[Any]) -> list[Any]:
    """Return the arguments of an instance as arrays and NumPy scalars of the C types.

    Raises
    ------
    TypeError
        If their number, an array's type or its layout is not the kernel's.
    """
    name, _, template = instance.rstrip(">").partition("<")
    names, parameters = signatures(KERNELS[name].file)[name]
    types = dict(zip(names, template.split(","), strict=True)) if names else {}
    if len(args) != len(parameters):
        raise TypeError(f"{instance}: {len(args)} arguments, not {len(parameters)}")
    return [
        _bound(instance, p, C_TYPES[types.get(p.type, p.type)], value)
        for p, value in zip(parameters, args, strict=True)
    ]


def _bound(instance: str, parameter: Parameter, kind: Any, value: Any) -> Any:
    if not parameter.pointer:
        return kind(value)
    if value is None:
        return None
    fault = None
    if getattr(value, "dtype", None) != kind:
        fault = f"is {getattr(value, 'dtype', type(value))}, not {np.dtype(kind)}"
    elif not value.flags.c_contiguous:
        fault = "is not in C order"
    elif value.size > MOST_VOXELS:
        fault = f"has {value.size} entries, over {MOST_VOXELS}"
    if fault:
        raise TypeError(f"{instance}: {parameter.name} {fault}")
    return value


@dataclass(frozen=True)
class Later:
    """A copy on its way to the host."""

    host: Any
    event: Any

    def ready(self) -> bool:
        """Tell whether the copy has come."""
        return bool(self.event.done)

    def value(self) -> Any:
        """Return the copy; waits if it has not come."""
        self.event.synchronize()
        return self.host


@dataclass(frozen=True)
class Recording:
    """Launches to be replayed; ``graph`` is None where they could not be captured."""

    launches: tuple[Callable[[], None], ...]
    graph: Any = None

    def __call__(self) -> None:
        """Run them, in order, on the current stream."""
        if self.graph is not None:
            self.graph.launch()
            return
        for launch in self.launches:
            launch()


class Device:
    """One GPU: ``launch``, ``record``, ``put`` and ``later`` work on CuPy's current stream.

    With ``lines`` the kernels know their places in the sources, for NVIDIA's profilers. ``kept``
    is what refinements keep here for the next of their kind.
    """

    memory = (2, 13)  # where its arrays lie, as DLPack counts: CUDA's own or managed

    def __init__(self, index: int, lines: bool = False) -> None:
        import cupy

        self.xp: Any = cupy
        self.index = index
        self.more = (LINES,) if lines else ()
        self.kept: dict[Any, Any] = {}
        self._recording: list[Callable[[], None]] | None = None
        with cupy.cuda.Device(index) as device:
            self.multiprocessors = int(device.attributes["MultiProcessorCount"])

    def launch(self, instance: str, *args: Any) -> None:
        """Launch an instance of the catalogue on arrays of this device and numbers."""
        kernel = KERNELS[instance.partition("<")[0]]
        bound = tuple(bind(instance, args))
        function = _compiled(self.index, instance, self.more)
        grid = (kernel.per_sm * self.multiprocessors,), (kernel.threads,)
        run = functools.partial(function, *grid, bound)
        if self._recording is not None:
            self._recording.append(run)
        else:
            run()

    def record(self, function: Callable[[], None]) -> Recording:
        """Keep the launches that a function makes, without running them, as a CUDA graph.

        What else the function does is done now and once. The arrays live as long as the recording.
        """
        self._recording = []
        try:
            function()
            launches = tuple(self._recording)
        finally:
            self._recording = None
        return Recording(launches, self._captured(launches))

    def _captured(self, launches: tuple[Callable[[], None], ...]) -> Any:
        cuda = self.xp.cuda
        stream = cuda.Stream(non_blocking=True)
        try:
            with stream:
                stream.begin_capture()
                for launch in launches:
                    launch()
                graph = stream.end_capture()
                graph.upload(stream)
        except (cuda.runtime.CUDARuntimeError, cuda.driver.CUDADriverError):
            return None
        return graph

    def release(self) -> None:
        """Give back what refinements keep."""
        self.kept.clear()

    def put(self, values: Any, out: Any) -> None:
        """Copy values of the device or the host, as many or one for all, into an array."""
        if isinstance(values, self.xp.ndarray):
            out[...] = values
        elif values.size == 1:
            out.fill(values.item())
        else:
            out.set(np.ascontiguousarray(values, dtype=out.dtype))

    def later(self, array: Any) -> Later:
        """Begin to copy an array to the host."""
        import cupyx

        host = cupyx.empty_pinned(array.shape, array.dtype)
        array.get(out=host, blocking=False)
        event = self.xp.cuda.Event(disable_timing=True)
        event.record()
        return Later(host, event)


@functools.cache
def device(index: int, lines: bool = False) -> Device:
    """Return the GPU of an index."""
    return Device(index, lines)


def device_of(array: Any) -> Device:
    """Return the GPU that holds an array: CuPy's, torch's, or another's that speaks DLPack."""
    return device(int(array.__dlpack_device__()[1]))


@dataclass(frozen=True)
class Stream:
    """A stream of another library, as CuPy takes it."""

    pointer: int

    def __cuda_stream__(self) -> tuple[int, int]:
        """Return the version of the protocol and the stream's handle."""
        return 0, self.pointer


def stream_of(array: Any) -> Stream | None:
    """Return the stream on which torch works now, for its arrays; None for those of others."""
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(array, torch.Tensor):
        return None
    return Stream(int(torch.cuda.current_stream(array.device).cuda_stream))


@contextmanager
def torchs_memory() -> Iterator[None]:
    """Let CuPy take its memory from torch's pool, so that there is one pool and not two.

    Needs torch imported and a CUDA device; graphs recorded inside keep what they use.
    """
    import cupy

    torch = sys.modules["torch"].cuda

    def malloc(size: int, index: int) -> int:
        stream = cupy.cuda.get_current_stream().ptr
        try:
            return int(torch.caching_allocator_alloc(size, index, stream)) if size else 0
        except torch.OutOfMemoryError as full:
            raise MemoryError(str(full)) from full

    def free(pointer: int, index: int) -> None:
        if pointer:
            torch.caching_allocator_delete(pointer)

    pool = cupy.cuda.PythonFunctionAllocator(malloc, free)
    with cupy.cuda.using_allocator(pool.malloc):
        yield


@functools.cache
def _compiled(index: int, instance: str, more: tuple[str, ...]) -> Any:
    """Return the function of an instance, compiled once for a device; CuPy keeps it on disk."""
    import cupy

    file = KERNELS[instance.partition("<")[0]].file
    with cupy.cuda.Device(index):
        module = cupy.RawModule(
            code=source(file),
            options=(*options(instance), *more),
            name_expressions=[instance],
            backend="nvrtc",
        )
        return module.get_function(instance)
