"""The archive in PostgreSQL."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import chain
from typing import Any

from bcs.domain.erasure import ErasureRecorded, decode_tombstone
from bcs.domain.facts import parts_of
from bcs.domain.history import ArchivedEntry, FactsRecorded, HistoryEntry, facts_in
from bcs.domain.state import BatchState, delta_of
from bcs.errors import BatchErased, StoreCorrupted, StoreRefused
from bcs.storage.pace import paced
from bcs.storage.ports import Waiting
from bcs.storage.postgres import sql as statements
from bcs.storage.postgres.batch_finder import ArchivedBatches
from bcs.storage.postgres.gateway import ArchiveGateway
from bcs.storage.postgres.history_search import HistorySearch
from bcs.storage.postgres.pace import extra_seconds
from bcs.storage.postgres.rows import (
    ERASED,
    archived_entries,
    erasure_arguments,
    from_text,
    merge_arguments,
    state_of,
    to_text,
)
from bcs.wire.published import OutboundMessage, announced_ms

Part = tuple[Mapping[str, BatchState], Sequence[HistoryEntry]]
"""The states that one statement merges, and the entries that it inserts; each entry's batch is among the states."""

_NEWEST = 2**63 - 1
# Making and encoding the arguments of a statement blocks the event loop: some milliseconds for so many facts.
_FACTS_PER_STATEMENT = 500
_MOST_COUNTED = 10_000
_ROWS_DELETED_AT_A_TIME = 5_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ErasedRows:
    """What was deleted of a batch.

    :param facts: marks of essays, outcomes, reports, invalidations, and the definitions that they were recorded under.
    :param entries: entries of its history.
    """

    essays: int
    facts: int
    entries: int


