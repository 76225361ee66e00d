"""How many streams the queues are spread over, in this process and in all others, so that a change loses nothing.

A *layout* is a number of streams: a process with the layout 16 puts the entries of a batch into one of the streams 0 to
15, by a hash of the batch id. Each stream and its helper keys have a hash tag of their own, so a cluster spreads the
streams over its nodes. Stream 0 has the key that the only stream had in releases before, which are processes with the
layout 1 that do not say so.

Beside each stream a hash has all layouts in use, and when a process last renewed each of them. Every process writes its
own layout beside the streams of all layouts that it finds, before it appends for the first time. All layouts have
stream 0, so of two processes that start at the same time at least one finds the layout of the other. So whoever asks
how many entries of a batch wait learns from the server that has the batch's stream which other streams to ask.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Hashable, Iterable, Mapping, Sequence
from itertools import chain
from math import inf
from typing import Any, TypeVar
from zlib import crc32

import anyio
from redis.exceptions import ResponseError

from bcs.errors import StoreUnavailable
from bcs.storage.redis.commands import Command
from bcs.storage.redis.nodes import Node, Nodes

K = TypeVar("K", bound=Hashable)

QUEUES = ("", ":archive", ":explanations")
"""What the keys of a stream's queues have behind the hash tag."""

_RENEWAL_SECONDS = 10.0
_RETRY_SECONDS = 1.0
# A layout that no process has renewed for so long is forgotten once its streams are empty.
_FORGOTTEN_SECONDS = 86_400.0


def stream_key(prefix: str, number: int) -> str:
    """The key of a stream of the outbox, with which the other keys of the stream begin."""
    return f"{prefix}{{outbox:{number}}}" if number else f"{prefix}{{outbox}}"


def layouts_key(prefix: str, number: int) -> str:
    """The key of the hash that has all layouts in use, beside a stream."""
    return f"{stream_key(prefix, number)}:layouts"


def number_in(layout: int, key: bytes) -> int:
    """The number of the stream for a key. This must never change, or the entries of a batch would change places."""
    return crc32(key) % layout


def by_server(nodes: Nodes, items: Iterable[K], key_of: Callable[[K], str]) -> list[tuple[Node, list[K]]]:
    """The items by the server that has their keys. A node with one item follows its key to another server."""
    groups: dict[str, tuple[Node, list[K]]] = {}
    for item in items:
        node = nodes.at(key_of(item))
        groups.setdefault(node.address, (node, []))[1].append(item)
    return [(node if len(group) == 1 else node.server, group) for node, group in groups.values()]


async def ask_each(
    groups: Sequence[tuple[Node, list[K]]], ask: Callable[[Node, list[K]], Coroutine[Any, Any, None]]
) -> None:
    """Ask several servers at the same time. The first one needs no task, which costs more than a small question."""
    if len(groups) <= 1:  # the usual case
        for group in groups:
            await ask(*group)
        return
    async with anyio.create_task_group() as tasks:
        for group in groups[1:]:
            tasks.start_soon(ask, *group)
        await ask(*groups[0])


async def small_calls(
    nodes: Nodes, commands: Mapping[str, Sequence[Command]], failing: dict[str, StoreUnavailable]
) -> dict[str, list[Any]]:
    """Send small commands on the shared connections, in one round trip to each server where that is possible.

    :param commands: by a key that has their hash tag.
    :param failing: gets why there are no replies, by the key.
    :returns: the replies by the key.
    """
    answered: dict[str, list[Any]] = {}

    async def ask(node: Node, keys: Sequence[str]) -> None:
        try:
            replies = iter(await node.call_multiplexed(*(command for key in keys for command in commands[key])))
        except (ResponseError, StoreUnavailable) as error:
            away = isinstance(error, StoreUnavailable) and not error.answered
            if len(keys) > 1 and not away:
                for key in keys:
                    await ask(nodes.at(key), [key])
                return
            if not isinstance(error, StoreUnavailable):
                error = StoreUnavailable("redis", f"a key beside {keys[0]} has another type ({error})", answered=True)
            failing.update(dict.fromkeys(keys, error))
        else:
            answered.update((key, [next(replies) for _ in commands[key]]) for key in keys)

    await ask_each(by_server(nodes, commands, lambda key: key), ask)
    return answered


