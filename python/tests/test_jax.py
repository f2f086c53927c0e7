# SPDX-License-Identifier: Apache-2.0
import threading

import numpy as np
import pytest

jax = pytest.importorskip("jax", reason="JAX is not installed")
pytest.importorskip("jax_tvm_ffi", reason="jax-tvm-ffi, which JAX's calls go through, is not installed")

import jax.numpy as jnp  # noqa: E402
import jrt.jax  # noqa: E402
from reference import convolution, error, linear_attention, readme_example, window_attention  # noqa: E402


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


def random(*shapes, dtype="float64", seed=0):
    generator = np.random.default_rng(seed)
    return [jnp.asarray(generator.standard_normal(shape)).astype(dtype) for shape in shapes]


SHAPES = (2, 60, 4, 16), (2, 60, 2, 16), (2, 60, 2, 32), (2, 20, 2, 16), (2, 20, 2, 32)


def plain_linear(query, key, value, key_encoder=None, value_encoder=None):
    group = query.shape[2] // key.shape[2]

    def part(key, value, mask):
        key, value = (jnp.repeat(array, group, axis=2) for array in (key, value))
        score = jnp.einsum("bihc,bjhc->bhij", query, key) / query.shape[-1] ** 0.5
        weights = (1 + score + score * score / 2) * mask
        return jnp.einsum("bhij,bjhc->bihc", weights, value), weights.sum(-1).transpose(0, 2, 1)[..., None]

    sums, total = part(key, value, jnp.tril(jnp.ones((query.shape[1], key.shape[1]))))
    if key_encoder is not None:
        more = part(key_encoder, value_encoder, 1)
        sums, total = sums + more[0], total + more[1]
    return sums / total


def plain_window(query, key, value, left=8, older=0.0):
    """Weights e^s in the window and, before it, `older` times the Taylor polynomial of it."""
    distance = jnp.arange(query.shape[1])[:, None] - jnp.arange(query.shape[1])
    score = jnp.einsum("bihc,bjhc->bhij", query, key) / query.shape[-1] ** 0.5
    weights = jnp.where(distance <= left, jnp.exp(score), older * (1 + score + score * score / 2)) * (distance >= 0)
    return jnp.einsum("bhij,bjhc->bihc", weights / weights.sum(-1, keepdims=True), value)


def plain_convolution(signal, weight, bias, gate):
    taps = weight.shape[1]
    padded = jnp.pad(signal, ((0, 0), (taps - 1, 0), (0, 0)))
    return jax.nn.silu(sum(padded[:, t:t + signal.shape[1]] * weight[:, t] for t in range(taps)) + bias) * gate


def check(function, plain, arrays, bound=1e-11):
    """The function's value and gradients are those that JAX finds for a plain formula, under jit and without."""
    gradient = jnp.asarray(np.random.default_rng(7).standard_normal(plain(*arrays).shape))
    everything = tuple(range(len(arrays)))
    expected = jax.jit(jax.value_and_grad(lambda *a: (plain(*a) * gradient).sum(), everything))(*arrays)
    for wrap in (jax.jit, lambda function: function):
        actual = wrap(jax.value_and_grad(lambda *a: (function(*a) * gradient).sum(), everything))(*arrays)
        for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected)):
            assert one.shape == other.shape and one.dtype == other.dtype
            assert jnp.linalg.norm(one - other) <= bound * jnp.linalg.norm(other)


def test_linear_attention_and_its_gradients():
    arrays = random(*SHAPES)
    output = jax.jit(jrt.jax.prefix_linear_attention)(*arrays)
    assert error(np.asarray(output), linear_attention(*map(np.asarray, arrays))) < 1e-12
    check(jrt.jax.prefix_linear_attention, plain_linear, arrays)
    check(jrt.jax.based, plain_linear, arrays[:3])


def test_window_and_hybrid_attention_and_their_gradients():
    arrays = random(*[(2, 60, 2, 16)] * 3)
    output = jax.jit(lambda *a: jrt.jax.window_attention(*a, left_window=8))(*arrays)
    assert error(np.asarray(output), window_attention(*map(np.asarray, arrays), left=8)) < 1e-12
    check(lambda *a: jrt.jax.window_attention(*a, left_window=8), plain_window, arrays)
    arrays = random((2, 60, 2, 16), (2, 60, 2, 16), (2, 60, 2, 32))
    check(lambda *a: jrt.jax.hybrid_attention(*a, left_window=8), lambda *a: plain_window(*a, older=1.0), arrays)


