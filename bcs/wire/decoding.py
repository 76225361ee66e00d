"""Decodes the bytes of a Kafka message into facts."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import KW_ONLY, dataclass
from hashlib import blake2b
from typing import Any, NoReturn

from pydantic import BaseModel, TypeAdapter, ValidationError

from bcs.domain.facts import EssayPhaseEnded, EssaysRegistered, Fact, Outcome, PhaseOutcome, repeat_key_of
from bcs.domain.pipelines import PhaseNames
from bcs.domain.state import TIMED
from bcs.domain.times import LATEST_US, microseconds
from bcs.errors import UndecodableMessage
from bcs.supervision.errors import describe
from bcs.wire import topics
from bcs.wire.events import (
    CJ_ENDED,
    MOST_ID_CHARACTERS,
    NO_TIME,
    PHASE_ENDED,
    BatchEssaysRegistered,
    BatchStatus,
    CJAssessmentCompletedV1,
    ELSBatchPhaseOutcomeV1,
    Envelope,
    EssayStatus,
    EventData,
    NamesBatchId,
    NamesEntityId,
    PartialEvent,
    SpellcheckPhaseCompletedV1,
)

# Python's JSON parser creates an object for each value, which takes ten times as long as validating the document.
_PARSED_BY_PYTHON_BYTES = 64 * 1024
_MOST_DETAIL_CHARACTERS = 1000
_MOST_NAME_CHARACTERS = 100
_DIGEST_BYTES = 8


@dataclass(frozen=True, slots=True)
class DecodedEvent:
    """The content of a message.

    :param event_type: the name of the event's model; short enough for a metric's label.
    :param facts: empty when the event changes nothing, such as a phase that has only begun.
    :param at_us: the event's time, in microseconds since 1970 UTC.
    """

    event_type: str
    batch_id: str
    _: KW_ONLY
    correlation_id: str | None
    facts: tuple[Fact, ...]
    event_id: str | None = None
    at_us: int = 0


EVENT_TYPES: Mapping[str, str] = {
    model.__name__: topic
    for model, topic in (
        (SpellcheckPhaseCompletedV1, topics.SPELLCHECK_COMPLETED),
        (CJAssessmentCompletedV1, topics.CJ_COMPLETED),
        (ELSBatchPhaseOutcomeV1, topics.PHASE_OUTCOME),
        (BatchEssaysRegistered, topics.ESSAYS_REGISTERED),
    )
}
"""The event types that come from Kafka, each with its topic."""


class EventDecoder:
    """Decodes the messages of the consumed topics.

    :param phases: the phases of the pipeline definitions. An outcome may be about these and those of the platform.
    :param keep_unknown_phases: an outcome may be about any phase.
    :param max_event_bytes: a larger message is refused unparsed, because parsing it would block the event loop; None
        for no limit.
    :param max_essays: how many essays a batch may have; None for no limit.
    """

    def __init__(
        self,
        phases: Collection[str],
        *,
        keep_unknown_phases: bool = False,
        max_event_bytes: int | None = None,
        max_essays: int | None = None,
    ) -> None:
        self._phases = PhaseNames(phases, keep_unknown=keep_unknown_phases)
        self._max_event_bytes = max_event_bytes
        self._max_essays = max_essays
        self._routes: Mapping[str, _Route] = {
            topics.SPELLCHECK_COMPLETED: _Route(SpellcheckPhaseCompletedV1, NamesBatchId, _spellcheck_completed),
            topics.CJ_COMPLETED: _Route(CJAssessmentCompletedV1, NamesEntityId, _cj_completed),
            topics.PHASE_OUTCOME: _Route(ELSBatchPhaseOutcomeV1, NamesBatchId, self._phase_outcome),
            topics.ESSAYS_REGISTERED: _Route(BatchEssaysRegistered, NamesEntityId, _essays_registered),
        }

    def use_phases(self, phases: PhaseNames) -> None:
        """From now on, an outcome may be about these phases."""
        self._phases = phases

    def unknown_phase(self, event: DecodedEvent) -> str | None:
        """The phase of an outcome that is kept though neither the definitions nor the platform have it; else None."""
        outcome = event.facts[0] if event.facts else None
        if not isinstance(outcome, PhaseOutcome) or self._phases.knows(outcome.phase):
            return None
        return outcome.phase

    def event_type(self, topic: str) -> str:
        """The event type of a topic, which is also that of messages that can't be decoded."""
        return self._routes[topic].event_type

    def decode(self, topic: str, value: bytes | None, record_timestamp_ms: int) -> DecodedEvent:
        """Decode one message. The topic decides its type, because older producers put other names into `event_type`.

        :param record_timestamp_ms: the Kafka record's timestamp, used when the message carries no time.
        :raises UndecodableMessage: the message is not a valid event of the topic.
        """
        try:
            return self._decode(self._routes[topic], value, record_timestamp_ms)
        except (UndecodableMessage, MemoryError):
            raise
        except Exception as error:
            # Otherwise one message that triggers a bug of ours would crash the intake, again after every restart.
            raise UndecodableMessage("decoder_failed", describe(error)[:_MOST_DETAIL_CHARACTERS]) from error

    def _decode(self, route: _Route, value: bytes | None, record_timestamp_ms: int) -> DecodedEvent:
        if value is None:
            raise UndecodableMessage("null_value", "the message has no value")
        if self._max_event_bytes is not None and len(value) > self._max_event_bytes:
            problem = f"the message has {len(value)} bytes, and BCS_MAX_EVENT_BYTES is {self._max_event_bytes}"
            raise UndecodableMessage("too_large", problem)
        try:
            envelope = route.validate(value)
        except ValidationError as error:
            _refuse(value, error, route)
        batch_id, correlation_id = getattr(envelope.data, route.batch_field), shortened(envelope.correlation_id)
        essays = envelope.data.essays
        if self._max_essays is not None and essays > self._max_essays:
            problem = f"the event is about {essays} essays, and BCS_MAX_ESSAYS_PER_BATCH is {self._max_essays}"
            raise UndecodableMessage("too_many_essays", problem, batch_id, correlation_id)
        event_time = envelope.data.timestamp or envelope.event_timestamp
        if event_time == NO_TIME:
            problem = "event_timestamp is not a time, and the data has none"
            raise UndecodableMessage("invalid_event", problem, batch_id, correlation_id)
        at_us = record_timestamp_ms * 1000 if event_time is None else microseconds(event_time)
        if not 0 <= at_us <= LATEST_US:
            problem = "the event's time lies before 1970 or after 9999"
            raise UndecodableMessage("invalid_event", problem, batch_id, correlation_id)
        # The facts' repeat keys are computed from the whole correlation id, as it was sent.
        facts = route.state_facts(envelope.data, at_us, envelope.correlation_id)
        return DecodedEvent(
            route.event_type,
            batch_id,
            correlation_id=correlation_id,
            facts=facts,
            event_id=shortened(envelope.event_id),
            at_us=at_us,
        )

    def _phase_outcome(self, data: ELSBatchPhaseOutcomeV1, at_us: int, correlation_id: str | None) -> tuple[Fact, ...]:
        if data.phase_name not in self._phases:
            shown, known = data.phase_name[:_MOST_NAME_CHARACTERS], ", ".join(self._phases.known)
            problem = f"phase_name {shown!a} is not a known phase; known are: {known}"
            raise UndecodableMessage("unknown_phase", problem, data.batch_id, shortened(correlation_id))
        if data.phase_status not in PHASE_ENDED:
            return ()
        named = bool(data.processed_essays or data.failed_essay_ids)
        completed = tuple(essay["essay_id"] for essay in data.processed_essays)
        failed = tuple(essay for essay in data.failed_essay_ids if essay)
        outcome_id = correlation_id or data.correlation_id or ""
        # A null names no essay, but a list with a null must not look like an empty list.
        listed_failed = [essay or "" for essay in data.failed_essay_ids]
        status = data.phase_status
        # Without a correlation id a copy can't be distinguished from another outcome.
        timed = data.timestamp is not None or not outcome_id
        key = TIMED if timed else repeat_key_of(data.phase_name, outcome_id, status, completed, listed_failed)
        return (
            PhaseOutcome(
                data.phase_name,
                status.value,
                completed=completed,
                failed=failed,
                speaks_for_all=status is BatchStatus.COMPLETED_SUCCESSFULLY and not named,
                at_us=at_us,
                repeat_key=key,
            ),
        )


