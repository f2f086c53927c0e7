# SPDX-License-Identifier: Apache-2.0
"""Operators and inputs that several tests share: each operation is compiled once for all of them. As a program it compiles
those that tests call late."""

import jrt
import numpy as np

LINEAR = jrt.Operator(dtype="float32", d=16, dv=64)
WINDOW = jrt.Operator(kind="window", dtype="float32", d=16, left_window=8, rotary=True)
CONVOLUTION = jrt.Operator(kind="convolution", dtype="float32")
HYBRID = jrt.Operator(kind="hybrid", dtype="float32", d=16, dv=64, left_window=8)
FAVOR = jrt.Operator(d=16, dv=64, feature_map="favor", features=32, mask="causal")



def inputs(batch=2, tokens=70, prefix=30, heads=2, query_heads=4, d=16, dv=64, dtype="float32", seed=0):
    random = np.random.default_rng(seed)
    shapes = {"query": (batch, tokens, query_heads, d), "key": (batch, tokens, heads, d), "value": (batch, tokens, heads, dv),
              "key_encoder": (batch, prefix, heads, d), "value_encoder": (batch, prefix, heads, dv)}
    return {name: random.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}


def tokens_of(operator, tokens=40):
    """Inputs of a mixer's calls on tokens alone, and the heads of its states."""
    if operator.kind == "convolution":
        random = np.random.default_rng(1)
        signal, gate = (random.standard_normal((2, tokens, 1, 12)).astype("float32") for _ in range(2))
        return {"input": signal, "gate": gate}, {"weight": random.standard_normal((12, 3)).astype("float32")}, 12
    tensors = inputs(tokens=tokens, query_heads=2, dv=operator.dv)
    return {name: tensors[name] for name in ("query", "key", "value")}, {}, 2


if __name__ == "__main__":
    # From the last that tests call to the first, which they compile themselves: in the middle all is there.
    for _operator, _operations in ((HYBRID, "states"), (CONVOLUTION, "states"), (WINDOW, "states"), (LINEAR, "states"),
                                   (FAVOR, "prefill"), (CONVOLUTION, "commit"), (CONVOLUTION, "staged_step"),
                                   (CONVOLUTION, "prefill"), (HYBRID, "prefill"), (WINDOW, "prefill"), (LINEAR, "backward")):
        jrt.prebuild(_operator, _operations)
