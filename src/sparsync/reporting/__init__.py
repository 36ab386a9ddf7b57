"""What a run has to say: its history read back, tables, figures and the report."""

from sparsync.reporting.figures import FIGURES, Plot, draw
from sparsync.reporting.history import ComparisonRecord, History
from sparsync.reporting.loading import load
from sparsync.reporting.report import write
from sparsync.reporting.summary import StrategyRow, headline, rows
from sparsync.reporting.tables import markdown, table
from sparsync.reporting.units import Spread, human_bytes, human_percent, human_seconds

__all__ = [
    "FIGURES",
    "ComparisonRecord",
    "History",
    "Plot",
    "Spread",
    "StrategyRow",
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
