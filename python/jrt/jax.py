# SPDX-License-Identifier: Apache-2.0
"""JAX functions on jrt's operators, with gradients, for the CPU and NVIDIA GPUs; they need the package jax-tvm-ffi.

    y = jax.jit(jrt.jax.prefix_linear_attention)(query, key, value, key_encoder, value_encoder)
    jax.grad(lambda query: jrt.jax.based(query, key, value).sum())(query)

Tensors are (batch, tokens, heads, dim) or, packed with `cu_seqlens`, (tokens, heads, dim). The workspace is a buffer of XLA's,
as outputs are, and kernels run on XLA's stream. Gradients are taken once (`jax.grad`, reverse mode). Under `jax.vmap` calls
follow one another: give a batch instead. Operators are compiled when a function is first traced with their types and
dimensions.

`platform` is "cpu" or "cuda". By default it is that of the first array or, while a function is traced, JAX's default.
"""

import functools
import hashlib
import os
import pathlib
import threading
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import tvm_ffi
from jax import Array

try:
    import jax_tvm_ffi
except ImportError as error:
    raise ImportError("jrt.jax needs the package jax-tvm-ffi: pip install jax-tvm-ffi") from error

from jrt import _compile
from jrt._operator import Operator

__all__ = ["based", "gated_convolution", "hybrid_attention", "prefix_linear_attention", "window_attention"]

_registering = threading.RLock()


# -- calls of compiled operations ------------------------------------------------------------------------------------------


@functools.cache
def _between() -> Any:
    """Functions between XLA's calls and compiled operations: host code, whatever the platform."""
    source = (pathlib.Path(__file__).resolve().parent / "_xla.cpp").read_text()
    digest = hashlib.sha256(source.encode()).hexdigest()[:10]
    return tvm_ffi.load_module(str(_compile.library("cpu", f"xla-{digest}", source)))


@functools.cache
def _target_of(platform: str) -> str:
    """What operations are compiled for: "cpu" or a GPU architecture."""
    if platform == "cpu":
        return platform
    major, minor = jax.devices("cuda")[0].compute_capability.split(".")
    return "90a" if (major, minor) == ("9", "0") else major + minor  # only "90a" has the kernels for Hopper


@functools.cache
def _target(operator: Operator, operation: str, platform: str, names: tuple[str, ...], threads: int,
            numbers: tuple[tuple[str, Any], ...]) -> tuple[str, Any, list[int], list[Any]]:
    """The name of XLA's target of an operation that is given tensors with these names and these numbers, its bound operation,
    the places of tensors, and the numbers in theirs."""
    bound = operator._bound(operation, _target_of(platform))
    places = [names.index(name) if name in names else -1 for name in (*bound._names, "workspace")]
    placed = [dict(numbers).get(name) for name in (*bound._names, "workspace")]
    given = ",".join([*names, *(f"{name}={value!r}" for name, value in numbers), f"threads={threads}"])
    name = f"jrt.{operator.key}.{operation}({given})"
    jax_tvm_ffi.register_ffi_target(name, _between().arranged(bound._run, tvm_ffi.Shape(tuple(places)), placed, threads),
                                    platform="cpu" if platform == "cpu" else "gpu", allow_cuda_graph=True)
    return name, bound, places, placed


