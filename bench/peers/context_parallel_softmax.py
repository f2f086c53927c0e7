#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Causal softmax attention of one sequence over several GPUs in PyTorch: what context_bench stands beside.

16 heads, d = dv = 64, bfloat16: the shapes of JRT-RNN 360M. Two ways: PyTorch's own context-parallel attention, where this
version has it, and a ring in plain torch.distributed, in which every rank has one early and one late part of the sequence
(so that all work alike) and sends its keys and values on while it multiplies.

    NCCL_NVLS_ENABLE=0 bench/peers/context_parallel_softmax.py [--weak 32768] [--strong 262144,1048576] [--json FILE]
    bench/peers/context_parallel_softmax.py --check      # the ring against one device; on CPUs where there are no GPUs

A time is the median of several calls of the slowest rank, each between two events.
"""

import argparse
import json
import os
import socket
import statistics
import sys
import time

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.functional import scaled_dot_product_attention

HEADS, DIM = 16, 64


def attend(query, key, value, causal):
    """Outputs and log-sum-exp of one block, by FlashAttention."""
    if query.is_cuda:
        return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, 0.0, causal)[:2]
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, 0.0, causal)[:2]


def merge(output, logs, more, more_logs):
    """The softmax over both key sets, in place; float32."""
    weight = torch.sigmoid(more_logs - logs).unsqueeze(-1)
    output.lerp_(more.float(), weight)
    torch.logaddexp(logs, more_logs, out=logs)


def ring_attention(query, key, value):
    """Tensors (1, heads, tokens, dim) of this rank's early and late part, one after the other."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    half = query.shape[2] // 2
    late = query[:, :, half:].contiguous()
    current = torch.stack([key, value])
    output, logs = None, None
    for step in range(ranks):
        following, requests = None, []
        if step + 1 < ranks:
            following = torch.empty_like(current)
            requests = dist.batch_isend_irecv([
                dist.P2POp(dist.isend, current, (rank + 1) % ranks),
                dist.P2POp(dist.irecv, following, (rank - 1) % ranks),
            ])
        source = (rank - step) % ranks
        keys, values = current[0], current[1]
        if source == rank:
            output, logs = attend(query, keys, values, True)
            output, logs = output.float(), logs.float()
        elif source < rank:  # its early part precedes all of ours, its late one follows it
            merge(output, logs, *attend(query, keys[:, :, :half].contiguous(), values[:, :, :half].contiguous(), False))
        else:  # both of its parts lie between our two
            merge(output[:, :, half:], logs[:, :, half:], *attend(late, keys, values, False))
        for request in requests:
            request.wait()
        current = following
    return output.to(query.dtype)


def parts_of(rank, ranks, tokens):
    """Token indices of a rank: part `rank` and part 2 ranks − 1 − rank of 2 ranks equal ones."""
    length = tokens // (2 * ranks)
    return [slice(part * length, (part + 1) * length) for part in (rank, 2 * ranks - 1 - rank)]


def sequence(tokens, device, dtype, seed=1):
    generator = torch.Generator(device=device).manual_seed(seed)
    return [torch.randn(1, HEADS, tokens, DIM, generator=generator, device=device, dtype=dtype) for _ in range(3)]


def time_calls(call, device, repeats):
    times = []
    for i in range(repeats + 1):
        dist.barrier()
        torch.cuda.synchronize(device)
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        call()
        end.record()
        torch.cuda.synchronize(device)
        if i > 0 or repeats == 1:
            times.append(begin.elapsed_time(end))
    slowest = torch.tensor([statistics.median(times)], device=device)
    dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
    return slowest.item()


