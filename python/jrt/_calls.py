# SPDX-License-Identifier: Apache-2.0
"""What was compiled: the functions of a library, and their arguments by name."""

import functools
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import tvm_ffi

from jrt import _compile, _tensors

if TYPE_CHECKING:
    from jrt._operator import Operator


class PortableKernelsWarning(UserWarning):
    """A call on a Hopper GPU runs on kernels that every GPU has, many times slower than Hopper's own would be."""


_ALIGNED = "if rows of all tensors are at multiples of 16 bytes"
_TAYLOR = f"bfloat16 and float16 with feature_map taylor2, d = 16 and dv a multiple of 8, {_ALIGNED}"
_HOPPER_SERVES = {
    ("linear", "prefill"): _TAYLOR,
    ("linear", "accumulate"): _TAYLOR,
    ("linear", "backward"): f"{_TAYLOR}: but bfloat16 alone, with a prefix or causal mask",
    ("hybrid", "prefill"): _TAYLOR,
    ("hybrid", "backward"): f"{_TAYLOR}: but bfloat16 alone",
    ("window", "prefill"): "bfloat16 and float16 with d and dv up to 128 in multiples of 16, windows of a few hundred keys, "
                           f"without rotation, {_ALIGNED}",
}
_READ_STATES = ("initial_state", "state", "final_state_gradient")  # what calls read and never write
_FEW_TOKENS = 64  # a window's kernel for Hopper takes no fewer


class Bound:
    """A compiled operation: its argument names, in order, and its functions."""

    def __init__(self, operator: "Operator", operation: str, target: str, module: Any) -> None:
        self._operator = operator
        self._operation = operation
        self._run = module["run"]
        self._workspace_bytes = module["workspace_bytes"]
        self._kernels = module["kernels"]
        fields, head_elements, staged_elements = str(module["describe"]()).split(";")
        names = [field.split(":")[0] for field in fields.split(",")]
        for name in names:
            if names.count(name) > 1 or name in ("workspace", "threads", "wanted"):
                raise ValueError(f"jrt.Operator: data has {name!r}, but {operation} has an argument of that name.")
        self._kinds = dict(field.split(":") for field in fields.split(","))
        self._names = list(self._kinds)
        self._written = [name for name, kind in self._kinds.items()
                         if kind == "output" or kind == "states" and name not in _READ_STATES]
        self._places = {name: place for place, name in enumerate(self._names)}
        self.head_elements = int(head_elements)
        self.staged_elements = int(staged_elements)
        self._may_disappoint = target == "90a" and (operator.kind, operation) in _HOPPER_SERVES

    def _check(self, tensors: Mapping[str, Any]) -> None:
        for name, value in tensors.items():
            kind = self._kinds.get(name)
            if kind is None:
                raise ValueError(f"{self._operation}: there is no argument {name!r}; those are {', '.join(self._names)}.")
            _tensors.check(self._operation, name, value, is_number=kind == "number")

    def _arguments(self, tensors: Mapping[str, Any]) -> list[Any]:
        arguments: list[Any] = [None] * len(self._names)
        for name, value in tensors.items():
            arguments[self._places[name]] = _tensors.passed(name, value, self._writes(name, tensors))
        return arguments

    def _writes(self, name: str, tensors: Mapping[str, Any]) -> bool:
        """Whether a call with these tensors writes one."""
        return name in self._written and not (name == "source" and tensors.get("destination") is not None)

    def workspace_bytes(self, tensors: Mapping[str, Any], threads: int) -> int:
        self._check(tensors)
        return int(self._workspace_bytes(*self._arguments(tensors), None, threads))

    def kernels(self, tensors: Mapping[str, Any], threads: int = 1) -> str:
        tensors = dict(tensors)
        wanted = tensors.pop("wanted", ())
        self._check(tensors)
        self._allocate(tensors, wanted)
        return str(self._kernels(*self._arguments(tensors), None, threads))

    def call(self, tensors: Mapping[str, Any], threads: int, workspace: Any = None) -> None:
        """Runs with outputs that are given and names that are right; allocates the workspace, if it is not given."""
        arguments = self._arguments(tensors)
        if self._may_disappoint:
            self._warn_of_portable_kernels(tensors, arguments, threads)
        if workspace is None:
            size = self._workspace_bytes(*arguments, None, threads)
            workspace = _tensors.empty(_tensors.first_of(tensors), (size,), "uint8") if size > 0 else None
        with _tensors.stream_of(_tensors.first_of(tensors)):
            self._run(*arguments, _tensors.passed("workspace", workspace, True), threads)

    def run(self, tensors: Mapping[str, Any], workspace: Any, threads: int) -> dict[str, Any]:
        tensors = dict(tensors)
        wanted = tensors.pop("wanted", ())
        self._check(tensors)
        self._allocate(tensors, wanted)
        _tensors.check(self._operation, "workspace", workspace)
        self.call(tensors, threads, workspace)
        return {name: tensors[name] for name in self._written
                if tensors.get(name) is not None and self._writes(name, tensors)}

    def _warn_of_portable_kernels(self, tensors: Mapping[str, Any], arguments: list[Any], threads: int) -> None:
        """Once for an operation of an operator."""
        if self._operator.kind == "window" and tensors["query"].shape[-3] < _FEW_TOKENS:
            return
        self._may_disappoint = False
        kernels = str(self._kernels(*arguments, None, threads))
        if "Hopper" not in kernels:
            serves = _HOPPER_SERVES[self._operator.kind, self._operation]
            warnings.warn(f"jrt: {self._operation} of {self._operator.key} runs on kernels that every GPU has ({kernels}), "
                          f"much slower than this Hopper GPU's own. Those serve {serves}.", PortableKernelsWarning,
                          stacklevel=5)

    def _allocate(self, tensors: dict[str, Any], wanted: Any) -> None:
        """Makes the outputs that a call must have, and those that it asks for."""
        like = _tensors.first_of(tensors)
        first = tensors.get("query", tensors.get("input"))
        try:
            names = [wanted] if isinstance(wanted, str) else list(wanted)
        except TypeError:
            raise ValueError(f"{self._operation}: 'wanted' is {wanted!r}, but must be names of outputs.") from None
        ranks = [len(tensors[name].shape) for name in ("query", "value", "input") if tensors.get(name) is not None]
        if any(rank not in (3, 4) for rank in ranks):
            return  # the operation refuses them
        # Rows that lie in no packed sequence are not written.
        new = _tensors.empty if tensors.get("cu_seqlens") is None else _tensors.zeros
        if self._operation in ("prefill", "decode_step", "staged_step") and tensors.get("output") is None and first is not None:
            shape = list(first.shape)
            if tensors.get("value") is not None:
                shape[-1] = tensors["value"].shape[-1]
            tensors["output"] = new(like, shape, self._operator.dtype)
        for name in names:
            if not isinstance(name, str) or self._kinds.get(name) != "output":
                raise ValueError(f"{self._operation}: 'wanted' has {name!r}, which is no output of it.")
            if tensors.get(name) is None:
                tensors[name] = self._new_output(name, tensors, like, new)

    def _new_output(self, name: str, tensors: Mapping[str, Any], like: Any, new: Callable[..., Any]) -> Any:
        if name in ("denominators", "log_sum_exp"):
            if tensors.get("query") is None:
                raise ValueError(f"{self._operation}: 'wanted' has {name!r}, but there is no argument 'query'.")
            return new(like, [*tensors["query"].shape[:-1], 1], self._operator.sum_dtype)
        source = name.removesuffix("_gradient")
        if tensors.get(source) is None:
            raise ValueError(f"{self._operation}: 'wanted' has {name!r}, but there is no argument {source!r}.")
        return new(like, tensors[source].shape, self._operator.dtype)


