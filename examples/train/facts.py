# SPDX-License-Identifier: Apache-2.0
"""A small synthetic corpus: documents of facts, each with a question at its end.

    name relation value   name relation value   …   ask name answer   relation value

A relation's values are a class of their own. Who
reads document and question once must remember every fact, for the question comes last. Who reads both twice knows the
question the second time: JRT-Prompt.
"""

from dataclasses import dataclass

import torch

SEPARATOR, ASK, ANSWER, FIRST = 1, 2, 3, 4  # 0 is never a target of masked tokens in the authors' code, so nothing here
ANSWER_TOKENS = 2


@dataclass(frozen=True)
class Corpus:
    """Extents of the vocabulary; its last token masks."""

    names: int = 64
    relations: int = 1
    values: int = 32  # of each relation

    @property
    def vocabulary(self):
        return FIRST + self.names + self.relations + self.relations * self.values + 1

    @property
    def mask(self):
        return self.vocabulary - 1

    def documents(self, facts, count, generator, places=None, questions=1):
        """Documents (count, 3·places), questions (count, questions, 3) and their answers (count, questions, 2). With more
        places than facts some facts are repeated, at any place."""
        places = places or facts
        if facts > self.names:
            raise ValueError(f"documents: {facts} facts need as many names, but there are {self.names}.")
        device = generator.device
        names = torch.rand(count, self.names, generator=generator, device=device).topk(facts).indices + FIRST
        relations = torch.randint(self.relations, (count, facts), generator=generator, device=device)
        values = torch.randint(self.values, (count, facts), generator=generator, device=device)
        values += FIRST + self.names + self.relations + relations * self.values
        relations += FIRST + self.names
        documents = torch.stack([names, relations, values], dim=-1)
        if places > facts:
            more = torch.randint(facts, (count, places - facts), generator=generator, device=device)
            filled = torch.cat([torch.arange(facts, device=device).expand(count, -1), more], dim=1)
            order = torch.rand(count, places, generator=generator, device=device).argsort(dim=1)
            documents = documents.gather(1, filled.gather(1, order).unsqueeze(-1).expand(-1, -1, 3))
        documents = documents.flatten(1)
        asked = torch.randint(facts, (count, questions), generator=generator, device=device)
        name, relation, value = (tensor.gather(1, asked) for tensor in (names, relations, values))
        asked = torch.stack([torch.full_like(name, ASK), name, torch.full_like(name, ANSWER)], dim=-1)
        return documents, asked, torch.stack([relation, value], dim=-1)


def prompts(documents, questions, readings):
    """Document and question, `readings` times, with a separator between: the answer comes next."""
    once = torch.cat([documents, questions], dim=1)
    separator = torch.full_like(once[:, :1], SEPARATOR)
    return torch.cat([once, *[torch.cat([separator, once], dim=1)] * (readings - 1)], dim=1)
