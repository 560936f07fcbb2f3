"""The paths that are served, by their patterns: records and metrics never hold a raw path, which could be anything."""

import msgspec


class Route(msgspec.Struct, frozen=True, gc=False):
    """What a path is."""

    pattern: str
    asks: bool = False  # a POST there is a request to a model
    usage_option: bool = False  # it knows `stream_options.include_usage`


OTHER = Route("other")
_MODEL, _ANY = Route("/v1/models/{id}"), Route("/v1/*", asks=True)
_KNOWN = {
    b"/v1/chat/completions": Route("/v1/chat/completions", asks=True, usage_option=True),
    b"/v1/completions": Route("/v1/completions", asks=True, usage_option=True),
    b"/v1/embeddings": Route("/v1/embeddings", asks=True),
    b"/v1/responses": Route("/v1/responses", asks=True),
    b"/v1/models": Route("/v1/models"),
}


def of(path: bytes) -> Route:
    """The route of a path, with or without a query."""
    bare = path.partition(b"?")[0]
    known = _KNOWN.get(bare)
    if known is not None:
        return known
    if bare.startswith(b"/v1/models/"):
        return _MODEL
    return _ANY if bare.startswith(b"/v1/") else OTHER
