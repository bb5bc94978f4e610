"""P-21: no finite field, however absurd, gives a result that is not finite, or a crash."""

from contextlib import suppress

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vesselseg.errors import DataError, InputError, NoInterfaceError, NumericalError
from vesselseg.fields import LevelSet, Probability, Volume
from vesselseg.grid import Grid
from vesselseg.solvers import advect, redistance, viscous_distance
from vesselseg.solvers.refine import STEPS, refine
from vesselseg.solvers.settings import RefineSettings
from vesselseg.solvers.topology import keep_components, keep_topology, topology_report

VALUES = st.one_of(
    st.sampled_from([0.0, -0.0, 1e30, -1e30, 1e-42, -1e-42, 1e-320, -1e-320, 1.0, -1.0]),
    st.floats(-1e30, 1e30),
    st.floats(-2.0, 2.0),
)
SHAPES = st.one_of(
    hnp.array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=9),
    hnp.array_shapes(min_dims=2, max_dims=2, min_side=2, max_side=12),
)
SPACINGS = st.floats(np.log(0.2), np.log(2.0)).map(lambda x: float(np.exp(x)))
QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture]


def lawful(count):
    """Run a law on so many examples, always the same ones."""
    return settings(derandomize=True, max_examples=count, deadline=None, database=None,
                    suppress_health_check=QUIET)  # fmt: skip


@st.composite
def fields(draw):
    """Any finite field of either precision with its spacing, anisotropic up to tenfold."""
    kind = draw(st.sampled_from([np.float32, np.float64]))
    shape = draw(SHAPES)
    phi = draw(hnp.arrays(np.float64, shape, elements=VALUES))
    return phi.astype(kind), [draw(SPACINGS) for _ in shape]


def diameter(phi, spacing):
    return float(np.linalg.norm(np.multiply(phi.shape, spacing)))


def check(method, phi, spacing, band):
    try:
        out = redistance(phi, spacing, method=method, band_mm=band)
    except NoInterfaceError:
        assert np.all(phi < 0) or not np.any(phi < 0)
        return
    assert np.isfinite(out).all()
    assert np.abs(out).max() <= min(diameter(phi, spacing), band) * (1 + 1e-6)
    assert np.array_equal(out < 0, phi < 0)


@pytest.mark.parametrize(("method", "count"), [("closest-point", 200), ("pde", 60), ("fmm", 60)])
def test_redistancing_any_finite_field(method, count):
    @lawful(count)
    @given(case=fields())
    def law(case):
        check(method, *case, 3.0)

    law()


@lawful(60)
@given(case=fields(), scheme=st.sampled_from(["weno5", "eno2"]))
def test_one_step_on_any_finite_field(case, scheme):
    """The step is finite and, by the CFL condition, bounded by the clipped field."""
    phi, spacing = case
    out = advect(phi, spacing, 1e-3, speed=1.0, curvature_weight=0.1, scheme=scheme)
    assert np.isfinite(out).all()
    assert np.abs(out).max() <= 1.1 * diameter(phi, spacing)


@lawful(60)
@given(case=fields(), share=st.floats(1e-6, 1.0), band=st.sampled_from([None, 3.0]))
def test_the_viscous_distance_of_any_finite_field(case, share, band):
    phi, spacing = case
    try:
        out = viscous_distance(phi, spacing, share * diameter(phi, spacing), band_mm=band)
    except NoInterfaceError:
        return
    assert np.isfinite(out).all()
    assert np.array_equal(out < 0, phi < 0)


@lawful(60)
@given(case=fields())
def test_the_topology_of_any_finite_field(case):
    """Components, the guard and the report; what is removed can be redistanced."""
    phi, spacing = case
    out, notes = keep_components(phi)
    assert np.isfinite(out).all()
    assert bool(notes) == (not np.array_equal(out < 0, phi < 0))
    before = topology_report(phi)
    assert topology_report(keep_topology(phi, np.roll(phi, 1, axis=-1), spacing)) == before


