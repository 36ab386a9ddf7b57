"""Who does what when: read back, drawn, summed up, and written as a trace; and HADFL's cycles."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from made_runs import figure_of, rewritten, texts
from timed_runs import HADFL, LOCKSTEP, TIMED, add_timed, cycle, lockstep

from sparsync.errors import DataError
from sparsync.reporting import load, rows, write
from sparsync.reporting.figures.gantt import _COLOURS, _stacked, pattern, spread_out, within
from sparsync.reporting.history import TimelineRecord
from sparsync.reporting.times import times
from sparsync.reporting.trace import write_trace
from sparsync.system import ACTIVITIES


@pytest.fixture
def timed(write_run, tmp_path):
    """Make a run with :func:`timed_runs.add_timed`, and read it back."""

    def build(labels=TIMED, seeds=(0,), **given):
        folder = write_run(tmp_path / "timed", labels=(), seeds=seeds, target=None, partition=False)
        return load(add_timed(folder, labels, seeds, **given))

    return build


def appended(run, *lines):
    with (run.folder / "history.jsonl").open("a") as file:
        file.writelines(json.dumps({"label": LOCKSTEP, "seed": 0, "step": 99, **line}) + "\n" for line in lines)
    return run.folder


def timeline(*pieces):
    worker, activity, start, end = zip(*pieces, strict=True)
    codes = [ACTIVITIES.index(one) for one in activity]
    return TimelineRecord(np.array(worker), np.array(codes), np.array(start, float), np.array(end, float))


MARKS = ("ring", "broadcaster", "merge")


def drawn_marks(axes):
    """Return the lines that join a ring's members, as (x, ends), and where each marker is."""
    joins, marks = [], {}
    for line in axes.lines:
        x, y = line.get_data()
        if line.get_marker() == "None":
            assert x[0] == x[1]
            joins.append((x[0], tuple(y)))
        else:
            marks[line.get_marker()] = list(zip(x, y, strict=True))
    assert joins[::2] == joins[1::2]  # each has an edge
    return joins[::2], marks


