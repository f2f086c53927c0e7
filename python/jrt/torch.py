# SPDX-License-Identifier: Apache-2.0
"""PyTorch functions on jrt's operators, with gradients.

Tensors are (batch, tokens, heads, dim) or, packed with `cu_seqlens`, (tokens, heads, dim); any strides whose last dimension
is contiguous. Functions work under `torch.compile` without graph breaks (their ops have fake implementations) and under
autocast, where inputs are cast to its type. Gradients can be taken once, not twice. Operators are compiled when a function is
first called with their types and dimensions.
"""

import functools

import torch

from jrt import _tensors
from jrt._operator import Operator

__all__ = ["based", "gated_convolution", "hybrid_attention", "prefix_linear_attention", "window_attention"]

_library = torch.library.Library("jrt", "DEF")
_operators = {}

_INPUTS = ("Tensor query, Tensor key, Tensor value, Tensor? key_encoder, Tensor? value_encoder, Tensor? cu_seqlens, "
           "Tensor? cu_encoder_seqlens, Tensor? prefix_lens, Tensor? left_pads")
_library.define(f"attention({_INPUTS}, str operator, bool saves) -> (Tensor, Tensor)")
_library.define(f"attention_backward(Tensor output_gradient, Tensor output, Tensor sums, {_INPUTS}, str operator, "
                "bool[] wanted) -> (Tensor, Tensor, Tensor, Tensor, Tensor)")
_library.define("convolution(Tensor input, Tensor weight, Tensor? gate, Tensor? bias, Tensor? cu_seqlens, str operator) "
                "-> Tensor")
_library.define("convolution_backward(Tensor output_gradient, Tensor input, Tensor weight, Tensor? gate, Tensor? bias, "
                "Tensor? cu_seqlens, str operator, bool[] wanted) -> (Tensor, Tensor, Tensor, Tensor)")

_GRADIENTS = ("query_gradient", "key_gradient", "value_gradient", "key_encoder_gradient", "value_encoder_gradient")


def _sums_name(operator):
    return "denominators" if operator.kind == "linear" else "log_sum_exp"


def _has_sums(operator):
    return operator.kind != "linear" or operator.normaliser == "sum"


def _inputs(operator, query, key, value, key_encoder, value_encoder, cu_seqlens, cu_encoder_seqlens, prefix_lens, left_pads):
    inputs = {"query": query, "key": key, "value": value, "cu_seqlens": cu_seqlens, "left_pads": left_pads}
    if operator.kind != "window":
        inputs |= {"key_encoder": key_encoder, "value_encoder": value_encoder, "cu_encoder_seqlens": cu_encoder_seqlens,
                   "prefix_lens": prefix_lens}
    return inputs


def _target(tensor):
    return _tensors.target_of({"": tensor})


def _threads(tensor):
    return torch.get_num_threads() if tensor.device.type == "cpu" else 1


def _attention(*args):
    *inputs, name, saves = args
    operator = _operators[name]
    query = inputs[0]
    output, sums = _attention_fake(*args)
    tensors = _inputs(operator, *inputs) | {"output": output}
    if saves and _has_sums(operator):
        tensors[_sums_name(operator)] = sums
    operator._bound("prefill", _target(query)).call(tensors, _threads(query))
    return output, sums


def _attention_fake(*args):
    *inputs, name, saves = args
    operator = _operators[name]
    query, value = inputs[0], inputs[2]
    rows = query.shape[:-1]
    sums = (*rows, 1) if saves and _has_sums(operator) else (0,)
    dtype = torch.float64 if operator.dtype == "float64" else torch.float32
    return query.new_empty((*rows, value.shape[-1])), query.new_empty(sums, dtype=dtype)


def _new_gradients(inputs, wanted):
    """Gradients like the first inputs; those that are not wanted have no elements."""
    return tuple(torch.empty_like(tensor, memory_format=torch.contiguous_format) if want else inputs[0].new_empty(0)
                 for tensor, want in zip(inputs, wanted))


def _attention_backward(output_gradient, output, sums, *args):
    *inputs, name, wanted = args
    operator = _operators[name]
    gradients = _new_gradients(inputs, wanted)
    tensors = _inputs(operator, *inputs) | {"output_gradient": output_gradient}
    if _has_sums(operator):
        tensors |= {"output": output, _sums_name(operator): sums}
    tensors |= {gradient: tensor for gradient, tensor, want in zip(_GRADIENTS, gradients, wanted) if want}
    operator._bound("backward", _target(output)).call(tensors, _threads(output))
    return gradients


