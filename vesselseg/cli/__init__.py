"""The command line: each verb is a thin shell over one public function."""

from .app import main

__all__ = ["main"]
