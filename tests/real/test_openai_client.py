"""The official `openai` client against a location with simulated engines: what its users see of us."""

import asyncio
import contextlib
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import openai
import pytest

from fixtures.demo_processes import free_ports
from tests.support.http import eventually, fetch_text
from tests.support.servers import Engine, Location

pytestmark = [pytest.mark.real, pytest.mark.e2e]

HELLO: list[openai.types.chat.ChatCompletionMessageParam] = [{"role": "user", "content": "Hello, how are you today?"}]


def exactly(tokens: int, fail: str | None = None) -> dict[str, Any]:
    """Arguments for an answer of this length, or that fails so: the simulated engine takes both from the metadata."""
    return {"max_tokens": tokens, "extra_body": {"metadata": {"output_tokens": tokens, "fail": fail}}}


class Place(NamedTuple):
    """A location and the engine behind its model `slow`."""

    location: Location
    slow: Engine


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """One location: `demo` on two engines, `slow` and `frail` on one each, `absent` on none."""
    with contextlib.ExitStack() as stack:
        good = [stack.enter_context(Engine(model="demo")) for _ in range(2)]
        slow = stack.enter_context(Engine(model="slow", profile="l4"))
        frail = stack.enter_context(Engine(model="frail"))
        pair = [{"url": engine.url, "name": f"good-{n}"} for n, engine in enumerate(good)]
        absent = f"http://127.0.0.1:{free_ports(1)[0]}"
        models: dict[str, Any] = {
            "demo": {"engines": pair, "aliases": ["gpt-4o"]},
            "slow": [slow.url],
            "frail": [frail.url],
            "absent": [absent],
        }
        limits = {"first_byte_timeout": "1s", "stream_idle_timeout": "1s"}
        yield Place(stack.enter_context(Location(tmp_path_factory.mktemp("place"), models, limits=limits)), slow)


@pytest.fixture
def sent() -> list[str]:
    """The path of every request that the client sent, retries too."""
    return []


@pytest.fixture
def client(place: Place, sent: list[str]) -> Iterator[openai.OpenAI]:
    """The client as its users make it, without retries (`with_options` turns them on)."""
    hooks = {"request": [lambda request: sent.append(request.url.path)]}
    with (
        openai.DefaultHttpxClient(event_hooks=hooks) as http,
        openai.OpenAI(base_url=f"{place.location.url}/v1", api_key="none", max_retries=0, http_client=http) as made,
    ):
        yield made


def running(engine: Engine) -> float:
    """How many requests the engine says it works on or queues."""
    pattern = r"^vllm:num_requests_(?:running|waiting)(?:\{.*\})? (\S+)$"
    gauges = re.findall(pattern, fetch_text(f"{engine.url}/metrics"), re.M)
    assert gauges
    return sum(map(float, gauges))


def test_models(client: openai.OpenAI) -> None:
    """`models.list` names every model and alias and `retrieve` finds one; an unknown one is a NotFoundError."""
    assert {"demo", "gpt-4o", "slow", "frail", "absent"} == {model.id for model in client.models.list()}
    assert "demo" == client.models.retrieve("demo").id
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("nothing")
    assert "model_not_found" == caught.value.code


def test_chat(client: openai.OpenAI) -> None:
    """A whole answer with its usage."""
    answer = client.chat.completions.create(model="demo", messages=HELLO, **exactly(12))
    assert answer.choices[0].message.content
    assert answer.usage is not None
    assert 12 == answer.usage.completion_tokens
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 12


def test_alias(client: openai.OpenAI) -> None:
    """An alias is served under the model's canonical name."""
    assert client.chat.completions.create(model="gpt-4o", messages=HELLO, **exactly(2)).choices[0].message.content


