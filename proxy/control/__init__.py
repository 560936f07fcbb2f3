"""The processes of a location: supervisor (owns sockets, restarts), workers (data plane), agent (control plane).

Arrows: all of ours but `fixtures`; only `agent` imports `balancer.mesh` and the heavy parts of `telemetry`.
"""
