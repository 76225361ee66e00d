"""The errors of BCS.

One tree; each leaf carries its facts as typed fields, and `retryable` is True where a retry can help::

    BcsError
    ├── ConfigurationError           the service must not start with these settings
    │   ├── DependencyCycle
    │   ├── PipelineCycle
    │   ├── UnknownDependency
    │   ├── UnknownMember            a pipeline names a pipeline that is not defined
    │   ├── DuplicateName
    │   ├── DependenciesDiffer       two pipelines of one file give a phase different dependencies
    │   ├── UnreadableConfiguration
    │   ├── RedisUnusable            the server answers, but BCS does not support it
    │   ├── DatabaseUnusable         the database answers, but can't hold the archive
    │   └── TracingUnavailable       tracing is on, and its packages are missing
    ├── RequestRefused               the caller asked for something that will not be done
    │   ├── UnknownPipeline
    │   ├── PromptRequired
    │   ├── UnknownPhases            an option names a phase that the requested pipeline does not have
    │   ├── NeededPhasesLeftOut      the request leaves out phases that are not complete and that others need
    │   ├── DefinitionsRefused       the pipeline file is not valid, so a reload changes nothing
    │   ├── UnknownEssays            the batch does not have the essays that an operator named
    │   ├── InvalidationOutdated     a known fact lies so far in the future that it can't be superseded
    │   ├── BatchErased              the batch was erased, and nothing about it is accepted for a time
    │   └── ReportOutdated           a known fact lies so far in the future that a phase report would not count
    ├── UndecodableMessage           a Kafka message that can never be applied
    ├── ClocksDiffer                 retryable: this machine's clock or the store's is wrong
    ├── IntakeBehind                 retryable: more events wait, or for longer, than an answer allows
    ├── TooManyNewBatches            retryable: the caller has used up its quota of new batches
    ├── KafkaUnavailable             retryable: Kafka did not do what a command needs
    ├── PartitionStalled             retryable: a part of a topic can't be read
    ├── UnknownTopic                 an operator named a topic that Kafka does not have
    ├── DeadLetterError
    │   ├── UnreadableDeadLetter     the message on a dead-letter topic was not written by BCS
    │   ├── OriginalGone             the dead letter is truncated, and the source topic no longer has the message
    │   └── ReplayFailed             retryable: the original could not be delivered
    └── StoreError
        ├── StoreUnavailable         retryable: out of reach, too slow, refuses for now, or the circuit breaker is open
        │   └── SlotMoves            retryable: the keys of a transaction are moving to another node of a cluster
        ├── CommitConflict           retryable: another writer changed the batch first
        ├── OutboxFull               retryable: too many messages wait for Kafka
        ├── BacklogFull              retryable: too many entries wait for PostgreSQL
        ├── StoreRefused             the store will never accept this write
        ├── TooManyEssays            a batch would have more essays than it may have
        ├── SchemaOutdated           the archive's tables are missing, or of an older release
        ├── SchemaLocked             retryable: another session blocks the upgrade of the schema
        └── StoreCorrupted           a batch's keys hold data that BCS does not write
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

if TYPE_CHECKING:
    from ssl import SSLError

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
"""Why a consumed message became a dead letter. Metrics start a counter at zero for each, so the list is complete."""


# By a part of OpenSSL's code of the error; the alerts come from the other side.
_TLS_REASONS = (
    ("CERTIFICATE_REQUIRED", "the server requires a client certificate"),
    ("ALERT_UNKNOWN_CA", "the server does not accept the client certificate: it does not know its CA"),
    ("ALERT_CERTIFICATE_EXPIRED", "the server does not accept the client certificate: it has expired"),
    ("CERTIFICATE", "the server does not accept the client certificate"),
    ("WRONG_VERSION_NUMBER", "the server does not speak TLS"),
    ("RECORD_LAYER_FAILURE", "the server does not speak TLS"),
    ("PROTOCOL_VERSION", "the server and BCS have no common version of TLS"),
    ("UNSUPPORTED_PROTOCOL", "the server and BCS have no common version of TLS"),
)


def os_reason(error: OSError) -> str:
    """The operating system's reason for an error, without the address or the file, which callers add themselves."""
    from ssl import SSLError  # an import at the start would make quick commands slower

    if isinstance(error, SSLError):
        return _tls_reason(error)
    # asyncio puts addresses into strerror, so the text of the number is better. A failed lookup has a negative number.
    number = error.errno or 0
    return os.strerror(number) if number > 0 else error.strerror or str(error)