def _attention_backward_fake(output_gradient, output, sums, *args):
    *inputs, _, wanted = args
    return _new_gradients(inputs, wanted)


def _convolution(input, weight, gate, bias, cu_seqlens, name):
    output = _convolution_fake(input)
    tensors = _convolution_inputs(input, weight, gate, bias, cu_seqlens) | {"output": output.unsqueeze(-2)}
    _operators[name]._bound("prefill", _target(input)).call(tensors, _threads(input))
    return output


def _convolution_fake(input, *_):
    return torch.empty_like(input, memory_format=torch.contiguous_format)


def _convolution_inputs(input, weight, gate, bias, cu_seqlens):
    return {"input": input.unsqueeze(-2), "weight": weight, "gate": None if gate is None else gate.unsqueeze(-2),
            "bias": bias, "cu_seqlens": cu_seqlens}


def _convolution_backward(output_gradient, input, weight, gate, bias, cu_seqlens, name, wanted):
    gradients = _new_gradients((input, weight, gate, bias), wanted)
    names = ("input_gradient", "weight_gradient", "gate_gradient", "bias_gradient")
    tensors = _convolution_inputs(input, weight, gate, bias, cu_seqlens) | {"output_gradient": output_gradient.unsqueeze(-2)}
    tensors |= {gradient: tensor.unsqueeze(-2) if gradient in ("input_gradient", "gate_gradient") else tensor
                for gradient, tensor, want in zip(names, gradients, wanted) if want}
    _operators[name]._bound("backward", _target(input)).call(tensors, _threads(input))
    return gradients


def _convolution_backward_fake(output_gradient, input, weight, gate, bias, cu_seqlens, name, wanted):
    return _new_gradients((input, weight, gate, bias), wanted)


for _name, _function, _fake in (("attention", _attention, _attention_fake),
                                ("attention_backward", _attention_backward, _attention_backward_fake),
                                ("convolution", _convolution, _convolution_fake),
                                ("convolution_backward", _convolution_backward, _convolution_backward_fake)):
    for _key in ("CPU", "CUDA"):
        _library.impl(_name, _function, _key)
    torch.library.register_fake(f"jrt::{_name}", _fake, lib=_library)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, name, *inputs):
        output, sums = torch.ops.jrt.attention(*inputs, name, True)
        ctx.name = name
        ctx.save_for_backward(output, sums, *inputs)
        return output

    @staticmethod
    def backward(ctx, output_gradient):
        _refuse_second_derivatives()
        output, sums, *inputs = ctx.saved_tensors
        wanted = list(ctx.needs_input_grad[1:6])
        gradients = torch.ops.jrt.attention_backward(_rows(output_gradient), output, sums, *inputs, ctx.name, wanted)
        return None, *(gradient if want else None for gradient, want in zip(gradients, wanted)), None, None, None, None


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx, name, cu_seqlens, *inputs):
        ctx.name = name
        ctx.save_for_backward(cu_seqlens, *inputs)
        return torch.ops.jrt.convolution(*inputs, cu_seqlens, name)

    @staticmethod
    def backward(ctx, output_gradient):
        _refuse_second_derivatives()
        cu_seqlens, *inputs = ctx.saved_tensors
        wanted = list(ctx.needs_input_grad[2:])
        gradients = torch.ops.jrt.convolution_backward(_rows(output_gradient), *inputs, cu_seqlens, ctx.name, wanted)
        return None, None, *(gradient if want else None for gradient, want in zip(gradients, wanted))


def _refuse_second_derivatives():
    """Autograd runs backward functions with gradients enabled if and only if it is to differentiate them, too. (PyTorch's
    own once_differentiable would drop them without a word where the gradient that comes in needs none.)"""
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise RuntimeError("jrt: gradients of gradients are not supported; take these without create_graph=True.")


def _rows(tensor):
    """The tensor, or a copy whose rows are contiguous."""
    if tensor is None or tensor.stride(-1) == 1 or tensor.shape[-1] == 1:
        return tensor
    return tensor.contiguous()


