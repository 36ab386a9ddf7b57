"""Rows by strategy, the headline, and both tables."""

from __future__ import annotations

import html
import io
import json
from dataclasses import asdict

import pytest
from rich.console import Console

from sparsync.reporting import headline, load, markdown, rows, table
from sparsync.reporting.live import LiveTable
from sparsync.reporting.palette import visible
from sparsync.reporting.report import page
from sparsync.system import Profile

FDA = "fda:monitor=linear,threshold=2"


def entry(label, seed, accuracy=0.9, total=100, to_target=None, **more):
    return {
        "label": label,
        "strategy": label,
        "spec": label,
        "seed": seed,
        "steps": 10,
        "syncs": 5,
        "accuracy": accuracy,
        "best_accuracy": accuracy,
        "bytes": {"total": total, "model": total},
        "paper_bytes": {"total": total // 2},
        "reached": to_target is not None,
        "bytes_to_target": to_target,
        "wall_seconds": 1.0,
        "error": None,
        **more,
    }


@pytest.fixture
def run_of(tmp_path):
    def build(*results, target=0.9, seeds=(0,)):
        experiment = {"target": target, "seeds": list(seeds)}
        (tmp_path / "summary.json").write_text(json.dumps({"experiment": experiment, "results": results}))
        return load(tmp_path)

    return build


def rendered(run, width=100):
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(table(run))
    return console.file.getvalue()


def test_rows_average_over_seeds(run_of):
    run = run_of(entry("a", 0, 0.8, 100, 50), entry("a", 1, 0.9, 300, 70), seeds=(0, 1))
    (row,) = rows(run)
    assert row.accuracy.mean == pytest.approx(0.85)
    assert row.accuracy.deviation == pytest.approx(0.1 / 2**0.5)
    assert row.bytes["total"].mean == 200
    assert row.steps_per_sync.mean == 2
    assert row.reached == 2
    assert row.always_reached


def test_survivors_are_counted(run_of):
    lost = entry("a", 1, None, 10, error="diverged at step 1, worker 3")
    (row,) = rows(run_of(entry("a", 0, 0.8, 100, 50), lost, seeds=(0, 1, 2)))
    assert row.reached == 1
    assert (row.accuracy.count, row.accuracy.of) == (1, 3)
    assert row.failures == ((1, "diverged at step 1, worker 3"), (2, "no result was recorded"))


def test_headline_names_the_cheapest_and_the_factor(run_of):
    text = headline(run_of(entry("sync", 0, to_target=1000), entry("fda", 0, to_target=80), entry("weak", 0)))
    assert text == (
        "To reach 90.00 % accuracy, fda needed 80 B, the fewest bytes, 12.5 times less than sync (1.00 kB). "
        "Not reached by: weak."
    )


def test_headline_crowns_nobody_who_failed_with_a_seed(run_of):
    run = run_of(
        entry("sync", 0, to_target=1000),
        entry("sync", 1, to_target=1000),
        entry("fda", 0, to_target=80),
        entry("fda", 1),
        seeds=(0, 1),
    )
    assert headline(run) == (
        "To reach 90.00 % accuracy, sync needed 1.00 kB on average. Not reached with every seed by: fda (1/2)."
    )
    assert "1.00 kB *" in rendered(run)


def test_headline_says_when_the_papers_count_otherwise(run_of):
    a = entry("a", 0, to_target=80, paper_bytes_to_target=60)
    b = entry("b", 0, to_target=90, paper_bytes_to_target=50)
    assert headline(run_of(a, b)).endswith("Counted as in the methods' papers, b needed the fewest.")


@pytest.mark.parametrize(
    ("entries", "target", "text"),
    [
        ([entry("a", 0, to_target=5)], 0.9, "To reach 90.00 % accuracy, a needed 5 B."),
        ([entry("a", 0)], 0.9, "No strategy reached 90.00 % accuracy."),
        (
            [entry("a", 0, to_target=0), entry("b", 0, to_target=7)],
            0.9,
            "To reach 90.00 % accuracy, a needed 0 B, the fewest bytes; b needed the most, 7 B.",
        ),
        (
            [entry("a", 0, to_target=7), entry("b", 0, to_target=7)],
            0.9,
            "To reach 90.00 % accuracy, a needed 7 B, like every other strategy that reached it.",
        ),
        (
            [entry("a", 0, 0.5, 100, reached=None), entry("b", 0, 0.4, 50, reached=None)],
            None,
            "No target accuracy was set; a ended with the highest accuracy, 50.00 %; b sent the fewest bytes, 50 B.",
        ),
        ([], 0.9, "The run holds no results."),
    ],
)
def test_headlines(run_of, entries, target, text):
    assert headline(run_of(*entries, target=target)) == text


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)])
def test_terminal_table_fits_and_cuts_no_number(made, fourteen, seeds):
    lost = (("hadfl:selected=3,power=2", seeds[-1]),)
    missed = (("local-sgd:period=64", 0),)
    text = rendered(made(labels=fourteen, seeds=seeds, missed=missed, failed=lost, steps=200))
    assert max(map(len, text.splitlines())) <= 100
    assert "…" not in text
    assert f"1 of {len(seeds)} failed" in text
    assert text.count(" * ") + text.count(" *\n") >= 1
    assert f"{len(seeds) - 1}/{len(seeds)}" in text


