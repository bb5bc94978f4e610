"""Every CUDA kernel: where it stands, for which types it is compiled, how it is launched.

Read by the launches, by the tests that run the kernels on a CPU, by the resource checks and by the
profile. An instance is named as in C++: ``advect_tiles<float,5>``.
"""

from __future__ import annotations

from dataclasses import dataclass

ONE = ("",)  # no template
REAL = ("float", "double")
ORDERS = ("float,2", "float,5", "double,2", "double,5")  # type and order of the stencils
MIXED = ("float,double", "double,double")  # types of the field and the arithmetic
CLOSEST = "closest_point.cu"
# Files whose decisions hang on the last digit (which of two closest points is nearer): in double
# they are compiled without fused multiply-adds, so that they decide as their twins do.
EXACT = (CLOSEST,)


@dataclass(frozen=True)
class Kernel:
    """A kernel of ``file``, compiled once for each entry of ``templates``.

    Every kernel strides over its voxels, list entries or tiles, so that any grid is right: blocks
    of ``threads``, ``per_sm`` of them for each multiprocessor. ``twin`` is its Numba twin as
    "module.function". ``bytes`` are moved per voxel it visits when fields are float32. The loop
    over voxels is the kernel's longest but ``depth``.
    """

    file: str
    templates: tuple[str, ...]
    twin: str
    threads: int = 256
    per_sm: int = 4
    bytes: float = 0.0
    depth: int = 0


