"""How long the steps of split learning take, and whom they wait for."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from sparsync.reporting.figures.batches import with_clients
from sparsync.reporting.figures.canvas import INK, LINE, SOFT, new_axes, new_figure
from sparsync.reporting.figures.pieces import MAX_PANELS, count, count_ticks, drawn_names, handle, legend, max_ticks
from sparsync.reporting.figures.plot import Plot
from sparsync.reporting.figures.variance import thinned
from sparsync.reporting.history import ComparisonRecord, Floats, Ints, SplitSteps
from sparsync.reporting.palette import LineLook, looks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_STEPS = 120  # about so many, of whole epochs
_DOTS = 200  # twice as many, at most
_CLIENTS = 10  # with a row of their own
_COLOURED = 5
_FAINT = 0.25


class _Parts(NamedTuple):
    """What clients did in the first epoch, numbers of steps, (K,)."""

    took: Floats
    slowest: Floats
    late: Floats


def stragglers(run: ComparisonRecord) -> Figure | None:
    """Seconds of each step and whom it waited for, and what each client did in the first epoch: first seeds."""
    found = {label: steps for label, steps in with_clients(run).items() if np.isfinite(steps.seconds).any()}
    if not found:
        return None
    shown = dict(list(found.items())[:MAX_PANELS])
    names = drawn_names(list(shown), 48)
    clients = np.unique(np.concatenate([steps.asked[:, 1] for steps in shown.values()]))
    parts = {label: _parts(steps, clients) for label, steps in shown.items()}
    named, blamed = _of_interest(list(parts.values()))
    colours = {int(clients[i]): look for i, look in zip(blamed, looks([str(i) for i in blamed]).values(), strict=True)}
    rows = len(named) + (len(named) < len(clients))
    height = max(0.15 * rows, 1.0)
    figure = new_figure(0.9 + (height + 0.42) * len(shown))
    grid = figure.add_gridspec(len(shown), 2, width_ratios=[1.75, 1])
    first: tuple[Axes | None, Axes | None] = (None, None)
    longest = max(int(steps.within_epochs()[1][0]) for steps in shown.values())
    epochs = max(1, _STEPS // longest)
    for place, (label, steps) in enumerate(shown.items()):
        left = new_axes(figure, grid[place, 0], sharex=first[0], sharey=first[0])
        right = new_axes(figure, grid[place, 1], sharex=first[1])
        first = first[0] or left, first[1] or right
        _times(left, steps, epochs, colours)
        left.set_title(names[label], fontsize=9.5)
        _bars(right, parts[label], clients, named, colours)
        right.set_title("" if place else "by client", fontsize=9.5)
        for axes in (left, right):
            axes.tick_params(axis="x", labelbottom=place == len(shown) - 1)
    left.set_xlim(left=0)
    left.set_ylim(bottom=0)
    left.set_xlabel("step")
    count_ticks(left, most=5)
    right.set_xlim(0, 1.04 * max(float((one.took + one.late).max()) for one in parts.values()))
    right.set_xlabel("steps in epoch 1")
    count_ticks(right, most=4)
    handles, texts = [handle(SOFT, "s", "none"), handle(SOFT, "s", "none")], ["took part", "was the slowest"]
    handles[0].set_alpha(_FAINT)
    if any(one.late.any() for one in parts.values()):
        handles.append(handle(INK, "s", "none", mfc="none"))
        texts.append("was late, left out")
    legend(figure, handles, texts, columns=3, length=1.0)
    if len(found) > len(shown):
        figure.suptitle(f"first {len(shown)} of {len(found)} strategies", fontsize=9.5, color=SOFT)
    return figure


def _parts(steps: SplitSteps, clients: Ints) -> _Parts:
    first = steps.epoch == steps.epoch[0]
    late = steps.late[first[steps.late[:, 0]], 1]

    def counted(who: Floats | Ints) -> Floats:
        found = np.searchsorted(clients, who[np.isin(who, clients)])
        return np.bincount(found, minlength=len(clients)).astype(np.float64)

    return _Parts(counted(steps.given()[:, 1]), counted(steps.slowest[first]), counted(late))


def _of_interest(parts: list[_Parts]) -> tuple[list[int], list[int]]:
    """Return which clients, by index, get a row of their own, and who of them a colour: those who were waited for."""
    slowest, late = (np.sum([getattr(one, key) for one in parts], axis=0) for key in ("slowest", "late"))
    by_blame = np.lexsort((-late, -slowest))
    few = len(slowest) <= _CLIENTS
    named = np.sort(by_blame) if few else np.sort(by_blame[: _CLIENTS - 1])
    return named.tolist(), [int(i) for i in by_blame[:_COLOURED] if slowest[i]]


def _times(axes: Axes, steps: SplitSteps, epochs: int, colours: dict[int, LineLook]) -> None:
    place, _ = steps.within_epochs()
    starts = np.flatnonzero(place == 0)
    stop = int(starts[epochs]) if len(starts) > epochs else len(steps)
    for start in starts[1:epochs]:
        axes.axvline(steps.step[start] - 0.5, color=LINE, lw=0.8, zorder=0.5)
    step, seconds, slowest = steps.step[:stop], steps.seconds[:stop], steps.slowest[:stop]
    keep = thinned(seconds, _DOTS)
    step, seconds, slowest = step[keep], seconds[keep], slowest[keep]
    others = ~np.isin(slowest, list(colours))
    axes.plot(step[others], seconds[others], "o", color=SOFT, ms=2.5, mew=0)
    for client, look in colours.items():
        own = slowest == client
        axes.plot(step[own], seconds[own], look.marker, color=look.colour, ms=3.4, mew=0)
    axes.yaxis.set_major_locator(max_ticks(4))
    axes.yaxis.set_major_formatter(lambda value, _: _short(value))
    axes.grid(visible=True, axis="y")


def _short(seconds: float) -> str:
    return f"{count(1000 * seconds)} ms" if 0 < seconds < 1 else f"{count(seconds)} s"


def _bars(axes: Axes, parts: _Parts, clients: Ints, named: list[int], colours: dict[int, LineLook]) -> None:
    rest = np.setdiff1d(np.arange(len(clients)), named)
    texts = [count(client) for client in clients[named]]
    rows = [np.array([counted[i] for counted in parts]) for i in named]
    if len(rest):
        texts.append("others")
        rows.append(np.array([counted[rest].mean() for counted in parts]))
    for y, (took, slowest, late) in enumerate(rows):
        look = colours.get(int(clients[named[y]])) if y < len(named) else None
        axes.barh(y, took, height=0.72, color=SOFT, alpha=_FAINT, lw=0)
        axes.barh(y, slowest, height=0.72, color=look.colour if look else SOFT, lw=0)
        if late:
            axes.barh(y, late, left=took, height=0.66, color="none", ec=INK, lw=0.9)
    axes.set_yticks(range(len(rows)), texts)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.tick_params(axis="y", labelsize=9, length=0)
    axes.spines["left"].set_visible(False)


STRAGGLERS = Plot(
    "stragglers",
    "Step time and stragglers",
    "Left, virtual seconds of each step of the first epochs, coloured like the client that the others waited for; grey "
    "is any other. Right, how many steps of the first epoch each client took part in and how often it was the slowest, "
    "of many clients those who were it most often, and the mean of the others: an epoch is short if its stragglers are "
    "in few steps. First seed only.",
    stragglers,
)
