"""A user's own modules and functions: whatever they raise is one line that names them and what was raised."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sparsync import UsageError, from_arrays
from sparsync.experiment import build
from sparsync.task import Dataset, build_model, load_dataset

BROKEN = {
    "raises": ("1 / 0", "ZeroDivisionError"),
    "is_no_python": ("def f(:", "SyntaxError"),
    "stops": ("import sys; sys.exit(0)", "SystemExit"),
    "stops_in_silence": ("raise SystemExit", "SystemExit"),
    "says_much": ("raise RuntimeError('first\\nsecond')", "RuntimeError: first"),
    "lacks_a_name": ("from math import no_such_name", "no_such_name"),
    "lacks_a_module": ("import surely_not_installed", "surely_not_installed"),
    "is_deep": ("def f(): f()\nf()", "RecursionError"),
    "holds_a_nul": ("\0", "SyntaxError"),
}

DOORS: list[Callable[[str], object]] = [
    lambda name: load_dataset(f"{name}:make"),
    lambda name: build_model(f"{name}:make", (3,), 2),
    lambda name: build({"imports": [name]}),
]


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("name", BROKEN)
def test_a_module_that_cannot_be_imported(
    name: str, door: Callable[[str], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, raised = BROKEN[name]
    (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UsageError) as caught:
        door(name)
    said = str(caught.value)
    assert repr(name) in said
    assert raised in said
    assert "\n" not in said


@pytest.mark.parametrize("name", ["", ".relative", "...", "no.such.module.anywhere"])
def test_an_impossible_module_name(name: str) -> None:
    with pytest.raises(UsageError, match="cannot import"):
        build({"imports": [name]})


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of functions that raise."""
    (tmp_path / "functions_that_raise.py").write_text(
        "import sys\ndef divide(): 1 / 0\ndef read(): open('nowhere/at/all')\ndef stop(): sys.exit(3)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return "functions_that_raise"


@pytest.mark.parametrize(
    ("function", "raised", "line"),
    [("divide", "ZeroDivisionError", 2), ("read", "FileNotFoundError", 3), ("stop", "SystemExit: 3", 4)],
)
@pytest.mark.parametrize("door", [load_dataset, lambda spec: build_model(spec, (3,), 2)])
def test_a_function_that_raises_is_named_with_the_line(
    door: Callable[[str], object], own: str, function: str, raised: str, line: int
) -> None:
    with pytest.raises(UsageError, match=rf"'{own}:{function}'.*{raised}.*{own}\.py:{line}"):
        door(f"{own}:{function}")


def toys(name: object) -> Dataset:
    x = np.eye(2, dtype=np.float32)
    return from_arrays(x, [0, 1], x, [0, 1], name=str(name))


def of_nothing() -> Dataset:
    return toys("nothing")


def of_the_root(root: Path | None) -> Dataset:
    return toys(root)


def of_a_root_with_default(root: object = "own") -> Dataset:
    return toys(root)


def of_anything(*roots: object) -> Dataset:
    return toys(roots[0] if roots else "nothing")


def of_two(root: Path, other: int) -> Dataset:
    return toys(root)


def of_a_keyword(*, size: int) -> Dataset:
    return toys(size)


class OfNothing:
    """Not a function, but it is called like one."""

    def __new__(cls) -> Dataset:  # type: ignore[misc]
        return toys("nothing")


@pytest.mark.parametrize(
    ("function", "without", "within"),
    [
        ("of_nothing", "nothing", "nothing"),
        ("of_the_root", "None", "here"),
        ("of_a_root_with_default", "own", "here"),
        ("of_anything", "nothing", "here"),
        ("OfNothing", "nothing", "nothing"),
    ],
)
def test_data_functions_are_called_with_what_they_take(function: str, without: str, within: str) -> None:
    assert load_dataset(f"{__name__}:{function}").name == without
    assert load_dataset(f"{__name__}:{function}", "here").name == within


@pytest.mark.parametrize("function", ["of_two", "of_a_keyword"])
def test_data_functions_that_want_more_are_refused(function: str) -> None:
    with pytest.raises(UsageError, match=f"{function}'.*data root, or of nothing"):
        load_dataset(f"{__name__}:{function}", "here")