class PostgresArchive:
    """The archive of facts, and the history of batches.

    Every method may be repeated without harm, also when its outcome is unknown, and fails at once while the database is
    known to be away.

    :param page_bytes: how large a page of the history may be; a larger entry is a page alone.
    """

    def __init__(self, gateway: ArchiveGateway, *, page_bytes: int) -> None:
        self._gateway = gateway
        self._page_bytes = page_bytes

    @property
    def search(self) -> HistorySearch:
        """Finds entries of the history."""
        return HistorySearch(self._gateway, self._page_bytes)

    @property
    def batches(self) -> ArchivedBatches:
        """All batches, by their last change."""
        return ArchivedBatches(self._gateway)

    @property
    def reachable(self) -> bool:
        """True if the database answered the last probe or call."""
        return self._gateway.reachable

    @property
    def identity(self) -> str | None:
        """Identifies the archive's tables: changes when they are recreated or restored; None before the first probe."""
        return self._gateway.identity

    @property
    def address(self) -> str:
        """The database's address without the login, with the name of its setting."""
        return self._gateway.address

    @property
    def problem(self) -> str:
        """Why the database is out of reach."""
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
        """Merge the entries' facts and insert the entries, all or none; an entry that is there already is not added.

        What is about an erased batch is left out.

        :param deadline_seconds: replaces the usual deadline, which is longer for large writes.
        :raises StoreUnavailable: whether the entries were written is unknown.
        :raises StoreRefused: one of the entries can't be stored, now or later.
        """
        facts = _facts_of(entries)
        try:
            await self._merge(_parts_of(entries, facts), facts, deadline_seconds)
        except (ValueError, OverflowError) as error:  # an invalid text, a time out of range
            raise StoreRefused("postgresql", str(error)) from error

    async def add_states(self, states: Mapping[str, BatchState]) -> None:
        """Merge states of batches that Redis has, without history.

        :param states: batch id to its state.
        :raises StoreUnavailable: whether the states were written is unknown.
        :raises StoreRefused: a state can't be stored, now or later.
        """
        await self._merge(_parts_of_states(states), sum(state.size for state in states.values()))

    async def _merge(self, parts: Iterator[Part], facts: int, deadline_seconds: float | None = None) -> None:
        # Each statement's arguments are made just before it is sent, because making all of them would block the event
        # loop.
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
                # Otherwise PostgreSQL would go on after the deadline, and a retry would wait for the locks.
                await connection.execute(f"SET LOCAL statement_timeout = {int(deadline_seconds * 1000)}")
                for each in chain((first, second) if second else (first,), arguments):
                    await connection.execute(statements.MERGE, *each)

        await self._gateway.run(merge, deadline_seconds=deadline_seconds)

    async def state(self, batch_id: str) -> BatchState:
        """The state of a batch in the archive; empty for an unknown batch.

        :raises StoreUnavailable: no answer.
        :raises StoreCorrupted: this release does not write such rows.
        :raises BatchErased: the batch was erased.
        """

        async def read(connection: Any) -> Any:
            return await connection.fetch(statements.STATE, to_text(batch_id))

        rows = await self._gateway.run(read)
        with _as_corruption("state"):
            for kind, _, _, _, text, *_ in rows:
                if kind == ERASED:
                    raise BatchErased(batch_id, decode_tombstone(from_text(text)))
            return await state_of(rows)

    async def history(self, batch_id: str, *, before: int | None = None, limit: int) -> list[ArchivedEntry]:
        """A page of a batch's history, newest first.

        :param before: only entries with lower numbers.
        :param limit: how many entries at most; fewer where they are large.
        :raises StoreUnavailable: no answer.
        :raises StoreCorrupted: this release does not write such rows.
        """

        async def read(connection: Any) -> Any:
            return await connection.fetch(
                statements.PAGE, to_text(batch_id), before or _NEWEST, limit, self._page_bytes
            )

        rows = await self._gateway.run(read)
        with _as_corruption("history"):
            return await paced(archived_entries(batch_id, rows))

    async def store_announcements(self, announcements: Sequence[OutboundMessage], entry: HistoryEntry) -> None:
        """Store announcements until the outbox can take them, together with their explanation; all or nothing.

        :param entry: the resolution that explains the announcements.
        :raises StoreUnavailable: whether this was stored is unknown.
        """
        rows = [(message.kind, message.topic, message.key, message.value) for message in announcements]

        async def insert(connection: Any) -> None:
            async with connection.transaction():
                for part in _parts_of([entry], _facts_of([entry])):
                    await connection.execute(statements.MERGE, *merge_arguments(*part))
                await connection.executemany(statements.INSERT_ANNOUNCEMENTS, rows)

        await self._gateway.run(insert)

    async def deliver_announcements(
        self, take: Callable[[list[OutboundMessage]], Awaitable[None]], *, limit: int, deadline_seconds: float
    ) -> int:
        """Move announcements to the outbox, oldest first.

        :param take: appends announcements to the outbox. They must be durable when it returns; it may get the same ones
            again.
        :param limit: how many announcements at most.
        :param deadline_seconds: the deadline of the whole call.
        :returns: how many announcements were moved.
        :raises StoreUnavailable: no answer in time, from PostgreSQL or from the outbox.
        """

        async def move(connection: Any) -> int:
            async with connection.transaction():
                rows = await connection.fetch(statements.TAKE_ANNOUNCEMENTS, limit)
                if rows:
                    await take([_announcement(row) for row in rows])
                    ids = [row["announcement_id"] for row in rows]
                    await connection.execute(statements.DELETE_ANNOUNCEMENTS, ids)
            return len(rows)

        return await self._gateway.run(move, deadline_seconds=deadline_seconds)

    async def announcements(self, now: datetime) -> Waiting:
        """How many announcements wait in PostgreSQL, at most 10,000, and how long the oldest has waited.

        :param now: wall-clock time.
        :raises StoreUnavailable: no answer.
        """

        async def read(connection: Any) -> Any:
            return await connection.fetchrow(statements.COUNT_ANNOUNCEMENTS, _MOST_COUNTED)

        row = await self._gateway.run(read)
        at_ms = announced_ms(row["oldest"]) if row["oldest"] is not None else None
        return Waiting(row["count"], 0.0 if at_ms is None else max(0.0, now.timestamp() - at_ms / 1000))

    async def refuse(self, erasure: ErasureRecorded) -> None:
        """Put a tombstone on a batch, and the erasure into its history: from then on nothing is added to the batch.

        :raises StoreUnavailable: the tombstone may be there or not.
        """
        arguments = erasure_arguments(erasure)

        async def refuse(connection: Any) -> None:
            await connection.execute(statements.ERASE, *arguments)

        await self._gateway.run(refuse)

    async def erase(self, batch_id: str) -> ErasedRows:
        """Delete all rows of a batch with a tombstone but the entries about erasures, a part at a time.

        :raises StoreUnavailable: a part was deleted; another call deletes the rest.
        """
        key = await self._gateway.run(lambda connection: connection.fetchval(statements.BATCH_KEY, to_text(batch_id)))
        deleted = dict.fromkeys(statements.DELETE_ERASED, 0)
        for table, statement in statements.DELETE_ERASED.items():
            some = _ROWS_DELETED_AT_A_TIME
            while some == _ROWS_DELETED_AT_A_TIME:

                async def delete(connection: Any, statement: str = statement) -> str:
                    tag: str = await connection.execute(statement, key, _ROWS_DELETED_AT_A_TIME)
                    return tag

                some = int((await self._gateway.run(delete)).split()[-1])
                deleted[table] += some
        return _erased_rows(deleted)

    async def erasable(self, batch_id: str) -> ErasedRows:
        """What `erase` would delete now; nothing is changed.

        :raises StoreUnavailable: no answer.
        """

        async def count(connection: Any) -> dict[str, int]:
            key = await connection.fetchval(statements.BATCH_KEY, to_text(batch_id))
            return {table: await connection.fetchval(query, key) for table, query in statements.COUNT_ERASABLE.items()}

        return _erased_rows(await self._gateway.run(count))

    async def delete_expired(self, before: datetime, limit: int, deadline_seconds: float) -> int:
        """Delete some expired history entries and batches: one small step. This locks rows, never a table.

        :param before: entries, and batches without a write since, expire at this time.
        :param limit: how many entries and how many batches at most.
        :returns: how many entries and batches were deleted; 0 when none is left.
        :raises StoreUnavailable: no answer in time.
        """

        async def delete(connection: Any) -> int:
            entries = await connection.execute(statements.DELETE_EXPIRED_HISTORY, before, limit)
            batches = await connection.execute(statements.DELETE_EXPIRED_BATCHES, before.date(), limit)
            return sum(int(tag.split()[-1]) for tag in (entries, batches))

        return await self._gateway.run(delete, deadline_seconds=deadline_seconds)

    async def aclose(self) -> None:
        """Close all connections."""
        await self._gateway.aclose()


