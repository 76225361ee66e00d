"""Requests as bytes, for tests that write them to a connection themselves."""

from __future__ import annotations

import asyncio
import json

from tests.support.service import DEFINE

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def define(batch: str = "b") -> bytes:
    """A question about a batch."""
    body = json.dumps({"batch_id": batch, "requested_pipeline": "ai_feedback", "correlation_id": "c"}).encode()
    head = (
        f"POST {DEFINE} HTTP/1.1\r\nHost: bcs\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def get(path: str) -> bytes:
    """A GET."""
    return f"GET {path} HTTP/1.1\r\nHost: bcs\r\n\r\n".encode()
