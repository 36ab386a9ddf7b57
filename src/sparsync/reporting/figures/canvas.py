"""What figures are drawn on: one width, one style, and no global state (no pyplot)."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from sparsync.reporting.palette import LIGHT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, SOFT, LINE, CARD, HEAT, WARN = (LIGHT[key] for key in ("ink", "soft", "line", "card", "heat", "c1"))
WIDTH = 5.0  # inches: text stays readable at a phone's width
STYLE: dict[str, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10.0,
    "text.usetex": False,
    "text.parse_math": False,  # labels are users' text: "$" means "$"
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": SOFT,
    "axes.facecolor": "none",
    "axes.labelsize": 10.0,
    "axes.titlesize": 10.0,
    "axes.titlelocation": "left",
    "axes.linewidth": 0.8,
    "axes.grid": False,
    "axes.unicode_minus": True,
    "figure.facecolor": CARD,
    "figure.edgecolor": CARD,
    "savefig.facecolor": "auto",
    "savefig.edgecolor": "auto",
    "savefig.bbox": None,
    "grid.color": LINE,
    "grid.linewidth": 0.7,
    "legend.fontsize": 9.5,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 5.0,
    "svg.fonttype": "none",
    "path.simplify": True,
}


def styled(salt: str = "sparsync") -> AbstractContextManager[None]:
    """Draw in the house style inside this context; the salt keeps names in one SVG apart from another's."""
    import matplotlib

    settings: Any = {**STYLE, "svg.hashsalt": salt}
    return matplotlib.rc_context(settings)


def new_figure(height: float) -> Figure:
    """Return an empty figure of so many inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.06, hspace=0.03)
    figure = Figure(figsize=(WIDTH, height), layout=layout, facecolor=CARD)
    FigureCanvasAgg(figure)
    return figure


def new_axes(figure: Figure, place: Any = None, sharex: Axes | None = None, sharey: Axes | None = None) -> Axes:
    """Return axes without the lines that say nothing."""
    where = () if place is None else (place,)
    axes: Axes = figure.add_subplot(*where, sharex=sharex, sharey=sharey)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.tick_params(labelsize=9.5, color=SOFT, labelcolor=INK, which="both")
    return axes
