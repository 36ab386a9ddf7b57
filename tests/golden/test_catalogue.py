"""What `sparsync list` shows without loading torch is what the registries say."""

from __future__ import annotations

import json
import os
import re
import tomllib
from pathlib import Path

import sparsync
from sparsync import catalogue
from sparsync.experiment import tables
from sparsync.registries import KINDS
from sparsync.spec import Registry

FILE = Path(sparsync.__file__).with_name("catalogue.json")
PAGE = Path(__file__).parents[2] / "docs/experiments.md"


def own(registry: Registry[object]) -> Registry[object]:
    """What sparsync itself registers: other tests add names of their own."""
    kept: Registry[object] = Registry(registry.kind)
    kept.entries = {
        name: one for name, one in sorted(registry.entries.items()) if one.factory.__module__.startswith("sparsync.")
    }
    return kept


def test_the_catalogue_is_what_the_registries_say() -> None:
    found = catalogue.written({title: own(registry) for title, registry in KINDS.items()}, tables())
    if os.environ.get("SPARSYNC_WRITE_GOLDEN"):
        FILE.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    assert json.loads(FILE.read_text("utf-8")) == found


def test_both_are_listed_alike() -> None:
    kinds = {title: own(registry) for title, registry in KINDS.items()}
    assert catalogue.listed(catalogue.kinds()) == catalogue.listed(kinds)
    for registry in kinds.values():
        for name in registry.entries:
            assert catalogue.described(catalogue.kinds(), name) == catalogue.described(kinds, name)


def toml(text: str) -> str:
    """Return a default as an experiment file has it: texts in quotes."""
    plain = {"True": "true", "False": "false"}.get(text, text)
    try:
        tomllib.loads(f"value = {plain}")
    except tomllib.TOMLDecodeError:
        return plain if plain == "none" else f'`"{plain}"`'
    return plain


def rows(table: str) -> str:
    """Return a table of the documentation, in Markdown: what the settings say of themselves."""
    lines = ["| key | default | meaning |", "|---|---|---|"]
    for key, setting in catalogue.settings()[table].items():
        meaning = re.sub(r"`+", "`", setting.meaning).replace("|", r"\\|")
        told = "Default: " in meaning or key in catalogue.settings()
        lines.append(f"| `{key}` | {'see there' if told else toml(setting.default)} | {meaning} |")
    return "\n".join(lines)


def test_the_documentation_has_all_settings() -> None:
    page = PAGE.read_text("utf-8")
    for table in catalogue.settings():
        begin, end = f"<!-- settings: {table or 'file'} -->\n", "\n<!-- end of settings -->"
        before, found, after = page.partition(begin)
        assert found, f"{PAGE.name} has no place for the table {table!r}"
        inside, _, after = after.partition(end)
        if os.environ.get("SPARSYNC_WRITE_GOLDEN"):
            page = f"{before}{begin}{rows(table)}{end}{after}"
            PAGE.write_text(page, encoding="utf-8")
        else:
            assert inside == rows(table), f"{PAGE.name}: {table}"
