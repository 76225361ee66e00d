"""The record in PostgreSQL."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from itertools import chain
from typing import Any

from bcs.domain.facts import parts_of
from bcs.domain.history import FactsRecorded, HistoryEntry, KeptEntry, facts_in
from bcs.domain.state import BatchState, delta_of
from bcs.errors import StoreCorrupted, StoreRefused
from bcs.storage.pace import paced
from bcs.storage.ports import Waiting
from bcs.storage.postgres import sql as statements
from bcs.storage.postgres.gateway import ArchiveGateway
from bcs.storage.postgres.pace import extra_seconds
from bcs.storage.postgres.rows import kept_entries, merge_arguments, state_of, to_text
from bcs.wire.published import OutboundMessage, announced_ms

Part = tuple[Mapping[str, BatchState], Sequence[HistoryEntry]]
"""What one statement merges and keeps; every batch of an entry is among the states."""

_NEWEST = 2**63 - 1
# To make the arguments of a statement, and to encode them, holds up all else in this process: some ms for so many.
_FACTS_PER_STATEMENT = 500
_MOST_COUNTED = 10_000


class PostgresArchive:
    """The permanent record of facts, and the history of what became known and what was answered.

    Every method may be repeated without harm, also when its outcome is unknown, and refuses at once while the database
    is known to be away.

    :param page_bytes: how large a page of the history may be; an entry that is larger is a page.
    """

    def __init__(self, gateway: ArchiveGateway, *, page_bytes: int) -> None:
        self._gateway = gateway
        self._page_bytes = page_bytes

    @property
    def reachable(self) -> bool:
        """Whether it answered when it was last asked."""
        return self._gateway.reachable

    @property
    def was_reached(self) -> bool:
        """True once it has answered with the schema of this release."""
        return self._gateway.was_reached

    @property
    def identity(self) -> str | None:
        """What is another one once the record was made anew or restored; None before it was reached."""
        return self._gateway.identity

    @property
    def problem(self) -> str:
        """Why it is out of reach."""
        return self._gateway.problem

    @property
    def shortage(self) -> str:
        """See `ArchiveGateway.shortage`."""
        return self._gateway.shortage

    async def ensure_usable(self, deadline_seconds: float) -> None:
        """See `ArchiveGateway.ensure_usable`."""
        await self._gateway.ensure_usable(deadline_seconds)

    async def probe(self, deadline_seconds: float) -> None:
        """See `ArchiveGateway.probe`."""
        await self._gateway.probe(deadline_seconds)

    async def probe_unchanged(self, deadline_seconds: float) -> None:
        """See `ArchiveGateway.probe_unchanged`."""
        await self._gateway.probe_unchanged(deadline_seconds)

    async def write(self, entries: Sequence[HistoryEntry], *, deadline_seconds: float | None = None) -> None:
        """Merge the entries' facts and keep the entries, all or none; an entry that is there already is kept once.

        :param deadline_seconds: instead of the usual one, which is longer for what is large.
        :raises StoreUnavailable: whether they were written is unknown.
        :raises StoreRefused: one of them can't be stored, now or later.
        """
        facts = _facts_of(entries)
        try:
            await self._merge(_parts_of(entries, facts), facts, deadline_seconds)
        except (ValueError, OverflowError) as error:  # a text that is none, a time that no calendar has
            raise StoreRefused("postgresql", str(error)) from error

    async def add_states(self, states: Mapping[str, BatchState]) -> None:
        """Merge what is known of batches from elsewhere, without a history.

        :raises StoreUnavailable: whether it was written is unknown.
        :raises StoreRefused: it can't be stored, now or later.
        """
        await self._merge(_parts_of_states(states), sum(state.size for state in states.values()))

    async def _merge(self, parts: Iterator[Part], facts: int, deadline_seconds: float | None = None) -> None:
        # Made one after the other, each when it is its turn: to make all of them at once would hold up all else here.
        arguments = (merge_arguments(*part) for part in parts)
        first = next(arguments)
        second = next(arguments, None)
        if second and deadline_seconds is None:
            deadline_seconds = self._gateway.deadline_seconds + extra_seconds(facts)

        async def merge(connection: Any) -> None:
            if deadline_seconds is None:
                await connection.execute(statements.MERGE, *first)
                return
            async with connection.transaction():
                # Else PostgreSQL would go on after the deadline, and the next try would wait for its locks.
                await connection.execute(f"SET LOCAL statement_timeout = {int(deadline_seconds * 1000)}")
                for each in chain((first, second) if second else (first,), arguments):
                    await connection.execute(statements.MERGE, *each)

        await self._gateway.run(merge, deadline_seconds=deadline_seconds)

    async def state(self, batch_id: str) -> BatchState:
        """Everything on record of a batch.

        :raises StoreUnavailable: no answer, and never a guess.
        :raises StoreCorrupted: what is there is not what this release writes.
        """

        async def read(connection: Any) -> Any:
            return await connection.fetch(statements.STATE, to_text(batch_id))

        rows = await self._gateway.run(read)
        with _corruption_named("state"):
            return await state_of(rows)

    async def history(self, batch_id: str, *, before: int | None = None, limit: int) -> list[KeptEntry]:
        """A page of a batch's history, newest first.

        :param before: only entries with lower numbers than this.
        :param limit: at most so many, and fewer where they are large.
        :raises StoreUnavailable: no answer.
        :raises StoreCorrupted: what is there is not what this release writes.
        """

        async def read(connection: Any) -> Any:
            return await connection.fetch(
                statements.PAGE, to_text(batch_id), before or _NEWEST, limit, self._page_bytes
            )

        rows = await self._gateway.run(read)
        with _corruption_named("history"):
            return await paced(kept_entries(batch_id, rows))

    async def keep(self, announcements: Sequence[OutboundMessage], entry: HistoryEntry) -> None:
        """Keep announcements until the outbox can take them, and with them what explains them; all or nothing.

        :raises StoreUnavailable: whether they were kept is unknown.
        """
        rows = [(message.kind, message.topic, message.key, message.value) for message in announcements]

        async def insert(connection: Any) -> None:
            async with connection.transaction():
                for part in _parts_of([entry], _facts_of([entry])):
                    await connection.execute(statements.MERGE, *merge_arguments(*part))
                await connection.executemany(statements.KEEP_ANNOUNCEMENTS, rows)

        await self._gateway.run(insert)

    async def deliver_announcements(
        self, take: Callable[[list[OutboundMessage]], Awaitable[None]], *, limit: int, deadline_seconds: float
    ) -> int:
        """Give announcements to the outbox, oldest first, and forget them once it has them.

        :param take: must have made them durable when it returns; it may get the same ones again.
        :param limit: at most so many.
        :param deadline_seconds: for all of it.
        :returns: how many were handed over.
        :raises StoreUnavailable: no answer in time, of the record or of the outbox.
        """

        async def move(connection: Any) -> int:
            async with connection.transaction():
                rows = await connection.fetch(statements.TAKE_ANNOUNCEMENTS, limit)
                if rows:
                    await take([_announcement(row) for row in rows])
                    ids = [row["announcement_id"] for row in rows]
                    await connection.execute(statements.FORGET_ANNOUNCEMENTS, ids)
            return len(rows)

        return await self._gateway.run(move, deadline_seconds=deadline_seconds)

    async def announcements(self, now: datetime) -> Waiting:
        """How many announcements wait here, up to 10,000 of them, and for how long the oldest has.

        :param now: wall-clock time.
        :raises StoreUnavailable: no answer.
        """

        async def read(connection: Any) -> Any:
            return await connection.fetchrow(statements.COUNT_ANNOUNCEMENTS, _MOST_COUNTED)

        row = await self._gateway.run(read)
        at_ms = announced_ms(row["oldest"]) if row["oldest"] is not None else None
        return Waiting(row["count"], 0.0 if at_ms is None else max(0.0, now.timestamp() - at_ms / 1000))

    async def forget(self, before: datetime, limit: int, deadline_seconds: float) -> int:
        """One small step of retention: remove some of what is older. Locks rows, never a table.

        :param limit: entries of the history, and batches that nothing was written to since, at most so many of each.
        :returns: how many of both were removed; 0 when nothing is left to remove.
        :raises StoreUnavailable: no answer in time.
        """

        async def delete(connection: Any) -> int:
            entries = await connection.execute(statements.FORGET_HISTORY, before, limit)
            batches = await connection.execute(statements.FORGET_BATCHES, before.date(), limit)
            return sum(int(tag.split()[-1]) for tag in (entries, batches))

        return await self._gateway.run(delete, deadline_seconds=deadline_seconds)

    async def aclose(self) -> None:
        """Close all connections."""
        await self._gateway.aclose()


def _announcement(row: Any) -> OutboundMessage:
    value = row["value"]
    return OutboundMessage(row["kind"], row["topic"], row["key"], value, waits_since_ms=announced_ms(value))


@contextmanager
def _corruption_named(what: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise StoreCorrupted(f"postgresql, a batch's {what}", str(error)) from error


def _facts_of(entries: Sequence[HistoryEntry]) -> int:
    return sum(sum(map(facts_in, entry.facts)) for entry in entries if isinstance(entry, FactsRecorded))


def _parts_of(entries: Sequence[HistoryEntry], facts: int) -> Iterator[Part]:
    # The first statement locks all batches, so that they are locked in one order.
    deltas: dict[str, BatchState] = {}
    if facts <= _FACTS_PER_STATEMENT:
        for entry in entries:
            delta = _delta_in(deltas, entry)
            if isinstance(entry, FactsRecorded):
                delta.merge(delta_of(entry.facts))
        yield deltas, entries
        return
    for entry in entries:
        _delta_in(deltas, entry)
    merged, kept = 0, list[HistoryEntry]()
    for entry in entries:
        for fact in entry.facts if isinstance(entry, FactsRecorded) else ():
            for part in parts_of(fact, _FACTS_PER_STATEMENT):
                more = facts_in(part)
                if merged and merged + more > _FACTS_PER_STATEMENT:
                    yield deltas, kept
                    deltas, merged, kept = {}, 0, []
                _delta_in(deltas, entry).merge(delta_of([part]))
                merged += more
        _delta_in(deltas, entry)
        kept.append(entry)
    yield deltas, kept


def _delta_in(deltas: dict[str, BatchState], entry: HistoryEntry) -> BatchState:
    delta = deltas.get(entry.batch_id)
    if delta is None:
        delta = deltas[entry.batch_id] = BatchState()
    return delta


def _parts_of_states(states: Mapping[str, BatchState]) -> Iterator[Part]:
    if sum(state.size for state in states.values()) <= _FACTS_PER_STATEMENT:
        yield states, ()
        return
    yield dict.fromkeys(states, BatchState()), ()
    for batch_id, state in states.items():
        for part in state.parts(_FACTS_PER_STATEMENT):
            yield {batch_id: part}, ()
