"""Shared fixtures: what every refusal of bad input must satisfy."""

import hashlib
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from vesselseg.errors import MAX_LINE, InputError, printable

MAX_SECONDS = 2.0
MAX_ADDED_BYTES = 200e6
NEVER = {"os.system", "os.exec", "subprocess.Popen", "socket.connect", "pickle.find_class"}

# A shell makes its background jobs ignore SIGINT, and so would every run that a test interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)

_events: list[tuple[str, str]] | None = None


def _audit(event, args):
    if _events is not None and (event in NEVER or event == "open"):
        _events.append((event, os.fsdecode(args[0]) if isinstance(args[0], (str, bytes)) else ""))


sys.addaudithook(_audit)


def snapshot(folder):
    """Name, size and digest of everything below a folder."""
    return {
        str(p): hashlib.sha256(p.read_bytes()).hexdigest() if p.is_file() else "-"
        for p in sorted(Path(folder).rglob("*"))
    }


def peak_bytes(reset=False):
    """Peak resident memory of this process since the last reset, and the current one."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    facts = {k: v for k, _, v in (line.partition(":") for line in lines)}
    return tuple(1024 * int(facts[k].split()[0]) for k in ("VmHWM", "VmRSS"))


@pytest.fixture
def guarded(tmp_path, capfd):
    """Call a function under the invariants I1-I7; return its result or the InputError raised."""

    def call(function, *, path=tmp_path, allowance=0):
        global _events
        before, size = snapshot(tmp_path), 0
        if Path(path).is_file():
            size = Path(path).stat().st_size
        capfd.readouterr()
        start_rss = peak_bytes(reset=True)[1]
        start, _events = time.process_time(), []
        try:
            result = function()
        except InputError as error:
            result = error
        finally:
            seconds, events, _events = time.process_time() - start, _events, None
        added = peak_bytes()[0] - start_rss
        assert added < MAX_ADDED_BYTES + 2 * size + allowance, f"I4: {added / 1e6:.0f} MB added"
        assert seconds < MAX_SECONDS, f"I5: {seconds:.1f} s"
        assert snapshot(tmp_path) == before, "I3: the folder changed"
        assert capfd.readouterr() == ("", ""), "I6: something was printed"
        roots = (str(tmp_path), sys.prefix, sys.base_prefix, "/proc/self/", os.path.realpath("."))
        opened = [name for event, name in events if event == "open" and name.startswith("/")]
        assert not [n for n in opened if not n.startswith(roots)], f"I7: {opened}"
        assert not [event for event, _ in events if event in NEVER], "I7: code was run"
        if isinstance(result, InputError):
            line = result.line()
            assert len(line) <= MAX_LINE, "I2: one line"
            assert line.isprintable(), "I2: one line"
            assert printable(Path(result.path or path).name)[:40] in line, "I2: names the file"
        return result

    return call
