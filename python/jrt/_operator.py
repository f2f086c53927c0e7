# SPDX-License-Identifier: Apache-2.0
"""Operators: what is compiled."""

import dataclasses
import functools
import hashlib
import numbers
import os
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from jrt import _calls
from jrt._operations import Operations

_ELEMENTS = {"float32": "float", "float64": "double", "float16": "jrt::Half", "bfloat16": "jrt::BFloat16"}
# C++ type, header, and the run-time data that calls pass.
_FEATURE_MAPS = {
    "taylor2": ("jrt::Taylor2<{d}>", "jrt/policy/taylor.hpp", ""),
    "taylor2_dense": ("jrt::Taylor2<{d}, jrt::DensePacking>", "jrt/policy/taylor.hpp", ""),
    "identity": ("jrt::Identity<{d}>", "jrt/policy/elementwise_maps.hpp", ""),
    "elu": ("jrt::EluPlusOne<{d}>", "jrt/policy/elementwise_maps.hpp", ""),
    "relu": ("jrt::Relu<{d}>", "jrt/policy/elementwise_maps.hpp", ""),
    "square": ("jrt::Square<{d}>", "jrt/policy/elementwise_maps.hpp", ""),
    "softmax_halves": ("jrt::SoftmaxHalves<{d}>", "jrt/policy/softmax_halves.hpp", ""),
    "favor": ("jrt::FavorPlus<{d}, {features}>", "jrt/policy/favor.hpp", "projection[{features}, {d}]"),
    "cosformer": ("jrt::CosFormer<{d}>", "jrt/policy/cosformer.hpp", "horizon"),
}
_MASKS = {"prefix": "jrt::PrefixMask", "causal": "jrt::CausalMask", "full": "jrt::FullMask"}
_NORMALISERS = {"sum": "jrt::SumNormaliser<>", "none": "jrt::Unnormalised"}
_PADDINGS = {"drop": "jrt::DropPadding", "zero_keys": "jrt::ZeroKeyPadding"}
_PRODUCTS = {"float": "jrt::FloatProducts", "split": "jrt::SplitProducts"}
_ACTIVATIONS = {"silu": "jrt::Silu", "none": "jrt::NoActivation"}
_HEADERS = {"linear": "linear_attention", "window": "window_attention", "convolution": "gated_convolution",
            "hybrid": "hybrid_attention"}
_OPERATIONS = {
    "linear": ("prefill", "backward", "accumulate", "decode_step", "staged_step", "commit", "states"),
    "window": ("prefill", "backward", "decode_step", "staged_step", "commit", "states"),
    "convolution": ("prefill", "backward", "decode_step", "staged_step", "commit", "states"),
    "hybrid": ("prefill", "backward", "decode_step", "staged_step", "commit", "states"),
}
_MOST = 2**31 - 1  # of an int of C++
_TARGET = re.compile(r"cpu|\d{2,3}[af]?")
_DATA = re.compile(r"\s*([A-Za-z_]\w*)\s*(?:\[\s*(\d+(?:\s*,\s*\d+)*)\s*\])?\s*(?:,|$)")


def _choice(name: str, value: str, choices: dict[str, Any]) -> Any:
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"jrt.Operator: {name} is {value!r}, but must be one of {', '.join(map(repr, choices))}.")
    return choices[value]


def _sum_dtype(dtype: str) -> str:
    return "float64" if dtype == "float64" else "float32"


def _parsed_data(data: str) -> list[tuple[str, str]]:
    """Names and extents of "temperature, table[32, 16]"."""
    members = []
    position = 0
    while position < len(data):
        found = _DATA.match(data, position)
        if found is None:
            raise ValueError(f"jrt.Operator: data is {data!r}, but must name members of the feature map, arrays with their "
                             "extents: 'temperature, table[32, 16]'.")
        members.append((found[1], found[2] or ""))
        position = found.end()
    return members


