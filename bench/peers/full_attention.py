# SPDX-License-Identifier: Apache-2.0
"""jrt_lm's language model with full softmax attention for every mixer, in PyTorch; random bfloat16 weights.

What lies between matrix products and attention is compiled by torch.compile, so that no number goes to memory and back on
the way: a norm with the addition before it, the gate of the MLP, and the rotation, which writes to the cache.
"""

from dataclasses import dataclass

import torch
from torch.nn.functional import embedding, linear, scaled_dot_product_attention, silu

from attention_peers import HEADS, first_line

VOCABULARY = 50264
EPSILON = 1e-5
NUMBER = torch.bfloat16


@dataclass(frozen=True)
class Layout:
    width: int
    layers: int

    @property
    def head_dim(self):
        return self.width // HEADS

    @property
    def hidden(self):
        return -(-2 * self.width // 256) * 256

    def cache_bytes(self, tokens):
        return 2 * self.layers * self.width * tokens * NUMBER.itemsize


MODELS = {"360m": Layout(1024, 26), "1.3b": Layout(1792, 36)}


class Fused:
    """A function as torch.compile makes it, or as it is where that fails: without Triton or a C compiler, say."""

    all_compiled = True

    def __init__(self, function):
        self.plain = function
        self.call = torch.compile(function)

    def __call__(self, *arguments):
        try:
            return self.call(*arguments)
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as error:
            if self.call is self.plain:
                raise
            print(f"{self.plain.__name__} stays as it is: {first_line(error)}", flush=True)
            Fused.all_compiled = False
            self.call = self.plain
        return self.plain(*arguments)


@Fused
def norm(residual, weight):
    scale = torch.rsqrt(residual.square().mean(-1, keepdim=True) + EPSILON)
    return (residual * scale * weight).to(NUMBER)


@Fused
def add_and_norm(residual, update, weight):
    residual = residual + update
    scale = torch.rsqrt(residual.square().mean(-1, keepdim=True) + EPSILON)
    return residual, (residual * scale * weight).to(NUMBER)


@Fused
def gated(projected):
    gate, value = projected.chunk(2, dim=-1)
    return (silu(gate.float()) * value.float()).to(NUMBER)


def rotated(rows, cosine, sine):
    """Turns pairs of one number from each half of a row. The sine has a sign for either half, so that nothing is joined."""
    halves = rows.float().unflatten(-1, (2, -1))
    return (halves * cosine + halves.flip(-2) * sine).to(NUMBER).flatten(-2)


@Fused
def into_cache(projected, cosine, sine, keys, values):
    """Turned queries [B,N,H,d]; rotated keys and values go to their places, [B,H,N,d]."""
    query, key, value = projected.unflatten(-1, (3, HEADS, keys.shape[-1])).unbind(2)
    # Not `copy_`, for which torch.compile forms the rotated keys elsewhere first.
    places = torch.arange(keys.shape[2], device=keys.device)
    keys.index_copy_(2, places, rotated(key.transpose(1, 2), cosine, sine))
    values.copy_(value.transpose(1, 2))
    return rotated(query, cosine[:, None], sine[:, None])


class Cache:
    """Keys and values of every layer, [B,H,tokens,d]."""

    def __init__(self, layout, batch, tokens, device="cuda"):
        shape = (batch, HEADS, tokens, layout.head_dim)
        self.keys, self.values = ([torch.empty(shape, dtype=NUMBER, device=device) for _ in range(layout.layers)]
                                  for _ in range(2))


class Model:
    def __init__(self, layout, max_tokens, device="cuda"):
        def weight(rows, columns):
            return torch.empty(rows, columns, dtype=NUMBER, device=device).normal_(std=0.02)

        width, hidden = layout.width, layout.hidden
        self.embedding = weight(VOCABULARY, width)
        self.layers = [(weight(3 * width, width), weight(width, width), weight(2 * hidden, width), weight(width, hidden))
                       for _ in range(layout.layers)]
        # Two for every layer, and the last one before the logits.
        self.norms = [torch.ones(width, device=device) for _ in range(2 * layout.layers + 1)]
        half = layout.head_dim // 2
        frequencies = 10000.0 ** (-torch.arange(half, dtype=torch.float64, device=device) / half)
        angles = torch.arange(max_tokens, dtype=torch.float64, device=device)[:, None] * frequencies
        self.cosine = angles.cos().float()[:, None]
        self.sine = torch.stack([-angles.sin(), angles.sin()], dim=1).float()

    def logits(self, ids, attend):
        """Of the last token of `ids`, [B,N]; `attend(layer, projected)` is the mixer between its two products."""
        residual = embedding(ids, self.embedding).float()
        x = norm(residual, self.norms[0])
        for number, (qkv, out, fc1, fc2) in enumerate(self.layers):
            x = linear(attend(number, linear(x, qkv)), out)
            residual, x = add_and_norm(residual, x, self.norms[2 * number + 1])
            x = linear(gated(linear(x, fc1)), fc2)
            residual, x = add_and_norm(residual, x, self.norms[2 * number + 2])
        return linear(x[:, -1], self.embedding)

    def rotate_at(self, first, count):
        return self.cosine[first:first + count], self.sine[first:first + count]

    def prefill(self, ids, cache, tokens_per_group):
        """Chooses the first token after each prompt, [B,1]."""
        batch, tokens = ids.shape
        turn = self.rotate_at(0, tokens)
        chosen = []
        size = max(1, tokens_per_group // tokens)
        for group in (slice(first, first + size) for first in range(0, batch, size)):

            def attend(layer, projected, group=group):
                keys, values = cache.keys[layer][group, :, :tokens], cache.values[layer][group, :, :tokens]
                query = into_cache(projected, *turn, keys, values).transpose(1, 2)
                return scaled_dot_product_attention(query, keys, values, is_causal=True).transpose(1, 2).flatten(2)

            chosen.append(self.logits(ids[group], attend).argmax(-1, keepdim=True))
        return torch.cat(chosen)

    def step(self, ids, cache, position):
        """Chooses the token after `ids`, [B,1], in its place."""
        turn = self.rotate_at(position, 1)

        def attend(layer, projected):
            keys, values = cache.keys[layer], cache.values[layer]
            new = slice(position, position + 1)
            query = into_cache(projected, *turn, keys[:, :, new], values[:, :, new]).transpose(1, 2)
            seen = scaled_dot_product_attention(query, keys[:, :, :position + 1], values[:, :, :position + 1])
            return seen.transpose(1, 2).flatten(2)

        ids.copy_(self.logits(ids, attend).argmax(-1, keepdim=True))
