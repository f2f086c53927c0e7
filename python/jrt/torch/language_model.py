# SPDX-License-Identifier: Apache-2.0
"""JRT-RNN and Based as whole language models, in the authors' layout of tensors and of config.json.

    model = LanguageModel(json.load(open("config.json")))
    model.load_state_dict(torch.load("pytorch_model.bin"))         # as the authors published it
    logits = model(tokens)                                         # (batch, tokens, rows of the embeddings), with gradients
    tokens = model.generate(tokens, 12)                            # prefill once, then a step for each token

What config.json may say is in docs/jrt-rnn.md; a key that would mean another model is refused by its name.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from jrt.torch.nn import BaseConv, JRTBlock, LinearAttention, PrefixLinearAttention, RMSNorm, SlidingWindow, _Mixer

__all__ = ["LanguageModel", "States"]

# Keys that must have one value, which this model is.
_REQUIRED = {"activation_function": "swiglu", "rms_norm": True}
# Keys that may be left out or null, or have this value.
_FIXED = {"prenorm": True, "parallel_block": False, "tie_word_embeddings": True, "lm_head_bias": False, "mlp_type": "base",
          "word_embed_proj_dim": None, "max_position_embeddings": 0, "scale_attn_by_inverse_layer_idx": False,
          "rotary_emb_interleaved": False, "rotary_emb_scale_base": None, "use_alibi": False, "attn_dwconv": False,
          "norm_head": False, "mup_scale_qk_dot_by_d": False, "mup_embeddings_multiplier": 1, "mup_output_multiplier": 1,
          "mup_width_scale": 1, "mup_attn_multiplier": 1}


def _first(config: Mapping[str, Any], *names: str, default: Any = None) -> Any:
    for name in names:
        if config.get(name) is not None:
            return config[name]
    if default is None:
        raise ValueError(f"LanguageModel: the configuration lacks {names[0]!r}.")
    return default


def _check(config: Mapping[str, Any]) -> None:
    for name, value in _REQUIRED.items():
        if config.get(name) != value:
            raise ValueError(f"LanguageModel: {name!r} is {config.get(name)!r}, but must be {value!r}.")
    for name, value in _FIXED.items():
        if config.get(name) is not None and config[name] != value:
            raise ValueError(f"LanguageModel: {name!r} is {config[name]!r}, but must be {value!r} or left out.")


def _new_mixer(section: Mapping[str, Any], config: Mapping[str, Any], padding: str) -> _Mixer:
    """The mixer that a section of the configuration describes."""
    kind = section.get("_target_", "").split(".")[-1]
    width, heads = config["n_embd"], config["n_head"]
    if kind in ("BaseConv", "BaseConvWithSiLU4"):
        return BaseConv(width, kernel_size=section.get("kernel_size") or 3, expand_proj=section.get("expand_proj") or 2,
                        use_bias=section.get("use_bias", True))
    if kind in ("PrefixLinearAttention", "LinearAttention"):
        settings: dict[str, Any] = {"feature_dim": section.get("feature_dim") or 16, "padding": padding}
        if kind == "LinearAttention":
            return LinearAttention(width, section.get("num_heads") or 16, **settings)
        length = section["enc_length"] if section.get("enc_length") is not None else _first(config, "enc_length")
        return PrefixLinearAttention(width, section.get("num_heads") or heads, enc_length=length, **settings)
    if kind in ("SlidingAttention", "SlidingsMHA"):
        head_dim = width // heads
        return SlidingWindow(width, heads, num_heads_kv=_first(config, "num_head_kv", "n_head_kv", default=heads),
                             window_size=section.get("window_size") or 128,
                             softmax_scale=1.0 if config.get("scale_attn_weights") is False else None,
                             rotary_emb_dim=int((config.get("rotary_emb_fraction") or 0) * head_dim),
                             rotary_emb_base=config.get("rotary_emb_base") or 10000.0,
                             qkv_proj_bias=config.get("qkv_proj_bias", True), out_proj_bias=config.get("out_proj_bias", True))
    raise ValueError(f"LanguageModel: a mixer's '_target_' is {section.get('_target_')!r}, but must end with BaseConv, "
                     "PrefixLinearAttention, LinearAttention or SlidingAttention.")


@dataclasses.dataclass
class States:
    """What generation keeps of sequences: for each layer a pool of states, one a slot; and each slot's count of tokens."""

    layers: list[Tensor]
    positions: Tensor

    def copy(self, source: Tensor, destination: Tensor) -> None:
        """Forks sequences: the states of the slots `source` go to the slots `destination`; tensors of indices."""
        for pool in (*self.layers, self.positions):
            pool[destination] = pool[source]


