# SPDX-License-Identifier: Apache-2.0
"""examples/train: its data against the authors' rows, its losses, checkpoints, and that its models learn and reach jrt_lm."""

import dataclasses
import json
import math
import os
import pathlib
import re
import subprocess
import sys
import time

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
TRAIN = ROOT / "examples" / "train"
if not TRAIN.is_dir():
    pytest.skip("the examples of a checkout are not there", allow_module_level=True)
sys.path.insert(0, str(TRAIN))

import facts  # noqa: E402
import figures  # noqa: E402
import losses  # noqa: E402
import models  # noqa: E402
import mqar  # noqa: E402
import set_disjointness  # noqa: E402
import short_prompts  # noqa: E402
import tasks  # noqa: E402
import training  # noqa: E402

SHAPE = models.Shape(vocabulary=97, width=32, layers=4, heads=2, feature_dim=4, hidden=64)
QUICK = training.Settings(steps=6, batch=4, warm_up=2)


def generator(seed=1):
    return torch.Generator().manual_seed(seed)


# -- data --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments, rows, answers", [
    ((24, 4, 8), ["1 23 12 14 18 2 19 11 7 20 16 18 15 13 3", "1 9 10 16 21 2 18 13 4 5 11 22 21 23 3",
                  "1 20 14 11 8 2 22 7 15 9 16 20 18 4 3"], [18, 21, 20]),
    ((2048, 4, 16),
     ["1 556 1974 1027 851 2 2028 467 1223 1925 771 776 751 1890 1989 914 684 1726 1556 1342 1995 556 3"], [556]),
])
def test_the_authors_set_disjointness(arguments, rows, answers):
    tokens, found = set_disjointness.published(*arguments, len(rows), 0)
    assert [" ".join(map(str, row)) for row in tokens] == rows
    assert found.tolist() == answers


@pytest.mark.parametrize("arguments, row, queries", [
    ((32, 20, 3), "2 20 7 28 9 23 0 0 9 0 2 0 0 0 0 0 7 0 0 0", {8: 23, 10: 20, 16: 28}),
    ((8192, 64, 4), "583 5148 1962 6267 1958 5197 3194 6258", {8: 6267, 12: 5148, 36: 6258, 48: 5197}),
])
def test_the_authors_recall(arguments, row, queries):
    tokens, positions, answers = mqar.published(*arguments, 1 + (arguments[0] == 32), 0)
    assert " ".join(map(str, tokens[0])).startswith(row)
    assert dict(zip(positions[0].tolist(), answers[0].tolist())) == queries


@pytest.mark.parametrize("first, second", [(3, 9), (9, 3)])
def test_fresh_lists_share_one_token(first, second):
    tokens, answers = set_disjointness.fresh(40, first, second, 50, generator())
    assert tokens.shape == (50, first + second + 3) and tokens.min() >= 1 and tokens.max() < 40
    places = set()
    for row, answer in zip(tokens.tolist(), answers.tolist()):
        a, b = row[1:1 + first], row[2 + first:-1]
        assert row[0] == 1 and row[1 + first] == 2 and row[-1] == 3
        assert len(set(a)) == first and len(set(b)) == second and set(a) & set(b) == {answer}
        places.add((a.index(answer), b.index(answer)))
    assert len(places) > 15  # of 27


def test_fresh_recall_asks_for_every_pair():
    tokens, positions, answers = mqar.fresh(30, 40, 5, 20, generator())
    for row, places, values in zip(tokens.tolist(), positions.tolist(), answers.tolist()):
        pairs = dict(zip(row[0:10:2], row[1:10:2]))
        assert len(pairs) == 5 and [pairs[row[place]] for place in places] == values
        assert sum(token != 0 for token in row) == 15


def test_documents_of_one_length():
    documents, questions, answers = facts.Corpus(8, 3, 5).documents(2, 20, generator(), places=9)
    assert documents.shape == (20, 27)
    for document, (_, name, _), answer in zip(documents.tolist(), questions[:, 0].tolist(), answers[:, 0].tolist()):
        found = {tuple(document[place:place + 3]) for place in range(0, 27, 3)}
        assert len(found) == 2 and (name, *answer) in found


