#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Times what jrt_lm competes with: the same language model with full softmax attention for every mixer, in PyTorch.

    full_attention_model.py --model 360m [--batch 1,16] [--tokens 2048,8192,32768,131072] [--out model_peers.json]

Random bfloat16 weights. Layers have jrt_lm's layout: RMSNorm before each half of a layer, the residual in float32; rotary
positions; scaled_dot_product_attention, causal, with the backend pinned; a gated MLP; tied embeddings, logits of the last
token only.

The peer shall be fast. A norm with the addition before it, the gate of the MLP, and the rotation of queries and keys, which
go to the cache at once, are each compiled by torch.compile in its default mode (where that fails they stay plain PyTorch,
and "compiled" in the results says so). Short prompts are timed as the replay of a CUDA graph, for launches out of Python
would take longer than the work; with long ones they are hidden. Sequences go through the model in groups, so that
activations stay bounded.

Prefill fills a cache of keys and values for all tokens to come. A decode step takes one token of every sequence through the
model and chooses the next one. It is captured as a CUDA graph at the first token after the prompt, and `--steps` replays
are timed together: they attend to the same N + 1 keys each, while real steps would each see one more, so the time is a fair
one for a token in a context of that length. Where capturing fails, the steps run one by one, each with its own length. Its
attention is that of the fastest backend for a single query ("decode_attention"), whatever prefill is pinned to.

