"""The figures: each a function of a run that returns a matplotlib figure, or None if it has nothing to show.

:data:`FIGURES` lists them in the order of the report; a new method adds what its users should see with one function
and one entry in the file of its topic. Figures belong to no global state (no pyplot), and the same run gives the same
files.
"""

from __future__ import annotations

from pathlib import Path

from sparsync.reporting.figures.accuracy import ACROSS, OF_CLIENTS
from sparsync.reporting.figures.agreement import MASKS
from sparsync.reporting.figures.batches import COMPOSITION, DEVIATION
from sparsync.reporting.figures.cadence import CADENCE
from sparsync.reporting.figures.canvas import styled
from sparsync.reporting.figures.cycles import SELECTION, VERSIONS
from sparsync.reporting.figures.density import DENSITY, LAYERS
from sparsync.reporting.figures.gantt import GANTT
from sparsync.reporting.figures.partition import PARTITION
from sparsync.reporting.figures.plot import Plot, svg
from sparsync.reporting.figures.schedules import BY_ROUND, SCHEDULES
from sparsync.reporting.figures.stragglers import STRAGGLERS
from sparsync.reporting.figures.sweep import TRADE_OFF
from sparsync.reporting.figures.traffic import BYTES_BY_KIND
from sparsync.reporting.figures.variance import VARIANCE
from sparsync.reporting.history import ComparisonRecord
from sparsync.storage import replacing, subfolder

__all__ = ["FIGURES", "Plot", "draw", "svg"]

FIGURES: tuple[Plot, ...] = (
    *ACROSS,
    OF_CLIENTS,
    TRADE_OFF,
    BYTES_BY_KIND,
    GANTT,
    VARIANCE,
    BY_ROUND,
    CADENCE,
    VERSIONS,
    SELECTION,
    DENSITY,
    *LAYERS,
    *MASKS,
    SCHEDULES,
    COMPOSITION,
    DEVIATION,
    STRAGGLERS,
    PARTITION,
)


def draw(run: ComparisonRecord, folder: str | Path) -> list[Path]:
    """Write every figure that has something to show as ``figures/<name>.png`` and ``.svg``.

    Parameters
    ----------
    run : ComparisonRecord
        What :func:`sparsync.reporting.load` read.
    folder : str or Path
        The run's folder; ``figures/`` is made inside.

    Returns
    -------
    list of Path
        The files, in the order of :data:`FIGURES`.
    """
    target = subfolder(Path(folder), "figures")
    files: list[Path] = []
    for plot in FIGURES:
        figure = plot.figure(run)
        if figure is None:
            continue
        with styled():  # ticks are made, and so styled, only when drawn
            png, vector = target / f"{plot.name}.png", target / f"{plot.name}.svg"
            with replacing(png) as partial:
                figure.savefig(partial, format="png", dpi=150, metadata={"Software": None})
            figure.set_layout_engine("none")  # as it was laid out: that takes as long as drawing
            with replacing(vector) as partial:
                metadata = {"Date": None, "Creator": None, "Title": plot.title}
                figure.savefig(partial, format="svg", metadata=metadata)
        files += [png, vector]
    return files
