# SPDX-License-Identifier: Apache-2.0
"""PyTorch's ops and gradients of the compiled operations.

Eager calls of plain tensors go straight to `_calls`: PyTorch's dispatcher would cost more than a short kernel. Under
`torch.compile`, in dispatch modes and for subclasses of tensors they are ops of the library "jrt", with fake implementations.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from operator import index
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from jrt.torch import _calls
from jrt.torch._calls import Number

_library = torch.library.Library("jrt", "DEF")

_INPUTS = ("Tensor query, Tensor key, Tensor value, Tensor? key_encoder, Tensor? value_encoder, Tensor? cu_seqlens, "
           "Tensor? cu_encoder_seqlens, Tensor? prefix_lens, Tensor? left_pads, Tensor? initial_state, "
           "Tensor? first_positions, Tensor[] arrays, float[] numbers")
_library.define(f"attention({_INPUTS}, str operator, bool saves, bool returns_state) -> (Tensor, Tensor, Tensor)")
_library.define("attention_backward(Tensor output_gradient, Tensor? state_gradient, Tensor output, Tensor sums, "
                f"{_INPUTS}, str operator, bool[] wanted) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)")
_SIGNAL = "Tensor input, Tensor weight, Tensor? gate, Tensor? bias, Tensor? cu_seqlens, Tensor? left_pads"
_library.define(f"convolution({_SIGNAL}, str operator) -> Tensor")
_library.define(f"convolution_backward(Tensor output_gradient, {_SIGNAL}, str operator, bool[] wanted) "
                "-> (Tensor, Tensor, Tensor, Tensor)")


def _filled(like: Tensor, tensors: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
    """Ops return tensors, never None: what is not there has no elements."""
    return tuple(like.new_empty(0) if tensor is None else tensor for tensor in tensors)


def _attention(*args: Any) -> tuple[Tensor, ...]:
    *inputs, arrays, numbers, name, saves, returns_state = args
    return _filled(inputs[0], _calls.attention(_calls.named(name, inputs[0].device), (*inputs, *arrays),
                                               _calls.numbers_of(numbers), saves, returns_state))


def _attention_fake(*args: Any) -> tuple[Tensor, ...]:
    *inputs, _, _, name, saves, returns_state = args
    return _filled(inputs[0], _calls.new_outputs(_calls.named(name, inputs[0].device), inputs, saves, returns_state))


def _attention_backward(output_gradient: Tensor, state_gradient: Tensor | None, output: Tensor, sums: Tensor,
                        *args: Any) -> tuple[Tensor, ...]:
    *inputs, arrays, numbers, name, wanted = args
    return _filled(output, _calls.attention_backward(_calls.named(name, output.device), output_gradient, state_gradient, output,
                                                     sums, (*inputs, *arrays), _calls.numbers_of(numbers), wanted))


def _attention_backward_fake(output_gradient: Tensor, state_gradient: Tensor | None, output: Tensor, sums: Tensor,
                             *args: Any) -> tuple[Tensor, ...]:
    *inputs, _, _, name, wanted = args
    return _filled(output, _calls.new_gradients(_calls.named(name, output.device), inputs, wanted))


def _convolution(*args: Any) -> Tensor:
    *tensors, name = args
    return _calls.convolution(_calls.named(name, tensors[0].device), *tensors)


def _convolution_fake(input: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(input, memory_format=torch.contiguous_format)


def _convolution_backward(*args: Any) -> tuple[Tensor, ...]:
    *tensors, name, wanted = args
    operation = _calls.named(name, tensors[1].device)
    return _filled(tensors[1], _calls.convolution_backward(operation, tensors, wanted))


def _convolution_backward_fake(output_gradient: Tensor, input: Tensor, weight: Tensor, gate: Tensor | None,
                               bias: Tensor | None, cu_seqlens: Tensor | None, left_pads: Tensor | None, name: str,
                               wanted: Sequence[bool]) -> tuple[Tensor, ...]:
    return _filled(input, [torch.empty_like(tensor, memory_format=torch.contiguous_format) if want and tensor is not None
                           else None for tensor, want in zip((input, weight, gate, bias), wanted)])


for _op, _function, _fake in (("attention", _attention, _attention_fake),
                                ("attention_backward", _attention_backward, _attention_backward_fake),
                                ("convolution", _convolution, _convolution_fake),
                                ("convolution_backward", _convolution_backward, _convolution_backward_fake)):
    for _key in ("CPU", "CUDA"):
        _library.impl(_op, _function, _key)
    torch.library.register_fake(f"jrt::{_op}", _fake, lib=_library)


_PLAIN = (torch.Tensor, torch.nn.Parameter)


def is_plain(tensor: Tensor) -> bool:
    """Whether a call may go past the dispatcher: eager, on a tensor with memory, and nobody watches."""
    return (not torch.compiler.is_compiling() and type(tensor) in _PLAIN and torch._C._len_torch_dispatch_stack() == 0 and
            torch._C._get_tracing_state() is None)


def refuse_transforms(tensors: Sequence[Any]) -> None:
    """Of torch.func's transforms and forward-mode derivatives, which would be lost without a word."""
    if torch.compiler.is_compiling():
        return
    if torch._C._functorch.peek_interpreter_stack() is not None:
        raise RuntimeError("jrt: torch.func's transforms (vmap, grad, jvp, …) do not reach these functions; give a batch "
                           "instead of vmap, and take gradients with backward() or torch.autograd.grad.")
    if forward_ad._current_level >= 0 and any(
            tensor is not None and forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors):
        raise RuntimeError("jrt: derivatives in forward mode are not supported; take gradients with backward() or "
                           "torch.autograd.grad.")