def _cast(tensors):
    """Autocast's rule: floating tensors take its type."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return [tensor.to(dtype) if tensor is not None and tensor.is_floating_point() else tensor for tensor in tensors]


@torch.compiler.assume_constant_result
def _name_of(**settings):
    """The name by which ops know an operator; they take strings."""
    return _known_name(**settings)


@functools.lru_cache(maxsize=None)
def _known_name(*, dtype, **settings):
    name = str(dtype).removeprefix("torch.")
    if name not in ("float32", "float64", "float16", "bfloat16"):
        raise ValueError(f"jrt: tensors have dtype {name}, but must have float32, float64, float16 or bfloat16.")
    operator = Operator(dtype=name, **settings)
    _operators[operator.key] = operator
    return operator.key


def _attend(settings, query, key, value, key_encoder, value_encoder, cu_seqlens, cu_encoder_seqlens, prefix_lens, left_pads):
    tensors = [_rows(tensor) for tensor in _cast([query, key, value, key_encoder, value_encoder])]
    query = tensors[0]
    name = _name_of(dtype=query.dtype, d=query.shape[-1], dv=value.shape[-1], **settings)
    inputs = (*tensors, cu_seqlens, cu_encoder_seqlens, prefix_lens, left_pads)
    if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors):
        return _Attention.apply(name, *inputs)
    return torch.ops.jrt.attention(*inputs, name, False)[0]


def prefix_linear_attention(query, key, value, key_encoder=None, value_encoder=None, *, feature_map="taylor2",
                            normaliser="sum", mask="prefix", cu_seqlens=None, cu_encoder_seqlens=None, prefix_lens=None,
                            left_pads=None):
    """Prefix linear attention (arXiv 2407.05483): y_i = φ(q_i)ᵀS_i / φ(q_i)ᵀz_i with S_i = Σ_{j≤i} φ(k_j)v_jᵀ + Σ_{j<M}
    φ(k_enc_j)v_enc_jᵀ, z likewise without values. Linear in the number of tokens.

    query (B, T, Hq, d), key (B, T, Hkv, d), value (B, T, Hkv, dv), Hq a multiple of Hkv; key_encoder, value_encoder
    (B, M, Hkv, ·) with M <= T. feature_map, normaliser and mask as for `jrt.Operator`. Packed sequences: (tokens, heads, ·)
    with int32 cu_seqlens, and cu_encoder_seqlens for the encoder region. prefix_lens, left_pads: (B) int32.
    Returns (B, T, Hq, dv). Errors: ValueError with the library's sentence."""
    settings = {"kind": "linear", "feature_map": feature_map, "normaliser": normaliser, "mask": mask}
    return _attend(settings, query, key, value, key_encoder, value_encoder, cu_seqlens, cu_encoder_seqlens, prefix_lens,
                   left_pads)


def based(query, key, value, *, cu_seqlens=None, left_pads=None):
    """Based's linear attention (arXiv 2402.18668): `prefix_linear_attention` with Taylor features and without a prefix."""
    return prefix_linear_attention(query, key, value, mask="causal", cu_seqlens=cu_seqlens, left_pads=left_pads)


def window_attention(query, key, value, *, left_window=128, rotary=False, cu_seqlens=None, left_pads=None):
    """Softmax attention over the query's own key and `left_window` keys before it, scores scaled by 1/√d; with `rotary`
    queries and keys are rotated by their positions. Shapes as in `prefix_linear_attention`. Cost O(T · L)."""
    settings = {"kind": "window", "left_window": left_window, "rotary": rotary}
    return _attend(settings, query, key, value, None, None, cu_seqlens, None, None, left_pads)


def hybrid_attention(query, key, value, key_encoder=None, value_encoder=None, *, left_window=128, mask="prefix",
                     cu_seqlens=None, cu_encoder_seqlens=None, prefix_lens=None, left_pads=None):
    """Linear and window attention under one normaliser: the last left_window + 1 keys have weight e^s, older ones and the
    encoder region the Taylor map's 1 + s + s²/2. Shapes as in `prefix_linear_attention`."""
    settings = {"kind": "hybrid", "left_window": left_window, "mask": mask}
    return _attend(settings, query, key, value, key_encoder, value_encoder, cu_seqlens, cu_encoder_seqlens, prefix_lens,
                   left_pads)


def gated_convolution(input, weight, bias=None, gate=None, *, activation="silu", cu_seqlens=None):
    """Causal depthwise convolution, activated, times a gate: y_t = gate_t · activation(Σ_τ w_τ u_{t−K+1+τ} + bias).

    input, gate (B, T, C) or packed (tokens, C); weight (C, K); bias (C). Returns the input's shape."""
    tensors = [_rows(tensor) for tensor in _cast([input, weight, gate, bias])]
    tensors[1] = tensors[1].contiguous()
    name = _name_of(kind="convolution", dtype=tensors[0].dtype, kernel_width=weight.shape[-1], activation=activation)
    if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors):
        return _Convolution.apply(name, cu_seqlens, *tensors)
    return torch.ops.jrt.convolution(*tensors, cu_seqlens, name)
