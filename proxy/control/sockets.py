"""The sockets that the supervisor owns. They outlive every worker and agent, and so do the connections in their queues."""

import contextlib
import os
import socket
import tempfile

from proxy.config import Address, Config

BACKLOG = 4096


def listening_socket(address: Address, shared: bool = False) -> socket.socket:
    """A bound, listening TCP socket; raises OSError. `shared`: several may be bound to the same port."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        made.bind((address.host, address.port))
        made.listen(BACKLOG)
    except OSError as error:
        made.close()
        raise OSError(error.errno, f"{address}: {error.strerror or error}") from None
    return made


def shared_sockets(address: Address, count: int) -> list[socket.socket]:
    """So many sockets on one port, among which the kernel spreads new connections. Raises OSError, also if somebody
    else listens there: the port is first taken for oneself, lest another program's sockets be joined.
    """
    listening_socket(address).close()
    with contextlib.ExitStack() as stack:
        made = [stack.enter_context(listening_socket(address, shared=True)) for _ in range(count)]
        stack.pop_all()
    return made


class Sockets:
    """A location's: one for each worker's clients, the admin API's, and the Unix one on which workers find the agent."""

    def __init__(self, config: Config) -> None:
        """Raises OSError for an address that cannot be had; nothing stays open then."""
        with contextlib.ExitStack() as stack:
            self.clients = shared_sockets(config.listen, config.workers)
            for made in self.clients:
                stack.enter_context(made)
            self.admin = stack.enter_context(listening_socket(config.admin.listen))
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="headrace-", ignore_cleanup_errors=True))
            self.agent_path = os.path.join(folder, "agent.sock")  # the folder is ours alone, mode 0700
            self.agent = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            self.agent.bind(self.agent_path)
            os.chmod(self.agent_path, 0o600)
            self.agent.listen(2 * config.workers + 8)
            self._stack = stack.pop_all()

    def close(self) -> None:
        """Closes them; what is in their queues is reset."""
        self._stack.close()
