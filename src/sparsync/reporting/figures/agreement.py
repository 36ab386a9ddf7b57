"""Masks: how far those of successive rounds and of different clients agree, and how many weights come and go."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from sparsync.reporting.figures.canvas import SOFT, new_axes, new_figure
from sparsync.reporting.figures.heat import bar_below, over_rounds, shade
from sparsync.reporting.figures.panels import Panel, noted, stacked
from sparsync.reporting.figures.pieces import (
    MAX_PANELS,
    count,
    count_ticks,
    drawn_names,
    max_ticks,
    percent,
    plain_number,
)
from sparsync.reporting.figures.plot import Plot
from sparsync.reporting.history import ComparisonRecord, Floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SIDE = 2  # panels beside each other
_OUTLIERS = 10  # per cent of the values: a dense first mask agrees with none, and must not fade all others


def agreement(run: ComparisonRecord) -> Figure | None:
    """Intersection over union of masks, from round to round and between the clients of a round."""
    return stacked(
        run,
        Panel("global mask, with that of the round before", noted("iou_rounds"), plain_number, top=1.0),
        Panel("between clients: mean, and down to the lowest pair", noted("iou_clients"), plain_number, top=1.0),
    )


def agreement_over_time(run: ComparisonRecord) -> Figure | None:
    """Heat maps of the global masks' agreement with those of earlier rounds: first seed of each strategy."""
    found = {label: pairs for label in run.labels if (pairs := _pairs(run, label)) is not None}
    if not found:
        return None
    from matplotlib.colors import Normalize

    shown = dict(list(found.items())[:MAX_PANELS])
    names = drawn_names(list(shown), 24)
    rows = math.ceil(len(shown) / _SIDE)
    figure = new_figure(1.0 + 2.2 * rows)
    grid = figure.add_gridspec(rows, _SIDE if len(shown) > 1 else 1)
    every = np.concatenate([values[np.isfinite(values)] for _, _, values in shown.values()])
    faintest = min(math.floor(10 * np.percentile(every, _OUTLIERS)) / 10, 0.9)
    norm = Normalize(faintest, 1.0)
    panels: list[Axes] = []
    for place, (label, (rounds, earlier, values)) in enumerate(shown.items()):
        axes = new_axes(figure, grid[place // _SIDE, place % _SIDE])
        image = _triangle(axes, rounds, earlier, values, norm)
        axes.set_title(names[label], fontsize=9.5)
        panels.append(axes)
        if place + _SIDE >= len(shown):
            axes.set_xlabel("round")
    figure.supylabel("earlier round", fontsize=10)
    bar_below(figure, image, panels, "intersection over union", plain_number, below=float(every.min()) < faintest)
    if len(found) > len(shown):
        figure.suptitle(f"first {len(shown)} of {len(found)} strategies with masks", fontsize=9.5, color=SOFT)
    return figure


def _pairs(run: ComparisonRecord, label: str) -> tuple[Floats, Floats, Floats] | None:
    """Return rounds (r,), earlier rounds (e,) and the agreement (e, r) of the first seed that has any."""
    for history in run.histories_of(label):
        pairs = [pair for pair in history.rounds.agreement if pair[1] < pair[0] and math.isfinite(pair[2])]
        if pairs:
            rounds, earlier = (np.unique([pair[i] for pair in pairs]).astype(float) for i in (0, 1))
            values = np.full((len(earlier), len(rounds)), np.nan)
            for later, before, value in pairs:
                values[np.searchsorted(earlier, before), np.searchsorted(rounds, later)] = value
            return rounds, earlier, values
    return None


def _triangle(axes: Axes, rounds: Floats, earlier: Floats, values: Floats, norm: Any) -> Any:
    across, up = (rounds[0], _end(rounds)), (earlier[0], _end(earlier))
    _, spread = over_rounds(rounds, values, *across)
    _, spread = over_rounds(earlier, spread.T, *up)
    extent = (across[0], across[1] + 1, up[0], up[1] + 1)
    look: Any = {"cmap": shade(0.06), "norm": norm, "interpolation": "nearest"}
    image = axes.imshow(spread.T, aspect="auto", origin="lower", extent=extent, **look)
    axes.yaxis.set_major_locator(max_ticks(4, whole=True))
    axes.yaxis.set_major_formatter(lambda value, _: count(value))
    count_ticks(axes, most=4)
    return image


def _end(rounds: Floats) -> float:
    """Return the last round that the last column stands for: it is as wide as the others."""
    return float(rounds[-1] + (np.median(np.diff(rounds)) if len(rounds) > 1 else 1.0) - 1.0)


def regrowth(run: ComparisonRecord) -> Figure | None:
    """How many weights wake up and fall asleep, in clients and where the server chooses its mask anew."""
    return stacked(
        run,
        Panel("regrown: alive after training, not before", noted("regrown"), count, "counts"),
        Panel("deactivated: alive, but not sent", noted("deactivated"), count, "counts"),
        Panel("returned to the mask when it was chosen anew", noted("returned"), count, "counts"),
        Panel("dropped from the mask when it was chosen anew", noted("dropped"), count, "counts"),
    )


def pruning(run: ComparisonRecord) -> Figure | None:
    """What a new mask takes from the model, and what was waiting outside the old one."""
    return stacked(
        run,
        Panel("\u03b4: what pruning took of the model's squared norm", noted("delta"), percent, "auto"),
        Panel("uploaded off the mask, as a share of the norm on it", noted("off_mask"), percent, "auto"),
    )


MASKS: tuple[Plot, ...] = (
    Plot(
        "mask-agreement",
        "Agreement of masks",
        "Intersection over union: near 1 from round to round means that the sparse pattern has settled; a band "
        "that hangs far below the mean of the clients means that some of them want other weights.",
        agreement,
    ),
    Plot(
        "mask-history",
        "Masks against earlier ones",
        "Each row holds one earlier global mask against all that followed: full colour means that it has not moved "
        "since, a row that fades that the model wandered off. First seed only.",
        agreement_over_time,
    ),
    Plot(
        "regrowth",
        "Weights that come and go",
        "Weights per round, clients' means, logarithmic above one: at zero the mask is frozen, a level that stays "
        "high is a mask that never settles. With several clients the band reaches from the lowest to the highest.",
        regrowth,
    ),
    Plot(
        "pruning-quality",
        "What a new mask costs",
        "Marks stand at rounds that chose a mask anew: peaks of \u03b4 are rounds that pruned too much at once, and a "
        "large share off the mask is what error feedback has to act on.",
        pruning,
    ),
)
