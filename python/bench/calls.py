#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What a call from PyTorch costs beside its kernels, and a training step of the mixer beside PyTorch's attention and, where
it is installed, flash-linear-attention's Based.

    calls.py [--tokens 256]

Eager: wall time of a call in a long row of calls, which the host's work bounds where kernels are short. Graph: the same
calls captured once and replayed, the kernels alone. Their difference is the overhead. 16 heads, bfloat16, d = 16, dv = 64.
"""

import argparse
import time

import jrt
import jrt.torch
import torch


def eager(call, count=300):
    for _ in range(20):
        call()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(count):
        call()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / count * 1e6


def replayed(call, count=50):
    graph = torch.cuda.CUDAGraph()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    with torch.cuda.graph(graph):
        for _ in range(20):
            call()
    return eager(graph.replay, count) / 20


def tensors(batch, tokens, *dims):
    return [torch.randn(batch, tokens, 16, dim, device="cuda", dtype=torch.bfloat16) for dim in dims]


def step(function, inputs):
    inputs = [tensor.detach().requires_grad_() for tensor in inputs]
    gradient = None

    def call():
        nonlocal gradient
        output = function(*inputs)
        gradient = torch.randn_like(output) if gradient is None else gradient
        return torch.autograd.grad(output, inputs, gradient)

    return call


def milliseconds(call, count=20):
    for _ in range(3):
        call()
    times = []
    for _ in range(count):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return sorted(times)[count // 2]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=256)
    arguments = parser.parse_args()
    print(torch.cuda.get_device_name(), "torch", torch.__version__)
    small = tensors(1, arguments.tokens, 16, 16, 64)
    operator = jrt.Operator(dtype="bfloat16", d=16, dv=64, mask="causal")
    output = torch.empty_like(small[2])
    given = {"query": small[0], "key": small[1], "value": small[2], "output": output}
    workspace = torch.empty(operator.workspace_bytes("prefill", **given), dtype=torch.uint8, device="cuda")
    calls = {
        "op.prefill, all memory given": lambda: operator.prefill(**given, workspace=workspace),
        "op.prefill": lambda: operator.prefill(query=small[0], key=small[1], value=small[2]),
        "jrt.torch.based": lambda: jrt.torch.based(*small),
    }
    try:
        from fla.ops.based import parallel_based
    except ImportError:
        parallel_based = None
    for name, call in calls.items():
        slow, fast = eager(call), replayed(call)
        print(f"{name:32} T {arguments.tokens}: eager {slow:7.1f} us, in a graph {fast:6.1f} us, "
              f"overhead {slow - fast:6.1f} us")
    for batch, count in ((16, 8192), (1, 32768)):
        own = milliseconds(step(jrt.torch.based, tensors(batch, count, 16, 16, 64)))

        def softmax(q, k, v):
            return torch.nn.functional.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v)), is_causal=True)

        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.FLASH_ATTENTION):
            flash = milliseconds(step(softmax, tensors(batch, count, 64, 64, 64)), 5)
        print(f"forward and backward, B {batch} N {count}: jrt.torch.based {own:.3f} ms, FlashAttention-2 {flash:.2f} ms, "
              f"ratio {flash / own:.1f}")
        if parallel_based is not None:
            peer = milliseconds(step(parallel_based, tensors(batch, count, 16, 16, 64)), 5)
            print(f"    flash-linear-attention's parallel_based {peer:.2f} ms, ratio {peer / own:.1f}")


if __name__ == "__main__":
    main()
