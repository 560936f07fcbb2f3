"""The mesh of one node: the streams to the others, dialled again whenever they end.

Of a pair the one whose name comes first dials; the other does too, but only after having waited in vain: a network may let
connections through in one direction only. A stream on which nothing comes for a while is given up, for TCP would try much
longer. A new stream of the same peer ends the old one.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from random import Random
from typing import Any, NamedTuple, Protocol

import grpc

from balancer.mesh import mesh_pb2 as pb
from balancer.mesh import wire
from balancer.mesh.session import WRONG_CLOCK, Identity, Refused, Session
from balancer.mesh.wire import Told

log = logging.getLogger("headrace.mesh")
METHOD = "/headrace.mesh.v1.Mesh/Talk"
SECOND = 1_000_000_000  # ns
HELLO = 3.0  # s for a stream to begin
PATIENCE = 3  # intervals, and a second, without a word until a stream is given up
REDIAL, REDIAL_MAX = 0.25, 1.0  # s, +-50 %
PING_EVERY = 5  # digests, once the distance is known
STREAMS = 4  # not yet greeted, at once
STOP = 1.0  # s for streams to end
OPTIONS: list[tuple[str, Any]] = [
    ("grpc.max_receive_message_length", wire.MAX_FRAME),
    ("grpc.max_send_message_length", wire.MAX_FRAME),
    ("grpc.max_metadata_size", 8192),
]


class Tls(NamedTuple):
    """PEM texts: this location's pair and the authorities of all."""

    cert: bytes
    key: bytes
    ca: bytes


class Clock(Protocol):
    """What time it is, in ns: `monotonic` of this machine, `unix` as the world counts."""

    def monotonic(self) -> int: ...
    def unix(self) -> int: ...


class Stream(Protocol):
    """One side of a gRPC stream."""

    async def read(self) -> Any: ...
    async def write(self, message: Any, /) -> None: ...


class Audience(Protocol):
    """Who hears of what happens on the mesh."""

    def greeted(self, session: Session) -> None:
        """A peer is there; nothing has been said to it yet."""

    def heard(self, session: Session) -> None:
        """It said something new, or its distance was measured anew."""

    def lost(self, session: Session) -> None:
        """It is gone."""

    def counted(self, peer: str, reason: str) -> None:
        """A stream could not be, or was ended: by whom, and why in one word."""


