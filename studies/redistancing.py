"""How exact and how fast is redistancing? ``python studies/redistancing.py``.

Speed: a tilted tube and a random vessel tree, distorted, in one process, one thread, all methods
in turn; the best CPU seconds of the repeats. Memory: growth of the resident set in a fresh process
a method, in float32 fields beyond the input. Accuracy: the same and the hard cases. Peers that
are not installed are skipped.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from vesselseg import phantoms
from vesselseg.grid import Grid
from vesselseg.io.atomic import write_bytes
from vesselseg.solvers import redistance

RESULTS = Path(__file__).parent / "results"
SHOWN = ("closest points", "scikit-fmm", "SimpleITK", "edt of the mask")
BAND = 4.5  # half-width of the band, in largest spacings
JUDGED = 4.0  # errors are taken within it
MARGIN = 3  # voxels at the faces that no method is judged by
TREE_SEED = 9
SLOPES = (0.5, 1.5)

Method = Callable[[NDArray, tuple[float, ...], float], NDArray]


def own(phi: NDArray, spacing: tuple[float, ...], band: float) -> NDArray:
    """Closest points in the band."""
    return redistance(phi, spacing, band_mm=band)


def own_full(phi: NDArray, spacing: tuple[float, ...], band: float) -> NDArray:
    """Closest points in the whole domain."""
    return redistance(phi, spacing)


def own_pde(phi: NDArray, spacing: tuple[float, ...], band: float) -> NDArray:
    """Reinitialisation equation in the band."""
    return redistance(phi, spacing, band_mm=band, method="pde")


def fmm(phi: NDArray, spacing: tuple[float, ...], band: float) -> NDArray:
    """scikit-fmm, order 2, in the band."""
    import skfmm

    found = skfmm.distance(phi, dx=spacing, narrow=band)
    return np.where(np.ma.getmaskarray(found), np.where(phi < 0, -band, band), np.ma.getdata(found))


def fmm_full(phi: NDArray, spacing: tuple[float, ...], band: float) -> NDArray:
    """scikit-fmm, order 2, in the whole domain."""
    import skfmm

    return np.asarray(skfmm.distance(phi, dx=spacing))


def itk(phi: NDArray, spacing: tuple[float, ...], band: float) -> NDArray:
    """SimpleITK ReinitializeLevelSet in the band."""
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(phi)
    image.SetSpacing(spacing[::-1])
    reinitialize = sitk.ReinitializeLevelSetImageFilter()
    reinitialize.SetNumberOfThreads(1)
    reinitialize.NarrowBandingOn()
    reinitialize.SetInputNarrowBandwidth(2.0 * band)
    reinitialize.SetOutputNarrowBandwidth(2.0 * band)
    found = sitk.GetArrayFromImage(reinitialize.Execute(image))
    return np.asarray(np.clip(found, -band, band))


def edt_of_mask(phi: NDArray, spacing: tuple[float, ...], band: float) -> NDArray:
    """Signed distance of the mask by edt."""
    import edt

    return -np.asarray(edt.sdf(phi < 0, anisotropy=spacing))


def scipy_of_mask(phi: NDArray, spacing: tuple[float, ...], band: float) -> NDArray:
    """Signed distance of the mask by scipy, shifted by half a voxel."""
    inside = phi < 0
    half = 0.5 * min(spacing)
    outer = ndimage.distance_transform_edt(~inside, sampling=spacing) - half
    inner = ndimage.distance_transform_edt(inside, sampling=spacing) - half
    return np.where(inside, -inner, outer)


METHODS: dict[str, tuple[Method, str]] = {
    "closest points": (own, "numba"),
    "closest points, whole": (own_full, "numba"),
    "equation": (own_pde, "numba"),
    "scikit-fmm": (fmm, "skfmm"),
    "scikit-fmm, whole": (fmm_full, "skfmm"),
    "SimpleITK": (itk, "SimpleITK"),
    "edt of the mask": (edt_of_mask, "edt"),
    "scipy of the mask": (scipy_of_mask, "scipy"),
}
# Name, radius in mm, spacing, options: see ``vesselseg.phantoms``.
HARD: dict[str, tuple[str, float, tuple[float, ...]]] = {
    "crease": ("bifurcation", 4.0, (1.0, 1.0, 1.0)),
    "crease 2:1:1": ("bifurcation", 4.0, (2.0, 1.0, 1.0)),
    "crease 4:1:1": ("bifurcation", 6.0, (4.0, 1.0, 1.0)),
    "sharp union": ("aneurysm", 3.0, (1.0, 1.0, 1.0)),
    "tube 2:1:1": ("tilted_tube", 4.0, (2.0, 1.0, 1.0)),
    "tube 4:1:1": ("tilted_tube", 6.0, (4.0, 1.0, 1.0)),
    "thin tube r 1.5": ("tilted_tube", 1.5, (1.0, 1.0, 1.0)),
    "thin tube r 2": ("tilted_tube", 2.0, (1.0, 1.0, 1.0)),
    "thin tube r 3": ("tilted_tube", 3.0, (1.0, 1.0, 1.0)),
    "ball r 1.5": ("sphere", 1.5, (1.0, 1.0, 1.0)),
    "two vessels": ("two_vessels", 3.0, (1.0, 1.0, 1.0)),
    "two thin vessels": ("two_vessels", 2.0, (1.0, 1.0, 1.0)),
}


def installed() -> dict[str, Method]:
    """Return the methods whose package is there."""
    found = {}
    for title, (method, package) in METHODS.items():
        if importlib.util.find_spec(package) is None:
            print(f"{title}: {package} is not installed, skipped")
        else:
            found[title] = method
    return found


def distorted(phi: NDArray, grid: Grid) -> NDArray:
    """Scale by 0.1 to 3.1 with the squared distance from the middle; the wall stays."""
    squares = np.zeros(phi.shape)
    for axis, (n, h) in enumerate(zip(phi.shape, grid.spacing_mm, strict=True)):
        shape = [1] * phi.ndim
        shape[axis] = n
        squares = squares + ((np.arange(n) - 0.5 * n + 1.3) * h).reshape(shape) ** 2
    return phi * (0.1 + 3.0 * squares / squares.max())


def waves(phi: NDArray) -> NDArray:
    """Scale by slopes of 0.5 to 1.5 that vary within a few voxels."""
    return phi * (1.0 + 0.5 * np.sin(0.8 * np.indices(phi.shape).sum(axis=0)))


def noise(phi: NDArray) -> NDArray:
    """Scale every voxel by its own factor of 0.5 to 1.5; no sign changes."""
    return phi * np.random.default_rng(3).uniform(*SLOPES, phi.shape)


def large(shape: str, size: int) -> tuple[NDArray, Grid]:
    """Return the exact distance of a tube of 8.4 voxels at 128 or of a random tree."""
    if shape == "tube":
        phantom = phantoms.make("tilted_tube", radius=8.4 * size / 128)
        grid = phantom.grid(1.0, shape=(size,) * 3)
        return phantom.phi(grid), grid
    phantom = phantoms.make("tree", radius=0.055 * size)
    width = float(np.max(phantom.high_xyz - phantom.low_xyz)) * 1.1 / size
    grid = phantom.grid(width, shape=(size,) * 3)
    return phantom.phi(grid), grid


def crossings(phi: NDArray, sides: NDArray) -> NDArray:
    """Linear position of the wall, 0 to 1, on every grid edge it cuts."""
    parts = []
    for axis in range(phi.ndim):
        a, b = (np.take(phi, range(s, phi.shape[axis] - 1 + s), axis) for s in (0, 1))
        c, d = (np.take(sides, range(s, phi.shape[axis] - 1 + s), axis) < 0 for s in (0, 1))
        parts.append((a / np.where(a == b, 1.0, a - b))[c != d])
    return np.concatenate(parts)


def errors(out: NDArray, start: NDArray, phi: NDArray, grid: Grid) -> dict[str, float]:
    """Mean and largest error in the band and shift of the wall, in largest voxels."""
    h = grid.h_max
    mask = np.zeros(phi.shape, bool)
    mask[tuple(slice(MARGIN, -MARGIN) for _ in phi.shape)] = True
    error = np.abs(out - phi)[mask & (np.abs(phi) < JUDGED * h)] / h
    shift = np.abs(crossings(out, start) - crossings(phi, start))
    return {
        "L1_h": float(error.mean()),
        "Linf_h": float(error.max()),
        "shift_rms_h": float(np.sqrt(np.mean(shift**2))),
        "shift_max_h": float(shift.max()),
    }


def timed(start: NDArray, grid: Grid, methods: dict[str, Method], repeats: int) -> dict[str, Any]:
    """Return every method's best CPU seconds and its last result, all methods in turn."""
    seconds = dict.fromkeys(methods, float("inf"))
    results: dict[str, NDArray] = {}
    for turn in range(repeats + 1):
        for title, method in methods.items():
            if turn > 1 and seconds[title] > 2.0:
                continue
            clock = time.process_time()
            results[title] = method(start, grid.spacing_mm, BAND * grid.h_max)
            if turn > 0:  # the first turn compiles
                seconds[title] = min(seconds[title], time.process_time() - clock)
    return {title: (seconds[title], results[title]) for title in methods}