def _tls_reason(error: SSLError) -> str:
    if invalid := getattr(error, "verify_message", ""):
        return f"the certificate of the server is not valid: {invalid.rstrip('.')}"
    code = error.reason or ""
    reason = next((reason for part, reason in _TLS_REASONS if part in code), "the TLS handshake failed")
    return f"{reason} ({code})" if code else reason


class BcsError(Exception):
    """Root of the tree."""

    retryable: ClassVar[bool] = False


class ConfigurationError(BcsError):
    """The configuration contradicts itself; the service does not start."""


class DependencyCycle(ConfigurationError):
    """Phases depend on each other in a cycle.

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


class PipelineCycle(ConfigurationError):
    """Pipelines contain each other in a cycle.

    :param pipelines: the cycle, first pipeline repeated at the end.
    """

    def __init__(self, pipelines: tuple[str, ...]) -> None:
        super().__init__(f"the pipelines contain each other in a cycle: {' -> '.join(pipelines)}")
        self.pipelines = pipelines


class UnknownMember(ConfigurationError):
    """A pipeline names a pipeline that is not defined."""

    def __init__(self, owner: str, missing: str) -> None:
        super().__init__(f"the pipeline {owner!r} names the pipeline {missing!r}, which is not defined")
        self.owner = owner
        self.missing = missing


class DuplicateName(ConfigurationError):
    """One name is defined twice."""

    def __init__(self, name: str, where: str) -> None:
        super().__init__(f"{name!r} is defined twice in {where}")
        self.name = name
        self.where = where


class DependenciesDiffer(ConfigurationError):
    """In two pipelines of one file a phase has different dependencies; BCS has one list of dependencies for each phase.

    :param phase: the phase.
    :param first: the first pipeline, and the phases that the phase depends on there.
    :param second: the pipeline that differs, and the phases that the phase depends on there.
    """

    def __init__(self, phase: str, first: tuple[str, tuple[str, ...]], second: tuple[str, tuple[str, ...]]) -> None:
        requirements = " and ".join(
            f"on {', '.join(names) or 'nothing'} in pipeline {pipeline!r}" for pipeline, names in (first, second)
        )
        super().__init__(f"the phase {phase!r} depends {requirements}; both must be the same")
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
    """The database in the settings answers, but can't hold the archive as it is.

    :param problem: what is wrong with the database.
    :param fix: what the operator has to do.
    """

    def __init__(self, problem: str, fix: str) -> None:
        super().__init__(f"BCS_DATABASE_URL names {problem}: {fix}")
        self.problem = problem
        self.fix = fix


class RedisUnusable(ConfigurationError):
    """The Redis server in the settings answers, but BCS does not support it.

    :param problem: what is wrong with the server.
    """

    def __init__(self, problem: str) -> None:
        super().__init__(f"BCS_REDIS_URL leads to a server that BCS does not support: {problem}")
        self.problem = problem


class RequestRefused(BcsError):
    """The request will not be carried out, now or later."""


class UnknownPipeline(RequestRefused):
    """The requested pipeline is neither a phase nor a configured pipeline.

    The message leaves out the requested name, because that is the caller's text.
    """

    def __init__(self, requested: str, known: tuple[str, ...]) -> None:
        super().__init__(f"the requested pipeline is not known; known are: {', '.join(known)}")
        self.requested = requested
        self.known = known


class PromptRequired(RequestRefused):
    """The pipeline has phases that need the essay prompt, and no prompt is attached to the batch."""

    def __init__(self, phases: tuple[str, ...]) -> None:
        super().__init__(f"no prompt is attached to the batch, and these phases need one: {', '.join(phases)}")
        self.phases = phases


@dataclass(frozen=True, slots=True)
class Tombstone:
    """What is kept of an erased batch: who erased it, and why. It says nothing of what the batch was.

    :param at_us: when, in microseconds since 1970 UTC.
    :param until_us: nothing about the batch is accepted before this time, in microseconds since 1970 UTC.
    :param erased_by: the operator.
    :param reason: the operator's reason.
    """

    at_us: int
    until_us: int
    erased_by: str
    reason: str


class BatchErased(RequestRefused):
    """The batch was erased, and nothing about it is accepted for a time.

    :param tombstone: who erased it, when and why.
    :param in_redis: True if Redis has the tombstone, and not only the archive.
    """

    def __init__(self, batch_id: str, tombstone: Tombstone, *, in_redis: bool = False) -> None:
        super().__init__("the batch was erased, and nothing about it is accepted for a time")
        self.batch_id = batch_id
        self.tombstone = tombstone
        self.in_redis = in_redis


class UnknownPhases(RequestRefused):
    """An option of the request names a phase that it can't name.

    The message leaves out the given names, because they are the caller's text.

    :param option: the name of the option.
    :param known: the phases that the option may name.
    """

    def __init__(self, option: str, known: tuple[str, ...]) -> None:
        super().__init__(f"{option}: {self.expectation(known)}")
        self.option = option
        self.known = known

    @staticmethod
    def expectation(known: tuple[str, ...]) -> str:
        """What the option may name."""
        return f"must be phases that the request is about: {', '.join(known) or 'it is about none'}"


@dataclass(frozen=True, slots=True)
class NeededPhase:
    """A phase that a request leaves out although others need it.

    :param needed_by: the phases that run and require it directly.
    :param reason_text: why it is not complete, as part of a sentence.
    """

    phase: str
    needed_by: tuple[str, ...]
    reason_text: str


class NeededPhasesLeftOut(RequestRefused):
    """The request leaves out phases that are not complete and that running phases require.

    :param needed: these phases.
    """

    def __init__(self, needed: tuple[NeededPhase, ...]) -> None:
        phases = "; ".join(f"{one.phase}, because {one.reason_text}" for one in needed)
        by = ", ".join(dict.fromkeys(name for one in needed for name in one.needed_by))
        super().__init__(f"the request leaves out what {by} needs and what is not complete: {phases}")
        self.needed = needed


class DefinitionsRefused(RequestRefused):
    """The pipeline file can't be used, so the definitions in use stay in use.

    :param problems: what is wrong with the file.
    :param in_use: the version and the hash of the definitions in use.
    """

    def __init__(self, problems: tuple[str, ...], in_use: str) -> None:
        super().__init__(f"the pipeline file can't be used: {'; '.join(problems)}")
        self.problems = problems
        self.in_use = in_use


class FactInTheFuture(RequestRefused):
    """A known fact about a phase, or about an essay, lies further in the future than clocks may differ.

    :param problem: why the fact is in the way.
    :param phase: the phase of the request.
    :param fact: the kind of that fact.
    :param essay_id: the essay of that fact; None where the fact is about all essays.
    :param at_us: the time of that fact, in microseconds since 1970 UTC.
    """

    def __init__(self, problem: str, phase: str, fact: str, essay_id: str | None, at_us: int) -> None:
        super().__init__(f"a known fact ({fact}) lies in the future, so {problem}")
        self.phase = phase
        self.fact = fact
        self.essay_id = essay_id
        self.at_us = at_us


class ReportOutdated(FactInTheFuture):
    """A phase report would not count, or not for long."""

    def __init__(self, phase: str, fact: str, essay_id: str | None, at_us: int) -> None:
        super().__init__(f"a report on {phase} would not count", phase, fact, essay_id, at_us)


class InvalidationOutdated(FactInTheFuture):
    """An invalidation would not supersede a known fact."""

    def __init__(self, phase: str, fact: str, essay_id: str | None, at_us: int) -> None:
        super().__init__(f"an invalidation of {phase} would not supersede it", phase, fact, essay_id, at_us)


class UnknownEssays(RequestRefused):
    """The request names essays that the batch does not have.

    :param positions: the positions of these essays in the request, the first of them 0.
    """

    def __init__(self, positions: tuple[int, ...]) -> None:
        super().__init__(f"the batch does not have {len(positions)} of the named essays")
        self.positions = positions


class ClocksDiffer(BcsError):
    """The clocks of this machine and of the store differ, so nobody can say whether an event lies in the future.

    :param seconds: the difference.
    """

    retryable = True

    def __init__(self, seconds: float) -> None:
        super().__init__(f"the clocks of this machine and of the store differ by {seconds:.0f} s")
        self.seconds = seconds


class UndecodableMessage(BcsError):
    """A message that can never be applied, however often it is retried.

    :param reason: a short code, which is also a metric's label.
    :param detail: what exactly is wrong, for the person who reads the dead letter.
    :param batch_id: the batch, where the message names one.
    :param correlation_id: the event envelope's, where it could be read.
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


