"""The bodies of answers about the service itself: its actors, its health. See `answers.py`."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Literal

from bcs.config.settings import Environment
from bcs.http.answers import Count, Seconds, Status
from bcs.http.definition_answers import DefinitionsInUse
from bcs.supervision import State
from bcs.wire.documents import Timestamp, described

if sys.version_info >= (3, 12):
    from typing import TypedDict
else:
    from typing_extensions import TypedDict  # pydantic takes no other


@described
class Mailbox(TypedDict):
    """The mailbox of an actor; of a dynamic supervisor, the sum of its children's."""

    depth: Count
    capacity: Count | None
    oldest_message_seconds: Seconds


@described
class Actor(TypedDict):
    """An actor or a supervisor, and all below it."""

    path: str
    """The name for a kill. Empty for the root."""
    name: str
    kind: Literal["actor", "supervisor", "dynamic"]
    state: State
    incarnation: Count
    """The number of attempts so far."""
    restarts: Count
    last_error: str | None
    busy_seconds: Seconds
    """The time since the last heartbeat, 0 while idle."""
    mailbox: Mailbox | None
    total_children: Count
    children: Sequence[Actor]
    """At most a hundred of a dynamic supervisor, the unresponsive ones first."""


@described
class ActorKilled(TypedDict):
    """The actor is being killed; its supervisor starts it again."""

    status: Literal["killed"]
    actor: str


@described
class Dependency(TypedDict):
    """Whether a dependency answers, or else what is wrong and at which address."""

    status: Literal["healthy", "degraded", "unhealthy", "not_configured"]
    message: str


@described
class Dependencies(TypedDict):
    """The dependencies of the service."""

    redis: Dependency
    kafka: Dependency
    postgresql: Dependency


@described
class Wait(TypedDict):
    """A retry that an actor waits for, why, and since when."""

    operation: str
    cause: str
    since: Timestamp


@described
class Checks(TypedDict):
    """The state of this process."""

    service_responsive: bool
    actors_recoverable: bool
    """False while an actor ignores its cancellation: then only a new process helps."""
    actors: Mapping[str, State]


@described
class Health(TypedDict):
    """The health of this process and of its dependencies."""

    service: str
    status: Status
    message: str
    version: str
    checks: Checks
    dependencies: Dependencies
    credentials: Mapping[str, str]
    """The files of tokens and certificates that can't be used now, by their setting, and why."""
    definitions: DefinitionsInUse
    waits: Mapping[str, Sequence[Wait]]
    """What publisher, archive, batches and intake wait to do."""
    environment: Environment


@described
class Ready(TypedDict):
    """The service takes requests."""

    status: Literal["ready"]
