"""What the admin API and the metrics show of an agent: plain data from what it knows."""

import importlib.metadata
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import msgspec

from balancer.model import REASONS
from telemetry import names
from telemetry.metrics import PHASES, Sample, percentile
from telemetry.names import PRIORITIES
from telemetry.record import Record, as_dict
from telemetry.tuner import Change

if TYPE_CHECKING:
    from proxy.control.agent import Agent

VERSION = importlib.metadata.version("headrace")
MS = 1e-6
RECENT = 1000  # records that the latencies of the state are taken from


def state(agent: "Agent") -> dict[str, Any]:
    """The location as it is now."""
    config = agent.config
    recent = list(agent.kept.records)[-RECENT:]
    ttft = [(r.first_token - r.accepted) * MS for r in recent if r.first_token]
    return {
        "location": config.location if config else "",
        "version": VERSION,
        "generation": agent.generation,
        "table_version": agent.version,
        "config_hash": agent.hash,
        "draining": agent.processes.draining,
        "workers": [
            {
                "worker": p.worker, "pid": p.pid, "restarts": p.restarts, "connected": p.worker in agent.workers.values(),
                "ejected": agent.ejected.get(p.worker, []),
            }
            for p in agent.processes.workers
        ],
        "agent": {"pid": agent.pid, "restarts": agent.processes.agent_restarts, "started": agent.started},
        "connections": agent.board.connections(),
        "queued": agent.board.queued(),
        "models": {name: _instances(agent, name) for name in (config.models if config else {})},
        "locations": locations(agent),
        "totals": totals(agent),
        "ttft_ms": {"p50": round(percentile(ttft, 0.5), 3), "p99": round(percentile(ttft, 0.99), 3)},
        "records": len(agent.kept.records),
    }  # fmt: skip


def totals(agent: "Agent") -> dict[str, Any]:
    """Counts since the agent began."""
    counted = agent.totals
    return {
        "requests": counted["requests"],
        "outcomes": {k.partition(":")[2]: n for k, n in counted.items() if k.startswith("outcome:")},
        "retries": counted["headrace_retries_total"],
        "interruptions": counted["headrace_stream_interruptions_total"],
        "parse_rejects": counted["headrace_parse_rejects_total"],
        "records_dropped": counted["headrace_records_dropped_total"],
    }


def locations(agent: "Agent") -> dict[str, dict[str, Any]]:
    """The other locations, as the mesh knows them."""
    shown = {}
    now = time.monotonic_ns()
    for location in agent.config.mesh.locations if agent.config is not None and agent.config.mesh is not None else ():
        sessions = agent.peers.sessions(location)
        heard = [session for session in sessions if session.told is not None and session.known]
        digests = {d.model: d for s in heard if s.told is not None for d in s.told.digests}
        shown[location] = {
            "up": bool(heard),
            "nodes": sorted(s.peer.node for s in sessions if s.peer is not None),
            "rtt_ms": round(min((s.rtt for s in heard), default=0) * MS, 3),
            "clock_ahead_s": round(max((s.clock_error for s in sessions), key=abs, default=0) / 1e9, 3),
            "age_s": round(min(((now - s.told.made + s.offset) / 1e9 for s in heard if s.told), default=0.0), 3),
            "failures": {reason: n for (peer, reason), n in agent.peers.failures.items() if peer == location},
            "models": {
                model: {
                    "accepting": d.accepting, "instances": d.instances, "running": d.running, "waiting_tokens": d.work,
                    "tokens_a_second": round(d.capacity), "residency": list(d.residency),
                }
                for model, d in digests.items()
            },
        }  # fmt: skip
    return shown


def _instances(agent: "Agent", model: str) -> list[dict[str, Any]]:
    assert agent.config is not None  # noqa: S101
    shown, weights = [], agent.weights.of(model)
    for engine in agent.config.models[model].engines:
        probed = agent.probes[engine.url].state
        cell = agent.cells[engine.url]
        prefill, decode, requests = agent.board.outstanding(cell)
        out = [worker for worker, names in agent.ejected.items() if engine.name in names]
        shown.append(
            {
                "name": engine.name, "url": engine.url, "kind": probed.kind, "ready": probed.ready,
                "weight": weights[engine.name],
                "outstanding": {"prefill": prefill, "decode": decode, "requests": requests},
                "kv_use": round(probed.load.kv_use, 4), "running": probed.load.running, "waiting": probed.load.waiting,
                "background": probed.background, "ejected_by": sorted(out), "serves": list(probed.served),
                "problem": _problem(probed.problem, probed.served, engine.model or model),
            }
        )  # fmt: skip
    return shown


