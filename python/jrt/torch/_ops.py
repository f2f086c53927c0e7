# SPDX-License-Identifier: Apache-2.0
"""PyTorch's ops and gradients of the compiled operations.

Eager calls of plain tensors go straight to `_calls`: PyTorch's dispatcher would cost more than a short kernel. Under
`torch.compile`, in dispatch modes and for subclasses of tensors they are ops of the library "jrt", with fake implementations.
"""

import torch

from jrt.torch import _calls

_library = torch.library.Library("jrt", "DEF")

_INPUTS = ("Tensor query, Tensor key, Tensor value, Tensor? key_encoder, Tensor? value_encoder, Tensor? cu_seqlens, "
           "Tensor? cu_encoder_seqlens, Tensor? prefix_lens, Tensor? left_pads, Tensor? initial_state")
_library.define(f"attention({_INPUTS}, str operator, bool saves, bool returns_state) -> (Tensor, Tensor, Tensor)")
_library.define("attention_backward(Tensor output_gradient, Tensor? state_gradient, Tensor output, Tensor sums, "
                f"{_INPUTS}, str operator, bool[] wanted) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)")
_SIGNAL = "Tensor input, Tensor weight, Tensor? gate, Tensor? bias, Tensor? cu_seqlens, Tensor? left_pads"
_library.define(f"convolution({_SIGNAL}, str operator) -> Tensor")
_library.define(f"convolution_backward(Tensor output_gradient, {_SIGNAL}, str operator, bool[] wanted) "
                "-> (Tensor, Tensor, Tensor, Tensor)")


def _filled(like, tensors):
    """Ops return tensors, never None: what is not there has no elements."""
    return tuple(like.new_empty(0) if tensor is None else tensor for tensor in tensors)


def _attention(*args):
    *inputs, name, saves, returns_state = args
    return _filled(inputs[0], _calls.attention(_calls.named(name, inputs[0].device), inputs, saves, returns_state))


def _attention_fake(*args):
    *inputs, name, saves, returns_state = args
    return _filled(inputs[0], _calls.new_outputs(_calls.named(name, inputs[0].device), inputs, saves, returns_state))


def _attention_backward(output_gradient, state_gradient, output, sums, *args):
    *inputs, name, wanted = args
    operation = _calls.named(name, output.device)
    return _filled(output, _calls.attention_backward(operation, output_gradient, state_gradient, output, sums, inputs, wanted))


def _attention_backward_fake(output_gradient, state_gradient, output, sums, *args):
    *inputs, name, wanted = args
    return _filled(output, _calls.new_gradients(_calls.named(name, output.device), inputs, wanted))


def _convolution(*args):
    *tensors, name = args
    return _calls.convolution(_calls.named(name, tensors[0].device), *tensors)


def _convolution_fake(input, *_):
    return torch.empty_like(input, memory_format=torch.contiguous_format)


def _convolution_backward(*args):
    *tensors, name, wanted = args
    return _filled(tensors[1], _calls.convolution_backward(_calls.named(name, tensors[1].device), *tensors, wanted))


def _convolution_backward_fake(output_gradient, input, weight, gate, bias, cu_seqlens, left_pads, name, wanted):
    return _filled(input, (torch.empty_like(tensor, memory_format=torch.contiguous_format) if want else None
                           for tensor, want in zip((input, weight, gate, bias), wanted)))


for _name, _function, _fake in (("attention", _attention, _attention_fake),
                                ("attention_backward", _attention_backward, _attention_backward_fake),
                                ("convolution", _convolution, _convolution_fake),
                                ("convolution_backward", _convolution_backward, _convolution_backward_fake)):
    for _key in ("CPU", "CUDA"):
        _library.impl(_name, _function, _key)
    torch.library.register_fake(f"jrt::{_name}", _fake, lib=_library)


_PLAIN = (torch.Tensor, torch.nn.Parameter)


def is_plain(tensor):
    """Whether a call may go past the dispatcher: eager, on a tensor with memory, and nobody watches."""
    return not torch.compiler.is_compiling() and type(tensor) in _PLAIN and torch._C._len_torch_dispatch_stack() == 0