class IntakeBehind(BcsError):
    """The intake is further behind than an answer allows; nothing was stored or announced.

    :param events: how many events wait to be read; None where that is not known.
    :param seconds: for how long an event has waited at least; None where that is not known.
    :param most_seconds: the limit.
    """

    retryable = True

    def __init__(self, events: int | None, seconds: float | None, most_seconds: float) -> None:
        known = f"{events} events wait, for up to {seconds:.0f} s" if seconds is not None else "that is not known yet"
        super().__init__(f"the intake must be at most {most_seconds:g} s behind: {known}")
        self.events = events
        self.seconds = seconds
        self.most_seconds = most_seconds


class TooManyNewBatches(BcsError):
    """The caller has used up its quota of batches that BCS does not know; nothing was stored or announced.

    :param wait_seconds: the time until the caller may name another new batch.
    """

    retryable = True

    def __init__(self, wait_seconds: float) -> None:
        super().__init__("too many requests of this caller about batches that BCS does not know")
        self.wait_seconds = wait_seconds


class KafkaUnavailable(BcsError):
    """Kafka did not do what a command needs. This error ends a command; the service waits for Kafka instead.

    :param cause: why, in a few words.
    :param answered: True if a broker answered and refused.
    """

    retryable = True

    def __init__(self, cause: str, *, answered: bool = False) -> None:
        super().__init__(f"kafka {'refuses' if answered else 'is out of reach'}: {cause}")
        self.cause = cause
        self.answered = answered


