"""Settings: precedence, hints, ranges; the parser's holes stay closed."""

from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from vesselseg.config import Settings, build, load_toml, override, parse_assignment, resolve
from vesselseg.errors import ConfigError


class Inner(Settings):
    iterations: int = Field(20, ge=1, le=1000)
    tolerance: float = Field(0.01, gt=0)


class Outer(Settings):
    seed: int = 0
    inner: Inner = Inner()


def test_the_order_is_defaults_file_assignment(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text("seed = 3\n[inner]\niterations = 7\n")
    config = resolve(Outer, file, ["inner.iterations=9"])
    assert (config.seed, config.inner.iterations, config.inner.tolerance) == (3, 9, 0.01)


def test_settings_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        Outer().seed = 2


@pytest.mark.parametrize(
    ("text", "value"),
    [("3", 3), ("0.5", 0.5), ("true", True), ('"a b"', "a b"), ("map", "map"), ("[1, 2]", [1, 2])],
)
def test_an_assignment_is_toml_or_a_bare_word(text, value):
    assert parse_assignment(f"a.b={text}") == (("a", "b"), value)


def test_override_leaves_the_tree_alone():
    tree = {"inner": {"iterations": 1}}
    assert override(tree, ["inner.iterations=2"])["inner"]["iterations"] == 2
    assert tree == {"inner": {"iterations": 1}}


@pytest.mark.parametrize(
    ("tree", "hint"),
    [
        ({"sede": 1}, "did you mean 'seed'"),
        ({"inner": {"itertions": 1}}, "did you mean 'iterations'"),
        ({"zzz": 1}, "known: seed, inner"),
    ],
)
def test_an_unknown_key_gets_the_nearest_name(tree, hint):
    with pytest.raises(ConfigError, match=hint):
        build(Outer, tree)


@pytest.mark.parametrize("value", [True, "3", 3.0, None, [3]])
def test_an_integer_is_an_integer_B105(value):
    with pytest.raises(ConfigError, match="seed"):
        build(Outer, {"seed": value})


def test_a_value_of_no_kind_is_told_every_kind_it_may_be():
    class Either(Settings):
        keep: Literal["all"] | Annotated[int, Field(ge=1)] = "all"

    with pytest.raises(ConfigError, match=r"^keep: .*'all' or .*greater than or equal to 1.* 0$"):
        build(Either, {"keep": 0})


@pytest.mark.parametrize("text", ["a = nan", "a = inf", "a = 1e400"])
def test_the_parser_lets_through_what_the_model_refuses_B104(tmp_path, text):
    file = tmp_path / "c.toml"
    file.write_text(f"[inner]\n{text.replace('a', 'tolerance', 1)}")
    with pytest.raises(ConfigError, match="finite"):
        resolve(Outer, file)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused_F40(tmp_path_factory, data):
    file = tmp_path_factory.mktemp("fuzz") / "c.toml"
    file.write_bytes(data)
    try:
        assert isinstance(load_toml(file), dict)
    except ConfigError as error:
        assert error.exit_code == 2
