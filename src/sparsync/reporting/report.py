"""The report: one HTML file that needs nothing else, for a phone as for a desk, on a light or a dark page.

Figures are inline SVG whose colours are CSS variables, so that they follow the page. There is no script, and every
text that a user chose is escaped.
"""

from __future__ import annotations

from pathlib import Path

from sparsync.reporting.devices import devices
from sparsync.reporting.epochs import epochs, expected_deviation, tilts
from sparsync.reporting.figures import FIGURES, svg
from sparsync.reporting.history import ComparisonRecord
from sparsync.reporting.loading import load
from sparsync.reporting.markup import (
    breakable,
    cell,
    contents,
    escaped,
    flat,
    inline,
    legend,
    named,
    said,
    section,
    style,
    table,
)
from sparsync.reporting.palette import looks, shortened
from sparsync.reporting.summary import StrategyRow, cheapest, headline, kinds, rows
from sparsync.reporting.tables import syncs_title
from sparsync.reporting.times import times
from sparsync.reporting.trace import write_trace
from sparsync.reporting.units import human_count, human_percent
from sparsync.storage import write_text

__all__ = ["page", "write"]

_REFUSED = 3  # uploads that are named, of each strategy
_FAMILIES = {"federation": "rounds", "split": "epochs"}  # tables of an experiment, and what their strategies count


