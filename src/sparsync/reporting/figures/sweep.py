"""One option over several values: what it buys, and what it is paid with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sparsync.reporting.epochs import seconds_per_epoch
from sparsync.reporting.figures.canvas import INK, SOFT, new_axes, new_figure
from sparsync.reporting.figures.pieces import (
    columns_for,
    count,
    drawn_names,
    handle,
    legend,
    legend_height,
    line,
    log_ticks,
    max_ticks,
    percent,
    plain_number,
    printable,
    tick,
    time_unit,
)
from sparsync.reporting.figures.plot import Plot
from sparsync.reporting.history import ComparisonRecord, Floats, Result
from sparsync.reporting.palette import LineLook, looks, shortened
from sparsync.reporting.sweeps import Sweep, references, sweeps
from sparsync.reporting.units import human_bytes, human_percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST = 3  # options
_WIDE = 8.0  # times: from here on an axis is logarithmic
_DASHES = (4.0, 4.0)
_LETTER = 0.024  # of the axes' width


class _Quantity(NamedTuple):
    """What is drawn over the option's values; a cost is drawn from zero, or in factors."""

    title: str
    value: Callable[[Result], float | None]
    writer: Callable[[float], str]
    is_cost: bool = True


def trade_off(run: ComparisonRecord) -> Figure | None:
    """What an option's value does to accuracy, and to what the method saves: bytes, or the time of an epoch."""
    found = {key: several for key, several in sweeps(run).items() if _quantities(run, several)}
    if not found:
        return None
    shown, look = dict(list(found.items())[:_MOST]), looks(run.labels)
    curves = [sweep for several in shown.values() for sweep in several]
    plain = dict.fromkeys(label for several in shown.values() for label in _held_against(run, several))
    names = drawn_names([*(sweep.name for sweep in curves), *plain])
    panels = {key: _quantities(run, several) for key, several in shown.items()}
    rows = sum(map(len, panels.values()))
    figure = new_figure(0.3 + 1.75 * rows + 0.25 * len(shown) + legend_height(names))
    grid = iter(figure.add_gridspec(rows, 1))
    for (strategy, option), several in shown.items():
        whose = "" if len(shown) == 1 else f"{printable(strategy)}: "
        first: Axes | None = None
        for quantity in panels[strategy, option]:
            axes = new_axes(figure, next(grid), sharex=first)
            first = first or axes
            _draw(axes, run, several, quantity, look)
            axes.set_title(whose + quantity.title, fontsize=10)
            axes.tick_params(axis="x", labelbottom=quantity is panels[strategy, option][-1])
        axes.set_xlabel(printable(option))
        _along(axes, sorted({value for sweep in several for value in sweep.labels}))
    handles = [handle(of.colour, of.marker, "-", dashes=of.dashes) for of in (look[sweep.first] for sweep in curves)]
    handles += [handle(look[label].colour, "", "-", dashes=_DASHES) for label in plain]
    legend(figure, handles, list(names.values()), columns_for(names))
    if len(found) > len(shown):
        figure.suptitle(f"first {len(shown)} of {len(found)} options", fontsize=9.5, color=SOFT)
    return figure


def _held_against(run: ComparisonRecord, several: Sequence[Sweep]) -> list[str]:
    own = {label for sweep in several for label in sweep.labels.values()}
    return [label for label in references(run, several[0].unit) if label not in own]


def _quantities(run: ComparisonRecord, several: Sequence[Sweep]) -> list[_Quantity]:
    """Return what there is to draw, from top to bottom."""
    results = [result for sweep in several for label in sweep.labels.values() for result in run.of(label)]
    gain = _Quantity("accuracy at the end", lambda result: result.accuracy, percent, is_cost=False)
    if run.target is not None and run.experiment.get("stop_at_target", True) and all(r.reached for r in results):
        title = f"steps to {human_percent(run.target)} accuracy"
        gain = _Quantity(title, lambda result: result.steps_to_target, count)
    cost = _Quantity("bytes, whole run", lambda result: result.bytes.get("total"), human_bytes)
    if several[0].unit == "epochs":
        unit, size = time_unit(max(seconds_per_epoch(result) or 0.0 for result in results))
        title = f"virtual time per epoch ({unit})"
        cost = _Quantity(title, lambda result: _waited(result, size), count)
    labels = [label for sweep in several for label in sweep.labels.values()]
    return [one for one in (gain, cost) if any(len(_seeds(run, label, one)) for label in labels)]