def memory(title: str, start: NDArray, grid: Grid) -> float:
    """Peak growth of a fresh process by one call, in float32 fields beyond the input."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "start.npy"
        np.save(file, start)
        spacing = [repr(float(h)) for h in grid.spacing_mm]
        command = [sys.executable, __file__, "--measure", title, str(file), *spacing]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1]) / (4.0 * start.size)


def measure(title: str, file: str, spacing: tuple[float, ...]) -> int:
    """Return the bytes by which the resident set grows in a call; compiled on a small field."""
    method = METHODS[title][0]
    small = np.linalg.norm(np.indices((20, 20, 20)) - 9.3, axis=0).astype(np.float32) - 5.0
    method(small, (1.0, 1.0, 1.0), BAND)
    start = np.load(file)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew here
    before = _bytes("VmRSS")
    method(start, spacing, BAND * max(spacing))
    return _bytes("VmHWM") - before


def _bytes(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if key in line)


def speed_rows(size: int, shape: str, repeats: int) -> list[dict[str, Any]]:
    """Measure speed, memory and accuracy on a large case."""
    rows = []
    phi, grid = large(shape, size)
    start = distorted(phi, grid).astype(np.float32)
    found = timed(start, grid, installed(), repeats)
    fastest = found["closest points"][0]
    for title, (seconds, out) in found.items():
        row = {
            "case": f"{shape} {size}³",
            "method": title,
            "CPU_s": seconds,
            "times_closest_points": seconds / fastest,
            "fields": memory(title, start, grid),
            **errors(out, start, phi, grid),
        }
        rows.append(row)
        print(json.dumps(row, ensure_ascii=False), flush=True)
    return rows


def table(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what the README shows: every method that works in a band or on a mask."""
    return [
        {
            "case": row["case"],
            "method": row["method"],
            "CPU s": f"{row['CPU_s']:.3f}",
            "ours faster by": f"{row['times_closest_points']:.1f}",
            "memory, fields": f"{row['fields']:.1f}",
            "mean error": f"{row['L1_h']:.1g}",
            "largest error": f"{row['Linf_h']:.1g}",
            "shift of the wall, rms": f"{row['shift_rms_h']:.1g}",
        }
        for row in rows
        if row["method"] in SHOWN
    ]


