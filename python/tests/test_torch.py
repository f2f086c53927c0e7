# SPDX-License-Identifier: Apache-2.0
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

import jrt.torch  # noqa: E402
from reference import readme_example  # noqa: E402

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])


def random(*shapes, dtype=torch.float64, device="cpu", seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype).requires_grad_()
            for shape in shapes]


def linear_reference(query, key, value, key_encoder=None, value_encoder=None):
    scale = query.shape[-1] ** 0.5
    score = torch.einsum("bihc,bjhc->bhij", query, key) / scale
    weights = (1 + score + score * score / 2).tril()
    sums, total = torch.einsum("bhij,bjhc->bihc", weights, value), weights.sum(-1)
    if key_encoder is not None:
        score = torch.einsum("bihc,bjhc->bhij", query, key_encoder) / scale
        weights = 1 + score + score * score / 2
        sums, total = sums + torch.einsum("bhij,bjhc->bihc", weights, value_encoder), total + weights.sum(-1)
    return sums / total.transpose(1, 2).unsqueeze(-1)


def check(function, reference, tensors, bound):
    output, expected = function(*tensors), reference(*tensors)
    gradient = torch.randn_like(output)
    pairs = [(output, expected)]
    pairs += zip(torch.autograd.grad(output, tensors, gradient), torch.autograd.grad(expected, tensors, gradient))
    for actual, right in pairs:
        assert actual.dtype == right.dtype and actual.shape == right.shape
        assert (actual - right).norm() <= bound * right.norm()


@pytest.mark.parametrize("device", DEVICES)
def test_linear_attention_and_its_gradients(device):
    tensors = random((2, 60, 2, 16), (2, 60, 2, 16), (2, 60, 2, 32), (2, 20, 2, 16), (2, 20, 2, 32), device=device)
    check(jrt.torch.prefix_linear_attention, linear_reference, tensors, 1e-11)
    check(jrt.torch.based, linear_reference, tensors[:3], 1e-11)


@pytest.mark.parametrize("device", DEVICES)
def test_split_products(device):
    tensors = random((1, 300, 2, 16), (1, 300, 2, 16), (1, 300, 2, 64), (1, 100, 2, 16), (1, 100, 2, 64), dtype=torch.float32,
                     device=device)
    expected = linear_reference(*[tensor.double() for tensor in tensors])
    output = jrt.torch.prefix_linear_attention(*tensors, products="split")
    assert (output - expected).norm() <= 1e-5 * expected.norm()
    gradient = torch.randn_like(output)
    exact = torch.autograd.grad(expected, tensors, gradient.double())
    for actual, right in zip(torch.autograd.grad(output, tensors, gradient), exact):
        assert (actual - right).norm() <= 1e-4 * right.norm()


@pytest.mark.parametrize("device", DEVICES)
def test_window_attention_and_its_gradients(device):
    def reference(query, key, value):
        distance = torch.arange(60, device=device)[:, None] - torch.arange(60, device=device)
        score = torch.einsum("bihc,bjhc->bhij", query, key) / 4
        weights = score.masked_fill((distance < 0) | (distance > 8), -torch.inf).softmax(-1)
        return torch.einsum("bhij,bjhc->bihc", weights, value)

    tensors = random(*[(2, 60, 2, 16)] * 3, device=device)
    check(lambda *qkv: jrt.torch.window_attention(*qkv, left_window=8), reference, tensors, 1e-11)


@pytest.mark.parametrize("device", DEVICES)
def test_hybrid_attention_and_its_gradients(device):
    def reference(query, key, value):
        distance = torch.arange(60, device=device)[:, None] - torch.arange(60, device=device)
        score = torch.einsum("bihc,bjhc->bhij", query, key) / 4
        weights = torch.where(distance <= 8, score.exp(), 1 + score + score * score / 2).tril()
        return torch.einsum("bhij,bjhc->bihc", weights / weights.sum(-1, keepdim=True), value)

    tensors = random((2, 60, 2, 16), (2, 60, 2, 16), (2, 60, 2, 32), device=device)
    check(lambda *qkv: jrt.torch.hybrid_attention(*qkv, left_window=8), reference, tensors, 1e-11)


