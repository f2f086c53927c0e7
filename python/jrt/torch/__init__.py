# SPDX-License-Identifier: Apache-2.0
"""PyTorch functions on jrt's operators, with gradients; `jrt.torch.nn` has modules.

Tensors are (batch, tokens, heads, dim) or, packed with `cu_seqlens`, (tokens, heads, dim); any strides whose last dimension
is contiguous. Functions work under `torch.compile` without graph breaks (their ops have fake implementations) and under
autocast, where inputs are cast to its type, but for those in float64. Gradients can be taken once, not twice. Operators are
compiled when a function is first called with their types and dimensions.
"""

import torch

from jrt.torch import _ops

__all__ = ["based", "gated_convolution", "hybrid_attention", "prefix_linear_attention", "window_attention"]


def _cast(tensors):
    """Autocast's rule, as PyTorch's custom_fwd has it: floating tensors take its type, but for those in float64."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return [tensor.to(dtype) if tensor is not None and tensor.is_floating_point() and tensor.dtype != torch.float64 else tensor
            for tensor in tensors]


def _attend(kind, settings, tensors, lengths, initial_state=None, return_state=False):
    tensors = [tensor if tensor is None or tensor.is_contiguous() else _ops.rows(tensor) for tensor in _cast(tensors)]
    query, key, value, key_encoder, value_encoder = tensors
    operation = _ops.operation_of(query, kind, query.shape[-1], value.shape[-1], *settings)
    inputs = (*tensors, *lengths, initial_state)
    if torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad or
                                    _ops.differentiable(key_encoder, value_encoder, initial_state)):
        return _ops.Attention.apply(operation, return_state, *inputs)
    output, _, state = _ops.forward(operation, inputs, False, return_state)
    return (output, state) if return_state else output


def prefix_linear_attention(query, key, value, key_encoder=None, value_encoder=None, *, feature_map="taylor2",
                            normaliser="sum", mask="prefix", padding="drop", source=None, cu_seqlens=None,
                            cu_encoder_seqlens=None, prefix_lens=None, left_pads=None, initial_state=None,
                            return_state=False):
    """Prefix linear attention (arXiv 2407.05483): y_i = φ(q_i)ᵀS_i / φ(q_i)ᵀz_i with S_i = Σ_{j≤i} φ(k_j)v_jᵀ + Σ_{j<M}
    φ(k_enc_j)v_enc_jᵀ, z likewise without values. Linear in the number of tokens.

    query (B, T, Hq, d), key (B, T, Hkv, d), value (B, T, Hkv, dv), Hq a multiple of Hkv; key_encoder, value_encoder
    (B, M, Hkv, ·) with M <= T. feature_map, normaliser, mask, padding and source (C++ of a map of your own) as for
    `jrt.Operator`. Packed sequences: (tokens, heads, ·) with int32 cu_seqlens, and cu_encoder_seqlens for the encoder region.
    prefix_lens, left_pads: (B) int32.
    initial_state (B, Hkv, elements), float32 (for float64 float64): a state that another call returned, to which this one
    adds; with return_state the state after the last token is returned, too. Gradients go through both.
    Returns (B, T, Hq, dv). Errors: ValueError with the library's sentence."""
    return _attend("linear", (feature_map, normaliser, mask, padding, source), (query, key, value, key_encoder, value_encoder),
                   (cu_seqlens, cu_encoder_seqlens, prefix_lens, left_pads), initial_state, return_state)


def based(query, key, value, *, cu_seqlens=None, left_pads=None, initial_state=None, return_state=False):
    """Based's linear attention (arXiv 2402.18668): `prefix_linear_attention` with Taylor features and without a prefix."""
    return prefix_linear_attention(query, key, value, mask="causal", cu_seqlens=cu_seqlens, left_pads=left_pads,
                                   initial_state=initial_state, return_state=return_state)


def window_attention(query, key, value, *, left_window=128, rotary=False, cu_seqlens=None, left_pads=None):
    """Softmax attention over the query's own key and `left_window` keys before it, scores scaled by 1/√d; with `rotary`
    queries and keys are rotated by their positions. Shapes as in `prefix_linear_attention`. Cost O(T · L)."""
    return _attend("window", (left_window, rotary), (query, key, value, None, None),
                   (cu_seqlens, None, None, left_pads))


def hybrid_attention(query, key, value, key_encoder=None, value_encoder=None, *, left_window=128, mask="prefix",
                     cu_seqlens=None, cu_encoder_seqlens=None, prefix_lens=None, left_pads=None):
    """Linear and window attention under one normaliser: the last left_window + 1 keys have weight e^s, older ones and the
    encoder region the Taylor map's 1 + s + s²/2. Shapes as in `prefix_linear_attention`."""
    return _attend("hybrid", (left_window, mask), (query, key, value, key_encoder, value_encoder),
                   (cu_seqlens, cu_encoder_seqlens, prefix_lens, left_pads))


def gated_convolution(input, weight, bias=None, gate=None, *, activation="silu", cu_seqlens=None, left_pads=None):
    """Causal depthwise convolution, activated, times a gate: y_t = gate_t · activation(Σ_τ w_τ u_{t−K+1+τ} + bias).

    input, gate (B, T, C) or packed (tokens, C) with int32 cu_seqlens; weight (C, K); bias (C); left_pads (B) int32. Returns
    the input's shape."""
    tensors = [_ops.rows(tensor) for tensor in _cast([input, weight, gate, bias])]
    tensors[1] = tensors[1].contiguous()
    operation = _ops.operation_of(tensors[0], "convolution", weight.shape[-1], activation)
    tensors += [cu_seqlens, left_pads]
    if torch.is_grad_enabled() and _ops.differentiable(*tensors):
        return _ops.Convolution.apply(operation, *tensors)
    return _ops.convolution(operation, tensors)
