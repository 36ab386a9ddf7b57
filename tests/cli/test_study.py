from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sparsync import study
from sparsync.errors import UsageError
from sparsync.experiment import build
from sparsync.settings import variants as variants_of

BASE: dict[str, Any] = {
    "model": "logistic",
    "workers": 4,
    "steps": 4,
    "eval_every": 4,
    "processes": 1,
    "federation": {"rounds": 2, "cohort": 2, "epochs": 1},
    "strategies": {"fedavg": "fedavg"},
}
TWO = {
    **BASE,
    "variants": {
        "iid": {"partition": "iid"},
        "skewed": {"partition": "dirichlet:alpha=0.3", "federation": {"rounds": 3}, "strategies": ["synchronous"]},
    },
}


def test_a_variant_replaces_settings_and_merges_the_federation() -> None:
    made = variants_of(TWO)
    assert made is not None
    assert list(made) == ["iid", "skewed"]
    assert made["iid"] == {**BASE, "partition": "iid"}
    assert made["skewed"]["federation"] == {"rounds": 3, "cohort": 2, "epochs": 1}
    assert made["skewed"]["strategies"] == ["synchronous"]
    assert variants_of(BASE) is None


def test_a_variant_merges_the_profile_key_by_key(tmp_path: Path) -> None:
    outages = [{"worker": 3, "at": 1.0}]
    made = variants_of(
        {
            **BASE,
            "profile": {"preset": "iot", "latency": 0.5, "outages": [{"worker": 0, "at": 2.0}]},
            "variants": {"same": {}, "own": {"profile": {"power": "4:2:2:1", "latency": 0.1, "outages": outages}}},
        }
    )
    assert made is not None
    same, own = (build(settings).profile for settings in made.values())
    assert (same.preset, same.latency, same.power, same.outages[0].worker) == ("iot", 0.5, None, 0)
    assert (own.preset, own.latency, own.power, own.outages[0].worker) == ("iot", 0.1, "4:2:2:1", 3)
    assert own.spread == 0.1  # the preset's


def test_a_variant_whose_table_is_none_is_refused_like_any_other() -> None:
    made = variants_of({**BASE, "variants": {"odd": {"federation": 3}}})
    assert made is not None
    with pytest.raises(UsageError, match="federation: Input should be a dictionary"):
        build(made["odd"])


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ([], "variants: expected tables"),
        ({}, "variants: expected tables"),
        ({"a": 3}, "variants: expected tables"),
        ({"../a": {}}, "no name for a folder"),
    ],
)
def test_bad_variants(given: Any, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        variants_of({**BASE, "variants": given}, "file.toml")


def test_a_study_runs_every_variant_in_its_folder_and_resumes(tmp_path: Path) -> None:
    settings = variants_of(TWO)
    assert settings is not None
    folder = tmp_path / "study"
    runs = study.compare(settings, folder)
    first, summary = next(runs)  # interrupted after the first one
    runs.close()
    assert first == folder / "iid"
    assert summary["results"][0]["rounds"] == 2
    assert study.parts(folder) == [folder / "iid"]
    written = (folder / "iid" / "summary.json").stat().st_mtime_ns
    done = dict(study.resume(folder))
    assert list(done) == [folder / "iid", folder / "skewed"]
    assert done[folder / "skewed"]["results"][0]["syncs"] == 4
    assert (folder / "iid" / "summary.json").stat().st_mtime_ns == written  # complete ones are only read
    with pytest.raises(UsageError, match="already holds a study"):
        list(study.compare(settings, folder))
    assert study.parts(tmp_path) is None


def test_a_wrong_variant_stops_the_study_before_anything_has_run(tmp_path: Path) -> None:
    settings = variants_of({**BASE, "variants": {"good": {}, "bad": {"model": "nothing", "stepz": 3}}})
    assert settings is not None
    with pytest.raises(UsageError, match=r"variant bad: .*stepz"):
        list(study.compare(settings, tmp_path / "study"))
    assert not (tmp_path / "study").exists()


def test_the_file_of_a_study_holds_every_variant_resolved(tmp_path: Path) -> None:
    settings = variants_of(TWO)
    assert settings is not None
    list(study.compare(settings, tmp_path))
    assert json.loads((tmp_path / "study.json").read_text()) == settings
