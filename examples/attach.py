"""FDA in a training loop of your own: one process is one worker, and the loop stays as it was.

Needs nothing but sparsync; copy one of these:

    torchrun --nproc-per-node 2 examples/attach.py          # two workers on this machine
    python examples/attach.py                               # one worker: the same script, nothing to send
    torchrun --nnodes 2 --nproc-per-node 1 --rdzv-backend c10d --rdzv-endpoint HOST:29500 examples/attach.py
"""

import os

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn

import sparsync

epochs, batch_size, lr = 30, 32, 1e-3
threshold = 0.5  # model variance left alone; docs/fda.md says how to choose it

# One worker per process; gloo is the CPU's backend.
if "RANK" in os.environ:
    dist.init_process_group("gloo")
rank, workers = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
torch.set_num_threads(1)  # the model is tiny: more threads would only wait for one another
torch.manual_seed(rank)  # workers may differ from the start: `attach` gives all of them rank 0's model

# 1797 pictures of 8x8; the last 297 are the test set, the others are dealt out by rank, equally many to each.
pictures, labels = load_digits(return_X_y=True)
x = torch.tensor(pictures / 16, dtype=torch.float32).view(-1, 1, 8, 8)  # (n, 1, 8, 8)
y = torch.tensor(labels)
x_test, y_test = x[1500:], y[1500:]
mine = range(rank, 1500 - 1500 % workers, workers)
loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x[mine], y[mine]), batch_size, shuffle=True)

model = nn.Sequential(
    nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(256, 64), nn.ReLU(),
    nn.Linear(64, 10),
)  # fmt: skip
optimizer = torch.optim.Adam(model.parameters(), lr=lr)

with sparsync.attach(model, optimizer, sparsync.FDA(threshold=threshold)) as sync:
    for _ in range(epochs):
        for inputs, targets in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), targets).backward()
            optimizer.step()  # here FDA checks the models' variance, and averages them if it must
    sync.average()  # the workers have drifted since the last average: end with one model

if rank == 0:
    with torch.no_grad():
        accuracy = (model(x_test).argmax(1) == y_test).float().mean().item()
    print(f"{workers} workers, {sync.steps} steps: accuracy {accuracy:.4f}")
    print(f"{sync.syncs} averages, {sync.ledger.total:,} bytes (wire), by kind {sync.ledger.moved}")
if dist.is_initialized():
    dist.destroy_process_group()
