"""Makes dead letters of consumed messages, and holds up nothing else in this process over a large one."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import anyio.lowlevel
import anyio.to_thread

from bcs.wire.dead_letters.encode import dead_letter
from bcs.wire.published import ConsumedMessage, OutboundMessage

_LARGE_BYTES = 1024 * 1024


async def dead_letter_of(
    failed: ConsumedMessage,
    reason: str,
    detail: Mapping[str, Any],
    now: datetime,
    batch_id: str | None,
    *,
    limit_bytes: int,
) -> OutboundMessage:
    """See `dead_letter`.

    :param limit_bytes: the largest message that the broker takes.
    """
    digest = None
    if failed.value is not None and len(failed.value) > _LARGE_BYTES:
        digest = await anyio.to_thread.run_sync(_sha256, failed.value)
    else:
        await anyio.lowlevel.checkpoint()
    return dead_letter(failed, reason, detail, now, batch_id, limit_bytes=limit_bytes, value_sha256=digest)


def _sha256(value: bytes) -> str:
    # hashlib lets other threads run meanwhile.
    return hashlib.sha256(value).hexdigest()
