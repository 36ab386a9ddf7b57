"""The figures: each a function of a run that returns a matplotlib figure, or None if it has nothing to show.

:data:`FIGURES` lists them; a new method adds what its users should see with one function and one entry there.
Figures belong to no global state (no pyplot), and the same run gives the same files.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from sparsync.reporting.history import Checks, Evaluations, Run
from sparsync.reporting.palette import LIGHT, MARKS, Look, looks, short_names
from sparsync.reporting.summary import kinds, rows
from sparsync.reporting.units import human_bytes, human_percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["FIGURES", "Plot", "draw", "svg"]

Floats = NDArray[np.float64]
INK, SOFT, LINE, CARD, HEAT = (LIGHT[key] for key in ("ink", "soft", "line", "card", "heat"))
WIDTH = 5.0  # inches: text stays readable at a phone's width
STYLE: dict[str, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10.0,
    "text.usetex": False,
    "text.parse_math": False,  # labels are users' text: "$" means "$"
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": SOFT,
    "axes.facecolor": "none",
    "axes.labelsize": 10.0,
    "axes.titlesize": 10.0,
    "axes.titlelocation": "left",
    "axes.linewidth": 0.8,
    "axes.grid": False,
    "axes.unicode_minus": True,
    "figure.facecolor": CARD,
    "figure.edgecolor": CARD,
    "savefig.facecolor": "auto",
    "savefig.edgecolor": "auto",
    "savefig.bbox": None,
    "grid.color": LINE,
    "grid.linewidth": 0.7,
    "legend.fontsize": 9.5,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 5.0,
    "svg.fonttype": "none",
    "path.simplify": True,
}
MAX_PANELS = 6  # FDA strategies in one figure
CROWD = 60  # rounds that can be told apart in one panel


@dataclass(frozen=True)
class Plot:
    """A figure that a report can hold.

    Attributes
    ----------
    name : str
        Name of its files.
    title, caption : str
        What it shows, and how to read it.
    function : callable
        From a run to a figure, or to None if the run has nothing to show.
    """

    name: str
    title: str
    caption: str
    function: Callable[[Run], Figure | None]

    def figure(self, run: Run) -> Figure | None:
        """Draw it, whatever the user's own matplotlib settings are."""
        with _styled():
            return self.function(run)


def draw(run: Run, folder: str | Path) -> list[Path]:
    """Write every figure that has something to show as ``figures/<name>.png`` and ``.svg``.

    Parameters
    ----------
    run : Run
        What :func:`sparsync.reporting.load` read.
    folder : str or Path
        The run's folder; ``figures/`` is made inside.

    Returns
    -------
    list of Path
        The files, in the order of :data:`FIGURES`.
    """
    target = Path(folder) / "figures"
    target.mkdir(parents=True, exist_ok=True)
    files: list[Path] = []
    for plot in FIGURES:
        figure = plot.figure(run)
        if figure is None:
            continue
        with _styled():  # ticks are made, and so styled, only when drawn
            png, vector = target / f"{plot.name}.png", target / f"{plot.name}.svg"
            figure.savefig(png, dpi=150, metadata={"Software": None})
            figure.savefig(vector, metadata={"Date": None, "Creator": None, "Title": plot.title})
        files += [png, vector]
    return files


def svg(plot: Plot, run: Run) -> str | None:
    """Return one figure as SVG text, with names in it that no other figure of the page has."""
    figure = plot.figure(run)
    if figure is None:
        return None
    buffer = io.StringIO()
    with _styled(salt=plot.name):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


# --- the figures ------------------------------------------------------------------------------------------------------


def accuracy_against_bytes(run: Run) -> Figure | None:
    """Accuracy over all bytes sent so far, on a log axis: the method's promise in one picture."""
    return _accuracy(run, "bytes", "bytes sent by all workers so far", "log")


def accuracy_against_steps(run: Run) -> Figure | None:
    """Accuracy over steps: what saving bytes costs in training."""
    return _accuracy(run, "step", "steps", "linear")


