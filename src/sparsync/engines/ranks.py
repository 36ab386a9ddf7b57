"""The processes of a fleet over torch.distributed: spawned here, or started by torchrun."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.distributed.nn  # see below
from torch import Tensor

from sparsync.errors import PayloadError, SparsyncError
from sparsync.wire import Chain, Dense, Topology

# torch imports this module of its own when an optimiser first steps, and its functions take the process group that
# exists by then as their default argument: group and threads then outlive destroy_process_group, and the process may
# abort at its end. Imported here, before there is a group, it holds none.
_ = torch.distributed.nn

_LOOK_UP = timedelta(seconds=10)  # how long to wait for the others before asking where they are


class TorchDistributed:
    """A `Group` over a torch.distributed process group.

    On a ring, vectors are averaged by the backend's all-reduce (gloo's is a ring, too). On a star, every rank but 0
    sends rank 0 a real payload and gets one back.

    Parameters
    ----------
    group : ProcessGroup, optional
        Default: all processes.
    missing : callable, optional
        Asked, while this process waits for the others, why they may not come; what it returns ends the waiting.
    """

    def __init__(self, group: dist.ProcessGroup | None = None, missing: Callable[[], str | None] | None = None) -> None:
        self.group = group
        self.rank = dist.get_rank(group)
        self.size = dist.get_world_size(group)
        self._missing = missing if dist.get_backend(group) == "gloo" else None  # others cannot wait in slices

    def mean(self, total: Tensor, divisor: float, topology: Topology, codec: Dense | Chain) -> Tensor:
        """Sum of one vector (p,) per process over `divisor`: the same bits in all of them."""
        if topology.name == "star":
            return self._through_server(total, divisor, codec)
        self._wait(dist.all_reduce(total, group=self.group, async_op=True))
        return total.div_(divisor)

    def _through_server(self, total: Tensor, divisor: float, codec: Dense | Chain) -> Tensor:
        numel = total.numel()
        if self.rank != 0:
            self._send(codec.encode(total), 0, codec)
            return self._receive(numel, 0, codec).to(total)
        for sender in range(1, self.size):
            total += self._receive(numel, sender, codec).to(total)
        mean = total.div_(divisor)
        answer = codec.encode(mean)
        for receiver in range(1, self.size):
            self._send(answer, receiver, codec)
        return codec.round(mean)

    def _send(self, payload: bytes, receiver: int, codec: Dense | Chain) -> None:
        message = torch.frombuffer(bytearray(payload), dtype=torch.uint8)
        if isinstance(codec, Chain):  # how long it is depends on what it says
            length = torch.tensor([len(payload)], dtype=torch.int64)
            self._wait(dist.isend(length, group=self.group, group_dst=receiver))
        self._wait(dist.isend(message, group=self.group, group_dst=receiver))

    def _receive(self, numel: int, sender: int, codec: Dense | Chain) -> Tensor:
        size = codec.nbytes(numel) if isinstance(codec, Dense) else self._announced(numel, sender, codec)
        message = torch.empty(size, dtype=torch.uint8)
        self._wait(dist.irecv(message, group=self.group, group_src=sender))
        try:
            return codec.decode(message.numpy().data, numel)
        except PayloadError as error:
            raise PayloadError(f"rank {sender}: {error}") from None

    def _announced(self, numel: int, sender: int, codec: Chain) -> int:
        """Length of the message that comes next, if it is permitted."""
        length = torch.empty(1, dtype=torch.int64)
        self._wait(dist.irecv(length, group=self.group, group_src=sender))
        size, most = int(length), codec.most_bytes(numel) + 4096
        if not 0 < size <= most:
            raise PayloadError(f"rank {sender}: announces {size} bytes, permitted are {most}")
        return size

    def broadcast(self, x: Tensor) -> Tensor:
        """Overwrite `x` with rank 0's, in place, and return it."""
        self._wait(dist.broadcast(x, group=self.group, group_src=0, async_op=True))
        return x

    def minimum(self, value: int) -> int:
        """Smallest of one number per process."""
        number = torch.tensor(value, dtype=torch.int64)
        self._wait(dist.all_reduce(number, op=dist.ReduceOp.MIN, group=self.group, async_op=True))
        return int(number)

    def barrier(self) -> None:
        """Wait for all processes."""
        self.minimum(0)

    def _wait(self, work: dist.Work | None) -> None:
        if work is None:
            return
        while True:
            try:
                work.wait(_LOOK_UP if self._missing else timedelta(0))
                return
            except RuntimeError as error:
                reason = self._missing() if self._missing else None
                if reason:
                    raise SparsyncError(reason) from None
                if "imed out" not in str(error):
                    raise SparsyncError(
                        f"rank {self.rank}: lost the others in the middle of an exchange ({error}); if one of them "
                        "stopped, its own message says why"
                    ) from None
