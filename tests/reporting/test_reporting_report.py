"""The page: self-contained, escaped, complete, and no claim beyond the data."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest
from federated_runs import REFUSED, SPARSYFED
from split_runs import SPLIT
from timed_runs import add_timed

from sparsync.errors import UsageError
from sparsync.reporting import FIGURES, load, write
from sparsync.reporting.figures import svg
from sparsync.reporting.markup import cell
from sparsync.reporting.markup import table as markup_table
from sparsync.reporting.report import page as html_of
from sparsync.reporting.units import Spread

FDA = "fda:monitor=linear,threshold=2"
VOID = {"meta", "br", "wbr", "img", "hr", "link", "input"}


class Page(HTMLParser):
    """Checks nesting, and collects tags, addresses and text."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.addresses, self.words = [], [], [], []
        self.classes, self.names = [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.classes.append(dict(attributes).get("class"))
        self.names += [value for key, value in attributes if key == "id"]
        self.addresses += [v for k, v in attributes if k in ("href", "src", "xlink:href") and v]
        assert not any(k.startswith("on") for k, _ in attributes)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def parsed(run):
    text = write(run.folder).read_text(encoding="utf-8")
    page = Page()
    page.feed(text)
    assert page.open == []
    return text, page, " ".join(" ".join(page.words).split())


def test_page_is_whole_and_needs_nothing_else(made):
    run = made(seeds=(0, 1, 2))
    text, page, words = parsed(run)
    drawn = [plot for plot in FIGURES if svg(plot, run) is not None]
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert all(address.startswith(("#", "data:image/png;base64,")) for address in page.addresses)
    assert not re.search(r"url\((?!#)|@import", text)
    assert page.tags.count("figure") == len(drawn) == 7
    assert all(" ".join(plot.caption.split()) in words for plot in drawn)
    assert "prefers-color-scheme: dark" in text
    assert "width=device-width" in text
    assert "sparsync compare experiment.toml" in words
    assert "dirichlet:alpha=0.5" in words
    assert "To reach 95.00 % accuracy" in words
    assert "sample standard deviation over 3 seeds" in words


def test_figures_follow_the_page_and_do_not_share_names(made):
    text, _, _ = parsed(made())
    assert "var(--ink)" in text
    assert "var(--c1)" in text
    names = re.findall(r'\bid="([^"]*)"', text)
    assert len(names) == len(set(names))
    assert set(re.findall(r'(?:url\(|href=")#([^")]*)', text)) <= set(names)
    assert "#1a39f1" not in text.replace("--c0: #1a39f1", "")


def test_failures_and_misses_are_shown(made):
    text, _, words = parsed(made(seeds=(0, 1, 2), missed=((FDA, 1),), failed=(("synchronous", 2),)))
    assert "One run of 6 failed" in words
    assert "diverged at step 200, worker 3" in words
    assert 'id="failures"' in text
    assert "2 of 3 seeds" in words
    assert "2/3" in words


def test_without_failures_or_target(made):
    _, _, words = parsed(made(target=None))
    assert "No target accuracy was set" in words
    assert "Failures" not in words
    assert "★" not in words
    assert "Bytes to target" not in words


def test_users_text_is_escaped(made):
    hostile = "<script>alert(\"x\")</script>&:a=<b>,c='d'\x00\u202e"
    run = made(labels=(hostile, FDA), failed=((hostile, 0),))
    file = run.folder / "summary.json"
    file.write_text(file.read_text().replace('"mnist"', '"<img src=x onerror=alert(1)>"').replace("0.1.0", "<i>"))
    text, page, words = parsed(load(run.folder))
    assert "script" not in page.tags
    assert "img" not in page.tags
    assert "i" not in page.tags
    assert "\x00" not in text
    assert "\u202e" not in text
    assert '<script>alert("x")</script>&:' in words


def test_without_histories(made):
    _, page, words = parsed(made(histories=False, partition=False))
    assert page.tags.count("figure") == 1
    assert "Comparison" in words


def test_peers_federations_and_split_learning_on_one_page(mixed):
    run = mixed(peers=("synchronous", FDA, f"{FDA}.5", f"{FDA}.7"), split=SPLIT)
    text, page, words = parsed(load(add_timed(run.folder, seeds=(0, 1))))
    assert page.tags.count("figure") == len(FIGURES)
    assert "Syncs/ rounds/ epochs" in words
    assert "Steps per sync/ round/ epoch" in words
    assert "A step of split learning is one global batch" in words
    assert "local steps one after the other" in words
    assert "One upload was refused" in words
    assert f"round 3, client 7 (seed 0): {REFUSED['reason']}" in words
    assert 'href="#refused"' in text
    assert 'id="refused"' in text
    names = re.findall(r'\bid="([^"]*)"', text)
    assert len(names) == len(set(names))


def test_refused_uploads_are_counted_and_escaped(mixed):
    run = mixed(seeds=(0,), labels=(SPARSYFED,), rounds=10)
    with (run.folder / "history.jsonl").open("a") as file:
        for client in range(5):
            line = {"kind": "rejection", "label": SPARSYFED, "seed": 0, "round": 9, "client": client}
            file.write(json.dumps({**line, "reason": "<b>" + "x" * 500}) + "\n")
    _, page, words = parsed(load(run.folder))
    assert "6 uploads were refused" in words
    assert "round 3, client 7: upload" in words
    assert "round 9, client 1: <b>x" in words
    assert "client 2" not in words
    assert "and 3 more" in words
    assert "x" * 300 not in words
    assert "b" not in page.tags


def test_lost_clients_are_named(mixed):
    run = mixed(seeds=(0,), labels=(SPARSYFED,), rounds=2)
    with (run.folder / "history.jsonl").open("a") as file:
        line = {"kind": "lost", "label": "psl", "seed": 0, "step": 9, "epoch": 2, "client": 5, "reason": "it hung up"}
        file.write(json.dumps(line) + "\n")
    _, _, words = parsed(load(run.folder))
    assert "One client was lost" in words
    assert "Clients left out" in words
    assert "epoch 2, client 5: it hung up" in words


def test_folder_without_a_run(tmp_path):
    with pytest.raises(UsageError, match="holds no run"):
        write(tmp_path)


def test_contents_name_every_section_and_figure_and_lead_there(made):
    _, page, _ = parsed(made())
    linked = [address[1:] for address in page.addresses if address.startswith("#")]
    assert page.tags.count("nav") == 1
    assert {"comparison", "figures", "setting", "reproduce", "figure-accuracy-bytes"} <= set(linked)
    assert set(linked) <= set(page.names)
    assert len(page.names) == len(set(page.names))
    assert page.tags.count("figure") == sum(name.startswith("figure-") for name in set(linked))


def test_strategies_are_named_once_for_all_figures(made):
    run = made(labels=("one", "two", "three"))
    _, page, _ = parsed(run)
    assert page.classes.count("legend") == 1
    for name in ("accuracy-bytes", "accuracy-steps", "steps-per-round"):
        plot = next(plot for plot in FIGURES if plot.name == name)
        assert not re.search(">(one|two|three)<", svg(plot, run))
    assert ">target: 95.00 %<" in svg(FIGURES[0], run)


def test_setting_leaves_out_families_that_did_not_run(made):
    run = made()
    families = {"federation": {"rounds": 77}, "split": {"cut": 3}, "profile": {"power": "4:1"}}
    run.experiment.update(families, data_root=None)
    words = words_of(html_of(run))
    assert {"power", "4:1", "workers"} <= words
    assert not {"federation", "Federation", "77", "Split", "cut", "data_root"} & words


def test_bytes_come_first_in_the_comparison(made):
    for target, first in ((0.95, "Bytes to target"), (None, "Bytes (wire)")):
        _, parser, _ = parsed(made(target=target))
        heads = [word for word in parser.words if word.strip()]
        assert heads[heads.index("Strategy") + 1] == first


def test_tables_may_break_where_that_makes_them_narrow():
    text = cell(Spread(1.5, 0.25, 2, 2), "count")
    assert text.count("±") == text.count("<wbr>±") == 1
    assert ">Syncs/<wbr>rounds</th>" in markup_table(["Syncs/rounds"], [])


def words_of(text):
    parser = Page()
    parser.feed(text)
    return {word.strip() for word in parser.words}
