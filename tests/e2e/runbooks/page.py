"""A page of docs/runbooks: prose that people write, and blocks that a play fills with what was typed and seen."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread

from tests.e2e.runbooks.site import Site, site
from tests.support.typed import TypedShell

FOLDER = Path(__file__).parents[3] / "docs" / "runbooks"

_COLUMNS = 100
_STEP_SECONDS = 60.0
_BLOCK = re.compile(r"(<!-- played (\S+): begin -->\n```\n)(.*?)(```\n<!-- end -->)", re.DOTALL)


class Transcript:
    """What the operator of a site types, and sees. Ports are shown as those that the servers usually have."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self.blocks: dict[str, str] = {}

    async def run(self, block: str, command: str, *shows: str, exit_code: int | None = None) -> str:
        """Type a command, until it shows these regular expressions, and note that in a block.

        :param exit_code: None: any.
        :returns: what was seen.
        """
        output = await self.try_out(command, *shows, exit_code=exit_code)
        self.blocks[block] = self.blocks.get(block, "") + f"$ {command}\n{output}\n".rstrip("\n") + "\n"
        return output

    async def try_out(self, command: str, *shows: str, exit_code: int | None = None) -> str:
        """The same without a note."""
        shell = TypedShell(self._site.directory, self._site.variables, _COLUMNS, _STEP_SECONDS)
        typed = partial(shell.run, self._site.real(command), shows, exit_code)
        return self._site.usual(await anyio.to_thread.run_sync(typed)).strip("\n")

    async def runs(self, block: str, commands: Sequence[str]) -> None:
        """Type several commands that all have to succeed."""
        for command in commands:
            await self.run(block, command, exit_code=0)


Play = Callable[[Site, Transcript], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Runbook:
    """A page and its play.

    :param name: of the page.
    :param blocks: those that the play fills, in their order on the page.
    """

    name: str
    play: Play
    blocks: tuple[str, ...]

    @property
    def path(self) -> Path:
        """The page."""
        return FOLDER / f"{self.name}.md"


def play(runbook: Runbook) -> dict[str, str]:
    """Play a runbook at a site of its own.

    :returns: its blocks.
    :raises AssertionError: it did not go as the page says.
    """

    async def on_a_site() -> dict[str, str]:
        async with site() as one:
            page = Transcript(one)
            await runbook.play(one, page)
        return page.blocks

    blocks = anyio.run(on_a_site)
    assert tuple(blocks) == runbook.blocks
    return blocks


def blocks_of(text: str) -> dict[str, str]:
    """The blocks in the text of a page."""
    return {name: content for _, name, content, _ in _BLOCK.findall(text)}


def filled(text: str, blocks: Mapping[str, str]) -> str:
    """The text of a page with these blocks."""
    return _BLOCK.sub(lambda found: found[1] + blocks[found[2]] + found[4], text)


def masked(content: str) -> str:
    """A block without what differs from run to run: times, ids, numbers, and the widths of columns."""
    content = re.sub(r"\d{4}-\d\d-\d\d[T ][\d:.]+Z?", "TIME", content)
    content = re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "UUID", content)
    content = re.sub(r"\b[0-9a-f]{16,64}\b", "HASH", content)
    content = re.sub(r"\d+(\.\d+)?", "N", content)
    return re.sub(r"\s+", " ", content)