class TestReading:
    def test_pieces_by_worker_and_start(self, timed):
        found = timed(rounds=2).histories[LOCKSTEP, 0].timeline
        expected = timeline(*lockstep(0, 0.0), *lockstep(0, 1.0), *lockstep(1, 0.0), *lockstep(1, 1.0))
        for column in ("worker", "activity", "start", "end"):
            assert getattr(found, column).tolist() == getattr(expected, column).tolist()
        assert found.tells

    def test_of_a_piece_that_was_written_twice_the_later_counts(self, timed):
        run = timed(rounds=2)
        again = load(appended(run, {"kind": "timeline", "pieces": [[0, "compute", 1.0, 1.125]]}))
        before, after = (one.histories[LOCKSTEP, 0].timeline for one in (run, again))
        assert len(after) == len(before)
        assert after.end[after.start == 1.0].tolist() == [1.125, 1.75]

    @pytest.mark.parametrize(
        "pieces",
        [
            None,
            [0, "compute", 0.0, 1.0],
            [[0, "compute", 0.0]],
            [[-1, "compute", 0.0, 1.0]],
            [[0.5, "compute", 0.0, 1.0]],
            [[0, "sleep", 0.0, 1.0]],
            [[0, ["compute"], 0.0, 1.0]],
            [[0, "compute", 2.0, 1.0]],
            [[0, "compute", 2.0, 2.0]],
            [[0, "compute", 0.0, float("nan")]],
            [[0, "compute", 0.0, float("inf")]],
        ],
    )
    def test_no_such_pieces(self, timed, pieces):
        folder = appended(timed(rounds=1), {"kind": "timeline", "pieces": pieces})
        with pytest.raises(DataError, match=r"history\.jsonl, line 6: pieces holds .* expected worker, activity"):
            load(folder)

    def test_a_device_that_missed_a_cycle_has_no_numbers_in_it(self, timed):
        missed = {"available": [1], "ring": [1], "broadcaster": 1, "versions": [7], "predicted": [6], "expected": [1]}
        found = load(appended(timed(rounds=1), {**cycle(2), **missed, "label": HADFL})).histories[HADFL, 0].cycles
        assert found.number.tolist() == [1, 2]
        assert found.units.tolist() == [[2, 1]] * 2
        assert found.selected.tolist() == [[True, False], [False, True]]
        assert found.broadcaster.tolist() == [0, 1]
        for column, first, second in (
            ("versions", [20, 10], 7),
            ("predicted", [18, 9], 6),
            ("expected", [0.5, 0.5], 1),
        ):
            rows_of = getattr(found, column)
            assert rows_of[0].tolist() == first
            assert np.isnan(rows_of[1, 0])
            assert rows_of[1, 1] == second

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"units": [1, 2, 3]}, "units is"),
            ({"units": []}, "units is"),
            ({"ring": [0, 1], "available": [0]}, "available is"),
            ({"available": [0, 5]}, "available is"),
            ({"broadcaster": 7}, "available is"),
            ({"versions": [1]}, "versions is"),
            ({"predicted": [1, None]}, "predicted is"),
            ({"expected": None}, "expected is"),
            ({"cycle": "first"}, "cycle is"),
            ({"met": None}, "met and averaged are None and 2.0, expected seconds"),
            ({"met": 2.5}, "met and averaged are"),
            ({"met": -1.0}, "met and averaged are"),
            ({"averaged": float("nan")}, "met and averaged are"),
            ({"averaged": float("inf")}, "met and averaged are"),
            ({"averaged": "late"}, "met and averaged are"),
            ({"merges": 3}, "merges holds 3, expected a device up to 1 and seconds"),
            ({"merges": {}}, "merges holds"),
            ({"merges": [0, 1.0]}, "merges holds 0,"),
            ({"merges": [[0, 1.0, 2.0]]}, "merges holds"),
            ({"merges": [[2, 1.0]]}, "merges holds"),
            ({"merges": [[0.5, 1.0]]}, "merges holds"),
            ({"merges": [[0, -1.0]]}, "merges holds"),
            ({"merges": [[0, float("nan")]]}, "merges holds"),
            ({"merges": [[True, 1.0]]}, "merges holds"),
        ],
    )
    def test_no_such_cycles(self, timed, change, message):
        folder = appended(timed(rounds=1), {**cycle(2), **change, "label": HADFL})
        with pytest.raises(DataError, match=rf"line 6: {message}"):
            load(folder)

    def test_when_a_ring_was_and_who_merged(self, timed):
        run = timed(rounds=3, workers=4)
        found = run.histories[HADFL, 0].cycles
        assert found.met.tolist() == [0.875, 1.875, 2.875]
        assert found.averaged.tolist() == [1, 2, 3]
        assert found.merges.tolist() == [[1, 1.125], [2, 2.125]]
        again = load(appended(run, {**cycle(2, 4), "label": HADFL, "merges": [[0, 1.5], [3, 2]]}))  # of a resumed run
        assert again.histories[HADFL, 0].cycles.merges.tolist() == [[0, 1.5], [3, 2], [2, 2.125]]

    @pytest.mark.parametrize("keys", [("met", "averaged", "merges"), ("met", "averaged")])
    def test_runs_that_did_not_note_when_a_ring_was(self, timed, keys):
        older = {key: value for key, value in cycle(2).items() if key not in keys}
        found = load(appended(timed(rounds=1), {**older, "label": HADFL})).histories[HADFL, 0].cycles
        for column, value in ((found.met, 0.875), (found.averaged, 1)):
            assert column[0] == value
            assert np.isnan(column[1])
        assert len(found.merges) == ("merges" not in keys)


