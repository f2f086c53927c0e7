# SPDX-License-Identifier: Apache-2.0
import json
import pathlib
import struct

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from jrt.torch import nn  # noqa: E402
from jrt.torch.language_model import LanguageModel  # noqa: E402
from reference import readme_example  # noqa: E402

DATA = pathlib.Path(__file__).resolve().parent.parent.parent / "tests" / "data"
DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="the golden files of a checkout are not there")


def load(name):
    """The tensors of a safetensors file."""
    data = (DATA / name).read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    types = {"F64": torch.float64, "F32": torch.float32, "I64": torch.int64}
    tensors = {}
    for key, entry in json.loads(data[8:8 + size]).items():
        if key != "__metadata__":
            start, end = (8 + size + offset for offset in entry["data_offsets"])
            tensors[key] = torch.frombuffer(bytearray(data[start:end]), dtype=types[entry["dtype"]]).reshape(entry["shape"])
    return tensors


def check_module(file, module, bound=1e-13, **lengths):
    """A mixer with the authors' weights gives their output at once, in pieces, and token by token."""
    tensors = load(file)
    module = module.double()
    module.load_state_dict({name[2:]: tensor for name, tensor in tensors.items() if name.startswith("w.")}, strict=True)
    x, y = tensors["x"].double(), tensors["y"]
    assert (module(x, **lengths) - y).norm() <= bound * y.norm()
    return module, x, y


def check_generation(module, x, y, first, bound=1e-13):
    """Prefill of some tokens, of some more that continue them, then steps of one and of two tokens, in slots out of order."""
    state = module.new_state(4)
    slots = torch.tensor([3, 1], dtype=torch.int32)
    outputs = [module.prefill(x[:, :first], state, slots)]
    position = first
    for count, function in ((2, module.prefill), (1, module.step), (2, module.step)):
        positions = torch.full((2,), position)
        settings = {"continues": True} if function == module.prefill else {}
        outputs.append(function(x[:, position:position + count], state, slots, positions=positions, **settings))
        position += count
    output = torch.cat(outputs, dim=1)
    assert (output - y[:, :position]).norm() <= bound * y[:, :position].norm()
    assert not state[0].any() and not state[2].any()


def test_the_authors_prefix_linear_attention():
    module, x, y = check_module("pla_module.safetensors", nn.PrefixLinearAttention(64, 4, enc_length=16))
    check_generation(module, x, y, 17)


def test_the_authors_prefix_linear_attention_with_padding():
    check_module("pla_module_left_pad_upstream.safetensors",
                 nn.PrefixLinearAttention(64, 4, enc_length=16, padding="zero_keys"),
                 left_pads=torch.tensor([5, 5], dtype=torch.int32))


def test_the_authors_convolution():
    module, x, y = check_module("base_conv_module.safetensors", nn.BaseConv(48, expand_proj=4))
    check_generation(module, x, y, 8)


def test_the_authors_window():
    module, x, y = check_module("sliding_attention_module.safetensors",
                                nn.SlidingWindow(64, 4, window_size=8, rotary_emb_dim=16, qkv_proj_bias=False))
    check_generation(module, x, y, 8)


@pytest.fixture(scope="module")
def tiny():
    model = LanguageModel(json.loads((DATA / "jrt_tiny" / "config.json").read_text()))
    model.load_state_dict(load("jrt_tiny/model.safetensors"), strict=True)
    return model.double()


@pytest.mark.parametrize("device", DEVICES)
def test_the_authors_model(tiny, device):
    golden = load("jrt_tiny_logits.safetensors")
    tokens, expected = golden["input_ids"].to(device), golden["logits"].to(device)
    model = tiny.to(device)
    logits = model(tokens)
    assert (logits - expected).norm() <= 1e-13 * expected.norm()
    assert torch.equal(model.generate(tokens, 12), golden["greedy"][:, 20:].to(device))
    tiny.to("cpu")


