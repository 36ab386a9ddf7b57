"""Pieces of the report's HTML: tables, figures whose colours follow the page, and escaped texts."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from typing import Any

from sparsync.reporting.figures import Plot
from sparsync.reporting.palette import DARK, LIGHT, LineLook, code, looks, short_names, visible
from sparsync.reporting.summary import StrategyRow
from sparsync.reporting.units import NOTHING, Spread, human_bytes, plain

_PAGE_LIGHT = {**LIGHT, "page": "#f5f6f8", "good": "#00794f"}
_PAGE_DARK = {**DARK, "page": "#101217", "good": "#4fd6a2"}


def table(head: list[str], body: Iterable[tuple[str, list[str]]], name: str = "") -> str:
    """Put escaped cells into a table that scrolls sideways by itself; the first cell of a row is its heading."""
    lines = [f'<div class="scroll" tabindex="0"><table class="{name}">']
    if head:
        heads = [escaped(h).replace("/", "/<wbr>") for h in head]
        lines.append("<thead><tr>" + "".join(f'<th scope="col">{h}</th>' for h in heads) + "</tr></thead>")
    lines.append("<tbody>")
    for heading, cells in body:
        lines.append(f'<tr><th scope="row">{heading}</th>' + "".join(f"<td>{text}</td>" for text in cells) + "</tr>")
    lines.append("</tbody></table></div>")
    return "\n".join(lines)


def cell(spread: Spread | None, kind: str) -> str:
    """Write mean and spread, and over how many seeds if not over all; bytes to the last one where a mouse rests."""
    if spread is None:
        return NOTHING
    if kind == "bytes" and spread.deviation is None:
        text = f'<span title="{spread.mean:,.0f} bytes">{human_bytes(spread.mean)}</span>'
    else:
        text = escaped(plain(spread, kind)).replace("±", "<wbr>±")
    return text if spread.complete else f'{text} <span class="of">{spread.count} of {spread.of} seeds</span>'


def section(title: str, name: str = "") -> str:
    """Begin a section that the table of contents names."""
    return f'<h2 id="{name or title.lower().replace(" ", "-")}">{escaped(title)}</h2>'


def contents(body: str) -> str:
    """Return the table of contents: links to sections, and to the figures among them."""
    found = re.findall(r'<h2 id="([^"]*)">(.*?)</h2>|<figure id="([^"]*)">\s*<h3>(.*?)</h3>', body)
    links = [f'<a class="{"" if h2 else "of"}" href="#{h2 or figure}">{a or b}</a>' for h2, a, figure, b in found]
    return '<nav aria-label="Contents">' + "\n".join(links) + "</nav>"


def legend(labels: Sequence[str]) -> str:
    """Name all strategies beside their lines, once for all figures."""
    names, look = short_names(labels), looks(labels)
    entries = [f'<span class="label">{_line(look[label])}{breakable(names[label])}</span>' for label in labels]
    return '<div class="legend" tabindex="0">' + "\n".join(entries) + "</div>"


def named(row: StrategyRow, look: LineLook) -> str:
    """Write a strategy's name beside its line in the figures."""
    failed = f'<span class="failed">{row.shortfall}</span>' if row.failures else ""
    return f'<span class="label">{_line(look)}<span>{breakable(row.label)}{failed}</span></span>'


def _line(look: LineLook) -> str:
    dashes = " ".join(f"{2 * d:g}" for d in look.dashes)
    stroke = f'stroke="var(--{look.key})" stroke-width="3" stroke-dasharray="{dashes}"'
    line = f'<line x1="0" y1="5" x2="26" y2="5" {stroke}/>'
    return f'<svg viewBox="0 0 26 10" aria-hidden="true">{line}</svg>'


def inline(plot: Plot, picture: str) -> str:
    """Make a figure part of the page: no prologue, no names but those that are referred to, colours as variables."""
    start = picture.index("<svg")
    picture = re.sub(r"<metadata>.*?</metadata>", "", picture[start:], flags=re.DOTALL)
    picture = re.sub(r"<style type=\"text/css\">.*?</style>", "", picture, flags=re.DOTALL)
    picture = re.sub(r'<g id="[^"]*"', "<g", picture)
    opening = f'<svg role="img" aria-label="{escaped(plot.title)}"'
    picture = re.sub(r"<svg\b", opening, picture, count=1)
    return re.sub(r'style="([^"]*)"', lambda found: f'style="{_variables(found[1])}"', picture).strip()


def _variables(style: str) -> str:
    for key, colour in LIGHT.items():
        style = style.replace(colour, f"var(--{key})")
    return style.replace("'DejaVu Sans', ", "")


def style() -> str:
    """Return the page's style: the colours of a light and of a dark page, and the sheet."""

    def variables(colours: Mapping[str, str]) -> str:
        return " ".join(f"--{key}: {colour};" for key, colour in colours.items())

    css = files("sparsync.reporting").joinpath("report.css").read_text(encoding="utf-8")
    dark = f"@media (prefers-color-scheme: dark) {{ :root {{ {variables(_PAGE_DARK)} }} }}"
    return f":root {{ {variables(_PAGE_LIGHT)} }}\n{dark}\n{css}"


def flat(setting: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Go through nested settings as ``outer.inner``."""
    for key, value in setting.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def said(value: Any) -> str:
    """Write a setting's value as people say it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(said(v) for v in value) or "none"
    return str(value)


def breakable(label: str) -> str:
    """Escape a label that may break after ``:`` and ``,``, in whatever direction its letters run."""
    return "<bdi>" + re.sub("([:,])", r"\1<wbr>", escaped(visible(label))) + "</bdi>"


def escaped(text: str) -> str:
    """Escape a text for HTML, attributes included, and write codes for characters that no page may hold."""
    seen = (c if c.isprintable() or c == "\u202f" else " " if c.isspace() else code(c) for c in text)
    return html.escape("".join(seen), quote=True)