def test_documents_have_their_answers():
    corpus = facts.Corpus(8, 3, 5)
    documents, questions, answers = corpus.documents(6, 30, generator(), questions=2)
    prompts = facts.prompts(documents, questions[:, 0], 2)
    assert prompts.shape == (30, 2 * 21 + 1) and prompts.max() < corpus.mask
    assert torch.equal(prompts[:, :21], prompts[:, 22:]) and (prompts[:, 21] == facts.SEPARATOR).all()
    documents = documents.repeat_interleave(2, dim=0)
    questions, answers = questions.flatten(0, 1), answers.flatten(0, 1)
    for document, (ask, name, mark), (relation, value) in zip(documents.tolist(), questions.tolist(), answers.tolist()):
        place = document.index(name)
        assert document.count(name) == 1 and document[place:place + 3] == [name, relation, value]
        assert (ask, mark) == (facts.ASK, facts.ANSWER)


# -- losses ------------------------------------------------------------------------------------------------------------------


def test_the_loss_of_jrt_rnn():
    samples = torch.arange(10, 10 + 8 * 101).reshape(8, 101)
    batch = losses.jrt_batch(samples, 60, 7, generator())
    masked = batch.tokens[:, :60] == 7
    assert 0.05 < masked.double().mean() < 0.25 and torch.equal(masked, batch.before != losses.IGNORED)
    assert torch.equal(batch.tokens[:, :60][~masked], samples[:, :60][~masked])
    assert torch.equal(batch.before[masked], samples[:, :60][masked])  # not shifted
    assert torch.equal(batch.tokens[:, 60:], samples[:, 60:100])
    assert torch.equal(batch.targets, samples[:, 61:]) and torch.equal(batch.positions[0], torch.arange(60, 100))
    assert (batch.prefix_lens == 60).all()


def test_an_empty_mean_is_zero():
    logits = torch.randn(2, 3, 5, requires_grad=True)
    loss = losses.mean_cross_entropy(logits, torch.full((2, 3), losses.IGNORED))
    loss.backward()
    assert loss == 0 and not logits.grad.any()
    targets = torch.tensor([[1, losses.IGNORED, 2], [losses.IGNORED] * 3])
    expected = torch.nn.functional.cross_entropy(logits[0, ::2], targets[0, ::2])
    assert losses.mean_cross_entropy(logits, targets).item() == pytest.approx(expected.item())


# -- models and training -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", models.KINDS)
def test_what_a_model_sees(kind):
    model = models.new_model(kind, SHAPE, 1)
    tokens = torch.randint(97, (2, 12), generator=generator())
    logits = model(tokens)
    assert logits.shape == (2, 12, 97)
    positions = torch.tensor([[11, 3], [0, 5]])
    assert torch.allclose(model(tokens, positions)[1, 1], logits[1, 5], atol=1e-6)
    later = tokens.clone()
    later[:, 8] = (later[:, 8] + 1) % 97
    sees_the_future = not torch.allclose(model(later)[:, :8], logits[:, :8], atol=1e-6)
    assert sees_the_future == (kind in ("jrt", "repeated"))


def test_a_run_that_was_stopped_goes_on(tmp_path):
    task = tasks.SetDisjointness(30, ((2, 6), (3, 9)), ((2, 6),))
    results = []
    for stops in (False, True):
        model, path = models.new_model("jrt", SHAPE, 3), tmp_path / f"{stops}.pt"
        if stops:
            halted, _ = training.fit(model, task, QUICK, 3, checkpoint=path, deadline=time.monotonic(), log_every=3)
            assert halted is None
            model = models.new_model("jrt", SHAPE, 99)
        log, _ = training.fit(model, task, QUICK, 3, checkpoint=path, log_every=3)
        results.append((log, model.state_dict()))
    assert results[0][0] == results[1][0] and [step for step, _ in results[0][0]] == [3, 6]
    assert all(torch.equal(tensor, results[1][1][name]) for name, tensor in results[0][1].items())


def test_a_loss_that_is_not_finite_stops(tmp_path):
    model = models.new_model("based", SHAPE, 1)
    with torch.no_grad():
        model.transformer.ln_f.weight[0] = math.nan
    with pytest.raises(FloatingPointError, match="the loss is nan before step 2"):
        training.fit(model, tasks.SetDisjointness(30, ((2, 6),), ()), QUICK, 1, log_every=2)


