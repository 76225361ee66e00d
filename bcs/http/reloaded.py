"""What is read from files at the start, and again when the files change: callers, and certificates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import anyio
import anyio.to_thread
import structlog

from bcs.config.files import file_version
from bcs.config.settings import InvalidSettings

log = structlog.stdlib.get_logger("bcs.http", actor="http")

T = TypeVar("T")

_EVERY_SECONDS = 1.0


class FileUnusable(ValueError):
    """A file can't be used.

    :param cause: why, without any text of the file.
    """

    def __init__(self, cause: str) -> None:
        super().__init__(cause)
        self.cause = cause


class Reloaded(Generic[T]):
    """Something that is read from files. While the files can't be used, what was read before stays in use.

    :param variable: the setting that names the files.
    :param paths: the files.
    :param read: reads them; raises `FileUnusable`.
    :param problem_of: returns what is wrong by now with what is in use, such as a certificate that has expired.
    :raises InvalidSettings: the files can't be used.
    :ivar current: what was read last.
    :ivar problem: why the files can't be used now, or what is wrong with what is in use; empty without a problem.
    :ivar outdated: True if the files have changed and can't be used, so that what was read before stays in use.
    """

    def __init__(
        self,
        variable: str,
        paths: Sequence[Path],
        read: Callable[[], T],
        problem_of: Callable[[T], str] = lambda _: "",
    ) -> None:
        self.variable = variable
        self.problem = ""
        self.outdated = False
        self._paths = paths
        self._read = read
        self._problem_of = problem_of
        self._seen = self._versions()
        try:
            self.current = read()
        except FileUnusable as unusable:
            raise InvalidSettings(((variable, unusable.cause),)) from None

    def problem_in_use(self) -> str:
        """What is wrong by now with what is in use; empty without a problem."""
        return self._problem_of(self.current)

    def refresh(self) -> None:
        """Read the files again if they have changed. Reading blocks, so this belongs into a thread."""
        versions = self._versions()
        if versions != self._seen:
            try:
                self.current = self._read()
            except FileUnusable as unusable:
                # Files are tried again each time: a certificate and its key are seldom replaced at the same moment.
                self.outdated = True
                self._note(unusable.cause)
                return
            self._seen, self.outdated = versions, False
            log.info("credentials_reloaded", setting=self.variable)
        self._note(self.problem_in_use())

    def _note(self, problem: str) -> None:
        if problem and problem != self.problem:
            log.warning("credentials_unusable", setting=self.variable, cause=problem)
        self.problem = problem

    def _versions(self) -> list[tuple[int, ...] | None]:
        return [_version(path) for path in self._paths]


async def keep_fresh(reloaded: Sequence[Reloaded[Any]]) -> None:
    """Look for changes once a second until cancelled."""
    while reloaded:
        await anyio.sleep(_EVERY_SECONDS)
        for each in reloaded:
            # A file system that does not answer must not hold up a stop.
            await anyio.to_thread.run_sync(each.refresh, abandon_on_cancel=True)


def _version(path: Path) -> tuple[int, ...] | None:
    try:
        return file_version(path)
    except OSError:  # its reading says what is wrong
        return None
