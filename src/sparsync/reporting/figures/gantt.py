"""Who does what when: a lane per worker, a panel per strategy, all on the same axis of virtual time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain, zip_longest
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sparsync.reporting.fields import is_number
from sparsync.reporting.figures.canvas import CARD, INK, LINE, SOFT, WARN, new_axes, new_figure
from sparsync.reporting.figures.pieces import drawn_names, handle, legend, max_ticks, plain_number, time_unit
from sparsync.reporting.figures.plot import Plot
from sparsync.reporting.history import ComparisonRecord, CycleRecords, Floats, Ints, TimelineRecord
from sparsync.reporting.palette import LIGHT
from sparsync.reporting.times import TALK, share
from sparsync.system import ACTIVITIES
from sparsync.system.timeline import Activity

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LANES = 10
_PANELS = 5
_TALKS = 4  # of one worker, in the span: the first model, and three more
_IDLE = 0.01  # of the time: less cannot be seen
_CROWD = 60  # pieces of a lane that can be told apart however short they are
_SHORT = 0.005  # of the span: more pieces only if most are longer
_BUCKETS = 80
_THIN = 0.005  # of the span: a message is not drawn shorter
_ROOM = 1.02
_HEIGHT = 0.8  # of a lane
_RINGS = 40  # of a panel: the marks of more could not be told apart

_COLOURS: dict[Activity, str] = {
    "compute": LIGHT["c0"],
    "exchange": WARN,
    "send": LIGHT["c3"],
    "receive": LIGHT["c4"],
    "wait": LINE,
    "away": SOFT,
}
"""From the bottom of a stack to its top."""

_MARKS: dict[str, tuple[str, str, float]] = {  # marker, its colour inside, its size
    "ring": ("o", CARD, 4.5),
    "broadcaster": ("D", INK, 5.5),
    "merge": ("v", CARD, 4.5),
}


class _Bars(NamedTuple):
    """Rectangles, arrays (n,); heights are parts of a lane's."""

    activity: Ints
    left: Floats
    right: Floats
    bottom: Floats
    top: Floats


def gantt(run: ComparisonRecord) -> Figure | None:
    """What workers do at first, of each strategy's first seed; None if all are equally fast and nobody ever idles."""
    histories = run.firsts(lambda history: history.timeline.tells)
    found = {label: history.timeline for label, history in histories.items()}
    idle = {label: share(timeline.seconds(), "wait", "away") for label, timeline in found.items()}
    if not found or not (_unequal(run.experiment.get("profile")) or max(idle.values()) > _IDLE):
        return None
    span = _ROOM * max(pattern(timeline) for timeline in found.values())
    shown = [label for label, keep in zip(found, spread_out(list(idle.values()), _PANELS), strict=True) if keep]
    workers, lanes = _lanes([found[label] for label in shown])
    names, (unit, size) = drawn_names(shown, 36), time_unit(span)
    pitch = 0.21 if len(lanes) <= 5 else 0.15
    marks = 0.2 * any(len(histories[label].cycles) for label in shown)
    figure = new_figure(0.95 + marks + (pitch * len(lanes) + 0.36) * len(shown))
    grid = figure.add_gridspec(len(shown), 1)
    first: Axes | None = None
    drawn: set[str] = set()
    for place, label in enumerate(shown):
        axes = new_axes(figure, grid[place, 0], sharex=first)
        first = first or axes
        drawn |= _draw(axes, found[label], lanes, span, size)
        drawn |= _mark(axes, histories[label].cycles, lanes, span, size)
        axes.set_title(names[label], fontsize=10)
        computing = share(within(found[label], span).seconds(), "compute")
        axes.set_title(f"computing {100 * computing:.0f} %", loc="right", fontsize=9.5, color=SOFT)
        axes.tick_params(axis="x", labelbottom=place == len(shown) - 1)
    axes.set_xlim(0, span / size)
    axes.set_xlabel(f"virtual time ({unit})")
    axes.xaxis.set_major_locator(max_ticks(7))
    axes.xaxis.set_major_formatter(lambda value, _: plain_number(value))
    figure.supylabel("worker", fontsize=10)
    _legend(figure, drawn)
    counts = {"strategies": (len(shown), len(found)), "workers": (len(lanes), workers)}
    if notes := [f"{some} of {every} {what}" for what, (some, every) in counts.items() if some < every]:
        figure.suptitle(", ".join(notes), fontsize=9.5, color=SOFT)
    return figure


