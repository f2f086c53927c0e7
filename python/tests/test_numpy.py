# SPDX-License-Identifier: Apache-2.0
"""Operations on tokens, from NumPy."""

import importlib.util
import pathlib
import re
import threading
import time

import jrt
import numpy as np
import pytest
from jrt import _calls
from operators import CONVOLUTION, FAVOR, HYBRID, LINEAR, WINDOW, inputs
from reference import (convolution, error, examples_of, feature_attention, hybrid_attention, linear_attention, readme_example, rotated,
                       window_attention)


# NumPy has bfloat16 where ml_dtypes is installed.
SHORT = "bfloat16" if importlib.util.find_spec("ml_dtypes") else "float16"


def expected(tensors):
    return linear_attention(*(tensors[name] for name in ("query", "key", "value", "key_encoder", "value_encoder")))


@pytest.mark.parametrize("dtype, bound", [("float32", 1e-5), (SHORT, 1e-2 if SHORT == "bfloat16" else 2e-3)])
def test_prefill_agrees_with_the_formula(dtype, bound):
    tensors = inputs(dtype=dtype)
    output = jrt.Operator(dtype=dtype, d=16, dv=64).prefill(**tensors)["output"]
    assert output.dtype == dtype and output.shape == (2, 70, 4, 64)
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


@pytest.mark.parametrize("sizes, shape", [({"tokens": 0, "prefix": 0}, (2, 0, 4, 64)), ({"batch": 0}, (0, 70, 4, 64))])
def test_nothing_to_do(sizes, shape):
    assert LINEAR.prefill(**inputs(**sizes))["output"].shape == shape


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


def test_gradients_agree_with_finite_differences_of_the_formula():
    tensors = inputs(batch=1, tokens=7, prefix=3, heads=1, query_heads=2)
    saved = LINEAR.prefill(**tensors, wanted=["denominators"])
    output_gradient = np.random.default_rng(9).standard_normal(saved["output"].shape).astype("float32")
    gradients = LINEAR.backward(**tensors, **saved, output_gradient=output_gradient,
                                wanted=[f"{name}_gradient" for name in tensors])
    exact = {name: tensor.astype("float64") for name, tensor in tensors.items()}
    for name, tensor in exact.items():
        numeric = np.empty_like(tensor)
        for index in np.ndindex(numeric.shape):
            middle, moved = tensor[index], []
            for step in (1e-6, -1e-6):
                tensor[index] = middle + step
                moved.append((expected(exact) * output_gradient).sum())
            tensor[index] = middle
            numeric[index] = (moved[0] - moved[1]) / 2e-6
        assert error(gradients[f"{name}_gradient"], numeric) < 1e-5, name


def test_windows_rotate_queries_and_keys():
    query, key, value = (inputs(heads=3, query_heads=3, dv=16)[name] for name in ("query", "key", "value"))
    angles = 10000.0 ** (-np.arange(8) / 8)
    for arguments, turn in (({}, angles), ({"rotary_base": 500}, 500.0 ** (-np.arange(8) / 8)),
                            ({"rotary_frequencies": angles / 4}, angles / 4),
                            ({"rotary_frequencies": 0 * angles}, 0 * angles)):
        output = WINDOW.prefill(query=query, key=key, value=value, **arguments)["output"]
        assert error(output, window_attention(rotated(query, turn), rotated(key, turn), value, left=8)) < 1e-5
    scaled = WINDOW.prefill(query=query, key=key, value=value, scale=1e-9)["output"]
    assert error(scaled[:, 0], value[:, 0]) < 1e-6 and error(scaled[:, 20], value[:, 12:21].mean(1)) < 1e-6
    with pytest.raises(ValueError, match="'rotary_frequencies' must be a contiguous vector of 8 angles"):
        WINDOW.prefill(query=query, key=key, value=value, rotary_frequencies=angles[:4].copy())
    with pytest.raises(ValueError, match="'rotary_base' is -1, but must be more than 0"):
        WINDOW.prefill(query=query, key=key, value=value, rotary_base=-1)