class _Embeddings(nn.Module):
    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(rows, width)


class _Transformer(nn.Module):
    def __init__(self, rows: int, width: int, layers: Iterable[nn.Module], norm_eps: float) -> None:
        super().__init__()
        self.embeddings = _Embeddings(rows, width)
        self.layers = nn.ModuleList(layers)
        self.ln_f = RMSNorm(width, eps=norm_eps)


class LanguageModel(nn.Module):
    """Embeddings, layers of mixer and MLP, a norm, and logits by the embeddings.

    config       a dictionary, as config.json has it
    padding      what left pads do: "drop" (nothing at all), or "zero_keys", as in the authors' evaluation: linear attention
                 sees zero keys there, the other mixers see text
    multiple_of  the MLPs' width is rounded up to a multiple of it: 256 or, in some of the authors' models, 128

    Calls take tokens (batch, tokens) or, with `cu_seqlens`, (tokens), and the lengths that `jrt.torch.nn` describes."""

    def __init__(self, config: Mapping[str, Any], *, padding: str = "drop", multiple_of: int = 256) -> None:
        super().__init__()
        _check(config)
        config = dict(config, n_embd=_first(config, "hidden_size", "n_embd"),
                      n_head=_first(config, "num_attention_heads", "n_head"))
        width = config["n_embd"]
        multiple = config.get("pad_vocab_size_multiple") or 1
        self.vocab_size = _first(config, "vocab_size", default=50257)
        self.padding = padding
        norm_eps = config.get("layer_norm_epsilon") or 1e-5
        sections = {}
        for number in ("", "_2"):
            for layer in config.get(f"alt_mixer{number}_layers") or ():
                if layer in sections:
                    raise ValueError(f"LanguageModel: layer {layer} is in both 'alt_mixer_layers' and 'alt_mixer_2_layers'.")
                sections[layer] = section = _first(config, f"alt_mixer{number}")
                if layer in (7, 17) and section.get("window_size") == 4096:
                    raise ValueError(f"LanguageModel: 'window_size' is 4096 in layer {layer}, where the authors' code takes "
                                     "256.")
        layers = [
            JRTBlock(width, _new_mixer(sections.get(layer, _first(config, "mixer")), config, padding),
                     hidden=config.get("n_inner"), norm_eps=norm_eps, mlp_fc1_bias=config.get("mlp_fc1_bias", True),
                     mlp_fc2_bias=config.get("mlp_fc2_bias", True), multiple_of=multiple_of)
            for layer in range(_first(config, "num_hidden_layers", "n_layer"))
        ]
        self.transformer = _Transformer(-(-self.vocab_size // multiple) * multiple, width, layers, norm_eps)
        self.register_load_state_dict_pre_hook(_take_published_names)

    def _layers(self) -> Iterable[JRTBlock]:
        return cast(Iterable[JRTBlock], self.transformer.layers)

    def _embedded(self, tokens: Tensor) -> Tensor:
        """The residual stream, which is kept in at least float32."""
        weight = self.transformer.embeddings.word_embeddings.weight
        return functional.embedding(tokens, weight).to(torch.promote_types(weight.dtype, torch.float32))

    def _logits(self, x: Tensor) -> Tensor:
        return functional.linear(self.transformer.ln_f(x), self.transformer.embeddings.word_embeddings.weight)

    def _lengths(self, layer: JRTBlock, lengths: dict[str, Any]) -> dict[str, Any]:
        if self.padding == "zero_keys" and not isinstance(layer.mixer, LinearAttention):
            return {name: value for name, value in lengths.items() if name != "left_pads"}
        return lengths

    def hidden(self, tokens: Tensor, **lengths: Any) -> Tensor:
        """Hidden states of every token, with gradients; `logits` turns those rows into logits that a loss needs."""
        x = self._embedded(tokens)
        for layer in self._layers():
            x = layer(x, **self._lengths(layer, lengths))
        return x

    def forward(self, tokens: Tensor, **lengths: Any) -> Tensor:
        """Logits of every token. Lengths: cu_seqlens, prefix_lens, left_pads, as in `jrt.torch.nn`."""
        return self._logits(self.hidden(tokens, **lengths))

    def new_states(self, slots: int) -> States:
        """Empty states for so many sequences."""
        device = self.transformer.ln_f.weight.device
        return States([layer.mixer.new_state(slots) for layer in self._layers()],
                      torch.zeros(slots, dtype=torch.int64, device=device))

    @torch.no_grad()
    def prefill(self, tokens: Tensor, states: States, slots: Tensor | None = None, *, continues: bool | Tensor = False,
                **lengths: Any) -> Tensor:
        """Hidden states (of every token) of whole prompts; the states after them go to `slots`. With `continues` sequences go
        on from their slots: a context is read once more, or a question follows. `logits` turns rows of them into logits."""
        chosen, valid = _slots_of(states, slots, self._sequences(tokens, lengths))
        positions = states.positions[chosen]
        if continues is False:
            positions = torch.zeros_like(positions)
        elif continues is not True:
            positions = positions * continues
        x = self._embedded(tokens)
        for layer, state in zip(self._layers(), states.layers):
            x = layer.prefill(x, state, slots, continues=continues, positions=positions, **self._lengths(layer, lengths))
        counts = self._counts(tokens, lengths)
        states.positions[chosen] = torch.where(valid, positions + counts, states.positions[chosen])
        return x

    def logits(self, x: Tensor) -> Tensor:
        """Logits of rows of `prefill`'s or `hidden`'s states."""
        return self._logits(x)

    @torch.no_grad()
    def step(self, tokens: Tensor, states: States, slots: Tensor | None = None) -> Tensor:
        """Logits of new tokens (batch, tokens), usually one of each sequence, whose states move on. A slot of -1 pads. Nothing
        waits for the device, so a step can be captured in a CUDA graph."""
        chosen, valid = _slots_of(states, slots, tokens.shape[0])
        positions = states.positions[chosen]
        x = self._embedded(tokens)
        for layer, state in zip(self._layers(), states.layers):
            x = layer.step(x, state, slots, positions)
        states.positions.index_add_(0, chosen, valid * tokens.shape[1])
        return self._logits(x)

    @torch.no_grad()
    def generate(self, tokens: Tensor, count: int, *, states: States | None = None, **lengths: Any) -> Tensor:
        """`count` greedy tokens (batch, count) after prompts (batch, tokens)."""
        states = self.new_states(tokens.shape[0]) if states is None else states
        logits = self._logits(self.prefill(tokens, states, **lengths)[:, -1:])
        chosen = []
        for _ in range(count):
            chosen.append(logits[..., :self.vocab_size].argmax(-1))
            if len(chosen) < count:
                logits = self.step(chosen[-1], states)
        return torch.cat(chosen, dim=1) if chosen else tokens.new_empty((tokens.shape[0], 0))

    @staticmethod
    def _sequences(tokens: Tensor, lengths: dict[str, Any]) -> int:
        cu_seqlens = lengths.get("cu_seqlens")
        return tokens.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1

    def _counts(self, tokens: Tensor, lengths: dict[str, Any]) -> Any:
        """Tokens of each sequence that positions count."""
        cu_seqlens, left_pads = lengths.get("cu_seqlens"), lengths.get("left_pads")
        counts = tokens.shape[1] if cu_seqlens is None else cu_seqlens[1:] - cu_seqlens[:-1]
        return counts if left_pads is None or self.padding == "zero_keys" else counts - left_pads


def _slots_of(states: States, slots: Tensor | None, sequences: int) -> tuple[Tensor, Tensor]:
    """Slots as indices, with 0 where a row pads, and which rows are sequences."""
    if slots is None:
        slots = torch.arange(sequences, device=states.positions.device)
    return slots.clamp(min=0).long(), slots >= 0


def _take_published_names(model: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """What published files have beside the model's tensors: `model.` before their names, counts of the training, and the
    embeddings once more as lm_head."""
    for name in [name for name in state_dict if name.startswith(prefix)]:
        rest = name[len(prefix):]
        if "metrics" in rest:
            del state_dict[name]
        elif rest.startswith("model."):
            state_dict[prefix + rest.removeprefix("model.")] = state_dict.pop(name)
    head = state_dict.pop(prefix + "lm_head.weight", None)
    embeddings = state_dict.get(prefix + "transformer.embeddings.word_embeddings.weight")
    if head is not None and (embeddings is None or not torch.equal(head, embeddings)):
        raise ValueError("LanguageModel: lm_head.weight is not the embedding table, but only tied embeddings are supported.")
