"""Kernels on bare arrays: point formulas, level-set stages, closest points.

Each module holds the Numba implementation of one group of kernels. They see arrays and numbers
only: 3-D C-ordered fields ``[k, j, i]`` (a 2-D field has nz = 1), spacings ``hz, hy, hx`` in mm,
index clamp at the faces (zero normal derivative). Nothing of the project is imported here.
Division follows IEEE 754 (``error_model="numpy"``): a watchdog, not an exception out of a parallel
loop, finds what is not finite.
"""
