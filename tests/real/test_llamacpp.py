"""Two llama.cpp servers behind a location, through the official client: every token, real usage, real slots."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable
from itertools import islice
from typing import Any, NamedTuple

import openai
import pytest

from fixtures.traces.reader import bundled, read
from tests.support.http import eventually
from tests.support.servers import Llama, Location

pytestmark = [pytest.mark.real, pytest.mark.e2e, pytest.mark.timeout(300)]

MODEL = "tiny"
REQUESTS = 200
AT_ONCE = 8
PROMPT_TOKENS = 1500  # of the longest prompt; the model's slots hold 2,048 tokens
OUTPUT_TOKENS = 400
ENDLESS = 1_000_000
EXACT = {"cache_prompt": False, "ignore_eos": True}  # llama.cpp's: each answer from scratch, as long as asked for


class Answer(NamedTuple):
    """What must be the same whichever way the answer came."""

    text: str
    finish_reason: str | None
    prompt_tokens: int
    output_tokens: int


class Question(NamedTuple):
    prompt: str
    max_tokens: int

    def arguments(self, **more: Any) -> dict[str, Any]:
        """For `chat.completions.create`."""
        return {
            "model": MODEL,
            "messages": [{"role": "user", "content": self.prompt}],
            "max_tokens": self.max_tokens,
            "temperature": 1,  # noise with a seed: an order that nothing else gives
            "seed": len(self.prompt),
            "extra_body": EXACT,
            **more,
        }


def questions() -> list[Question]:
    """The first requests of the Azure code trace, scaled to the model's context: a letter is about a token."""
    rng = random.Random(1)
    rows = list(islice(read(bundled("azure-code"), rng), REQUESTS))
    longest = max(row.prompt_tokens for row in rows)
    return [
        Question(
            "".join(rng.choices("abcdefghij \n(){}", k=max(1, row.prompt_tokens * PROMPT_TOKENS // longest))),
            max(1, min(row.output_tokens, OUTPUT_TOKENS)),
        )
        for row in rows
    ]


def whole(completion: Any) -> Answer:
    """An answer that came in one piece."""
    choice, usage = completion.choices[0], completion.usage
    return Answer(choice.message.content, choice.finish_reason, usage.prompt_tokens, usage.completion_tokens)


def joined(chunks: Iterable[Any]) -> Answer:
    """An answer that came as a stream with its usage."""
    chunks = list(chunks)
    choices = [chunk.choices[0] for chunk in chunks if chunk.choices]
    (usage,) = [chunk.usage for chunk in chunks if chunk.usage]
    (finish_reason,) = [choice.finish_reason for choice in choices if choice.finish_reason]
    text = "".join(choice.delta.content or "" for choice in choices)
    return Answer(text, finish_reason, usage.prompt_tokens, usage.completion_tokens)


STREAM: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}


def ask(client: openai.OpenAI, question: Question) -> Answer:
    return whole(client.chat.completions.create(**question.arguments()))


def ask_stream(client: openai.OpenAI, question: Question) -> Answer:
    with client.chat.completions.create(**question.arguments(**STREAM)) as stream:
        return joined(stream)


async def ask_async(client: openai.AsyncOpenAI, question: Question) -> Answer:
    return whole(await client.chat.completions.create(**question.arguments()))


async def ask_async_stream(client: openai.AsyncOpenAI, question: Question) -> Answer:
    async with await client.chat.completions.create(**question.arguments(**STREAM)) as stream:
        return joined([chunk async for chunk in stream])


AskAsync = Callable[[openai.AsyncOpenAI, Question], Awaitable[Answer]]


def in_turn(url: str, how: Callable[[openai.OpenAI, Question], Answer], asked: list[Question]) -> list[Answer]:
    """One after the other with the synchronous client."""
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        return [how(client, question) for question in asked]


def at_once(url: str, how: AskAsync, asked: list[Question], *, retries: int = 0) -> list[Answer]:
    """AT_ONCE at a time with the asynchronous client."""

    async def run() -> list[Answer]:
        turn = asyncio.Semaphore(AT_ONCE)
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=retries) as client:

            async def one(question: Question) -> Answer:
                async with turn:
                    return await how(client, question)

            return await asyncio.gather(*map(one, asked))

    return asyncio.run(run())


@pytest.fixture
def slots() -> int:
    """How many answers a server makes at once."""
    return 4


@pytest.fixture
def llamas(start_llama: Callable[..., Llama], slots: int) -> list[Llama]:
    """Two servers with the same model."""
    return [start_llama(slots=slots) for _ in range(2)]


@pytest.fixture
def location(llamas: list[Llama], start_location: Callable[..., Location]) -> Location:
    """One location in front of both."""
    return start_location({MODEL: [llama.url for llama in llamas]})


# One slot: batches of several sequences round differently, so that rarely another token wins.
@pytest.mark.parametrize("slots", [1])
def test_every_token_arrives(llamas: list[Llama], location: Location) -> None:
    """200 requests of a real trace's lengths: sync and async, streamed and not, each as the engine gives it itself."""
    asked = questions()
    quarter = REQUESTS // 4
    parts = [asked[start : start + quarter] for start in range(0, REQUESTS, quarter)]
    expected = [
        answer
        for part, how in zip(parts, (ask_async, ask_async_stream) * 2, strict=True)
        for answer in at_once(llamas[0].url, how, part, retries=5)  # it closes a connection after 100 requests
    ]
    assert [question.max_tokens for question in asked] == [answer.output_tokens for answer in expected]
    answers = [
        *in_turn(location.url, ask, parts[0]),
        *in_turn(location.url, ask_stream, parts[1]),
        *at_once(location.url, ask_async, parts[2]),
        *at_once(location.url, ask_async_stream, parts[3]),
    ]
    assert expected == answers
    eventually(lambda: not location.outstanding(), "the ledger is empty")


def test_both_servers_work(llamas: list[Llama], location: Location) -> None:
    """Streams that run at the same time are spread."""

    async def run() -> set[str]:
        async with openai.AsyncOpenAI(base_url=f"{location.url}/v1", api_key="none", max_retries=0) as client:
            streams = await asyncio.gather(*(open_endless(client) for _ in range(4)))
            names = {stream.response.headers["x-headrace-instance"] for stream in streams}
            await asyncio.gather(*(stream.close() for stream in streams))
            return names

    assert 2 == len(asyncio.run(run()))


async def open_endless(client: openai.AsyncOpenAI, tokens: int = ENDLESS) -> openai.AsyncStream[Any]:
    """A stream that goes on until somebody stops it, or for so many tokens; its first chunk has come."""
    stream: openai.AsyncStream[Any] = await client.chat.completions.create(
        **Question("count", tokens).arguments(**STREAM)
    )
    await anext(stream)
    return stream


@pytest.mark.parametrize("way", ["close", "cancel"])
def test_disconnecting_frees_the_slot(llamas: list[Llama], location: Location, way: str) -> None:
    """A client that leaves in the middle of an endless answer frees its slot and its share of the ledger."""

    async def leave() -> None:
        async with openai.AsyncOpenAI(base_url=f"{location.url}/v1", api_key="none", max_retries=0) as client:
            streams = await asyncio.gather(*(open_endless(client) for _ in range(4)))
            assert 4 == sum([await asyncio.to_thread(llama.busy) for llama in llamas])
            if way == "close":
                await asyncio.gather(*(stream.close() for stream in streams))
                return
            reading = asyncio.gather(*(anext_for_ever(stream) for stream in streams))
            await asyncio.sleep(0)
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading

    asyncio.run(leave())
    eventually(lambda: not sum(llama.busy() for llama in llamas), "all slots are free")
    eventually(lambda: not location.outstanding(), "the ledger is empty")


async def anext_for_ever(stream: openai.AsyncStream[Any]) -> None:
    async with stream:
        async for _ in stream:
            pass


def test_killing_a_server_costs_only_its_streams(llamas: list[Llama], location: Location) -> None:
    """The other server's streams go on to their end, and new requests go to it."""
    killed, left = llamas
    length = 2500

    async def finish(stream: openai.AsyncStream[Any]) -> int | str:
        """The tokens of a stream that came to its end, or the error it was told of."""
        async with stream:
            try:
                (tokens,) = [chunk.usage.completion_tokens async for chunk in stream if chunk.usage]
                return int(tokens)
            except openai.APIError as error:
                return error.message

    async def run() -> tuple[dict[str, list[int | str]], list[str]]:
        async with openai.AsyncOpenAI(base_url=f"{location.url}/v1", api_key="none", max_retries=0) as client:
            streams = await asyncio.gather(*(open_endless(client, length) for _ in range(8)))
            names = [stream.response.headers["x-headrace-instance"] for stream in streams]
            killed.kill()
            ends = await asyncio.gather(*map(finish, streams))
            raw = client.chat.completions.with_raw_response
            later = [await raw.create(**Question("next", 5).arguments()) for _ in range(10)]
            by_name: dict[str, list[int | str]] = {name: [] for name in names}
            for name, end in zip(names, ends, strict=True):
                by_name[name].append(end)
            return by_name, [answer.headers["x-headrace-instance"] for answer in later]

    ends, later = asyncio.run(run())
    dead, alive = (llama.url.removeprefix("http://") for llama in (killed, left))
    assert {dead, alive} == set(ends)
    assert [] == [end for end in ends[dead] if "middle of its answer" not in str(end)]
    assert {length} == set(ends[alive])
    assert [alive] * 10 == later
    eventually(lambda: not location.outstanding(), "the ledger is empty")
