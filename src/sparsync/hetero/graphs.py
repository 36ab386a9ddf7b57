"""Who exchanges models with whom, where there is neither a server nor a ring for all: graphs and mixing weights."""

from __future__ import annotations

import itertools
import re
from typing import Annotated

import networkx as nx
import numpy as np
import numpy.typing as npt
from pydantic import AfterValidator

from sparsync.errors import UsageError
from sparsync.randomness import generator
from sparsync.spec import Registry, unknown

GRAPHS: Registry[nx.Graph] = Registry("graph", nx.Graph)
"""Functions (workers, degree, seed, *, options) -> graph of two workers or more; call them through `make_graph`."""

_NAMED = 5  # most workers that a message names


def check_graph(graph: str) -> str:
    """Return the name of a graph, or a list of links, as it is, if that is what it is.

    Raises
    ------
    UsageError
        If it is neither.
    """
    if graph.startswith("("):
        _links(graph)
    elif (name := graph.partition("(")[0].strip()) not in GRAPHS.entries:
        raise unknown("graph", name, [*GRAPHS.entries, "links such as (0-1,1-2)"])
    else:
        GRAPHS.check(graph)
    return graph


GraphSpec = Annotated[str, AfterValidator(check_graph)]
"""What a user may choose: see `make_graph`."""


def make_graph(graph: str, workers: int, *, degree: int = 3, seed: int = 0) -> nx.Graph:
    """Return a graph whose nodes are the workers.

    Parameters
    ----------
    graph : str
        ``ring``. ``torus``: the most square grid of so many workers, closed in both directions. ``exponential``: worker
        i is linked to i +- 1, 2, 4, ... (Assran et al., arXiv:1811.10792, whose links have a direction).
        ``random-regular``: drawn at random among the connected graphs in which every worker has `degree` neighbours.
        ``complete``. Or links of your own: ``(0-1,1-2,2-3)``.
    workers : int
        K.
    degree : int
        See there.
    seed : int
        Of that graph.

    Raises
    ------
    UsageError
        If there is no such graph, or it is not connected.
    """
    check_graph(graph)
    if graph.startswith("("):
        made = nx.empty_graph(workers)
        made.add_edges_from(_links(graph))
        return connected(made, workers)
    if workers == 1:
        return nx.empty_graph(1)
    return connected(GRAPHS.build(GRAPHS.inner(graph), workers, degree, seed), workers)


@GRAPHS.register("ring")
def ring(workers: int, _degree: int, _seed: int) -> nx.Graph:
    """Two neighbours each."""
    return nx.cycle_graph(workers)


@GRAPHS.register("torus")
def torus(workers: int, _degree: int, _seed: int) -> nx.Graph:
    """The most square grid of so many workers, closed in both directions."""
    height = max(h for h in range(1, int(workers**0.5) + 1) if workers % h == 0)
    made = nx.convert_node_labels_to_integers(nx.grid_2d_graph(height, workers // height, periodic=True))
    made.remove_edges_from(list(nx.selfloop_edges(made)))  # of a grid one worker wide
    return made


@GRAPHS.register("exponential")
def exponential(workers: int, _degree: int, _seed: int) -> nx.Graph:
    """Worker i is linked to i +- 1, 2, 4, ... (Assran et al., whose links have a direction)."""
    return nx.circulant_graph(workers, [2**j for j in range((workers - 1).bit_length())])


@GRAPHS.register("random-regular")
def random_regular(workers: int, degree: int, seed: int) -> nx.Graph:
    """Drawn at random among the connected graphs in which every worker has `degree` neighbours."""
    return _random_regular(degree, workers, seed)


@GRAPHS.register("complete")
def complete(workers: int, _degree: int, _seed: int) -> nx.Graph:
    """Everyone is everyone's neighbour."""
    return nx.complete_graph(workers)


def _links(text: str) -> list[tuple[int, int]]:
    """Read ``(0-1,1-2)``."""
    parts = [re.fullmatch(r"\s*(\d{1,9})\s*-\s*(\d{1,9})\s*", part) for part in text[1:-1].split(",")]
    links = [(int(part[1]), int(part[2])) for part in parts if part]
    if not text.endswith(")") or len(links) < len(parts):
        raise UsageError(f"{text!r} are no links; expected pairs of workers such as (0-1,1-2)")
    if loops := [one for one, other in links if one == other]:
        raise UsageError(f"link {loops[0]}-{loops[0]} leads from a worker to itself; leave it out")
    return links


def _random_regular(degree: int, workers: int, seed: int) -> nx.Graph:
    if not 1 <= degree < workers or degree * workers % 2:
        raise UsageError(
            f"graph 'random-regular': no graph has {workers} workers with {degree} neighbours each; "
            "give a degree below the number of workers, and one of both even"
        )
    if degree == 1 and workers > 2:
        raise UsageError(
            f"graph 'random-regular': one neighbour each leaves {workers} workers in pairs; give a degree of at least 2"
        )
    rng = generator(seed, "graph")
    if 2 * degree >= workers:  # connected in any case; drawn by what it lacks, since dense ones take networkx very long
        return nx.complement(nx.random_regular_graph(workers - 1 - degree, workers, rng))
    drawn = (nx.random_regular_graph(degree, workers, rng) for _ in itertools.count())
    return next(graph for graph in drawn if nx.is_connected(graph))


def connected(graph: nx.Graph, workers: int) -> nx.Graph:
    """Return a graph if it links all workers, 0 to K - 1, directly or through others.

    Raises
    ------
    UsageError
        If its nodes are others, or some of them cannot be reached.
    """
    if odd := set(graph) ^ set(range(workers)):
        raise UsageError(
            f"graph: its nodes are not the workers 0 to {workers - 1}, as {min(odd, key=str)!r} shows; name them so"
        )
    parts = sorted(nx.connected_components(graph), key=len)
    if len(parts) > 1:
        named = ", ".join(map(str, sorted(parts[0])[:_NAMED])) + (", ..." if len(parts[0]) > _NAMED else "")
        raise UsageError(
            f"graph: no link leads from {named} to the other workers, so their models never agree; add one"
        )
    return graph


def metropolis(graph: nx.Graph) -> npt.NDArray[np.float64]:
    """Return symmetric mixing weights, (K, K), whose rows and columns sum to 1 (Metropolis-Hastings).

    w_ij = 1 / (1 + max(degree i, degree j)) for neighbours, and what is left for oneself (Xiao and Boyd, 2004).
    """
    links = nx.to_numpy_array(graph, nodelist=range(len(graph)), weight=None) > 0
    degrees = links.sum(1)
    weights = np.where(links, 1 / (1 + np.maximum(degrees[:, None], degrees[None, :])), 0.0)
    return weights + np.diag(1 - weights.sum(1))


def spectral_gap(weights: npt.NDArray[np.float64]) -> float:
    """Return 1 - |second largest eigenvalue| of mixing weights, (K, K): how fast models agree; 1: at once."""
    values = np.sort(np.abs(np.linalg.eigvalsh(weights)))
    return float(1 - values[-2]) if len(values) > 1 else 1.0
