"""The output of `bcs events tail` for a message that BCS published. Pure."""

from __future__ import annotations

import json
from typing import Any

from aiokafka import ConsumerRecord
from rich.text import Text

from bcs.cli.output import plain
from bcs.domain.times import format_timestamp
from bcs.errors import UnreadableDeadLetter
from bcs.supervision.errors import describe
from bcs.wire import topics
from bcs.wire.dead_letters.decode import DeadLetterPosition, purged_offset, read_dead_letter, replayed_offset


def as_document(record: ConsumerRecord) -> dict[str, Any]:
    """The complete message as a document for JSON."""
    return {
        "time": format_timestamp(record.timestamp * 1000),
        "topic": record.topic,
        "partition": record.partition,
        "offset": record.offset,
        **_content(record),
    }


def as_text(record: ConsumerRecord) -> Text:
    """A message in one line."""
    content = _content(record)
    match content["kind"]:
        case "phase_skipped":
            data = content["event"]["data"]
            label, style = "phase skipped", "green"
            summary = f"{data['phase_name']} of batch {data['batch_id']}, {str(data['skip_reason']).replace('_', ' ')}"
            summary += f"; correlation id {content['event'].get('correlation_id')}"
        case "dead_letter":
            label, style = "dead letter", "red"
            summary = f"{content['reason']}, batch {content['batch'] or 'unknown'}: {content['error']}"
            summary += f"; bcs dlq show {content['position']}"
        case "replay_marker":
            label, style, summary = "replayed", "cyan", content["position"]
        case "purge_marker":
            label, style, summary = "purged", "cyan", f"everything up to {content['position']}"
        case _:
            label, style = "unknown", "yellow"
            summary = f"{record.topic}/{record.partition}/{record.offset}: {content['problem']}"
    time = format_timestamp(record.timestamp * 1000)
    return Text.assemble((time, "dim"), "  ", (label, style), ": ", plain(summary))


def _content(record: ConsumerRecord) -> dict[str, Any]:
    if record.topic == topics.PHASE_SKIPPED:
        return _skipped(record.value)
    marked = replayed_offset(record.key, record.value)
    if marked is not None:
        position = DeadLetterPosition(record.topic, record.partition, marked)
        return {"kind": "replay_marker", "position": str(position)}
    place = DeadLetterPosition(record.topic, record.partition, record.offset)
    purged = purged_offset(record.key, record.value)
    if purged is not None:
        last = DeadLetterPosition(record.topic, record.partition, purged)
        return {"kind": "purge_marker", "position": str(last)}
    try:
        dead_letter = read_dead_letter(place, record.key, record.value, record.headers)
    except UnreadableDeadLetter as error:
        return {"kind": "unknown", "problem": error.problem}
    return {
        "kind": "dead_letter",
        "position": str(place),
        "reason": dead_letter.reason,
        "error": dead_letter.error_message,
        "batch": dead_letter.batch_id,
        "source_topic": dead_letter.source_topic,
        "source_partition": dead_letter.source_partition,
        "source_offset": dead_letter.source_offset,
        "failures": dead_letter.failures,
    }


def _skipped(value: bytes | None) -> dict[str, Any]:
    try:
        event = json.loads(value or b"")
        data = event["data"]
        _ = data["phase_name"], data["batch_id"], data["skip_reason"]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        return {"kind": "unknown", "problem": f"not a PhaseSkippedV1: {describe(error)}"}
    return {"kind": "phase_skipped", "event": event}
