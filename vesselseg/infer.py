"""Segmentation: ``Volume -> Probability``, by overlapping tiles on an isotropic working grid.

The scan is turned to the closest RAS axes, resampled to cubic voxels, normalised by its own
percentiles and run through the network tile by tile. Signed distance, variance and logit are
blended with Gaussian weights, never the probability; the distance is then resampled back to the
grid of the scan, and the probability follows from it, so that both have one wall. A component of
the lumen that the logit doubts is left out. A network without a distance, or of two dimensions on
a volume, gives the probability alone, by its logit; the latter sees the slices across the
coarsest axis. A network of several classes also names the class of each voxel.
"""

from __future__ import annotations

import functools
import itertools
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import AfterValidator, Field
from scipy import ndimage
from torch import Tensor

from . import nets
from .config import Settings
from .device import network_device, require_network_device
from .errors import CheckpointError, DataError
from .fields import Probability, Progress, Volume, silent
from .nets import checkpoint
from .nets.tiles import MIN_SIZE, STRIDE, gaussian, pad, plan
from .nets.working import working_grid

Floats = NDArray[np.float32]
Fields = tuple[Floats, Floats, Floats, Floats]  # logit, distance, variance, log p of classes

SIGMA_FLOOR = 0.05  # voxels of the working grid
FAR = 4.0  # voxels: the networks know no larger distance
MAX_OVERLAP = 48
DOUBTFUL = 0.5  # mean logit of a component below which it is no vessel
OUTSIDE = 1.0  # voxels: the least distance given to such a component
STREAM = 2**26  # voxels beyond which the sums over tiles lie on the disk
DeviceName = Annotated[str, AfterValidator(network_device)]


class SegmentSettings(Settings):
    """Settings of ``segment``."""

    polarity: Literal["bright", "dark", "auto"] = Field(
        "bright", description="whether blood is brighter or darker than its surroundings"
    )
    voxel_mm: float | None = Field(
        None, gt=0, description="working voxel; default: the finest spacing of the scan"
    )
    max_voxels: int = Field(
        2**27, ge=MIN_SIZE**3, description="of the working grid; it is coarsened beyond"
    )
    tile: int = Field(144, ge=64, multiple_of=STRIDE, description="largest tile, voxels")
    overlap: int = Field(32, ge=0, le=MAX_OVERLAP, description="of neighbouring tiles, voxels")
    accurate: bool = Field(
        False, description="average over all flips, in 3-D 8 runs a tile for 4; overlap of 48"
    )
    bf16: bool | None = Field(None, description="default: where the device computes in bfloat16")
    device: DeviceName = Field("cpu", description="cpu, cuda or cuda:N")
    lumen_classes: tuple[int, ...] | None = Field(
        None, strict=False, description="of several classes; default: all but the background, 0"
    )


@dataclass(frozen=True, eq=False)
class Model:
    """A network with its calibration, ready to run.

    In voxels: p = sigmoid(-2 T sdf), s.d. of the wall = scale * (s.d. of the head) ** power.
    ``slices``: a network of two dimensions for a volume. ``half_turns``: the mean over the half
    turns about the axes is meant, and calibrated.
    """

    net: torch.nn.Module
    temperature: float
    sigma_scale: float
    sigma_power: float
    model_id: str
    classes: int = 1
    distance: bool = True
    slices: bool = False
    half_turns: bool = False


