# SPDX-License-Identifier: Apache-2.0
"""JAX functions on jrt's operators, with gradients, for the CPU and NVIDIA GPUs; they need the package jax-tvm-ffi.

    y = jax.jit(jrt.jax.prefix_linear_attention)(query, key, value, key_encoder, value_encoder)
    jax.grad(lambda query: jrt.jax.based(query, key, value).sum())(query)

Tensors are (batch, tokens, heads, dim) or, packed with `cu_seqlens`, (tokens, heads, dim). The workspace is a buffer of XLA's,
as outputs are, and kernels run on XLA's stream. Gradients are taken once (`jax.grad`, reverse mode). Under `jax.vmap` calls
follow one another: give a batch instead. Operators are compiled when a function is first traced with their types and dimensions.

`platform` is "cpu" or "cuda". By default it is that of the first array or, while a function is traced, JAX's default.
"""

import functools
import hashlib
import os
import pathlib

import jax
import jax.numpy as jnp
import tvm_ffi

try:
    import jax_tvm_ffi
except ImportError as error:
    raise ImportError("jrt.jax needs the package jax-tvm-ffi: pip install jax-tvm-ffi") from error

from jrt import _compile
from jrt._operator import Operator

__all__ = ["based", "gated_convolution", "hybrid_attention", "prefix_linear_attention", "window_attention"]


# -- calls of compiled operations ------------------------------------------------------------------------------------------


@functools.cache
def _between():
    """Functions between XLA's calls and compiled operations: host code, whatever the platform."""
    source = (pathlib.Path(__file__).resolve().parent / "_xla.cpp").read_text()
    digest = hashlib.sha256(source.encode()).hexdigest()[:10]
    return tvm_ffi.load_module(str(_compile.library("cpu", f"xla-{digest}", source)))


@functools.cache
def _target_of(platform):
    """What operations are compiled for: "cpu" or a GPU architecture."""
    if platform == "cpu":
        return platform
    major, minor = jax.devices("cuda")[0].compute_capability.split(".")
    return "90a" if (major, minor) == ("9", "0") else major + minor  # only "90a" has the kernels for Hopper


@functools.cache
def _target(operator, operation, platform, names, threads):
    """The name of XLA's target of an operation that is given tensors with these names, and its bound operation and places."""
    bound = operator._bound(operation, _target_of(platform))
    places = [names.index(name) if name in names else -1 for name in (*bound._names, "workspace")]
    name = f"jrt.{operator.key}.{operation}({','.join(names)})"
    jax_tvm_ffi.register_ffi_target(name, _between().arranged(bound._run, tvm_ffi.Shape(places), threads),
                                    platform="cpu" if platform == "cpu" else "gpu", allow_cuda_graph=True)
    return name, bound, places


def _call(operator, operation, platform, inputs, outputs, cleared=()):
    """Runs an operation. `inputs` has arrays and None, `outputs` shapes with types; those named in `cleared` start as zeros."""
    inputs = {name: array for name, array in inputs.items() if array is not None}
    threads = len(os.sched_getaffinity(0)) if platform == "cpu" else 1
    # Buffers of zeros, which outputs take over, are inputs to XLA alone.
    zeros = {f"{name} = 0": jnp.zeros(outputs[name].shape, outputs[name].dtype) for name in cleared if name in outputs}
    names = (*inputs, *zeros, *outputs, "workspace")
    name, bound, places = _target(operator, operation, platform, names, threads)
    arrays = [*inputs.values(), *zeros.values()]
    tensors = [*arrays, *outputs.values()]
    size = _between().workspace_bytes(
        bound._workspace_bytes, tvm_ffi.Shape([*places[:-1], -1]), threads, 1 if platform == "cpu" else 2,
        [tvm_ffi.Shape(tensor.shape) for tensor in tensors], [tvm_ffi.dtype(str(tensor.dtype)) for tensor in tensors])
    shapes = [*outputs.values(), jax.ShapeDtypeStruct((max(size, 1),), jnp.uint8)]
    aliases = {len(inputs) + i: list(outputs).index(name.removesuffix(" = 0")) for i, name in enumerate(zeros)}
    results = jax.ffi.ffi_call(name, shapes, vmap_method="sequential", input_output_aliases=aliases)(*arrays)
    return dict(zip(outputs, results))


def _platform_of(array, platform):
    if platform is None:
        if not isinstance(array, jax.core.Tracer) and hasattr(array, "devices"):
            platform = next(iter(array.devices())).platform
        else:
            device = jax.config.jax_default_device
            platform = jax.default_backend() if device is None else getattr(device, "platform", device)
    if platform in ("gpu", "cuda"):
        return "cuda"
    if platform != "cpu":
        raise ValueError(f"jrt.jax: platform is {platform!r}, but must be 'cpu' or 'cuda'.")
    return platform


