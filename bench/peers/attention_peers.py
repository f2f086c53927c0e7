#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Times what prefill competes with: softmax attention as PyTorch ships it, also in a window, and Based attention in Triton.

    attention_peers.py [--out peers.json]

FlashAttention-2 and cuDNN attention: scaled_dot_product_attention with the backend pinned, causal, 16 heads of dimension
64, bfloat16, [B,H,N,64]. Its window kernel: the same, of [B,N,H,64], 128 keys to the left. Triton: parallel_based and
fused_chunk_based of flash-linear-attention, where it is installed; d = 16, dv = 64, normalised. Median of CUDA events
around single calls, caches overwritten before each. A call that is not available, or that needs too much memory, becomes
a row that says so.

"cache_bytes" are the keys and values that softmax attention keeps of all sequences, to decode what follows them;
"peak_bytes" is the most that a call allocates on the way, its output not counted.
"""

import argparse
import inspect
import json
import statistics
import time
from contextlib import nullcontext

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

HEADS = 16
PINNED = {"FA2": SDPBackend.FLASH_ATTENTION, "cuDNN": SDPBackend.CUDNN_ATTENTION}
SHAPES = [(16, 2048), (16, 8192), (16, 16384), (16, 32768), (1, 2048), (1, 32768), (1, 131072), (8, 2048)]
WARM_UPS = 3
MOST_RUNS = 50
FEWEST_RUNS = 7
MILLISECONDS_PER_ROW = 1500


class Clock:
    """Milliseconds of single calls with cold caches."""

    def __init__(self):
        self.scratch = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")

    def one(self, call):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        # More often than the cache needs: the device shall not be done before Python has enqueued the call.
        for _ in range(4):
            self.scratch.zero_()
        begin.record()
        call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end)

    def median(self, call):
        time.sleep(0.25)  # as cuda_bench does: no row pays for the heat of the one before
        first = [self.one(call) for _ in range(WARM_UPS)][-1]
        runs = int(min(MOST_RUNS, max(FEWEST_RUNS, MILLISECONDS_PER_ROW / first)))
        return statistics.median(self.one(call) for _ in range(runs)), runs


def first_line(error):
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def random_tensors(batch, tokens, dims):
    return [torch.randn(batch, HEADS, tokens, dim, device="cuda", dtype=torch.bfloat16) for dim in dims]


def softmax_attention(batch, tokens):
    query, key, value = random_tensors(batch, tokens, (64, 64, 64))
    return lambda: scaled_dot_product_attention(query, key, value, is_causal=True)


def window_attention(batch, tokens):
    query, key, value = (tensor.transpose(1, 2).contiguous() for tensor in random_tensors(batch, tokens, (64, 64, 64)))
    return lambda: torch.ops.aten._flash_attention_forward(
        query, key, value, None, None, tokens, tokens, 0.0, False, False, window_size_left=128, window_size_right=0)


def based_attention(function):
    def make(batch, tokens):
        query, key, value = random_tensors(batch, tokens, (16, 16, 64))
        # Old versions know [B,H,N,d] only; later ones take it if told to, and copy tensors of the other order.
        told = {"head_first": True} if "head_first" in inspect.signature(function).parameters else {}
        return lambda: function(query, key, value, **told)

    return make


def based_functions():
    try:
        from fla.ops.based import fused_chunk_based, parallel_based
    except Exception as error:  # an incompatible version may raise anything
        print(f"Triton's Based attention is skipped: cannot import fla.ops.based ({error})")
        return {}
    return {"triton_parallel_based": based_attention(parallel_based),
            "triton_fused_chunk_based": based_attention(fused_chunk_based)}


def allocated_on_the_way(call):
    """Bytes, at most; a tuple of results starts with the output."""
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    results = call()
    output = results[0] if isinstance(results, tuple) else results
    return torch.cuda.max_memory_allocated() - before - output.numel() * output.element_size()


def measured(name, call, batch, tokens, clock):
    median, runs = clock.median(call)
    results = {"median_ms": median, "runs": runs, "peak_bytes": allocated_on_the_way(call)}
    if name in PINNED:
        results["cache_bytes"] = 2 * batch * HEADS * tokens * 64 * torch.bfloat16.itemsize
    return results


def timed_row(name, make, batch, tokens, clock):
    row = {"name": name, "B": batch, "N": tokens, "median_ms": None}
    try:
        with torch.no_grad(), sdpa_kernel(PINNED[name]) if name in PINNED else nullcontext():
            row |= measured(name, make(batch, tokens), batch, tokens, clock)
    except torch.cuda.OutOfMemoryError:
        row["error"] = "out of memory"
    except Exception as error:  # a backend that is not available, a kernel that does not compile
        row["error"] = first_line(error)
    torch.cuda.empty_cache()
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="peers.json")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("skipped: no CUDA device")
        return
    peers = {"FA2": softmax_attention, "FA2_window": window_attention, "cuDNN": softmax_attention, **based_functions()}
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
