# SPDX-License-Identifier: Apache-2.0
"""PyTorch functions on jrt's operators, with gradients; `jrt.torch.nn` has modules.

Tensors are (batch, tokens, heads, dim) or, packed with `cu_seqlens`, (tokens, heads, dim); any strides whose last dimension
is contiguous. Functions work under `torch.compile` without graph breaks (their ops have fake implementations) and under
autocast, where inputs are cast to its type, but for those in float64. Gradients can be taken once, not twice. Operators are
compiled when a function is first called with their types and dimensions.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, overload

import torch
from torch import Tensor

from jrt.torch import _ops
from jrt.torch._calls import ATTENTION as _ATTENTION, CONVOLUTION as _CONVOLUTION

__all__ = ["based", "gated_convolution", "hybrid_attention", "prefix_linear_attention", "window_attention"]


def _cast(tensors: Sequence[Any]) -> Sequence[Any]:
    """Autocast's rule, as PyTorch's custom_fwd has it: floating tensors take its type, but for those in float64."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return [tensor.to(dtype) if tensor is not None and tensor.is_floating_point() and tensor.dtype != torch.float64 else tensor
            for tensor in tensors]


def _attend(kind: str, settings: tuple[Any, ...], tensors: Sequence[Tensor | None], lengths: tuple[Tensor | None, ...],
            initial_state: Tensor | None = None, return_state: bool = False, first_positions: Tensor | None = None,
            data: Mapping[str, Any] | None = None) -> Any:
    given = (*tensors, *lengths, initial_state, first_positions)
    _ops.refuse_transforms(given)
    try:
        return _attended(kind, settings, tensors, (*lengths, initial_state, first_positions), return_state, data)
    except (AttributeError, IndexError, RuntimeError, TypeError):
        _ops.check_tensors(zip(_ATTENTION, given), dict.fromkeys(("query", "key", "value"), (4, 3)))
        raise


def _attended(kind: str, settings: tuple[Any, ...], tensors: Sequence[Any], others: tuple[Any, ...], return_state: bool,
              data: Mapping[str, Any] | None) -> Any:
    rows: list[Any] = [tensor if tensor is None or tensor.is_contiguous() else _ops.rows(tensor) for tensor in _cast(tensors)]
    query, key, value, key_encoder, value_encoder = rows
    operation = _ops.operation_of(query, kind, (query.shape[-1], value.shape[-1]), *settings)
    inputs = (*rows, *others)
    numbers: tuple[Any, ...] = ()
    if data or (data is not None and (isinstance(operation, str) or operation.has_data)):
        arrays, numbers = _ops.data_of(operation, data)
        inputs += arrays
    if torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad or
                                    _ops.differentiable(key_encoder, value_encoder, others[4])):
        return _ops.Attention.apply(operation, return_state, numbers, *inputs)
    output, _, state = _ops.forward(operation, inputs, numbers, False, return_state)
    return (output, state) if return_state else output


@overload
def prefix_linear_attention(
        query: Tensor, key: Tensor, value: Tensor, key_encoder: Tensor | None = None, value_encoder: Tensor | None = None, *,
        feature_map: str = "taylor2", normaliser: str = "sum", mask: str = "prefix", padding: str = "drop",
        products: str = "float",
        features: int | None = None, source: str | None = None, data: str | None = None, cu_seqlens: Tensor | None = None,
        cu_encoder_seqlens: Tensor | None = None, prefix_lens: Tensor | None = None, left_pads: Tensor | None = None,
        first_positions: Tensor | None = None, initial_state: Tensor | None = None, return_state: Literal[False] = False,
        **map_data: Any) -> Tensor: ...


@overload
def prefix_linear_attention(
        query: Tensor, key: Tensor, value: Tensor, key_encoder: Tensor | None = None, value_encoder: Tensor | None = None, *,
        feature_map: str = "taylor2", normaliser: str = "sum", mask: str = "prefix", padding: str = "drop",
        products: str = "float",
        features: int | None = None, source: str | None = None, data: str | None = None, cu_seqlens: Tensor | None = None,
        cu_encoder_seqlens: Tensor | None = None, prefix_lens: Tensor | None = None, left_pads: Tensor | None = None,
        first_positions: Tensor | None = None, initial_state: Tensor | None = None, return_state: bool,
        **map_data: Any) -> Any: ...


