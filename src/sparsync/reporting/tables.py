"""The comparison as a table: for the terminal (rich) and for a README (Markdown)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sparsync.reporting.devices import devices
from sparsync.reporting.fields import UNITS
from sparsync.reporting.history import ComparisonRecord
from sparsync.reporting.palette import visible
from sparsync.reporting.summary import StrategyRow, cheapest, quickest, rows
from sparsync.reporting.units import NOTHING, Spread, human_bytes, human_percent, human_seconds, plain

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.measure import Measurement
    from rich.table import Table

__all__ = ["LabelCell", "cell", "human_bytes", "human_percent", "human_seconds", "markdown", "syncs_title", "table"]

_NARROW = 20  # cells: a label that is longer may wrap
_ANY = 10_000  # cells: as wide as a table wants to be
_LEFT_OUT = ("Wall", "Bytes\npaper")  # of a narrow terminal's table, in this order


def table(run: ComparisonRecord) -> ComparisonTable:
    """Return the comparison for a terminal; labels wrap where it has no room for them.

    Parameters
    ----------
    run : ComparisonRecord
        What :func:`sparsync.reporting.load` read.

    Returns
    -------
    ComparisonTable
        For rich to print. One row per strategy; with several seeds, the spread stands below each mean. Stars mark the
        strategies that needed the fewest bytes and the least time to the target among those that reached it with every
        seed.
    """
    return ComparisonTable(_table(run))


def _table(run: ComparisonRecord) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    summary = rows(run)
    best, first = cheapest(summary), quickest(summary)
    goal = run.target is not None
    made = Table(box=box.SIMPLE_HEAD, padding=0, pad_edge=False, show_edge=False)
    made.add_column("Strategy")  # the one column that gives way
    made.add_column("Accuracy", justify="right", no_wrap=True)
    made.add_column("Steps", justify="right", no_wrap=True)
    made.add_column(syncs_title(summary).replace("/", "/\n"), justify="right", no_wrap=True)
    made.add_column("Bytes\nwire", justify="right", no_wrap=True)
    made.add_column("Bytes\npaper", justify="right", no_wrap=True)
    if goal:
        made.add_column("Bytes to\ntarget", justify="right", no_wrap=True)
    made.add_column(run.time.capitalize().replace(" ", "\n"), justify="right", no_wrap=True)
    if goal:
        made.add_column("Target\nmet", justify="right", no_wrap=True)
    made.add_column("Wall", justify="right", no_wrap=True)
    for row in summary:
        marked = row is best
        cells = [
            _stacked(row.accuracy, "percent"),
            _stacked(row.steps, "count"),
            _stacked(row.syncs, "count"),
            _stacked(row.bytes.get("total"), "bytes"),
            _stacked(row.paper_bytes.get("total"), "bytes"),
        ]
        if goal:
            cells.append(_stacked(row.bytes_to_target, "bytes", star=marked))
        seconds = row.seconds_to_target if goal else row.seconds
        cells.append(_stacked(seconds, "seconds", star=goal and row is first))
        if goal:
            cells.append(f"{row.reached}/{row.seeds}")
        cells.append(_stacked(row.wall_seconds, "seconds"))
        style = "bold green" if marked else "yellow" if row.failures else ""
        made.add_row(
            LabelCell(row.label, row.shortfall, style), *(Text(text, "bold green" if marked else "") for text in cells)
        )
    said = "" if run.real else devices(run.experiment)
    notes = [f"virtual time{' to the target' if goal else ''}: {said}"] if said else []
    if best is not None and len(summary) > 1:
        notes.append("* fewest bytes, and least time, to the target, reached with every seed")
    if len(run.seeds) > 1:
        notes.append(f"± sample standard deviation over {len(run.seeds)} seeds; (n/m): mean over only n of m seeds")
    if notes:
        made.caption = Text("\n".join(notes), "dim")
        made.caption_justify = "left"
    return made


@dataclass(frozen=True)
class ComparisonTable:
    """A table that leaves out its least important columns where labels would have no room."""

    table: Table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.measure import Measurement

        shown = copy(self.table)
        labels, *others = shown.columns
        for title in _LEFT_OUT:
            shown.columns = [replace(labels, max_width=_NARROW), *others]
            if Measurement.get(console, options.update(max_width=_ANY), shown).maximum > options.max_width:
                others = [column for column in others if column.header != title]
        shown.columns = [labels, *others]
        yield shown


def markdown(run: ComparisonRecord) -> str:
    """Return the comparison as a Markdown table, as a README shows it; the best bytes to the target are bold."""
    summary = rows(run)
    best, goal = cheapest(summary), run.target is not None
    head = ["Strategy", "Accuracy", "Steps", syncs_title(summary), "Bytes (wire)", "Bytes (paper)"]
    if goal:
        head += [f"Bytes to {human_percent(run.target or 0.0)}", f"{run.time.capitalize()} to target", "Reached"]
    else:
        head.append(run.time.capitalize())
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" + "---:|" * (len(head) - 1)]
    for row in summary:
        cells = [
            _code(row.label),
            cell(row.accuracy, "percent"),
            cell(row.steps, "count"),
            cell(row.syncs, "count"),
            cell(row.bytes.get("total"), "bytes"),
            cell(row.paper_bytes.get("total"), "bytes"),
        ]
        if goal:
            target = cell(row.bytes_to_target, "bytes")
            cells += [f"**{target}**" if row is best else target, cell(row.seconds_to_target, "seconds")]
            cells.append(f"{row.reached}/{row.seeds}")
        else:
            cells.append(cell(row.seconds, "seconds"))
        if row.failures:
            cells[0] += f" ({row.shortfall})"
        lines.append("| " + " | ".join(cells) + " |")
    if len(run.seeds) > 1:
        note = f"± is the sample standard deviation over {len(run.seeds)} seeds; (n/m): a mean over only n of m."
        lines += ["", note]
    return "\n".join(lines) + "\n"


def cell(spread: Spread | None, kind: str) -> str:
    """Write mean and spread; a mean over only some of the seeds says so: ``1.23 ± 0.04 GB (2/3)``."""
    if spread is None:
        return NOTHING
    return plain(spread, kind) + ("" if spread.complete else f" ({spread.count}/{spread.of})")


def syncs_title(summary: Sequence[StrategyRow]) -> str:
    """Name the column of syncs after what the strategies count."""
    found = {row.unit for row in summary}
    return "/".join(unit for unit in UNITS if unit in found).capitalize() or "Syncs"


def _stacked(spread: Spread | None, kind: str, star: bool = False) -> str:
    if spread is None:
        return NOTHING
    mean, _, deviation = plain(spread, kind, separator="\n±").partition("\n")
    unit = deviation.rpartition(" ")[2] if " " in deviation else ""
    text = f"{mean} {unit}".strip() + (" *" if star else "")
    if deviation:
        text += "\n" + deviation.removesuffix(f" {unit}")
    return text + ("" if spread.complete else f"\n({spread.count}/{spread.of})")


@dataclass(frozen=True)
class LabelCell:
    """A label in a terminal, as text: it takes the room that there is, and wraps where that is too little."""

    label: str
    note: str = ""
    style: str = ""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.text import Text

        lines = [*_wrapped(self.label, options.max_width), *([self.note] if self.note else [])]
        yield Text("\n".join(lines), self.style)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        from rich.cells import cell_len
        from rich.measure import Measurement

        longest = max(cell_len(visible(self.label)), len(self.note))
        return Measurement(min(longest, _NARROW), longest).with_maximum(options.max_width)


def _wrapped(label: str, width: int) -> list[str]:
    """Break a spec after ``:`` and ``,`` where that helps, and anywhere where it must."""
    from rich.cells import cell_len, chop_cells

    lines = [""]
    for piece in re.split(r"(?<=[:,])", visible(label)):
        if cell_len(lines[-1] + piece) <= width:
            lines[-1] += piece
        else:
            lines += chop_cells(piece, max(width, 2))
    return [line for line in lines if line]


def _code(label: str) -> str:
    """Write a label as code, with all its signs encoded if one of them would end it."""
    text = visible(label)
    if "`" in text or "|" in text:
        return "<code>" + "".join(c if c.isalnum() or c == " " else f"&#{ord(c)};" for c in text) + "</code>"
    return f"`{text}`"
