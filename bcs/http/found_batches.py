"""Found batches as documents, for the service and the commands, and the cursor of their pages."""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Sequence
from datetime import datetime

from pydantic_core import from_json, to_json

from bcs.domain.finding import Condition, Criteria, is_blocked_by_failures
from bcs.domain.law import CompletionLaw
from bcs.domain.pipelines import PLATFORM_PHASES, PipelineDefinitions
from bcs.domain.progress import PhaseProgress
from bcs.domain.slices import Sliced
from bcs.domain.times import LATEST_US, format_timestamp, microseconds
from bcs.http import answers
from bcs.http.parameters import WantedBatches
from bcs.http.requests import InvalidField, InvalidParameters
from bcs.storage.batch_index import Place
from bcs.usecases.find_batches import Cursor, FoundBatch, FoundBatches

_NOTHING = PhaseProgress(False, 0, 0)


def criteria_of(wanted: WantedBatches, definitions: PipelineDefinitions, now_us: int) -> Criteria:
    """What the caller wants to find.

    :param now_us: wall-clock time in microseconds since 1970 UTC.
    :raises InvalidParameters: two parameters that exclude each other.
    :raises UnknownPipeline: nothing is defined under the name.
    """
    if wanted.phase is not None and wanted.pipeline is not None:
        raise InvalidParameters((InvalidField("phase", "it can't be given together with `pipeline`"),))
    phases: tuple[str, ...] | None = None
    if wanted.phase is not None:
        if wanted.phase not in {*definitions.phases, *PLATFORM_PHASES}:
            known = ", ".join(sorted({*definitions.phases, *PLATFORM_PHASES}))
            raise InvalidParameters((InvalidField("phase", f"must be one of {known}"),))
        phases = (wanted.phase,)
    elif wanted.pipeline is not None:
        phases = tuple(phase.name for phase in definitions.plan(wanted.pipeline))
    until_us, stale_us = _microseconds(wanted.until), wanted.stale_seconds * 1_000_000
    if wanted.state is Condition.STALE:
        # So the batches that have just changed need not be looked at.
        until_us = min(now_us - stale_us, now_us if until_us is None else until_us)
    return Criteria(
        condition=wanted.state,
        phases=phases,
        since_us=_microseconds(wanted.since),
        until_us=until_us,
        stale_us=stale_us,
    )


def _microseconds(time: datetime | None) -> int | None:
    return None if time is None else microseconds(time)


def encode_cursor(cursor: Cursor) -> str:
    """A cursor as text."""
    fields = [cursor.direction == "on", cursor.place.at_us, cursor.place.batch_id, cursor.began_us]
    return urlsafe_b64encode(to_json(fields)).decode().rstrip("=")


def cursor_in(wanted: WantedBatches) -> Cursor | None:
    """The cursor that `encode_cursor` encoded; None without one.

    :raises InvalidParameters: BCS did not make this text.
    """
    if wanted.cursor is None:
        return None
    cursor = _decoded(wanted.cursor)
    if cursor is None:
        raise InvalidParameters((InvalidField("cursor", "it is not from an answer of BCS"),))
    return cursor


def _decoded(text: str) -> Cursor | None:
    try:
        on, at_us, batch_id, began_us = from_json(urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    except (ValueError, TypeError):
        return None
    times = at_us, began_us
    if type(on) is not bool or type(batch_id) is not str or any(type(time) is not int for time in times):
        return None
    if not all(abs(time) <= LATEST_US for time in times):
        return None
    return Cursor("on" if on else "back", Place(at_us, batch_id), began_us)


def found_document(found: FoundBatch, law: CompletionLaw) -> answers.FoundBatch:
    """A batch that was found."""
    summary = found.summary
    return {
        "batch_id": found.batch_id,
        "changed_at": format_timestamp(found.changed_at_us),
        "registered": summary.registered,
        "essays_known": summary.known,
        "essays_expected": summary.expected,
        "states": found.conditions,
        "phases": [_phase(found, phase, law) for phase in found.phases],
    }


def encoding_found(page: FoundBatches, law: CompletionLaw, source: str, following: str | None) -> Sliced[bytes]:
    """A page as JSON, encoded in slices.

    :param following: the path and query of the next page.
    """
    encoded: list[bytes] = []
    for found in page.batches:
        encoded.append(to_json(found_document(found, law)))
        yield
    rest = batches_document((), page, source, following)
    yield
    return b'{"batches":[%b],%b' % (b",".join(encoded), to_json(rest)[len(b'{"batches":[],') :])


def batches_document(
    batches: Sequence[answers.FoundBatch], page: FoundBatches, source: str, following: str | None
) -> answers.Batches:
    """A page.

    :param following: names the next page.
    """
    return {
        "batches": batches,
        "unreadable": page.unreadable,
        "scanned": page.scanned,
        "source": source,
        "next": following,
    }


def _phase(found: FoundBatch, phase: str, law: CompletionLaw) -> answers.FoundPhase:
    progress = found.summary.progress.get(phase, _NOTHING)
    return {
        "phase": phase,
        "complete": progress.complete,
        "completed": progress.completed,
        "failed": progress.failed,
        "failed_before": progress.failed_before,
        "left_out": progress.left_out,
        "blocked_by_failures": is_blocked_by_failures(found.summary, law, phase),
    }
