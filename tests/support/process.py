"""A child process that says when it is ready, and is gone when the test is."""

import contextlib
import os
import re
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

ROOT = Path(__file__).parents[2]
READY_SECONDS = 30.0
STOP_SECONDS = 20.0
TAIL_LINES = 60


class Child:
    """Runs `argv` in a session of its own, its output collected by a thread.

    Construction returns when a line matches `ready`. Leaving the context terminates the
    process, expects `exit_code` and kills whatever is left. An AssertionError tells the output's last lines.
    """

    exit_code: int | None = 0  # None: any
    match: re.Match[str]  # of the line that said it is ready

    def __init__(self, argv: Sequence[str], ready: str, *, seconds: float = READY_SECONDS) -> None:
        self.argv = list(argv)
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._pattern = re.compile(ready)
        self._seen = threading.Event()
        self._match: re.Match[str] | None = None
        self.process = subprocess.Popen(
            self.argv,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._seen.wait(seconds)
        if self._match is None:
            self.kill()
            raise AssertionError(f"not ready after {seconds} s or ended: {self.describe()}")
        self.match = self._match

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def output(self) -> str:
        """The last lines it wrote."""
        return "\n".join(self._tail)

    def describe(self) -> str:
        return f"{' '.join(self.argv)} (exit {self.process.poll()})\n{self.output}"

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._tail.append(line.rstrip("\n"))
            if self._match is None and (match := self._pattern.search(line)):
                self._match = match
                self._seen.set()
        self._seen.set()

    def stop(self, seconds: float = STOP_SECONDS) -> None:
        """SIGTERM, then the expected exit code, or an AssertionError with the output's tail."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"still running {seconds} s after SIGTERM: {self.describe()}") from None
        self.kill()
        assert self.exit_code in (None, code), self.describe()

    def kill(self) -> None:
        """Ends it and its children at once, if any is left."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(STOP_SECONDS)
        self._reader.join(STOP_SECONDS)
        if self.process.stdout is not None:
            self.process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.kill()
            if error is not None:
                error.add_note(self.describe())
        else:
            self.stop()
