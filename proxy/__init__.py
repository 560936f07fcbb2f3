"""The data plane and the processes around it.

A request's way: `net.client` (parse) > `core.request` (what routing needs) > `balancer.router` (decide) >
`net.engine` (an engine's connection, or by `net.abroad` another location's) > `net.relay` (bytes back). `core` is pure,
`net` is the hot path's I/O, `control` holds the processes (supervisor, workers, agent), `config` reads the file, `cli`
is the command line.

Arrows: `core` imports `balancer`; `net` also `telemetry.record/context/names`; `control` all of these; `cli` all.
"""