def segment(
    volume: Volume,
    model: str | Path | None = None,
    settings: SegmentSettings = SegmentSettings(),  # noqa: B008 - frozen
    *,
    channels: Sequence[Volume] = (),
    progress: Progress = silent,
) -> Probability:
    """Find the lumen of a scan with a network.

    Parameters
    ----------
    volume : Volume
        2-D or 3-D, any orientation and spacing.
    model : path, optional
        Checkpoint (.json or .safetensors); default: the weights shipped for 2-D or 3-D scans.
    settings : SegmentSettings
    channels : sequence of Volume
        The further images that a network of several channels sees, on the grid of the scan.
    progress : callable

    Returns
    -------
    Probability
        On the scan's grid: ``phi_mm`` (trusted within two voxels of the wall),
        ``values = sigmoid(-2 T phi / h)`` and ``sigma_mm``, the standard deviation of the wall
        along its normal. Only ``values``, summed over the classes of the lumen, where the
        network has no distance of that lumen or sees slices of a volume. ``labels`` of a network
        of several classes.

    Raises
    ------
    CheckpointError
        Weights missing, damaged, or for another number of dimensions or channels.
    DataError
        If every voxel has the same value, or a channel lies on another grid.
    EnvironmentFault
        If the settings ask for a CUDA device that PyTorch cannot use.
    """
    require_device(settings.device)
    ndim, scans = volume.grid.ndim, (volume, *channels)
    loaded = load_model(model or checkpoint.shipped(ndim), ndim, len(scans), settings.device)
    for scan in scans:
        if scan.values.min() == scan.values.max():
            raise DataError("image has no contrast", path=scan.name, found="all voxels equal")
        if not scan.grid.fits(volume.grid):
            raise DataError("channel lies on another grid", path=scan.name)
    work, notes = working_grid(volume.grid, settings.voxel_mm, settings.max_voxels)
    images = [work.to_working(scan.values) for scan in scans]
    signs = {"bright": (False,), "dark": (True,), "auto": (False, True)}[settings.polarity]
    slices = functools.partial(predict_slices, axis=int(work.step.argmin()))
    run = slices if loaded.slices else predict
    inputs = (np.stack([nets.normalise(image, dark) for image in images]) for dark in signs)
    logit, sdf, variance, shares = max(
        (run(loaded, image, settings, progress) for image in inputs), key=evidence
    )
    shape = volume.grid.shape_kji
    phi: Floats | None = None
    sigma: Floats | None = None
    partial = loaded.classes > 1 and settings.lumen_classes is not None
    if loaded.slices or not loaded.distance or partial:
        distance = np.clip(-0.5 * work.to_scan(logit, shape), -FAR, FAR)
    else:
        distance = work.to_scan(without_doubtful(logit, sdf), shape)
        spread = loaded.sigma_scale * work.to_scan(variance, shape) ** (0.5 * loaded.sigma_power)
        h = np.float32(work.voxel_mm)
        phi, sigma = h * distance, h * np.maximum(spread, SIGMA_FLOOR)
    values, labels = probability(distance, loaded.temperature), None
    if len(shares):
        classes = np.stack([work.to_scan(share, shape) for share in shares])
        labels = likeliest(classes, values > 0.5, settings.lumen_classes)
    return Probability(values, volume.grid, loaded.model_id, phi, sigma, notes=notes, labels=labels)


def likeliest(
    shares: Floats, inside: NDArray[np.bool_], lumen_classes: tuple[int, ...] | None
) -> NDArray[np.uint8]:
    """Return the class of each voxel: the best of the lumen's inside it, of the others outside."""
    best = [
        np.array(side, np.uint8)[shares[side].argmax(0)]
        for side in nets.sides(len(shares), lumen_classes)
    ]
    return np.asarray(np.where(inside, *best), dtype=np.uint8)


def require_device(name: str) -> None:
    """Raise EnvironmentFault for a CUDA device that PyTorch cannot use."""
    require_network_device(name, torch.cuda.device_count() if torch.cuda.is_available() else 0)


def images_and_classes(model: str | Path | None) -> tuple[int, int]:
    """Return how many images of a scan a network sees and how many classes it knows."""
    if model is None:
        return 1, 1  # the shipped ones
    architecture = checkpoint.load(checkpoint.located(str(model))).card["architecture"]
    counts = (architecture.get(key) for key in ("in_channels", "classes"))
    channels, classes = (n if isinstance(n, int) and n > 0 else 1 for n in counts)
    return channels, classes


def load_model(path: str | Path, dims: int, channels: int, device: str) -> Model:
    """Read a checkpoint and check that it fits the scan."""
    read = checkpoint.load(checkpoint.located(str(path)))
    architecture = read.card["architecture"]
    have, sees = architecture.get("dims"), architecture.get("in_channels")
    classes = architecture.get("classes")
    if have not in (2, dims) or sees != channels or not isinstance(classes, int):
        raise CheckpointError(
            "network does not fit the scan",
            path=path,
            found=f"{have}-D, {sees} channels, {classes} classes",
            need=f"{dims if dims == 2 else '2-D or 3'}-D, as many channels as images: {channels}",
        )
    calibration = read.card.get("calibration", {})
    keys = ("temperature", "sigma_scale", "sigma_power")
    t, scale, power = (float(calibration.get(k, 1.0)) for k in keys)
    net, distance = checkpoint.network(read).to(device), bool(architecture.get("distance", True))
    turns = read.card.get("half_turns") is True
    return Model(net, t, scale, power, read.model_id, classes, distance, have != dims, turns)