class TestTimes:
    def test_shares_of_all_workers_and_of_the_least_and_the_most_busy(self, timed):
        run = timed()
        lock_step, free = times(run, rows(run))
        assert [lock_step.row.label, free.row.label] == list(TIMED)
        columns = ("compute", "wait", "talk", "away", "least", "most", "recorded")
        assert [getattr(lock_step, key).mean for key in columns] == [0.5625, 0.1875, 0.25, 0, 0.375, 0.75, 1]
        assert [getattr(free, key).mean for key in columns] == [0.875, 0, 0.125, 0, 0.875, 0.875, 1]

    def test_means_over_the_seeds_that_ended_well(self, timed):
        run = timed(labels=(LOCKSTEP,), seeds=(0, 1, 2))
        away = [[worker, "away", 8.0, 24.0] for worker in (0, 1)]
        appended(run, *({"kind": "timeline", "seed": seed, "pieces": away} for seed in (1, 2)))
        rewritten(run, lambda summary: summary["results"][2].update(error="diverged"))
        run = load(run.folder)
        (one,) = times(run, rows(run))
        assert one.compute.mean == pytest.approx((0.5625 + 0.5625 / 3) / 2)
        assert one.away.mean == pytest.approx(1 / 3)
        assert (one.away.count, one.away.of) == (2, 3)

    def test_says_how_much_was_recorded(self, timed):
        run = timed(labels=(LOCKSTEP,))
        rewritten(run, lambda summary: summary["results"][0].update(seconds=32.0))
        run = load(run.folder)
        assert times(run, rows(run))[0].recorded.mean == 0.25

    def test_a_table_on_the_page(self, timed):
        page = write(timed().folder).read_text()
        assert "How time was spent" in page
        cells = [f"<td>{share}</td>" for share in ("56.25 %", "18.75 %", "25.00 %", "0.00 %", "37.50 %", "75.00 %")]
        assert "".join(cells) in page

    def test_without_a_timeline_there_is_nothing(self, made):
        run = made()
        assert times(run, rows(run)) == ()
        assert "How time was spent" not in write(run.folder).read_text()


class TestTrace:
    def read(self, file):
        def refuse(constant):
            raise AssertionError(constant)

        return json.loads(file.read_text(), parse_constant=refuse)["traceEvents"]

    def test_pieces_in_microseconds_by_strategy_and_worker(self, timed):
        run = timed(seeds=(0, 1), rounds=3)
        write(run.folder)
        events = self.read(run.folder / "trace.json")
        named = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
        assert list(named.values()) == [f"{label} (seed {seed})" for label in TIMED for seed in (0, 1)]
        threads = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
        assert threads == {(pid, worker): f"worker {worker}" for pid in named for worker in (0, 1)}
        pieces = [e for e in events if e["ph"] == "X"]
        assert {e["ph"] for e in events} == {"X", "M"}
        assert len(pieces) == sum(len(history.timeline) for history in run.histories.values())
        assert all(e.keys() == {"name", "ph", "pid", "tid", "ts", "dur"} for e in pieces)
        first = [(e["name"], e["ts"], e["dur"]) for e in pieces if (e["pid"], e["tid"]) == (1, 0)][:4]
        assert first == [
            ("compute", 0, 375e3),
            ("wait", 375e3, 375e3),
            ("exchange", 75e4, 25e4),
            ("compute", 1e6, 375e3),
        ]

    def test_no_gap_and_no_overlap_by_rounding(self, timed):
        run = timed(labels=(LOCKSTEP,), rounds=1)
        ends = np.cumsum(np.full(50, 1 / 3e4))
        pieces = [[7, "compute", a, b] for a, b in zip([0.0, *ends], ends, strict=False)]
        run = load(appended(run, {"kind": "timeline", "pieces": pieces}))
        own = [e for e in self.read(write_trace(run, run.folder)) if e["tid"] == 7 and e["ph"] == "X"]
        assert len(own) == 50
        assert all(round(a["ts"] + a["dur"], 3) == b["ts"] for a, b in pairwise(own))

    def test_names_are_escaped(self, timed):
        label = 'a "quoted" \\ \n\u2028 </script> name'
        run = timed(labels=(label,), rounds=1)
        assert self.read(write_trace(run, run.folder))[0]["args"]["name"] == f"{label} (seed 0)"

    def test_without_a_timeline_there_is_no_file(self, made):
        run = made()
        assert write_trace(run, run.folder) is None
        write(run.folder)
        assert not (run.folder / "trace.json").exists()


