"""The command line on good input: what each verb leaves and what it says where."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from cli_runner import command, run

from vesselseg import device, phantoms
from vesselseg.cli import app as cli
from vesselseg.cli import verbs as cli_verbs
from vesselseg.errors import NoInterfaceError
from vesselseg.io import read_volume, write_image
from vesselseg.prior.boundary import BoundaryPrior
from vesselseg.synth.forward import ForwardModel, render_phantom

VERBS = (
    "demo",
    "prior",
    "segment",
    "refine",
    "train",
    "models",
    "import-checkpoint",
    "export-onnx",
    "synth",
    "check",
    "info",
    "evaluate",
    "preview",
    "profile",
    "doctor",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small tube: scan, and its exact level set as a start."""
    path = tmp_path_factory.mktemp("cli")
    tube = phantoms.make("tube", radius=3.0)
    grid = tube.grid((1.2, 1.0, 1.0), margin_mm=4.0)
    scan = render_phantom(tube, grid, ForwardModel(snr=20.0), 1)
    write_image(path / "scan.nii.gz", scan.values, grid)
    write_image(path / "phi.nii.gz", tube.phi(grid).astype("f4"), grid)
    return path


@pytest.fixture(scope="module")
def made(folder):
    """The prior of that tube, made by ``vesselseg refine`` as a command of its own."""
    file = folder / "tube.prior.h5"
    start = ["--start", folder / "phi.nii.gz"]
    done = command(
        "refine", "-i", folder / "scan.nii.gz", *start, "-o", file, "--json", timeout=300
    )
    return file, done


def test_refine_leaves_a_prior_and_one_json_object_on_stdout(made):
    file, done = made
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["file"] == str(file)
    assert result["content_sha256"] == BoundaryPrior.read(file).attributes["/"]["content_sha256"]
    assert {"converged", "wall_snr"} <= set(result["quality"])


def test_everything_human_goes_to_stderr_a_line_a_stage(made):
    lines = made[1].stderr.splitlines()
    assert lines
    assert all(line.startswith("vesselseg: ") for line in lines)
    stages = [line for line in lines if "warning" not in line]
    assert len(stages) == len({line.split(" s  ")[1].split(":")[0] for line in stages})


def test_check_info_and_preview_take_that_prior(capfd, made, tmp_path):
    file, _ = made
    code, out, err = run(capfd, "check", file, "--json")
    assert (code, json.loads(out)["ok"], err) == (0, True, [])
    code, out, _ = run(capfd, "info", file)
    assert code == 0
    assert "pyvista.read(file, force_ext='.vtkhdf')" in out
    code, out, _ = run(capfd, "preview", file, "-o", tmp_path / "p.png")
    assert (code, out.strip()) == (0, str(tmp_path / "p.png"))
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_check_names_the_invariant_that_fails(capfd, made, tmp_path):
    prior = BoundaryPrior.read(made[0])
    binary = prior.arrays["/geometry/mask"].astype("f4")
    arrays = {**prior.arrays, "/geometry/volume_fraction": binary}
    bad = tmp_path / "bad.prior.h5"
    BoundaryPrior(arrays, prior.attributes).write(bad)
    code, out, err = run(capfd, "check", bad)
    assert code == 3
    assert "FAILED" in out
    assert "volume-fraction" in out
    assert len(err) == 1
    assert "invariants do not hold" in err[0]


def test_check_and_info_read_scans_too(capfd, folder):
    code, out, _ = run(capfd, "check", folder / "scan.nii.gz")
    assert (code, out) == (0, f"ok  {folder / 'scan.nii.gz'}\n")
    code, out, _ = run(capfd, "info", folder / "scan.nii.gz", "--json")
    grid = read_volume(folder / "scan.nii.gz").grid
    assert json.loads(out)["grid"]["shape_kji"] == list(grid.shape_kji)


def test_segment_leaves_the_asked_images_on_the_grid_of_the_scan(capfd, folder, tmp_path):
    argv = ["segment", "-i", folder / "scan.nii.gz", "-o", tmp_path / "prob.nii.gz"]
    code, out, _ = run(capfd, *argv, "--save", "prob,phi,sigma,mask")
    assert code == 0
    names = ("prob", "phi", "sigma", "mask")
    assert out.split() == [str(tmp_path / f"{n}.nii.gz") for n in names]
    scan = read_volume(folder / "scan.nii.gz")
    prob, phi, _, mask = (read_volume(tmp_path / f"{n}.nii.gz") for n in names)
    assert prob.grid.mismatch_mm(scan.grid) < 1e-4
    assert np.array_equal(mask.values > 0, phi.values < 0)
    assert np.array_equal(mask.values > 0, prob.values > 0.5)