def _operator(array, **settings):
    name = str(array.dtype)
    if name not in ("float32", "float64", "float16", "bfloat16"):
        raise ValueError(f"jrt: arrays have dtype {name}, but must have float32, float64, float16 or bfloat16.")
    return Operator(dtype=name, **settings)


# -- attention -------------------------------------------------------------------------------------------------------------

_DIFFERENTIABLE = ("query", "key", "value", "key_encoder", "value_encoder", "initial_state")


def _sum_dtype(operator):
    return jnp.float64 if operator.dtype == "float64" else jnp.float32


def _prefill(operator, platform, saves, returns_state, inputs):
    query, value, cu_seqlens = inputs["query"], inputs["value"], inputs["cu_seqlens"]
    outputs = {"output": jax.ShapeDtypeStruct((*query.shape[:-1], value.shape[-1]), query.dtype)}
    if saves and (operator.kind != "linear" or operator.normaliser == "sum"):
        sums = "denominators" if operator.kind == "linear" else "log_sum_exp"
        outputs[sums] = jax.ShapeDtypeStruct((*query.shape[:-1], 1), _sum_dtype(operator))
    if returns_state:
        sequences = query.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
        elements = operator._bound("prefill", _target_of(platform)).head_elements
        outputs["final_state"] = jax.ShapeDtypeStruct((sequences, inputs["key"].shape[-2], elements), operator.state_dtype)
    return _call(operator, "prefill", platform, inputs, outputs, cleared=("final_state",))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _attention(operator, platform, returns_state, inputs):
    results = _prefill(operator, platform, False, returns_state, inputs)
    return results["output"], results.get("final_state")


def _attention_forward(operator, platform, returns_state, inputs):
    results = _prefill(operator, platform, True, returns_state, inputs)
    state = results.pop("final_state", None)
    if len(results) == 1:  # not normalised: gradients need no output
        return (results["output"], state), (inputs, {})
    return (results["output"], state), (inputs, results)


def _attention_backward(operator, platform, returns_state, saved, gradients):
    inputs, results = saved
    output_gradient, state_gradient = gradients
    outputs = {f"{name}_gradient": jax.ShapeDtypeStruct(inputs[name].shape, inputs[name].dtype)
               for name in _DIFFERENTIABLE if inputs[name] is not None}
    given = inputs | results | {"output_gradient": output_gradient, "final_state_gradient": state_gradient}
    results = _call(operator, "backward", platform, given, outputs, cleared=("initial_state_gradient",))
    return ({name: results.get(f"{name}_gradient") for name in inputs},)


_attention.defvjp(_attention_forward, _attention_backward)


def _attend(settings, platform, return_state, query, key, value, **others):
    inputs = {"query": query, "key": key, "value": value, "key_encoder": None, "value_encoder": None, "cu_seqlens": None,
              "cu_encoder_seqlens": None, "prefix_lens": None, "left_pads": None, "initial_state": None} | others
    operator = _operator(query, d=query.shape[-1], dv=value.shape[-1], **settings)
    output, state = _attention(operator, _platform_of(query, platform), return_state, inputs)
    return (output, state) if return_state else output


def prefix_linear_attention(query, key, value, key_encoder=None, value_encoder=None, *, feature_map="taylor2",
                            normaliser="sum", mask="prefix", padding="drop", source=None, cu_seqlens=None,
                            cu_encoder_seqlens=None, prefix_lens=None, left_pads=None, initial_state=None,
                            return_state=False, platform=None):
    """Prefix linear attention (arXiv 2407.05483): y_i = φ(q_i)ᵀS_i / φ(q_i)ᵀz_i with S_i = Σ_{j≤i} φ(k_j)v_jᵀ + Σ_{j<M}
    φ(k_enc_j)v_enc_jᵀ, z likewise without values. Linear in the number of tokens.

    query (B, T, Hq, d), key (B, T, Hkv, d), value (B, T, Hkv, dv), Hq a multiple of Hkv; key_encoder, value_encoder
    (B, M, Hkv, ·) with M <= T. feature_map, normaliser, mask, padding and source (C++ of a map of your own) as for
    `jrt.Operator`. Packed sequences: (tokens, heads, ·) with int32 cu_seqlens, and cu_encoder_seqlens for the encoder region.
    prefix_lens, left_pads: (B) int32.
    initial_state (B, Hkv, elements), float32 (for float64 float64): a state that another call returned, to which this one
    adds; with return_state the state after the last token is returned, too. Gradients go through both.
    Returns (B, T, Hq, dv). Errors: ValueError with the library's sentence, for shapes when the call runs."""
    settings = {"kind": "linear", "feature_map": feature_map, "normaliser": normaliser, "mask": mask, "padding": padding,
                "source": source}
    return _attend(settings, platform, return_state, query, key, value, key_encoder=key_encoder, value_encoder=value_encoder,
                   cu_seqlens=cu_seqlens, cu_encoder_seqlens=cu_encoder_seqlens, prefix_lens=prefix_lens, left_pads=left_pads,
                   initial_state=initial_state)


