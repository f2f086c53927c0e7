#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Times what a training step competes with: forward and backward of softmax attention as PyTorch ships it, also in a
window.

    training_peers.py [--out training_peers.json]

Shapes, clock and names as in attention_peers.py; the gradients of queries, keys and values of one random output gradient.
"peak_bytes" is the most that a step allocates on the way, its results included.
"""

import argparse
import json

import torch
from attention_peers import HEADS, PINNED, Clock, first_line, random_tensors
from torch.nn.attention import sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

SHAPES = [(16, 2048), (16, 8192), (16, 32768), (1, 2048), (1, 8192), (1, 32768), (1, 131072), (8, 2048)]


def step(forward, inputs, output_gradient):
    for tensor in inputs:
        tensor.requires_grad_()

    def call():
        output = forward(*inputs)
        output = output[0] if isinstance(output, tuple) else output
        return torch.autograd.grad(output, inputs, output_gradient)

    return call


def softmax_step(backend):
    def make(batch, tokens):
        *inputs, output_gradient = random_tensors(batch, tokens, (64, 64, 64, 64))

        def forward(query, key, value):
            with sdpa_kernel(backend):
                return scaled_dot_product_attention(query, key, value, is_causal=True)

        return step(forward, inputs, output_gradient)

    return make


def window_step(batch, tokens):
    """FlashAttention-2's own window kernels, 128 keys to the left; PyTorch has no function for them that differentiates."""
    query, key, value, output_gradient = (
        tensor.transpose(1, 2).contiguous() for tensor in random_tensors(batch, tokens, (64, 64, 64, 64)))
    window = {"window_size_left": 128, "window_size_right": 0}

    def call():
        output, log_sum_exp, seed, offset, _ = torch.ops.aten._flash_attention_forward(
            query, key, value, None, None, tokens, tokens, 0.0, False, False, **window)
        return torch.ops.aten._flash_attention_backward(
            output_gradient, query, key, value, output, log_sum_exp, None, None, tokens, tokens, 0.0, False, seed, offset,
            **window)

    return call


def timed_row(name, make, batch, tokens, clock):
    row = {"name": name, "B": batch, "N": tokens, "median_ms": None}
    try:
        call = make(batch, tokens)
        row["median_ms"], row["runs"] = clock.median(call)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        row["peak_bytes"] = torch.cuda.max_memory_allocated() - before
    except torch.cuda.OutOfMemoryError:
        row["error"] = "out of memory"
    except Exception as error:  # a backend that is not available, a kernel that does not compile
        row["error"] = first_line(error)
    torch.cuda.empty_cache()
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="training_peers.json")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("skipped: no CUDA device")
        return
    peers = {name: softmax_step(backend) for name, backend in PINNED.items()}
    peers["FA2_window"] = window_step
    clock = Clock()
    rows = []
    for batch, tokens in SHAPES:
        for name, make in peers.items():
            row = timed_row(name, make, batch, tokens, clock)
            rows.append(row)
            result = row.get("error") or f"{row['median_ms']:.4f} ms, median of {row['runs']}"
            print(f"{name:26} B {batch:3} N {tokens:7}  {result}", flush=True)
    results = {"torch": torch.__version__, "GPU": torch.cuda.get_device_name(), "heads": HEADS, "results": rows}
    with open(arguments.out, "w", encoding="utf-8") as file:
        json.dump(results, file, indent=1)


if __name__ == "__main__":
    main()
