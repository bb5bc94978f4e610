"""The CUDA kernels on a CPU: the folder with their compiler is found here."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "on_cpu"))