def check_tensors(named: Iterable[tuple[str, Any]], needed: Mapping[str, Sequence[int]]) -> None:
    """That tensors are tensors, of memory that calls can reach; those that are needed with one of their numbers of dimensions.
    For calls that have failed already: none of it costs time where all is well."""
    for name, tensor in named:
        if tensor is None and name not in needed:
            continue
        if not isinstance(tensor, Tensor):
            raise ValueError(f"jrt: argument {name!r} is a {type(tensor).__name__}, but must be a tensor"
                             f"{'.' if name in needed else ' or None.'}")
        if tensor.device.type not in ("cpu", "cuda") or tensor.layout is not torch.strided:
            raise ValueError(f"jrt: argument {name!r} is on {tensor.device} with the layout {tensor.layout}, but must be on the "
                             "CPU or a CUDA device with torch.strided.")
        if name in needed and tensor.dim() not in needed[name]:
            raise ValueError(f"jrt: argument {name!r} has {tensor.dim()} dimensions, but must have "
                             f"{' or, packed, '.join(map(str, needed[name]))}.")


def _refuse_second_derivatives() -> None:
    """Autograd runs backward functions with gradients enabled if and only if it is to differentiate them, too. (PyTorch's
    own once_differentiable would drop them without a word where the gradient that comes in needs none.)"""
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise RuntimeError("jrt: gradients of gradients are not supported; take these without create_graph=True.")


def rows(tensor: Tensor) -> Tensor:
    """The tensor, or a copy whose rows are contiguous."""
    if tensor.is_contiguous() or tensor.stride(-1) == 1 or tensor.shape[-1] == 1:
        return tensor
    return tensor.contiguous()


def differentiable(*tensors: Tensor | None) -> bool:
    """Whether any of the tensors that are there requires a gradient."""
    for tensor in tensors:
        if tensor is not None and tensor.requires_grad:
            return True
    return False


class Attention(torch.autograd.Function):
    """Output of an attention, and with `returns_state` the state after it. `operation` is a name in a graph."""

    @staticmethod
    def forward(ctx: Any, operation: "_calls.Calls | str", returns_state: bool, numbers: Sequence[Number],
                *inputs: Any) -> Any:
        ctx.set_materialize_grads(False)
        output, sums, state = forward(operation, inputs, numbers, True, returns_state)
        ctx.operation = operation
        ctx.numbers = numbers
        ctx.save_for_backward(output, sums, *inputs)
        return (output, state) if returns_state else output

    @staticmethod
    def backward(ctx: Any, output_gradient: Tensor | None, state_gradient: Tensor | None = None) -> Any:
        _refuse_second_derivatives()
        output, sums, *inputs = ctx.saved_tensors
        operation = ctx.operation
        needed = ctx.needs_input_grad
        wanted = [*needed[3:8], needed[12]]
        output_gradient = torch.zeros_like(output) if output_gradient is None else rows(output_gradient)
        if state_gradient is not None:
            state_gradient = state_gradient.contiguous()
        if is_plain(output) and not isinstance(operation, str):
            gradients = _calls.attention_backward(operation, output_gradient, state_gradient, output, sums, inputs,
                                                  ctx.numbers, wanted)
        else:
            sums = output.new_empty(0) if sums is None else sums
            of_op = torch.ops.jrt.attention_backward(output_gradient, state_gradient, output, sums,
                                                     *_op_inputs(inputs, ctx.numbers), _name(operation), wanted)
            gradients = [gradient if want else None for gradient, want in zip(of_op, wanted)]
        return None, None, None, *gradients[:5], None, None, None, None, gradients[5], *[None] * (len(inputs) - 10)


