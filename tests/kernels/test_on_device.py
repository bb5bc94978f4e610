"""Redistancing, evolution and flows through the CUDA kernels take the decisions of the CPU path.

The same launches run here through the sources compiled by g++, and marked ``gpu`` on a device.
"""

import numpy as np
import pytest
from build import SeparateDevice, host_device

import vesselseg as vs
from vesselseg import device as machine
from vesselseg import phantoms, pipeline
from vesselseg.cuda_kernels import launch
from vesselseg.errors import (
    ConfigError,
    DataError,
    EnvironmentFault,
    NoInterfaceError,
    NumericalError,
)
from vesselseg.solvers import (
    advect,
    extend,
    flow_on_device,
    map_on_device,
    on_device,
    redistance,
    stable_time_step,
    step,
)
from vesselseg.solvers.evolution import SCHEMES
from vesselseg.solvers.field import lies_on_gpu
from vesselseg.solvers.refine import problem_of, refine_array
from vesselseg.synth.forward import add_noise

REDISTANCED = 1e-4  # voxels: what two orders of rounding may make of one redistancing
RUN = 2e-3  # voxels: the same after many
UNDECIDED = 1e-2  # voxels from the wall: farther no voxel may change sides


@pytest.fixture(params=["g++", pytest.param("gpu", marks=pytest.mark.gpu)])
def gpu(request):
    if request.param == "g++":
        return host_device()
    if fault := machine.cuda_fault():
        pytest.skip(fault)
    return launch.device(0)


def torus(spacing, shift=0.0):
    shape = phantoms.make("torus", radius=2.5)
    grid = shape.grid(spacing)
    return grid, (shape.phi(grid) + shift).astype(np.float32)


def blobs(shape, seed, dtype=np.float32):
    """A rough wall of several parts that leaves the box."""
    rng = np.random.default_rng(seed)
    points = np.moveaxis(np.indices(shape), 0, -1)
    away = [np.linalg.norm(points - rng.uniform(0, 1, 3) * shape, axis=-1) for _ in range(3)]
    return (1.3 * (np.minimum.reduce(away) - 5.0) + 0.1 * rng.normal(size=shape)).astype(dtype)


WALLS = {
    "rough": (blobs((20, 23, 37), 1), (1.0, 1.0, 1.0)),
    "oblong voxels": (blobs((15, 31, 33), 2), (2.0, 0.7, 0.7)),
    "torus": (torus((1.2, 0.5, 0.5))[1], (1.2, 0.5, 0.5)),
    "float64": (blobs((16, 19, 21), 3, np.float64), (1.0, 1.0, 1.0)),
    "plane": (blobs((1, 33, 41), 4)[0], (1.0, 0.8)),
    "two slices": (blobs((2, 25, 27), 5), (1.0, 1.0, 1.0)),
}


@pytest.mark.parametrize("name", WALLS)
def test_redistancing_on_a_device_is_that_of_the_cpu(gpu, name):
    phi, spacing = WALLS[name]
    with on_device.current(gpu):
        found = on_device.redistance(gpu, gpu.xp.array(phi), spacing, 4.5 * max(spacing))
        found = on_device.to_host(gpu, found)
    expected = redistance(phi, spacing, band_mm=4.5 * max(spacing))
    assert found.shape == phi.shape
    assert found.dtype == expected.dtype
    assert np.abs(found - expected).max() <= REDISTANCED * min(spacing)
    assert ((found < 0) == (expected < 0)).all()


@pytest.mark.parametrize("name", ["oblong voxels", "plane", "two slices"])
def test_extension_on_a_device_is_that_of_the_cpu(gpu, name):
    phi, spacing = WALLS[name]
    values = np.random.default_rng(6).normal(size=phi.shape).astype(np.float32)
    with on_device.current(gpu):
        given = gpu.xp.array(values), gpu.xp.array(phi)
        found = on_device.to_host(gpu, on_device.extend(gpu, *given, spacing, 3.0))
    expected = extend(values, phi, spacing, band_mm=3.0)
    assert found.shape == phi.shape
    assert found.dtype == expected.dtype
    assert ((found != values) == (expected != values)).all()
    # Closest points agree to REDISTANCED voxels; the values change by several in one of them.
    assert np.abs(found - expected).max() <= 10.0 * REDISTANCED
    with pytest.raises(DataError, match="bad values"):
        on_device.extend(gpu, given[0][1:], given[1], spacing, 3.0)


