"""Reads files with secrets, tokens and certificates, which may be replaced while the process runs."""

from __future__ import annotations

import os
import stat
from pathlib import Path

_NOT_REGULAR = "it is not a regular file"


def read_regular_file(path: Path, most_bytes: int) -> bytes:
    """The first bytes of a file. A pipe or a device is refused, because the event loop would wait for it.

    :raises OSError: the file can't be read, or is not a regular file.
    """
    # Without O_NONBLOCK, the opening of a pipe waits until something writes to it.
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:  # noqa: PTH123 (a descriptor)
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(0, _NOT_REGULAR)
        return file.read(most_bytes)


def file_version(path: Path) -> tuple[int, ...]:
    """Differs once a file was written or replaced, also behind a symbolic link, as Kubernetes replaces it.

    :raises OSError: there is no such file, or it is a pipe or a device, which a client would wait for.
    """
    found = path.stat()
    if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
        raise OSError(0, _NOT_REGULAR)
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size
