"""Writes what is generated: `python -m grafana.generate`."""

import json
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from grafana import balance, overview, rules, spillover

HERE = Path(__file__).parent


def generated() -> dict[Path, str]:
    """Every generated file with its text."""
    dashboards = {"overview": overview, "balance": balance, "spillover": spillover}
    made = {
        HERE / "dashboards" / f"{name}.json": json.dumps(module.dashboard(), cls=JSONEncoder, indent=2) + "\n"
        for name, module in dashboards.items()
    }
    return made | {HERE / "prometheus" / "rules" / name: text for name, text in rules.files().items()}


def main() -> None:
    """Writes them all."""
    for path, text in generated().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
