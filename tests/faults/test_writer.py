"""The atomic writer under failing system calls: an old file survives, nothing is left behind."""

import errno
import os
import resource
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from vesselseg.errors import ConfigError, EnvironmentFault
from vesselseg.io import atomic

OLD, NEW = b"old" * 1000, bytes(range(256)) * 100
CALLS = ("open", "write", "fsync", "close", "replace")
ORDER = ["open file", *["write"] * 7, "fsync", "close", "replace", "open folder", "fsync", "close"]


class Recorder:
    """Stand-in of the ``os`` calls of the writer: records them and fails at the chosen one."""

    def __init__(self, monkeypatch, fail=None, number=None, at=-1):
        self.log, self.files, self.fail, self.number, self.at = [], set(), fail, number, at
        for name in CALLS:
            monkeypatch.setattr(os, name, self.wrap(name, getattr(os, name)))
        monkeypatch.setattr(atomic, "BLOCK", 4096)

    def wrap(self, name, call):
        def wrapped(*arguments, **options):
            ours = name in ("open", "replace") or arguments[0] in self.files
            if not ours:
                return call(*arguments, **options)
            kind = name
            if name == "open":
                kind = "open folder" if Path(arguments[0]).is_dir() else "open file"
            self.log.append((kind, arguments))
            if name == "close":
                self.files.discard(arguments[0])
            fails = name == self.fail and self.names().count(kind) - 1 == self.at
            if fails and name != "close":
                raise OSError(self.number, os.strerror(self.number))
            result = call(*arguments, **options)
            if fails:
                raise OSError(self.number, os.strerror(self.number))
            if name == "open":
                self.files.add(result)
            return result

        return wrapped

    def names(self):
        return [kind for kind, _ in self.log]


def only(folder, content):
    """The folder holds one file with this content, and no temporary file."""
    assert [p.name for p in folder.iterdir()] == (["a"] if content is not None else [])
    if content is not None:
        assert (folder / "a").read_bytes() == content


def test_f03_f14_the_order_of_system_calls(tmp_path, monkeypatch):
    """write, fsync(file), close, replace, fsync(folder); the temporary file beside the target."""
    (tmp_path / "a").write_bytes(OLD)
    seen = Recorder(monkeypatch)
    atomic.write_bytes(tmp_path / "a", NEW)
    assert seen.names() == ORDER
    (temp, *_), (source, target) = (dict(seen.log)[k] for k in ("open file", "replace"))
    assert Path(temp) == Path(source)
    assert Path(temp).parent == Path(target).parent == tmp_path
    only(tmp_path, NEW)


@pytest.mark.parametrize("old", [OLD, None], ids=["replacing", "new"])
@pytest.mark.parametrize(("call", "number", "at"), [
    ("open", errno.EACCES, 0), ("open", errno.EROFS, 0), ("open", errno.EDQUOT, 0),
    *(("write", errno.ENOSPC, k) for k in range(7)), ("write", errno.EIO, 3),
    ("fsync", errno.ENOSPC, 0), ("fsync", errno.EIO, 0), ("close", errno.ENOSPC, 0),
    ("replace", errno.EIO, 0), ("replace", errno.ENOSPC, 0),
])  # fmt: skip
def test_f09_f10_f11_a_failing_call_leaves_the_old_file(
    tmp_path, monkeypatch, old, call, number, at
):
    if old is not None:
        (tmp_path / "a").write_bytes(old)
    with monkeypatch.context() as patch:
        seen = Recorder(patch, call, number, at)
        with pytest.raises(EnvironmentFault) as caught:
            atomic.write_bytes(tmp_path / "a", NEW)
    only(tmp_path, old)
    assert seen.names().count("fsync") <= 1, "fsync is never tried again"
    assert seen.names().count("replace") == (call == "replace")
    assert seen.files == set(), "a descriptor is left open"
    line = caught.value.line()
    assert str(tmp_path / "a") in line
    full = number in (errno.ENOSPC, errno.EDQUOT)
    assert ("no space" in line and "MB free, need ~0.0 MB" in line) == full
    assert full or os.strerror(number) in line
    assert caught.value.exit_code == 5


def test_f11_a_folder_that_cannot_be_synced_is_reported(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        Recorder(patch, "fsync", errno.EIO, 1)
        with pytest.raises(EnvironmentFault, match="Input/output error"):
            atomic.write_bytes(tmp_path / "a", NEW)
    only(tmp_path, NEW)


def test_a_file_system_without_folder_sync_is_accepted(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        seen = Recorder(patch, "fsync", errno.EINVAL, 1)
        atomic.write_bytes(tmp_path / "a", NEW)
    assert seen.names().count("fsync") == 2  # the second one, of the folder, has failed
    only(tmp_path, NEW)


def test_f09_space_is_checked_before_writing(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=10)
    (tmp_path / "a").write_bytes(OLD)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda folder: usage)
        seen = Recorder(patch)
        with pytest.raises(EnvironmentFault, match="no space"):
            atomic.write_bytes(tmp_path / "a", NEW)
    assert seen.log == []
    only(tmp_path, OLD)


def test_f09_dev_full(tmp_path, monkeypatch):
    """A true ENOSPC of the kernel at the first write."""
    (tmp_path / "a").write_bytes(OLD)
    real = os.open

    def full(path, *rest, **options):
        return real("/dev/full" if str(path).endswith(".tmp") else path, os.O_WRONLY)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", full)
        with pytest.raises(EnvironmentFault, match="no space"):
            atomic.write_bytes(tmp_path / "a", NEW)
    only(tmp_path, OLD)


WRITE = """
import resource, sys
from vesselseg.errors import InputError
from vesselseg.io import atomic
try:
    atomic.write_bytes(sys.argv[1], bytes(8 << 20))
except InputError as error:
    print(error.exit_code, error)
"""


def test_f09_a_size_limit_of_the_process(tmp_path):
    (tmp_path / "a").write_bytes(OLD)

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))

    command = [sys.executable, "-c", WRITE, str(tmp_path / "a")]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=limit, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"5 {tmp_path / 'a'}: no space (File too large)")
    only(tmp_path, OLD)