@pytest.mark.parametrize("device", DEVICES)
def test_gated_convolution_and_its_gradients(device):
    def reference(inputs, weight, bias, gate):
        signal = torch.nn.functional.conv1d(inputs.transpose(1, 2), weight.unsqueeze(1), bias, groups=8, padding=2)
        return torch.nn.functional.silu(signal[..., :50].transpose(1, 2)) * gate

    check(jrt.torch.gated_convolution, reference, random((2, 50, 8), (8, 3), (8,), (2, 50, 8), device=device), 1e-11)


@pytest.mark.parametrize("device", DEVICES)
def test_compiled_without_a_graph_break(device):
    tensors = random((2, 60, 2, 16), (2, 60, 2, 16), (2, 60, 2, 32), device=device)
    function = torch.compile(lambda q, k, v: jrt.torch.based(q * 2, k, v).square(), fullgraph=True, backend="aot_eager")
    output = function(*tensors)
    expected = linear_reference(tensors[0] * 2, *tensors[1:]).square()
    assert (output - expected).norm() <= 1e-11 * expected.norm()
    assert len(torch.autograd.grad(output.sum(), tensors)) == 3


@pytest.mark.parametrize("device", DEVICES)
def test_ops_pass_pytorchs_own_check(device):
    query, key, value = (tensor.detach() for tensor in random((1, 9, 2, 16), (1, 9, 2, 16), (1, 9, 2, 32), device=device))
    jrt.torch.prefix_linear_attention(query, key, value)  # registers the operator's name
    name = "linear-float64-d16-dv32-taylor2-prefix"
    inputs = (query, key, value, *[None] * 8, [], [])
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.jrt.attention.default, (*inputs, name, True, True), test_utils=tests)
    output, sums, state = torch.ops.jrt.attention(*inputs, name, True, True)
    torch.library.opcheck(torch.ops.jrt.attention_backward.default,
                          (output, state, output, sums, *inputs, name, [True, True, False, False, False, False]),
                          test_utils=tests)


def test_gradients_are_taken_once():
    tensors = random((1, 9, 2, 16), (1, 9, 2, 16), (1, 9, 2, 32))
    with pytest.raises(RuntimeError, match="gradients of gradients are not supported"):
        torch.autograd.grad(jrt.torch.based(*tensors).sum(), tensors, create_graph=True)


@pytest.mark.parametrize("device", DEVICES)
def test_autocast_decides_the_type(device):
    tensors = random((1, 70, 2, 16), (1, 70, 2, 16), (1, 70, 2, 64), dtype=torch.float32, device=device)
    with torch.autocast(device, dtype=torch.bfloat16):
        output = jrt.torch.based(*tensors)
    assert output.dtype == torch.bfloat16
    expected = linear_reference(*tensors)
    assert (output - expected).norm() <= 1e-2 * expected.norm()
    gradients = torch.autograd.grad(output.float().sum(), tensors)
    assert all(gradient.dtype == torch.float32 for gradient in gradients)


def test_the_example_of_the_readme():
    names = {}
    exec(readme_example("y.sum().backward()"), names)
    query, key, value, y = (names[name].detach() for name in ("q", "k", "v", "y"))
    expected = linear_reference(query, key, value, key[:, :500], value[:, :500])
    assert (y - expected).norm() <= 1e-5 * expected.norm() and names["q"].grad.any()


