"""The peers at their best: other packages' refinements of a wall.

``python studies/peers.py --tune`` chooses the settings of each for every signal-to-noise ratio on
shapes that are not reported, and keeps them in ``results/peers_tuning.json``.

Each peer is a function of the image, the start and the spacing. The image comes scaled to 0 in
the surroundings and 1 in the lumen by the true intensities, the start as a signed distance in mm,
negative in the lumen; what comes back has its zero set at the peer's wall and is negative in the
lumen. Lengths among the settings are in smallest voxels.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, gaussian_filter, gaussian_gradient_magnitude

from vesselseg import metrics
from vesselseg.errors import NoInterfaceError
from vesselseg.grid import Grid

WIDTHS = (0.0, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 1.8, 2.2)
LEVELS = tuple(np.round(np.arange(0.26, 0.561, 0.03), 2))
FINER = 0.01  # step of the level in the last search
REACH = 3.0  # an isosurface is looked for this near the start, in largest voxels
DRAWN = 40  # settings drawn at random when a peer is tuned
SAME = 0.5  # Dice below which a lumen is another one
LOST = 5.0  # error of a wall that vanished, in voxels, when settings are compared

Spacing = tuple[float, ...]
Settings = dict[str, Any]


def blurred(image: NDArray, spacing: Spacing, width: float) -> NDArray[np.float64]:
    """Filter by a Gaussian that is round in mm."""
    sd = [width * min(spacing) / h for h in spacing]
    return np.asarray(gaussian_filter(image.astype(np.float64), sd))


def _itk(array: NDArray, spacing: Spacing) -> Any:
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    image = sitk.GetImageFromArray(np.ascontiguousarray(array, dtype=np.float32))
    image.SetSpacing(spacing[::-1])
    return image


def _evolved(chosen: Any, start: NDArray, feature: NDArray, spacing: Spacing) -> NDArray:
    import SimpleITK as sitk

    chosen.SetMaximumRMSError(1e-4)
    return np.asarray(
        sitk.GetArrayFromImage(chosen.Execute(_itk(start, spacing), _itk(feature, spacing)))
    )


def itk_gac(
    image: NDArray,
    start: NDArray,
    spacing: Spacing,
    *,
    width: float,
    edge: float,
    propagation: float,
    curvature: float,
    advection: float,
    iterations: int,
) -> NDArray:
    """SimpleITK ``GeodesicActiveContourLevelSet``: negative inside, propagation > 0 grows.

    Takes an edge potential, here 1 / (1 + (slope / edge)²) of the filtered image with the slope
    in contrasts a voxel; knows the spacing; sub-voxel.
    """
    import SimpleITK as sitk

    sd = [width * min(spacing) / h for h in spacing]
    if len(set(spacing)) == 1:
        slope = gaussian_gradient_magnitude(image.astype(np.float64), sd)
    else:
        parts = np.gradient(blurred(image, spacing, width), *spacing)
        slope = min(spacing) * np.sqrt(sum(g * g for g in parts))
    chosen = sitk.GeodesicActiveContourLevelSetImageFilter()
    chosen.SetPropagationScaling(propagation)
    chosen.SetCurvatureScaling(curvature)
    chosen.SetAdvectionScaling(advection)
    chosen.SetNumberOfIterations(iterations)
    return _evolved(chosen, start, 1.0 / (1.0 + (slope / edge) ** 2), spacing)


def itk_threshold(
    image: NDArray,
    start: NDArray,
    spacing: Spacing,
    *,
    width: float,
    lower: float,
    curvature: float,
    iterations: int,
) -> NDArray:
    """SimpleITK ``ThresholdSegmentationLevelSet``: negative inside, grows within the window.

    The window reaches from ``lower`` to beyond the brightest lumen; knows the spacing; sub-voxel.
    """
    import SimpleITK as sitk

    chosen = sitk.ThresholdSegmentationLevelSetImageFilter()
    chosen.SetLowerThreshold(lower)
    chosen.SetUpperThreshold(10.0)
    chosen.SetPropagationScaling(1.0)
    chosen.SetCurvatureScaling(curvature)
    chosen.SetNumberOfIterations(iterations)
    return _evolved(chosen, start, blurred(image, spacing, width), spacing)


def itk_chan_vese(
    image: NDArray,
    start: NDArray,
    spacing: Spacing,
    *,
    width: float,
    scale: float,
    curvature: float,
    iterations: int,
    grow: float,
    soften: float,
) -> NDArray:
    """SimpleITK ``ScalarChanAndVeseDenseLevelSet``: negative inside in, a mask out.

    Its mask lies about one voxel inside the wall, whatever the settings; ``grow`` puts it back.
    Intensities enter the balance of its terms, hence ``scale``.
    """
    import SimpleITK as sitk

    chosen = sitk.ScalarChanAndVeseDenseLevelSetImageFilter()
    chosen.SetCurvatureWeight(curvature)
    chosen.SetAreaWeight(0.0)
    chosen.SetReinitializationSmoothingWeight(0.0)
    chosen.SetNumberOfIterations(iterations)
    mask = _evolved(chosen, start, scale * blurred(image, spacing, width), spacing) > 0.5
    return from_mask(mask, spacing, soften) - grow * min(spacing)


def skimage_morphological_chan_vese(
    image: NDArray,
    start: NDArray,
    spacing: Spacing,
    *,
    width: float,
    smoothing: int,
    inside: float,
    iterations: int,
    soften: float,
) -> NDArray:
    """Scikit-image ``morphological_chan_vese``: a mask in, a mask out; knows no spacing."""
    from skimage.segmentation import morphological_chan_vese

    mask = morphological_chan_vese(
        blurred(image, spacing, width),
        iterations,
        init_level_set=(start < 0).astype(np.int8),
        smoothing=smoothing,
        lambda1=inside,
        lambda2=1.0,
    )
    return from_mask(mask > 0, spacing, soften)


def skimage_morphological_gac(
    image: NDArray,
    start: NDArray,
    spacing: Spacing,
    *,
    width: float,
    alpha: float,
    threshold: float,
    balloon: float,
    smoothing: int,
    iterations: int,
    soften: float,
) -> NDArray:
    """Scikit-image ``morphological_geodesic_active_contour``: masks; knows no spacing."""
    from skimage.segmentation import (
        inverse_gaussian_gradient,
        morphological_geodesic_active_contour,
    )

    edges = inverse_gaussian_gradient(image.astype(np.float64), alpha, width)
    mask = morphological_geodesic_active_contour(
        edges,
        iterations,
        init_level_set=(start < 0).astype(np.int8),
        smoothing=smoothing,
        threshold=threshold,
        balloon=balloon,
    )
    return from_mask(mask > 0, spacing, soften)


def skimage_chan_vese(
    image: NDArray,
    start: NDArray,
    spacing: Spacing,
    *,
    width: float,
    mu: float,
    inside: float,
    iterations: int,
) -> NDArray:
    """Scikit-image ``chan_vese``, planes only: positive inside; no spacing; sub-voxel."""
    from skimage.segmentation import chan_vese

    found = chan_vese(
        blurred(image, spacing, width),
        mu=mu,
        lambda1=inside,
        lambda2=1.0,
        tol=1e-4,
        max_num_iter=iterations,
        dt=0.5,
        init_level_set=-start / min(spacing),
        extended_output=True,
    )
    return -np.asarray(found[1])


def from_mask(mask: NDArray, spacing: Spacing, soften: float) -> NDArray[np.float64]:
    """Signed distance to the faces of a mask, filtered: a fair reading of a blocky wall."""
    out, within = (distance_transform_edt(m, sampling=spacing) for m in (~mask, mask))
    half = min(spacing) / 2
    return blurred(np.where(mask, half - within, out - half), spacing, soften)


@dataclass(frozen=True)
class Peer:
    """A peer: what it is called, how it runs, and the values that tuning tries.

    ``search`` holds the values of each setting, the first one to begin with.
    """

    name: str
    run: Callable[..., NDArray]
    search: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    planar: bool = False


SOFTEN = (1.0, 0.0, 0.6, 1.5)
WIDTH = (0.8, 0.0, 0.5, 1.2, 1.6)
PEERS = {
    "itk_gac": Peer(
        "SimpleITK geodesic active contour",
        itk_gac,
        {
            "width": (1.0, 0.6, 1.4, 2.0),
            "edge": (0.2, 0.1, 0.4),
            "propagation": (0.5, 0.0, 0.2, 1.0),
            "curvature": (0.1, 0.05, 0.2, 0.5, 1.0),
            "advection": (2.0, 1.0, 4.0, 8.0),
            "iterations": (50, 20, 100),
        },
    ),
    "itk_threshold": Peer(
        "SimpleITK threshold level set",
        itk_threshold,
        {
            "width": WIDTH,
            "lower": (0.45, 0.35, 0.4, 0.5, 0.55),
            "curvature": (0.2, 0.0, 0.05, 0.1, 0.4, 0.8),
            "iterations": (50, 20, 150),
        },
    ),
    "itk_chan_vese": Peer(
        "SimpleITK Chan-Vese",
        itk_chan_vese,
        {
            "width": WIDTH,
            "grow": (1.25, 0.75, 1.0, 1.5),
            "scale": (30.0, 10.0, 100.0),
            "curvature": (10.0, 0.1, 3.0, 30.0),
            "iterations": (20, 60),
            "soften": SOFTEN,
        },
    ),
    "skimage_morph_chan_vese": Peer(
        "scikit-image morphological Chan-Vese",
        skimage_morphological_chan_vese,
        {
            "width": WIDTH,
            "smoothing": (1, 0, 2, 3),
            "inside": (1.0, 0.5, 0.7, 1.4, 2.0),
            "iterations": (20, 8, 40),
            "soften": SOFTEN,
        },
    ),
    "skimage_morph_gac": Peer(
        "scikit-image morphological geodesic active contour",
        skimage_morphological_gac,
        {
            "width": (1.0, 0.6, 1.4, 2.0),
            "alpha": (10.0, 3.0, 30.0, 100.0),
            "threshold": (0.7, 0.3, 0.5, 0.9),
            "balloon": (0.0, 1.0, -1.0),
            "smoothing": (0, 1, 2),
            "iterations": (20, 8, 40),
            "soften": (0.6, 0.0, 1.0, 1.5),
        },
    ),
    "skimage_chan_vese": Peer(
        "scikit-image Chan-Vese (2-D)",
        skimage_chan_vese,
        {
            "width": WIDTH,
            "mu": (0.1, 0.01, 0.03, 0.25, 0.5),
            "inside": (1.0, 0.5, 0.7, 1.4, 2.0),
            "iterations": (300, 100),
        },
        planar=True,
    ),
}


def isosurfaces(image: NDArray, start: NDArray, truth: NDArray, grid: Grid) -> dict[str, NDArray]:
    """Return the best isosurfaces of the filtered image: width tuned, and level as well.

    Both are chosen with the truth of the very case in hand. Only what lies near the start counts,
    so that islands of noise and organs elsewhere do not.
    """
    smooth = {w: blurred(image, grid.spacing_mm, w) for w in WIDTHS}
    far = np.abs(start) > REACH * grid.h_max

    def wall(width: float, level: float) -> NDArray:
        return np.where(far, start, grid.h_min * (level - smooth[width]))

    def rms(choice: tuple[float, float]) -> float:
        return wall_rms(wall(*choice), truth, grid)

    half = min(((w, 0.5) for w in WIDTHS), key=rms)
    best = min(((w, v) for w in WIDTHS for v in LEVELS), key=rms)
    best = min(((best[0], best[1] + FINER * k) for k in range(-2, 3)), key=rms)
    return {"isosurface": wall(*half), "isosurface_tuned": wall(*best)}


def wall_rms(phi: NDArray, truth: NDArray, grid: Grid) -> float:
    """Wall error in voxels; that of a lost vessel if there is no wall or the lumen is elsewhere.

    A balloon that floods all but crumbs along the wall would look good by its wall alone.
    """
    if metrics.dice(phi < 0, truth < 0) < SAME:
        return LOST
    try:
        return min(metrics.wall_errors(phi, truth, grid)["rms_voxel"], LOST)
    except NoInterfaceError:
        return LOST


Trial = tuple[NDArray, NDArray, NDArray, Grid]


def tuned(peer: Peer, cases: Sequence[Trial], starts: Sequence[Settings]) -> tuple[Settings, float]:
    """Choose settings one by one until none gets better, from the starts and the best of draws.

    ``cases`` are image, start, truth and grid of what to be good at on average.
    """
    known: dict[tuple[Any, ...], float] = {}
    above: dict[tuple[Any, ...], float] = {}

    def score(settings: Settings, limit: float = np.inf) -> float:
        """Average the error; infinite as soon as it cannot stay below the limit."""
        key = tuple(settings.values())
        if key not in known and above.get(key, -1.0) < limit:
            total = 0.0
            for image, start, truth, grid in cases:
                phi = peer.run(image, start, grid.spacing_mm, **settings)
                total += wall_rms(phi, truth, grid)
                if total > limit * len(cases):
                    above[key] = limit
                    return np.inf
            known[key] = total / len(cases)
        return known.get(key, np.inf)

    def better(best: Settings, others: Iterable[Settings]) -> Settings:
        for other in others:
            if score(other, score(best)) < score(best):
                best = other
        return best

    def descended(best: Settings) -> Settings:
        before = np.inf
        while score(best) < 0.98 * before:
            before = score(best)
            for name, values in peer.search.items():
                best = better(best, [{**best, name: value} for value in values])
        return best

    rng = np.random.default_rng(0)
    drawn = [{name: values[rng.integers(len(values))] for name, values in peer.search.items()}
             for _ in range(DRAWN)]  # fmt: skip
    first, *rest = [descended(s) for s in (better(drawn[0], drawn[1:]), *starts)]
    best = better(first, rest)
    return best, score(best)


def main() -> None:
    """Tune every peer, or the ones named, and write what was chosen."""
    from scenes import RESULTS, tuning_trials

    from vesselseg.io.atomic import write_bytes

    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--tune", action="store_true", required=True)
    options.add_argument("peers", nargs="*", help="default: all")
    given = options.parse_args()
    file = RESULTS / "peers_tuning.json"
    for name in given.peers or PEERS:
        peer, by = PEERS[name], {}
        for ndim in (2,) if peer.planar else (2, 3):
            default = best = {key: values[0] for key, values in peer.search.items()}
            for snr in (6.0, 12.0, 3.0):  # also from the best of the last
                clock = time.process_time()
                best, rms = tuned(peer, tuning_trials(ndim, snr), (default, best))
                key = f"{ndim}-D, SNR {snr:g}"
                by[key] = {"rms_voxel": round(rms, 4), **best}
                print(name, key, by[key], f"{time.process_time() - clock:.0f} s", flush=True)
        found: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
        found[name] = by
        write_bytes(file, (json.dumps(found, indent=1) + "\n").encode(), overwrite=True)


if __name__ == "__main__":
    main()
