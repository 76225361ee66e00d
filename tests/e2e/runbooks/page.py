"""A page of docs/runbooks: prose that people write, and blocks that a play fills with what was typed and seen."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread

from tests.e2e.runbooks.site import Site, site
from tests.support.apache_kafka import fetch
from tests.support.typed import TypedShell

FOLDER = Path(__file__).parents[3] / "docs" / "runbooks"

_COLUMNS = 100
_STEP_SECONDS = 240.0
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

    def note(self, block: str, line: str) -> None:
        """Note something that the operator does elsewhere."""
        self.blocks[block] = self.blocks.get(block, "") + f"{line}\n"

    async def try_out(self, command: str, *shows: str, exit_code: int | None = None) -> str:
        """The same without a note."""
        shell = TypedShell(self._site.directory, self._site.variables, _COLUMNS, _STEP_SECONDS)
        typed = partial(shell.run, self._site.real(command), shows, exit_code)
        return self._site.usual(await anyio.to_thread.run_sync(typed)).strip("\n")


Play = Callable[[Site, Transcript], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Runbook:
    """A page and its play.

    :param name: of the page.
    :param blocks: those that the play fills.
    :param on_apache_kafka: the embedded broker can't do what the play does.
    """

    name: str
    play: Play
    blocks: tuple[str, ...]
    on_apache_kafka: bool = False

    @property
    def path(self) -> Path:
        """The page."""
        return FOLDER / f"{self.name}.md"


def play(runbook: Runbook) -> dict[str, str]:
    """Play a runbook at a site of its own.

    :returns: its blocks.
    :raises AssertionError: it did not go as the page says.
    :raises ApacheKafkaMissing: it takes Apache Kafka, which can't run here.
    """

    jars = fetch() if runbook.on_apache_kafka else None

    async def on_a_site() -> dict[str, str]:
        async with site(jars) as one:
            page = Transcript(one)
            await runbook.play(one, page)
        return page.blocks

    blocks = anyio.run(on_a_site)
    assert blocks.keys() == set(runbook.blocks)
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
    content = re.sub(r"problems: [^;]+;", "problems: …;", content)  # how many actors have noticed by now
    content = re.sub(r"essay (anna|ben)\b", "essay NAME", content)  # whichever was read last
    content = re.sub(r"\d+(\.\d+)?", "N", content)
    return re.sub(r"\s+", " ", content)
