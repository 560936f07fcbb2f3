"""Where a request that has not ended stands: asked of the workers only when somebody wants to know, never on a request's way."""

import asyncio
from collections.abc import Iterable

from proxy.control.link import Link
from proxy.control.messages import Find, Found, InFlight, Overdue
from proxy.net import vigil
from proxy.net.exchange import Exchange
from proxy.net.plane import Plane

PATIENCE = 0.5  # s that workers have for their answers
MOST_OVERDUE = 256  # requests of a worker
MS = 1e-6


def look(plane: Plane, request_id: str, now: int) -> InFlight | None:
    """The request, if it is in flight at this worker. Linear in the open connections."""
    for client in plane.open_clients:
        if (exchange := client.exchange) is not None and exchange.request_id == request_id:
            return _seen(plane, exchange, now)
    return None


def _seen(plane: Plane, exchange: Exchange, now: int) -> InFlight:
    ask, waiter = exchange.ask, exchange.waiter
    position, expected = plane.router.queue(ask.model).standing(waiter, now) if waiter is not None else (0, 0.0)
    return InFlight(
        request_id=exchange.request_id,
        state=exchange.state.name.lower(),
        worker=plane.worker,
        model=ask.model,
        tenant=ask.tenant,
        priority=ask.priority,
        instance=exchange.upstream.name if exchange.lease is not None else "",
        age_ms=round((now - exchange.accepted) * MS, 3),
        queue_position=position,
        queued_elsewhere=plane.queued_elsewhere,
        waiting_ms=round((now - waiter.since) * MS, 3) if waiter is not None else 0.0,
        expected_wait_ms=round(expected * 1e3, 3),
    )


def overdue(plane: Plane, now: int) -> list[Overdue]:
    """Streams that wait for their first token longer than twice what was predicted. Linear in the open connections."""
    found: list[Overdue] = []
    for client in plane.open_clients:
        exchange = client.exchange
        if exchange is None or exchange.first_token or exchange.decision is None or not vigil.late(exchange, now):
            continue
        decision, name = exchange.decision, exchange.decision.instance.name
        ahead = next((c.prefill for c in decision.candidates if c.instance == name), 0)
        found.append(
            Overdue(exchange.ask.model, name, ahead + decision.prompt_tokens, now - exchange.sent, decision.ttft)
        )
        if len(found) == MOST_OVERDUE:
            break
    return found


class Finder:
    """The agent's side: one question to all workers, the first good answer counts."""

    def __init__(self) -> None:
        self._number = 0
        self._asked: dict[
            int, tuple[asyncio.Future[InFlight | None], int]
        ] = {}  # by number; how many are yet to answer

    async def find(self, request_id: str, workers: Iterable[Link]) -> InFlight | None:
        """The request, if a worker has it in flight; None too if those that answered in time have not."""
        self._number += 1
        number = self._number
        asked = sum(link.send(Find(number, request_id)) for link in list(workers))
        if not asked:
            return None
        answer: asyncio.Future[InFlight | None] = asyncio.get_running_loop().create_future()
        self._asked[number] = answer, asked
        try:
            return await asyncio.wait_for(answer, PATIENCE)
        except TimeoutError:
            return None
        finally:
            del self._asked[number]

    def answered(self, found: Found) -> None:
        """A worker's word; one that comes too late is of no use."""
        if (entry := self._asked.get(found.number)) is None:
            return
        answer, missing = entry
        self._asked[found.number] = answer, missing - 1
        if (found.request is not None or missing == 1) and not answer.done():
            answer.set_result(found.request)
