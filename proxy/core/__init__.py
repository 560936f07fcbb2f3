"""The pure part of the proxy: errors, headers, request fields, SSE, the exchange's state machine, retries, deadlines.

No clock, no socket, no randomness of its own. Arrows: imports `balancer` (not its board or mesh) and nothing else.
"""
