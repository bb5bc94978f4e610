"""What the machine offers: the device rule, threads, memory, and the report of ``doctor``."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from traceback import walk_tb
from types import TracebackType
from typing import Any

from .errors import ConfigError, EnvironmentFault

UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
CORE = (
    "numpy",
    "scipy",
    "numba",
    "scikit-fmm",
    "scikit-image",
    "h5py",
    "nibabel",
    "torch",
    "safetensors",
    "pydantic",
    "typer",
    "rich",
    "matplotlib",
)
EXTRAS = {
    "gpu13": ("cupy-cuda13x",),
    "dicom": ("SimpleITK", "pydicom"),
    "study": ("pandas", "pyarrow", "optuna"),
    "cluster": ("distributed", "dask-jobqueue"),
    "vtk": ("pyvista", "vtk"),
    "test": ("pytest", "hypothesis", "coverage", "build"),
    "dev": ("ruff", "mypy", "pre-commit"),
}
FIXED_BYTES = 500 * 2**20  # interpreter and libraries
BYTES_PER_VOXEL = 300  # peak of the whole path beyond that, see studies/bench_path.py
CUDA_NAME = re.compile(r"cuda(?::(\d{1,3}))?")


@dataclass(frozen=True)
class Device:
    """Where a computation runs and why.

    Parameters
    ----------
    name : str
        ``cpu`` or ``cuda:N``: where the wall is refined.
    requested : str
        What was asked for.
    reason : str
        Why another device was taken than the fastest one, empty if it was asked for.
    """

    name: str
    requested: str
    reason: str = ""

    @property
    def index(self) -> int:
        """Number of the CUDA device."""
        return int(self.name.removeprefix("cuda:"))

    def as_dict(self) -> dict[str, str]:
        """Return the fields for the prior's provenance."""
        return asdict(self)


def choose(requested: str = "auto", without: str = "") -> Device:
    """Apply the device rule: ``auto`` may fall back with a reason, an explicit choice never.

    Parameters
    ----------
    requested : str
        ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
    without : str
        What of the computation has no CUDA kernels, if anything.

    Raises
    ------
    ConfigError
        If the text is none of these, or a CUDA device is asked for what has no CUDA kernels.
    EnvironmentFault
        If a CUDA device is asked for that is not usable; names the devices present.
    """
    if requested == "cpu":
        return Device("cpu", requested)
    match = CUDA_NAME.fullmatch(requested)
    if requested != "auto" and not match:
        need = "auto, cpu, cuda or cuda:N"
        raise ConfigError("unknown device", path="--device", found=requested, need=need)
    index = int(match[1] or 0) if match else 0
    fault = cuda_fault(index)
    kind = EnvironmentFault if fault else ConfigError
    if without and not fault:
        fault = f"{without} has no CUDA kernels"
    if not fault:
        return Device(f"cuda:{index}", requested)
    if requested == "auto":
        return Device("cpu", requested, fault)
    found = "devices cpu" + "".join(f", {name}" for name in gpus())
    remedy = "take --device auto or --device cpu"
    fault = f"{requested} is not usable, {fault}"
    raise kind(fault, path="--device", found=found, remedy=remedy)


def cuda_fault(index: int = 0) -> str:
    """Say why the solver cannot use a CUDA device, nothing if it can."""
    if importlib.util.find_spec("cupy") is None:
        return "CuPy is missing: pip install 'vesselseg[gpu13]', or gpu12 for CUDA 12"
    import cupy

    count = cupy.cuda.runtime.getDeviceCount() if cupy.cuda.is_available() else 0
    return "" if index < count else f"CuPy sees {count} devices"


def network_device(name: str) -> str:
    """Return the name of a device of the networks, or raise ValueError if it is none."""
    if name != "cpu" and not CUDA_NAME.fullmatch(name):
        raise ValueError("must be cpu, cuda or cuda:N")
    return name


def require_network_device(name: str, cuda_count: int) -> None:
    """Refuse a CUDA device that the networks cannot run on.

    Parameters
    ----------
    name : str
        ``cpu``, ``cuda`` or ``cuda:N``.
    cuda_count : int
        Number of CUDA devices that the network library can use.

    Raises
    ------
    EnvironmentFault
        If it has none of that number.
    """
    match = CUDA_NAME.fullmatch(name)
    if match and int(match[1] or 0) >= cuda_count:
        usable = ", ".join(["cpu", *(f"cuda:{n}" for n in range(cuda_count))])
        remedy = "take cpu, or install a CUDA build of PyTorch and its driver"
        fault = f"device {name} is not usable"
        raise EnvironmentFault(fault, found=f"devices {usable}", remedy=remedy)


def gpus() -> tuple[str, ...]:
    """Return the NVIDIA devices that the driver lists, each as ``cuda:N`` and its product name."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    try:
        done = subprocess.run([program, "-L"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    rows = re.findall(r"^GPU (\d+): (.*?)(?: \(UUID.*)?$", done.stdout, re.MULTILINE)
    return tuple(f"cuda:{number} {name}" for number, name in rows)


def cores() -> int:
    """Return the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0))