def _call(operator: Operator, operation: str, platform: str, inputs: dict[str, Any], outputs: dict[str, jax.ShapeDtypeStruct],
          cleared: Iterable[str] = (), numbers: tuple[tuple[str, Any], ...] = ()) -> dict[str, Any]:
    """Runs an operation. `inputs` has arrays and None, `outputs` shapes with types; those named in `cleared` start as zeros.
    `numbers` are names and values of a feature map's."""
    if inputs.get("cu_seqlens") is not None:
        cleared = tuple(outputs)  # rows that lie in no packed sequence are not written
    inputs = {name: array for name, array in inputs.items() if array is not None}
    threads = len(os.sched_getaffinity(0)) if platform == "cpu" else 1
    # Buffers of zeros, which outputs take over, are inputs to XLA alone.
    zeros = {f"{name} = 0": jnp.zeros(outputs[name].shape, outputs[name].dtype) for name in cleared if name in outputs}
    names = (*inputs, *zeros, *outputs, "workspace")
    with _registering:  # a name is registered once
        name, bound, places, placed = _target(operator, operation, platform, names, threads, numbers)
    arrays = [*inputs.values(), *zeros.values()]
    tensors = [*arrays, *outputs.values()]
    size = _between().workspace_bytes(
        bound._workspace_bytes, tvm_ffi.Shape((*places[:-1], -1)), placed, threads, 1 if platform == "cpu" else 2,
        [tvm_ffi.Shape(tensor.shape) for tensor in tensors], [tvm_ffi.dtype(str(tensor.dtype)) for tensor in tensors])
    shapes = [*outputs.values(), jax.ShapeDtypeStruct((max(size, 1),), jnp.uint8)]
    aliases = {len(inputs) + i: list(outputs).index(name.removesuffix(" = 0")) for i, name in enumerate(zeros)}
    results = jax.ffi.ffi_call(name, shapes, vmap_method="sequential", input_output_aliases=aliases)(*arrays)
    return dict(zip(outputs, results))


def _platform_of(array: Array, platform: str | None) -> str:
    if platform is None:
        if not isinstance(array, jax.core.Tracer) and hasattr(array, "devices"):
            platform = next(iter(array.devices())).platform
        else:
            device: Any = getattr(jax.config, "jax_default_device")  # noqa: B009  of which its type knows nothing
            platform = jax.default_backend() if device is None else getattr(device, "platform", device)
    if platform in ("gpu", "cuda"):
        return "cuda"
    if platform != "cpu":
        raise ValueError(f"jrt.jax: platform is {platform!r}, but must be 'cpu' or 'cuda'.")
    return platform


def _operator(array: Array, **settings: Any) -> Operator:
    name = str(array.dtype)
    if name not in ("float32", "float64", "float16", "bfloat16"):
        raise ValueError(f"jrt: arrays have dtype {name}, but must have float32, float64, float16 or bfloat16.")
    return Operator(dtype=name, **settings)


# -- attention -------------------------------------------------------------------------------------------------------------

_DIFFERENTIABLE = ("query", "key", "value", "key_encoder", "value_encoder", "initial_state")


def _sum_dtype(operator: Operator) -> Any:
    return jnp.float64 if operator.dtype == "float64" else jnp.float32


def _prefill(operator: Operator, platform: str, saves: bool, returns_state: bool, numbers: tuple[tuple[str, Any], ...],
             inputs: dict[str, Any]) -> dict[str, Any]:
    query, value, cu_seqlens = inputs["query"], inputs["value"], inputs["cu_seqlens"]
    outputs = {"output": jax.ShapeDtypeStruct((*query.shape[:-1], value.shape[-1]), query.dtype)}
    if saves and (operator.kind != "linear" or operator.normaliser == "sum"):
        sums = "denominators" if operator.kind == "linear" else "log_sum_exp"
        outputs[sums] = jax.ShapeDtypeStruct((*query.shape[:-1], 1), _sum_dtype(operator))
    if returns_state:
        sequences = query.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
        elements = operator._bound("prefill", _target_of(platform)).head_elements
        outputs["final_state"] = jax.ShapeDtypeStruct((sequences, inputs["key"].shape[-2], elements), operator.state_dtype)
    return _call(operator, "prefill", platform, inputs, outputs, cleared=("final_state",), numbers=numbers)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def _attention(operator: Operator, platform: str, returns_state: bool, numbers: tuple[tuple[str, Any], ...],
               inputs: dict[str, Any]) -> Any:
    results = _prefill(operator, platform, False, returns_state, numbers, inputs)
    return results["output"], results.get("final_state")