def test_closest_points_are_corrected_and_finished_on_the_device():
    """Without what the last block does, the same wall is wrong: the comparison sees it."""
    phi = blobs((20, 23, 37), 1)
    expected = redistance(phi, 1.0, band_mm=4.5)
    for name in ("finish_layers", "finish_corrections", "put_improved"):
        device = host_device()
        run = device.launch
        device.launch = lambda instance, *args, run=run, name=name: (
            None if instance.startswith(name) else run(instance, *args)
        )
        found = on_device.redistance(device, phi, 1.0, 4.5)
        assert np.abs(found - expected).max() > REDISTANCED, name


def fork(spacing=(1.2, 0.5, 0.5)):
    """A fork whose crease, on oblong voxels, holds closest points on planes of samples."""
    shape = phantoms.make("bifurcation", radius=2.5)
    grid = shape.grid(spacing)
    return grid, shape.phi(grid).astype(np.float32)


def test_a_closest_point_on_a_plane_of_samples_is_no_tie(gpu):
    """The interpolant's slope jumps there: no rounding error may choose the side.

    It did, by up to 0.012 voxels at 36 voxels, before points within 1e-9 of a plane lay on it.
    """
    spacing = (1.2, 0.5, 0.5)
    phi = np.float32(1.3) * fork(spacing)[1]
    with on_device.current(gpu):
        found = on_device.redistance(gpu, gpu.xp.array(phi), spacing, 5.4)
        found = on_device.to_host(gpu, found)
    expected = redistance(phi, spacing, band_mm=5.4)
    assert np.abs(found - expected).max() <= REDISTANCED * min(spacing)
    assert ((found < 0) == (phi < 0)).all()


def test_evolution_on_a_device_is_that_of_the_cpu(gpu):
    phi = redistance(blobs((20, 23, 37), 1), (1.0, 0.7, 0.8), band_mm=5.0)
    rng = np.random.default_rng(0)
    speed = rng.uniform(-1.0, 1.0, phi.shape).astype(np.float32)
    velocity = rng.uniform(-0.5, 0.5, (*phi.shape, 3)).astype(np.float32)
    for scheme in ("weno5", "eno2"):
        with on_device.current(gpu):
            motion = (speed, velocity, 0.1), SCHEMES[scheme], None, 5.0
            found = on_device.advect(gpu, gpu.xp.array(phi), (1.0, 0.7, 0.8), 0.4, *motion)
            found = on_device.to_host(gpu, found)
        expected = advect(phi, (1.0, 0.7, 0.8), 0.4, speed=speed, velocity=velocity,
                          curvature_weight=0.1, scheme=scheme, band_mm=5.0)  # fmt: skip
        assert np.abs(expected - phi).max() > 0.2
        # Steps and stages of sums of a dozen terms each.
        assert np.abs(found - expected).max() <= 1e-5


def test_a_device_refuses_what_the_cpu_refuses():
    device = host_device()
    phi = torus(0.7)[1]
    eno2 = SCHEMES["eno2"]
    with pytest.raises(DataError, match="non-finite level set"):
        on_device.redistance(device, np.where(phi < -2, np.nan, phi), 0.7, 3.0)
    with pytest.raises(DataError, match="bad spacing"):
        on_device.redistance(device, phi, (1.0, 2.0), 3.0)
    with pytest.raises(NoInterfaceError):
        on_device.redistance(device, np.abs(phi) + 1.0, 0.7, 3.0)
    with pytest.raises(ConfigError, match="CFL"):
        on_device.advect(device, phi, 0.7, 5.0, (1.0, None, 0.0), eno2, 1.0, 3.0)
    with pytest.raises(DataError, match="bad speed"):
        on_device.advect(device, phi, 0.7, 5.0, (phi[1:], None, 0.0), eno2, None, 3.0)
    with pytest.raises(DataError, match="non-finite speed"):
        on_device.advect(device, phi, 0.7, 5.0, (np.nan, None, 0.0), eno2, None, 3.0)
    with pytest.raises(NumericalError, match="rim of its band"):
        on_device.advect(device, phi, 0.7, 2.2, (1.0, None, 0.0), eno2, None, 2.5)