class _Route:
    """How the events of one topic are decoded.

    :param names_batch: a model with one field: the field of the event's data that holds the batch id.
    """

    __slots__ = ("batch_field", "event_type", "partial_event", "state_facts", "validate")

    def __init__(
        self,
        model: type[EventData],
        names_batch: type[BaseModel],
        state_facts: Callable[[Any, int, str | None], tuple[Fact, ...]],
    ) -> None:
        self.event_type = model.__name__
        adapter: TypeAdapter[Envelope[Any]] = TypeAdapter(Envelope[model])  # type: ignore[valid-type]
        # The adapter's own method costs half as much as the validation of a small event.
        self.validate: Callable[[bytes], Envelope[Any]] = adapter.validator.validate_json
        self.partial_event: TypeAdapter[PartialEvent[Any]] = TypeAdapter(PartialEvent[names_batch])  # type: ignore[valid-type]
        [self.batch_field] = names_batch.model_fields
        self.state_facts = state_facts


def shortened(identifier: str | None) -> str | None:
    """An id for the history, shortened where it is too long.

    A digest at its end keeps two shortened ids different. Only ids that no decision depends on may be shortened.
    """
    if identifier is None or len(identifier) <= MOST_ID_CHARACTERS:
        return identifier
    digest = blake2b(identifier.encode(), digest_size=_DIGEST_BYTES).hexdigest()
    return f"{identifier[: MOST_ID_CHARACTERS - len(digest) - 1]}~{digest}"


