"""The command line. Each command imports its own part when it runs. Exit codes: 0 done, 1 failed, 2 wrong usage or config."""

import sys
from pathlib import Path
from typing import Any

import click

PROFILES = ("a100", "h100", "l4", "fast")
FILE = click.Path(exists=True, dir_okay=False)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="headrace")
def main() -> None:
    """Headrace: an edge proxy router for AI inference."""


@main.command(epilog="Example: headrace run headrace.yaml")
@click.argument("config", type=FILE)
def run(config: str) -> None:
    """Run one location until SIGTERM (drain)."""
    from proxy.control.supervisor import run as run_location

    sys.exit(run_location(config))


@main.command(epilog="Example: headrace check headrace.yaml")
@click.argument("config", type=FILE)
def check(config: str) -> None:
    """Load everything, bind nothing; print every problem with its path in the file."""
    from proxy.config import ConfigError, load

    try:
        loaded = load(config)
    except ConfigError as error:
        for problem in error.problems:
            click.echo(problem, err=True)
        sys.exit(2)
    engines = sum(len(model.engines) for model in loaded.models.values())
    click.echo(f"{config}: location {loaded.location}, {len(loaded.models)} model(s), {engines} engine(s): ok")


@main.command(epilog="Example: headrace schema > headrace.schema.json")
def schema() -> None:
    """Print the config's JSON Schema."""
    import json

    from proxy.config import schema as config_schema

    click.echo(json.dumps(config_schema(), indent=2))


@main.command(epilog="Example: headrace demo --seconds 20")
@click.option("--locations", default=1, show_default=True, help="Locations to start.")
@click.option("--seconds", default=20.0, show_default=True, help="How long the trace is replayed.")
@click.option("--keep", is_flag=True, help="Leave everything running afterwards, until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON instead of tables.")
def demo(locations: int, seconds: float, keep: bool, as_json: bool) -> None:
    """Start simulated engines and a location, replay a real trace, show what happened."""
    from fixtures.demo import run as run_demo

    sys.exit(run_demo(locations=locations, seconds=seconds, keep=keep, as_json=as_json))


@main.command(epilog="Example: headrace replay conv.csv --url http://127.0.0.1:8080 --speed 2 --limit 500")
@click.argument("trace", type=FILE)
@click.option("--url", required=True, help="Where to send the requests.")
@click.option("--model", default=None, help="Model to ask for; left out: the first of /v1/models.")
@click.option("--speed", default=1.0, show_default=True, help="Arrivals are this much faster than in the trace.")
@click.option("--limit", default=None, type=int, help="At most this many requests.")
@click.option(
    "--json",
    "json_file",
    default=None,
    type=click.Path(path_type=Path),
    help="Write the figures there; - for standard output.",
)
def replay(trace: str, url: str, model: str | None, speed: float, limit: int | None, json_file: Path | None) -> None:
    """Open-loop load from a trace (Azure CSV or Mooncake JSONL)."""
    from fixtures.replay import run as run_replay

    sys.exit(run_replay(trace, url, model=model, speed=speed, limit=limit, json_file=json_file))