def test_arrays_of_a_device_are_told_from_others():
    there = type("There", (), {"__cuda_array_interface__": {}})
    assert lies_on_gpu(there())
    assert not lies_on_gpu(np.zeros(3))


def test_an_array_of_torch_goes_to_a_device_and_back_without_a_copy():
    """DLPack both ways; here the device is g++, whose memory is the tensor's."""
    torch = pytest.importorskip("torch")
    device, phi = host_device(), torus((1.2, 0.5, 0.5))[1]
    tensor = torch.as_tensor(phi.copy(), dtype=torch.float32).requires_grad_()
    shared = on_device.adopted(device, tensor)
    assert isinstance(shared, np.ndarray)
    assert shared.ctypes.data == tensor.data_ptr()
    found = on_device.redistance(device, tensor, (1.2, 0.5, 0.5), 3.0)
    assert isinstance(found, torch.Tensor)
    assert np.array_equal(found.numpy(), on_device.redistance(device, phi, (1.2, 0.5, 0.5), 3.0))
    back = on_device.given_back(shared, tensor)
    assert back.data_ptr() == tensor.data_ptr()
    assert launch.stream_of(phi) is None


@pytest.mark.gpu
def test_torch_and_the_kernels_work_on_one_stream():
    """What torch queued before is done before, and the result is torch's, on its stream."""
    torch = pytest.importorskip("torch")
    if fault := machine.cuda_fault() or ("" if torch.cuda.is_available() else "torch without CUDA"):
        pytest.skip(fault)
    phi, spacing = torus((1.2, 0.5, 0.5))[1], (1.2, 0.5, 0.5)
    with torch.cuda.stream(torch.cuda.Stream()):
        tensor = torch.zeros(phi.shape, device="cuda")
        torch.cuda._sleep(10_000_000)
        tensor += torch.as_tensor(phi, device="cuda")
        found = redistance(tensor, spacing, band_mm=3.0)
        assert launch.stream_of(tensor).pointer == torch.cuda.current_stream().cuda_stream
        with launch.torchs_memory():
            again = redistance(tensor, spacing, band_mm=3.0)
        assert torch.equal(found, again)
    expected = redistance(phi, spacing, band_mm=3.0)
    assert np.abs(found.cpu().numpy() - expected).max() <= REDISTANCED


def shared(*fields):
    """Return tensors of torch, which an emulated device takes for its own."""
    torch = pytest.importorskip("torch")
    return [torch.from_numpy(np.array(field)) for field in fields]


@pytest.mark.parametrize(
    "energy", ["chan_vese", *(pytest.param(e, marks=pytest.mark.slow) for e in ("map", "gac"))]
)
def test_a_refinement_of_arrays_of_a_device_takes_the_room_of_the_one_before(energy):
    """Nothing of a field's size is made but the result, nothing but numbers passes the host."""
    device, (start, image, _) = separate_device(), plane_case(1)
    settings = vs.RefineSettings(energy=energy, iterations=1)
    phi, values = shared(start.phi_mm, image.values)

    def refined(values):
        spacing = start.grid.spacing_mm
        return refine_array(phi, values, spacing, settings, band_mm=start.band_mm, device=device)

    first, recorded = refined(values * 2.0 + 0.1 * values.flip(0)), device.recorded
    kept = first.phi_mm.clone()
    device.xp.made = device.xp.moved = device.brought = 0
    second = refined(values)
    assert type(second.phi_mm) is type(second.sigma_mm) is type(phi)
    assert device.recorded == recorded
    counts = 2 * 3 * 4  # of start and image, looked at once each
    if energy != "gac":  # whose edges are filtered anew
        assert device.xp.made == second.phi_mm.nbytes + second.sigma_mm.nbytes + counts
    assert device.xp.moved < phi.nbytes / 2  # the blur believed first, weights of a filter
    assert device.brought < phi.nbytes / 2  # what the host reads of a step
    expected = vs.refine(start, image, settings)
    assert np.abs(second.phi_mm.numpy() - expected.level_set.phi_mm).max() <= RUN * 0.8
    assert second.sigma_mm.numpy() == pytest.approx(expected.sigma_mm, rel=1e-3)
    assert (first.phi_mm == kept).all()
    assert not (second.phi_mm == kept).all()
    assert len(device.kept) == 1
    device.release()
    assert not device.kept


