"""What an answer costs besides its round trips, counted: entries of the history, resolutions, and writes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, cast

import pytest

from bcs.http.connection import Connection
from bcs.usecases import kept_resolutions, resolve_pipeline
from tests.support.service import Orchestrator

pytestmark = pytest.mark.anyio


async def test_without_an_archive_no_answer_makes_an_entry_of_the_history(
    orchestrator: Orchestrator, batch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[object] = []
    monkeypatch.setattr(resolve_pipeline, "PipelineResolved", lambda *entry, **_: made.append(entry))
    assert await orchestrator.to_run(batch) == ["spellcheck", "ai_feedback"]
    assert (await orchestrator.complete(batch, "spellcheck")).status == 200
    assert await orchestrator.to_run(batch) == ["ai_feedback"]
    assert made == []


async def test_batches_in_the_same_state_are_resolved_once(
    orchestrator: Orchestrator, batch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = [(await orchestrator.define(f"{batch}-{number}")).json for number in range(2)]
    monkeypatch.setattr(kept_resolutions, "resolve", None)
    answers.append((await orchestrator.define(f"{batch}-2")).json)
    assert [answer.pop("batch_id") for answer in answers] == [f"{batch}-{number}" for number in range(3)]
    assert answers[0] == answers[1] == answers[2]


async def test_an_answer_is_one_write(orchestrator: Orchestrator, batch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[bytes] = []

    class Watched:
        """A transport that notes what is written."""

        def __init__(self, transport: asyncio.Transport) -> None:
            self._transport = transport

        def __getattr__(self, name: str) -> Any:
            return getattr(self._transport, name)

        def write(self, data: bytes) -> None:
            written.append(data)
            self._transport.write(data)

        def writelines(self, data: Iterable[bytes]) -> None:
            self.write(b"".join(data))

    connected = Connection.connection_made
    monkeypatch.setattr(
        Connection, "connection_made", lambda self, transport: connected(self, cast("Any", Watched(transport)))
    )
    answers = [await orchestrator.define(batch), await orchestrator.define("")]
    assert [answer.status for answer in answers] == [200, 400]
    assert len(written) == 2
    for answer, data in zip(answers, written, strict=True):
        assert data.startswith(b"HTTP/1.1 ")
        assert data.endswith(b"\r\n\r\n" + answer.body)
