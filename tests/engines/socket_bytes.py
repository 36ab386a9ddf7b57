"""Run by test_real_bytes under torchrun: what the kernel counted on this rank's sockets, beside the ledger.

Usage: socket_bytes.py TOPOLOGY OUT. The kernel's count is ``bytes_acked`` and ``bytes_received`` of TCP_INFO (Linux,
include/uapi/linux/tcp.h), summed over all TCP sockets that this process holds.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

import sparsync


def counted() -> tuple[int, int]:
    """Bytes (sent and acknowledged, received) over all TCP sockets of this process."""
    sent = received = 0
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # a descriptor that has gone, or is no TCP socket
            if not os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(name))) as handle:
                info = handle.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 136)
            acked, got = struct.unpack_from("<QQ", info, 120)
            sent, received = sent + acked, received + got
    return sent, received


def main() -> None:
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 500), nn.ReLU(), nn.Linear(500, 500), nn.ReLU(), nn.Linear(500, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with sparsync.attach(model, optimizer, "local-sgd:period=2", topology=sys.argv[1]) as sync:
        dist.barrier()
        before, booked = counted(), (sync.ledger.sent["model"].copy(), sync.ledger.received["model"].copy())
        for _ in range(40):
            optimizer.zero_grad()
            model(torch.randn(8, 64)).square().mean().backward()
            optimizer.step()
        dist.barrier()
        after = counted()
        rank = dist.get_rank()
        report = {
            "kernel": [after[0] - before[0], after[1] - before[1]],
            "ledger": [
                int(sync.ledger.sent["model"][rank] - booked[0][rank]),
                int(sync.ledger.received["model"][rank] - booked[1][rank]),
            ],
            "syncs": sync.syncs,
        }
        Path(sys.argv[2], f"{rank}.json").write_text(json.dumps(report))
    dist.destroy_process_group()


main()