class TestGantt:
    def test_a_panel_per_strategy_on_one_axis(self, timed):
        run = timed()
        lock_step, free = figure_of("timeline", run).axes
        assert [axes.get_title(loc="left") for axes in (lock_step, free)] == list(TIMED)
        assert lock_step.get_title(loc="right") == "computing 57 %"  # of 4.08 s: a fifth round has begun
        assert free.get_title(loc="right") == "computing 88 %"
        assert lock_step.get_xlim() == free.get_xlim() == (0, pytest.approx(4.08))
        assert [tick.get_text() for tick in lock_step.get_yticklabels()] == ["0", "1"]
        said = texts(figure_of("timeline", run))
        assert {"compute", "exchange", "wait"} <= set(said)
        assert not {"send", "receive", "away"} & set(said)

    def test_bars_are_where_the_pieces_are(self, timed):
        from matplotlib.colors import to_hex

        axes = figure_of("timeline", timed(rounds=1)).axes[0]
        edges = {
            to_hex(patch.get_facecolor()): sorted({tuple(corners) for corners in patch.get_path().vertices.tolist()})
            for patch in axes.patches
        }
        waits = edges[_COLOURS["wait"]]
        assert len(edges) == 3
        assert [x for x, _ in waits] == [0.375, 0.375, 0.75, 0.75]
        assert [y for _, y in waits] == pytest.approx([-0.4, 0.4, -0.4, 0.4])
        assert {x for x, _ in edges[_COLOURS["compute"]]} == {0.0, 0.375, 0.75}

    @pytest.mark.parametrize(
        ("label", "power", "drawn"),
        [(HADFL, None, False), (HADFL, "1:1", False), (HADFL, "2:1", True), (LOCKSTEP, "1:1", True)],
    )
    def test_only_if_speeds_differ_or_somebody_waits(self, timed, label, power, drawn):
        assert (figure_of("timeline", timed(labels=(label,), power=power)) is not None) == drawn

    def test_strategies_that_record_nothing_but_computing_are_left_out(self, timed):
        run = timed(labels=(LOCKSTEP,), rounds=1)
        run = load(appended(run, {"label": "psl", "kind": "timeline", "pieces": [[0, "compute", 0.0, 9.0]]}))
        assert len(figure_of("timeline", run).axes) == 1
        assert [one.row.label for one in times(run, rows(run))] == [LOCKSTEP]

    def test_of_many_the_busiest_and_the_most_idle_are_drawn(self, timed):
        labels = [f"{LOCKSTEP}{i}" for i in range(7)]
        figure = figure_of("timeline", timed(labels=[*labels, HADFL], workers=30))
        assert "5 of 8 strategies, 10 of 30 workers" in texts(figure)
        assert figure.axes[-1].get_title(loc="left") == HADFL
        lanes = [int(tick.get_text()) for tick in figure.axes[0].get_yticklabels()]
        assert len(lanes) == 10
        assert lanes == sorted(lanes)
        assert {lane % 2 for lane in lanes} == {0, 1}

    def test_the_span_ends_with_a_fourth_message(self):
        talks = [(0, "exchange", t, t + 1) for t in (0, 10, 20, 30, 40)]
        assert pattern(timeline(*talks, (1, "send", 0, 2))) == 31
        assert pattern(timeline(*talks, *((1, "exchange", t + 5, t + 6) for _, _, t, _ in talks))) == 31
        assert pattern(timeline(*talks[:2], (1, "receive", 0, 2), (1, "wait", 2, 99))) == 11
        assert pattern(timeline((1, "wait", 2, 99))) == 99

    def test_what_lies_before_a_moment(self):
        before = within(timeline((0, "compute", 0, 1), (0, "wait", 1, 3), (0, "away", 3, 4)), 2.0)
        assert before.end.tolist() == [1, 2]

    def test_choice_from_lowest_to_highest(self):
        assert spread_out([5, 1, 4, 2, 3], 3) == [True, True, False, False, True]
        assert spread_out([5, 1], 3) == [True, True]
        assert spread_out([], 3) == []

    def test_crowded_lanes_show_shares_of_time(self):
        rng = np.random.default_rng(0)
        edges = np.r_[0.0, rng.uniform(0.01, 1, 999).cumsum()]
        activity = rng.integers(0, len(ACTIVITIES), 999)
        bars = _stacked(activity, edges[:-1], edges[1:])
        area = (bars.right - bars.left) * (bars.top - bars.bottom)
        spent = np.bincount(activity, np.diff(edges))
        assert np.bincount(bars.activity, area) == pytest.approx(spent)
        highest = {left: bars.top[bars.left == left].max() for left in bars.left}
        assert list(highest.values()) == pytest.approx([1.0] * 80)

    def test_many_short_pieces_make_a_lane_crowded(self, timed):
        run = timed(labels=(LOCKSTEP,), rounds=4)
        short = [[7, ("compute", "away")[i % 2], i / 256, (i + 1) / 256] for i in range(1000)]
        shapes = figure_of("timeline", load(appended(run, {"kind": "timeline", "pieces": short}))).axes[0].patches
        heights = Counter(round(y, 1) for shape in shapes for _, y in shape.get_path().vertices.tolist())
        assert heights[2.0] >= 150  # half of the third lane, twice in each of its parts
        assert heights[0.0] == heights[1.0] == 0  # the other two are whole

    def test_rings_are_joined_and_merges_are_marked(self, timed):
        """Four rings before 4.08 s, and the merges after three of them."""
        figure = figure_of("timeline", timed(workers=4))
        lock_step, free = figure.axes
        assert not lock_step.lines
        joins, marks = drawn_marks(free)
        middle, members = [0.9375, 1.9375, 2.9375, 3.9375], [(0, 2, 3), (0, 1, 3), (0, 1, 2), (1, 2, 3)]
        assert joins == [(x, (ring[0], ring[-1])) for x, ring in zip(middle, members, strict=True)]
        assert marks == {
            "o": [(x, worker) for x, ring in zip(middle, members, strict=True) for worker in ring[1:]],
            "D": [(x, ring[0]) for x, ring in zip(middle, members, strict=True)],
            "v": [(1.125, 1), (2.125, 2), (3.125, 3)],
        }
        assert [text for text in texts(figure) if text in MARKS] == list(MARKS)

    def test_marks_are_in_the_lanes_that_are_shown(self, timed):
        axes = figure_of("timeline", timed(labels=(HADFL,), workers=30)).axes[0]
        joins, marks = drawn_marks(axes)
        workers = [int(tick.get_text()) for tick in axes.get_yticklabels()]
        assert len(joins) == 4
        averaging = sum(number != worker for number in (1, 2, 3, 4) for worker in workers)
        merging = sum(number in workers for number in (1, 2, 3))
        assert sum(map(len, marks.values())) == averaging + merging
        assert {lane for where in marks.values() for _, lane in where} == set(range(10))

    def test_marks_have_names_only_where_they_occur(self, timed):
        alone = figure_of("timeline", timed(rounds=1, labels=(HADFL,)))  # in a ring of its own, and nobody merges yet
        assert drawn_marks(alone.axes[0]) == ([], {"D": [(0.9375, 0)]})
        assert [text for text in texts(alone) if text in MARKS] == ["broadcaster"]
        assert not set(MARKS) & set(texts(figure_of("timeline", timed(labels=(LOCKSTEP,)))))

    @pytest.mark.parametrize("change", [{"met": None, "averaged": None, "merges": None}, {"met": 5.0, "averaged": 5.5}])
    def test_no_marks_of_what_was_not_noted_or_comes_later(self, timed, change):
        run = timed(labels=(HADFL,), workers=4)
        appended(run, *({**cycle(n, 4), "merges": [], **change, "label": HADFL} for n in range(1, 9)))
        assert not figure_of("timeline", load(run.folder)).axes[0].lines

    @pytest.mark.parametrize(("more", "joined"), [(36, 40), (37, 0)])
    def test_no_marks_of_more_rings_than_can_be_told_apart(self, timed, more, joined):
        run = timed(labels=(HADFL,), workers=4)
        many = ({**cycle(n, 4), "met": 1.0, "averaged": 1.0 + n / 64, "label": HADFL} for n in range(9, 9 + more))
        figure = figure_of("timeline", load(appended(run, *many)))
        joins, marks = drawn_marks(figure.axes[0])
        assert len(joins) == joined
        assert bool(marks) == bool(set(MARKS) & set(texts(figure))) == bool(joined)


