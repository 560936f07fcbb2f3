"""The balance: does each instance have its share, by which reasons, and what do the weights do?"""

from collections.abc import Sequence

from grafana_foundation_sdk.models import dashboard as model

from grafana import promql
from grafana.panels import About, Panel, Query, board, graph, percentiles, states
from telemetry import names

WHO = (promql.SITE, "model", "instance")
NAME = "{{site}}/{{instance}}"
STATES = {0: ("ready", "green"), 1: ("ejected", "orange"), 2: ("down", "red")}


def dashboard() -> model.Dashboard:
    """The whole of it."""
    return board(
        "headrace-balance",
        "Balance",
        "Is the work where it should be, why did requests go where they went, and why did weights move?",
        {
            "Where the work is": _work(),
            "Decisions": _decisions(),
            "Health": _health(),
            "Weights": _weights(),
            "Where an attempt's time goes": _phases(),
        },
    )


def _work() -> Sequence[Panel]:
    work = promql.gauge(names.OUTSTANDING, *WHO)
    share = f"{work} / on ({', '.join(WHO)}) {promql.gauge(names.WEIGHT, *WHO)}"
    spread = f"stddev by ({promql.SITE}, model) ({share}) / (avg by ({promql.SITE}, model) ({share}) > 0)"
    return [
        graph(
            About("Outstanding tokens", "short", "Work that each instance has been given and has not done."),
            Query(work, NAME), span=6,
        ),
        graph(
            About(
                "Outstanding tokens for its weight", "short",
                "The same over the weight: lines that lie together are a fleet in balance.",
            ),
            Query(share, NAME), span=6,
        ),
        graph(
            About(
                "Spread", "percentunit",
                "Standard deviation of the work for its weight over its mean, of a model's instances: 0 is an even fleet.",
            ),
            Query(spread, "{{site}} {{model}}"), span=6,
        ),
        graph(
            About("In flight", "short", "Requests at each instance."),
            Query(promql.gauge(names.INFLIGHT, *WHO), NAME), span=6,
        ),
    ]  # fmt: skip


def _decisions() -> Sequence[Panel]:
    ratio = names.ESTIMATE_ERROR
    return [
        graph(
            About(
                "Decisions by reason", "reqps",
                "p2c: the better of those drawn; only: one could take it; retry, trial, panic: something failed; spill: "
                "another location.",
            ),
            Query(promql.rate(names.DECISIONS, "reason"), "{{reason}}"), span=12, stacked=True,
        ),
        graph(
            About(
                "Real over predicted output", "percentunit",
                "How long answers were against what was expected of them, p10, p50, p90. 100 % is right.",
            ),
            *(Query(promql.quantile(share, ratio), f"p{share * 100:g}") for share in (0.1, 0.5, 0.9)),
            span=12,
        ),
    ]  # fmt: skip


def _health() -> Sequence[Panel]:
    out, down = (promql.gauge(names.STATE, *WHO, where=(f'state="{state}"',)) for state in ("ejected", "down"))
    return [
        states(
            About("State", "short", "Ejected: a worker leaves it out after failures. Down: its probe says so."),
            Query(f"{out} + 2 * {down}", NAME), STATES,
        ),
        graph(
            About("Time to first token, moving average", "s", "Of each instance's streams; the newest counts for a tenth."),
            Query(promql.gauge(names.TTFT_EWMA, *WHO), NAME),
        ),
        graph(
            About("Time to first token, p95", "s", "By instance; another location's name stands for all of its own."),
            Query(promql.quantile(0.95, names.TTFT, promql.SITE, "instance"), NAME, exemplar=True),
        ),
    ]  # fmt: skip


def _weights() -> Sequence[Panel]:
    moved = promql.rate(names.TUNER_UPDATES, "model", "reason")
    left = promql.rate(names.TUNER_REJECTED, "model", "reason")
    return [
        graph(
            About("Weights in force", "short", "Service rate relative to the reference, as decisions use it."),
            Query(promql.gauge(names.WEIGHT, *WHO), NAME),
        ),
        graph(
            About(
                "Weights the tuner holds right", "short",
                "By what requests waited; in force only where `telemetry.tuner` is on.",
            ),
            Query(promql.gauge(names.TUNER_WEIGHT, *WHO), NAME),
        ),
        graph(
            About("Why weights moved", "ops", "Changes a second by kind, and those set back after which waits had grown."),
            Query(moved, "{{model}}: {{reason}}"),
            Query(promql.rate(names.TUNER_ROLLBACKS, "model"), "{{model}}: set back"),
        ),
        graph(
            About("Why weights did not move", "ops", "Ticks of the tuner that left a weight as it was, by reason."),
            Query(left, "{{model}}: {{reason}}"), span=12,
        ),
        graph(
            About("Age of what the tuner knows", "s", "Since it last saw a request; beyond 30 s it changes nothing."),
            Query(promql.gauge(names.TUNER_AGE, promql.SITE, "model"), "{{site}} {{model}}"), span=12,
        ),
    ]  # fmt: skip


def _phases() -> Sequence[Panel]:
    queued = ('phase="queue"',)
    return [
        graph(
            About(
                "Mean time by phase", "s",
                "By the engines' own spans (`telemetry.listen`): queue, prefill, decode; network is the rest before the "
                "first token.",
            ),
            Query(promql.mean(names.ENGINE, "phase"), "{{phase}}"), stacked=True,
        ),
        graph(
            About("Time in engines' own queues", "s", "Where this grows, an engine has been given too much."),
            *percentiles(names.ENGINE, queued),
        ),
        graph(
            About("Mean time in prefill", "s", "By instance: what its speed looks like from inside."),
            Query(promql.mean(names.ENGINE, promql.SITE, "instance", where=('phase="prefill"',)), NAME),
        ),
    ]  # fmt: skip
