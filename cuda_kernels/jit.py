"""Numba's decorator with a cache on disk that can fail without stopping a computation."""

from __future__ import annotations

import contextlib
import hashlib
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

from numba import get_num_threads, njit
from numba.core.caching import FunctionCache

Function = TypeVar("Function", bound=Callable[..., Any])

# numba looks at the file of a kernel only, not at those of the functions compiled into it.
_TEXTS = [file.read_bytes() for file in sorted(Path(__file__).parent.glob("*.py"))]
SOURCES = hashlib.sha256(b"".join(text for text in _TEXTS if b"\nfrom numba" in text)).hexdigest()

# What unpickling a damaged file and rebuilding its code can raise.
DAMAGE = (
    pickle.UnpicklingError,
    ArithmeticError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
)


class HealingCache(FunctionCache):
    """The compiled versions of one function; a damaged file counts as none."""

    def _index_key(self, sig: Any, codegen: Any) -> Any:
        return (*super()._index_key(sig, codegen), SOURCES)  # type: ignore[no-untyped-call]

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return the stored version for a signature, None if there is none to be read."""
        try:
            return super().load_overload(sig, target_context)  # type: ignore[no-untyped-call]
        except DAMAGE:
            self.flush()  # type: ignore[no-untyped-call]
            warnings.warn(
                f"{self.cache_path}: damaged compiled code, made anew", RuntimeWarning, stacklevel=2
            )
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Store a version; a full or read-only disk keeps it in memory only."""
        with contextlib.suppress(OSError):
            super().save_overload(sig, data)  # type: ignore[no-untyped-call]


def compiled(*, parallel: bool = False) -> Callable[[Function], Function]:
    """Compile a kernel on its first call and keep the code on disk.

    Where no folder can be written the code is kept in memory; where a file is damaged it is made
    anew with a warning. Division follows IEEE 754.
    """

    def decorate(function: Function) -> Function:
        kernel: Any = njit(parallel=parallel, error_model="numpy")(function)
        try:
            kernel._cache = HealingCache(kernel.py_func)  # type: ignore[no-untyped-call]
        except RuntimeError:  # numba's answer where no folder can be written
            return cast(Function, kernel)
        return cast(Function, kernel)

    return decorate


def threads() -> int:
    """Return the number of threads that kernels run on."""
    return int(get_num_threads())
