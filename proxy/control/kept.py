"""What the agent remembers: the last records by their id, all of them in files if one wants, and what was learned."""

import collections

from proxy.config import Config
from proxy.control.learned import Learned
from telemetry.archive import Archive
from telemetry.record import Record

KEPT_RECORDS = 10_000


class Kept:
    """One agent's memory. Only `write` and `close` touch files."""

    def __init__(self) -> None:
        self.records: collections.deque[Record] = collections.deque(maxlen=KEPT_RECORDS)
        self.by_id: dict[str, Record] = {}
        self.archive: Archive | None = None
        self.learned = Learned()

    def add(self, record: Record) -> None:
        """The oldest one goes if there are too many."""
        if len(self.records) == self.records.maxlen:
            oldest = self.records[0]
            if self.by_id.get(oldest.request_id) is oldest:
                del self.by_id[oldest.request_id]
        self.records.append(record)
        self.by_id[record.request_id] = record
        if self.archive is not None:
            self.archive.add(record)

    def archive_for(self, config: Config) -> Archive | None:
        """The files that this config wants written; OSError if that is not possible."""
        directory = config.telemetry.records
        if directory is None:
            return None
        return self.archive if self.archive is not None and self.archive.directory == directory else Archive(directory)

    def configure(self, config: Config, archive: Archive | None) -> None:
        """Puts a config in force, with what `archive_for` gave for it."""
        if self.archive is not archive:
            if self.archive is not None:
                self.archive.close()
            if archive is not None:
                self.learned.load(archive.directory)
        self.archive = archive
        self.learned.keep(config.models)

    def write(self) -> int:
        """Brings the files up to date; how many records were lost. Blocks."""
        archive = self.archive
        if archive is None:
            return 0
        archive.flush()
        self.learned.save(archive.directory)
        return archive.take_lost()

    def close(self) -> None:
        """The same, for the last time."""
        if self.archive is not None:
            self.write()
            self.archive.close()
