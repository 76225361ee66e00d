"""What lies in Redis under a prefix: keys, their types, whether they expire, and what is in them."""

from __future__ import annotations

import base64
import json
from typing import Any

from redis.asyncio import Redis

from tests.surface.facts import lines_of
from tests.surface.placeholders import Placeholders

Client = Any  # redis-py's types differ between its releases


def client(url: str) -> Client:
    """A connection of our own."""
    return Redis.from_url(url)


async def keys_under(redis: Client, prefix: str) -> list[bytes]:
    """All keys, in order."""
    return sorted([key async for key in redis.scan_iter(match=f"{prefix}*", count=1000)])


async def waiting(redis: Client, prefix: str) -> dict[str, int]:
    """How many entries each stream has that has any, by what stands behind the prefix."""
    found = {}
    for key in await keys_under(redis, prefix):
        if await redis.type(key) == b"stream" and (length := await redis.xlen(key)):
            found[key.decode().removeprefix(prefix)] = length
    return found


async def facts_of_redis(redis: Client, prefix: str, when: str, words: Placeholders) -> list[str]:
    """Lines for each key.

    :param when: begins each line: the same key may have other things in it at another time.
    """
    lines = []
    for key in await keys_under(redis, prefix):
        kind = (await redis.type(key)).decode()
        name = f"{when}: {words.text(key.decode())}"
        lines.append(f"{name}: {kind}, {'stays' if await redis.pttl(key) == -1 else 'expires'}")
        lines += [
            line
            for field, value in (await _CONTENT[kind](redis, key, words))
            for line in lines_of(f"{name}: {field}", value)
        ]
    return sorted(set(lines))


async def _of_hash(redis: Client, key: bytes, words: Placeholders) -> list[tuple[str, object]]:
    content = await redis.hgetall(key)
    return [(words.text(field.decode()), _shown(value, words)) for field, value in content.items()]


async def _of_stream(redis: Client, key: bytes, words: Placeholders) -> list[tuple[str, object]]:
    entries = await redis.xrange(key)
    groups = [("group", group["name"].decode()) for group in await redis.xinfo_groups(key)]
    return groups + [
        (f"entry {number}, {field.decode()}", _shown(value, words))
        for number, (_, fields) in enumerate(entries)
        for field, value in fields.items()
    ]


async def _of_set(redis: Client, key: bytes, _: Placeholders) -> list[tuple[str, object]]:
    return [("members", f"of {length} bytes") for length in sorted({len(each) for each in await redis.smembers(key)})]


async def _of_string(redis: Client, key: bytes, words: Placeholders) -> list[tuple[str, object]]:
    return [("value", _shown(await redis.get(key), words))]


_CONTENT = {"hash": _of_hash, "stream": _of_stream, "set": _of_set, "string": _of_string}


def _shown(value: bytes, words: Placeholders) -> object:
    """A value as a document, as text, or as its bytes."""
    try:
        text = value.decode()
        if not text.isprintable():
            raise ValueError(text)
    except ValueError:
        return f"bytes {value.hex(' ', 1)}"
    if text[:1] in ("{", "["):
        document = json.loads(text)
        if all(isinstance(each, list) and len(each) == 2 for each in document):  # headers of a message
            return [f"{name}: {_header(name, value, words)}" for name, value in document]
        return words.document(document)
    return words.text(text)


def _header(name: str, value: str, words: Placeholders) -> str:
    text = base64.b64decode(value, validate=True).decode()
    return "<number>, in base64" if text.isdigit() and len(text) < 10 else f"{words.text(text)}, in base64"
