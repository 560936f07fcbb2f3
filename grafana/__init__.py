"""What an operator looks at: dashboards for Grafana, what provisions them, and Prometheus's rules.

`overview`, `balance`, `spillover` (one dashboard each), `panels` and `promql` (what they are made of), `rules`, `slo` and
`alerts` (Prometheus's), `generate` (writes all of it: `python -m grafana.generate`), `live` and `draw` (the dashboards as
pictures, from a Prometheus that runs). The JSON and YAML beside them that say so are generated: a test fails when they differ.

Arrows: `grafana` imports `telemetry.names`, so that no query names what does not exist. Nothing imports `grafana`.
"""
