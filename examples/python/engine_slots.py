#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A serving engine's linear-attention layer on jrt: continuous batches, slots, prefix checkpoints, speculative decoding.

    engine_slots.py [--device cuda] [--dtype bfloat16]

`JrtLinearAttention` has the calls of SGLang's `LinearAttnKernelBase` (decode, extend, target_verify): tensors packed as
(1, tokens, heads, dim) with `query_start_loc`, a pool `ssm_states`, and int32 slots `cache_indices` where -1 is a row of
padding. `Engine` serves requests with it in batches of a fixed number of rows, as a captured graph wants them:

  - Requests come and go; a slot is taken when one is admitted and given back when it ends. Nothing moves in the pool.
  - A context that several questions share is prefilled once; each question forks its state (a copy of one slot).
  - Requests with an encoder region (JRT-RNN) pass its keys and values with their prompt. Long prompts are prefilled in pieces.
  - Every other step is speculative: a draft of several tokens is verified without touching the states, and as many of them
    are committed as were right. Nothing is copied or rolled back.

There is no model here: keys, values and queries of every token are random, and known in advance. So each output can be
compared with that of one prefill over the request's whole text; the program ends with 1 if one differs.
"""

import argparse
import dataclasses
import sys

import jrt
import torch

HEADS, D, DV = 4, 16, 64
DRAFT = 4  # tokens of a speculative step
PIECE = 48  # tokens of a prompt that one extend takes at most


class JrtLinearAttention:
    """The kernels of a layer. Arguments of other attentions' gates (a, b, g, beta, A_log, dt_bias) have no meaning here."""

    def __init__(self, dtype, rows, device):
        self.operator = jrt.Operator(dtype=str(dtype).removeprefix("torch."), d=D, dv=DV)
        like = torch.empty(0, dtype=dtype, device=device)
        self.staging = self.operator.new_staging(rows, DRAFT, HEADS, like)

    def extend(self, q, k, v, g=None, beta=None, *, ssm_states, cache_indices, query_start_loc, has_initial_state, encoder=None,
               **_):
        """Outputs of prompts or pieces of them. `encoder` has keys and values of encoder regions, packed, and their offsets."""
        tensors = {"query": q[0], "key": k[0], "value": v[0]}
        if encoder is not None:
            key_encoder, value_encoder, offsets = encoder
            tensors |= {"key_encoder": key_encoder[0], "value_encoder": value_encoder[0], "cu_encoder_seqlens": offsets}
        return self.operator.prefill(**tensors, cu_seqlens=query_start_loc, has_initial_state=has_initial_state,
                                     initial_state=ssm_states, initial_state_slots=cache_indices,
                                     final_state=ssm_states, final_state_slots=cache_indices)["output"][None]

    def decode(self, q, k, v, a=None, b=None, *, ssm_states, cache_indices, query_start_loc=None, **_):
        """Outputs of one token of every row."""
        tensors = {"query": q[0].unsqueeze(1), "key": k[0].unsqueeze(1), "value": v[0].unsqueeze(1)}
        output = self.operator.decode_step(**tensors, source=ssm_states, source_slots=cache_indices)["output"]
        return output.squeeze(1)[None]

    def target_verify(self, A_log, dt_bias, q, k, v, a=None, b=None, *, ssm_states, cache_indices, query_start_loc=None, **_):
        """Outputs of DRAFT tokens of every row; states stay as they are."""
        tensors = {name: tensor[0].unflatten(0, (-1, DRAFT)) for name, tensor in (("query", q), ("key", k), ("value", v))}
        output = self.operator.staged_step(**tensors, state=ssm_states, state_slots=cache_indices,
                                           staging=self.staging)["output"]
        return output.flatten(0, 1)[None]

    def commit(self, accepted, *, ssm_states, cache_indices):
        """Takes the first `accepted` tokens of each row's draft into its state (int32, read on the device)."""
        self.operator.commit(staging=self.staging, accepted_tokens=accepted, source=ssm_states, source_slots=cache_indices)