class Convolution(torch.autograd.Function):
    """A gated convolution of input, weight, gate and bias. `operation` is a name in a graph."""

    @staticmethod
    def forward(ctx: Any, operation: "_calls.Calls | str", *tensors: Any) -> Any:
        ctx.operation = operation
        ctx.save_for_backward(*tensors)
        return convolution(operation, tensors)

    @staticmethod
    def backward(ctx: Any, output_gradient: Tensor) -> Any:
        _refuse_second_derivatives()
        operation = ctx.operation
        wanted = list(ctx.needs_input_grad[1:5])
        tensors = (rows(output_gradient), *ctx.saved_tensors)
        if is_plain(tensors[1]) and not isinstance(operation, str):
            gradients = _calls.convolution_backward(operation, tensors, wanted)
        else:
            of_op = torch.ops.jrt.convolution_backward(*tensors, _name(operation), wanted)
            gradients = [gradient if want else None for gradient, want in zip(of_op, wanted)]
        return None, *gradients, None, None


def _name(operation: "_calls.Calls | str") -> str:
    return operation if isinstance(operation, str) else operation.name


def _op_inputs(inputs: Sequence[Any], numbers: Sequence[Number]) -> tuple[Any, ...]:
    """Inputs and data of a feature map as the ops take them: numbers that were not given are NaN."""
    count = len(_calls.ATTENTION)
    return (*inputs[:count], list(inputs[count:]), [math.nan if number is None else float(number) for number in numbers])


def forward(operation: "_calls.Calls | str", inputs: Sequence[Any], numbers: Sequence[Number], saves: bool,
            returns_state: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Output, sums and state of an attention, without gradients."""
    if isinstance(operation, str):
        output, sums, state = torch.ops.jrt.attention(*_op_inputs(inputs, numbers), operation, saves, returns_state)
        return output, sums, state
    return _calls.attention(operation, inputs, numbers, saves, returns_state)


def convolution(operation: "_calls.Calls | str", tensors: Sequence[Any]) -> Tensor:
    """A convolution without gradients."""
    if isinstance(operation, str):
        output: Tensor = torch.ops.jrt.convolution(*tensors, operation)
        return output
    return _calls.convolution(operation, *tensors)


@torch.compiler.assume_constant_result
def _constant_name(device: torch.device, dtype: torch.dtype, kind: str, *settings: Any) -> str:
    return _calls.calls(device, dtype, kind, *settings).name


@torch.compiler.assume_constant_result
def _constant_members(name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    calls = _calls.named(name)
    return calls.arrays, calls.numbers


def operation_of(tensor: Tensor, kind: str, dims: Sequence[int], *settings: Any) -> "_calls.Calls | str":
    """What runs an operator on tensors like this: its calls or, where PyTorch is to see ops, its name. `dims` are the first
    settings, which graphs with dynamic shapes are guarded by."""
    if is_plain(tensor):
        return _calls.calls(tensor.device, tensor.dtype, kind, *dims, *settings)
    return _constant_name(tensor.device, tensor.dtype, kind, *map(index, dims), *settings)


def data_of(operation: "_calls.Calls | str", given: Mapping[str, Any]) -> tuple[tuple[Any, ...], tuple[Number, ...]]:
    """A feature map's data in the order of calls: arrays and numbers. What is not given is None, and the map may refuse it."""
    names, numbers = (_constant_members(operation) if isinstance(operation, str) else
                      (operation.arrays, operation.numbers))
    for name, value in given.items():
        if name not in names and name not in numbers:
            known = ", ".join((*names, *numbers)) or "none"
            raise ValueError(f"jrt: there is no argument {name!r}; the data of this feature map are: {known}.")
        if value is None:
            continue
        if name in numbers and not isinstance(value, (int, float, torch.SymInt, torch.SymFloat)):
            raise ValueError(f"jrt: argument {name!r} is a {type(value).__name__}, but must be a number.")
        if name in names and not isinstance(value, Tensor):
            raise ValueError(f"jrt: argument {name!r} is a {type(value).__name__}, but must be a tensor.")
        if name in names and value.requires_grad and torch.is_grad_enabled():
            raise ValueError(f"jrt: argument {name!r} requires a gradient, but gradients do not reach data of a feature map; "
                             "detach it.")
    if isinstance(operation, str):  # a graph's op takes lists of tensors, all of which are there; other calls say it themselves
        for name in names:
            if given.get(name) is None:
                raise ValueError(f"jrt: argument {name!r} is missing, but the feature map needs it.")
    return tuple(given.get(name) for name in names), tuple(given.get(name) for name in numbers)
