"""Network namespaces: locations as on machines of their own, whose links can be taken down. Needs root and iproute2."""

import contextlib
import itertools
import os
import shutil
import subprocess
from types import TracebackType
from typing import Self

_numbers = itertools.count()


def _ip(*arguments: str, check: bool = True) -> None:
    subprocess.run(["ip", *arguments], check=check, capture_output=True, timeout=20)


def available() -> bool:
    """Whether namespaces, bridges and pairs of links can be made here."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    with contextlib.suppress(subprocess.SubprocessError, OSError), Net("probe"):
        return True
    return False


class Net:
    """Namespaces by name, each with an address, on one bridge; the test itself stands on it, too."""

    def __init__(self, *names: str) -> None:
        self._number = next(_numbers)
        tag = f"{os.getpid() % 100_000}{self._number}"
        self._bridge = f"hrb{tag}"
        self._subnet = f"10.{64 + os.getpid() % 128}.{self._number % 250}"
        self.spaces = {name: f"hr{tag}-{name}" for name in names}
        self.addresses = {name: f"{self._subnet}.{place}" for place, name in enumerate(names, 2)}
        self._links = {name: f"hrv{tag}{place}" for place, name in enumerate(names)}

    def __enter__(self) -> Self:
        try:
            _ip("link", "add", self._bridge, "type", "bridge")
            _ip("address", "add", f"{self._subnet}.1/24", "dev", self._bridge)
            _ip("link", "set", self._bridge, "up")
            for name, space in self.spaces.items():
                link = self._links[name]
                _ip("netns", "add", space)
                _ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", space)
                _ip("link", "set", link, "master", self._bridge, "up")
                _ip("-n", space, "address", "add", f"{self.addresses[name]}/24", "dev", "eth0")
                _ip("-n", space, "link", "set", "eth0", "up")
                _ip("-n", space, "link", "set", "lo", "up")
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()

    def _remove(self) -> None:
        for name, space in self.spaces.items():
            _ip("netns", "delete", space, check=False)
            _ip("link", "delete", self._links[name], check=False)
        _ip("link", "delete", self._bridge, check=False)

    def inside(self, name: str, *argv: str) -> list[str]:
        """The command that runs another one in a namespace."""
        return ["ip", "netns", "exec", self.spaces[name], *argv]

    def down(self, name: str) -> None:
        """Nothing comes or goes any more."""
        _ip("link", "set", self._links[name], "down")

    def up(self, name: str) -> None:
        _ip("link", "set", self._links[name], "up")

    def deafen(self, name: str, other: str) -> None:
        """What the first sends to the other vanishes; the way back is open."""
        _ip("-n", self.spaces[name], "route", "add", "blackhole", f"{self.addresses[other]}/32")

    def hearken(self, name: str, other: str) -> None:
        """It is as before."""
        _ip("-n", self.spaces[name], "route", "delete", "blackhole", f"{self.addresses[other]}/32")