def test_arrays_of_a_device_are_checked_where_they_lie():
    device, (start, image, settings) = separate_device(), plane_case(1)
    phi, values = shared(start.phi_mm, image.values)
    given = {"band_mm": start.band_mm, "device": device}

    def refused(error, message, phi, values, **more):
        with pytest.raises(error, match=message):
            refine_array(phi, values, start.grid.spacing_mm, settings, **given, **more)

    lost = values.clone()
    lost[3, 4] = np.nan
    refused(DataError, "non-finite image: found 1", phi, lost)
    refused(DataError, "non-finite level set", lost, values)
    refused(DataError, "bad image", phi, values[1:])
    refused(DataError, "bad sigma_mm", phi, values, sigma_mm=values[1:])
    refused(NoInterfaceError, "no wall", phi.abs() + 1.0, values)
    y, x = np.indices(phi.shape)
    thin = shared(np.hypot(y - 14.7, 0.8 * x - 10.3) - 0.6)[0]
    refused(NoInterfaceError, "thinner than a voxel", thin, values)
    elsewhere = type("Elsewhere", (), {"__dlpack_device__": lambda self: (1, 3)})()
    refused(DataError, "several devices: found one on cuda:3", phi, elsewhere)
    assert not device.kept


def scan(grid, truth, seed=0):
    rng = np.random.default_rng(seed)
    return vs.Volume((truth < 0) + 0.1 * rng.standard_normal(truth.shape), grid)


def flow_case(energy, iterations, spacing=(1.2, 0.8, 0.8)):
    grid, truth = torus(spacing)
    band = 4.5 * max(spacing)
    start = vs.LevelSet(redistance(truth + 0.4, spacing, band_mm=band), grid, band)
    settings = vs.RefineSettings(energy=energy, iterations=iterations, time=1.2, balloon=0.1)
    speed = {"speed": -0.3} if energy == "given" else {}
    return (start, scan(grid, truth), settings), speed


@pytest.mark.parametrize("energy", ["chan_vese", "local", "gac", "given"])
def test_a_flow_on_a_device_is_that_of_the_cpu(gpu, energy):
    arguments, speed = flow_case(energy, 2)
    expected = vs.refine(*arguments, **speed)
    found = vs.refine(*arguments, **speed, device=gpu)
    phi, other = expected.level_set.phi_mm, found.level_set.phi_mm
    assert np.abs(phi - arguments[0].phi_mm).max() > 0.1
    assert np.abs(phi - other).max() <= RUN * 0.8
    assert np.abs(phi[(phi < 0) != (other < 0)]).max(initial=0.0) < UNDECIDED * 0.8
    assert (found.reason, found.steps) == (expected.reason, expected.steps)
    for a, b in zip(found.history, expected.history, strict=True):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-6)


def test_a_plane_flows_on_a_device_as_on_the_cpu():
    grid = vs.Grid.from_spacing((40, 37), (1.0, 0.8))
    y, x = np.indices(grid.shape_kji)
    truth = np.hypot(y - 19.7, 0.8 * x - 14.3) - 8.0
    start = vs.LevelSet(redistance(truth + 1.0, (1.0, 0.8), band_mm=4.5), grid, 4.5)
    for energy in ("local", "gac"):
        settings = vs.RefineSettings(energy=energy, iterations=1)
        expected = vs.refine(start, scan(grid, truth), settings).level_set.phi_mm
        found = vs.refine(start, scan(grid, truth), settings, device=host_device())
        assert np.abs(found.level_set.phi_mm - expected).max() <= RUN * 0.8


def separate_device():
    host_device()
    return SeparateDevice()


def test_the_host_reads_a_step_only_while_the_next_one_runs():
    device = separate_device()
    arguments, speed = flow_case("given", 6)
    found = vs.refine(*arguments, **speed, device=device)
    assert found.converged
    assert found.steps < 6
    # The start is read once. Of the step after the one at rest nothing is read; the last reading
    # is that of the result.
    begun = ["step", "ask", "read"]
    ahead = ["step", "ask"] + ["step", "ask", "read"] * found.steps
    assert device.log == [*begun, *ahead, "ask", "read"]


