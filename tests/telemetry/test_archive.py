"""Records in files: a line each, rotated by size, never more than there may be."""

import json
import os
import re
from pathlib import Path

import pytest

from telemetry import archive
from telemetry.archive import FILE, Archive
from telemetry.record import Content
from tests.support.records import record


def test_a_line_a_record(tmp_path: Path) -> None:
    files = Archive(str(tmp_path / "deep" / "records"))
    files.add(record())
    files.add(record(request_id="r-2"))
    files.close()
    path = tmp_path / "deep" / "records" / "records.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert ["r-1", "r-2"] == [row["request_id"] for row in rows]
    assert rows[0]["candidates"][0]["instance"] == "gpu-1"
    assert path.stat().st_mode & 0o777 == 0o600


def test_it_goes_on_after_what_is_there(tmp_path: Path) -> None:
    for _ in range(2):
        files = Archive(str(tmp_path))
        files.add(record())
        files.close()
    assert len((tmp_path / "records.jsonl").read_text().splitlines()) == 2


def test_rotation_keeps_so_many_whole_files(tmp_path: Path) -> None:
    files = Archive(str(tmp_path), file_bytes=4000)
    for number in range(60):
        files.add(record(request_id=f"r-{number}"))
        files.flush()
    files.close()
    names = sorted(os.listdir(tmp_path))
    assert len(names) == 1 + archive.OLD_FILES
    for name in names:
        text = (tmp_path / name).read_text()
        assert 0 < len(text) <= 4000
        assert all(json.loads(line) for line in text.splitlines())
    assert '"r-59"' in (tmp_path / "records.jsonl").read_text()


def test_what_does_not_fit_the_buffer_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MOST", 3)
    files = Archive(str(tmp_path))
    for _ in range(5):
        files.add(record())
    assert files.take_lost() == 2
    assert files.take_lost() == 0
    files.close()


def test_a_full_disk_is_counted_and_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = Archive(str(tmp_path))

    def no_space(text: str) -> None:
        raise OSError(28, "No space left on device")

    good, files._write = files._write, no_space  # type: ignore[method-assign]
    for _ in range(2):
        files.add(record())
        files.flush()
    assert files.take_lost() == 2
    assert [r.getMessage() for r in caplog.records] == [
        f"telemetry.records: {tmp_path}: No space left on device; records are lost until this ends"
    ]
    files._write = good  # type: ignore[method-assign]
    files.add(record())
    files.close()
    assert files.take_lost() == 0


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        Archive(str(tmp_path / "file" / "records"))


def test_no_content_is_in_a_file(tmp_path: Path) -> None:
    """What was said is for spans only, and only if the operator wants it there."""
    archive = Archive(str(tmp_path))
    archive.add(record(content=Content(b"sesame", b"open")))
    archive.close()
    written = (tmp_path / FILE).read_text()
    assert '"request_id"' in written
    assert not re.search("sesame|open|content", written)
