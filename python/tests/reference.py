# SPDX-License-Identifier: Apache-2.0
"""The formulas, in float64 NumPy."""

import pathlib
import re

import numpy as np


_FOLDER = pathlib.Path(__file__).resolve().parent.parent


def examples_of(path=_FOLDER / "README.md"):
    """The Python in a text, by default the package's README."""
    return re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)


def readme_example(word):
    """The one example in the README that has this word."""
    example, = (block for block in examples_of() if word in block)
    return example


def taylor(score):
    return 1 + score + score * score / 2


def linear_attention(query, key, value, key_encoder=None, value_encoder=None, kernel=taylor):
    """Of one batch, (B, T, H, ·); every key head serves as many query heads as there are for it."""
    query, key, value = (tensor.astype(np.float64) for tensor in (query, key, value))
    group = query.shape[2] // key.shape[2]
    repeated = [np.repeat(tensor, group, axis=2) for tensor in (key, value)]
    scale = np.sqrt(query.shape[-1])
    tokens = query.shape[1]
    weights = kernel(np.einsum("bihc,bjhc->bhij", query, repeated[0]) / scale) * np.tril(np.ones((tokens, tokens)))
    sums = np.einsum("bhij,bjhc->bihc", weights, repeated[1])
    total = weights.sum(-1)
    if key_encoder is not None:
        encoder = [np.repeat(tensor.astype(np.float64), group, axis=2) for tensor in (key_encoder, value_encoder)]
        weights = kernel(np.einsum("bihc,bjhc->bhij", query, encoder[0]) / scale)
        sums += np.einsum("bhij,bjhc->bihc", weights, encoder[1])
        total = total + weights.sum(-1)
    return sums / total.transpose(0, 2, 1)[..., None]


def window_attention(query, key, value, left):
    query, key, value = (tensor.astype(np.float64) for tensor in (query, key, value))
    tokens = query.shape[1]
    distance = np.arange(tokens)[:, None] - np.arange(tokens)[None, :]
    scores = np.einsum("bihc,bjhc->bhij", query, key) / np.sqrt(query.shape[-1])
    weights = np.where((distance >= 0) & (distance <= left), np.exp(scores), 0)
    return np.einsum("bhij,bjhc->bihc", weights / weights.sum(-1, keepdims=True), value)


def convolution(inputs, weight, gate):
    """(B, T, C) inputs, (C, K) weights, SiLU."""
    inputs, weight, gate = (tensor.astype(np.float64) for tensor in (inputs, weight, gate))
    taps = weight.shape[1]
    padded = np.pad(inputs, ((0, 0), (taps - 1, 0), (0, 0)))
    sums = sum(padded[:, t:t + inputs.shape[1]] * weight[:, t] for t in range(taps))
    return sums / (1 + np.exp(-sums)) * gate


def error(actual, expected):
    return np.linalg.norm(actual.astype(np.float64) - expected) / np.linalg.norm(expected)


def taylor_features(x):
    """In the authors' order: 1 | x | vec(x xᵀ), scaled so that products of two are 1 + s + s²/2, s = q·k/√d."""
    x = x.astype(np.float64)
    d = x.shape[-1]
    pairs = (x[..., :, None] * x[..., None, :]).reshape(*x.shape[:-1], d * d)
    return np.concatenate([np.ones((*x.shape[:-1], 1)), x / d**0.25, pairs / np.sqrt(2 * d)], axis=-1)


def feature_attention(query_features, key_features, value):
    """Causal attention with φ(q)·φ(k) as weights, from features (B, T, H, D)."""
    weights = np.tril(np.einsum("bihr,bjhr->bhij", query_features, key_features))
    sums = np.einsum("bhij,bjhc->bihc", weights, value.astype(np.float64))
    return sums / weights.sum(-1).transpose(0, 2, 1)[..., None]


def hybrid_attention(query, key, value, left):
    query, key, value = (tensor.astype(np.float64) for tensor in (query, key, value))
    tokens = query.shape[1]
    distance = np.arange(tokens)[:, None] - np.arange(tokens)[None, :]
    scores = np.einsum("bihc,bjhc->bhij", query, key) / np.sqrt(query.shape[-1])
    weights = np.tril(np.where(distance <= left, np.exp(scores), taylor(scores)))
    return np.einsum("bhij,bjhc->bihc", weights / weights.sum(-1, keepdims=True), value)


def rotated(x, angles):
    """(B, T, H, d) with pair i of token t turned by t · angles[i]."""
    x = x.astype(np.float64)
    half = x.shape[-1] // 2
    turn = np.arange(x.shape[1])[:, None, None] * angles
    first, second = x[..., :half], x[..., half:]
    return np.concatenate([first * np.cos(turn) - second * np.sin(turn), first * np.sin(turn) + second * np.cos(turn)], axis=-1)