def test_a_vessel_that_vanishes_on_a_device_is_an_error():
    (start, image, settings), _ = flow_case("given", 20)
    settings = settings.model_copy(update={"time": 100.0, "volume_limits": (1e-9, 5.0)})
    with pytest.raises(NumericalError, match="vessel lost at step"):
        vs.refine(start, image, settings, speed=-0.3, device=host_device())


def test_what_has_no_cuda_kernels_is_refused_on_a_device():
    (start, image, _), _ = flow_case("given", 1)
    for settings in (vs.RefineSettings(energy=e, keep_topology=True) for e in ("map", "gac")):
        with pytest.raises(ConfigError, match="keep_topology has no CUDA kernels"):
            vs.refine(start, image, settings, device=host_device())
    thin = vs.Grid.from_spacing((3, 20, 20), 1.0)
    y, x = np.indices((20, 20)) - 9.6
    phi = np.broadcast_to(np.hypot(y, x) - 5.0, thin.shape_kji).astype(np.float32)
    with pytest.raises(ConfigError, match="fewer than 4 voxels along an axis has no CUDA"):
        vs.refine(vs.LevelSet(phi, thin, 4.5), vs.Volume(phi < 0, thin), device=host_device())


# --- the default energy --------------------------------------------------------------------------


def map_case(iterations, spacing=(1.2, 1.0, 1.0), noise=0.1, correlated=0.0, **settings):
    """A small ring in a magnitude image, with its start 0.3 mm too thin."""
    shape = phantoms.make("torus", radius=1.5)
    grid = shape.grid(spacing)
    truth = shape.phi(grid).astype(np.float32)
    lumen = (truth < 0).astype(np.float32)
    noisy = {"kind": "rician", "correlated": correlated, "length": 2.0}
    image = add_noise(lumen, noise, np.random.default_rng(0), **noisy)
    band = 4.5 * max(spacing)
    start = vs.LevelSet(redistance(truth + 0.3, spacing, band_mm=band), grid, band)
    return start, vs.Volume(image, grid), vs.RefineSettings(iterations=iterations, **settings)


def require_the_same_map(gpu, case, **more):
    expected, found = vs.refine(*case, **more), vs.refine(*case, **more, device=gpu)
    h = min(case[0].grid.spacing_mm)
    phi, other = expected.level_set.phi_mm, found.level_set.phi_mm
    assert np.abs(phi - case[0].phi_mm).max() > 0.1 * h
    assert np.abs(phi - other).max() <= RUN * h
    assert np.abs(phi[(phi < 0) != (other < 0)]).max(initial=0.0) < UNDECIDED * h
    assert found.sigma_mm == pytest.approx(expected.sigma_mm, rel=1e-3)
    assert (found.reason, found.steps) == (expected.reason, expected.steps)
    for a, b in zip(found.history, expected.history, strict=True):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-6)
    assert found.estimates == pytest.approx(expected.estimates, rel=1e-3)
    return found


def test_map_on_a_device_is_that_of_the_cpu(monkeypatch):
    """Two steps, before the second of which the blur is learnt from the length of a vector.

    Its noise is correlated, so that the wall is doubted.
    The host reads a step only while the next one runs, and after the last one the result alone.
    """
    monkeypatch.setattr(step, "LEARN_BLUR_AT", (1,))
    device = separate_device()
    found = require_the_same_map(device, map_case(2, correlated=0.7, averages=2.0))
    assert found.estimates["misfit"] > 1.5
    assert found.estimates["psf_voxels"] != 0.6
    ahead = ["step", "ask", "read", "step", "ask", "step", "ask", "read", "read", "step"]
    assert device.log[: len(ahead)] == ahead
    assert "step" not in device.log[len(ahead) :]


@pytest.mark.slow
@pytest.mark.parametrize("spacing", [(1.2, 1.0, 1.0), (1.2, 0.6, 0.6)])
def test_map_on_a_device_ends_where_the_cpu_ends(gpu, spacing):
    assert 5 < require_the_same_map(gpu, map_case(20, spacing)).steps < 20


