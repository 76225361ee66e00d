"""From the bytes of a Kafka message to the facts that it states."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn

from pydantic import TypeAdapter, ValidationError

from bcs.contracts import topics
from bcs.contracts.consumed import (
    CJ_ENDED,
    PHASE_ENDED,
    BatchEssaysRegistered,
    BatchStatus,
    CJAssessmentCompletedV1,
    ELSBatchPhaseOutcomeV1,
    Envelope,
    EssayStatus,
    EventData,
    Identifier,
    SpellcheckPhaseCompletedV1,
)
from bcs.domain.errors import UndecodableMessage
from bcs.domain.facts import EssayPhaseEnded, EssaysRegistered, Fact, Outcome, PhaseOutcome, repeat_key_of
from bcs.domain.state import TIMED

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
LATEST_US = (datetime.max.replace(tzinfo=UTC) - _EPOCH) // timedelta(microseconds=1)
"""The last time that an event may have; Kafka itself takes any number."""


@dataclass(frozen=True, slots=True)
class DecodedEvent:
    """What a message says.

    :param event_type: the model's name, fit for a metric's label.
    :param facts: none when the event changes nothing, such as a phase that has only begun.
    :param at_us: the event's time, in microseconds since 1970 UTC.
    """

    event_type: str
    batch_id: str
    correlation_id: str | None
    facts: tuple[Fact, ...]
    event_id: str | None = None
    at_us: int = 0


class EventDecoder:
    """Decodes the messages of the consumed topics.

    :param phases: the phase names that an outcome may be about.
    :param max_event_bytes: what is larger is refused unparsed, since to parse it would hold up all else in this
        process; None for no limit.
    """

    def __init__(self, phases: Collection[str], *, max_event_bytes: int | None = None) -> None:
        self._phases = frozenset(phases)
        self._max_event_bytes = max_event_bytes
        self._routes: Mapping[str, _Route] = {
            topics.SPELLCHECK_COMPLETED: _Route(SpellcheckPhaseCompletedV1, "batch_id", _spellcheck_completed),
            topics.CJ_COMPLETED: _Route(CJAssessmentCompletedV1, "entity_id", _cj_completed),
            topics.PHASE_OUTCOME: _Route(ELSBatchPhaseOutcomeV1, "batch_id", self._phase_outcome),
            topics.ESSAYS_REGISTERED: _Route(BatchEssaysRegistered, "entity_id", _essays_registered),
        }

    def event_type(self, topic: str) -> str:
        """The name of the events on a topic, also of those that can't be decoded."""
        return self._routes[topic].event_type

    def decode(self, topic: str, value: bytes | None, record_timestamp_ms: int) -> DecodedEvent:
        """Decode one message. The topic decides what it is: older producers put other names into `event_type`.

        :param record_timestamp_ms: the Kafka record's own time, used when the message carries none.
        :raises UndecodableMessage: it is not what the topic promises.
        """
        try:
            return self._decode(self._routes[topic], value, record_timestamp_ms)
        except (UndecodableMessage, MemoryError):
            raise
        except Exception as error:
            # A fault of ours over one message would otherwise end the intake, and at every start again.
            raise UndecodableMessage("decoder_failed", f"{type(error).__name__}: {error}") from error

    def _decode(self, route: _Route, value: bytes | None, record_timestamp_ms: int) -> DecodedEvent:
        if value is None:
            raise UndecodableMessage("null_value", "the message has no value")
        if self._max_event_bytes is not None and len(value) > self._max_event_bytes:
            problem = f"the message has {len(value)} bytes, and BCS_MAX_EVENT_BYTES is {self._max_event_bytes}"
            raise UndecodableMessage("too_large", problem)
        try:
            envelope = route.adapter.validate_json(value)
        except ValidationError as error:
            _refuse(value, error, route.batch_field)
        batch_id = getattr(envelope.data, route.batch_field)
        correlation_id = envelope.correlation_id if isinstance(envelope.correlation_id, str) else None
        said_at = envelope.data.timestamp or envelope.event_timestamp
        if said_at is None:
            at_us = record_timestamp_ms * 1000
        elif isinstance(said_at, datetime):
            at_us = microseconds(said_at)
        else:
            problem = "event_timestamp is not a time, and the data has none"
            raise UndecodableMessage("invalid_event", problem, batch_id, correlation_id)
        if not 0 <= at_us <= LATEST_US:
            problem = "the event's time lies before 1970 or after 9999"
            raise UndecodableMessage("invalid_event", problem, batch_id, correlation_id)
        facts = route.state_facts(envelope.data, at_us, correlation_id)
        event_id = envelope.event_id if isinstance(envelope.event_id, str) else None
        return DecodedEvent(route.event_type, batch_id, correlation_id, facts, event_id, at_us)

    def _phase_outcome(self, data: ELSBatchPhaseOutcomeV1, at_us: int, correlation_id: str | None) -> tuple[Fact, ...]:
        if data.phase_name not in self._phases:
            raise UndecodableMessage("unknown_phase", "phase_name is not a known phase", data.batch_id, correlation_id)
        if data.phase_status not in PHASE_ENDED:
            return ()
        named = bool(data.processed_essays or data.failed_essay_ids)
        completed = tuple(essay.essay_id for essay in data.processed_essays)
        failed = tuple(essay for essay in data.failed_essay_ids if essay)
        said = correlation_id or (data.correlation_id if isinstance(data.correlation_id, str) else "")
        # A null names nobody, and still tells this list from an empty one.
        listed_failed = [essay or "" for essay in data.failed_essay_ids]
        status = data.phase_status
        # Without a correlation id nothing tells a copy from another outcome.
        timed = data.timestamp is not None or not said
        key = TIMED if timed else repeat_key_of(data.phase_name, said, status, completed, listed_failed)
        return (
            PhaseOutcome(
                data.phase_name,
                status.value,
                completed,
                failed,
                status is BatchStatus.COMPLETED_SUCCESSFULLY and not named,
                at_us,
                key,
            ),
        )


