# SPDX-License-Identifier: Apache-2.0
"""What models are trained on and asked, for `training.fit` and `experiment.run_all`:

    task.batch(step, count, generator)   a batch of training
    task.evaluate(model, device)         accuracies by the name of what was asked
"""

import functools
from dataclasses import dataclass

import torch

import facts
import mqar
import set_disjointness
from losses import Batch, causal_batch, jrt_batch, prefix_lengths
from training import autocast


# Every run of a figure is asked the same.
_disjoint_examples = functools.cache(set_disjointness.published)
_recall_examples = functools.cache(mqar.published)


@torch.no_grad()
def accuracy(model, tokens, positions, answers, device, batch=256, **lengths):
    """The share of answers (count, n) at positions (count, n) that are the likeliest token there."""
    right = 0
    for first in range(0, len(tokens), batch):
        rows = slice(first, first + batch)
        asked = (tensor[rows].to(device) for tensor in (tokens, positions, answers))
        part_tokens, part_positions, part_answers = asked
        part_lengths = {name: tensor[rows].to(device) for name, tensor in lengths.items()}
        with autocast(device):
            logits = model(part_tokens, part_positions, **part_lengths)
        right += (logits.argmax(-1) == part_answers).double().mean().item() * len(part_answers)
    return right / len(tokens)


@dataclass(frozen=True)
class SetDisjointness:
    """Training on pairs of list lengths, both orders in each batch; evaluation on the authors' examples of `tests`."""

    vocabulary: int
    pairs: tuple
    tests: tuple
    test_count: int = 1000

    def batch(self, step, count, generator):
        short, long = self.pairs[step % len(self.pairs)]
        halves = [set_disjointness.fresh(self.vocabulary, *lengths, count // 2, generator)
                  for lengths in ((short, long), (long, short))]
        tokens, answers = (torch.cat(parts) for parts in zip(*halves))
        positions = torch.full((len(tokens), 1), tokens.shape[1] - 1, device=tokens.device)
        return Batch(tokens, positions, answers.unsqueeze(1))

    def evaluate(self, model, device):
        result = {}
        for seed, (short, long) in enumerate(self.tests):
            for first, second in ((short, long), (long, short)):
                tokens, answers = (torch.from_numpy(array) for array in _disjoint_examples(
                    self.vocabulary, first, second, self.test_count, 1000 + seed))
                positions = torch.full((len(tokens), 1), tokens.shape[1] - 1)
                result[f"{first}_{second}"] = accuracy(model, tokens, positions, answers.unsqueeze(1), device)
        return result


@dataclass(frozen=True)
class Recall:
    """MQAR: training and evaluation on (length, pairs)."""

    vocabulary: int
    trained: tuple
    tests: tuple
    test_count: int = 1000

    def batch(self, step, count, generator):
        return Batch(*mqar.fresh(self.vocabulary, *self.trained[step % len(self.trained)], count, generator))

    def evaluate(self, model, device):
        result = {}
        for seed, (length, pairs) in enumerate(self.tests):
            examples = (torch.from_numpy(array) for array in _recall_examples(self.vocabulary, length, pairs, self.test_count,
                                                                              1000 + seed))
            result[f"{length}_{pairs}"] = accuracy(model, *examples, device)
        return result


@dataclass(frozen=True)
class Facts:
    """Language models of documents with a question, read once and twice in turn (or as `readings` says).

    With `encoder` the loss is JRT-RNN's, M the tokens before the question's last: that one, which the answer follows, is
    the first of the decoder region. Documents of training have `places` facts, so that M does not change where their number
    does. (Few facts are where models learn first to tell them apart.) After the first question, which evaluation asks alone,
    training has more `questions` with their answers, which tell more for the same reading."""

    corpus: facts.Corpus
    numbers_of_facts: tuple
    tests: tuple
    readings: tuple = (1, 2)
    encoder: bool = False
    places: int | None = None
    questions: int = 4
    test_count: int = 1000

    def batch(self, step, count, generator):
        number = self.numbers_of_facts[step % len(self.numbers_of_facts)]
        readings = self.readings[step // len(self.numbers_of_facts) % len(self.readings)]
        documents, questions, answers = self.corpus.documents(number, count, generator, self.places, self.questions)
        prompts = facts.prompts(documents, questions[:, 0], readings)
        further = torch.cat([questions, answers], dim=-1).flatten(1)[:, questions.shape[-1]:]  # from the first answer on
        samples, region = torch.cat([prompts, further], dim=1), prompts.shape[1] - 1
        if self.encoder:
            return jrt_batch(samples, region, self.corpus.mask, generator)
        return causal_batch(samples, region)

    def examples(self, number, readings=1):
        """Prompts (count, tokens) and answers (count, 2) on the CPU; the same documents for all readings."""
        generator = torch.Generator().manual_seed(1_000_000 + number)
        documents, questions, answers = self.corpus.documents(number, self.test_count, generator)
        return facts.prompts(documents, questions[:, 0], readings), answers[:, 0]

    def evaluate(self, model, device):
        """The share of answers' last tokens, the values, that are right after the right relation."""
        result = {}
        for number in self.tests:
            for readings in self.readings:
                prompts, answers = self.examples(number, readings)
                tokens = torch.cat([prompts, answers[:, :-1]], dim=1)
                positions = torch.full((len(tokens), 1), tokens.shape[1] - 1)
                result[f"{number}_facts_{readings}_readings"] = accuracy(model, tokens, positions, answers[:, -1:], device,
                                                                         **self._lengths(tokens))
        return result

    def _lengths(self, tokens):
        """The encoder region of evaluation is that of training."""
        return {"prefix_lens": prefix_lengths(tokens, tokens.shape[1] - facts.ANSWER_TOKENS)} if self.encoder else {}