@pytest.mark.parametrize("asked", [False, True])
def test_stream(client: openai.OpenAI, asked: bool) -> None:
    """A stream ends with a finish reason; its usage comes exactly if the client asked for it."""
    options: dict[str, Any] = {"stream_options": {"include_usage": True}} if asked else {}
    with client.chat.completions.create(model="demo", messages=HELLO, **exactly(12), stream=True, **options) as stream:
        chunks: list[Any] = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert 1 == sum(1 for c in chunks if c.choices and c.choices[0].finish_reason)
    assert ([12] if asked else []) == [c.usage.completion_tokens for c in chunks if c.usage]
    assert (1 if asked else 0) == sum(1 for c in chunks if not c.choices)


def test_completions(client: openai.OpenAI) -> None:
    """The older API, streamed and not."""
    whole = client.completions.create(model="demo", prompt="Once upon a time", **exactly(8))
    assert whole.usage is not None
    assert 8 == whole.usage.completion_tokens
    with client.completions.create(model="demo", prompt="Once upon a time", **exactly(8), stream=True) as stream:
        assert "".join(chunk.choices[0].text for chunk in stream if chunk.choices)


def test_embeddings(client: openai.OpenAI) -> None:
    """One vector for each input, in order."""
    answer = client.embeddings.create(model="demo", input=["one", "two", "three"])
    assert [0, 1, 2] == [item.index for item in answer.data]
    assert all(item.embedding for item in answer.data)


def test_raw_response(client: openai.OpenAI) -> None:
    """The answer's head says where it came from and why; a sane request id is kept."""
    raw = client.chat.completions.with_raw_response.create(
        model="demo", messages=HELLO, **exactly(2), extra_headers={"x-request-id": "from-the-client-1"}
    )
    assert "from-the-client-1" == raw.headers["x-request-id"] == raw.request_id
    assert "test" == raw.headers["x-headrace-location"]
    assert raw.headers["x-headrace-instance"] in ("good-0", "good-1")
    assert raw.headers["x-headrace-reason"]
    assert "1" == raw.headers["x-headrace-attempts"]
    assert {"queue", "route", "connect"} <= set(re.findall(r"(\w+);dur=", raw.headers["server-timing"]))
    assert raw.parse().choices


def test_streaming_response(client: openai.OpenAI) -> None:
    """`with_streaming_response` reads the events as lines, up to [DONE]."""
    create = client.chat.completions.with_streaming_response.create
    with create(model="demo", messages=HELLO, **exactly(4), stream=True) as answer:
        lines = [line for line in answer.iter_lines() if line]
    assert all(line.startswith("data: ") for line in lines)
    assert "data: [DONE]" == lines[-1]


def test_unknown_model(client: openai.OpenAI, sent: list[str]) -> None:
    """A NotFoundError that names what there is; the client does not try again."""
    with pytest.raises(openai.NotFoundError, match="demo") as caught:
        client.with_options(max_retries=3).chat.completions.create(model="nothing", messages=HELLO)
    assert ("model_not_found", "model") == (caught.value.code, caught.value.param)
    assert 1 == len(sent)


@pytest.mark.parametrize("body", [{"messages": HELLO}, {"model": 7, "messages": HELLO}])
def test_bad_request(client: openai.OpenAI, body: dict[str, object]) -> None:
    """A BadRequestError that names the field."""
    with pytest.raises(openai.BadRequestError, match="model"):
        client.post("/chat/completions", body=body, cast_to=object)


@pytest.mark.parametrize("fail", ["error:503", "reset-before", "garbage"])
def test_engine_fails(client: openai.OpenAI, sent: list[str], fail: str) -> None:
    """When every attempt failed: an InternalServerError, and the client is told not to add load."""
    with pytest.raises(openai.InternalServerError) as caught:
        client.with_options(max_retries=3).chat.completions.create(model="frail", messages=HELLO, **exactly(2, fail))
    assert (502, "upstream_error") == (caught.value.status_code, caught.value.code)
    assert "false" == caught.value.response.headers["x-should-retry"]
    assert 1 == len(sent)


