# SPDX-License-Identifier: Apache-2.0
"""Operations on whole states, and pools of them."""

import jrt
import numpy as np
import pytest
from operators import CONVOLUTION, HYBRID, LINEAR, WINDOW, inputs, tokens_of
from reference import error, taylor_features


def int32(*numbers):
    return np.array(numbers, "int32")


def states_of(tokens, slots=4):
    """A pool with the states of two sequences in slots 2 and 0; keys and values."""
    tensors = inputs(tokens=tokens, prefix=0, query_heads=2)
    states = LINEAR.new_states(slots, 2, like=np)
    tensors = {name: tensors[name] for name in ("query", "key", "value")}
    LINEAR.prefill(**tensors, final_state=states, final_state_slots=int32(2, 0))
    return states, tensors["key"], tensors["value"]


def sums_of(key, value):
    features = taylor_features(key)
    return np.einsum("bthr,bthc->bhrc", features, value.astype("float64")), features.sum(1)


def test_states_are_exported_and_imported():
    states, key, value = states_of(50)
    sums, normaliser = sums_of(key, value)
    dense = LINEAR.export_states(states, source_slots=int32(2, 0))
    assert dense["sums"].dtype == "float32" and dense["sums"].shape == (2, 2, 273, 64)
    assert error(dense["sums"], sums) < 1e-6 and error(dense["normaliser"], normaliser) < 1e-6
    # The authors' cache, (B, H, dv, D), in another type; a slot of -1 leaves its part alone.
    cache, total = np.full((3, 2, 64, 273), 7.0), np.full((3, 2, 273), 7.0)
    LINEAR.export_states(states, source_slots=int32(2, -1, 0), sums=cache.transpose(0, 1, 3, 2), normaliser=total)
    np.testing.assert_array_equal(cache[[0, 2]].transpose(0, 1, 3, 2), dense["sums"].astype("float64"))
    assert (cache[1] == 7).all() and (total[1] == 7).all()
    half = LINEAR.export_states(states, dtype="float16")
    assert half["sums"].shape == (4, 2, 273, 64) and error(half["sums"][[2, 0]], sums) < 1e-3

    copies = LINEAR.new_states(3, 2, like=states)
    LINEAR.import_states(copies, destination_slots=int32(1, 2), sums=dense["sums"], normaliser=dense["normaliser"])
    np.testing.assert_array_equal(copies[[1, 2]], states[[2, 0]])
    assert not copies[0].any()
    empty = LINEAR.export_states(states, source_slots=int32())
    assert empty["sums"].shape == (0, 2, 273, 64)


def test_states_of_pieces_merge_to_that_of_the_whole():
    tensors = inputs(tokens=60, prefix=0, query_heads=2)
    states = LINEAR.new_states(6, 2, like=np)
    for slots, piece in ((int32(0, 1), slice(0, 35)), (int32(2, 3), slice(35, 60))):
        LINEAR.prefill(**{name: tensors[name][:, piece] for name in ("query", "key", "value")}, final_state=states,
                       final_state_slots=slots)
    second = states[2:4].copy()
    LINEAR.merge_states(states, states, source_slots=int32(0, 1), destination_slots=int32(2, 3))
    sums, normaliser = sums_of(tensors["key"], tensors["value"])
    dense = LINEAR.export_states(states, source_slots=int32(2, 3))
    assert error(dense["sums"], sums) < 1e-6 and error(dense["normaliser"], normaliser) < 1e-6
    LINEAR.copy_states(states, states, source_slots=int32(0, 0, -1), destination_slots=int32(4, 5, 1))
    np.testing.assert_array_equal(states[[4, 5]], states[[0, 0]])
    LINEAR.clear_states(states, states_slots=int32(0, -1, 4))
    assert not states[[0, 4]].any() and states[[1, 5]].any() and not np.array_equal(second, states[2:4])
    LINEAR.clear_states(states, threads=2)
    assert not states.any()