def accuracy_against_seconds(run: Run) -> Figure | None:
    """Accuracy over virtual seconds: bytes and steps weighed by the devices and links of the experiment."""
    return _accuracy(run, "seconds", "virtual time", "auto")


def bytes_by_kind(run: Run) -> Figure | None:
    """What each strategy sent, by kind, in both ways of counting."""
    table = [row for row in rows(run) if row.bytes.get("total") or row.paper_bytes.get("total")]
    values = [s.mean for row in table for book in (row.bytes, row.paper_bytes) for s in book.values() if s.mean > 0]
    if not values:
        return None
    names, look = short_names([row.label for row in table], 54), looks(run.labels)
    found = kinds(tuple(table))
    marks = [MARKS[i % len(MARKS)] for i in range(len(found))]
    figure = _figure(0.75 + 0.66 * len(table) + 0.25 * math.ceil(len(found) / 4))
    axes = _axes(figure)
    low, high = 10 ** math.floor(math.log10(min(values))), max(values)
    axes.set_xscale("log")
    axes.set_xlim(low, (high / low) ** 1.22 * low if high > low else 10 * low)
    ticks = []
    for i, row in enumerate(table):
        top, colour = 3.3 * i, look[row.label].colour
        name = _printable(names[row.label])
        axes.text(0.0, top, name, transform=axes.get_yaxis_transform(), va="center", fontsize=9.5)
        for j, (way, book) in enumerate((("wire", row.bytes), ("paper", row.paper_bytes))):
            y = top + 0.95 * (j + 1)
            ticks.append((y, way))
            total = book.get("total")
            if total is None or total.mean <= 0:
                axes.text(low, y, " nothing sent", va="center", fontsize=9, color=SOFT)
                continue
            alpha = 0.25 if way == "wire" else 0.13
            axes.barh(y, total.mean - low, left=low, height=0.62, color=colour, alpha=alpha, lw=0)
            for mark, kind in zip(marks, found, strict=True):
                if kind in book and book[kind].mean > 0:
                    fill = colour if way == "wire" else CARD
                    axes.plot([book[kind].mean], [y], mark, color=colour, mfc=fill, ms=5.5, zorder=3)
            place, text = (total.mean, y), human_bytes(total.mean)
            axes.annotate(text, place, xytext=(7, 0), textcoords="offset points", va="center", fontsize=9)
    axes.set_yticks([y for y, _ in ticks], [way for _, way in ticks], fontsize=9, color=SOFT)
    axes.set_ylim(3.3 * len(table) - 0.8, -0.7)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(visible=True, axis="x")
    _log_ticks(axes, human_bytes)
    axes.set_xlabel("bytes, whole run")
    handles = [_handle(SOFT, mark, "none") for mark in marks]
    _legend(figure, handles, list(found), columns=4, handle=1.0)
    return figure


def variance_and_threshold(run: Run) -> Figure | None:
    """FDA's estimate at each check, the threshold, and when the models were averaged: first seed of each label."""
    shown = _with_checks(run)
    if not shown:
        return None
    names, look, panels = short_names([label for label, _ in shown], 60), looks(run.labels), shown[:MAX_PANELS]
    windows = [_last_rounds(checks) for _, checks in panels]
    count = len(panels) + sum(window is not None for window in windows)
    figure = _figure(0.8 + 1.95 * count)
    grid = figure.add_gridspec(count, 1)
    place = 0
    for (label, checks), window in zip(panels, windows, strict=True):
        colour = look[label].colour
        parts = [("whole run", 0, len(checks))] + ([] if window is None else [(window[0], window[1], len(checks))])
        for part, start, stop in parts:
            axes = _axes(figure, grid[place, 0])
            _checks(axes, checks, slice(start, stop), colour)
            heading = f"{_printable(names[label])}\n{part}: {_averagings(checks)}" if part == "whole run" else part
            axes.set_title(heading, fontsize=10)
            place += 1
    axes.set_xlabel("step")
    figure.supylabel("model variance", fontsize=10)
    exact = any(np.isfinite(checks.variance).any() for _, checks in panels)
    handles = [_handle(SOFT, "", "-"), _handle(INK, "", "--"), _handle(SOFT, "|", "none")]
    texts = ["estimate", "threshold", "models averaged"]
    if exact:
        handles.append(_handle(INK, "o", "none", mfc=CARD))
        texts.append("exact variance")
    _legend(figure, handles, texts, columns=2, handle=1.8)
    if len(shown) > len(panels):
        note = f"first {len(panels)} of {len(shown)} strategies that check a variance"
        figure.suptitle(note, fontsize=9.5, color=SOFT)
    return figure


