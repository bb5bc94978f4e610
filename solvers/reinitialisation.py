"""Redistancing by the reinitialisation equation: the order-free method."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from vesselseg.cuda_kernels import closest_point as cp_kernels
from vesselseg.cuda_kernels import reinit as kernels

from .schemes import SCHEMES

CFL = 0.5
PASSES = 2.0  # times that information crosses the band
EXTRA_STEPS = 20
AT_REST = 1e-9  # largest change of a stage, in smallest spacings


def redistance_pde(phi: NDArray, spacing: tuple[float, ...], band: float, order=5,cfl=CFL, passes=PASSES, extra=EXTRA_STEPS, log=None) -> NDArray:
    label = np.full(phi.shape, cp_kernels.OUTSIDE, dtype=np.int32)
    index = cp_kernels.find_interface(phi, label)
    arms, distance = np.empty((len(index), 6)), np.empty(len(index))
    kernels.wall_arms(phi, index, arms, distance, np.array(spacing))
    first, last = 0, len(index)
    while last > first:
        found = cp_kernels.next_layer(label, index, distance, first, last, band)
        index = np.concatenate([index, found])
        distance = np.concatenate([distance, np.empty(len(found))])
        first, last = last, len(index)
        kernels.chain_distance(label, index, distance, first, last, *spacing)
    far = max(float(distance.max()), band) + max(spacing)
    field = np.where(phi < 0, -far, far).astype(phi.dtype)
    sign=np.where(phi<0,-1.,1.)
    sign[phi==0]=0
    at=tuple(index.T)
    field[at]=distance*sign[at]
    stages = SCHEMES["weno5" if order==5 else "eno2"].stages
    dt = cfl / math.sqrt(sum(h**-2.0 for h in spacing))
    steps = math.ceil(passes * min(band,distance.max()) / dt) + extra
    bufs=[field.copy(),field.copy()]
    for st in range(steps):
        base=field; state=field
        for n,(ca,cb) in enumerate(stages):
            out = bufs[n%2] if n<len(stages)-1 else (np.copy(field))
            ch=kernels.reinit_stage(state,index,arms,base,out,cfl,ca,cb,order,far,*spacing)
            state=out
        field=state
        if log is not None: log.append(ch)
        if ch < AT_REST*min(spacing): break
    return np.clip(field,-band,band)
