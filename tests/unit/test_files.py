"""Files that may be replaced while the process runs: what is read, and when a file counts as another one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bcs.config.files import file_version, read_regular_file


def test_no_more_is_read_than_asked_for(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    assert read_regular_file(tmp_path / "file", 3) == b"123"


@pytest.mark.parametrize("path", ["pipe", "/dev/zero"])
def test_a_pipe_or_a_device_is_neither_read_nor_waited_for(tmp_path: Path, path: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    for use in (lambda: read_regular_file(tmp_path / path, 1), lambda: file_version(tmp_path / path)):
        with pytest.raises(OSError, match="not a regular file"):
            use()


def test_a_file_that_a_link_leads_to_has_another_version_once_it_is_replaced(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).write_text("the same length")
    os.utime(tmp_path / "second", ns=(0, (tmp_path / "first").stat().st_mtime_ns))
    (tmp_path / "link").symlink_to("first")
    before = file_version(tmp_path / "link")
    assert file_version(tmp_path / "link") == before
    (tmp_path / "new").symlink_to("second")
    (tmp_path / "new").rename(tmp_path / "link")
    assert file_version(tmp_path / "link") != before
    assert file_version(tmp_path) != before  # certificates of authorities may be in a directory
