#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Speed and memory of a training step in the 360M layout: JRT-RNN and Based on jrt beside the same layers on other kernels.

    speed.py [--tokens 2048,8192,32768] [--json speed.json] [--compile]

    jrt JRT-RNN    M is half of the tokens (the paper: 1024 of 2048)
    jrt Based      causal: no encoder region
    fla Based      the same with flash-linear-attention's kernels in place of jrt's linear attention, where it is installed
    FA2, cuDNN     softmax attention of PyTorch's, the backend pinned, in every layer

A step is loss, gradients and AdamW, bfloat16 autocast, weights and their averages in float32. All sequences of a step have
32768 tokens together. Layers, MLPs and the loss are the same code; only mixers differ. Where activations do not fit, each
layer is computed again in the backward pass, and the row says so. Median of steps after two to warm up, each waited for;
memory is all that was allocated at once.
"""

import argparse
import datetime
import inspect
import json
import pathlib
import statistics
import time
from contextlib import nullcontext

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

import figures
import jrt
from experiment import device_name, prepare
from jrt.torch.language_model import LanguageModel
from jrt.torch.nn import LinearAttention
from models import FullAttention
from training import autocast

# Extents: width, layers, heads, vocabulary. "tiny" is for trying the program out.
LAYOUTS = {"360m": (1024, 26, 16, 50264), "tiny": (64, 4, 4, 96)}
MODELS = ("jrt JRT-RNN", "jrt Based", "fla Based", "FA2", "cuDNN")
BACKENDS = {"FA2": SDPBackend.FLASH_ATTENTION, "cuDNN": SDPBackend.CUDNN_ATTENTION}
LOGITS_AT_ONCE = 8192
WARM_UPS, MOST_RUNS = 2, 10


def configuration(layout, encoder_tokens):
    """The authors' 360M model: linear attention in layers 1, 6, …, the window behind it, gated convolutions elsewhere."""
    width, layers, heads, vocabulary = LAYOUTS[layout]
    module = "based.models.mixers"
    return {"vocab_size": vocabulary, "n_embd": width, "n_layer": layers, "n_head": heads, "n_inner": 2 * width,
            "activation_function": "swiglu", "rms_norm": True, "layer_norm_epsilon": 1e-5, "rotary_emb_fraction": 1,
            "mixer": {"_target_": f"{module}.convolution.BaseConv", "expand_proj": 4, "kernel_size": 3, "use_bias": True},
            "alt_mixer": {"_target_": f"{module}.prefix_linear_attention.PrefixLinearAttention", "feature_dim": 16,
                          "num_heads": heads, "enc_length": encoder_tokens} if encoder_tokens else
                         {"_target_": f"{module}.linear_attention.LinearAttention", "feature_dim": 16, "num_heads": heads},
            "alt_mixer_layers": list(range(1, layers - 1, 5)), "alt_mixer_2_layers": list(range(2, layers, 5)),
            "alt_mixer_2": {"_target_": f"{module}.slide_attention.SlidingAttention", "window_size": 256},
            "mlp_fc1_bias": False, "mlp_fc2_bias": False, "qkv_proj_bias": False, "out_proj_bias": False}


