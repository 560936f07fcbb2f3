"""The ledger: the outstanding work of this location, by instance, in whole tokens.

Rules. Work is put there by `acquire` and leaves by the Lease that `acquire` returns, and in no other way: prompt tokens
(A) at the first token, output tokens (D) as they come, all of it at `release`. A lease is released once; afterwards it
does nothing. So every count is at least 0, and 0 when all leases are released, whatever happened in between.

The counts live in a flat array, three a cell: on the board each worker writes its own row and sums all (BALANCING 1).
"""

from collections.abc import Sequence
from typing import Protocol

WIDTH = 3  # prefill tokens A, decode tokens D, requests


class Counts(Protocol):
    """An array of integers: the board's memory, or a list."""

    def __getitem__(self, index: int, /) -> int: ...
    def __setitem__(self, index: int, value: int, /) -> None: ...


class Ledger:
    """One worker's view. `cells`: the array; `base`: where its own row begins; `others`: where the other rows begin."""

    __slots__ = ("base", "cells", "others")

    def __init__(self, cells: Counts, base: int = 0, others: Sequence[int] = ()) -> None:
        self.cells = cells
        self.base = base
        self.others = others

    def outstanding(self, cell: int) -> tuple[int, int, int]:
        """Prefill tokens, decode tokens and requests of an instance, all workers' together."""
        cells, offset = self.cells, WIDTH * cell
        at = self.base + offset
        prefill, decode, requests = cells[at], cells[at + 1], cells[at + 2]
        for other in self.others:
            at = other + offset
            prefill += cells[at]
            decode += cells[at + 1]
            requests += cells[at + 2]
        return prefill, decode, requests

    def own(self, cell: int) -> tuple[int, int, int]:
        """The same, of this worker alone."""
        at = self.base + WIDTH * cell
        return self.cells[at], self.cells[at + 1], self.cells[at + 2]

    def acquire(
        self,
        cell: int,
        prompt: int,
        expected: int,
        residual: Sequence[int],
        cap: int = 0,
        tokens_per_event: float = 1.0,
    ) -> "Lease":
        """Puts a request's work on an instance.

        `prompt` and `expected` output in tokens; `residual[n.bit_length()]`: tokens still expected after n; `cap`: the
        client's limit on output tokens, 0 for none; `tokens_per_event`: tokens that one event of the stream stands for.
        """
        return Lease(self, cell, prompt, expected, residual, cap, tokens_per_event)


class Lease:
    """One request's share of the ledger, from its dispatch to its end. See `Ledger.acquire` for what makes one."""

    __slots__ = (
        "_at", "_cap", "_cells", "_decode", "_expected", "_prefill", "_residual", "_tokens_per_event", "cell", "emitted",
        "events", "released",
    )  # fmt: skip

    def __init__(
        self,
        ledger: Ledger,
        cell: int,
        prompt: int,
        expected: int,
        residual: Sequence[int],
        cap: int,
        tokens_per_event: float,
    ) -> None:
        if cap > 0 and expected > cap:
            expected = cap
        if prompt < 0:
            prompt = 0
        if expected < 0:
            expected = 0
        self.cell = cell
        self.events = self.emitted = 0
        self.released = False
        self._cells = cells = ledger.cells
        self._at = at = ledger.base + WIDTH * cell
        self._prefill, self._decode = prompt, expected
        self._expected, self._residual, self._cap = expected, residual, cap
        self._tokens_per_event = tokens_per_event
        cells[at] += prompt
        cells[at + 1] += expected
        cells[at + 2] += 1

    def first_token(self) -> None:
        """The prompt is processed: A leaves."""
        if self._prefill and not self.released:
            self._cells[self._at] -= self._prefill
            self._prefill = 0

    def progress(self, events: int) -> None:
        """So many more events came: D becomes what is still expected after them."""
        if self.released:
            return
        self.events += events
        self.emitted = emitted = int(self.events * self._tokens_per_event)
        left = self._expected - emitted
        floor = self._residual[emitted.bit_length()]
        if left < floor:
            left = floor
        if self._cap > 0 and left > self._cap - emitted:
            left = self._cap - emitted if emitted < self._cap else 0
        if left != self._decode:
            self._cells[self._at + 1] += left - self._decode
            self._decode = left

    def course(self) -> tuple[int, int]:
        """How D goes on while the residual life stays as it is and an event is a token: by how many tokens it falls with
        each event (1 or 0), and for how many events that holds (0: not even for the next). For who follows many leases.
        """
        if self._cap > 0 or self._tokens_per_event != 1.0:
            return 0, 0
        emitted, residual, expected = self.emitted, self._residual, self._expected
        if expected - emitted <= residual[emitted.bit_length()]:
            return 0, (1 << emitted.bit_length()) - 1 - emitted
        last = emitted
        for bits in range(emitted.bit_length(), expected.bit_length() + 1):
            last = min((1 << bits) - 1, expected - residual[bits])  # D is expected - emitted up to here
            if last < (1 << bits) - 1:
                break
        return 1, max(last, ((1 << bits) >> 1) - 1) - emitted

    def elapse(self, since_ns: int, ttft_ns: int, tpot_ns: int) -> None:
        """For answers that are not streamed: `since_ns` after the dispatch, A has left if its predicted TTFT is over,
        and D falls by a token every `tpot_ns`.
        """
        if self.released or since_ns < ttft_ns:
            return
        self.first_token()
        left = max(0, self._expected - (since_ns - ttft_ns) // max(1, tpot_ns))
        if left < self._decode:
            self._cells[self._at + 1] += left - self._decode
            self._decode = left

    def release(self) -> None:
        """Takes all that is left off the ledger. Only the first call does anything."""
        if self.released:
            return
        self.released = True
        cells, at = self._cells, self._at
        cells[at] -= self._prefill
        cells[at + 1] -= self._decode
        cells[at + 2] -= 1
        self._prefill = self._decode = 0
