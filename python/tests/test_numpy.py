# SPDX-License-Identifier: Apache-2.0
import os
import subprocess
import sys
import threading

import jrt
import numpy as np
import pytest
from jrt import _compile
from reference import convolution, error, linear_attention, window_attention

LINEAR = jrt.Operator(dtype="float32", d=16, dv=24)


def inputs(batch=2, tokens=70, prefix=30, heads=2, query_heads=4, d=16, dv=24, dtype="float32", seed=0):
    random = np.random.default_rng(seed)
    shapes = {"query": (batch, tokens, query_heads, d), "key": (batch, tokens, heads, d), "value": (batch, tokens, heads, dv),
              "key_encoder": (batch, prefix, heads, d), "value_encoder": (batch, prefix, heads, dv)}
    return {name: random.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}


def expected(tensors):
    return linear_attention(*(tensors[name] for name in ("query", "key", "value", "key_encoder", "value_encoder")))


@pytest.mark.parametrize("dtype, bound", [("float32", 1e-5), ("float16", 2e-3)])
def test_prefill_agrees_with_the_formula(dtype, bound):
    tensors = inputs(dtype=dtype)
    output = jrt.Operator(dtype=dtype, d=16, dv=24).prefill(**tensors)["output"]
    assert output.dtype == dtype and output.shape == (2, 70, 4, 24)
    assert error(output, expected(tensors)) < bound


def test_every_layout_gives_the_same():
    tensors = inputs()
    plain = LINEAR.prefill(**tensors)["output"]
    head_major = {name: np.ascontiguousarray(tensor.transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3)
                  for name, tensor in tensors.items()}
    assert not head_major["query"].flags.c_contiguous
    np.testing.assert_array_equal(LINEAR.prefill(**head_major)["output"], plain)
    wide = {name: np.repeat(tensor, 2, axis=1)[:, ::2] for name, tensor in tensors.items()}
    np.testing.assert_array_equal(LINEAR.prefill(**wide)["output"], plain)


def test_packed_sequences_are_those_apart():
    tensors = inputs(batch=1, tokens=60, prefix=25)
    lengths, prefixes = [20, 0, 40], [10, 0, 15]
    packed = LINEAR.prefill(**{name: tensor[0] for name, tensor in tensors.items()},
                            cu_seqlens=np.cumsum([0, *lengths]).astype("int32"),
                            cu_encoder_seqlens=np.cumsum([0, *prefixes]).astype("int32"))["output"]
    first = {name: tensor[:, :10 if "encoder" in name else 20] for name, tensor in tensors.items()}
    last = {name: tensor[:, 10 if "encoder" in name else 20:] for name, tensor in tensors.items()}
    np.testing.assert_array_equal(packed[:20], LINEAR.prefill(**first)["output"][0])
    np.testing.assert_array_equal(packed[20:], LINEAR.prefill(**last)["output"][0])


def test_no_tokens():
    output = LINEAR.prefill(**inputs(tokens=0, prefix=0))["output"]
    assert output.shape == (2, 0, 4, 24)


def test_decode_steps_continue_a_prefill():
    tensors = inputs(tokens=40)
    states = LINEAR.new_states(3, 2, like=tensors["query"])
    slots = np.array([2, 0], "int32")
    cut = {name: tensor[:, :37] if "encoder" not in name else tensor for name, tensor in tensors.items()}
    outputs = [LINEAR.prefill(**cut, final_state=states, final_state_slots=slots)["output"]]
    for t in range(37, 40):
        step = {name: tensors[name][:, t:t + 1] for name in ("query", "key", "value")}
        outputs.append(LINEAR.decode_step(**step, source=states, source_slots=slots)["output"])
    assert error(np.concatenate(outputs, axis=1), expected(tensors)) < 1e-5
    assert not states[1].any()


def test_gradients_agree_with_finite_differences():
    operator = jrt.Operator(dtype="float64", d=4, dv=3)
    tensors = inputs(batch=1, tokens=7, prefix=3, heads=1, query_heads=2, d=4, dv=3, dtype="float64")
    saved = operator.prefill(**tensors, wanted=["denominators"])
    output_gradient = np.random.default_rng(9).standard_normal(saved["output"].shape)
    names = list(tensors)
    gradients = operator.backward(**tensors, **saved, output_gradient=output_gradient,
                                  wanted=[f"{name}_gradient" for name in names])
    for name in names:
        numeric = np.empty_like(tensors[name])
        for index in np.ndindex(numeric.shape):
            moved = []
            for step in (1e-6, -1e-6):
                other = dict(tensors, **{name: tensors[name].copy()})
                other[name][index] += step
                moved.append((operator.prefill(**other)["output"] * output_gradient).sum())
            numeric[index] = (moved[0] - moved[1]) / 2e-6
        assert error(gradients[f"{name}_gradient"], numeric) < 1e-7, name