class _Conversation:
    """A session and what is to be written on its stream; of digests only the newest waits."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.wake = asyncio.Event()
        self.over = asyncio.Event()
        self.turn = 0  # digests so far
        self._first: list[pb.Frame] = []
        self._digests: pb.Frame | None = None

    def answer(self, frame: pb.Frame) -> None:
        if len(self._first) < wire.MAX_TAGS:
            self._first.append(frame)
        self.wake.set()

    def tell(self, frame: pb.Frame) -> None:
        self._digests = frame
        self.wake.set()

    def take(self) -> list[pb.Frame]:
        frames, self._first = self._first, []
        if self._digests is not None:
            frames.append(self._digests)
            self._digests = None
        self.wake.clear()
        return frames


class Mesh:
    """One node's streams. `interval`: seconds between digests, by which silence is judged."""

    def __init__(
        self, me: Identity, audience: Audience, clock: Clock, nonce: Callable[[], bytes], interval: float
    ) -> None:
        """`nonce`: makes 32 bytes that nobody can guess."""
        self.me = me
        self.interval = interval
        self._audience = audience
        self._clock = clock
        self._nonce = nonce
        self._random = Random(nonce())
        self._addresses: dict[Identity, str] = {}  # a location's node is "" until it says
        self._tls: Tls | None = None
        self._dialling: dict[Identity, asyncio.Task[None]] = {}
        self._talks: dict[Identity, _Conversation] = {}
        self._server: grpc.aio.Server | None = None
        self._strangers = 0
        self._said: set[tuple[str, str]] = set()  # what the log has been told since the peer was last there

    # life

    async def listen(self, address: str, tls: Tls | None) -> None:
        """Takes streams; raises OSError if the address cannot be had."""
        self._tls = tls
        server = grpc.aio.server(options=[*OPTIONS, ("grpc.so_reuseport", 0), ("grpc.max_concurrent_streams", STREAMS)])
        handler = grpc.stream_stream_rpc_method_handler(self._take, pb.Frame.FromString, pb.Frame.SerializeToString)
        _, service, method = METHOD.split("/")
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
        try:
            if tls is None:
                self.port = server.add_insecure_port(address)
            else:
                self.port = server.add_secure_port(address, self._server_credentials())
        except RuntimeError as error:
            raise OSError(f"mesh.listen: cannot listen on {address}: {error}") from None
        await server.start()
        self._server = server

    def _server_credentials(self) -> Any:
        def current() -> Any:
            tls = self._tls
            assert tls is not None  # noqa: S101
            return grpc.ssl_server_certificate_configuration([(tls.key, tls.cert)], tls.ca)

        return grpc.dynamic_ssl_server_credentials(current(), current, require_client_authentication=True)

    def configure(self, addresses: Mapping[Identity, str], tls: Tls | None, interval: float) -> None:
        """From now on these are the others, by location, or node of this location, with where they listen."""
        self.interval = interval
        changed, self._tls = tls != self._tls, tls
        for peer in list(self._dialling):
            if changed or addresses.get(peer) != self._addresses[peer]:
                self._dialling.pop(peer).cancel()
        self._addresses = dict(addresses)
        for identity, talk in list(self._talks.items()):
            if changed or not self._expects(identity):
                talk.over.set()
        loop = asyncio.get_running_loop()
        for peer in addresses:
            if peer not in self._dialling:
                self._dialling[peer] = loop.create_task(self._keep_dialling(peer))

    async def stop(self) -> None:
        """Ends all."""
        for task in self._dialling.values():
            task.cancel()
        for talk in self._talks.values():
            talk.over.set()
        if self._server is not None:
            await self._server.stop(STOP)

    # what is said

    def tell(self, told: Told) -> None:
        """Says this to everybody; what each instance has to do concerns nodes of this location only."""
        inner = wire.digests_frame(told)
        outer = inner
        if told.instances:
            outer = pb.Frame()
            outer.CopyFrom(inner)
            del outer.digests.instances[:]
        now = self._clock.monotonic()
        for identity, talk in self._talks.items():
            talk.tell(inner if identity.location == self.me.location else outer)
            talk.turn += 1
            if not talk.session.settled or talk.turn % PING_EVERY == 0:  # a frame costs more than what it says
                talk.answer(talk.session.ping(now))

    def sessions(self) -> dict[Identity, Session]:
        """Who is there."""
        return {identity: talk.session for identity, talk in self._talks.items()}

    # dialling

    def _expects(self, identity: Identity) -> bool:
        inside = identity.location == self.me.location
        return (identity if inside else Identity(identity.location, "")) in self._addresses

    def _there(self, peer: Identity) -> bool:
        return any(i.location == peer.location and peer.node in ("", i.node) for i in self._talks)

    async def _keep_dialling(self, peer: Identity) -> None:
        first = self.me < peer if peer.node else self.me.location < peer.location
        pause = REDIAL
        if not first:
            await asyncio.sleep(PATIENCE * self.interval)
        while True:
            if not self._there(peer):
                pause = REDIAL if await self._dial(peer) else min(REDIAL_MAX, 2 * pause)
            await asyncio.sleep(pause * (0.5 + self._random.random()))

    async def _dial(self, peer: Identity) -> bool:
        """One stream from its beginning to its end; whether anything was told on it."""
        options = [*OPTIONS, ("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
        address, tls = self._addresses[peer], self._tls
        name = peer.node or peer.location
        if tls is not None:
            credentials = grpc.ssl_channel_credentials(tls.ca, tls.key, tls.cert)
            options.append(("grpc.ssl_target_name_override", peer.location))
            channel = grpc.aio.secure_channel(address, credentials, options)
        else:
            channel = grpc.aio.insecure_channel(address, options)
        session = Session(self.me, self._nonce(), peer.location, None)
        call = channel.stream_stream(METHOD, pb.Frame.SerializeToString, pb.Frame.FromString)()
        try:
            await self._converse(session, call, name)
        except Refused as refused:
            self._count(name, refused.reason, str(refused))
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            self._count(name, *_told(await call.code(), await call.details()))
        except TimeoutError:
            self._count(name, "silence", "nothing came for too long")
        finally:
            await channel.close()
        return session.told is not None

    # taking

    async def _take(self, _: Any, context: Any) -> None:
        """A stream that the other side dialled."""
        if self._strangers >= STREAMS + len(self._addresses):
            self._count("unknown", "strangers", "too many streams that do not say who they are")
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many streams")
        names = _names(context) if self._tls is not None else None
        session = Session(self.me, self._nonce(), None, names)
        try:
            await self._converse(session, context, "unknown")
        except Refused as refused:
            name = session.peer.location if session.peer is not None else "unknown"
            self._count(name, refused.reason, f"{context.peer()}: {refused}")
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, refused.reason)
        except TimeoutError:
            name = session.peer.location if session.peer is not None else "unknown"
            self._count(name, "silence", "nothing came for too long")
        except (grpc.RpcError, grpc.aio.BaseError, asyncio.InvalidStateError):
            self._count(
                session.peer.location if session.peer is not None else "unknown", "lost", "the stream broke off"
            )

    # talking

    async def _converse(self, session: Session, stream: Stream, name: str) -> None:
        """Speaks and listens until one side has enough. Raises Refused, TimeoutError, or what gRPC raises."""
        self._strangers += 1
        try:
            await asyncio.wait_for(stream.write(session.hello(self._clock.unix())), HELLO)
            await self._listen_once(session, stream, HELLO)
        finally:
            self._strangers -= 1
        peer = session.peer
        assert peer is not None  # noqa: S101
        if not self._expects(peer):
            raise Refused("stranger", f"{peer.location!r}, node {peer.node!r}, is not in the config")
        if (old := self._talks.get(peer)) is not None:
            old.over.set()
        talk = self._talks[peer] = _Conversation(session)
        self._welcome(session, name)
        talk.answer(session.ping(self._clock.monotonic()))
        parts = [
            asyncio.ensure_future(part)
            for part in (self._speak(talk, stream), self._hear(talk, stream), talk.over.wait())
        ]
        try:
            done, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
            for part in done:
                part.result()
        finally:
            for part in parts:
                part.cancel()
            await asyncio.gather(*parts, return_exceptions=True)
            if self._talks.get(peer) is talk:
                del self._talks[peer]
                self._audience.lost(session)

    def _welcome(self, session: Session, name: str) -> None:
        peer = session.peer
        assert peer is not None  # noqa: S101
        self._said = {(who, what) for who, what in self._said if who not in (name, peer.location)}
        log.info("location %s, node %s, is on the mesh", *peer)
        if abs(session.clock_error) > WRONG_CLOCK:
            self._count(
                peer.location,
                "clock",
                f"its clock is {session.clock_error / SECOND:.0f} s ahead; only its own log minds",
            )
        self._audience.greeted(session)

    async def _speak(self, talk: _Conversation, stream: Stream) -> None:
        with contextlib.suppress(asyncio.InvalidStateError):  # the stream has ended; who listens learns why
            while True:
                await talk.wake.wait()
                for frame in talk.take():
                    await stream.write(frame)
        await talk.over.wait()

    async def _hear(self, talk: _Conversation, stream: Stream) -> None:
        while True:
            answer = await self._listen_once(talk.session, stream, PATIENCE * self.interval + 1)
            if answer is not None:
                talk.answer(answer)
            self._audience.heard(talk.session)

    async def _listen_once(self, session: Session, stream: Stream, seconds: float) -> pb.Frame | None:
        frame = await asyncio.wait_for(stream.read(), seconds)
        if frame is grpc.aio.EOF:
            raise Refused("closed", "the other side closed the stream")
        if frame is None:  # gRPC could not read it
            raise Refused("garbage", "what it sent is no frame")
        return session.receive(frame, self._clock.monotonic(), self._clock.unix())

    def _count(self, peer: str, reason: str, text: str) -> None:
        """Counts it always, says it once until the peer is there again."""
        self._audience.counted(peer, reason)
        if (peer, reason) not in self._said:
            self._said.add((peer, reason))
            log.warning("mesh: %s: %s: %s", peer, reason, text)


def _names(context: Any) -> frozenset[str]:
    """The names in the certificate of the other side."""
    auth: Mapping[str, Any] = context.auth_context()
    found: set[str] = set()
    for field in ("x509_subject_alternative_name", "x509_common_name"):
        for name in auth.get(field, ()):
            with contextlib.suppress(UnicodeDecodeError):
                found.add(name.decode())
    return frozenset(found)


def _told(code: Any, details: str | None) -> tuple[str, str]:
    """A reason and a text for how gRPC says that a stream ended."""
    text = details or str(code)
    if code is grpc.StatusCode.PERMISSION_DENIED:
        return "refused", f"it refused this location: {text}"
    if any(word in text for word in ("CERTIFICATE", "certificate", "handshake", "SSL", "TLS")):
        return "certificate", text
    return ("unreachable" if code is grpc.StatusCode.UNAVAILABLE else "lost"), text
