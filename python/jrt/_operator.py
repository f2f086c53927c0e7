# SPDX-License-Identifier: Apache-2.0
"""Operators: what to compile, and calls of what was compiled."""

import dataclasses
import functools
import hashlib
import re

import tvm_ffi

from jrt import _compile, _tensors

_ELEMENTS = {"float32": "float", "float64": "double", "float16": "jrt::Half", "bfloat16": "jrt::BFloat16"}
_FEATURE_MAPS = {
    "taylor2": ("jrt::Taylor2<{d}>", "jrt/policy/taylor.hpp"),
    "identity": ("jrt::Identity<{d}>", "jrt/policy/elementwise_maps.hpp"),
    "elu": ("jrt::EluPlusOne<{d}>", "jrt/policy/elementwise_maps.hpp"),
    "relu": ("jrt::Relu<{d}>", "jrt/policy/elementwise_maps.hpp"),
    "square": ("jrt::Square<{d}>", "jrt/policy/elementwise_maps.hpp"),
    "softmax_halves": ("jrt::SoftmaxHalves<{d}>", "jrt/policy/softmax_halves.hpp"),
}
_MASKS = {"prefix": "jrt::PrefixMask", "causal": "jrt::CausalMask", "full": "jrt::FullMask"}
_NORMALISERS = {"sum": "jrt::SumNormaliser<>", "none": "jrt::Unnormalised"}
_PADDINGS = {"drop": "jrt::DropPadding", "zero_keys": "jrt::ZeroKeyPadding"}
_HEADERS = {"linear": "linear_attention", "window": "window_attention", "convolution": "gated_convolution",
            "hybrid": "hybrid_attention"}
_OPERATIONS = {
    "linear": ("prefill", "backward", "accumulate", "decode_step", "staged_step", "commit"),
    "window": ("prefill", "backward", "decode_step", "staged_step", "commit"),
    "convolution": ("prefill", "backward", "decode_step", "staged_step", "commit"),
    "hybrid": ("prefill", "backward", "decode_step", "staged_step", "commit"),
}


