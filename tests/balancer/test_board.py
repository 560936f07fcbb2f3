"""The board is shared memory with one writer a row."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from balancer.board import Board
from balancer.ledger import Ledger

RESIDUAL = [1] * 64


@pytest.fixture
def board() -> Iterator[Board]:
    made = Board.create(workers=2, cells=10)
    yield made
    made.close()
    os.close(made.fd)


def test_shape(board: Board) -> None:
    """Two rows a worker, so that two generations fit, and one for the other nodes."""
    assert (5, 10, 2, 4) == (board.rows, board.cells, board.workers, board.nodes_row)
    assert [0, 1, 0, 2, 3] == [
        board.row_of(0, 0),
        board.row_of(0, 1),
        board.row_of(0, 2),
        board.row_of(1, 0),
        board.row_of(1, 1),
    ]


def test_ledgers_on_it(board: Board) -> None:
    """Ledgers of two workers sum each other's rows; the board sums all."""
    one = Ledger(board.ints, board.base(0), (board.base(2),))
    other = Ledger(board.ints, board.base(2), (board.base(0),))
    lease = one.acquire(9, 10, 5, RESIDUAL)
    other.acquire(9, 1, 2, RESIDUAL)
    assert (11, 7, 2) == one.outstanding(9) == other.outstanding(9) == board.outstanding(9)
    lease.release()
    assert (1, 2, 1) == board.outstanding(9)
    board.clear(2)
    assert (0, 0, 0) == board.outstanding(9)


def test_clear_touches_one_row_only(board: Board) -> None:
    """The other workers' counts stay."""
    for row in range(4):
        Ledger(board.ints, board.base(row)).acquire(0, row + 1, 0, RESIDUAL)
        board.claim(row, 100 + row, 5)
    board.clear(1)
    assert 1 + 3 + 4 == board.outstanding(0)[0]
    assert [0, 2, 3] == board.live()


def test_header(board: Board) -> None:
    """Who owns a row, whether it lives, what it holds of the location's limits."""
    board.claim(1, 77, 5)
    board.claim(2, 78, 5)
    board.beat(1, 9)
    board.set_connections(1, 40)
    board.set_connections(2, 2)
    board.set_queued(1, 3)
    assert (77, 9, 42, 2, 3, 0) == (
        board.pid(1), board.heartbeat(1), board.connections(), board.connections(1), board.queued(), board.queued(1),
    )  # fmt: skip


def test_another_process_sees_it(board: Board) -> None:
    """A child that inherits the descriptor reads and writes the same counts."""
    Ledger(board.ints, board.base(0)).acquire(3, 5, 6, RESIDUAL)
    code = (
        "import sys; from balancer.board import Board; from balancer.ledger import Ledger\n"
        f"b = Board.attach({board.fd}); print(b.outstanding(3)); Ledger(b.ints, b.base(2)).acquire(3, 1, 1, [1] * 64)"
    )
    done = subprocess.run([sys.executable, "-c", code], pass_fds=[board.fd], capture_output=True, text=True, check=True)
    assert "(5, 6, 1)\n" == done.stdout
    assert (6, 7, 2) == board.outstanding(3)


@pytest.mark.parametrize("content", [b"", b"x" * 64, b"x" * 65])
def test_anything_else_is_refused(content: bytes) -> None:
    """A descriptor that is no board is named as such."""
    fd = os.memfd_create("other")
    os.write(fd, content)
    try:
        with pytest.raises(ValueError, match="not a board"):
            Board.attach(fd)
    finally:
        os.close(fd)


def test_a_cut_board_is_refused(board: Board) -> None:
    """Rows and cells must fit the size."""
    os.ftruncate(board.fd, os.fstat(board.fd).st_size + 8)
    with pytest.raises(ValueError, match="cannot have"):
        Board.attach(board.fd)


def test_bounds(board: Board) -> None:
    """Rows and cells that do not exist are errors, not somebody else's memory."""
    with pytest.raises(IndexError):
        board.base(5)
    with pytest.raises(IndexError):
        board.outstanding(10)


def test_a_closed_descriptor_is_refused() -> None:
    """A descriptor that is not open is named as no board too."""
    with pytest.raises(ValueError, match="not a board"):
        Board.attach(-1)


def test_without_memfd(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where anonymous memory is not to be had, a file without a name serves."""
    monkeypatch.delattr(os, "memfd_create")
    made = Board.create(workers=1, cells=1)
    try:
        assert (3, 1, 0) == (made.rows, made.cells, os.fstat(made.fd).st_nlink)
    finally:
        made.close()
        os.close(made.fd)


def test_the_other_nodes_row(board: Board) -> None:
    """It counts like a worker's, but is not this node's own."""
    Ledger(board.ints, board.base(0)).acquire(3, 10, 5, RESIDUAL)
    board.set_outstanding(board.nodes_row, 3, (100, 50, 2))
    assert (110, 55, 3) == board.outstanding(3)
    assert (10, 5, 1) == board.outstanding(3, own=True)
    board.set_outstanding(board.nodes_row, 3, (0, 0, 0))
    assert (10, 5, 1) == board.outstanding(3)
    with pytest.raises(IndexError):
        board.set_outstanding(0, 10, (0, 0, 0))
