# SPDX-License-Identifier: Apache-2.0
"""The package on a CUDA device, with tensors of PyTorch and arrays of CuPy."""

import os
import pathlib
import subprocess
import sys
import warnings

import jrt
import numpy as np
import pytest
from operators import inputs
from reference import error, feature_attention, linear_attention

torch = pytest.importorskip("torch")
if not torch.cuda.is_available():
    pytest.skip("no CUDA device", allow_module_level=True)

ON_HOPPER = torch.cuda.get_device_capability() == (9, 0)
LINEAR = jrt.Operator(dtype="bfloat16", d=16, dv=64)


def on_gpu(tensors, dtype=torch.bfloat16):
    return {name: torch.from_numpy(tensor).to("cuda", dtype) for name, tensor in tensors.items()}


def int32(*numbers):
    return torch.tensor(numbers, dtype=torch.int32, device="cuda")


def as_numpy(tensor):
    return tensor.double().cpu().numpy()


def test_kernels_that_serve_a_call():
    tensors = on_gpu(inputs(tokens=300, prefix=0))
    tensors = {name: tensors[name] for name in ("query", "key", "value")}
    fast = "Hopper (sm_90a)" if ON_HOPPER else "portable, matrix units"
    assert LINEAR.kernels("prefill", **tensors) == fast
    odd = torch.empty(tensors["query"].numel() + 1, dtype=torch.bfloat16, device="cuda")[1:].view(tensors["query"].shape)
    assert LINEAR.kernels("prefill", **dict(tensors, query=odd)) == "portable, matrix units"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        output = LINEAR.prefill(**tensors)["output"]
    assert error(as_numpy(output), linear_attention(*map(as_numpy, tensors.values()))) < 1e-2
    floats = {name: tensor.float() for name, tensor in tensors.items()}
    precise = jrt.Operator(dtype="float32", d=16, dv=64)
    assert precise.kernels("prefill", **floats) == "portable, ordinary units"
    if ON_HOPPER:
        with pytest.warns(jrt.PortableKernelsWarning, match="prefill of linear-float32"):
            precise.prefill(**floats)


def test_states_are_forked_saved_and_loaded():
    tensors = on_gpu(inputs(tokens=200, prefix=0))
    tensors = {name: tensors[name] for name in ("query", "key", "value")}
    whole = LINEAR.prefill(**tensors)["output"]
    pool = jrt.StatePool(LINEAR, slots=8, heads=2, like=whole)
    assert pool.states.is_cuda and pool.states.dtype == torch.float32
    slots = pool.allocate_many(2)
    LINEAR.prefill(**{name: tensor[:, :120] for name, tensor in tensors.items()}, final_state=pool.states,
                   final_state_slots=pool.indices(slots))
    forked = pool.fork_many(slots)
    loaded = pool.load(pool.save(slots))
    for each in (forked, loaded, slots):
        output = LINEAR.prefill(**{name: tensor[:, 120:] for name, tensor in tensors.items()}, initial_state=pool.states,
                                initial_state_slots=pool.indices(each))["output"]
        assert error(as_numpy(output), as_numpy(whole[:, 120:])) < 1e-2
    saved = LINEAR.save_states(pool.states, source_slots=int32(*slots))
    pinned = torch.zeros(len(saved), dtype=torch.uint8).pin_memory()
    LINEAR.save_states(pool.states, source_slots=int32(*slots), buffer=pinned)
    torch.cuda.synchronize()
    assert pinned.numpy().tobytes() == saved
    other = LINEAR.new_states(2, 2, like=whole)
    LINEAR.load_states(pinned, other)
    torch.testing.assert_close(other, pool.states[slots], rtol=0, atol=0)
    LINEAR.merge_states(other, other, source_slots=int32(0), destination_slots=int32(1))
    torch.testing.assert_close(other[1], pool.states[slots].sum(0))
    dense = LINEAR.export_states(other)
    assert dense["sums"].shape == (2, 2, 273, 64) and dense["sums"].is_cuda
    back = LINEAR.new_states(2, 2, like=whole)
    LINEAR.import_states(back, **dense)
    torch.testing.assert_close(back, other, rtol=0, atol=0)
    with pytest.raises(ValueError, match="'states_slots' is on cpu, but the call's tensors are on cuda:0"):
        LINEAR.clear_states(other, states_slots=int32(0).cpu())
    with pytest.raises(ValueError, match="'value' is on cpu"):
        LINEAR.prefill(**dict(tensors, value=tensors["value"].cpu()))