def test_states_convert_to_other_types_and_row_orders():
    states, key, value = states_of(30)
    dense = jrt.Operator(dtype="float32", d=16, dv=64, feature_map="taylor2_dense", state_dtype="float64")
    assert dense.state_key != LINEAR.state_key
    assert jrt.Operator(dtype="float16", d=16, dv=64, mask="causal").state_key == LINEAR.state_key
    converted = np.zeros((2, 2, 273 * 65 + 15), "float64")  # S (273, 64), z (273), to a multiple of 16
    LINEAR.copy_states(states, converted, source_slots=int32(2, 0), destination_slots=int32(0, 1), to=dense)
    sums, normaliser = sums_of(key, value)
    assert error(converted[..., :273 * 64].reshape(sums.shape), sums) < 1e-6
    assert error(converted[..., 273 * 64:273 * 65], normaliser) < 1e-6
    with pytest.raises(ValueError, match="states of linear-.* cannot become those of window-"):
        LINEAR.copy_states(states, converted, to=WINDOW)
    with pytest.raises(ValueError, match="only those of linear attention convert"):
        LINEAR.copy_states(states, converted, to=jrt.Operator(d=16, dv=64, feature_map="elu"))


@pytest.mark.parametrize("operator", [LINEAR, WINDOW, CONVOLUTION, HYBRID], ids=lambda operator: operator.kind)
def test_a_sequence_goes_on_from_forked_saved_and_loaded_states(operator):
    tensors, parameters, heads = tokens_of(operator)
    whole = operator.prefill(**tensors, **parameters)["output"]
    pool = jrt.StatePool(operator, slots=8, heads=heads, like=whole)
    slots = pool.allocate_many(2)
    first = {name: tensor[:, :25] for name, tensor in tensors.items()}
    second = {name: tensor[:, 25:] for name, tensor in tensors.items()}
    operator.prefill(**first, **parameters, final_state=pool.states, final_state_slots=pool.indices(slots))
    forked = pool.fork_many(slots)
    loaded = pool.load(pool.save(slots))
    assert len({*slots, *forked, *loaded}) == 6 and pool.free_slots == 2
    for each in (forked, loaded, slots):
        indices = pool.indices(each)
        output = operator.prefill(**second, **parameters, initial_state=pool.states, initial_state_slots=indices,
                                  final_state=pool.states, final_state_slots=indices)["output"]
        assert error(output, whole[:, 25:]) < 2e-6
    pool.clear(forked[0])
    assert not pool.states[forked[0]].any() and pool.states[forked[1]].any()


def test_saved_states_are_checked():
    states, _, _ = states_of(20)
    saved = LINEAR.save_states(states, source_slots=int32(2, -1))
    other = LINEAR.new_states(2, 2, like=np)
    LINEAR.load_states(saved, other)
    np.testing.assert_array_equal(other[0], states[2])
    assert not other[1].any()
    buffer = np.zeros(len(saved), "uint8")
    assert LINEAR.save_states(states, source_slots=int32(2, -1), buffer=buffer) is None
    assert buffer.tobytes() == saved
    other[:] = 0
    LINEAR.load_states(buffer, other)
    np.testing.assert_array_equal(other[0], states[2])

    before = other.copy()
    versioned = bytearray(saved)
    versioned[12] += 1
    foreign = WINDOW.save_states(WINDOW.new_states(2, 2, like=np))
    for spoiled, message in ((saved[:-1], "the saved size in bytes"), (saved[:50], "size in bytes is 50, but must be 96"),
                             (bytes(versioned), "the saved version is 2, but must be 1"), (b"\0" * 200, "the saved magic"),
                             (foreign, "the saved feature map is 'sliding window")):
        with pytest.raises(ValueError, match=message):
            LINEAR.load_states(spoiled, other)
    with pytest.raises(ValueError, match="number of states is 2, but must be 1"):
        LINEAR.load_states(saved, other, destination_slots=int32(0))
    with pytest.raises(ValueError, match="argument 'buffer' is a int, but must be a tensor"):
        LINEAR.load_states(3, other)
    np.testing.assert_array_equal(other, before)


