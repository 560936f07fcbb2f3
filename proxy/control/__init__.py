"""The processes of a location: supervisor (owns sockets, restarts), workers (data plane), agent (control plane).

Arrows: all of ours but `fixtures`; only the agent's modules import `balancer.mesh` (`peers`) and the heavy parts of `telemetry`.
"""

import sys

if not {"msgspec", "typing_extensions"} & sys.modules.keys():
    # msgspec takes typing_extensions where `typing` would do: a sixth of the time in which a worker starts
    sys.modules["typing_extensions"] = None  # type: ignore[assignment]  # makes its import fail
    try:
        import msgspec  # noqa: F401
    finally:
        del sys.modules["typing_extensions"]