def test_a_dry_run_shows_settings_and_memory_and_writes_nothing(capfd, folder, tmp_path):
    file = tmp_path / "c.toml"
    file.write_text("seed = 4\n[refine]\niterations = 7\n")
    argv = ["prior", "-i", folder / "scan.nii.gz", "-o", tmp_path / "x.prior.h5", "--dry-run"]
    argv += ["--config", file, "--set", "refine.iterations=9", "--set", "seed=5", "--seed", 6]
    code, out, _ = run(capfd, *argv)
    plan = json.loads(out)
    assert code == 0
    assert (plan["config"]["seed"], plan["config"]["refine"]["iterations"]) == (6, 9)
    assert plan["memory_bytes"] > 0
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (["segment", "--set", "device=foo"], 2, "device: must be cpu, cuda or cuda:N: found foo"),
        (["segment", "--device", "foo"], 2, "device: must be cpu, cuda or cuda:N: found foo"),
        (["segment", "--device", "cuda:999"], 5, "device cuda:999 is not usable"),
        (["segment", "--set", "device=cuda:999"], 5, "device cuda:999 is not usable"),
        (["prior", "--set", "segment.device=foo"], 2, "segment.device: must be cpu, cuda or"),
        (["prior", "--device", "cpu", "--set", "segment=3"], 2, "segment"),
    ],
)
def test_a_network_device_is_checked_before_any_work(capfd, tmp_path, argv, code, words):
    """The scan does not exist: it is not looked at."""
    verb, *rest = argv
    scan = ["-i", tmp_path / "no.nii.gz", "-o", tmp_path / "x.nii.gz"]
    found, out, (line,) = run(capfd, verb, *scan, *rest)
    assert (found, out) == (code, "")
    assert words in line
    assert list(tmp_path.iterdir()) == []


UNFIT = {
    "network": ("network=segnett", "did you mean 'segnet'"),
    "option": ("options.size=huge", "option 'size'"),
    "loss": ("losses={dise=1.0}", "unknown loss 'dise'"),
    "patience": ("early_stopping=3", "patience 10 must be smaller than early_stopping 3"),
}


@pytest.mark.parametrize("what", UNFIT)
def test_training_refuses_what_there_is_not_before_it_makes_a_folder(capfd, tmp_path, what):
    change, words = UNFIT[what]
    argv = ["train", "-o", tmp_path / "run", "--steps", 1, "--set", "scheduler=plateau"]
    code, _, (line,) = run(capfd, *argv, "--set", change)
    assert (code, words in line) == (2, True), line
    assert list(tmp_path.iterdir()) == []


def test_a_network_without_a_distance_gives_no_phi(capfd, folder, tmp_path):
    from vesselseg import nets
    from vesselseg.nets import checkpoint

    architecture = {"name": "vesselnet", "dims": 2, "size": "tiny", "distance": False}
    card = {"architecture": architecture | {"in_channels": 1, "classes": 1}}
    path = checkpoint.save(tmp_path / "net", nets.create(**architecture).state_dict(), card)
    out = tmp_path / "made"
    out.mkdir()
    argv = ["segment", "-i", folder / "scan.nii.gz", "-o", out / "p.nii.gz", "--model", path]
    code, _, err = run(capfd, *argv, "--save", "prob,phi")
    assert (code, "gives no phi" in err[-1]) == (2, True)
    assert list(out.iterdir()) == []
    assert run(capfd, *argv, "--save", "prob,mask")[0] == 0


def test_training_refuses_a_device_before_it_makes_a_folder(capfd, tmp_path):
    argv = ["train", "-o", tmp_path / "run", "--steps", 1, "--device", "cuda:999"]
    code, _, (line,) = run(capfd, *argv)
    assert code == 5
    assert "device cuda:999 is not usable" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("verb", "key"), [("segment", ""), ("prior", "segment.")])
def test_the_device_option_wins_over_the_setting(capfd, folder, tmp_path, verb, key):
    output = tmp_path / ("x.nii.gz" if verb == "segment" else "x.prior.h5")
    argv = [verb, "-i", folder / "scan.nii.gz", "-o", output, "--dry-run"]
    code, out, _ = run(capfd, *argv, "--set", f"{key}device=cuda:999", "--device", "cpu")
    config = json.loads(out)["config"]
    assert code == 0
    assert (config["segment"] if key else config)["device"] == "cpu"


def test_strict_makes_a_run_that_did_not_converge_fail(capfd, folder, tmp_path):
    argv = ["refine", "-i", folder / "scan.nii.gz", "--start", folder / "phi.nii.gz"]
    argv += ["-o", tmp_path / "x.prior.h5", "--set", "refine.iterations=1", "--strict", "-q"]
    code, out, err = run(capfd, *argv)
    assert (code, out) == (6, "")
    assert "did not converge" in err[-1]
    assert list(tmp_path.iterdir()) == []


def test_synth_is_a_function_of_its_seed(capfd, tmp_path):
    small = ["--set", "shape=[32,32,32]", "-n", 2, "-q"]
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert run(capfd, "synth", "-o", tmp_path / name, "--seed", seed, *small)[0] == 0
    a, b, c = ({p.name: p.read_bytes() for p in (tmp_path / n / "sdf").iterdir()} for n in "abc")
    assert len(a) == 2
    assert a == b
    assert a != c