@pytest.mark.parametrize("call, message", [
    (lambda s: LINEAR.clear_states(s, states_slots=int32(4)), r"'states\[0\]' is 4, but must be from -1 to 3"),
    (lambda s: LINEAR.clear_states(s, states_slots=int32(1, 1)), "clear_states: .*slots"),
    (lambda s: LINEAR.clear_states(s.astype("float64")), "'states' has dtype float64, but the operator's is float32"),
    (lambda s: LINEAR.clear_states(s[..., 1:]), r"'states' must have the shape \(slots, heads, 9952\)"),
    (lambda s: LINEAR.clear_states(s, states_slots=np.array([1])), "'states_slots' has dtype int64"),
    (lambda s: LINEAR.copy_states(s, s, source_slots=int32(0, 1), destination_slots=int32(2)),
     "'destination_slots' has 1 elements, but 'source_slots' has 2"),
    (lambda s: LINEAR.merge_states(s, s[:, :1], source_slots=int32(0), destination_slots=int32(1)), "heads"),
    (lambda s: LINEAR.export_states(s, sums=s, normaliser=s),
     r"'sums' has shape \(4, 2, 9952\), but must have \(4, 2, 273, 64\)"),
    (lambda s: LINEAR.export_states(s, sums=s), "give both sums and normaliser"),
    (lambda s: LINEAR.import_states(s, sums=np.zeros((4, 2, 273, 64), "int32"), normaliser=np.zeros((4, 2, 273), "int32")),
     "'sums' has dtype int32, but must have float64, float32"),
    (lambda s: LINEAR.save_states(s, buffer=np.zeros(5, "uint8")), "'buffer' has bytes = 5, but must be at least"),
    (lambda s: LINEAR.clear_states("text"), "'states' is a str|the call has no tensor"),
    (lambda s: WINDOW.merge_states(s, s), "merge_states: only states of linear attention are sums"),
    (lambda s: HYBRID.export_states(s), "export_states: only states of linear attention are sums"),
])
def test_wrong_calls_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(LINEAR.new_states(4, 2, like=np))


def test_a_pool_keeps_count_of_its_slots(tmp_path):
    pool = jrt.StatePool(LINEAR, slots=3, heads=2, like=np)
    a, b = pool.allocate(), pool.allocate()
    pool.states[a] = 1
    assert pool.taken == [a, b] and pool.free_slots == 1 and pool.slots == 3 and pool.heads == 2
    indices = pool.indices([b, None, a, -1])
    assert indices.dtype == "int32" and indices.tolist() == [b, -1, a, -1]
    c = pool.fork(a)
    np.testing.assert_array_equal(pool.states[c], pool.states[a])
    with pytest.raises(RuntimeError, match="1 slots are wanted, but 0 of 3 are free"):
        pool.allocate()
    with pytest.raises(RuntimeError, match="are free"):
        pool.load(pool.save([a]))
    path = tmp_path / "states"
    assert pool.save(path=path) == path.read_bytes() and [each.name for each in tmp_path.iterdir()] == ["states"]
    pool.free([a, c])
    for wrong in (a, [b, b], 7, -1):
        with pytest.raises(ValueError, match="not in use|named once"):
            pool.free(wrong)
    with pytest.raises(ValueError, match=f"slot {a} is not in use"):
        pool.indices([a])
    assert not pool.states[pool.allocate()].any()

    other = jrt.StatePool(LINEAR, states=np.empty((4, 2, pool.states.shape[2]), "float32"))
    assert len(other.load(path)) == 3 and other.load(pool.save([])) == []
    counts = [path.read_bytes()[:88] + count.to_bytes(8, "little", signed=True) + path.read_bytes()[96:]
              for count in (2, 2**62, -1)]  # another number of states than there are
    for spoiled in (path.read_bytes()[:-1], b"", b"\xff" * 400, *counts[1:]):
        with pytest.raises((ValueError, RuntimeError)):
            other.load(spoiled)
    assert other.free_slots == 1
    other.free(other.taken)
    for spoiled in (path.read_bytes()[:-1], *counts[1:]):
        with pytest.raises(ValueError, match="load_states: the saved"):
            other.load(spoiled)
    assert other.free_slots == 4 and len(other.load(counts[0])) == 2
    with pytest.raises(ValueError, match="give slots, heads and like, or states"):
        jrt.StatePool(LINEAR, slots=2)
