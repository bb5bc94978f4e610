"""Commands as a user types them: exit code, one line, nothing left; some as their own process."""

import os
import shlex
import sys

import image_builders as make
import numpy as np
import prior_builders
import pytest
from cli_runner import assert_refused, command, run
from scipy.special import expit

SHAPE = (16, 18, 20)
INDEX = np.moveaxis(np.indices(SHAPE), 0, -1)
DISTANCE = np.linalg.norm(INDEX - np.array([7.6, 8.4, 9.3]), axis=-1) - 5.2
LIKELY = expit(-2.0 * DISTANCE).astype("f4")
NOISE = 8.0 * np.random.default_rng(0).standard_normal(SHAPE)
SCAN = (100.0 * LIKELY + 50.0 + NOISE).astype("f4")
SHEARED = np.eye(4)
SHEARED[0, 1] = 0.2
APART = np.eye(4)
APART[:3, 3] = 500.0
ODD = "odd\n\x1b[31m name.nii.gz"


def files(folder):
    """Write the inputs that the rows name."""
    good = prior_builders.small()
    good.write(folder / "good.prior.h5")
    data = (folder / "good.prior.h5").read_bytes()
    packed = make.gz(make.nii(SCAN))
    holed = np.where(DISTANCE < -3.0, np.nan, SCAN)
    contents = {
        "scan.nii.gz": packed,
        ODD: packed[:200],
        "old.nii.gz": b"old",
        "cut.nii.gz": packed[: len(packed) // 2],
        "const.nii.gz": make.gz(make.nii(np.full(SHAPE, 7.0, "f4"))),
        "nan.nii.gz": make.gz(make.nii(holed)),
        "huge.nii.gz": make.gz(make.nii(SCAN * np.float32(1e30))),
        "sheared.nii.gz": make.gz(make.nii(SCAN, SHEARED)),
        "series.nii.gz": make.gz(make.nii(np.stack([SCAN, SCAN]))),
        "p.nii.gz": make.gz(make.nii(LIKELY)),
        "logit.nii.gz": make.gz(make.nii((-2.0 * DISTANCE).astype("f4"))),
        "labels.nii.gz": make.gz(make.nii((DISTANCE < 0).astype("u1") + (DISTANCE < -3))),
        "empty.nii.gz": make.gz(make.nii(np.zeros(SHAPE, "u1"))),
        "apart.nii.gz": make.gz(make.nii(LIKELY, APART)),
        "cut.prior.h5": data[: len(data) // 2],
        "flip.prior.h5": make.flip(data, len(data) // 2, 2),
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("commands")
    files(made)
    return made


def listing(folder):
    """Name, size and time of everything below the folder."""
    entries = {p: p.lstat() for p in folder.rglob("*")}
    return {p: (s.st_size, s.st_mtime_ns) for p, s in entries.items()}


REFINE = "refine -o x.prior.h5 -i"
# id | command | exit code | words of the line
ROWS = [
    ("B001", "info nope.nii", 3, ["nope.nii", "no such file"]),
    ("B010", "info cut.nii.gz", 3, ["gzip stream ends early"]),
    ("B038", f"check {shlex.quote(ODD)}", 3, ["odd\\n\\x1b[31m name", "gzip stream ends early"]),
    ("B032", f"{REFINE} const.nii.gz --start p.nii.gz", 3, ["no contrast", "every voxel 7"]),
    ("B023", "segment -i series.nii.gz -o q.nii.gz", 3, ["2 frames", "--frame"]),
    ("B033", "info nan.nii.gz", 3, ["non-finite voxels", "--nan-fill"]),
    ("B034", "info huge.nii.gz", 3, ["intensities too large", "at most"]),
    ("B069", "info sheared.nii.gz", 3, ["sheared affine", "resample"]),
    ("B050", f"{REFINE} scan.nii.gz --start empty.nii.gz", 3, ["no foreground voxel"]),
    ("B052", f"{REFINE} scan.nii.gz --start labels.nii.gz", 3, ["labels 0,1,2", "--label"]),
    ("B053", f"{REFINE} scan.nii.gz --start logit.nii.gz", 3, ["not clear", "--start-kind"]),
    ("B056", f"{REFINE} scan.nii.gz --start apart.nii.gz", 3, ["do not overlap"]),
    ("B120", "preview cut.prior.h5 -o x.png", 3, ["not a readable prior: truncated"]),
    ("B128", "info flip.prior.h5", 3, ["flip.prior.h5", "content"]),
    ("B140", "segment -i scan.nii.gz -o q.nii.gz --start p.nii.gz", 2, ["no such option"]),
    ("B141", "segment -i scan.nii.gz -o old.nii.gz", 2, ["output exists", "--overwrite"]),
    ("B141-same", "segment -i scan.nii.gz -o scan.nii.gz --overwrite", 2, ["is the input"]),
    ("B142", "preview good.prior.h5 -o /proc/self/x.png", 5, ["cannot write"]),
    ("B143", f"{REFINE} scan.nii.gz --start p.nii.gz --device cuda:99", 5, ["--device auto"]),
    ("B144", "synth -n 0 -o made", 2, ["--number", "need 1 to"]),
]


def marked(*row):
    """A row as a case; one verb of each exit code is a process in every run, the others in slow."""
    here = row[0] in ("B038", "B053", "B120", "B141", "B142")
    return pytest.param(*row[1:], id=row[0], marks=() if here else pytest.mark.slow)


@pytest.mark.parametrize(("line", "code", "words"), [r[1:] for r in ROWS], ids=[r[0] for r in ROWS])
def test_a_refused_command_says_one_line_and_leaves_nothing(
    folder, line, code, words, capfd, monkeypatch
):
    monkeypatch.chdir(folder)
    before = listing(folder)
    assert_refused(run(capfd, *shlex.split(line)), code, *words)
    assert listing(folder) == before


@pytest.mark.parametrize(("line", "code", "words"), [marked(*row) for row in ROWS])
def test_a_process_of_its_own_does_the_same(folder, line, code, words):
    before = listing(folder)
    done = command(*shlex.split(line), cwd=folder)
    assert_refused((done.returncode, done.stdout, done.stderr.splitlines()), code, *words)
    assert listing(folder) == before


def test_a_prior_made_by_a_command_passes_the_check(folder, tmp_path):
    made = tmp_path / "x.prior.h5"
    done = command("refine", "-i", "scan.nii.gz", "--start", "p.nii.gz", "-o", made, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{made}\n"
    assert list(tmp_path.iterdir()) == [made]
    assert command("check", made).returncode == 0


@pytest.mark.skipif(sys.platform == "win32", reason="names of bytes are for POSIX")
def test_a_name_that_is_no_utf8_is_read_B038(folder, tmp_path):
    file = tmp_path / os.fsdecode(b"scan\xff.nii.gz")
    file.write_bytes((folder / "scan.nii.gz").read_bytes())
    done = command("info", file, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert "scan\\udcff.nii.gz" in done.stdout
