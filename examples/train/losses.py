# SPDX-License-Identifier: Apache-2.0
"""Batches with their targets, and the losses of causal models and of JRT-RNN."""

from dataclasses import dataclass, fields

import torch
from torch.nn import functional

IGNORED = -100
ENCODER_WEIGHT = 0.25  # of masked tokens in the encoder region, beside next tokens in the decoder region
MASKED_SHARE = 0.15


@dataclass
class Batch:
    """Tokens (batch, T); positions (batch, n) of the logits that count, and their targets (batch, n). `before` are targets at
    the first M positions, IGNORED where there is none, which count a quarter. `prefix_lens` (batch) int32: the encoder
    region of each sequence where the model is to have another than its own."""

    tokens: torch.Tensor
    positions: torch.Tensor
    targets: torch.Tensor
    before: torch.Tensor | None = None
    prefix_lens: torch.Tensor | None = None

    def tensors(self):
        every = (self.tokens, self.positions, self.targets, self.before, self.prefix_lens)
        return [tensor for tensor in every if tensor is not None]

    def clone(self):
        every = {field.name: getattr(self, field.name) for field in fields(self)}
        return Batch(**{name: None if tensor is None else tensor.clone() for name, tensor in every.items()})


def mean_cross_entropy(logits, targets):
    """Over targets that are not IGNORED; 0 where there is none, and not the NaN of an empty mean."""
    total = functional.cross_entropy(logits.flatten(0, -2).float(), targets.flatten(), ignore_index=IGNORED, reduction="sum")
    return total / (targets != IGNORED).sum().clamp(min=1)


def loss_of(model, batch):
    """Cross entropy of the targets, plus 0.25 times that of the targets before them, if there are any."""
    lengths = {} if batch.prefix_lens is None else {"prefix_lens": batch.prefix_lens}
    if batch.before is None:
        return mean_cross_entropy(model(batch.tokens, batch.positions, **lengths), batch.targets)
    before = torch.arange(batch.before.shape[1], device=batch.tokens.device).expand(batch.tokens.shape[0], -1)
    logits = model(batch.tokens, torch.cat([batch.positions, before], dim=1), **lengths)
    logits, before_logits = logits.split([batch.positions.shape[1], before.shape[1]], dim=1)
    return mean_cross_entropy(logits, batch.targets) + ENCODER_WEIGHT * mean_cross_entropy(before_logits, batch.before)


def causal_batch(samples, region):
    """Samples (batch, L + 1) for a causal model: every token is predicted from those before it, and the first `region`
    positions count as little as JRT-RNN's encoder region does, so that both models' losses say the same of what follows."""
    tokens, positions = samples[:, :-1], _positions(samples, region)
    return Batch(tokens, positions, samples[:, region + 1:], samples[:, 1:region + 1])


def _positions(samples, region):
    return torch.arange(region, samples.shape[1] - 1, device=samples.device).expand(samples.shape[0], -1)


def jrt_batch(samples, encoder_tokens, mask, generator):
    """The same samples for JRT-RNN with M = `encoder_tokens`: next tokens from position M on; of the first M tokens 15 % are
    replaced by `mask`, and are themselves the targets there, not shifted. As in the authors' code the step from the last
    token of the encoder region to the first behind it is not trained, and each chosen token is replaced, none kept."""
    region = samples[:, :encoder_tokens]
    chosen = torch.rand(region.shape, generator=generator, device=samples.device) < MASKED_SHARE
    tokens = torch.cat([region.masked_fill(chosen, mask), samples[:, encoder_tokens:-1]], dim=1)
    return Batch(tokens, _positions(samples, encoder_tokens), samples[:, encoder_tokens + 1:],
                 region.masked_fill(~chosen, IGNORED), prefix_lengths(samples, encoder_tokens))


def prefix_lengths(tokens, encoder_tokens):
    return torch.full((tokens.shape[0],), encoder_tokens, dtype=torch.int32, device=tokens.device)
