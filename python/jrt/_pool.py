# SPDX-License-Identifier: Apache-2.0
"""A pool of states for serving: slots that are taken, forked and given back."""

import os
import pathlib
from collections.abc import Iterable
from typing import Any

from jrt import _tensors
from jrt._operator import Operator


class StatePool:
    """Slots for the states of sequences, in one tensor, for one layer and operator.

        pool = jrt.StatePool(operator, slots=64, heads=16, like=query)
        slot = pool.allocate()                                    # an empty state
        operator.prefill(**prompt, final_state=pool.states, final_state_slots=pool.indices([slot]))
        child = pool.fork(slot)                                   # two answers to one prompt
        operator.decode_step(**tokens, source=pool.states, source_slots=pool.indices([slot, child, None]))   # None: padding
        pool.free([slot, child])

    operator      whose states they are; another operator with the same `state_key` (another mask, say) can use them, too
    slots, heads  how many states, and heads of keys and values of each (of a convolution: channels)
    like          a tensor, or NumPy, CuPy or PyTorch themselves: framework and device of the pool's memory
    states        memory of your own instead, (slots, heads, elements); it is cleared slot by slot as slots are taken

    It only keeps count of slots; the work is `Operator.clear_states`, `copy_states`, `save_states` and `load_states`. Calls
    from several threads need a lock. Errors: ValueError that names the slot."""

    def __init__(self, operator: Operator, *, slots: int | None = None, heads: int | None = None, like: Any = None,
                 states: Any = None, threads: int = 1) -> None:
        if (states is None) == (like is None or slots is None or heads is None):
            raise ValueError("jrt.StatePool: give slots, heads and like, or states.")
        self.operator = operator
        self.states = operator.new_states(slots or 0, heads or 0, like) if states is None else states
        self._threads = threads
        self._free = list(range(int(self.states.shape[0]) - 1, -1, -1))
        self._taken: set[int] = set()

    @property
    def slots(self) -> int:
        """How many there are."""
        return int(self.states.shape[0])

    @property
    def heads(self) -> int:
        return int(self.states.shape[1])

    @property
    def free_slots(self) -> int:
        """How many can still be allocated."""
        return len(self._free)

    @property
    def taken(self) -> list[int]:
        """The slots that are in use, in order."""
        return sorted(self._taken)

    def allocate(self, *, clear: bool = True) -> int:
        """Takes a slot; cleared, unless the caller writes it anyway. RuntimeError if there is none."""
        return self._allocate(1, clear)[0]

    def allocate_many(self, count: int, *, clear: bool = True) -> list[int]:
        """Takes `count` slots, or none: RuntimeError if there are not as many."""
        return self._allocate(count, clear)

    def free(self, slots: int | Iterable[int]) -> None:
        """Gives slots back."""
        slots = self._known(slots)
        self._taken.difference_update(slots)
        self._free.extend(reversed(slots))

    def fork(self, slot: int) -> int:
        """Takes a slot and copies a state there: the sequence goes on twice."""
        return self.fork_many([slot])[0]

    def fork_many(self, slots: Iterable[int]) -> list[int]:
        """The same of several; a slot may be named several times."""
        sources = list(slots)
        self._known(set(sources))
        copies = self._allocate(len(sources), clear=False)
        if sources:
            self.operator.copy_states(self.states, self.states, source_slots=_tensors.int32(self.states, sources),
                                      destination_slots=_tensors.int32(self.states, copies), threads=self._threads)
        return copies

    def clear(self, slots: int | Iterable[int]) -> None:
        """Makes states empty."""
        self._clear(self._known(slots))

    def indices(self, rows: Iterable[int | None]) -> Any:
        """The slots of a batch's rows as a vector of int32, as operations take them; None, a row of padding, is −1."""
        rows = list(rows)
        self._known({slot for slot in rows if slot is not None and slot != -1})
        return _tensors.int32(self.states, [-1 if slot is None else slot for slot in rows])

    def save(self, slots: int | Iterable[int] | None = None, path: "str | os.PathLike[str] | None" = None) -> bytes:
        """States as bytes with a header that `load` checks; all that are taken, in order, if none are named. Also written to
        the file `path`, if it is given: beside it first, then renamed."""
        slots = self.taken if slots is None else self._known(slots)
        saved = self.operator.save_states(self.states, source_slots=_tensors.int32(self.states, slots), threads=self._threads)
        assert saved is not None
        if path is not None:
            partial = pathlib.Path(path).with_name(f"{pathlib.Path(path).name}.{os.getpid()}.partial")
            partial.write_bytes(saved)
            os.replace(partial, path)
        return saved

    def load(self, saved: "bytes | str | os.PathLike[str]") -> list[int]:
        """Takes a slot for each state in saved bytes, or in a file, and loads it. ValueError, with the pool as it was, if they
        are not of this version, operator, type and number of heads; RuntimeError if there are not as many slots."""
        if not isinstance(saved, (bytes, bytearray, memoryview)):
            saved = pathlib.Path(saved).read_bytes()
        count = self.operator.saved_count(saved, self.states)
        # An untrusted header may say anything: load_states compares it, and refuses any that is not the pool's.
        slots = self._allocate(count if 0 <= count <= len(saved) else 0, clear=False)
        try:
            self.operator.load_states(saved, self.states, destination_slots=_tensors.int32(self.states, slots),
                                      threads=self._threads)
        except BaseException:
            self.free(slots)
            raise
        return slots

    def _allocate(self, count: int, clear: bool) -> list[int]:
        if count < 0 or count > len(self._free):
            raise RuntimeError(f"jrt.StatePool: {count} slots are wanted, but {len(self._free)} of {self.slots} are free.")
        slots = [self._free.pop() for _ in range(count)]
        self._taken.update(slots)
        if clear:
            self._clear(slots)
        return slots

    def _clear(self, slots: list[int]) -> None:
        if slots:
            self.operator.clear_states(self.states, states_slots=_tensors.int32(self.states, slots), threads=self._threads)

    def _known(self, slots: int | Iterable[int]) -> list[int]:
        """Slots that are in use, each once."""
        known = [slots] if isinstance(slots, int) else list(slots)
        for slot in known:
            if slot not in self._taken:
                raise ValueError(f"jrt.StatePool: slot {slot!r} is not in use; those are {self.taken}.")
        if len(set(known)) != len(known):
            raise ValueError(f"jrt.StatePool: slots are {known}, but each may be named once.")
        return known