def leads() -> bool:
    """Return whether this process speaks for the others that torchrun started beside it."""
    return os.environ.get("RANK", "0") == "0"


def quiet_threads() -> None:
    """Let idle OpenMP threads sleep; must run before torch is imported, the user's value wins.

    Spinning threads cost a factor of 1.2 to 1.6 beside other busy processes.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("GOMP_SPINCOUNT", "0")


def set_threads(count: int | None) -> None:
    """Set the thread count of the solver and the network; None keeps the libraries' choice."""
    if count is None:
        return
    numba, torch = sys.modules.get("numba"), sys.modules.get("torch")
    os.environ["OMP_NUM_THREADS"] = str(count)
    if numba is None:
        os.environ["NUMBA_NUM_THREADS"] = str(count)
    else:
        numba.set_num_threads(min(count, numba.config.NUMBA_NUM_THREADS))
    if torch is not None:
        torch.set_num_threads(count)


def parse_bytes(text: str) -> int:
    """Read a size such as ``3G``, ``800 MiB`` or ``1.5GB``; units are powers of 1024."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    size = int(float(match[1]) * UNITS[match[2].upper()]) if match else 0
    if size < 1:
        need = "a number and one of B, K, M, G, T, for example 3G"
        raise ConfigError("bad size", path="--memory", found=text, need=need)
    return size


def available_bytes() -> int:
    """Return the memory that this process may still take: free memory, cgroup and rlimit."""
    limits = [_meminfo("MemAvailable")]
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limits.append(max(soft - pages * resource.getpagesize(), 0))
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and used.is_file() and (text := limit.read_text().strip()) != "max":
        limits.append(max(int(text) - int(used.read_text()), 0))
    return min(limits)


def preflight(needed: int, limit: int | None = None, *, path: Any = None) -> None:
    """Refuse a computation that will not fit, before it starts.

    Parameters
    ----------
    needed : int
        Estimated peak, bytes.
    limit : int, optional
        The user's own limit (``--memory``), bytes.
    path : path-like, optional
        The scan, for the message.
    """
    free = available_bytes()
    allowed = free if limit is None else min(limit, free)
    if needed > allowed:
        raise EnvironmentFault(
            "not enough memory",
            path=path,
            found=f"{_size(allowed)} available",
            need=f"about {_size(needed)}",
            remedy="crop the scan, free memory or raise --memory",
        )


def is_numba_cache_fault(trace: TracebackType | None) -> bool:
    """Tell whether an error came out of the code that reads numba's compiled cache."""
    return any(f.f_code.co_filename.endswith("numba/core/caching.py") for f, _ in walk_tb(trace))


def heal_numba_cache() -> int:
    """Delete the compiled functions of this package so that they are compiled anew.

    Returns
    -------
    int
        Number of files deleted.
    """
    own = os.environ.get("NUMBA_CACHE_DIR")
    if own:  # then numba looks nowhere else
        roots, homes = [Path(own)], []
    else:
        package = Path(__file__).parent
        parts = (".", "solvers", "cuda_kernels")
        homes = [(package / part).resolve() / "__pycache__" for part in parts]
        cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111
        roots = [Path(cache) / "numba"]
    homes += [p for root in roots for p in root.glob("*_*") if p.is_dir()]
    count = 0
    for home in homes:
        for file in [*home.glob("*.nbi"), *home.glob("*.nbc")]:
            file.unlink(missing_ok=True)
            count += 1
    return count


def doctor() -> dict[str, Any]:
    """Report what works, what is missing and how to install it; imports nothing heavy."""
    missing = [name for name in CORE if _version(name) is None]
    compiler = shutil.which("g++")
    disk = shutil.disk_usage(Path(__file__).parent)
    return {
        "ok": not missing,
        "vesselseg": _version("vesselseg"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in CORE},
        "missing": [f"pip install {name}" for name in missing],
        "extras": {name: _extra(name, parts) for name, parts in EXTRAS.items()},
        "cores": cores(),
        "memory": {"total": _meminfo("MemTotal"), "available": available_bytes()},
        "disk_free": disk.free,
        "g++": compiler or "missing (only some tests need it): Debian package g++",
        "numba_cache": _numba_cache(),
        "device": choose().as_dict(),
        "gpus": list(gpus()),
        "cuda": cuda_fault() or "usable",
    }


def _extra(name: str, parts: tuple[str, ...]) -> str:
    if all(_version(part) for part in parts):
        return ", ".join(f"{part} {_version(part)}" for part in parts)
    return f"missing: pip install 'vesselseg[{name}]'"


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _meminfo(key: str) -> int:
    found = re.search(rf"^{key}:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def _size(count: float) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**29 else f"{count / 2**20:.0f} MiB"


def _numba_cache() -> str:
    home = (Path(__file__).parent / "solvers").resolve() / "__pycache__"
    if home.parent.is_dir() and os.access(home if home.is_dir() else home.parent, os.W_OK):
        return "writable, beside the solvers"
    return "package folder not writable; set NUMBA_CACHE_DIR to a folder that is"