def test_gated_convolution_and_its_gradients():
    signal, weight, bias, gate = random((2, 50, 8), (8, 3), (8,), (2, 50, 8))
    output = jax.jit(lambda *a: jrt.jax.gated_convolution(a[0], a[1], gate=a[2]))(signal, weight, gate)
    assert error(np.asarray(output), convolution(*map(np.asarray, (signal, weight, gate)))) < 1e-12
    check(jrt.jax.gated_convolution, plain_convolution, (signal, weight, bias, gate))


@pytest.mark.parametrize("dtype, bound", [("float32", 1e-5), ("bfloat16", 1e-2)])
def test_types(dtype, bound):
    arrays = random(*SHAPES, dtype=dtype)
    output = jax.jit(jrt.jax.prefix_linear_attention)(*arrays)
    assert output.dtype == dtype
    expected = linear_attention(*(np.asarray(array.astype("float64")) for array in arrays))
    assert error(np.asarray(output.astype("float64")), expected) < bound


def test_a_prompt_in_pieces_has_the_gradients_of_the_whole():
    def pieces(query, key, value, key_encoder, value_encoder):
        first, state = jrt.jax.prefix_linear_attention(query[:, :23], key[:, :23], value[:, :23], key_encoder, value_encoder,
                                                       return_state=True)
        last = jrt.jax.prefix_linear_attention(query[:, 23:], key[:, 23:], value[:, 23:], initial_state=state)
        return jnp.concatenate([first, last], axis=1)

    check(pieces, plain_linear, random(*SHAPES))


def test_packed_sequences_are_those_apart():
    arrays = random((60, 2, 16), (60, 2, 16), (60, 2, 32), (25, 2, 16), (25, 2, 32))
    lengths, prefixes = [20, 0, 40], [10, 0, 15]
    starts, encoder_starts = np.cumsum([0, *lengths]), np.cumsum([0, *prefixes])

    def packed(*arrays):
        return jrt.jax.prefix_linear_attention(*arrays, cu_seqlens=jnp.asarray(starts, "int32"),
                                               cu_encoder_seqlens=jnp.asarray(encoder_starts, "int32"))

    def apart(*arrays):
        parts = [plain_linear(*(array[None, start:start + length] for array in arrays[:3]),
                              *(array[None, encoder:encoder + prefix] for array in arrays[3:]))[0]
                 for start, length, encoder, prefix in zip(starts, lengths, encoder_starts, prefixes)]
        return jnp.concatenate(parts)

    check(packed, apart, arrays)


def test_the_example_of_the_readme():
    names = {}
    exec(readme_example("jrt.jax"), names)
    query, key, value, y = (names[name] for name in ("q", "k", "v", "y"))
    expected = plain_linear(query, key, value, key[:, :500], value[:, :500])
    assert jnp.linalg.norm(y - expected) <= 1e-5 * jnp.linalg.norm(expected)
    assert names["gradient"].shape == query.shape


def test_vmap_is_a_row_of_calls():
    arrays = random((3, 1, 9, 2, 16), (3, 1, 9, 2, 16), (3, 1, 9, 2, 32))
    output = jax.jit(jax.vmap(jrt.jax.based))(*arrays)
    expected = jrt.jax.based(*(array[:, 0] for array in arrays))
    np.testing.assert_allclose(output[:, 0], expected, rtol=1e-12)