def steps_per_round(run: Run) -> Figure | None:
    """How many steps passed between averagings, over training: what adaptivity does."""
    series: dict[str, tuple[Floats, Floats]] = {}
    for label in run.labels:
        for history in run.histories_of(label):
            found = _round_lengths(history.evaluations, history.checks)
            if found is not None:
                series[label] = found
                break
    if not series:
        return None
    look, names = looks(run.labels), short_names(list(series))
    figure = _figure(3.3 + _legend_height(names))
    axes = _axes(figure)
    lengths = np.concatenate([length for _, length in series.values()])
    for label, (step, length) in series.items():
        edges = np.unique(np.linspace(0, len(step), min(len(step), 60) + 1).astype(int))
        bins = [slice(a, b) for a, b in pairwise(edges)]
        x = np.array([step[b].mean() for b in bins])
        middle = np.array([np.median(length[b]) for b in bins])
        low, high = np.array([length[b].min() for b in bins]), np.array([length[b].max() for b in bins])
        if (high > low).any():
            axes.fill_between(x, low, high, color=look[label].colour, alpha=0.14, lw=0)
        _line(axes, x, middle, look[label])
    if lengths.max() > 20 * lengths.min():
        axes.set_yscale("log")
        _log_ticks(axes, _count, axis="y")
    else:
        axes.set_ylim(0, 1.12 * lengths.max())
    axes.xaxis.set_major_locator(_max_ticks(6))
    axes.xaxis.set_major_formatter(lambda value, _: _count(value))
    axes.grid(visible=True)
    axes.set_xlabel("step")
    axes.set_ylabel("steps per round")
    _labels_below(figure, names, look)
    return figure