def prefix_linear_attention(
        query: Tensor, key: Tensor, value: Tensor, key_encoder: Tensor | None = None, value_encoder: Tensor | None = None, *,
        feature_map: str = "taylor2", normaliser: str = "sum", mask: str = "prefix", padding: str = "drop",
        products: str = "float",
        features: int | None = None, source: str | None = None, data: str | None = None, cu_seqlens: Tensor | None = None,
        cu_encoder_seqlens: Tensor | None = None, prefix_lens: Tensor | None = None, left_pads: Tensor | None = None,
        first_positions: Tensor | None = None, initial_state: Tensor | None = None, return_state: bool = False,
        **map_data: Any) -> Any:
    """Prefix linear attention (arXiv 2407.05483): y_i = φ(q_i)ᵀS_i / φ(q_i)ᵀz_i with S_i = Σ_{j≤i} φ(k_j)v_jᵀ + Σ_{j<M}
    φ(k_enc_j)v_enc_jᵀ, z likewise without values. Linear in the number of tokens.

    query (B, T, Hq, d), key (B, T, Hkv, d), value (B, T, Hkv, dv), Hq a multiple of Hkv; key_encoder, value_encoder
    (B, M, Hkv, ·) with M <= T. feature_map, features, normaliser, mask, padding, products, source and data (a map of your own)
    as for `jrt.Operator`; map_data: what the map needs at run time, as `projection` (features, d) float32 of "favor" and `horizon`
    of "cosformer". Gradients do not reach it.
    Packed sequences: (tokens, heads, ·) with int32 cu_seqlens, and cu_encoder_seqlens for the encoder region. prefix_lens,
    left_pads, first_positions (tokens before the call, for maps that need positions): (B) int32.
    initial_state (B, Hkv, elements), float32 (for float64 float64): a state that another call returned, to which this one
    adds; with return_state the state after the last token is returned, too. Gradients go through both.
    Returns (B, T, Hq, dv). Errors: ValueError with the library's sentence."""
    settings = (feature_map, features, source, data, mask, normaliser, padding, products)
    return _attend("linear", settings, (query, key, value, key_encoder, value_encoder),
                   (cu_seqlens, cu_encoder_seqlens, prefix_lens, left_pads), initial_state, return_state, first_positions,
                   map_data)


@overload
def based(query: Tensor, key: Tensor, value: Tensor, *, cu_seqlens: Tensor | None = None, left_pads: Tensor | None = None,
          initial_state: Tensor | None = None, return_state: Literal[False] = False) -> Tensor: ...


@overload
def based(query: Tensor, key: Tensor, value: Tensor, *, cu_seqlens: Tensor | None = None, left_pads: Tensor | None = None,
          initial_state: Tensor | None = None, return_state: bool) -> Any: ...


def based(query: Tensor, key: Tensor, value: Tensor, *, cu_seqlens: Tensor | None = None, left_pads: Tensor | None = None,
          initial_state: Tensor | None = None, return_state: bool = False) -> Any:
    """Based's linear attention (arXiv 2402.18668): `prefix_linear_attention` with Taylor features and without a prefix."""
    return prefix_linear_attention(query, key, value, mask="causal", cu_seqlens=cu_seqlens, left_pads=left_pads,
                                   initial_state=initial_state, return_state=return_state)


def window_attention(query: Tensor, key: Tensor, value: Tensor, *, left_window: int = 128, rotary: bool = False,
                     cu_seqlens: Tensor | None = None, left_pads: Tensor | None = None) -> Tensor:
    """Softmax attention over the query's own key and `left_window` keys before it, scores scaled by 1/√d; with `rotary`
    queries and keys are rotated by their positions. Shapes as in `prefix_linear_attention`. Cost O(T · L)."""
    output: Tensor = _attend("window", (left_window, rotary), (query, key, value, None, None),
                             (cu_seqlens, None, None, left_pads))
    return output


def hybrid_attention(query: Tensor, key: Tensor, value: Tensor, key_encoder: Tensor | None = None,
                     value_encoder: Tensor | None = None, *, left_window: int = 128, feature_map: str = "taylor2",
                     mask: str = "prefix", features: int | None = None, source: str | None = None, data: str | None = None,
                     cu_seqlens: Tensor | None = None, cu_encoder_seqlens: Tensor | None = None,
                     prefix_lens: Tensor | None = None, left_pads: Tensor | None = None,
                     first_positions: Tensor | None = None, **map_data: Any) -> Tensor:
    """Linear and window attention under one normaliser: the last left_window + 1 keys have weight e^s, older ones and the
    encoder region that of the feature map, with Taylor features 1 + s + s²/2. Shapes and feature maps as in
    `prefix_linear_attention`."""
    output: Tensor = _attend("hybrid", (feature_map, features, source, data, mask, left_window),
                             (query, key, value, key_encoder, value_encoder),
                             (cu_seqlens, cu_encoder_seqlens, prefix_lens, left_pads), first_positions=first_positions,
                             data=map_data)
    return output


def gated_convolution(input: Tensor, weight: Tensor, bias: Tensor | None = None, gate: Tensor | None = None, *,
                      activation: str = "silu", cu_seqlens: Tensor | None = None,
                      left_pads: Tensor | None = None) -> Tensor:
    """Causal depthwise convolution, activated, times a gate: y_t = gate_t · activation(Σ_τ w_τ u_{t−K+1+τ} + bias).

    input, gate (B, T, C) or packed (tokens, C) with int32 cu_seqlens; weight (C, K); bias (C); left_pads (B) int32. Returns
    the input's shape."""
    given = (input, weight, gate, bias, cu_seqlens, left_pads)
    _ops.refuse_transforms(given)
    try:
        return _convolved(given, activation)
    except (AttributeError, IndexError, RuntimeError, TypeError):
        _ops.check_tensors(zip(_CONVOLUTION, given), {"input": (3, 2), "weight": (2,)})
        raise


def _convolved(given: tuple[Any, ...], activation: str) -> Tensor:
    tensors: list[Any] = [None if tensor is None else _ops.rows(tensor) for tensor in _cast(given[:4])]
    weight = tensors[1] = tensors[1].contiguous()
    operation = _ops.operation_of(tensors[0], "convolution", (weight.shape[-1],), activation)
    tensors += given[4:]
    if torch.is_grad_enabled() and _ops.differentiable(*tensors):
        output: Tensor = _ops.Convolution.apply(operation, *tensors)
        return output
    return _ops.convolution(operation, tensors)
