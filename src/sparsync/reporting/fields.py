"""Values out of JSON files, checked: what is not as it should be is one error that names the place."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeGuard

from sparsync.errors import DataError
from sparsync.storage import read_bytes, reading

__all__ = [
    "UNITS",
    "as_int",
    "as_number",
    "as_object",
    "counted",
    "damaged",
    "is_int",
    "is_number",
    "read_json",
    "read_lines",
    "show",
]

UNITS = ("syncs", "rounds", "epochs")
"""What runs count: averagings of peers, rounds of federations, epochs of split learning."""


def read_lines(file: Path) -> Iterator[tuple[int, bytes]]:
    """Go through a file's lines with their numbers, from 1, or say why it cannot be read."""
    try:
        with reading(file) as lines:
            yield from enumerate(lines, 1)
    except OSError as problem:
        raise _unreadable(file, problem) from problem


def read_json(file: Path) -> Any:
    """Return what a JSON file holds."""
    try:
        return json.loads(read_bytes(file))
    except OSError as problem:
        raise _unreadable(file, problem) from problem
    except (ValueError, RecursionError) as problem:
        raise damaged(file.name, "not JSON") from problem


def as_object(value: Any, where: str) -> dict[str, Any]:
    """Return a value that must be an object."""
    if not isinstance(value, dict):
        raise damaged(where, f"{show(value)} where an object was expected")
    return value


def as_int(value: Any, name: str, where: str) -> int:
    """Return a value that must be a whole number."""
    if not is_int(value):
        raise damaged(where, f"{name} is {show(value)}, expected an integer")
    return value


def as_number(entry: Mapping[str, Any], key: str, where: str) -> float | None:
    """Return an entry's number, or None where it is missing or null."""
    value = entry.get(key)
    if value is None:
        return None
    if not is_number(value):
        raise damaged(where, f"{key} is {show(value)}, expected a number")
    return float(value)


def counted(entry: Mapping[str, Any]) -> str | None:
    """Return what an entry counts, one of `UNITS`, or None where it does not say."""
    return next((unit for unit in UNITS if entry.get(unit) is not None), None)


def damaged(where: str, what: str) -> DataError:
    """Return the error for a file that no run has written like this."""
    return DataError(f"{where}: {what}; the file is damaged or was edited, so run `sparsync compare` again.")


def _unreadable(file: Path, problem: OSError) -> DataError:
    return DataError(f"{file} cannot be read ({problem.strerror}); it must be a file that is yours to read.")


def show(value: Any) -> str:
    """Write a value for an error message, not longer than it helps."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def is_int(value: Any) -> TypeGuard[int]:
    """Whether a value is a whole number of 64 bits, and not a truth value."""
    return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value is a number, and not a truth value."""
    return isinstance(value, float) or is_int(value)
