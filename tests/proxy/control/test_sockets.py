"""The supervisor's sockets: who may share a port, who may reach them, and that nothing is left."""

import errno
import os
import socket
import stat
from pathlib import Path

import pytest

from fixtures.demo_processes import free_ports
from proxy.config import Address, Admin, Config
from proxy.control.sockets import Sockets, listening_socket, shared_sockets


@pytest.fixture(autouse=True)
def _temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Temporary folders are made below the test's own."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


def config(workers: int = 1) -> Config:
    """A location on two free ports."""
    listen, admin = (Address("127.0.0.1", port) for port in free_ports(2))
    return Config("ams", listen, {}, admin=Admin(admin), workers=workers)


def test_shared(free_port: int) -> None:
    """A worker's socket each, all on one port; a connection lands in exactly one of them."""
    made = shared_sockets(Address("127.0.0.1", free_port), 3)
    try:
        assert [("127.0.0.1", free_port)] * 3 == [one.getsockname() for one in made]
        with socket.create_connection(("127.0.0.1", free_port)):
            for one in made:
                one.setblocking(False)
            accepted = 0
            for one in made:
                try:
                    one.accept()[0].close()
                    accepted += 1
                except BlockingIOError:
                    pass
        assert 1 == accepted
    finally:
        for one in made:
            one.close()


def test_another_location_is_not_joined(free_port: int) -> None:
    """A port that somebody shares among his own workers is not ours to share."""
    address = Address("127.0.0.1", free_port)
    theirs = shared_sockets(address, 2)
    try:
        with pytest.raises(OSError, match=f"127.0.0.1:{free_port}: Address already in use") as caught:
            shared_sockets(address, 1)
        assert errno.EADDRINUSE == caught.value.errno
    finally:
        for one in theirs:
            one.close()


def test_ipv6() -> None:
    """An address with colons is IPv6."""
    try:
        made = listening_socket(Address("::1", 0))
    except OSError:
        pytest.skip("no IPv6 on loopback")
    with made:
        assert socket.AF_INET6 == made.family


def test_agent_socket_is_private() -> None:
    """Only the location's own user finds the agent's socket and may connect; it is gone after closing."""
    sockets = Sockets(config())
    path = Path(sockets.agent_path)
    try:
        assert (0o600, 0o700) == tuple(stat.S_IMODE(os.stat(one).st_mode) for one in (path, path.parent))
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(sockets.agent_path)  # it waits in the queue: no agent has to be there
    finally:
        sockets.close()
    assert not path.parent.exists()


def test_nothing_stays_open_after_a_failure(tmp_path: Path) -> None:
    """If the admin's port is taken, the clients' port and the folder are given back."""
    wanted = config(workers=2)
    with (
        listening_socket(wanted.admin.listen),
        pytest.raises(OSError, match=f"{wanted.admin.listen}: Address already in use"),
    ):
        Sockets(wanted)
    assert [] == list(tmp_path.iterdir())
    Sockets(wanted).close()  # so all of it can be had again