def command(program, *arguments):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "python"), os.environ.get("PYTHONPATH", "")])}
    return subprocess.run([sys.executable, str(TRAIN / program), *map(str, arguments)], capture_output=True, text=True,
                          env=environment, check=False)


def test_set_disjointness_is_learned(tmp_path):
    result = command("figure2.py", "--setting", "smoke", "--device", "cpu", "--folder", tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    rows = json.loads((tmp_path / "figure2_smoke.json").read_text())
    assert {row["kind"] for row in rows} == {"based", "jrt", "repeated"}
    assert (tmp_path / "figure2_smoke.svg").read_text().endswith("</svg>\n")
    assert command("figure2.py", "--setting", "smoke", "--device", "cpu", "--folder", tmp_path / "short", "--steps", 10,
                   "--only", "based").returncode == 1


def jrt_lm():
    builds = [ROOT / "build" / build / "examples/jrt_lm/jrt_lm" for build in ("release", "quickstart")]
    paths = [os.environ.get("JRT_LM"), *builds]
    return next((str(path) for path in paths if path and os.access(path, os.X_OK)), None)


@pytest.mark.skipif(jrt_lm() is None, reason="jrt_lm is not built")
@pytest.mark.parametrize("kind", ["based", "jrt"])
def test_jrt_lm_goes_on_as_pytorch_does(kind, tmp_path):
    shape = dataclasses.replace(SHAPE, width=64, heads=4, feature_dim=16, enc_length=14)  # kernels of the small golden model
    model = models.new_model(kind, shape, 5)
    corpus = facts.Corpus(32, 2, 4)
    task = tasks.Facts(corpus, (4,), (4,), encoder=kind == "jrt")
    training.fit(model, task, training.Settings(steps=40, batch=16, warm_up=10, rate=5e-3), 5)
    models.save_for_jrt_lm(model, tmp_path)
    prompts, _ = task.examples(4)
    expected = model.generate(prompts[:3], 10)
    assert len(set(expected.flatten().tolist())) > 3  # not one token for ever
    for prompt, tokens in zip(prompts.tolist(), expected.tolist()):
        result = subprocess.run([jrt_lm(), str(tmp_path), "--tokens", ",".join(map(str, prompt)), "--generate", "10", "--json"],
                                capture_output=True, text=True, check=True)
        assert json.loads(result.stdout)["tokens"] == [tokens]


# -- short prompts -----------------------------------------------------------------------------------------------------------


def test_ways_to_read_short_prompts():
    prompts = torch.tensor([[5, 6, 7]])
    assert short_prompts.pad_by_reading_twice(prompts, 8).tolist() == [[6, 7, 5, 6, 7, 5, 6, 7]]
    padded, pads = short_prompts.pad_left(prompts, 5)
    assert padded.tolist() == [[0, 0, 5, 6, 7]] and pads.tolist() == [2]
    model = models.new_model("jrt", dataclasses.replace(SHAPE, enc_length=8), 1).eval()
    ways = short_prompts.short(model, prompts, 8)
    read = {name: tokens for name, (_, tokens) in ways.items()}
    assert read == {"shortened": 4, "left padded": 9, "read twice": 9, "iterative": 7}
    # Padding whose positions are dropped changes nothing: that is what "shortened" stands for.
    dropped, _ = short_prompts.answer(model, padded, 5, pads)
    assert torch.equal(dropped, ways["shortened"][0])
    assert torch.equal(ways["shortened"][0], model.generate(prompts, 2))  # by decode steps


def test_tables_and_plots():
    assert figures.mean_and_spread([0.5, 0.7]) == "0.60 ± 0.10"
    assert figures.table(["a", "b"], [[1, 2]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"
    plot = figures.svg("t", "x", [figures.Panel("p", [figures.Line("l", {10: [0.2, 0.4], 20: [1.0]})])])
    assert re.search(r"<polyline points=\"[\d.]+,[\d.]+ [\d.]+,[\d.]+\"", plot) and plot.count("<circle") == 2


def test_numpy_is_the_legacy_generator():
    random = np.random.RandomState(0)
    assert random.randint(10, size=5).tolist() == [5, 0, 3, 3, 7]
