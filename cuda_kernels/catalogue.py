"""Every CUDA kernel: where it stands, for which types it is compiled, how it is launched.

Read by the launches, by the tests that run the kernels on a CPU, by the resource checks and by the
profile. An instance is named as in C++: ``advect_tiles<float,5>``.
"""

from __future__ import annotations

from dataclasses import dataclass

REAL = ("float", "double")
MIXED = ("float,float", "float,double", "double,double")  # types of the field and the arithmetic
CLOSEST = "closest_point.cu"


@dataclass(frozen=True)
class Kernel:
    """A kernel of ``file``, compiled once for each entry of ``templates``.

    Every kernel strides over its voxels, list entries or tiles, so that any grid is right: blocks
    of ``threads``, ``per_sm`` of them for each multiprocessor. ``twin`` is its Numba twin as
    "module.function". ``bytes`` are moved per voxel it visits when fields are float32.
    """

    file: str
    templates: tuple[str, ...]
    twin: str
    threads: int = 256
    per_sm: int = 4
    bytes: float = 0.0


KERNELS = {
    "collect_tiles": Kernel("tiles.cu", REAL, "tiles.band_rows", threads=64, per_sm=16, bytes=4),
    "copy_tiles": Kernel("tiles.cu", REAL, "tiles.copy_tiles", bytes=8),
    "largest_speeds": Kernel("tiles.cu", REAL, "tiles.largest_speeds", bytes=4),
    "inspect_tiles": Kernel("tiles.cu", REAL, "tiles.inspect_tiles", bytes=4),
    "band_clamp": Kernel("tiles.cu", REAL, "numpy.clip", bytes=8),
    "advect_tiles": Kernel(
        "advect.cu", ("float,2", "float,5", "double,2", "double,5"), "advect.advect_tiles", bytes=16
    ),
    "list_interface": Kernel(CLOSEST, REAL, "closest_point.list_interface", bytes=6),
    "seed_closest": Kernel(CLOSEST, MIXED, "closest_point.seed_closest", bytes=88),
    "next_layer": Kernel(CLOSEST, ("",), "closest_point.next_layer", bytes=24),
    "grow_closest": Kernel(CLOSEST, MIXED, "closest_point.grow_closest", bytes=120),
    "finish_layers": Kernel(CLOSEST, MIXED, "closest_point.grow_closest", bytes=144),
    "find_improvable": Kernel(
        CLOSEST, ("float", "double"), "closest_point.find_improvable", bytes=90
    ),
    "improve_closest": Kernel(CLOSEST, MIXED, "closest_point.improve_closest", bytes=120),
    "put_improved": Kernel(CLOSEST, ("",), "closest_point.flag_neighbours", bytes=60),
    "finish_corrections": Kernel(CLOSEST, MIXED, "closest_point.improve_closest", bytes=200),
    "fill_far": Kernel(CLOSEST, REAL, "closest_point.write_distance", bytes=8),
    "write_distance": Kernel(CLOSEST, REAL, "closest_point.write_distance", bytes=20),
    "sample_at": Kernel(CLOSEST, REAL, "closest_point.sample_at", bytes=56),
}


def instances(file: str | None = None) -> list[str]:
    """Return the names of all instances, or of those in one file."""
    return [
        f"{name}<{template}>" if template else name
        for name, kernel in KERNELS.items()
        for template in kernel.templates
        if file in (None, kernel.file)
    ]


def files() -> list[str]:
    """Return the names of the files that hold kernels."""
    return sorted({kernel.file for kernel in KERNELS.values()})
