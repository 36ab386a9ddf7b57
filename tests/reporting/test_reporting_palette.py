"""Looks and names that stay apart: colours under deuteranopia, and whatever a user may type as a label."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from sparsync.reporting.figures.pieces import drawn_names
from sparsync.reporting.palette import DARK, LIGHT, looks, short_names, visible

# Machado, Oliveira and Fernandes, IEEE TVCG 15(6), 2009, table 1: deuteranomaly of severity 1.0, for linear RGB.
DEUTERANOPIA = np.array(
    [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
)
XYZ = np.array([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.072175], [0.0193339, 0.1191920, 0.9503041]])


def linear(colour):
    value = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def lab(rgb):
    ratio = XYZ @ rgb / XYZ.sum(axis=1)
    f = np.where(ratio > 216 / 24389, np.cbrt(ratio), (24389 / 27 * ratio + 16) / 116)
    return 116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])


def ciede2000(one, two):
    """Sharma, Wu and Dalal, Color Research and Application 30(1), 2005."""
    (l1, a1, b1), (l2, a2, b2) = one, two
    chroma = (np.hypot(a1, b1) + np.hypot(a2, b2)) / 2
    g = 0.5 * (1 - np.sqrt(chroma**7 / (chroma**7 + 25**7)))
    a1, a2 = (1 + g) * a1, (1 + g) * a2
    c1, c2 = np.hypot(a1, b1), np.hypot(a2, b2)
    h1, h2 = np.degrees(np.arctan2(b1, a1)) % 360, np.degrees(np.arctan2(b2, a2)) % 360
    turn = (h2 - h1 + 180) % 360 - 180 if c1 * c2 else 0.0
    hue, light, chroma = (h1 + turn / 2) % 360 if c1 * c2 else h1 + h2, (l1 + l2) / 2, (c1 + c2) / 2

    def cos(degrees):
        return np.cos(np.radians(degrees))

    t = 1 - 0.17 * cos(hue - 30) + 0.24 * cos(2 * hue) + 0.32 * cos(3 * hue + 6) - 0.2 * cos(4 * hue - 63)
    rotation = -np.sin(np.radians(60 * np.exp(-(((hue - 275) / 25) ** 2)))) * 2
    rotation *= np.sqrt(chroma**7 / (chroma**7 + 25**7))
    d_l = (l2 - l1) / (1 + 0.015 * (light - 50) ** 2 / np.sqrt(20 + (light - 50) ** 2))
    d_c = (c2 - c1) / (1 + 0.045 * chroma)
    d_h = 2 * np.sqrt(c1 * c2) * np.sin(np.radians(turn / 2)) / (1 + 0.015 * chroma * t)
    return float(np.sqrt(d_l**2 + d_c**2 + d_h**2 + rotation * d_c * d_h))


@pytest.mark.parametrize(
    ("one", "two", "apart"),
    [((50, 2.6772, -79.7751), (50, 0, -82.7485), 2.0425), ((50, 2.5, 0), (73, 25, -18), 27.1492)],
)
def test_the_distance_is_that_of_its_published_examples(one, two, apart):
    assert ciede2000(one, two) == pytest.approx(apart, abs=1e-4)


@pytest.mark.parametrize("page", [LIGHT, DARK])
def test_colours_stay_apart_under_deuteranopia_and_show_on_their_page(page):
    colours = [linear(page[f"c{i}"]) for i in range(7)]
    for one, two in combinations(colours, 2):
        assert ciede2000(lab(one), lab(two)) >= 20
        assert ciede2000(*(lab(np.clip(DEUTERANOPIA @ colour, 0, 1)) for colour in (one, two))) >= 20
    card = XYZ[1] @ linear(page["card"]) + 0.05
    for colour in colours:
        low, high = sorted((XYZ[1] @ colour + 0.05, card))
        assert high / low >= 3


def test_looks_of_28_strategies_differ():
    found = {(look.key, look.dashes) for look in looks([str(i) for i in range(28)]).values()}
    assert len(found) == 28


ALIKE = ["a b", "a  b", " a b", "a\u00a0b", "a\u202eb", "a\x00b", "a\x01b", "\u00e9", "e\u0301", "\udcff", "α", "β"]
ALIKE += ["\U0001f98a", "\U0001f43c", "$a_b$", "[red]x", "x" * 300 + "1" + "x" * 300, "x" * 300 + "2" + "x" * 300]


def test_labels_that_look_alike_are_written_apart():
    for written in ({visible(label) for label in ALIKE}, set(drawn_names(ALIKE).values())):
        assert len(written) == len(ALIKE)
        assert all(text.isprintable() for text in written)
    assert max(map(len, short_names(ALIKE, 30).values())) <= 30
    assert visible("α β $a_b$ \U0001f98a") == "α β $a_b$ \U0001f98a"
