"""Figures: that they draw without a warning, what they contain, and when there are none."""

from __future__ import annotations

import json
import subprocess
import sys

import matplotlib
import numpy as np
import pytest
from made_runs import figure_of, texts

from sparsync.reporting import FIGURES, draw, load
from sparsync.reporting.figures import svg
from sparsync.reporting.figures.cadence import round_lengths
from sparsync.reporting.figures.canvas import INK, SOFT
from sparsync.reporting.figures.curves import Curve, condensed, over_seeds
from sparsync.reporting.figures.partition import PARTITION
from sparsync.reporting.figures.pieces import plain_number
from sparsync.reporting.figures.variance import thinned
from sparsync.reporting.history import (
    CycleRecords,
    Evaluations,
    History,
    LDSSchedules,
    RoundRecords,
    SplitSteps,
    TimelineRecord,
    VarianceChecks,
)
from sparsync.reporting.palette import looks, short_names

NAMES = [plot.name for plot in FIGURES]
OF_PEERS = [
    "accuracy-bytes",
    "accuracy-steps",
    "accuracy-seconds",
    "bytes-by-kind",
    "variance-threshold",
    "steps-per-round",
    "who-holds-what",
]
FDA = "fda:monitor=linear,threshold=2"


def test_names_are_unique_and_say_something():
    assert len(set(NAMES)) == len(NAMES)
    assert all(plot.title and plot.caption.endswith(".") for plot in FIGURES)


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)])
def test_draws_every_figure_of_two_peers(made, seeds):
    run = made(seeds=seeds)
    files = draw(run, run.folder)
    assert [file.name for file in files] == [f"{name}.{kind}" for name in OF_PEERS for kind in ("png", "svg")]
    assert all(file.stat().st_size > 1000 for file in files)


@pytest.mark.slow
def test_draws_every_figure_for_fourteen_labels(made, fourteen):
    run = made(labels=fourteen, seeds=(0, 1), workers=300, missed=((fourteen[1], 0),), failed=((fourteen[2], 1),))
    assert len(draw(run, run.folder)) == 2 * len(OF_PEERS)
    shown = texts(figure_of("accuracy-bytes", run))
    assert all(name in shown for name in short_names(fourteen).values())


@pytest.mark.parametrize("count", [5, 6, 14])
def test_more_than_five_strategies_have_a_panel_each(made, fourteen, count):
    labels = fourteen[:count]
    run = made(labels=labels, missed=((labels[1], 0),))
    for name in ("accuracy-bytes", "accuracy-steps", "accuracy-seconds"):
        overview, *panels = figure_of(name, run).axes
        assert len(panels) == (count if count > 5 else 0)
        for label, panel in zip(labels, panels, strict=False):
            assert panel.get_shared_x_axes().joined(panel, overview)
            assert panel.get_shared_y_axes().joined(panel, overview)
            coloured = [one for one in panel.lines if one.get_color() == looks(labels)[label].colour]
            (target,) = (one for one in panel.lines if one.get_color() == INK)
            behind = [one for one in panel.lines if one.get_color() == SOFT]
            assert len(behind) == count - 1
            assert set(target.get_ydata()) == {0.95}
            dots = [x for one in coloured if one.get_linestyle() == "None" for x in one.get_xdata()]
            assert len(dots) == (label != labels[1])
        assert len({panel.get_title(loc="left") for panel in panels}) == len(panels)


def test_the_same_run_gives_the_same_files(made, tmp_path):
    run = made()
    first, second = draw(run, tmp_path / "a"), draw(run, tmp_path / "b")
    assert [file.read_bytes() for file in first] == [file.read_bytes() for file in second]


def test_nothing_to_show_is_none(made, tmp_path):
    run = made(histories=False, partition=False)
    assert [name for name in NAMES if figure_of(name, run) is not None] == ["bytes-by-kind"]
    (tmp_path / "summary.json").write_text('{"results": []}')
    assert draw(load(tmp_path), tmp_path) == []


def test_only_fda_has_a_variance_figure(made):
    assert figure_of("variance-threshold", made(labels=("synchronous", "local-sgd:period=8"))) is None


