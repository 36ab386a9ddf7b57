"""Graphs of workers, by what their names say, and the weights with which neighbours average."""

from __future__ import annotations

import math

import networkx as nx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsync.errors import UsageError
from sparsync.hetero import connected, make_graph, metropolis, spectral_gap
from sparsync.hetero.graphs import GRAPHS
from tolerance import rounding

workers = st.integers(1, 40)
seeds = st.integers(0, 2**40)


@st.composite
def named_graphs(draw):
    """A name, K and a degree for which there is such a graph."""
    name, k = draw(st.sampled_from(list(GRAPHS.entries))), draw(workers)
    degrees = [d for d in range(1, k) if d * k % 2 == 0 and (d > 1 or k == 2)]
    return name, k, draw(st.sampled_from(degrees)) if degrees else 1


@st.composite
def any_graphs(draw):
    """A connected graph: a tree, and some links more."""
    k = draw(st.integers(1, 12))
    graph = nx.empty_graph(k)
    graph.add_edges_from((draw(st.integers(0, i - 1)), i) for i in range(1, k))
    pairs = st.tuples(st.integers(0, k - 1), st.integers(0, k - 1)).filter(lambda pair: pair[0] != pair[1])
    graph.add_edges_from(draw(st.lists(pairs, max_size=20)) if k > 1 else [])
    return graph


def within_reach(graph, k):
    """Who can be reached from worker 0, neighbour by neighbour."""
    reached, ahead = {0}, [0]
    while ahead:
        new = set(graph[ahead.pop()]) - reached
        reached |= new
        ahead += new
    return len(reached) == k


@given(named=named_graphs(), seed=seeds)
def test_graphs_are_simple_and_connected(named, seed):
    name, k, degree = named
    graph = make_graph(name, k, degree=degree, seed=seed)
    assert set(graph) == set(range(k))
    assert type(graph) is nx.Graph  # undirected, and no link twice
    assert not list(nx.selfloop_edges(graph))
    assert within_reach(graph, k)


@pytest.mark.parametrize("k", range(1, 41))
def test_neighbours_are_what_the_name_says(k):
    height = max(h for h in range(1, k + 1) if k % h == 0 and h * h <= k)
    width = k // height
    jumps = [2**j for j in range(k) if 2**j < k]
    for i in range(k):
        row, column = divmod(i, width)
        grid = [((row + 1) % height, column), ((row - 1) % height, column)]
        grid += [(row, (column + 1) % width), (row, (column - 1) % width)]
        expected = {
            "ring": {(i + 1) % k, (i - 1) % k},
            "complete": set(range(k)),
            "exponential": {(i + jump) % k for jump in jumps} | {(i - jump) % k for jump in jumps},
            "torus": {r * width + c for r, c in grid},
        }
        for name, neighbours in expected.items():
            assert set(make_graph(name, k)[i]) == neighbours - {i}, name


@pytest.mark.parametrize(
    ("name", "k", "degree"),
    [
        ("ring", 2, 1),
        ("ring", 3, 2),
        ("ring", 40, 2),
        ("torus", 9, 4),
        ("torus", 12, 4),
        ("torus", 36, 4),
        ("torus", 8, 3),  # 2 x 4: both neighbours above and below are one
        ("torus", 7, 2),  # a prime's grid is a ring
        ("exponential", 16, 7),  # +-1, +-2, +-4, 8
        ("exponential", 17, 8),  # 16 is -1
        ("complete", 6, 5),
    ],
)
def test_degrees(name, k, degree):
    assert {own for _, own in make_graph(name, k).degree} == {degree}


@given(named=named_graphs(), seed=seeds)
def test_random_regular_graphs_are_regular_and_drawn_from_the_seed(named, seed):
    _, k, degree = named
    graphs = [make_graph("random-regular", k, degree=degree, seed=seed) for _ in range(2)]
    assert sorted(map(sorted, graphs[0].edges)) == sorted(map(sorted, graphs[1].edges))
    assert {own for _, own in graphs[0].degree} == ({degree} if k > 1 else {0})


def test_another_seed_draws_another_graph():
    drawn = {frozenset(map(frozenset, make_graph("random-regular", 20, seed=seed).edges)) for seed in range(10)}
    assert len(drawn) == 10


def test_a_graph_that_falls_apart_is_drawn_again():
    """Of two neighbours each, most graphs of 40 workers are several rings."""
    rng = np.random.default_rng(0)
    assert sum(nx.is_connected(nx.random_regular_graph(2, 40, rng)) for _ in range(20)) < 20
    assert all(within_reach(make_graph("random-regular", 40, degree=2, seed=seed), 40) for seed in range(20))


def test_links_of_ones_own():
    assert sorted(make_graph("(0-1,1-2,3-2)", 4).edges) == [(0, 1), (1, 2), (2, 3)]
    assert sorted(make_graph("( 2 - 0 , 0-1,1-0 )", 3).edges) == [(0, 1), (0, 2)]  # spaces; a link said twice


# What neighbours weigh


def check_weights(graph):
    k, weights = len(graph), metropolis(graph)
    ones, most = np.ones(k), rounding(k)
    assert weights.shape == (k, k)
    assert (weights == weights.T).all()
    assert weights.sum(0) == pytest.approx(ones, abs=most)
    assert weights.sum(1) == pytest.approx(ones, abs=most)
    assert (weights >= 0).all()
    for i in range(k):
        for j in range(k):
            if i != j and graph.has_edge(i, j):
                assert weights[i, j] == 1 / (1 + max(graph.degree[i], graph.degree[j]))
            elif i != j:
                assert weights[i, j] == 0
    assert 0 < spectral_gap(weights) <= 1 + k * most  # all of them agree in the end