def test_no_instance(client: openai.OpenAI) -> None:
    """Nobody is there: 503 as soon as the probes know, with the time to come back."""

    def refused() -> bool:
        with pytest.raises(openai.InternalServerError) as caught:
            client.chat.completions.create(model="absent", messages=HELLO)
        return (503, "no_instance") == (caught.value.status_code, caught.value.code) and "retry-after" in (
            caught.value.response.headers
        )

    eventually(refused, "503 no_instance")


def test_saturated(client: openai.OpenAI, sent: list[str]) -> None:
    """429 is a RateLimitError; the client's own retries wait for as long as we say."""
    with pytest.raises(openai.RateLimitError) as caught:
        client.with_options(max_retries=1).chat.completions.create(
            model="frail", messages=HELLO, **exactly(2, "error:429")
        )
    assert "overloaded" == caught.value.code
    milliseconds = int(caught.value.response.headers["retry-after-ms"])
    assert -(-milliseconds // 1000) == int(caught.value.response.headers["retry-after"])
    assert 2 == len(sent)


def test_engine_dies_mid_stream(client: openai.OpenAI) -> None:
    """The pieces that came are kept, then an APIError says what happened: never a silent end."""
    with client.chat.completions.create(
        model="frail", messages=HELLO, **exactly(50, "reset-after:3"), stream=True
    ) as stream:
        assert next(stream).choices
        with pytest.raises(openai.APIError, match="middle of its answer") as caught:
            list(stream)
    assert not isinstance(caught.value, openai.APIStatusError | openai.APIConnectionError)


def test_engine_never_answers(client: openai.OpenAI) -> None:
    """504 after `first_byte_timeout`."""
    with pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(model="frail", messages=HELLO, **exactly(2, "stall-before"))
    assert (504, "timeout") == (caught.value.status_code, caught.value.code)


def test_engine_hangs_mid_stream(client: openai.OpenAI) -> None:
    """An APIError after `stream_idle_timeout`."""
    with (
        client.chat.completions.create(
            model="frail", messages=HELLO, **exactly(50, "stall-after:3"), stream=True
        ) as stream,
        pytest.raises(openai.APIError, match="middle of its answer"),
    ):
        list(stream)


def test_client_timeout_cancels_the_engine(client: openai.OpenAI, place: Place) -> None:
    """A client that gives up frees the engine at once: its request would have run for a minute."""
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.5).chat.completions.create(model="slow", messages=HELLO, **exactly(4000))
    eventually(lambda: running(place.slow) == 0, "the engine stops")


def test_closed_stream_cancels_the_engine(client: openai.OpenAI, place: Place) -> None:
    """So does one that closes its stream."""
    with client.chat.completions.create(model="slow", messages=HELLO, **exactly(4000), stream=True) as stream:
        next(stream)
        assert running(place.slow) == 1
    eventually(lambda: running(place.slow) == 0, "the engine stops")


def test_nobody_listens(free_port: int) -> None:
    """No location, no magic: an APIConnectionError."""
    with (
        openai.OpenAI(base_url=f"http://127.0.0.1:{free_port}/v1", api_key="none", max_retries=0) as client,
        pytest.raises(openai.APIConnectionError),
    ):
        client.models.list()


def test_async_streams(place: Place) -> None:
    """Forty streams at once on one async client, each whole."""

    async def one(client: openai.AsyncOpenAI, tokens: int) -> int:
        stream = await client.chat.completions.create(
            model="demo", messages=HELLO, stream=True, **exactly(tokens), stream_options={"include_usage": True}
        )
        async with stream:
            return sum([c.usage.completion_tokens async for c in stream if c.usage])

    async def all_of_them() -> list[int]:
        async with openai.AsyncOpenAI(base_url=f"{place.location.url}/v1", api_key="none", max_retries=0) as client:
            return await asyncio.gather(*(one(client, tokens) for tokens in range(1, 41)))

    assert list(range(1, 41)) == asyncio.run(all_of_them())


def test_nothing_is_left(place: Place) -> None:
    """After all that, nothing is outstanding in the ledger."""
    eventually(lambda: not place.location.outstanding(), "the ledger is empty")
