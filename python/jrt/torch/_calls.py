# SPDX-License-Identifier: Apache-2.0
"""Compiled operations as PyTorch calls them: eagerly, with as little as possible between the caller and the kernel.

A `Call` is one operation of one operator on one device. It knows which of the tensors that it is given go where in the
compiled function's arguments, and remembers the workspace that calls of a shape need.
"""

import functools
import math
import operator as python_operator
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from jrt import _tensors
from jrt._operator import Operator

_ELEMENTS = {torch.float32: "float32", torch.float64: "float64", torch.float16: "float16", torch.bfloat16: "bfloat16"}
_named: dict[tuple[str, torch.device], "Calls"] = {}

# What operators are told apart by here, for each kind.
SETTINGS = {"linear": ("d", "dv", "feature_map", "features", "source", "data", "mask", "normaliser", "padding",
                       "products"),
            "window": ("d", "dv", "left_window", "rotary"),
            "hybrid": ("d", "dv", "feature_map", "features", "source", "data", "mask", "left_window"),
            "convolution": ("kernel_width", "activation")}

# What calls are given, in this order; behind an attention's inputs are the data of its feature map, arrays and then numbers.
# Those of an operation that the operator does not have are dropped.
ATTENTION = ("query", "key", "value", "key_encoder", "value_encoder", "cu_seqlens", "cu_encoder_seqlens", "prefix_lens",
             "left_pads", "initial_state", "first_positions")
ATTENTION_OUTPUTS = ("output", "sums", "final_state")
ATTENTION_GRADIENTS = ("output_gradient", "final_state_gradient", "query_gradient", "key_gradient", "value_gradient",
                       "key_encoder_gradient", "value_encoder_gradient", "initial_state_gradient")
CONVOLUTION = ("input", "weight", "gate", "bias", "cu_seqlens", "left_pads")
CONVOLUTION_GRADIENTS = ("output_gradient", "input_gradient", "weight_gradient", "gate_gradient", "bias_gradient")

Number = int | float | None


class Call:
    """An operation of an operator, for tensors on one device."""

    def __init__(self, operator: Operator, operation: str, device: torch.device, names: Sequence[str]) -> None:
        bound = operator._bound(operation, _tensors.target_of({"": torch.empty(0, device=device)}))
        sums = "denominators" if operator.kind == "linear" else "log_sum_exp"
        names = [sums if name == "sums" else name for name in names]
        # The last element of what `pick` gets is None, for arguments that are never given.
        self._pick = python_operator.itemgetter(*(names.index(name) if name in names else -1 for name in bound._names))
        self._bound = bound
        self._given = names
        self._run = bound._run
        self._workspace_bytes = bound._workspace_bytes
        self._sizes: dict[tuple[Hashable, int], int] = {}
        self._on_cpu = device.type == "cpu"
        self.head_elements = bound.head_elements

    def __call__(self, tensors: Sequence[Any], shapes: Hashable) -> None:
        """Runs with `tensors`, of which `shapes` has what the workspace's size depends on."""
        arguments = self._pick((*tensors, None))
        threads = torch.get_num_threads() if self._on_cpu else 1
        size = self._sizes.get((shapes, threads))
        if size is None:  # new extents: other kernels may serve them, too
            if self._bound._may_disappoint:
                self._bound._warn_of_portable_kernels(dict(zip(self._given, tensors)), arguments, threads)
            size = self._sizes[shapes, threads] = self._workspace_bytes(*arguments, None, threads)
        workspace = tensors[0].new_empty(size, dtype=torch.uint8) if size > 0 else None
        self._run(*arguments, workspace, threads)


class Calls:
    """The calls of one operator on one device. Its name is what ops, which take strings, know the operator by."""

    def __init__(self, operator: Operator, device: torch.device) -> None:
        self.name = operator.key
        self.operator = operator
        self._device = device
        self.has_sums = operator.kind != "linear" or operator.normaliser == "sum"
        self.sum_dtype = torch.float64 if operator.dtype == "float64" else torch.float32
        self.state_dtype: torch.dtype = getattr(torch, str(operator.state_dtype))
        self.arrays, self.numbers = operator._map_members()
        self.has_data = bool(self.arrays or self.numbers)

    @functools.cached_property
    def _inputs(self) -> tuple[str, ...]:
        return CONVOLUTION if self.operator.kind == "convolution" else (*ATTENTION, *self.arrays, *self.numbers)

    @functools.cached_property
    def prefill(self) -> Call:
        names = self._inputs + (("output",) if self.operator.kind == "convolution" else ATTENTION_OUTPUTS)
        return Call(self.operator, "prefill", self._device, names)

    @functools.cached_property
    def backward(self) -> Call:
        names = self._inputs + (CONVOLUTION_GRADIENTS if self.operator.kind == "convolution" else
                                ("output", "sums") + ATTENTION_GRADIENTS)
        return Call(self.operator, "backward", self._device, names)


@functools.cache
def calls(device: torch.device, dtype: torch.dtype, kind: str, *settings: Any) -> Calls:
    """The calls of an operator, whose settings are the values of SETTINGS."""
    if dtype not in _ELEMENTS:
        raise ValueError(f"jrt: tensors have dtype {str(dtype).removeprefix('torch.')}, but must have float32, float64, "
                         "float16 or bfloat16.")
    operator = Operator(kind=kind, dtype=_ELEMENTS[dtype], **dict(zip(SETTINGS[kind], settings)))
    return _named.setdefault((operator.key, device), Calls(operator, device))