def who_holds_what(run: Run) -> Figure | None:
    """How many samples of each class each worker holds: bubbles for a few workers, a heat map for many."""
    if run.partition is None or run.partition.counts.sum() <= 0:
        return None
    from matplotlib.colors import LinearSegmentedColormap, PowerNorm

    counts, names = run.partition.counts, run.partition.class_names
    workers, classes = counts.shape
    bubbles = workers <= 40 and classes <= 20
    if workers > 60:  # many workers: a pattern shows only when sorted
        counts = counts[np.lexsort((-counts.max(axis=1), counts.argmax(axis=1)))]
    figure = _figure(1.6 + min(max(0.26 * classes, 1.8), 6.0))
    grid = figure.add_gridspec(2, 1, height_ratios=[0.8, min(max(0.26 * classes, 1.8), 6.0)])
    axes = _axes(figure, grid[1, 0])
    total = _axes(figure, grid[0, 0], sharex=axes)
    x = np.arange(workers)
    total.fill_between(np.arange(-0.5, workers), *_steps(counts.sum(axis=1)), color=SOFT, alpha=0.45, lw=0, step="post")
    total.set_ylim(0, 1.08 * max(counts.sum(axis=1).max(), 1))
    total.set_yticks([0, int(counts.sum(axis=1).max())])
    total.set_title("samples per worker", fontsize=10)
    total.tick_params(axis="x", labelbottom=False, length=0)
    if bubbles:
        row, column = np.nonzero(counts)
        pitch = min(72 * (WIDTH - 1.0) / workers, 72 * 0.26)  # points between two bubbles
        size = (0.92 * pitch) ** 2 * counts[row, column] / counts.max()
        axes.scatter(row, column, s=size, color=HEAT, lw=0)
        axes.set_title(f"samples per class: the largest bubble is {_count(counts.max())}", fontsize=10)
        axes.grid(visible=True)
    else:
        shade = LinearSegmentedColormap.from_list("held", [(*_rgb(HEAT), 0.0), (*_rgb(HEAT), 1.0)])
        norm = PowerNorm(0.5, vmin=0, vmax=counts.max())  # one large holder must not fade all others
        image = axes.imshow(counts.T, aspect="auto", cmap=shade, norm=norm, interpolation="antialiased", origin="lower")
        bar = figure.colorbar(image, ax=[axes], pad=0.02, aspect=12, shrink=0.9)
        bar.outline.set_visible(False)
        bar.ax.tick_params(labelsize=9, color=SOFT, labelcolor=INK)
        axes.set_title("samples per class", fontsize=10)
    axes.set_xlim(-0.5, workers - 0.5)
    axes.set_ylim(classes - 0.5, -0.5)
    every = max(1, math.ceil(classes / 24))
    axes.set_yticks(range(0, classes, every), [_printable(_clip(name, 14)) for name in names[::every]])
    if workers <= 15:
        axes.set_xticks(x)
    axes.set_xlabel("worker" if workers <= 60 else f"{_count(workers)} workers, sorted by their largest class")
    axes.set_ylabel("class")
    return figure


FIGURES: tuple[Plot, ...] = (
    Plot(
        "accuracy-bytes",
        "Accuracy against bytes",
        "Further left is better: the same accuracy for fewer bytes. The axis is logarithmic, so equal distances are "
        "equal factors. Dots on the dashed line mark when a run reached the target. With several seeds, a line is "
        "their mean and the band reaches from the lowest to the highest; thin tails belong to single seeds. The "
        "accuracy axis may start above the first evaluations.",
        accuracy_against_bytes,
    ),
    Plot(
        "accuracy-steps",
        "Accuracy against steps",
        "What saving bytes costs in training: a curve further right needed more steps for the same accuracy.",
        accuracy_against_steps,
    ),
    Plot(
        "accuracy-seconds",
        "Accuracy against virtual time",
        "Virtual seconds charge each worker for its computing and each transfer for its link, as the experiment "
        "describes them; they are not the time that this simulation took.",
        accuracy_against_seconds,
    ),
    Plot(
        "bytes-by-kind",
        "Bytes by kind",
        "What the whole run sent. Bars end at the total, marks stand at the single kinds, on a logarithmic axis: "
        "marks do not add up by length. Filled (wire): what the topology moves, headers and both directions included; "
        "hollow (paper): as the method's authors count. With several seeds, means over those that ended without an "
        "error.",
        bytes_by_kind,
    ),
    Plot(
        "variance-threshold",
        "Variance estimate and threshold",
        "FDA averages the models when the estimated variance exceeds the threshold: a saw-tooth. Ticks along the top "
        "mark the averagings, circles the exact variance at that moment; the gap between estimate and circle is "
        "the monitor's slack. Where rounds are too many to be told apart, a line shows the estimate's running median "
        "and a band its lowest and highest values. First seed only.",
        variance_and_threshold,
    ),
    Plot(
        "steps-per-round",
        "Steps per round",
        "How long workers trained between two averagings. A flat line is a fixed period; a moving one adapts. For "
        "many rounds the line is a running median and the band reaches from the shortest to the longest. First seed "
        "only; where averagings were not recorded one by one, lengths are means between evaluations.",
        steps_per_round,
    ),
    Plot(
        "who-holds-what",
        "Who holds what",
        "Training samples by worker and class. Equal columns are IID data; few or empty cells per column mean that "
        "workers see only some classes.",
        who_holds_what,
    ),
)