class BoundStates:
    """The compiled operations on states: their functions by name, and the sizes of a state."""

    def __init__(self, module: Any) -> None:
        self._module = module
        numbers = str(module["describe"]()).split(";")
        self.head_elements, self.staged_elements, self.dense_rows, self.columns = map(int, numbers)

    @functools.cache
    def function(self, name: str) -> Any:
        return self._module[name]


@functools.cache
def bound(operator: "Operator", operation: str, target: str) -> Bound:
    """An operation of an operator; equal operators share what is loaded."""
    module = load(f"{operator.key}.{operation}", operator.source_of(operation, target), target)
    return Bound(operator, operation, target, module)


@functools.cache
def bound_states(operator: "Operator", target: str) -> BoundStates:
    """The operations on states; operators whose states are the same share the library."""
    return BoundStates(load(f"states-{operator.state_key}", operator.source_of("states", target), target))


@functools.cache
def conversion(source: "Operator", destination: "Operator", target: str) -> Any:
    """`copy_states` from the states of one operator to those of another."""
    key = f"states-{source.state_key}.to.{destination.state_key}"
    return load(key, source.source_of_conversion(destination, target), target)["copy_states"]


def load(key: str, source: str, target: str) -> Any:
    path = _compile.library(target, key, source)
    try:
        return tvm_ffi.load_module(str(path))
    except Exception as error:
        raise _compile.CompileError(f"jrt: {path} cannot be loaded: {error}. Remove it, and it is compiled anew.") from error
