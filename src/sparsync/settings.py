"""An experiment file as it is written: read, its variants, the code that it names, and its typos, without torch."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sparsync import catalogue
from sparsync.errors import UsageError
from sparsync.spec import is_code, shown, unknown
from sparsync.storage import reading

_MOST_BYTES = 1 << 24  # of an experiment file
_MERGED = ("federation", "split", "profile")
_INSTEAD = {"cohort": "participation", "participation": "cohort", "epochs": "steps", "steps": "epochs"}
_KINDS = {
    "data": "datasets",
    "model": "models",
    "partition": "partitions",
    "optimizer": "optimizers",
    "schedule": "schedules",
    "delays": "delays",
}


def read(path: Path) -> dict[str, Any]:
    """Settings of an experiment file.

    Raises
    ------
    UsageError
        If there is no such file, or it is not TOML.
    """
    try:
        with reading(path) as file:
            text = file.read(_MOST_BYTES + 1)
        if len(text) > _MOST_BYTES:
            raise UsageError(f"{path}: more than {_MOST_BYTES >> 20} MiB; give the path of an experiment file (TOML)")
        return tomllib.loads(text.decode())
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}; give the path of an experiment file (TOML)") from None
    except UsageError:
        raise
    except ValueError as error:  # no TOML, no UTF-8, or a number of thousands of digits
        raise UsageError(f"{path}: not valid TOML: {str(error).partition(';')[0]}") from None
    except RecursionError:
        raise UsageError(f"{path}: not valid TOML: nested too deeply") from None


def variants(settings: Mapping[str, Any], source: str = "") -> dict[str, dict[str, Any]] | None:
    """Settings of every variant that an experiment file describes; None if it describes none.

    Raises
    ------
    UsageError
        If variants are not tables, or a name is none for a folder.
    """
    if "variants" not in settings:
        return None
    where = f"{source}: " if source else ""
    given = settings["variants"]
    if not isinstance(given, Mapping) or not given or not all(isinstance(own, Mapping) for own in given.values()):
        raise UsageError(f"{where}variants: expected tables, as in [variants.iid], with what differs from the rest")
    base = {key: value for key, value in settings.items() if key != "variants"}
    made = {}
    for name, own in given.items():
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise UsageError(f"{where}variants: {name!r} is no name for a folder; use letters, digits and . _ -")
        made[name] = {**base, **own}
        for table in _MERGED:
            if isinstance(base.get(table), Mapping) and isinstance(own.get(table), Mapping):
                made[name][table] = {**base[table], **own[table]}
    return made


def assigned(text: str) -> tuple[str, str, Any]:
    """Take ``KEY=VALUE`` apart, with a key such as ``steps`` or ``split.epochs``.

    Returns
    -------
    table, key : str
        The table is ``""`` for a key of the file itself.
    value : Any
        As TOML says, or else the text.

    Raises
    ------
    UsageError
        If there is no such key.
    """
    name, equals, value = text.partition("=")
    *outer, key = name.strip().split(".")
    table = ".".join(outer)
    if not equals:
        raise UsageError(f"--set {shown(text)}: expected KEY=VALUE, as in split.epochs=5")
    keys = catalogue.settings()
    if table not in keys:
        raise UsageError(f"--set {shown(text)}: {unknown('table', table, [name for name in keys if name])}")
    if key not in keys[table] or (not table and key in keys):
        valid = [name for name in keys[table] if table or name not in keys]
        raise UsageError(f"--set {shown(text)}: {unknown(f'[{table}] key' if table else 'key', key, valid)}")
    try:
        parsed = tomllib.loads(f"value = {value}")
    except (ValueError, RecursionError):  # no TOML, or a number of thousands of digits; nested too deeply
        parsed = {}
    return table, key, parsed["value"] if parsed.keys() == {"value"} else value.strip()


def override(settings: dict[str, Any], values: Mapping[tuple[str, str], Any]) -> None:
    """Replace settings by others, given by table and key, and drop what the file says instead of one of them."""
    for name in {table for table, _ in values if table}:
        table = settings.get(name, {})
        if isinstance(table, Mapping):
            dropped = {_INSTEAD.get(key) for place, key in values if place == name} if name == "federation" else set()
            settings[name] = {key: value for key, value in table.items() if key not in dropped}
    for (name, key), value in values.items():
        table = settings[name] if name else settings
        if isinstance(table, dict):
            table[key] = value


def split_label(text: str) -> tuple[str, str]:
    """``label=spec`` or just ``spec``, which is then its own label."""
    head, equals, rest = text.partition("=")
    if equals and ":" not in head:
        return head.strip(), rest.strip()
    return text.strip(), text.strip()


def code(settings: Mapping[str, Any]) -> list[str]:
    """Name the Python code that settings have imported and run, before they do: ``data 'os:system'``."""
    kinds = catalogue.kinds()
    named = [
        f"{key} {text!r}"
        for key in ("data", "model")
        if isinstance(text := settings.get(key), str) and is_code(text, kinds[_KINDS[key]])
    ]
    imports = settings.get("imports")
    return named + [f"imports {name!r}" for name in (imports if isinstance(imports, list) else [])]


def check(settings: Mapping[str, Any], source: str = "") -> None:
    """Refuse keys, names, parameters and plain values that cannot be; an `Experiment` is checked in full.

    Names are passed over where `imports` may register others.

    Raises
    ------
    UsageError
        Naming the first of them.
    """
    try:
        for table, keys in catalogue.settings().items():
            given = settings.get(table, {}) if table else settings
            for key in given if isinstance(given, Mapping) else ():
                if key not in keys:
                    raise unknown(f"[{table}] key" if table else "key", str(key), sorted(keys))
        if not settings.get("imports"):
            for table, title, text in _specs(settings):
                try:
                    catalogue.kinds()[title].resolve(text)
                except UsageError as error:
                    raise UsageError(f"{table}: {error}" if table else str(error)) from None
    except UsageError as error:
        raise UsageError(f"{source}: {error}" if source else str(error)) from None


def _specs(settings: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Every spec in the settings, but those of code, with its table and the title of its kind."""
    for name in ("", *_MERGED):
        table = settings.get(name) if name else settings
        for key, title in _KINDS.items():
            text = table.get(key) if isinstance(table, Mapping) else None
            code = key in ("data", "model") and isinstance(text, str) and is_code(text, catalogue.kinds()[title])
            if isinstance(text, str) and not code:
                yield name, title, text
    strategies = settings.get("strategies")
    if isinstance(strategies, list):
        strategies = dict(split_label(text) for text in strategies if isinstance(text, str))
    for text in strategies.values() if isinstance(strategies, Mapping) else ():
        if isinstance(text, str):
            yield "", "strategies", text
