"""Who averages with whom in a graph, chosen alike by all strategies whose workers talk to their neighbours only."""

from __future__ import annotations

import networkx as nx

from sparsync.hetero import GraphSpec, make_graph
from sparsync.spec import Count, config
from sparsync.workers import Fleet


@config
class Neighbours:
    """What such a strategy lets its user choose.

    Attributes
    ----------
    graph : str
        Who is whose neighbour: ``ring``, ``torus``, ``exponential``, ``random-regular``, ``complete``, or links of your
        own, such as ``(0-1,1-2)``. Default: a ring.
    degree : int
        Neighbours of each worker in a random regular graph.
    period : int
        Local steps of a worker between two averagings.
    """

    graph: GraphSpec = "ring"
    degree: Count = 3
    period: Count = 1

    def links(self, fleet: Fleet, strategy: str) -> nx.Graph:
        """Return the graph, whose nodes are the fleet's workers.

        Raises
        ------
        UsageError
            If workers are linked to a server only, or there is no such graph.
        """
        fleet.need_ring(strategy)
        return make_graph(self.graph, fleet.workers, degree=self.degree, seed=fleet.seed)
