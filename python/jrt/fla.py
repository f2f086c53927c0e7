# SPDX-License-Identifier: Apache-2.0
"""jrt as a backend of flash-linear-attention: models written for it run on jrt's kernels.

    import jrt.fla                                   # before the model; FLA_JRT=0 in the environment switches it off
    python3 -m jrt.fla train.py …                    # the same for a program that is left as it is
    python3 -m jrt.fla -m pytest tests/ops …         # or for a module

Importing it puts fla's dispatch in front of these functions, wherever fla has them, and registers jrt there:

    fla.ops.based.parallel_based, fused_chunk_based                    weights 1 + s + s²/2
    fla.ops.linear_attn.chunk_linear_attn, fused_chunk_linear_attn     weights s, with states and their gradients

Calls that jrt does not take (see `_refusal`) go to fla's own kernels; fla logs the reason once, at the level INFO. Differences:
a normaliser's ε is 1e-12 (fla: 1e-6 for the former, 1e-10 for the latter), sums and states are float32 throughout, and
everything works on the CPU, too. Tried with fla 0.6.0; 0.5 has the same interface in another module.
"""

import math
import runpy
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import jrt.torch

try:
    import fla.ops.based
    import fla.ops.linear_attn
except ImportError as error:
    raise ImportError("jrt.fla needs flash-linear-attention: pip install flash-linear-attention") from error
try:
    from fla import backends
except ImportError:
    from fla.ops import backends

__all__ = ["FlaBackend"]

_TYPES = (torch.float16, torch.bfloat16, torch.float32)
# Features of Taylor's map grow with d²; beyond this fla's quadratic kernel has less to do in sequences of usual lengths.
_LARGEST_TAYLOR_DIM = 32
# What a chunk of the GPU's backward pass has shared memory for: K + V.
_LARGEST_SUM = 480

# Features that the caller has made; whoever asks for a normaliser promises that their products do not sum to zero.
_FEATURES = """
#ifdef __CUDACC__
#define JRT_FLA_BOTH __host__ __device__
#else
#define JRT_FLA_BOTH
#endif
struct Features {
  static constexpr int input_dim = %d;
  static constexpr int feature_dim = input_dim;
  static constexpr const char* name = "identity";
  static constexpr bool nonnegative_kernel = true;
  static constexpr bool has_closed_form = true;
  static constexpr bool needs_position = false;
  template <class T>
  JRT_FLA_BOTH T kernel(T dot) const { return dot; }
  template <class T>
  JRT_FLA_BOTH T kernel_derivative(T) const { return T(1); }
  template <class T>
  JRT_FLA_BOTH void expand(const T* x, T* features) const {
    for (int i = 0; i < input_dim; ++i) features[i] = x[i];
  }
  template <class T>
  JRT_FLA_BOTH void expand_vjp(const T*, const T* features_gradient, T* x_gradient) const {
    for (int i = 0; i < input_dim; ++i) x_gradient[i] = features_gradient[i];
  }
};
"""


def _refusal(q: Tensor, k: Tensor, v: Tensor, largest: int) -> str | None:
    """Why jrt does not take these tensors; None if it does."""
    if q.ndim != 4 or q.shape != k.shape or v.shape[:-1] != k.shape[:-1]:
        return f"shapes {tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)} are not [B, T, H, K] twice and [B, T, H, V]"
    if q.dtype not in _TYPES or k.dtype != q.dtype or v.dtype != q.dtype:
        return f"types {q.dtype}, {k.dtype}, {v.dtype} are not one of float16, bfloat16 and float32"
    if q.shape[-1] > largest or q.shape[-1] + v.shape[-1] > _LARGEST_SUM:
        return f"K is {q.shape[-1]} and V {v.shape[-1]}, but K is at most {largest} and K + V at most {_LARGEST_SUM}"
    if q.device.type not in ("cpu", "cuda") or torch.version.hip is not None:
        return f"tensors are on {q.device}"
    return None


def _verified(reason: str | None) -> tuple[bool, str | None]:
    return reason is None, reason


def _based(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None, use_norm: bool = True) -> Tensor:
    if scale is not None and not math.isclose(scale, q.shape[-1] ** -0.5):
        q = q * (scale * q.shape[-1] ** 0.5)
    with torch.autocast(q.device.type, enabled=False):
        return jrt.torch.prefix_linear_attention(q, k, v, mask="causal", normaliser="sum" if use_norm else "none")


def _states(initial_state: Any, normalize: bool) -> tuple[Any, Any]:
    return initial_state if normalize and isinstance(initial_state, tuple) else (initial_state, None)