@given(named=named_graphs(), seed=seeds)
def test_weights_of_named_graphs(named, seed):
    name, k, degree = named
    check_weights(make_graph(name, k, degree=degree, seed=seed))


@given(graph=any_graphs())
def test_weights_of_any_graph(graph):
    check_weights(graph)


def test_weights_by_hand():
    third, quarter = 1 / 3, 1 / 4
    line = metropolis(make_graph("(0-1,1-2)", 3))
    assert line == pytest.approx(np.array([[2 * third, third, 0], [third, third, third], [0, third, 2 * third]]))
    star = metropolis(make_graph("(0-1,0-2,0-3)", 4))
    assert star[0] == pytest.approx([quarter] * 4)
    assert star[3] == pytest.approx([quarter, 0, 0, 3 * quarter])


def test_what_a_graph_says_beside_its_links_is_no_weight():
    graph = nx.Graph()
    graph.add_weighted_edges_from([(0, 1, 5.0), (1, 2, 0.0)])
    assert (metropolis(graph) == metropolis(nx.path_graph(3))).all()


# How fast they agree


@pytest.mark.parametrize("k", [1, 2, 3, 10, 40])
def test_gap_of_the_complete_graph(k):
    """All weights are 1 / K: one exchange is the mean."""
    assert spectral_gap(metropolis(make_graph("complete", k))) == pytest.approx(1, abs=rounding(k * k))


@pytest.mark.parametrize("k", [3, 4, 5, 10, 32, 40])
def test_gap_of_a_ring(k):
    """Eigenvalues (1 + 2 cos(2 pi j / K)) / 3."""
    largest = max(abs(1 + 2 * math.cos(2 * math.pi * j / k)) / 3 for j in range(1, k))
    assert spectral_gap(metropolis(make_graph("ring", k))) == pytest.approx(1 - largest, abs=rounding(k * k))


def test_more_links_agree_faster():
    gaps = [spectral_gap(metropolis(make_graph(name, 32))) for name in ("ring", "torus", "exponential", "complete")]
    assert gaps == sorted(gaps)
    assert gaps[2] > 10 * gaps[0]


def test_the_gap_counts_negative_eigenvalues():
    """Weights that swap two models for ever: eigenvalues 1 and -1."""
    assert spectral_gap(np.array([[0.0, 1.0], [1.0, 0.0]])) == pytest.approx(0)


# Mistakes


@pytest.mark.parametrize(
    ("graph", "k", "degree", "says"),
    [
        ("random-regular", 4, 4, "graph 'random-regular': no graph has 4 workers with 4 neighbours each; give a"),
        ("random-regular", 5, 3, "no graph has 5 workers with 3 neighbours each"),
        ("random-regular", 4, 0, "no graph has 4 workers with 0 neighbours each"),
        ("random-regular", 4, 1, "one neighbour each leaves 4 workers in pairs; give a degree of at least 2"),
        ("(0-1,2-3)", 4, 3, "no link leads from 0, 1 to the other workers, so their models never agree; add one"),
        ("(0-1,1-2)", 4, 3, "no link leads from 3 to the other workers"),
        ("(0-1,2-3,4-5,6-7,8-9,10-11,0-2,2-4,4-6,6-8)", 12, 3, "no link leads from 10, 11 to the other workers"),
        ("(0-1)", 40, 3, "no link leads from"),
        ("(0-1,1-4)", 4, 3, "graph: its nodes are not the workers 0 to 3, as 4 shows; name them so"),
        ("(0-1)", 1, 3, "its nodes are not the workers 0 to 0, as 1 shows"),
        ("(0-1,1-1)", 2, 3, "link 1-1 leads from a worker to itself; leave it out"),
        ("(0-1,1)", 2, 3, "'(0-1,1)' are no links; expected pairs of workers such as (0-1,1-2)"),
        ("()", 2, 3, "'()' are no links"),
        ("(0-1", 2, 3, "'(0-1' are no links"),
        ("(0-1,)", 2, 3, "'(0-1,)' are no links"),
        ("(0--1)", 2, 3, "'(0--1)' are no links"),
        ("rnig", 4, 3, "unknown graph 'rnig': did you mean 'ring'? choose one of ring, torus, exponential, random-"),
    ],
)
def test_mistakes(graph, k, degree, says):
    with pytest.raises(UsageError) as caught:
        make_graph(graph, k, degree=degree)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_nodes_that_are_not_workers():
    with pytest.raises(UsageError, match="its nodes are not the workers 0 to 1, as 'a' shows; name them so"):
        connected(nx.Graph([("a", "b"), (0, 1)]), 2)
    with pytest.raises(UsageError, match="as 2 shows"):  # a worker that is no node
        connected(nx.path_graph(2), 3)


def test_many_workers_that_are_cut_off_are_not_all_named():
    graph = nx.disjoint_union(nx.path_graph(9), nx.path_graph(10))
    with pytest.raises(UsageError, match=r"no link leads from 0, 1, 2, 3, 4, \.\.\. to the other workers"):
        connected(graph, 19)


def test_a_connected_graph_is_returned_as_it_is():
    graph = nx.path_graph(3)
    assert connected(graph, 3) is graph
    assert sorted(graph.edges) == [(0, 1), (1, 2)]