def test_f09_a_full_file_system(tmp_path):
    """A tmpfs of 4 MiB in a mount namespace of its own."""
    mount = f"mount -t tmpfs -o size=4m tmpfs {tmp_path}"
    command = ["unshare", "-m", "sh", "-c"]
    if subprocess.run([*command, mount], capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a tmpfs")
    script = f'{mount} && printf old > {tmp_path}/a && "$0" -c "$1" {tmp_path}/a; '
    script += f"ls -A {tmp_path}; cat {tmp_path}/a"
    done = subprocess.run(
        [*command, script, sys.executable, WRITE], capture_output=True, text=True, check=True
    )
    first, *rest = done.stdout.splitlines()
    assert "no space" in first
    assert "4.2 MB free, need ~8.4 MB" in first
    assert (rest, done.stderr) == (["a", "old"], "")


def test_f13_the_folder_vanishes_during_the_run(tmp_path, monkeypatch):
    folder = tmp_path / "out"
    folder.mkdir()
    atomic.check_target(folder / "a", overwrite=False)
    shutil.rmtree(folder)
    with pytest.raises(EnvironmentFault, match="output folder missing"):
        atomic.write_bytes(folder / "a", NEW)
    folder.mkdir()
    real = os.fsync

    def vanish(handle):
        real(handle)
        shutil.rmtree(folder)

    monkeypatch.setattr(os, "fsync", vanish)
    with pytest.raises(EnvironmentFault, match="output folder missing"):
        atomic.write_bytes(folder / "a", NEW)
    assert not folder.exists()


@pytest.mark.parametrize(("name", "error", "words"), [
    ("file", ConfigError, "output exists; give --overwrite"),
    ("folder", ConfigError, "output is a folder"), ("fifo", ConfigError, "not a regular file"),
    ("/dev/full", ConfigError, "not a regular file"), ("a\0b", ConfigError, "bad output name"),
    ("", ConfigError, "bad output name"), ("gone/a", EnvironmentFault, "output folder missing"),
    ("file/a", EnvironmentFault, "output folder missing"),
    ("x" * 300, EnvironmentFault, "too long"), ("/proc/self/a", EnvironmentFault, "cannot write"),
])  # fmt: skip
def test_b142_f12_a_bad_target_is_refused_before_any_work(
    tmp_path, monkeypatch, name, error, words
):
    monkeypatch.chdir(tmp_path)
    Path("file").write_bytes(OLD)
    Path("folder").mkdir()
    os.mkfifo("fifo")
    listing = sorted(Path().iterdir())
    for refuse in (
        atomic.check_target,
        lambda p, overwrite: atomic.write_bytes(p, NEW, overwrite=False),
    ):
        with pytest.raises(error, match=words):
            refuse(name, overwrite=False)
    assert sorted(Path().iterdir()) == listing
    assert Path("file").read_bytes() == OLD


def test_f12_a_read_only_folder(tmp_path, monkeypatch):
    def refuse(*arguments, **options):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        for check in (atomic.check_folder, lambda p: atomic.check_target(p / "a", overwrite=True)):
            with pytest.raises(EnvironmentFault, match="Read-only file system"):
                check(tmp_path)


def test_a_folder_for_several_outputs(tmp_path):
    assert atomic.check_folder(tmp_path / "new") == tmp_path / "new"
    assert atomic.check_folder(tmp_path / "new").is_dir()
    assert list((tmp_path / "new").iterdir()) == []
    (tmp_path / "file").write_bytes(OLD)
    with pytest.raises(EnvironmentFault, match="File exists"):
        atomic.check_folder(tmp_path / "file")
    with pytest.raises(EnvironmentFault, match="output folder missing"):
        atomic.check_folder(tmp_path / "no" / "new")


def test_a_link_is_followed(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "a").symlink_to(tmp_path / "real" / "b")
    atomic.write_bytes(tmp_path / "a", NEW)
    assert (tmp_path / "a").is_symlink()
    assert (tmp_path / "real" / "b").read_bytes() == NEW
    assert [p.name for p in (tmp_path / "real").iterdir()] == ["b"]


def test_only_temporary_files_of_dead_processes_of_this_host_are_swept(tmp_path):
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"],
                          capture_output=True, text=True, check=True).stdout.strip()  # fmt: skip
    host, tail = atomic._host(), "0123456789abcdef.tmp"
    gone = [f".vesselseg-{host}-{dead}-{tail}", f".vesselseg-{host}-{10**12}-{tail}"]
    kept = [
        f".vesselseg-{host}-{os.getpid()}-{tail}", f".vesselseg-{host}-1-{tail}",
        f".vesselseg-other{host}-{dead}-{tail}", f".vesselseg-{host}-{dead}-mine.tmp", "data.tmp",
    ]  # fmt: skip
    for name in (*gone, *kept):
        (tmp_path / name).touch()
    assert atomic.sweep(tmp_path) == len(gone)
    assert {p.name for p in tmp_path.iterdir()} == set(kept)
    assert atomic.sweep(tmp_path / "missing") == 0


def test_a_process_of_another_user_is_alive(monkeypatch):
    def refuse(pid, number):
        raise PermissionError

    monkeypatch.setattr(os, "kill", refuse)
    assert atomic._alive(1)
    assert "/" not in atomic._host()
    monkeypatch.setattr(socket, "gethostname", lambda: "a/b")
    assert atomic._host() == "a_b"
