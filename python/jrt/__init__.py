# SPDX-License-Identifier: Apache-2.0
"""jrt: kernels of recurrent language models that read twice, compiled on demand.

    op = jrt.Operator(kind="linear", dtype="float32", d=16, dv=64)   # prefix linear attention as published
    y = op.prefill(query=q, key=k, value=v, key_encoder=k, value_encoder=v)["output"]

An `Operator` is one combination of compile-time policies. Each of its operations is one small C++ file, compiled when it is
first called and kept in a cache folder. Tensors are anything that speaks DLPack (tried: NumPy, PyTorch); `jrt.torch` has
PyTorch functions with gradients. A `StatePool` has the states of the sequences that a server decodes.
"""

from jrt._calls import PortableKernelsWarning
from jrt._compile import CompileError, cache_folder
from jrt._operator import Operator, prebuild
from jrt._pool import StatePool

__all__ = ["CompileError", "Operator", "PortableKernelsWarning", "StatePool", "cache_folder", "prebuild"]
__version__ = "0.1.0"
