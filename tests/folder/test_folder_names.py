"""Labels: kept apart in files and figures, or refused before anything runs."""

from __future__ import annotations

import tomllib
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_runs import SETTING, small

from sparsync import comparison, reporting, study
from sparsync.errors import UsageError
from sparsync.experiment import build, to_toml
from sparsync.reporting.figures.pieces import drawn_names
from sparsync.settings import read
from sparsync.settings import variants as variants_of
from sparsync.storage import file_name

TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=400)


@settings(deadline=None, max_examples=50)
@given(st.sets(TEXTS, min_size=2, max_size=20))
def test_no_two_texts_share_a_file(labels: set[str]) -> None:
    """Not where case does not count, nor where files are normalised; every file system takes the names."""
    names = [file_name(label) for label in labels]
    assert len({unicodedata.normalize("NFD", name).casefold() for name in names}) == len(labels)
    for name in names:
        assert name.isascii()
        assert "/" not in name
        assert name not in ("", ".", "..")
        assert len(name) <= 100


@pytest.mark.parametrize("label", ["fedavg", "fda-t2", "a_b.c=3", "x" * 100])
def test_plain_labels_are_their_own_names(label: str) -> None:
    assert file_name(label) == label


@pytest.mark.parametrize(
    "labels",
    [
        ("α", "β"),
        ("a b", "a-b"),
        ("a:b", "a,b"),
        ("A", "a"),
        ("x" * 300, "x" * 301),
        ("../a", "a"),
        ("..", "."),
        ("🐙", "🦑"),
    ],
)
def test_every_label_has_its_own_model(tmp_path: Path, labels: tuple[str, ...]) -> None:
    summary = comparison.compare(small(steps=2, strategies=dict.fromkeys(labels, "synchronous")), tmp_path / "run")
    assert [one["label"] for one in summary["results"]] == list(labels)
    assert len(list((tmp_path / "run" / "models").iterdir())) == len(labels)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    run = reporting.load(tmp_path / "run")
    assert run.labels == labels
    assert len(set(drawn_names(run.labels).values())) == len(labels)
    assert read(tmp_path / "run" / "experiment.toml")["strategies"] == dict.fromkeys(labels, "synchronous")


@pytest.mark.parametrize(
    "label", ["", " ", "a\nb", "a\tb", "a\0b", "\x1b[31m", "a\u2028b", "a\u0085b", "\udc80", "a\u202eb", "\u2066a"]
)
def test_labels_that_cannot_be_shown_are_refused(label: str) -> None:
    with pytest.raises(UsageError, match=r"label|unicode") as refused:
        small(strategies={label: "synchronous"})
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("pair", [("é", "e\u0301"), ("a", "a "), ("ab", "a\u200bb"), ("a b", "a  b")])
def test_labels_that_look_alike_are_refused(pair: tuple[str, str]) -> None:
    with pytest.raises(UsageError, match="look alike"):
        small(strategies=dict.fromkeys(pair, "synchronous"))


@settings(deadline=None, max_examples=25)
@given(st.dictionaries(TEXTS, st.just("synchronous"), min_size=1, max_size=4))
def test_every_label_that_is_let_in_can_be_read_back(labels: dict[str, str]) -> None:
    try:
        made = build({**SETTING, "strategies": labels})
    except UsageError:
        return
    again = build(tomllib.loads(to_toml(made)))
    assert again.strategies == labels
    assert again.fingerprint == made.fingerprint


def test_variants_that_differ_in_case_have_two_folders(tmp_path: Path) -> None:
    variants = variants_of({**SETTING, "steps": 2, "variants": {"iid": {}, "IID": {}, "x" * 300: {}}})
    assert variants is not None
    folders = [folder for folder, _ in study.compare(variants, tmp_path / "study")]
    assert len({folder.name.casefold() for folder in folders}) == 3
    assert study.parts(tmp_path / "study") == folders