def _choice(name, value, choices):
    if value not in choices:
        raise ValueError(f"jrt.Operator: {name} is {value!r}, but must be one of {', '.join(map(repr, choices))}.")
    return choices[value]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Operator:
    """One operator: a mixer and its compile-time policies. Immutable and hashable; equal operators share their libraries.

    kind          "linear" (prefix linear attention, Based), "window" (sliding window), "convolution" (gated, short) or
                  "hybrid" (linear attention and a window under one normaliser)
    dtype         of inputs and outputs: "float32", "float64", "float16" or "bfloat16"
    d, dv         dimensions of queries and keys, and of values; not for a convolution. dv defaults to d for a window
    feature_map   linear, hybrid: "taylor2", "identity", "elu", "relu", "square", "softmax_halves", or the name of a struct
                  in `source`
    mask          linear, hybrid: "prefix", "causal" or "full"
    normaliser    linear: "sum" or "none"
    padding       linear: "drop" or "zero_keys"
    state_dtype   linear, hybrid: type in which states are kept; "float32" (for float64 "float64") by default
    left_window   window, hybrid: keys seen to the left of the query
    rotary        window: whether queries and keys are rotated by their positions
    kernel_width  convolution: taps
    activation    convolution: "silu" or "none"
    source        C++ that defines a feature map of your own (docs/policies.md); its dimensions are its own

    Operations are methods with keyword arguments, named as the fields of the C++ argument structs (docs/interface.md):
    tensors of shape (batch, tokens, heads, dim), or packed (tokens, heads, dim) with `cu_seqlens`. Outputs may be given; what
    is left out is allocated like the first tensor, if a call needs it. `workspace` is a vector of uint8, allocated if left
    out; give one, and all outputs, and a call allocates nothing and can be captured in a CUDA graph. On the CPU `threads` is
    the number of threads. A call returns a dictionary of the tensors that it wrote.

    Errors: ValueError with the library's sentence, that names the argument and both values; `CompileError`."""

    kind: str = "linear"
    dtype: str = "float32"
    d: int = 16
    dv: int | None = None
    feature_map: str = "taylor2"
    mask: str = "prefix"
    normaliser: str = "sum"
    padding: str = "drop"
    state_dtype: str | None = None
    left_window: int = 128
    rotary: bool = False
    kernel_width: int = 3
    activation: str = "silu"
    source: str | None = None

    def __post_init__(self):
        _choice("kind", self.kind, _OPERATIONS)
        _choice("dtype", self.dtype, _ELEMENTS)
        _choice("mask", self.mask, _MASKS)
        _choice("normaliser", self.normaliser, _NORMALISERS)
        _choice("padding", self.padding, _PADDINGS)
        _choice("activation", self.activation, {"silu": 0, "none": 0})
        if self.state_dtype is None:
            object.__setattr__(self, "state_dtype", _sum_dtype(self.dtype))
        _choice("state_dtype", self.state_dtype, _ELEMENTS)
        if self.source is None and self.kind in ("linear", "hybrid"):
            _choice("feature_map", self.feature_map, _FEATURE_MAPS)
        elif self.source is not None and not re.fullmatch(r"[A-Za-z_]\w*(::\w+)*", self.feature_map):
            raise ValueError(f"jrt.Operator: feature_map is {self.feature_map!r}, but must be the name of a struct in source.")
        if self.dv is None:
            object.__setattr__(self, "dv", self.d if self.kind == "window" else 64)
        for name in ("d", "dv", "kernel_width"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise ValueError(f"jrt.Operator: {name} is {getattr(self, name)!r}, but must be an int of at least 1.")

    # -- what is compiled ------------------------------------------------------------------------------------------------

    @functools.cached_property
    def key(self):
        """A readable name of the operator, different for different operators."""
        parts = [self.kind, self.dtype]
        if self.kind in ("linear", "hybrid"):
            parts += [f"d{self.d}", f"dv{self.dv}", self.feature_map.replace("::", "."), self.mask]
            parts += [f"state_{self.state_dtype}"] if self.state_dtype != _sum_dtype(self.dtype) else []
        if self.kind == "linear":
            parts += [f"normaliser_{self.normaliser}"] if self.normaliser != "sum" else []
            parts += [f"padding_{self.padding}"] if self.padding != "drop" else []
        if self.kind == "window":
            parts += [f"d{self.d}", f"dv{self.dv}"] + (["rotary"] if self.rotary else [])
        if self.kind in ("window", "hybrid"):
            parts.append(f"left{self.left_window}")
        if self.kind == "convolution":
            parts += [f"taps{self.kernel_width}", self.activation]
        if self.source is not None:
            parts.append(hashlib.sha256(self.source.encode()).hexdigest()[:16])
        return "-".join(parts)

    def _config(self):
        element = _ELEMENTS[self.dtype]
        includes = []
        if self.kind == "convolution":
            body = f"struct Operator : jrt::GatedConvolution<{element}, {self.kernel_width}> {{\n"
            body += "  using Activation = jrt::NoActivation;\n" if self.activation == "none" else ""
            return includes, body + "};\n"
        if self.kind == "window":
            body = f"struct Operator : jrt::SlidingWindowAttention<{element}, {self.d}, {self.left_window}> {{\n"
            body += f"  static constexpr int value_dim = {self.dv};\n"
            body += f"  using Rotary = jrt::RotaryHalves<{self.d}>;\n" if self.rotary else ""
            return includes, body + "};\n"
        if self.source is None:
            name, header = _FEATURE_MAPS[self.feature_map]
            includes.append(header)
            feature_map = name.format(d=self.d)
        else:
            feature_map = self.feature_map
        linear = "Operator" if self.kind == "linear" else "Linear"
        body = (f"struct {linear} : jrt::PrefixLinearAttention<{element}, {self.d}, {self.dv}> {{\n"
                f"  using FeatureMap = {feature_map};\n  using Mask = {_MASKS[self.mask]};\n"
                f"  using StateScalar = {_ELEMENTS[self.state_dtype]};\n")
        if self.kind == "linear":
            body += f"  using Normaliser = {_NORMALISERS[self.normaliser]};\n  using Padding = {_PADDINGS[self.padding]};\n"
            return includes, body + "};\n"
        body += f"}};\nusing Operator = jrt::HybridAttention<Linear, jrt::WindowBeside<Linear, {self.left_window}>>;\n"
        return includes, body

    def _source(self, operation, target):
        includes, config = self._config()
        header = f"jrt/cpu/{_HEADERS[self.kind]}.hpp" if target == "cpu" else f"jrt/cuda/{_HEADERS[self.kind]}.cuh"
        lines = [f"// {operation} of {self.key}", f"#include <{header}>", *(f"#include <{name}>" for name in includes),
                 '#include "jrt_bind/export.hpp"', "namespace {", self.source or "", config + "}  // namespace",
                 f"JRT_BIND_EXPORT(Operator, {operation})"]
        return "\n".join(lines) + "\n"

    def compile(self, *operations, target="cpu"):
        """Compiles operations (all, if none is named) for "cpu" or a GPU architecture ("90a", "80"), if the cache has not."""
        for operation in operations or _OPERATIONS[self.kind]:
            self._bound(operation, target)

    @functools.cached_property
    def _bounds(self):
        return {}

    def _bound(self, operation, target):
        bound = self._bounds.get((operation, target))
        if bound is not None:
            return bound
        if operation not in _OPERATIONS[self.kind]:
            raise ValueError(f"jrt.Operator: {operation!r} is no operation of {self.kind!r}; "
                             f"those are {', '.join(_OPERATIONS[self.kind])}.")
        return self._bounds.setdefault((operation, target), _load(self, operation, target))

    # -- operations ------------------------------------------------------------------------------------------------------

    def prefill(self, *, workspace=None, threads=1, **tensors):
        """Outputs of whole prompts, and the states after them; see the class."""
        return self._call("prefill", tensors, workspace, threads)

    def backward(self, *, workspace=None, threads=1, **tensors):
        """Gradients of a prefill's inputs. Those that are wanted are given as outputs, or named in `wanted`."""
        return self._call("backward", tensors, workspace, threads)

    def accumulate(self, *, workspace=None, threads=1, **tensors):
        """Adds keys and values to states, without outputs."""
        return self._call("accumulate", tensors, workspace, threads)

    def decode_step(self, *, workspace=None, threads=1, **tensors):
        """Outputs of new tokens from states, which move on."""
        return self._call("decode_step", tensors, workspace, threads)

    def staged_step(self, *, workspace=None, threads=1, **tensors):
        """Outputs of new tokens whose keys and values go to a staging buffer; states stay as they are."""
        return self._call("staged_step", tensors, workspace, threads)

    def commit(self, *, workspace=None, threads=1, **tensors):
        """Adds the accepted ones of the staged tokens to the states."""
        return self._call("commit", tensors, workspace, threads)

    def workspace_bytes(self, operation, *, threads=1, **tensors):
        """Bytes of workspace that a call of `operation` with these tensors needs."""
        return self._bound(operation, _tensors.target_of(tensors)).workspace_bytes(tensors, threads)

    def new_states(self, slots, heads, like):
        """A cleared pool of states, (slots, heads, elements of a head), on the device of the tensor `like`."""
        elements = self._bound("decode_step", _tensors.target_of({"like": like})).head_elements
        dtype = {"linear": self.state_dtype, "hybrid": "int64"}.get(self.kind, self.dtype)
        return _tensors.zeros(like, (slots, heads, elements), dtype)

    def _call(self, operation, tensors, workspace, threads):
        return self._bound(operation, _tensors.target_of(tensors)).run(tensors, workspace, threads)


class _Bound:
    """A compiled operation: its argument names, in order, and its functions."""

    def __init__(self, operator, operation, module):
        self._operator = operator
        self._operation = operation
        self._run = module["run"]
        self._workspace_bytes = module["workspace_bytes"]
        fields, elements = str(module["describe"]()).split(";")
        self._kinds = dict(field.split(":") for field in fields.split(","))
        self._names = list(self._kinds)
        self.head_elements = int(elements)

    def _check(self, tensors):
        for name, value in tensors.items():
            if name not in self._kinds:
                raise ValueError(f"{self._operation}: there is no argument {name!r}; those are {', '.join(self._names)}.")
            _tensors.check(self._operation, name, value)

    def _arguments(self, tensors):
        return [_tensors.passed(name, tensors.get(name)) for name in self._names]

    def workspace_bytes(self, tensors, threads):
        self._check(tensors)
        return int(self._workspace_bytes(*self._arguments(tensors), None, threads))

    def call(self, tensors, threads, workspace=None):
        """Runs with outputs that are given and names that are right; allocates the workspace, if it is not given."""
        arguments = self._arguments(tensors)
        if workspace is None:
            size = self._workspace_bytes(*arguments, None, threads)
            workspace = _tensors.empty(_tensors.first_of(tensors), (size,), "uint8") if size > 0 else None
        self._run(*arguments, _tensors.passed("workspace", workspace), threads)

    def run(self, tensors, workspace, threads):
        tensors = dict(tensors)
        wanted = tensors.pop("wanted", ())
        self._check(tensors)
        self._allocate(tensors, wanted)
        _tensors.check(self._operation, "workspace", workspace)
        self.call(tensors, threads, workspace)
        return {name: tensors[name] for name, kind in self._kinds.items()
                if kind in ("output", "states") and tensors.get(name) is not None}

    def _allocate(self, tensors, wanted):
        """Makes the outputs that a call must have, and those that it asks for."""
        like = _tensors.first_of(tensors)
        first = tensors.get("query", tensors.get("input"))
        if self._operation in ("prefill", "decode_step", "staged_step") and tensors.get("output") is None and first is not None:
            shape = list(first.shape)
            if "value" in tensors:
                shape[-1] = tensors["value"].shape[-1]
            tensors["output"] = _tensors.empty(like, shape, self._operator.dtype)
        names = [wanted] if isinstance(wanted, str) else list(wanted)
        for name in names:
            if self._kinds.get(name) != "output":
                raise ValueError(f"{self._operation}: 'wanted' has {name!r}, which is no output of it.")
            if tensors.get(name) is None:
                tensors[name] = self._new_output(name, tensors, like)

    def _new_output(self, name, tensors, like):
        if name in ("denominators", "log_sum_exp"):
            first = tensors["query"]
            return _tensors.empty(like, [*first.shape[:-1], 1], _sum_dtype(self._operator.dtype))
        source = name.removesuffix("_gradient")
        if tensors.get(source) is None:
            raise ValueError(f"{self._operation}: 'wanted' has {name!r}, but there is no argument {source!r}.")
        return _tensors.empty(like, tensors[source].shape, self._operator.dtype)


def _sum_dtype(dtype):
    return "float64" if dtype == "float64" else "float32"


@functools.cache
def _load(operator, operation, target):
    """Equal operators share what is loaded."""
    path = _compile.library(target, f"{operator.key}.{operation}", operator._source(operation, target))
    return _Bound(operator, operation, tvm_ffi.load_module(str(path)))


def prebuild(operators, operations=None, target="cpu"):
    """Compiles operations (all, if None) of some operators for "cpu" or a GPU architecture, so that no later call does."""
    for operator in operators:
        operator.compile(*(operations or ()), target=target)
