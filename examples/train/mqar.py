# SPDX-License-Identifier: Apache-2.0
"""Associative recall with many queries (MQAR; arXiv 2312.04927):

    k1 v1 k2 v2 … 0 0 k2 0 0 0 k1 …      answers at the positions where a key comes again: its value, which is not shown
"""

import numpy as np
import torch


def _gap_weights(space):
    """The power law 0.01 i^(0.01 − 1), by which most queries come soon after the pairs."""
    weights = 0.01 * np.arange(1, space + 1) ** (0.01 - 1)
    return weights / weights.sum()


def published(vocabulary, length, pairs, count, seed):
    """The authors' examples, without filler: tokens (count, length), positions (count, pairs) and answers (count, pairs)."""
    _check(vocabulary, length, pairs)
    random = np.random.RandomState(seed)
    keys, values = np.arange(1, vocabulary // 2), np.arange(vocabulary // 2, vocabulary)
    space = (length - 2 * pairs) // 2
    chosen_keys = np.stack([random.choice(keys, pairs, replace=False) for _ in range(count)])
    chosen_values = np.stack([random.choice(values, pairs, replace=False) for _ in range(count)])
    weights = _gap_weights(space)
    gaps = np.stack([random.choice(space, pairs, replace=False, p=weights) for _ in range(count)])
    tokens = np.zeros((count, length), dtype=np.int64)
    tokens[:, 0:2 * pairs:2], tokens[:, 1:2 * pairs:2] = chosen_keys, chosen_values
    positions = 2 * pairs + 2 * gaps
    np.put_along_axis(tokens, positions, chosen_keys, axis=1)
    return tokens, positions, chosen_values


def fresh(vocabulary, length, pairs, count, generator):
    """Examples of the same distribution as tensors on the generator's device."""
    _check(vocabulary, length, pairs)
    device = generator.device

    def distinct(population, weights=None):
        # The largest of u^(1/w): a weighted draw without replacement (Efraimidis and Spirakis, 2006).
        uniform = torch.rand(count, population, generator=generator, device=device)
        return (uniform if weights is None else uniform.log() / weights).topk(pairs).indices

    keys, values = distinct(vocabulary // 2 - 1) + 1, distinct(vocabulary - vocabulary // 2) + vocabulary // 2
    space = (length - 2 * pairs) // 2
    gaps = distinct(space, torch.tensor(_gap_weights(space), dtype=torch.float32, device=device))
    tokens = torch.zeros(count, length, dtype=torch.int64, device=device)
    tokens[:, 0:2 * pairs:2], tokens[:, 1:2 * pairs:2] = keys, values
    positions = 2 * pairs + 2 * gaps
    return tokens.scatter(1, positions, keys), positions, values


def _check(vocabulary, length, pairs):
    if pairs > vocabulary // 2 - 1 or 4 * pairs > length:
        raise ValueError(f"mqar: {pairs} pairs need a vocabulary of at least {2 * pairs + 2} and a length of at least "
                         f"{4 * pairs}, but those are {vocabulary} and {length}.")