def based(query, key, value, *, cu_seqlens=None, left_pads=None, initial_state=None, return_state=False, platform=None):
    """Based's linear attention (arXiv 2402.18668): `prefix_linear_attention` with Taylor features and without a prefix."""
    return prefix_linear_attention(query, key, value, mask="causal", cu_seqlens=cu_seqlens, left_pads=left_pads,
                                   initial_state=initial_state, return_state=return_state, platform=platform)


def window_attention(query, key, value, *, left_window=128, rotary=False, cu_seqlens=None, left_pads=None, platform=None):
    """Softmax attention over the query's own key and `left_window` keys before it, scores scaled by 1/√d; with `rotary`
    queries and keys are rotated by their positions. Shapes as in `prefix_linear_attention`. Cost O(T · L)."""
    return _attend({"kind": "window", "left_window": left_window, "rotary": rotary}, platform, False, query, key, value,
                   cu_seqlens=cu_seqlens, left_pads=left_pads)


def hybrid_attention(query, key, value, key_encoder=None, value_encoder=None, *, left_window=128, mask="prefix",
                     cu_seqlens=None, cu_encoder_seqlens=None, prefix_lens=None, left_pads=None, platform=None):
    """Linear and window attention under one normaliser: the last left_window + 1 keys have weight e^s, older ones and the
    encoder region the Taylor map's 1 + s + s²/2. Shapes as in `prefix_linear_attention`."""
    return _attend({"kind": "hybrid", "left_window": left_window, "mask": mask}, platform, False, query, key, value,
                   key_encoder=key_encoder, value_encoder=value_encoder, cu_seqlens=cu_seqlens,
                   cu_encoder_seqlens=cu_encoder_seqlens, prefix_lens=prefix_lens, left_pads=left_pads)


# -- convolution -----------------------------------------------------------------------------------------------------------


def _rows(inputs):
    """Signals as the operation takes them, with one head whose dim is the number of channels."""
    return {name: array[..., None, :] if array is not None and name in ("input", "gate", "output_gradient") else array
            for name, array in inputs.items()}


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _convolution(operator, platform, inputs):
    inputs = _rows(inputs)
    outputs = {"output": jax.ShapeDtypeStruct(inputs["input"].shape, inputs["input"].dtype)}
    return _call(operator, "prefill", platform, inputs, outputs)["output"][..., 0, :]


def _convolution_forward(operator, platform, inputs):
    return _convolution(operator, platform, inputs), inputs


def _convolution_backward(operator, platform, inputs, output_gradient):
    given = _rows(inputs | {"output_gradient": output_gradient})
    names = [name for name in ("input", "weight", "gate", "bias") if inputs[name] is not None]
    outputs = {f"{name}_gradient": jax.ShapeDtypeStruct(given[name].shape, given[name].dtype) for name in names}
    results = _call(operator, "backward", platform, given, outputs)
    gradients = dict.fromkeys(inputs) | {name: results[f"{name}_gradient"].reshape(inputs[name].shape) for name in names}
    return (gradients,)


_convolution.defvjp(_convolution_forward, _convolution_backward)


def gated_convolution(input, weight, bias=None, gate=None, *, activation="silu", cu_seqlens=None, left_pads=None,
                      platform=None):
    """Causal depthwise convolution, activated, times a gate: y_t = gate_t · activation(Σ_τ w_τ u_{t−K+1+τ} + bias).

    input, gate (B, T, C) or packed (tokens, C) with int32 cu_seqlens; weight (C, K); bias (C); left_pads (B) int32. Returns
    the input's shape."""
    operator = _operator(input, kind="convolution", kernel_width=weight.shape[-1], activation=activation)
    inputs = {"input": input, "weight": weight, "gate": gate, "bias": bias, "cu_seqlens": cu_seqlens, "left_pads": left_pads}
    return _convolution(operator, _platform_of(input, platform), inputs)