class PartitionStalled(BcsError):
    """A partition can't be read any further: its bytes are damaged, or the broker refuses the reads.

    :param offset: the first offset that can't be read; None where no offset of the partition can be read.
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
    """A dead letter can't be read or replayed.

    :param position: the dead letter's topic, partition and offset.
    :param problem: what is wrong.
    """

    def __init__(self, position: str, problem: str) -> None:
        super().__init__(f"{position}: {problem}")
        self.position = position
        self.problem = problem


class UnreadableDeadLetter(DeadLetterError):
    """The message at this position is not a dead letter that BCS wrote."""


class OriginalGone(DeadLetterError):
    """The dead letter is truncated, and its original is gone from the source topic or can't be read there."""


class ReplayFailed(DeadLetterError):
    """The original could not be delivered; the dead letter stays as it is."""

    retryable = True


class StoreError(BcsError):
    """A store did not carry out a call."""


class StoreUnavailable(StoreError):
    """A store is out of reach, or refuses for now; whether a write happened is unknown.

    :param store: the store's name.
    :param cause: why, in a few words.
    :param answered: True if the store answered and refused this call; other calls may succeed.
    :param late: True if no answer came before the deadline: the store may be healthy, and this call too large.
    :param unsent: True if the call was not even sent, so that it surely was not carried out.
    :param address: the address that was tried, with its setting; empty where no connection was tried.
    :ivar partly: True if another part of the call was carried out, on another server.
    """

    retryable = True
    partly = False

    def __init__(
        self,
        store: str,
        cause: str,
        *,
        answered: bool = False,
        late: bool = False,
        unsent: bool = False,
        address: str = "",
    ) -> None:
        super().__init__(store, cause)
        self.store = store
        self.cause = cause
        self.answered = answered
        self.late = late
        self.unsent = unsent
        self.address = address

    def __str__(self) -> str:
        """The store, its address and the cause in one line."""
        at = f" at {self.address}" if self.address else ""
        return f"{self.store} {'refuses' if self.answered else 'is out of reach'}{at}: {self.cause}"