@pytest.mark.slow
@pytest.mark.parametrize("energy", ["map", "gac"])
def test_a_run_over_ties_on_a_device_is_that_of_the_cpu(gpu, energy):
    """A fork on oblong voxels, where closest points lie on planes of samples at every step."""
    grid, truth = fork()
    band = 4.5 * max(grid.spacing_mm)
    start = vs.LevelSet(redistance(truth + 0.3, grid.spacing_mm, band_mm=band), grid, band)
    case = start, scan(grid, truth), vs.RefineSettings(energy=energy, iterations=3)
    if energy == "map":
        require_the_same_map(gpu, case)
        return
    expected, found = vs.refine(*case), vs.refine(*case, device=gpu)
    apart = np.abs(found.level_set.phi_mm - expected.level_set.phi_mm)
    assert apart.max() <= RUN * min(grid.spacing_mm)


@pytest.mark.slow
def test_map_on_a_device_sees_the_speed_of_the_blood(gpu):
    start, image, settings = map_case(2, psf=0.7)
    depth = np.maximum(-start.phi_mm, 0.0)
    channel = vs.Volume(depth + 0.1 * np.abs(np.random.default_rng(1).normal(size=depth.shape)),
                        start.grid)  # fmt: skip
    found = require_the_same_map(gpu, (start, image, settings), channels=[channel])
    assert found.estimates["psf_voxels"] == 0.7


@pytest.mark.slow
def test_map_on_a_device_knows_the_scan_of_a_flow(gpu, monkeypatch):
    monkeypatch.setattr(step, "LEARN_BLUR_AT", (1,))
    start, _, settings = map_case(2)
    depth = np.maximum(-start.phi_mm, 0.0)
    noise = 0.1 * np.abs(np.random.default_rng(1).normal(size=depth.shape))
    flow = settings.model_copy(update={"profile": "flow"})
    found = require_the_same_map(gpu, (start, vs.Volume(depth + noise, start.grid), flow))
    assert found.estimates["psf_voxels"] == step.FIRST_PSF  # none is learnt from a ramp
    assert found.sigma_mm.min() >= step.FLOW_FLOOR * max(start.grid.spacing_mm)


def plane_case(iterations):
    grid = vs.Grid.from_spacing((30, 27), (1.0, 0.8))
    y, x = np.indices(grid.shape_kji)
    truth = np.hypot(y - 14.7, 0.8 * x - 10.3) - 6.0
    start = vs.LevelSet(redistance(truth + 0.4, (1.0, 0.8), band_mm=4.5), grid, 4.5)
    return start, scan(grid, truth), vs.RefineSettings(iterations=iterations)


def test_a_list_that_the_band_of_a_plane_outgrows_is_made_anew(monkeypatch):
    rooms = []
    made = map_on_device.map_for
    monkeypatch.setattr(map_on_device, "ROOM", 0.4)
    monkeypatch.setattr(map_on_device, "LEAST_ROOM", 0)

    def noted(device, problem, parts, room):
        rooms.append(room)
        monkeypatch.setattr(map_on_device, "ROOM", 1.5)
        return made(device, problem, parts, room)

    monkeypatch.setattr(map_on_device, "map_for", noted)
    require_the_same_map(host_device(blocks=1), plane_case(1))
    assert len(rooms) == 2
    assert rooms[0] < rooms[1]


def test_an_evolution_recorded_once_is_the_evolution_step_by_step(gpu):
    """Five steps of ENO2 and RK2 and a redistancing, replayed: job R of the profile."""
    phi = redistance(blobs((20, 23, 37), 1), 1.0, band_mm=4.5)
    speed = np.full(phi.shape, 0.1, np.float32)
    step = stable_time_step((1.0,) * 3, speed=speed)
    expected = phi
    for _ in range(2):
        expected = advect(expected, 1.0, 5 * step, speed=speed, scheme="eno2", time_step=step,
                          band_mm=4.5)  # fmt: skip
        expected = redistance(expected, 1.0, band_mm=4.5)
    with on_device.current(gpu):
        replay, field = evolution(gpu, phi, speed, step)
        for _ in range(2):
            replay()
        found = on_device.to_host(gpu, field)
        plain, other = evolution(gpu, phi, speed, step)
        for _ in range(2):
            for call in plain.launches:
                call()
        assert np.array_equal(found, on_device.to_host(gpu, other))
    assert np.abs(found - expected).max() <= RUN


def evolution(gpu, phi, speed, step):
    field = gpu.xp.array(phi)
    box = on_device.box_of(gpu, field, (1.0,) * 3)
    drive = on_device.Drive(gpu.xp.asarray(speed.reshape(-1)), None, None)
    clock = gpu.xp.asarray(np.array([step, 5.0, 0.0]))
    band, room, buffer = on_device.band_for(box), on_device.layers_for(box), box.empty()
    arguments = (box, band, room, drive, SCHEMES["eno2"], field, [buffer], clock, 5, 4.5)
    return gpu.record(lambda: on_device.launch_evolution(*arguments)), field