def _linear(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None, initial_state: Any = None,
            output_final_state: bool = False, normalize: bool = True, cu_seqlens: Tensor | None = None) -> tuple[Any, Any]:
    dim, value_dim = q.shape[-1], v.shape[-1]
    scale = dim ** -0.5 if scale is None else scale
    sums = dim * value_dim
    elements = math.ceil((sums + dim) / 16) * 16  # of a head's state: S, then z, then padding
    if cu_seqlens is not None:
        q, k, v = q[0], k[0], v[0]
        cu_seqlens = cu_seqlens.to(torch.int32)
    state, key_sum = _states(initial_state, normalize)
    if state is not None or key_sum is not None:
        shape = state.shape[:2] if state is not None else (key_sum.shape[0], key_sum.shape[2])
        parts = [q.new_zeros((*shape, sums), dtype=torch.float32) if state is None else state.float().flatten(-2),
                 q.new_zeros((*shape, dim), dtype=torch.float32) if key_sum is None else key_sum[:, 0].float(),
                 q.new_zeros((*shape, elements - sums - dim), dtype=torch.float32)]
        state = torch.cat(parts, dim=-1)
    # A normalised output does not depend on the scale.
    kind: dict[str, Any] = ({"feature_map": "Features", "source": _FEATURES % dim} if normalize else
            {"feature_map": "identity", "normaliser": "none"})
    with torch.autocast(q.device.type, enabled=False):
        result = jrt.torch.prefix_linear_attention(q if normalize or scale == 1 else q * scale, k, v, mask="causal", **kind,
                                                   cu_seqlens=cu_seqlens, initial_state=state,
                                                   return_state=output_final_state or normalize)
    output, final = result if isinstance(result, tuple) else (result, None)
    if cu_seqlens is not None:
        output = output[None]
    state = final[..., :sums].unflatten(-1, (dim, value_dim)) if output_final_state else None
    if not normalize:
        return output, state
    return output, (state, final[..., sums:sums + dim].unsqueeze(1).to(k.dtype))


def _refusal_of_linear(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None, initial_state: Any = None,
                       output_final_state: bool = False, normalize: bool = True,
                       cu_seqlens: Tensor | None = None) -> str | None:
    reason = _refusal(q, k, v, _LARGEST_SUM)
    if reason is None and cu_seqlens is not None and q.shape[0] != 1:
        reason = f"there are cu_seqlens, but {q.shape[0]} batch rows"
    if reason is None and q.shape[1] == 0:
        reason = "there are no tokens"
    if reason is None and initial_state is not None:
        state, key_sum = _states(initial_state, normalize)
        rows = q.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
        expected = ((rows, q.shape[2], q.shape[3], v.shape[3]), (rows, 1, q.shape[2], q.shape[3]))
        for tensor, shape in zip((state, key_sum), expected):
            if tensor is not None and tensor.shape != shape:
                reason = f"a state has the shape {tuple(tensor.shape)}, not {shape}"
    return reason


class FlaBackend(backends.BaseBackend):
    """jrt, as fla's dispatch asks for backends: a function and its verifier for each of its functions."""

    backend_type = "jrt"
    package_name = "jrt"
    env_var = "FLA_JRT"
    priority = 1

    parallel_based = staticmethod(_based)
    fused_chunk_based = staticmethod(_based)
    chunk_linear_attn = staticmethod(_linear)
    fused_chunk_linear_attn = staticmethod(_linear)

    @staticmethod
    def parallel_based_verifier(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None,
                                use_norm: bool = True) -> tuple[bool, str | None]:
        return _verified(_refusal(q, k, v, _LARGEST_TAYLOR_DIM))

    @staticmethod
    def fused_chunk_based_verifier(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None,
                                   use_norm: bool = True) -> tuple[bool, str | None]:
        return _verified(_refusal(q, k, v, _LARGEST_TAYLOR_DIM))

    @staticmethod
    def chunk_linear_attn_verifier(*args: Any, **kwargs: Any) -> tuple[bool, str | None]:
        return _verified(_refusal_of_linear(*args, **kwargs))

    @staticmethod
    def fused_chunk_linear_attn_verifier(*args: Any, **kwargs: Any) -> tuple[bool, str | None]:
        return _verified(_refusal_of_linear(*args, **kwargs))


def _dispatched(operation: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function behind fla's dispatch, where jrt is registered."""
    if hasattr(backends, "register"):  # 0.6: a registry for each function
        wrapper = backends.dispatch(function)
        backends.register(function)(FlaBackend)
        return wrapper
    registry = backends.BackendRegistry._registries.get(operation) or backends.BackendRegistry(operation)
    registry.register(FlaBackend())
    return backends.dispatch(operation)(function)


def _install() -> None:
    """Puts dispatch in front of fla's functions, in all of its modules that are loaded."""
    for operation, module, names in (("based", fla.ops.based, ("parallel_based", "fused_chunk_based")),
                                     ("linear_attn", fla.ops.linear_attn, ("chunk_linear_attn", "fused_chunk_linear_attn"))):
        for name in names:
            function = getattr(module, name)
            wrapper = _dispatched(operation, function)
            for loaded in [loaded for key, loaded in sys.modules.items() if key.split(".")[0] == "fla"]:
                if vars(loaded).get(name) is function:
                    setattr(loaded, name, wrapper)


def _main(arguments: list[str]) -> None:
    if not arguments or (arguments[0] == "-m" and len(arguments) < 2):
        raise SystemExit("usage: python3 -m jrt.fla PROGRAM.py … | -m MODULE …")
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")


if __name__ == "__main__":
    import jrt.fla  # noqa: F401  installs once, under its own name

    _main(sys.argv[1:])
else:
    _install()
