"""Run by test_attach under torchrun: a user's loop. Usage: loop.py CASE OUT"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

import sparsync
from sparsync import FDA, LocalSGD, Synchronous


class Net(nn.Module):
    """Shared, unused, frozen and bfloat16 parameters, and BatchNorm buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.shared = nn.Linear(8, 8)
        self.shared.weight = self.first.weight
        self.norm = nn.BatchNorm1d(8)
        self.frozen = nn.Linear(8, 8)
        self.frozen.requires_grad_(False)
        self.unused = nn.Linear(8, 3)
        self.last = nn.Linear(8, 2).to(torch.bfloat16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.shared(self.first(x).relu()))
        return self.last(self.frozen(x).to(torch.bfloat16)).float()


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, rank: int) -> None:
    data = torch.Generator().manual_seed(100 + rank)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(16, 8, generator=data)).square().mean().backward()
        optimizer.step()


def main() -> None:
    case, out = sys.argv[1], Path(sys.argv[2])
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    torch.manual_seed(rank)  # different first models: attach must give all rank 0's
    model = Net()
    frozen = model.frozen.weight.clone()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    strategy = {
        "fda": FDA(threshold=0.05),
        "sketch": FDA(threshold=0.05, monitor="sketch", width=50),
        "local": LocalSGD(period=5),
        "gradients": Synchronous(average="gradients"),
        "early": LocalSGD(period=1),
        "resume": FDA(threshold=0.05),
    }[case]
    report: dict[str, object] = {}
    try:
        with sparsync.attach(model, optimizer, strategy) as sync:
            train(model, optimizer, 20 if not (case == "early" and rank == 1) else 7, rank)
            if case == "resume":  # state through a file, into a new attachment
                torch.save(sync.state_dict(), out / f"state-{rank}.pt")
            if case != "early":
                report["syncs"] = sync.syncs
                sync.average()
        if case == "resume":
            again = sparsync.attach(model, optimizer, strategy)
            again.load_state_dict(torch.load(out / f"state-{rank}.pt", weights_only=True))
            with again as sync:
                assert sync.steps == 20
                train(model, optimizer, 5, rank)
                report["resumed_steps"] = sync.steps
                sync.average()
    except sparsync.SparsyncError as error:
        report["error"] = str(error)
    trained = {name: p.detach().double().flatten().tolist() for name, p in model.named_parameters() if p.requires_grad}
    report["model"] = trained
    report["buffers"] = model.norm.running_mean.tolist()
    report["frozen_kept"] = bool(torch.equal(model.frozen.weight, frozen))
    report["booked"] = sync.ledger.moved.get("model", 0) + sync.ledger.moved.get("gradient", 0)
    report["d"] = sync.fleet.d
    (out / f"{rank}.json").write_text(json.dumps(report))
    dist.destroy_process_group()


main()
