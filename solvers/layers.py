"""The voxels beside a wall: where every list of band voxels begins."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vesselseg.cuda_kernels import closest_point as kernels


def find_interface(phi: NDArray) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Label and list the voxels whose sign (-1, 0, 1) differs from that of a face neighbour.

    Returns the labels, 0 elsewhere and counted from 1 here, and the voxels (n, 3) in memory order.
    """
    sign = np.empty(phi.shape, np.int8)
    kernels.write_signs(phi, sign)
    count = np.empty(phi.shape[:2], np.int64)
    kernels.count_interface(sign, count)
    last = np.cumsum(count)
    index = np.empty((int(last[-1]), 3), np.int32)
    label = np.zeros(phi.shape, np.int32)
    kernels.list_interface(sign, last, label, index)
    return label, index