def named(name: str, device: torch.device | None = None) -> Calls:
    """The calls of the operator that `calls` gave a name, on a device; on any, if none is named."""
    found = _named.get((name, device)) if device is not None else None
    if found is None:  # a graph that was traced for another device
        found = next((calls for (key, _), calls in _named.items() if key == name), None)
        if found is None:
            raise RuntimeError(f"jrt: the graph has the operator {name!r}, which this process has not made yet; call its "
                               "function of jrt.torch once, for instance with tensors of no tokens.")
        if device is not None:
            found = _named.setdefault((name, device), Calls(found.operator, device))
    return found


def numbers_of(values: Sequence[float]) -> list[Number]:
    """Numbers of a graph, which are all floats there, as calls take them: NaN was not given."""
    return [None if math.isnan(value) else int(value) if float(value).is_integer() else value for value in values]


# -- forward and gradients, for tensors that have memory -------------------------------------------------------------------


def _extents(inputs: Sequence[Any]) -> tuple[Hashable, ...]:
    """What else a workspace's size depends on: the encoder region, packed sequences, and whether there is a state."""
    key_encoder, cu_seqlens, initial_state = inputs[3], inputs[5], inputs[9]
    if key_encoder is None and cu_seqlens is None and initial_state is None:
        return ()
    return key_encoder is not None and key_encoder.shape, cu_seqlens is not None and cu_seqlens.shape, initial_state is None


def attention(operation: Calls, inputs: Sequence[Any], numbers: Sequence[Number], saves: bool,
              returns_state: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """(output, sums, final state) of ATTENTION's tensors and a feature map's data, the latter two if they are wanted."""
    outputs = new_outputs(operation, inputs, saves, returns_state)
    operation.prefill((*inputs, *numbers, *outputs),
                      (inputs[0].shape, inputs[1].shape, saves, returns_state, *_extents(inputs)))
    return outputs


def new_outputs(operation: Calls, inputs: Sequence[Any], saves: bool,
                returns_state: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """New output, sums and state of a call; None for those that are not wanted."""
    query = inputs[0]
    query_shape = query.shape
    rows = query_shape[:-1]
    new = query.new_empty if inputs[5] is None else query.new_zeros  # rows that lie in no packed sequence are not written
    output = new((*rows, inputs[2].shape[-1]))
    sums = new((*rows, 1), dtype=operation.sum_dtype) if saves and operation.has_sums else None
    state = None
    if returns_state:
        sequences = query_shape[0] if inputs[5] is None else inputs[5].shape[0] - 1
        state = query.new_zeros((sequences, inputs[1].shape[-2], operation.prefill.head_elements),
                                dtype=operation.state_dtype)
    return output, sums, state


def attention_backward(operation: Calls, output_gradient: Tensor, state_gradient: Tensor | None, output: Tensor | None,
                       sums: Tensor | None, inputs: Sequence[Any], numbers: Sequence[Number],
                       wanted: Sequence[bool]) -> list[Tensor | None]:
    """Gradients of query, key, value, key_encoder, value_encoder and initial_state; None for those that are not wanted."""
    gradients = new_gradients(operation, inputs, wanted)
    if not operation.has_sums:
        output = sums = None
    operation.backward((*inputs, *numbers, output, sums, output_gradient, state_gradient, *gradients),
                       (inputs[0].shape, inputs[1].shape, state_gradient is None, *wanted, *_extents(inputs)))
    return gradients


def new_gradients(operation: Calls, inputs: Sequence[Any], wanted: Sequence[bool]) -> list[Tensor | None]:
    sources = (*inputs[:5], inputs[9])
    like = torch.empty_like if inputs[5] is None else torch.zeros_like
    gradients: list[Tensor | None]
    gradients = [like(tensor, memory_format=torch.contiguous_format) if want else None
                 for tensor, want in zip(sources, wanted)]
    if wanted[5]:  # what pads a head's state is not written
        gradients[5] = torch.zeros_like(inputs[9], dtype=operation.sum_dtype, memory_format=torch.contiguous_format)
    return gradients


def convolution(operation: Calls, input: Tensor, weight: Tensor, gate: Tensor | None, bias: Tensor | None,
                cu_seqlens: Tensor | None, left_pads: Tensor | None) -> Tensor:
    like = torch.empty_like if cu_seqlens is None else torch.zeros_like  # rows that lie in no packed sequence are not written
    output = like(input, memory_format=torch.contiguous_format)
    operation.prefill(
        (input.unsqueeze(-2), weight, None if gate is None else gate.unsqueeze(-2), bias, cu_seqlens, left_pads,
         output.unsqueeze(-2)),
        (input.shape, cu_seqlens is not None and cu_seqlens.shape))
    return output


def convolution_backward(operation: Calls, tensors: Sequence[Any], wanted: Sequence[bool]) -> list[Tensor | None]:
    """Gradients of input, weight, gate and bias; None for those that are not wanted. `tensors` are the output's gradient and
    those of CONVOLUTION."""
    output_gradient, input, weight, gate, bias, cu_seqlens, left_pads = tensors
    like = torch.empty_like if cu_seqlens is None else torch.zeros_like
    gradients = [like(tensor, memory_format=torch.contiguous_format) if want else None
                 for tensor, want in zip((input, weight, gate, bias), wanted)]
    rows = [None if tensor is None else tensor.unsqueeze(-2)
            for tensor in (input, gate, output_gradient, gradients[0], gradients[2])]
    operation.backward(
        (rows[0], weight, rows[1], bias, cu_seqlens, left_pads, rows[2], rows[3], gradients[1], rows[4], gradients[3]),
        (input.shape, cu_seqlens is not None and cu_seqlens.shape, *wanted))
    return gradients