@dataclasses.dataclass(frozen=True, kw_only=True)
class Operator(Operations):
    """One operator: a mixer and its compile-time policies. Immutable and hashable; equal operators share their libraries.

    kind          "linear" (prefix linear attention, Based), "window" (sliding window), "convolution" (gated, short) or
                  "hybrid" (linear attention and a window under one normaliser)
    dtype         of inputs and outputs: "float32", "float64", "float16" or "bfloat16"
    d, dv         dimensions of queries and keys, and of values; not for a convolution. dv defaults to d for a window, else 64
    feature_map   linear, hybrid: "taylor2", "taylor2_dense" (the same with the authors' rows of states), "identity", "elu",
                  "relu", "square", "softmax_halves", "favor" (Performer; calls pass `projection`), "cosformer" (calls pass
                  `horizon`), or the name of a struct in `source`
    features      of "favor": how many random features
    mask          linear, hybrid: "prefix", "causal" or "full"
    normaliser    linear: "sum" or "none"
    padding       linear: "drop" or "zero_keys"
    products      linear: "float", or "split": a prefill of float32 on a GPU's matrix units, some five times as fast, with errors
                  of some 5e-6 instead of 1e-6; it changes nothing for 16 bits, on the CPU, in decode steps and gradients
    state_dtype   linear, hybrid: type in which states are kept; "float32" (for float64 "float64") by default
    left_window   window, hybrid: keys seen to the left of the query
    rotary        window: whether queries and keys are rotated by their positions
    kernel_width  convolution: taps, from 2 to 8
    activation    convolution: "silu" or "none"
    source        C++ that defines a feature map of your own (docs/policies.md); its dimensions are its own
    data          run-time data of that map: members that calls pass by name, arrays (pointers) with their extents, as
                  "temperature, table[32, 16]"

    Operations are methods with keyword arguments, named as the fields of the C++ argument structs (docs/interface.md):
    tensors of shape (batch, tokens, heads, dim), or packed (tokens, heads, dim) with `cu_seqlens`. Outputs may be given; what
    is left out is allocated like the first tensor, if a call needs it. `workspace` is a vector of uint8, allocated if left
    out; give one, and all outputs, and a call allocates nothing and can be captured in a CUDA graph. On the CPU `threads` is
    the number of threads. A call returns a dictionary of the tensors that it wrote. While it runs, other threads of Python
    run, too. Of PyTorch's tensors no gradients are recorded: `jrt.torch` has functions that do.

    Errors: ValueError with the library's sentence, that names the argument and both values; `CompileError`."""

    kind: str = "linear"
    dtype: str = "float32"
    d: int = 16
    dv: int | None = None
    feature_map: str = "taylor2"
    features: int | None = None
    mask: str = "prefix"
    normaliser: str = "sum"
    padding: str = "drop"
    products: str = "float"
    state_dtype: str | None = None
    left_window: int = 128
    rotary: bool = False
    kernel_width: int = 3
    activation: str = "silu"
    source: str | None = None
    data: str | None = None

    def __post_init__(self) -> None:
        _choice("kind", self.kind, _OPERATIONS)
        _choice("dtype", self.dtype, _ELEMENTS)
        _choice("mask", self.mask, _MASKS)
        _choice("normaliser", self.normaliser, _NORMALISERS)
        _choice("padding", self.padding, _PADDINGS)
        _choice("products", self.products, _PRODUCTS)
        if self.products == "split" and self.dtype == "float64":
            raise ValueError("jrt.Operator: products is 'split', but dtype is 'float64', whose numbers are longer than two parts.")
        _choice("activation", self.activation, _ACTIVATIONS)
        if self.state_dtype is None:
            object.__setattr__(self, "state_dtype", self.sum_dtype)
        _choice("state_dtype", str(self.state_dtype), _ELEMENTS)
        for name in ("feature_map", "source", "data"):
            value = getattr(self, name)
            if not isinstance(value, str) and (value is not None or name == "feature_map"):
                raise ValueError(f"jrt.Operator: {name} is {value!r}, but must be a str.")
        if self.source is None and self.kind in ("linear", "hybrid"):
            _choice("feature_map", self.feature_map, _FEATURE_MAPS)
        elif self.source is not None and not re.fullmatch(r"[A-Za-z_]\w*(::\w+)*", self.feature_map):
            raise ValueError(f"jrt.Operator: feature_map is {self.feature_map!r}, but must be the name of a struct in source.")
        if self.data is not None and self.source is None:
            raise ValueError(f"jrt.Operator: data is {self.data!r}, but without source no feature map of your own can have it.")
        _parsed_data(self.data or "")
        if self.dv is None:
            object.__setattr__(self, "dv", self.d if self.kind == "window" else 64)
        uses_features = self.feature_map == "favor" and self.source is None
        if uses_features != (self.features is not None):
            raise ValueError(f"jrt.Operator: features is {self.features!r}, but " +
                             ("feature_map 'favor' needs an int." if uses_features else "only feature_map 'favor' has them."))
        for name, least, most in (("d", 1, _MOST), ("dv", 1, _MOST), ("features", 1, _MOST), ("left_window", 0, _MOST),
                                  ("kernel_width", 2, 8)):
            value = getattr(self, name)
            if isinstance(value, numbers.Integral) and not isinstance(value, bool):  # NumPy's, too
                value = int(value)
                object.__setattr__(self, name, value)
            if not (name == "features" and value is None) and (type(value) is not int or not least <= value <= most):
                raise ValueError(f"jrt.Operator: {name} is {value!r}, but must be an int of at least {least}" +
                                 (f" and at most {most}." if most < _MOST or type(value) is int and value > most else "."))
        if not isinstance(self.rotary, bool):
            raise ValueError(f"jrt.Operator: rotary is {self.rotary!r}, but must be True or False.")
        if self.kind == "window" and self.rotary and self.d % 2 != 0:
            raise ValueError(f"jrt.Operator: d is {self.d}, but must be even with rotary, which turns pairs.")

    def __getstate__(self) -> dict[str, Any]:
        """The settings, for pickle and copy; what is loaded stays in its process."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    # -- what is compiled ------------------------------------------------------------------------------------------------

    @property
    def operations(self) -> tuple[str, ...]:
        """What can be compiled; "states" is all operations on states."""
        return _OPERATIONS[self.kind]

    @property
    def sum_dtype(self) -> str:
        """Type in which sums are formed, and of denominators and log_sum_exp."""
        return _sum_dtype(self.dtype)

    @functools.cached_property
    def key(self) -> str:
        """A readable name of the operator, different for different operators."""
        parts = [self.kind, self.dtype, *self._dimensions()]
        if self.kind in ("linear", "hybrid"):
            parts += [self.mask] + ([f"state_{self.state_dtype}"] if self.state_dtype != self.sum_dtype else [])
        if self.kind == "linear":
            parts += [f"normaliser_{self.normaliser}"] if self.normaliser != "sum" else []
            parts += [f"padding_{self.padding}"] if self.padding != "drop" else []
            parts += [f"products_{self.products}"] if self.products != "float" else []
        parts += [f"left{self.left_window}"] if self.kind in ("window", "hybrid") else []
        parts += [self.activation] if self.kind == "convolution" else []
        if self.source is not None:
            parts.append(hashlib.sha256(f"{self.source}\0{self.data or ''}".encode()).hexdigest()[:16])
        return "-".join(parts)

    @functools.cached_property
    def state_key(self) -> str:
        """A readable name of what its states are: operators with the same one can use each other's."""
        parts = [self.kind, *self._dimensions()]
        if self.kind in ("linear", "hybrid"):
            parts.append(str(self.state_dtype))
        if self.kind != "linear":
            parts.append(self.dtype)
        parts += [f"left{self.left_window}"] if self.kind in ("window", "hybrid") else []
        if self.source is not None:
            parts.append(hashlib.sha256(self.source.encode()).hexdigest()[:16])
        return "-".join(parts)

    def _dimensions(self) -> list[str]:
        if self.kind == "convolution":
            return [f"taps{self.kernel_width}"]
        if self.kind == "window":
            return [f"d{self.d}", f"dv{self.dv}"] + (["rotary"] if self.rotary else [])
        features = [] if self.features is None else [f"features{self.features}"]
        return [f"d{self.d}", f"dv{self.dv}", self.feature_map.replace("::", "."), *features]

    def _feature_map(self) -> tuple[str, list[str], str]:
        """C++ type, headers and run-time data."""
        if self.source is not None:
            return self.feature_map, [], self.data or ""
        name, header, data = (text.format(d=self.d, features=self.features) for text in _FEATURE_MAPS[self.feature_map])
        return name, [header], data

    def _config(self, name: str = "Operator") -> str:
        """The C++ struct of policies."""
        element = _ELEMENTS[self.dtype]
        if self.kind == "convolution":
            return (f"struct {name} : jrt::GatedConvolution<{element}, {self.kernel_width}> {{\n"
                    f"  using Activation = {_ACTIVATIONS[self.activation]};\n}};\n")
        if self.kind == "window":
            body = f"struct {name} : jrt::SlidingWindowAttention<{element}, {self.d}, {self.left_window}> {{\n"
            body += f"  static constexpr int value_dim = {self.dv};\n"
            body += f"  using Rotary = jrt::RotaryHalves<{self.d}>;\n" if self.rotary else ""
            return body + "};\n"
        linear = name if self.kind == "linear" else f"{name}Linear"
        body = (f"struct {linear} : jrt::PrefixLinearAttention<{element}, {self.d}, {self.dv}> {{\n"
                f"  using FeatureMap = {self._feature_map()[0]};\n  using Mask = {_MASKS[self.mask]};\n"
                f"  using StateScalar = {_ELEMENTS[str(self.state_dtype)]};\n")
        if self.kind == "linear":
            body += f"  using Normaliser = {_NORMALISERS[self.normaliser]};\n  using Padding = {_PADDINGS[self.padding]};\n"
            body += f"  using Products = {_PRODUCTS[self.products]};\n"
            return body + "};\n"
        return (f"{body}}};\nusing {name} = jrt::HybridAttention<{linear}, jrt::WindowBeside<{linear}, {self.left_window}>>;\n")

    def _map_members(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Names of the feature map's run-time data: arrays and numbers."""
        members = _parsed_data(self._feature_map()[2]) if self.kind in ("linear", "hybrid") else []
        return tuple(name for name, extents in members if extents), tuple(name for name, extents in members if not extents)

    def _map_headers(self) -> list[str]:
        return self._feature_map()[1] if self.kind in ("linear", "hybrid") else []

    def _map_data(self) -> str:
        """C++ that tells the binding what run-time data the feature map has."""
        if self.kind not in ("linear", "hybrid"):
            return ""
        name, _, data = self._feature_map()
        visits = [f"    visitor.map_array(\"{member}\", map.{member}, {{{extents}}});" if extents else
                  f"    visitor(\"{member}\", map.{member});" for member, extents in _parsed_data(data)]
        if not visits:
            return ""
        return "\n".join([f"template <>\nstruct jrt::bind::MapData<{name}> {{", "  template <class Map, class Visitor>",
                          "  static void visit(Map& map, Visitor& visitor) {", *visits, "  }\n};"])

    def source_of(self, operation: str, target: str) -> str:
        """The C++ file that is compiled for an operation, or for "states"."""
        if operation == "states":
            export = "JRT_BIND_EXPORT_SUMS(Operator)" if self.kind == "linear" else "JRT_BIND_EXPORT_STATES(Operator)"
            return _file(f"states of {self.state_key}", [f"jrt/mixer/{_HEADERS[self.kind]}.hpp", *self._map_headers(),
                                                         "jrt_bind/states.hpp"],
                         ["namespace {", self.source or "", self._config() + "}  // namespace", export])
        backend = f"jrt/cpu/{_HEADERS[self.kind]}.hpp" if target == "cpu" else f"jrt/cuda/{_HEADERS[self.kind]}.cuh"
        return _file(f"{operation} of {self.key}", [backend, *self._map_headers(), "jrt_bind/export.hpp"],
                     ["namespace {", self.source or "", self._config() + "}  // namespace", self._map_data(),
                      f"JRT_BIND_EXPORT(Operator, {operation})"])

    def source_of_conversion(self, destination: "Operator", target: str) -> str:
        """The C++ file that is compiled for `copy_states` to another operator's states."""
        sources = list(dict.fromkeys(operator.source or "" for operator in (self, destination)))
        return _file(f"states of {self.state_key} to {destination.state_key}",
                     [f"jrt/mixer/{_HEADERS[self.kind]}.hpp", *self._map_headers(), "jrt_bind/states.hpp"],
                     ["namespace {", *sources, self._config("Source") + destination._config("Destination") + "}  // namespace",
                      "JRT_BIND_EXPORT_CONVERSION(Source, Destination)"])

    def compile(self, *operations: str, target: str = "cpu") -> None:
        """Compiles operations (all, if none is named) for "cpu" or a GPU architecture ("90a", "80"), if the cache has not.
        "states" are all operations on states."""
        if not _TARGET.fullmatch(target):
            raise ValueError(f"jrt.Operator: target is {target!r}, but must be 'cpu' or a GPU architecture, as '90a' or '80'.")
        if target == "90":
            raise ValueError("jrt.Operator: target is '90', which leaves Hopper's own kernels out; use '90a'.")
        for operation in operations or self.operations:
            if operation == "states":
                _calls.bound_states(self, target)
            else:
                self._bound(operation, target)

    @functools.cached_property
    def _bounds(self) -> dict[tuple[str, str], _calls.Bound]:
        return {}

    def _bound(self, operation: str, target: str) -> _calls.Bound:
        bound = self._bounds.get((operation, target))
        if bound is not None:
            return bound
        if operation not in self.operations or operation == "states":
            raise ValueError(f"jrt.Operator: {operation!r} is no operation of {self.kind!r}; "
                             f"those are {', '.join(self.operations)}.")
        return self._bounds.setdefault((operation, target), _calls.bound(self, operation, target))


def _file(title: str, headers: list[str], lines: list[str]) -> str:
    includes = [f"#include \"{name}\"" for name in dict.fromkeys(headers)]
    return "\n".join([f"// {title}", *includes, *(line for line in lines if line)]) + "\n"


def prebuild(operators: Operator | Iterable[Operator], operations: str | Iterable[str] | None = None,
             target: str = "cpu", *, at_once: int | None = None) -> None:
    """Compiles operations (all, if None) of some operators for "cpu" or a GPU architecture, so that no later call does:
    `at_once` at a time, by default one for each core that the process may use.

    Errors: as `Operator.compile`; the first, after what was being compiled has ended."""
    operations = (operations,) if isinstance(operations, str) else tuple(operations or ())
    at_once = len(os.sched_getaffinity(0)) if at_once is None else at_once
    if type(at_once) is not int or at_once < 1:
        raise ValueError(f"jrt.prebuild: at_once is {at_once!r}, but must be an int of at least 1.")
    with ThreadPoolExecutor(at_once) as workers:
        started = [workers.submit(operator.compile, operation, target=target)
                   for operator in ([operators] if isinstance(operators, Operator) else operators)
                   for operation in operations or operator.operations]
        try:
            for each in started:
                each.result()
        except BaseException:
            workers.shutdown(cancel_futures=True)
            raise