@pytest.mark.gpu
def test_the_host_is_back_before_the_device_is_done():
    """Nothing waits inside an evolution: all of it is queued while its beginning still runs."""
    if fault := machine.cuda_fault():
        pytest.skip(fault)
    gpu = launch.device(0)
    phi = redistance(blobs((128, 128, 128), 1), 1.0, band_mm=4.5)
    replay, _ = evolution(gpu, phi, np.full(phi.shape, 0.1, np.float32), 0.5)
    replay()
    assert replay.graph is not None
    for _ in range(50):
        replay()
    event = gpu.xp.cuda.Event(disable_timing=True)
    event.record()
    assert not event.done


@pytest.mark.gpu
def test_the_host_is_back_before_a_step_of_map_is_done():
    if fault := machine.cuda_fault():
        pytest.skip(fault)
    gpu, shape = launch.device(0), (128, 128, 128)
    grid = vs.Grid.from_spacing(shape, 1.0)
    start = redistance(blobs(shape, 1), 1.0, band_mm=4.5)
    image = scan(grid, start).values
    problem = problem_of(start, image, 1.0, vs.RefineSettings())
    with on_device.current(gpu):
        step = map_on_device.opened(gpu, problem).steps["learn"]
        assert step.graph is not None
        step()
        for _ in range(5):
            step()
        event = gpu.xp.cuda.Event(disable_timing=True)
        event.record()
        assert not event.done


# --- the device rule -----------------------------------------------------------------------------


@pytest.fixture
def with_gpu(monkeypatch):
    """A machine whose only CUDA device is g++."""
    monkeypatch.setattr(machine, "cuda_fault", lambda index=0: "" if index == 0 else "1 device")
    monkeypatch.setattr(launch, "device", lambda index: host_device())


def built(requested, **settings):
    (start, image, _), _ = flow_case("chan_vese", 1)
    refine = {"energy": "chan_vese", "iterations": 1, **settings}
    config = pipeline.build(pipeline.PipelineConfig, {"device": requested, "refine": refine})
    return pipeline.build_prior(image, config, start=start)


def mean(prior):
    """The mean wall, metres."""
    return prior.phi_mean_m


def test_a_prior_made_on_a_device_is_that_of_the_cpu(with_gpu):
    there, here = built("auto"), built("cpu")
    assert there.provenance["device"] == {"name": "cuda:0", "requested": "auto", "reason": ""}
    assert np.abs(mean(there) - mean(here)).max() <= RUN * 0.8e-3
    with pytest.raises(EnvironmentFault, match="cuda:1 is not usable"):
        built("cuda:1")
    with pytest.raises(ConfigError, match="keep_topology has no CUDA kernels"):
        built("cuda", keep_topology=True)


@pytest.mark.parametrize("fault", ["memory", "result"])
def test_a_device_that_fails_gives_way_to_the_cpu_under_auto_alone(with_gpu, monkeypatch, fault):
    def full(*arguments):
        raise MemoryError

    if fault == "memory":
        monkeypatch.setattr(flow_on_device, "layers_for", full)
    else:
        monkeypatch.setattr(pipeline, "disagreement", lambda gpu: float("nan"))
    words = "memory" if fault == "memory" else "other results"
    found, expected = built("auto"), built("cpu")
    assert found.provenance["device"]["name"] == "cpu"
    assert words in found.provenance["device"]["reason"]
    assert np.array_equal(mean(found), mean(expected))
    with pytest.raises(EnvironmentFault, match=words):
        built("cuda")


def test_the_self_test_sees_a_wrong_kernel():
    device = host_device()
    assert flow_on_device.disagreement(device) <= REDISTANCED
    run = device.launch
    device.launch = lambda instance, *args: (
        None if instance.startswith("seed_closest") else run(instance, *args)
    )
    assert not flow_on_device.disagreement(device) <= REDISTANCED


def test_arrays_of_the_host_need_no_current_device():
    with on_device.current(host_device(), np.zeros(3)) as nothing:
        assert nothing is None
