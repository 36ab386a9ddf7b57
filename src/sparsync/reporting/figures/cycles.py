"""HADFL's cycles: how well versions were forecast, and who was selected how often."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sparsync.reporting.figures.canvas import CARD, HEAT, INK, LINE, SOFT, new_axes, new_figure
from sparsync.reporting.figures.gantt import spread_out
from sparsync.reporting.figures.pieces import count, count_ticks, drawn_names, handle, legend, max_ticks, percent
from sparsync.reporting.figures.plot import Plot
from sparsync.reporting.figures.variance import thinned
from sparsync.reporting.history import ComparisonRecord, CycleRecords
from sparsync.reporting.palette import LineLook, looks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_STRATEGIES = 3
_DEVICES = 6  # with a curve
_BARS = 20
_POINTS = 100
_CHANCE = 2  # standard deviations
_FAINT = 0.4


def versions(run: ComparisonRecord) -> Figure | None:
    """Versions of some devices over the cycles and what they were forecast to be, the error below: first seeds."""
    found = _found(run)
    if not found:
        return None
    shown = dict(list(found.items())[:_STRATEGIES])
    names, most = drawn_names(list(shown), 48), max(cycles.versions.shape[1] for cycles in shown.values())
    steps = np.zeros(most)
    for cycles in shown.values():
        steps[: cycles.versions.shape[1]] += np.nan_to_num(np.nanmax(cycles.versions, axis=0, initial=0))
    devices = np.flatnonzero(spread_out(steps.tolist(), _DEVICES)).tolist()
    look = dict(zip(devices, looks([str(device) for device in devices]).values(), strict=True))
    figure = new_figure(0.85 + 3.1 * len(shown))
    grid = figure.add_gridspec(2 * len(shown), 1, height_ratios=[1.5, 1] * len(shown))
    for place, (label, cycles) in enumerate(shown.items()):
        upper = new_axes(figure, grid[2 * place, 0])
        lower = new_axes(figure, grid[2 * place + 1, 0], sharex=upper)
        _versions(upper, cycles, look)
        _errors(lower, cycles, look)
        upper.set_title(f"{names[label]}\nversion (local steps)", fontsize=10)
        lower.set_title("forecast minus version", fontsize=10)
        upper.tick_params(axis="x", labelbottom=False)
        for axes in (upper, lower):
            axes.grid(visible=True, axis="y")
            axes.yaxis.set_major_locator(max_ticks(5))
            axes.yaxis.set_major_formatter(lambda value, _: count(value).replace("-", "\u2212"))
    count_ticks(lower)
    lower.set_xlabel("cycle")
    handles = [handle(look[device].colour, look[device].marker, "-") for device in devices]
    handles.append(handle(INK, "o", "none", mfc=CARD))
    legend(figure, handles, [*(f"worker {device}" for device in devices), "forecast"], columns=4, length=1.8)
    notes = [f"first {len(shown)} of {len(found)} strategies"] if len(shown) < len(found) else []
    notes += [f"{len(devices)} of {most} workers"] if len(devices) < most else []
    if notes:
        figure.suptitle(", ".join(notes), fontsize=9.5, color=SOFT)
    return figure


def selection(run: ComparisonRecord) -> Figure | None:
    """How often each device averaged beside how often it was expected to: first seeds."""
    found = _found(run)
    if not found:
        return None
    shown = dict(list(found.items())[:_STRATEGIES])
    names = drawn_names(list(shown), 48)
    figure = new_figure(1.0 + 1.9 * len(shown))
    grid = figure.add_gridspec(len(shown), 1)
    for place, (label, cycles) in enumerate(shown.items()):
        axes = new_axes(figure, grid[place, 0])
        devices = _selection(axes, cycles)
        everyone = cycles.units.shape[1]
        some = f", {len(devices)} of {count(everyone)} workers" if len(devices) < everyone else ""
        cycle = "cycle" if len(cycles) == 1 else "cycles"
        axes.set_title(f"{names[label]}\n{count(len(cycles))} {cycle}{some}", fontsize=10)
    axes.set_xlabel("worker; below, its units of work per hyperperiod")
    figure.supylabel("cycles in which it averaged", fontsize=10)
    handles = [handle(HEAT, "s", "none"), handle(HEAT, "s", "none"), handle(INK, "D", "-", mfc=CARD)]
    handles[1].set_alpha(_FAINT)
    legend(figure, handles, ["as broadcaster", "otherwise", "expected"], columns=3, length=1.4)
    if len(shown) < len(found):
        figure.suptitle(f"first {len(shown)} of {len(found)} strategies", fontsize=9.5, color=SOFT)
    return figure


def _found(run: ComparisonRecord) -> dict[str, CycleRecords]:
    """Return each strategy's cycles with the first seed that has some."""
    found = run.firsts(lambda history: len(history.cycles) > 0)
    return {label: history.cycles for label, history in found.items()}