def _announcement(row: Any) -> OutboundMessage:
    value = row["value"]
    return OutboundMessage(row["kind"], row["topic"], row["key"], value, waits_since_ms=announced_ms(value))


def _erased_rows(rows: Mapping[str, int]) -> ErasedRows:
    """The number of rows of each kind, by the number in each table."""
    facts = sum(rows.values()) - rows["history"] - rows["essays"]
    return ErasedRows(essays=rows["essays"], facts=facts, entries=rows["history"])


@contextmanager
def _as_corruption(subject: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise StoreCorrupted(f"postgresql, a batch's {subject}", str(error)) from error


def _facts_of(entries: Sequence[HistoryEntry]) -> int:
    return sum(sum(map(facts_in, entry.facts)) for entry in entries if isinstance(entry, FactsRecorded))


def _parts_of(entries: Sequence[HistoryEntry], facts: int) -> Iterator[Part]:
    # The first statement has all batches, so that every process locks them in the same order.
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
    merged, complete = 0, list[HistoryEntry]()
    for entry in entries:
        for fact in entry.facts if isinstance(entry, FactsRecorded) else ():
            for part in parts_of(fact, _FACTS_PER_STATEMENT):
                more = facts_in(part)
                if merged and merged + more > _FACTS_PER_STATEMENT:
                    yield deltas, complete
                    deltas, merged, complete = {}, 0, []
                _delta_in(deltas, entry).merge(delta_of([part]))
                merged += more
        _delta_in(deltas, entry)
        complete.append(entry)
        yield deltas, complete


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
