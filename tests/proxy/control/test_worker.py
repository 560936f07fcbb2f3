"""A worker as a real process, with sockets and a board as the supervisor passes them, and no agent at all."""

import asyncio
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import msgspec

from balancer.board import Board
from fixtures.engine.server import SimulatedEngine
from proxy.config import load
from proxy.control.link import Link
from proxy.control.messages import Configure, Drain, Ready, ToSupervisor


def test_a_worker_serves_and_drains(tmp_path: Path) -> None:
    """Configured it is ready and serves without an agent; told to drain it ends with 0 and leaves its row empty."""

    async def scenario() -> tuple[object, bytes, int, tuple[int, int, int]]:
        engine = SimulatedEngine("fast", "demo")
        await engine.start()
        listening = socket.create_server(("127.0.0.1", 0))
        port = listening.getsockname()[1]
        file = tmp_path / "headrace.yaml"
        file.write_text(
            f"location: ams\nlisten: 127.0.0.1:{port}\nmodels: {{demo: {{engines: [{{url: '{engine.url}'}}]}}}}\n"
        )
        config = load(str(file))
        url = config.models["demo"].engines[0].url
        board = Board.create(1, 8)
        ours, theirs = socket.socketpair()
        command = ["-m", "proxy.control.worker", "--worker", "0", "--control", str(theirs.fileno()), "--row", "0"]
        command += [
            "--listen",
            str(listening.fileno()),
            "--board",
            str(board.fd),
            "--agent",
            str(tmp_path / "none.sock"),
        ]
        fds = [theirs.fileno(), listening.fileno(), board.fd]
        process = subprocess.Popen([sys.executable, *command], pass_fds=fds)  # noqa: ASYNC220  a start is quick
        theirs.close()
        heard: asyncio.Queue[object] = asyncio.Queue()
        _, link = await asyncio.get_running_loop().create_connection(
            lambda: Link(msgspec.msgpack.Decoder(ToSupervisor).decode, heard.put_nowait, lambda: None), sock=ours
        )
        try:
            link.send(Configure(config, {url: 3}, 1, b"secret"))
            ready = await asyncio.wait_for(heard.get(), 20)
            body = b'{"model":"demo","messages":[{"role":"user","content":"hi"}],"max_tokens":3}'
            request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/chat/completions", body)
            answer = await asyncio.to_thread(lambda: urllib.request.urlopen(request, timeout=20).read())
            link.send(Drain())
            code = await asyncio.to_thread(process.wait, 20)
            return ready, answer, code, board.outstanding(3)
        finally:
            process.kill()
            process.wait()
            link.close()
            listening.close()
            await engine.close()
            await asyncio.sleep(0.05)
            board.close()

    ready, answer, code, outstanding = asyncio.run(scenario())
    assert Ready(1) == ready
    assert b"tok0 tok1 tok2" in answer
    assert (0, (0, 0, 0)) == (code, outstanding)
