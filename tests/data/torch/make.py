#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Files as PyTorch writes them, for the tests of their reader. Needs torch and safetensors.

make.py FOLDER writes, into FOLDER (the tests' own lie beside this script):
  views.bin           tensors of every type and kind of view, as torch.save writes them
  views_protocol4.bin the same with a newer pickle protocol
  views.safetensors   what those tensors hold, without gaps, by the safetensors package
  module.bin          the state of a small module: a dictionary with attributes
  nested.bin          a training checkpoint, whose tensors lie in its entry `state_dict`
make.py --whole 360m|1.3b FOLDER writes a model of that published layout with random weights, as the authors publish theirs:
float16, names that begin with `model.`, config.json beside pytorch_model.bin. `--type bfloat16|float32` takes another type.
"""
import argparse
import json
import pathlib

import torch
from safetensors.torch import save_file


def views():
    torch.manual_seed(1)
    base = torch.randn(6, 8)
    shared = torch.arange(24, dtype=torch.float32)
    parameter = torch.nn.Parameter(torch.randn(3, 2))
    marked = torch.nn.Parameter(torch.randn(4))
    marked.no_weight_decay = True
    return {
        "transposed": base.t(),
        "permuted": torch.randn(2, 3, 4).permute(2, 0, 1),
        "rows": base[2:5],
        "columns": base[:, 3:6],
        "every_second": base[::2, 1::3],
        "first_of_storage": shared[:10],
        "last_of_storage": shared[10:].view(2, 7),
        "expanded": torch.tensor([[1.5], [2.5]]).expand(2, 3),
        "one_row": base[1:2],
        "scalar": torch.tensor(3.25),
        "empty": torch.empty(0, 5),
        "parameter": parameter,
        "marked_parameter": marked,
        "requires_grad": torch.randn(2, requires_grad=True),
        "float64": torch.randn(3, dtype=torch.float64),
        "float16": torch.randn(5, 3).half().t(),
        "bfloat16": torch.randn(5, 3).bfloat16()[1:, 1:],
        "int64": torch.tensor([2**40, -3]),
        "int32": torch.tensor([7, -8], dtype=torch.int32),
        "int16": torch.tensor([300, -300], dtype=torch.int16),
        "int8": torch.tensor([5, -5], dtype=torch.int8),
        "uint8": torch.tensor([250, 5], dtype=torch.uint8),
        "bool": torch.tensor([True, False, True]),
    }


def write_small(folder):
    tensors = views()
    torch.save(tensors, folder / "views.bin")
    torch.save(tensors, folder / "views_protocol4.bin", pickle_protocol=4)
    save_file({name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}, folder / "views.safetensors")
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    torch.save(module.state_dict(), folder / "module.bin")
    nested = {"epoch": 3, "loss": 1.25, "note": None, "state_dict": {"w": torch.tensor([1.0, 2.0])}, "done": [True]}
    with open(folder / "nested.bin", "wb") as file:  # of which torch.save does not know the name
        torch.save(nested, file)


def write_whole(layout, dtype, folder):
    width, layers = {"360m": (1024, 26), "1.3b": (1792, 36)}[layout]
    linear = [layer for layer in (1, 6, 11, 16, 21, 27, 33) if layer < layers]
    window = [layer + 1 for layer in linear]
    heads, channels, hidden, rows = 16, 2 * width, (2 * width + 255) // 256 * 256, 50264
    config = json.loads((pathlib.Path(__file__).parent.parent / "jrt_tiny" / "config.json").read_text())
    config.update(vocab_size=50257, n_embd=width, n_head=heads, n_layer=layers, n_inner=2 * width, alt_mixer_layers=linear,
                  alt_mixer_2_layers=window, enc_length=1024, dec_length=1024)
    config["alt_mixer"].update(num_heads=heads, enc_length=1024, dec_length=1024, l_max=2048)
    config["alt_mixer_2"].update(num_heads=heads, window_size=256, softmax_scale=(width // heads) ** -0.5,
                                 rotary_emb_dim=width // heads)
    generator = torch.Generator().manual_seed(1)
    tensors = {}

    def add(name, *shape, ones=False, scale=0.02):
        values = torch.ones(shape) if ones else torch.randn(shape, generator=generator) * scale
        tensors["model." + name] = values.to(dtype)

    add("transformer.embeddings.word_embeddings.weight", rows, width)
    for i in range(layers):
        layer = f"transformer.layers.{i}."
        add(layer + "norm1.weight", width, ones=True)
        if i in linear:
            for name, out in (("q", heads * 16), ("k", heads * 16), ("v", width), ("k_enc", heads * 16), ("v_enc", width)):
                add(f"{layer}mixer.proj_{name}.weight", out, width)
            add(layer + "mixer.out_proj.weight", width, width)
        elif i in window:
            add(layer + "mixer.Wqkv.weight", 3 * width, width)
            add(layer + "mixer.out_proj.weight", width, width)
        else:
            add(layer + "mixer.in_proj.weight", 2 * channels, width)
            add(layer + "mixer.in_proj.bias", 2 * channels)
            add(layer + "mixer.conv.conv.weight", channels, 1, 3, scale=0.3)
            add(layer + "mixer.out_proj.weight", width, channels)
            add(layer + "mixer.out_proj.bias", width)
        add(layer + "norm2.weight", width, ones=True)
        add(layer + "mlp.fc1.weight", 2 * hidden, width)
        add(layer + "mlp.fc2.weight", width, hidden)
    add("transformer.ln_f.weight", width, ones=True)
    tensors["model.lm_head.weight"] = tensors["model.transformer.embeddings.word_embeddings.weight"]
    tensors["val_metrics.count"] = torch.tensor(3)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    torch.save(tensors, folder / "pytorch_model.bin")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--whole", choices=("360m", "1.3b"))
    parser.add_argument("--type", default="float16", choices=("float16", "bfloat16", "float32"))
    options = parser.parse_args()
    if options.whole:
        write_whole(options.whole, getattr(torch, options.type), options.folder)
    else:
        write_small(options.folder)


if __name__ == "__main__":
    main()
