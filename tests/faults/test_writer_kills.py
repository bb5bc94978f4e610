"""The atomic writer under SIGKILL, power loss and company: a file is old or new, never mixed."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest

from vesselseg.io import atomic

SIZE = 4 << 20
GOOD = {kind: kind * SIZE for kind in (b"A", b"B")}

LOOP = """
import itertools, os, sys, time
from vesselseg.io import atomic
data = [bytes([c]) * (4 << 20) for c in b"AB"]
clock = time.perf_counter()
atomic.write_bytes(sys.argv[1] + ".trial", data[0])
print(time.perf_counter() - clock, flush=True)
os.unlink(sys.argv[1] + ".trial")
for turn in itertools.count():
    atomic.write_bytes(sys.argv[1], data[turn % 2])
"""

ONE_KILL = """
import os, pathlib, signal, sys
from vesselseg.io import atomic
target, at = sys.argv[1], int(sys.argv[2])
count = 0
def die():
    global count
    count += 1
    if count == at:
        os.kill(os.getpid(), signal.SIGKILL)
def wrap(call):
    def wrapped(*a, **k):
        die()
        result = call(*a, **k)
        die()
        return result
    return wrapped
atomic.BLOCK = 2 << 20
for name in ("open", "write", "fsync", "close", "replace", "unlink"):
    setattr(os, name, wrap(getattr(os, name)))
atomic.write_bytes(target, b"B" * (4 << 20))
print(count)
"""


def start(script, *arguments):
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def temps(folder):
    return [p for p in folder.iterdir() if p.name.endswith(".tmp")]


@pytest.mark.parametrize("kills", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_f01_f02_a_killed_writer_leaves_the_old_or_the_new_file(tmp_path, kills):
    """Every second time there is no older file; a kill comes within four times a trial write."""
    target, seed, left = tmp_path / "x.prior.h5", kills, 0
    chance, seen = random.Random(seed), set()
    for turn in range(kills):
        target.unlink(missing_ok=True)
        if turn % 2 == 0:
            target.write_bytes(GOOD[b"A"])
        writer = start(LOOP, target)
        time.sleep(chance.uniform(0.0, 4.0) * float(writer.stdout.readline()))
        writer.send_signal(signal.SIGKILL)
        writer.communicate()
        content = target.read_bytes() if target.exists() else None
        state = "absent" if content is None else content[:1].decode()
        assert content is None or content in GOOD.values(), f"seed {seed}, kill {turn}"
        assert content is not None or turn % 2, f"seed {seed}, kill {turn}: the old file is lost"
        seen.add(state)
        left += bool(temps(tmp_path))
        atomic.sweep(tmp_path)
        assert temps(tmp_path) == []
    print(f"{kills} kills survived, {left} temporary files swept, states {seen}")
    assert left > 0, "no kill hit a write"
    assert {"A", "B"} <= seen


@pytest.mark.parametrize("old", [b"A" * SIZE, None], ids=["replacing", "new"])
def test_f03_a_kill_at_every_system_call(tmp_path, old):
    """Before and after each open, write, fsync, close, replace and unlink."""
    target, at, contents = tmp_path / "x", 0, []
    while True:
        at += 1
        target.unlink(missing_ok=True)
        if old is not None:
            target.write_bytes(old)
        done = start(ONE_KILL, target, at)
        output = done.communicate()[0]
        content = target.read_bytes() if target.exists() else None
        assert content in (old, GOOD[b"B"]), f"mixed after call {at}"
        contents.append(content)
        atomic.sweep(tmp_path)
        assert temps(tmp_path) == []
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL
    assert int(output) == at - 1
    assert len(contents) > 2 * 8
    changed = [content == GOOD[b"B"] for content in contents]
    assert changed == sorted(changed), "the new file stays once it is there"


def test_f42_after_power_loss_the_name_holds_the_old_or_the_new_bytes(tmp_path, monkeypatch):
    """Replay of the writer's operations; what was not synced may be lost, in any order.

    A file's bytes are safe after fsync(file). A renaming may reach the disk at any time after it
    was done, and surely has after fsync(folder).
    """

    log, names = [], {}
    real = {name: getattr(os, name) for name in ("open", "write", "fsync", "replace")}

    def record(name):
        def call(*arguments, **options):
            result = real[name](*arguments, **options)
            if name == "open":
                names[result] = str(arguments[0])
            file = arguments[0] if name == "replace" else names.get(arguments[0])
            if name != "open" and file is not None:
                log.append((name, str(file), result))
            return result

        return call

    (tmp_path / "x").write_bytes(b"old")
    for name in real:
        monkeypatch.setattr(os, name, record(name))
    monkeypatch.setattr(atomic, "BLOCK", 10)
    atomic.write_bytes(tmp_path / "x", b"n" * 35)
    monkeypatch.undo()
    assert [name for name, *_ in log] == ["write"] * 4 + ["fsync", "replace", "fsync"]
    for crash in range(len(log) + 1):
        done = log[:crash]
        temp_safe = any(name == "fsync" and file.endswith(".tmp") for name, file, _ in done)
        renamed = any(name == "replace" for name, *_ in done)
        folder_safe = renamed and any(
            name == "fsync" and file == str(tmp_path) for name, file, _ in done
        )
        possible = {"old"} if not renamed else {"new" if temp_safe else "torn"}
        possible |= {"old"} if renamed and not folder_safe else set()
        assert "torn" not in possible
        assert folder_safe == (crash == len(log))


def test_f25_f28_two_writers_and_a_reader_see_whole_files(tmp_path):
    target, states = tmp_path / "x", []
    target.write_bytes(GOOD[b"A"])
    writers = [start(LOOP, target) for _ in range(2)]
    try:
        for writer in writers:
            writer.stdout.readline()
        end = time.monotonic() + 1.5
        while time.monotonic() < end or len(states) < 20:
            content = target.read_bytes()
            assert content in GOOD.values(), "a reader saw a mixture"
            states.append(content[:1])
    finally:
        for writer in writers:
            writer.kill()
            writer.communicate()
    assert set(states) == set(GOOD)
    atomic.sweep(tmp_path)
    assert temps(tmp_path) == []
    print(f"{len(states)} reads, all whole")