@torch.inference_mode()
def predict(model: Model, image: Floats, settings: SegmentSettings, progress: Progress) -> Fields:
    """Blend what is said of an image ``(C, ...)`` over its tiles; distances are in voxels."""
    shape = image.shape[1:]
    x = torch.from_numpy(np.stack([pad(channel) for channel in image])).to(settings.device)
    size, rows = tuple(x.shape[1:]), 3 + (model.classes if model.classes > 1 else 0)
    total, weight = (zeros(s, x.device) for s in ((rows, *size), size))
    overlap = MAX_OVERLAP if settings.accurate else settings.overlap
    tiles = list(plan(size, settings.tile, overlap))
    for done, tile in enumerate(tiles, 1):
        values = run_tile(model, x[(slice(None), *tile)], settings)
        window = gaussian(tuple(values.shape[1:])).to(x.device)
        total[(slice(None), *tile)] += window * values
        weight[tile] += window
        progress("segment", done / len(tiles), f"tile {done} of {len(tiles)}")
    total /= weight
    crop = (..., *(slice(0, n) for n in shape))
    logit, sdf, variance, shares = (
        np.ascontiguousarray(t[crop].cpu().numpy()) for t in (*total[:3], total[3:])
    )
    return logit, np.clip(sdf, -FAR, FAR), variance, shares


def zeros(shape: tuple[int, ...], place: torch.device) -> Tensor:
    """Return float32 zeros: in memory, or in a nameless file on the disk if they are many."""
    if math.prod(shape) <= STREAM or place.type != "cpu":
        return torch.zeros(shape, device=place)
    with tempfile.TemporaryFile() as file:
        return torch.from_numpy(np.memmap(file, np.float32, "w+", shape=shape))


def without_doubtful(logit: Floats, sdf: Floats) -> Floats:
    """Turn the components of the lumen whose mean logit is below ``DOUBTFUL`` to background.

    The distance places the wall of what there is, the logit knows better whether it is a vessel.
    """
    parts, count = ndimage.label(sdf < 0)
    if count == 0:
        return sdf
    mean = ndimage.mean(logit, parts, np.arange(1, count + 1))
    doubtful = np.concatenate([[False], mean < DOUBTFUL])[parts]
    return np.where(doubtful, np.maximum(np.abs(sdf), np.float32(OUTSIDE)), sdf)


def predict_slices(
    model: Model, image: Floats, settings: SegmentSettings, progress: Progress, axis: int
) -> Fields:
    """Stack what a 2-D network says of the slices of a volume across an axis."""
    slices = np.moveaxis(image, axis + 1, 0)
    rows = []
    for number, plane in enumerate(slices, 1):
        rows.append(predict(model, plane, settings, silent))
        progress("segment", number / len(slices), f"slice {number} of {len(slices)}")
    *said, shares = (np.stack(r) for r in zip(*rows, strict=True))
    logit, sdf, variance = (np.moveaxis(x, 0, axis) for x in said)
    return logit, sdf, variance, np.moveaxis(shares, 0, axis + 1)


def thread_count() -> int:
    """Return the number of threads a network runs on."""
    return torch.get_num_threads()


def run_tile(model: Model, tile: Tensor, settings: SegmentSettings) -> Tensor:
    """Return logit, distance, variance and log p of the classes of a tile ``(C, ...)``.

    Averaged over the half turns if the model wants it, over all flips if asked; of one class there
    is no log p.
    """
    low = nets.bf16_pays(settings.device) if settings.bf16 is None else settings.bf16
    axes = range(1, tile.ndim)
    flipped = range(tile.ndim) if settings.accurate else (0, 2) if model.half_turns else (0,)
    rows = []
    for pose in itertools.chain.from_iterable(itertools.combinations(axes, k) for k in flipped):
        with torch.autocast(tile.device.type, torch.bfloat16, enabled=low):
            output = model.net(torch.flip(tile, pose)[None])
        heads = nets.heads(output, model.classes)
        logit = nets.lumen_logit(heads.logit, settings.lumen_classes)
        sdf, log_sigma = heads.sdf, heads.log_sigma
        if sdf is None or log_sigma is None:
            sdf, log_sigma = -0.5 * logit, torch.zeros_like(logit)
        shares = heads.logit[0].log_softmax(0) if model.classes > 1 else logit[:0]
        row = torch.cat([logit, sdf, (2.0 * log_sigma).exp(), sdf.square(), shares])
        rows.append(torch.flip(row, pose))
    mean = torch.stack(rows).mean(0) if len(rows) > 1 else rows[0]
    spread = (mean[3] - mean[1].square()).clamp(min=0.0)
    return torch.cat([mean[:2], (mean[2] + spread)[None], mean[4:]])


def evidence(run: Fields) -> float:
    """Return the summed confidence inside the predicted lumen, to choose a polarity."""
    logit, sdf, *_ = run
    return float(np.maximum(logit, 0.0)[sdf < 0].sum(dtype=np.float64))


def probability(distance: Floats, temperature: float) -> Floats:
    """Return ``sigmoid(-2 T distance)``, above a half exactly where the distance is negative."""
    p = np.asarray(1.0 / (1.0 + np.exp(2.0 * temperature * distance)), dtype=np.float32)
    half = np.float32(0.5)
    above = np.maximum(p, np.nextafter(half, np.float32(1.0)))
    return np.where(distance < 0, above, np.minimum(p, half))
