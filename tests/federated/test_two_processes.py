"""Every federated strategy gives the same bits, whether its halves share a process or only bytes."""

from __future__ import annotations

import json

import pytest
import torch
from two_processes import in_one_process, in_two_processes

from sparsync.federated import AsynchronousServer, FederatedStrategy
from sparsync.strategies import STRATEGIES

OPTIONS = {
    "feddip": "lambda_steps=2,reconfiguration_interval=2,mask_init=clients",
    "dpf": "reconfiguration_interval=2",
    "feddst": "readjustment_interval=2",
    "prunefl": "reconfiguration_interval=2,initial_rounds=5",
    "fda-opt": "max_epochs=2,threshold=inf,adaptive=no",
    "fedbuff": "buffer=2",
}
"""What lets three rounds hold all that a strategy does."""

FEDERATED = sorted(name for name, entry in STRATEGIES.entries.items() if issubclass(entry.factory, FederatedStrategy))


def experiment(spec, **options):
    federation = {"rounds": 3, "cohort": 2, "steps": 3, "eval_every": 3, **options.pop("federation", {})}
    return json.dumps(
        {
            "model": "mlp:hidden=8",
            "workers": 4,
            "batch_size": 16,
            "seeds": [1],
            "strategies": {"it": spec},
            "federation": federation,
            **options,
        }
    )


def same(text):
    here, apart = in_one_process(text), in_two_processes(text)
    assert torch.equal(here[0], apart[0])
    assert repr(here[1:]) == repr(apart[1:])
    return here


@pytest.mark.parametrize("name", FEDERATED)
def test_a_strategy_in_two_processes(name):
    spec = f"{name}:{OPTIONS[name]}" if name in OPTIONS else name
    _, _, _, lines = same(experiment(spec, profile={"step_seconds": 1.0, "latency": 0.1}))
    assert [line["rounds"] for line in lines if line["kind"] == "evaluation"] == [3]


@pytest.mark.parametrize("spec", ["fedavg:uplink=ef(topk(0.1)+q4),downlink=q8", "sparsyfed:payload=delta", "scaffold"])
def test_codecs_and_memories_in_two_processes(spec):
    same(experiment(spec, federation={"cohort": 4, "optimizer": "sgd:lr=0.05"}))


def test_an_imported_strategy_in_two_processes():
    _, _, _, lines = same(experiment("damped:share=0.5", imports=["imported_strategy"]))
    assert [line["share"] for line in lines if line["kind"] == "round"] == [0.5] * 3


def test_a_misspelt_hook_is_refused():
    with pytest.raises(TypeError, match="aggregate meant"):

        class Misspelt(AsynchronousServer):
            def agregate(self, round_, uploads):
                pass
