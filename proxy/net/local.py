"""What a worker answers by itself: the list of models, liveness and readiness, and what is not served here."""

from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote

import msgspec

from balancer.estimate import MAX_TOKENS
from balancer.model import Ask, Priority
from proxy.core import errors
from proxy.core.headers import Head
from proxy.core.request import Fields

if TYPE_CHECKING:
    from proxy.net.plane import Plane

_PRIORITIES = {b"critical": Priority.CRITICAL, b"normal": Priority.NORMAL, b"batch": Priority.BATCH}
_GET = (b"GET", b"HEAD")
_NORMAL = Priority.NORMAL


class Answer(NamedTuple):
    status: int
    body: bytes
    content_type: bytes = b"application/json"


def answer(plane: "Plane", head: Head) -> Answer:
    """The answer to what asks no model; raises NotFound or NotAllowed."""
    path = head.path.partition(b"?")[0]
    if head.method not in _GET:
        raise _refusal(path, head.method)
    if path == b"/v1/models":
        models = [_model(plane, name) for name in sorted(plane.site.names)]
        return Answer(200, msgspec.json.encode({"object": "list", "data": models}))
    if path.startswith(b"/v1/models/"):
        name = unquote(path[len(b"/v1/models/") :])
        if name not in plane.site.names:
            raise errors.ModelNotFound(name, sorted(plane.site.names))
        return Answer(200, msgspec.json.encode(_model(plane, name)))
    if path == b"/livez":
        return Answer(200, b"ok\n", b"text/plain")
    if path == b"/readyz":
        return _readiness(plane)
    raise _refusal(path, head.method)


def _readiness(plane: "Plane") -> Answer:
    if plane.draining:
        return Answer(503, b"draining\n", b"text/plain")
    if not plane.router.usable():
        return Answer(503, b"no instance is ready\n", b"text/plain")
    return Answer(200, b"ready\n", b"text/plain")


def _model(plane: "Plane", name: str) -> dict[str, object]:
    return {"id": name, "object": "model", "created": plane.site.created, "owned_by": "headrace"}


def _refusal(path: bytes, method: bytes) -> errors.ProxyError:
    """Why this method on this path is not served."""
    shown = path.decode("latin-1")[:200]
    if path in (b"/v1/models", b"/livez", b"/readyz") or path.startswith(b"/v1/models/"):
        return errors.NotAllowed(f"{shown} takes GET and HEAD, got {method.decode()}.")
    if path.startswith(b"/v1/") and method != b"POST":
        return errors.NotAllowed(f"{shown} takes POST, got {method.decode()}.")
    return errors.NotFound(f"There is nothing at {shown}; requests go to /v1/...")


def ask(plane: "Plane", head: Head, fields: Fields, model: str, size: int, address: str) -> Ask:
    """What routing needs to know of this request; raises BadRequest for a priority that does not exist."""
    priority = _NORMAL
    if head.priority:
        named = _PRIORITIES.get(head.priority)
        if named is None:
            raise errors.BadRequest(
                f"x-headrace-priority must be critical, normal or batch, got {head.priority[:40]!r}",
                param="x-headrace-priority",
            )
        priority = max(named, _NORMAL)  # without keys nobody is critical
    source = head.authorization or address.encode()
    tenant = plane.tenants.get(source) or plane.tenant_of(source)
    cap = fields.max_completion_tokens or fields.max_tokens or fields.max_output_tokens or 0
    if not 0 <= cap <= MAX_TOKENS:
        cap = 0 if cap < 0 else MAX_TOKENS
    return Ask(model, size, cap, fields.stream is True, tenant, priority)