def _refuse_second_derivatives():
    """Autograd runs backward functions with gradients enabled if and only if it is to differentiate them, too. (PyTorch's
    own once_differentiable would drop them without a word where the gradient that comes in needs none.)"""
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise RuntimeError("jrt: gradients of gradients are not supported; take these without create_graph=True.")


def rows(tensor):
    """The tensor, or a copy whose rows are contiguous."""
    if tensor is None or tensor.is_contiguous() or tensor.stride(-1) == 1 or tensor.shape[-1] == 1:
        return tensor
    return tensor.contiguous()


def differentiable(*tensors):
    """Whether any of the tensors that are there requires a gradient."""
    for tensor in tensors:
        if tensor is not None and tensor.requires_grad:
            return True
    return False


class Attention(torch.autograd.Function):
    """Output of an attention, and with `returns_state` the state after it. `operation` is a name in a graph."""

    @staticmethod
    def forward(ctx, operation, returns_state, *inputs):
        ctx.set_materialize_grads(False)
        output, sums, state = forward(operation, inputs, True, returns_state)
        ctx.operation = operation
        ctx.save_for_backward(output, sums, *inputs)
        return (output, state) if returns_state else output

    @staticmethod
    def backward(ctx, output_gradient, state_gradient=None):
        _refuse_second_derivatives()
        output, sums, *inputs = ctx.saved_tensors
        operation = ctx.operation
        needed = ctx.needs_input_grad
        wanted = [*needed[2:7], needed[11]]
        output_gradient = torch.zeros_like(output) if output_gradient is None else rows(output_gradient)
        if state_gradient is not None:
            state_gradient = state_gradient.contiguous()
        if is_plain(output) and not isinstance(operation, str):
            gradients = _calls.attention_backward(operation, output_gradient, state_gradient, output, sums, inputs, wanted)
        else:
            sums = output.new_empty(0) if sums is None else sums
            gradients = torch.ops.jrt.attention_backward(output_gradient, state_gradient, output, sums, *inputs,
                                                         _name(operation), wanted)
            gradients = [gradient if want else None for gradient, want in zip(gradients, wanted)]
        return None, None, *gradients[:5], None, None, None, None, gradients[5]


class Convolution(torch.autograd.Function):
    """A gated convolution of input, weight, gate and bias. `operation` is a name in a graph."""

    @staticmethod
    def forward(ctx, operation, *tensors):
        ctx.operation = operation
        ctx.save_for_backward(*tensors)
        return convolution(operation, tensors)

    @staticmethod
    def backward(ctx, output_gradient):
        _refuse_second_derivatives()
        operation = ctx.operation
        wanted = list(ctx.needs_input_grad[1:5])
        tensors = (rows(output_gradient), *ctx.saved_tensors)
        if is_plain(tensors[1]) and not isinstance(operation, str):
            gradients = _calls.convolution_backward(operation, *tensors, wanted)
        else:
            gradients = torch.ops.jrt.convolution_backward(*tensors, _name(operation), wanted)
            gradients = [gradient if want else None for gradient, want in zip(gradients, wanted)]
        return None, *gradients, None, None


def _name(operation):
    return operation if isinstance(operation, str) else operation.name


def forward(operation, inputs, saves, returns_state):
    """Output, sums and state of an attention, without gradients."""
    if isinstance(operation, str):
        return torch.ops.jrt.attention(*inputs, operation, saves, returns_state)
    return _calls.attention(operation, inputs, saves, returns_state)


def convolution(operation, tensors):
    """A convolution without gradients."""
    if isinstance(operation, str):
        return torch.ops.jrt.convolution(*tensors, operation)
    return _calls.convolution(operation, *tensors)


@torch.compiler.assume_constant_result
def _constant_name(*settings):
    return _calls.calls(*settings).name


def operation_of(tensor, kind, *settings):
    """What runs an operator on tensors like this: its calls or, where PyTorch is to see ops, its name."""
    if is_plain(tensor):
        return _calls.calls(tensor.device, tensor.dtype, kind, *settings)
    return _constant_name(tensor.device, tensor.dtype, kind, *settings)
