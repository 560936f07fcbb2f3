"""The outbox: nothing is lost while there is room, nothing is counted twice, and what is lost is counted."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from proxy.control.messages import Batch
from proxy.control.outbox import DROPPED, LIMIT, Outbox
from tests.support.records import record

RECORD = record()


def add(outbox: Outbox, count: int, **counters: int) -> Batch:
    return outbox.add([RECORD] * count, counters, [], [])


def test_batches_wait_for_their_acknowledgement() -> None:
    """All up to the acknowledged one go, the others stay in their order."""
    outbox = Outbox()
    batches = [add(outbox, n) for n in (1, 2, 3)]
    assert ([1, 2, 3], 6) == ([batch.sequence for batch in batches], len(outbox))
    outbox.acknowledge(2)
    assert ([batches[2]], 3) == (outbox.unacknowledged(), len(outbox))
    outbox.acknowledge(2)
    assert [batches[2]] == outbox.unacknowledged()
    outbox.acknowledge(3)
    assert ([], 0) == (outbox.unacknowledged(), len(outbox))


def test_batch_carries_what_was_given() -> None:
    """Records, counters, lag samples and instances that are kept out."""
    counters = {"a|b": 1}
    batch = Outbox().add([RECORD], counters, [0.5], ["gpu-1"])
    assert Batch(1, [RECORD], {"a|b": 1}, [0.5], ["gpu-1"]) == batch
    assert batch.counters is not counters


def test_oldest_records_are_dropped_and_counted() -> None:
    """Over the limit the oldest batch goes; the next one says how many records went with it."""
    outbox = Outbox(limit=10)
    for _ in range(3):
        add(outbox, 4, requests=1)
    assert (8, [2, 3]) == (len(outbox), [batch.sequence for batch in outbox.unacknowledged()])
    assert {"requests": 2} == outbox.unacknowledged()[0].counters  # the dropped batch's own and its heir's
    assert {DROPPED: 4} == add(outbox, 0).counters
    assert {} == add(outbox, 0).counters


def test_last_batch_stays() -> None:
    """The newest batch is never dropped, however long it is."""
    outbox = Outbox(limit=10)
    add(outbox, 25)
    assert 25 == len(outbox)
    add(outbox, 1)
    assert (1, {DROPPED: 25}) == (len(outbox), add(outbox, 0).counters)


def test_batches_without_records_are_bounded_too() -> None:
    """Lag samples of a long time without an agent do not pile up."""
    outbox = Outbox(limit=3)
    for _ in range(10):
        outbox.add([], {"n": 1}, [0.1], [])
    assert [{"n": 8}, {"n": 1}, {"n": 1}] == [batch.counters for batch in outbox.unacknowledged()]
    assert 10_000 == LIMIT


STEPS = st.lists(st.one_of(st.tuples(st.just("add"), st.integers(0, 6)), st.tuples(st.just("lose"), st.integers(0, 9))))


@given(STEPS, st.integers(1, 12))
def test_every_record_is_delivered_or_counted(steps: list[tuple[str, int]], limit: int) -> None:
    """However often the agent goes: delivered, dropped and waiting records are all there were; counters are exact.

    The agent is away except at a `lose`, when it counts the first so many waiting batches and then goes.
    """
    outbox, counted, made, delivered = Outbox(limit), Counter[str](), 0, 0
    for step, n in steps:
        if step == "add":
            add(outbox, n, made=n, batches=1)
            made += n
        elif batches := outbox.unacknowledged()[:n]:
            delivered += sum(len(batch.records) for batch in batches)
            for batch in batches:
                counted.update(batch.counters)
            outbox.acknowledge(batches[-1].sequence)
    final = add(outbox, 0)
    waiting = outbox.unacknowledged()
    for batch in waiting:
        counted.update(batch.counters)
    in_hand = delivered + sum(len(batch.records) for batch in waiting)
    assert made == in_hand + counted[DROPPED] + outbox.lost
    assert made == counted["made"]
    assert final.sequence == counted["batches"] + 1
