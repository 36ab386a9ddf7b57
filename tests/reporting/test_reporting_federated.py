"""Figures, tables and the live table of federated strategies."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from federated_runs import DENSE, FDA_OPT, FEDDIP, FEDERATED, SPARSYFED
from made_runs import figure_of, texts
from rich.console import Console
from split_runs import SPLIT
from timed_runs import add_timed

from sparsync.reporting import FIGURES, draw, load, markdown, rows, table
from sparsync.reporting.figures.heat import over_rounds
from sparsync.reporting.figures.panels import noted
from sparsync.reporting.live import LiveTable

FDA = "fda:monitor=linear,threshold=2"
OF_ROUNDS = {
    "accuracy-paper-bytes": FEDERATED,
    "accuracy-rounds": FEDERATED,
    "accuracy-clients": FEDERATED,
    "variance-rounds": (FDA_OPT,),
    "density-rounds": (SPARSYFED, FEDDIP),
    "layer-density": (SPARSYFED, FEDDIP),
    "activation-density": (SPARSYFED,),
    "mask-agreement": (SPARSYFED, FEDDIP),
    "mask-history": (SPARSYFED, FEDDIP),
    "regrowth": (SPARSYFED, FEDDIP),
    "pruning-quality": (FEDDIP,),
    "schedules": (DENSE, SPARSYFED, FEDDIP),
}


def titles(figure):
    return [axes.get_title(loc="left") for axes in figure.axes]


def drawn(run):
    return [plot.name for plot in FIGURES if plot.figure(run) is not None]


@pytest.mark.slow  # what the page does, as PNG
def test_a_mixed_run_draws_all_there_is(mixed):
    run = mixed(peers=("synchronous", FDA, f"{FDA}.5", f"{FDA}.7"), split=SPLIT)
    run = load(add_timed(run.folder, seeds=(0, 1)))
    files = draw(run, run.folder)
    assert [file.stem for file in files[::2]] == [plot.name for plot in FIGURES]
    assert all(file.stat().st_size > 1000 for file in files)


@pytest.mark.parametrize("name", OF_ROUNDS)
def test_a_figure_names_those_who_have_its_data(mixed, name):
    shown = " ".join(texts(figure_of(name, mixed())))
    assert all((label[:20] in shown) == (label in OF_ROUNDS[name]) for label in FEDERATED)


def test_a_dense_federation_has_no_masks_to_show(mixed):
    names = drawn(mixed(labels=(DENSE,), seeds=(0,)))
    assert set(names) & set(OF_ROUNDS) == {"accuracy-paper-bytes", "accuracy-rounds", "accuracy-clients", "schedules"}


@pytest.mark.parametrize("rounds", [1, 2, 500])
def test_runs_of_any_length(mixed, rounds):
    run = mixed(peers=(), seeds=(0,), rounds=rounds)
    for plot in FIGURES:
        figure = plot.figure(run)
        if figure is not None:
            figure.draw_without_rendering()


def test_density_is_held_against_each_target_once(mixed):
    run = mixed(labels=(SPARSYFED, FEDDIP), seeds=(0, 1, 2))
    down, up = figure_of("density-rounds", run).axes
    for axes in (down, up):
        dashes = [line for line in axes.get_lines() if line.get_linestyle() == "--"]
        assert len(dashes) == 2
        assert dashes[0].get_ydata().tolist() == pytest.approx([0.05] * 40)
        assert axes.get_yscale() == "log"
    assert "target density" in texts(down.figure)


def test_clients_are_a_band_around_their_mean(mixed):
    history = mixed().histories[(SPARSYFED, 0)]
    clients = noted("iou_clients")(history)
    assert (clients.low < clients.y).all()
    assert (clients.high == clients.y).all()  # only the lowest pair was noted
    regrown = noted("regrown")(history)
    assert regrown.low[0] == pytest.approx(0.7 * regrown.y[0])
    assert noted("returned")(history) is None


def test_zeros_have_their_place_on_a_logarithmic_axis(mixed):
    axes = figure_of("regrowth", mixed()).axes[0]
    assert axes.get_yscale() == "symlog"
    assert axes.get_ylim()[0] < 0 < 3000 < axes.get_ylim()[1]
    assert axes.get_yticks()[:2].tolist() == [0, 1]


def test_empty_layers_are_flagged(mixed):
    figure = figure_of("layer-density", mixed())
    assert titles(figure)[:2] == [SPARSYFED, f"{FEDDIP}\nempty: conv2 from round 24"]
    assert "nothing left in the layer" in texts(figure)
    assert len(figure.axes[1].collections[1].get_segments()) == 3  # columns of conv2, held until the next one
    figure = figure_of("layer-density", mixed(labels=(SPARSYFED,)))
    assert "nothing left in the layer" not in texts(figure)


@pytest.mark.parametrize("layers", [("only",), tuple(f"encoder.blocks.{i}.attention.$q$.weight" for i in range(60))])
def test_layers_of_any_number(mixed, layers):
    run = mixed(labels=(SPARSYFED, FEDDIP), seeds=(0,), layers=layers)
    for name in ("layer-density", "activation-density"):
        figure = figure_of(name, run)
        figure.draw_without_rendering()
        assert figure.get_figheight() < 12


def test_more_strategies_than_panels_are_counted(mixed):
    run = mixed(labels=(SPARSYFED,), seeds=(0,))
    lines = (run.folder / "history.jsonl").read_text()
    more = "".join(lines.replace(SPARSYFED, f"{SPARSYFED},n={i}") for i in range(8))
    (run.folder / "history.jsonl").write_text(lines + more)
    run = load(run.folder)
    assert "first 6 of 9 strategies" in texts(figure_of("layer-density", run))
    assert "first 6 of 9 strategies with masks" in texts(figure_of("mask-history", run))


def test_odd_numbers_draw_without_warnings(mixed):
    run = mixed(labels=(), seeds=(0,))
    odd = [float("nan"), float("inf"), 0.0, -1.0, 1e38, 1e-38]
    keys = [
        "down_density",
        "up_density",
        "up_density_min",
        "regrown",
        "iou_rounds",
        "lambda",
        "lr",
        "delta",
        "estimate",
    ]
    keys += ["threshold", "variance", "epochs", "layer_density/$a$", "act_density/a", "sparsity_target"]
    with (run.folder / "history.jsonl").open("a") as file:
        for number in range(1, 13):
            noted = {key: odd[(number + i) % len(odd)] for i, key in enumerate(keys)}
            noted["iou_history"] = [[number, 1.0], [0, float("nan")], [number - 1, 1.0]]
            file.write(json.dumps({"kind": "round", "label": "模 $x$", "round": number, **noted}) + "\n")
    run = load(run.folder)
    assert len(draw(run, run.folder)) > 20


def test_columns_hold_until_the_next_one():
    positions, values = over_rounds(np.array([2.0, 5.0]), np.array([[0.5, 0.25]]), 1, 6)
    assert positions.tolist() == [1, 2, 3, 4, 5, 6]
    assert np.isnan(values[0, 0])
    assert values[0, 1:].tolist() == [0.5, 0.5, 0.5, 0.25, 0.25]


def test_seeds_whose_steps_differ_are_averaged_by_round(mixed):
    run = mixed(labels=(SPARSYFED,))
    first, second = run.histories_of(SPARSYFED)
    assert len(set(first.evaluations.step) & set(second.evaluations.step)) < 10
    curve = figure_of("accuracy-steps", run).axes[0].get_lines()[1]
    assert len(curve.get_xdata()) == 20


def test_tables_count_rounds_beside_syncs(mixed):
    run = mixed()
    assert [row.unit for row in rows(run)] == ["syncs", "rounds", "rounds", "rounds", "rounds"]
    console = Console(file=io.StringIO(), width=100, color_system=None)
    console.print(table(run))
    assert "Syncs/" in console.file.getvalue()
    assert max(map(len, console.file.getvalue().splitlines())) <= 100
    assert "Syncs/rounds" in markdown(run)
    assert "| Rounds |" in markdown(mixed(peers=()))


@pytest.mark.parametrize("total", [None, 50])
def test_the_live_table_says_rounds_for_rounds(total):
    console = Console(file=io.StringIO(), width=100, color_system=None)
    live = LiveTable(400, several_seeds=False, console=console, total_rounds=total)
    peer = {"step": 40, "accuracy": 0.5, "bytes": 9_000, "syncs": 8}
    federated = {"step": 80, "accuracy": 0.6, "bytes": 7_000, "rounds": 4}
    with live:
        for label, line in (("local-sgd", peer), ("fedavg", federated)):
            live.started(label, 0, 0)
            live.stepped(label, 0, line["step"], 4, 5)
            live.moved(label, 0, line)
    of = "" if total is None else "/50"
    console.print(live._table())
    text = console.file.getvalue()
    assert "40/400" in text
    assert "8 syncs" in text
    assert f"4{of} rounds" in text
    assert "80/400" not in text
    result = {"label": "fedavg", "seed": 0, "steps": 90, "accuracy": 0.7, "bytes": {"total": 1}, "rounds": 5}
    live.finished({**result, "error": None, "reached": False})
    assert f"fedavg: step 90, accuracy 0.7000, 1 B, 5{of} rounds, done" in console.file.getvalue()
