"""The hot path's I/O: client and engine connections on asyncio.Protocol, and the relay between them.

Everything here runs in a worker's event loop. No logging, spans, locks, tasks or awaits per request or per event on
the pooled path. Arrows: `balancer` (with board), `proxy.core`, `telemetry.record`, `.context`, `.names`.
"""