def test_window_and_convolution():
    tensors = inputs(heads=3, query_heads=3, d=16, dv=16)
    window = jrt.Operator(kind="window", dtype="float32", d=16, left_window=8)
    qkv = [tensors[name] for name in ("query", "key", "value")]
    output = window.prefill(query=qkv[0], key=qkv[1], value=qkv[2])["output"]
    assert error(output, window_attention(*qkv, left=8)) < 1e-5

    random = np.random.default_rng(1)
    signal, gate = (random.standard_normal((2, 50, 12)).astype("float32") for _ in range(2))
    weight = random.standard_normal((12, 3)).astype("float32")
    taps = jrt.Operator(kind="convolution", dtype="float32")
    output = taps.prefill(input=signal[:, :, None], gate=gate[:, :, None], weight=weight)["output"]
    assert error(output[:, :, 0], convolution(signal, weight, gate)) < 1e-5
    with pytest.raises(ValueError, match="'weight' has 24 elements, but channels and taps ask for 36"):
        taps.prefill(input=signal[:, :, None], weight=weight[:8].copy())


def test_a_feature_map_of_ones_own():
    source = """
struct SquarePlusOne {
  static constexpr int input_dim = 16, feature_dim = 16;
  static constexpr const char* name = "square plus one";
  static constexpr bool nonnegative_kernel = true, has_closed_form = false, needs_position = false;
  template <class T> void expand(const T* x, T* features) const {
    for (int i = 0; i < 16; ++i) features[i] = x[i] * x[i] + T(1);
  }
};"""
    tensors = inputs(batch=1, query_heads=2)
    operator = jrt.Operator(dtype="float32", d=16, dv=24, feature_map="SquarePlusOne", source=source, mask="causal")
    output = operator.prefill(query=tensors["query"], key=tensors["key"], value=tensors["value"])["output"]
    features = [tensors[name].astype("float64") ** 2 + 1 for name in ("query", "key")]
    weights = np.tril(np.einsum("bihc,bjhc->bhij", *features))
    sums = np.einsum("bhij,bjhc->bihc", weights, tensors["value"].astype("float64"))
    assert error(output, sums / weights.sum(-1).transpose(0, 2, 1)[..., None]) < 1e-5
    with pytest.raises(jrt.CompileError, match="no_such_name"):
        jrt.Operator(feature_map="Map", source="struct Map { no_such_name x; };").compile("prefill")


def test_threads_and_given_memory_change_nothing():
    tensors = inputs(tokens=600)
    plain = LINEAR.prefill(**tensors)["output"]
    size = LINEAR.workspace_bytes("prefill", threads=2, **tensors, output=plain)
    workspace = np.empty(size, "uint8")
    output = np.empty_like(plain)
    result = LINEAR.prefill(**tensors, output=output, workspace=workspace, threads=2)
    assert result["output"] is output
    np.testing.assert_allclose(output, plain, rtol=1e-4, atol=1e-5)
    outputs = [None] * 4

    def call(i):
        outputs[i] = LINEAR.prefill(**tensors, threads=2)["output"]

    callers = [threading.Thread(target=call, args=(i,)) for i in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    for each in outputs:
        np.testing.assert_array_equal(each, output)


@pytest.mark.parametrize("spoil, message", [
    (lambda t: t.update(value=t["value"][:, :3]), "prefill: argument 'value' has tokens = 3, but query's is 70."),
    (lambda t: t.update(key=t["key"].astype("float64")), "'key' has dtype float64, but the operator's is float32"),
    (lambda t: t.update(query=t["query"][0, 0]), "'query' has 2 dimensions, but must have 4"),
    (lambda t: t.update(value=t["value"][..., ::2]), "'value' has stride 2 in its last dimension, but must have 1"),
    (lambda t: t.update(keys=t["key"]), "there is no argument 'keys'"),
    (lambda t: t.update(seq_lens=np.array([1], "int32")), "'seq_lens' has 1 elements, but the sequences ask for 2"),
    (lambda t: t.update(seq_lens=np.array([40, 71], "int32")), r"'sequences.seq_lens\[1\]' is 71, but must be from 0 to 70"),
    (lambda t: t.update(workspace=np.empty(8, "uint8")), "workspace"),
    (lambda t: t.update(value="text"), "prefill: argument 'value' is a str, but must be a tensor"),
])
def test_wrong_arguments_are_named(spoil, message):
    tensors = inputs()
    spoil(tensors)
    with pytest.raises(ValueError, match=message):
        LINEAR.prefill(**tensors)


def test_different_operators_have_different_names():
    operators = [jrt.Operator(dtype="bfloat16"), jrt.Operator(dtype="bfloat16", state_dtype="bfloat16"),
                 jrt.Operator(dtype="float16", state_dtype="float16"), jrt.Operator(dtype="float16"),
                 jrt.Operator(normaliser="none"), jrt.Operator(padding="zero_keys"), jrt.Operator(mask="causal"),
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


def test_wrong_operators_are_named():
    with pytest.raises(ValueError, match="kind is 'lstm', but must be one of"):
        jrt.Operator(kind="lstm")
    with pytest.raises(ValueError, match="d is 0, but must be an int of at least 1"):
        jrt.Operator(d=0)
    with pytest.raises(ValueError, match="'accumulate' is no operation of 'window'"):
        jrt.Operator(kind="window").compile("accumulate")


def test_without_compiling_a_missing_operator_is_an_error(tmp_path):
    code = "import jrt; jrt.Operator().compile('prefill')"
    environment = dict(os.environ, JRT_DISABLE_JIT="1", JRT_CACHE_DIR=str(tmp_path),
                       PYTHONPATH=os.pathsep.join(path for path in sys.path if path))
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert result.returncode != 0
    assert "JRT_DISABLE_JIT is set" in result.stderr
