"""Who holds what: the partition of the training set."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sparsync.reporting.figures.canvas import HEAT, SOFT, WIDTH, new_axes, new_figure
from sparsync.reporting.figures.heat import plain_bar, shade
from sparsync.reporting.figures.pieces import count, drawn_names
from sparsync.reporting.figures.plot import Plot
from sparsync.reporting.history import ComparisonRecord

if TYPE_CHECKING:
    from matplotlib.figure import Figure


_DRAWN = 1000  # workers, at most: a page is not that wide in pixels


def who_holds_what(run: ComparisonRecord) -> Figure | None:
    """How many samples of each class each worker holds: bubbles for a few workers, a heat map for many."""
    if run.partition is None or run.partition.counts.sum() <= 0:
        return None
    from matplotlib.colors import PowerNorm

    counts, names = run.partition.counts, run.partition.class_names
    everyone, classes = counts.shape
    workers = min(everyone, _DRAWN)
    bubbles = workers <= 40 and classes <= 20
    if workers > 60:  # many workers: a pattern shows only when sorted
        counts = counts[np.lexsort((-counts.max(axis=1), counts.argmax(axis=1)))]
        counts = counts[np.arange(workers) * everyone // workers]
    figure = new_figure(1.6 + min(max(0.26 * classes, 1.8), 6.0))
    grid = figure.add_gridspec(2, 1, height_ratios=[0.8, min(max(0.26 * classes, 1.8), 6.0)])
    axes = new_axes(figure, grid[1, 0])
    total = new_axes(figure, grid[0, 0], sharex=axes)
    x = np.arange(workers)
    total.fill_between(np.arange(-0.5, workers), *_steps(counts.sum(axis=1)), color=SOFT, alpha=0.45, lw=0, step="post")
    total.set_ylim(0, 1.08 * max(counts.sum(axis=1).max(), 1))
    total.set_yticks([0, int(counts.sum(axis=1).max())])
    total.set_title("samples per worker", fontsize=10)
    total.tick_params(axis="x", labelbottom=False, length=0)
    if bubbles:
        row, column = np.nonzero(counts)
        pitch = min(72 * (WIDTH - 1.0) / workers, 72 * 0.26)  # points between two bubbles
        size = (0.92 * pitch) ** 2 * counts[row, column] / counts.max()
        axes.scatter(row, column, s=size, color=HEAT, lw=0)
        axes.set_title(f"samples per class: the largest bubble is {count(counts.max())}", fontsize=10)
        axes.grid(visible=True)
    else:
        norm = PowerNorm(0.5, vmin=0, vmax=counts.max())  # one large holder must not fade all others
        image = axes.imshow(
            counts.T, aspect="auto", cmap=shade(), norm=norm, interpolation="antialiased", origin="lower"
        )
        bar = figure.colorbar(image, ax=[axes], pad=0.02, aspect=12, shrink=0.9)
        plain_bar(bar)
        axes.set_title("samples per class", fontsize=10)
    axes.set_xlim(-0.5, workers - 0.5)
    axes.set_ylim(classes - 0.5, -0.5)
    every = max(1, math.ceil(classes / 24))
    short = drawn_names(names[::every], 14)
    axes.set_yticks(range(0, classes, every), [short[name] for name in names[::every]])
    if workers <= 15:
        axes.set_xticks(x)
    drawn = f", of which {count(workers)} are drawn" if workers < everyone else ""
    axes.set_xlabel("worker" if workers <= 60 else f"{count(everyone)} workers, sorted by their largest class{drawn}")
    axes.set_ylabel("class")
    return figure


def _steps(heights: NDArray[np.int64]) -> tuple[NDArray[np.int64]]:
    return (np.r_[heights, heights[-1]],)


PARTITION = Plot(
    "who-holds-what",
    "Who holds what",
    "Training samples by worker and class. Equal columns are IID data; few or empty cells per column mean that "
    "workers see only some classes.",
    who_holds_what,
)
