"""Specifications and what is held to them: citations of docs/methods resolve, and pages name tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs/methods").glob("*.md"))
SOURCES = sorted(path for room in ("src", "tests") for path in (ROOT / room).rglob("*.py") if path != Path(__file__))

_NUMBER = r"[A-Z]\d+\b|\d+(?:\.\d+)*\b"
_WORD = rf"sections?|propert(?:y|ies)|traps?|and|to|{_NUMBER}"
_CITATION = re.compile(rf"docs/methods/([\w-]+)\.md((?:[\s,]+(?:{_WORD}))*)")
_BARE = re.compile(rf"(?<![/\w-])({'|'.join(page.stem for page in PAGES)})\.md[\s,]+(?:{_WORD})\b")
_TEST = re.compile(r"\b(?:tests/)?((?:\w+/)?test_\w+\.py)\b")


def numbers(text: str) -> set[str]:
    """What can be cited of a page: ``4.8``, ``P3``, ``property 7``, ``trap 12``."""
    found, kind = set(), ""
    for line in text.splitlines():
        if heading := re.match(r"#+ (\d+(?:\.\d+)*)\.? (.*)", line):
            found.add(heading[1])
            kind = next((word for word in ("property", "trap") if word[:5] in heading[2].lower()), "")
        elif kind and (row := re.match(r"\| ([A-Z]?)(\d+) \|", line)):
            found.add(row[1] + row[2] if row[1] else f"{kind} {row[2]}")
    return found


def cited(text: str) -> list[tuple[str, str]]:
    """Pages and numbers that a text cites, ``properties 2 to 4`` one by one."""
    found = []
    for page, rest in _CITATION.findall(text):
        kind, own = "", list[str]()
        words = re.findall(_WORD, rest)
        for i, word in enumerate(words):
            if word.startswith(("propert", "trap", "section")):
                kind = {"p": "property ", "t": "trap ", "s": ""}[word[0]]
            elif word == "to" and i + 1 < len(words):
                first, last = re.fullmatch(r"([A-Z]?)(\d+)", words[i - 1]), re.fullmatch(r"([A-Z]?)(\d+)", words[i + 1])
                assert first, words
                assert last, words
                own += [f"{first[1] or kind}{number}" for number in range(int(first[2]) + 1, int(last[2]))]
            elif re.fullmatch(_NUMBER, word):
                own.append(word if word[0].isupper() or "." in word else kind + word)
        found += [(page, number) for number in own or ["no number"]]
    return found


def test_numbers_of_a_page_and_citations_by_hand() -> None:
    page = "# A\n| 9 | x |\n## 4. B\n### 4.2 C\n## 5. Traps\n| no. | trap |\n| 3 | x |\n## 6. Properties\n| 7 | y |"
    page += "\n| P8 | z |\n"
    assert numbers(page) == {"4", "4.2", "5", "trap 3", "6", "property 7", "P8"}
    text = "see docs/methods/a.md 4.2, 5, properties 7 to 9 and\n11, and trap 3; docs/methods/b-c.md P3 to P5. "
    text += "docs/methods/d.md!"
    of_a = ["4.2", "5", "property 7", "property 8", "property 9", "property 11", "trap 3"]
    of_b = ["P3", "P4", "P5"]
    expected = [("a", number) for number in of_a] + [("b-c", number) for number in of_b] + [("d", "no number")]
    assert sorted(cited(text)) == sorted(expected)
    assert _BARE.search("as in hadfl.md 4.8")
    assert not _BARE.search("as in docs/methods/hadfl.md 4.8, or docs/fda.md says")


def test_every_citation_resolves() -> None:
    known = {page.stem: numbers(page.read_text()) for page in PAGES}
    every = [(path, page, number) for path in SOURCES for page, number in cited(path.read_text())]
    assert len(every) > 50
    missing = [
        f"{path.relative_to(ROOT)} cites docs/methods/{page}.md: {number}"
        for path, page, number in every
        if number not in known.get(page, ())
    ]
    assert not missing


def test_every_citation_says_where_the_page_is() -> None:
    bare = [f"{path.relative_to(ROOT)}: {found[0]}" for path in SOURCES if (found := _BARE.search(path.read_text()))]
    assert not bare


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_pages_name_tests_that_exist_and_one_for_each_property(page: Path) -> None:
    text = page.read_text()
    assert [name for name in set(_TEST.findall(text)) if not (ROOT / "tests" / name).is_file()] == []
    table = re.split(r"^## .*properties$", text, flags=re.MULTILINE)[1].split("\n## ")[0]
    rows = re.findall(r"^\| ([A-Z]?\d+) \|.*\| ([^|]*) \|$", table, re.MULTILINE)
    assert [int(number.lstrip("PB")) for number, _ in rows] == list(range(1, len(rows) + 1))
    assert rows
    assert all(_TEST.search(tests) for _, tests in rows)


@pytest.mark.parametrize("page", [*PAGES, ROOT / "docs/glossary.md"], ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    links = {link.partition("#")[0] for link in re.findall(r"\]\(([^)]+)\)", page.read_text())}
    assert [link for link in links if "://" not in link and not (page.parent / link).is_file()] == []