@dataclasses.dataclass(eq=False)
class Request:
    """What a model would compute for a text as it is read and written: rows of all its tokens."""

    query: torch.Tensor  # (tokens, heads, dim), like key and value
    key: torch.Tensor
    value: torch.Tensor
    prompt: int  # tokens that are there at the start
    key_encoder: torch.Tensor | None = None  # (M, heads, dim)
    value_encoder: torch.Tensor | None = None
    context: int = 0  # tokens of the prompt that a checkpoint has
    checkpoint: int | None = None  # the slot of their state
    done: int = 0
    slot: int | None = None
    outputs: list = dataclasses.field(default_factory=list)

    @property
    def tokens(self):
        return self.query.shape[0]

    def rows(self, start, end):
        return self.query[start:end], self.key[start:end], self.value[start:end]

    def take(self, output):
        self.outputs.append(output)
        self.done += output.shape[0]


class Engine:
    """Serves requests in steps of `rows` rows."""

    def __init__(self, dtype, device, *, slots, rows):
        self.device, self.dtype, self.rows = device, dtype, rows
        self.kernels = JrtLinearAttention(dtype, rows, device)
        self.pool = jrt.StatePool(self.kernels.operator, slots=slots, heads=HEADS, like=self.kernels.staging)
        self.waiting, self.running = [], []
        self.generator = torch.Generator().manual_seed(1)

    def int32(self, numbers):
        return torch.tensor(numbers, dtype=torch.int32, device=self.device)

    def packed(self, parts):
        """Rows of requests behind one another, (1, tokens, heads, dim) each of q, k and v, and where each begins."""
        offsets = [0]
        for part in parts:
            offsets.append(offsets[-1] + part[0].shape[0])
        return [torch.cat(tensors)[None] for tensors in zip(*parts)], self.int32(offsets)

    def prefill(self, requests):
        """A piece of every request's prompt, in one call. The encoder region is read with the first piece."""
        ends = [min(request.prompt, request.done + max(PIECE, 0 if request.key_encoder is None else len(request.key_encoder)))
                for request in requests]
        (q, k, v), starts = self.packed([request.rows(request.done, end) for request, end in zip(requests, ends)])
        encoder = None
        starting = [request.key_encoder is not None and request.done == 0 for request in requests]
        if any(starting):
            nothing = q.new_zeros((0, HEADS, D)), q.new_zeros((0, HEADS, DV))
            (key_encoder, value_encoder), offsets = self.packed(
                [(request.key_encoder, request.value_encoder) if starts else nothing
                 for request, starts in zip(requests, starting)])
            encoder = key_encoder, value_encoder, offsets
        output = self.kernels.extend(
            q, k, v, ssm_states=self.pool.states, cache_indices=self.pool.indices([request.slot for request in requests]),
            query_start_loc=starts, encoder=encoder,
            has_initial_state=torch.tensor([request.done > 0 for request in requests], dtype=torch.uint8, device=self.device))
        for request, start, end in zip(requests, starts.tolist(), starts.tolist()[1:]):
            request.take(output[0, start:end])

    def batch(self, requests, count):
        """`count` next tokens of each request and rows of padding after them; slots of all rows."""
        padding = self.rows - len(requests)
        parts = [request.rows(request.done, request.done + count) for request in requests]
        rows = [[torch.cat([part, part[-1:].expand(count - part.shape[0], -1, -1)]) for part in parts] for parts in zip(*parts)]
        junk = float("nan")  # rows of padding are not read
        tensors = [torch.cat(part + [torch.full_like(part[0], junk)] * padding)[None] for part in rows]
        return tensors, self.pool.indices([request.slot for request in requests] + [None] * padding)

    def decode(self, requests):
        (q, k, v), slots = self.batch(requests, 1)
        output = self.kernels.decode(q, k, v, ssm_states=self.pool.states, cache_indices=slots)
        for row, request in enumerate(requests):
            request.take(output[0, row:row + 1])
        if not (output[0, len(requests):] == 0).all():
            raise SystemExit("engine_slots: outputs of rows of padding are not zero.")

    def speculate(self, requests):
        """Drafts whose first tokens are right, some more of them than of others."""
        tensors, slots = self.batch(requests, DRAFT)
        right = torch.randint(DRAFT + 1, (len(requests),), generator=self.generator).tolist()
        right = [min(count, request.tokens - request.done) for count, request in zip(right, requests)]
        for row, count in enumerate(right):
            for tensor in tensors:  # what the draft got wrong has other rows
                wrong = tensor[0, row * DRAFT + count:(row + 1) * DRAFT]
                wrong.copy_(torch.randn(wrong.shape, generator=self.generator))
        output = self.kernels.target_verify(None, None, *tensors, ssm_states=self.pool.states, cache_indices=slots)
        for row, (request, count) in enumerate(zip(requests, right)):
            request.take(output[0, row * DRAFT:row * DRAFT + count])
        self.kernels.commit(self.int32(right + [0] * (self.rows - len(requests))), ssm_states=self.pool.states,
                            cache_indices=slots)

    def checkpoint(self, request):
        """Prefills a context, whose state then stays in a slot of its own: that slot."""
        request.slot = self.pool.allocate(clear=False)
        while request.done < request.prompt:
            self.prefill([request])
        return request.slot

    def step(self, number):
        """Admits what fits, prefills, and takes every request on that is through with its prompt."""
        while self.waiting and len(self.running) < self.rows and self.pool.free_slots > 0:
            request = self.waiting.pop(0)
            if request.checkpoint is None:
                request.slot = self.pool.allocate(clear=False)
            else:
                request.slot, request.done = self.pool.fork(request.checkpoint), request.context
            self.running.append(request)
        reading = [request for request in self.running if request.done < request.prompt]
        if reading:
            self.prefill(reading)
        writing = [request for request in self.running if request.prompt <= request.done < request.tokens]
        if writing:
            (self.speculate if number % 2 else self.decode)(writing)
        for request in [request for request in self.running if request.done == request.tokens]:
            self.running.remove(request)
            self.pool.free(request.slot)


