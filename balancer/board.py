"""The board: counters that the workers of a location share, in one piece of memory that each maps.

Layout, all 64-bit integers: a header (magic, version, rows, cells), then the rows; a row is a header (pid, heartbeat in
monotonic ns, connections, queued, four spare), three counts a cell (see `balancer.ledger`), and the heads of its queues and
the counters of their tenants (see `balancer.share`). There are two rows a
worker, so that a worker and its successor can run side by side, and a last one, which the agent writes: what the other nodes
of the location have outstanding. No lock is needed: a row has one writer, integers are
aligned, and an aligned store of 64 bits is never seen by halves. Who reads a sum while others write sees each
count as it was a moment ago, which is all that a choice needs.
"""

import mmap
import os
import tempfile

from balancer.ledger import WIDTH
from balancer.share import area

MAGIC, VERSION = 0x48454144_52414345, 2
HEADER, ROW_HEADER = 8, 8
PID, HEARTBEAT, CONNECTIONS, QUEUED = range(4)
ROWS_A_WORKER = 2
AWAKE = 3_000_000_000  # ns since the last heartbeat


class Board:
    """The mapped memory. `ints` is all of it as integers, which a Ledger works on from `base(row)`."""

    def __init__(self, fd: int, memory: mmap.mmap) -> None:
        self.fd = fd
        self._memory = memory
        self.ints = memoryview(memory).cast("q")
        self.rows = self.ints[2]
        self.cells = self.ints[3]
        self._stride = _stride(self.cells)

    def shares(self, row: int) -> int:
        """Where the heads and the tenants' counters of a row begin in `ints` (`balancer.share`)."""
        return self.base(row) + WIDTH * self.cells

    @classmethod
    def create(cls, workers: int, cells: int) -> "Board":
        """A new board for so many workers and instances, all zero."""
        rows = workers * ROWS_A_WORKER + 1
        size = 8 * (HEADER + rows * _stride(cells))
        fd = _anonymous_file()
        os.ftruncate(fd, size)
        memory = mmap.mmap(fd, size)
        with memoryview(memory) as view, view.cast("q") as ints:
            ints[0], ints[1], ints[2], ints[3] = MAGIC, VERSION, rows, cells
        return cls(fd, memory)

    @classmethod
    def attach(cls, fd: int) -> "Board":
        """The board behind a descriptor that was inherited; ValueError if it is none."""
        try:
            size = os.fstat(fd).st_size
        except OSError as error:
            raise ValueError(f"not a board: {error.strerror}") from None
        if size < 8 * HEADER or size % 8:
            raise ValueError(f"not a board: {size} bytes")
        memory = mmap.mmap(fd, size)
        with memoryview(memory) as view, view.cast("q") as ints:
            magic, version, rows, cells = ints[:4].tolist()
        if (magic, version) != (MAGIC, VERSION):
            memory.close()
            raise ValueError(f"not a board of version {VERSION}: magic {magic:#x}, version {version}")
        if size != 8 * (HEADER + rows * _stride(cells)):
            memory.close()
            raise ValueError(f"a board of {rows} rows and {cells} cells cannot have {size} bytes")
        return cls(fd, memory)

    def close(self) -> None:
        """Unmaps it; the descriptor stays open."""
        self.ints.release()
        self._memory.close()

    def row_of(self, worker: int, generation: int) -> int:
        """The row of a worker's so-many-eth process."""
        return ROWS_A_WORKER * worker + generation % ROWS_A_WORKER

    @property
    def nodes_row(self) -> int:
        """The row of the other nodes' work."""
        return self.rows - 1

    def set_outstanding(self, row: int, cell: int, counts: tuple[int, int, int]) -> None:
        """Sets what a row says of an instance."""
        if not 0 <= cell < self.cells:
            raise IndexError(f"cell {cell} of {self.cells}")
        at = self.base(row) + WIDTH * cell
        for place, count in enumerate(counts):
            self.ints[at + place] = count

    def base(self, row: int) -> int:
        """Where the counts of a row begin in `ints`."""
        return self._start(row) + ROW_HEADER

    def _start(self, row: int) -> int:
        if not 0 <= row < self.rows:
            raise IndexError(f"row {row} of {self.rows}")
        return HEADER + row * self._stride

    def clear(self, row: int) -> None:
        """Zeroes a row whose worker is dead."""
        start = self._start(row)
        self.ints[start : start + self._stride] = memoryview(bytes(8 * self._stride)).cast("q")

    def claim(self, row: int, pid: int, now: int) -> None:
        """Makes a row a live worker's."""
        start = self._start(row)
        self.ints[start + HEARTBEAT] = now
        self.ints[start + PID] = pid

    def beat(self, row: int, now: int) -> None:
        """The worker of this row is alive at `now` (monotonic ns)."""
        self.ints[self._start(row) + HEARTBEAT] = now

    def heartbeat(self, row: int) -> int:
        return self.ints[self._start(row) + HEARTBEAT]

    def pid(self, row: int) -> int:
        return self.ints[self._start(row) + PID]

    def live(self, except_row: int | None = None) -> list[int]:
        """The rows that belong to a worker."""
        return [row for row in range(self.rows) if row != except_row and self.pid(row)]

    def awake(self, except_row: int, now: int) -> list[int]:
        """The other rows whose worker's heart has beaten lately: a stuck one's queue is waited for by nobody."""
        return [row for row in self.live(except_row) if now - self.heartbeat(row) < AWAKE]

    @property
    def workers(self) -> int:
        """How many the location has."""
        return self.rows // ROWS_A_WORKER

    def set_connections(self, row: int, count: int) -> None:
        self.ints[self._start(row) + CONNECTIONS] = count

    def connections(self, except_row: int | None = None) -> int:
        """Open client connections of the location."""
        return sum(self.ints[self._start(row) + CONNECTIONS] for row in self.live(except_row))

    def set_queued(self, row: int, count: int) -> None:
        self.ints[self._start(row) + QUEUED] = count

    def queued(self, except_row: int | None = None) -> int:
        """Requests that wait in the location's queues."""
        return sum(self.ints[self._start(row) + QUEUED] for row in self.live(except_row))

    def outstanding(self, cell: int, *, own: bool = False) -> tuple[int, int, int]:
        """Prefill tokens, decode tokens and requests of an instance, over all rows; `own`: without the other nodes'."""
        if not 0 <= cell < self.cells:
            raise IndexError(f"cell {cell} of {self.cells}")
        prefill = decode = requests = 0
        for row in range(self.rows - own):
            at = self.base(row) + WIDTH * cell
            prefill += self.ints[at]
            decode += self.ints[at + 1]
            requests += self.ints[at + 2]
        return prefill, decode, requests


def _stride(cells: int) -> int:
    return ROW_HEADER + WIDTH * cells + area(cells)


def _anonymous_file() -> int:
    try:
        return os.memfd_create("headrace-board")
    except (AttributeError, OSError):  # not on every system, and some sandboxes forbid it
        fd, path = tempfile.mkstemp(prefix="headrace-board-")
        os.unlink(path)
        return fd
