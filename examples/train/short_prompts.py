#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Prompts that are shorter or longer than the encoder region that a JRT-RNN was trained with: the paper's open questions.

    short_prompts.py --setting small|smoke [--minutes 8] [--device cpu|cuda]

Trains JRT-RNN on documents of one length M (of 2 to 16 facts, some repeated). A prompt of l < M tokens is then read

    shortened    as it is, with M = l (what left padding is whose positions are dropped)
    left padded  by padding tokens up to M, whose keys linear attention sees as 0: the authors' evaluation
    read twice   by its own end in front, up to M: the paper's read-twice padding
    iterative    as it is, and anew as a whole for each new token, with M one longer

and of l > M tokens with M as it was trained or with all of the prompt. Accuracy is that of both tokens of the answer,
as greedy generation gives them; "tokens" are those that go through the model for it.
"""

import json

import torch

import figures
from experiment import Run, load_model, parser_of, run_all
from facts import ANSWER_TOKENS, Corpus
from losses import prefix_lengths
from models import Shape
from tasks import Facts
from training import Settings, autocast

PAD = 0


def trained_facts(setting):
    return 16 if setting == "small" else 8


def runs_of(setting, arguments):
    number = trained_facts(setting)
    if setting == "smoke":
        corpus, width, steps, batch, rate, seeds = Corpus(32, 1, 8), 32, 300, 32, 5e-3, (1,)
    else:
        corpus, width, steps, batch, rate, seeds = Corpus(), 64, 10000, 128, 3e-3, (1, 2)
    task = Facts(corpus, tuple(number // 2**i for i in range(4)), (number,), readings=(1,), encoder=True, places=number,
                 test_count=1000 if setting == "small" else 100)
    shape = Shape(corpus.vocabulary, width=width, layers=4, heads=2, feature_dim=16 if setting == "small" else 4,
                  hidden=2 * width, enc_length=task.examples(number)[0].shape[1] - 1)
    settings = Settings(arguments.steps or steps, batch, arguments.rate or rate, graphs=not arguments.no_graphs)
    return [Run("jrt", shape, task, settings, seed) for seed in seeds]


@torch.no_grad()
def next_token(model, tokens, **lengths):
    """The likeliest next token (count, 1) of each sequence, which is read as a whole."""
    last = torch.full((len(tokens), 1), tokens.shape[1] - 1, device=tokens.device)
    with autocast(tokens.device):
        return model(tokens, last, **lengths).argmax(-1)


def answer(model, tokens, prefix, left_pads=None, grows=False):
    """Greedy answers, and the tokens that decoding reads for one. Here sequences are read as a whole for each token, which with
    the same M gives what decode steps give; only a prefix that grows needs it."""
    count = tokens.shape[1]
    read = sum(count + more if grows or more == 0 else 1 for more in range(ANSWER_TOKENS))
    lengths = {} if left_pads is None else {"left_pads": left_pads}
    answers = []
    for more in range(ANSWER_TOKENS):
        prefix_lens = prefix_lengths(tokens, prefix + (more if grows else 0))
        answers.append(next_token(model, tokens, prefix_lens=prefix_lens, **lengths))
        tokens = torch.cat([tokens, answers[-1]], dim=1)
    return torch.cat(answers, dim=1), read


def pad_by_reading_twice(prompts, length):
    """Prompts with as much of their repetition in front as there is room for (jrt::pad_by_reading_twice)."""
    copies = -(-length // prompts.shape[1])
    return prompts.repeat(1, copies)[:, -length:]


def pad_left(prompts, length):
    """Padded prompts and the number of padding tokens of each (jrt::pad_left)."""
    pads = length - prompts.shape[1]
    return torch.nn.functional.pad(prompts, (pads, 0), value=PAD), prefix_lengths(prompts, pads)


def short(model, prompts, region):
    """(answers, tokens read) by the name of each way to read prompts of less than `region` tokens."""
    count = prompts.shape[1]
    padded, pads = pad_left(prompts, region)
    _set_padding(model, "zero_keys")
    left_padded = answer(model, padded, region, pads)
    _set_padding(model, "drop")
    return {"shortened": answer(model, prompts, count), "left padded": left_padded,
            "read twice": answer(model, pad_by_reading_twice(prompts, region), region),
            "iterative": answer(model, prompts, count, grows=True)}


def _set_padding(model, padding):
    model.padding = padding
    for layer in model.transformer.layers:
        if hasattr(layer.mixer, "padding"):
            layer.mixer.padding = padding


def long(model, prompts, region):
    """The same for prompts of at least `region` tokens."""
    return {"M as trained": answer(model, prompts, region), "M = the whole prompt": answer(model, prompts, prompts.shape[1])}


def evaluate(run, arguments):
    """A row for each length of prompts and each way to read them."""
    model, region = load_model(run, arguments, "short_prompts_training"), run.shape.enc_length
    number, rows = trained_facts(arguments.setting), []
    for facts in (number // 8, number // 4, number // 2, number, 2 * number, 4 * number):
        prompts, right = (tensor.to(arguments.device) for tensor in run.task.examples(facts))
        ways = short if prompts.shape[1] < region else long
        for name, (answers, read) in ways(model, prompts, region).items():
            accuracy = (answers == right).all(dim=1).double().mean().item()
            rows.append({"facts": facts, "tokens": prompts.shape[1], "way": name, "accuracy": accuracy, "read": read})
    return rows


def table(evaluations):
    body = []
    for rows in zip(*evaluations):
        first = rows[0]
        body.append([first["facts"], first["tokens"], first["way"], figures.mean_and_spread([row["accuracy"] for row in rows]),
                     first["read"]])
    return figures.table(["facts", "prompt tokens", "way", "accuracy", "tokens read for an answer"], body)


def main():
    arguments = parser_of(__doc__, ("small", "smoke"), "short_prompts").parse_args()
    runs = runs_of(arguments.setting, arguments)
    rows = run_all(runs, arguments, "short_prompts_training")
    evaluations = [evaluate(run, arguments) for run in runs]
    first = rows[0]
    origin = (f"M = {runs[0].shape.enc_length}; {len(rows)} seeds, {sum(row['seconds'] for row in rows):.0f} s, on "
              f"{first['device']}; PyTorch {first['torch']}; {first['date']}. `{first['command']}`")
    path = arguments.folder / f"short_prompts_{arguments.setting}.json"
    path.write_text(json.dumps({"origin": origin, "evaluations": evaluations}, indent=1) + "\n")
    print(f"\n{origin}\n\n{table(evaluations)}\n")


if __name__ == "__main__":
    main()