def test_terminal_table_without_target(made):
    text = rendered(made(target=None))
    assert "target" not in text.replace("threshold", "").lower()
    assert "*" not in text


def test_virtual_time_is_of_the_whole_run_or_to_the_target(run_of):
    slow = entry("a", 0, to_target=50, seconds=77, seconds_to_target=33)
    for target, shown in ((0.9, "33.0 s"), (None, "77.0 s")):
        run = run_of(slow, target=target)
        (line,) = (line for line in rendered(run).splitlines() if line.startswith("a "))
        assert shown in line
        assert ("77.0 s" in line) == (target is None)
        assert shown in markdown(run)
        assert "Virtual time" in markdown(run)
        assert f"<td>{shown}</td>" in page(run)


PROFILES = [
    ({}, "10 ms per local step, links of 12.5 MB/s, latency 5 ms"),
    ({"power": "4:2:..."}, "powers 4:2:..., 10 ms per local step at power 1, links of 12.5 MB/s, latency 5 ms"),
    (
        {"power": [4, 0.5], "bandwidth": float("inf")},
        "powers 4:0.5, 10 ms per local step at power 1, links of any rate, latency 5 ms",
    ),
    (
        {"power": ":".join(["3", "1"] * 30), "step_seconds": 2},
        "powers 1 to 3, 2 s per local step at power 1, links of 12.5 MB/s, latency 5 ms",
    ),
    (
        {"compute": "measured", "up": [1e6, 5e6], "down": 2e6, "outages": [{"worker": 1, "at": 3}]},
        "local steps as measured, 1.00 MB/s to 5.00 MB/s up, 2.00 MB/s down, latency 5 ms, devices come and go",
    ),
    (
        {"preset": "iot", "compute": "flops", "flops": 1e8},
        "iot, powers drawn with spread 0.1, 1e+08 operations per second at power 1, links of 31.3 kB/s, "
        "31.3 kB/s shared, latency 20 ms",
    ),
]


@pytest.mark.parametrize(("profile", "said"), PROFILES)
def test_the_profile_is_stated(run_of, profile, said):
    run = run_of(entry("a", 0), target=None)
    run.experiment["profile"] = asdict(Profile(**profile))
    assert f"virtual time: {said}" in " ".join(rendered(run, 200).split())
    assert f"devices and links ({said})" in html.unescape(page(run))


@pytest.mark.parametrize("profile", [None, 3, {"speed": 1}, {"latency": -1}, {"power": "?"}, {"up": {}}])
def test_a_profile_of_another_version_is_not_stated(run_of, profile):
    run = run_of(entry("a", 0), target=None)
    run.experiment["profile"] = profile
    assert "virtual time" not in rendered(run)


