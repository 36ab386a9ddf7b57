"""What a run has to say: its history read back, tables, figures and the report."""

from sparsync.reporting.figures import FIGURES, Plot, draw
from sparsync.reporting.history import History, Run
from sparsync.reporting.loading import load
from sparsync.reporting.report import write
from sparsync.reporting.summary import Row, headline, rows
from sparsync.reporting.tables import markdown, table
from sparsync.reporting.units import Spread, human_bytes, human_percent, human_seconds

__all__ = [
    "FIGURES",
    "History",
    "Plot",
    "Row",
    "Run",
    "Spread",
    "draw",
    "headline",
    "human_bytes",
    "human_percent",
    "human_seconds",
    "load",
    "markdown",
    "rows",
    "table",
    "write",
]