def _waited(result: Result, size: int) -> float | None:
    """Virtual time of an epoch that has to wait for clients; None where none take part, as in centralised training."""
    seconds = seconds_per_epoch(result) if result.bytes.get("total") else None
    return None if seconds is None else seconds / size


def _draw(
    axes: Axes, run: ComparisonRecord, several: Sequence[Sweep], quantity: _Quantity, look: Mapping[str, LineLook]
) -> None:
    """Draw a curve through the means over seeds, the band from the lowest to the highest, and plain strategies."""
    held_against = {label: _seeds(run, label, quantity) for label in _held_against(run, several)}
    plain = {label: float(known.mean()) for label, known in held_against.items() if len(known)}
    values = list(plain.values())
    for sweep in several:
        own = {x: known for x, label in sweep.labels.items() if len(known := _seeds(run, label, quantity))}
        mean, low, high = ([float(end(known)) for known in own.values()] for end in (np.mean, np.min, np.max))
        line(axes, np.array(list(own)), np.array(mean), look[sweep.first])
        axes.fill_between(list(own), low, high, color=look[sweep.first].colour, alpha=0.16, lw=0)
        values += low + high
    for place, (label, value) in enumerate(plain.items()):  # where they coincide, each shows in the other's gaps
        axes.axhline(value, color=look[label].colour, lw=1.3, ls=(place * _DASHES[0], _DASHES), zorder=1.5)
    _scale(axes, quantity, min(values), max(values))
    axes.grid(visible=True)
    if quantity.is_cost and axes.get_yscale() == "linear" and plain:
        _in_terms_of(axes, *next(iter(plain.items())))


def _seeds(run: ComparisonRecord, label: str, quantity: _Quantity) -> Floats:
    """Return what is known, one value for each seed."""
    values = np.array([quantity.value(result) for result in run.of(label) if result.error is None], np.float64)
    return np.asarray(values[np.isfinite(values)])


def _scale(axes: Axes, quantity: _Quantity, low: float, high: float) -> None:
    if quantity.is_cost and high > _WIDE * low > 0:
        axes.set_yscale("log")
        room = (high / low) ** 0.08
        axes.set_ylim(low / room, high * room)
        log_ticks(axes, quantity.writer, axis="y")
        return
    room = 0.12 * (high - low) or 0.01
    if quantity.is_cost:
        axes.set_ylim(0, 1.1 * high or 1.0)
    else:
        axes.set_ylim(low - room, high + room)
    axes.yaxis.set_major_locator(max_ticks(5))
    axes.yaxis.set_major_formatter(lambda value, _: tick(quantity.writer, value))


def _in_terms_of(axes: Axes, label: str, value: float) -> None:
    """Put a second scale to the right: relative to a plain strategy."""
    functions: Any = (lambda y: y / value, lambda y: y * value)  # matplotlib's types allow for bytes, too
    relative = axes.secondary_yaxis("right", functions=functions)
    relative.yaxis.set_major_locator(max_ticks(5))
    relative.yaxis.set_major_formatter(lambda y, _: f"{plain_number(y)}\u00d7")
    relative.tick_params(labelsize=9.5, color=SOFT, labelcolor=INK)
    axes.set_title(f"relative to {printable(shortened(label, 20))}", loc="right", fontsize=9.5, color=SOFT)


def _along(axes: Axes, values: list[float]) -> None:
    """Mark the values along the x axis, and name those that there is room for."""
    sizes = [abs(value) for value in values if value]
    if max(sizes) > _WIDE * min(sizes):
        if values[0] > 0:
            axes.set_xscale("log")
        else:
            axes.set_xscale("symlog", linthresh=min(sizes), linscale=0.5)
    axes.margins(x=0.04)
    places = (axes.transScale + axes.transLimits).transform([(value, 0.5) for value in values])[:, 0]
    named, end = [], -np.inf
    for value, place in zip(values, places, strict=True):
        half = _LETTER * (len(plain_number(value)) + 1) / 2
        if place - half >= end:
            named.append(value)
            end = place + half
    axes.set_xticks(named, [plain_number(value) for value in named])
    unnamed = [value for value in values if value not in named]
    axes.set_xticks(unnamed, [""] * len(unnamed), minor=True)


TRADE_OFF = Plot(
    "trade-off",
    "What an option trades",
    "Strategies that differ in one number only, over that number: what it does to accuracy, and what is paid, in bytes "
    "or, of split learning, in virtual time per epoch. Where every run ended at the target, the steps to it "
    "stand for accuracy. With several seeds, a line is their mean and the band reaches from the lowest to the highest; "
    "dashed lines are the plain strategies that need no such number.",
    trade_off,
)
