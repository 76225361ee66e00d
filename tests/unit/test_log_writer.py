"""The log writer: logging never waits, the order is kept, and dropped lines are counted."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from pathlib import Path

import pytest

from bcs.observability.log_writer import LogWriter
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio

LIMIT_BYTES = 1_000_000
LINE = "x" * 999


class Drops:
    """Counts dropped lines."""

    count = 0

    def add(self, count: int) -> None:
        """So many more."""
        self.count += count


@pytest.fixture
def drops() -> Drops:
    return Drops()


@pytest.fixture
def make_writer(drops: Drops) -> Callable[[int], LogWriter]:
    return lambda descriptor: LogWriter(
        descriptor, limit_bytes=LIMIT_BYTES, dropped=drops.add, notice=lambda count: f"{count} dropped"
    )


class Reader:
    """The other end of a pipe, read only when it is asked to."""

    def __init__(self) -> None:
        self._reading, self.writing = os.pipe()
        os.set_blocking(self._reading, False)
        self._read = b""

    def lines(self) -> list[str]:
        """All that came so far."""
        with suppress(BlockingIOError):
            while chunk := os.read(self._reading, 1 << 20):
                self._read += chunk
        return self._read.decode().splitlines()

    def close(self) -> None:
        """Close both ends."""
        os.close(self.writing)
        os.close(self._reading)


def test_lines_are_written_in_their_order(tmp_path: Path, make_writer: Callable[[int], LogWriter]) -> None:
    with (tmp_path / "log").open("wb") as file:
        writer = make_writer(file.fileno())
        for number in range(1000):
            writer.put(f"line {number} \udcff")
        writer.flush(5)
        assert (tmp_path / "log").read_text().splitlines() == [f"line {number} \\udcff" for number in range(1000)]


async def test_a_stuck_reader_blocks_nobody_and_gets_the_count_of_dropped_lines(
    make_writer: Callable[[int], LogWriter], drops: Drops
) -> None:
    with closing(Reader()) as reader:
        writer = make_writer(reader.writing)
        for number in range(4000):
            writer.put(f"{number} {LINE}")
        assert 900 < drops.count < 4000, "what waits is bounded"
        writer.flush(0.01)  # nobody reads: this, too, comes to its end
        await wait_until(lambda: accounted_for(reader.lines()) == 4000)
        writer.put(f"4000 {LINE}")
        await wait_until(lambda: accounted_for(reader.lines()) == 4001)


def accounted_for(lines: Sequence[str]) -> int:
    """How many lines were written, or reported as dropped at their place."""
    count = 0
    for line in lines:
        number, _, rest = line.partition(" ")
        if rest == "dropped":
            count += int(number)
        elif rest == LINE:  # and not half of it
            assert int(number) == count, "in their order"
            count += 1
    return count


def test_a_full_disk_breaks_nothing_and_is_told_once_there_is_room(
    tmp_path: Path, make_writer: Callable[[int], LogWriter], drops: Drops
) -> None:
    descriptor = os.open("/dev/full", os.O_WRONLY)
    writer = make_writer(descriptor)
    for _ in range(3):
        writer.put("lost")
        writer.flush(5)
    assert drops.count == 3
    with (tmp_path / "log").open("wb") as file:
        os.dup2(file.fileno(), descriptor)
    writer.put("kept")
    writer.flush(5)
    os.close(descriptor)
    assert (tmp_path / "log").read_text() == "3 dropped\nkept\n"
    assert drops.count == 3