class TestCycles:
    def test_versions_and_errors(self, timed):
        upper, lower = figure_of("versions", timed()).axes
        lines = [line.get_xydata().tolist() for line in upper.lines]
        x = range(1, 9)
        assert lines[0] == [[c, 20 * c] for c in x]
        assert lines[1] == [[c, 20 * c - 2] for c in x]
        assert lines[2] == [[c, 10 * c] for c in x]
        errors = [line.get_ydata().tolist() for line in lower.lines[1:]]
        assert errors == [[-2] * 8, [-1] * 8]

    def test_how_often_each_device_was_selected(self, timed):
        axes = figure_of("selection", timed(rounds=5, labels=(HADFL,))).axes[0]
        as_broadcaster, otherwise = ([bar.get_height() for bar in bars] for bars in axes.containers)
        assert as_broadcaster == [0.6, 0.4]
        assert otherwise == [0, 0]
        assert axes.lines[0].get_ydata().tolist() == [0.5, 0.5]
        (chance,) = axes.collections
        low, high = chance.get_segments()[0][:, 1]
        assert (low, high) == pytest.approx((0.5 - 2 * 0.5 / 5**0.5, 0.5 + 2 * 0.5 / 5**0.5))
        assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0\n2", "1\n1"]

    def test_shares_are_of_the_cycles_in_which_a_device_was_there(self, timed):
        run = timed(rounds=1, labels=(HADFL,))
        alone = {"available": [1], "ring": [1], "broadcaster": 1, "versions": [7], "predicted": [6], "expected": [1]}
        lines = [{**cycle(number), **alone, "label": HADFL} for number in (2, 3, 4)]
        axes = figure_of("selection", load(appended(run, *lines))).axes[0]
        as_broadcaster, otherwise = ([bar.get_height() for bar in bars] for bars in axes.containers)
        assert as_broadcaster == [1, 0.75]
        assert otherwise == [0, 0]
        assert axes.lines[0].get_ydata().tolist() == [0.5, 0.875]

    def test_many_devices_and_cycles(self, timed):
        run = timed(labels=(HADFL, f"{HADFL}:period=2", f"{HADFL}:period=3", f"{HADFL}:period=4"), workers=50, rounds=2)
        appended(run, *({**cycle(number, workers=50), "label": HADFL} for number in range(3, 900)))
        run = load(run.folder)
        figure = figure_of("versions", run)
        assert "first 3 of 4 strategies, 6 of 50 workers" in texts(figure)
        assert all(len(line.get_xdata()) <= 203 for axes in figure.axes for line in axes.lines)
        said = texts(figure_of("selection", run))
        assert f"{HADFL}\n899 cycles, 20 of 50 workers" in said

    def test_without_cycles_there_are_no_figures(self, timed):
        run = timed(labels=(LOCKSTEP,))
        assert figure_of("versions", run) is None
        assert figure_of("selection", run) is None
