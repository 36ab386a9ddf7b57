"""All that has a name, known without loading torch: what ``sparsync list`` shows, and what finds typos at once.

`catalogue.json` says what the registries and settings said when it was written (``make golden``); a test holds it equal
to them.
"""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from pydantic.fields import FieldInfo

from sparsync.spec import Entry, Parameter, Registry, default_text, unknown

Kinds = Mapping[str, Registry[Any]]
"""Registries by the title under which their names are listed."""

_TYPES = {"bool": bool, "int": int, "float": float, "str": str}


@dataclass(frozen=True)
class Recorded(Entry[Any]):
    """An entry as the catalogue has it: described, and its parameters checked by type, but nothing that builds it."""

    record: Mapping[str, Any]

    @property
    def text(self) -> str:
        """The docstring up to the first of its sections."""
        return str(self.record["text"])

    @property
    def parameters(self) -> list[Parameter]:
        """What a user may set."""
        return [_parameter(one) for one in self.record["parameters"]]

    @property
    def meanings(self) -> dict[str, str]:
        """What the docstring says of each parameter."""
        return {one["name"]: one["meaning"] for one in self.record["parameters"] if one["meaning"]}


def written(kinds: Kinds, tables: Mapping[str, Entry[Any]]) -> dict[str, Any]:
    """Return the catalogue of registries, and of the tables of an experiment file.

    Parameters
    ----------
    kinds : mapping of str to Registry
        Registries by title.
    tables : mapping of str to Entry
        What defines the keys of each table; of the file itself under ``""``.
    """
    return {
        "settings": {name: _record(entry)["parameters"] for name, entry in tables.items()},
        "kinds": {
            title: {"kind": registry.kind, "entries": {name: _record(one) for name, one in registry.entries.items()}}
            for title, registry in kinds.items()
        },
    }


def _record(entry: Entry[Any]) -> dict[str, Any]:
    meanings = entry.meanings
    parameters = [
        {
            "name": one.name,
            "type": _type_name(one.annotation),
            "default": None if one.required else default_text(one.default),
            "required": one.required,
            "meaning": meanings.get(one.name, ""),
        }
        for one in entry.parameters
    ]
    return {"text": entry.text, "parameters": parameters}


def _type_name(annotation: Any) -> str:
    """Return the name of a plain type, with ``?`` if it may be None; empty for all others, which are not checked."""
    if typing.get_origin(annotation) is typing.Annotated:
        annotation, *metadata = typing.get_args(annotation)
        return _type_name(annotation) if all(isinstance(one, FieldInfo) for one in metadata) else ""
    members = typing.get_args(annotation) if typing.get_origin(annotation) in (typing.Union, types.UnionType) else ()
    if len(members) == 2 and members[1] is type(None):
        inner = _type_name(members[0])
        return inner and f"{inner}?"
    return next((name for name, plain in _TYPES.items() if annotation is plain), "")


def _parameter(record: Mapping[str, Any]) -> Parameter:
    annotation = _annotation(record["type"])
    return Parameter(record["name"], annotation, record["default"], record["required"], record["meaning"])


def _annotation(name: str) -> Any:
    plain = _TYPES.get(name.removesuffix("?"))
    return Any if plain is None else plain | None if name.endswith("?") else plain


@cache
def _read() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(files("sparsync").joinpath("catalogue.json").read_text("utf-8"))
    return found


def settings() -> dict[str, dict[str, Parameter]]:
    """Return the keys of an experiment file by table, its own under ``""``."""
    return {table: {one["name"]: _parameter(one) for one in records} for table, records in _read()["settings"].items()}


@cache
def kinds() -> dict[str, Registry[Any]]:
    """Return registries, by title, that describe and check all that sparsync brings along, but build nothing."""
    found: dict[str, Registry[Any]] = {}
    for title, section in _read()["kinds"].items():
        registry = found[title] = Registry(section["kind"])
        for name, record in section["entries"].items():
            registry.entries[name] = Recorded(name, _nothing, record)
    return found


_nothing: Callable[..., Any] = dict  # what resolving a recorded entry would build


def listed(kinds: Kinds) -> str:
    """Return every name with its parameters and summary, one a line, kind by kind."""
    lines = []
    for title, registry in kinds.items():
        lines += ["", title, *(_line(entry) for _, entry in sorted(registry.entries.items()))]
    return "\n".join(lines)


def described(kinds: Kinds, name: str) -> str:
    """Return all that is known of a name, of whatever kind it is.

    Raises
    ------
    UsageError
        If nothing is called so.
    """
    found = [(registry.kind, registry[name]) for registry in kinds.values() if name in registry.entries]
    if not found:
        raise unknown("name", name, sorted({one for registry in kinds.values() for one in registry.entries}))
    return "\n\n".join(_whole(kind, entry) for kind, entry in found)


def _line(entry: Entry[Any]) -> str:
    parameters = ", ".join(str(parameter) for parameter in entry.parameters)
    return f"  {entry.name}{f': {parameters}' if parameters else ''}  {entry.summary}"


def _whole(kind: str, entry: Entry[Any]) -> str:
    lines, meanings = [f"{kind} {entry.name}", "", entry.text], entry.meanings
    for parameter in entry.parameters:
        lines += ["", f"  {parameter}", f"      {meanings.get(parameter.name, 'see above')}"]
    return "\n".join(lines)
