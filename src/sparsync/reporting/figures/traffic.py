"""What was sent, by kind: models, masks, activations, labels, and what steers a method."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from sparsync.reporting.figures.canvas import CARD, SOFT, new_axes, new_figure
from sparsync.reporting.figures.pieces import drawn_names, handle, legend, log_ticks, printable
from sparsync.reporting.figures.plot import Plot
from sparsync.reporting.history import ComparisonRecord
from sparsync.reporting.palette import MARKS, looks
from sparsync.reporting.summary import kinds, rows
from sparsync.reporting.units import human_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def bytes_by_kind(run: ComparisonRecord) -> Figure | None:
    """What each strategy sent, by kind, in both ways of counting."""
    table = [row for row in rows(run) if row.bytes.get("total") or row.paper_bytes.get("total")]
    values = [s.mean for row in table for book in (row.bytes, row.paper_bytes) for s in book.values() if s.mean > 0]
    if not values:
        return None
    names, look = drawn_names([row.label for row in table], 54), looks(run.labels)
    found = kinds(tuple(table))
    marks = [MARKS[i % len(MARKS)] for i in range(len(found))]
    figure = new_figure(0.75 + 0.66 * len(table) + 0.25 * math.ceil(len(found) / 4))
    axes = new_axes(figure)
    low, high = 10 ** math.floor(math.log10(min(values))), max(values)
    axes.set_xscale("log")
    axes.set_xlim(low, (high / low) ** 1.22 * low if high > low else 10 * low)
    ticks = []
    for i, row in enumerate(table):
        top, colour = 3.3 * i, look[row.label].colour
        name = names[row.label]
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
    log_ticks(axes, human_bytes)
    axes.set_xlabel("bytes, whole run")
    handles = [handle(SOFT, mark, "none") for mark in marks]
    legend(figure, handles, [printable(kind) for kind in found], columns=4, length=1.0)
    return figure


BYTES_BY_KIND = Plot(
    "bytes-by-kind",
    "Bytes by kind",
    "What the whole run sent. Bars end at the total, marks stand at the single kinds, on a logarithmic axis: "
    "marks do not add up by length. Filled (wire): what the topology moves, headers and both directions included; "
    "hollow (paper): as the method's authors count. With several seeds, means over those that ended without an "
    "error.",
    bytes_by_kind,
)
