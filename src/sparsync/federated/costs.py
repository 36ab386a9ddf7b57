"""What training and messages cost by formula, to compare with papers. Nothing here is booked: the ledger counts bytes.

The count of a round's traffic in FedDIP's repository, and the floating-point operations of sparse training, which are
saved only where kernels skip zeros.
"""

from __future__ import annotations

from collections.abc import Mapping


def authors_cost(parameters: int, cohort: int, down_sparsity: float, up_sparsity: float = 0.0) -> float:
    """Traffic of one round as ``EricLoong/feddip`` @ 4327d96 counts it, in Mbit of 2^20 bits; it says MB.

    ``int(32 (1 - s) n) / 2**20`` per transfer: values alone, without masks, headers and buffers.

    Parameters
    ----------
    parameters : int
        n, all that are trained, biases and normalisation included.
    cohort : int
        Clients of the round, each with one download and one upload.
    down_sparsity : float
        The round's target, although the mask changes in every R-th round only and the first download is dense.
    up_sparsity : float
        Zeros measured in what clients send. Default: 0, since their weights are dense.
    """
    return cohort * sum(int(32 * (1 - sparsity) * parameters) for sparsity in (down_sparsity, up_sparsity)) / 2**20


def training_flops(
    forward: Mapping[str, int],
    weights: Mapping[str, float],
    activations: Mapping[str, float] | None = None,
    *,
    masked_gradients: bool = False,
) -> float:
    """Operations of training on one example: (d + d + a) F per layer, 3 F where all is dense.

    The forward pass and the gradient by the input are as dense as the weight, d; the gradient by the weight is as dense
    as the saved activation, a. Thresholds and the power of a re-parametrisation, O(numel), are not counted.

    Parameters
    ----------
    forward : mapping of str to int
        F of every layer, from `sparsync.task.forward_flops`.
    weights : mapping of str to float
        d, densities of the weights.
    activations : mapping of str to float, optional
        a, densities of the saved activations. Default: dense.
    masked_gradients : bool
        Whether gradients of weights that are zero are skipped: d a F instead of a F.
    """
    total = 0.0
    for name, dense in forward.items():
        d, a = weights[name], 1.0 if activations is None else activations[name]
        total += dense * (2 * d + (d * a if masked_gradients else a))
    return total
