#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Trains a small JRT-RNN with PyTorch to recall: a text has keys, then pairs of a key and a value, and for each of the former
the model is to say the value.

    training.py [--device cuda] [--steps 250]

The question comes first: [keys asked for | pairs]. A model that reads once cannot answer there, before it has seen the pairs.
Here they lie in the encoder region of `PrefixLinearAttention`, so that every key asked for sees all of them. The program ends with 1 if it recalls less than 90 %.
"""

import argparse
import sys

import torch
from jrt.torch import nn
from torch.nn import functional

PAIRS, KINDS, WIDTH = 4, 16, 64  # pairs of a text; keys, and as many values; the model's width


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embeddings = torch.nn.Embedding(2 * KINDS, WIDTH)
        mixers = (nn.BaseConv(WIDTH), nn.PrefixLinearAttention(WIDTH, 2, enc_length=3 * PAIRS),
                  nn.SlidingWindow(WIDTH, 2, window_size=16, rotary_emb_dim=32),
                  nn.PrefixLinearAttention(WIDTH, 2, enc_length=3 * PAIRS))
        self.layers = torch.nn.Sequential(*(nn.JRTBlock(WIDTH, mixer) for mixer in mixers))
        self.norm = nn.RMSNorm(WIDTH)
        torch.nn.init.normal_(self.embeddings.weight, std=0.1)  # they are the last projection, too

    def forward(self, tokens):
        return functional.linear(self.norm(self.layers(self.embeddings(tokens))), self.embeddings.weight)


def texts(count, device, generator):
    """Tokens (count, 3 · PAIRS): keys in an order of their own, then each key with its value; and the values asked for."""
    keys = torch.rand(count, KINDS, generator=generator).argsort(1)[:, :PAIRS]
    values = torch.randint(KINDS, 2 * KINDS, (count, PAIRS), generator=generator)
    order = torch.rand(count, PAIRS, generator=generator).argsort(1)
    asked, answers = keys.gather(1, order), values.gather(1, order)
    pairs = torch.stack([keys, values], dim=2).flatten(1)
    return torch.cat([asked, pairs], dim=1).to(device), answers.to(device)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, default=250)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    model = Model().to(arguments.device)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    total = 0.0
    for step in range(arguments.steps):
        tokens, answers = texts(64, arguments.device, generator)
        logits = model(tokens)[:, :PAIRS]
        loss = functional.cross_entropy(logits.flatten(0, 1), answers.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item()
        if step % 50 == 49:
            print(f"step {step + 1}: loss {total / 50:.3f}", flush=True)
            total = 0.0
    tokens, answers = texts(256, arguments.device, generator)
    with torch.no_grad():
        right = (model(tokens)[:, :PAIRS].argmax(-1) == answers).float().mean().item()
    print(f"recalled {100 * right:.0f} % of values; guessing gives {100 / KINDS:.0f} %")
    return 0 if right >= 0.9 else 1


if __name__ == "__main__":
    sys.exit(main())