def test_tables_treat_labels_as_text(made):
    hostile = "[red]x[/red]|<script>`a`\x1b[31m"
    run = made(labels=(hostile, "synchronous"))
    assert "[red]x[/red]" in rendered(run)
    assert "\x1b" not in rendered(run)
    line = next(line for line in markdown(run).splitlines() if "red" in line)
    assert line.count("|") == markdown(run).splitlines()[1].count("|")
    assert html.unescape(line).startswith(f"| <code>{visible(hostile)}</code> |")


def test_labels_wrap_only_where_the_terminal_has_no_room(run_of):
    label = "fda:threshold=1,monitor=sketch,width=250,depth=5"
    run = run_of(entry(label, 0, to_target=50))
    assert label in rendered(run, 200)
    narrow = rendered(run, 80)
    assert label not in narrow
    assert max(map(len, narrow.splitlines())) <= 80


@pytest.mark.parametrize(
    ("label", "width", "shown"),
    [
        ("synchronous", 80, {"Wall", "paper"}),
        ("sparsyfed:sparsity=0.8", 80, {"paper"}),
        ("sparsyfed:sparsity=0.8", 69, set()),
        ("sparsyfed:sparsity=0.8", 120, {"Wall", "paper"}),
    ],
)
def test_a_narrow_terminal_leaves_out_columns_before_labels_lose_their_room(run_of, label, width, shown):
    text = rendered(run_of(entry(label, 0, to_target=50)), width)
    assert {"Wall", "paper", "wire"} & set(text.split()) == {"wire", *shown}
    assert max(map(len, text.splitlines())) <= width
    assert all(piece in text for piece in label.split(":"))
    assert "50 B" in text


@pytest.mark.parametrize("label", ["[red]x[/red]", "[/]", "a:fire:b", "x" * 300])
def test_the_live_table_shows_labels_as_text(label):
    live = LiveTable(10, False, Console(file=io.StringIO(), width=400, color_system=None))
    live.started(label, 0, 1)
    live.console.print(live._table())
    first, *_, last = live.console.file.getvalue().strip().splitlines()
    assert first.startswith(f"{label}: ")
    assert last.startswith(label)


def test_markdown_marks_the_best_and_the_survivors(made):
    text = markdown(made(seeds=(0, 1, 2), missed=(("synchronous", 1),)))
    assert text.count("**") == 2
    assert "**" in next(line for line in text.splitlines() if FDA in line)
    assert "(2/3)" in next(line for line in text.splitlines() if "synchronous" in line)
    assert "sample standard deviation over 3 seeds" in text


def test_a_seed_that_was_not_run_is_not_called_a_failure(run_of):
    run = run_of(entry("a", 0), entry("a", 1, error="diverged"), seeds=(0, 1, 2))
    assert rows(run)[0].shortfall == "1 of 3 failed, 1 of 3 without a result"
    assert "`a` (1 of 3 failed, 1 of 3 without a result)" in markdown(run)
    assert rows(run_of(entry("a", 0)))[0].shortfall == ""


def test_the_headline_and_the_table_name_who_was_fastest(run_of):
    cheap = entry("a", 0, to_target=80, seconds_to_target=33)
    fast = entry("b", 0, to_target=90, seconds_to_target=5)
    never = entry("c", 0, seconds=1)
    assert headline(run_of(cheap, fast, never)).startswith(
        "To reach 90.00 % accuracy, a needed 80 B, the fewest bytes, 1.12 times less than b (90 B), and b was the "
        "fastest, 5.00 s of virtual time. Not"
    )
    starred = [line.split()[0] for line in rendered(run_of(cheap, fast, never)).splitlines() if " *" in line]
    assert starred == ["a", "b"]
    assert ", and was the fastest, 4.00 s of virtual time." in headline(
        run_of(entry("a", 0, to_target=80, seconds_to_target=4), fast)
    )