# --- whole fields, as a user may have them


def _checkerboard(shape):
    return np.where(np.indices(shape).sum(0) % 2, 1.0, -1.0)


def _one_voxel(shape):
    phi = np.ones(shape)
    phi[tuple(n // 2 for n in shape)] = -1.0
    return phi


def _plateau(shape):
    return np.where(np.indices(shape)[-1] < shape[-1] // 2, -1.0, 1.0)


def _denormal(shape):
    return 1e-310 * _plateau(shape)


def _steep(shape):
    return 1e300 * _plateau(shape)


def _zero_wall(shape):
    return np.sign(np.indices(shape)[-1] - shape[-1] // 2).astype(float)


def _noise(shape):
    return np.random.default_rng(0).normal(size=shape)


FIELDS = (_checkerboard, _one_voxel, _plateau, _denormal, _steep, _zero_wall, _noise)
THIN = [(1, 1, 5), (5, 1, 1), (1, 7, 1), (1, 2, 2), (2, 9, 9), (1, 5), (7, 2), (9, 8, 7)]
ASPECTS = {"cubic": (1.0, 1.0, 1.0), "flat": (100.0, 1.0, 1.0), "long": (0.5, 1.0, 50.0)}
METHODS = ("closest-point", "pde", "fmm")


@pytest.mark.parametrize("aspect", ASPECTS)
@pytest.mark.parametrize("make", FIELDS, ids=lambda f: f.__name__.strip("_"))
def test_absurd_fields_on_thin_arrays(make, aspect):
    """One voxel thick, two voxels in all, voxels a hundred times longer than wide.

    A jump of the whole diameter between two voxels may leave the watchdog's bound in a step.
    """
    for shape in THIN:
        phi = make(shape)
        spacing = ASPECTS[aspect][-len(shape) :]
        for method in METHODS:
            check(method, phi, spacing, 3.0 * max(spacing))
        for scheme in ("weno5", "eno2"):
            with suppress(NumericalError):
                out = advect(phi, spacing, 0.1, speed=-1.0, curvature_weight=0.01, scheme=scheme)
                assert np.isfinite(out).all()
        out, _ = keep_components(phi)
        assert np.isfinite(out).all()
        assert topology_report(keep_topology(phi, -phi, spacing)) == topology_report(phi)
        if (phi < 0).any() and not (phi < 0).all():
            out = viscous_distance(phi, spacing, min(spacing))
            assert np.isfinite(out).all()
            assert np.array_equal(out < 0, phi < 0)


FORMS = {
    "Fortran order": np.asfortranarray,
    "other byte order": lambda phi: phi.astype(phi.dtype.newbyteorder()),
    "half precision": lambda phi: phi.astype(np.float16),
    "integer": lambda phi: np.rint(4.0 * phi).astype(np.int16),
    "negative strides": lambda phi: phi[::-1, :, ::-1],
    "as it is": np.copy,
    "single precision": lambda phi: phi.astype(np.float32),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_array_is_taken(form):
    """And is not modified, read-only or not; the result is a float array in C order."""
    phi = FORMS[form](np.linalg.norm(np.indices((12, 11, 10)) - 5.2, axis=0) - 3.1)
    before, locked = phi.copy(), phi.copy()
    locked.setflags(write=False)
    plain = np.ascontiguousarray(phi, dtype=np.float32 if phi.dtype.itemsize < 8 else np.float64)
    calls = [lambda p, m=m: redistance(p, 1.0, method=m, band_mm=3.0) for m in METHODS]
    calls += [lambda p, s=s: advect(p, 1.0, 0.5, speed=1.0, scheme=s) for s in ("weno5", "eno2")]
    calls += [lambda p: viscous_distance(p, 1.0, 0.5, band_mm=3.0)]
    calls += [lambda p: keep_topology(p, plain - 1, 1.0), lambda p: keep_topology(-abs(p), p, 1.0)]
    for call in calls:
        out = call(phi)
        assert np.array_equal(phi, before)
        assert not np.shares_memory(out, phi)
        assert np.array_equal(out, call(locked))
        assert np.array_equal(out, call(plain))
        assert out.flags.c_contiguous and out.dtype == plain.dtype
    assert np.array_equal(keep_components(phi)[0], plain)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_what_is_not_finite_is_refused(value, dtype):
    phi = (np.linalg.norm(np.indices((6, 7, 5)) - 2.6, axis=0) - 1.7).astype(dtype)
    bad = phi.copy()
    bad[3, 3, 3] = value
    speed = np.zeros(phi.shape)
    speed[1, 2, 3] = value
    grid = Grid(phi.shape, np.eye(4))
    calls = [lambda m=m: redistance(bad, 1.0, method=m) for m in METHODS]
    calls += [
        lambda: advect(bad, 1.0, 0.1, speed=1.0),
        lambda: advect(phi, 1.0, 0.1, speed=speed),
        lambda: advect(phi, 1.0, 0.1, velocity=np.full((*phi.shape, 3), value)),
        lambda: viscous_distance(bad, 1.0, 0.5),
        lambda: keep_components(bad),
        lambda: keep_topology(phi, bad, 1.0),
        lambda: LevelSet(bad, grid, 4.5),
        lambda: Volume(bad, grid),
        lambda: Probability(bad, grid),
    ]
    for call in calls:
        with pytest.raises(DataError):
            call()


# --- refinement

IMAGES = {
    "flat": np.zeros,
    "noise": _noise,
    "checkerboard": _checkerboard,
    "large": lambda shape: 1e15 * _noise(shape),
    "tiny": lambda shape: 1e-30 * _noise(shape),
    "one bright voxel": lambda shape: 1e6 * _one_voxel(shape),
}


@pytest.mark.parametrize("energy", sorted(STEPS))
@pytest.mark.parametrize("image", IMAGES)
def test_refinement_on_absurd_images(energy, image):
    """A finite wall with a finite s.d., or a refusal in one line."""
    for shape in [(20, 22), (11, 12, 13)]:
        radius = 5.0 if len(shape) == 2 else 3.4
        middle = [n / 2.0 + 0.2 for n in shape]
        offsets = np.moveaxis(np.indices(shape), 0, -1) - middle
        phi = (np.linalg.norm(offsets, axis=-1) - radius).astype(np.float32)
        grid = Grid(shape, np.eye(4))
        volume = Volume(IMAGES[image](shape).astype(np.float32), grid)
        settings = RefineSettings(energy=energy, iterations=5)
        speed = 0.5 if energy == "given" else None
        try:
            result = refine(LevelSet(phi, grid, 4.5), volume, settings, speed=speed)
        except InputError as error:
            assert len(error.line()) <= 400
            continue
        assert np.isfinite(result.level_set.phi_mm).all()
        assert np.isfinite(result.sigma_mm).all()
        assert (result.sigma_mm > 0.0).all()
        assert np.isfinite(list(result.estimates.values())).all()


@lawful(40)
@given(
    values=hnp.arrays(np.float32, (9, 8), elements=st.floats(0.0, 1.0, width=32)),
    threshold=st.floats(0.05, 0.45),
)
def test_any_probability_becomes_a_level_set(values, threshold):
    """P-34 too: inside is p > 0.5, and a lower probability holds no more of it."""
    grid = Grid(values.shape, np.eye(4))
    try:
        wall = LevelSet.from_probability(Probability(values, grid))
        lower = np.clip(values - np.float32(threshold), 0.0, 1.0)
        below = LevelSet.from_probability(Probability(lower, grid))
    except NoInterfaceError:
        return
    assert np.isfinite(wall.phi_mm).all()
    assert np.isfinite(wall.sigma_mm).all()
    assert np.array_equal(wall.phi_mm < 0, values > 0.5)
    assert not np.any((below.phi_mm < 0) & ~(wall.phi_mm < 0))
