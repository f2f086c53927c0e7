# SPDX-License-Identifier: Apache-2.0
"""The package around the calls: operators, the cache, the command line, documentation."""

import copy
import inspect
import os
import pickle
import re
import subprocess
import sys
import types
import warnings

import jrt
import numpy as np
import pytest
import tvm_ffi
from jrt import _calls, _compile, _operations
from jrt.__main__ import main as command_line
from operators import CONVOLUTION, HYBRID, LINEAR, WINDOW, inputs
from reference import error, feature_attention


def test_different_operators_have_different_names():
    operators = [jrt.Operator(dtype="bfloat16"), jrt.Operator(dtype="bfloat16", state_dtype="bfloat16"),
                 jrt.Operator(dtype="float16", state_dtype="float16"), jrt.Operator(dtype="float16"),
                 jrt.Operator(normaliser="none"), jrt.Operator(padding="zero_keys"), jrt.Operator(mask="causal"),
                 jrt.Operator(products="split"),
                 jrt.Operator(kind="hybrid"), jrt.Operator(kind="hybrid", left_window=64), jrt.Operator(kind="window"),
                 jrt.Operator(kind="window", rotary=True), jrt.Operator(kind="convolution"),
                 jrt.Operator(kind="convolution", activation="none"), jrt.Operator(kind="convolution", kernel_width=4)]
    assert len({operator.key for operator in operators}) == len(operators)
    assert jrt.Operator(dtype="float64", state_dtype="float64").key == jrt.Operator(dtype="float64").key


def test_the_version_is_the_librarys():
    folder = next(folder for folder in _compile._include_folders() if (folder / "jrt" / "version.hpp").is_file())
    lines = (folder / "jrt" / "version.hpp").read_text().splitlines()
    numbers = [line.split()[2] for line in lines if line.startswith(("#define JRT_VERSION_M", "#define JRT_VERSION_P"))]
    assert jrt.__version__ == ".".join(numbers)


@pytest.mark.parametrize("settings, message", [
    ({"kind": "lstm"}, "kind is 'lstm', but must be one of"),
    ({"d": 0}, "d is 0, but must be an int of at least 1"),
    ({"kernel_width": 1}, "kernel_width is 1, but must be an int of at least 2"),
    ({"feature_map": "favor"}, "features is None, but feature_map 'favor' needs an int"),
    ({"products": "tf32"}, "products is 'tf32', but must be one of 'float', 'split'"),
    ({"products": "split", "dtype": "float64"}, "products is 'split', but dtype is 'float64'"),
    ({"features": 8}, "features is 8, but only feature_map 'favor' has them"),
    ({"data": "table[3]"}, "without source no feature map of your own can have it"),
    ({"source": "struct A {};", "feature_map": "A", "data": "table[x]"}, "data is .*, but must name members"),
    ({"source": "struct A {};", "feature_map": "A b"}, "feature_map is 'A b', but must be the name of a struct"),
])
def test_wrong_operators_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        jrt.Operator(**settings)


@pytest.mark.parametrize("operation, target, message", [
    ("accumulate", "cpu", "'accumulate' is no operation of 'window'"),
    ("prefill", "90", "leaves Hopper's own kernels out; use '90a'"),
    ("prefill", "hopper", "target is 'hopper', but must be"),
])
def test_wrong_compilations_are_named(operation, target, message):
    with pytest.raises(ValueError, match=message):
        jrt.Operator(kind="window").compile(operation, target=target)


def test_operators_are_copied_and_pickled():
    operator = jrt.Operator(kind="window", dtype="float32", d=16, rotary=True)
    assert copy.deepcopy(operator) == pickle.loads(pickle.dumps(operator)) == operator


def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("JRT_CACHE_DIR", str(tmp_path / "file"))
    with pytest.raises(jrt.CompileError, match="cannot be compiled into .*JRT_CACHE_DIR names another"):
        jrt.Operator(d=3).compile("prefill")


