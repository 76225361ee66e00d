"""Named places at which chaos tests make things go wrong; in production nothing listens there.

The idea is that of FreeBSD's fail(9) and TiKV's fail-rs: a crash that a test places by name comes exactly there, while
one that comes at a random moment seldom meets the few instructions that matter.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from enum import StrEnum


class FailPoint(StrEnum):
    """Where something may go wrong. The subject that comes along is the actor, the batch, or the topic it is about."""

    STARTING = "starting"  # an attempt of an actor begins, the first one or after a restart
    INTAKE_RECEIVED = "intake.received"  # messages were polled, and none handed over
    BATCH_RECEIVED = "batch.received"  # a batch's actor has messages in hand
    BEFORE_EXEC = "store.before_exec"  # the batch was read and is watched; EXEC was not sent
    AFTER_EXEC = "store.after_exec"  # EXEC was carried out; nobody has been told
    ARCHIVE_RECEIVED = "archive.received"  # the archive has entries in hand
    ARCHIVE_WRITTEN = "archive.written"  # they are durable; nobody has been told
    BEFORE_REPLY = "batch.before_reply"  # facts are durable; neither caller nor intake has been told
    BEFORE_OFFSET_COMMIT = "intake.before_offset_commit"
    AFTER_OFFSET_COMMIT = "intake.after_offset_commit"
    PUBLISHER_LEASED = "publisher.leased"  # messages were taken from the outbox and not sent
    PUBLISHER_ACKNOWLEDGED = "publisher.acknowledged"  # Kafka has them; they are still in the outbox
    HTTP_BEFORE_REPLY = "http.before_reply"  # an announcement is in the outbox; its caller has no answer


FailPointHook = Callable[[FailPoint, str], Awaitable[None]]
"""What a chaos test does at fail points; the second argument is the subject."""

_hook: ContextVar[FailPointHook | None] = ContextVar("fail_point_hook", default=None)


async def hit(point: FailPoint, subject: str) -> None:
    """Let the hook do what it does here. Without a hook nothing happens, and nobody else gets a turn."""
    hook = _hook.get()
    if hook is not None:
        await hook(point, subject)


@contextmanager
def fail_points(hook: FailPointHook | None) -> Iterator[None]:
    """Call a hook at all fail points in here, and in all tasks that are started in here."""
    token = _hook.set(hook)
    try:
        yield
    finally:
        _hook.reset(token)