def operators(names, layout, dtype):
    """The library's operators of these models."""
    width, _, heads, _ = LAYOUTS[layout]
    masks = [mask for name, mask in (("jrt JRT-RNN", "prefix"), ("jrt Based", "causal")) if name in names]
    found = [jrt.Operator(kind="linear", dtype=dtype, d=16, dv=width // heads, mask=mask) for mask in masks]
    if masks or "fla Based" in names:
        found += [jrt.Operator(kind="window", dtype=dtype, d=width // heads, dv=width // heads, left_window=128),
                  jrt.Operator(kind="convolution", dtype=dtype, kernel_width=3)]
    return found


class FlaAttention(LinearAttention):
    """`LinearAttention` on flash-linear-attention's kernel, normalised."""

    def forward(self, x, **_):
        from fla.ops.based import fused_chunk_based

        tensors = self._tensors(x)
        rows = [tensors[name] for name in ("query", "key", "value")]
        if torch.is_autocast_enabled("cuda"):
            rows = [tensor.to(torch.get_autocast_dtype("cuda")) for tensor in rows]
        # Versions that know two orders of tensors are told; later ones take [B,T,H,d] alone.
        names = inspect.signature(fused_chunk_based).parameters
        output = fused_chunk_based(*rows, **({"head_first": False} if "head_first" in names else {}))
        return self.out_proj(output.flatten(-2))


def new_model(name, layout, tokens, device):
    torch.manual_seed(1)
    width, _, heads, _ = LAYOUTS[layout]
    encoder_tokens = tokens // 2 if name == "jrt JRT-RNN" else 0
    model = LanguageModel(configuration(layout, encoder_tokens)).to(device)
    for layer in model.transformer.layers:
        if name in BACKENDS or name == "softmax":
            layer.mixer = FullAttention(width, heads)
        elif name == "fla Based" and isinstance(layer.mixer, LinearAttention):
            layer.mixer = FlaAttention(width, heads)
    nn.init.normal_(model.transformer.embeddings.word_embeddings.weight, std=0.02)
    return model.to(device)


def loss_of(model, tokens, targets, again):
    """Mean cross entropy. Logits of all tokens would be the largest tensor by far: they are formed in pieces, twice."""
    x = model._embedded(tokens)
    for layer in model.transformer.layers:
        x = checkpoint(layer, x, use_reentrant=False) if again else layer(x)

    def part(rows, labels):
        return cross_entropy(model.logits(rows).float(), labels, reduction="sum")

    rows, labels = x.flatten(0, 1).split(LOGITS_AT_ONCE), targets.flatten().split(LOGITS_AT_ONCE)
    return sum(checkpoint(part, *pair, use_reentrant=False) for pair in zip(rows, labels)) / targets.numel()


class Step:
    """A training step of a model on random tokens."""

    def __init__(self, name, layout, batch, tokens, device, again, compiled):
        self.model = new_model(name, layout, tokens, device)
        self.optimiser = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)
        self.samples = torch.randint(LAYOUTS[layout][3], (batch, tokens + 1), device=device)
        self.device, self.again, self.backend = device, again, BACKENDS.get(name)
        if compiled:
            for layer in self.model.transformer.layers:
                layer.compile()

    def __call__(self):
        self.optimiser.zero_grad(set_to_none=True)
        with nullcontext() if self.backend is None else sdpa_kernel(self.backend):
            with autocast(self.device):
                loss = loss_of(self.model, self.samples[:, :-1], self.samples[:, 1:], self.again)
            loss.backward()  # layers that are computed again take this backend, too
        self.optimiser.step()
        return loss


def timed(step, device, seconds):
    """Milliseconds of single steps."""
    times, end = [], time.monotonic() + seconds
    for number in range(WARM_UPS + MOST_RUNS):
        begin = time.monotonic()
        loss = step()
        if device == "cuda":
            torch.cuda.synchronize()
        if number == 0 and not torch.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss.item()}")
        if number >= WARM_UPS:
            times.append(1e3 * (time.monotonic() - begin))
        if len(times) >= 3 and time.monotonic() > end:
            break
    return times


def measured(name, layout, batch, tokens, device, arguments):
    row = {"model": name, "batch": batch, "tokens": tokens}
    for again in (False, True):
        step = None
        try:
            if device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            step = Step(name, layout, batch, tokens, device, again, arguments.compile)
            times = timed(step, device, arguments.seconds)
            row |= {"ms": statistics.median(times), "runs": len(times), "computed_again": again,
                    "parameters": sum(parameter.numel() for parameter in step.model.parameters()),
                    "tokens_per_s": batch * tokens / statistics.median(times) * 1e3}
            if device == "cuda":
                row["peak_bytes"] = torch.cuda.max_memory_allocated()
            break
        except torch.cuda.OutOfMemoryError:
            row["error"] = "out of memory"
        except Exception as error:  # a backend or a package that is not there
            row["error"] = (str(error).strip().splitlines() or [type(error).__name__])[0]
            break
        finally:
            del step
            if device == "cuda":
                torch.cuda.empty_cache()
    if "ms" in row:
        row.pop("error", None)
    return row


def table(results):
    body = []
    for row in results["results"]:
        if "ms" not in row:
            body.append([row["tokens"], row["model"], row["error"], "–", "–"])
            continue
        memory = f"{row['peak_bytes'] / 2**30:.1f}" if "peak_bytes" in row else "–"
        body.append([row["tokens"], row["model"] + (", layers computed again" if row["computed_again"] else ""),
                     f"{row['tokens_per_s']:.3g}", f"{row['ms']:.3g}", memory])
    return figures.table(["tokens of a sequence", "model", "tokens/s", "ms a step", "memory, GiB"], body)


def numbers(text):
    return [int(number) for number in text.split(",")]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layout", choices=LAYOUTS, default="360m")
    parser.add_argument("--tokens", type=numbers, default=[2048, 8192, 32768])
    parser.add_argument("--tokens-per-step", type=int, default=32768)
    parser.add_argument("--models", type=lambda text: text.split(","), help="of " + ", ".join(MODELS) + ", softmax")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true", help="torch.compile of the layers")
    parser.add_argument("--seconds", type=float, default=3, help="for each row, beside the first steps")
    parser.add_argument("--json", type=pathlib.Path, default=pathlib.Path("build/train/speed.json"))
    arguments = parser.parse_args()
    results = {"device": device_name(arguments.device), "torch": torch.__version__, "layout": arguments.layout,
               "date": datetime.date.today().isoformat(), "compiled": arguments.compile, "results": []}
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    names = arguments.models or MODELS
    prepare(operators(names, arguments.layout, "bfloat16" if arguments.device == "cuda" else "float32"), arguments.device)
    for tokens in arguments.tokens:
        for name in names:
            row = measured(name, arguments.layout, max(1, arguments.tokens_per_step // tokens), tokens, arguments.device,
                           arguments)
            results["results"].append(row)
            arguments.json.write_text(json.dumps(results, indent=1) + "\n")  # after every row: nothing measured is lost
            print(f"{name:12} {tokens:6} tokens: " + (row.get("error") or f"{row['tokens_per_s']:.3g} tokens/s"), flush=True)
    print("\n" + table(results))


if __name__ == "__main__":
    main()