class _Route:
    """How the events of one topic are read.

    :param batch_field: the field of the data that names the batch.
    """

    __slots__ = ("adapter", "batch_field", "event_type", "state_facts")

    def __init__(
        self,
        model: type[EventData],
        batch_field: str,
        state_facts: Callable[[Any, int, str | None], tuple[Fact, ...]],
    ) -> None:
        self.event_type = model.__name__
        self.adapter: TypeAdapter[Envelope[Any]] = TypeAdapter(Envelope[model])  # type: ignore[valid-type]
        self.batch_field = batch_field
        self.state_facts = state_facts


def microseconds(moment: datetime) -> int:
    """Microseconds since 1970 UTC; a time without a zone is UTC, as all producers write it."""
    since = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - _EPOCH
    # Integers throughout: a float of microseconds loses the last digit, and with it the order of two facts.
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def _spellcheck_completed(data: SpellcheckPhaseCompletedV1, at_us: int, _: str | None) -> tuple[Fact, ...]:
    if data.status is EssayStatus.COMPLETED:
        outcome = Outcome.COMPLETED
    elif data.status is EssayStatus.FAILED:
        outcome = Outcome.FAILED
    else:
        return ()
    return (EssayPhaseEnded("spellcheck", data.entity_id, outcome, at_us),)


def _cj_completed(data: CJAssessmentCompletedV1, at_us: int, correlation_id: str | None) -> tuple[Fact, ...]:
    """The facts in its lists: the producer says "completed_successfully" as soon as one essay succeeded."""
    phase, summary = "cj_assessment", data.processing_summary
    completed = tuple(essay for essay in summary.successful_essay_ids or () if essay)
    failed = tuple(essay for essay in summary.failed_essay_ids or () if essay)
    if data.status is BatchStatus.CANCELLED:
        # Those that it names are assessed, or not; those that it leaves out are still to be.
        marks = [(essay, Outcome.COMPLETED) for essay in completed] + [(essay, Outcome.FAILED) for essay in failed]
        return tuple(EssayPhaseEnded(phase, essay, outcome, at_us) for essay, outcome in marks)
    if data.status not in CJ_ENDED:
        return ()
    # Another name than ELS's: what CJ says never speaks for all, so neither is a copy of the other.
    timed = data.timestamp is not None or not correlation_id
    key = TIMED if timed else repeat_key_of(phase, f"cj {correlation_id}", data.status, completed, failed)
    return (PhaseOutcome(phase, data.status.value, completed, failed, False, at_us, key),)


def _essays_registered(data: BatchEssaysRegistered, at_us: int, _: str | None) -> tuple[Fact, ...]:
    return (EssaysRegistered(data.essay_ids, data.expected_essay_count, at_us),)


def _refuse(value: bytes, error: ValidationError, batch_field: str) -> NoReturn:
    """Say what exactly is wrong with a message. Slow, and only ever reached by messages that are."""
    try:
        document = json.loads(value.decode())
    except UnicodeDecodeError as problem:
        raise UndecodableMessage("not_utf8", f"byte {problem.start} is not UTF-8") from None
    except (ValueError, RecursionError) as problem:
        raise UndecodableMessage("not_json", str(problem)) from None
    if not isinstance(document, dict):
        raise UndecodableMessage("not_an_object", f"the message is a JSON {type(document).__name__}")
    problems = "; ".join(
        f"{'.'.join(map(str, problem['loc'])) or 'message'}: {problem['msg']}"
        for problem in error.errors(include_url=False, include_input=False, include_context=False)[:10]
    )
    try:
        batch_id = TypeAdapter(Identifier).validate_python(document["data"][batch_field])
    except (KeyError, TypeError, ValidationError):
        batch_id = None
    correlation_id = document.get("correlation_id")
    raise UndecodableMessage(
        "invalid_event", problems, batch_id, correlation_id if isinstance(correlation_id, str) else None
    ) from None
