"""``python -m vesselseg``: the same as the command ``vesselseg``."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