def test_both_attentions_in_one():
    tensors = inputs(query_heads=2)
    query, key, value = (tensors[name] for name in ("query", "key", "value"))
    output = HYBRID.prefill(query=query, key=key, value=value, wanted="log_sum_exp")
    assert output["log_sum_exp"].shape == (2, 70, 2, 1)
    assert error(output["output"], hybrid_attention(query, key, value, left=8)) < 1e-5


def test_convolution_with_staged_tokens():
    random = np.random.default_rng(1)
    signal, gate = (random.standard_normal((2, 20, 1, 12)).astype("float32") for _ in range(2))
    weight = random.standard_normal((12, 3)).astype("float32")
    whole = CONVOLUTION.prefill(input=signal, gate=gate, weight=weight)["output"]
    assert error(whole[:, :, 0], convolution(signal[:, :, 0], weight, gate[:, :, 0])) < 1e-5
    for wrong, shape in ((weight[:8], r"\(8, 3\)"), (weight.reshape(3, 12), r"\(3, 12\)")):
        with pytest.raises(ValueError, match=f"'weight' has shape {shape}, but channels and taps ask for \\(12, 3\\)"):
            CONVOLUTION.prefill(input=signal, weight=wrong.copy())
    states = CONVOLUTION.new_states(2, 12, like=signal)
    staging = CONVOLUTION.new_staging(2, 4, 12, like=signal)
    CONVOLUTION.prefill(input=signal[:, :10], weight=weight, final_state=states)
    before = states.copy()
    for first in (0, 2):
        drafted = slice(10 + first, 12 + first)
        step = CONVOLUTION.staged_step(input=signal[:, drafted], gate=gate[:, drafted], weight=weight, state=states,
                                       staging=staging, already_staged=first)
        assert error(step["output"], whole[:, drafted]) < 1e-6
    np.testing.assert_array_equal(states, before)
    CONVOLUTION.commit(staging=staging, accepted_tokens=np.array([4, 1], "int32"), source=states)
    np.testing.assert_array_equal(states, np.stack([signal[0, 12:14, 0].T, signal[1, 9:11, 0].T]))


def test_favor_takes_its_projection():
    features = 32
    random = np.random.default_rng(2)
    projection = random.standard_normal((features, 16)).astype("float32")
    tensors = inputs(query_heads=2)
    query, key, value = (tensors[name] for name in ("query", "key", "value"))

    def expanded(x):
        x = x.astype("float64") / 2  # d^(1/4)
        return np.exp(x @ projection.T.astype("float64") - (x * x).sum(-1, keepdims=True) / 2) / np.sqrt(features)

    output = FAVOR.prefill(query=query, key=key, value=value, projection=projection)["output"]
    assert error(output, feature_attention(expanded(query), expanded(key), value)) < 1e-5
    for wrong, message in ((None, r"'projection' is missing, but the feature map needs it, with shape \(32, 16\)"),
                           (projection.T, r"'projection' has shape \(16, 32\), but must have \(32, 16\)"),
                           (np.asfortranarray(projection), "'projection' must be contiguous"),
                           (projection.astype("float64"), "'projection' has dtype float64")):
        with pytest.raises(ValueError, match=message):
            FAVOR.prefill(query=query, key=key, value=value, projection=wrong)
    with pytest.raises(ValueError, match="there is no argument 'horizon'"):
        FAVOR.prefill(query=query, key=key, value=value, projection=projection, horizon=7)


