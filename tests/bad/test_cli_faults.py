"""B100-B111 and B140-B147: configuration and command line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cli_runner import assert_refused, command, run
from image_builders import nii

NESTED = b"a = " + b"[" * 100_000 + b"]" * 100_000
LARGE = b"# " + b"x" * 1_000_001
DIGITS = b"seed = " + b"9" * 5000

CONFIGS = [
    ("B100-empty", b"", ["empty config"]),
    ("B100-blank", b" \n\n", ["empty config"]),
    ("B100-not-utf8", b"seed = 1\n# \xff", ["not UTF-8", "line 2"]),
    ("B101", b"[refine]\niterations =\n", ["line 2", "column"]),
    ("B102", b"[refine]\nitertions = 3", ["refine.itertions", "did you mean 'iterations'"]),
    ("B103-toml", b"seed = 1\nseed = 2\n", ["line 2"]),
    ("B104-nan", b"[refine]\ntolerance = nan", ["refine.tolerance", "finite"]),
    ("B104-inf", b"[refine]\ntolerance = inf", ["refine.tolerance", "finite"]),
    ("B104-1e400", b"[refine]\ntolerance = 1e400", ["refine.tolerance", "finite"]),
    ("B105-string", b'[refine]\ntolerance = "1e-3"', ["refine.tolerance", "number", "1e-3"]),
    ("B105-bool", b"[refine]\niterations = true", ["refine.iterations", "integer", "True"]),
    ("B105-table", b"refine = 3", ["refine", "found 3"]),
    ("B106-zero", b"[refine]\niterations = 0", ["refine.iterations", "greater than or equal to 1"]),
    ("B106-negative", b"[refine]\ntolerance = -1.0", ["refine.tolerance", "greater than 0"]),
    (
        "B106-huge",
        b"[refine]\niterations = 9223372036854775808",
        ["refine.iterations", "less than or equal to 1000"],
    ),
    ("B106-band", b"[refine]\nband = 1.5", ["refine.band", "greater than or equal to 4"]),
    ("B108-nested", NESTED, ["nested too deeply"]),
    ("B108-large", LARGE, ["config larger than 1 MB"]),
    ("B108-digits", DIGITS, ["not valid TOML"]),
    ("B111-include", b'include = "other.toml"', ["unknown key 'include'"]),
    ("B111-extends", b'extends = ["a", "b"]', ["unknown key 'extends'"]),
]


@pytest.fixture
def scan(tmp_path):
    file = tmp_path / "scan.nii"
    file.write_bytes(nii())
    return file


@pytest.fixture
def prior(capfd, tmp_path, scan):
    """Call ``vesselseg prior`` on a good scan; nothing may be written."""

    def call(*argv):
        before = sorted(tmp_path.rglob("*"))
        result = run(capfd, "prior", "-i", scan, "-o", tmp_path / "x.prior.h5", *argv)
        assert sorted(tmp_path.rglob("*")) == before
        return result

    return call


@pytest.mark.parametrize(("name", "data", "words"), CONFIGS, ids=[c[0] for c in CONFIGS])
def test_a_bad_config_is_refused(prior, tmp_path, name, data, words):
    file = tmp_path / "c.toml"
    file.write_bytes(data)
    assert_refused(prior("--config", file), 2, "c.toml", *words)


@pytest.mark.parametrize(
    "data", [b"\xef\xbb\xbfseed = 3\n", b"seed = 3\r\n[refine]\r\nband = 5.0\r\n"]
)
def test_bom_and_crlf_are_read_B100(prior, tmp_path, data):
    file = tmp_path / "c.toml"
    file.write_bytes(data)
    code, out, _ = prior("--config", file, "--dry-run")
    assert code == 0
    assert json.loads(out)["config"]["seed"] == 3


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nope.toml", ["nope.toml", "No such file"]),
        ("~/nope.toml", ["~/nope.toml"]),
        ("$HOME/nope.toml", ["$HOME/nope.toml"]),
        ("../../../../../nope.toml", ["nope.toml"]),
        ("a\0b.toml", []),
        ("c.yaml", ["YAML is not accepted", "write TOML"]),
        ("c.yml", ["YAML is not accepted"]),
        (".", ["cannot read config"]),
    ],
    ids=[
        "B100-missing",
        "B110-tilde",
        "B110-home",
        "B110-up",
        "B110-nul",
        "B109",
        "B109",
        "B100-dir",
    ],
)
def test_a_config_that_is_no_file_is_refused(prior, name, words):
    assert_refused(prior("--config", name), 2, *words)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--set", "seed=1", "--set", "seed=2"], ["seed given twice", "1 and 2"]),
        (["--set", "seed"], ["bad --set"]),
        (["--set", "=3"], ["bad --set"]),
        (["--set", "refine.itertions=3"], ["did you mean 'iterations'"]),
        (["--set", "seed.x=3"], ["seed"]),
        (["--set", "refine.tolerance=nan"], ["finite"]),
    ],
    ids=["B103-set", "B102-set", "B102-set", "B102-hint", "B105-set", "B104-set"],
)
def test_a_bad_assignment_is_refused(prior, argv, words):
    assert_refused(prior(*argv), 2, *words)


def test_steps_and_hours_exclude_each_other_B107(capfd, tmp_path):
    argv = ["train", "-o", tmp_path / "net", "--steps", 3, "--hours", 1.0]
    assert_refused(run(capfd, *argv), 2, "steps", "hours")
    assert list(tmp_path.iterdir()) == []


def test_a_training_is_not_replaced_unasked(capfd, tmp_path):
    (tmp_path / "best.json").write_text("{}")
    argv = ["train", "-o", tmp_path, "--steps", 3]
    assert_refused(run(capfd, *argv), 2, "a training is here", "--resume", "--overwrite")
    assert [p.name for p in tmp_path.iterdir()] == ["best.json"]


def test_a_folder_of_images_and_a_network_for_volumes_make_no_run(capfd, tmp_path):
    data, square = tmp_path / "data", np.indices((16, 16)).sum(0) % 3.0
    for part in ("train/magn", "train/mask", "val/magn", "val/mask"):
        (data / part).mkdir(parents=True)
        np.save(data / part / "a.npy", square)
    argv = ["-q", "train", "--data", data, "-o", tmp_path / "net", "--epochs", 1]
    assert_refused(run(capfd, *argv), 3, "magn", "found 2-D", "need 3-D", "--set dims=2")
    argv = ["evaluate", tmp_path, "--model", "vesselnet-2d-v1"]
    assert_refused(run(capfd, *argv), 3, f"{tmp_path}/magn: no such folder")
    assert list(tmp_path.iterdir()) == [data]


def test_an_odd_validation_set_makes_no_folder(capfd, tmp_path):
    argv = ["synth", "-n", 8, "--validation", 3, "-o", tmp_path / "data"]
    assert_refused(run(capfd, *argv), 2, "3 for validation", "even")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], ["missing command", "demo", "doctor", "--help"]),
        (["segmnt"], ["no such command", "segment"]),
        (["segment", "--inptu", "x"], ["no such option", "--input"]),
        (["pri"], ["no such command", "prior"]),
        (["prior", "--over"], ["no such option", "--overwrite"]),
        (["prior", "-o", "x.h5"], ["missing option", "--input"]),
        (["refine", "-i", "a.nii", "-o", "x.h5"], ["missing option", "--start"]),
        (["info"], ["missing argument"]),
        (["info", "a", "b"], ["unexpected extra argument"]),
        (["info", "--json=3", "a"], ["--json"]),
        (["prior", "--seed"], ["--seed"]),
    ],
)
def test_bad_usage_gives_one_line_and_a_hint_B140(capfd, argv, words):
    assert_refused(run(capfd, *argv), 2, *words)


def test_output_may_not_be_the_input_B141(capfd, tmp_path, scan):
    before = scan.read_bytes()
    link = tmp_path / "link.nii"
    link.symlink_to(scan)
    for output in (scan, link, tmp_path / "." / "scan.nii"):
        argv = ["prior", "-i", scan, "-o", output, "--overwrite"]
        assert_refused(run(capfd, *argv), 2, "output is the input")
    assert scan.read_bytes() == before


def test_an_output_that_exists_needs_overwrite_B141(capfd, tmp_path, scan):
    output = tmp_path / "x.prior.h5"
    output.write_bytes(b"old")
    result = run(capfd, "prior", "-i", scan, "-o", output)
    assert_refused(result, 2, "output exists", "--overwrite")
    assert output.read_bytes() == b"old"


@pytest.mark.parametrize("verb", ["prior", "segment"])
@pytest.mark.parametrize("folder", ["nowhere", "scan.nii", "/proc/self"])
def test_an_output_folder_that_cannot_be_used_is_found_before_reading_B142(
    capfd, tmp_path, scan, verb, folder
):
    name = "x.prior.h5" if verb == "prior" else "x.nii.gz"
    output = Path(tmp_path, folder, name)
    result = run(capfd, verb, "-i", tmp_path / "missing.nii", "-o", output)
    assert_refused(result, 5, name)
    assert sorted(tmp_path.iterdir()) == [scan]


@pytest.mark.parametrize("name", ["cuda", "cuda:9"])
def test_cuda_without_a_device_is_no_cpu_B143(prior, name):
    assert_refused(prior("--device", name), 5, "--device", name, "devices cpu", "--device auto")


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "cuda:-1", "CPU", ""])
def test_an_unknown_device_is_refused_B143(prior, name):
    assert_refused(prior("--device", name), 2, "auto, cpu, cuda or cuda:N")


@pytest.mark.parametrize(("name", "code"), [("cuda", 5), ("tpu", 2)])
def test_the_device_of_the_settings_is_checked_like_the_option_B143(prior, tmp_path, name, code):
    file = tmp_path / "c.toml"
    file.write_text(f'device = "{name}"\n')
    assert_refused(prior("--set", f"device={name}"), code, name)
    assert_refused(prior("--config", file), code, name)
    assert prior("--config", file, "--device", "auto", "--dry-run")[0] == 0


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--nan-fill", "nan"], ["--nan-fill", "a finite number"]),
        (["--nan-fill", "inf"], ["--nan-fill", "a finite number"]),
        (["--components", "0"], ["--components", "all, largest, seed or a number from 1"]),
        (["--components", "some"], ["--components", "all, largest, seed or a number from 1"]),
        (["--components", "seed"], ["without a seed point", "seed_point"]),
        (["--start", ""], ["--start", "empty path"]),
        (["--config", ""], ["--config", "empty path"]),
    ],
)
def test_a_value_without_meaning_is_refused_B144(prior, argv, words):
    assert_refused(prior(*argv), 2, *words)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["info", ""], ["empty path"]),
        (["prior", "-i", "", "-o", "x.h5"], ["--input", "empty path"]),
        (["prior", "-i", "no.nii", "--output="], ["--output", "empty path"]),
        (["prior", "-i", "no.nii", "-o", "x.nii.gz"], ["x.nii.gz", "ends in .h5 or .hdf5"]),
        (["refine", "-i", "no.nii", "--start", "p.nii", "-o", "x"], ["ends in .h5 or .hdf5"]),
        (["preview", "no.prior.h5", "-o", "x.pdf"], ["x.pdf", "ends in .png"]),
        (["segment", "-i", "no.nii", "-o", "x.mha"], ["ends in .nii or .nii.gz"]),
        (["segment", "-i", "no.nii", "-o", "phi.nii", "--save", "phi"], ["two outputs"]),
        (["segment", "-i", "phi.nii", "-o", "x.nii", "--save", "phi"], ["output is the input"]),
    ],
)
def test_a_bad_name_is_refused_before_any_file_is_read_B141(capfd, argv, words):
    assert_refused(run(capfd, *argv), 2, *words)


@pytest.mark.parametrize(
    ("option", "value", "word"),
    [
        ("--threads", "0", "need 1 to 256"),
        ("--threads", "-1", "need 1 to 256"),
        ("--threads", "1000000000", "need 1 to 256"),
        ("--threads", "two", "--threads"),
        ("--seed", "-1", "need 0 to 9223372036854775807"),
        ("--seed", str(2**64), "need 0 to 9223372036854775807"),
    ],
)
def test_numbers_out_of_range_are_refused_with_the_range_B144(prior, option, value, word):
    assert_refused(prior(option, value), 2, option, word)


@pytest.mark.parametrize("size", ["10q", "", "-3G", "nan", "0", "G", "1e3", "3 Gigs"])
def test_a_bad_size_is_refused_with_the_units_B145(prior, size):
    assert_refused(prior("--memory", size), 2, "--memory", "B, K, M, G, T")


def test_too_little_memory_is_found_before_computing_F16(prior):
    assert_refused(prior("--memory", "1M"), 5, "scan.nii", "not enough memory", "available")


@pytest.mark.parametrize(("option", "name"), [("-i", "--input"), ("--output", "--output")])
def test_a_second_input_or_output_is_refused_B147(prior, option, name):
    assert_refused(prior(option, "other"), 2, name, "more than once")


def test_json_errors_are_one_object(capfd):
    code, out, (line,) = run(capfd, "info", "nope.nii", "--json-errors")
    error = json.loads(line)
    assert (code, out) == (3, "")
    assert error["code"] == 3
    assert set(error) == {"code", "kind", "path", "fault", "found", "need", "remedy"}
    assert "no such file" in error["fault"]


def test_control_characters_in_names_are_escaped_B038(capfd):
    result = run(capfd, "info", "a\x1b[31m\n\udcff.nii")
    assert_refused(result, 3, "\\x1b", "\\n", "no such file")


# --- as a command of its own -------------------------------------------------------------------


def test_closed_streams_and_bare_environments_do_not_matter_B146(tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "HOME"} | {"LANG": "C"}
    done = command("info", "é.nii", env=environment, stdin=subprocess.DEVNULL, cwd=tmp_path)
    assert done.returncode == 3
    assert done.stderr.count("\n") == 1
    assert "no such file" in done.stderr


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_stream_closed_from_the_start_gives_the_exit_code_B146(closed):
    script = f'"{sys.executable}" -m vesselseg info nope.nii {closed}'
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 3
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr


def test_a_reader_that_stops_reading_ends_quietly_B146(tmp_path):
    script = f'{{ "{sys.executable}" -m vesselseg doctor --json; echo "code $?" >&2; }} | true'
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stderr in ("code 141\n", "code 0\n")


def test_a_deleted_working_folder_is_survived_B146(tmp_path):
    gone = tmp_path / "gone"
    script = f'mkdir "{gone}"; cd "{gone}"; rmdir "{gone}"; "{sys.executable}" -m vesselseg '
    done = subprocess.run(
        ["sh", "-c", script + "info nope.nii"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 3
    assert done.stderr.startswith("vesselseg: error: nope.nii: no such file")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "verb", ["segment -i /n.nii -o /q.nii", "info /n.safetensors", "synth -o /d", "preview n -o p"]
)
def test_a_deleted_working_folder_is_named_where_it_is_needed_B146(tmp_path, verb):
    gone = tmp_path / "gone"
    script = f'mkdir "{gone}"; cd "{gone}"; rmdir "{gone}"; "{sys.executable}" -m vesselseg {verb}'
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (5, "")
    assert done.stderr.startswith("vesselseg: error: no working folder")
    assert done.stderr.count("\n") == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("asked", ["doctor", "--help", "--version"])
def test_a_full_disk_behind_stdout_is_one_line_B146(asked):
    with Path("/dev/full").open("w") as full:
        argv = [sys.executable, "-m", "vesselseg", asked]
        done = subprocess.run(argv, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == 5
    assert done.stderr.startswith("vesselseg: error: standard output: cannot write")
    assert done.stderr.count("\n") == 1


def test_the_catalogue_holds_what_it_says():
    assert len({name for name, _, _ in CONFIGS}) == len(CONFIGS)
    assert np.frombuffer(LARGE, "u1").size > 1_000_000