@main.command(epilog="Example: headrace simulate azure-conv --load 0.6,0.75,0.9 --plot conv.png")
@click.argument("trace")
@click.option(
    "--policy", "policies", multiple=True, help="Only these (may be repeated); left out: all, and both bounds."
)
@click.option("--instances", default="8xa100", show_default=True, help="Like 6xa100,2xh100.")
@click.option(
    "--load", "loads", default="", help="Share of what they sustain, like 0.5,0.75; left out: 0.75 (records: as was)."
)
@click.option("--seeds", default=3, show_default=True, help="Simulations of each policy at each load.")
@click.option(
    "--tuner", default="off", show_default=True, type=click.Choice(("off", "on")), help="Find headrace's weights."
)
@click.option("--choices", default=2, show_default=True, help="Instances that headrace compares for a request.")
@click.option(
    "--explain", default=None, type=int, help="Only say why headrace placed the request with this number as it did."
)
@click.option(
    "--plot", default=None, type=click.Path(path_type=Path), help="Draw everything against load into this PNG."
)
@click.option(
    "--json",
    "json_file",
    default=None,
    type=click.Path(path_type=Path),
    help="Write the figures there; - for standard output.",
)
@click.option(
    "--scenario", default=None, help="Several locations: B, C or a YAML file; policies: no-spill, greedy, headrace."
)
@click.option("--interval", default=None, type=float, help="Seconds between the digests of a scenario's locations.")
def simulate(
    loads: str, choices: int, policies: tuple[str, ...], scenario: str | None, interval: float | None, **options: Any
) -> None:
    """Policies side by side in virtual time. TRACE: a file, a directory of records, or one of azure-conv, azure-code,
    mooncake-conversation.
    """
    from balancer.model import Balancing

    if scenario is not None:
        from fixtures.simulate.scenario_command import run as run_scenario

        settings, json_file = Balancing(choices=choices), options["json_file"]
        sys.exit(run_scenario(options["trace"], scenario, policies, options["seeds"], settings, interval, json_file))
    if interval is not None:
        raise click.UsageError("--interval goes with --scenario")
    from fixtures.simulate.command import Asked
    from fixtures.simulate.command import run as run_simulate

    try:
        numbers = [float(load) for load in loads.split(",") if loads]
    except ValueError:
        raise click.BadParameter(f"must be numbers like 0.5,0.75, got {loads!r}", param_hint="--load") from None
    sys.exit(
        run_simulate(Asked(policies=list(policies), loads=numbers, settings=Balancing(choices=choices), **options))
    )


@main.command(epilog="Example: headrace engine --port 9000 --profile a100")
@click.option("--port", required=True, type=int, help="0: any free one, told on standard output.")
@click.option("--admin-port", default=0, help="Where POST /admin/fail breaks and heals it; left out: any free one.")
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--profile", default="a100", show_default=True, type=click.Choice(PROFILES))
@click.option("--model", default="demo", show_default=True, help="The model's name.")
@click.option(
    "--fail",
    default=None,
    help="Start broken: refuse, reset-before, reset-after:N, stall-before, stall-after:N, error:STATUS, slow:FACTORx, garbage.",
)
@click.option("--otlp", default=None, help="Export vLLM's own spans there, by OTLP/gRPC: http://HOST:PORT.")
def engine(port: int, admin_port: int, host: str, profile: str, model: str, fail: str | None, otlp: str | None) -> None:
    """One simulated engine with the OpenAI API and vLLM's metrics."""
    from fixtures.engine.server import run as run_engine

    sys.exit(run_engine(host, port, profile=profile, model=model, fail=fail, admin_port=admin_port, otlp=otlp))


@main.command(epilog="Example: headrace status http://127.0.0.1:8081")
@click.argument("url")
@click.option("--json", "as_json", is_flag=True, help="Print the state once as JSON.")
@click.option("--once", is_flag=True, help="Print the table once instead of live.")
def status(url: str, as_json: bool, once: bool) -> None:
    """A live table of a running location (URL: its admin address)."""
    from proxy.console import status as show_status

    sys.exit(show_status(url, as_json=as_json, once=once))


@main.command(epilog="Example: headrace explain http://127.0.0.1:8081 9f86d081884c7d65")
@click.argument("url")
@click.argument("request_id")
@click.option("--json", "as_json", is_flag=True, help="Print the record as JSON.")
def explain(url: str, request_id: str, as_json: bool) -> None:
    """Why that request went where it went."""
    from proxy.console import explain as show_explanation

    sys.exit(show_explanation(url, request_id, as_json=as_json))


@main.command(epilog="Example: headrace trace http://127.0.0.1:8081 9f86d081884c7d65")
@click.argument("url")
@click.argument("request_id")
@click.option("--json", "as_json", is_flag=True, help="Print the spans as JSON.")
def trace(url: str, request_id: str, as_json: bool) -> None:
    """The waterfall of one of the last 10,000 requests, no backend needed."""
    from proxy.waterfall import trace as show_trace

    sys.exit(show_trace(url, request_id, as_json=as_json))