def _spellcheck_completed(data: SpellcheckPhaseCompletedV1, at_us: int, _: str | None) -> tuple[Fact, ...]:
    if data.status is EssayStatus.COMPLETED:
        outcome = Outcome.COMPLETED
    elif data.status is EssayStatus.FAILED:
        outcome = Outcome.FAILED
    else:
        return ()
    return (EssayPhaseEnded("spellcheck", data.entity_id, outcome, at_us),)


def _cj_completed(data: CJAssessmentCompletedV1, at_us: int, correlation_id: str | None) -> tuple[Fact, ...]:
    """The facts of the lists; the status alone says little: one essay's success makes it "completed_successfully"."""
    phase, summary = "cj_assessment", data.processing_summary
    completed = tuple(essay for essay in summary.successful_essay_ids or () if essay)
    failed = tuple(essay for essay in summary.failed_essay_ids or () if essay)
    if data.status is BatchStatus.CANCELLED:
        # The listed essays have ended; the essays that are not listed still have to be assessed.
        marks = [(essay, Outcome.COMPLETED) for essay in completed] + [(essay, Outcome.FAILED) for essay in failed]
        return tuple(EssayPhaseEnded(phase, essay, outcome, at_us) for essay, outcome in marks)
    if data.status not in CJ_ENDED:
        return ()
    # With a prefix, so that CJ's outcome never counts as a copy of ELS's: only ELS's can speak for all essays.
    timed = data.timestamp is not None or not correlation_id
    key = TIMED if timed else repeat_key_of(phase, f"cj {correlation_id}", data.status, completed, failed)
    return (
        PhaseOutcome(
            phase,
            data.status.value,
            completed=completed,
            failed=failed,
            speaks_for_all=False,
            at_us=at_us,
            repeat_key=key,
        ),
    )


def _essays_registered(data: BatchEssaysRegistered, at_us: int, _: str | None) -> tuple[Fact, ...]:
    return (EssaysRegistered(data.essay_ids, data.expected_essay_count, at_us),)


def _refuse(value: bytes, error: ValidationError, route: _Route) -> NoReturn:
    """Raise `UndecodableMessage` with the reason; this takes about as long as the failed validation.

    :raises UndecodableMessage: always.
    """
    try:
        value.decode()
    except UnicodeDecodeError as problem:
        raise UndecodableMessage("not_utf8", f"byte {problem.start} is not UTF-8") from None
    # At most one error for each field of the event: validation of a list ends at its first error.
    problems = error.errors(include_url=False, include_input=False, include_context=False)
    kind, location = problems[0]["type"], problems[0]["loc"]
    partial: PartialEvent[Any] | None
    if kind == "json_invalid":
        partial = _partial_event_by_python(value, route)
        if partial is None:
            raise UndecodableMessage("not_json", problems[0]["msg"]) from None
    elif location:
        partial = route.partial_event.validate_json(value)
    else:
        raise UndecodableMessage("not_an_object", "the message is JSON, but not an object") from None
    detail = "; ".join(f"{'.'.join(map(str, one['loc'])) or 'message'}: {one['msg']}" for one in problems)
    batch_id = getattr(partial.data, route.batch_field, None)
    raise UndecodableMessage("invalid_event", detail, batch_id, shortened(partial.correlation_id)) from None


def _partial_event_by_python(value: bytes, route: _Route) -> PartialEvent[Any] | None:
    """The ids in a message that only Python's parser accepts (lone surrogate, deep nesting); None if it is not JSON."""
    if len(value) > _PARSED_BY_PYTHON_BYTES:
        return None
    try:
        document = json.loads(value.decode())
    except (ValueError, RecursionError):
        return None
    return route.partial_event.validate_python(document) if isinstance(document, dict) else None