def _attention_forward(operator: Operator, platform: str, returns_state: bool, numbers: tuple[tuple[str, Any], ...],
                       primals: Any) -> Any:
    for name, primal in primals.items():
        if primal is not None and primal.perturbed and name not in _DIFFERENTIABLE and jnp.issubdtype(
                primal.value.dtype, jnp.inexact):
            raise ValueError(f"jrt.jax: a gradient of argument {name!r} is asked for, but gradients do not reach data of a "
                             "feature map; use jax.lax.stop_gradient.")
    inputs = {name: None if primal is None else primal.value for name, primal in primals.items()}
    results = _prefill(operator, platform, True, returns_state, numbers, inputs)
    state = results.pop("final_state", None)
    if len(results) == 1:  # not normalised: gradients need no output
        return (results["output"], state), (inputs, {})
    return (results["output"], state), (inputs, results)


def _attention_backward(operator: Operator, platform: str, returns_state: bool, numbers: tuple[tuple[str, Any], ...],
                        saved: Any, gradients: Any) -> Any:
    inputs, results = saved
    output_gradient, state_gradient = (
        jnp.zeros(each.shape, each.dtype) if isinstance(each, jax.custom_derivatives.SymbolicZero) else each
        for each in gradients)
    outputs = {f"{name}_gradient": jax.ShapeDtypeStruct(inputs[name].shape, inputs[name].dtype)
               for name in _DIFFERENTIABLE if inputs[name] is not None}
    given = inputs | results | {"output_gradient": output_gradient, "final_state_gradient": state_gradient}
    results = _call(operator, "backward", platform, given, outputs, cleared=("initial_state_gradient",),
                    numbers=numbers)
    return ({name: results.get(f"{name}_gradient") for name in inputs},)


_attention.defvjp(_attention_forward, _attention_backward, symbolic_zeros=True)


def _data(operator: Operator, given: Any) -> Any:
    """A feature map's arrays by name, and its numbers as (name, value)."""
    arrays, numbers = operator._map_members()
    for name, value in given.items():
        if name not in arrays and name not in numbers:
            known = ", ".join((*arrays, *numbers)) or "none"
            raise ValueError(f"jrt: there is no argument {name!r}; the data of this feature map are: {known}.")
        if name in numbers and value is not None and not isinstance(value, (int, float)):
            raise ValueError(f"jrt: argument {name!r} is a {type(value).__name__}, but must be a number, the same whenever the "
                             "traced function runs.")
        if name in arrays and not hasattr(value, "dtype"):
            raise ValueError(f"jrt: argument {name!r} is a {type(value).__name__}, but must be an array.")
    return ({name: given[name] for name in arrays if name in given},
            tuple((name, given[name]) for name in numbers if given.get(name) is not None))


def _check(arrays: dict[str, Any], needed: dict[str, tuple[int, ...]]) -> None:
    """That arrays are arrays, and those that are needed there, with one of their numbers of dimensions."""
    for name, array in arrays.items():
        if not (hasattr(array, "shape") and hasattr(array, "dtype")) and (array is not None or name in needed):
            raise ValueError(f"jrt: argument {name!r} is a {type(array).__name__}, but must be an array"
                             f"{'.' if name in needed else ' or None.'}")
        if name in needed and len(array.shape) not in needed[name]:
            raise ValueError(f"jrt: argument {name!r} has {len(array.shape)} dimensions, but must have "
                             f"{' or, packed, '.join(map(str, needed[name]))}.")


def _attend(settings: dict[str, Any], platform: str | None, return_state: bool, query: Array, key: Array, value: Array,
            map_data: Any = None, **others: Any) -> Any:
    inputs = {"query": query, "key": key, "value": value, "key_encoder": None, "value_encoder": None, "cu_seqlens": None,
              "cu_encoder_seqlens": None, "prefix_lens": None, "left_pads": None, "initial_state": None} | others
    _check(inputs, dict.fromkeys(("query", "key", "value"), (4, 3)))
    operator = _operator(query, d=query.shape[-1], dv=value.shape[-1], **settings)
    arrays, numbers = _data(operator, map_data or {})
    output, state = _attention(operator, _platform_of(query, platform), return_state, numbers, inputs | arrays)
    return (output, state) if return_state else output


