"""The overview: a location's golden signals."""

from collections.abc import Sequence

from grafana_foundation_sdk.models import dashboard as model

from grafana import promql, slo
from grafana.panels import About, Panel, Query, board, figure, graph, percentiles
from telemetry import names

TOKENS_A_SECOND = "suffix: tok/s"


def dashboard() -> model.Dashboard:
    """The whole of it."""
    return board(
        "headrace-overview",
        "Overview",
        "Are clients served, how fast, and how much more could be taken?",
        {
            "At a glance": _glance(),
            "Requests": _requests(),
            "What broke": _broken(),
            "Latency": _latency(),
            "Throughput and queue": _throughput(),
            "Saturation": _saturation(),
        },
    )


def _glance() -> Sequence[Panel]:
    failed = promql.rate(names.DURATION, where=(f'error_type=~"{slo.FAILED}"',), part="count")
    judged = promql.rate(names.DURATION, where=(f'error_type=~"|{slo.FAILED}"',), part="count")
    ready = promql.gauge(names.STATE, where=('state="ready"',))
    return [
        figure(About("Requests", "reqps", "Requests that ended, a second."), Query(promql.rate(names.REQUESTS), "")),
        figure(
            About(
                "Failed", "percentunit",
                "Share of requests that failed through no fault of the client: engines, time, load.",
            ),
            Query(f"({failed} or vector(0)) / {judged}", ""), warn=0.001, alarm=0.01,
        ),
        figure(
            About("First token, p99", "s", "99 % of streams had their first token within this time."),
            Query(promql.quantile(0.99, names.TTFT), ""), warn=1, alarm=5,
        ),
        figure(
            About("Output", TOKENS_A_SECOND, "Tokens generated a second."),
            Query(promql.rate(names.TOKENS, where=('direction="output"',)), ""),
        ),
        figure(
            About("Waiting", "short", "Requests in the queue: no instance can take them, no other location is better."),
            Query(promql.gauge(names.QUEUE_DEPTH), ""), warn=1, alarm=100,
        ),
        figure(About("Engines ready", "short", "Instances that are neither down nor ejected."), Query(ready, "")),
    ]  # fmt: skip


def _requests() -> Sequence[Panel]:
    return [
        graph(
            About(
                "Requests by outcome", "reqps",
                "All requests that ended: ok, shed (429, 503), upstream_error, timeout, bad_request, client_gone.",
            ),
            Query(promql.rate(names.REQUESTS, "outcome"), "{{outcome}}"), stacked=True,
        ),
        graph(
            About("Errors by status", "reqps", "What clients got where they got no good answer; 0: they had left."),
            Query(promql.rate(names.REQUESTS, "code", where=('outcome!="ok"',)), "{{code}}"), stacked=True,
        ),
        graph(
            About("Errors by cause", "reqps", "The code of the error, of requests whose model was known."),
            Query(promql.rate(names.DURATION, "error_type", where=('error_type!=""',), part="count"), "{{error_type}}"),
            stacked=True,
        ),
    ]  # fmt: skip


def _broken() -> Sequence[Panel]:
    return [
        graph(
            About(
                "Retries", "reqps",
                "Further attempts before the first byte, by how the one before failed; those that the budget refused.",
            ),
            Query(promql.rate(names.RETRIES, "reason"), "after {{reason}}"),
            Query(promql.rate(names.BUDGET_EXHAUSTED, "reason"), "no budget, {{reason}}"),
        ),
        graph(
            About(
                "Broken streams", "reqps",
                "Answers cut after their first byte, by the side that ended them. No retry can help there.",
            ),
            Query(promql.rate(names.INTERRUPTIONS, "side", "reason"), "{{side}}: {{reason}}"),
        ),
        graph(
            About(
                "Rejected as HTTP", "reqps",
                "Requests that broke a rule of HTTP, by the rule. Nothing of them was forwarded.",
            ),
            Query(promql.rate(names.REJECTS, "rule"), "{{rule}}"),
        ),
    ]  # fmt: skip


def _latency() -> Sequence[Panel]:
    return [
        graph(
            About("Time to first token", "s", "From a streamed request's head to its first event, queue and retries included."),
            *percentiles(names.TTFT),
        ),
        graph(
            About("Time per output token", "s", "The mean of a stream's tokens after its first, as quantiles over streams."),
            *percentiles(names.TPOT),
        ),
        graph(
            About("End to end", "s", "From a request's head to the end of its answer."),
            *percentiles(names.DURATION),
        ),
    ]  # fmt: skip


def _throughput() -> Sequence[Panel]:
    return [
        graph(
            About(
                "Tokens by direction", TOKENS_A_SECOND,
                "Prompt tokens, generated tokens, and prompt tokens that engines had in their caches.",
            ),
            Query(promql.rate(names.TOKENS, "direction"), "{{direction}}"),
        ),
        graph(
            About("Requests that wait", "short", "The queue by class: critical goes before normal, normal before batch."),
            Query(promql.gauge(names.QUEUE_DEPTH, "priority"), "{{priority}}"), stacked=True,
        ),
        graph(
            About("Time in the queue", "s", "Of requests that waited; the others do not count."),
            *percentiles(names.QUEUE_WAIT),
        ),
    ]  # fmt: skip


def _saturation() -> Sequence[Panel]:
    return [
        graph(
            About(
                "Outstanding tokens", "short",
                "Work that engines have been given: prompts without a first token, output still expected.",
            ),
            Query(promql.gauge(names.OUTSTANDING, "phase"), "{{phase}}"), span=6, stacked=True,
        ),
        graph(
            About("In flight", "short", "Requests at engines, and open client connections."),
            Query(promql.gauge(names.INFLIGHT), "requests"),
            Query(promql.gauge(names.CONNECTIONS), "connections"), span=6,
        ),
        graph(
            About(
                "Event loop lag", "s",
                "How late a timer is at worst, each second, p99 by worker. Beyond some ms a worker has too much to do.",
            ),
            Query(promql.quantile(0.99, names.LAG, promql.SITE, "worker"), "{{site}} worker {{worker}}"), span=6,
        ),
        graph(
            About(
                "Time spent in Headrace", "s",
                "Median and p99: before the engine got the request, and from its first bytes to the client's.",
            ),
            *(
                Query(promql.quantile(share, names.OVERHEAD, "phase"), "{{phase}} " + f"p{share * 100:g}", share == 0.5)
                for share in (0.5, 0.99)
            ),
            span=6,
        ),
    ]  # fmt: skip
