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
from bcs.domain.facts import BatchPhaseEnded, EssayPhaseEnded, EssaysRegistered, Fact, Outcome

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
LATEST_US = (datetime.max.replace(tzinfo=UTC) - _EPOCH) // timedelta(microseconds=1)
"""The last time that an event may have; Kafka itself takes any number."""

_ENDINGS = frozenset(BatchStatus)


@dataclass(frozen=True, slots=True)
class DecodedEvent:
    """What a message says.

    :param event_type: the model's name, fit for a metric's label.
    :param facts: none when the event changes nothing, such as a phase that has only begun.
    """

    event_type: str
    batch_id: str
    correlation_id: str | None
    facts: tuple[Fact, ...]
    event_id: str | None = None


class EventDecoder:
    """Decodes the messages of the consumed topics.

    :param phases: the phase names that an outcome may be about.
    """

    def __init__(self, phases: Collection[str]) -> None:
        self._phases = frozenset(phases)
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
        route = self._routes[topic]
        if value is None:
            raise UndecodableMessage("null_value", "the message has no value")
        try:
            envelope = route.adapter.validate_json(value)
        except ValidationError as error:
            _refuse(value, error, route.batch_field)
        said_at = envelope.data.timestamp or envelope.event_timestamp
        at_us = record_timestamp_ms * 1000 if said_at is None else microseconds(said_at)
        batch_id = getattr(envelope.data, route.batch_field)
        if not 0 <= at_us <= LATEST_US:
            problem = "the event's time lies before 1970 or after 9999"
            raise UndecodableMessage("invalid_event", problem, batch_id, envelope.correlation_id)
        facts = route.state_facts(envelope.data, at_us)
        event_id = envelope.event_id if isinstance(envelope.event_id, str) else None
        return DecodedEvent(route.event_type, batch_id, envelope.correlation_id, facts, event_id)

    def _phase_outcome(self, data: ELSBatchPhaseOutcomeV1, at_us: int) -> tuple[Fact, ...]:
        if data.phase_name not in self._phases:
            raise UndecodableMessage("unknown_phase", "phase_name is not a known phase", data.batch_id)
        succeeded = tuple(essay.essay_id for essay in data.processed_essays)
        unaccounted = data.phase_status != BatchStatus.COMPLETED_SUCCESSFULLY
        return _batch_outcome(
            data.phase_name, data.phase_status, succeeded, data.failed_essay_ids, at_us, unaccounted=unaccounted
        )


class _Route:
    """How the events of one topic are read.

    :param batch_field: the field of the data that names the batch.
    """

    __slots__ = ("adapter", "batch_field", "event_type", "state_facts")

    def __init__(
        self, model: type[EventData], batch_field: str, state_facts: Callable[[Any, int], tuple[Fact, ...]]
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


def _spellcheck_completed(data: SpellcheckPhaseCompletedV1, at_us: int) -> tuple[Fact, ...]:
    if data.status is EssayStatus.COMPLETED:
        outcome = Outcome.COMPLETED
    elif data.status is EssayStatus.FAILED:
        outcome = Outcome.FAILED
    else:
        return ()
    return (EssayPhaseEnded("spellcheck", data.entity_id, outcome, at_us),)


def _cj_completed(data: CJAssessmentCompletedV1, at_us: int) -> tuple[Fact, ...]:
    counted = data.processing_summary
    succeeded, failed = counted.successful_essay_ids, counted.failed_essay_ids
    # The producer says completed_successfully as soon as one essay succeeded: the whole batch is complete only when
    # no essay failed and none is unaccounted for.
    total = max(counted.total_essays or 0, counted.successful or 0)
    # An id that stands twice is one essay; a null is an essay that is not named.
    accounted = len(set(succeeded) - {None}) + succeeded.count(None)
    unaccounted = bool(counted.failed) or not succeeded or accounted < total
    return _batch_outcome("cj_assessment", data.status, succeeded, failed, at_us, unaccounted=unaccounted)


def _batch_outcome(
    phase: str,
    status: str,
    succeeded: tuple[str | None, ...],
    failed: tuple[str | None, ...],
    at_us: int,
    *,
    unaccounted: bool,
) -> tuple[Fact, ...]:
    """The facts in a batch-wide outcome.

    A null among the failed essays names nobody, but still shows that the batch as a whole did not succeed.
    """
    if status not in _ENDINGS:
        return ()
    facts: list[Fact] = [EssayPhaseEnded(phase, essay, Outcome.COMPLETED, at_us) for essay in succeeded if essay]
    facts += [EssayPhaseEnded(phase, essay, Outcome.FAILED, at_us) for essay in failed if essay]
    if status == BatchStatus.FAILED_CRITICALLY:
        if not facts:
            # It failed for everyone and names no one: without a mark, an older success would still count.
            facts.append(BatchPhaseEnded(phase, Outcome.FAILED, at_us))
    elif not failed and not unaccounted:
        facts.append(BatchPhaseEnded(phase, Outcome.COMPLETED, at_us))
    return tuple(facts)


def _essays_registered(data: BatchEssaysRegistered, at_us: int) -> tuple[Fact, ...]:
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
