# SPDX-License-Identifier: Apache-2.0
"""Tensors of any framework: where they are, new ones like them, and how they reach compiled code."""

import contextlib
import functools
import numbers
import sys
import types
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any, Protocol

import tvm_ffi


_NO_STREAM = contextlib.nullcontext()


class Tensor(Protocol):
    """Anything with a shape that speaks DLPack: a tensor of PyTorch, an array of NumPy, CuPy, …"""

    @property
    def shape(self) -> Any: ...

    @property
    def __dlpack__(self) -> Callable[..., Any]: ...

    @property
    def __dlpack_device__(self) -> Callable[..., Any]: ...


@functools.cache
def _is_torch_type(kind: Hashable) -> bool:
    return getattr(kind, "__module__", "").split(".")[0] == "torch"


def _is_torch(tensor: Any) -> bool:
    return _is_torch_type(tensor.__class__)


def first_of(tensors: Mapping[str, Any]) -> Any:
    """The first tensor of a call."""
    for tensor in tensors.values():
        if hasattr(tensor, "__dlpack__") or isinstance(tensor, types.ModuleType):
            return tensor
    raise ValueError("jrt: the call has no tensor.")


def target_of(tensors: Mapping[str, Any]) -> str:
    """What the call's operation is compiled for: "cpu" or a GPU architecture. A framework itself stands for its default
    device."""
    first = first_of(tensors)
    if isinstance(first, types.ModuleType):
        first = empty(first, (), "float32")
    if _is_torch(first) and first.device.type == "cpu":
        return "cpu"
    kind, index = first.__dlpack_device__()
    if kind == 1:
        return "cpu"
    if kind == 2:
        return _architecture(index)
    raise ValueError(f"jrt: tensors are on DLPack device type {int(kind)}, but must be on the CPU or a CUDA device.")


@functools.cache
def _architecture(index: int) -> str:
    torch: Any = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability(index)
    else:
        try:
            import cupy  # type: ignore[import-not-found, unused-ignore]  # tensors on a GPU that are not PyTorch's
        except ImportError:
            raise ValueError("jrt: tensors are on a GPU whose architecture is not known; import torch, or install "
                             "cupy.") from None
        capability = cupy.cuda.Device(index).compute_capability
        major, minor = int(capability[:-1]), int(capability[-1])
    # Plain 90 would leave the kernels for Hopper out.
    return "90a" if (major, minor) == (9, 0) else f"{major}{minor}"


def empty(like: Any, shape: Iterable[int], dtype: str) -> Any:
    """A new tensor of the framework and on the device of `like`, a tensor or the framework itself."""
    shape = tuple(int(extent) for extent in shape)
    if _is_torch(like) or like is sys.modules.get("torch"):
        import torch

        return torch.empty(shape, dtype=getattr(torch, dtype), device=like.device if _is_torch(like) else None)
    module = _array_module(like)
    return module.empty(shape, dtype=_numpy_dtype(dtype))


def stream_of(tensor: Any) -> contextlib.AbstractContextManager[Any]:
    """A context whose calls run on the framework's current stream. PyTorch's tensors bring it with them."""
    if type(tensor).__module__.split(".")[0] != "cupy":
        return _NO_STREAM
    stream = sys.modules["cupy"].cuda.get_current_stream()
    return tvm_ffi.use_raw_stream(tvm_ffi.device("cuda", tensor.device.id), stream.ptr)


def count_of(operation: str, name: str, value: Any) -> int:
    """A number of things."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 0:
        raise ValueError(f"{operation}: {name} is {value!r}, but must be an int of at least 0.")
    return int(value)


def zeros(like: Any, shape: Iterable[int], dtype: str) -> Any:
    tensor = empty(like, shape, dtype)
    tensor[...] = 0
    return tensor


def int32(like: Any, numbers: Iterable[int]) -> Any:
    """A vector of them, on the device of `like`."""
    if _is_torch(like):
        import torch

        return torch.tensor(list(numbers), dtype=torch.int32, device=like.device)
    return _array_module(like).asarray(list(numbers), dtype="int32")


def _array_module(like: Any) -> Any:
    name = like.__name__ if isinstance(like, types.ModuleType) else type(like).__module__.split(".")[0]
    if name in ("numpy", "cupy"):
        return sys.modules[name]
    raise ValueError(f"jrt: tensors of {name} cannot be allocated here; give all outputs and the workspace.")


def _numpy_dtype(dtype: str) -> Any:
    if dtype != "bfloat16":
        return dtype
    try:
        import ml_dtypes
    except ImportError:
        raise ValueError("jrt: NumPy has no bfloat16; install ml_dtypes, or use PyTorch's tensors.") from None
    return ml_dtypes.bfloat16


def check(operation: str, name: str, value: Any, *, is_number: bool = False) -> None:
    """Whether a value can be an argument at all."""
    is_good = isinstance(value, numbers.Real) and not isinstance(value, bool) if is_number else hasattr(value, "__dlpack__")
    if value is not None and not is_good:
        raise ValueError(f"{operation}: argument {name!r} is a {type(value).__name__}, but must be "
                         f"{'a number' if is_number else 'a tensor'} or None.")


def passed(name: str, value: Any, written: bool = False) -> Any:
    """A value as the binding takes it; `written`, if the call writes it."""
    if value is None or isinstance(value, (int, float)):
        return value
    if isinstance(value, numbers.Real):  # NumPy's
        return int(value) if isinstance(value, numbers.Integral) else float(value)
    if _is_torch(value):
        if not value.requires_grad:
            return value
        if written and sys.modules["torch"].is_grad_enabled():
            raise ValueError(f"jrt: argument {name!r} requires a gradient, but the call writes it where autograd does not see "
                             "it; pass a tensor that requires none, or call under torch.no_grad().")
        return value.detach()
    dtype: Any = getattr(value, "dtype", None)
    if getattr(dtype, "kind", "") == "V" and dtype.name == "bfloat16":
        value = value.view("uint16")  # DLPack of NumPy does not know the type: the bits pass
    try:
        return tvm_ffi.from_dlpack(value)
    except BufferError as error:
        interface = getattr(value, "__array_interface__", None)
        if interface is not None and interface["data"][1]:  # NumPy's DLPack has no read-only tensors
            if written:
                raise ValueError(f"jrt: argument {name!r} is a read-only array, but the call writes it.") from None
            return passed(name, _writable_view(value, interface))
        raise ValueError(f"jrt: argument {name!r} cannot be passed on: {error}") from error


def _writable_view(array: Any, interface: dict[str, Any]) -> Any:
    """A read-only array of NumPy as one that passes by DLPack; nobody writes it."""
    import numpy

    view = types.SimpleNamespace(__array_interface__=interface | {"data": (interface["data"][0], False)}, array=array)
    return numpy.asarray(view)
