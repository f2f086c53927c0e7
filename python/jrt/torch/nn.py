# SPDX-License-Identifier: Apache-2.0
"""Modules of JRT-RNN and Based, whose parameters have the authors' names: their checkpoints load with strict=True.

Mixers take (batch, tokens, width) or, packed with `cu_seqlens`, (tokens, width), and return the same shape:

    y = mixer(x)                                  # for training: with gradients, under torch.compile and autocast
    state = mixer.new_state(slots)                # for generation, without gradients: a pool of states, one a slot
    y = mixer.prefill(x, state, slots)            # whole prompts: the states after them go to the int32 slots
    y = mixer.step(x, state, slots, positions)    # a few new tokens of every sequence: states move on; -1 pads

Without `slots` sequence b has slot b. `positions` (batch) are the tokens before; the window's rotation needs them.
Lengths, which every forward call takes and every mixer understands: `cu_seqlens` of packed sequences, `prefix_lens` (M of
each sequence, by default what `enc_length` says) and `left_pads`, all int32.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import jrt.torch
from jrt._operator import Operator

__all__ = ["BaseConv", "GatedMLP", "JRTBlock", "LinearAttention", "PrefixLinearAttention", "RMSNorm", "SlidingWindow"]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _sum_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


class RMSNorm(nn.RMSNorm):
    """weight · x / √(mean(x²) + eps), computed in at least float32; the result has the weight's type."""

    def forward(self, x: Tensor) -> Tensor:
        dtype = _sum_dtype(self.weight.dtype)
        return functional.rms_norm(x.to(dtype), self.normalized_shape, self.weight.to(dtype), self.eps).to(self.weight.dtype)


class GatedMLP(nn.Module):
    """fc2(silu(gate) · value) with [value, gate] = fc1(x). `hidden` is rounded up to a multiple of `multiple_of`."""

    def __init__(self, width: int, hidden: int | None = None, *, bias1: bool = True, bias2: bool = True,
                 multiple_of: int = 256) -> None:
        super().__init__()
        hidden = math.ceil((hidden or int(8 * width / 3)) / multiple_of) * multiple_of
        self.fc1 = nn.Linear(width, 2 * hidden, bias=bias1)
        self.fc2 = nn.Linear(hidden, width, bias=bias2)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.fc1(x).chunk(2, dim=-1)
        return self.fc2(functional.silu(gate) * value)


class _Mixer(nn.Module):
    """What mixers have in common: their states."""

    out_proj: nn.Linear

    def _operator(self, dtype: torch.dtype) -> Operator:
        raise NotImplementedError

    def _state_heads(self) -> int:
        raise NotImplementedError

    def new_state(self, slots: int) -> Tensor:
        """A cleared pool of states for so many sequences, for parameters of the present type and device."""
        weight = self.out_proj.weight
        states: Tensor = self._operator(weight.dtype).new_states(slots, self._state_heads(), like=weight)
        return states

    def _run(self, operation: str, tensors: dict[str, Tensor], states: dict[str, Any]) -> Tensor:
        """Calls an operation of the operator for tensors of this type, with states that it updates."""
        first = next(iter(tensors.values()))
        threads = torch.get_num_threads() if first.device.type == "cpu" else 1
        states = {name: value for name, value in states.items() if value is not None}
        return getattr(self._operator(first.dtype), operation)(**tensors, **states, threads=threads)["output"]


def _final(state: Tensor, slots: Tensor | None, continues: bool | Tensor) -> dict[str, Any]:
    """States of a prefill. `continues` is whether sequences go on from their slots: a bool, or uint8 for each of them."""
    states = {"final_state": state, "final_state_slots": slots}
    if continues is not False:
        states |= {"initial_state": state, "initial_state_slots": slots}
        states["has_initial_state"] = None if continues is True else continues
    return states


class _ShortConvolution(nn.Module):
    """The parameters of a depthwise convolution, under the authors' name `conv.conv`."""

    def __init__(self, channels: int, kernel_size: int, bias: bool) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, channels, kernel_size, groups=channels, bias=bias)