KERNELS = {
    "collect_tiles": Kernel("tiles.cu", REAL, "tiles.band_rows", threads=64, per_sm=16, bytes=4),
    "copy_tiles": Kernel("tiles.cu", REAL, "tiles.copy_tiles", bytes=8),
    "largest_speeds": Kernel("tiles.cu", REAL, "tiles.largest_speeds", bytes=4),
    "inspect_tiles": Kernel("tiles.cu", REAL, "tiles.inspect_tiles", bytes=4),
    "band_clamp": Kernel("tiles.cu", REAL, "numpy.clip", bytes=8),
    "advect_tiles": Kernel("advect.cu", ORDERS, "advect.advect_tiles", bytes=16, depth=1),
    "advect_dense": Kernel("advect.cu", ORDERS, "advect.advect_tiles", bytes=16, depth=1),
    "reinit_tiles": Kernel("reinit.cu", ORDERS, "reinit.reinit_stage", bytes=16, depth=1),
    "reinit_dense": Kernel("reinit.cu", ORDERS, "reinit.reinit_stage", bytes=16, depth=1),
    "wall_arms": Kernel("reinit.cu", REAL, "reinit.wall_arms", bytes=112),
    "reinit_walls": Kernel("reinit.cu", REAL, "reinit.reinit_stage", bytes=112),
    "list_interface": Kernel(CLOSEST, REAL, "closest_point.list_interface", bytes=6),
    "seed_closest": Kernel(CLOSEST, MIXED, "closest_point.seed_closest", bytes=88),
    "next_layer": Kernel(CLOSEST, ONE, "closest_point.next_layer", bytes=24),
    "grow_closest": Kernel(CLOSEST, MIXED, "closest_point.grow_closest", bytes=120),
    "finish_layers": Kernel(CLOSEST, MIXED, "closest_point.grow_closest", bytes=144),
    "find_improvable": Kernel(
        CLOSEST, ("float", "double"), "closest_point.find_improvable", bytes=90
    ),
    "improve_closest": Kernel(CLOSEST, MIXED, "closest_point.improve_closest", bytes=120),
    "put_improved": Kernel(CLOSEST, ONE, "closest_point.flag_neighbours", bytes=60),
    "finish_corrections": Kernel(CLOSEST, MIXED, "closest_point.improve_closest", bytes=200),
    "fill_far": Kernel(CLOSEST, REAL, "closest_point.write_distance", bytes=8),
    "write_distance": Kernel(CLOSEST, REAL, "closest_point.write_distance", bytes=20),
    "sample_at": Kernel(CLOSEST, REAL, "closest_point.sample_at", bytes=56),
    "wall_geometry": Kernel("wall.cu", REAL, "wall.wall_geometry", bytes=128),
    "blurred_occupancy": Kernel("wall.cu", ONE, "wall.blurred_occupancy", bytes=56),
    "wall_neighbours": Kernel("wall.cu", ONE, "wall.wall_neighbours", bytes=84),
    "wall_owner": Kernel("wall.cu", ONE, "wall.wall_owner", bytes=32),
    "sample_listed": Kernel("wall.cu", ONE, "wall.sample_listed", bytes=128),
    "scatter": Kernel("wall.cu", ("double,double",), "wall.scatter", bytes=24),
    "block_sums": Kernel("wall.cu", ONE, "wall.block_sums", bytes=4),
    "count_band": Kernel("wall.cu", ONE, "numpy.count_nonzero", bytes=10),
    "list_band": Kernel("wall.cu", REAL, "numpy.flatnonzero", bytes=58),
    "gather": Kernel("wall.cu", ONE, "wall.gather", bytes=16),
    "chain_owners": Kernel("wall.cu", ONE, "numpy.bincount", bytes=12),
    "chain_sums": Kernel("wall.cu", ONE, "numpy.bincount", bytes=40),
    "blurred_flow": Kernel("appearance.cu", ONE, "appearance.blurred_flow", bytes=72),
    "begin_fit": Kernel("appearance.cu", ONE, "appearance.fit_noise", threads=32),
    "largest": Kernel("appearance.cu", ONE, "numpy.max", bytes=8),
    "lengthen": Kernel("appearance.cu", ONE, "appearance.lengthen", bytes=80),
    "solve_blocks": Kernel("appearance.cu", ONE, "appearance.solve_blocks", bytes=56),
    "fit_residual": Kernel("appearance.cu", ONE, "closest_point.sample_at", bytes=84),
    "fit_noise": Kernel("appearance.cu", ONE, "appearance.fit_noise", threads=32),
    "weigh": Kernel("appearance.cu", ONE, "appearance.weigh", bytes=40),
    "lowest_signal": Kernel("appearance.cu", ONE, "numpy.minimum", bytes=24),
    "decide_parts": Kernel("appearance.cu", ONE, "numpy.where", threads=32),
    "cost_sums": Kernel("appearance.cu", ONE, "reduce.chunked", bytes=8),
    "choose_psf": Kernel("appearance.cu", ONE, "appearance.choose_psf", threads=32),
    "inform": Kernel("appearance.cu", ONE, "appearance.inform", bytes=48),
    "product": Kernel("appearance.cu", ONE, "numpy.multiply", bytes=24),
    "square_sums": Kernel("appearance.cu", ONE, "numpy.square", bytes=24),
    "window_excess": Kernel("appearance.cu", ONE, "appearance.window_excess", bytes=24),
    "misfit_at": Kernel("appearance.cu", ONE, "appearance.believed", bytes=28),
    "difference": Kernel("displacement.cu", ONE, "numpy.subtract", bytes=32),
    "square": Kernel("displacement.cu", ONE, "numpy.square", bytes=24),
    "per_area": Kernel("displacement.cu", ONE, "numpy.maximum", bytes=16),
    "wall_prior": Kernel("displacement.cu", ONE, "displacement.plate_stiffness", bytes=80),
    "displacement_rhs": Kernel("displacement.cu", ONE, "numpy.subtract", bytes=48),
    "take_step": Kernel("displacement.cu", ONE, "displacement.bounded_step", bytes=48),
    "sums_below": Kernel("displacement.cu", ONE, "reduce.chunked", bytes=8),
    "move_wall": Kernel("displacement.cu", REAL, "wall.scatter", bytes=24),
    "wall_sigma": Kernel("displacement.cu", ONE, "displacement.doubted_sigma", bytes=48),
    "fill": Kernel("displacement.cu", ONE, "numpy.full", bytes=8),
    "bend_along_wall": Kernel("sheet.cu", ONE, "sheet.bend_along_wall", bytes=40),
    "sheet_reset": Kernel("sheet.cu", ONE, "sheet.solve_along_wall", bytes=16),
    "sheet_start": Kernel("sheet.cu", ONE, "sheet.solve_along_wall", bytes=72),
    "sheet_bend": Kernel("sheet.cu", ONE, "sheet.solve_along_wall", bytes=48),
    "sheet_system": Kernel("sheet.cu", ONE, "sheet.solve_along_wall", bytes=56),
    "sheet_step": Kernel("sheet.cu", ONE, "sheet.solve_along_wall", bytes=56),
    "sheet_turn": Kernel("sheet.cu", ONE, "sheet.solve_along_wall", bytes=32),
    "calculate": Kernel("roof.cu", ONE, "roof.calculate", per_sm=8, bytes=8),
    "clear": Kernel("reduce.cu", ONE, "reduce.clear", bytes=4),
    "copy": Kernel("reduce.cu", REAL, "reduce.copy", bytes=8),
    "keep_count": Kernel("reduce.cu", ONE, "reduce.keep_count", threads=32),
    "survey": Kernel("reduce.cu", REAL, "numpy.count_nonzero", bytes=4),
    "wall_sums": Kernel("reduce.cu", REAL, "reduce.wall_sums", bytes=12),
    "mean_sums": Kernel("reduce.cu", REAL, "reduce.mean_sums", bytes=8),
    "set_ranks": Kernel("reduce.cu", ONE, "numpy.median", threads=32),
    "rank_digit": Kernel("reduce.cu", ONE, "numpy.median", bytes=8),
    "rank_value": Kernel("reduce.cu", ONE, "numpy.median", threads=32),
    "total": Kernel("reduce.cu", ONE, "reduce.total", bytes=8),
    "open_report": Kernel("reduce.cu", ONE, "reduce.open_report", threads=32),
    "plan_steps": Kernel("reduce.cu", ONE, "reduce.plan_steps", threads=32),
    "accept": Kernel("reduce.cu", REAL, "reduce.accept", bytes=16),
    "region_speed": Kernel("energy.cu", REAL, "energy.region_speed", bytes=8),
    "block_means": Kernel("energy.cu", REAL, "energy.block_means", bytes=8),
    "filter_axis": Kernel("energy.cu", REAL, "energy.filter_axis", bytes=8),
    "local_speed": Kernel("energy.cu", REAL, "energy.local_speed", bytes=8),
}


# Registers and instructions per voxel on sm_90, as nvrtc.resources counts them with NVRTC 12.9. A
# change of more than a twentieth is made on purpose or not at all.
BUDGETS: dict[str, tuple[int, int]] = {
    "advect_tiles<float,5>": (48, 444),
    "advect_tiles<float,2>": (40, 265),
    "reinit_tiles<float,5>": (59, 401),
    "reinit_tiles<float,2>": (45, 138),
    "reinit_dense<float,5>": (58, 399),
    "reinit_dense<float,2>": (48, 147),
    # In double, of both attempts: more than the 80 registers asked for, docs/kernels.md says why.
    "seed_closest<float,double>": (214, 2851),
    "grow_closest<float,double>": (232, 2603),
    "improve_closest<float,double>": (208, 2268),
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