def test_examples_of_the_readme(tmp_path, monkeypatch):
    # Those of PyTorch, its modules and JAX are in the tests of these.
    first, states, maps = (block for block in examples_of() if not re.search("torch|jax", block))
    assert len(examples_of()) == 6 and all(readme_example(word) for word in ("y.sum().backward()", "LanguageModel", "jrt.jax"))
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(first, names)
    query, key, value, y = (names[name] for name in ("q", "k", "v", "y"))
    assert error(y, linear_attention(query, key, value, key, value)) < 1e-5
    exec(states, names)
    assert names["y"].shape == (3, 1, 4, 64) and not names["y"][2].any() and names["pool"].taken == [names["slot"]]
    exec(maps, names)
    mine = names["mine"]
    features = [x.astype("float64")**2 + 0.5 for x in (query, key)]
    assert error(names["y"], feature_attention(*features, value)) < 1e-5

    readme = pathlib.Path(__file__).resolve().parent.parent.parent / "README.md"
    if readme.is_file():
        example, = examples_of(readme)
        names = {}
        exec(example, names)
        query, key, value, y = (names[name] for name in ("q", "k", "v", "y"))
        assert error(y, linear_attention(query, key, value, key, value)) < 1e-5

    table = np.random.default_rng(3).random(16).astype("float32")
    for arguments, shift in (({}, 1), ({"shift": 2}, 2)):
        output = mine.prefill(query=query, key=key, value=value, table=table, **arguments)["output"]
        features = [table * x.astype("float64")**2 + shift for x in (query, key)]
        assert error(output, feature_attention(*features, value)) < 1e-5
    with pytest.raises(ValueError, match=r"'table' is missing, but the feature map needs it, with shape \(16,\)"):
        mine.prefill(query=query, key=key, value=value)
    with pytest.raises(ValueError, match="'shift' is a str"):
        mine.prefill(query=query, key=key, value=value, table=table, shift="1")


def test_errors_of_the_compiler_are_shown():
    with pytest.raises(jrt.CompileError, match="no_such_name"):
        jrt.Operator(feature_map="Map", source="struct Map { no_such_name x; };").compile("prefill")
    with pytest.raises(ValueError, match="data has 'scale', but prefill has an argument of that name"):
        _calls.Bound(LINEAR, "prefill", "cpu", dict.fromkeys(("run", "workspace_bytes", "kernels")) |
                     {"describe": lambda: "query:tensor,scale:number,scale:number;1;1"})


def test_other_threads_run_during_a_call():
    tensors = inputs(batch=1, tokens=60000, prefix=1, heads=1, query_heads=1)
    running, ticks = threading.Event(), 0

    def call():
        running.set()
        LINEAR.prefill(**tensors)
        running.clear()

    caller = threading.Thread(target=call)
    caller.start()
    running.wait()
    while running.is_set():
        time.sleep(1e-3)
        ticks += 1
    caller.join()
    assert ticks >= 5  # of some 100: a call that kept the interpreter's lock would let this loop run once or twice


def test_read_only_arrays_are_read_and_never_written():
    tensors = inputs()
    expected = LINEAR.prefill(**tensors)["output"]
    for tensor in tensors.values():
        tensor.flags.writeable = False
    assert np.array_equal(LINEAR.prefill(**tensors)["output"], expected)
    expected.flags.writeable = False
    with pytest.raises(ValueError, match="argument 'output' is a read-only array"):
        LINEAR.prefill(**tensors, output=expected)


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
    (lambda t: t.update(query=t["query"].astype("complex64")), "'query' has dtype complex64, but the operator's is float32"),
    (lambda t: t.update(query=t["query"].astype(">f4")), "'query' cannot be passed on: .*native byte order"),
    (lambda t: t.update(query=t["query"][:, ::-1]), "'query' has token_stride = -64, but must be at least 0"),
    (lambda t: t.update(query=t["query"][:, :, :3]), "'query' has heads = 3, but must be a multiple of .*'key', which is 2"),
    (lambda t: t.update(key_encoder=np.repeat(t["key_encoder"], 3, 1), value_encoder=np.repeat(t["value_encoder"], 3, 1)),
     r"'prefix \(key_encoder.tokens\)\[0\]' is 90, but must be from 0 to 70"),
    (lambda t: t.update(prefix_lens=np.array([3, -1], "int32")), r"prefix_lens\[1\]' is -1, but must be from 0 to 30"),
    (lambda t: t.update(left_pads=np.array([3, 71], "int32")), r"left_pads\[1\]' is 71, but must be from 0 to 70"),
    (lambda t: t.update(threads=0), "'threads' is 0, but must be from 1 to 4096"),
    (lambda t: t.update(threads=10**12), "'threads' is 1000000000000, but must be from 1 to 4096"),
    (lambda t: t.update(max_tokens=True), "'max_tokens' is a bool, but must be a number"),
    (lambda t: t.update(wanted=["outputs"]), "'wanted' has 'outputs', which is no output of it"),
    (lambda t: t.update(final_state=LINEAR.new_states(4, 2, like=np), final_state_slots=np.array([1, 1], "int32")),
     r"slots\[0\]' and 'final_state.slots\[1\]' share the state of slot 1"),
    (lambda t: t.update(query=t["query"][:, :, :2].copy(), output=t["value"]), "'output' and 'value' share memory"),
    (lambda t: t.update(output=np.lib.stride_tricks.as_strided(t["value"], (2, 70, 4, 64), (0, 0, 0, 4))),
     "'output' has batch_stride = 0, but must be at least 64"),
])
def test_wrong_arguments_are_named(spoil, message):
    tensors = inputs()
    spoil(tensors)
    with pytest.raises(ValueError, match=message):
        LINEAR.prefill(**tensors)