def _versions(axes: Axes, cycles: CycleRecords, look: dict[int, LineLook]) -> None:
    for device, own in look.items():
        keep = _drawn(cycles, device)
        x, version, predicted = cycles.number[keep], cycles.versions[keep, device], cycles.predicted[keep, device]
        every = max(1, len(x) // 12)
        (line,) = axes.plot(x, version, color=own.colour, lw=1.3, marker=own.marker, ms=4.0, mec=CARD, mew=0.4)
        line.set_markevery(every)
        axes.plot(x[::every], predicted[::every], "o", mec=own.colour, mfc="none", ms=6.5, mew=1.0)
    axes.set_ylim(bottom=0)


def _errors(axes: Axes, cycles: CycleRecords, look: dict[int, LineLook]) -> None:
    axes.axhline(0, color=SOFT, lw=0.8)
    for device, own in look.items():
        keep = _drawn(cycles, device)
        error = (cycles.predicted - cycles.versions)[keep, device]
        (line,) = axes.plot(cycles.number[keep], error, color=own.colour, lw=1.3, marker=own.marker, ms=4.0)
        line.set_markevery(max(1, len(error) // 12))


def _drawn(cycles: CycleRecords, device: int) -> NDArray[np.intp]:
    """Return the indices of some cycles of a device, with the worst forecasts among them; absences leave gaps."""
    error = (cycles.predicted - cycles.versions)[:, device] if device < cycles.versions.shape[1] else np.empty(0)
    return thinned(error, _POINTS)


def _selection(axes: Axes, cycles: CycleRecords) -> list[int]:
    """Draw a panel; return whose bars it has."""
    there = np.isfinite(cycles.expected)
    expected = np.nan_to_num(cycles.expected)
    seen = np.maximum(there.sum(axis=0), 1)
    mean, chance = expected.sum(axis=0) / seen, np.sqrt((expected * (1 - expected)).sum(axis=0)) / seen
    selected = cycles.selected.sum(axis=0) / seen
    broadcast = np.bincount(cycles.broadcaster, minlength=len(seen)) / seen
    devices = np.flatnonzero(spread_out(cycles.units[-1].tolist(), _BARS)).tolist()
    x = np.arange(len(devices))
    axes.bar(x, broadcast[devices], width=0.62, color=HEAT, lw=0)
    others = (selected - broadcast)[devices]
    axes.bar(x, others, bottom=broadcast[devices], width=0.62, color=HEAT, alpha=_FAINT, lw=0)
    low, high = np.clip(mean - _CHANCE * chance, 0, 1), np.clip(mean + _CHANCE * chance, 0, 1)
    axes.vlines(x, low[devices], high[devices], color=INK, lw=1.0)
    axes.plot(x, mean[devices], "D", mec=INK, mfc=CARD, ms=5, mew=1.0)
    axes.set_xticks(x, [f"{device}\n{cycles.units[-1, device]:g}" for device in devices])
    axes.set_xlim(-0.6, len(devices) - 0.4)
    axes.set_ylim(0, 1.04)
    axes.yaxis.set_major_locator(max_ticks(5))
    axes.yaxis.set_major_formatter(lambda value, _: percent(value))
    axes.grid(visible=True, axis="y", color=LINE)
    return devices


VERSIONS = Plot(
    "versions",
    "Versions, predicted and actual",
    "HADFL's version of a device is how many local steps it has taken; circles are what the coordinator forecast for "
    "the end of that cycle, and the lower panel is how far off it was. A device that slows down falls below its "
    "forecast, and a forecast settles after a few cycles. Gaps are cycles that a device missed. First seed only.",
    versions,
)
SELECTION = Plot(
    "selection",
    "How often each device was selected",
    "The share of cycles, of those in which it was there, in which a device averaged with others; in full colour, "
    "those in which it also sent out the result, which costs it most. Diamonds are the probability with which it was "
    "to be selected, mean over cycles; lines reach two standard deviations of chance in either direction. "
    "First seed only.",
    selection,
)
