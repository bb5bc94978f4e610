"""Redistancing by the reinitialisation equation, in a band about the wall."""

from __future__ import annotations

import itertools
import math

import numpy as np
from numpy.typing import NDArray

from vesselseg.cuda_kernels import reinit as kernels

from .layers import find_interface
from .schemes import STEADY

CFL = 0.8
PASSES = 2.0  # times that information may cross the band before the iteration is cut off
EXTRA_STEPS = 25
AT_REST = 1e-5  # largest change of a step, in smallest spacings


def redistance_pde(phi: NDArray, spacing: tuple[float, ...], band: float) -> NDArray:
    """Signed distance of a checked 3-D field as the steady state of phi_t = ±(1 - |∇phi|).

    HJ-WENO5 away from the wall, ENO2 up to the wall beside it, TVD-RK2, own step per voxel.
    The start is the length of a path over neighbouring voxels, which depends on the zero set
    alone, so the result does not depend on how phi was scaled.
    """
    index, distance, arms = _band_list(phi, spacing, band)
    # Rounded as it is stored: the kernel tells voxels beyond the band by this very number.
    far = float(phi.dtype.type(max(float(distance.max()), band) + max(spacing)))
    sign = np.sign(phi)
    state = np.where(phi < 0, -far, far).astype(phi.dtype)
    at = tuple(index.T)
    state[at] = distance * sign[at]
    middle, new = state.copy(), state.copy()
    step = CFL / math.sqrt(sum(h**-2.0 for h in spacing))
    order, ((_, _), (ca, cb)) = STEADY.order, STEADY.stages
    for _ in range(math.ceil(PASSES * float(distance.max()) / step) + EXTRA_STEPS):
        kernels.reinit_stage(state, index, arms, state, middle, 0.0, 1.0, CFL, order, far, *spacing)
        kernels.reinit_stage(middle, index, arms, state, new, ca, cb, CFL, order, far, *spacing)
        moved = kernels.largest_change(state, new, index)
        state, new = new, state
        if moved < AT_REST * min(spacing):
            break
    return np.where(phi == 0, 0.0, np.clip(state, -band, band)).astype(phi.dtype)


def _band_list(
    phi: NDArray, spacing: tuple[float, ...], band: float
) -> tuple[NDArray[np.int32], NDArray[np.float64], NDArray[np.float64]]:
    """List the band's voxels (n, 3), those beside the wall first, with a rough distance (n,).

    The third array (m, 6) holds the edge lengths to the wall of the m voxels beside it.
    """
    label, index = find_interface(phi)
    arms, distance = np.empty((len(index), 6)), np.empty(len(index))
    kernels.wall_arms(phi, index, arms, distance, np.asarray(spacing))
    reach = band * path_factor(spacing)
    first, last = 0, len(index)
    while last > first:
        found = kernels.next_ring(label, index, distance, first, last, reach)
        index = np.concatenate([index, found])
        distance = np.concatenate([distance, np.empty(len(found))])
        first, last = last, len(index)
        kernels.chain_distance(label, index, distance, first, last, *spacing)
    return index, distance, arms


def path_factor(spacing: tuple[float, ...]) -> float:
    """Largest ratio of a path over the 26 neighbours to the straight distance (Borgefors 1986)."""
    worst = 0.0
    for a, b, c in itertools.permutations(spacing):
        two, three = math.hypot(a, b), math.hypot(a, b, c)
        worst = max(worst, math.hypot(1.0, (two - a) / b, (three - two) / c))
    return worst