# --- accuracy curves --------------------------------------------------------------------------------------------------


def _accuracy(run: Run, over: str, xlabel: str, scale: Literal["log", "linear", "auto"]) -> Figure | None:
    curves: dict[str, list[tuple[Floats, Floats, Floats]]] = {}
    for label in run.labels:
        for history in run.histories_of(label):
            x: Floats = getattr(history.evaluations, over)
            y, step = history.evaluations.accuracy, history.evaluations.step
            keep = np.isfinite(x) & np.isfinite(y) & ((x > 0) if scale == "log" else (x >= 0))
            if keep.any() and (over == "step" or x[keep].max() > 0):
                curves.setdefault(label, []).append((step[keep], x[keep], y[keep]))
    if not curves:
        return None
    size = 1
    if over == "seconds":  # one unit for the whole axis
        longest = max(x.max() for seeds in curves.values() for _, x, _ in seeds)
        unit, size = next((u for u in (("d", 86400), ("h", 3600), ("min", 60)) if longest >= 3 * u[1]), ("s", 1))
        xlabel = f"{xlabel} ({unit})"
        curves = {label: [(step, x / size, y) for step, x, y in seeds] for label, seeds in curves.items()}
    names = short_names(list(curves))
    look = looks(run.labels)
    figure = _figure(3.3 + _legend_height(names))
    axes = _axes(figure)
    ends = [x.max() for seeds in curves.values() for _, x, _ in seeds]
    if scale == "log" or (scale == "auto" and max(ends) > 15 * min(ends) > 0):
        axes.set_xscale("log")
    floor = _floor([max(y.max() for _, _, y in seeds) for seeds in curves.values()], run.target)
    hidden = []
    for label, seeds in curves.items():
        x, mean, low, high = _over_seeds(seeds)
        _line(axes, x, mean, look[label])
        if len(seeds) > 1:
            axes.fill_between(x, low, high, color=look[label].colour, alpha=0.16, lw=0)
            last = x[-1] if len(x) else 0.0
            for _, sx, sy in seeds:
                tail = sx > last
                axes.plot(sx[tail], sy[tail], color=look[label].colour, lw=0.8, alpha=0.7)
        if max(y.max() for _, _, y in seeds) < floor:
            hidden.append(label)
    lows, highs = ([f(y) for seeds in curves.values() for _, _, y in seeds] for f in (np.min, np.max))
    bottom, top = max(floor, float(min(lows))), float(max([*highs, run.target or 0.0]))
    margin = 0.05 * (top - bottom) or 0.05
    axes.set_ylim(bottom - margin, top + 1.6 * margin)
    if run.target is not None:
        axes.axhline(run.target, color=INK, lw=1.0, ls=(0, (4, 3)), zorder=1.5)
        key = {"bytes": "bytes_to_target", "step": "steps_to_target"}.get(over, "seconds_to_target")
        for result in run.results:
            reached = getattr(result, key)
            if result.label in curves and reached is not None and reached > 0:
                colour = look[result.label].colour
                axes.plot([reached / size], [run.target], "o", color=colour, mec=CARD, mew=0.8, ms=7, zorder=4)
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.4g} %")
    writer = human_bytes if over == "bytes" else _count
    if axes.get_xscale() == "log":
        visible = [x[y >= floor] for seeds in curves.values() for _, x, y in seeds if (y >= floor).any()]
        axes.set_xlim((min(x.min() for x in visible) if visible else min(ends)) / 1.3, 1.3 * max(ends))
        _log_ticks(axes, writer)
    else:
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(_max_ticks(6))
        axes.xaxis.set_major_formatter(lambda value, _: _tick(writer, value))
    axes.grid(visible=True)
    axes.set_xlabel(xlabel)
    axes.set_ylabel("accuracy")
    notes = {label: f"{names[label]} (below the axis)" if label in hidden else names[label] for label in names}
    _labels_below(figure, notes, look, run.target)
    return figure