class BaseConv(_Mixer):
    """out_proj(silu(conv(u)) · g) with [u, g] = in_proj(x), conv causal and depthwise: Based's gated short convolution.

    width        of inputs and outputs
    kernel_size  taps, 2 to 8
    expand_proj  in_proj's outputs in widths; half of them are the convolution's channels
    use_bias     of both projections; conv_bias that of the convolution"""

    def __init__(self, width: int, *, kernel_size: int = 3, expand_proj: int = 2, use_bias: bool = True,
                 conv_bias: bool = False) -> None:
        super().__init__()
        self.channels = expand_proj * width // 2
        self.in_proj = nn.Linear(width, 2 * self.channels, bias=use_bias)
        self.conv = _ShortConvolution(self.channels, kernel_size, conv_bias)
        self.out_proj = nn.Linear(self.channels, width, bias=use_bias)

    def _operator(self, dtype: torch.dtype) -> Operator:
        return Operator(kind="convolution", dtype=_name(dtype), kernel_width=self.conv.conv.kernel_size[0])

    def _state_heads(self) -> int:
        return self.channels

    def forward(self, x: Tensor, *, cu_seqlens: Tensor | None = None, prefix_lens: Tensor | None = None,
                left_pads: Tensor | None = None) -> Tensor:
        del prefix_lens
        signal, gate = self.in_proj(x).split(self.channels, dim=-1)
        weight, bias = self.conv.conv.weight.squeeze(1), self.conv.conv.bias
        return self.out_proj(jrt.torch.gated_convolution(signal, weight, bias, gate, cu_seqlens=cu_seqlens,
                                                         left_pads=left_pads))

    def _tensors(self, x: Tensor) -> dict[str, Any]:
        signal, gate = (half.unsqueeze(-2) for half in self.in_proj(x).split(self.channels, dim=-1))
        tensors = {"input": signal, "gate": gate, "weight": self.conv.conv.weight.squeeze(1)}
        return tensors if self.conv.conv.bias is None else tensors | {"bias": self.conv.conv.bias}

    @torch.no_grad()
    def prefill(self, x: Tensor, state: Tensor, slots: Tensor | None = None, *, continues: bool | Tensor = False,
                cu_seqlens: Tensor | None = None, left_pads: Tensor | None = None, **_: Any) -> Tensor:
        states = _final(state, slots, continues) | {"cu_seqlens": cu_seqlens, "left_pads": left_pads}
        return self.out_proj(self._run("prefill", self._tensors(x), states).squeeze(-2))

    @torch.no_grad()
    def step(self, x: Tensor, state: Tensor, slots: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
        output = self._run("decode_step", self._tensors(x), {"source": state, "source_slots": slots})
        return self.out_proj(output.squeeze(-2))


class LinearAttention(_Mixer):
    """Based's linear attention: out_proj of causal attention with weights 1 + s + s²/2, s = q·k/√feature_dim.

    width        of inputs and outputs, num_heads times the dimension of values
    feature_dim  of queries and keys of a head
    padding      "drop": left pads do nothing; "zero_keys": as in the authors' evaluation"""

    _mask = "causal"

    def __init__(self, width: int, num_heads: int, *, feature_dim: int = 16, padding: str = "drop") -> None:
        super().__init__()
        if width % num_heads != 0:
            raise ValueError(f"LinearAttention: width is {width}, but must be a multiple of num_heads = {num_heads}.")
        self.num_heads, self.feature_dim, self.padding = num_heads, feature_dim, padding
        self.proj_q = nn.Linear(width, num_heads * feature_dim, bias=False)
        self.proj_k = nn.Linear(width, num_heads * feature_dim, bias=False)
        self.proj_v = nn.Linear(width, width, bias=False)
        self.out_proj = nn.Linear(width, width, bias=False)

    def _operator(self, dtype: torch.dtype) -> Operator:
        return Operator(kind="linear", dtype=_name(dtype), d=self.feature_dim, dv=self.out_proj.in_features // self.num_heads,
                        mask=self._mask, padding=self.padding)

    def _state_heads(self) -> int:
        return self.num_heads

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1))

    def _encoder(self, x: Tensor, cu_seqlens: Tensor | None, prefix_lens: Tensor | None) -> dict[str, Any]:
        """Keys and values of the encoder region, and its lengths."""
        return {"prefix_lens": prefix_lens}

    def _tensors(self, x: Tensor) -> dict[str, Any]:
        return {"query": self._heads(self.proj_q(x)), "key": self._heads(self.proj_k(x)), "value": self._heads(self.proj_v(x))}

    def forward(self, x: Tensor, *, cu_seqlens: Tensor | None = None, prefix_lens: Tensor | None = None,
                left_pads: Tensor | None = None) -> Tensor:
        tensors = self._tensors(x) | self._encoder(x, cu_seqlens, prefix_lens)
        output = jrt.torch.prefix_linear_attention(**tensors, mask=self._mask, padding=self.padding, cu_seqlens=cu_seqlens,
                                                   left_pads=left_pads)
        return self.out_proj(output.flatten(-2))

    @torch.no_grad()
    def prefill(self, x: Tensor, state: Tensor, slots: Tensor | None = None, *, continues: bool | Tensor = False,
                positions: Tensor | None = None, cu_seqlens: Tensor | None = None, prefix_lens: Tensor | None = None,
                left_pads: Tensor | None = None) -> Tensor:
        states = _final(state, slots, continues) | {"cu_seqlens": cu_seqlens, "left_pads": left_pads}
        output = self._run("prefill", self._tensors(x), states | self._encoder(x, cu_seqlens, prefix_lens))
        return self.out_proj(output.flatten(-2))

    @torch.no_grad()
    def step(self, x: Tensor, state: Tensor, slots: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
        output = self._run("decode_step", self._tensors(x), {"source": state, "source_slots": slots})
        return self.out_proj(output.flatten(-2))


class PrefixLinearAttention(LinearAttention):
    """`LinearAttention` whose first M tokens, the encoder region, are also read non-causally, through keys and values of
    their own (arXiv 2407.05483). M is `enc_length` or what `prefix_lens` says, and never more than there are tokens."""

    _mask = "prefix"

    def __init__(self, width: int, num_heads: int, *, feature_dim: int = 16, enc_length: int = 1024,
                 padding: str = "drop") -> None:
        super().__init__(width, num_heads, feature_dim=feature_dim, padding=padding)
        self.enc_length = enc_length
        self.proj_k_enc = nn.Linear(width, num_heads * feature_dim, bias=False)
        self.proj_v_enc = nn.Linear(width, width, bias=False)

    def _encoder(self, x: Tensor, cu_seqlens: Tensor | None, prefix_lens: Tensor | None) -> dict[str, Any]:
        lengths = {"prefix_lens": prefix_lens}
        if cu_seqlens is not None:
            # Keys of all tokens, of which prefix_lens has the first: which ones they are, only the device knows.
            lengths["cu_encoder_seqlens"] = cu_seqlens
            if prefix_lens is None:
                lengths["prefix_lens"] = (cu_seqlens[1:] - cu_seqlens[:-1]).clamp(max=self.enc_length)
        elif prefix_lens is None:
            x = x[:, :self.enc_length]
        return {"key_encoder": self._heads(self.proj_k_enc(x)), "value_encoder": self._heads(self.proj_v_enc(x))} | lengths

    @torch.no_grad()
    def prefill(self, x: Tensor, state: Tensor, slots: Tensor | None = None, *, continues: bool | Tensor = False,
                prefix_lens: Tensor | None = None, **others: Any) -> Tensor:
        """With `continues` the encoder region was read by an earlier call, unless `prefix_lens` gives this one, too."""
        if continues is not False and prefix_lens is None:
            sequences = x.shape[0] if others.get("cu_seqlens") is None else others["cu_seqlens"].shape[0] - 1
            prefix_lens = x.new_zeros(sequences, dtype=torch.int32)
        return super().prefill(x, state, slots, continues=continues, prefix_lens=prefix_lens, **others)


class SlidingWindow(_Mixer):
    """out_proj of softmax attention over the token's own key and window_size // 2 keys before it, from [q, k, v] = Wqkv(x);
    queries and keys are rotated by their positions.

    width           of inputs and outputs, num_heads times the dimension of a head
    num_heads_kv    heads of keys and values; num_heads is a multiple of it
    softmax_scale   of scores; 1/√(dimension of a head) by default
    rotary_emb_dim  the first dimensions of a head, which are rotated as two halves; 0: none"""

    def __init__(self, width: int, num_heads: int, *, num_heads_kv: int | None = None, window_size: int = 128,
                 softmax_scale: float | None = None, rotary_emb_dim: int = 0, rotary_emb_base: float = 10000.0,
                 qkv_proj_bias: bool = True, out_proj_bias: bool = True) -> None:
        super().__init__()
        if width % num_heads != 0:
            raise ValueError(f"SlidingWindow: width is {width}, but must be a multiple of num_heads = {num_heads}.")
        self.head_dim = width // num_heads
        self.num_heads, self.num_heads_kv = num_heads, num_heads_kv or num_heads
        self.left_window = window_size // 2
        self.softmax_scale = softmax_scale
        self.rotary_emb_dim, self.rotary_emb_base = rotary_emb_dim, rotary_emb_base
        self.Wqkv = nn.Linear(width, (num_heads + 2 * self.num_heads_kv) * self.head_dim, bias=qkv_proj_bias)
        self.out_proj = nn.Linear(width, width, bias=out_proj_bias)

    def _operator(self, dtype: torch.dtype) -> Operator:
        return Operator(kind="window", dtype=_name(dtype), d=self.head_dim, left_window=self.left_window)

    def _state_heads(self) -> int:
        return self.num_heads_kv

    def _rotated(self, x: Tensor, positions: Tensor) -> Tensor:
        """x (…, tokens, heads, dim) by angles position · base^(−2i/n), for pairs i, i + n/2 of its first n dimensions."""
        if self.rotary_emb_dim == 0:
            return x
        half = self.rotary_emb_dim // 2
        dtype = _sum_dtype(x.dtype)
        rates = self.rotary_emb_base ** (torch.arange(half, device=x.device, dtype=torch.float64) / -half)
        angles = positions.to(torch.float64).unsqueeze(-1) * rates
        cosine, sine = (part.to(dtype).unsqueeze(-2) for part in (angles.cos(), angles.sin()))
        first, second = x[..., :half].to(dtype), x[..., half:2 * half].to(dtype)
        turned = torch.cat([first * cosine - second * sine, first * sine + second * cosine], dim=-1).to(x.dtype)
        return turned if 2 * half == self.head_dim else torch.cat([turned, x[..., 2 * half:]], dim=-1)

    def _tensors(self, x: Tensor, positions: Tensor) -> dict[str, Any]:
        heads = self.Wqkv(x).unflatten(-1, (-1, self.head_dim))
        query, key, value = heads.split([self.num_heads, self.num_heads_kv, self.num_heads_kv], dim=-2)
        if self.softmax_scale is not None and not math.isclose(self.softmax_scale, self.head_dim ** -0.5):
            query = query * (self.softmax_scale * self.head_dim ** 0.5)
        return {"query": self._rotated(query, positions), "key": self._rotated(key, positions), "value": value}

    def forward(self, x: Tensor, *, cu_seqlens: Tensor | None = None, prefix_lens: Tensor | None = None,
                left_pads: Tensor | None = None) -> Tensor:
        del prefix_lens
        tensors = self._tensors(x, _positions(x, cu_seqlens, left_pads))
        output = jrt.torch.window_attention(**tensors, left_window=self.left_window, cu_seqlens=cu_seqlens,
                                            left_pads=left_pads)
        return self.out_proj(output.flatten(-2))

    @torch.no_grad()
    def prefill(self, x: Tensor, state: Tensor, slots: Tensor | None = None, *, continues: bool | Tensor = False,
                positions: Tensor | None = None, cu_seqlens: Tensor | None = None, left_pads: Tensor | None = None,
                **_: Any) -> Tensor:
        tensors = self._tensors(x, _positions(x, cu_seqlens, left_pads, positions))
        states = _final(state, slots, continues) | {"cu_seqlens": cu_seqlens, "left_pads": left_pads}
        return self.out_proj(self._run("prefill", tensors, states).flatten(-2))

    @torch.no_grad()
    def step(self, x: Tensor, state: Tensor, slots: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
        tensors = self._tensors(x, _positions(x, None, None, positions))
        output = self._run("decode_step", tensors, {"source": state, "source_slots": slots})
        return self.out_proj(output.flatten(-2))


def _positions(x: Tensor, cu_seqlens: Tensor | None, left_pads: Tensor | None, first: Tensor | None = None) -> Tensor:
    """Positions of the tokens of x, counted from `first` (batch) and from the first token that is no padding."""
    tokens = torch.arange(x.shape[-2], device=x.device)
    if cu_seqlens is None:
        tokens = tokens.expand(x.shape[0], -1)
        start = 0 if left_pads is None else -left_pads.unsqueeze(-1)
        start = start if first is None else start + first.unsqueeze(-1)
    else:
        sequence = torch.searchsorted(cu_seqlens, tokens.to(cu_seqlens.dtype), right=True) - 1
        sequence = sequence.clamp(0, cu_seqlens.shape[0] - 2)
        start = -cu_seqlens[sequence]
        for lengths, sign in ((left_pads, -1), (first, 1)):
            start = start if lengths is None else start + sign * lengths[sequence]
    return tokens + start


class JRTBlock(nn.Module):
    """A layer: x + mixer(norm1(x)), then x + mlp(norm2(x)). x is at least float32; mixer and MLP compute in their own type."""

    def __init__(self, width: int, mixer: nn.Module, *, hidden: int | None = None, norm_eps: float = 1e-5,
                 mlp_fc1_bias: bool = True, mlp_fc2_bias: bool = True, multiple_of: int = 256) -> None:
        super().__init__()
        self.norm1 = RMSNorm(width, eps=norm_eps)
        self.mixer: Any = mixer
        self.norm2 = RMSNorm(width, eps=norm_eps)
        self.mlp = GatedMLP(width, hidden, bias1=mlp_fc1_bias, bias2=mlp_fc2_bias, multiple_of=multiple_of)

    def _around(self, x: Tensor, mix: Callable[[Tensor], Tensor]) -> Tensor:
        x = x + mix(self.norm1(x))
        return x + self.mlp(self.norm2(x))

    def forward(self, x: Tensor, **lengths: Any) -> Tensor:
        return self._around(x, lambda normed: self.mixer(normed, **lengths))

    @torch.no_grad()
    def prefill(self, x: Tensor, state: Tensor, slots: Tensor | None = None, **others: Any) -> Tensor:
        return self._around(x, lambda normed: self.mixer.prefill(normed, state, slots, **others))

    @torch.no_grad()
    def step(self, x: Tensor, state: Tensor, slots: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
        return self._around(x, lambda normed: self.mixer.step(normed, state, slots, positions))