def new_request(generator, dtype, device, prompt, new, encoder=0, context=None):
    def random(tokens, dim):
        return torch.randn(tokens, HEADS, dim, generator=generator).to(device, dtype)

    rows = [random(prompt + new, dim) for dim in (D, D, DV)]
    if context is not None:
        rows = [torch.cat([start, rest]) for start, rest in zip(context.rows(0, context.prompt), rows)]
        prompt += context.prompt
    request = Request(*rows, prompt=prompt)
    if encoder > 0:
        request.key_encoder, request.value_encoder = random(encoder, D), random(encoder, DV)
    return request


def one_shot(operator, request):
    """Outputs of the request's whole text, from one call."""
    tensors = {"query": request.query[None], "key": request.key[None], "value": request.value[None]}
    if request.key_encoder is not None:
        tensors |= {"key_encoder": request.key_encoder[None], "value_encoder": request.value_encoder[None]}
    return operator.prefill(**tensors)["output"][0]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default=None, help="float32, bfloat16 or float16; by default bfloat16 on a GPU")
    parser.add_argument("--steps", type=int, default=400, help="give up after so many steps")
    arguments = parser.parse_args()
    dtype = getattr(torch, arguments.dtype or ("bfloat16" if arguments.device == "cuda" else "float32"))
    bound = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}[dtype]

    generator = torch.Generator().manual_seed(0)
    engine = Engine(dtype, arguments.device, slots=7, rows=6)
    document = new_request(generator, dtype, arguments.device, prompt=150, new=0)
    checkpoint = engine.checkpoint(document)
    requests = []
    for number in range(16):
        kind = number % 3
        prompt, new = 5 + 11 * number % 130, 3 + 7 * number % 23
        if kind == 0:  # a question about the document
            request = new_request(generator, dtype, arguments.device, prompt=9, new=new, context=document)
            request.checkpoint, request.context = checkpoint, document.prompt
        else:  # a prompt; of every second one the first tokens are an encoder region
            request = new_request(generator, dtype, arguments.device, prompt, new, encoder=min(prompt, 64) if kind == 1 else 0)
        requests.append(request)
    engine.waiting += requests

    steps = 0
    while (engine.waiting or engine.running) and steps < arguments.steps:
        engine.step(steps)
        steps += 1

    failed = 0
    for number, request in enumerate([document, *requests]):
        whole = one_shot(engine.kernels.operator, request).float()[request.context:]
        served = torch.cat(request.outputs).float() if request.outputs else whole[:0]
        error = ((served - whole).norm() / whole.norm()).item() if served.shape == whole.shape else float("inf")
        if not error <= bound:
            failed += 1
            print(f"request {number}: {served.shape[0]} of {whole.shape[0]} tokens, error {error:.1e}", file=sys.stderr)
    tokens = sum(request.tokens - request.context for request in requests)
    print(f"{len(requests)} requests, {tokens} tokens in {steps} steps of {engine.rows} rows and {engine.pool.slots} slots on "
          f"{arguments.device}, {dtype}: {'all' if failed == 0 else f'{failed} not'} as in one prefill")
    return 0 if failed == 0 and engine.pool.taken == [checkpoint] else 1


if __name__ == "__main__":
    sys.exit(main())
