"""Run the kernels of a file under the sanitizers; their libraries must be loaded first of all.

LD_PRELOAD=libasan.so ASAN_OPTIONS=detect_leaks=0 python sanitized.py FILE.cu [OLD NEW]
"""

import copy
import sys

import numpy as np
from build import SANITIZE, host_device

from vesselseg.cuda_kernels.catalogue import instances
from vesselseg.cuda_kernels.examples import example

edits = (tuple(sys.argv[2:]),) if len(sys.argv) > 2 else ()
for name in instances(sys.argv[1]):
    for shape in [(9, 17, 21), (1, 13, 19), (9, 5, 3)]:
        case = example(name, shape, seed=4)
        args = tuple(copy.deepcopy(a) if isinstance(a, np.ndarray) else a for a in case.args)
        host_device(1, edits=edits, extra=SANITIZE).launch(name, *args)
        error = case.error(args)
        if not error <= case.tolerance:
            sys.exit(f"{name}: {error:.3g} over {case.tolerance:.3g}")
