"""The report: one HTML file that needs nothing else, for a phone as for a desk, on a light or a dark page.

Figures are inline SVG whose colours are CSS variables, so that they follow the page. There is no script, and every
text that a user chose is escaped.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from sparsync.reporting.figures import FIGURES, Plot, svg
from sparsync.reporting.history import Run, load
from sparsync.reporting.palette import DARK, LIGHT, Look, looks
from sparsync.reporting.summary import Row, cheapest, headline, kinds, rows
from sparsync.reporting.tables import syncs_title
from sparsync.reporting.units import NOTHING, Spread, human_bytes, human_count, human_percent, plain

__all__ = ["page", "write"]

_PAGE_LIGHT = {**LIGHT, "page": "#f5f6f8", "good": "#00794f"}
_PAGE_DARK = {**DARK, "page": "#101217", "good": "#4fd6a2"}


def write(folder: str | Path) -> Path:
    """Write ``report.html`` into a run's folder.

    Parameters
    ----------
    folder : str or Path
        A folder that ``sparsync compare`` has written.

    Returns
    -------
    Path
        The report.

    Raises
    ------
    SparsyncError
        If the folder holds no finished run, or damaged files.
    """
    file = Path(folder) / "report.html"
    file.write_text(page(load(folder)), encoding="utf-8")
    return file


def page(run: Run) -> str:
    """Return the report as HTML text."""
    summary = rows(run)
    title = _title(run)
    body = [
        f"<h1>{_text(title)}</h1>",
        f'<p class="summary">{_text(headline(run))}</p>',
        _notice(summary),
        "<h2>Comparison</h2>",
        _comparison(run, summary),
        _figures(run),
        _kinds(run, summary),
        _failures(summary),
        _setting(run),
        _reproduce(run),
        f"<footer>Written by sparsync {_text(run.version)}.</footer>",
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(title)}</title>\n<style>\n{_style()}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in body if part)
        + "\n</main>\n</body>\n</html>\n"
    )


def _title(run: Run) -> str:
    setting = run.experiment
    parts = [str(setting[key]) for key in ("data", "model") if setting.get(key) is not None]
    workers = setting.get("workers")
    if isinstance(workers, int):
        parts.append(f"{human_count(workers)} workers")
    return "Comparison" + (": " + ", ".join(parts) if parts else "")


def _notice(summary: tuple[Row, ...]) -> str:
    failed = sum(len(row.failures) for row in summary)
    if not failed:
        return ""
    runs, all_runs = "One run" if failed == 1 else f"{failed} runs", sum(row.seeds for row in summary)
    return f'<p class="notice">{runs} of {all_runs} failed; <a href="#failures">see why</a>.</p>'


def _comparison(run: Run, summary: tuple[Row, ...]) -> str:
    best, look = cheapest(summary), looks(run.labels)
    goal = run.target is not None
    syncs = syncs_title(summary)
    per = {"Syncs": "Steps per sync", "Rounds": "Steps per round"}.get(syncs, "Steps per sync/round")
    head = ["Strategy"] + (["Reached", "Bytes to target", "Virtual time to target"] if goal else [])
    head += ["Accuracy", "Best", "Steps", syncs, per, "Bytes (wire)", "Bytes (paper)", "Wall time"]
    body = []
    for row in summary:
        cells = []
        if goal:
            cells.append(f"{row.reached}/{row.seeds}")
            target = _cell(row.bytes_to_target, "bytes")
            cells.append(f'<span class="best" title="fewest">{target} ★</span>' if row is best else target)
            cells.append(_cell(row.seconds_to_target, "seconds"))
        cells += [
            _cell(row.accuracy, "percent"),
            _cell(row.best_accuracy, "percent"),
            _cell(row.steps, "count"),
            _cell(row.syncs, "count"),
            _cell(row.steps_per_sync, "count"),
            _cell(row.bytes.get("total"), "bytes"),
            _cell(row.paper_bytes.get("total"), "bytes"),
            _cell(row.wall_seconds, "seconds"),
        ]
        body.append((_label(row, look[row.label]), cells))
    notes = []
    if goal:
        notes.append(f"The target is {human_percent(run.target or 0.0)} accuracy.")
        if best is not None and len(summary) > 1:
            notes.append("★ marks the fewest bytes to the target among strategies that reached it with every seed.")
    if len(run.seeds) > 1:
        notes.append(
            f"± is the sample standard deviation over {len(run.seeds)} seeds. Values to the target are means over the "
            "seeds that reached it, all others over the seeds that ended without an error; where that is not every "
            "seed, the number of seeds is given."
        )
    notes.append(
        "Bytes are those of all workers together: as the topology moves them (wire), and as the methods' authors count "
        "them (paper). Virtual time follows the experiment's devices and links; wall time is what computing took here."
    )
    return _table(head, body) + f'\n<p class="soft">{_text(" ".join(notes))}</p>'


def _figures(run: Run) -> str:
    drawn = [(plot, picture) for plot in FIGURES if (picture := svg(plot, run)) is not None]
    if not drawn:
        return ""
    parts = [
        f"<figure>\n<h3>{_text(plot.title)}</h3>\n{_inline(plot, picture)}\n"
        f"<figcaption>{_text(plot.caption)}</figcaption>\n</figure>"
        for plot, picture in drawn
    ]
    return '<h2>Figures</h2>\n<div class="figures">\n' + "\n".join(parts) + "\n</div>"


def _kinds(run: Run, summary: tuple[Row, ...]) -> str:
    found, look = kinds(summary), looks(run.labels)
    if not found:
        return ""
    head = ["Strategy", "Counted", "Total", *(kind.capitalize() for kind in found)]
    body = []
    for row in summary:
        both = [("wire", row.bytes), ("paper", row.paper_bytes)]
        columns = [[_cell(book.get(kind), "bytes") for _, book in both] for kind in ("total", *found)]
        cells = ["".join(f"<div>{part}</div>" for part in column) for column in [[way for way, _ in both], *columns]]
        body.append((_label(row, look[row.label]), cells))
    return "<h2>Bytes by kind</h2>\n" + _table(head, body, "kinds")


def _failures(summary: tuple[Row, ...]) -> str:
    failed = [(row.label, seed, why) for row in summary for seed, why in row.failures]
    if not failed:
        return ""
    body = [(_breakable(label), [_text(str(seed)), _text(why)]) for label, seed, why in failed]
    return '<h2 id="failures">Failures</h2>\n' + _table(["Strategy", "Seed", "What happened"], body, "failures")


def _setting(run: Run) -> str:
    body = [(_text(key), [_text(_value(value))]) for key, value in _flat(run.experiment)]
    if run.parameters is not None:
        body.append(("parameters", [human_count(run.parameters)]))
    if not body:
        return ""
    return "<h2>Setting</h2>\n" + _table([], body, "settings")


def _reproduce(run: Run) -> str:
    same = "Same seeds and same number of processes: the same bits."
    return (
        "<h2>Reproduce</h2>\n<p>This folder holds the experiment as it was resolved. "
        f"With sparsync {_text(run.version)}, run in it:</p>\n"
        "<pre><code>sparsync compare experiment.toml</code></pre>\n"
        f'<p class="soft">{same}</p>'
    )


# --- pieces -----------------------------------------------------------------------------------------------------------


def _table(head: list[str], body: Iterable[tuple[str, list[str]]], name: str = "") -> str:
    """Put escaped cells into a table that scrolls sideways by itself; the first cell of a row is its heading."""
    lines = [f'<div class="scroll" tabindex="0"><table class="{name}">']
    if head:
        lines.append("<thead><tr>" + "".join(f'<th scope="col">{_text(h)}</th>' for h in head) + "</tr></thead>")
    lines.append("<tbody>")
    for heading, cells in body:
        lines.append(f'<tr><th scope="row">{heading}</th>' + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    lines.append("</tbody></table></div>")
    return "\n".join(lines)


def _cell(spread: Spread | None, kind: str) -> str:
    if spread is None:
        return NOTHING
    if kind == "bytes" and spread.deviation is None:
        text = f'<span title="{spread.mean:,.0f} bytes">{human_bytes(spread.mean)}</span>'
    else:
        text = _text(plain(spread, kind))
    return text if spread.complete else f'{text} <span class="of">{spread.count} of {spread.of} seeds</span>'


def _label(row: Row, look: Look) -> str:
    dashes = " ".join(f"{2 * d:g}" for d in look.dashes)
    stroke = f'stroke="var(--{look.key})" stroke-width="3" stroke-dasharray="{dashes}"'
    line = f'<line x1="0" y1="5" x2="26" y2="5" {stroke}/>'
    failed = f'<span class="failed">{len(row.failures)} of {row.seeds} failed</span>' if row.failures else ""
    return (
        f'<span class="label"><svg viewBox="0 0 26 10" aria-hidden="true">{line}</svg>'
        f"<span>{_breakable(row.label)}{failed}</span></span>"
    )


def _inline(plot: Plot, picture: str) -> str:
    """Make a figure part of the page: no prologue, no names but those that are referred to, colours as variables."""
    start = picture.index("<svg")
    picture = re.sub(r"<metadata>.*?</metadata>", "", picture[start:], flags=re.DOTALL)
    picture = re.sub(r"<style type=\"text/css\">.*?</style>", "", picture, flags=re.DOTALL)
    picture = re.sub(r'<g id="[^"]*"', "<g", picture)
    opening = f'<svg role="img" aria-label="{_text(plot.title)}"'
    picture = re.sub(r"<svg\b", opening, picture, count=1)
    return re.sub(r'style="([^"]*)"', lambda found: f'style="{_variables(found[1])}"', picture).strip()


def _variables(style: str) -> str:
    for key, colour in LIGHT.items():
        style = style.replace(colour, f"var(--{key})")
    return style.replace("'DejaVu Sans', ", "")


def _style() -> str:
    def variables(colours: Mapping[str, str]) -> str:
        return " ".join(f"--{key}: {colour};" for key, colour in colours.items())

    css = files("sparsync.reporting").joinpath("report.css").read_text(encoding="utf-8")
    dark = f"@media (prefers-color-scheme: dark) {{ :root {{ {variables(_PAGE_DARK)} }} }}"
    return f":root {{ {variables(_PAGE_LIGHT)} }}\n{dark}\n{css}"


def _flat(setting: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in setting.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _value(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(_value(v) for v in value) or "none"
    return str(value)


def _breakable(label: str) -> str:
    return "".join(_text(piece) + ("<wbr>" if piece in ":," else "") for piece in re.split(r"([:,])", label) if piece)


def _text(text: str) -> str:
    """Escape a text for HTML, attributes included, and drop characters that no page may hold."""
    return html.escape("".join(c if c.isprintable() or c == "\u202f" else " " for c in text), quote=True)
