# SPDX-License-Identifier: Apache-2.0
"""The training loop: AdamW, a cosine after a warm-up, bfloat16 autocast on GPUs (weights, sums and states in float32) and
float32 on the CPU; checkpoints from which a run goes on as if it had not stopped; CUDA graphs, since such small models wait for
launches otherwise.

The data of a step depends on the seed and the step's number alone.
"""

import math
import os
import pathlib
import time
from contextlib import nullcontext
from dataclasses import dataclass

import torch

from losses import loss_of


@dataclass(frozen=True)
class Settings:
    steps: int
    batch: int
    rate: float = 2e-3
    warm_up: int = 100
    weight_decay: float = 0.01
    clip: float = 1.0
    graphs: bool = True  # on GPUs


def autocast(device, graphs=False):
    """bfloat16 on GPUs; the CPU computes in the weights' own type. (Casts cannot be kept across the steps of a graph.)"""
    return torch.autocast("cuda", torch.bfloat16, enabled=torch.device(device).type == "cuda", cache_enabled=not graphs)


def learning_rate(settings, step):
    """Of step number `step`, from 0."""
    progress = step / max(1, settings.steps)
    return settings.rate * min(1, (step + 1) / settings.warm_up) * 0.5 * (1 + math.cos(math.pi * progress))


class Trainer:
    """A model, its optimiser and the number of steps taken."""

    EAGER_STEPS = 2  # of each shape, before its graph: kernels are loaded and chosen then

    def __init__(self, model, settings):
        self.model, self.settings, self.step = model, settings, 0
        self.device = next(model.parameters()).device
        on_gpu = self.device.type == "cuda"
        self._graphs = {} if on_gpu and settings.graphs else None
        rate = torch.tensor(settings.rate, device=self.device) if on_gpu else settings.rate
        self.optimiser = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.95), fused=True, capturable=on_gpu,
                                           weight_decay=settings.weight_decay)
        self.loss_sum = torch.zeros((), device=self.device)

    def _set_rate(self):
        rate = learning_rate(self.settings, self.step)
        for group in self.optimiser.param_groups:
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def _update(self, batch):
        self.optimiser.zero_grad(set_to_none=True)
        with autocast(self.device, self._graphs is not None):
            loss = loss_of(self.model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip, foreach=True)
        self.optimiser.step()
        self.loss_sum += loss.detach()

    def _captured(self, batch):
        """The graph of this batch's shape and the tensors that it reads; None while it is too early."""
        shape = tuple(tensor.shape for tensor in batch.tensors())
        if isinstance(self._graphs.get(shape), tuple):
            return self._graphs[shape]
        self._graphs[shape] = steps = self._graphs.get(shape, 0) + 1
        if steps <= self.EAGER_STEPS:
            return None
        graph, inputs = torch.cuda.CUDAGraph(), batch.clone()
        try:
            with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
                self._update(inputs)
        except torch.cuda.OutOfMemoryError:
            raise
        except RuntimeError as error:
            print(f"No CUDA graphs: {str(error).splitlines()[0]}", flush=True)
            self._graphs = None
            return None
        self._graphs[shape] = graph, inputs
        return graph, inputs

    def train(self, batch):
        """One step. With graphs the current stream must not be the default one."""
        self._set_rate()
        captured = self._captured(batch) if self._graphs is not None else None
        if captured is None:
            self._update(batch)
        else:
            graph, inputs = captured
            for target, source in zip(inputs.tensors(), batch.tensors()):
                target.copy_(source)
            graph.replay()
        self.step += 1

    def save(self, path, **others):
        path = pathlib.Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        torch.save({"model": self.model.state_dict(), "optimiser": self.optimiser.state_dict(), "step": self.step, **others},
                   partial)
        os.replace(partial, path)  # a run that is stopped while it writes keeps the checkpoint before

    def load(self, path):
        """What `save` was given beside the model, the optimiser and the step."""
        saved = torch.load(path, map_location=self.device, weights_only=True)
        self.model.load_state_dict(saved.pop("model"))
        self.optimiser.load_state_dict(saved.pop("optimiser"))
        self.step = saved.pop("step")
        return saved


def generator_of(device, seed, step):
    """The random numbers of a step."""
    return torch.Generator(device=device).manual_seed(seed * 1_000_003 + step)


def stream_of(device):
    """A stream for training with graphs, as a context, behind all that was asked for before; on the CPU nothing."""
    if torch.device(device).type != "cuda":
        return nullcontext()
    torch.cuda.synchronize(device)
    return torch.cuda.stream(torch.cuda.Stream(device))


def fit(model, task, settings, seed, *, name="", checkpoint=None, deadline=math.inf, log_every=None, save_every=60.0):
    """Trains for `settings.steps` steps on `task.batch(step, count, generator)`. Returns the log, [[step, mean loss since the
    last entry], …], and the seconds that it took; (None, seconds) where `deadline` (of time.monotonic) came first: the
    checkpoint has the state, and the next call goes on from it. Progress goes to standard output."""
    trainer = Trainer(model, settings)
    losses, spent = [], 0.0
    if checkpoint is not None and pathlib.Path(checkpoint).is_file():
        saved = trainer.load(checkpoint)
        losses, spent = saved["losses"], saved["seconds"]
        print(f"{name}: goes on from step {trainer.step}", flush=True)
    device, log_every = trainer.device, log_every or max(1, settings.steps // 20)
    begin = last_save = time.monotonic()
    since, tokens = begin, 0
    with stream_of(device):
        while trainer.step < settings.steps:
            batch = task.batch(trainer.step, settings.batch, generator_of(device, seed, trainer.step))
            trainer.train(batch)
            tokens += batch.tokens.numel()
            if trainer.step % log_every == 0 or trainer.step == settings.steps:
                now = time.monotonic()
                mean = trainer.loss_sum.item() / ((trainer.step - 1) % log_every + 1)
                trainer.loss_sum.zero_()
                if not math.isfinite(mean):
                    raise FloatingPointError(f"{name}: the loss is {mean} before step {trainer.step}.")
                losses.append([trainer.step, round(mean, 5)])
                print(f"{name}: step {trainer.step:6} of {settings.steps}, loss {mean:.4f}, "
                      f"{tokens / (now - since):.3g} tokens/s", flush=True)
                since, tokens = now, 0
                over = now > deadline and trainer.step < settings.steps
                if checkpoint is not None and (over or now - last_save > save_every or trainer.step == settings.steps):
                    trainer.save(checkpoint, losses=losses, seconds=spent + now - begin)
                    last_save = now
                if over:
                    return None, spent + now - begin
        if device.type == "cuda":
            torch.cuda.synchronize()
    return losses, spent + time.monotonic() - begin
