"""A server and its clients, in rounds: FedAvg and its relatives, and the methods that send sparse models."""

from sparsync.federated.context import FederationContext, ServerContext, TooFewUploads, Upload
from sparsync.federated.contract import (
    AsynchronousServer,
    FederatedClient,
    FederatedServer,
    FederatedStrategy,
    Reply,
    Work,
)
from sparsync.federated.dpf import DPF
from sparsync.federated.fda_opt import FDAOpt
from sparsync.federated.fedasync import FedAsync
from sparsync.federated.fedavg import FedAvg
from sparsync.federated.fedbuff import FedBuff
from sparsync.federated.feddip import FedDIP
from sparsync.federated.feddst import FedDST
from sparsync.federated.fedopt import FedAdagrad, FedAdam, FedAvgM, FedYogi
from sparsync.federated.fedprox import FedProx
from sparsync.federated.flash import Flash
from sparsync.federated.prunefl import PruneFL
from sparsync.federated.scaffold import Scaffold
from sparsync.federated.settings import Federation
from sparsync.federated.snip import Snip
from sparsync.federated.sparsyfed import SparsyFed
from sparsync.federated.top_k import TopK
from sparsync.federated.zerofl import ZeroFL

__all__ = [
    "DPF",
    "AsynchronousServer",
    "FDAOpt",
    "FedAdagrad",
    "FedAdam",
    "FedAsync",
    "FedAvg",
    "FedAvgM",
    "FedBuff",
    "FedDIP",
    "FedDST",
    "FedProx",
    "FedYogi",
    "FederatedClient",
    "FederatedServer",
    "FederatedStrategy",
    "Federation",
    "FederationContext",
    "Flash",
    "PruneFL",
    "Reply",
    "Scaffold",
    "ServerContext",
    "Snip",
    "SparsyFed",
    "TooFewUploads",
    "TopK",
    "Upload",
    "Work",
    "ZeroFL",
]