def test_data_of_a_feature_map():
    tensors = on_gpu(inputs(query_heads=2), torch.float32)
    query, key, value = (tensors[name] for name in ("query", "key", "value"))
    projection = torch.randn(32, 16, generator=torch.Generator().manual_seed(1)).cuda()
    operator = jrt.Operator(d=16, dv=64, feature_map="favor", features=32, mask="causal")

    def expanded(x):
        x = as_numpy(x) / 2  # d^(1/4)
        return np.exp(x @ as_numpy(projection).T - (x * x).sum(-1, keepdims=True) / 2) / np.sqrt(32)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", jrt.PortableKernelsWarning)
        output = operator.prefill(query=query, key=key, value=value, projection=projection)["output"]
    assert error(as_numpy(output), feature_attention(expanded(query), expanded(key), as_numpy(value))) < 1e-4
    with pytest.raises(ValueError, match="'projection' is on cpu"):
        operator.prefill(query=query, key=key, value=value, projection=projection.cpu())


def test_arrays_of_cupy_on_a_stream():
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
    operator = jrt.Operator(dtype="float32", d=16, dv=64, mask="causal")
    tensors = inputs(tokens=300, query_heads=2)
    query, key, value = (cupy.asarray(tensors[name]) for name in ("query", "key", "value"))
    cupy.cuda.Device().synchronize()
    expected = linear_attention(*(tensors[name] for name in ("query", "key", "value")))
    stream = cupy.cuda.Stream(non_blocking=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", jrt.PortableKernelsWarning)
        size = operator.workspace_bytes("prefill", query=query, key=key, value=value, output=cupy.empty_like(value))
        output, workspace = cupy.full_like(value, cupy.nan), cupy.empty(size, "uint8")
        cupy.cuda.Device().synchronize()
        # The call runs on CuPy's current stream: elsewhere it would read zeros, or not be done when the stream is.
        late = cupy.zeros_like(query)
        busy = cupy.ones((4096, 4096), "float32")
        cupy.matmul(busy, busy)  # loads its library
        cupy.cuda.Device().synchronize()
        with stream:
            for _ in range(20):
                cupy.matmul(busy, busy)
            cupy.copyto(late, query)
            result = operator.prefill(query=late, key=key, value=value, output=output, workspace=workspace)
        stream.synchronize()
        assert result["output"] is output and error(cupy.asnumpy(output), expected) < 1e-5
        # What is left out is allocated as CuPy's; states of a pool, too.
        pool = jrt.StatePool(operator, slots=3, heads=2, like=query)
        slots = pool.allocate_many(2)
        first = operator.prefill(query=query[:, :200], key=key[:, :200], value=value[:, :200], final_state=pool.states,
                                 final_state_slots=pool.indices(slots))["output"]
        last = operator.prefill(query=query[:, 200:], key=key[:, 200:], value=value[:, 200:], initial_state=pool.states,
                                initial_state_slots=pool.indices(slots))["output"]
    assert isinstance(first, cupy.ndarray) and isinstance(pool.states, cupy.ndarray)
    assert error(cupy.asnumpy(cupy.concatenate([first, last], axis=1)), expected) < 1e-5


def test_the_budget_of_compiling(tmp_path):
    """Of the operation whose kernels take longest, in seconds of processor time."""
    target = "90a" if ON_HOPPER else "".join(map(str, torch.cuda.get_device_capability()))
    path = os.pathsep.join(path for path in sys.path if path)
    log = tmp_path / "log"
    with log.open("w") as stream:
        process = subprocess.Popen([sys.executable, "-m", "jrt", "prebuild", "dtype=bfloat16", "d=16", "dv=64", "--target", target,
                                    "--operations", "backward"], stdout=stream, stderr=stream,
                                   env=dict(os.environ, JRT_CACHE_DIR=str(tmp_path / "cache"), PYTHONPATH=path))
        _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, log.read_text()
    assert pathlib.Path(tmp_path / "cache").is_dir() and usage.ru_utime + usage.ru_stime < 40
