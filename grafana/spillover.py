"""The spillover: what locations do for each other, what they know of each other, and what they refuse."""

from collections.abc import Sequence

from grafana_foundation_sdk.models import dashboard as model

from grafana import promql
from grafana.panels import About, Panel, Query, board, graph, states
from telemetry import names

PEER = "{{location}} from {{site}}"


def dashboard() -> model.Dashboard:
    """The whole of it."""
    return board(
        "headrace-spillover",
        "Spillover",
        "Which requests go to other locations, does it help them, and do locations know enough of each other?",
        {"What goes where": _flows(), "What locations know of each other": _knowledge(), "Refusals": _refusals()},
    )


def _flows() -> Sequence[Panel]:
    left = promql.rate(names.DECISIONS, promql.SITE, where=('reason="spill"',))
    work = promql.total(promql.shown(names.OUTSTANDING), promql.SITE)
    return [
        graph(
            About("Flows", "reqps", "Requests sent from a location to another, whatever became of them there."),
            Query(promql.rate(names.SPILL, "from", "to"), "{{from}} > {{to}}"), stacked=True,
        ),
        graph(
            About("What became of them", "reqps", "Answered there, or refused or failed there and then served at home."),
            Query(promql.rate(names.SPILL, "outcome"), "{{outcome}}"), stacked=True,
        ),
        graph(
            About("Share of decisions that leave", "percentunit", "Of all decisions of a location, those for another one."),
            Query(f"{left} / {promql.rate(names.DECISIONS, promql.SITE)}", "{{site}}"),
        ),
        graph(
            About(
                "Time to first token, sent away or not", "s",
                "p95 by location, of requests sent to another and of those served at home.",
            ),
            *_first_tokens(), span=12,
        ),
        graph(
            About(
                "Outstanding tokens by location", "short",
                "What each location has given to its own instances: who has too much, who has room.",
            ),
            Query(work, "{{site}}"), span=12,
        ),
    ]  # fmt: skip


def _first_tokens() -> list[Query]:
    """An attempt that went to another location has that location's name for its instance."""
    buckets = promql.rate(names.TTFT, "le", promql.SITE, "instance", part="bucket")
    peers = f'max by (instance) (label_replace({names.PEER_UP.name}, "instance", "$1", "location", "(.+)"))'
    return [
        Query(
            f"histogram_quantile(0.95, sum by (le, {promql.SITE}) ({buckets} {operator} on (instance) {peers}))",
            "{{site}}, " + where, exemplar=where == "sent away",
        )
        for where, operator in (("sent away", "and"), ("at home", "unless"))
    ]  # fmt: skip


def _knowledge() -> Sequence[Panel]:
    return [
        states(
            About("On the mesh", "short", "Whether a location hears another one."),
            Query(promql.gauge(names.PEER_UP, promql.SITE, "location"), PEER), {1: ("up", "green"), 0: ("gone", "red")},
        ),
        graph(
            About(
                "Age of digests", "s",
                "How old is what a location last said of itself; after three intervals nobody believes it.",
            ),
            Query(f"max by (from, to) ({promql.shown(names.DIGEST_AGE)})", "{{from}} at {{to}}"),
        ),
        graph(
            About(
                "Round trip", "s",
                "Between the locations' agents, measured on the mesh; a part of a spilled request's cost.",
            ),
            Query(f"max by ({promql.SITE}, location) ({promql.shown(names.PEER_RTT)})", PEER),
        ),
    ]  # fmt: skip


def _refusals() -> Sequence[Panel]:
    lost = promql.total(promql.shown(names.MESH_FAILURES), promql.SITE, "peer", "reason")
    return [
        graph(
            About(
                "Refused", "reqps",
                "Requests of others that a location did not take. guard: it has enough of its own; residency: it may not.",
            ),
            Query(promql.rate(names.SPILL_REFUSED, "from", "to", "reason"), "{{from}} > {{to}}: {{reason}}"),
        ),
        graph(
            About(
                "Hops that prove nothing", "reqps",
                "Forged, late or repeated hop headers, by what was wrong; such a request is a client's like any other.",
            ),
            Query(promql.rate(names.HOPS_REJECTED, "reason"), "{{reason}}"),
        ),
        graph(
            About(
                "Failures of the mesh", "short",
                "Streams between agents that could not be, or were ended, since the agent began. Not a rate: one would not show "
                "the first, with which its series begins.",
            ),
            Query(lost, "{{site}} and {{peer}}: {{reason}}"),
        ),
    ]  # fmt: skip