def _over_seeds(seeds: list[tuple[Floats, Floats, Floats]]) -> tuple[Floats, Floats, Floats, Floats]:
    """Return mean x, mean, lowest and highest y at those steps that every seed has evaluated."""
    common = set.intersection(*(set(step.tolist()) for step, _, _ in seeds))
    chosen = [np.isin(step, list(common)) for step, _, _ in seeds]
    x = np.array([s[1][c] for s, c in zip(seeds, chosen, strict=True)])
    y = np.array([s[2][c] for s, c in zip(seeds, chosen, strict=True)])
    return x.mean(axis=0), y.mean(axis=0), y.min(axis=0), y.max(axis=0)


def _floor(best: list[float], target: float | None) -> float:
    """Where the accuracy axis may start: five times the error of a middling strategy, so that the end is readable."""
    middle = float(np.median(best))
    reference = min(middle, target) if target is not None else middle
    return 1 - 5 * (1 - reference)


# --- FDA's checks -----------------------------------------------------------------------------------------------------


def _with_checks(run: Run) -> list[tuple[str, Checks]]:
    found = []
    for label in run.labels:
        for history in run.histories_of(label):
            if np.isfinite(history.checks.estimate).any():
                found.append((label, history.checks))
                break
    return found


def _last_rounds(checks: Checks, rounds: int = 10) -> tuple[str, int] | None:
    """Return a title and the first index of a window on the last rounds; None if it would be most of the run."""
    ends = np.flatnonzero(checks.sync)
    if len(ends) < 3:
        return None
    back = min(rounds, len(ends) - 1)
    start = int(ends[-1 - back]) + 1
    if len(checks) - start > 0.6 * len(checks):
        return None
    return f"last {back} rounds", start