def torch_context_parallel(tokens, device):
    """A call of PyTorch's context-parallel attention; raises where it is missing."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.experimental import context_parallel
    from torch.nn.attention import SDPBackend, sdpa_kernel

    mesh = init_device_mesh("cuda", (dist.get_world_size(),))
    ranks = dist.get_world_size()

    def call(repeats):
        # context_parallel divides whole tensors; a rank's part alone would do, but the interface has no other way in.
        whole = sequence(tokens, device, torch.bfloat16)
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION), torch.no_grad():
            with context_parallel(mesh, buffers=whole, buffer_seq_dims=[2, 2, 2], no_restore_buffers=set(whole)):
                assert whole[0].shape[2] == tokens // ranks
                return time_calls(lambda: scaled_dot_product_attention(*whole, is_causal=True), device, repeats)

    return call


def worker(rank, ranks, port, options, results):
    device = torch.device("cuda", rank)
    torch.cuda.set_device(device)
    dist.init_process_group("nccl", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=ranks, device_id=device)
    rows = []

    def measure(way, scaling, tokens, function):
        # Seconds a call, by 400 TFLOP/s, decide how often it is repeated.
        estimate = 2 * HEADS * DIM * tokens**2 / ranks / 4e14
        repeats = 1 if estimate > 1.5 else 5
        if time.time() + 4 * estimate * (repeats + 1) > options.deadline:
            return
        try:
            milliseconds = function(repeats)
        except Exception as error:  # noqa: BLE001  (a version of PyTorch without it)
            if rank == 0:
                print(f"{way}: {str(error).splitlines()[0] if str(error) else type(error).__name__}", flush=True)
            return
        finally:
            torch.cuda.empty_cache()
        bytes_received = (ranks - 1) * 2 * HEADS * DIM * 2 * tokens // ranks
        rows.append({"scaling": scaling, "way": way, "gpus": ranks, "tokens": tokens, "ms": milliseconds,
                     "received_bytes": bytes_received})
        if rank == 0:
            print(f"| {scaling} | {way} | {ranks} | {tokens} | {milliseconds:.3f} | {bytes_received / 1e6:.1f} |", flush=True)

    def ring(tokens):
        def call(repeats):
            local = sequence(tokens // ranks, device, torch.bfloat16, 1 + rank)
            with torch.no_grad():
                return time_calls(lambda: ring_attention(*local), device, repeats)
        return call

    cases = [("weak", options.weak * ranks)] if options.weak else []
    cases += [("strong", tokens) for tokens in options.strong]
    for scaling, tokens in cases:
        measure("ring", scaling, tokens, ring(tokens))
        if ranks > 1:
            measure("torch", scaling, tokens,
                    lambda repeats, tokens=tokens: torch_context_parallel(tokens, device)(repeats))
    if rank == 0:
        results.put(rows)
    dist.destroy_process_group()


def check_worker(rank, ranks, port, cuda):
    device = torch.device("cuda", rank) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if cuda else "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=ranks)
    tokens = 64 * ranks
    whole = sequence(tokens, "cpu", torch.float32)
    expected = scaled_dot_product_attention(*whole, is_causal=True)
    parts = parts_of(rank, ranks, tokens)
    number = torch.bfloat16 if cuda else torch.float32
    local = [torch.cat([x[:, :, part] for part in parts], 2).to(device, number) for x in whole]
    actual = ring_attention(*local).float().cpu()
    error = (actual - torch.cat([expected[:, :, part] for part in parts], 2)).abs().max().item()
    assert error < (3e-2 if cuda else 1e-5), error
    if rank == 0:
        print(f"{ranks} ranks agree with one device: {error:.1e}")
    dist.destroy_process_group()


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weak", type=int, default=32768, help="tokens a GPU; 0 for none")
    parser.add_argument("--strong", default="262144,1048576", help="tokens of one sequence, a list")
    parser.add_argument("--json", help="file for the results")
    parser.add_argument("--seconds", type=float, default=300, help="after which no further row is begun")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    os.environ.setdefault("NCCL_NVLS_ENABLE", "0")
    options.strong = [int(t) for t in options.strong.split(",") if t]
    options.deadline = time.time() + options.seconds
    gpus = torch.cuda.device_count()
    if options.check:
        for ranks in (2, 4):
            cuda = gpus >= ranks
            mp.spawn(check_worker, (ranks, free_port(), cuda), ranks)
        return 0
    if gpus == 0:
        print("skipped: no CUDA device")
        return 0
    print(f"{gpus} x {torch.cuda.get_device_name(0)}, PyTorch {torch.__version__}")
    print("| scaling | way | GPUs | tokens | ms | received, MB |\n|---|---|---|---|---|---|", flush=True)
    rows = []
    ranks = 1
    while ranks <= gpus:
        results = mp.get_context("spawn").SimpleQueue()
        context = mp.spawn(worker, (ranks, free_port(), options, results), ranks, join=False)
        while not context.join():
            pass
        rows += results.get()
        ranks *= 2
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"device": torch.cuda.get_device_name(0), "torch": torch.__version__, "rows": rows}, file, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