Median of CUDA events, after one call to warm up. What does not fit, or would take too long, becomes a row that says so.
"peak_memory_bytes" is everything that was allocated at once: weights, cache, activations.
"""

import argparse
import json
import statistics
import time

import torch
import torch._dynamo
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from attention_peers import PINNED, Clock, first_line
from full_attention import MODELS, VOCABULARY, Cache, Fused, Model

SINGLE_QUERY = {**PINNED, "memory-efficient": SDPBackend.EFFICIENT_ATTENTION}
MOST_TOKENS_IN_GRAPH = 65536
FEWEST_RUNS = 2


def captured(call):
    """Its replay, or None where it cannot be captured."""
    call()  # what is compiled or chosen at the first call is not to be captured
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            call()
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:
        print(f"not captured: {first_line(error)}", flush=True)
        return None
    return graph.replay


def median_ms(clock, call, repeats, seconds):
    """As many runs as fit in this time, at least two."""
    time.sleep(0.25)  # as cuda_bench does: no row pays for the heat of the one before
    end = time.monotonic() + seconds
    call()
    times = [clock.one(call)]
    while len(times) < repeats and (len(times) < FEWEST_RUNS or time.monotonic() + times[-1] * 1e-3 < end):
        times.append(clock.one(call))
    return statistics.median(times), len(times)


def fastest_for_single_query(clock, cache, length):
    keys, values = cache.keys[0][:, :, :length], cache.values[0][:, :, :length]
    query = torch.randn_like(keys[:, :, :1])
    times = {}
    for name, backend in SINGLE_QUERY.items():
        try:
            with sdpa_kernel(backend):
                times[name], _ = median_ms(clock, lambda: scaled_dot_product_attention(query, keys, values), 3, 1)
        except RuntimeError:
            continue  # not made for one query
    if not times:
        raise RuntimeError("no attention for a single query")
    return min(times, key=times.get)


def measured_prefill(model, clock, ids, cache, attention, arguments):
    def call():
        return model.prefill(ids, cache, arguments.tokens_per_group)

    with sdpa_kernel(PINNED[attention]):
        replay = captured(call) if ids.numel() <= MOST_TOKENS_IN_GRAPH else None
        time_ms, runs = median_ms(clock, replay or call, arguments.repeats, arguments.max_seconds_per_row)
    return {"prefill_ms": time_ms, "prefill_tokens_per_s": ids.numel() / time_ms * 1e3, "prefill_runs": runs,
            "prefill_graph": replay is not None}


def measured_decode(model, clock, cache, batch, tokens, arguments):
    ids = torch.zeros(batch, 1, dtype=torch.int64, device="cuda")
    backend = fastest_for_single_query(clock, cache, tokens + 1)
    with sdpa_kernel(SINGLE_QUERY[backend]):
        replay = captured(lambda: model.step(ids, cache, tokens))

        def steps():
            for i in range(arguments.steps):
                replay() if replay else model.step(ids, cache, tokens + i)

        time_ms, runs = median_ms(clock, steps, arguments.repeats, arguments.max_seconds_per_row)
    step_ms = time_ms / arguments.steps
    return {"decode_ms_per_token": step_ms, "decode_tokens_per_s": batch / step_ms * 1e3, "decode_runs": runs,
            "decode_graph": replay is not None, "decode_attention": backend}


def measure(row, model, layout, clock, arguments):
    """Adds to the row what has been measured so far, even if something fails later."""
    batch, tokens = row["batch"], row["tokens"]
    torch.cuda.reset_peak_memory_stats()
    cache = Cache(layout, batch, tokens + arguments.steps)
    ids = torch.randint(VOCABULARY, (batch, tokens), device="cuda")
    row |= measured_prefill(model, clock, ids, cache, row["attention"], arguments)
    row |= measured_decode(model, clock, cache, batch, tokens, arguments)
    row["peak_memory_bytes"] = torch.cuda.max_memory_allocated() - clock.scratch.numel()


def reason_to_skip(row, earlier, device_bytes, seconds_left, arguments):
    """None, if there is no reason; `earlier` is the last row of this attention that has a time."""
    if row["batch"] * row["cache_bytes_per_sequence"] > device_bytes:
        return "out of memory"
    if seconds_left <= 0:
        return f"skipped: the time limit of {arguments.time_limit:g} s is over"
    if earlier is None:
        return None
    # All grows with the batch, and attention, which is most of it where it matters, with the square of the tokens.
    growth = row["batch"] / earlier["batch"] * (row["tokens"] / earlier["tokens"]) ** 2
    seconds = (1 + FEWEST_RUNS) * growth * earlier["prefill_ms"] * 1e-3
    if seconds > arguments.max_seconds_per_row:
        return f"skipped: would take about {seconds:.0f} s, more than {arguments.max_seconds_per_row:g}"
    return None


def numbers(text):
    return [int(number) for number in text.split(",")]


def parsed():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="360m")
    parser.add_argument("--attention", choices=PINNED, help="both unless given")
    parser.add_argument("--batch", type=numbers, default=[1, 16])
    parser.add_argument("--tokens", type=numbers, default=[2048, 8192, 32768, 131072])
    parser.add_argument("--steps", type=int, default=32, help="decode steps that are timed together")
    parser.add_argument("--repeats", type=int, default=5, help="most runs of a row; fewer where they take long")
    parser.add_argument("--tokens-per-group", type=int, default=262144, help="of sequences that run together")
    parser.add_argument("--max-seconds-per-row", type=float, default=20, help="shapes that would take longer are skipped")
    parser.add_argument("--time-limit", type=float, default=float("inf"), help="seconds until no further row is begun")
    parser.add_argument("--out", default="model_peers.json")
    return parser.parse_args()


def fill(row, *problem):
    try:
        measure(row, *problem)
    except torch.cuda.OutOfMemoryError:
        row["error"] = "out of memory"
    except Exception as error:  # a backend that is not available
        row["error"] = first_line(error)
    torch.cuda.empty_cache()


@torch.inference_mode()
def main():
    arguments = parsed()
    if not torch.cuda.is_available():
        print("skipped: no CUDA device")
        return
    end = time.monotonic() + arguments.time_limit
    torch._dynamo.config.recompile_limit = 64  # every shape may have kernels of its own
    layout = MODELS[arguments.model]
    model = Model(layout, max(arguments.tokens) + arguments.steps)
    clock = Clock()
    results = {"torch": torch.__version__, "GPU": torch.cuda.get_device_name(), "model": arguments.model,
               "type": "bfloat16", "steps": arguments.steps, "results": []}
    _, device_bytes = torch.cuda.mem_get_info()
    earlier = {}
    shapes = [(batch, tokens) for batch in arguments.batch for tokens in arguments.tokens]
    for batch, tokens in shapes:
        for attention in [arguments.attention] if arguments.attention else PINNED:
            row = {"attention": attention, "batch": batch, "tokens": tokens,
                   "cache_bytes_per_sequence": layout.cache_bytes(tokens)}
            reason = reason_to_skip(row, earlier.get(attention), device_bytes, end - time.monotonic(), arguments)
            if reason:
                row["error"] = reason
            else:
                fill(row, model, layout, clock, arguments)
            if "prefill_ms" in row:
                earlier[attention] = row
            results["results"].append(row)
            results["compiled"] = Fused.all_compiled
            result = row.get("error") or f"{row['prefill_ms']:.2f} ms, {row['decode_ms_per_token']:.3f} ms a token"
            print(f"{arguments.model} {attention:6} B {batch:3} N {tokens:7}  {result}", flush=True)
            # After every row: what has been measured shall not be lost.
            with open(arguments.out, "w", encoding="utf-8") as file:
                json.dump(results, file, indent=1)


if __name__ == "__main__":
    main()
