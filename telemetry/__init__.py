"""What is seen: the record of a request, trace context, metric names, metrics.

`record`, `context` and `names` are plain data and pure functions, light enough for the workers; the rest runs in the
agent only.

Arrows: `telemetry` imports nothing else of ours.
"""