def prefix_linear_attention(query: Array, key: Array, value: Array, key_encoder: Array | None = None,
                            value_encoder: Array | None = None, *, feature_map: str = "taylor2", normaliser: str = "sum",
                            mask: str = "prefix", padding: str = "drop", products: str = "float", features: int | None = None,
                            source: str | None = None, data: str | None = None, cu_seqlens: Array | None = None,
                            cu_encoder_seqlens: Array | None = None, prefix_lens: Array | None = None,
                            left_pads: Array | None = None, first_positions: Array | None = None,
                            initial_state: Array | None = None, return_state: bool = False, platform: str | None = None,
                            **map_data: Any) -> Any:
    """Prefix linear attention (arXiv 2407.05483): y_i = φ(q_i)ᵀS_i / φ(q_i)ᵀz_i with S_i = Σ_{j≤i} φ(k_j)v_jᵀ + Σ_{j<M}
    φ(k_enc_j)v_enc_jᵀ, z likewise without values. Linear in the number of tokens.

    query (B, T, Hq, d), key (B, T, Hkv, d), value (B, T, Hkv, dv), Hq a multiple of Hkv; key_encoder, value_encoder
    (B, M, Hkv, ·) with M <= T. feature_map, features, normaliser, mask, padding, products, source and data (a map of your own)
    as for `jrt.Operator`; map_data: what the map needs at run time, as the array `projection` (features, d) float32 of "favor" and
    the number `horizon` of "cosformer". Gradients do not reach it.
    Packed sequences: (tokens, heads, ·) with int32 cu_seqlens, and cu_encoder_seqlens for the encoder region. prefix_lens,
    left_pads, first_positions (tokens before the call, for maps that need positions): (B) int32.
    initial_state (B, Hkv, elements), float32 (for float64 float64): a state that another call returned, to which this one
    adds; with return_state the state after the last token is returned, too. Gradients go through both.
    Returns (B, T, Hq, dv). Errors: ValueError with the library's sentence, for shapes when the call runs."""
    settings = {"kind": "linear", "feature_map": feature_map, "features": features, "source": source, "data": data,
                "normaliser": normaliser, "mask": mask, "padding": padding, "products": products}
    return _attend(settings, platform, return_state, query, key, value, map_data, key_encoder=key_encoder,
                   value_encoder=value_encoder, cu_seqlens=cu_seqlens, cu_encoder_seqlens=cu_encoder_seqlens,
                   prefix_lens=prefix_lens, left_pads=left_pads, first_positions=first_positions, initial_state=initial_state)


def based(query: Array, key: Array, value: Array, *, cu_seqlens: Array | None = None, left_pads: Array | None = None,
          initial_state: Array | None = None, return_state: bool = False, platform: str | None = None) -> Any:
    """Based's linear attention (arXiv 2402.18668): `prefix_linear_attention` with Taylor features and without a prefix."""
    return prefix_linear_attention(query, key, value, mask="causal", cu_seqlens=cu_seqlens, left_pads=left_pads,
                                   initial_state=initial_state, return_state=return_state, platform=platform)


def window_attention(query: Array, key: Array, value: Array, *, left_window: int = 128, rotary: bool = False,
                     cu_seqlens: Array | None = None, left_pads: Array | None = None, platform: str | None = None) -> Array:
    """Softmax attention over the query's own key and `left_window` keys before it, scores scaled by 1/√d; with `rotary`
    queries and keys are rotated by their positions. Shapes as in `prefix_linear_attention`. Cost O(T · L)."""
    return _attend({"kind": "window", "left_window": left_window, "rotary": rotary}, platform, False, query, key, value,
                   cu_seqlens=cu_seqlens, left_pads=left_pads)


