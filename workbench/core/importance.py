"""How much the loss depends on each weight, and how sure that is.

Removing a weight changes the loss by, to second order (paper Eq. 2; Ma et al. 2023, arXiv 2305.11627),

    |L(D) - L(D | W_i = 0)|  ~  |g_i W_i - H_ii W_i^2 / 2|

with g the gradient of the mean loss over the whole set D, and H_ii estimated by the Fisher information,
the mean over examples of the squared gradient. The paper's final form (Eq. 3) keeps the first term.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def importance(gradient: Tensor, weight: Tensor, fisher: Tensor | None = None) -> Tensor:
    """|g W|, or |g W - F W^2 / 2| where `fisher` is given; all of one shape, float32."""
    change = gradient * weight
    return (change if fisher is None else change - fisher * weight.square() / 2).abs()


def resampling_weights(num_examples: int, replicates: int, seed: int) -> NDArray:
    """Bootstrap: how often each example is drawn, over their number: (replicates, examples), rows sum to 1."""
    counts = np.random.default_rng(seed).multinomial(num_examples, [1 / num_examples] * num_examples, replicates)
    return counts / num_examples


def bootstrap(
    gradients: Tensor, weights: Tensor, resamples: NDArray, *, second_order: bool, batches: list[slice] | None = None
) -> NDArray:
    """The sum of the importance of some weights of a module, under resampling: (replicates,), as factors.

    gradients: (examples, weights), one per example; weights: (weights,); `batches`: with the mean of
    per-batch absolute values, which examples are a batch (then `resamples` draws batches). A factor is 1
    plus the replicate's relative distance from the replicates' mean, not from the estimate: an absolute
    value grows with noise, and resampling adds noise a second time.
    """
    gradients, weights = gradients.double(), weights.double()
    if batches is None:
        draws = torch.from_numpy(resamples)
        fisher = draws @ gradients.square() if second_order else None
        values = importance(draws @ gradients, weights, fisher).sum(1)
        estimate = importance(gradients.mean(0), weights, gradients.square().mean(0) if second_order else None).sum()
    else:
        each = torch.stack(
            [
                importance(part.mean(0), weights, part.square().mean(0) if second_order else None).sum()
                for part in (gradients[batch] for batch in batches)
            ]
        )
        values, estimate = torch.from_numpy(resamples) @ each, each.mean()
    if not estimate:
        return np.ones(len(resamples))
    return (1 + (values - values.mean()) / estimate).numpy()
