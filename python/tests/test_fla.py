# SPDX-License-Identifier: Apache-2.0
import importlib.util
import logging
import os
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
pytest.importorskip("fla", reason="flash-linear-attention is not installed")

import jrt.fla  # noqa: E402, F401
from fla.ops.based import fused_chunk_based, parallel_based  # noqa: E402
from fla.ops.based.naive import naive_parallel_based  # noqa: E402
from fla.ops.linear_attn import chunk_linear_attn, fused_chunk_linear_attn  # noqa: E402
from fla.ops.linear_attn.naive import naive_recurrent_linear_attn  # noqa: E402

# fla's formulas are the reference. Its own kernels need a GPU.
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def random(*shapes):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(DEVICE).requires_grad_() for shape in shapes]


def same(actual, expected, tensors, bound=1e-5):
    pairs = [(one, other) for one, other in zip(actual, expected) if other is not None]
    gradients = [torch.randn_like(one) for one, _ in pairs]
    for side in zip(*pairs):
        pairs = pairs + [torch.autograd.grad(side, tensors, gradients, allow_unused=True)]
    *pairs, ours, theirs = pairs
    for one, other in [*pairs, *zip(ours, theirs)]:
        assert one.shape == other.shape
        assert (one - other).norm() <= bound * other.norm()


@pytest.mark.parametrize("function", [parallel_based, fused_chunk_based])
@pytest.mark.parametrize("scale, use_norm", [(None, True), (0.3, True), (None, False)])
def test_based(function, scale, use_norm, caplog):
    caplog.set_level(logging.INFO)
    tensors = random((2, 70, 3, 16), (2, 70, 3, 16), (2, 70, 3, 24))
    expected = naive_parallel_based(*(tensor.transpose(1, 2) for tensor in tensors), scale=scale, use_norm=use_norm)
    same([function(*tensors, scale=scale, use_norm=use_norm)], [expected.transpose(1, 2)], tensors)


@pytest.mark.parametrize("function", [chunk_linear_attn, fused_chunk_linear_attn])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("scale", [None, 0.5])
def test_linear_attention(function, normalize, scale):
    tensors = random((2, 70, 3, 20), (2, 70, 3, 20), (2, 70, 3, 24), (2, 3, 20, 24), (2, 1, 3, 20))
    if normalize:  # products of features do not sum to zero then
        tensors = [tensor.detach().abs().add(0.1).requires_grad_() for tensor in tensors]
    q, k, v, state, key_sum = tensors
    arguments = {"scale": scale, "initial_state": (state, key_sum) if normalize else state, "output_final_state": True,
                 "normalize": normalize}
    actual, expected = function(q, k, v, **arguments), naive_recurrent_linear_attn(q, k, v, **arguments)
    flat = [(output, *states) if normalize else (output, states) for output, states in (actual, expected)]
    same(*flat, tensors if normalize else tensors[:4])
    output, states = function(q, k, v, scale=scale, normalize=normalize)
    assert states is None or states[0] is None and states[1].shape == key_sum.shape
    assert (output - naive_recurrent_linear_attn(q, k, v, scale=scale, normalize=normalize)[0]).norm() <= 1e-5 * output.norm()


@pytest.mark.parametrize("normalize", [False, True])
def test_packed_sequences(normalize):
    q, k, v, states = (tensor.detach().abs().add(0.1) for tensor in
                       random((1, 60, 2, 20), (1, 60, 2, 20), (1, 60, 2, 24), (3, 2, 20, 24)))
    offsets = [0, 20, 21, 60]
    output, final = chunk_linear_attn(q, k, v, initial_state=states, output_final_state=True, normalize=normalize,
                                      cu_seqlens=torch.tensor(offsets, device=DEVICE))
    for sequence, (start, end) in enumerate(zip(offsets, offsets[1:])):
        alone, state = naive_recurrent_linear_attn(*(tensor[:, start:end] for tensor in (q, k, v)),
                                                   initial_state=states[sequence:sequence + 1], output_final_state=True,
                                                   normalize=normalize)
        pairs = [(output[:, start:end], alone)]
        pairs += zip(final, state) if normalize else [(final, state)]
        for actual, expected in pairs:
            actual = actual if actual.shape[0] == 1 else actual[sequence:sequence + 1]
            assert (actual - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="fla's layers need transformers")
def test_layers_use_it_and_the_environment_switches_it_off():
    code = """
import logging, sys
logging.basicConfig(level=logging.INFO, stream=sys.stdout)
import torch, jrt.fla
from fla.layers.based import BasedLinearAttention
for mode in ("parallel", "chunk"):
    layer = BasedLinearAttention(64, num_key_value_heads=4, num_heads=4, mode=mode)
    x = torch.randn(1, 50, 64)
    expected = layer.forward_reference(x)
    assert (layer(x) - expected).norm() <= 1e-4 * expected.norm()
    print("same", mode)
"""
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(path for path in sys.path if path))
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "same parallel" in result.stdout and "same chunk" in result.stdout
    assert "parallel_based -> jrt" in result.stdout + result.stderr
    if DEVICE == "cpu":  # fla's own kernels do not run there
        environment["FLA_JRT"] = "0"
        result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
        assert result.returncode != 0 and "same" not in result.stdout


def test_what_is_not_taken_has_a_reason():
    q, k, v = random((1, 9, 2, 64), (1, 9, 2, 64), (1, 9, 2, 24))
    backend = jrt.fla.FlaBackend()
    assert backend.verify("parallel_based", q, k, v) == (
        False, "K is 64 and V 24, but K is at most 32 and K + V at most 480")
    assert backend.verify("chunk_linear_attn", q, k, v) == (True, None)
    assert backend.verify("chunk_linear_attn", q, k.half(), v)[0] is False
    state = torch.zeros(3, 2, 64, 24)
    assert "a state has the shape (3, 2, 64, 24), not (1, 2, 64, 24)" in backend.verify("chunk_linear_attn", q, k, v,
                                                                                      initial_state=state)[1]
