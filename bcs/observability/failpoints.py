"""Named places at which chaos tests inject failures; in production they do nothing.

Like FreeBSD's fail(9) and TiKV's fail-rs: with a name, a test places a crash exactly where it matters. A crash at a
random time seldom hits these few instructions.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from enum import StrEnum


class FailPoint(StrEnum):
    """A place at which a failure can be injected. Its subject is the actor, the batch or the topic."""

    STARTING = "starting"  # an attempt of an actor begins, first or after a restart
    INTAKE_RECEIVED = "intake.received"  # messages were polled, and none was delivered
    BATCH_RECEIVED = "batch.received"  # a batch's actor has unacked messages
    BEFORE_EXEC = "store.before_exec"  # the commit of a batch is ready, by script or by EXEC, and was not sent
    AFTER_EXEC = "store.after_exec"  # the commit was carried out; no caller knows yet
    ARCHIVE_RECEIVED = "archive.received"  # the archive writer has entries that are not written
    ARCHIVE_WRITTEN = "archive.written"  # the entries are durable; no caller knows yet
    BEFORE_REPLY = "batch.before_reply"  # facts are durable; neither caller nor intake knows yet
    BEFORE_OFFSET_COMMIT = "intake.before_offset_commit"
    AFTER_OFFSET_COMMIT = "intake.after_offset_commit"
    PUBLISHER_LEASED = "publisher.leased"  # messages were taken from the outbox and not sent
    PUBLISHER_ACKNOWLEDGED = "publisher.acknowledged"  # Kafka has them; they are still in the outbox
    HTTP_BEFORE_REPLY = "http.before_reply"  # an announcement is in the outbox; its caller has no answer


FailPointHook = Callable[[FailPoint, str], Awaitable[None]]
"""The function that a chaos test runs at fail points; the second argument is the subject."""

_hook: ContextVar[FailPointHook | None] = ContextVar("fail_point_hook", default=None)


async def hit(point: FailPoint, subject: str) -> None:
    """Run the hook. Without a hook nothing happens, and no other task runs."""
    hook = _hook.get()
    if hook is not None:
        await hook(point, subject)


@contextmanager
def fail_points(hook: FailPointHook | None) -> Iterator[None]:
    """Run a hook at all fail points in the block, and in all tasks that are started in the block."""
    token = _hook.set(hook)
    try:
        yield
    finally:
        _hook.reset(token)