@pytest.mark.parametrize("offsets, message", [
    ([0, 50, 40], r"cu_seqlens\[2\]' is 40, but must be from 50 to 70"), ([0, -5, 70], r"cu_seqlens\[1\]' is -5, but must be"),
    ([0, 50, 71], r"cu_seqlens\[2\]' is 71, but must be from 50 to 70"), ([], "'cu_seqlens' has no elements"),
    ([0, 40, 70, 70], "'cu_encoder_seqlens' has 3 elements, but the sequences ask for 4"),
])
def test_wrong_offsets_are_named(offsets, message):
    tensors = {name: tensor[0] for name, tensor in inputs(batch=1).items()}
    with pytest.raises(ValueError, match=message):
        LINEAR.prefill(**tensors, cu_seqlens=np.array(offsets, "int32"), cu_encoder_seqlens=np.array([0, 10, 30], "int32"))


def test_what_is_only_read_is_not_returned_and_may_be_read_only():
    tensors = inputs()
    states, others = (LINEAR.new_states(2, 2, like=np) for _ in range(2))
    first = LINEAR.prefill(**tensors, final_state=states)
    assert set(first) == {"output", "final_state"}
    kept = states.copy()
    states.flags.writeable = False
    causal = {name: tensor for name, tensor in tensors.items() if "encoder" not in name}
    assert set(LINEAR.prefill(**causal, initial_state=states, final_state=others)) == {"output", "final_state"}
    step = {name: tensor[:, :1] for name, tensor in causal.items()}
    assert set(LINEAR.decode_step(**step, source=states, destination=others)) == {"output", "destination"}
    np.testing.assert_array_equal(states, kept)
    with pytest.raises(ValueError, match="'source' is a read-only array"):
        LINEAR.decode_step(**step, source=states)


def test_numbers_of_numpy_are_numbers():
    query = inputs(heads=2, query_heads=2, dv=16)["query"]
    output = WINDOW.prefill(query=query, key=query, value=query, scale=np.float32(0.5), threads=np.int64(1))["output"]
    np.testing.assert_array_equal(output, WINDOW.prefill(query=query, key=query, value=query, scale=0.5)["output"])
    assert jrt.Operator(d=np.int64(16)) == jrt.Operator(d=16)
    for operator in (WINDOW, LINEAR):
        with pytest.raises(ValueError, match="new_states: slots is -1, but must be an int of at least 0"):
            operator.new_states(-1, 2, like=np)
    with pytest.raises(ValueError, match="like is a list, but must be a tensor"):
        LINEAR.new_states(1, 2, like=[1])


def test_what_is_not_a_number_stays_in_its_columns():
    tensors = inputs()
    expected = LINEAR.prefill(**tensors)["output"]
    tensors["value"][0, 30, 0, 3] = np.nan
    output = LINEAR.prefill(**tensors)["output"]
    spoiled = np.isnan(output)
    assert spoiled[0, 30:, :2, 3].all() and spoiled.sum() == 40 * 2  # from that token on, in heads that read it
    np.testing.assert_array_equal(output[~spoiled], expected[~spoiled])
