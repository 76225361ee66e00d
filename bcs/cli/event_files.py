"""The events in a file, as messages that can be produced. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

from bcs.errors import BcsError
from bcs.wire.producing import EventType, event_type_of


class UnusableEvent(BcsError):
    """The contents of a file can't be sent.

    :param problem: the reason, and the fix.
    """

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem


@dataclass(frozen=True, slots=True)
class EventMessage:
    """A message to be produced.

    :param key: None for a message without a key.
    """

    event_type: EventType
    key: bytes | None
    value: bytes


def documents_in(content: bytes) -> list[bytes]:
    """The consecutive JSON documents, each with its unchanged bytes.

    :raises ValueError: the content is not JSON in UTF-8.
    """
    text = content.decode()
    decoder, position = json.JSONDecoder(), 0
    found: list[bytes] = []
    while True:
        while position < len(text) and text[position].isspace():
            position += 1
        if position == len(text):
            return found
        _, end = decoder.raw_decode(text, position)
        found.append(text[position:end].encode())
        position = end


def messages_in(
    content: bytes,
    *,
    event_type: EventType | None = None,
    key: bytes | None = None,
    check: Callable[[EventMessage], None] | None,
) -> list[EventMessage]:
    """The messages in a file, with the keys that the producers of the platform use.

    :param event_type: the type of all events; None to use the `event_type` in each event.
    :param key: the key of all messages; None to use the keys of the platform.
    :param check: raises `UnusableEvent` for an invalid event; None to accept invalid events.
    :raises UnusableEvent: an event can't be sent.
    """
    try:
        documents = documents_in(content)
    except (ValueError, RecursionError) as error:
        if check is not None or event_type is None:
            problem = f"this is not JSON in UTF-8 ({error}); --unchecked with --topic sends it as one message"
            raise UnusableEvent(problem) from None
        return [EventMessage(event_type, key, content)]
    if not documents:
        raise UnusableEvent("the file has no event")
    messages = []
    for number, document in enumerate(documents, 1):
        envelope = json.loads(document)
        fields = envelope if isinstance(envelope, dict) else {}
        message_type = event_type or event_type_of(fields.get("event_type"))
        if message_type is None:
            known = ", ".join(known.topic for known in EventType)
            raise UnusableEvent(f"event {number}: its event_type is none of {known}; --topic can set one")
        message = EventMessage(message_type, message_type.key(fields) if key is None else key, document)
        if check is not None:
            try:
                check(message)
            except UnusableEvent as error:
                raise UnusableEvent(f"event {number}: {error.problem}") from None
        messages.append(message)
    return messages