def _problem(problem: str, served: tuple[str, ...], model: str) -> str:
    if problem or not served or model in served:
        return problem
    return f"its /v1/models does not list {model!r}"


def weights(agent: "Agent") -> dict[str, Any]:
    """The weights in force, what the tuner holds right, and what it changed, newest first."""
    config, tuners, now = agent.config, agent.weights.tuners, time.monotonic_ns()
    models = {}
    for name, model in config.models.items() if config is not None else ():
        in_force, found = tuners[name].weights, tuners[name].found
        models[name] = [
            {"instance": e.name, "weight": in_force[e.name], "configured": e.weight, "tuner": found[e.name]}
            for e in model.engines
        ]
    return {
        "tuner": agent.weights.mode,
        "models": models,
        "input_age_s": {name: round(tuner.age(now), 3) for name, tuner in tuners.items()},
        "history": [_change(change) for change in reversed(agent.weights.history)],
    }


def _change(change: Change) -> dict[str, Any]:
    return {**msgspec.structs.asdict(change), "traces": [trace for trace, _ in change.traces]}


def summary(record: Record) -> dict[str, Any]:
    """A record in a line of a list."""
    return {
        "request_id": record.request_id, "accepted": record.accepted, "route": record.route, "model": record.model,
        "stream": record.stream, "outcome": record.outcome, "status": record.status, "error": record.error,
        "instance": record.attempts[-1].instance if record.attempts else "", "attempts": len(record.attempts),
        "reason": record.reason, "ttft_ms": _since(record, record.first_token), "total_ms": _since(record, record.done),
        "prompt_tokens": record.prompt_tokens or record.prompt_tokens_estimated, "output_tokens": record.output_tokens,
    }  # fmt: skip


def detail(record: Record) -> dict[str, Any]:
    """All of a record, with its timeline in ms since the request's head was whole, and its reason in words."""
    moments = ("queued", "routed", "connected", "sent", "first_byte", "first_token", "last_byte", "done")
    shown = as_dict(record)
    for attempt, row in zip(record.attempts, shown["attempts"], strict=True):
        if (engine := attempt.engine) is not None:
            row["engine_ms"] = {name: round(getattr(engine, name) * 1e3, 3) for name in PHASES}
    shown["timeline"] = {name: _since(record, getattr(record, name)) for name in moments if getattr(record, name)}
    shown["why"] = REASONS.get(record.reason) or f"no instance was chosen: {record.error or record.outcome}"
    return shown


def _since(record: Record, moment: int) -> float | None:
    return round((moment - record.accepted) * MS, 3) if moment else None


def samples(agent: "Agent") -> Iterable[Sample]:
    """The gauges of this moment, for a scrape."""
    for priority, name in enumerate(PRIORITIES):
        yield Sample(names.QUEUE_DEPTH, (name,), sum(queued[priority] for queued in agent.waiting.values() if queued))
    yield Sample(names.CONNECTIONS, (), agent.board.connections())
    yield Sample(names.RECORDS, (), len(agent.kept.records))
    yield Sample(names.CONFIG_INFO, (agent.hash,), 1)
    yield Sample(names.RELOAD_SUCCESS, (), float(agent.reload_ok))
    for location, peer in locations(agent).items():
        yield Sample(names.PEER_UP, (location,), float(peer["up"]))
        if peer["up"]:
            yield Sample(names.PEER_RTT, (location,), peer["rtt_ms"] / 1000)
            here = agent.config.location if agent.config is not None else ""
            yield Sample(names.DIGEST_AGE, (location, here), peer["age_s"])
    for model, tuner in agent.weights.tuners.items():
        yield Sample(names.TUNER_AGE, (model,), tuner.age(time.monotonic_ns()))
        for instance_name, weight in tuner.found.items():
            yield Sample(names.TUNER_WEIGHT, (model, instance_name), weight)
    ejected = {name for out in agent.ejected.values() for name in out}
    for model, fleet in (agent.table.models if agent.table is not None else {}).items():
        for instance in fleet.instances:
            labels = (model, instance.name)
            prefill, decode, requests = agent.board.outstanding(instance.cell)
            yield Sample(names.OUTSTANDING, (*labels, "prefill"), prefill)
            yield Sample(names.OUTSTANDING, (*labels, "decode"), decode)
            yield Sample(names.INFLIGHT, labels, requests)
            yield Sample(names.WEIGHT, labels, instance.weight)
            ttft = agent.metrics.ttft_ewma(*labels)
            if ttft is not None:
                yield Sample(names.TTFT_EWMA, labels, ttft)
            current = "ejected" if instance.name in ejected else "ready" if instance.ready else "down"
            for state in ("ready", "ejected", "down"):
                yield Sample(names.STATE, (*labels, state), float(state == current))