def test_wrong_arguments_are_named():
    query, key, value = random((1, 9, 2, 16), (1, 8, 2, 16), (1, 9, 2, 32))
    with pytest.raises(Exception, match="'key' has tokens = 8, but query's is 9"):
        jax.block_until_ready(jrt.jax.based(query, key, value))
    for wrong, message in ((None, "'key' is a NoneType, but must be an array"), ([1], "'key' is a list, but must be an array"),
                           (key[0, 0], "'key' has 2 dimensions, but must have 4 or, packed, 3")):
        with pytest.raises(ValueError, match=message):
            jrt.jax.based(query, wrong, value)
    with pytest.raises(ValueError, match="'weight' has 1 dimensions, but must have 2"):
        jrt.jax.gated_convolution(query[0, :, 0], query[0, 0, 0])
    with pytest.raises(ValueError, match="'cu_seqlens' is a list, but must be an array or None"):
        jrt.jax.based(query[0], query[0], value[0], cu_seqlens=[0, 9])
    with pytest.raises(ValueError, match="arrays have dtype int64"):
        jrt.jax.based(*(array.astype("int64") for array in (query, key, value)))
    with pytest.raises(ValueError, match="platform is 'tpu', but must be 'cpu' or 'cuda'"):
        jrt.jax.based(query, query, value, platform="tpu")
    with pytest.raises(Exception, match="cannot be differentiated"):
        jax.grad(lambda q: jax.grad(lambda q: jrt.jax.based(q, query, value).sum())(q).sum())(query)


def test_data_of_feature_maps():
    projection = jnp.asarray(np.random.default_rng(1).standard_normal((24, 16)), "float32")
    settings = {"mask": "causal", "feature_map": "favor", "features": 24}

    def favor(query, key, value, projection=projection):
        return jrt.jax.prefix_linear_attention(query, key, value, projection=projection, **settings)

    def plain(query, key, value):
        features = [jnp.exp(x / 2 @ projection.astype("float64").T - (x * x).sum(-1, keepdims=True) / 8) for x in (query, key)]
        weights = jnp.tril(jnp.einsum("bihr,bjhr->bhij", *features))
        return jnp.einsum("bhij,bjhc->bihc", weights / weights.sum(-1, keepdims=True), value)

    arrays = random((2, 20, 2, 16), (2, 20, 2, 16), (2, 20, 2, 32))
    check(favor, plain, arrays, 1e-6)
    with pytest.raises(ValueError, match="a gradient of argument 'projection' is asked for"):
        jax.grad(lambda projection: favor(*arrays, projection).sum())(projection)
    for data, message in (({"horizon": 7}, "no argument 'horizon'; the data of this feature map are: projection"),
                          ({"projection": "x"}, "'projection' is a str, but must be an array")):
        with pytest.raises(ValueError, match=message):
            jrt.jax.prefix_linear_attention(*arrays, **settings, **data)


def test_pieces_of_a_map_with_positions():
    def plain(query, key, value):
        angle = jnp.pi / 2 * jnp.arange(1, 31)[:, None, None] / 50
        features = [jnp.concatenate([jax.nn.relu(x) * jnp.sin(angle), jax.nn.relu(x) * jnp.cos(angle)], -1)
                    for x in (query, key)]
        weights = jnp.tril(jnp.einsum("bihr,bjhr->bhij", *features))
        return jnp.einsum("bhij,bjhc->bihc", weights / weights.sum(-1, keepdims=True), value)

    def pieces(*arrays):
        settings = {"mask": "causal", "feature_map": "cosformer", "horizon": 50}
        first, state = jrt.jax.prefix_linear_attention(*(array[:, :13] for array in arrays), return_state=True, **settings)
        last = jrt.jax.prefix_linear_attention(*(array[:, 13:] for array in arrays), initial_state=state,
                                               first_positions=jnp.array([13, 13], "int32"), **settings)
        return jnp.concatenate([first, last], axis=1)

    check(pieces, plain, random((2, 30, 2, 16), (2, 30, 2, 16), (2, 30, 2, 32)))


def test_rows_that_lie_in_no_packed_sequence_are_zero():
    arrays = random((30, 2, 16), (30, 2, 16), (30, 2, 32))
    offsets = jnp.array([3, 10, 20], "int32")
    output = jrt.jax.based(*arrays, cu_seqlens=offsets)
    gradients = jax.grad(lambda *a: jrt.jax.based(*a, cu_seqlens=offsets).sum(), (0, 1, 2))(*arrays)
    for each in (output, *gradients):
        assert each[3:20].any() and not each[:3].any() and not each[20:].any()


def test_several_threads_trace_the_same_at_once():
    query = random((1, 9, 2, 16))[0]
    start, outputs = threading.Barrier(4), []

    def call():
        start.wait()
        with jax.enable_x64(True):  # of each thread
            outputs.append(np.asarray(jrt.jax.based(query, query, query)))

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outputs) == 4 and all((output == outputs[0]).all() for output in outputs)