def _unequal(profile: object) -> bool:
    """Whether devices are of different speed, or come and go."""
    if not isinstance(profile, Mapping):
        return False
    power, spread = profile.get("power"), profile.get("spread")
    speeds = power.split(":") if isinstance(power, str) else power if isinstance(power, Sequence) else []
    drawn = is_number(spread) and spread > 0
    return len(set(speeds) - {"..."}) > 1 or drawn or bool(profile.get("outages"))


def pattern(timeline: TimelineRecord) -> float:
    """Return the moment by which some worker has spoken for the fourth time, or whoever did for the last time."""
    talks = np.isin(timeline.activity, [ACTIVITIES.index(one) for one in TALK])
    worker, end = timeline.worker[talks], timeline.end[talks]
    if not len(worker):
        return float(timeline.end.max())
    fourth = [own[_TALKS - 1] for one in np.unique(worker) if len(own := end[worker == one]) >= _TALKS]
    return float(min(fourth, default=end.max()))


def spread_out(values: Sequence[float], most: int) -> list[bool]:
    """Choose at most so many, evenly from the lowest to the highest value."""
    order = np.argsort(values, kind="stable")
    chosen = order[np.linspace(0, len(order) - 1, min(most, len(order))).round().astype(int)]
    return [bool(place in chosen) for place in range(len(order))]


def within(timeline: TimelineRecord, until: float) -> TimelineRecord:
    """Return what lies before a moment."""
    keep = timeline.start < until
    worker, activity, start, end = timeline.worker, timeline.activity, timeline.start, timeline.end
    return TimelineRecord(worker[keep], activity[keep], start[keep], np.minimum(end[keep], until))


def _lanes(timelines: Sequence[TimelineRecord]) -> tuple[int, list[int]]:
    """Return how many workers there are, and who of them get a lane: from those who compute most to the least."""
    workers = np.unique(np.concatenate([timeline.worker for timeline in timelines]))
    compute = np.zeros(len(workers))
    for timeline in timelines:
        spent = timeline.seconds()
        own = np.searchsorted(workers, np.unique(timeline.worker))
        compute[own] += spent[:, ACTIVITIES.index("compute")] / spent.sum(axis=1)
    return len(workers), workers[spread_out(compute.tolist(), _LANES)].tolist()


def _draw(axes: Axes, timeline: TimelineRecord, lanes: Sequence[int], span: float, size: int) -> set[str]:
    """Draw a panel; return which activities occur."""
    shown = within(timeline, span)
    every = []
    for lane, worker in enumerate(lanes):
        own = shown.worker == worker
        pieces = shown.activity[own], shown.start[own], shown.end[own]
        bars = _stacked(*pieces) if _crowded(pieces[2] - pieces[1], span) else _whole(*pieces, span)
        bottom, top = (lane + _HEIGHT * (0.5 - part) for part in (bars.bottom, bars.top))
        every.append(_Bars(bars.activity, bars.left / size, bars.right / size, bottom, top))
    bars = _Bars(*map(np.concatenate, zip(*every, strict=True)))
    for activity in reversed(_COLOURS):
        _fill(axes, bars, activity)
    axes.set_ylim(len(lanes) - 0.4, -0.6)
    axes.set_yticks(range(len(lanes)), [str(worker) for worker in lanes])
    axes.tick_params(axis="y", labelsize=9, length=0)
    axes.spines["left"].set_visible(False)
    return {ACTIVITIES[one] for one in np.unique(bars.activity)}


def _mark(axes: Axes, cycles: CycleRecords, lanes: Sequence[int], span: float, size: int) -> set[str]:
    """Mark who averaged with whom, who told the others, and when those merged; return which marks occur."""
    moment = (cycles.met + cycles.averaged) / 2
    early = np.flatnonzero(moment < span)  # and known
    if not 0 < len(early) <= _RINGS:
        return set()
    lane_of = {worker: lane for lane, worker in enumerate(lanes)}
    points: dict[str, list[tuple[float, int]]] = {name: [] for name in _MARKS}
    for cycle in early.tolist():
        x = float(moment[cycle]) / size
        ring = [worker for worker in np.flatnonzero(cycles.selected[cycle]).tolist() if worker in lane_of]
        for worker in ring:
            name = "broadcaster" if worker == cycles.broadcaster[cycle] else "ring"
            points[name].append((x, lane_of[worker]))
        if len(ring) > 1:
            ends = [end(lane_of[worker] for worker in ring) for end in (min, max)]
            for colour, width in ((CARD, 3.0), (INK, 1.2)):
                axes.plot([x, x], ends, color=colour, lw=width, solid_capstyle="butt", zorder=3)
    for worker, when in cycles.merges.tolist():
        if worker in lane_of and when < span:
            points["merge"].append((when / size, lane_of[worker]))
    for name, where in points.items():
        if where:
            marker, inside, ms = _MARKS[name]
            edge = CARD if inside == INK else INK
            axes.plot(*zip(*where, strict=True), marker, mfc=inside, mec=edge, ms=ms, mew=0.8, clip_on=False, zorder=4)
    return {name for name, where in points.items() if where}