def test_the_example_of_the_readme(monkeypatch):
    monkeypatch.chdir(DATA.parent.parent)
    names = {}
    exec(readme_example("LanguageModel"), names)
    model, tokens, answer = (names[name] for name in ("model", "tokens", "answer"))
    assert answer.shape == (2, 12) and names["hidden"].shape == (2, 20, 64)
    for row, (prompt, token) in enumerate(((0, 3), (0, 4))):
        whole = model(torch.cat([tokens[prompt], torch.tensor([token])])[None])[0, -1]
        assert (names["logits"][row, 0] - whole).norm() <= 1e-4 * whole.norm()
    assert names["states"].positions.tolist() == [0, 0, 20, 0, 0, 21, 0, 21]


def test_published_checkpoints_load_as_they_are(tiny):
    published = torch.load(DATA / "torch" / "published" / "pytorch_model.bin")
    assert any(name.startswith("model.lm_head") for name in published)
    model = LanguageModel(json.loads((DATA / "jrt_tiny" / "config.json").read_text()))
    model.load_state_dict(published, strict=True)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor.double(), tiny.state_dict()[name]), name
    published["model.lm_head.weight"] = published["model.lm_head.weight"] + 1
    with pytest.raises(ValueError, match="lm_head.weight is not the embedding table"):
        model.load_state_dict(published)


def test_packed_and_padded_prompts_are_those_apart(tiny):
    tokens = load("jrt_tiny_logits.safetensors")["input_ids"]
    lengths = [20, 7, 13]
    prompts = [tokens[0], tokens[1, :7], tokens[1, 7:]]
    alone = [tiny(prompt[None])[0] for prompt in prompts]
    states = tiny.new_states(5)
    slots = torch.tensor([4, 0, 2], dtype=torch.int32)
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32)
    packed = tiny(torch.cat(prompts), cu_seqlens=cu_seqlens)
    hidden = tiny.prefill(torch.cat(prompts), states, slots, cu_seqlens=cu_seqlens)
    assert (packed - torch.cat(alone)).norm() <= 1e-12 * packed.norm()
    assert (tiny.logits(hidden) - packed).norm() <= 1e-12 * packed.norm()
    assert states.positions.tolist() == [7, 0, 13, 0, 20]

    pads = torch.tensor([20 - length for length in lengths], dtype=torch.int32)
    padded = torch.stack([torch.cat([tokens.new_full((20 - prompt.shape[0],), 5), prompt]) for prompt in prompts])
    prefixes = pads + torch.tensor([min(16, length) for length in lengths], dtype=torch.int32)
    padded = tiny(padded, left_pads=pads, prefix_lens=prefixes)  # prefixes count pads
    for row, right in zip(padded, alone):
        assert (row[-right.shape[0]:] - right).norm() <= 1e-12 * right.norm()

    # A step of all three and a padding row, then a fork that goes on like its parent.
    new = torch.tensor([[3], [8], [9], [1]])
    step = tiny.step(new, states, torch.tensor([4, 0, 2, -1], dtype=torch.int32))
    for index, prompt in enumerate(prompts):
        prefix = torch.tensor([min(16, lengths[index])], dtype=torch.int32)
        whole = tiny(torch.cat([prompt, new[index]])[None], prefix_lens=prefix)
        assert (step[index, 0] - whole[0, -1]).norm() <= 1e-12 * whole[0, -1].norm()
    states.copy(torch.tensor([4]), torch.tensor([1]))
    both = tiny.step(torch.tensor([[6], [6]]), states, torch.tensor([1, 4], dtype=torch.int32))
    assert torch.equal(both[0], both[1])
    assert states.positions.tolist() == [8, 22, 14, 0, 22]


def test_a_model_trains():
    torch.manual_seed(0)
    config = json.loads((DATA / "jrt_tiny" / "config.json").read_text())
    model = LanguageModel(config)
    tokens = torch.randint(97, (4, 24))
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    losses = []
    for _ in range(8):
        loss = torch.nn.functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_configurations_of_other_models_are_refused():
    config = json.loads((DATA / "jrt_tiny" / "config.json").read_text())
    with pytest.raises(ValueError, match="'parallel_block' is True, but must be False"):
        LanguageModel(dict(config, parallel_block=True))
    with pytest.raises(ValueError, match="'activation_function' is 'gelu', but must be 'swiglu'"):
        LanguageModel(dict(config, activation_function="gelu"))
    with pytest.raises(ValueError, match="'_target_' is 'Mamba'"):
        LanguageModel(dict(config, mixer={"_target_": "Mamba"}))
