"""A snapshot of a tree at one instant."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from enum import Enum
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterator


class State(Enum):
    """The state of a child."""

    IDLE = "idle"  # not started yet, or the supervisor does not run
    STARTING = "starting"  # an attempt runs and is not ready yet
    RUNNING = "running"
    STOPPING = "stopping"  # asked to stop, or cancelled
    BACKING_OFF = "backing_off"  # between two attempts
    UNRESPONSIVE = "unresponsive"  # ignores its cancellation; readers of the JSON know the value
    ENDED = "ended"  # the current run of the supervisor will not start it again


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One node of a tree, and everything below it.

    :param name: the name of the child; the key, for a child of a dynamic supervisor
    :param kind: the kind of the node
    :param state: the state of the node
    :param incarnation: the number of attempts so far
    :param restarts: the number of attempts that followed an earlier attempt in the same run of the supervisor: after a
        failure, after a return, or together with a sibling, as the strategy says
    :param last_error: the error that ended the last failed attempt
    :param mailbox_depth: envelopes queued, unacked, or waiting for redelivery; the sum for a dynamic supervisor
    :param mailbox_capacity: None if there is no mailbox
    :param oldest_message_seconds: the age of the oldest envelope, 0.0 when there is none
    :param busy_seconds: the time since the last heartbeat, 0.0 while idle
    :param intensity_used: the share of a supervisor's restart intensity that is used up, 0.0 for an actor; at 1.0 the
        next restart makes the supervisor give up
    :param children: in their order; a dynamic supervisor lists at most a hundred, the unresponsive ones first
    :param total_children: the number of all children
    """

    name: str
    kind: Literal["actor", "supervisor", "dynamic"]
    state: State
    _: KW_ONLY
    incarnation: int = 0
    restarts: int = 0
    last_error: str | None = None
    mailbox_depth: int = 0
    mailbox_capacity: float | None = None
    oldest_message_seconds: float = 0.0
    busy_seconds: float = 0.0
    intensity_used: float = 0.0
    children: tuple[Snapshot, ...] = ()
    total_children: int = 0

    @property
    def healthy(self) -> bool:
        """False when an attempt here or below is unresponsive: then only a new process helps."""
        return self.state is not State.UNRESPONSIVE and all(child.healthy for child in self.children)

    def iter_flat(self) -> Iterator[tuple[str, Snapshot]]:
        """Iterate over all nodes below this one with their paths, parents before children."""
        for child in self.children:
            yield child.name, child
            for path, node in child.iter_flat():
                yield f"{child.name}/{path}", node