def hard_rows() -> list[dict[str, Any]]:
    """Measure accuracy on the hard cases under three kinds of distortion."""
    rows = []
    methods = installed()
    methods.pop("closest points, whole", None)
    methods.pop("scikit-fmm, whole", None)
    for case, (shape, radius, spacing) in HARD.items():
        phantom = phantoms.make(shape, radius=radius)
        grid = phantom.grid(spacing)
        phi = phantom.phi(grid)
        kinds = {"distorted": distorted(phi, grid), "waves": waves(phi), "noise": noise(phi)}
        for kind, start in kinds.items():
            for title, method in methods.items():
                out = method(start.astype(np.float32), grid.spacing_mm, BAND * grid.h_max)
                rows.append(
                    {
                        "case": case,
                        "distortion": kind,
                        "method": title,
                        **errors(out, start, phi, grid),
                    }
                )
        print(case, flush=True)
    return rows


def draw(speed: list[dict[str, Any]], hard: list[dict[str, Any]], file: Path) -> None:
    """Draw error against CPU time, and the largest errors of the hard cases."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for title in dict.fromkeys(row["method"] for row in speed):
        rows = [row for row in speed if row["method"] == title]
        left.loglog([row["CPU_s"] for row in rows], [row["L1_h"] for row in rows], "o", label=title)
    left.set(xlabel="CPU time, s", ylabel="mean error in the band, voxels")
    left.legend(fontsize=7)
    names = list(dict.fromkeys(row["case"] for row in hard))
    for title in ("closest points", "equation", "scikit-fmm", "SimpleITK"):
        rows = [r for r in hard if r["method"] == title and r["distortion"] == "distorted"]
        right.semilogy(
            [row["case"] for row in rows], [row["Linf_h"] for row in rows], "o-", label=title
        )
    right.set(ylabel="largest error in the band, voxels")
    right.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize=7)
    right.legend(fontsize=7)
    figure.savefig(file, dpi=80)


def main() -> None:
    """Run the study and write its results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="*", default=[128, 256])
    parser.add_argument("--shapes", nargs="*", default=["tube", "tree"])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--add", action="store_true", help="to the cases that the output holds")
    parser.add_argument("--output", type=Path, default=RESULTS / "redistancing.json")
    parser.add_argument("--measure", nargs=5, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.measure:
        title, file, *spacing = chosen.measure
        print(measure(title, file, tuple(map(float, spacing))))
        return
    numba.set_num_threads(1)
    kept = json.loads(chosen.output.read_text()) if chosen.add else {"rows": []}
    hard, speed = kept.get("hard") or hard_rows(), kept["rows"]
    for size in chosen.sizes:
        for shape in chosen.shapes:
            speed += speed_rows(size, shape, chosen.repeats)
            result = {"band_h": BAND, "table": table(speed), "rows": speed, "hard": hard}
            write_bytes(chosen.output, json.dumps(result, indent=1, ensure_ascii=False).encode())
            draw(speed, hard, chosen.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