def test_doctor_says_what_is_there_and_how_to_install_the_rest(capfd, monkeypatch):
    code, out, err = run(capfd, "doctor", "--json")
    report = json.loads(out)
    assert (code, report["ok"], err) == (0, True, [])
    assert report["device"] == device.choose("auto").as_dict()
    monkeypatch.setitem(device.EXTRAS, "dicom", ("no-such-package",))
    _, out, _ = run(capfd, "doctor")
    assert "pip install 'vesselseg[dicom]'" in out


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(capfd, verb):
    code, out, err = run(capfd, verb, "--help")
    assert (code, err) == (0, [])
    assert f"vesselseg {verb}" in out


def test_help_is_fast_and_plain():
    begin = time.perf_counter()
    done = command("--help")
    seconds = time.perf_counter() - begin
    assert all(verb in done.stdout for verb in VERBS)
    assert done.returncode == 0
    assert seconds < 3.0, seconds  # about 0.3 s on an idle machine


def test_global_options_work_before_and_after_the_verb(capfd):
    for argv in (["--json-errors", "info", "nope.nii"], ["info", "nope.nii", "--json-errors"]):
        code, _, (line,) = run(capfd, *argv)
        assert code == json.loads(line)["code"] == 3


def test_debug_adds_the_traceback_and_keeps_the_line(capfd):
    code, _, err = run(capfd, "--debug", "info", "nope.nii")
    assert code == 3
    assert err[0].startswith("Traceback")
    assert err[-1].startswith("vesselseg: error: nope.nii: no such file")


@pytest.mark.parametrize(
    ("path", "line"), [(None, "scan.nii: no lumen"), ("p.nii", "p.nii: no lumen")]
)
def test_a_fault_of_the_computation_names_the_scan_unless_it_names_a_file(path, line):
    with pytest.raises(NoInterfaceError) as caught, cli_verbs.about(Path("scan.nii")):
        raise NoInterfaceError("no lumen", path=path)
    assert caught.value.line() == line


def test_a_defect_is_one_line_and_70(capfd, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError("a planted\ndefect")

    monkeypatch.setattr(cli, "_verb", broken)
    code, out, err = run(capfd, "doctor")
    assert (code, out, len(err)) == (70, "", 1)
    assert "internal defect (ZeroDivisionError: a planted\\ndefect)" in err[0]
    assert "--debug" in err[0]


def test_running_out_of_memory_is_one_line_F16(capfd, monkeypatch):
    def hungry(*_):
        raise MemoryError

    monkeypatch.setattr(cli, "_verb", hungry)
    code, _, err = run(capfd, "doctor")
    assert (code, len(err)) == (5, 1)


def test_a_damaged_compiler_cache_is_deleted_and_the_verb_runs_again_F22(
    capfd, monkeypatch, tmp_path
):
    """The error comes out of numba's cache reader; nothing else is retried."""
    reader = compile("def load(): raise damaged", "/x/numba/core/caching.py", "exec")
    scope = {"damaged": pickle.UnpicklingError("pickle data was truncated")}
    exec(reader, scope)
    entry = tmp_path / "solvers_0123" / "field.f-1.py311.nbi"
    entry.parent.mkdir()
    entry.write_bytes(b"")
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))

    def verb(*_):
        if entry.exists():
            scope["load"]()
        return 0

    monkeypatch.setattr(cli, "_verb", verb)
    code, _, err = run(capfd, "doctor")
    assert code == 0
    assert err == [
        "vesselseg: warning: the compiled cache was damaged; it was deleted and is made anew"
    ]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_run_quietly_and_leaves_whole_files_F08(tmp_path, number, code):
    argv = [sys.executable, "-m", "vesselseg", "synth", "-n", "100000", "-o", str(tmp_path / "d")]
    argv += ["--set", "shape=[16,16,16]", "-q"]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    limit = time.monotonic() + 60
    while not list(tmp_path.glob("d/magn/*.npy")) and time.monotonic() < limit:
        time.sleep(0.05)
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (code, "", "")
    left = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert left
    assert all(p.suffix == ".npy" and np.load(p).size for p in left)


@pytest.mark.parametrize(
    ("text", "size"),
    [("3G", 3 << 30), ("800 MiB", 800 << 20), ("1.5gb", 3 << 29), ("7", 7), ("2k", 2048)],
)
def test_sizes_are_powers_of_1024(text, size):
    assert device.parse_bytes(text) == size


def test_threads_sleep_when_idle_unless_the_user_says_otherwise(monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    device.quiet_threads()
    assert (os.environ["OMP_WAIT_POLICY"], os.environ["GOMP_SPINCOUNT"]) == ("passive", "7")


def test_cuda_names_the_devices_that_are_there(monkeypatch, tmp_path):
    fake = tmp_path / "nvidia-smi"
    fake.write_text("#!/bin/sh\necho 'GPU 0: Card A (UUID: GPU-1)'\necho 'GPU 1: Card B'\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert device.gpus() == ("cuda:0 Card A", "cuda:1 Card B")
    with pytest.raises(device.EnvironmentFault, match="cuda:0 Card A, cuda:1 Card B"):
        device.choose("cuda:0")
    assert device.choose("auto").reason
