# SPDX-License-Identifier: Apache-2.0
"""Tensors of any framework: where they are, new ones like them, and how they reach compiled code."""

import functools
import sys

import tvm_ffi


@functools.cache
def _is_torch_type(kind):
    return kind.__module__.split(".")[0] == "torch"


def _is_torch(tensor):
    return _is_torch_type(type(tensor))


def first_of(tensors):
    """The first tensor of a call."""
    for tensor in tensors.values():
        if hasattr(tensor, "__dlpack__"):
            return tensor
    raise ValueError("jrt: the call has no tensor.")


def target_of(tensors):
    """What the call's operation is compiled for: "cpu" or a GPU architecture."""
    first = first_of(tensors)
    if _is_torch(first) and first.device.type == "cpu":
        return "cpu"
    kind, index = first.__dlpack_device__()
    if kind == 1:
        return "cpu"
    if kind == 2:
        return _architecture(index)
    raise ValueError(f"jrt: tensors are on DLPack device type {int(kind)}, but must be on the CPU or a CUDA device.")


@functools.cache
def _architecture(index):
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability(index)
    else:
        try:
            import cupy  # tensors on a GPU that are not PyTorch's
        except ImportError:
            raise ValueError("jrt: tensors are on a GPU whose architecture is not known; import torch, or install "
                             "cupy.") from None
        capability = cupy.cuda.Device(index).compute_capability
        major, minor = int(capability[:-1]), int(capability[-1])
    # Plain 90 would leave the kernels for Hopper out.
    return "90a" if (major, minor) == (9, 0) else f"{major}{minor}"


def empty(like, shape, dtype):
    """A new tensor of the framework and on the device of `like`."""
    shape = tuple(int(extent) for extent in shape)
    if _is_torch(like):
        import torch

        return torch.empty(shape, dtype=getattr(torch, dtype), device=like.device)
    module = _array_module(like)
    return module.empty(shape, dtype=dtype)


def zeros(like, shape, dtype):
    tensor = empty(like, shape, dtype)
    tensor[...] = 0
    return tensor


def _array_module(like):
    name = type(like).__module__.split(".")[0]
    if name in ("numpy", "cupy"):
        return sys.modules[name]
    raise ValueError(f"jrt: outputs of {name} tensors cannot be allocated here; give all outputs and the workspace.")


def check(operation, name, value):
    """Whether a value can be an argument at all."""
    if value is not None and not isinstance(value, (int, float)) and not hasattr(value, "__dlpack__"):
        raise ValueError(f"{operation}: argument {name!r} is a {type(value).__name__}, but must be a tensor, a number or None.")


def passed(name, value):
    """A value as the binding takes it."""
    if value is None or isinstance(value, (int, float)):
        return value
    if _is_torch_type(type(value)):
        return value.detach() if value.requires_grad else value
    try:
        return tvm_ffi.from_dlpack(value)
    except BufferError as error:
        raise ValueError(f"jrt: argument {name!r} cannot be passed on: {error}") from error