def test_odd_histories_draw_without_warnings(made):
    run = made(labels=("_hidden $x$ 模型\n", FDA), target=None)
    lines = []
    for label in run.labels:
        for step in range(1, 30):
            odd = float("nan") if step == 5 else 0.0 if step < 9 else float(step) ** 4
            lines.append({"kind": "check", "label": label, "step": step, "estimate": odd, "threshold": float("inf")})
        lines.append({"kind": "evaluation", "label": label, "step": 1, "accuracy": 0.5, "bytes": 0, "seconds": 0.0})
        lines.append({"kind": "evaluation", "label": label, "step": 2, "accuracy": None, "bytes": 9, "syncs": 0})
        lines.append({"kind": "evaluation", "label": label, "step": 9, "accuracy": 0.5, "bytes": 9, "syncs": 0})
    (run.folder / "history.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (run.folder / "partition.json").write_text('{"counts": [[7]], "class_names": ["$"]}')
    run = load(run.folder)
    draw(run, run.folder)
    assert figure_of("steps-per-round", run) is None
    assert figure_of("accuracy-seconds", run) is None
    assert any(r"_hidden $x$ \u6a21\u578b\n" in text for text in texts(figure_of("accuracy-bytes", run)))


@pytest.mark.parametrize(("workers", "classes"), [(1, 1), (10, 10), (10, 100), (1000, 10)])
def test_partitions_of_any_size(made, workers, classes):
    run = made(histories=False)
    counts = np.arange(workers * classes).reshape(workers, classes).tolist()
    counts[0][0] = 5
    names = ["long name" * 4] * classes
    (run.folder / "partition.json").write_text(json.dumps({"counts": counts, "class_names": names}))
    assert svg(PARTITION, load(run.folder)) is not None


def test_of_very_many_workers_some_are_drawn(made):
    run = made(histories=False)
    written = {"counts": [[worker % 7, 1] for worker in range(2500)], "class_names": ["a", "b"]}
    (run.folder / "partition.json").write_text(json.dumps(written))
    figure = figure_of("who-holds-what", load(run.folder))
    assert any("of which 1\u202f000 are drawn" in text for text in texts(figure))


def test_more_fda_strategies_than_panels_are_named(made):
    run = made(labels=tuple(f"fda:threshold={i}" for i in range(8)), steps=100)
    assert "first 6 of 8 strategies that check a variance" in texts(figure_of("variance-threshold", run))


def test_drawing_leaves_matplotlib_as_it_was(made):
    before = dict(matplotlib.rcParams)
    run = made()
    draw(run, run.folder)
    assert dict(matplotlib.rcParams) == before


def test_importing_the_room_loads_no_matplotlib():
    code = "import sys, sparsync.reporting; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_thinning_keeps_peaks_lows_and_ends():
    y = np.sin(np.arange(20_000.0))
    y[777], y[12_345] = 50.0, -50.0
    keep = thinned(y, 100)
    assert len(keep) <= 202
    assert {0, 777, 12_345, 19_999} <= set(keep.tolist())
    assert (np.diff(keep) > 0).all()
    assert np.array_equal(thinned(y[:50], 100), np.arange(50))


def curve(at, x, y):
    at, x, y = (np.array(values, float) for values in (at, x, y))
    return Curve(at, x, y, y, y)


def test_mean_over_seeds_that_were_evaluated_at_other_steps_is_along_their_lines():
    one, two = np.array([10.0, 20, 30, 40]), np.array([11.0, 21, 31, 41, 51])
    at, x, mean, low, high = over_seeds([Curve(one, 2 * one, one, one, one), Curve(two, 2 * two, two + 2, two, two)])
    assert at.tolist() == [11, 20, 30, 40]
    assert x.tolist() == (2 * at).tolist()
    assert mean.tolist() == (at + 1).tolist()
    assert (low == at).all()
    assert (high == at).all()


def test_mean_over_seeds_takes_only_steps_that_all_have():
    one = curve([1, 2, 3], [10, 20, 30], [0.1, 0.2, 0.3])
    two = curve([1, 2], [20, 40], [0.3, 0.4])._replace(low=np.array([0.0, 0.3]))
    at, x, mean, low, high = over_seeds([one, two])
    assert at.tolist() == [1.0, 2.0]
    assert x.tolist() == [15.0, 30.0]
    assert mean.tolist() == pytest.approx([0.2, 0.3])
    assert low.tolist() == [0.0, 0.2]
    assert high.tolist() == [0.3, 0.4]


def test_long_curves_keep_their_peaks_as_a_band():
    y = np.zeros(1000)
    y[777] = 5.0
    short = condensed(curve(range(1000), range(1000), y))
    assert len(short.x) == 120
    assert short.y.max() == 0.0
    assert short.high.max() == 5.0
    assert condensed(short) is short


def test_round_lengths_from_checks_rounds_and_evaluations():
    none = np.array([])
    step = np.arange(1.0, 11.0)
    no_checks, no_rounds = VarianceChecks(none, none, none, none > 0, none), RoundRecords(none, {})
    nothing, others = Evaluations(*[none] * 13), {SplitSteps: 8, LDSSchedules: 4, TimelineRecord: 4, CycleRecords: 10}
    no_others = [kind(*[none] * columns) for kind, columns in others.items()]

    def lengths(evaluations=nothing, checks=no_checks, rounds=no_rounds):
        return [a.tolist() for a in round_lengths(History(evaluations, checks, rounds, *no_others))]

    assert lengths(checks=VarianceChecks(step, step, step, np.isin(step, [3, 4, 9]), step)) == [[3, 4, 9], [3, 1, 5]]
    rounds = RoundRecords(np.array([1.0, 2.0, 4.0]), {"step": np.array([10.0, 22.0, 42.0])})
    assert lengths(rounds=rounds) == [[10, 22, 42], [10, 12, 10]]
    at, syncs = np.array([10.0, 20.0, 30.0, 40.0]), np.array([0.0, 2.0, 2.0, 6.0])
    assert lengths(evaluations=Evaluations(*[at] * 6, syncs, *[at] * 6)) == [[20, 40], [10, 5]]
    assert round_lengths(History(nothing, no_checks, no_rounds, *no_others)) is None


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (0.5, "0.5"), (1e-3, "0.001"), (2.5e-4, "2.5e-4"), (1e-10, "1e-10"), (1e5, "1e5")]
)
def test_plain_numbers(value, text):
    assert plain_number(value) == text


def test_looks_stay_apart_and_names_stay_unique(fourteen):
    look = looks(fourteen)
    assert len({(v.key, v.dashes) for v in look.values()}) == 14
    short = short_names(fourteen, 30)
    assert len(set(short.values())) == 14
    assert max(map(len, short.values())) <= 30
    assert short["synchronous"] == "synchronous"
    same = short_names(["x" * 50 + "a" + "y" * 50, "x" * 50 + "b" + "y" * 50], 20)
    assert len(set(same.values())) == 2