class SlotMoves(StoreUnavailable):
    """A node of a Redis Cluster refused a transaction, because its keys are, or may be, on another node.

    Nothing was written. The next attempt asks the node that has the keys by then.
    """


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
    """So many entries wait for PostgreSQL that no more are accepted.

    :param limit: the number of entries that may wait.
    """

    retryable = True

    def __init__(self, limit: int) -> None:
        super().__init__(f"{limit} entries wait for PostgreSQL; no more are accepted until some are written")
        self.limit = limit


class StoreRefused(StoreError):
    """The store will never accept this write, however often it is retried.

    :param store: the store's name.
    :param problem: the store's reason.
    """

    def __init__(self, store: str, problem: str) -> None:
        super().__init__(f"{store} does not accept this write: {problem}")
        self.store = store
        self.problem = problem


class TooManyEssays(StoreError):
    """With these facts a batch would have more essays than a batch may have; nothing was written.

    :param limit: how many essays a batch may have.
    :param known: how many essays the batch has.
    :param new_essays: the essays of these facts that the batch does not have yet.
    """

    def __init__(self, limit: int, known: int, new_essays: frozenset[str]) -> None:
        super().__init__(
            f"the batch would have {known + len(new_essays)} essays, and BCS_MAX_ESSAYS_PER_BATCH is {limit}"
        )
        self.limit = limit
        self.known = known
        self.new_essays = new_essays


class SchemaOutdated(StoreError):
    """The archive's tables are missing or of an older release, and this process must not change them."""

    def __init__(self) -> None:
        super().__init__("the archive's tables are missing or of an older release: run `bcs db upgrade`")


@dataclass(frozen=True, slots=True)
class Session:
    """A session of the database server.

    :param pid: the id of the session's process.
    :param application: the application name that the client sent.
    :param state: the state that PostgreSQL reports; None where PostgreSQL does not report one.
    """

    pid: int
    application: str
    state: str | None

    def __str__(self) -> str:
        names = ", ".join(text for text in (self.application, self.state) if text)
        return f"process {self.pid}" + (f" ({names})" if names else "")


class SchemaLocked(StoreError):
    """The archive's schema can't be upgraded now, and nothing was changed: other sessions hold the locks.

    :param sessions: these sessions; empty where PostgreSQL does not report them, or where they have just ended.
    :param upgrading: True if they hold the lock of an upgrade, False if they use the tables.
    """

    retryable = True

    def __init__(self, sessions: tuple[Session, ...], *, upgrading: bool) -> None:
        reason = "another upgrade holds the lock" if upgrading else "the tables are in use"
        by = f": {', '.join(map(str, sessions))}" if sessions else ""
        # An idle session that still holds the lock: an earlier release leaves one behind when it runs through a pooler.
        left = [session for session in sessions if upgrading and session.state == "idle"]
        fix = f"; SELECT pg_terminate_backend({left[0].pid}) ends an idle one" if left else ""
        super().__init__(f"the schema can't be upgraded now, {reason}{by}{fix}")
        self.sessions = sessions
        self.upgrading = upgrading


class StoreCorrupted(StoreError):
    """A batch's keys hold data that BCS does not write.

    :param key: the Redis key.
    :param problem: what the key holds.
    """

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(f"{key}: {problem}")
        self.key = key
        self.problem = problem