def test_autocast_leaves_float64_alone():
    tensors = random((1, 9, 2, 16), (1, 9, 2, 16), (1, 9, 2, 32))
    signal, weight = (tensor.detach() for tensor in random((2, 50, 8), (8, 3)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = jrt.torch.based(*tensors)
        assert jrt.torch.gated_convolution(signal, weight).dtype == torch.float64
    assert (output - linear_reference(*tensors)).norm() <= 1e-11 * output.norm()


@pytest.mark.parametrize("device", DEVICES)
def test_packed_sequences_are_those_apart(device):
    tensors = random((60, 2, 16), (60, 2, 16), (60, 2, 32), (25, 2, 16), (25, 2, 32), device=device)
    lengths, encoders, prefixes = [20, 0, 40], [10, 0, 15], [7, 0, 15]
    offsets = [torch.tensor([0, *counts], device=device).cumsum(0, dtype=torch.int32) for counts in (lengths, encoders)]
    output = jrt.torch.prefix_linear_attention(
        *tensors, cu_seqlens=offsets[0], cu_encoder_seqlens=offsets[1],
        prefix_lens=torch.tensor(prefixes, dtype=torch.int32, device=device))
    parts = []
    for start, encoder_start, length, prefix in zip(offsets[0], offsets[1], lengths, prefixes):
        rows = [tensor[start:start + length][None] for tensor in tensors[:3]]
        rows += [tensor[encoder_start:encoder_start + prefix][None] for tensor in tensors[3:]]
        parts.append(linear_reference(*rows)[0])
    expected = torch.cat(parts)
    gradient = torch.randn_like(output)
    for actual, right in zip((output, *torch.autograd.grad(output, tensors, gradient)),
                             (expected, *torch.autograd.grad(expected, tensors, gradient))):
        assert (actual - right).norm() <= 1e-11 * right.norm()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("graph", [False, True])
def test_a_prompt_in_pieces_has_the_gradients_of_the_whole(device, graph):
    def pieces(query, key, value, key_encoder, value_encoder):
        first, state = jrt.torch.prefix_linear_attention(query[:, :23], key[:, :23], value[:, :23], key_encoder, value_encoder,
                                                         return_state=True)
        last = jrt.torch.prefix_linear_attention(query[:, 23:], key[:, 23:], value[:, 23:], initial_state=state)
        return torch.cat([first, last], dim=1)

    tensors = random((2, 60, 2, 16), (2, 60, 2, 16), (2, 60, 2, 32), (2, 20, 2, 16), (2, 20, 2, 32), device=device)
    check(torch.compile(pieces, fullgraph=True, backend="aot_eager") if graph else pieces, linear_reference, tensors, 1e-11)


def test_wrong_arguments_are_named():
    query, key, value = random((1, 9, 2, 16), (1, 8, 2, 16), (1, 9, 2, 32))
    with pytest.raises(ValueError, match="'key' has tokens = 8, but query's is 9"):
        jrt.torch.based(query, key, value)
    with pytest.raises(ValueError, match="dtype int64"):
        jrt.torch.based(*(tensor.detach().long() for tensor in (query, key, value)))


@pytest.mark.skipif("cuda" not in DEVICES, reason="no CUDA device")
def test_a_call_in_a_cuda_graph():
    operator = jrt.Operator(dtype="bfloat16", d=16, dv=64)
    tensors = {name: tensor.detach() for name, tensor in zip(
        ("query", "key", "value"),
        random((2, 500, 4, 16), (2, 500, 4, 16), (2, 500, 4, 64), dtype=torch.bfloat16, device="cuda"))}
    expected = operator.prefill(**tensors)["output"]
    output = torch.zeros_like(expected)
    size = operator.workspace_bytes("prefill", **tensors, output=output)
    workspace = torch.empty(size, dtype=torch.uint8, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        operator.prefill(**tensors, output=output, workspace=workspace)
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(output, expected)


def test_data_of_feature_maps_pass_eagerly_and_in_graphs():
    projection = torch.randn(24, 16, generator=torch.Generator().manual_seed(1))

    def favor(query, key, value):
        return jrt.torch.prefix_linear_attention(query, key, value, mask="causal", feature_map="favor", features=24,
                                                 projection=projection)

    def reference(query, key, value):
        features = [torch.exp(x / 2 @ projection.double().T - (x * x).sum(-1, keepdim=True) / 8) for x in (query, key)]
        weights = torch.einsum("bihr,bjhr->bhij", *features).tril()
        return torch.einsum("bhij,bjhc->bihc", weights / weights.sum(-1, keepdim=True), value)

    tensors = random((2, 20, 2, 16), (2, 20, 2, 16), (2, 20, 2, 32))
    check(favor, reference, tensors, 1e-6)
    check(torch.compile(favor, fullgraph=True, backend="aot_eager"), reference, tensors, 1e-6)
    projection.requires_grad_()
    with pytest.raises(ValueError, match="'projection' requires a gradient, but gradients do not reach data"):
        favor(*tensors)
    with torch.no_grad():
        assert (favor(*tensors) - reference(*tensors)).norm() <= 1e-6
    for settings, message in (({"horizon": 7}, "there is no argument 'horizon'; the data of this feature map are: none"),
                              ({"feature_map": "favor", "features": 24}, "'projection' is missing, but the feature map needs"),
                              ({"feature_map": "favor", "features": 24, "projection": 3}, "'projection' is a int, but must be"),
                              ({"feature_map": "cosformer", "horizon": "far"}, "'horizon' is a str, but must be a number")):
        with pytest.raises(ValueError, match=message):
            jrt.torch.prefix_linear_attention(*tensors, mask="causal", **settings)


@pytest.mark.parametrize("graph", [False, True])
def test_pieces_of_a_map_with_positions_have_the_gradients_of_the_whole(graph):
    def reference(query, key, value):
        angle = torch.pi / 2 * torch.arange(1, 31, dtype=torch.float64)[:, None, None] / 50
        features = [torch.cat([x.relu() * angle.sin(), x.relu() * angle.cos()], dim=-1) for x in (query, key)]
        weights = torch.einsum("bihr,bjhr->bhij", *features).tril()
        return torch.einsum("bhij,bjhc->bihc", weights / weights.sum(-1, keepdim=True), value)

    def pieces(*tensors):
        settings = {"mask": "causal", "feature_map": "cosformer", "horizon": 50}
        first, state = jrt.torch.prefix_linear_attention(*(tensor[:, :13] for tensor in tensors), return_state=True, **settings)
        last = jrt.torch.prefix_linear_attention(*(tensor[:, 13:] for tensor in tensors), initial_state=state,
                                                 first_positions=torch.tensor([13, 13], dtype=torch.int32), **settings)
        return torch.cat([first, last], dim=1)

    tensors = random((2, 30, 2, 16), (2, 30, 2, 16), (2, 30, 2, 32))
    check(torch.compile(pieces, fullgraph=True, backend="aot_eager") if graph else pieces, reference, tensors, 1e-9)


def test_graphs_of_dynamic_shapes():
    tensors = random((2, 20, 2, 16), (2, 20, 2, 16), (2, 20, 2, 32))
    function = torch.compile(jrt.torch.based, fullgraph=True, dynamic=True, backend="aot_eager")
    for count in (20, 13, 2):
        check(function, linear_reference, [tensor.detach()[:, :count].requires_grad_() for tensor in tensors], 1e-11)
    signal, weight = (tensor.detach() for tensor in random((2, 50, 8), (8, 3)))
    function = torch.compile(jrt.torch.gated_convolution, fullgraph=True, dynamic=True, backend="aot_eager")
    for count in (50, 7):
        output = jrt.torch.gated_convolution(signal[:, :count], weight)
        assert (function(signal[:, :count], weight) - output).norm() <= 1e-12 * output.norm()


def test_rows_that_lie_in_no_packed_sequence_are_zero():
    tensors = random((30, 2, 16), (30, 2, 16), (30, 2, 32))
    torch.full((30, 2, 32), 7.0, dtype=torch.float64)  # what freed memory may hold
    for function in (jrt.torch.based, torch.compile(jrt.torch.based, fullgraph=True, backend="aot_eager")):
        output = function(*tensors, cu_seqlens=torch.tensor([3, 10, 20], dtype=torch.int32))
        for each in (output, *torch.autograd.grad(output.sum(), tensors)):
            assert each[3:20].any() and not each[:3].any() and not each[20:].any()


def test_transforms_and_forward_mode_are_refused():
    query, key, value = (tensor.detach() for tensor in random((1, 9, 2, 16), (1, 9, 2, 16), (1, 9, 2, 32)))
    for transform in (lambda: torch.func.vmap(jrt.torch.based)(query[None], key[None], value[None]),
                      lambda: torch.func.grad(lambda x: jrt.torch.based(x, key, value).sum())(query),
                      lambda: torch.func.jvp(lambda x: jrt.torch.based(x, key, value), (query,), (query,))):
        with pytest.raises(RuntimeError, match="torch.func's transforms .* do not reach these functions"):
            transform()
    with torch.autograd.forward_ad.dual_level():
        jrt.torch.based(query, key, value)
        with pytest.raises(RuntimeError, match="derivatives in forward mode are not supported"):
            jrt.torch.based(torch.autograd.forward_ad.make_dual(query, query), key, value)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning", "ignore::DeprecationWarning")
def test_a_trace_calls_the_op():
    tensors = [tensor.detach() for tensor in random((1, 9, 2, 16), (1, 9, 2, 16), (1, 9, 2, 32))]
    traced = torch.jit.trace(jrt.torch.based, [torch.zeros_like(tensor) for tensor in tensors])
    assert (traced(*tensors) - linear_reference(*tensors)).norm() <= 1e-10


@pytest.mark.parametrize("spoil, message", [
    (lambda t: t.update(key=None), "'key' is a NoneType, but must be a tensor"),
    (lambda t: t.update(query=t["query"].detach().numpy()), "'query' is a ndarray, but must be a tensor"),
    (lambda t: t.update(query=t["query"][0, 0]), "'query' has 2 dimensions, but must have 4"),
    (lambda t: t.update(query=t["query"].to("meta")), "'query' is on meta .*but must be on the CPU or a CUDA device"),
    (lambda t: t.update(query=t["query"].to_sparse()), "'query' is on cpu with the layout torch.sparse_coo"),
    (lambda t: t.update(key=t["key"].float()), "'key' has dtype float32, but the operator's is float64"),
    (lambda t: t.update(cu_seqlens=[0, 9]), "'cu_seqlens' is a list, but must be a tensor or None"),
    (lambda t: t.update(prefix_lens=torch.tensor([3])), "'prefix_lens' has dtype int64, but the operator's is int32"),
    (lambda t: t.update(initial_state=torch.zeros(1, 2, 5)), "'initial_state' has dtype float32, but the operator's is"),
    (lambda t: t.update(feature_map="taylor3"), "feature_map is 'taylor3', but must be one of"),
    (lambda t: t.update(key_encoder=t["key"].repeat(1, 2, 1, 1), value_encoder=t["value"].repeat(1, 2, 1, 1)),
     "is 18, but must be from 0 to 9"),
])
def test_wrong_tensors_are_named(spoil, message):
    tensors = dict(zip(("query", "key", "value"), random((1, 9, 2, 16), (1, 9, 2, 16), (1, 9, 2, 32))))
    spoil(tensors)
    with pytest.raises(ValueError, match=message):
        jrt.torch.prefix_linear_attention(**tensors)


def test_wrong_tensors_of_a_convolution_are_named():
    signal, weight = (tensor.detach() for tensor in random((2, 50, 8), (8, 3)))
    for wrong, message in (((signal, weight[0]), r"'weight' has shape \(3,\), but channels and taps ask for \(8, 3\)"),
                           ((signal, weight[:3]), r"'weight' has shape \(3, 3\), but channels and taps ask for \(8, 3\)"),
                           ((signal, weight, weight[:, 0].contiguous()[:4]), r"'bias' has shape \(4,\), but channels ask for"),
                           ((signal, None), "'weight' is a NoneType, but must be a tensor")):
        with pytest.raises(ValueError, match=message):
            jrt.torch.gated_convolution(*wrong)


def test_no_gradient_is_recorded_where_none_is_wanted():
    tensors = random((1, 9, 2, 16), (1, 9, 2, 16), (1, 9, 2, 32))
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode:
            assert not jrt.torch.based(*tensors).requires_grad
    for tensor in tensors[1:]:
        tensor.requires_grad_(False)
    output = jrt.torch.based(*tensors)
    assert output.requires_grad and len(torch.autograd.grad(output.sum(), tensors[:1])) == 1
