"""Densities: of what travels, and of each layer's weights and activations."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sparsync.reporting.figures.canvas import SOFT, WARN, new_axes, new_figure
from sparsync.reporting.figures.heat import bar_below, over_rounds, shade
from sparsync.reporting.figures.panels import Panel, noted, stacked
from sparsync.reporting.figures.pieces import (
    MAX_PANELS,
    count,
    count_ticks,
    drawn_names,
    handle,
    legend,
    percent,
    printable,
)
from sparsync.reporting.figures.plot import Plot
from sparsync.reporting.history import ComparisonRecord, Floats, RoundRecords

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FAINTEST = 1e-4  # densities below it look alike
_TALLEST = 9.0  # inches of all panels, unless that is too little for each


def density_of_messages(run: ComparisonRecord) -> Figure | None:
    """How much of the model travels down and up, against the target."""

    def target(rounds: RoundRecords) -> Floats:
        return 1.0 - rounds.of("sparsity_target")

    return stacked(
        run,
        Panel("downlink: the global model", noted("down_density"), percent, "auto", 1.0, target),
        Panel("uplink: mean over clients, and their range", noted("up_density"), percent, "auto", 1.0, target),
        reference="target density",
    )


def density_of_layers(run: ComparisonRecord) -> Figure | None:
    """The global model's density, layer by layer and round by round."""
    return _by_layer(run, "layer_density", "density of the global model")


def density_of_activations(run: ComparisonRecord) -> Figure | None:
    """How dense the pruned activations really were, layer by layer and round by round."""
    return _by_layer(run, "act_density", "density of the activations, mean over clients")


class _Layers(NamedTuple):
    """One strategy's densities by layer."""

    names: list[str]
    rounds: Floats  # (r,)
    values: Floats  # (layers, r)

    @property
    def empty(self) -> str:
        """Which layers were empty, and since when."""
        since = {
            name: self.rounds[np.flatnonzero(row == 0)[0]]
            for name, row in zip(self.names, self.values, strict=True)
            if (row == 0).any()
        }
        texts = [f"{_tail(name)} from round {count(first)}" for name, first in since.items()]
        more = f" and {len(texts) - 2} more" if len(texts) > 2 else ""
        return f"empty: {', '.join(texts[:2])}{more}" if texts else ""


def _by_layer(run: ComparisonRecord, key: str, label: str) -> Figure | None:
    """Draw a panel per strategy: layers from the input down, rounds to the right, and the last density beside."""
    found = {name: layers for name in run.labels if (layers := _layers(run, name, key)) is not None}
    if not found:
        return None
    from matplotlib.colors import LogNorm

    shown = dict(list(found.items())[:MAX_PANELS])
    names = drawn_names(list(shown), 60)
    most = max(_TALLEST / len(shown), 1.4)
    heights = [min(max(0.2 * len(layers.names), 0.7), most, 2.8) for layers in shown.values()]
    figure = new_figure(1.2 + sum(height + 0.42 for height in heights))
    grid = figure.add_gridspec(len(shown), 1, height_ratios=heights)
    values = np.concatenate([layers.values.ravel() for layers in shown.values()])
    positive = values[values > 0]
    high = float(positive.max()) if len(positive) else 1.0
    low = max(float(positive.min()), _FAINTEST) if len(positive) else 0.5
    norm = LogNorm(min(low, high / 2), high)
    first = min(layers.rounds[0] for layers in shown.values())
    last = max(layers.rounds[-1] for layers in shown.values())
    panels = []
    for place, (name, layers) in enumerate(shown.items()):
        axes = new_axes(figure, grid[place, 0])
        image = _heat(axes, layers, norm, (first, last), every=math.ceil(0.17 * len(layers.names) / heights[place]))
        heading = names[name]
        axes.set_title(f"{heading}\n{printable(layers.empty)}" if layers.empty else heading, fontsize=9.5)
        panels.append(axes)
    panels[-1].set_xlabel("round; on the right the last density")
    bar_below(figure, image, panels, label, percent)
    if any(layers.empty for layers in shown.values()):
        legend(figure, [handle(WARN, "", "-")], ["nothing left in the layer"], columns=1)
    if len(found) > len(shown):
        figure.suptitle(f"first {len(shown)} of {len(found)} strategies", fontsize=9.5, color=SOFT)
    return figure


def _layers(run: ComparisonRecord, label: str, key: str) -> _Layers | None:
    for history in run.histories_of(label):
        columns = history.rounds.by_layer(key)
        if columns:
            values = np.array(list(columns.values()))
            known = np.isfinite(values).any(axis=0)
            if known.any():
                names = list(columns)
                if all(name.endswith(".weight") for name in names):
                    names = [name.removesuffix(".weight") for name in names]
                return _Layers(names, history.rounds.number[known], values[:, known])
    return None


def _heat(axes: Axes, layers: _Layers, norm: Any, ends: tuple[float, float], every: int) -> Any:
    """Draw one strategy between two rounds, with the name of every so many layers."""
    rounds, rows, (first, last) = layers.rounds, len(layers.names), ends
    _, spread = over_rounds(rounds, layers.values, first, last)
    extent = (first - 0.5, last + 0.5, rows - 0.5, -0.5)
    image = axes.imshow(
        np.where(spread > 0, spread, np.nan),
        aspect="auto",
        cmap=shade(0.1),
        norm=norm,
        extent=extent,
        interpolation="nearest",
    )
    until = np.r_[rounds[1:], last + 1]
    for row, values in enumerate(layers.values):
        empty = values == 0
        axes.hlines(np.full(empty.sum(), row), rounds[empty] - 0.5, until[empty] - 0.5, color=WARN, lw=2.2)
    axes.set_yticks(range(0, rows, every), list(drawn_names(layers.names[::every], 18).values()))
    axes.tick_params(axis="y", labelsize=9, length=0)
    for row in range(0, rows, every):
        known = layers.values[row][np.isfinite(layers.values[row])]
        text = _two_digits(known[-1]) if len(known) else ""
        axes.text(1.015, row, text, transform=axes.get_yaxis_transform(), va="center", fontsize=9, color=SOFT)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    count_ticks(axes)
    return image


def _tail(name: str, width: int = 18) -> str:
    """Keep the end of a layer's name, which tells it from the others."""
    return name if len(name) <= width else "…" + name[1 - width :]


def _two_digits(fraction: float) -> str:
    return f"{100 * fraction:.0f} %" if fraction >= 0.1 else f"{100 * fraction:.2g} %"


DENSITY = Plot(
    "density-rounds",
    "Density of what travels",
    "The part of the prunable weights that is not zero, down to the clients and up to the server: both should come to "
    "rest at the dashed target, and a downlink that stays above it sends what clients disagree on.",
    density_of_messages,
)
LAYERS: tuple[Plot, ...] = (
    Plot(
        "layer-density",
        "Density of layers",
        "Layers from the input down, rounds to the right, on a logarithmic scale: look for a layer that fades away "
        "while others stay, since an empty one cuts the model in two. First seed only.",
        density_of_layers,
    ),
    Plot(
        "activation-density",
        "Density of activations",
        "What was really left of the activations for the backward pass: layers below the asked density show where "
        "activations were zero before they were pruned. First seed only.",
        density_of_activations,
    ),
)
