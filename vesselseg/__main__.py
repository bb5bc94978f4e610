"""``python -m vesselseg``: the same as the command ``vesselseg``."""

import sys

from .cli.app import main

if __name__ == "__main__":
    sys.exit(main())