def _checks(axes: Axes, checks: Checks, part: slice, colour: str) -> None:
    step, estimate, threshold = checks.step[part], checks.estimate[part], checks.threshold[part]
    sync, variance = checks.sync[part], checks.variance[part]
    shown = np.concatenate([a[np.isfinite(a) & (a > 0)] for a in (estimate, threshold, variance)])
    log = bool(len(shown)) and shown.max() > 30 * np.percentile(shown, 3)
    y = np.where(np.isfinite(estimate) & ((estimate > 0) | (not log)), estimate, np.nan)
    crowded = int(sync.sum()) > CROWD or len(step) > 4000
    if crowded:  # single teeth would merge: show what they reach
        _band(axes, step, y, colour, min(max(int(sync.sum()) // 3, 25), 120))
    else:
        keep = _thin(y, 500)
        axes.plot(step[keep], y[keep], color=colour, lw=1.1, solid_joinstyle="round")
    if len(step) <= 60:
        axes.plot(step, y, ".", color=colour, ms=4)
    finite = np.isfinite(threshold) & (threshold > 0)
    if finite.any():
        changes = finite & np.r_[True, threshold[1:] != threshold[:-1]]
        changes[np.flatnonzero(finite)[-1]] = True
        line, height = step[changes], threshold[changes]
        axes.plot(line, height, color=INK, lw=1.2, ls=(0, (4, 3)), drawstyle="steps-post", zorder=3)
    exact = np.isfinite(variance) & ((variance > 0) | (not log))
    if exact.any():
        where = np.flatnonzero(exact)
        where = where[np.linspace(0, len(where) - 1, min(len(where), 120)).astype(int)]
        dense = len(where) > 40
        axes.plot(step[where], variance[where], "o", mec=INK, mfc=CARD, ms=2.6 if dense else 4.5, mew=0.7, zorder=4)
    if log:
        axes.set_yscale("log")
        low = max(np.percentile(shown, 0.5), shown.max() / 1e6)
        axes.set_ylim(low * 0.7, shown.max() * (shown.max() / low) ** 0.16)
        _log_ticks(axes, _plain_number, axis="y")
    elif len(shown):
        axes.set_ylim(0, 1.2 * shown.max())
    marks = step[sync]
    if len(marks) <= 2 * CROWD:
        place = np.full(len(marks), 0.965)
        axes.plot(marks, place, "|", color=SOFT, ms=6, mew=0.9, transform=axes.get_xaxis_transform(), zorder=2)
    if len(step) > 1:
        axes.set_xlim(step[0], step[-1])
    axes.xaxis.set_major_locator(_max_ticks(7, whole=True))
    axes.xaxis.set_major_formatter(lambda value, _: _count(value))
    axes.grid(visible=True, axis="y")


def _averagings(checks: Checks) -> str:
    count = int(checks.sync.sum())
    return f"{_count(count)} averaging{'' if count == 1 else 's'} in {_count(len(checks))} checks"


def _band(axes: Axes, x: Floats, y: Floats, colour: str, buckets: int) -> None:
    """Draw a long series as median and range of each bucket."""
    edges = np.unique(np.linspace(0, len(y), min(buckets, len(y)) + 1).astype(int))
    pieces = [(x[a:b], y[a:b][np.isfinite(y[a:b])]) for a, b in pairwise(edges)]
    pieces = [(px, py) for px, py in pieces if len(py)]
    middle = [px.mean() for px, _ in pieces]
    low, high = [py.min() for _, py in pieces], [py.max() for _, py in pieces]
    axes.fill_between(middle, low, high, color=colour, alpha=0.3, lw=0)
    axes.plot(middle, [np.median(py) for _, py in pieces], color=colour, lw=1.3)


def _thin(y: Floats, buckets: int) -> NDArray[np.intp]:
    """Return indices that keep the lowest and the highest value of each bucket, and both ends, in order."""
    if len(y) <= 2 * buckets:
        return np.arange(len(y))
    keep = {0, len(y) - 1}
    edges = np.linspace(0, len(y), buckets + 1).astype(int)
    for a, b in pairwise(edges):
        piece = y[a:b]
        if np.isfinite(piece).any():
            keep |= {a + int(np.nanargmin(piece)), a + int(np.nanargmax(piece))}
    return np.array(sorted(keep), dtype=np.intp)


def _round_lengths(evaluations: Evaluations, checks: Checks) -> tuple[Floats, Floats] | None:
    """Return (step at the round's end, steps in it): exact from checks, else means between evaluations."""
    if checks.sync.any():
        at = checks.step[checks.sync]
        before = np.r_[checks.step[0] - 1, at[:-1]]  # a check follows every step, the first one included
        return at, at - before
    known = np.isfinite(evaluations.syncs)
    step = np.r_[0.0, evaluations.step[known]]
    syncs = np.r_[0.0, evaluations.syncs[known]]
    ends = [0]  # join evaluations until enough rounds have ended:
    for i in range(len(step)):  # between two of them it may be one more or less
        if syncs[i] - syncs[ends[-1]] >= max(1.0, syncs[-1] / 12):
            ends.append(i)
    step, syncs = step[ends], syncs[ends]
    if len(step) < 2:
        return None
    return step[1:], np.diff(step) / np.diff(syncs)


# --- pieces -----------------------------------------------------------------------------------------------------------


def _styled(salt: str = "sparsync") -> AbstractContextManager[None]:
    import matplotlib

    settings: Any = {**STYLE, "svg.hashsalt": salt}
    return matplotlib.rc_context(settings)


def _figure(height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained", facecolor=CARD)
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=0.06, h_pad=0.06, hspace=0.03)  # type: ignore[union-attr,call-arg]
    return figure


def _axes(figure: Figure, place: Any = None, sharex: Axes | None = None) -> Axes:
    axes: Axes = figure.add_subplot(sharex=sharex) if place is None else figure.add_subplot(place, sharex=sharex)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.tick_params(labelsize=9.5, color=SOFT, labelcolor=INK, which="both")
    return axes


def _line(axes: Axes, x: Floats, y: Floats, look: Look) -> None:
    every = max(1, math.ceil(len(x) / 8))
    (line,) = axes.plot(x, y, color=look.colour, marker=look.marker, ms=4.5, mec=CARD, mew=0.5)
    line.set_markevery((every // 2, every))
    if look.dashes:
        line.set_dashes(look.dashes)


def _handle(colour: str, marker: str, line: str, mfc: str | None = None, dashes: Sequence[float] = ()) -> Any:
    from matplotlib.lines import Line2D

    handle = Line2D([], [], color=colour, marker=marker, ls=line, mfc=mfc or colour, ms=6 if marker == "|" else 5.5)
    if marker == "|":
        handle.set_markeredgewidth(1.2)
    if dashes:
        handle.set_dashes(dashes)
    return handle


def _labels_below(
    figure: Figure, names: Mapping[str, str], look: Mapping[str, Look], target: float | None = None
) -> None:
    handles = [_handle(look[label].colour, look[label].marker, "-", dashes=look[label].dashes) for label in names]
    texts = list(names.values())
    if target is not None:
        handles.append(_handle(INK, "", "-", dashes=(4, 3)))
        texts.append(f"target: {human_percent(target)}")
    _legend(figure, handles, texts, columns=_columns(names))


def _columns(names: Mapping[str, str]) -> int:
    longest = max(map(len, names.values()))
    return max(1, min(3, len(names), int((WIDTH - 0.2) / (0.55 + 0.086 * longest))))


def _legend_height(names: Mapping[str, str]) -> float:
    return 0.15 + 0.2 * math.ceil((len(names) + 1) / _columns(names))


def _legend(figure: Figure, handles: list[Any], texts: list[str], columns: int, handle: float = 2.6) -> None:
    texts = [_printable(text) for text in texts]
    texts = [f" {text}" if text.startswith("_") else text for text in texts]  # matplotlib would hide those names
    spaces = {"columnspacing": 1.4, "labelspacing": 0.35, "handletextpad": 0.5, "borderpad": 0.2}
    figure.legend(handles, texts, loc="outside lower left", ncols=columns, handlelength=handle, **spaces)


def _log_ticks(axes: Axes, writer: Callable[[float], str], axis: Literal["x", "y"] = "x") -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    low, high = axes.get_xlim() if axis == "x" else axes.get_ylim()
    decades = math.log10(high / low) if high > low > 0 else 1.0
    which = axes.xaxis if axis == "x" else axes.yaxis
    subs = (1.0, 2.0, 5.0) if decades < 2.2 else (1.0, 3.0) if decades < 3.2 and axis == "x" else (1.0,)
    which.set_major_locator(LogLocator(subs=subs, numticks=8))
    which.set_minor_formatter(NullFormatter())
    which.set_major_formatter(lambda value, _: _tick(writer, value))


def _max_ticks(most: int, whole: bool = False) -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(most, integer=whole, steps=[1, 2, 2.5, 5, 10])


def _tick(writer: Callable[[float], str], value: float) -> str:
    """Write a tick: as its unit does, but 10 MB rather than 10.0 MB."""
    number, _, unit = writer(value).partition(" ")
    if "." in number:
        number = number.rstrip("0").rstrip(".")
    return f"{number} {unit}".strip()


def _count(value: float) -> str:
    return f"{value:,.10g}".replace(",", "\u202f")


def _plain_number(value: float) -> str:
    return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e") if value < 1e-3 or value >= 1e5 else f"{value:g}"


def _rgb(colour: str) -> tuple[float, float, float]:
    return tuple(int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))  # type: ignore[return-value]


def _steps(heights: NDArray[np.int64]) -> tuple[NDArray[np.int64]]:
    return (np.r_[heights, heights[-1]],)


def _clip(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def _printable(text: str) -> str:
    """Replace what the figures' font cannot draw: a label is a user's text."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    font = get_font(findfont(FontProperties(family="DejaVu Sans")))
    return "".join(c if c.isprintable() and font.get_char_index(ord(c)) else "?" for c in text)
