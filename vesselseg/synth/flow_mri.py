"""Flow scans of phantoms with a known flow: four encodings, point spread, complex noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..fields import Volume
from ..flow import Flow
from ..grid import Grid
from ..phantoms.problems import Phantom

Floats = NDArray[np.floating]


@dataclass(frozen=True)
class FlowModel:
    """How a flow scan is made.

    Parameters
    ----------
    snr : float
        Magnitude of the lumen over the s.d. of each of real and imaginary part.
    venc_ms : float
    psf_voxels : float
        s.d. of the point spread along each axis, without the voxel box.
    background : float
        Magnitude outside, of 1 inside.
    supersample : int
        Samples a voxel and axis.
    """

    snr: float = 6.0
    venc_ms: float = 1.0
    psf_voxels: float = 0.6
    background: float = 0.3
    supersample: int = 3


def poiseuille(shape: Phantom, points_xyz: Floats, flow_m3s: Floats) -> Floats:
    """Return the parabolic flow along the axis of a phantom.

    Parameters
    ----------
    points_xyz : (n, ndim)
        mm.
    flow_m3s : (m,)
        Flow at each point of the axis, along its order; in 2-D m²/s of a channel.

    Returns
    -------
    (n, 3) float
        m/s, zero outside the lumen.
    """
    from scipy.spatial import cKDTree

    axis = shape.axis_xyz
    step = np.gradient(axis, axis=0)
    jump = np.linalg.norm(np.diff(axis, axis=0), axis=1)
    ends = np.flatnonzero(jump > 3.0 * np.median(jump))  # where another branch begins
    step[ends], step[ends + 1] = axis[ends] - axis[ends - 1], axis[ends + 2] - axis[ends + 1]
    tangent = step / np.linalg.norm(step, axis=1, keepdims=True)
    near = cKDTree(axis).query(points_xyz)[1]
    offset = points_xyz - axis[near]
    offset -= (offset * tangent[near]).sum(axis=1, keepdims=True) * tangent[near]
    radius = shape.axis_radius[near]
    inside = np.maximum(1.0 - np.square(offset).sum(axis=1) / radius**2, 0.0)
    inside[shape.sdf(points_xyz) >= 0.0] = 0.0
    r = 1e-3 * radius
    peak = 2.0 / (np.pi * r**2) if shape.ndim == 3 else 0.75 / r
    speed = np.asarray(flow_m3s)[near] * peak * inside
    result = np.zeros((len(points_xyz), 3))
    result[:, : shape.ndim] = speed[:, None] * tangent[near]
    return result


def flow_scan(
    shape: Phantom, grid: Grid, flow_m3s: Floats, model: FlowModel, seeds: list[int]
) -> list[tuple[Volume, Flow]]:
    """Render magnitude and velocity of a steady flow, once for each seed of the noise."""
    clean = _encodings(shape, grid, flow_m3s, model)
    scans = []
    for seed in seeds:
        rng = np.random.default_rng(np.random.SeedSequence([seed, 41]))
        noise = rng.standard_normal((2, *clean.shape)) / model.snr
        seen = clean + noise[0] + 1j * noise[1]
        phase = np.angle(seen[1:] * np.conj(seen[:1]))
        u = np.moveaxis(model.venc_ms / np.pi * phase, 0, -1)[None]
        magnitude = np.abs(seen).mean(axis=0)
        volume = Volume(magnitude.astype(np.float32), grid, shape.name)
        scans.append((volume, Flow(u.astype(np.float32), grid, (model.venc_ms,) * 3)))
    return scans


def _encodings(shape: Phantom, grid: Grid, flow_m3s: Floats, model: FlowModel) -> Floats:
    """Return reference and three velocity encodings without noise, (4, grid) complex."""
    from scipy import ndimage

    n = model.supersample
    fine = [(np.arange(length * n) + 0.5) / n - 0.5 for length in grid.shape_kji]
    index = np.stack(np.meshgrid(*fine, indexing="ij"), axis=-1).reshape(-1, grid.ndim)
    points = grid.world(index)[:, : grid.ndim]
    phi = shape.sdf(points)
    step = grid.h_min / n
    inside = np.clip(0.5 - phi / step, 0.0, 1.0)
    magnitude = model.background + (1.0 - model.background) * inside
    u = np.zeros((len(points), 3))
    lumen = phi < 0
    u[lumen] = poiseuille(shape, points[lumen], flow_m3s)
    turns = np.exp(1j * np.pi / model.venc_ms * np.column_stack([np.zeros(len(u)), u]))
    images = []
    for part in turns.T:
        image = (magnitude * part).reshape([length * n for length in grid.shape_kji])
        image = ndimage.gaussian_filter(image, model.psf_voxels * n, mode="nearest")
        blocks = [x for length in grid.shape_kji for x in (length, n)]
        axes = tuple(range(1, 2 * grid.ndim, 2))
        images.append(image.reshape(blocks).mean(axis=axes))
    return np.array(images)
