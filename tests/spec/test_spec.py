from __future__ import annotations

from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from sparsync.errors import SparsyncError, UsageError
from sparsync.spec import Registry, Spec, config, parse


@pytest.mark.parametrize(
    ("text", "name", "parameters"),
    [
        ("fda", "fda", {}),
        ("fda:threshold=2", "fda", {"threshold": "2"}),
        ("  fda : threshold = 2 , monitor = sketch ", "fda", {"threshold": "2", "monitor": "sketch"}),
        ("a:x=(1,2),y=((3,4),5)", "a", {"x": "(1,2)", "y": "((3,4),5)"}),
        ("a:x=b=c", "a", {"x": "b=c"}),
        ("a:x=b:c", "a", {"x": "b:c"}),
        ("a:x=-1e-3", "a", {"x": "-1e-3"}),
    ],
)
def test_parse(text: str, name: str, parameters: dict[str, str]) -> None:
    assert parse(text) == Spec(name, parameters)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "spec '': the name is missing; expected name:key=value,key=value"),
        ("   ", "the name is missing"),
        (":x=1", "spec ':x=1': the name is missing"),
        ("a:", "spec 'a:': expected name:key=value,key=value, but '' is no key=value"),
        ("a:x", "but 'x' is no key=value"),
        ("a:x=", "but 'x=' is no key=value"),
        ("a:=1", "but '=1' is no key=value"),
        ("a:x=1,", "but '' is no key=value"),
        ("a:x=1,,y=2", "but '' is no key=value"),
        ("a:x=1,x=2", "spec 'a:x=1,x=2': x is given twice; keep one"),
    ],
)
def test_bad_specs(text: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert says in str(caught.value)


@given(st.text(alphabet="ab:=,() \n", max_size=15) | st.text(max_size=15))
def test_any_text_is_a_spec_or_a_usage_error(text: str) -> None:
    try:
        spec = parse(text)
    except UsageError:
        return
    assert spec.name == spec.name.strip() != ""
    assert parse(str(spec)) == spec  # what is shown can be typed again


FRUIT: Registry[object] = Registry("fruit")


@FRUIT.register("apple")
@config
class Apple:
    """A round fruit.

    And more about it.
    """

    size: float = Field(gt=0, allow_inf_nan=False)
    kind: Literal["red", "green"] = "red"
    worms: int | None = None


@FRUIT.register("pear")
def pear(weight: float, *, ripe: bool = False, days: Annotated[int, Field(ge=1)] = 3) -> tuple[float, bool, int]:
    """A fruit of some weight."""
    return weight, ripe, days


def test_build_from_text() -> None:
    assert FRUIT.build("apple:size=2,kind=green,worms=4") == Apple(size=2.0, kind="green", worms=4)
    assert FRUIT.build("apple:size=1e1,worms=none") == Apple(size=10)
    assert FRUIT.build(Spec("apple", {"size": "3"})) == Apple(size=3)
    assert FRUIT.build("pear", 1.5) == (1.5, False, 3)
    assert FRUIT.build("pear:ripe=true,days=4", 1.5) == (1.5, True, 4)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("aple", "unknown fruit 'aple': did you mean 'apple'? choose one of apple, pear"),
        ("xyz", "unknown fruit 'xyz': choose one of apple, pear"),
        ("Apple:size=1", "unknown fruit 'Apple': did you mean 'apple'? choose one of apple, pear"),
        ("apple", "fruit 'apple': size: Field required"),
        ("apple:size=0", "fruit 'apple': size: Input should be greater than 0, got '0'"),
        ("apple:size=nan", "fruit 'apple': size: Input should be a finite number, got 'nan'"),
        ("apple:size=big", "size: Input should be a valid number, unable to parse string as a number, got 'big'"),
        ("apple:size=none", "size: Input should be a valid number, got None"),
        ("apple:size=1,kind=blue", "kind: Input should be 'red' or 'green', got 'blue'"),
        ("apple:size=0,kind=blue", "size: Input should be greater than 0, got '0'; kind: Input should be 'red' or"),
        ("apple:size=1,worms=1.5", "worms: Input should be a valid integer"),
        ("apple:colour=red", "fruit 'apple' has no parameter 'colour': its parameters are size, kind, worms"),
        ("pear:days=0", "fruit 'pear': days: Input should be greater than or equal to 1, got '0'"),
        ("pear:ripe=perhaps", "ripe: Input should be a valid boolean"),
        ("pear:weight=2", "fruit 'pear' has no parameter 'weight': its parameters are ripe, days"),
    ],
)
def test_bad_builds(text: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        FRUIT.build(text, *([1.0] if text.startswith("pear") else []))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_entries_describe_themselves() -> None:
    apple, pear = FRUIT["apple"], FRUIT["pear"]
    assert apple.summary == "A round fruit."
    assert [str(parameter) for parameter in apple.parameters] == ["size (required)", "kind=red", "worms=none"]
    assert [str(parameter) for parameter in pear.parameters] == ["ripe=False", "days=3"]


def test_names_are_taken_once() -> None:
    registry: Registry[object] = Registry("fruit")
    registry.register("apple")(Apple)
    with pytest.raises(ValueError, match="fruit 'apple' is registered twice"):
        registry.register("apple")(Apple)


def test_configs_are_frozen_and_take_keywords_only() -> None:
    apple = Apple(size=1)
    with pytest.raises(UsageError, match="size cannot be changed"):
        apple.size = 2  # type: ignore[misc]
    with pytest.raises(Exception, match="positional"):  # FDA(2.0) must not be a cadence, nor a threshold
        Apple(1)  # type: ignore[misc]
    with pytest.raises(Exception, match="nexpected keyword"):
        Apple(size=1, colour="red")  # type: ignore[call-arg]


def test_a_users_mistake_is_a_value_error_and_one_of_ours() -> None:
    assert issubclass(UsageError, ValueError)
    assert issubclass(UsageError, SparsyncError)