def test_the_command_line_compiles_and_cleans(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("JRT_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    settings = {"feature_map": "cosformer", "mask": "causal", "dtype": "float32", "d": 16, "dv": 64}
    operator = jrt.Operator(**settings)
    name = "linear-float32-d16-dv64-cosformer-causal.prefill"
    monkeypatch.setenv("JRT_DISABLE_JIT", "1")
    with pytest.raises(jrt.CompileError, match=f"{re.escape(name)} is not in .*, and JRT_DISABLE_JIT is set"):
        operator.compile("prefill")

    command = [sys.executable, "-m", "jrt", "prebuild", *(f"{each}={value}" for each, value in settings.items())]
    log = tmp_path / "log"
    with log.open("w") as stream:
        process = subprocess.Popen([*command, "--operations", "prefill"], stdout=stream, stderr=stream,
                                   env=dict(os.environ, JRT_DISABLE_JIT="0"))
        _, status, usage = os.wait4(process.pid, 0)
    assert status == 0 and f"compiled {name} in" in log.read_text(), log.read_text()
    # The budget of one operation on the CPU, in seconds of processor time, Python's own start included.
    assert usage.ru_utime + usage.ru_stime < 15
    command_line(["list"])
    assert re.fullmatch(rf" *\d+\.\d\d MB  jrt-.*/{re.escape(name)}\n", capsys.readouterr().out)

    # What was compiled is what calls find.
    tensors = inputs(query_heads=2)
    query, key, value = (tensors[each] for each in ("query", "key", "value"))
    angle = np.pi / 2 * np.arange(1, 71)[:, None, None] / 100
    features = [np.concatenate([np.maximum(x.astype("float64"), 0) * turn(angle) for turn in (np.sin, np.cos)], axis=-1)
                for x in (query, key)]
    output = operator.prefill(query=query, key=key, value=value, horizon=100)["output"]
    assert error(output, feature_attention(*features, value)) < 1e-5
    for horizon, message in ((None, "horizon = 0, but must be at least 1"), (50, "reaches position 70.*max_position = 50"),
                             ("far", "'horizon' is a str")):
        with pytest.raises(ValueError, match=message):
            operator.prefill(query=query, key=key, value=value, horizon=horizon)

    for wrong, message in (("width=3", "'width' is no setting of an operator"), ("rotary=yes", "must be true or false"),
                           ("d=many", "d is 'many', but must be an int"), ("kind=lstm", "kind is 'lstm', but must be one of")):
        with pytest.raises(SystemExit, match=message):
            command_line(["prebuild", wrong])
    command_line(["clean"])
    assert not tmp_path.exists()


def test_kernels_that_serve_a_call():
    assert re.fullmatch(r"CPU(, (AVX-512|AVX2|AVX|SSE2|NEON))?", LINEAR.kernels("prefill", **inputs()))
    with pytest.raises(ValueError, match="prefill: argument 'value' has tokens = 3, but query's is 70"):
        tensors = inputs()
        LINEAR.kernels("prefill", **dict(tensors, value=tensors["value"][:, :3]))


def test_tensors_of_other_devices_are_named():
    class Elsewhere:
        shape = (1, 1, 1, 16)

        def __dlpack__(self, **_):
            raise NotImplementedError

        def __dlpack_device__(self):
            return 8, 0  # Metal

    with pytest.raises(ValueError, match="DLPack device type 8, but must be on the CPU or a CUDA device"):
        LINEAR.prefill(query=Elsewhere())
    with pytest.raises(ValueError, match="the call has no tensor"):
        LINEAR.prefill()


def test_calls_on_arrays_of_cupy_run_on_its_stream(monkeypatch):
    seen = []

    class Array:
        shape = (1, 1, 1, 16)
        device = types.SimpleNamespace(id=0)
        __dlpack__ = None

    Array.__module__ = "cupy"
    stream = types.SimpleNamespace(ptr=1234)
    cupy = types.SimpleNamespace(cuda=types.SimpleNamespace(get_current_stream=lambda: stream))
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(_calls._tensors, "passed", lambda name, value, written=False: value)
    functions = {"run": lambda *_: seen.append(tvm_ffi.get_raw_stream(tvm_ffi.device("cuda", 0))),
                 "workspace_bytes": lambda *_: 0, "kernels": None, "describe": lambda: "query:tensor,output:output;16;8"}
    _calls.Bound(LINEAR, "prefill", "80", functions).call({"query": Array()}, 1)
    assert seen == [1234] and tvm_ffi.get_raw_stream(tvm_ffi.device("cuda", 0)) == 0


def test_portable_kernels_on_hopper_are_told_once():
    def bound(operator, operation, served_by):
        functions = {"run": lambda *_: None, "workspace_bytes": lambda *_: 0, "kernels": lambda *_: served_by,
                     "describe": lambda: "query:tensor,output:output;16;8"}
        return _calls.Bound(operator, operation, "90a", functions)

    query = np.zeros((1, 100, 1, 16), "float32")
    slow = bound(LINEAR, "prefill", "portable, ordinary units")
    with pytest.warns(jrt.PortableKernelsWarning, match="prefill of linear-float32.* runs on kernels that every GPU has"):
        slow.run({"query": query}, None, 1)
    window = bound(jrt.Operator(kind="window"), "prefill", "portable, matrix units")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        slow.run({"query": query}, None, 1)
        bound(LINEAR, "prefill", "Hopper (sm_90a)").run({"query": query}, None, 1)
        bound(LINEAR, "decode_step", "portable, ordinary units").run({"query": query}, None, 1)
        window.run({"query": query[:, :1]}, None, 1)  # one token is no work for a tile
    with pytest.warns(jrt.PortableKernelsWarning):
        window.run({"query": query}, None, 1)


def test_signatures_name_every_argument():
    for operator, operation in ((LINEAR, "prefill"), (LINEAR, "decode_step"), (WINDOW, "prefill"), (HYBRID, "prefill"),
                                (CONVOLUTION, "prefill"), (CONVOLUTION, "staged_step"), (CONVOLUTION, "commit")):
        method = getattr(_operations.Operations, operation)
        parameters = inspect.signature(method).parameters
        assert set(operator._bound(operation, "cpu")._names) <= set(parameters), (operator.kind, operation)
        assert all(parameter.annotation is not parameter.empty for name, parameter in parameters.items() if name != "self")
    for name in dir(jrt.Operator) + [f"StatePool.{name}" for name in dir(jrt.StatePool)]:
        owner, _, member = name.rpartition(".")
        if not member.startswith("_") and callable(function := getattr(jrt.StatePool if owner else jrt.Operator, member)):
            assert inspect.getdoc(function), name
