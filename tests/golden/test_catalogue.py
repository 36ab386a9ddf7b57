"""What `sparsync list` shows without loading torch is what the registries say."""

from __future__ import annotations

import json
import os
from pathlib import Path

import sparsync
from sparsync import catalogue
from sparsync.experiment import keys
from sparsync.registries import KINDS
from sparsync.spec import Registry

FILE = Path(sparsync.__file__).with_name("catalogue.json")


def own(registry: Registry[object]) -> Registry[object]:
    """What sparsync itself registers: other tests add names of their own."""
    kept: Registry[object] = Registry(registry.kind)
    kept.entries = {
        name: one for name, one in sorted(registry.entries.items()) if one.factory.__module__.startswith("sparsync.")
    }
    return kept


def test_the_catalogue_is_what_the_registries_say() -> None:
    found = catalogue.written({title: own(registry) for title, registry in KINDS.items()}, keys())
    if os.environ.get("SPARSYNC_WRITE_GOLDEN"):
        FILE.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    assert json.loads(FILE.read_text("utf-8")) == found


def test_both_are_listed_alike() -> None:
    kinds = {title: own(registry) for title, registry in KINDS.items()}
    assert catalogue.listed(catalogue.kinds()) == catalogue.listed(kinds)
    for registry in kinds.values():
        for name in registry.entries:
            assert catalogue.described(catalogue.kinds(), name) == catalogue.described(kinds, name)
