"""The viscous signed distance: a distance without creases, pinned to the wall."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vesselseg.cuda_kernels import viscous as kernels
from vesselseg.cuda_kernels.reinit import wall_arms
from vesselseg.errors import ConfigError, NumericalError

from .field import asfield, like_input
from .layers import find_interface
from .redistancing import redistance

MARGIN = 4.0  # in ε: the layer beyond the band in which the rim of the domain is felt
AT_REST = 1e-6  # largest change of a sweep, in smallest spacings
MAX_SWEEPS = 1000
DEPTH = 10  # earlier sweeps from which the next start is mixed
RESTART = 2.0  # growth of a sweep's change after which they are forgotten


def viscous_distance(
    phi: Any,
    spacing_mm: float | Sequence[float],
    epsilon_mm: float,
    *,
    band_mm: float | None = None,
) -> NDArray:
    """Signed distance that is smoothed over a length but stays zero on the wall.

    Solves sgn(φ) |∇φᵥ| - ε Δφᵥ = sgn(φ), φᵥ = 0 where φ = 0: the viscous Eikonal problem by which
    Kontogiannis et al. (J. Fluid Mech. 944 (2022) A40; Inverse Problems 41 (2025) 015008) extend
    a wall. The creases of the distance on the medial axis become smooth over a length ε, the wall
    does not move, and φᵥ tends to the distance as ε → 0. On a curved wall its slope is 1 + ε κ
    outside and 1 - ε κ inside to first order, κ = div n.

    Parameters
    ----------
    phi : (nz, ny, nx) or (ny, nx) array
        Any function that is negative in the lumen.
    spacing_mm : float or sequence
        Voxel size per array axis, mm.
    epsilon_mm : float
        Viscosity ε, a length.
    band_mm : float, optional
        Clamp to ± this value; work is done where the distance is not much larger. Default: the
        whole domain. Beyond the domain the distance is continued with its slope.

    Returns
    -------
    array
        Same shape, float64 for float64 input, else float32; mm.

    Raises
    ------
    NoInterfaceError
        If phi has one sign everywhere.
    DataError
        If phi or the spacing is not finite.
    ConfigError
        If epsilon_mm or band_mm is no positive length.
    NumericalError
        If the sweeps do not settle, which takes an ε of many voxels.
    """
    field, spacing = asfield(phi, spacing_mm)
    diameter = float(np.linalg.norm(np.multiply(field.shape, spacing)))
    if not 0.0 < epsilon_mm <= diameter:
        need = f"a positive length up to that of the domain, {diameter:.3g} mm"
        raise ConfigError("bad epsilon_mm", found=epsilon_mm, need=need)
    if band_mm is not None and not 0.0 < band_mm < np.inf:
        raise ConfigError("bad band_mm", found=band_mm, need="a positive length")
    reach = None if band_mm is None else band_mm + 2.0 * max(spacing) + MARGIN * epsilon_mm
    exact = redistance(field, spacing, band_mm=reach).astype(np.float64)
    size = np.abs(exact)
    far = np.inf if reach is None else float(field.dtype.type(reach))  # as the distance is clamped
    listed = np.argwhere(size < far)
    index = listed[np.argsort(size[tuple(listed.T)], kind="stable")].astype(np.int32)
    distance = solve(exact, index, spacing, float(epsilon_mm))
    size[tuple(index.T)] = distance
    bound = np.finfo(field.dtype).max if band_mm is None else band_mm
    size = np.clip(size, np.finfo(field.dtype).tiny, bound)
    out = np.where(exact < 0, -size, np.where(field == 0, 0.0, size)).astype(field.dtype)
    return like_input(out, phi)


def solve(
    exact: NDArray[np.float64], index: NDArray[np.int32], spacing: tuple[float, ...], epsilon: float
) -> NDArray[np.float64]:
    """Solve for the voxels (n, 3), listed from the wall outward, starting from the distance."""
    label, walls = find_interface(exact)
    label -= 1
    arms = np.empty((len(walls), 6))
    wall_arms(exact, walls, arms, np.empty(len(walls)), np.asarray(spacing))
    at = tuple(index.T)
    beside = label[at].copy()
    label[at] = np.arange(len(index))
    links, lengths = np.empty((len(index), 6), np.int32), np.empty((len(index), 6))
    kernels.link_band(exact, label, index, beside, arms, links, lengths, *spacing)
    distance = np.abs(exact[at])
    gain, viscosity = np.empty((len(index), 6)), np.empty((len(index), 3))
    source = np.empty(len(index))
    kernels.prepare(distance, links, lengths, epsilon, gain, viscosity, source)
    return settle(
        lambda d: kernels.sweep(d, links, lengths, gain, viscosity, source),
        distance,
        AT_REST * min(spacing),
    )


def settle(
    sweep: Callable[[NDArray[np.float64]], None], state: NDArray[np.float64], tolerance: float
) -> NDArray[np.float64]:
    """Repeat a sweep (in place) until it changes nothing, mixing past ones (Anderson 1965).

    The next start is that combination of the last sweeps whose changes cancel best (Walker & Ni,
    SIAM J. Numer. Anal. 49 (2011) 1715). Sums are taken in one order, whatever the threads.
    """
    ends: list[NDArray] = []
    moves: list[NDArray] = []
    last = np.inf
    for _ in range(MAX_SWEEPS):
        end = state.copy()
        sweep(end)
        move = end - state
        if (moved := float(np.abs(move).max())) <= tolerance:
            return end
        if moved > RESTART * last:
            ends, moves = [], []
        last = moved
        ends, moves = [*ends[-DEPTH:], end], [*moves[-DEPTH:], move]
        state = end if len(moves) == 1 else np.maximum(end - _cancelling(ends, moves), 0.0)
    raise NumericalError(
        "the viscous distance does not settle",
        found=f"{moved:.3g} mm after {MAX_SWEEPS} sweeps",
        need=f"at most {tolerance:.3g}",
        remedy="reduce epsilon_mm or band_mm",
    )


def _cancelling(ends: list[NDArray], moves: list[NDArray]) -> NDArray[np.float64]:
    """Return Σ γ ΔG with γ the least squares of Σ γ ΔF against the last change."""
    steps, changes = np.diff(ends, axis=0), np.diff(moves, axis=0)
    gram = np.einsum("in,jn->ij", changes, changes)
    gram += 1e-12 * np.trace(gram) * np.eye(len(gram))
    weights = np.linalg.solve(gram, np.einsum("in,n->i", changes, moves[-1]))
    return np.asarray(np.einsum("i,in->n", weights, steps))
