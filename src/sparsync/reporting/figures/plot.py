"""A figure that a report can hold: its name, what it says, and the function that draws it."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sparsync.reporting.figures.canvas import styled
from sparsync.reporting.figures.pieces import without_strategies
from sparsync.reporting.history import ComparisonRecord

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
    function: Callable[[ComparisonRecord], Figure | None]

    def figure(self, run: ComparisonRecord) -> Figure | None:
        """Draw it, whatever the user's own matplotlib settings are."""
        with styled():
            return self.function(run)


def svg(plot: Plot, run: ComparisonRecord) -> str | None:
    """Return one figure as SVG text for the page, which names the strategies, with names that no other figure has."""
    figure = plot.figure(run)
    if figure is None:
        return None
    buffer = io.StringIO()
    with styled(salt=plot.name):
        without_strategies(figure)
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()
