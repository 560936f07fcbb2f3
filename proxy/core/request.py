"""What routing needs from a request's body, and the only two changes ever made to it.

The body goes on byte for byte, except: the model's name becomes the engine's own, and streams that do not ask for
usage are made to (the extra event is kept from the client, see `proxy.core.sse`).
"""

import msgspec

from proxy.core.errors import BadRequest

MAX_NAME = 256


class StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class Fields(msgspec.Struct, gc=False):
    """The fields that routing needs; all others are skipped, not decoded."""

    model: str
    stream: bool | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    max_output_tokens: int | None = None
    stream_options: StreamOptions | None = None


_decode = msgspec.json.Decoder(Fields).decode
_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_ASK_USAGE = msgspec.Raw(b'{"include_usage":true}')


def read(body: bytes) -> Fields:
    """Decodes what routing needs; raises BadRequest naming the field and the rule."""
    try:
        fields = _decode(body)
        if not body.isascii():
            _check_names(body, fields)
    except msgspec.ValidationError as error:
        message = str(error)
        field = message.partition("`$.")[2].partition("`")[0] or ("model" if "`model`" in message else None)
        raise BadRequest(f"Invalid request body: {message}", param=field) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f"The body must be one JSON object: {error}") from None
    if not 0 < len(fields.model) <= MAX_NAME:
        raise BadRequest(f"model must be 1 to {MAX_NAME} characters, got {len(fields.model)}", param="model")
    return fields


def _check_names(body: bytes, fields: Fields) -> None:
    """Reads the members' names, which `rewrite` will decode: those that were skipped may be no UTF-8."""
    members = _members(body)
    if fields.stream_options is not None:
        _members(members["stream_options"])


def asks_usage(fields: Fields) -> bool:
    """Whether the client itself asked for the usage event of its stream."""
    return fields.stream_options is not None and fields.stream_options.include_usage is True


def rewrite(body: bytes, fields: Fields, model: str, add_usage: bool) -> bytes:
    """The body an engine gets: with its own name for the model, and asking for usage where `add_usage` says so."""
    if model == fields.model:
        if not add_usage:
            return body
        if fields.stream_options is None and b'"stream_options"' not in body:
            brace = body.index(b"{") + 1
            return b'%b"stream_options":{"include_usage":true},%b' % (body[:brace], body[brace:])
    members = _members(body)
    if model != fields.model:
        members["model"] = msgspec.Raw(msgspec.json.encode(model))
    if add_usage:
        members["stream_options"] = _with_usage(members.get("stream_options"))
    return msgspec.json.encode(members)


def _with_usage(options: msgspec.Raw | None) -> msgspec.Raw:
    if options is None or bytes(options).strip() == b"null":
        return _ASK_USAGE
    members = _members(options)
    members["include_usage"] = msgspec.Raw(b"true")
    return msgspec.Raw(msgspec.json.encode(members))