def hybrid_attention(query: Array, key: Array, value: Array, key_encoder: Array | None = None,
                     value_encoder: Array | None = None, *, left_window: int = 128, feature_map: str = "taylor2",
                     mask: str = "prefix", features: int | None = None, source: str | None = None, data: str | None = None,
                     cu_seqlens: Array | None = None, cu_encoder_seqlens: Array | None = None,
                     prefix_lens: Array | None = None, left_pads: Array | None = None, first_positions: Array | None = None,
                     platform: str | None = None, **map_data: Any) -> Array:
    """Linear and window attention under one normaliser: the last left_window + 1 keys have weight e^s, older ones and the
    encoder region that of the feature map, with Taylor features 1 + s + s²/2. Shapes and feature maps as in
    `prefix_linear_attention`."""
    settings = {"kind": "hybrid", "left_window": left_window, "feature_map": feature_map, "mask": mask, "features": features,
                "source": source, "data": data}
    return _attend(settings, platform, False, query, key, value, map_data, key_encoder=key_encoder,
                   value_encoder=value_encoder, cu_seqlens=cu_seqlens, cu_encoder_seqlens=cu_encoder_seqlens,
                   prefix_lens=prefix_lens, left_pads=left_pads, first_positions=first_positions)


# -- convolution -----------------------------------------------------------------------------------------------------------


def _rows(inputs: dict[str, Any]) -> dict[str, Any]:
    """Signals as the operation takes them, with one head whose dim is the number of channels."""
    return {name: array[..., None, :] if array is not None and name in ("input", "gate", "output_gradient") else array
            for name, array in inputs.items()}


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _convolution(operator: Operator, platform: str, inputs: dict[str, Any]) -> Array:
    inputs = _rows(inputs)
    outputs = {"output": jax.ShapeDtypeStruct(inputs["input"].shape, inputs["input"].dtype)}
    return _call(operator, "prefill", platform, inputs, outputs)["output"][..., 0, :]


def _convolution_forward(operator: Operator, platform: str, inputs: dict[str, Any]) -> Any:
    return _convolution(operator, platform, inputs), inputs


def _convolution_backward(operator: Operator, platform: str, inputs: dict[str, Any], output_gradient: Array) -> Any:
    given = _rows(inputs | {"output_gradient": output_gradient})
    names = [name for name in ("input", "weight", "gate", "bias") if inputs[name] is not None]
    outputs = {f"{name}_gradient": jax.ShapeDtypeStruct(given[name].shape, given[name].dtype) for name in names}
    results = _call(operator, "backward", platform, given, outputs)
    gradients = dict.fromkeys(inputs) | {name: results[f"{name}_gradient"].reshape(inputs[name].shape) for name in names}
    return (gradients,)


_convolution.defvjp(_convolution_forward, _convolution_backward)


def gated_convolution(input: Array, weight: Array, bias: Array | None = None, gate: Array | None = None, *,
                      activation: str = "silu", cu_seqlens: Array | None = None, left_pads: Array | None = None,
                      platform: str | None = None) -> Array:
    """Causal depthwise convolution, activated, times a gate: y_t = gate_t · activation(Σ_τ w_τ u_{t−K+1+τ} + bias).

    input, gate (B, T, C) or packed (tokens, C) with int32 cu_seqlens; weight (C, K); bias (C); left_pads (B) int32. Returns
    the input's shape."""
    inputs = {"input": input, "weight": weight, "gate": gate, "bias": bias, "cu_seqlens": cu_seqlens, "left_pads": left_pads}
    _check(inputs, {"input": (3, 2), "weight": (2,)})
    operator = _operator(input, kind="convolution", kernel_width=weight.shape[-1], activation=activation)
    return _convolution(operator, _platform_of(input, platform), inputs)
