"""What the CUDA kernels take of a chip, from NVIDIA's runtime compiler alone: no device is needed.

The compiler's library comes with the extras gpu12 and gpu13, or as the package
nvidia-cuda-nvrtc-cu12. Registers, spills and shared memory are its own report; instructions are
counted in the machine code, an ELF file with 16 bytes an instruction.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .catalogue import KERNELS
from .launch import options, source

ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
BRANCH = 0x947  # opcode of BRA, the low 12 bits
# A part of the report of ptxas: what the function uses whose name comes first.
USED = (
    r"'%s' for '\w+'\n.*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
    r".*?Used (\d+) registers(?:[^\n]*?(\d+) bytes smem)?"
)


@dataclass(frozen=True)
class Resources:
    """Of one instance on one architecture.

    ``instructions`` of the whole kernel and ``per_voxel`` of the loop over voxels or list entries,
    None where branches are not decoded; both branches of a choice count.
    """

    instance: str
    architecture: str
    registers: int
    spill_bytes: int
    stack_bytes: int
    shared_bytes: int
    instructions: int
    per_voxel: int | None


@functools.cache
def library() -> ctypes.CDLL | None:
    """Return NVIDIA's runtime compiler, None where it is not installed."""
    spec = importlib.util.find_spec("nvidia")
    for folder in spec.submodule_search_locations or () if spec else ():
        for file in sorted(Path(folder).glob("*/lib/libnvrtc.so.1[0-9]"), reverse=True):
            return ctypes.CDLL(str(file))
    return None


def version() -> str:
    """Return the version of the compiler."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    _check(_found().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)))
    return f"{major.value}.{minor.value}"


def _found() -> ctypes.CDLL:
    found = library()
    if found is None:
        raise RuntimeError("no NVRTC: pip install nvidia-cuda-nvrtc-cu12")
    return found


def _check(status: int, log: str = "") -> None:
    if status != 0:
        raise RuntimeError(f"NVRTC: error {status}\n{log}")


def compiled(instance: str, architecture: str) -> tuple[bytes, str, str]:
    """Return an ELF file, the name of an instance in it, and what the compiler said."""
    nvrtc, program = _found(), ctypes.c_void_p()
    file = KERNELS[instance.partition("<")[0]].file
    text, name = source(file).encode(), instance.encode()
    _check(nvrtc.nvrtcCreateProgram(ctypes.byref(program), text, file.encode(), 0, None, None))
    try:
        _check(nvrtc.nvrtcAddNameExpression(program, name))
        given = (*options(instance), f"--gpu-architecture={architecture}", "--ptxas-options=-v")
        array = (ctypes.c_char_p * len(given))(*(o.encode() for o in given))
        status = nvrtc.nvrtcCompileProgram(program, len(given), array)
        log = _read(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, program)
        said = log.rstrip(b"\0").decode()
        _check(status, said)
        mangled = ctypes.c_char_p()
        _check(nvrtc.nvrtcGetLoweredName(program, name, ctypes.byref(mangled)))
        cubin = _read(nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN, program)
        return cubin, (mangled.value or b"").decode(), said
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def _read(size_of: object, get: object, program: ctypes.c_void_p) -> bytes:
    size = ctypes.c_size_t()
    _check(size_of(program, ctypes.byref(size)))  # type: ignore[operator]
    buffer = ctypes.create_string_buffer(size.value)
    _check(get(program, buffer))  # type: ignore[operator]
    return buffer.raw


def resources(instance: str, architecture: str) -> Resources:
    """Compile an instance and return what it takes.

    Raises
    ------
    RuntimeError
        If it does not compile, or compiles with a warning.
    """
    cubin, name, said = compiled(instance, architecture)
    if "warning" in said:
        raise RuntimeError(f"{instance}: {said}")
    used = re.search(USED % re.escape(name), said, re.DOTALL)
    if used is None:
        raise RuntimeError(f"{instance}: no report of resources in\n{said}")
    stack, stores, loads, registers, shared = (int(n or 0) for n in used.groups())
    code = machine_code(cubin, name)
    loops = sorted(backward_branches(code, architecture), reverse=True)
    depth = KERNELS[instance.partition("<")[0]].depth
    per_voxel = loops[depth] if architecture != "sm_100" and len(loops) > depth else None
    return Resources(
        instance, architecture, registers, stores + loads, stack, shared, len(code) // 16, per_voxel
    )


def machine_code(cubin: bytes, kernel: str) -> bytes:
    """Return the code of a kernel in an ELF file."""
    (table,) = struct.unpack_from("<Q", cubin, 0x28)
    size, count, names = struct.unpack_from("<HHH", cubin, 0x3A)
    heads = [struct.unpack_from("<IIQQQQ", cubin, table + n * size) for n in range(count)]
    text = heads[names][4]
    for name, _, _, _, offset, length in heads:
        if cubin[text + name :].startswith(f".text.{kernel}\0".encode()):
            return cubin[offset : offset + length]
    raise RuntimeError(f"no code of {kernel} in the ELF file")


def backward_branches(code: bytes, architecture: str) -> Iterator[int]:
    """Yield the length, in instructions, of every loop."""
    for at in range(0, len(code), 16):
        word = int.from_bytes(code[at : at + 16], "little")
        if word & 0xFFF != BRANCH:
            continue
        field = word >> 34 & (1 << 48) - 1
        field -= (field >> 47) << 48
        offset = 4 * field if architecture == "sm_80" else 4 * (field << 8 | word >> 16 & 0xFF)
        # A branch to itself ends every kernel.
        if offset < -16 and at + 16 + offset >= 0:
            yield -offset // 16
