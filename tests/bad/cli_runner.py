"""Run ``vesselseg``: in this process, or as a command of its own."""

import subprocess
import sys
import warnings

from vesselseg.cli.app import main
from vesselseg.errors import MAX_LINE

PREFIX = "vesselseg: error: "


def run(capfd, *argv):
    """Call the command line in this process; return code, stdout and the lines of stderr."""
    capfd.readouterr()
    with warnings.catch_warnings():
        code = main([str(a) for a in argv])
    out, err = capfd.readouterr()
    return code, out, err.splitlines()


def command(*argv, **options):
    """Run ``python -m vesselseg`` as a process of its own."""
    options = {"capture_output": True, "text": True, "timeout": 60, **options}
    return subprocess.run([sys.executable, "-m", "vesselseg", *map(str, argv)], **options)


def assert_refused(result, code, *words):
    """One error line, nothing on stdout, the exit code, every word in the line."""
    found, out, err = result
    assert found == code, err
    assert out == ""
    (line,) = err
    assert line.startswith(PREFIX)
    assert len(line) <= MAX_LINE + len(PREFIX)
    assert line.isprintable()
    assert "Traceback" not in line
    assert all(word in line for word in words), line
