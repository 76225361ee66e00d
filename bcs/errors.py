"""The errors of BCS.

One tree; each leaf carries its facts as typed fields and says whether trying again can help::

    BcsError
    ├── ConfigurationError           the service must not start like this
    │   ├── DependencyCycle
    │   ├── UnknownDependency
    │   ├── DuplicateName
    │   ├── DependenciesDiffer       two pipelines of one file say different things about a phase
    │   ├── UnreadableConfiguration
    │   ├── RedisUnusable            it answers, and is none that BCS supports
    │   └── DatabaseUnusable         it answers, and can't keep the record
    ├── RequestRefused               the caller asked for something that will not be done
    │   ├── UnknownPipeline
    │   ├── PromptRequired
    │   └── ReportOutdated           what is known lies so far ahead that a report would not count
    ├── UndecodableMessage           a Kafka message that can never be applied
    ├── ClocksDiffer                 retryable: this machine's clock or the store's is wrong
    ├── KafkaUnavailable             retryable: no broker answers an operator's command
    ├── PartitionStalled             retryable: a part of a topic can't be read
    ├── UnknownTopic                 an operator named a topic that Kafka does not have
    ├── DeadLetterError
    │   ├── UnreadableLetter         what lies on a dead-letter topic is no letter of ours
    │   ├── OriginalGone             the letter has only its beginning, and the source no longer has the rest
    │   └── ReplayFailed             retryable: nobody took it
    └── StoreError
        ├── StoreUnavailable         retryable: out of reach, too slow, refuses for now, or the circuit is open
        ├── CommitConflict           retryable: another writer was faster
        ├── OutboxFull               retryable: the announcements wait for Kafka
        ├── BacklogFull              retryable: the facts wait for the record
        ├── StoreRefused             what was to be written can't be stored, now or later
        ├── TooManyEssays            a batch would have more essays than it may have
        ├── SchemaOutdated           the record's tables are missing, or of an older release
        ├── SchemaLocked             retryable: another session is in the way of the schema's upgrade
        └── StoreCorrupted           what is stored under a batch's keys is not what BCS writes
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

DeadLetterReason = Literal[
    "decoder_failed",
    "header_not_utf8",
    "invalid_event",
    "not_an_object",
    "not_json",
    "not_utf8",
    "null_value",
    "processing_failed",
    "skipped_by_operator",
    "time_in_the_future",
    "too_large",
    "too_many_essays",
    "unknown_phase",
]
"""Why a consumed message became a dead letter: all that there is, as metrics count each of them from zero."""


class BcsError(Exception):
    """Root of the tree."""

    retryable: ClassVar[bool] = False


class ConfigurationError(BcsError):
    """The configuration contradicts itself; the service does not start."""


class DependencyCycle(ConfigurationError):
    """Phases that wait for each other.

    :param phases: the cycle, first phase repeated at the end.
    """

    def __init__(self, phases: tuple[str, ...]) -> None:
        super().__init__(f"the phases depend on each other in a cycle: {' -> '.join(phases)}")
        self.phases = phases


class UnknownDependency(ConfigurationError):
    """A phase or pipeline names a phase that is not defined."""

    def __init__(self, owner: str, missing: str) -> None:
        super().__init__(f"{owner!r} names the phase {missing!r}, which is not defined")
        self.owner = owner
        self.missing = missing


class DuplicateName(ConfigurationError):
    """One name stands for two things."""

    def __init__(self, name: str, where: str) -> None:
        super().__init__(f"{name!r} is defined twice in {where}")
        self.name = name
        self.where = where


class DependenciesDiffer(ConfigurationError):
    """In two pipelines of a file a phase depends on different phases; BCS has one rule for each phase.

    :param phase: the phase.
    :param first: the pipeline that says so first, and what the phase depends on there.
    :param second: the pipeline that says otherwise, and what the phase depends on there.
    """

    def __init__(self, phase: str, first: tuple[str, tuple[str, ...]], second: tuple[str, tuple[str, ...]]) -> None:
        requirements = " and ".join(
            f"on {', '.join(names) or 'nothing'} in pipeline {pipeline!r}" for pipeline, names in (first, second)
        )
        super().__init__(f"the phase {phase!r} depends {requirements}; both have to say the same")
        self.phase = phase
        self.first = first
        self.second = second


class UnreadableConfiguration(ConfigurationError):
    """A configuration file is missing or is not of the expected form.

    :param problems: each mistake that was found, with its place in the file.
    """

    def __init__(self, path: str, *problems: str) -> None:
        self.path = path
        self.problem = "; ".join(problems)
        self.problems = problems
        super().__init__(f"{path}: {self.problem}")


class DatabaseUnusable(ConfigurationError):
    """The database that the settings name answers, and can't keep the permanent record as it is.

    :param problem: what is wrong with it.
    :param fix: what to do about it.
    """

    def __init__(self, problem: str, fix: str) -> None:
        super().__init__(f"BCS_DATABASE_URL names {problem}: {fix}")
        self.problem = problem
        self.fix = fix


class RedisUnusable(ConfigurationError):
    """The server that the settings name answers, and is none that BCS supports.

    :param problem: what is wrong with it.
    """

    def __init__(self, problem: str) -> None:
        super().__init__(f"BCS_REDIS_URL leads to a server that BCS does not support: {problem}")
        self.problem = problem


class RequestRefused(BcsError):
    """The caller asked for something that will not be done, now or later."""


class UnknownPipeline(RequestRefused):
    """The requested pipeline is neither a phase nor a configured pipeline.

    The message leaves out what was asked for: it is the caller's text.
    """

    def __init__(self, requested: str, known: tuple[str, ...]) -> None:
        super().__init__(f"the requested pipeline is not known; known are: {', '.join(known)}")
        self.requested = requested
        self.known = known


class PromptRequired(RequestRefused):
    """The pipeline has phases that need the essay prompt, and the batch has none attached."""

    def __init__(self, phases: tuple[str, ...]) -> None:
        super().__init__(f"no prompt is attached to the batch, and these phases need one: {', '.join(phases)}")
        self.phases = phases


class ReportOutdated(RequestRefused):
    """Something is known of the phase, or of an essay, whose time lies further ahead than clocks may differ.

    :param phase: the phase of the report.
    :param fact: the kind of the fact in the way.
    :param essay_id: the essay that the fact is about; None where it is about all.
    :param at_us: the time of that fact, in microseconds since 1970 UTC.
    """

    def __init__(self, phase: str, fact: str, essay_id: str | None, at_us: int) -> None:
        super().__init__(f"a fact that is known ({fact}) lies in the future, so a report on {phase} would not count")
        self.phase = phase
        self.fact = fact
        self.essay_id = essay_id
        self.at_us = at_us


class ClocksDiffer(BcsError):
    """Nobody can say whether an event is ahead of time while the two clocks that are asked disagree.

    :param seconds: by how much.
    """

    retryable = True

    def __init__(self, seconds: float) -> None:
        super().__init__(f"the clocks of this machine and of the store differ by {seconds:.0f} s")
        self.seconds = seconds


class UndecodableMessage(BcsError):
    """A message that can never be applied, however often it is tried.

    :param reason: a short code, also a metric's label.
    :param detail: what exactly is wrong, for the person who reads the dead letter.
    :param batch_id: the batch, where the message named one.
    :param correlation_id: of the envelope, where it could be read.
    """

    def __init__(
        self,
        reason: DeadLetterReason,
        detail: str,
        batch_id: str | None = None,
        correlation_id: str | None = None,
    ) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
        self.batch_id = batch_id
        self.correlation_id = correlation_id


class KafkaUnavailable(BcsError):
    """Kafka did not do what a command needs. The service itself waits for it; this ends a command.

    :param cause: why, in a few words.
    :param answered: a broker answered, and refuses.
    """

    retryable = True

    def __init__(self, cause: str, *, answered: bool = False) -> None:
        super().__init__(f"kafka {'refuses' if answered else 'is out of reach'}: {cause}")
        self.cause = cause
        self.answered = answered


class PartitionStalled(BcsError):
    """A partition can't be read on: its bytes are damaged, or the broker refuses it.

    :param offset: the first offset that can't be read; None where that is the whole partition.
    :param cause: why, in a few words.
    """

    retryable = True

    def __init__(self, topic: str, partition: int, offset: int | None, cause: str) -> None:
        at = "" if offset is None else f" from offset {offset} on"
        super().__init__(f"{topic}/{partition} can't be read{at}: {cause}")
        self.topic = topic
        self.partition = partition
        self.offset = offset
        self.cause = cause


class UnknownTopic(BcsError):
    """Kafka does not have these topics."""

    def __init__(self, topics: tuple[str, ...]) -> None:
        super().__init__(f"there is no topic {', '.join(topics)}")
        self.topics = topics


class DeadLetterError(BcsError):
    """A dead letter can't be dealt with.

    :param position: where it lies.
    :param problem: why not.
    """

    def __init__(self, position: str, problem: str) -> None:
        super().__init__(f"{position}: {problem}")
        self.position = position
        self.problem = problem


class UnreadableDeadLetter(DeadLetterError):
    """What lies there is no letter of ours."""


class OriginalGone(DeadLetterError):
    """The letter does not have all of its original, and at its source the original is gone, or can't be read."""