class StreamLayouts:
    """The layout of this process, and those of all others.

    :param key_prefix: the prefix of every key.
    :param layout: how many streams this process spreads its entries over.
    :param now_ms: the wall-clock time in milliseconds since 1970 UTC.
    """

    def __init__(self, nodes: Nodes, *, key_prefix: str, layout: int, now_ms: Callable[[], int]) -> None:
        self.nodes = nodes
        self.key_prefix = key_prefix
        self.layout = layout
        self.failing: dict[str, StoreUnavailable] = {}
        """The hashes of layouts that could not be read or written at the last renewal, each with the reason."""
        self._now_ms = now_ms
        self._renewed_ms = {layout: 0}
        self.registered = False
        """True once other processes can know this layout."""
        self._due_at = -inf

    @property
    def streams(self) -> int:
        """How many streams there are in all layouts together."""
        return max(self._renewed_ms)

    @property
    def layouts(self) -> set[int]:
        """All layouts that processes use, as far as known."""
        return set(self._renewed_ms)

    def number(self, key: bytes) -> int:
        """The number of the stream to which this process appends what has this key."""
        return number_in(self.layout, key)

    def note(self, fields: Sequence[bytes]) -> bool:
        """Note the layouts in a hash; False if it lacks that of this process, because Redis has lost it.

        :param fields: the reply to HGETALL.
        """
        renewed = _renewed(fields)
        self._renewed_ms |= {layout: at_ms for layout, at_ms in renewed.items() if layout not in self._renewed_ms}
        return self.layout in renewed

    async def renew(self) -> None:
        """Register again, if the last time is long ago.

        :raises StoreUnavailable: no server took the layout.
        """
        if anyio.current_time() >= self._due_at:
            await self.register()

    async def register(self) -> None:
        """Write the layout of this process beside all streams, and find the others.

        A server that is away holds up nothing: the layout is written there later.

        :raises StoreUnavailable: no server took the layout.
        """
        now_ms = self._now_ms()
        self._due_at = anyio.current_time() + _RETRY_SECONDS
        found = {self.layout: now_ms}
        written: dict[str, set[int]] = {}
        failing: dict[str, StoreUnavailable] = {}

        def missing(key: str) -> dict[int, int]:
            # The time of another layout is only copied to where it is missing: an old copy must not hide a renewal.
            known = found.items() if key in written else [(self.layout, now_ms)]
            return {layout: at_ms for layout, at_ms in known if layout not in written.get(key, ())}

        while keys := [key for key in self._hashes(max(found)) if key not in failing and missing(key)]:
            commands: dict[str, list[Command]] = {
                key: [("HSET", key, *chain.from_iterable(missing(key).items())), ("HGETALL", key)] for key in keys
            }
            for key, (_, fields) in (await small_calls(self.nodes, commands, failing)).items():
                renewed = _renewed(fields)
                written[key] = {*renewed, self.layout}
                for layout, at_ms in renewed.items():
                    found[layout] = max(at_ms, found.get(layout, 0))
        self.failing = failing
        if not written:
            raise next(iter(failing.values()))
        self._renewed_ms |= found
        self.registered = True
        await self._forget_unused(now_ms)
        if not failing:
            self._due_at = anyio.current_time() + _RENEWAL_SECONDS

    def _hashes(self, streams: int) -> list[str]:
        return [layouts_key(self.key_prefix, number) for number in range(streams)]

    async def _forget_unused(self, now_ms: int) -> None:
        """Forget layouts of processes that ended long ago, if nothing is left in their streams."""
        long_ago_ms = now_ms - _FORGOTTEN_SECONDS * 1000
        unused = [layout for layout, at_ms in self._renewed_ms.items() if at_ms < long_ago_ms and layout != self.layout]
        for layout in unused:
            keys = [f"{stream_key(self.key_prefix, number)}{queue}" for number in range(layout) for queue in QUEUES]
            failing: dict[str, StoreUnavailable] = {}
            lengths = await small_calls(self.nodes, {key: [("XLEN", key)] for key in keys}, failing)
            if failing or any(length for [length] in lengths.values()):
                continue
            hashes: dict[str, list[Command]] = {key: [("HDEL", key, layout)] for key in self._hashes(self.streams)}
            await small_calls(self.nodes, hashes, failing)
            if not failing:
                del self._renewed_ms[layout]


def _renewed(fields: Sequence[bytes]) -> dict[int, int]:
    """When each layout was last renewed, in milliseconds since 1970 UTC, by the reply to HGETALL."""
    return {int(layout): int(at_ms) for layout, at_ms in zip(fields[::2], fields[1::2], strict=True)}
