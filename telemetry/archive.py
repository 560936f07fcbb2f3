"""Records in rotating files, a JSON object a line, for looking back and for asking what would have been (`headrace simulate`).

    records.jsonl      the newest; at 64 MiB it becomes records.jsonl.1, that records.jsonl.2, and so on to .15

The agent has a thread write them once a second. What cannot be written (a full disk) or does not fit the
buffer is counted as dropped, and the files are tried again.
"""

import errno
import logging
import os
from logging.handlers import RotatingFileHandler
from pathlib import Path

import msgspec

from telemetry.record import Record, as_dict

log = logging.getLogger("headrace.archive")
FILE = "records.jsonl"
FILE_BYTES = 64 << 20
OLD_FILES = 15
MOST = 20_000  # records that wait to be written


class Archive:
    """The files of one directory."""

    def __init__(self, directory: str, file_bytes: int = FILE_BYTES) -> None:
        """Raises OSError if the directory cannot be made or written to."""
        Path(directory).mkdir(parents=True, exist_ok=True)
        self.directory = directory
        path = Path(directory) / FILE
        os.close(
            os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        )  # who else may read them is the operator's
        self._files = RotatingFileHandler(path, maxBytes=file_bytes, backupCount=OLD_FILES, encoding="utf-8")
        self._file_bytes = file_bytes
        self._waiting: list[Record] = []
        self._lost = 0
        self._failing = False

    def add(self, record: Record) -> None:
        """To be written with the next lot."""
        if len(self._waiting) < MOST:
            self._waiting.append(record)
        else:
            self._lost += 1

    def take_lost(self) -> int:
        """How many records were lost since the last call."""
        lost, self._lost = self._lost, 0
        return lost

    def flush(self) -> None:
        """Writes what waits. Blocks; one at a time."""
        records, self._waiting = self._waiting, []
        if not records:
            return
        text = "".join(msgspec.json.encode(as_dict(record)).decode() + "\n" for record in records)
        try:
            self._write(text)
            self._failing = False
        except OSError as error:
            self._lost += len(records)
            if not self._failing:
                log.warning(
                    "telemetry.records: %s: %s; records are lost until this ends", self.directory, error.strerror
                )
            self._failing = True

    def close(self) -> None:
        """Writes what waits, and no more."""
        self.flush()
        self._files.close()

    def _write(self, text: str) -> None:
        stream = self._files.stream
        if stream is not None and stream.tell() and stream.tell() + len(text) > self._file_bytes:
            self._files.doRollover()
            stream = self._files.stream
        if stream is None:
            raise OSError(errno.EBADF, "the file is closed")
        stream.write(text)
        stream.flush()