class ReplayFailed(DeadLetterError):
    """Whoever was to take the original did not; the letter stays as it is."""

    retryable = True


class StoreError(BcsError):
    """The state store did not do what was asked."""


class StoreUnavailable(StoreError):
    """The state store is out of reach; whether a write happened is unknown.

    :param store: which store.
    :param cause: why, in a few words.
    :param answered: the store does answer: it refused this, and may do other things.
    :param late: there was no answer in time: the store may be well, and this too much for it.
    :param address: where the store was tried, and the setting that says so; empty where nothing was tried.
    """

    retryable = True

    def __init__(
        self, store: str, cause: str, *, answered: bool = False, late: bool = False, address: str = ""
    ) -> None:
        super().__init__(store, cause)
        self.store = store
        self.cause = cause
        self.answered = answered
        self.late = late
        self.address = address

    def __str__(self) -> str:
        """What was tried, where, and why it failed."""
        at = f" at {self.address}" if self.address else ""
        return f"{self.store} {'refuses' if self.answered else 'is out of reach'}{at}: {self.cause}"


class CommitConflict(StoreError):
    """Another writer changed the batch between our read and our write; nothing was written."""

    retryable = True

    def __init__(self, batch_id: str) -> None:
        super().__init__("the batch was changed by another writer")
        self.batch_id = batch_id