def write(folder: str | Path, run: ComparisonRecord | None = None) -> Path:
    """Write ``report.html`` into a run's folder, and ``trace.json`` if the run says who did what when.

    Parameters
    ----------
    folder : str or Path
        A folder that ``sparsync compare`` has written.
    run : ComparisonRecord, optional
        What it holds. Default: read now.

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
    run = load(folder) if run is None else run
    write_text(file, page(run))
    write_trace(run, folder)
    return file


def page(run: ComparisonRecord) -> str:
    """Return the report as HTML text."""
    summary = rows(run)
    title = _title(run)
    body = [
        f"<h1>{escaped(title)}</h1>",
        f'<p class="summary">{escaped(headline(run))}</p>',
        _notice(run, summary),
        _comparison(run, summary),
        _figures(run),
        _times(run, summary),
        _epochs(run, summary),
        _kinds(run, summary),
        _failures(summary),
        _refused(run),
        _setting(run, summary),
        _reproduce(run),
        f"<footer>Written by sparsync {escaped(run.version)}.</footer>",
    ]
    body = [part for part in body if part]
    body.insert(2, contents("\n".join(body)))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escaped(title)}</title>\n<style>\n{style()}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(body)
        + "\n</main>\n</body>\n</html>\n"
    )


def _title(run: ComparisonRecord) -> str:
    setting = run.experiment
    parts = [str(setting[key]) for key in ("data", "model") if setting.get(key) is not None]
    workers = setting.get("workers")
    if isinstance(workers, int):
        parts.append(f"{human_count(workers)} workers")
    return "Comparison" + (": " + ", ".join(parts) if parts else "")


def _notice(run: ComparisonRecord, summary: tuple[StrategyRow, ...]) -> str:
    notes = []
    failed = sum(len(row.failures) for row in summary)
    if failed:
        runs, all_runs = "One run" if failed == 1 else f"{failed} runs", sum(row.seeds for row in summary)
        notes.append(f'{runs} of {all_runs} failed; <a href="#failures">see why</a>.')
    for unit, what, fate in (("round", "upload", "refused"), ("epoch", "client", "lost"), ("cycle", "device", "lost")):
        count = sum(one.unit == unit for history in run.histories.values() for one in history.rejections)
        if count:
            those = f"One {what} was" if count == 1 else f"{human_count(count)} {what}s were"
            notes.append(f'{those} {fate}; <a href="#refused">see which</a>.')
    return "\n".join(f'<p class="notice">{note}</p>' for note in notes)


def _comparison(run: ComparisonRecord, summary: tuple[StrategyRow, ...]) -> str:
    best, look = cheapest(summary), looks(run.labels)
    goal = run.target is not None
    syncs = syncs_title(summary)
    per = "Steps per " + syncs.lower().replace("s/", "/").removesuffix("s")
    head = ["Strategy"] + (["Bytes to target", f"{run.time.capitalize()} to target", "Reached"] if goal else [])
    head += ["Bytes (wire)", "Accuracy", "Bytes (paper)", *([] if goal else [run.time.capitalize()])]
    head += ["Best", "Steps", syncs, per, "Wall time"]
    body = []
    for row in summary:
        cells = []
        if goal:
            target = cell(row.bytes_to_target, "bytes")
            cells.append(f'<span class="best" title="fewest">{target} ★</span>' if row is best else target)
            cells += [cell(row.seconds_to_target, "seconds"), f"{row.reached}/{row.seeds}"]
        cells += [
            cell(row.bytes.get("total"), "bytes"),
            cell(row.accuracy, "percent"),
            cell(row.paper_bytes.get("total"), "bytes"),
            *([] if goal else [cell(row.seconds, "seconds")]),
            cell(row.best_accuracy, "percent"),
            cell(row.steps, "count"),
            cell(row.syncs, "count"),
            cell(row.steps_per_sync, "count"),
            cell(row.wall_seconds, "seconds"),
        ]
        body.append((named(row, look[row.label]), cells))
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
    if any(row.unit == "rounds" for row in summary):
        notes.append(
            "The steps of a federated strategy are local steps one after the other, in each round those of the client "
            "with most; its paper bytes are the values alone, without what says where they belong."
        )
    if any(row.unit == "epochs" for row in summary):
        notes.append("A step of split learning is one global batch, an epoch uses every client's samples once.")
    if run.real:
        notes.append(
            "Bytes are those that the devices counted at their sockets, with their coordinator's. Real time is what "
            "passed since all of them were there; wall time includes waiting for them."
        )
    else:
        said = f" ({known})" if (known := devices(run.experiment)) else ""
        notes += [
            "Bytes are those of all workers together: as the topology moves them (wire), and as the methods' authors "
            "count them (paper).",
            f"Virtual time follows the experiment's devices and links{said}; wall time is what computing took here.",
        ]
    return f'{section("Comparison")}\n{table(head, body, "comparison")}\n<p class="soft">{escaped(" ".join(notes))}</p>'


def _figures(run: ComparisonRecord) -> str:
    drawn = [(plot, picture) for plot in FIGURES if (picture := svg(plot, run)) is not None]
    if not drawn:
        return ""
    parts = [
        f'<figure id="figure-{plot.name}">\n<h3>{escaped(plot.title)}</h3>\n{inline(plot, picture)}\n'
        f"<figcaption>{escaped(plot.caption)}</figcaption>\n</figure>"
        for plot, picture in drawn
    ]
    return "\n".join([section("Figures"), legend(run.labels), '<div class="figures">', *parts, "</div>"])


def _times(run: ComparisonRecord, summary: tuple[StrategyRow, ...]) -> str:
    """Say how workers spent their virtual time."""
    found, look = times(run, summary), looks(run.labels)
    if not found:
        return ""
    head = ["Strategy", "Computing", "Waiting", "Communicating", "Away", "Least busy", "Busiest", "Recorded"]
    body = []
    for one in found:
        shares = (one.compute, one.wait, one.talk, one.away, one.least, one.most, one.recorded)
        body.append((named(one.row, look[one.row.label]), [cell(share, "percent") for share in shares]))
    note = (
        "Shares of all workers' virtual time, and the share of its own that the least and the most busy worker "
        "computed. Only the beginning of a long run is recorded; the last column says how much of its time that is. "
        "A worker's time ends with the last thing that was recorded of it. trace.json in the run's folder holds "
        "every piece, for chrome://tracing or ui.perfetto.dev."
    )
    return f'{section("How time was spent")}\n{table(head, body)}\n<p class="soft">{escaped(note)}</p>'


def _epochs(run: ComparisonRecord, summary: tuple[StrategyRow, ...]) -> str:
    """Say what the epochs of split strategies were like."""
    found, look = epochs(run, summary), looks(run.labels)
    if not found:
        return ""
    reference = found[0].reference
    head = ["Strategy", "Steps per epoch", "Deviation", "Last tenth", "Virtual time per epoch"]
    head += [f"Time relative to {reference}"] if reference else []
    head += ["Macro accuracy"]
    body = []
    for one in found:
        cells = [
            cell(one.row.steps_per_sync, "count"),
            cell(one.deviation, "number"),
            cell(one.tail, "number"),
            cell(one.seconds, "seconds"),
            *([cell(one.ratio, "number")] if reference else []),
            cell(one.macro_accuracy, "percent"),
        ]
        body.append((named(one.row, look[one.row.label]), cells))
    expected = expected_deviation(run)
    notes = [
        "Deviation is the L1 distance between the label fractions of a global batch and those of all training data, "
        "mean over steps, and over the last tenth of each epoch."
    ]
    if expected is not None:
        notes.append(f"Batches drawn uniformly from all data would be {expected:.3f} away.")
    notes.append("Macro accuracy is the mean over classes, at the end.")
    text = f'\n<p class="soft">{escaped(" ".join(notes))}</p>'
    return section("Epochs of split learning") + "\n" + table(head, body) + text + _tilts(run, summary)


def _tilts(run: ComparisonRecord, summary: tuple[StrategyRow, ...]) -> str:
    """Say how LDS tilted the batches of split strategies."""
    found, look = tilts(run, summary), looks(run.labels)
    if not found:
        return ""
    head = [
        "Strategy",
        "\u03b1\u2080",
        "\u03c0 of the slowest client",
        "Its share of all samples",
        "Least \u03c0",
        "Greatest \u03c0",
    ]
    body = []
    for one in found:
        shares = [cell(share, "percent") for share in (one.pi, one.held, one.least, one.most)]
        body.append((named(one.row, look[one.row.label]), [cell(one.alpha_0, "count"), *shares]))
    note = (
        "\u03c0 is a client's share of the batches that an epoch begins with, until a first client has no samples "
        "left; \u03b1\u2080 is how firmly the prior holds \u03c0 to the clients' samples and delays. Both are means "
        "over epochs. The slowest client is the one that the others waited for longest in all; untilted, its \u03c0 is "
        "near its share of all samples."
    )
    return f'\n<h3>What LDS drew</h3>\n{table(head, body)}\n<p class="soft">{escaped(note)}</p>'


def _kinds(run: ComparisonRecord, summary: tuple[StrategyRow, ...]) -> str:
    found, look = kinds(summary), looks(run.labels)
    if not found:
        return ""
    head = ["Strategy", "Counted", "Total", *(kind.capitalize() for kind in found)]
    body = []
    for row in summary:
        both = [("wire", row.bytes), ("paper", row.paper_bytes)]
        columns = [[cell(book.get(kind), "bytes") for _, book in both] for kind in ("total", *found)]
        cells = ["".join(f"<div>{part}</div>" for part in column) for column in [[way for way, _ in both], *columns]]
        body.append((named(row, look[row.label]), cells))
    return section("Bytes by kind") + "\n" + table(head, body, "kinds")


def _failures(summary: tuple[StrategyRow, ...]) -> str:
    failed = [(row.label, seed, why) for row in summary for seed, why in row.failures]
    if not failed:
        return ""
    body = [(breakable(label), [escaped(str(seed)), escaped(why)]) for label, seed, why in failed]
    return section("Failures") + "\n" + table(["Strategy", "Seed", "What happened"], body, "failures")


def _refused(run: ComparisonRecord) -> str:
    """Name the uploads that servers refused and the clients that they gave up: how many, and the first ones."""
    body = []
    for label in run.labels:
        found = [
            (f" (seed {seed})" if len(run.seeds) > 1 else "", upload)
            for (name, seed), history in sorted(run.histories.items())
            if name == label
            for upload in history.rejections
        ]
        first = [
            f"{one.unit} {one.round}, {'device' if one.unit == 'cycle' else 'client'} {one.client}{seed}: {one.reason}"
            for seed, one in found[:_REFUSED]
        ]
        more = [f"and {human_count(len(found) - _REFUSED)} more"] if len(found) > _REFUSED else []
        if found:
            what = "".join(f"<div>{escaped(shortened(text, 240))}</div>" for text in [*first, *more])
            body.append((breakable(label), [human_count(len(found)), what]))
    if not body:
        return ""
    units = {one.unit for history in run.histories.values() for one in history.rejections}
    titles = {"cycle": ("Devices lost", "Times"), "epoch": ("Clients left out", "Times")}
    title, head = next((titles[unit] for unit in titles if unit in units), ("Refused uploads", "Refused"))
    return section(title, "refused") + "\n" + table(["Strategy", head, "Which and why"], body, "failures")


def _setting(run: ComparisonRecord, summary: tuple[StrategyRow, ...]) -> str:
    """Tabulate what was set, a table of the experiment by itself; none of a family that did not run."""
    used = {row.unit for row in summary}
    unused = {name for name, unit in _FAMILIES.items() if used and not used & {unit, None}}
    tables = {key: value for key, value in run.experiment.items() if isinstance(value, dict) and key not in unused}
    general = {key: value for key, value in run.experiment.items() if not isinstance(value, dict)}
    if run.parameters is not None:
        general["parameters"] = human_count(run.parameters)
    parts = []
    for title, settings in {"general": general, **tables}.items():
        body = [(escaped(key), [escaped(said(value))]) for key, value in flat(settings) if value not in (None, [])]
        if body:
            parts.append(f"<div><h3>{escaped(title.capitalize())}</h3>\n{table([], body, 'settings')}</div>")
    return "\n".join([section("Setting"), '<div class="figures">', *parts, "</div>"]) if parts else ""


def _reproduce(run: ComparisonRecord) -> str:
    same = "Same seeds and same number of processes: the same bits."
    return (
        section("Reproduce") + "\n<p>This folder holds the experiment as it was resolved. "
        f"With sparsync {escaped(run.version)}, run in it:</p>\n"
        "<pre><code>sparsync compare experiment.toml</code></pre>\n"
        f'<p class="soft">{same}</p>'
    )