def _legend(figure: Figure, drawn: set[str]) -> None:
    """Name the activities, and below them the marks."""
    kinds: list[tuple[str, Any]] = [
        (kind, handle(colour, "s", "none")) for kind, colour in _COLOURS.items() if kind in drawn
    ]
    marks = []
    for name, (marker, inside, ms) in _MARKS.items():
        made = handle(INK, marker, "-" if name == "ring" else "none", mfc=inside)
        made.set(markersize=ms, markeredgewidth=0.8)
        marks += [(name, made)] if name in drawn else []
    most, entries = 6, kinds
    if marks:  # two rows, and matplotlib fills columns
        nothing, most = ("", handle(INK, "", "none")), max(len(marks), min(len(kinds), 5))
        entries = list(chain(*zip_longest(kinds[:5], [*marks, *kinds[5:]], fillvalue=nothing)))
    names, handles = zip(*entries, strict=True)
    legend(figure, list(handles), list(names), columns=most, length=1.0)


def _crowded(lasted: Floats, span: float) -> bool:
    return len(lasted) > _CROWD and bool(np.median(lasted) < _SHORT * span)


def _whole(activity: Ints, start: Floats, end: Floats, span: float) -> _Bars:
    """Return each piece as a bar."""
    talks = np.isin(activity, [ACTIVITIES.index(one) for one in TALK])
    end = np.where(talks, np.maximum(end, start + _THIN * span), end)
    return _Bars(activity, start, end, np.zeros(len(start)), np.ones(len(start)))


def _stacked(activity: Ints, start: Floats, end: Floats) -> _Bars:
    """Return the shares of the activities in even parts of the time, above one another."""
    edges = np.linspace(start[0], end[-1], _BUCKETS + 1)
    bars, bottom = [], np.zeros(_BUCKETS)
    for one in _COLOURS:
        index = ACTIVITIES.index(one)
        own = activity == index
        if own.any():
            passed = np.r_[0.0, np.repeat(np.cumsum(end[own] - start[own]), 2)[:-1]]  # at each start and end
            spent = np.diff(np.interp(edges, np.stack([start[own], end[own]], axis=1).ravel(), passed))
            top = bottom + spent / np.diff(edges)
            bars.append(_Bars(np.full(_BUCKETS, index), edges[:-1], edges[1:], bottom, top))
            bottom = top
    return _Bars(*map(np.concatenate, zip(*bars, strict=True)))


def _fill(axes: Axes, bars: _Bars, activity: Activity) -> None:
    """Draw all bars of one activity as one shape, which keeps the file small."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    own = bars.activity == ACTIVITIES.index(activity)
    left, right, bottom, top = bars.left[own], bars.right[own], bars.bottom[own], bars.top[own]
    corners = np.stack([left, bottom, right, bottom, right, top, left, top, left, bottom], axis=1)
    codes = [Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY] * len(left)
    if codes:
        axes.add_patch(PathPatch(Path(corners.reshape(-1, 2), codes), color=_COLOURS[activity], lw=0))


GANTT = Plot(
    "timeline",
    "Who does what when",
    "The beginning of each run in virtual time, a lane per worker: until some worker has communicated four times, in "
    "every strategy where it did. Above each panel, how much of that time all its workers computed. Fast devices "
    "that wait for slow ones leave grey stretches. Messages too short to be seen are drawn a little longer; where "
    "pieces are too many to be told apart, a lane shows shares of time instead, above one another. Blank is what was "
    "not recorded, such as after a client's last round. Of many workers or strategies, those shown range from the "
    "busiest to the most idle. HADFL begins with a warm-up of equal work. After it, a line joins those who average in "
    "a ring, half-way between its first message and its last; the diamond is who then sends the mean to the others, "
    "and a triangle is where one of them blends it in, without stopping. Only workers that are shown are marked, and "
    "nobody where rings are too many to be told apart. First seed only.",
    gantt,
)