class OutboxFull(StoreError):
    """So many messages wait for Kafka that no more are accepted.

    :param limit: the number of messages that the outbox may hold.
    """

    retryable = True

    def __init__(self, limit: int) -> None:
        super().__init__(f"{limit} messages wait for Kafka; no more are accepted until some are delivered")
        self.limit = limit


class BacklogFull(StoreError):
    """So many facts wait for the archive that no more are accepted.

    :param limit: the number of entries that may wait.
    """

    retryable = True

    def __init__(self, limit: int) -> None:
        super().__init__(f"{limit} entries wait for the archive; no more are accepted until some are written")
        self.limit = limit


class StoreRefused(StoreError):
    """What was to be written can't be stored, however often it is tried.

    :param store: which store.
    :param problem: its reason.
    """

    def __init__(self, store: str, problem: str) -> None:
        super().__init__(f"{store} will not take it: {problem}")
        self.store = store
        self.problem = problem


class TooManyEssays(StoreError):
    """With these facts a batch would have more essays than a batch may have; nothing was written.

    :param limit: how many it may have.
    :param known: how many it has.
    :param strangers: the essays among these that it does not have yet.
    """

    def __init__(self, limit: int, known: int, strangers: frozenset[str]) -> None:
        super().__init__(
            f"the batch would have {known + len(strangers)} essays, and BCS_MAX_ESSAYS_PER_BATCH is {limit}"
        )
        self.limit = limit
        self.known = known
        self.strangers = strangers


class SchemaOutdated(StoreError):
    """The archive's tables are missing or of an older release, and whoever found out must not change them."""

    def __init__(self) -> None:
        super().__init__("the archive's tables are missing or of an older release: run `bcs db upgrade`")


@dataclass(frozen=True, slots=True)
class Session:
    """A session of the database.

    :param pid: the id of its process.
    :param application: the name that its client gave itself.
    :param state: as PostgreSQL names it; None where it does not tell.
    """

    pid: int
    application: str
    state: str | None

    def __str__(self) -> str:
        names = ", ".join(text for text in (self.application, self.state) if text)
        return f"process {self.pid}" + (f" ({names})" if names else "")


class SchemaLocked(StoreError):
    """The record's schema can't be upgraded now, and nothing was changed: other sessions hold what it takes.

    :param sessions: those; none where the database does not tell, or where they have just ended.
    :param upgrading: True if they hold the lock of an upgrade, False if they use the tables.
    """

    retryable = True

    def __init__(self, sessions: tuple[Session, ...], *, upgrading: bool) -> None:
        reason = "another upgrade holds the lock" if upgrading else "the tables are in use"
        by = f": {', '.join(map(str, sessions))}" if sessions else ""
        # One that has ended its work and kept the lock: an earlier release, through a pooler.
        left = [session for session in sessions if upgrading and session.state == "idle"]
        fix = f"; SELECT pg_terminate_backend({left[0].pid}) ends an idle one" if left else ""
        super().__init__(f"the schema can't be upgraded now, {reason}{by}{fix}")
        self.sessions = sessions
        self.upgrading = upgrading


class StoreCorrupted(StoreError):
    """What is stored under a batch's keys is not what BCS writes.

    :param key: the key.
    :param problem: what was found there.
    """

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(f"{key}: {problem}")
        self.key = key
        self.problem = problem
