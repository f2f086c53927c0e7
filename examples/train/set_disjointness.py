# SPDX-License-Identifier: Apache-2.0
"""Set disjointness (arXiv 2407.05483, section 3): two lists have one token in common; which one?

    1 <first list> 2 <second list> 3      answer at the last position: the shared token

A causal model must remember the whole first list, so long-then-short needs a larger state than short-then-long. A model that
reads both lists before it answers needs only the shorter one.
"""

import numpy as np
import torch

BEGIN, BETWEEN, ANSWER, FIRST = 1, 2, 3, 4  # 0 is not used; tokens of lists start at FIRST


def published(vocabulary, first, second, count, seed):
    """The authors' examples: tokens (count, first + second + 3) and answers (count), from their random numbers.

    Each example permutes the vocabulary, draws the shorter list from the first half and the longer one from the rest, and one
    random token of the shorter list replaces one of the longer list's."""
    random = np.random.RandomState(seed)  # the legacy generator, whose numbers never change
    short, long = min(first, second), max(first, second)
    if short > vocabulary // 2 or long > vocabulary - FIRST - vocabulary // 2:
        raise ValueError(f"published: lists of {short} and {long} do not fit a vocabulary of {vocabulary}.")
    tokens, answers = [], []
    for _ in range(count):
        permuted = random.permutation(np.arange(FIRST, vocabulary))
        short_list = random.choice(permuted[:vocabulary // 2], short, replace=False)
        long_list = random.choice(permuted[vocabulary // 2:], long, replace=False)
        answer = short_list[random.randint(0, short)]
        long_list[random.randint(0, long)] = answer
        lists = (short_list, long_list) if first <= second else (long_list, short_list)
        tokens.append(np.concatenate([[BEGIN], lists[0], [BETWEEN], lists[1], [ANSWER]]))
        answers.append(answer)
    return np.stack(tokens), np.array(answers)


def fresh(vocabulary, first, second, count, generator):
    """Examples of the same distribution, as tensors on the generator's device: every token of a list is different, and one
    is in both, at any place."""
    device = generator.device
    if first + second > vocabulary - FIRST:
        raise ValueError(f"fresh: lists of {first} and {second} do not fit a vocabulary of {vocabulary}.")
    order = torch.rand(count, vocabulary - FIRST, generator=generator, device=device).topk(first + second).indices + FIRST
    lists = list(order.split([first, second], dim=1))
    rows = torch.arange(count, device=device)
    source, target = (torch.randint(length, (count,), generator=generator, device=device) for length in (first, second))
    lists[1] = lists[1].index_put((rows, target), lists[0][rows, source])
    begin, between, end = (torch.full((count, 1), token, device=device) for token in (BEGIN, BETWEEN, ANSWER))
    return torch.cat([begin, lists[0], between, lists[1], end], dim=1), lists[0][rows, source]
