# SPDX-License-Identifier: Apache-2.0
"""The models that are compared, all of one width and depth, with the same MLPs:

    based        gated convolutions and causal linear attention in turn
    jrt          the same with prefix linear attention: the encoder region is read non-causally, too
    repeated     based, but shown its input twice; outputs are those of the second reading
    elu          based with the feature map elu(x) + 1 in place of the Taylor map, D = d
    transformer  softmax attention with rotary positions in every layer

`model(tokens, positions)` returns logits at these positions alone, (batch, n, vocabulary).
"""

import json
import math
import pathlib
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

import jrt.torch
from jrt.torch.language_model import LanguageModel
from jrt.torch.nn import JRTBlock, LinearAttention, RMSNorm

KINDS = ("based", "jrt", "repeated", "elu", "transformer")
WHOLE = 1 << 20  # an encoder region as long as any input


@dataclass(frozen=True)
class Shape:
    vocabulary: int
    width: int = 64
    layers: int = 4
    heads: int = 2
    feature_dim: int = 16
    hidden: int = 128
    enc_length: int = WHOLE  # jrt: M


def configuration(kind, shape):
    """What config.json says, for `LanguageModel` and for the program jrt_lm."""
    attention = {"_target_": "based.models.mixers.linear_attention.LinearAttention", "feature_dim": shape.feature_dim,
                 "num_heads": shape.heads}
    if kind == "jrt":
        attention |= {"_target_": "based.models.mixers.prefix_linear_attention.PrefixLinearAttention",
                      "enc_length": shape.enc_length}
    return {"vocab_size": shape.vocabulary, "n_embd": shape.width, "n_layer": shape.layers, "n_head": shape.heads,
            "n_inner": shape.hidden, "activation_function": "swiglu", "rms_norm": True, "layer_norm_epsilon": 1e-5,
            "mixer": {"_target_": "based.models.mixers.convolution.BaseConv", "expand_proj": 2, "kernel_size": 3,
                      "use_bias": False},
            "alt_mixer": attention, "alt_mixer_layers": list(range(1, shape.layers, 2)), "tie_word_embeddings": True,
            "mlp_fc1_bias": False, "mlp_fc2_bias": False, "qkv_proj_bias": False, "out_proj_bias": False}


class Recurrent(LanguageModel):
    """`LanguageModel` with logits at chosen positions, so that a loss on few tokens pays for few."""

    def __init__(self, kind, shape):
        super().__init__(configuration(kind, shape), multiple_of=shape.hidden)
        self.config = configuration(kind, shape)
        self.repeats = kind == "repeated"
        if kind == "elu":
            for layer in self.transformer.layers[1::2]:
                layer.mixer = EluAttention(shape.width, shape.heads, feature_dim=shape.feature_dim)
        initialise(self)

    def forward(self, tokens, positions=None, **lengths):
        count = tokens.shape[1]
        if self.repeats:
            tokens = torch.cat([tokens, tokens], dim=1)
        x = self.hidden(tokens, **lengths)[:, -count:]
        return self.logits(x if positions is None else _rows(x, positions))


class EluAttention(LinearAttention):
    """Linear attention with the features elu(x) + 1."""

    def forward(self, x, *, cu_seqlens=None, prefix_lens=None, left_pads=None):
        del prefix_lens
        output = jrt.torch.prefix_linear_attention(**self._tensors(x), mask="causal", feature_map="elu",
                                                   cu_seqlens=cu_seqlens, left_pads=left_pads)
        return self.out_proj(output.flatten(-2))


class FullAttention(nn.Module):
    """Causal softmax attention of PyTorch's, with rotary positions."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.Wqkv = nn.Linear(width, 3 * width, bias=False)
        self.out_proj = nn.Linear(width, width, bias=False)

    def forward(self, x, **_):
        query, key, value = self.Wqkv(x).unflatten(-1, (3, self.heads, -1)).transpose(1, 3).unbind(2)
        query, key = rotated(query), rotated(key)
        output = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.out_proj(output.transpose(1, 2).flatten(2))


def rotated(x, base=10000.0):
    """x (…, tokens, dim) by its positions, as two halves."""
    half = x.shape[-1] // 2
    rates = base ** (torch.arange(half, device=x.device, dtype=torch.float32) / -half)
    angles = torch.arange(x.shape[-2], device=x.device, dtype=torch.float32)[:, None] * rates
    cosine, sine = angles.cos(), angles.sin()
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat([first * cosine - second * sine, first * sine + second * cosine], dim=-1).to(x.dtype)


class Transformer(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.embeddings = nn.Embedding(shape.vocabulary, shape.width)
        self.layers = nn.ModuleList([JRTBlock(shape.width, FullAttention(shape.width, shape.heads), hidden=shape.hidden,
                                              mlp_fc1_bias=False, mlp_fc2_bias=False, multiple_of=shape.hidden)
                                     for _ in range(shape.layers)])
        self.ln_f = RMSNorm(shape.width)
        initialise(self)

    def forward(self, tokens, positions=None):
        x = self.embeddings(tokens)
        for layer in self.layers:
            x = layer(x)
        return functional.linear(self.ln_f(x if positions is None else _rows(x, positions)), self.embeddings.weight)


def _rows(x, positions):
    return x.gather(1, positions.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


def initialise(model):
    """Embeddings as large as makes first logits about 1; weights of variance 1/inputs, and less for what adds to the residual
    stream, by the square root of the number of such additions."""
    blocks = [module for module in model.modules() if isinstance(module, JRTBlock)]
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=module.embedding_dim ** -0.5)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features ** -0.5)
    for block in blocks:
        for projection in (block.mixer.out_proj, block.mlp.fc2):
            projection.weight.data.div_(math.sqrt(2 * len(blocks)))


def new_model(kind, shape, seed):
    """A model with the random weights of this seed."""
    if kind not in KINDS:
        raise ValueError(f"new_model: kind is {kind!r}, but must be one of {', '.join(KINDS)}.")
    torch.manual_seed(seed)
    return Transformer(shape) if kind == "transformer" else Recurrent(kind, shape)


def operators(kind, shape, dtype):
    """The library's operators of a model, to be compiled before the first step."""
    if kind == "transformer":
        return []
    return [jrt.Operator(kind="convolution", dtype=dtype, kernel_width=3),
            jrt.Operator(kind="linear", dtype=dtype, d=shape.feature_dim, dv=shape.width // shape.heads,
                         mask="prefix" if kind == "jrt" else "causal", feature_map="elu" if kind == "elu" else "taylor2")]


def state_bytes(kind, shape):
    """float32 numbers that decoding keeps of a sequence, whatever its length; None for the Transformer, whose cache grows."""
    if kind == "transformer":
        return None
    d = shape.feature_dim
    features = d if kind == "elu" else 1 + d + d * (d + 1) // 2
    linear = shape.layers // 2
    return 4 * (linear * (shape.width + shape.heads) * features + (shape.layers - linear) * 2 * shape.width)


def save_for_jrt_lm(model, folder):
    """config.json and pytorch_model.bin, which the program jrt_lm reads (docs/jrt-rnn.md)."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(model.config, indent=1) + "\n")
    torch.save({name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}, folder / "pytorch_model.bin")
